/* retrieve.c - the k nearest images of the bank (docs/METHOD.md 2). See bank.h. A heap of k images keeps the
 * cost at one comparison an image for most of a large bank. */
#include "bank/bank.h"

#include <math.h>
#include <stdlib.h>

#include "io/fail.h"
#include "tensor.h"

/* ================================================================================================
 * Nearness of an image: larger is nearer
 * ============================================================================================== */

/* Only the compared data are read from the file: 1.5 KB an image, or, for L2, all features. */
static float nearness(const Bank *bank, const Scene *scene, size_t image)
{
    const size_t C = (size_t)bank->channels, D = (size_t)bank->cls_dim, n = bank_cells(bank) * C;
    switch (bank->options.retrieval) {
    case RETRIEVAL_MEAN:
        return retrieval_cosine(scene->mean_patch, bank->mean_patch + image * C, bank->channels);
    case RETRIEVAL_CLS:
        return retrieval_cosine(scene->cls, bank->cls + image * D, bank->cls_dim);
    default:
        return retrieval_l2(scene->features, bank->features + image * n, n);
    }
}

/* scores [n_images]. A scene whose numbers are not finite is infinitely far from all. */
static void score_images(float *scores, const Bank *bank, const Scene *scene)
{
#pragma omp parallel for if (bank->options.retrieval == RETRIEVAL_L2)
    for (int i = 0; i < bank->n_images; i++) {
        const float score = nearness(bank, scene, (size_t)i);
        scores[i] = isnan(score) ? -INFINITY : score;
    }
}

/* ================================================================================================
 * The k nearest
 * ============================================================================================== */

/* 1 if image a is nearer than image b. Ties go to the lower index. */
static int nearer(const float *scores, int a, int b)
{
    return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
}

static void swap(int *a, int *b)
{
    const int was = *a;
    *a = *b, *b = was;
}

/* found[n] is a heap with the farthest image on top: no image is nearer than its two children 2i+1 and 2i+2,
 * except perhaps found[at]. Sink found[at] to its place. */
static void sink(int *found, int at, int n, const float *scores)
{
    for (int child = 2 * at + 1; child < n; at = child, child = 2 * at + 1) {
        if (child + 1 < n && nearer(scores, found[child], found[child + 1]))
            child++;
        if (!nearer(scores, found[at], found[child]))
            return;
        swap(&found[at], &found[child]);
    }
}

/* 1 if the image may be a reference when `exclude` and its copies are left out. */
static int may_be_found(const Bank *bank, int image, int exclude)
{
    return exclude < 0 || !bank_same_image(bank, image, exclude);
}

/* found [k] = the nearest, best first. Returns their number. */
static int select_nearest(int *found, int k, const Bank *bank, int exclude, const float *scores)
{
    int n = 0, image = 0;
    for (; image < bank->n_images && n < k; image++)
        if (may_be_found(bank, image, exclude))
            found[n++] = image;
    for (int at = n / 2 - 1; at >= 0; at--)
        sink(found, at, n, scores);
    for (; n > 0 && image < bank->n_images; image++)
        if (nearer(scores, image, found[0]) && may_be_found(bank, image, exclude)) {
            found[0] = image;
            sink(found, 0, n, scores);
        }
    for (int last = n - 1; last > 0; last--) { /* the farthest goes to the end, then the next. */
        swap(&found[0], &found[last]);
        sink(found, 0, last, scores);
    }
    return n;
}

int bank_retrieve(const Bank *bank, const Scene *scene, int k, int exclude, int *found, Error *err)
{
    float *scores = aligned_array((size_t)bank->n_images, sizeof *scores);
    if (!scores)
        return fail_memory(err, "retrieval", (size_t)bank->n_images * sizeof *scores);
    score_images(scores, bank, scene);
    const int n = select_nearest(found, k, bank, exclude, scores);
    free(scores);
    return n;
}
