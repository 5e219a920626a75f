/* io/shards.h - a checkpoint as it lies on the disk: one safetensors file, several (shards) with an index, or
 * the folder that holds either.
 *
 * The index is JSON (huggingface/transformers): {"weight_map": {tensor: file beside the index}}. It must name
 * exactly the tensors that its files hold. */
#ifndef SAMLAD_IO_SHARDS_H
#define SAMLAD_IO_SHARDS_H

#include "io/safetensors.h"

/* Open the file, the shards of an index (a path that ends with .json), or what the folder holds: the first of
 * model.safetensors, model.safetensors.index.json, and its only other safetensors file. NULL on failure. */
Safetensors *st_open_checkpoint(const char *path, Error *err);

#endif
