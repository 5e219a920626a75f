/* sam_positions.h - the image's side of SAM's two-way transformer, for many prompts on one image.
 * fast/sam_prompts.c has the tokens' side. */
#ifndef SAMLAD_SAM_POSITIONS_H
#define SAMLAD_SAM_POSITIONS_H

#include "sam.h"

/* The planes of one image; read-only after their creation. */
typedef struct SamPlanes SamPlanes;
SamPlanes *sam_planes_new(const Sam *sam, const float *embedding /* [n][C] */, Error *err);
void sam_planes_free(SamPlanes *planes);

/* The positions of one prompt: the image's positions after the layers so far, in the form of sam_positions.c.
 * They lie in a scratch's arena. */
typedef struct SamPositions {
    const SamWeights *weights;
    int n_heads, head_dim,
        head_padded; /* head_padded: floats stored of a head's values, a multiple of TILE_PAD */
    int n_tiles, max_rank, max_tokens;
    int n_tokens, n_free;      /* T, H·(T-1) */
    int level, rank;           /* layers done; used rows of z and basis. */
    float *z;                  /* [tiles][max_rank][TILE] */
    float *sigma;              /* [tiles][TILE] */
    float *basis, *centred;    /* [max_rank][C] B and E */
    float *gram;               /* [max_rank][max_rank] E·Eᵀ */
    float *values;             /* [depth][max_tokens][internal_dim] */
    float *folded, *pooled;    /* [H·T][C] */
    float *mix;                /* [H·T or C][max_rank] */
    float *pooled_values;      /* [H·T][head_padded] */
    float *pooled_z;           /* [H·T][max_rank, padded] */
    float *max, *sum, *factor; /* [H·T] of the online softmax. */
    /* one tile: */
    float *projected;         /* [internal_dim][TILE] */
    float *scores, *weighted; /* [H·T][TILE] */
    float *turned;            /* [TILE][max_rank, padded] */
    float *products, *gram_z; /* [max_rank][TILE] */
    float *up1, *up2;         /* [2·2][C/4][TILE], [2·2][C/8][TILE] */
    float *logits;            /* [16][n_mask_tokens][TILE] */
} SamPositions;

/* 1 if prompts of n_tokens can use the planes. The planes are written for decoders of few layers, and pay
 * only while heads times tokens are few. Automatic masks of the published models fit: 2 layers, 8·7. */
int sam_positions_fit(const SamWeights *weights, int n_tokens);
void sam_layout_positions(SamPositions *positions, const SamWeights *weights, int max_tokens, Arena *arena);
/* A new prompt of n_tokens <= max_tokens tokens. */
void sam_positions_begin(SamPositions *positions, int n_tokens);
/* attended [n][internal_dim] of n <= T tokens that attend to the image, before out_proj. q [n][internal_dim] is
 * projected and scaled. */
void sam_positions_token_to_image(SamPositions *positions, const SamPlanes *planes, const SamAttention *a,
                                  const float *q, int n, float *attended);
/* The image attends to the tokens, then norm4: go to the next level. k [T][internal_dim] is projected and
 * scaled, v [T][internal_dim] projected. */
void sam_positions_image_to_token(SamPositions *positions, const SamPlanes *planes,
                                  const SamTwoWayAttentionBlock *block, const float *k, const float *v);
/* low_res [n_masks][4g][4g] = upscaled image · hyper_in [n_masks][C/8]. */
void sam_positions_upscale(SamPositions *positions, const SamPlanes *planes, const float *hyper_in,
                           int n_masks, float *low_res);

#endif
