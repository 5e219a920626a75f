/* machine.c - the instructions that fast/ is compiled for, and their speed limit. */
#include "fast/bf16.h"
#include "fast/simd.h"

const char *instruction_set(void)
{
#if defined(__AVX512F__)
#ifdef __AVX512BF16__
    return bf16_matrix_unit() ? "AVX-512 with bf16 and AMX" : "AVX-512 with bf16";
#else
    return "AVX-512";
#endif
#elif defined(__AVX2__) && defined(__FMA__)
    return "AVX2";
#elif defined(__ARM_NEON)
    return "NEON";
#else
    return "4-wide vectors";
#endif
}

/* CHAINS independent sums keep every unit busy despite the latency. */
static double fp32_burst(int rounds)
{
    enum { CHAINS = 12 };
    int n_threads = 0;
    float total = 0;
#pragma omp parallel reduction(+ : n_threads, total)
    {
        volatile float factor = 0.999f, term = 1e-3f; /* volatile: otherwise gcc reads them again in the
                                                         loop. */
        Vec sum[CHAINS], a = splat(factor), b = splat(term);
        UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = splat((float)i);
        for (int r = 0; r < rounds; r++)
            UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = fmadd(sum[i], a, b);
        UNROLL for (int i = 0; i < CHAINS; i++) total += sum[i][0];
        n_threads++;
    }
    double gflop = 2e-9 * CHAINS * LANES * (double)rounds * n_threads;
    return total == 12345.0f ? 0 : gflop; /* uses the sums, so that they are computed. */
}

double fma_burst(int rounds, Precision precision)
{
    return precision == PRECISION_BF16 ? bf16_burst(rounds) : fp32_burst(rounds);
}
