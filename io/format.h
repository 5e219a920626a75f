/* io/format.h - what a file is that is no safetensors file. */
#ifndef SAMLAD_IO_FORMAT_H
#define SAMLAD_IO_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "io/error.h"

/* Refuse the file whose first n bytes these are, and name what it is: a PyTorch file, with the command that
 * converts it, a web page, a Git LFS pointer, ... Returns -1. */
int refuse_format(const char *path, const uint8_t *bytes, size_t n, Error *err);
/* Refuse a PyTorch file, by its path alone. Returns -1. */
int refuse_pytorch(const char *path, const char *kind, Error *err);
/* 1 when the name ends as PyTorch's files do: .bin, .pth, .pt, .ckpt. */
int is_pytorch_name(const char *path);

#endif
