/* sam_prompts.c - SAM's mask decoder for many prompts on one image: the fast form of sam.h's SamDecoder and
 * SamScratch. sam.c has the official order. This is the same function, with the products in another order.
 *
 * An image has thousands of positions and a prompt has a handful of tokens. So nearly all the time of the
 * official order goes into products that touch every position. Here
 *   - the image's side is sam_positions.c: products with the image are made once an image, in planes;
 *   - the tokens' side is below. A few prompts go through it together, so that its 14 MB of matrices are read
 *     for 28 rows instead of 7. No cache near a core holds them. Rows of a product are independent, so the
 *     bits are those of one prompt alone.
 * Decoders of very many tokens or layers do not fit the planes. They use the plain form. */
#include <stdlib.h>
#include <string.h>

#include "fast/planar.h"
#include "fast/sam_positions.h"
#include "io/fail.h"
#include "sam.h"

/* The plain forms, in sam.c; their structs are sam.c's. */
SamDecoder *plain_sam_decoder_new(const Sam *sam, const SamImage *image, Error *err);
void plain_sam_decoder_free(SamDecoder *decoder);
SamScratch *plain_sam_scratch_new(const Sam *sam, int max_points, int max_prompts, Error *err);
int plain_sam_scratch_prompts(const SamScratch *scratch);
void plain_sam_scratch_free(SamScratch *scratch);
int plain_sam_decode_prompts(const SamDecoder *decoder, SamScratch *scratch, const SamPrompt *prompts,
                             int n_prompts, float *iou, Error *err);
void plain_sam_decode_masks(const SamDecoder *decoder, SamScratch *scratch, int prompt, const int *tokens,
                            int n_tokens, float *low_res);

struct SamDecoder {
    const Sam *sam;
    const SamImage *image;
    SamPlanes *planes; /* NULL: no prompt fits. */
    SamDecoder *plain; /* for prompts that do not fit. */
};

struct SamScratch {
    SamScratch *plain; /* for such prompts; NULL: the members below are used. */
    Arena arena;
    size_t max_tokens;
    int max_prompts;
    /* the current prompts, of the same shape: their tokens lie one prompt after the other. */
    int n_prompts, n_tokens, n_rows; /* P, T, P·T */
    float *tokens;                   /* [P·T][C] the input tokens: also their positional encoding */
    float *queries, *queries_pe;     /* [P·T][C], and with the positional encoding added */
    float *q, *k, *v, *attended;     /* [P·T][internal_dim] of an attention */
    float *out;                      /* [P·T][C] of an attention or the MLP */
    float *hidden[2];                /* [P·T][the widest MLP] */
    float *hyper_in;                 /* [n_mask_tokens][C/8] */
    SamPositions positions[SAM_TOGETHER];
};

/* ---- small steps ------------------------------------------------------------------------------*/

/* Floats in the prompts' rows. */
static size_t n_floats(const SamScratch *s, int dim)
{
    return (size_t)s->n_rows * dim;
}

/* The offset of a prompt's row 0 in [P·T][dim]. */
static size_t prompt_at(const SamScratch *s, int prompt, int dim)
{
    return (size_t)prompt * s->n_tokens * dim;
}

static void add_position_encoding(const SamWeights *w, SamScratch *s)
{
    for (size_t i = 0; i < n_floats(s, w->config.out_chans); i++)
        s->queries_pe[i] = s->queries[i] + s->tokens[i];
}

/* ---- memory -----------------------------------------------------------------------------------*/

SamDecoder *sam_decoder_new(const Sam *sam, const SamImage *image, Error *err)
{
    SamDecoder *d = calloc(1, sizeof *d);
    if (!d) {
        fail_memory(err, "an image's decoder", sizeof *d);
        return NULL;
    }
    d->sam = sam;
    d->image = image;
    d->plain = plain_sam_decoder_new(sam, image, err);
    const int fits = sam_positions_fit(&sam->weights, sam_max_tokens(&sam->weights, 0));
    if (d->plain && fits)
        d->planes = sam_planes_new(sam, image->embedding, err);
    if (!d->plain || (fits && !d->planes)) {
        sam_decoder_free(d);
        return NULL;
    }
    return d;
}

void sam_decoder_free(SamDecoder *decoder)
{
    if (!decoder)
        return;
    plain_sam_decoder_free(decoder->plain);
    sam_planes_free(decoder->planes);
    free(decoder);
}

static void layout_scratch(SamScratch *s, const SamWeights *w)
{
    const SamConfig *c = &w->config;
    const size_t n_rows = s->max_prompts * s->max_tokens, dim = c->out_chans;
    const size_t mlp = c->decoder_mlp_dim, iou = c->iou_head_hidden_dim;
    const size_t widest = mlp > dim ? mlp > iou ? mlp : iou : dim > iou ? dim : iou;
    Arena *a = &s->arena;
    float **arrays[] = {&s->tokens, &s->queries, &s->queries_pe, &s->q, &s->k, &s->v, &s->attended, &s->out};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        *arrays[i] = arena_floats(a, n_rows * dim);
    s->hidden[0] = arena_floats(a, n_rows * widest);
    s->hidden[1] = arena_floats(a, n_rows * widest);
    s->hyper_in = arena_floats(a, w->n_mask_tokens * dim / 8);
    for (int i = 0; i < s->max_prompts; i++)
        sam_layout_positions(&s->positions[i], w, (int)s->max_tokens, a);
}

static SamScratch *scratch_failed(SamScratch *s, size_t n_bytes, Error *err)
{
    fail_memory(err, "SAM's decoder", n_bytes);
    sam_scratch_free(s);
    return NULL;
}

SamScratch *sam_scratch_new(const Sam *sam, int max_points, int max_prompts, Error *err)
{
    const SamWeights *w = &sam->weights;
    const int n_tokens = sam_max_tokens(w, max_points);
    SamScratch *s = calloc(1, sizeof *s);
    if (!s)
        return scratch_failed(s, sizeof *s, err);
    if (!sam_positions_fit(w, n_tokens)) {
        s->plain = plain_sam_scratch_new(sam, max_points, max_prompts, err);
        if (s->plain)
            return s;
        sam_scratch_free(s);
        return NULL;
    }
    s->max_tokens = n_tokens;
    s->max_prompts = max_prompts < 1 ? 1 : max_prompts < SAM_TOGETHER ? max_prompts : SAM_TOGETHER;
    /* More prompts at a time only while they have few rows together. Then the bits do not depend on how many
     * prompts are asked together. */
    while (s->max_prompts > 1 && s->max_prompts * n_tokens > SKINNY_ROWS)
        s->max_prompts--;
    layout_scratch(s, w);
    if (arena_allocate(&s->arena))
        return scratch_failed(s, s->arena.size, err);
    layout_scratch(s, w);
    return s;
}

int sam_scratch_prompts(const SamScratch *scratch)
{
    return scratch->plain ? plain_sam_scratch_prompts(scratch->plain) : scratch->max_prompts;
}

void sam_scratch_free(SamScratch *scratch)
{
    if (!scratch)
        return;
    plain_sam_scratch_free(scratch->plain);
    free(scratch->arena.base);
    free(scratch);
}

/* ---- TwoWayTransformer: the tokens' side ------------------------------------------------------*/

/* Put the output tokens and the prompts' sparse embeddings into tokens and queries. */
static void embed_prompts(const SamDecoder *d, SamScratch *s, const SamPrompt *prompts, int n_prompts)
{
    const SamWeights *w = &d->sam->weights;
    const size_t dim = w->config.out_chans;
    const int n_output = 1 + w->n_mask_tokens;
    float *tokens = s->tokens;
    for (int i = 0; i < n_prompts; i++, tokens += s->n_tokens * dim) {
        sam_output_tokens(w, tokens);
        s->n_tokens = n_output + sam_embed_sparse(w, d->image, &prompts[i], tokens + n_output * dim);
    }
    s->n_prompts = n_prompts;
    s->n_rows = n_prompts * s->n_tokens;
    memcpy(s->queries, s->tokens, n_floats(s, w->config.out_chans) * sizeof *s->queries);
    for (int i = 0; i < n_prompts; i++)
        sam_positions_begin(&s->positions[i], s->n_tokens);
}

/* s->out = self_attn(q, q, queries), prompt by prompt. */
static void self_attention(const SamWeights *w, SamScratch *s, const SamAttention *a, const float *q)
{
    const int T = s->n_tokens, dim = a->internal_dim, n_heads = w->config.decoder_heads;
    skinny_linear(s->q, q, &a->q_proj, s->n_rows);
    skinny_linear(s->k, q, &a->k_proj, s->n_rows);
    skinny_linear(s->v, s->queries, &a->v_proj, s->n_rows);
    for (int i = 0; i < s->n_prompts; i++) {
        const size_t at = prompt_at(s, i, dim);
        attention(s->attended + at, dim, s->q + at, dim, s->k + at, dim, s->v + at, dim, T, T, n_heads,
                  dim / n_heads, sam_attention_scale(w, a), NULL, NULL);
    }
    skinny_linear(s->out, s->attended, &a->out_proj, s->n_rows);
}

/* s->out = the attention of the first n tokens of each prompt to the image. The other tokens' rows are
 * meaningless then, and are not read. */
static void token_to_image(const SamDecoder *d, SamScratch *s, const SamAttention *a, int n)
{
    const SamWeights *w = &d->sam->weights;
    add_position_encoding(w, s);
    skinny_linear(s->q, s->queries_pe, &a->q_proj, s->n_rows);
    multiply_floats(s->q, sam_attention_scale(w, a), n_floats(s, a->internal_dim));
    for (int i = 0; i < s->n_prompts; i++) {
        const size_t at = prompt_at(s, i, a->internal_dim);
        sam_positions_token_to_image(&s->positions[i], d->planes, a, s->q + at, n, s->attended + at);
    }
    skinny_linear(s->out, s->attended, &a->out_proj, s->n_rows);
}

/* MLPBlock.forward with ReLU: s->out. */
static void mlp_block_relu(SamScratch *s, const SamTwoWayAttentionBlock *b)
{
    skinny_linear(s->hidden[0], s->queries, &b->lin1, s->n_rows);
    relu(s->hidden[0], n_floats(s, b->lin1.n_out));
    skinny_linear(s->out, s->hidden[0], &b->lin2, s->n_rows);
}

/* The image attends to the tokens, then norm4. */
static void image_to_token(const SamDecoder *d, SamScratch *s, const SamTwoWayAttentionBlock *b)
{
    const SamWeights *w = &d->sam->weights;
    const SamAttention *a = &b->cross_attn_image_to_token;
    add_position_encoding(w, s);
    skinny_linear(s->k, s->queries_pe, &a->k_proj, s->n_rows);
    skinny_linear(s->v, s->queries, &a->v_proj, s->n_rows);
    multiply_floats(s->k, sam_attention_scale(w, a), n_floats(s, a->internal_dim));
    for (int i = 0; i < s->n_prompts; i++) {
        const size_t at = prompt_at(s, i, a->internal_dim);
        sam_positions_image_to_token(&s->positions[i], d->planes, b, s->k + at, s->v + at);
    }
}

static void two_way_attention_block(const SamDecoder *d, SamScratch *s, const SamTwoWayAttentionBlock *b,
                                    int skip_first_layer_pe)
{
    const SamWeights *w = &d->sam->weights;
    const size_t n_queries = n_floats(s, w->config.out_chans);
    if (skip_first_layer_pe) {
        self_attention(w, s, &b->self_attn, s->queries);
        memcpy(s->queries, s->out, n_queries * sizeof *s->queries);
    } else {
        add_position_encoding(w, s);
        self_attention(w, s, &b->self_attn, s->queries_pe);
        add(s->queries, s->out, n_queries);
    }
    sam_transformer_norm(w, s->queries, &b->norm1, s->n_rows);
    token_to_image(d, s, &b->cross_attn_token_to_image, s->n_tokens);
    add(s->queries, s->out, n_queries);
    sam_transformer_norm(w, s->queries, &b->norm2, s->n_rows);
    mlp_block_relu(s, b);
    add(s->queries, s->out, n_queries);
    sam_transformer_norm(w, s->queries, &b->norm3, s->n_rows);
    image_to_token(d, s, b);
}

static void two_way_transformer(const SamDecoder *d, SamScratch *s)
{
    const SamWeights *w = &d->sam->weights;
    const SamMaskDecoder *m = &w->mask_decoder;
    for (int i = 0; i < w->config.decoder_depth; i++)
        two_way_attention_block(d, s, &m->transformer.layers[i], i == 0);
    /* Only the tokens that a head reads. */
    token_to_image(d, s, &m->transformer.final_attn_token_to_image, 1 + w->n_mask_tokens);
    add(s->queries, s->out, n_floats(s, w->config.out_chans));
    sam_final_norm(w, s->queries, s->n_rows);
}

/* ---- MaskDecoder's heads ----------------------------------------------------------------------*/

/* MLP.forward of x [rows][n_in]: ReLU between the layers. */
static void mlp(SamScratch *s, const Linear *layers, int n_layers, float *out, const float *x, int rows)
{
    for (int i = 0; i < n_layers - 1; i++) {
        float *y = s->hidden[i % 2];
        skinny_linear(y, x, &layers[i], rows);
        relu(y, (size_t)rows * layers[i].n_out);
        x = y;
    }
    skinny_linear(out, x, &layers[n_layers - 1], rows);
}

int sam_decode_prompts(const SamDecoder *decoder, SamScratch *scratch, const SamPrompt *prompts,
                       int n_prompts, float *iou, Error *err)
{
    const SamWeights *w = &decoder->sam->weights;
    const int dim = w->config.out_chans;
    if (scratch->plain)
        return plain_sam_decode_prompts(decoder->plain, scratch->plain, prompts, n_prompts, iou, err);
    if (attention_reserve((int)scratch->max_tokens, dim, err))
        return -1;
    embed_prompts(decoder, scratch, prompts, n_prompts);
    two_way_transformer(decoder, scratch);
    float *iou_tokens = scratch->out; /* the first of each prompt. */
    for (int i = 0; i < n_prompts; i++)
        memcpy(iou_tokens + i * dim, scratch->queries + prompt_at(scratch, i, dim), dim * sizeof *iou_tokens);
    mlp(scratch, w->mask_decoder.iou_prediction_head, w->config.iou_head_depth, iou, iou_tokens, n_prompts);
    return 0;
}

void sam_decode_masks(const SamDecoder *decoder, SamScratch *scratch, int prompt, const int *tokens,
                      int n_tokens, float *low_res)
{
    const SamWeights *w = &decoder->sam->weights;
    const int dim = w->config.out_chans;
    if (scratch->plain) {
        plain_sam_decode_masks(decoder->plain, scratch->plain, prompt, tokens, n_tokens, low_res);
        return;
    }
    const float *mask_tokens_out = scratch->queries + prompt_at(scratch, prompt, dim) + dim;
    for (int i = 0; i < n_tokens; i++)
        mlp(scratch, w->mask_decoder.output_hypernetworks_mlps[tokens[i]], 3,
            scratch->hyper_in + i * (dim / 8), mask_tokens_out + tokens[i] * dim, 1);
    sam_positions_upscale(&scratch->positions[prompt], decoder->planes, scratch->hyper_in, n_tokens, low_res);
}
