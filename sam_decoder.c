/* sam_decoder.c - SAM's prompt encoder and mask decoder (segment_anything/modeling: prompt_encoder.py,
 * transformer.py, mask_decoder.py).
 *
 *   points, box -> sparse [n_points (+1)(+2)][C];  mask -> dense [n][C], or no_mask_embed everywhere
 *   tokens [T][C] = IoU token, mask tokens, sparse;  image [n][C] = embedding + dense
 *   two-way transformer: tokens attend to themselves, to the image, the image attends to the tokens
 *   IoU head(token 0) -> iou;  upscaled image · hypernetwork(mask token) -> logits [4g][4g]
 *
 * n = grid² image positions, C = out_chans, H heads of head_dim = inner_dim / H, T = 7 tokens for one
 * point.
 *
 * An image has thousands of positions and a prompt has a handful of tokens, so all the time goes into
 * products that touch every position. sam_decode_plain writes them as the official code does. The fast
 * path is the same function with the products taken in another order:
 *
 *   - score of token t and position p in head h: (W_q t + b_q)_h · (W_k p + b_k)_h. With q = (W_q t +
 *     b_q)_h this is (W_kᵀ q) · p + q·b_k: one vector of C a token and head, "folded" through W_k, is
 *     multiplied with the positions and W_k never is. T·H = 56 rows take the place of inner_dim = 128.
 *     When softmax runs over positions, q·b_k is the same for all of them and drops out.
 *   - attention's output: Σ_p a_p (W_v p + b_v) = W_v (Σ_p a_p p) + b_v, because Σ_p a_p = 1.
 *   - the other way round, W_o Σ_t a_t v_t = Σ_t a_t (W_o v_t), again with few folded vectors.
 *   - in the first layer the image is the same for all prompts (without a mask prompt): its keys, values
 *     and queries are computed once an image, in a SamDecoder.
 *   - upscaling's two transposed convolutions do not overlap (stride 2, kernel 2), so each position makes
 *     its own 16 logits, and only for masks that are wanted. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sam_model.h"

/* Image positions that are carried through the products at once, so that they stay in the cache. */
#define POSITIONS 128

struct SamDecoder {
    const Sam *sam;
    const SamImage *image;
    float *memory;
    float *source;          /* [n][C] embedding + no_mask_embed */
    float *keys0, *values0; /* [n][inner_dim] of layer 0's token_to_image */
    float *queries0;        /* [n][inner_dim] of layer 0's image_to_token */
};

struct SamScratch {
    Arena arena;
    int plain; /* 1: products in the official order */
    int max_tokens;
    /* prompt */
    int n_tokens; /* T */
    int has_mask;
    float *point_embedding; /* [T][C] the tokens as they enter: also their positional encoding */
    float *dense;           /* [n][C] of a mask prompt */
    float *mask1, *mask2, *mask_scratch;
    /* tokens, [T][C] or less */
    float *queries, *with_pe, *q, *k, *v, *heads, *branch;
    float *hidden; /* [T][the widest MLP] */
    /* the image */
    float *keys, *keys_pe;                            /* [n][C], and with dense_pe added */
    float *folded, *context, *fold_bias;              /* [H·T][C], [H·T][C], [H·T] */
    float *scores;                                    /* [H·T][n], or [POSITIONS][H·T] */
    float *plain_q, *plain_k, *plain_v, *plain_heads; /* [n][C], plain only */
    /* masks */
    float *hyper;      /* [n_mask_tokens][C/8] */
    float *up1, *up2;  /* [POSITIONS][4][C/4], [POSITIONS][16][C/8]; plain: the whole image */
    float *up_scratch; /* plain only */
    float *logits;     /* [n_mask_tokens][16·POSITIONS] */
};

static float attention_scale(const Sam *sam, const SamAttention *a)
{
    return (float)(1 / sqrt(a->inner_dim / sam->config.decoder_heads));
}

static void affine(float *y, const float *x, const SamAffine *a, int rows, int n_out, int n_in)
{
    linear(y, x, a->weight, a->bias, rows, n_out, n_in);
}

static void norm(float *x, const SamAffine *a, int rows, int dim)
{
    layer_norm(x, x, a->weight, a->bias, rows, dim, SAM_NORM_EPS);
}

/* out = a + b, n floats */
static void sum(float *out, const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = a[i] + b[i];
}

/* ---- what all prompts of an image share -------------------------------------------------------*/

SamDecoder *sam_decoder_new(const Sam *sam, const SamImage *image, Error *err)
{
    const int dim = sam->config.out_chans, inner = sam->final_attn.inner_dim, n = sam->n_positions;
    const SamTwoWayLayer *first = &sam->layers[0];
    const size_t n_floats = (size_t)n * (size_t)(dim + 3 * inner);
    SamDecoder *d = calloc(1, sizeof *d);
    float *with_pe = aligned_array((size_t)n * dim, sizeof(float));
    if (d)
        d->memory = aligned_array(n_floats, sizeof(float));
    if (!d || !with_pe || !d->memory) {
        fail_memory(err, "an image's keys and values", (n_floats + (size_t)n * dim) * sizeof(float));
        free(with_pe);
        sam_decoder_free(d);
        return NULL;
    }
    d->sam = sam;
    d->image = image;
    d->source = d->memory;
    d->keys0 = d->source + (size_t)n * dim;
    d->values0 = d->keys0 + (size_t)n * inner;
    d->queries0 = d->values0 + (size_t)n * inner;
    memcpy(d->source, image->embedding, (size_t)n * dim * sizeof(float));
    add_rows(d->source, sam->no_mask, n, dim);
    sum(with_pe, d->source, sam->dense_pe, (size_t)n * dim);
    affine(d->keys0, with_pe, &first->token_to_image.k, n, inner, dim);
    affine(d->values0, d->source, &first->token_to_image.v, n, inner, dim);
    affine(d->queries0, with_pe, &first->image_to_token.q, n, inner, dim);
    free(with_pe);
    return d;
}

void sam_decoder_free(SamDecoder *decoder)
{
    if (!decoder)
        return;
    free(decoder->memory);
    free(decoder);
}

/* ---- memory of one thread ---------------------------------------------------------------------*/

static void layout_tokens(SamScratch *s, const Sam *sam)
{
    const SamConfig *c = &sam->config;
    Arena *a = &s->arena;
    const size_t n_tokens = (size_t)s->max_tokens, dim = (size_t)c->out_chans;
    size_t widest = dim;
    if ((size_t)c->decoder_mlp_dim > widest)
        widest = (size_t)c->decoder_mlp_dim;
    if ((size_t)c->iou_head_hidden_dim > widest)
        widest = (size_t)c->iou_head_hidden_dim;
    float **arrays[] = {&s->point_embedding, &s->queries, &s->with_pe, &s->q, &s->k, &s->v,
                        &s->heads,           &s->branch};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        *arrays[i] = arena_floats(a, n_tokens * dim);
    s->hidden = arena_floats(a, 2 * n_tokens * widest);
    s->hyper = arena_floats(a, (size_t)sam->n_mask_tokens * dim / 8);
}

static void layout_image(SamScratch *s, const Sam *sam)
{
    const SamConfig *c = &sam->config;
    Arena *a = &s->arena;
    const int grid4 = 4 * sam->grid, m = c->mask_in_chans;
    const size_t n = (size_t)sam->n_positions, dim = (size_t)c->out_chans;
    const size_t n_folded = (size_t)s->max_tokens * (size_t)c->decoder_heads;
    size_t positions = s->plain ? n : POSITIONS, n_scores = n > POSITIONS ? n : POSITIONS;
    s->dense = arena_floats(a, n * dim);
    s->mask1 = arena_floats(a, 4 * n * (size_t)m / 4);
    s->mask2 = arena_floats(a, n * (size_t)m);
    size_t scratch = conv2d_scratch(grid4, grid4, 1, m / 4, 2, 2, 0);
    size_t scratch2 = conv2d_scratch(grid4 / 2, grid4 / 2, m / 4, m, 2, 2, 0);
    s->mask_scratch = arena_floats(a, scratch > scratch2 ? scratch : scratch2);
    s->keys = arena_floats(a, n * dim);
    s->keys_pe = arena_floats(a, n * dim);
    s->folded = arena_floats(a, n_folded * dim);
    s->context = arena_floats(a, n_folded * dim);
    s->fold_bias = arena_floats(a, n_folded);
    s->scores = arena_floats(a, n_folded * n_scores);
    s->up1 = arena_floats(a, positions * dim);
    s->up2 = arena_floats(a, positions * dim * 2);
    s->logits = arena_floats(a, (size_t)sam->n_mask_tokens * 16 * POSITIONS);
    if (s->plain) {
        s->plain_q = arena_floats(a, n * dim);
        s->plain_k = arena_floats(a, n * dim);
        s->plain_v = arena_floats(a, n * dim);
        s->plain_heads = arena_floats(a, n * dim);
        size_t up1 = conv_transpose2d_scratch(sam->grid, sam->grid, c->out_chans, c->out_chans / 4, 2);
        size_t up2 =
            conv_transpose2d_scratch(2 * sam->grid, 2 * sam->grid, c->out_chans / 4, c->out_chans / 8, 2);
        s->up_scratch = arena_floats(a, up1 > up2 ? up1 : up2);
    }
}

static SamScratch *scratch_new(const Sam *sam, int max_points, int plain, Error *err)
{
    SamScratch *s = calloc(1, sizeof *s);
    if (!s) {
        fail_memory(err, "SAM's decoder", sizeof *s);
        return NULL;
    }
    s->plain = plain;
    s->max_tokens =
        1 + sam->n_mask_tokens + max_points + 2; /* a box has two corners, no box one padding point */
    layout_tokens(s, sam);
    layout_image(s, sam);
    const size_t n_bytes = s->arena.used;
    s->arena = (Arena){aligned_array(n_bytes, 1), n_bytes, 0};
    if (!s->arena.base) {
        fail_memory(err, "SAM's decoder", n_bytes);
        free(s);
        return NULL;
    }
    layout_tokens(s, sam);
    layout_image(s, sam);
    return s;
}

SamScratch *sam_scratch_new(const Sam *sam, int max_points, Error *err)
{
    return scratch_new(sam, max_points, 0, err);
}

void sam_scratch_free(SamScratch *scratch)
{
    if (!scratch)
        return;
    free(scratch->arena.base);
    free(scratch);
}

/* ---- prompt encoder ---------------------------------------------------------------------------*/

/* The positional encoding of the centre of pixel (x, y) of the original picture. */
static void embed_pixel(const Sam *sam, const SamImage *image, float *out, double x, double y)
{
    const double size = sam->config.image_size;
    double input_x = x * ((double)image->input_w / image->original_w); /* ResizeLongestSide.apply_coords */
    double input_y = y * ((double)image->input_h / image->original_h);
    sam_position(sam, out, (float)((input_x + 0.5) / size), (float)((input_y + 0.5) / size));
}

/* One token a point, one that says "no point" when there are points but no box, two a box. Returns their
 * number. */
int sam_embed_sparse(const Sam *sam, const SamImage *image, const SamPrompt *prompt, float *out)
{
    const int dim = sam->config.out_chans;
    const size_t n_bytes = (size_t)dim * sizeof(float);
    int n = 0;
    for (int i = 0; i < prompt->n_points; i++, n++) {
        float *token = out + (size_t)n * dim;
        int label = prompt->labels[i];
        if (label < 0) {
            memcpy(token, sam->not_a_point, n_bytes);
            continue;
        }
        embed_pixel(sam, image, token, prompt->points[2 * i], prompt->points[2 * i + 1]);
        add(token, sam->point_embeddings[label], (size_t)dim);
    }
    if (prompt->n_points > 0 && !prompt->box)
        memcpy(out + (size_t)n++ * dim, sam->not_a_point, n_bytes);
    for (int corner = 0; prompt->box && corner < 2; corner++, n++) {
        float *token = out + (size_t)n * dim;
        embed_pixel(sam, image, token, prompt->box[2 * corner], prompt->box[2 * corner + 1]);
        add(token, sam->point_embeddings[2 + corner], (size_t)dim);
    }
    return n;
}

/* mask [4g][4g] -> dense [n][C]: mask_downscaling. */
static void embed_mask(const Sam *sam, SamScratch *s, const float *mask)
{
    const int side = 4 * sam->grid, n = sam->n_positions, m = sam->config.mask_in_chans;
    conv2d(s->mask1, mask, sam->mask_conv1.weight, sam->mask_conv1.bias, side, side, 1, m / 4, 2, 2, 0,
           s->mask_scratch);
    layer_norm(s->mask1, s->mask1, sam->mask_norm1.weight, sam->mask_norm1.bias, 4 * n, m / 4,
               SAM_NORM_2D_EPS);
    gelu(s->mask1, (size_t)n * m);
    conv2d(s->mask2, s->mask1, sam->mask_conv2.weight, sam->mask_conv2.bias, side / 2, side / 2, m / 4, m, 2,
           2, 0, s->mask_scratch);
    layer_norm(s->mask2, s->mask2, sam->mask_norm2.weight, sam->mask_norm2.bias, n, m, SAM_NORM_2D_EPS);
    gelu(s->mask2, (size_t)n * m);
    affine(s->dense, s->mask2, &sam->mask_conv3, n, sam->config.out_chans, m);
}

/* Tokens of the prompt into point_embedding and queries; with a mask prompt the image into keys. */
static void embed_prompt(const SamDecoder *d, SamScratch *s, const SamPrompt *prompt)
{
    const Sam *sam = d->sam;
    const size_t dim = (size_t)sam->config.out_chans, n_image = (size_t)sam->n_positions * dim;
    const int n_output = 1 + sam->n_mask_tokens;
    memcpy(s->point_embedding, sam->iou_token, dim * sizeof(float));
    memcpy(s->point_embedding + dim, sam->mask_tokens, (size_t)sam->n_mask_tokens * dim * sizeof(float));
    s->n_tokens =
        n_output + sam_embed_sparse(sam, d->image, prompt, s->point_embedding + (size_t)n_output * dim);
    memcpy(s->queries, s->point_embedding, (size_t)s->n_tokens * dim * sizeof(float));
    s->has_mask = prompt->mask != NULL;
    if (s->has_mask) {
        embed_mask(sam, s, prompt->mask);
        sum(s->keys, d->image->embedding, s->dense, n_image);
        sum(s->keys_pe, s->keys, sam->dense_pe, n_image);
    } else if (s->plain) {
        memcpy(s->keys, d->source, n_image * sizeof(float));
        sum(s->keys_pe, s->keys, sam->dense_pe, n_image);
    }
}

/* ---- the two-way transformer: attention -------------------------------------------------------*/

/* transformer.py's Attention with q, k, v of dim C, as it is written there; out [n_q][C]. The projections
 * go to tq [n_q][inner], tk, tv [n_k][inner], heads [n_q][inner]. */
static void attend_plain(const Sam *sam, const SamAttention *a, float *out, const float *q, int n_q,
                         const float *k, const float *v, int n_k, float *tq, float *tk, float *tv,
                         float *heads)
{
    const int dim = sam->config.out_chans, inner = a->inner_dim, n_heads = sam->config.decoder_heads;
    affine(tq, q, &a->q, n_q, inner, dim);
    affine(tk, k, &a->k, n_k, inner, dim);
    affine(tv, v, &a->v, n_k, inner, dim);
    attention(heads, inner, tq, inner, tk, inner, tv, inner, n_q, n_k, n_heads, inner / n_heads,
              attention_scale(sam, a), NULL);
    affine(out, heads, &a->out, n_q, dim, inner);
}

/* folded[h·T + t][C] = scale · W_hᵀ x[t]_h, W_h the rows of `weight` [inner][C] that belong to head h. */
static void fold(const Sam *sam, SamScratch *s, const float *x, const float *weight, int inner, float scale)
{
    const int dim = sam->config.out_chans, n_heads = sam->config.decoder_heads, head_dim = inner / n_heads;
    const int n_tokens = s->n_tokens;
    for (int h = 0; h < n_heads; h++)
        matmul(s->folded + (size_t)h * n_tokens * dim, dim, x + (size_t)h * head_dim, inner,
               weight + (size_t)h * head_dim * dim, dim, n_tokens, dim, head_dim, 0);
    for (size_t i = 0; i < (size_t)n_heads * n_tokens * dim; i++)
        s->folded[i] *= scale;
}

/* heads [T][inner] of tokens that attend to the image, q [T][inner] being projected already: the scores
 * and the weighted mean of the *unprojected* positions, which then goes through W_v. */
static void gather_from_image(const Sam *sam, SamScratch *s, const SamAttention *a)
{
    const int dim = sam->config.out_chans, inner = a->inner_dim, n = sam->n_positions;
    const int n_heads = sam->config.decoder_heads, head_dim = inner / n_heads, n_tokens = s->n_tokens;
    const int n_folded = n_heads * n_tokens;
    fold(sam, s, s->q, a->k.weight, inner, attention_scale(sam, a));
    matmul_nt(s->scores, n, s->folded, dim, s->keys_pe, dim, n_folded, n, dim, 0);
    softmax_rows(s->scores, n_folded, n);
    matmul(s->context, dim, s->scores, n, s->keys, dim, n_folded, dim, n, 0);
    for (int h = 0; h < n_heads; h++)
        matmul_nt(s->heads + (size_t)h * head_dim, inner, s->context + (size_t)h * n_tokens * dim, dim,
                  a->v.weight + (size_t)h * head_dim * dim, dim, n_tokens, head_dim, dim, 0);
    add_rows(s->heads, a->v.bias, n_tokens, inner);
}

/* branch [T][C] = attention of the tokens (queries + point_embedding) to the image. first: layer 0. */
static void tokens_to_image(const SamDecoder *d, SamScratch *s, const SamAttention *a, int first)
{
    const Sam *sam = d->sam;
    const int dim = sam->config.out_chans, inner = a->inner_dim, n = sam->n_positions, n_tokens = s->n_tokens;
    const int n_heads = sam->config.decoder_heads;
    sum(s->with_pe, s->queries, s->point_embedding, (size_t)n_tokens * dim);
    if (s->plain) {
        attend_plain(sam, a, s->branch, s->with_pe, n_tokens, s->keys_pe, s->keys, n, s->q, s->plain_k,
                     s->plain_v, s->heads);
        return;
    }
    affine(s->q, s->with_pe, &a->q, n_tokens, inner, dim);
    if (first && !s->has_mask)
        attention(s->heads, inner, s->q, inner, d->keys0, inner, d->values0, inner, n_tokens, n, n_heads,
                  inner / n_heads, attention_scale(sam, a), NULL);
    else
        gather_from_image(sam, s, a);
    affine(s->branch, s->heads, &a->out, n_tokens, dim, inner);
}

/* context[h·T + t][C] = W_o v_t of head h: what a position that attends fully to token t in head h
 * receives. */
static void fold_values(const Sam *sam, SamScratch *s, const SamAttention *a)
{
    const int dim = sam->config.out_chans, inner = a->inner_dim, n_tokens = s->n_tokens;
    const int n_heads = sam->config.decoder_heads, head_dim = inner / n_heads;
    for (int h = 0; h < n_heads; h++)
        matmul_nt(s->context + (size_t)h * n_tokens * dim, dim, s->v + (size_t)h * head_dim, inner,
                  a->out.weight + (size_t)h * head_dim, inner, n_tokens, dim, head_dim, 0);
}

/* The score's part that does not depend on the position: scale · b_q · k_t; here softmax runs over the
 * tokens. */
static void fold_query_bias(const Sam *sam, SamScratch *s, const SamAttention *a, float scale)
{
    const int inner = a->inner_dim, n_heads = sam->config.decoder_heads, head_dim = inner / n_heads;
    for (int h = 0; h < n_heads; h++)
        for (int t = 0; t < s->n_tokens; t++)
            s->fold_bias[h * s->n_tokens + t] =
                scale *
                dot(a->q.bias + h * head_dim, s->k + (size_t)t * inner + (size_t)h * head_dim, head_dim);
}

/* The first layer's queries are there already, W_q applied: folded[h·T + t][inner] = scale · k_t within
 * head h and zero elsewhere gives the scores of all heads in one product. */
static void spread_heads(const Sam *sam, SamScratch *s, int inner, float scale)
{
    const int n_heads = sam->config.decoder_heads, head_dim = inner / n_heads, n_tokens = s->n_tokens;
    memset(s->folded, 0, (size_t)n_heads * n_tokens * inner * sizeof(float));
    for (int h = 0; h < n_heads; h++)
        for (int t = 0; t < n_tokens; t++)
            for (int i = h * head_dim; i < (h + 1) * head_dim; i++)
                s->folded[((size_t)h * n_tokens + t) * inner + i] = scale * s->k[(size_t)t * inner + i];
}

/* scores [rows][H·T] of the positions from `row` on, softmaxed over the tokens of each head. */
static void score_positions(const SamDecoder *d, SamScratch *s, int inner, int shared, int row, int rows)
{
    const int dim = d->sam->config.out_chans, n_heads = d->sam->config.decoder_heads, n_tokens = s->n_tokens;
    if (shared)
        linear(s->scores, d->queries0 + (size_t)row * inner, s->folded, NULL, rows, n_heads * n_tokens,
               inner);
    else
        linear(s->scores, s->keys_pe + (size_t)row * dim, s->folded, s->fold_bias, rows, n_heads * n_tokens,
               dim);
    softmax_rows(s->scores, rows * n_heads, n_tokens);
}

/* keys = norm4(keys + attention of the image to the tokens), and keys_pe with it. */
static void image_to_tokens(const SamDecoder *d, SamScratch *s, const SamTwoWayLayer *layer, int first)
{
    const Sam *sam = d->sam;
    const SamAttention *a = &layer->image_to_token;
    const int dim = sam->config.out_chans, inner = a->inner_dim, n = sam->n_positions, n_tokens = s->n_tokens;
    const int n_folded = sam->config.decoder_heads * n_tokens;
    const int shared = first && !s->has_mask;
    const float scale = attention_scale(sam, a);
    sum(s->with_pe, s->queries, s->point_embedding, (size_t)n_tokens * dim);
    if (s->plain) {
        /* up2, not in use yet, takes the result */
        attend_plain(sam, a, s->up2, s->keys_pe, n, s->with_pe, s->queries, n_tokens, s->plain_q, s->k, s->v,
                     s->plain_heads);
        add(s->keys, s->up2, (size_t)n * dim);
        norm(s->keys, &layer->norm4, n, dim);
        sum(s->keys_pe, s->keys, sam->dense_pe, (size_t)n * dim);
        return;
    }
    affine(s->k, s->with_pe, &a->k, n_tokens, inner, dim);
    affine(s->v, s->queries, &a->v, n_tokens, inner, dim);
    fold_values(sam, s, a);
    if (shared) {
        spread_heads(sam, s, inner, scale);
    } else {
        fold(sam, s, s->k, a->q.weight, inner, scale);
        fold_query_bias(sam, s, a, scale);
    }
    for (int row = 0; row < n; row += POSITIONS) {
        const int rows = n - row < POSITIONS ? n - row : POSITIONS;
        const size_t at = (size_t)row * dim, count = (size_t)rows * dim;
        score_positions(d, s, inner, shared, row, rows);
        if (shared)
            memcpy(s->keys + at, d->source + at, count * sizeof(float));
        matmul(s->keys + at, dim, s->scores, n_folded, s->context, dim, rows, dim, n_folded, 1);
        add_rows(s->keys + at, a->out.bias, rows, dim);
        norm(s->keys + at, &layer->norm4, rows, dim);
        sum(s->keys_pe + at, s->keys + at, sam->dense_pe + at, count);
    }
}

/* ---- the two-way transformer: layers ----------------------------------------------------------*/

/* Tokens attend to tokens; in the first layer without positional encoding and without a residual. */
static void self_attention(const Sam *sam, SamScratch *s, const SamTwoWayLayer *layer, int first)
{
    const size_t count = (size_t)s->n_tokens * sam->config.out_chans;
    const float *q = s->queries;
    if (!first) {
        sum(s->with_pe, s->queries, s->point_embedding, count);
        q = s->with_pe;
    }
    attend_plain(sam, &layer->self_attn, s->branch, q, s->n_tokens, q, s->queries, s->n_tokens, s->q, s->k,
                 s->v, s->heads);
    if (first)
        memcpy(s->queries, s->branch, count * sizeof(float));
    else
        add(s->queries, s->branch, count);
    norm(s->queries, &layer->norm1, s->n_tokens, sam->config.out_chans);
}

static void token_mlp(const Sam *sam, SamScratch *s, const SamTwoWayLayer *layer)
{
    const int dim = sam->config.out_chans, hidden = sam->config.decoder_mlp_dim;
    affine(s->hidden, s->queries, &layer->lin1, s->n_tokens, hidden, dim);
    relu(s->hidden, (size_t)s->n_tokens * hidden);
    affine(s->branch, s->hidden, &layer->lin2, s->n_tokens, dim, hidden);
    add(s->queries, s->branch, (size_t)s->n_tokens * dim);
    norm(s->queries, &layer->norm3, s->n_tokens, dim);
}

static void run_transformer(const SamDecoder *d, SamScratch *s)
{
    const Sam *sam = d->sam;
    const int dim = sam->config.out_chans;
    const size_t count = (size_t)s->n_tokens * dim;
    for (int i = 0; i < sam->config.decoder_depth; i++) {
        const SamTwoWayLayer *layer = &sam->layers[i];
        self_attention(sam, s, layer, i == 0);
        tokens_to_image(d, s, &layer->token_to_image, i == 0);
        add(s->queries, s->branch, count);
        norm(s->queries, &layer->norm2, s->n_tokens, dim);
        token_mlp(sam, s, layer);
        image_to_tokens(d, s, layer, i == 0);
    }
    tokens_to_image(d, s, &sam->final_attn, 0);
    add(s->queries, s->branch, count);
    norm(s->queries, &sam->norm_final, s->n_tokens, dim);
}

/* ---- heads ------------------------------------------------------------------------------------*/

/* mask_decoder.py's MLP on one token: ReLU between the layers; hidden is room for two layers. */
static void mlp(const SamAffine *layers, int n_layers, float *out, const float *x, int n_in, int n_hidden,
                int n_out, float *hidden)
{
    for (int i = 0; i < n_layers; i++) {
        const int last = i == n_layers - 1, width = last ? n_out : n_hidden;
        float *y = last ? out : hidden + (size_t)(i & 1) * n_hidden;
        affine(y, x, &layers[i], 1, width, n_in);
        if (!last)
            relu(y, (size_t)width);
        x = y;
        n_in = width;
    }
}

void sam_decode_prompt(const SamDecoder *decoder, SamScratch *scratch, const SamPrompt *prompt, float *iou)
{
    const Sam *sam = decoder->sam;
    embed_prompt(decoder, scratch, prompt);
    run_transformer(decoder, scratch);
    mlp(sam->iou_head, sam->config.iou_head_depth, iou, scratch->queries, sam->config.out_chans,
        sam->config.iou_head_hidden_dim, sam->n_mask_tokens, scratch->hidden);
}

/* hyper[i][C/8] of the wanted mask tokens. */
static void run_hypernetworks(const Sam *sam, SamScratch *s, const int *tokens, int n_tokens)
{
    const int dim = sam->config.out_chans;
    for (int i = 0; i < n_tokens; i++)
        mlp(sam->hyper[tokens[i]], 3, s->hyper + (size_t)i * (dim / 8),
            s->queries + (size_t)(1 + tokens[i]) * dim, dim, dim, dim / 8, s->hidden);
}

/* The 16 logits of each of `rows` positions from `row` on go to their places in the masks. Their order
 * comes from the two transposed convolutions: [position][2·2 of the first][2·2 of the second]. */
static void place_logits(const Sam *sam, const SamScratch *s, float *low_res, int n_masks, int row, int rows)
{
    const int grid = sam->grid, side = 4 * grid;
    for (int mask = 0; mask < n_masks; mask++) {
        const float *from = s->logits + (size_t)mask * 16 * rows;
        float *to = low_res + (size_t)mask * side * side;
        for (int p = row; p < row + rows; p++)
            for (int sub = 0; sub < 16; sub++) {
                int y = 4 * (p / grid) + 2 * (sub >> 3 & 1) + (sub >> 1 & 1);
                int x = 4 * (p % grid) + 2 * (sub >> 2 & 1) + (sub & 1);
                to[(size_t)y * side + x] = *from++;
            }
    }
}

static void upscale_and_multiply(const Sam *sam, SamScratch *s, float *low_res, int n_masks)
{
    const int n = sam->n_positions, dim = sam->config.out_chans, dim4 = dim / 4, dim8 = dim / 8;
    for (int row = 0; row < n; row += POSITIONS) {
        const int rows = n - row < POSITIONS ? n - row : POSITIONS;
        matmul(s->up1, dim, s->keys + (size_t)row * dim, dim, sam->up_weight1, dim, rows, dim, dim, 0);
        add_rows(s->up1, sam->up_conv1.bias, 4 * rows, dim4);
        layer_norm(s->up1, s->up1, sam->up_norm.weight, sam->up_norm.bias, 4 * rows, dim4, SAM_NORM_2D_EPS);
        gelu(s->up1, (size_t)rows * dim);
        matmul(s->up2, 4 * dim8, s->up1, dim4, sam->up_weight2, 4 * dim8, 4 * rows, 4 * dim8, dim4, 0);
        add_rows(s->up2, sam->up_conv2.bias, 16 * rows, dim8);
        gelu(s->up2, (size_t)rows * 2 * dim);
        matmul_nt(s->logits, 16 * rows, s->hyper, dim8, s->up2, dim8, n_masks, 16 * rows, dim8, 0);
        place_logits(sam, s, low_res, n_masks, row, rows);
    }
}

static void upscale_and_multiply_plain(const Sam *sam, SamScratch *s, float *low_res, int n_masks)
{
    const int g = sam->grid, n = sam->n_positions, dim = sam->config.out_chans;
    conv_transpose2d(s->up1, s->keys, sam->up_conv1.weight, sam->up_conv1.bias, g, g, dim, dim / 4, 2,
                     s->up_scratch);
    layer_norm(s->up1, s->up1, sam->up_norm.weight, sam->up_norm.bias, 4 * n, dim / 4, SAM_NORM_2D_EPS);
    gelu(s->up1, (size_t)n * dim);
    conv_transpose2d(s->up2, s->up1, sam->up_conv2.weight, sam->up_conv2.bias, 2 * g, 2 * g, dim / 4, dim / 8,
                     2, s->up_scratch);
    gelu(s->up2, (size_t)n * 2 * dim);
    matmul_nt(low_res, 16 * n, s->hyper, dim / 8, s->up2, dim / 8, n_masks, 16 * n, dim / 8, 0);
}

void sam_decode_masks(const SamDecoder *decoder, SamScratch *scratch, const int *tokens, int n_tokens,
                      float *low_res)
{
    run_hypernetworks(decoder->sam, scratch, tokens, n_tokens);
    if (scratch->plain)
        upscale_and_multiply_plain(decoder->sam, scratch, low_res, n_tokens);
    else
        upscale_and_multiply(decoder->sam, scratch, low_res, n_tokens);
}

/* ---- one prompt -------------------------------------------------------------------------------*/

static int check_prompt(const SamPrompt *prompt, Error *err)
{
    if (prompt->n_points < 0 || prompt->n_points > 4096)
        return fail(err, "SAM: a prompt of %d points, expected 0 to 4096", prompt->n_points);
    for (int i = 0; i < prompt->n_points; i++) {
        if (prompt->labels[i] < -1 || prompt->labels[i] > 1)
            return fail(err,
                        "SAM: point %d has label %d, expected 1 (foreground), 0 (background) or -1 (none)", i,
                        prompt->labels[i]);
        if (!isfinite(prompt->points[2 * i]) || !isfinite(prompt->points[2 * i + 1]))
            return fail(err, "SAM: point %d is not finite", i);
    }
    for (int i = 0; prompt->box && i < 4; i++)
        if (!isfinite(prompt->box[i]))
            return fail(err, "SAM: the box is not finite");
    return 0;
}

/* The prompt's embeddings as the official prompt encoder returns them: sparse [n][C], dense [C][g][g]. */
static int tap_prompt(const SamDecoder *d, SamScratch *s, const SamPrompt *prompt, TensorTap tap, void *user,
                      Error *err)
{
    const Sam *sam = d->sam;
    const int dim = sam->config.out_chans, n_output = 1 + sam->n_mask_tokens;
    embed_prompt(d, s, prompt);
    if (!s->has_mask) {
        memset(s->dense, 0, (size_t)sam->n_positions * dim * sizeof(float));
        add_rows(s->dense, sam->no_mask, sam->n_positions, dim);
    }
    tap(user, "sam.sparse", 2, (int64_t[]){s->n_tokens - n_output, dim},
        s->point_embedding + (size_t)n_output * dim);
    return sam_tap_planar(tap, user, "sam.dense", s->dense, sam->grid, sam->grid, dim, err);
}

static int decode_with(const SamDecoder *d, SamScratch *s, const SamPrompt *prompt, int multimask,
                       float *low_res, float *iou, TensorTap tap, void *user, Error *err)
{
    const Sam *sam = d->sam;
    const int n_out = multimask ? sam->config.n_multimask : 1, first = multimask ? 1 : 0,
              side = 4 * sam->grid;
    float all_iou[SAM_MAX_MASK_TOKENS];
    int tokens[SAM_MAX_MASK_TOKENS] = {0};
    if (tap && tap_prompt(d, s, prompt, tap, user, err))
        return -1;
    sam_decode_prompt(d, s, prompt, all_iou);
    for (int i = 0; i < n_out; i++) {
        tokens[i] = first + i;
        iou[i] = all_iou[first + i];
    }
    sam_decode_masks(d, s, tokens, n_out, low_res);
    if (tap) {
        tap(user, "sam.low_res", 3, (int64_t[]){n_out, side, side}, low_res);
        tap(user, "sam.iou_predictions", 1, (int64_t[]){n_out}, iou);
    }
    return 0;
}

static int decode(const Sam *sam, const SamImage *image, const SamPrompt *prompt, int multimask, int plain,
                  float *low_res, float *iou, TensorTap tap, void *user, Error *err)
{
    if (check_prompt(prompt, err))
        return -1;
    SamDecoder *decoder = sam_decoder_new(sam, image, err);
    SamScratch *scratch = decoder ? scratch_new(sam, prompt->n_points, plain, err) : NULL;
    int status =
        scratch ? decode_with(decoder, scratch, prompt, multimask, low_res, iou, tap, user, err) : -1;
    sam_scratch_free(scratch);
    sam_decoder_free(decoder);
    return status;
}

int sam_decode(const Sam *sam, const SamImage *image, const SamPrompt *prompt, int multimask, float *low_res,
               float *iou, TensorTap tap, void *tap_user, Error *err)
{
    return decode(sam, image, prompt, multimask, 0, low_res, iou, tap, tap_user, err);
}

int sam_decode_plain(const Sam *sam, const SamImage *image, const SamPrompt *prompt, int multimask,
                     float *low_res, float *iou, TensorTap tap, void *tap_user, Error *err)
{
    return decode(sam, image, prompt, multimask, 1, low_res, iou, tap, tap_user, err);
}
