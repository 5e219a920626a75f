/* bank.c - what a bank knows of its images, and freeing it. See bank.h. */
#include "bank/bank.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tensor.h"

int bank_objects(const Bank *bank, int image)
{
    return bank->first[image + 1] - bank->first[image];
}

OmmSide bank_side(const Bank *bank, int image)
{
    const size_t first = (size_t)bank->first[image];
    return (OmmSide){bank_objects(bank, image), bank->descriptors + first * (size_t)bank->channels,
                     bank->centroids + 2 * first, bank->areas + first};
}

size_t bank_cells(const Bank *bank)
{
    return (size_t)bank->grid_h * (size_t)bank->grid_w;
}

void bank_features(const Bank *bank, int image, float *features)
{
    size_t C = (size_t)bank->channels, n = bank_cells(bank) * C;
    f16_to_f32_row(features, bank->features + (size_t)image * n, n);
}

void bank_weights(const Bank *bank, int image, float *weights)
{
    size_t n_cells = bank_cells(bank);
    const uint8_t *from = bank->weights + (size_t)bank->first[image] * n_cells;
    for (size_t i = 0; i < (size_t)bank_objects(bank, image) * n_cells; i++)
        weights[i] = (float)from[i] * (1.0f / 255);
}

int bank_same_image(const Bank *b, int i, int j)
{
    const size_t C = (size_t)b->channels, one = bank_cells(b) * C;
    return i == j ||
           (memcmp(b->mean_patch + (size_t)i * C, b->mean_patch + (size_t)j * C, C * sizeof(float)) == 0 &&
            memcmp(b->features + (size_t)i * one, b->features + (size_t)j * one, one * sizeof *b->features) ==
                0);
}

/* The quantile of n unsorted values; sorted [n] is left in order. */
static float quantile_of(float *sorted, const float *values, int n, double q)
{
    memcpy(sorted, values, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_floats);
    return quantile_sorted(sorted, n, q);
}

void bank_thresholds(Bank *b)
{
    b->flag_extra = b->flag_missing = 0;
    b->threshold = NAN;
    if (b->n_loo == 0)
        return;
    b->flag_extra = quantile_of(b->loo_sorted, b->loo_extra, b->n_loo, b->options.flag_quantile);
    b->flag_missing = quantile_of(b->loo_sorted, b->loo_missing, b->n_loo, b->options.flag_quantile);
    b->threshold = quantile_of(b->loo_sorted, b->loo_score, b->n_loo, b->options.threshold_quantile);
}

void bank_uncalibrate(Bank *bank)
{
    dcga_free(&bank->dcga);
    free(bank->owned_descriptors), free(bank->channel_std), free(bank->scale), free(bank->loo_index);
    free(bank->loo_structural), free(bank->loo_logical), free(bank->loo_score), free(bank->loo_sorted);
    free(bank->loo_extra), free(bank->loo_missing);
    bank->loo_extra = bank->loo_missing = NULL;
    bank->descriptors = bank->owned_descriptors = bank->channel_std = bank->scale = NULL;
    bank->loo_structural = bank->loo_logical = bank->loo_score = bank->loo_sorted = NULL;
    bank->loo_index = NULL;
    bank->n_loo = 0;
}

void bank_free(Bank *bank)
{
    bank_uncalibrate(bank);
    if (bank->names && (bank->n_owned || bank->file)) {
        for (int i = 0; i < bank->n_images; i++)
            free(bank->names[i]);
        free(bank->names);
    }
    for (int i = 0; i < bank->n_owned; i++)
        free(bank->owned[i]);
    st_close(bank->file);
    *bank = (Bank){0};
}
