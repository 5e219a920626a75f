/* encoder.h - image encoders that replace SAM's own ViT, behind one interface.
 *
 * A light SAM replaces SAM's image encoder. If its prompt encoder and its mask decoder are SAM's (MobileSAM),
 * the encoder is all that must be added, in five steps:
 *   1. encoders/NAME.c reads its own weights (image_encoder.*) and defines a SamEncoder;
 *   2. encoder.h declares it, below;
 *   3. encoder.c lists it in the table `encoders`;
 *   4. tools/convert.py recognises the checkpoint and writes the metadata: sam.encoder (the SamEncoder's
 *      name), sam.image_size, sam.embed_dim (the channels of the encoder's output);
 *   5. tests/test_sam.c compares it with a golden file of the official code.
 * SAM's neck follows each encoder: sam.c runs it, load/sam_load.c reads image_encoder.neck.*.
 *
 * EfficientSAM needs more: its decoder differs from SAM's. That needs switches in load/sam_load.c and sam.c. */
#ifndef SAMLAD_ENCODER_H
#define SAMLAD_ENCODER_H

#include "io/error.h"
#include "io/safetensors.h"
#include "tensor.h"

typedef struct SamEncoder {
    const char *name;  /* value of the weights' metadata key sam.encoder. */
    int patch_size;    /* pixels a side of an output position. */
    size_t state_size; /* size of the struct that layout fills. */
    /* The model, from the tensors below image_encoder. The picture has image_size pixels a side. The weights
     * must outlive the model. NULL: no memory, or a sentence that names the wrong tensor. */
    void *(*open)(Safetensors *weights, int image_size, Error *err);
    void (*close)(void *model); /* NULL allowed */
    /* Channels of the output. */
    int (*dim)(const void *model);
    /* Multiply-adds of a forward pass in products and attention. Padding tokens count only as keys. */
    double (*multiply_adds)(const void *model);
    /* Round the linear layers to bf16, see linear_pack. */
    void (*pack)(void *model, Arena *arena);
    /* Take the activations' memory from the arena. It is called twice: to count, and with memory. */
    void (*layout)(const void *model, void *state, Arena *arena);
    /* pixels [3][S][S] -> [S/patch_size][S/patch_size][dim], in the state's memory. Each encoder has its own
     * taps. NULL: no memory (see attention_reserve). */
    const float *(*forward)(const void *model, void *state, const float *pixels, TensorTap tap,
                            void *tap_user, Error *err);
} SamEncoder;

extern const SamEncoder tiny_vit_encoder; /* MobileSAM's TinyViT, tiny_vit.c */

/* The encoder of these weights. *encoder is NULL for SAM's own ViT ("vit", or no sam.encoder in the
 * metadata). -1: an unknown name. */
int sam_encoder_find(const SamEncoder **encoder, const Safetensors *weights, Error *err);

#endif
