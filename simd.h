/* simd.h - a vector of floats as wide as the machine's registers, and the few things done with it.
 *
 * The compiler's vector types serve AVX-512, AVX2, NEON and plain SSE from one source: a + b, a * b and
 * a > b work lane by lane. Only the fused multiply-add needs a name of its own, `fmadd`. Included by the
 * files that hold kernels: tensor.c, and where a sum over many channels has a shape of its own (featup.c,
 * amm.c). */
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
typedef float Vec4 __attribute__((vector_size(16)));
typedef int32_t IntVec4 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL                     _Pragma("unroll")
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define UNROLL                     _Pragma("GCC unroll 16")
#define SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, (IntVec4){i, j, k, l})
#endif

INLINE Vec load(const float *p)
{
    Vec v;
    memcpy(&v, p, sizeof v); /* one unaligned load instruction */
    return v;
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

INLINE Vec splat(float x)
{
    return x - (Vec){0};
}

/* a·b + c with one rounding where the machine can: the only thing here that vector types cannot say
 * (ISO C forbids the compiler to contract a*b + c by itself). */
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

/* mask lanes are -1 (take a) or 0 (take b), as vector comparisons yield them. */
INLINE Vec choose(IntVec mask, Vec a, Vec b)
{
    return (Vec)(((IntVec)a & mask) | ((IntVec)b & ~mask));
}

INLINE Vec vec_max(Vec a, Vec b)
{
    return choose(a > b, a, b);
}

/* The sums of lanes 0, 4, 8, ..., of lanes 1, 5, 9, ..., and so on: always added in the same order. */
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

/* Four rows of four become four columns. */
INLINE void transpose4(Vec4 r[4])
{
    Vec4 low01 = SHUFFLE4(r[0], r[1], 0, 4, 1, 5), high01 = SHUFFLE4(r[0], r[1], 2, 6, 3, 7);
    Vec4 low23 = SHUFFLE4(r[2], r[3], 0, 4, 1, 5), high23 = SHUFFLE4(r[2], r[3], 2, 6, 3, 7);
    r[0] = SHUFFLE4(low01, low23, 0, 1, 4, 5);
    r[1] = SHUFFLE4(low01, low23, 2, 3, 6, 7);
    r[2] = SHUFFLE4(high01, high23, 0, 1, 4, 5);
    r[3] = SHUFFLE4(high01, high23, 2, 3, 6, 7);
}

INLINE float max_lanes(Vec v)
{
    float lane[LANES];
    store(lane, v);
    for (int half = LANES / 2; half > 0; half /= 2) /* pairs: short chains of dependent comparisons */
        for (int i = 0; i < half; i++)
            lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    return lane[0];
}

#endif
