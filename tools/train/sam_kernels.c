/* The parts of SAM's training step that PyTorch on a CPU does slowly, forward and backward.
 *
 * PyTorch keeps the matrix products: oneDNN's bf16 kernels are near the machine's peak. This file has the passes
 * between them, which would otherwise go through memory a dozen times. They are softmax with decomposed relative
 * positions, layer norm, GELU, and the attentions between a few prompt tokens and the image grid. Then come the mask
 * head with its two 2x2 transposed convolutions, and the sums of the mask losses. sam_model.py wraps each pair as a
 * torch.autograd.Function and compares the whole with the official classes.
 *
 * Activations are bf16 (uint16_t), arithmetic is float32. Inside a prompt the grid is kept channel-major ([channel][n]),
 * so that every inner loop runs over grid positions. Compiled by sam_model.py: cc -O3 -march=native -ffast-math -shared.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float wide(bf16 x)
{
    union { uint32_t u; float f; } v = { (uint32_t)x << 16 };
    return v.f;
}

static inline bf16 narrow(float x)
{
    union { float f; uint32_t u; } v = { x };
    return (bf16)((v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16);
}

/* exp for x <= 88, inline so that loops vectorise without calls; relative error below 1e-6. */
static inline float quick_exp(float x)
{
    x = x < -87.0f ? -87.0f : x;
    float n = floorf(x * 1.44269504f + 0.5f), r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.0f + r * (1.0f + r * (0.5f + r * (0.16666667f + r * (0.041665795f + r * 0.0083334519f))));
    union { uint32_t u; float f; } v = { (uint32_t)((int32_t)n + 127) << 23 };
    return p * v.f;
}

/* ------------------------------------------------------------------ windows and heads of the encoder */

/* qkv [B][H][W][3][heads][d] -> q, k, v, each [B][H/s][W/s][heads][s*s][d]; to_heads = 0 goes back. H, W multiples of s. */
void split_heads(int B, int H, int W, int s, int heads, int d, bf16 *qkv, bf16 *q, bf16 *k, bf16 *v, int n_parts, int to_heads)
{
    bf16 *part[3] = { q, k, v };
    size_t bytes = (size_t)d * sizeof(bf16);
    for (int b = 0; b < B; b++)
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++) {
                bf16 *token = qkv + ((size_t)(b * H + y) * W + x) * n_parts * heads * d;
                size_t window = ((size_t)b * (H / s) + y / s) * (W / s) + x / s;
                size_t place = (size_t)(y % s) * s + x % s;
                for (int p = 0; p < n_parts; p++)
                    for (int h = 0; h < heads; h++) {
                        bf16 *there = part[p] + ((window * heads + h) * s * s + place) * d;
                        bf16 *here = token + ((size_t)p * heads + h) * d;
                        if (to_heads) memcpy(there, here, bytes);
                        else memcpy(here, there, bytes);
                    }
            }
}

/* scores [n_maps][s*s][s*s] := softmax(scale * scores + rel), rel [n_maps][s*s][2*(2s-1)]: row then column offsets. */
void softmax_rel(long n_maps, int s, float scale, bf16 *scores, const bf16 *rel)
{
    int n = s * s, span = 2 * s - 1;
    float row[4096], bias_w[64];
    for (long m = 0; m < n_maps; m++)
        for (int i = 0; i < n; i++) {
            bf16 *a = scores + ((size_t)m * n + i) * n;
            const bf16 *r = rel + ((size_t)m * n + i) * 2 * span;
            for (int x = 0; x < s; x++) bias_w[x] = wide(r[span + i % s - x + s - 1]);
            float top = -1e30f, sum = 0;
            for (int y = 0; y < s; y++) {
                float bias_h = wide(r[i / s - y + s - 1]);
                for (int x = 0; x < s; x++) row[y * s + x] = wide(a[y * s + x]) * scale + bias_h + bias_w[x];
            }
            for (int j = 0; j < n; j++) top = row[j] > top ? row[j] : top;
            for (int j = 0; j < n; j++) {
                row[j] = quick_exp(row[j] - top);
                sum += row[j];
            }
            float inv = 1.0f / sum;
            for (int j = 0; j < n; j++) a[j] = narrow(row[j] * inv);
        }
}

/* d_probs becomes d(q.k); d_rel is filled (zero where an offset does not occur). */
void softmax_rel_bwd(long n_maps, int s, float scale, const bf16 *probs, bf16 *d_probs, bf16 *d_rel)
{
    int n = s * s, span = 2 * s - 1;
    float p[4096], g[4096], col[64];
    memset(d_rel, 0, (size_t)n_maps * n * 2 * span * sizeof(bf16));
    for (long m = 0; m < n_maps; m++)
        for (int i = 0; i < n; i++) {
            const bf16 *a = probs + ((size_t)m * n + i) * n;
            bf16 *da = d_probs + ((size_t)m * n + i) * n;
            bf16 *dr = d_rel + ((size_t)m * n + i) * 2 * span;
            float dot = 0;
            for (int j = 0; j < n; j++) {
                p[j] = wide(a[j]);
                g[j] = wide(da[j]);
                dot += p[j] * g[j];
            }
            for (int j = 0; j < n; j++) {
                g[j] = p[j] * (g[j] - dot);
                da[j] = narrow(g[j] * scale);
            }
            for (int x = 0; x < s; x++) col[x] = 0;
            for (int y = 0; y < s; y++) {
                float sum = 0;
                for (int x = 0; x < s; x++) {
                    sum += g[y * s + x];
                    col[x] += g[y * s + x];
                }
                dr[i / s - y + s - 1] = narrow(sum);
            }
            for (int x = 0; x < s; x++) dr[span + i % s - x + s - 1] = narrow(col[x]);
        }
}

/* ------------------------------------------------------------------ layer norm and GELU */

/* x [n][c] f32 -> y bf16; stats [n][2] = mean, 1/std. */
void layer_norm(long n, int c, float eps, const float *x, const float *w, const float *b, bf16 *y, float *stats)
{
    for (long i = 0; i < n; i++) {
        const float *r = x + i * c;
        float sum = 0, sq = 0;
        for (int j = 0; j < c; j++) sum += r[j];
        float mean = sum / c;
        for (int j = 0; j < c; j++) sq += (r[j] - mean) * (r[j] - mean);
        float inv = 1.0f / sqrtf(sq / c + eps);
        stats[2 * i] = mean;
        stats[2 * i + 1] = inv;
        for (int j = 0; j < c; j++) y[i * c + j] = narrow((r[j] - mean) * inv * w[j] + b[j]);
    }
}

void layer_norm_bwd(long n, int c, const float *x, const float *w, const float *stats, const bf16 *dy, float *dx, float *dw, float *db)
{
    float g[1024];
    for (long i = 0; i < n; i++) {
        const float *r = x + i * c;
        float mean = stats[2 * i], inv = stats[2 * i + 1], s1 = 0, s2 = 0;
        for (int j = 0; j < c; j++) {
            float d = wide(dy[i * c + j]), hat = (r[j] - mean) * inv;
            dw[j] += d * hat;
            db[j] += d;
            g[j] = d * w[j];
            s1 += g[j];
            s2 += g[j] * hat;
        }
        s1 /= c;
        s2 /= c;
        for (int j = 0; j < c; j++) dx[i * c + j] = inv * (g[j] - s1 - (r[j] - mean) * inv * s2);
    }
}

/* The decoder's grid: y = layer_norm(a + b), a [n_images][n][c] shared by `repeat` prompts, b [n_images*repeat][n][c]. */
void add_norm(long n_images, int repeat, int n, int c, float eps, const bf16 *a, const bf16 *b, const float *w, const float *bias,
              bf16 *y, float *stats)
{
    float r[256];
    for (long p = 0; p < n_images * repeat; p++)
        for (int i = 0; i < n; i++) {
            const bf16 *ra = a + ((size_t)(p / repeat) * n + i) * c, *rb = b + ((size_t)p * n + i) * c;
            size_t at = (size_t)p * n + i;
            float sum = 0, sq = 0;
            for (int j = 0; j < c; j++) {
                r[j] = wide(ra[j]) + wide(rb[j]);
                sum += r[j];
                sq += r[j] * r[j];
            }
            float mean = sum / c, var = sq / c - mean * mean;
            float inv = 1.0f / sqrtf((var > 0 ? var : 0) + eps);
            stats[2 * at] = mean;
            stats[2 * at + 1] = inv;
            for (int j = 0; j < c; j++) y[at * c + j] = narrow((r[j] - mean) * inv * w[j] + bias[j]);
        }
}

/* da (float, zeroed by the caller) sums over the prompts of an image. */
void add_norm_bwd(long n_images, int repeat, int n, int c, const bf16 *a, const bf16 *b, const float *w, const float *stats,
                  const bf16 *dy, float *da, bf16 *db, float *dw, float *dbias)
{
    float g[256], hat[256];
    for (long p = 0; p < n_images * repeat; p++)
        for (int i = 0; i < n; i++) {
            size_t at = (size_t)p * n + i, shared = (size_t)(p / repeat) * n + i;
            const bf16 *ra = a + shared * c, *rb = b + at * c;
            float mean = stats[2 * at], inv = stats[2 * at + 1], s1 = 0, s2 = 0;
            for (int j = 0; j < c; j++) {
                float d = wide(dy[at * c + j]);
                hat[j] = (wide(ra[j]) + wide(rb[j]) - mean) * inv;
                dw[j] += d * hat[j];
                dbias[j] += d;
                g[j] = d * w[j];
                s1 += g[j];
                s2 += g[j] * hat[j];
            }
            s1 /= c;
            s2 /= c;
            for (int j = 0; j < c; j++) {
                float d = inv * (g[j] - s1 - hat[j] * s2);
                da[shared * c + j] += d;
                db[at * c + j] = narrow(d);
            }
        }
}

/* GELU and its derivative share one exponential: erf by Abramowitz and Stegun 7.1.26 (error below 2e-7). */
#define NORMAL_TAIL(gauss, t) \
    (0.5f * (gauss) * (t) * (0.254829592f + (t) * (-0.284496736f + (t) * (1.421413741f + (t) * (-1.453152027f + (t) * 1.061405429f)))))

static inline float gelu1(float x, float *slope)
{
    float gauss = quick_exp(-0.5f * x * x), t = 1.0f / (1.0f + 0.23164189f * fabsf(x)), tail = NORMAL_TAIL(gauss, t);
    float phi = x > 0 ? 1.0f - tail : tail;
    *slope = phi + x * 0.39894228f * gauss;
    return x * phi;
}

void gelu(long n, const bf16 *x, bf16 *y)
{
    for (long i = 0; i < n; i++) {
        float slope;
        y[i] = narrow(gelu1(wide(x[i]), &slope));
    }
}

void gelu_bwd(long n, const bf16 *x, const bf16 *dy, bf16 *dx)
{
    for (long i = 0; i < n; i++) {
        float slope;
        gelu1(wide(x[i]), &slope);
        dx[i] = narrow(wide(dy[i]) * slope);
    }
}

/* sums [c] += the columns of x [n][c]: the gradient of a bias. */
void column_sums(long n, int c, const bf16 *x, float *sums)
{
    for (long i = 0; i < n; i++)
        for (int j = 0; j < c; j++) sums[j] += wide(x[i * c + j]);
}

/* ------------------------------------------------------------------ prompt tokens and the image grid */

enum { MAX_N = 1024, MAX_C = 64, MAX_T = 16, MAX_HEADS = 8 };

/* [n][ld] bf16 -> [c][n] float, and back. */
static void to_planes(int n, int c, int ld, const bf16 *x, float *planes)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < c; j++) planes[(size_t)j * n + i] = wide(x[(size_t)i * ld + j]);
}

static void from_planes(int n, int c, const float *planes, bf16 *x)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < c; j++) x[(size_t)i * c + j] = narrow(planes[(size_t)j * n + i]);
}

/* The three products below have an inner dimension d of 8 in the shipped model: a constant lets the compiler keep the sums
 * over it in registers. `WITH_D(f, ...)` calls f with d = 8 known, or with any d. */
#define WITH_D(f, ...) (d == 8 ? f(__VA_ARGS__, 8) : f(__VA_ARGS__, d))

/* Scores of the tokens against the grid, per head: s[h][t][n] = scale * sum_d tok[t][h,d] * grid[h,d][n]. */
static inline __attribute__((always_inline)) void scores_d(int n, int T, int heads, float scale, const float *restrict tok,
                                                           const float *restrict grid, float *restrict s, const int d)
{
    for (int h = 0; h < heads; h++)
        for (int t = 0; t < T; t++) {
            float *restrict out = s + (size_t)(h * T + t) * n;
            const float *q = tok + (t * heads + h) * d, *g = grid + (size_t)h * d * n;
            for (int i = 0; i < n; i++) {
                float sum = 0;
                for (int k = 0; k < d; k++) sum += q[k] * g[(size_t)k * n + i];
                out[i] = sum * scale;
            }
        }
}

static void token_scores(int n, int T, int heads, int d, float scale, const float *tok, const float *grid, float *s)
{
    WITH_D(scores_d, n, T, heads, scale, tok, grid, s);
}

/* grid[h,d][n] += scale * sum_t s[h][t][n] * tok[t][h,d] */
static inline __attribute__((always_inline)) void spread_t(int n, int heads, int d, float scale, const float *restrict s,
                                                           const float *restrict tok, float *restrict grid, const int T)
{
    for (int h = 0; h < heads; h++)
        for (int k = 0; k < d; k++) {
            float *restrict g = grid + (size_t)(h * d + k) * n;
            const float *a = s + (size_t)h * T * n;
            for (int i = 0; i < n; i++) {
                float sum = 0;
                for (int t = 0; t < T; t++) sum += tok[(t * heads + h) * d + k] * a[(size_t)t * n + i];
                g[i] += sum * scale;
            }
        }
}

static void spread(int n, int T, int heads, int d, float scale, const float *s, const float *tok, float *grid)
{
    if (T == 7) spread_t(n, heads, d, scale, s, tok, grid, 7); /* one point or box: 5 output tokens and 2 more */
    else spread_t(n, heads, d, scale, s, tok, grid, T);
}

/* tok[t][h,d] = scale * sum_n s[h][t][n] * grid[h,d][n] */
static inline __attribute__((always_inline)) void gather_d(int n, int T, int heads, float scale, const float *restrict s,
                                                           const float *restrict grid, float *restrict tok, const int d)
{
    for (int h = 0; h < heads; h++)
        for (int t = 0; t < T; t++) {
            const float *a = s + (size_t)(h * T + t) * n, *g = grid + (size_t)h * d * n;
            for (int k = 0; k + 1 < d; k += 2) {
                float sum = 0, next = 0;
                for (int i = 0; i < n; i++) {
                    sum += a[i] * g[(size_t)k * n + i];
                    next += a[i] * g[(size_t)(k + 1) * n + i];
                }
                tok[(t * heads + h) * d + k] = sum * scale;
                tok[(t * heads + h) * d + k + 1] = next * scale;
            }
        }
}

static void gather(int n, int T, int heads, int d, float scale, const float *s, const float *grid, float *tok)
{
    WITH_D(gather_d, n, T, heads, scale, s, grid, tok);
}

static void softmax_rows(int rows, int n, float *s)
{
    for (int r = 0; r < rows; r++) {
        float *a = s + (size_t)r * n, top = -1e30f, sum = 0;
        for (int i = 0; i < n; i++) top = a[i] > top ? a[i] : top;
        for (int i = 0; i < n; i++) {
            a[i] = quick_exp(a[i] - top);
            sum += a[i];
        }
        float inv = 1.0f / sum;
        for (int i = 0; i < n; i++) a[i] *= inv;
    }
}

static void softmax_tokens(int n, int n_tokens, int heads, float *s)
{
    float top[MAX_N], sum[MAX_N];
    for (int h = 0; h < heads; h++) {
        float *a = s + (size_t)h * n_tokens * n;
        for (int i = 0; i < n; i++) { top[i] = -1e30f; sum[i] = 0; }
        for (int t = 0; t < n_tokens; t++)
            for (int i = 0; i < n; i++) top[i] = a[t * n + i] > top[i] ? a[t * n + i] : top[i];
        for (int t = 0; t < n_tokens; t++)
            for (int i = 0; i < n; i++) {
                a[t * n + i] = quick_exp(a[t * n + i] - top[i]);
                sum[i] += a[t * n + i];
            }
        for (int i = 0; i < n; i++) sum[i] = 1.0f / sum[i];
        for (int t = 0; t < n_tokens; t++)
            for (int i = 0; i < n; i++) a[t * n + i] *= sum[i];
    }
}

typedef struct {
    float a[MAX_C * MAX_N], b[MAX_C * MAX_N], c[MAX_C * MAX_N], e[MAX_C * MAX_N];
    float s[MAX_HEADS * MAX_T * MAX_N], ds[MAX_HEADS * MAX_T * MAX_N];
} Planes;

size_t planes_bytes(void) { return sizeof(Planes); }

/* Tokens ask the grid: q [n_images*repeat][T][c] f32, k, v [n_images][n][ld] bf16 -> out [..][T][c] f32. */
void token_to_grid(Planes *w, long n_images, int repeat, int n, int T, int heads, int d, int ld, const float *q, const bf16 *k, const bf16 *v, float *out)
{
    int c = heads * d;
    float scale = 1.0f / sqrtf((float)d);
    for (long m = 0; m < n_images; m++) {
        to_planes(n, c, ld, k + (size_t)m * n * ld, w->a);
        to_planes(n, c, ld, v + (size_t)m * n * ld, w->b);
        for (int r = 0; r < repeat; r++) {
            size_t p = (size_t)m * repeat + r;
            token_scores(n, T, heads, d, scale, q + p * T * c, w->a, w->s);
            softmax_rows(heads * T, n, w->s);
            gather(n, T, heads, d, 1.0f, w->s, w->b, out + p * T * c);
        }
    }
}

void token_to_grid_bwd(Planes *w, long n_images, int repeat, int n, int T, int heads, int d, int ld, const float *q, const bf16 *k, const bf16 *v,
                       const float *out, const float *dout, float *dq, bf16 *dk, bf16 *dv)
{
    int c = heads * d;
    float scale = 1.0f / sqrtf((float)d);
    for (long m = 0; m < n_images; m++) {
        to_planes(n, c, ld, k + (size_t)m * n * ld, w->a);
        to_planes(n, c, ld, v + (size_t)m * n * ld, w->b);
        memset(w->c, 0, (size_t)c * n * sizeof(float));
        memset(w->e, 0, (size_t)c * n * sizeof(float));
        for (int r = 0; r < repeat; r++) {
            size_t p = ((size_t)m * repeat + r) * T * c;
            token_scores(n, T, heads, d, scale, q + p, w->a, w->s);
            softmax_rows(heads * T, n, w->s);
            spread(n, T, heads, d, 1.0f, w->s, dout + p, w->e);
            token_scores(n, T, heads, d, 1.0f, dout + p, w->b, w->ds);
            for (int h = 0; h < heads; h++)
                for (int t = 0; t < T; t++) {
                    float *s = w->s + (size_t)(h * T + t) * n, *ds = w->ds + (size_t)(h * T + t) * n, dot = 0;
                    for (int j = 0; j < d; j++) dot += dout[p + t * c + h * d + j] * out[p + t * c + h * d + j];
                    for (int i = 0; i < n; i++) ds[i] = s[i] * (ds[i] - dot);
                }
            gather(n, T, heads, d, scale, w->ds, w->a, dq + p);
            spread(n, T, heads, d, scale, w->ds, q + p, w->c);
        }
        from_planes(n, c, w->c, dk + (size_t)m * n * c);
        from_planes(n, c, w->e, dv + (size_t)m * n * c);
    }
}

/* The grid asks the tokens: q [n_images][n][ld] bf16, k, v [n_images*repeat][T][c] f32 -> out [n_images*repeat][n][c] bf16. */
void grid_to_token(Planes *w, long n_images, int repeat, int n, int T, int heads, int d, int ld, const bf16 *q, const float *k, const float *v, bf16 *out)
{
    int c = heads * d;
    float scale = 1.0f / sqrtf((float)d);
    for (long m = 0; m < n_images; m++) {
        to_planes(n, c, ld, q + (size_t)m * n * ld, w->a);
        for (int r = 0; r < repeat; r++) {
            size_t p = (size_t)m * repeat + r;
            token_scores(n, T, heads, d, scale, k + p * T * c, w->a, w->s);
            softmax_tokens(n, T, heads, w->s);
            memset(w->b, 0, (size_t)c * n * sizeof(float));
            spread(n, T, heads, d, 1.0f, w->s, v + p * T * c, w->b);
            from_planes(n, c, w->b, out + p * n * c);
        }
    }
}

void grid_to_token_bwd(Planes *w, long n_images, int repeat, int n, int T, int heads, int d, int ld, const bf16 *q, const float *k, const float *v,
                       const bf16 *dout, bf16 *dq, float *dk, float *dv)
{
    int c = heads * d;
    float scale = 1.0f / sqrtf((float)d), dot[MAX_N];
    for (long m = 0; m < n_images; m++) {
        to_planes(n, c, ld, q + (size_t)m * n * ld, w->a);
        memset(w->c, 0, (size_t)c * n * sizeof(float));
        for (int r = 0; r < repeat; r++) {
            size_t p = (size_t)m * repeat + r;
            const float *kp = k + p * T * c, *vp = v + p * T * c;
            token_scores(n, T, heads, d, scale, kp, w->a, w->s);
            softmax_tokens(n, T, heads, w->s);
            to_planes(n, c, c, dout + p * n * c, w->b);
            gather(n, T, heads, d, 1.0f, w->s, w->b, dv + p * T * c);
            token_scores(n, T, heads, d, 1.0f, vp, w->b, w->ds);
            for (int h = 0; h < heads; h++) {
                float *s = w->s + (size_t)h * T * n, *ds = w->ds + (size_t)h * T * n;
                for (int i = 0; i < n; i++) dot[i] = 0;
                for (int t = 0; t < T; t++)
                    for (int i = 0; i < n; i++) dot[i] += s[t * n + i] * ds[t * n + i];
                for (int t = 0; t < T; t++)
                    for (int i = 0; i < n; i++) ds[t * n + i] = s[t * n + i] * (ds[t * n + i] - dot[i]);
            }
            gather(n, T, heads, d, scale, w->ds, w->a, dk + p * T * c);
            spread(n, T, heads, d, scale, w->ds, kp, w->c);
        }
        from_planes(n, c, w->c, dq + (size_t)m * n * c);
    }
}

/* ------------------------------------------------------------------ mask head */

/* After the first 2x2 transposed convolution (a matrix product, done outside): x [P][n][c1*4], column = channel*4 + s.
 * Here: LayerNorm2d over the c1 channels, GELU, second transposed convolution w2 [c1][c2*4], GELU, masks = hyper . u.
 * masks [P][M][s][e][n]: the finest grid in the order of its two 2x2 refinements; unfold_masks in sam_model.py undoes it. */
enum { LANES = 16, MAX_C1 = 16, MAX_C2 = 8, MAX_M = 4 };

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));

/* One column: 16 grid positions of one prompt at one of the 4 sub-positions s. */
typedef struct {
    vec hat[MAX_C1], g[MAX_C1], g_slope[MAX_C1], u[MAX_C2 * 4], u_slope[MAX_C2 * 4], inv;
} Column;

static inline void gelu_vec(vec *x, vec *slope)
{
    float *v = (float *)x, *d = (float *)slope;
    for (int i = 0; i < LANES; i++) v[i] = gelu1(v[i], &d[i]);
}

static void column_forward(Column *w, int m, int c1, int c2, const bf16 *x, const float *ln_w, const float *ln_b,
                           const float *w2, const float *b2)
{
    vec mean = { 0 }, var = { 0 };
    for (int j = 0; j < c1; j++) {
        float *h = (float *)&w->hat[j];
        for (int i = 0; i < LANES; i++) h[i] = i < m ? wide(x[(size_t)i * c1 * 4 + j * 4]) : 0;
    }
    for (int j = 0; j < c1; j++) mean += w->hat[j];
    mean /= (float)c1;
    for (int j = 0; j < c1; j++) {
        w->hat[j] -= mean;
        var += w->hat[j] * w->hat[j];
    }
    for (int i = 0; i < LANES; i++) w->inv[i] = 1.0f / sqrtf(var[i] / (float)c1 + 1e-6f);
    for (int j = 0; j < c1; j++) {
        w->hat[j] *= w->inv;
        w->g[j] = w->hat[j] * ln_w[j] + ln_b[j];
        gelu_vec(&w->g[j], &w->g_slope[j]);
    }
    for (int o = 0; o < c2 * 4; o += 4) {
        vec zero = { 0 }, a = zero + b2[o / 4], b = a, c = a, d = a;
        for (int j = 0; j < c1; j++) {
            const float *r = w2 + j * c2 * 4 + o;
            a += w->g[j] * r[0];
            b += w->g[j] * r[1];
            c += w->g[j] * r[2];
            d += w->g[j] * r[3];
        }
        w->u[o] = a, w->u[o + 1] = b, w->u[o + 2] = c, w->u[o + 3] = d;
        for (int e = 0; e < 4; e++) gelu_vec(&w->u[o + e], &w->u_slope[o + e]);
    }
}

void mask_head(long P, int n, int c1, int c2, int M, const bf16 *x, const float *ln_w, const float *ln_b, const float *w2, const float *b2,
               const float *hyper, float *masks)
{
    Column w;
    for (long p = 0; p < P; p++)
        for (int s = 0; s < 4; s++)
            for (int i = 0; i < n; i += LANES) {
                int m = n - i < LANES ? n - i : LANES;
                column_forward(&w, m, c1, c2, x + ((size_t)p * n + i) * c1 * 4 + s, ln_w, ln_b, w2, b2);
                for (int k = 0; k < M; k++)
                    for (int e = 0; e < 4; e++) {
                        vec sum = { 0 };
                        for (int c = 0; c < c2; c++) sum += w.u[c * 4 + e] * hyper[(p * M + k) * c2 + c];
                        memcpy(masks + (((size_t)p * M + k) * 16 + s * 4 + e) * n + i, &sum, (size_t)m * sizeof(float));
                    }
            }
}

/* Sums over lanes of the gradients of everything that is shared by the columns. */
typedef struct {
    vec w2[MAX_C1][MAX_C2 * 4], b2[MAX_C2], ln_w[MAX_C1], ln_b[MAX_C1], hyper[MAX_M][MAX_C2];
} HeadGrads;

static float lane_sum(const vec *v)
{
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += (*v)[i];
    return sum;
}

static void column_backward(Column *w, HeadGrads *grads, int m, int c1, int c2, int M, const float *ln_w, const float *w2,
                            const float *hyper, vec dm[MAX_M][4], bf16 *dx)
{
    vec du[MAX_C2 * 4], dhat[MAX_C1], s1 = { 0 }, s2 = { 0 };
    for (int c = 0; c < c2; c++) {
        for (int e = 0; e < 4; e++) {
            vec sum = { 0 };
            for (int k = 0; k < M; k++) sum += dm[k][e] * hyper[k * c2 + c];
            du[c * 4 + e] = sum * w->u_slope[c * 4 + e];
            grads->b2[c] += du[c * 4 + e];
        }
        for (int k = 0; k < M; k++)
            grads->hyper[k][c] += dm[k][0] * w->u[c * 4] + dm[k][1] * w->u[c * 4 + 1] + dm[k][2] * w->u[c * 4 + 2] +
                                  dm[k][3] * w->u[c * 4 + 3];
    }
    for (int j = 0; j < c1; j++) {
        vec a = { 0 }, b = { 0 };
        const float *r = w2 + j * c2 * 4;
        for (int o = 0; o < c2 * 4; o += 2) {
            a += du[o] * r[o];
            b += du[o + 1] * r[o + 1];
            grads->w2[j][o] += du[o] * w->g[j];
            grads->w2[j][o + 1] += du[o + 1] * w->g[j];
        }
        vec d = (a + b) * w->g_slope[j];
        grads->ln_w[j] += d * w->hat[j];
        grads->ln_b[j] += d;
        dhat[j] = d * ln_w[j];
        s1 += dhat[j];
        s2 += dhat[j] * w->hat[j];
    }
    s1 /= (float)c1;
    s2 /= (float)c1;
    for (int j = 0; j < c1; j++) {
        vec d = w->inv * (dhat[j] - s1 - w->hat[j] * s2);
        for (int i = 0; i < m; i++) dx[(size_t)i * c1 * 4 + j * 4] = narrow(d[i]);
    }
}

/* Gradients of the parameters are added up; dx and dhyper are written. */
void mask_head_bwd(long P, int n, int c1, int c2, int M, const bf16 *x, const float *ln_w, const float *ln_b, const float *w2, const float *b2,
                   const float *hyper, const float *dmasks, bf16 *dx, float *dln_w, float *dln_b, float *dw2, float *db2, float *dhyper)
{
    Column w;
    HeadGrads grads;
    memset(&grads, 0, sizeof grads);
    for (long p = 0; p < P; p++) {
        memset(grads.hyper, 0, sizeof grads.hyper);
        for (int s = 0; s < 4; s++)
            for (int i = 0; i < n; i += LANES) {
                int m = n - i < LANES ? n - i : LANES;
                size_t at = ((size_t)p * n + i) * c1 * 4 + s;
                vec dm[MAX_M][4];
                memset(dm, 0, sizeof dm);
                for (int k = 0; k < M; k++)
                    for (int e = 0; e < 4; e++)
                        memcpy(&dm[k][e], dmasks + (((size_t)p * M + k) * 16 + s * 4 + e) * n + i, (size_t)m * sizeof(float));
                column_forward(&w, m, c1, c2, x + at, ln_w, ln_b, w2, b2);
                column_backward(&w, &grads, m, c1, c2, M, ln_w, w2, hyper + p * M * c2, dm, dx + at);
            }
        for (int k = 0; k < M; k++)
            for (int c = 0; c < c2; c++) dhyper[(p * M + k) * c2 + c] = lane_sum(&grads.hyper[k][c]);
    }
    for (int j = 0; j < c1; j++) {
        dln_w[j] += lane_sum(&grads.ln_w[j]);
        dln_b[j] += lane_sum(&grads.ln_b[j]);
        for (int o = 0; o < c2 * 4; o++) dw2[j * c2 * 4 + o] += lane_sum(&grads.w2[j][o]);
    }
    for (int c = 0; c < c2; c++) db2[c] += lane_sum(&grads.b2[c]);
}

/* ------------------------------------------------------------------ sums of the mask losses */

/* For logits x [P][M][n], targets t [P][K][n] u8 (0..255 = coverage), weights w [P][n] u8 (/16; 0 = outside the image, else >= 16): sums [P][M][K][6] over n of
 * w*bce, w*focal, p*t*valid, p*valid, (x>0 & t>.5), (x>0); valid = w > 0, p = sigmoid x, focal with gamma 2. */
void mask_sums(long P, int M, int K, int n, const float *x, const uint8_t *t, const uint8_t *w, float *sums)
{
    for (long p = 0; p < P; p++)
        for (int m = 0; m < M; m++)
            for (int k = 0; k < K; k++) {
                const float *xs = x + ((size_t)p * M + m) * n;
                const uint8_t *ts = t + ((size_t)p * K + k) * n, *ws = w + (size_t)p * n;
                float bce = 0, focal = 0, inter = 0, area = 0, hard_inter = 0, hard = 0;
                for (int i = 0; i < n; i++) {
                    float v = xs[i], y = ts[i] * (1.0f / 255), g = ws[i] * (1.0f / 16), valid = g < 1.0f ? g * 16 : 1.0f;
                    float e = quick_exp(-fabsf(v)), s = 1.0f / (1.0f + e), pr = v > 0 ? s : 1 - s;
                    float loss = (v > 0 ? v : 0) - v * y + logf(1 + e), miss = pr + y - 2 * pr * y;
                    float on = v > 0 ? valid : 0.0f, both = y > 0.5f ? on : 0.0f;
                    bce += g * loss;
                    focal += g * loss * miss * miss;
                    inter += pr * y * valid;
                    area += pr * valid;
                    hard += on;
                    hard_inter += both;
                }
                float *o = sums + (((size_t)p * M + m) * K + k) * 6;
                o[0] = bce; o[1] = focal; o[2] = inter; o[3] = area; o[4] = hard_inter; o[5] = hard;
            }
}

/* dsums [P][M][K][4] (bce, focal, inter, area) -> dx, written. Pairs with all-zero dsums cost nothing. */
void mask_sums_bwd(long P, int M, int K, int n, const float *x, const uint8_t *t, const uint8_t *w, const float *dsums, float *dx)
{
    memset(dx, 0, (size_t)P * M * n * sizeof(float));
    for (long p = 0; p < P; p++)
        for (int m = 0; m < M; m++)
            for (int k = 0; k < K; k++) {
                const float *o = dsums + (((size_t)p * M + m) * K + k) * 4;
                float db = o[0], df = o[1], di = o[2], da = o[3];
                if (db == 0 && df == 0 && di == 0 && da == 0) continue;
                const float *xs = x + ((size_t)p * M + m) * n;
                const uint8_t *ts = t + ((size_t)p * K + k) * n, *ws = w + (size_t)p * n;
                float *ds = dx + ((size_t)p * M + m) * n;
                for (int i = 0; i < n; i++) {
                    float v = xs[i], y = ts[i] * (1.0f / 255), g = ws[i] * (1.0f / 16), valid = g < 1.0f ? g * 16 : 1.0f;
                    float e = quick_exp(-fabsf(v)), s = 1.0f / (1.0f + e), pr = v > 0 ? s : 1 - s, slope = pr * (1 - pr);
                    float loss = (v > 0 ? v : 0) - v * y + logf(1 + e), miss = pr + y - 2 * pr * y;
                    float focal = (pr - y) * miss * miss + loss * 2 * miss * slope * (1 - 2 * y);
                    ds[i] += g * (db * (pr - y) + df * focal) + valid * slope * (di * y + da);
                }
            }
}

/* ------------------------------------------------------------------ targets */

/* ids [8g][8g] (twice the finest grid of 4g), member [A][256] u8: 1 where an id belongs to target a ->
 * targets [A][16 g^2] u8: how much of each fine cell is covered, 0..255, in the folded order of mask_head. */
void fold_targets(int A, int g, const uint16_t *ids, const uint8_t *member, uint8_t *targets)
{
    int side = 8 * g;
    for (int a = 0; a < A; a++)
        for (int y = 0; y < 4 * g; y++)
            for (int x = 0; x < 4 * g; x++) {
                const uint16_t *i = ids + (size_t)2 * y * side + 2 * x;
                const uint8_t *in = member + (size_t)a * 256;
                int inside = in[i[0] & 255] + in[i[1] & 255] + in[i[side] & 255] + in[i[side + 1] & 255];
                int s = (y / 2 % 2) * 2 + x / 2 % 2, e = (y % 2) * 2 + x % 2;
                targets[(((size_t)a * 4 + s) * 4 + e) * g * g + (size_t)(y / 4) * g + x / 4] = (uint8_t)((inside * 255 + 2) / 4);
            }
}

/* weights [16 g^2]: 0 outside the image (h x w pixels of ids), `edge` in cells where ids meet or next to such, else 16. */
void fold_weights(int g, int h, int w, int edge, const uint16_t *ids, uint8_t *weights)
{
    int side = 8 * g;
    for (int y = 0; y < 4 * g; y++)
        for (int x = 0; x < 4 * g; x++) {
            int same = 1, first = ids[(size_t)2 * y * side + 2 * x];
            for (int v = 2 * y - 1; v <= 2 * y + 2; v++)
                for (int u = 2 * x - 1; u <= 2 * x + 2; u++)
                    if (v >= 0 && u >= 0 && v < h && u < w && ids[(size_t)v * side + u] != first) same = 0;
            int s = (y / 2 % 2) * 2 + x / 2 % 2, e = (y % 2) * 2 + x % 2;
            int inside = 2 * y < h && 2 * x < w;
            weights[((size_t)s * 4 + e) * g * g + (size_t)(y / 4) * g + x / 4] = (uint8_t)(inside ? same ? 16 : edge : 0);
        }
}
