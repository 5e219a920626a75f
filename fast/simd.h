/* simd.h - a vector of floats as wide as the machine's registers, and functions of such vectors.
 *
 * The compiler's vector types serve AVX-512, AVX2, NEON and plain SSE from one source. a + b, a * b, and a >
 * b work lane by lane. Five functions need intrinsics: fmadd, vec_max, vec_exp2, load_half, load_fours.
 * Private to fast/. */
#ifndef SAMLAD_SIMD_H
#define SAMLAD_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || (defined(__AVX2__) && defined(__FMA__))
#include <immintrin.h>
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Floats in a register. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__) && defined(__FMA__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t BitsVec __attribute__((vector_size(4 * LANES))); /* for shifts: signed lanes must not be
                                                                     shifted. */
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES))); /* the bits of LANES 16-bit numbers. */
typedef float Vec4 __attribute__((vector_size(16)));
typedef int32_t IntVec4 __attribute__((vector_size(16)));

/* gcc warns that calls with vectors depend on the options where SSE is off. All functions here are inline. */
#if defined(__i386__) && !defined(__SSE__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL                     _Pragma("clang loop unroll(full)")
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define UNROLL                     _Pragma("GCC unroll 16")
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (IntVec4){i, j, k, l})
#endif

/* Every lane is x. Scalars enter vectors only here. C allows float arithmetic to be wider than float (x87,
 * S/390), and then a scalar beside a vector, x + v, does not compile. */
INLINE Vec splat(float x)
{
#if LANES == 16
    return (Vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif LANES == 8
    return (Vec){x, x, x, x, x, x, x, x};
#else
    return (Vec){x, x, x, x};
#endif
}

INLINE Vec load(const float *p)
{
    Vec v;
    memcpy(&v, p, sizeof v); /* one unaligned load instruction. */
    return v;
}

/* LANES float16 at p, exactly. The caller excludes infinities and NaNs. When a float16's bits are moved to a
 * float32's, the exponent is short of 112 = 127 - 15. */
INLINE Vec load_half(const uint16_t *p)
{
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
#else
    HalfVec half;
    memcpy(&half, p, sizeof half);
    IntVec bits = __builtin_convertvector(half, IntVec), magnitude = (bits & 0x7fff) << 13; /* < 2^28 */
    Vec value = (Vec)magnitude * splat(0x1p112f);
    return (Vec)((BitsVec)value | ((BitsVec)bits & 0x8000) << 16);
#endif
}

/* The first n < LANES of them; the other lanes are zero. */
INLINE Vec load_half_part(const uint16_t *p, size_t n)
{
    uint16_t half[LANES] = {0};
    memcpy(half, p, n * sizeof *p);
    return load_half(half);
}

INLINE void store(float *p, Vec v)
{
    memcpy(p, &v, sizeof v);
}

/* The first n < LANES floats at p; the other lanes are zero. */
INLINE Vec load_part(const float *p, size_t n)
{
    Vec v = {0};
    memcpy(&v, p, n * sizeof *p);
    return v;
}

INLINE void store_part(float *p, Vec v, size_t n)
{
    memcpy(p, &v, n * sizeof *p);
}

/* a·b + c, with one rounding if the machine can do so. Vector types cannot express it, and the Makefile
 * forbids compilers to contract a*b + c by themselves. */
INLINE Vec fmadd(Vec a, Vec b, Vec c)
{
#if defined(__AVX512F__)
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* Lanes of mask are -1 (take a) or 0 (take b), the results of vector comparisons. */
INLINE Vec choose(IntVec mask, Vec a, Vec b)
{
    return (Vec)(((IntVec)a & mask) | ((IntVec)b & ~mask));
}

/* a > b ? a : b, lane by lane. This is one instruction, which compilers do not make of `choose`. */
INLINE Vec vec_max(Vec a, Vec b)
{
#if defined(__AVX512F__)
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__) && defined(__FMA__)
    return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return choose(a > b, a, b);
#endif
}

/* The sums of lanes 0, 4, 8, ..., of lanes 1, 5, 9, ..., and so on. The order of the additions is fixed. */
INLINE Vec4 fold_lanes(Vec v)
{
    Vec4 part[LANES / 4];
    memcpy(part, &v, sizeof v);
    for (int half = LANES / 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            part[i] += part[i + half];
    return part[0];
}

INLINE float sum_lanes(Vec v)
{
    Vec4 s = fold_lanes(v);
    s += SHUFFLE4(s, s, 2, 3, 0, 1);
    return s[0] + s[1];
}

/* In every four lanes, four rows of four become four columns. SHUFFLE picks lanes of two vectors. */
#define TRANSPOSE(TYPE, SHUFFLE, r)                                                                          \
    do {                                                                                                     \
        TYPE low01 = SHUFFLE(r[0], r[1], 0, 4, 1, 5), high01 = SHUFFLE(r[0], r[1], 2, 6, 3, 7);              \
        TYPE low23 = SHUFFLE(r[2], r[3], 0, 4, 1, 5), high23 = SHUFFLE(r[2], r[3], 2, 6, 3, 7);              \
        r[0] = SHUFFLE(low01, low23, 0, 1, 4, 5);                                                            \
        r[1] = SHUFFLE(low01, low23, 2, 3, 6, 7);                                                            \
        r[2] = SHUFFLE(high01, high23, 0, 1, 4, 5);                                                          \
        r[3] = SHUFFLE(high01, high23, 2, 3, 6, 7);                                                          \
    } while (0)

INLINE void transpose4(Vec4 r[4])
{
    TRANSPOSE(Vec4, SHUFFLE4, r);
}

/* SHUFFLE4 in every four lanes: 0 .. 3 are those of a, 4 .. 7 those of b. */
#define LANE(q, i)            (4 * (q) + (i) % 4 + (i) / 4 * LANES)
#define SQUARE(q, i, j, k, l) LANE(q, i), LANE(q, j), LANE(q, k), LANE(q, l)
#if LANES == 16
#define SQUARES(i, j, k, l)                                                                                  \
    SQUARE(0, i, j, k, l), SQUARE(1, i, j, k, l), SQUARE(2, i, j, k, l), SQUARE(3, i, j, k, l)
#elif LANES == 8
#define SQUARES(i, j, k, l) SQUARE(0, i, j, k, l), SQUARE(1, i, j, k, l)
#else
#define SQUARES(i, j, k, l) SQUARE(0, i, j, k, l)
#endif
#ifdef __clang__
#define SHUFFLE_SQUARES(a, b, i, j, k, l) __builtin_shufflevector(a, b, SQUARES(i, j, k, l))
#else
#define SHUFFLE_SQUARES(a, b, i, j, k, l) __builtin_shuffle(a, b, (IntVec){SQUARES(i, j, k, l)})
#endif

/* In: four numbers of row 4·q + i in lanes 4·q .. 4·q + 3 of r[i]. Out: number j of all LANES rows in
 * r[j]. */
INLINE void transpose_squares(Vec r[4])
{
    TRANSPOSE(Vec, SHUFFLE_SQUARES, r);
}

/* Four floats at row[0] + p, at row[4] + p, at row[8] + p, ... */
INLINE Vec load_fours(const float *const *row, ptrdiff_t p)
{
#if defined(__AVX512F__) /* otherwise gcc takes them through the stack. */
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(row[0] + p));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(row[4] + p), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(row[8] + p), 2);
    return (Vec)_mm512_insertf32x4(v, _mm_loadu_ps(row[12] + p), 3);
#elif LANES == 8
    __m256 v = _mm256_castps128_ps256(_mm_loadu_ps(row[0] + p));
    return (Vec)_mm256_insertf128_ps(v, _mm_loadu_ps(row[4] + p), 1);
#else
    return load(row[0] + p);
#endif
}

/* to[n][LANES], `ld` apart: LANES rows of n numbers become columns. The numbers are only moved, so they may
 * be any 32 bits. */
INLINE void rows_to_columns(float *to, ptrdiff_t ld, const float *const row[LANES], int n)
{
    int p = 0;
    for (; p + 4 <= n; p += 4, to += 4 * ld) {
        Vec r[4];
        UNROLL for (int i = 0; i < 4; i++) r[i] = load_fours(row + i, p);
        transpose_squares(r);
        UNROLL for (int i = 0; i < 4; i++) store(to + i * ld, r[i]);
    }
    for (; p < n; p++, to += ld)
        for (int i = 0; i < LANES; i++)
            memcpy(to + i, row[i] + p, sizeof *to);
}

INLINE Vec4 max4(Vec4 a, Vec4 b)
{
    IntVec4 larger = a > b;
    return (Vec4)(((IntVec4)a & larger) | ((IntVec4)b & ~larger));
}

INLINE float max_lanes(Vec v)
{
    Vec4 part[LANES / 4];
    memcpy(part, &v, sizeof v);
    for (int half = LANES / 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            part[i] = max4(part[i], part[i + half]);
    Vec4 m = max4(part[0], SHUFFLE4(part[0], part[0], 2, 3, 0, 1));
    return m[0] > m[1] ? m[0] : m[1];
}

/* ---- functions of vectors ----------------------------------------------------------------------*/

/* e^x within 2 ulp: x = n·ln2 + r with |r| <= ln2/2, e^x = 2^n·e^r, e^r by its Taylor series to r^7/5040.
 * Adding 1.5·2^23 rounds n to an integer and leaves it in the low bits. Above 88 it saturates. Below -87,
 * where floats are subnormal, it is zero. */
INLINE Vec vec_exp(Vec x)
{
    const Vec magic = splat(12582912.0f);
    Vec too_small = (Vec)(x < splat(-87.0f));
    Vec clamped = choose(x > splat(88.0f), splat(88.0f), x);
    clamped = choose((IntVec)too_small, splat(-87.0f), clamped);
    Vec t = fmadd(clamped, splat(1.44269504f), magic);
    Vec n = t - magic;
    Vec r = fmadd(n, splat(-0.693145752f), clamped); /* ln2 in two parts, the first with few bits, */
    r = fmadd(n, splat(-1.42860677e-6f), r);         /* so that n times it is exact. */
    Vec p = splat(1.0f / 5040);
    p = fmadd(p, r, splat(1.0f / 720));
    p = fmadd(p, r, splat(1.0f / 120));
    p = fmadd(p, r, splat(1.0f / 24));
    p = fmadd(p, r, splat(1.0f / 6));
    p = fmadd(p, r, splat(0.5f));
    p = fmadd(p, r, splat(1.0f));
    p = fmadd(p, r, splat(1.0f));
    BitsVec power = ((BitsVec)t - (BitsVec)magic + 127) << 23; /* the bits of 2^n. */
    return choose((IntVec)too_small, splat(0.0f), p * (Vec)power);
}

/* 2^x for x <= 0, for softmaxes, within 2 ulp. x = n + f for an integer n; 2^f by the polynomial of degree 6
 * with the least maximum relative error (2e-9). Below -126 it stays 2^-126. Subnormal numbers would be slow,
 * and 2^-126 is nothing beside the largest term of a softmax, 1. AVX-512 has an instruction for x minus its
 * floor, so that 0 <= f < 1. It has another for p·2^n, which finds n itself. Elsewhere n is the nearest
 * integer, |f| <= 1/2, and is added to the exponent. */
INLINE Vec vec_exp2(Vec x)
{
    x = vec_max(splat(-126.0f), x); /* in this order a NaN stays one. */
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    Vec f = (Vec)_mm512_reduce_ps((__m512)x, 1); /* 1: subtract its floor. */
    Vec p = splat(2.170225551e-04f);
    p = fmadd(p, f, splat(1.243968790e-03f));
    p = fmadd(p, f, splat(9.678840977e-03f));
    p = fmadd(p, f, splat(5.548334200e-02f));
    p = fmadd(p, f, splat(2.402298363e-01f));
    p = fmadd(p, f, splat(6.931469838e-01f));
    p = fmadd(p, f, splat(1.0f));
    return (Vec)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    const Vec magic = splat(12582912.0f); /* as in vec_exp */
    Vec t = x + magic, f = x - (t - magic);
    Vec p = splat(1.534581097e-04f);
    p = fmadd(p, f, splat(1.339993090e-03f));
    p = fmadd(p, f, splat(9.618489072e-03f));
    p = fmadd(p, f, splat(5.550328642e-02f));
    p = fmadd(p, f, splat(2.402264625e-01f));
    p = fmadd(p, f, splat(6.931471825e-01f));
    p = fmadd(p, f, splat(1.0f));
    return (Vec)((BitsVec)p + ((BitsVec)t << 23));
#endif
}

/* erf(z) = z·P(z²)/Q(z²) for |z| < 3.95, ±1 beyond (there 1 - |erf| < 2.4e-8). P and Q have the least maximum
 * relative error (2e-8) on this interval, found by reweighted least squares. In float the error is below
 * 4e-7. */
INLINE Vec vec_erf(Vec z)
{
    Vec t = z * z;
    Vec p = splat(2.025844474e-06f);
    p = fmadd(p, t, splat(2.846244930e-04f));
    p = fmadd(p, t, splat(3.806482759e-03f));
    p = fmadd(p, t, splat(5.287014567e-02f));
    p = fmadd(p, t, splat(1.915148046e-01f));
    p = fmadd(p, t, splat(1.128379144e+00f));
    Vec q = splat(3.782783732e-05f);
    q = fmadd(q, t, splat(1.170271814e-03f));
    q = fmadd(q, t, splat(1.505173442e-02f));
    q = fmadd(q, t, splat(1.145444036e-01f));
    q = fmadd(q, t, splat(5.030582609e-01f));
    q = fmadd(q, t, splat(1.0f));
    Vec inside = z * p / q;
    Vec result = choose(z >= splat(3.95f), splat(1.0f), inside);
    return choose(z <= splat(-3.95f), splat(-1.0f), result);
}

INLINE Vec vec_sigmoid(Vec x)
{
    return splat(1.0f) / (splat(1.0f) + vec_exp(-x));
}

INLINE Vec vec_gelu(Vec x)
{
    return splat(0.5f) * x * (splat(1.0f) + vec_erf(x * splat(0.707106781f)));
}

#endif
