/* eval/figures.h - the figures of a run, from the records and maps in its folder: the method's, and the same
 * of each baseline. */
#ifndef SAMLAD_EVAL_FIGURES_H
#define SAMLAD_EVAL_FIGURES_H

#include "io/error.h"
#include "eval/baselines.h"
#include "eval/dataset.h"

enum { FIGURES_MAX = DATASET_MAX_KINDS + 16 }; /* one a kind, and the figures over all kinds. */

typedef struct Figure {
    char name[288]; /* "auroc.logical_anomalies", "auroc.all", "auroc.pixels", ... */
    double value;  /* NAN: this data set does not give it. */
    int n;         /* anomalous images in it; 0: does not apply. */
} Figure;

/* The figures of one method. */
typedef struct Figures {
    int n;
    Figure list[FIGURES_MAX];
} Figures;

enum { METHODS_MAX = 1 + BASELINES };
typedef struct CategoryFigures {
    char name[256];
    int n_bank, n_good, n_images;
    int n_methods;                /* 1 when the run has no baselines, else METHODS_MAX. */
    Figures methods[METHODS_MAX]; /* samlad's, then those of the baselines in their order. */
} CategoryFigures;

/* Do the text tables show it? The files have all figures. */
int figure_is_shown(const Figure *figure);
/* The figure's value, or NAN. */
double figure_of(const Figures *figures, const char *name);
const char *method_name(int method); /* "samlad", "position-nn", ... */
/* The name of the image AUROC: for LOCO the mean of both kinds, else that of all anomalies. */
const char *image_figure(const CategoryFigures *c);

/* Measure one category from OUT/records, OUT/anomaly_maps and OUT/baselines. Fails when an image has no
 * record yet. */
int figures_measure(CategoryFigures *measured, DatasetKind kind, const DatasetCategory *category,
                    const char *out, Error *err);
/* The mean over categories of every figure that all of them have. */
void figures_mean(CategoryFigures *mean, const CategoryFigures *categories, int n);

#endif
