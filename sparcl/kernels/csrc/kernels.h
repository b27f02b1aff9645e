/* Masked convolutions, batch normalization and pooling on activations in blocks of 16 images.
 *
 * An activation is (blocks, channels, rows + 2, columns + 2, 16) floats: 16 images side by side, so that a vector holds
 * the same pixel of several images, and a border of zeros around each plane, so that a padded 3x3 convolution reads
 * without bounds to check. Nobody writes the border. Pointers are 64-byte aligned.
 *
 * Every output has one owner that adds its terms in an order fixed by the shapes: results have the same bits for any
 * number of threads.
 */
#ifndef SPARCL_KERNELS_H
#define SPARCL_KERNELS_H

#include <stdint.h>

#define LANES 16

/* A plane's geometry in floats: distance of rows, of channels, of blocks; the first pixel inside the border. */
#define ROW(columns) (((long)(columns) + 2) * LANES)
#define PLANE(rows, columns) (((long)(rows) + 2) * ROW(columns))
#define ORIGIN(columns) (ROW(columns) + LANES)

typedef struct {
    int32_t offset; /* of the input that the weight meets, from the output's input origin, in floats */
    float value;
} entry;

/* Existing weights by (chunk of input channels, output channel): those of cell i are start[i] .. start[i + 1] - 1. */
typedef struct {
    int32_t outputs, chunks;
    int32_t row, column, rows, columns; /* first output pixel and size of the grid of output pixels */
    int64_t count;
    const int32_t *start;
    entry *entries;
    const int32_t *position; /* of each weight in memory, in floats */
} index_table;

/* What a backward pass needs of a normalized layer: the sums of g and g (y - mean) per block and channel. */
typedef struct {
    const float *z;              /* after ReLU: g is 0 where z is 0; null: z is y[0] * scale + shift before ReLU */
    const float *y[2];           /* convolution outputs normalized by the layer and by its shortcut, or null */
    const float *mean[2];        /* (groups, channels) */
    const float *scale, *shift;
} target;

/* Gather: out = sum over entries of value * in[offset]; one call for every grid of output pixels. */
typedef struct {
    const float *in;
    float *out;
    const index_table *table;
    long in_row, in_block, out_row, out_plane, out_block;
    int32_t in_step, out_step; /* stride of the convolution, of the output grid */
    int32_t blocks, accumulate;
    int32_t sums;              /* 0: none; 1: sums of out and out^2; 2: those of `target`, after masking */
    target after;
    const int32_t *group;      /* (blocks,) group of normalization */
    double *parts;             /* (blocks, slots, outputs, 3) partial sums */
    int32_t slot, slots;
    float *scratch;            /* (threads, scratch_stride) */
    long scratch_stride;
} gather_job;

/* Weight gradient: out[k] = sum over blocks and pixels of g * in[offset k]. */
typedef struct {
    const float *in, *g;
    const index_table *table;
    long in_row, in_block, g_row, g_plane, g_block;
    int32_t in_step, blocks;
    const int32_t *items;      /* (count, 4): outputs from, to, chunks from, to */
    int32_t shares;            /* the blocks are split into that many parts, each with items of its own */
    float *sums;               /* (shares, table->count) */
    float *scratch;
    long scratch_stride;
} weight_job;

/* z = relu(y * scale + shift [+ residual]), residual = r, or r * scale2 + shift2 where scale2 is given. */
typedef struct {
    const float *y, *residual;
    float *z;
    const float *scale, *shift, *scale2, *shift2; /* (groups, channels) */
    const int32_t *group;
    const float *lanes;                           /* (blocks, 16) 1 for an image, 0 for filling */
    int32_t blocks, channels, rows, columns, relu;
} apply_job;

/* gy = c1 * g + c2 * y + c3 */
typedef struct {
    const float *g, *y;
    float *gy;
    const float *c1, *c2, *c3; /* (groups, channels) */
    const int32_t *group;
    const float *lanes;
    int32_t blocks, channels, rows, columns;
} unapply_job;

/* Pooling: 2x2 maximum (window 2), or the mean of the plane (window 0) into features (blocks * 16, channels). */
typedef struct {
    const float *z;
    float *out;
    int32_t blocks, channels, rows, columns;
    /* backward: g of z, masked, with sums */
    const float *g;
    float *gz;
    target after;
    const int32_t *group;
    double *parts;
} pool_job;

typedef void (*job_function)(const void *job, int item, int thread);

/* The loops of one instruction set. */
typedef struct {
    const char *name;
    job_function gather, weight, apply, unapply, mean_forward, mean_backward, max_forward, max_backward;
    int (*gather_items)(const gather_job *job);
    int (*slots)(int rows, int columns);
    int (*chunk)(int inputs, int kernel, int stride, int rows, int columns);
    int tile_blocks;
    job_function peak;
    int vector;
} loops;

extern const loops *const loops_plain, *const loops_avx2, *const loops_avx512; /* null where not compiled */

void parallel_for(job_function function, const void *job, int items, int threads);

#endif
