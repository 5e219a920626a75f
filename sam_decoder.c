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
 * products that touch every position. sam_decode_plain takes them in the official order. So do prompts
 * with a mask, whose image no other prompt shares, and prompts of very many tokens. For all others the
 * image's side is sam_positions.c: the same function with the products taken in another order. The tokens'
 * side is here, and the same for both. Its matrices are read once for a few prompts that go through it
 * together: 28 rows instead of 7 for each of their 14 MB, which no cache near a core holds. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "fast/sam_positions.h"
#include "io/fail.h"
#include "fast/planar.h"

struct SamDecoder {
    const Sam *sam;
    const SamImage *image;
    float *source;     /* [n][C] embedding + no_mask_embed */
    SamPlanes *planes; /* NULL: only for plain scratches */
};

struct SamScratch {
    Arena arena;
    int plain; /* 1: products in the official order */
    int max_tokens, max_prompts;
    /* the prompts in work, alike in shape: their tokens lie one prompt behind the other */
    int n_prompts, n_tokens, n_rows; /* P, T, P·T */
    float *point_embedding;          /* [P·T][C] the tokens as they enter: also their positional encoding */
    /* tokens, [P·T][C] or less */
    float *queries, *with_pe, *q, *k, *v, *heads, *branch;
    float *hidden; /* 2 × [P·T][the widest MLP] */
    float *hyper;  /* [n_mask_tokens][C/8] */
    SamTrail trails[SAM_TOGETHER];
    /* plain only */
    float *dense;                                     /* [n][C] of a mask prompt */
    float *mask1, *mask2, *mask_scratch;              /* its downscaling */
    float *keys, *keys_pe;                            /* [n][C], and with dense_pe added */
    float *plain_q, *plain_k, *plain_v, *plain_heads; /* [n][C] */
    float *up1, *up2, *up_scratch;                    /* [2g][2g][C/4], [4g][4g][C/8] */
};

static float attention_scale(const Sam *sam, const SamAttention *a)
{
    return (float)(1 / sqrt(a->inner_dim / sam->config.decoder_heads));
}

/* Few rows are tokens, many are positions: two ways to multiply, which add up in another order. */
enum { FEW_ROWS = 32 };

static void affine(float *y, const float *x, const SamAffine *a, int rows, int n_out, int n_in)
{
    if (rows <= FEW_ROWS)
        skinny_linear(y, x, a->weight, a->bias, rows, n_out, n_in);
    else
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

/* Tokens of a prompt with so many points: a box has two corners, no box one padding point. */
static int tokens_for(const Sam *sam, int n_points)
{
    return 1 + sam->n_mask_tokens + n_points + 2;
}

static SamDecoder *decoder_new(const Sam *sam, const SamImage *image, int plain, Error *err)
{
    const size_t n_floats = (size_t)sam->n_positions * sam->config.out_chans;
    SamDecoder *d = calloc(1, sizeof *d);
    if (d)
        d->source = aligned_array(n_floats, sizeof(float));
    if (!d || !d->source) {
        fail_memory(err, "an image's decoder", n_floats * sizeof(float));
        sam_decoder_free(d);
        return NULL;
    }
    d->sam = sam;
    d->image = image;
    memcpy(d->source, image->embedding, n_floats * sizeof(float));
    add_rows(d->source, sam->no_mask, sam->n_positions, sam->config.out_chans);
    if (!plain && !(d->planes = sam_planes_new(sam, d->source, err))) {
        sam_decoder_free(d);
        return NULL;
    }
    return d;
}

SamDecoder *sam_decoder_new(const Sam *sam, const SamImage *image, Error *err)
{
    return decoder_new(sam, image, !sam_trail_fits(sam, tokens_for(sam, 0)), err);
}

void sam_decoder_free(SamDecoder *decoder)
{
    if (!decoder)
        return;
    sam_planes_free(decoder->planes);
    free(decoder->source);
    free(decoder);
}

/* ---- memory of one thread ---------------------------------------------------------------------*/

static void layout_tokens(SamScratch *s, const Sam *sam)
{
    const SamConfig *c = &sam->config;
    Arena *a = &s->arena;
    const size_t n_tokens = (size_t)s->max_prompts * (size_t)s->max_tokens, dim = (size_t)c->out_chans;
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

static void layout_plain(SamScratch *s, const Sam *sam)
{
    const SamConfig *c = &sam->config;
    Arena *a = &s->arena;
    const int grid = sam->grid, m = c->mask_in_chans, dim = c->out_chans;
    const size_t n = (size_t)sam->n_positions, n_dim = n * (size_t)dim;
    float **arrays[] = {&s->dense,   &s->keys,    &s->keys_pe,     &s->plain_q,
                        &s->plain_k, &s->plain_v, &s->plain_heads, &s->up1};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        *arrays[i] = arena_floats(a, n_dim);
    s->mask1 = arena_floats(a, 4 * n * (size_t)m / 4);
    s->mask2 = arena_floats(a, n * (size_t)m);
    size_t scratch = conv2d_scratch(4 * grid, 4 * grid, 1, m / 4, 2, 2, 0);
    size_t scratch2 = conv2d_scratch(2 * grid, 2 * grid, m / 4, m, 2, 2, 0);
    s->mask_scratch = arena_floats(a, largest(scratch, scratch2));
    s->up2 = arena_floats(a, 2 * n_dim);
    size_t up1 = conv_transpose2d_scratch(grid, grid, dim / 4, 2);
    size_t up2 = conv_transpose2d_scratch(2 * grid, 2 * grid, dim / 8, 2);
    s->up_scratch = arena_floats(a, largest(up1, up2));
}

static void layout(SamScratch *s, const Sam *sam)
{
    layout_tokens(s, sam);
    if (s->plain)
        layout_plain(s, sam);
    for (int i = 0; !s->plain && i < s->max_prompts; i++)
        sam_trail_layout(&s->trails[i], sam, s->max_tokens, &s->arena);
}

static SamScratch *scratch_new(const Sam *sam, int max_points, int max_prompts, int plain, Error *err)
{
    SamScratch *s = calloc(1, sizeof *s);
    if (!s) {
        fail_memory(err, "SAM's decoder", sizeof *s);
        return NULL;
    }
    s->plain = plain;
    s->max_tokens = tokens_for(sam, max_points);
    /* Together only while that keeps few rows: the bits must not depend on how many are asked together. */
    s->max_prompts = plain || max_prompts < 1 ? 1 : max_prompts < SAM_TOGETHER ? max_prompts : SAM_TOGETHER;
    while (s->max_prompts > 1 && s->max_prompts * s->max_tokens > FEW_ROWS)
        s->max_prompts--;
    layout(s, sam);
    if (arena_allocate(&s->arena)) {
        fail_memory(err, "SAM's decoder", s->arena.size);
        free(s);
        return NULL;
    }
    layout(s, sam);
    return s;
}

SamScratch *sam_scratch_new(const Sam *sam, int max_points, int max_prompts, Error *err)
{
    return scratch_new(sam, max_points, max_prompts, !sam_trail_fits(sam, tokens_for(sam, max_points)), err);
}

int sam_scratch_prompts(const SamScratch *scratch)
{
    return scratch->max_prompts;
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

/* The plain way's image: embedding + dense into keys, and with positions into keys_pe. */
static void embed_image(const SamDecoder *d, SamScratch *s, const SamPrompt *prompt)
{
    const size_t n = (size_t)d->sam->n_positions * d->sam->config.out_chans;
    if (prompt->mask) {
        embed_mask(d->sam, s, prompt->mask);
        sum(s->keys, d->image->embedding, s->dense, n);
    } else {
        memcpy(s->keys, d->source, n * sizeof(float));
    }
    sum(s->keys_pe, s->keys, d->sam->dense_pe, n);
}

/* Tokens of the prompts into point_embedding and queries; in the plain way the image into keys. */
static void embed_prompts(const SamDecoder *d, SamScratch *s, const SamPrompt *prompts, int n_prompts)
{
    const Sam *sam = d->sam;
    const size_t dim = (size_t)sam->config.out_chans, n_mask = (size_t)sam->n_mask_tokens;
    float *token = s->point_embedding;
    s->n_prompts = n_prompts;
    for (int i = 0; i < n_prompts; i++, token += (size_t)s->n_tokens * dim) {
        memcpy(token, sam->iou_token, dim * sizeof(float));
        memcpy(token + dim, sam->mask_tokens, n_mask * dim * sizeof(float));
        s->n_tokens =
            1 + (int)n_mask + sam_embed_sparse(sam, d->image, &prompts[i], token + (1 + n_mask) * dim);
    }
    s->n_rows = n_prompts * s->n_tokens;
    memcpy(s->queries, s->point_embedding, (size_t)s->n_rows * dim * sizeof(float));
    for (int i = 0; !s->plain && i < n_prompts; i++)
        sam_trail_begin(&s->trails[i], s->n_tokens);
    if (s->plain)
        embed_image(d, s, prompts);
}

/* ---- the two-way transformer: attention -------------------------------------------------------*/

/* transformer.py's Attention with q, k, v of dim C, as it is written there, for `groups` that do not see
 * each other; out [groups·n_q][C]. The projections go to tq [groups·n_q][inner], tk, tv [groups·n_k][inner],
 * heads [groups·n_q][inner]. */
static void attend_plain(const Sam *sam, const SamAttention *a, int groups, float *out, const float *q,
                         int n_q, const float *k, const float *v, int n_k, float *tq, float *tk, float *tv,
                         float *heads)
{
    const int dim = sam->config.out_chans, inner = a->inner_dim, n_heads = sam->config.decoder_heads;
    affine(tq, q, &a->q, groups * n_q, inner, dim);
    affine(tk, k, &a->k, groups * n_k, inner, dim);
    affine(tv, v, &a->v, groups * n_k, inner, dim);
    for (int i = 0; i < groups; i++) {
        const size_t at_q = (size_t)i * n_q * inner, at_k = (size_t)i * n_k * inner;
        attention(heads + at_q, inner, tq + at_q, inner, tk + at_k, inner, tv + at_k, inner, n_q, n_k,
                  n_heads, inner / n_heads, attention_scale(sam, a), NULL);
    }
    affine(out, heads, &a->out, groups * n_q, dim, inner);
}

/* branch [P·T][C] = attention of the first n tokens of each prompt (queries + point_embedding) to the image.
 * The other tokens' rows mean nothing then, and nothing reads them. */
static void tokens_to_image(const SamDecoder *d, SamScratch *s, const SamAttention *a, int n)
{
    const Sam *sam = d->sam;
    const int dim = sam->config.out_chans, inner = a->inner_dim, n_rows = s->n_rows;
    sum(s->with_pe, s->queries, s->point_embedding, (size_t)n_rows * dim);
    if (s->plain) {
        attend_plain(sam, a, 1, s->branch, s->with_pe, n_rows, s->keys_pe, s->keys, sam->n_positions, s->q,
                     s->plain_k, s->plain_v, s->heads);
        return;
    }
    affine(s->q, s->with_pe, &a->q, n_rows, inner, dim);
    scale(s->q, attention_scale(sam, a), (size_t)n_rows * inner);
    for (int i = 0; i < s->n_prompts; i++) {
        const size_t at = (size_t)i * s->n_tokens * inner;
        sam_trail_tokens_to_image(&s->trails[i], d->planes, a, s->q + at, n, s->heads + at);
    }
    affine(s->branch, s->heads, &a->out, n_rows, dim, inner);
}

/* keys = norm4(keys + attention of the image to the tokens), and keys_pe with it. */
static void image_to_tokens(const SamDecoder *d, SamScratch *s, const SamTwoWayLayer *layer)
{
    const Sam *sam = d->sam;
    const SamAttention *a = &layer->image_to_token;
    const int dim = sam->config.out_chans, inner = a->inner_dim, n = sam->n_positions, n_rows = s->n_rows;
    sum(s->with_pe, s->queries, s->point_embedding, (size_t)n_rows * dim);
    if (s->plain) {
        /* up2, not in use yet, takes the result */
        attend_plain(sam, a, 1, s->up2, s->keys_pe, n, s->with_pe, s->queries, n_rows, s->plain_q, s->k, s->v,
                     s->plain_heads);
        add(s->keys, s->up2, (size_t)n * dim);
        norm(s->keys, &layer->norm4, n, dim);
        sum(s->keys_pe, s->keys, sam->dense_pe, (size_t)n * dim);
        return;
    }
    affine(s->k, s->with_pe, &a->k, n_rows, inner, dim);
    affine(s->v, s->queries, &a->v, n_rows, inner, dim);
    scale(s->k, attention_scale(sam, a), (size_t)n_rows * inner);
    for (int i = 0; i < s->n_prompts; i++) {
        const size_t at = (size_t)i * s->n_tokens * inner;
        sam_trail_image_to_tokens(&s->trails[i], d->planes, layer, s->k + at, s->v + at);
    }
}

/* ---- the two-way transformer: layers ----------------------------------------------------------*/

/* The tokens of a prompt attend to each other; in the first layer without positional encoding and without a
 * residual. */
static void self_attention(const Sam *sam, SamScratch *s, const SamTwoWayLayer *layer, int first)
{
    const size_t count = (size_t)s->n_rows * sam->config.out_chans;
    const float *q = s->queries;
    if (!first) {
        sum(s->with_pe, s->queries, s->point_embedding, count);
        q = s->with_pe;
    }
    attend_plain(sam, &layer->self_attn, s->n_prompts, s->branch, q, s->n_tokens, q, s->queries, s->n_tokens,
                 s->q, s->k, s->v, s->heads);
    if (first)
        memcpy(s->queries, s->branch, count * sizeof(float));
    else
        add(s->queries, s->branch, count);
    norm(s->queries, &layer->norm1, s->n_rows, sam->config.out_chans);
}

static void token_mlp(const Sam *sam, SamScratch *s, const SamTwoWayLayer *layer)
{
    const int dim = sam->config.out_chans, hidden = sam->config.decoder_mlp_dim;
    affine(s->hidden, s->queries, &layer->lin1, s->n_rows, hidden, dim);
    relu(s->hidden, (size_t)s->n_rows * hidden);
    affine(s->branch, s->hidden, &layer->lin2, s->n_rows, dim, hidden);
    add(s->queries, s->branch, (size_t)s->n_rows * dim);
    norm(s->queries, &layer->norm3, s->n_rows, dim);
}

static void run_transformer(const SamDecoder *d, SamScratch *s)
{
    const Sam *sam = d->sam;
    const int dim = sam->config.out_chans;
    const size_t count = (size_t)s->n_rows * dim;
    for (int i = 0; i < sam->config.decoder_depth; i++) {
        const SamTwoWayLayer *layer = &sam->layers[i];
        self_attention(sam, s, layer, i == 0);
        tokens_to_image(d, s, &layer->token_to_image, s->n_tokens);
        add(s->queries, s->branch, count);
        norm(s->queries, &layer->norm2, s->n_rows, dim);
        token_mlp(sam, s, layer);
        image_to_tokens(d, s, layer);
    }
    tokens_to_image(d, s, &sam->final_attn, 1 + sam->n_mask_tokens); /* what the heads look at */
    add(s->queries, s->branch, count);
    norm(s->queries, &sam->norm_final, s->n_rows, dim);
}

/* ---- heads ------------------------------------------------------------------------------------*/

/* mask_decoder.py's MLP on tokens x [rows][n_in]: ReLU between the layers; hidden is room for two layers. */
static void mlp(const SamAffine *layers, int n_layers, float *out, const float *x, int rows, int n_in,
                int n_hidden, int n_out, float *hidden)
{
    for (int i = 0; i < n_layers; i++) {
        const int last = i == n_layers - 1, width = last ? n_out : n_hidden;
        float *y = last ? out : hidden + (size_t)(i & 1) * rows * n_hidden;
        affine(y, x, &layers[i], rows, width, n_in);
        if (!last)
            relu(y, (size_t)rows * width);
        x = y;
        n_in = width;
    }
}

void sam_decode_prompts(const SamDecoder *decoder, SamScratch *scratch, const SamPrompt *prompts,
                        int n_prompts, float *iou)
{
    const Sam *sam = decoder->sam;
    const size_t dim = (size_t)sam->config.out_chans;
    embed_prompts(decoder, scratch, prompts, n_prompts);
    run_transformer(decoder, scratch);
    for (int i = 0; i < n_prompts; i++)
        memcpy(scratch->branch + (size_t)i * dim, scratch->queries + (size_t)i * scratch->n_tokens * dim,
               dim * sizeof(float));
    mlp(sam->iou_head, sam->config.iou_head_depth, iou, scratch->branch, n_prompts, (int)dim,
        sam->config.iou_head_hidden_dim, sam->n_mask_tokens, scratch->hidden);
}

/* hyper[i][C/8] of the wanted mask tokens of a prompt. */
static void run_hypernetworks(const Sam *sam, SamScratch *s, int prompt, const int *tokens, int n_tokens)
{
    const int dim = sam->config.out_chans;
    const float *queries = s->queries + (size_t)prompt * s->n_tokens * dim;
    for (int i = 0; i < n_tokens; i++)
        mlp(sam->hyper[tokens[i]], 3, s->hyper + (size_t)i * (dim / 8),
            queries + (size_t)(1 + tokens[i]) * dim, 1, dim, dim, dim / 8, s->hidden);
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

void sam_decode_masks(const SamDecoder *decoder, SamScratch *scratch, int prompt, const int *tokens,
                      int n_tokens, float *low_res)
{
    run_hypernetworks(decoder->sam, scratch, prompt, tokens, n_tokens);
    if (scratch->plain)
        upscale_and_multiply_plain(decoder->sam, scratch, low_res, n_tokens);
    else
        sam_trail_upscale(&scratch->trails[prompt], decoder->planes, scratch->hyper, n_tokens, low_res);
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
    const int dim = sam->config.out_chans, n = sam->n_positions, n_output = 1 + sam->n_mask_tokens;
    embed_prompts(d, s, prompt, 1);
    tap(user, "sam.sparse", 2, (int64_t[]){s->n_tokens - n_output, dim},
        s->point_embedding + (size_t)n_output * dim);
    if (prompt->mask)
        return sam_tap_planar(tap, user, "sam.dense", s->dense, sam->grid, sam->grid, dim, err);
    float *dense = aligned_array((size_t)n * dim, sizeof *dense);
    if (!dense)
        return fail_memory(err, "a prompt's dense embedding", (size_t)n * dim * sizeof *dense);
    memset(dense, 0, (size_t)n * dim * sizeof *dense);
    add_rows(dense, sam->no_mask, n, dim);
    const int status = sam_tap_planar(tap, user, "sam.dense", dense, sam->grid, sam->grid, dim, err);
    free(dense);
    return status;
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
    sam_decode_prompts(d, s, prompt, 1, all_iou);
    for (int i = 0; i < n_out; i++) {
        tokens[i] = first + i;
        iou[i] = all_iou[first + i];
    }
    sam_decode_masks(d, s, 0, tokens, n_out, low_res);
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
    if (prompt->mask || !sam_trail_fits(sam, tokens_for(sam, prompt->n_points)))
        plain = 1;
    SamDecoder *decoder = decoder_new(sam, image, plain, err);
    SamScratch *scratch = decoder ? scratch_new(sam, prompt->n_points, 1, plain, err) : NULL;
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
