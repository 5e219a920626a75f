/* test.h - shared by every test_*.c.
 *
 * A test file holds functions of CHECKs. It calls them with RUN, and ends with `return test_summary();`. That
 * prints "N passed, N failed" and gives a non-zero status if one failed. A function counts once: as passed if
 * all its checks held, as skipped if it said SKIP. */
#ifndef SAMLAD_TEST_H
#define SAMLAD_TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_n_passed, test_n_failed, test_n_skipped;
static int test_ok, test_was_skipped;

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            printf("  %s:%d: CHECK(%s) does not hold\n", __FILE__, __LINE__, #condition);                    \
            test_ok = 0;                                                                                     \
        }                                                                                                    \
    } while (0)

/* CHECK with a printf-style message. */
#define CHECK_MSG(condition, ...)                                                                            \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            printf("  %s:%d: ", __FILE__, __LINE__);                                                         \
            printf(__VA_ARGS__);                                                                             \
            printf("\n");                                                                                    \
            test_ok = 0;                                                                                     \
        }                                                                                                    \
    } while (0)

/* Stop this test function if the condition does not hold, because the code behind it would crash. */
#define REQUIRE(condition)                                                                                   \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            printf("  %s:%d: REQUIRE(%s) does not hold\n", __FILE__, __LINE__, #condition);                  \
            test_ok = 0;                                                                                     \
            return;                                                                                          \
        }                                                                                                    \
    } while (0)

/* Leave this test function and say what is missing. */
#define SKIP(reason)                                                                                         \
    do {                                                                                                     \
        printf("  skipped: %s\n", reason);                                                                   \
        test_was_skipped = 1;                                                                                \
        return;                                                                                              \
    } while (0)

#define RUN(function)                                                                                        \
    do {                                                                                                     \
        test_ok = 1;                                                                                         \
        test_was_skipped = 0;                                                                                \
        function();                                                                                          \
        const char *verdict = !test_ok ? "FAILED" : test_was_skipped ? "skipped" : "ok";                     \
        printf("%-7s %s\n", verdict, #function);                                                             \
        if (!test_ok)                                                                                        \
            test_n_failed++;                                                                                 \
        else if (test_was_skipped)                                                                           \
            test_n_skipped++;                                                                                \
        else                                                                                                 \
            test_n_passed++;                                                                                 \
        fflush(stdout);                                                                                      \
    } while (0)

/* Largest |a-b| divided by the largest |b|: the project's measure of parity. */
static inline double test_relative_error(const float *a, const float *b, size_t n)
{
    double worst = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst))
            worst = d; /* a NaN is the largest difference */
        if (fabs((double)b[i]) > scale)
            scale = fabs((double)b[i]);
    }
    return scale > 0 ? worst / scale : worst;
}

/* The folder of real test data, or NULL (then say SKIP). */
static inline const char *test_data_dir(void)
{
    const char *dir = getenv("SAMLAD_DATA");
    return dir && *dir ? dir : NULL;
}

static inline int test_summary(void)
{
    printf("%d passed, %d failed, %d skipped\n", test_n_passed, test_n_failed, test_n_skipped);
    return test_n_failed != 0;
}

#endif
