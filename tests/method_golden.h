/* method_golden.h - shared by the method's tests: tensors of tests/golden/method_*.safetensors
 * (make_golden_method.py) by printf-style names, and comparison with them. A missing tensor fails the test
 * with its name. */
#ifndef SAMLAD_METHOD_GOLDEN_H
#define SAMLAD_METHOD_GOLDEN_H

#include <stdarg.h>

#include "io/safetensors.h"
#include "test.h"

static Safetensors *golden;

static inline int golden_open(const char *name)
{
    char path[256];
    Error err;
    st_close(golden);
    snprintf(path, sizeof path, "tests/golden/%s.safetensors", name);
    golden = st_open(path, &err);
    if (!golden)
        printf("  %s\n", err.message);
    return golden != NULL;
}

static inline const StTensor *golden_tensor(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline const StTensor *golden_tensor(const char *format, ...)
{
    static const StTensor none = {0};
    char name[128];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    const StTensor *t = golden ? st_find(golden, name) : NULL;
    if (!t) {
        printf("  %s is not in the golden file\n", name);
        test_ok = 0;
    }
    return t ? t : &none;
}

/* The numbers of a tensor; the writer of the goldens aligns every one. */
#define GOLDEN_F32(...) ((const float *)golden_tensor(__VA_ARGS__)->data)
#define GOLDEN_I32(...) ((const int *)golden_tensor(__VA_ARGS__)->data)
#define GOLDEN_U8(...)  ((const uint8_t *)golden_tensor(__VA_ARGS__)->data)

static inline void golden_check(const char *file, int line, const float *found, const StTensor *t,
                                double tolerance)
{
    double e = t->dtype == ST_F32 && t->data ? test_relative_error(found, t->data, t->n_elements) : INFINITY;
    if (!(e <= tolerance)) {
        printf("  %s:%d: %s: relative error %g, at most %g\n", file, line, t->name ? t->name : "?", e,
               tolerance);
        test_ok = 0;
    }
}

/* found[] has the tensor's numbers, to `tolerance` of the largest. */
#define CHECK_GOLDEN(found, tolerance, ...)                                                                  \
    golden_check(__FILE__, __LINE__, found, golden_tensor(__VA_ARGS__), tolerance)

static inline void golden_check_ints(const char *file, int line, const int *found, const StTensor *t)
{
    for (size_t i = 0; i < t->n_elements; i++)
        if (!t->data || found[i] != ((const int *)t->data)[i]) {
            printf("  %s:%d: %s[%zu] is %d, expected %d\n", file, line, t->name, i, found[i],
                   t->data ? ((const int *)t->data)[i] : -1);
            test_ok = 0;
            return;
        }
}

#define CHECK_GOLDEN_INTS(found, ...) golden_check_ints(__FILE__, __LINE__, found, golden_tensor(__VA_ARGS__))

#endif
