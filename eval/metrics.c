/* eval/metrics.c - see metrics.h. */
#include "metrics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Scored {
    float score;
    int positive;
} Scored;

static int by_score(const void *a, const void *b)
{
    float x = ((const Scored *)a)->score, y = ((const Scored *)b)->score;
    return (x > y) - (x < y);
}

double auroc(const float *negatives, size_t n_negatives, const float *positives, size_t n_positives,
             Error *err)
{
    size_t n = n_negatives + n_positives;
    if (n_negatives == 0 || n_positives == 0)
        return NAN;
    Scored *all = malloc(n * sizeof *all);
    if (!all) {
        fail_memory(err, "an AUROC", n * sizeof *all);
        return NAN;
    }
    int numbers = 1;
    for (size_t i = 0; i < n; i++) {
        all[i] = i < n_negatives ? (Scored){negatives[i], 0} : (Scored){positives[i - n_negatives], 1};
        numbers = numbers && !isnan(all[i].score);
    }
    if (!numbers) {
        free(all);
        return NAN;
    }
    qsort(all, n, sizeof *all, by_score);
    double wins = 0, below = 0;
    for (size_t i = 0; i < n;) { /* groups of equal scores */
        double group[2] = {0, 0};
        size_t j = i;
        for (; j < n && all[j].score == all[i].score; j++)
            group[all[j].positive]++;
        wins += group[1] * (below + group[0] / 2);
        below += group[0];
        i = j;
    }
    free(all);
    return wins / ((double)n_negatives * (double)n_positives);
}

enum { PIXEL_BITS = 22, PIXEL_BINS = 1 << PIXEL_BITS };

struct PixelRoc {
    int not_a_number; /* one came along: the area is not a number either */
    uint64_t count[2][PIXEL_BINS];
};

PixelRoc *pixel_roc_new(Error *err)
{
    PixelRoc *roc = calloc(1, sizeof *roc);
    if (!roc)
        fail_memory(err, "a pixel AUROC", sizeof *roc);
    return roc;
}

/* Bits of a float so that unsigned order is the order of the numbers; -0 is 0. */
static uint32_t ordered_bits(float f)
{
    uint32_t bits;
    f = f == 0 ? 0 : f;
    memcpy(&bits, &f, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

void pixel_roc_add(PixelRoc *roc, const float *map, const uint8_t *truth, size_t n)
{
    for (size_t p = 0; p < n; p++) {
        roc->count[truth && truth[p]][ordered_bits(map[p]) >> (32 - PIXEL_BITS)]++;
        roc->not_a_number |= isnan(map[p]) != 0;
    }
}

double pixel_roc_area(const PixelRoc *roc)
{
    double wins = 0, below = 0, positives = 0;
    for (size_t i = 0; i < PIXEL_BINS; i++) {
        wins += (double)roc->count[1][i] * (below + (double)roc->count[0][i] / 2);
        below += (double)roc->count[0][i];
        positives += (double)roc->count[1][i];
    }
    return below > 0 && positives > 0 && !roc->not_a_number ? wins / (below * positives) : NAN;
}

void pixel_roc_free(PixelRoc *roc)
{
    free(roc);
}
