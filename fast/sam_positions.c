/* sam_positions.c - the image's side of SAM's two-way transformer, for many prompts on one image without a
 * mask prompt. It is the same function as sam.c's, with the products in another order.
 *
 * The saving. An image has n = 4,096 positions of C = 256 channels. A prompt has T = 7 tokens, an attention H
 * = 8 heads of 16 dimensions. For every prompt the official code multiplies all positions with a dozen
 * matrices. But a layer of the transformer does only two things to a position's vector x:
 *
 *     y  = x + Dᵀ·a + b            cross_attn_image_to_token: a [H·T] are the position's softmaxed scores,
 *                                  D [H·T][C] = out_proj·v of each head and token, the same for all positions
 *     x' = γ∘(y - mean y)·s + β    norm4: s = 1/√(variance + ε) is one number for each position
 *
 * Both are linear except for the numbers a and s.
 *
 * The form. So after l layers each position is a fixed vector of the image, scaled, plus a low-rank term.
 * With P = "subtract the mean of the channels",
 *
 *     x_l = σ·u_l + Bᵀ·z           u_0 = x_0, u_{l+1} = γ_l∘P·u_l   the image's alone: no prompt in it
 *                                  B [rank][C]                      the prompt's alone: no position in it
 *                                  σ = s_0·s_1···, z [rank]         few numbers a position and prompt
 *
 * A layer takes z to [s·z, s·a, 1], B to [γ∘P·B, γ∘P·D, β], and σ to s·σ. (The T scores of a head sum to one:
 * the last token's score is 1 minus the others. So a and D have H·(T-1) rows, of differences to the last
 * token. The last token's own part is in b.) rank = 1 + l·(H·(T-1) + 1): 50 after the first layer.
 *
 * Products. For the next matrix W, W·x_l = σ·(W·u_l) + (W·Bᵀ)·z. W·u_l is a *plane*, computed once an image;
 * W·Bᵀ is small. A score q·W_k·x costs 16 + 50 multiplications for each position. x itself is never stored,
 * and a prompt needs only a fifth of the arithmetic.
 *
 * Norm4 needs ‖P·y‖². With E = P·[B; D] (b in the row that z multiplies with 1) and ζ = [z; a]:
 *
 *     ‖P·y‖² = σ²·‖P·u‖² + 2·σ·ζ·(E·P·u) + ζᵀ·(E·Eᵀ)·ζ
 *
 * The first term is a plane of one row, E·Eᵀ a small matrix of the prompt. In the middle term, E's rows of
 * layer m <= l are D_m after the norms since layer m. D_m·t = v·(W_oᵀ·t), head by head. So the planes
 * W_oᵀ·t_m are kept, where t_l = P·u_l and t_{m-1} = P·(γ_{m-1}∘t_m).
 *
 * Softmax over the positions, when tokens attend to the image. Key biases add the same number to all scores
 * of a query and cancel. The weighted mean of W_v·x + b_v is that of the planes, plus W_v·Bᵀ·(weighted mean
 * of z), plus b_v. Upscaling: the two transposed convolutions do not overlap (stride 2, kernel 2). So each
 * position makes its own 16 logits.
 *
 * Positions are processed in tiles of TILE, as lanes (planar.h). Those beyond the last are zero and unused.
 * docs/METHOD.md 4 has the derivation as well. */
#include "fast/sam_positions.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fast/planar.h"
#include "io/fail.h"

#define MAX_LEVELS 4   /* the most layers of the transformer; SAM has 2. */
#define MAX_FOLDED 512 /* the most H·T; beyond, the rank is no longer small. */

/* The products with an image's u_l, each [tiles][rows][TILE]. The last level has no queries, because only the
 * final attention and upscaling read it. */
typedef struct Level {
    float *keys, *keys_pe; /* [inner]; keys_pe = W_k · positional encoding, at level 0 included in keys. */
    float *queries, *queries_pe; /* [inner]; b_q with the encoding. */
    float *values;           /* [tiles·TILE][H][head_padded]: positions as rows, because the sum runs over
                                    them. */
    float *back[MAX_LEVELS]; /* [inner + 1] W_oᵀ·t_m of layer m; last row: (β_{m-1} + b_o)·t_m. */
    float *square;           /* [1] ‖P·u‖² */
} Level;

struct SamPlanes {
    const SamWeights *w;
    int n_tiles;
    Arena arena;
    Level levels[MAX_LEVELS + 1];
    float *up;                      /* [C] the last level after the first transposed convolution. */
    float *up_weight1, *up_weight2; /* both convolutions' weights as [2·2][c_out][c_in]. */
};

/* The internal dimension of the cross attentions. */
static int internal_dim(const SamWeights *w)
{
    return w->mask_decoder.transformer.final_attn_token_to_image.internal_dim;
}

static int tiles_of(const SamWeights *w)
{
    return (w->n_positions + TILE - 1) / TILE;
}

int sam_positions_fit(const SamWeights *w, int n_tokens)
{
    return w->config.decoder_depth <= MAX_LEVELS && n_tokens * w->config.decoder_heads <= MAX_FOLDED;
}

/* ---- planes of an image -----------------------------------------------------------------------*/

static void layout_planes(SamPlanes *p)
{
    const SamWeights *w = p->w;
    const size_t n = (size_t)p->n_tiles * TILE, inner = internal_dim(w);
    const int n_heads = w->config.decoder_heads, depth = w->config.decoder_depth;
    const size_t padded = round_up(internal_dim(w) / n_heads, TILE_PAD);
    for (int l = 0; l <= depth; l++) {
        Level *level = &p->levels[l];
        level->keys = arena_floats(&p->arena, n * inner);
        level->keys_pe = l > 0 ? arena_floats(&p->arena, n * inner) : NULL;
        level->values = arena_floats(&p->arena, n * n_heads * padded);
        if (l == depth)
            break;
        level->queries = arena_floats(&p->arena, n * inner);
        level->queries_pe = l > 0 ? arena_floats(&p->arena, n * inner) : NULL;
        for (ptrdiff_t m = 0; m <= l; m++)
            level->back[m] = arena_floats(&p->arena, n * (inner + 1));
        level->square = arena_floats(&p->arena, n);
    }
    const size_t dim = w->config.out_chans;
    p->up = arena_floats(&p->arena, n * dim);
    p->up_weight1 = arena_floats(&p->arena, dim * dim);
    p->up_weight2 = arena_floats(&p->arena, dim / 4 * (dim / 2));
}

/* plane [tiles][rows][TILE] = weight [rows][C] · x [tiles·TILE][C]ᵀ + bias (or NULL). */
static void fill_plane(const SamPlanes *p, float *plane, const float *weight, const float *bias, int rows,
                       const float *x)
{
    const int dim = p->w->config.out_chans;
    for (ptrdiff_t tile = 0; tile < p->n_tiles; tile++, plane += (size_t)rows * TILE) {
        matmul_nt(plane, TILE, weight, dim, x + tile * TILE * dim, dim, rows, TILE, dim, 0);
        for (int i = 0; bias && i < rows; i++)
            for (int j = 0; j < TILE; j++)
                plane[i * TILE + j] += bias[i];
    }
}

/* The projection of u_l and that of the positional encoding, in one plane or two. sum is a buffer for u + pe. */
static void fill_projection(const SamPlanes *p, float *plane, float *plane_pe, const Linear *a,
                            const float *bias, const float *u, const float *pe, float *sum)
{
    const int inner = internal_dim(p->w);
    const size_t n = (size_t)p->n_tiles * TILE * p->w->config.out_chans;
    if (plane_pe) {
        fill_plane(p, plane, a->weight, NULL, inner, u);
        fill_plane(p, plane_pe, a->weight, bias, inner, pe);
        return;
    }
    for (size_t i = 0; i < n; i++)
        sum[i] = u[i] + pe[i];
    fill_plane(p, plane, a->weight, bias, inner, sum);
}

static void fill_values(const SamPlanes *p, float *values, const float *weight, const float *u)
{
    const int dim = p->w->config.out_chans, n_heads = p->w->config.decoder_heads;
    const int head_dim = internal_dim(p->w) / n_heads, padded = round_up(head_dim, TILE_PAD);
    const int n = p->n_tiles * TILE;
    memset(values, 0, (size_t)n * n_heads * padded * sizeof *values);
    for (ptrdiff_t h = 0; h < n_heads; h++)
        matmul_nt(values + h * padded, n_heads * padded, u, dim, weight + h * head_dim * dim, dim, n,
                  head_dim, dim, 0);
}

/* x[rows][dim] = P·(gamma∘x), gamma NULL: all ones. square (or NULL) = ‖·‖² of each row. */
static void scale_and_centre(float *x, const float *gamma, int rows, int dim, float *square)
{
    for (int r = 0; r < rows; r++, x += dim) {
        double mean = 0;
        for (int i = 0; i < dim; i++) {
            x[i] *= gamma ? gamma[i] : 1;
            mean += x[i];
        }
        mean /= dim;
        for (int i = 0; i < dim; i++)
            x[i] -= (float)mean;
        if (square)
            square[r] = dot(x, x, dim);
    }
}

/* ConvTranspose2d's [c_in][c_out][2][2] as [2·2][c_out][c_in]. */
static void reorder_upscaling(float *out, const float *weight, size_t c_in, size_t c_out)
{
    for (size_t i = 0; i < c_in; i++)
        for (size_t o = 0; o < c_out; o++)
            for (size_t s = 0; s < 4; s++)
                out[(s * c_out + o) * c_in + i] = weight[(i * c_out + o) * 4 + s];
}

/* weight [inner + 1][C]: the factor of t_m, see Level.back. */
static void transpose_output(const SamWeights *w, float *weight, int m)
{
    const int dim = w->config.out_chans;
    const SamAttention *a = &w->mask_decoder.transformer.layers[m].cross_attn_image_to_token;
    for (int i = 0; i < a->internal_dim; i++)
        for (int c = 0; c < dim; c++)
            weight[(size_t)i * dim + c] = a->out_proj.weight[(size_t)c * a->internal_dim + i];
    for (int c = 0; c < dim; c++)
        weight[(size_t)a->internal_dim * dim + c] =
            a->out_proj.bias[c] + (m > 0 ? w->mask_decoder.transformer.layers[m - 1].norm4.bias[c] : 0);
}

/* All planes of level l except its keys and values. u [n][C] becomes P·u_l; t is a buffer of the same size. */
static void fill_way_back(SamPlanes *p, ptrdiff_t l, float *u, float *t, float *weight)
{
    const SamWeights *w = p->w;
    const int dim = w->config.out_chans, n = p->n_tiles * TILE;
    Level *level = &p->levels[l];
    scale_and_centre(u, NULL, n, dim, level->square);
    memcpy(t, u, (size_t)n * dim * sizeof *t);
    for (ptrdiff_t m = l; m >= 0; m--) {
        transpose_output(w, weight, m);
        fill_plane(p, level->back[m], weight, NULL, internal_dim(w) + 1, t);
        if (m > 0)
            scale_and_centre(t, w->mask_decoder.transformer.layers[m - 1].norm4.weight, n, dim, NULL);
    }
}

static void fill_planes(SamPlanes *p, float *u, float *t, const float *pe, float *weight)
{
    const SamWeights *w = p->w;
    const int dim = w->config.out_chans, depth = w->config.decoder_depth, n = p->n_tiles * TILE;
    for (int l = 0; l <= depth; l++) {
        const SamTwoWayAttentionBlock *layer = l < depth ? &w->mask_decoder.transformer.layers[l] : NULL;
        const SamAttention *to_image = layer ? &layer->cross_attn_token_to_image
                                             : &w->mask_decoder.transformer.final_attn_token_to_image;
        Level *level = &p->levels[l];
        fill_projection(p, level->keys, level->keys_pe, &to_image->k_proj, NULL, u, pe, t);
        fill_values(p, level->values, to_image->v_proj.weight, u);
        if (!layer)
            break;
        fill_projection(p, level->queries, level->queries_pe, &layer->cross_attn_image_to_token.q_proj,
                        layer->cross_attn_image_to_token.q_proj.bias, u, pe, t);
        fill_way_back(p, l, u, t, weight);
        for (int i = 0; i < n; i++)
            for (int c = 0; c < dim; c++)
                u[(size_t)i * dim + c] *= layer->norm4.weight[c];
    }
    fill_plane(p, p->up, p->up_weight1, NULL, dim, u);
}

SamPlanes *sam_planes_new(const Sam *sam, const float *embedding, Error *err)
{
    const SamWeights *w = &sam->weights;
    const SamMaskDecoder *m = &w->mask_decoder;
    const size_t dim = w->config.out_chans, n_source = (size_t)w->n_positions * dim;
    const size_t n_padded = (size_t)tiles_of(w) * TILE * dim, n_weight = ((size_t)internal_dim(w) + 1) * dim;
    SamPlanes *p = calloc(1, sizeof *p);
    float *work = aligned_array(3 * n_padded + n_weight, sizeof *work);
    if (p) {
        p->w = w;
        p->n_tiles = tiles_of(w);
        layout_planes(p);
    }
    if (!p || !work || arena_allocate(&p->arena)) {
        fail_memory(err, "an image's planes", (3 * n_padded + n_weight) * sizeof *work);
        sam_planes_free(p);
        free(work);
        return NULL;
    }
    layout_planes(p);
    reorder_upscaling(p->up_weight1, m->output_upscaling.conv1.weight, dim, dim / 4);
    reorder_upscaling(p->up_weight2, m->output_upscaling.conv2.weight, dim / 4, dim / 8);
    float *u = work, *t = u + n_padded, *pe = t + n_padded;
    memset(work, 0, 3 * n_padded * sizeof *work);
    memcpy(u, embedding, n_source * sizeof *u);
    add_rows(u, w->prompt_encoder.no_mask_embed, w->n_positions, dim);
    memcpy(pe, sam->image_pe, n_source * sizeof *pe);
    fill_planes(p, u, t, pe, pe + n_padded);
    free(work);
    return p;
}

void sam_planes_free(SamPlanes *planes)
{
    if (!planes)
        return;
    free(planes->arena.base);
    free(planes);
}

/* ---- the positions of a prompt: σ, z and B ----------------------------------------------------*/

void sam_layout_positions(SamPositions *s, const SamWeights *w, int max_tokens, Arena *arena)
{
    const SamConfig *c = &w->config;
    const size_t dim = c->out_chans, inner = internal_dim(w);
    const size_t n_folded = (size_t)max_tokens * c->decoder_heads;
    const size_t rank = 1 + c->decoder_depth * (n_folded - c->decoder_heads + 1);
    const size_t padded = round_up(rank, TILE_PAD);
    s->weights = w;
    s->n_heads = c->decoder_heads;
    s->head_dim = inner / s->n_heads;
    s->head_padded = round_up(s->head_dim, TILE_PAD);
    s->n_tiles = tiles_of(w);
    s->max_rank = rank;
    s->max_tokens = max_tokens;
    s->z = arena_floats(arena, s->n_tiles * rank * TILE);
    s->sigma = arena_floats(arena, (size_t)s->n_tiles * TILE);
    s->basis = arena_floats(arena, rank * dim);
    s->centred = arena_floats(arena, rank * dim);
    s->gram = arena_floats(arena, rank * rank);
    s->values = arena_floats(arena, (size_t)c->decoder_depth * max_tokens * inner);
    s->folded = arena_floats(arena, n_folded * dim);
    s->pooled = arena_floats(arena, n_folded * dim);
    s->mix = arena_floats(arena, (n_folded > dim ? n_folded : dim) * rank);
    s->pooled_values = arena_floats(arena, n_folded * s->head_padded);
    s->pooled_z = arena_floats(arena, n_folded * padded);
    s->max = arena_floats(arena, n_folded);
    s->sum = arena_floats(arena, n_folded);
    s->factor = arena_floats(arena, n_folded);
    s->projected = arena_floats(arena, inner * TILE);
    s->scores = arena_floats(arena, n_folded * TILE);
    s->weighted = arena_floats(arena, n_folded * TILE);
    s->turned = arena_floats(arena, padded * TILE);
    s->products = arena_floats(arena, rank * TILE);
    s->gram_z = arena_floats(arena, rank * TILE);
    s->up1 = arena_floats(arena, dim * TILE);
    s->up2 = arena_floats(arena, dim / 2 * TILE);
    s->logits = arena_floats(arena, 16 * w->n_mask_tokens * TILE);
}

static float *tile_of_z(const SamPositions *s, ptrdiff_t tile)
{
    return s->z + tile * s->max_rank * TILE;
}

/* x_0 = u_0: z = [1] with a row of zeros in B. */
void sam_positions_begin(SamPositions *s, int n_tokens)
{
    s->n_tokens = n_tokens;
    s->n_free = (n_tokens - 1) * s->n_heads;
    s->level = 0;
    s->rank = 1;
    memset(s->basis, 0, s->weights->config.out_chans * sizeof *s->basis);
    for (ptrdiff_t tile = 0; tile < s->n_tiles; tile++)
        for (int j = 0; j < TILE; j++)
            tile_of_z(s, tile)[j] = s->sigma[tile * TILE + j] = 1;
}

/* Before the first layer B is a row of zeros, so products with it are skipped. */
static int has_basis(const SamPositions *s)
{
    return s->level > 0;
}

/* mix [H·n][rank]: the coefficients of z in row (h, t) of the scores. x [n][inner] of n tokens is folded
 * through `weight` [inner][C], x_hᵀ·W_h, and multiplied with B. */
static void mix_heads(SamPositions *s, const float *x, int n, const float *weight)
{
    const int dim = s->weights->config.out_chans, inner = s->head_dim * s->n_heads;
    if (!has_basis(s))
        return;
    for (ptrdiff_t h = 0; h < s->n_heads; h++)
        matmul(s->folded + h * n * dim, dim, x + h * s->head_dim, inner, weight + h * s->head_dim * dim, dim,
               n, dim, s->head_dim, 0);
    matmul_nt(s->mix, s->max_rank, s->folded, dim, s->basis, dim, s->n_heads * n, s->rank, dim, 0);
}

/* Head h of x [n][inner], times the rows of that head in a tile's plane [inner][TILE]. */
static SmallTerm head_term(const SamPositions *s, ptrdiff_t h, const float *x, const float *plane)
{
    return (SmallTerm){.a = x + h * s->head_dim,
                       .b = plane + h * s->head_dim * TILE,
                       .lda = s->head_dim * s->n_heads,
                       .ldb = TILE,
                       .k = s->head_dim};
}

/* s->scores [H·n][TILE] of a tile: x · (σ·plane + plane_pe) + mix·z. */
static void score_tile(SamPositions *s, ptrdiff_t tile, const float *x, int n, const float *plane,
                       const float *plane_pe)
{
    const int inner = s->head_dim * s->n_heads;
    const size_t at = tile * inner * TILE;
    if (plane_pe)
        tile_scale_add(s->projected, s->sigma + tile * TILE, plane + at, plane_pe + at, inner);
    for (ptrdiff_t h = 0; h < s->n_heads; h++) {
        const SmallTerm terms[2] = {head_term(s, h, x, plane_pe ? s->projected : plane + at),
                                    {.a = s->mix + h * n * s->max_rank,
                                     .b = tile_of_z(s, tile),
                                     .lda = s->max_rank,
                                     .ldb = TILE,
                                     .k = s->rank}};
        small_products(s->scores + h * n * TILE, TILE, terms, has_basis(s) ? 2 : 1, n, TILE, 0);
    }
}

/* ---- tokens attend to the image ---------------------------------------------------------------*/

/* Add the tile's weighted values and z to the pooled sums; s->scores are the weights. */
static void pool_tile(SamPositions *s, int n, const float *values, ptrdiff_t tile)
{
    const int padded = s->head_padded, ldv = s->n_heads * padded;
    const int z_padded = round_up(s->rank, TILE_PAD);
    const float *sigma = s->sigma + tile * TILE;
    for (int i = 0; i < s->n_heads * n; i++) {
        if (s->factor[i] != 1) {
            multiply_floats(s->pooled_values + (size_t)i * padded, s->factor[i], padded);
            multiply_floats(s->pooled_z + (size_t)i * z_padded, s->factor[i], z_padded);
        }
        for (int j = 0; j < TILE; j++)
            s->weighted[i * TILE + j] = s->scores[i * TILE + j] * sigma[j];
    }
    for (ptrdiff_t h = 0; h < s->n_heads; h++)
        small_products(s->pooled_values + h * n * padded, padded,
                       &(SmallTerm){s->weighted + h * n * TILE, values + tile * TILE * ldv + h * padded, TILE,
                                    ldv, TILE},
                       1, n, padded, 1);
    if (!has_basis(s))
        return;
    tile_transpose(s->turned, z_padded, tile_of_z(s, tile), s->rank);
    small_products(s->pooled_z, z_padded, &(SmallTerm){s->scores, s->turned, TILE, z_padded, TILE}, 1,
                   s->n_heads * n, z_padded, 1);
}

/* attended [n][inner] from the pooled sums: the planes' values, W_v·Bᵀ·(the mean of z), the bias. */
static void finish_heads(SamPositions *s, int n, const SamAttention *a, float *attended)
{
    const int dim = s->weights->config.out_chans, inner = a->internal_dim, head_dim = s->head_dim;
    if (has_basis(s))
        matmul(s->pooled, dim, s->pooled_z, round_up(s->rank, TILE_PAD), s->basis, dim, s->n_heads * n, dim,
               s->rank, 0);
    else
        memset(attended, 0, (size_t)n * inner * sizeof *attended);
    for (ptrdiff_t h = 0; h < s->n_heads; h++) {
        if (has_basis(s))
            matmul_nt(attended + h * head_dim, inner, s->pooled + h * n * dim, dim,
                      a->v_proj.weight + h * head_dim * dim, dim, n, head_dim, dim, 0);
        for (int t = 0; t < n; t++) {
            const int row = h * n + t;
            float *out = attended + t * inner + h * head_dim;
            for (int i = 0; i < head_dim; i++)
                out[i] = (out[i] + s->pooled_values[row * s->head_padded + i]) / s->sum[row] +
                         a->v_proj.bias[h * head_dim + i];
        }
    }
}

void sam_positions_token_to_image(SamPositions *s, const SamPlanes *planes, const SamAttention *a,
                                  const float *q, int n, float *attended)
{
    const Level *level = &planes->levels[s->level];
    mix_heads(s, q, n, a->k_proj.weight);
    memset(s->pooled_values, 0, (size_t)s->n_heads * n * s->head_padded * sizeof(float));
    memset(s->pooled_z, 0, (size_t)s->n_heads * n * round_up(s->rank, TILE_PAD) * sizeof(float));
    for (int i = 0; i < s->n_heads * n; i++)
        s->max[i] = -INFINITY, s->sum[i] = 0;
    for (ptrdiff_t tile = 0; tile < s->n_tiles; tile++) {
        const int left = s->weights->n_positions - tile * TILE;
        score_tile(s, tile, q, n, level->keys, level->keys_pe);
        tile_online_softmax(s->scores, s->n_heads * n, left < TILE ? left : TILE, s->max, s->sum, s->factor);
        pool_tile(s, n, level->values, tile);
    }
    finish_heads(s, n, a, attended);
}

/* ---- the image attends to the tokens ----------------------------------------------------------*/

/* The values of level l: T-1 rows of differences to the last token's values, then the last token's row. */
static float *values_of(const SamPositions *s, ptrdiff_t l)
{
    return s->values + l * s->max_tokens * s->n_heads * s->head_dim;
}

static void take_values(SamPositions *s, const float *v)
{
    const int inner = s->n_heads * s->head_dim;
    const float *last = v + (s->n_tokens - 1) * inner;
    float *out = values_of(s, s->level);
    for (int t = 0; t < s->n_tokens; t++)
        for (int i = 0; i < inner; i++)
            out[t * inner + i] = v[t * inner + i] - (t < s->n_tokens - 1 ? last[i] : 0);
}

/* E into s->centred, E·Eᵀ into s->gram. E is B, with the term common to all positions in its last row, then D
 * = W_o·v. */
static void make_gram(SamPositions *s, const SamAttention *a)
{
    const int dim = s->weights->config.out_chans, inner = a->internal_dim, rows = s->rank + s->n_free;
    const int n = s->n_tokens - 1;
    const float *v = values_of(s, s->level);
    float *constant = s->centred + (size_t)(s->rank - 1) * dim, *c = constant + dim;
    memcpy(s->centred, s->basis, (size_t)s->rank * dim * sizeof(float));
    matmul_nt(constant, dim, v + n * inner, inner, a->out_proj.weight, inner, 1, dim, inner, 1);
    add(constant, a->out_proj.bias, dim);
    for (ptrdiff_t h = 0; h < s->n_heads; h++)
        matmul_nt(c + h * n * dim, dim, v + h * s->head_dim, inner, a->out_proj.weight + h * s->head_dim,
                  inner, n, dim, s->head_dim, 0);
    scale_and_centre(s->centred, NULL, rows, dim, NULL);
    matmul_nt(s->gram, s->max_rank, s->centred, dim, s->centred, dim, rows, rows, dim, 0);
    tile_triangle(s->gram, s->max_rank, rows);
}

/* s->products [rank + H·(T-1)][TILE] = E·P·u of a tile. */
static void multiply_image(SamPositions *s, const Level *level, ptrdiff_t tile)
{
    const int inner = s->head_dim * s->n_heads, n = s->n_tokens - 1;
    for (ptrdiff_t m = 0; m <= s->level; m++) {
        const float *back = level->back[m] + tile * (inner + 1) * TILE, *v = values_of(s, m);
        float *rows = s->products + m * (s->n_free + 1) * TILE;
        memcpy(rows, back + inner * TILE, TILE * sizeof(float));
        small_products(rows, TILE, &(SmallTerm){v + n * inner, back, inner, TILE, inner}, 1, 1, TILE, 1);
        for (ptrdiff_t h = 0; h < s->n_heads; h++) {
            const SmallTerm term = head_term(s, h, v, back);
            small_products(rows + (1 + h * n) * TILE, TILE, &term, 1, n, TILE, 0);
        }
    }
}

/* Go from z and a, which lies behind z, to the next level's z. Update the tile's σ as well. */
static void normalise_tile(SamPositions *s, const Level *level, ptrdiff_t tile)
{
    const int dim = s->weights->config.out_chans, rows = s->rank + s->n_free;
    float *z = tile_of_z(s, tile), *sigma = s->sigma + tile * TILE;
    const float *square = level->square + tile * TILE;
    const float eps = s->weights->config.decoder_eps;
    float own[TILE], cross[TILE] = {0}, inverse_std[TILE];
    tile_quadratic(own, z, s->gram, s->max_rank, rows, s->gram_z);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < TILE; j++)
            cross[j] += z[i * TILE + j] * s->products[i * TILE + j];
    for (int j = 0; j < TILE; j++) {
        const float sum = sigma[j] * (sigma[j] * square[j] + 2 * cross[j]) + own[j];
        inverse_std[j] = 1 / sqrtf((sum > 0 ? sum : 0) / dim + eps);
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < TILE; j++)
            z[i * TILE + j] *= inverse_std[j];
    for (int j = 0; j < TILE; j++) {
        z[rows * TILE + j] = 1;
        sigma[j] *= inverse_std[j];
    }
}

void sam_positions_image_to_token(SamPositions *s, const SamPlanes *planes,
                                  const SamTwoWayAttentionBlock *layer, const float *k, const float *v)
{
    const SamAttention *a = &layer->cross_attn_image_to_token;
    const Level *level = &planes->levels[s->level];
    const int dim = s->weights->config.out_chans, rows = s->rank + s->n_free;
    take_values(s, v);
    mix_heads(s, k, s->n_tokens, a->q_proj.weight);
    make_gram(s, a);
    for (ptrdiff_t tile = 0; tile < s->n_tiles; tile++) {
        score_tile(s, tile, k, s->n_tokens, level->queries, level->queries_pe);
        tile_softmax(tile_of_z(s, tile) + s->rank * TILE, s->scores, s->n_heads, s->n_tokens);
        multiply_image(s, level, tile);
        normalise_tile(s, level, tile);
    }
    for (int i = 0; i < rows; i++)
        for (int c = 0; c < dim; c++)
            s->basis[(size_t)i * dim + c] = s->centred[(size_t)i * dim + c] * layer->norm4.weight[c];
    memcpy(s->basis + (size_t)rows * dim, layer->norm4.bias, dim * sizeof(float));
    s->rank = rows + 1;
    s->level++;
}

/* ---- upscaling --------------------------------------------------------------------------------*/

/* Put the 16 logits of each of the tile's positions to their places in the masks. The order of the 16 comes
 * from the two transposed convolutions: [2·2 of the first][2·2 of the second]. */
static void place_logits(const SamPositions *s, float *low_res, int n_masks, ptrdiff_t tile)
{
    const int grid = s->weights->grid, side = 4 * grid, first = tile * TILE;
    const int left = s->weights->n_positions - first, used = left < TILE ? left : TILE;
    for (int mask = 0; mask < n_masks; mask++)
        for (int sub = 0; sub < 16; sub++) {
            const float *from = s->logits + (sub * n_masks + mask) * TILE;
            const int row = 2 * (sub >> 3 & 1) + (sub >> 1 & 1), column = 2 * (sub >> 2 & 1) + (sub & 1);
            int y = first / grid, x = first % grid;
            float *to = low_res + ((size_t)mask * side + 4 * y + row) * side + column;
            for (int p = 0; p < used; p++) {
                to[4 * x] = from[p];
                if (++x == grid) {
                    x = 0;
                    to += 4 * side;
                }
            }
        }
}

/* up1 [2·2][C/4][TILE] = the first transposed convolution of a tile. */
static void upscale_once(SamPositions *s, const float *up, ptrdiff_t tile)
{
    const int dim = s->weights->config.out_chans;
    const float *sigma = s->sigma + tile * TILE, *plane = up + tile * dim * TILE;
    for (int i = 0; i < dim; i++) {
        const float bias = s->weights->mask_decoder.output_upscaling.conv1.bias[i % (dim / 4)];
        for (int j = 0; j < TILE; j++)
            s->up1[i * TILE + j] = sigma[j] * plane[i * TILE + j] + bias;
    }
    small_products(s->up1, TILE, &(SmallTerm){s->mix, tile_of_z(s, tile), s->max_rank, TILE, s->rank}, 1, dim,
                   TILE, 1);
}

void sam_positions_upscale(SamPositions *s, const SamPlanes *planes, const float *hyper, int n_masks,
                           float *low_res)
{
    const SamWeights *w = s->weights;
    const int dim = w->config.out_chans, dim4 = dim / 4, dim8 = dim / 8;
    matmul_nt(s->mix, s->max_rank, planes->up_weight1, dim, s->basis, dim, dim, s->rank, dim, 0);
    for (ptrdiff_t tile = 0; tile < s->n_tiles; tile++) {
        upscale_once(s, planes->up, tile);
        for (int sub = 0; sub < 4; sub++) {
            float *x = s->up1 + sub * dim4 * TILE;
            tile_norm_gelu(x, w->mask_decoder.output_upscaling.norm.weight,
                           w->mask_decoder.output_upscaling.norm.bias, dim4, SAM_LAYER_NORM_2D_EPS);
            small_products(s->up2, TILE, &(SmallTerm){planes->up_weight2, x, dim4, TILE, dim4}, 1, 4 * dim8,
                           TILE, 0);
            for (int i = 0; i < 4; i++) {
                float *y = s->up2 + i * dim8 * TILE;
                tile_bias_gelu(y, w->mask_decoder.output_upscaling.conv2.bias, dim8);
                small_products(s->logits + (4 * sub + i) * n_masks * TILE, TILE,
                               &(SmallTerm){hyper, y, dim8, TILE, dim8}, 1, n_masks, TILE, 0);
            }
        }
        place_logits(s, low_res, n_masks, tile);
    }
}
