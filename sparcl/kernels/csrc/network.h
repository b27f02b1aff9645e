/* Interface of the library: what Python calls. */
#ifndef SPARCL_NETWORK_H
#define SPARCL_NETWORK_H

#include "kernels.h"

/* Indices of one convolution's mask: where its weights act, forward, backward, and in the weight gradient. */
typedef struct {
    index_table forward, backward[4];
    int32_t classes; /* grids of input pixels: 1, or 4 (even and odd rows and columns) with stride 2 */
    int32_t items_count, *items;
    int64_t item_entries; /* most entries of an item */
    int32_t *sorted;      /* existing weights in memory, in floats, ascending */
    int64_t count;
} layer_index;

/* A convolution, its batch normalization and what follows; buffers are offsets in floats into two areas. */
typedef struct {
    int32_t source;   /* layer whose output it reads; -1: the images */
    int32_t residual; /* layer whose output is added before ReLU, or -1 */
    int32_t shortcut; /* layer whose normalized convolution is added before ReLU, or -1 */
    int32_t user;     /* layer that adds this one as its shortcut, or -1 */
    int32_t inputs, outputs, kernel, stride, in_rows, in_columns, rows, columns;
    int32_t relu, pool; /* pool: 1: followed by 2x2 maximum; 2: by the mean of the plane */
    int32_t accumulate; /* backward: the input's gradient is added to what its buffer holds */
    int32_t final;      /* backward: no other layer adds to the input's gradient */
    int32_t training;   /* normalize by the statistics of the groups */
    float eps, momentum;
    int64_t y, z, pooled, statistics; /* in the saved area; statistics: (4, groups, outputs) mean, var, scale, shift */
    int64_t gz, gy, gpooled;          /* in the work area */
    const layer_index *index;         /* of the existing weights */
    const layer_index *gradient_index;
    const float *weight, *gamma, *beta;
    float *running_mean, *running_var;
    int64_t *batches; /* running statistics; null: none */
    float *weight_gradient, *gamma_gradient, *beta_gradient; /* null: not wanted */
} layer;

typedef struct {
    layer *layers;
    int32_t count, blocks, groups, threads;
    int32_t first; /* backward: the first layer with a gradient */
    int32_t add;   /* backward: add to the gradients rather than overwrite them */
    const int32_t *group;       /* (blocks,) */
    const int32_t *group_sizes; /* (groups,) images */
    const float *lanes;         /* (blocks, 16) */
    float *saved, *work;
    double *parts;
    float *scratch, *sums;
    int64_t images, scratch_stride; /* images: offset in the saved area */
} network;

#endif
