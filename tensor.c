/* tensor.c - the plain form of tensor.h: every routine is the loop that its formula says.
 *
 * A student finds the formula here, and sets a breakpoint in it. `make PLAIN=1` computes with these loops
 * alone. The fast build replaces the costly ones by fast/'s. It keeps them here under the names plain_*, as
 * the truth of the tests (fast/replaces.h). Routines that cost nothing are written only here.
 *
 * Sums are in double, so that their order does not matter. The exceptions are the interpolations and the
 * blur. They are float sums in a fixed order, because tests compare them with PyTorch's results to the last
 * digits. The OpenMP loops run over independent outputs. */
#include "tensor.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "io/number.h"

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* ---- matrix products ---------------------------------------------------------------------------*/

float dot(const float *a, const float *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

/* y_ij = sum_p x_ip·w_jp + bias_j. */
void linear(float *y, const float *x, const float *w, const float *bias, int m, int n, int k)
{
#pragma omp parallel for
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < n; j++)
            y[i * n + j] = dot(x + i * k, w + j * k, k) + (bias ? bias[j] : 0);
}

/* c_ij = sum_p a_ip·b_pj. */
void matmul(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
            int accumulate)
{
#pragma omp parallel for
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            double sum = accumulate ? c[i * ldc + j] : 0;
            for (ptrdiff_t p = 0; p < k; p++)
                sum += (double)a[i * lda + p] * b[p * ldb + j];
            c[i * ldc + j] = sum;
        }
}

/* c_ij = sum_p a_ip·b_jp. */
void matmul_nt(float *c, int ldc, const float *a, int lda, const float *b, int ldb, int m, int n, int k,
               int accumulate)
{
#pragma omp parallel for
    for (ptrdiff_t i = 0; i < m; i++)
        for (ptrdiff_t j = 0; j < n; j++) {
            double sum = accumulate ? c[i * ldc + j] : 0;
            for (ptrdiff_t p = 0; p < k; p++)
                sum += (double)a[i * lda + p] * b[j * ldb + p];
            c[i * ldc + j] = sum;
        }
}

/* ---- precision ---------------------------------------------------------------------------------*/

/* Add 0x7fff, and one more if the last kept bit is set. The sum carries into the upper half exactly where the
 * number must be rounded up. A NaN is made quiet: its upper half alone could be infinity's. */
static uint16_t upper_half(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    if (magnitude > 0x7f800000)
        return bits >> 16 | 0x40;
    if (magnitude < 0x00800000)
        return sign;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

void bf16_round(uint16_t *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] = upper_half(x[i]);
}

/* y[n] = x[n], rounded to bf16 and widened to float again. A product in bf16 sees these numbers. */
static void round_floats(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t bits = (uint32_t)upper_half(x[i]) << 16;
        memcpy(&y[i], &bits, sizeof bits);
    }
}

/* y [rows][dim] = round_floats of rows that lie ldx floats apart. */
static void round_rows(float *y, const float *x, int ldx, int rows, int dim)
{
    for (ptrdiff_t r = 0; r < rows; r++)
        round_floats(y + r * dim, x + r * ldx, dim);
}

void linear_layer(float *y, const float *x, const Linear *layer, int m)
{
    enum { MOST_ROUNDED = 4096 }; /* inputs, on a small stack. */
    const ptrdiff_t n_in = layer->n_in, n_out = layer->n_out;
    if (!layer->packed) {
        linear(y, x, layer->weight, layer->bias, m, layer->n_out, layer->n_in);
        return;
    }
    const float *weight = layer->packed;
#pragma omp parallel for
    for (ptrdiff_t i = 0; i < m; i++) {
        for (ptrdiff_t j = 0; j < n_out; j++)
            y[i * n_out + j] = layer->bias ? layer->bias[j] : 0;
        for (ptrdiff_t k = 0; k < n_in; k += MOST_ROUNDED) { /* nearly always once. */
            float rounded[MOST_ROUNDED];
            const int n = min_int((int)(n_in - k), MOST_ROUNDED);
            round_floats(rounded, x + i * n_in + k, n);
            for (ptrdiff_t j = 0; j < n_out; j++)
                y[i * n_out + j] += dot(rounded, weight + j * n_in + k, n);
        }
    }
}

void linear_layer_gelu(float *y, const float *x, const Linear *layer, int m)
{
    linear_layer(y, x, layer, m);
    gelu(y, (size_t)m * layer->n_out);
}

/* The packed weight of the plain form is the rounded one, as floats in the weight's own order. */
void linear_pack(Linear *layer, Arena *arena)
{
    const size_t n = (size_t)layer->n_out * layer->n_in;
    layer->packed = NULL;
    if (layer->n_in < BF16_LEAST_TERMS)
        return;
    float *rounded = arena_floats(arena, n);
    if (rounded)
        round_floats(rounded, layer->weight, n);
    layer->packed = rounded;
}

/* ---- positions in attention --------------------------------------------------------------------*/

size_t relative_position_floats(int size, int head_dim)
{
    return (size_t)size * head_dim * relative_position_stride(size);
}

void relative_position(float *out, const float *table, int size, int head_dim)
{
    const int stride = relative_position_stride(size);
    for (int q = 0; q < size; q++)
        for (int d = 0; d < head_dim; d++, out += stride)
            for (int k = 0; k < stride; k++)
                out[k] = k < size ? table[(ptrdiff_t)(q - k + size - 1) * head_dim + d] : 0;
}

size_t distance_bias_floats(int n_heads, int grid_h, int grid_w)
{
    return (size_t)n_heads * grid_h * distance_bias_stride(grid_w);
}

void distance_bias(float *out, const float *table, int n_heads, int grid_h, int grid_w)
{
    const int stride = distance_bias_stride(grid_w);
    for (int row = 0; row < n_heads * grid_h; row++, out += stride, table += grid_w)
        for (int x = 0; x < stride; x++)
            out[x] = x < 2 * grid_w - 1 ? table[abs(x - grid_w + 1)] : 0;
}

/* q·rel[k] of a query at position `at` of an axis of `size` positions. */
static float axis_bias(const float *rel, const float *q, int at, int k, int size, int head_dim)
{
    const ptrdiff_t stride = relative_position_stride(size);
    double sum = 0;
    for (ptrdiff_t d = 0; d < head_dim; d++)
        sum += (double)q[d] * rel[(at * head_dim + d) * stride + k];
    return sum;
}

/* bias[grid_h*grid_w]: for every key, the positions' term of the logit of query q at (qh, qw) of head h. */
static void position_bias(float *bias, const RelativePosition *rel, const float *q, int qh, int qw, int h,
                          int head_dim)
{
    const int grid_h = rel->grid_h, grid_w = rel->grid_w, stride = distance_bias_stride(grid_w);
    if (rel->bias) { /* by distance */
        const float *table = rel->bias + (ptrdiff_t)h * grid_h * stride;
        for (int kh = 0; kh < grid_h; kh++)
            for (int kw = 0; kw < grid_w; kw++)
                bias[kh * grid_w + kw] = table[abs(qh - kh) * stride + kw - qw + grid_w - 1];
        return;
    }
    for (int kw = 0; kw < grid_w; kw++)
        bias[kw] = axis_bias(rel->rel_w, q, qw, kw, grid_w, head_dim);
    for (int kh = grid_h - 1; kh >= 0; kh--) { /* upwards: row 0 holds the columns' terms until the end. */
        const float by_row = axis_bias(rel->rel_h, q, qh, kh, grid_h, head_dim);
        for (int kw = 0; kw < grid_w; kw++)
            bias[kh * grid_w + kw] = by_row + bias[kw];
    }
}

/* ---- softmax -----------------------------------------------------------------------------------*/

/* x_i = e^x_i / sum_j e^x_j. The maximum is subtracted first, so that no exponential overflows. It does not
 * change the quotients. */
static void softmax(float *x, int n)
{
    float max = -INFINITY;
    double sum = 0;
    for (int i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (int i = 0; i < n; i++) {
        x[i] = expf(x[i] - max);
        sum += x[i];
    }
    for (int i = 0; i < n; i++)
        x[i] /= sum;
}

void softmax_rows(float *x, int rows, int cols)
{
#pragma omp parallel for
    for (ptrdiff_t r = 0; r < rows; r++)
        softmax(x + r * cols, cols);
}

/* ---- attention ---------------------------------------------------------------------------------*/

/* One query of one head, with its n keys and values. It lies in a thread's scratch: a stack may be small. */
typedef struct Query {
    const float *q, **keys, **values; /* keys [n], values [n]: pointers to [head_dim] */
    float *bias, *probability;        /* [n] */
    double *sum;                      /* [head_dim] */
} Query;

static void lay_out_query(Query *query, Arena *arena, int n, int head_dim)
{
    query->keys = arena_take(arena, n * sizeof *query->keys);
    query->values = arena_take(arena, n * sizeof *query->values);
    query->bias = arena_floats(arena, n);
    query->probability = arena_floats(arena, n);
    query->sum = arena_take(arena, head_dim * sizeof *query->sum);
}

static size_t query_bytes(int n, int head_dim)
{
    Query counted;
    Arena arena = {0};
    lay_out_query(&counted, &arena, n, head_dim);
    return arena.used;
}

/* The memory of all threads' queries. */
static char *queries_memory(int n, int head_dim)
{
    char *memory = thread_scratch(thread_team_size() * query_bytes(n, head_dim));
    assert(memory); /* see attention_reserve */
    return memory;
}

/* The calling thread's query in it. */
static Query own_query(char *memory, int n, int head_dim, const float *q)
{
    const size_t n_bytes = query_bytes(n, head_dim);
    Query query = {.q = q};
    Arena own = {memory + thread_number() * n_bytes, n_bytes, 0};
    lay_out_query(&query, &own, n, head_dim);
    return query;
}

int attention_reserve(int n_k, int head_dim, Error *err)
{
    return thread_reserve(thread_team_size() * query_bytes(n_k, head_dim), "attention", err);
}

/* out[head_dim] = sum_j softmax_j(scale·q·k_j + bias_j)·v_j; without bias if `biased` is 0. */
static void attend(float *out, Query *query, int biased, int n, int head_dim, float scale)
{
    float *probability = query->probability;
    double *sum = query->sum;
    for (int j = 0; j < n; j++)
        probability[j] = scale * dot(query->q, query->keys[j], head_dim) + (biased ? query->bias[j] : 0);
    softmax(probability, n);
    for (int d = 0; d < head_dim; d++)
        sum[d] = 0;
    for (int j = 0; j < n; j++)
        for (int d = 0; d < head_dim; d++)
            sum[d] += (double)probability[j] * query->values[j][d];
    for (int d = 0; d < head_dim; d++)
        out[d] = sum[d];
}

void attention(float *out, int ldo, const float *q, int ldq, const float *k, int ldk, const float *v, int ldv,
               int n_q, int n_k, int n_heads, int head_dim, float scale, const RelativePosition *rel,
               void *bf16_scratch)
{
    const int dim = n_heads * head_dim;
    if (bf16_scratch && head_dim >= BF16_LEAST_TERMS) {
        float *rounded_q = bf16_scratch, *rounded_k = rounded_q + (ptrdiff_t)n_q * dim;
        float *rounded_v = rounded_k + (ptrdiff_t)n_k * dim;
        round_rows(rounded_q, q, ldq, n_q, dim);
        round_rows(rounded_k, k, ldk, n_k, dim);
        round_rows(rounded_v, v, ldv, n_k, dim);
        q = rounded_q, k = rounded_k, v = rounded_v;
        ldq = ldk = ldv = dim;
    }
    char *memory = queries_memory(n_k, head_dim);
#pragma omp parallel for
    for (ptrdiff_t i = 0; i < n_q; i++)
        for (int head = 0; head < dim; head += head_dim) {
            Query query = own_query(memory, n_k, head_dim, q + i * ldq + head);
            for (ptrdiff_t j = 0; j < n_k; j++) {
                query.keys[j] = k + j * ldk + head;
                query.values[j] = v + j * ldv + head;
            }
            if (rel)
                position_bias(query.bias, rel, query.q, i / rel->grid_w, i % rel->grid_w, head / head_dim,
                              head_dim);
            attend(out + i * ldo + head, &query, rel != NULL, n_k, head_dim, scale);
        }
}

/* The official code cuts the grid into windows. It pads those at the lower and right edges with zero tokens
 * (window_partition). SAM's padding comes between norm1 and qkv, so a padding token's q, k, and v are the
 * biases of qkv. In TinyViT the norm comes after the padding, so they are qkv of the norm's bias. Either way
 * they are the same for all padding tokens: `pad`. As keys and values these tokens count like all others. As
 * queries they are left out, because window_unpartition drops their outputs. */
void window_attention(float *out, const float *qkv, const float *pad, int grid_h, int grid_w, int n_heads,
                      int head_dim, float scale, const RelativePosition *rel, void *bf16_scratch)
{
    const int n = grid_h * grid_w, n_k = rel->grid_h * rel->grid_w;
    const int dim = n_heads * head_dim, token = 3 * dim; /* floats of a token: its q, k, and v */
    if (bf16_scratch && head_dim >= BF16_LEAST_TERMS) {
        float *rounded_qkv = bf16_scratch, *rounded_pad = rounded_qkv + (ptrdiff_t)n * token;
        round_rows(rounded_qkv, qkv, token, n, token);
        round_rows(rounded_pad, pad, token, 1, token);
        qkv = rounded_qkv, pad = rounded_pad;
    }
    char *memory = queries_memory(n_k, head_dim);
#pragma omp parallel for
    for (ptrdiff_t i = 0; i < n; i++)
        for (int head = 0; head < dim; head += head_dim) {
            const int query_y = i / grid_w, query_x = i % grid_w;
            const int y = query_y % rel->grid_h, x = query_x % rel->grid_w; /* in the window */
            Query query = own_query(memory, n_k, head_dim, qkv + i * token + head);
            for (int j = 0; j < n_k; j++) {
                const int key_y = query_y - y + j / rel->grid_w, key_x = query_x - x + j % rel->grid_w;
                const int inside = key_y < grid_h && key_x < grid_w;
                const float *at = inside ? qkv + ((ptrdiff_t)key_y * grid_w + key_x) * token : pad;
                query.keys[j] = at + dim + head;
                query.values[j] = at + 2 * dim + head;
            }
            position_bias(query.bias, rel, query.q, y, x, head / head_dim, head_dim);
            attend(out + i * dim + head, &query, 1, n_k, head_dim, scale);
        }
}

size_t bf16_attention_scratch(int n_q, int n_k, int n_heads, int head_dim, int rel_h, int rel_w)
{
    (void)rel_h, (void)rel_w;
    return ((size_t)n_q + 2 * (size_t)n_k) * n_heads * head_dim * sizeof(float);
}

size_t bf16_window_scratch(int grid_h, int grid_w, int window_h, int window_w, int n_heads, int head_dim)
{
    (void)window_h, (void)window_w;
    return ((size_t)grid_h * grid_w + 1) * 3 * n_heads * head_dim * sizeof(float);
}

/* ---- rows --------------------------------------------------------------------------------------*/

void layer_norm(float *y, const float *x, const float *gamma, const float *beta, int rows, int dim, float eps)
{
#pragma omp parallel for
    for (ptrdiff_t r = 0; r < rows; r++) {
        const float *in = x + r * dim;
        float *out = y + r * dim;
        double mean = 0, variance = 0;
        for (int i = 0; i < dim; i++)
            mean += in[i] / (double)dim;
        for (int i = 0; i < dim; i++)
            variance += (in[i] - mean) * (in[i] - mean) / dim;
        for (int i = 0; i < dim; i++)
            out[i] = (in[i] - mean) / sqrt(variance + eps) * (gamma ? gamma[i] : 1) + (beta ? beta[i] : 0);
    }
}

void add_layer_norm(float *y, float *x, const float *branch, const float *ls, const float *gamma,
                    const float *beta, int rows, int dim, float eps)
{
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int i = 0; i < dim; i++)
            x[r * dim + i] += (ls ? ls[i] : 1) * branch[r * dim + i];
    layer_norm(y, x, gamma, beta, rows, dim, eps);
}

void l2_normalise(float *x, int rows, int dim, float eps)
{
    for (ptrdiff_t r = 0; r < rows; r++) {
        float *row = x + r * dim, norm = sqrtf(dot(row, row, dim));
        if (!(norm > eps))
            norm = eps;
        for (int i = 0; i < dim; i++)
            row[i] /= norm;
    }
}

void add_rows(float *y, const float *bias, int rows, int dim)
{
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int i = 0; i < dim; i++)
            y[r * dim + i] += bias[i];
}

void add_scaled(float *y, const float *x, const float *ls, int rows, int dim)
{
    for (ptrdiff_t r = 0; r < rows; r++)
        for (int i = 0; i < dim; i++)
            y[r * dim + i] += ls[i] * x[r * dim + i];
}

/* silu(a)·b, silu(a) = a·sigmoid(a); a and b are the halves of x12's rows. */
void swiglu(float *y, const float *x12, int rows, int dim)
{
#pragma omp parallel for
    for (ptrdiff_t r = 0; r < rows; r++) {
        const float *a = x12 + r * 2 * dim, *b = a + dim;
        for (int i = 0; i < dim; i++)
            y[r * dim + i] = a[i] / (1 + exp(-a[i])) * b[i];
    }
}

/* ---- elements ----------------------------------------------------------------------------------*/

void gelu(float *x, size_t n)
{
#pragma omp parallel for
    for (size_t i = 0; i < n; i++)
        x[i] = 0.5 * x[i] * (1 + erf(x[i] / sqrt(2)));
}

void relu(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] < 0 ? 0 : x[i]; /* a NaN stays */
}

void sigmoid(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = 1 / (1 + exp(-x[i]));
}

void add(float *y, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* A float is infinite or NaN if all bits of its exponent are set. The loop has no branch, so it is as fast as
 * memory is read. */
int all_finite(const void *floats, size_t n)
{
    const char *from = floats;
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + 4 * i, 4);
        bad |= (bits & 0x7f800000) == 0x7f800000;
    }
    return !bad;
}

/* ---- convolutions ------------------------------------------------------------------------------*/

void gather_patches(float *patches, const float *pixels, int h, int w, int patch)
{
    const size_t row_bytes = (size_t)patch * sizeof(float);
    for (int y0 = 0; y0 < h; y0 += patch)
        for (int x0 = 0; x0 < w; x0 += patch)
            for (int channel = 0; channel < 3; channel++)
                for (int y = y0; y < y0 + patch; y++, patches += patch)
                    memcpy(patches, pixels + ((size_t)channel * h + y) * w + x0, row_bytes);
}

/* Outputs of a convolution along an axis of n inputs. */
static int conv_out(int n, int kernel, int stride, int pad)
{
    return n + 2 * pad < kernel ? 0 : (n + 2 * pad - kernel) / stride + 1;
}

size_t conv2d_scratch(int h, int w, int c_in, int c_out, int kernel, int stride, int pad)
{
    (void)h, (void)w, (void)c_in, (void)c_out, (void)kernel, (void)stride, (void)pad;
    return 0;
}

/* The sum of one output channel at one place, over all taps of the kernel whose pixel lies inside x. The
 * kernel's first pixel is (y0, x0); weight [c_in][kernel][kernel]. */
static double conv_sum(const float *x, int h, int w, int c_in, const float *weight, int kernel, int y0,
                       int x0)
{
    double sum = 0;
    for (int ky = 0; ky < kernel; ky++)
        for (int kx = 0; kx < kernel; kx++) {
            const int iy = y0 + ky, ix = x0 + kx;
            if (iy < 0 || iy >= h || ix < 0 || ix >= w)
                continue;
            const float *pixel = x + ((ptrdiff_t)iy * w + ix) * c_in;
            for (ptrdiff_t ci = 0; ci < c_in; ci++)
                sum += (double)pixel[ci] * weight[(ci * kernel + ky) * kernel + kx];
        }
    return sum;
}

void conv2d(float *y, const float *x, const float *weight, const float *bias, int h, int w, int c_in,
            int c_out, int kernel, int stride, int pad, float *scratch)
{
    const int oh = conv_out(h, kernel, stride, pad), ow = conv_out(w, kernel, stride, pad);
    const ptrdiff_t filter = (ptrdiff_t)c_in * kernel * kernel;
    (void)scratch;
#pragma omp parallel for
    for (ptrdiff_t oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++)
            for (int co = 0; co < c_out; co++) {
                const double sum = conv_sum(x, h, w, c_in, weight + co * filter, kernel, oy * stride - pad,
                                            ox * stride - pad);
                y[(oy * ow + ox) * c_out + co] = sum + (bias ? bias[co] : 0);
            }
}

void depthwise_conv3x3(float *y, int y_first, int y_rows, const float *x, int x_first, const float *weight,
                       const float *bias, int h, int w, int c, int stride)
{
    const int ow = conv_out(w, 3, stride, 1);
#pragma omp parallel for
    for (ptrdiff_t row = 0; row < y_rows; row++)
        for (ptrdiff_t i = 0; i < (ptrdiff_t)ow * c; i++) {
            const int channel = i % c, y0 = (y_first + row) * stride - 1, x0 = i / c * stride - 1;
            double sum = bias[channel];
            for (int t = 0; t < 9; t++) {
                const int iy = y0 + t / 3, ix = x0 + t % 3;
                if (iy >= 0 && iy < h && ix >= 0 && ix < w)
                    sum += (double)x[((ptrdiff_t)(iy - x_first) * w + ix) * c + channel] *
                           weight[t * c + channel];
            }
            y[row * ow * c + i] = sum;
        }
}

size_t conv_transpose2d_scratch(int h, int w, int c_out, int stride)
{
    (void)h, (void)w, (void)c_out, (void)stride;
    return 0;
}

/* Output (oy, ox) belongs to one input pixel, (oy / stride, ox / stride). It belongs to one tap of the
 * kernel, (oy % stride, ox % stride). */
void conv_transpose2d(float *y, const float *x, const float *weight, const float *bias, int h, int w,
                      int c_in, int c_out, int stride, float *scratch)
{
    const ptrdiff_t square = stride * stride;
    (void)scratch;
#pragma omp parallel for
    for (ptrdiff_t oy = 0; oy < (ptrdiff_t)h * stride; oy++)
        for (ptrdiff_t ox = 0; ox < (ptrdiff_t)w * stride; ox++)
            for (ptrdiff_t co = 0; co < c_out; co++) {
                const float *pixel = x + (oy / stride * w + ox / stride) * c_in;
                const float *tap = weight + co * square + oy % stride * stride + ox % stride;
                double sum = bias ? bias[co] : 0;
                for (ptrdiff_t ci = 0; ci < c_in; ci++)
                    sum += (double)pixel[ci] * tap[ci * c_out * square];
                y[(oy * w * stride + ox) * c_out + co] = sum;
            }
}

/* ---- interpolation -----------------------------------------------------------------------------
 * As ATen/native/cpu/UpSampleKernel.cpp (PyTorch 1.13 to 2.x). Pixels are squares: output i looks at the
 * coordinate (i + 1/2)·step - 1/2. Every float of torch is a float here, in the same order. The step is a
 * float, the coordinate a double, the weights are floats. */

static int clamp_int(int i, int low, int high)
{
    return i < low ? low : i > high ? high : i;
}

float interpolation_step(int in, int out, double scale_factor)
{
    return scale_factor > 0 ? 1.0 / scale_factor : (float)in / out;
}

static double coordinate(int i, float step)
{
    return (double)step * (i + 0.5) - 0.5;
}

void bilinear_places(int at[2], float weight[2], int i, int in, float step)
{
    double real = coordinate(i, step);
    if (!(real > 0))
        real = 0;
    int first = real < in - 1 ? (int)real : in - 1;
    float t = real - first;
    if (t > 1)
        t = 1;
    at[0] = first, at[1] = min_int(first + 1, in - 1);
    weight[0] = 1 - t, weight[1] = t;
}

/* An axis that keeps its size is copied, as in torch, for any scale factor. */
void interpolate_bilinear(float *y, int oh, int ow, const float *x, int ih, int iw, int channels,
                          double scale_h, double scale_w)
{
    if (ih <= 0 || iw <= 0)
        return;
    const float step_h = oh == ih ? 1 : interpolation_step(ih, oh, scale_h);
    const float step_w = ow == iw ? 1 : interpolation_step(iw, ow, scale_w);
#pragma omp parallel for
    for (ptrdiff_t oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++) {
            int rows[2], cols[2];
            float wy[2], wx[2];
            bilinear_places(rows, wy, oy, ih, step_h);
            bilinear_places(cols, wx, ox, iw, step_w);
            const float *top = x + (ptrdiff_t)rows[0] * iw * channels;
            const float *bottom = x + (ptrdiff_t)rows[1] * iw * channels;
            const ptrdiff_t left = (ptrdiff_t)cols[0] * channels, right = (ptrdiff_t)cols[1] * channels;
            for (int c = 0; c < channels; c++)
                y[(oy * ow + ox) * channels + c] =
                    (top[left + c] * wx[0] + top[right + c] * wx[1]) * wy[0] +
                    (bottom[left + c] * wx[0] + bottom[right + c] * wx[1]) * wy[1];
        }
}

/* Keys' cubic convolution with parameter a: ((a+2)·x - (a+3))·x² + 1 for |x| <= 1, ((a·x - 5a)·x + 8a)·x - 4a
 * for 1 < |x| < 2. torch is compiled with fused multiply-adds, so they are used here too. The second formula
 * cancels: without them it is off by up to 1e-6. */
static float cubic_near(float x, float a)
{
    return fmaf(fmaf(a + 2, x, -(a + 3)) * x, x, 1);
}

static float cubic_far(float x, float a)
{
    return fmaf(fmaf(fmaf(a, x, -5 * a), x, 8 * a), x, -4 * a);
}

/* The inputs that one output mixes along an axis: `count` of them from `first` on. Beyond the border the
 * border's pixel is repeated. */
typedef struct Window {
    int first, count;
} Window;

/* Bicubic without antialiasing: four inputs, a = -0.75. */
static Window cubic_window(float weight[4], int i, int in, float step)
{
    const float a = -0.75f;
    const double real = coordinate(i, step), whole = floor(real);
    const float t = real - whole;
    weight[0] = cubic_far(t + 1, a), weight[1] = cubic_near(t, a);
    weight[2] = cubic_near(1 - t, a), weight[3] = cubic_far(1 - t + 1, a);
    const int first = whole < -4 ? -4 : whole > in + 4.0 ? in + 4 : (int)whole;
    return (Window){first - 1, 4};
}

/* Inputs in the widest antialiased window. */
enum { MOST_TAPS = 4096 };
static int antialias_taps(int in, float step)
{
    return (int)fminf(4 * (step >= 1 ? step : 1) + 3, in + 1.0f);
}

/* Bicubic with antialiasing (_upsample_bicubic2d_aa). The filter, here with PIL's a = -0.5, is stretched by
 * the step. The weights of the window are divided by their sum. */
static Window antialias_window(float *weight, int i, int in, float step)
{
    const float a = -0.5f, support = step >= 1 ? 2 * step : 2, shrink = step >= 1 ? 1 / step : 1;
    const float centre = step * (i + 0.5f), low = centre - support + 0.5f, high = centre + support + 0.5f;
    const int first = low > 0 ? min_int(fminf(low, in), in - 1) : 0;
    const int end = high < in ? (int)high : in, count = end > first ? end - first : 1;
    float total = 0;
    for (int j = 0; j < count; j++) {
        const float x = fabsf((j + first - centre + 0.5f) * shrink);
        weight[j] = x < 1 ? cubic_near(x, a) : x < 2 ? cubic_far(x, a) : 0;
        total += weight[j];
    }
    for (int j = 0; j < count; j++)
        weight[j] /= total == 0 ? 1 : total;
    return (Window){first, count};
}

void interpolate_bicubic(float *y, int oh, int ow, const float *x, int ih, int iw, int channels,
                         double scale_h, double scale_w, int antialias)
{
    if (oh <= 0 || ow <= 0 || ih <= 0 || iw <= 0)
        return;
    const float step_h = interpolation_step(ih, oh, scale_h), step_w = interpolation_step(iw, ow, scale_w);
    assert(!antialias ||
           (antialias_taps(ih, step_h) <= MOST_TAPS && antialias_taps(iw, step_w) <= MOST_TAPS));
#pragma omp parallel for
    for (ptrdiff_t oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++) {
            float wy[MOST_TAPS], wx[MOST_TAPS];
            const Window rows =
                antialias ? antialias_window(wy, oy, ih, step_h) : cubic_window(wy, oy, ih, step_h);
            const Window cols =
                antialias ? antialias_window(wx, ox, iw, step_w) : cubic_window(wx, ox, iw, step_w);
            for (int c = 0; c < channels; c++) {
                float sum = 0;
                for (int j = 0; j < rows.count; j++) {
                    const float *row =
                        x + (ptrdiff_t)clamp_int(rows.first + j, 0, ih - 1) * iw * channels + c;
                    float across = 0;
                    for (int i = 0; i < cols.count; i++)
                        across += row[(ptrdiff_t)clamp_int(cols.first + i, 0, iw - 1) * channels] * wx[i];
                    sum += across * wy[j];
                }
                y[(oy * ow + ox) * channels + c] = sum;
            }
        }
}

/* ---- pooling and blur --------------------------------------------------------------------------*/

void adaptive_avg_pool(float *y, int oh, int ow, const float *x, int ih, int iw, int channels)
{
#pragma omp parallel for
    for (ptrdiff_t oy = 0; oy < oh; oy++)
        for (int ox = 0; ox < ow; ox++) {
            int y0 = (int)((int64_t)oy * ih / oh), y1 = (int)(((int64_t)(oy + 1) * ih + oh - 1) / oh);
            int x0 = (int)((int64_t)ox * iw / ow), x1 = (int)(((int64_t)(ox + 1) * iw + ow - 1) / ow);
            float *out = y + (oy * ow + ox) * channels;
            for (int c = 0; c < channels; c++)
                out[c] = 0;
            for (int iy = y0; iy < y1; iy++)
                for (int ix = x0; ix < x1; ix++) {
                    const float *in = x + ((ptrdiff_t)iy * iw + ix) * channels;
                    for (int c = 0; c < channels; c++)
                        out[c] += in[c];
                }
            float height = y1 - y0, width = x1 - x0;
            for (int c = 0; c < channels; c++)
                out[c] = out[c] / height / width;
        }
}

/* The index of cell i when mirror images continue the n cells: d c b a | a b c d | d c b a. */
static int reflect(int i, int n)
{
    int period = 2 * n; /* n < 2^30: maps are far smaller. */
    i %= period;
    if (i < 0)
        i += period;
    return i < n ? i : period - 1 - i;
}

/* out[n][run] = the blur of in[n][run] along its first axis; consecutive cells are `run` floats apart. */
static void blur_axis(float *out, const float *in, int n, int run, float sigma)
{
    /* A radius of 40 axes is enough: beyond it the weights of a huge sigma are all alike. */
    double radius_limit = 40.0 * n, radius_wanted = ceil(4.0 * sigma);
    int radius = radius_wanted < radius_limit || radius_wanted < 64 ? radius_wanted : radius_limit;
    double total = 1, k = -0.5 / ((double)sigma * sigma);
    for (int t = 1; t <= radius; t++)
        total += 2 * exp(k * t * t);
    for (ptrdiff_t i = 0; i < (ptrdiff_t)n * run; i++)
        out[i] = 0;
    for (int t = -radius; t <= radius; t++) {
        float weight = exp(k * t * t) / total;
        for (int i = 0; i < n; i++) {
            const float *from = in + (ptrdiff_t)reflect(i + t, n) * run;
            float *to = out + (ptrdiff_t)i * run;
            for (int j = 0; j < run; j++)
                to[j] += weight * from[j];
        }
    }
}

void gaussian_blur(float *y, const float *x, int h, int w, int channels, float sigma, float *scratch)
{
    if (h <= 0 || w <= 0 || channels <= 0)
        return;
    if (!(sigma > 0)) {
        memmove(y, x, (size_t)h * w * channels * sizeof *y);
        return;
    }
    blur_axis(scratch, x, h, w * channels, sigma);
#pragma omp parallel for
    for (int i = 0; i < h; i++) {
        ptrdiff_t row = (ptrdiff_t)i * w * channels;
        blur_axis(y + row, scratch + row, w, channels, sigma);
    }
}

/* ---- PIL's resize ------------------------------------------------------------------------------
 * As Pillow's libImaging/Resample.c. Every double of Pillow is a double here. */

static double pil_filter(ResizeFilter filter, double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (filter == RESIZE_BILINEAR)
        return x < 1 ? 1 - x : 0;
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

/* Half the width of the filter, in inputs. When an image shrinks, the filter is stretched by the same
 * factor. */
static double pil_support(int in, int out, ResizeFilter filter)
{
    const double step = (double)in / out;
    return (filter == RESIZE_BILINEAR ? 1.0 : 2.0) * (step < 1 ? 1 : step);
}

int resize_taps(int in, int out, ResizeFilter filter)
{
    return (int)ceil(pil_support(in, out, filter)) * 2 + 1;
}

/* The weights are divided by their sum in double, then rounded to fixed point. */
int resize_weights(int32_t *weight, int *first, int i, int in, int out, ResizeFilter filter)
{
    const double step = (double)in / out, centre = (i + 0.5) * step, shrink = 1 / (step < 1 ? 1 : step);
    const double support = pil_support(in, out, filter);
    int begin = centre - support + 0.5, end = centre + support + 0.5;
    begin = begin < 0 ? 0 : begin;
    end = end > in ? in : end;
    double total = 0;
    for (int j = begin; j < end; j++)
        total += pil_filter(filter, (j - centre + 0.5) * shrink);
    for (int j = begin; j < end; j++) {
        double w = pil_filter(filter, (j - centre + 0.5) * shrink);
        double v = (total != 0 ? w / total : w) * (1 << RESIZE_PRECISION_BITS);
        weight[j - begin] = v < 0 ? v - 0.5 : v + 0.5;
    }
    *first = begin;
    return end - begin;
}

/* Resize the middle axis: y[outer][out][inner] from x[outer][in][inner]. 0 or -1 (no memory). */
static int resize_axis(uint8_t *y, int out, const uint8_t *x, int in, ptrdiff_t outer, ptrdiff_t inner,
                       ResizeFilter filter)
{
    int32_t *weight = aligned_array(resize_taps(in, out, filter), sizeof *weight);
    if (!weight)
        return -1;
    for (int i = 0; i < out; i++) {
        int first, count = resize_weights(weight, &first, i, in, out, filter);
        for (ptrdiff_t o = 0; o < outer; o++)
            for (ptrdiff_t c = 0; c < inner; c++) {
                int32_t sum = 1 << (RESIZE_PRECISION_BITS - 1); /* one half, to round to the nearest. */
                for (int j = 0; j < count; j++)
                    sum += x[(o * in + first + j) * inner + c] * weight[j];
                y[(o * out + i) * inner + c] = clamp_int(sum >> RESIZE_PRECISION_BITS, 0, 255);
            }
    }
    free(weight);
    return 0;
}

/* PIL skips the pass of an axis that keeps its size. */
int resize_u8(uint8_t *y, int oh, int ow, const uint8_t *x, int ih, int iw, int channels, ResizeFilter filter)
{
    if (oh <= 0 || ow <= 0 || ih <= 0 || iw <= 0 || channels <= 0)
        return -1;
    if (oh == ih && ow == iw) {
        memcpy(y, x, (size_t)oh * ow * channels);
        return 0;
    }
    if (oh == ih)
        return resize_axis(y, ow, x, iw, ih, channels, filter);
    if (ow == iw)
        return resize_axis(y, oh, x, ih, 1, (ptrdiff_t)ow * channels, filter);
    uint8_t *across = aligned_array((size_t)ih * ow, channels); /* [ih][ow][channels] */
    int status = across ? resize_axis(across, ow, x, iw, ih, channels, filter) : -1;
    if (!status)
        status = resize_axis(y, oh, across, ih, 1, (ptrdiff_t)ow * channels, filter);
    free(across);
    return status;
}

/* ---- one vector among samples --------------------------------------------------------------------*/

void sample_half(float *y, const uint16_t *x, int h, int w, int c, float at_x, float at_y,
                 const float *inverse_std)
{
    at_x = fminf(fmaxf(at_x - 0.5f, 0), w - 1);
    at_y = fminf(fmaxf(at_y - 0.5f, 0), h - 1);
    const ptrdiff_t x0 = at_x, x1 = x0 + 1 < w ? x0 + 1 : x0;
    const ptrdiff_t y0 = at_y, y1 = y0 + 1 < h ? y0 + 1 : y0;
    const float fx = at_x - x0, fy = at_y - y0;
    for (ptrdiff_t i = 0; i < c; i++) {
        const float top =
            (1 - fx) * f16_to_f32(x[(y0 * w + x0) * c + i]) + fx * f16_to_f32(x[(y0 * w + x1) * c + i]);
        const float bottom =
            (1 - fx) * f16_to_f32(x[(y1 * w + x0) * c + i]) + fx * f16_to_f32(x[(y1 * w + x1) * c + i]);
        y[i] = ((1 - fy) * top + fy * bottom) * inverse_std[i];
    }
    for (int i = c; i < round_up(c, ROW_STEP); i++)
        y[i] = 0;
}

float distance_half(const float *a, const uint16_t *b, const float *inverse_std, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        const double d = (a[i] - f16_to_f32(b[i])) * inverse_std[i];
        sum += d * d;
    }
    return sqrt(sum);
}

void centre_rows(float *x, int stride, int m)
{
    for (int c = 0; c < stride; c++) {
        double mean = 0;
        for (ptrdiff_t r = 0; r < m; r++)
            mean += x[r * stride + c] / (double)m;
        for (ptrdiff_t r = 0; r <= m; r++)
            x[r * stride + c] -= mean;
    }
}

void gram_rows(float *gram, int ld, const float *x, int stride, int n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t j = 0; j <= i; j++)
            gram[i * ld + j] = dot(x + i * stride, x + j * stride, stride);
}

float residual_rows(const float *x, int stride, int m, const float *y)
{
    double sum = 0;
    for (ptrdiff_t c = 0; c < stride; c++) {
        double d = x[(ptrdiff_t)m * stride + c];
        for (ptrdiff_t r = 0; r < m; r++)
            d -= (double)y[r] * x[r * stride + c];
        sum += d * d;
    }
    return sum;
}

/* ---- quantiles ---------------------------------------------------------------------------------*/

int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

float quantile_sorted(const float *sorted, size_t n, double q)
{
    if (n == 0)
        return 0;
    double at = q * (double)(n - 1);
    size_t low = (size_t)at, high = low + 1 < n ? low + 1 : low;
    return (float)(sorted[low] + (at - (double)low) * ((double)sorted[high] - sorted[low]));
}
