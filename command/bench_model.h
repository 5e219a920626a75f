/* command/bench_model.h - models of the published sizes with random weights, made in memory. `samlad
 * bench` uses them when no file is given. The loader that opens files opens these weights too. */
#ifndef SAMLAD_BENCH_MODEL_H
#define SAMLAD_BENCH_MODEL_H

#include "io/safetensors.h"

/* The sizes that decide the cost of a model; the rest is as published. */
typedef struct SamSizes {
    int embed_dim, depth, n_heads;
    const char *global_blocks; /* "2,5,8,11" */
} SamSizes;

typedef struct BenchModel {
    Safetensors *weights;
    void *memory; /* the bytes behind `weights`. */
} BenchModel;

/* Segment Anything at 1,024 pixels, patches of 16, windows of 14, with the official decoder. `blank`: all
 * weights are zero. They take address space, but no memory until somebody writes to them. */
int bench_model_sam(BenchModel *model, const SamSizes *sizes, int blank, Error *err);
/* MobileSAM: TinyViT at 1,024 pixels, the official decoder. */
int bench_model_mobile_sam(BenchModel *model, Error *err);
/* DINOv2 ViT-S/14 without registers, trained at 518 pixels. */
int bench_model_dinov2_s(BenchModel *model, Error *err);
/* FeatUp's stack of four stages. */
int bench_model_featup(BenchModel *model, Error *err);
void bench_model_free(BenchModel *model);

/* n uniform random numbers of the given mean and standard deviation. The same seed gives the same numbers. */
void random_floats(float *x, size_t n, float mean, float deviation, uint64_t seed);

#endif
