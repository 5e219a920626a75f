/* sam_positions.h - the image's side of the two-way transformer for many prompts on one image. Private to
 * the mask decoder: sam_decoder.c has the tokens' side. */
#ifndef SAMLAD_SAM_POSITIONS_H
#define SAMLAD_SAM_POSITIONS_H

#include "sam_model.h"

/* Of one image; read-only once made. */
typedef struct SamPlanes SamPlanes;
SamPlanes *sam_planes_new(const Sam *sam, const float *source /* [n][C] embedding + no_mask_embed */,
                          Error *err);
void sam_planes_free(SamPlanes *planes);

/* Of one prompt: what it has made of the image's positions so far. In a scratch's arena. */
typedef struct SamTrail {
    const Sam *sam;
    int n_heads, head_dim, head_padded; /* the last: room for a head's values, a multiple of TILE_PAD */
    int n_tiles, max_rank;
    int n_tokens, n_free;      /* T, H·(T-1) */
    int level, rank;           /* layers behind us; rows of z and basis in use */
    float *z;                  /* [tiles][max_rank][TILE] */
    float *reach;              /* [tiles][TILE] */
    float *basis, *centred;    /* [max_rank][C] */
    float *gram;               /* [max_rank][max_rank] */
    float *values;             /* [depth][max_tokens][inner_dim] */
    float *folded, *pooled;    /* [H·T][C] */
    float *mix;                /* [H·T or C][max_rank] */
    float *pooled_values;      /* [H·T][head_padded] */
    float *pooled_z;           /* [H·T][max_rank, padded] */
    float *max, *sum, *factor; /* [H·T] */
    /* one tile */
    float *projected;         /* [inner_dim][TILE] */
    float *scores, *weighted; /* [H·T][TILE] */
    float *turned;            /* [TILE][max_rank, padded] */
    float *products, *gram_z; /* [max_rank][TILE] */
    float *up1, *up2;         /* [2·2][C/4][TILE], [2·2][C/8][TILE] */
    float *logits;            /* [16][n_mask_tokens][TILE] */
    int max_tokens;
} SamTrail;

/* May prompts of so many tokens go this way? It is written for decoders of few layers, and pays only while
 * heads times tokens are few. Automatic masks of the published models fit: 2 layers, 8·7. */
int sam_trail_fits(const Sam *sam, int n_tokens);
void sam_trail_layout(SamTrail *trail, const Sam *sam, int max_tokens, Arena *arena);
/* A new prompt of n_tokens <= max_tokens tokens. */
void sam_trail_begin(SamTrail *trail, int n_tokens);
/* heads [n][inner_dim] of n <= T tokens that attend to the image, before the output's product; q
 * [n][inner_dim] is projected and scaled. */
void sam_trail_tokens_to_image(SamTrail *trail, const SamPlanes *planes, const SamAttention *a,
                               const float *q, int n, float *heads);
/* The image attends to the tokens and is normalised: on to the next level. k [T][inner_dim] is projected
 * and scaled, v [T][inner_dim] projected. */
void sam_trail_image_to_tokens(SamTrail *trail, const SamPlanes *planes, const SamTwoWayLayer *layer,
                               const float *k, const float *v);
/* low_res [n_masks][4g][4g] = upscaled image · hyper[n_masks][C/8] */
void sam_trail_upscale(SamTrail *trail, const SamPlanes *planes, const float *hyper, int n_masks,
                       float *low_res);

#endif
