/* The loops, compiled once per instruction set. The including file defines VL, the floats of a vector; TILE, the
 * accumulators that its registers hold; CACHE, the bytes of input that stay in its first-level cache; NAME(x), the names' suffix. */

#include <string.h>

#include "kernels.h"

typedef float vec __attribute__((vector_size(VL * 4)));
typedef int32_t ivec __attribute__((vector_size(VL * 4)));

#define INLINE static inline __attribute__((always_inline))
#define PARTS (LANES / VL)
#define LOAD(p) (*(const vec *)(p))
#define STORE(p, v) (*(vec *)(p) = (v))
#define UNROLL _Pragma("GCC unroll 32")
#define POSITIVE(v, z) ((vec)((ivec)(v) & ((z) > 0.0f)))

/* ReLU; what is not a number stays so, for the loss to tell. */
INLINE vec rectified(vec v) { return (vec)((ivec)v & ~(v <= 0.0f)); }

INLINE vec maximum(vec a, vec b) {
    ivec smaller = a <= b;
    return (vec)(((ivec)b & smaller) | ((ivec)a & ~smaller));
}

INLINE double sum_lanes(const float *lanes) {
    float eight[8], four[4];
    for (int i = 0; i < 8; i++) eight[i] = lanes[i] + lanes[i + 8];
    for (int i = 0; i < 4; i++) four[i] = eight[i] + eight[i + 4];
    return ((double)four[0] + four[2]) + ((double)four[1] + four[3]);
}

/* -- tiles: TB blocks x TR rows x TC columns of output pixels, at most TILE in all ---------------------------------- */

typedef struct {
    const float *in;  /* of the tile's first pixel */
    long pixel;       /* the tile's first pixel in out, z, y: offset in floats */
    int block, from, to; /* output channels */
    float *scratch, *sums; /* of these channels: partial results, sums (TB, 3, channels, 16) */
} tile;

INLINE void gather_tile(const int S, const int TB, const int TR, const int TC, const gather_job *job, const tile *t) {
    const index_table *table = job->table;
    const int outputs = table->outputs, chunks = table->chunks, channels = t->to - t->from;
    const int32_t *start = table->start;
    const entry *entries = table->entries;
    const long row = job->in_row * S, block = job->in_block;
    const long out_row = job->out_row * job->out_step, out_column = (long)job->out_step * LANES;
    for (int c = 0; c < chunks; c++) {
        const int first = c == 0, last = c == chunks - 1;
        for (int part = 0; part < PARTS; part++) {
            const float *in = t->in + part * VL;
            vec *scratch = (vec *)t->scratch + (long)part * channels * TB * TR * TC;
            for (int o = t->from; o < t->to; o++, scratch += TB * TR * TC) {
                int k = start[c * outputs + o];
                const int end = start[c * outputs + o + 1];
                if (k == end && !first && !last) continue;
                vec a[TILE];
                float *out = job->out + o * job->out_plane + t->pixel + part * VL;
                if (first && !job->accumulate) {
                    UNROLL for (int i = 0; i < TB * TR * TC; i++) a[i] = (vec){0};
                } else if (first) {
                    UNROLL for (int b = 0; b < TB; b++)
                        UNROLL for (int r = 0; r < TR; r++)
                            UNROLL for (int i = 0; i < TC; i++)
                                a[(b * TR + r) * TC + i] = LOAD(out + b * job->out_block + r * out_row + i * out_column);
                } else {
                    UNROLL for (int i = 0; i < TB * TR * TC; i++) a[i] = scratch[i];
                }
                for (; k < end; k++) {
                    const float value = entries[k].value;
                    const float *p = in + entries[k].offset;
                    UNROLL for (int b = 0; b < TB; b++)
                        UNROLL for (int r = 0; r < TR; r++)
                            UNROLL for (int i = 0; i < TC; i++)
                                a[(b * TR + r) * TC + i] += value * LOAD(p + b * block + r * row + i * S * LANES);
                }
                if (!last) {
                    UNROLL for (int i = 0; i < TB * TR * TC; i++) scratch[i] = a[i];
                    continue;
                }
                UNROLL for (int b = 0; b < TB; b++) {
                    vec sum = {0}, first_sum = {0}, second_sum = {0};
                    if (job->sums == 1) {
                        UNROLL for (int i = 0; i < TR * TC; i++) {
                            sum += a[b * TR * TC + i];
                            first_sum += a[b * TR * TC + i] * a[b * TR * TC + i];
                        }
                    } else if (job->sums == 2) {
                        const target *after = &job->after;
                        const long at = o * job->out_plane + t->pixel + part * VL + b * job->out_block;
                        const int cell = job->group[t->block + b] * outputs + o;
                        const float mean = after->mean[0][cell];
                        const float scale = after->z ? 0 : after->scale[cell];
                        const float shift = after->z ? 0 : after->shift[cell];
                        const float mean2 = after->y[1] ? after->mean[1][cell] : 0;
                        UNROLL for (int r = 0; r < TR; r++)
                            UNROLL for (int i = 0; i < TC; i++) {
                                const long pixel = at + r * out_row + i * out_column;
                                const vec y = LOAD(after->y[0] + pixel);
                                vec v = a[(b * TR + r) * TC + i];
                                v = POSITIVE(v, after->z ? LOAD(after->z + pixel) : y * scale + shift);
                                a[(b * TR + r) * TC + i] = v;
                                sum += v;
                                first_sum += v * (y - mean);
                                if (after->y[1]) second_sum += v * (LOAD(after->y[1] + pixel) - mean2);
                            }
                    }
                    if (job->sums) {
                        float *sums = t->sums + ((long)b * 3 * channels + o - t->from) * LANES + part * VL;
                        STORE(sums, LOAD(sums) + sum);
                        STORE(sums + (long)channels * LANES, LOAD(sums + (long)channels * LANES) + first_sum);
                        if (job->sums == 2 && job->after.y[1])
                            STORE(sums + 2L * channels * LANES, LOAD(sums + 2L * channels * LANES) + second_sum);
                    }
                    UNROLL for (int r = 0; r < TR; r++)
                        UNROLL for (int i = 0; i < TC; i++)
                            STORE(out + b * job->out_block + r * out_row + i * out_column, a[(b * TR + r) * TC + i]);
                }
            }
        }
    }
}

typedef struct {
    const float *in, *g; /* of the tile's first pixel */
    float *sums;         /* (entries of the item, VL) */
} weight_tile;

INLINE void weight_gradient_tile(const int S, const int TB, const int TR, const int TC, const weight_job *job,
                                 const int32_t *item, const weight_tile *t) {
    const index_table *table = job->table;
    const int outputs = table->outputs;
    const entry *entries = table->entries;
    const long row = job->in_row * S, block = job->in_block;
    for (int part = 0; part < PARTS; part++) {
        vec *sums = (vec *)t->sums;
        const float *in = t->in + part * VL;
        for (int c = item[2]; c < item[3]; c++) {
            for (int o = item[0]; o < item[1]; o++) {
                int k = table->start[c * outputs + o];
                const int end = table->start[c * outputs + o + 1];
                if (k == end) continue;
                const float *from = t->g + o * job->g_plane + part * VL;
                vec g[TILE];
                UNROLL for (int b = 0; b < TB; b++)
                    UNROLL for (int r = 0; r < TR; r++)
                        UNROLL for (int i = 0; i < TC; i++)
                            g[(b * TR + r) * TC + i] = LOAD(from + b * job->g_block + r * job->g_row + i * LANES);
                for (; k < end; k++, sums++) {
                    const float *p = in + entries[k].offset;
                    vec even = *sums, odd = {0};
                    UNROLL for (int b = 0; b < TB; b++)
                        UNROLL for (int r = 0; r < TR; r++)
                            UNROLL for (int i = 0; i < TC; i++) {
                                if (((b * TR + r) * TC + i) % 2)
                                    odd += g[(b * TR + r) * TC + i] * LOAD(p + b * block + r * row + i * S * LANES);
                                else
                                    even += g[(b * TR + r) * TC + i] * LOAD(p + b * block + r * row + i * S * LANES);
                            }
                    *sums = TB * TR * TC > 1 ? even + odd : even;
                }
            }
        }
    }
}

/* One function per shape of a tile and stride. */
#define SHAPES(X, S)                                                                                                  \
    X(S, 1, 1, 1) X(S, 1, 1, 2) X(S, 1, 1, 4) X(S, 1, 2, 1) X(S, 1, 2, 2) X(S, 1, 2, 4) X(S, 1, 4, 1) X(S, 1, 4, 2)   \
    X(S, 1, 1, 8) X(S, 2, 2, 2) X(S, 2, 1, 1) X(S, 2, 1, 2) X(S, 2, 2, 1)                                             \
    WIDE(X, S)
#if TILE >= 16
#define WIDE(X, S) X(S, 1, 4, 4) X(S, 1, 2, 8) X(S, 4, 2, 2) X(S, 4, 1, 1) X(S, 4, 1, 2) X(S, 4, 2, 1)
#define MAX_BLOCKS 4
#else
#define WIDE(X, S)
#define MAX_BLOCKS 2
#endif

#define DEFINE(S, TB, TR, TC)                                                                                         \
    static __attribute__((noinline)) void gather_##S##_##TB##_##TR##_##TC(const gather_job *job, const tile *t) {     \
        gather_tile(S, TB, TR, TC, job, t);                                                                           \
    }                                                                                                                 \
    static __attribute__((noinline)) void weight_##S##_##TB##_##TR##_##TC(                                            \
        const weight_job *job, const int32_t *item, const weight_tile *t) {                                           \
        weight_gradient_tile(S, TB, TR, TC, job, item, t);                                                            \
    }
SHAPES(DEFINE, 1)
SHAPES(DEFINE, 2)

typedef void (*gather_function)(const gather_job *, const tile *);
typedef void (*weight_function)(const weight_job *, const int32_t *, const weight_tile *);
#define INDEX(n) ((n) == 8 ? 3 : (n) == 4 ? 2 : (n) - 1)
#define GATHER_ENTRY(S, TB, TR, TC) [S - 1][INDEX(TB)][INDEX(TR)][INDEX(TC)] = gather_##S##_##TB##_##TR##_##TC,
#define WEIGHT_ENTRY(S, TB, TR, TC) [S - 1][INDEX(TB)][INDEX(TR)][INDEX(TC)] = weight_##S##_##TB##_##TR##_##TC,
static const gather_function gathers[2][3][4][4] = {SHAPES(GATHER_ENTRY, 1) SHAPES(GATHER_ENTRY, 2)};
static const weight_function weights[2][3][4][4] = {SHAPES(WEIGHT_ENTRY, 1) SHAPES(WEIGHT_ENTRY, 2)};

/* The largest of 8, 4, 2, 1 that is at most n. */
INLINE int piece(int n) { return n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 1; }

/* Rows of a band of tiles, for a grid of rows x columns pixels. */
INLINE int band_rows(int rows, int columns) {
    int widest = piece(columns), high = TILE / widest;
    if (high > 4) high = 4;
    return piece(rows) < high ? piece(rows) : high;
}

/* Blocks of a tile: several where the plane has at most 2 x 2 pixels. */
INLINE int block_count(int rows, int columns) { return rows <= 2 && columns <= 2 ? MAX_BLOCKS : 1; }

/* Rows of an item, whole bands: enough pixels for its sums to be worth adding up. */
INLINE int item_rows(int rows, int columns) {
    const int high = band_rows(rows, columns), bands = 256 / (high * columns);
    return high * (bands < 1 ? 1 : bands);
}

static int NAME(slots)(int rows, int columns) {
    if (rows == 0 || columns == 0) return 0;
    const int high = item_rows(rows, columns);
    return (rows + high - 1) / high;
}

/* Parts into which the output channels are split where there are few blocks and slots: work for more threads. */
static int ranges(const gather_job *job) {
    const index_table *table = job->table;
    const int together = block_count(table->rows, table->columns);
    const int items = (job->blocks + together - 1) / together * NAME(slots)(table->rows, table->columns);
    const int wanted = (16 + items - 1) / items, most = table->outputs / 32;
    return most < 1 ? 1 : wanted < most ? wanted : most;
}

static int NAME(gather_items)(const gather_job *job) {
    const index_table *table = job->table;
    if (table->rows == 0 || table->columns == 0) return 0;
    const int together = block_count(table->rows, table->columns);
    return (job->blocks + together - 1) / together * NAME(slots)(table->rows, table->columns) * ranges(job);
}

/* Input channels whose pixels under a tile fit into the first-level cache, evenly split. */
static int NAME(chunk)(int inputs, int kernel, int stride, int rows, int columns) {
    int high = band_rows(rows, columns), wide = piece(columns);
    while (high * wide > TILE) wide /= 2;
    const long bytes = (long)((high - 1) * stride + kernel) * ((wide - 1) * stride + kernel) * LANES *
                       (long)sizeof(float) * block_count(rows, columns);
    long most = CACHE / bytes;
    if (most < 4) most = 4;
    const long chunks = (inputs + most - 1) / most;
    return (int)((inputs + chunks - 1) / chunks);
}

static void NAME(gather)(const void *argument, int item, int thread) {
    const gather_job *job = argument;
    const index_table *table = job->table;
    const int rows = table->rows, columns = table->columns, outputs = table->outputs;
    const int split = ranges(job), range = item % split;
    const int high = band_rows(rows, columns), slots = NAME(slots)(rows, columns), slot = item / split % slots;
    const int together = block_count(rows, columns), from = item / split / slots * together;
    const int top = slot * item_rows(rows, columns);
    const int bottom = top + item_rows(rows, columns) < rows ? top + item_rows(rows, columns) : rows;
    int left = job->blocks - from < together ? job->blocks - from : together;
    float *sums = job->scratch + thread * job->scratch_stride;
    tile t = {.from = (long)outputs * range / split, .to = (long)outputs * (range + 1) / split};
    const int channels = t.to - t.from;
    const long sums_size = 3L * channels * LANES;
    if (job->sums) memset(sums, 0, left * sums_size * sizeof(float));
    t.scratch = sums + MAX_BLOCKS * sums_size;
    for (int done = 0; done < left;) {
        const int tb = left - done >= 4 ? 4 : left - done >= 2 ? 2 : 1;
        t.block = from + done;
        t.sums = sums + done * sums_size;
        for (int r = top; r < bottom;) {
            const int limit = (r / high + 1) * high, tr = piece((limit < bottom ? limit : bottom) - r);
            for (int c = 0; c < columns;) {
                int tc = piece(columns - c);
                while (tc * tr * tb > TILE) tc /= 2;
                t.in = job->in + t.block * job->in_block + r * job->in_step * job->in_row + c * job->in_step * LANES;
                t.pixel = t.block * job->out_block + (table->row + r * job->out_step) * job->out_row +
                          (table->column + c * job->out_step) * LANES;
                gathers[job->in_step - 1][INDEX(tb)][INDEX(tr)][INDEX(tc)](job, &t);
                c += tc;
            }
            r += tr;
        }
        done += tb;
    }
    if (!job->sums) return;
    for (int b = 0; b < left; b++) {
        double *parts = job->parts + ((long)(from + b) * job->slots + job->slot + slot) * outputs * 3;
        const float *lanes = sums + b * sums_size;
        for (int o = 0; o < channels; o++)
            for (int i = 0; i < 3; i++)
                parts[(t.from + o) * 3 + i] = sum_lanes(lanes + ((long)i * channels + o) * LANES);
    }
}

static void NAME(weight)(const void *argument, int index, int thread) {
    const weight_job *job = argument;
    const index_table *table = job->table;
    const int share = index % job->shares;
    const int32_t *item = job->items + index / job->shares * 4;
    const int from = (long)job->blocks * share / job->shares, to = (long)job->blocks * (share + 1) / job->shares;
    const int rows = table->rows, columns = table->columns, outputs = table->outputs;
    const int high = band_rows(rows, columns), together = block_count(rows, columns);
    float *sums = job->scratch + thread * job->scratch_stride;
    long count = 0;
    for (int c = item[2]; c < item[3]; c++)
        count += table->start[c * outputs + item[1]] - table->start[c * outputs + item[0]];
    memset(sums, 0, count * VL * sizeof(float));
    for (int b = from; b < to;) {
        int tb = to - b < together ? to - b : together;
        tb = tb >= 4 ? 4 : tb >= 2 ? 2 : 1;
        for (int r = 0; r < rows;) {
            const int limit = (r / high + 1) * high, tr = piece((limit < rows ? limit : rows) - r);
            for (int c = 0; c < columns;) {
                int tc = piece(columns - c);
                while (tc * tr * tb > TILE) tc /= 2;
                const weight_tile t = {
                    .in = job->in + b * job->in_block + r * job->in_step * job->in_row + c * job->in_step * LANES,
                    .g = job->g + b * job->g_block + r * job->g_row + c * LANES,
                    .sums = sums,
                };
                weights[job->in_step - 1][INDEX(tb)][INDEX(tr)][INDEX(tc)](job, item, &t);
                c += tc;
            }
            r += tr;
        }
        b += tb;
    }
    float *result = job->sums + share * table->count;
    for (int c = item[2]; c < item[3]; c++) {
        const int end = table->start[c * outputs + item[1]];
        for (int k = table->start[c * outputs + item[0]]; k < end; k++, sums += VL) {
            float sum = 0;
            for (int i = 0; i < VL; i++) sum += sums[i];
            result[k] = sum;
        }
    }
}

/* -- elementwise: an item is a channel of a block ------------------------------------------------------------------- */

static void NAME(apply)(const void *argument, int item, int thread) {
    const apply_job *job = argument;
    const int channels = job->channels, block = item / channels, channel = item % channels;
    const int cell = job->group[block] * channels + channel;
    const float scale = job->scale[cell], shift = job->shift[cell];
    const float scale2 = job->scale2 ? job->scale2[cell] : 1, shift2 = job->scale2 ? job->shift2[cell] : 0;
    const float *lanes = job->lanes + block * LANES;
    const long plane = PLANE(job->rows, job->columns) * item;
    (void)thread;
    for (int r = 0; r < job->rows; r++) {
        const long from = plane + ORIGIN(job->columns) + r * ROW(job->columns);
        for (long i = from; i < from + (long)job->columns * LANES; i += LANES)
            for (int part = 0; part < LANES; part += VL) {
                vec v = LOAD(job->y + i + part) * scale + shift;
                if (job->residual) v += LOAD(job->residual + i + part) * scale2 + shift2;
                if (job->relu) v = rectified(v);
                STORE(job->z + i + part, v * LOAD(lanes + part));
            }
    }
}

static void NAME(unapply)(const void *argument, int item, int thread) {
    const unapply_job *job = argument;
    const int channels = job->channels, block = item / channels, channel = item % channels;
    const int cell = job->group[block] * channels + channel;
    const float c1 = job->c1[cell], c2 = job->c2[cell], c3 = job->c3[cell];
    const float *lanes = job->lanes + block * LANES;
    const long plane = PLANE(job->rows, job->columns) * item;
    (void)thread;
    for (int r = 0; r < job->rows; r++) {
        const long from = plane + ORIGIN(job->columns) + r * ROW(job->columns);
        for (long i = from; i < from + (long)job->columns * LANES; i += LANES)
            for (int part = 0; part < LANES; part += VL)
                STORE(job->gy + i + part,
                      LOAD(job->g + i + part) * c1 + (LOAD(job->y + i + part) * c2 + c3) * LOAD(lanes + part));
    }
}

/* -- pooling: an item is a channel of a block ------------------------------------------------------------------------ */

static void NAME(mean_forward)(const void *argument, int item, int thread) {
    const pool_job *job = argument;
    const int channels = job->channels, block = item / channels, channel = item % channels;
    const float *z = job->z + PLANE(job->rows, job->columns) * item + ORIGIN(job->columns);
    float sum[LANES] __attribute__((aligned(64)));
    (void)thread;
    for (int part = 0; part < LANES; part += VL) {
        vec v = {0};
        for (int r = 0; r < job->rows; r++)
            for (int c = 0; c < job->columns; c++) v += LOAD(z + r * ROW(job->columns) + c * LANES + part);
        STORE(sum + part, v * (1.0f / (job->rows * job->columns)));
    }
    for (int i = 0; i < LANES; i++) job->out[((long)block * LANES + i) * channels + channel] = sum[i];
}

/* Write the masked gradient `v` of a pixel and add it to the sums. */
INLINE vec masked(const target *after, long pixel, const float *mean, vec v, vec sums[3]) {
    v = POSITIVE(v, LOAD(after->z + pixel));
    sums[0] += v;
    sums[1] += v * (LOAD(after->y[0] + pixel) - mean[0]);
    if (after->y[1]) sums[2] += v * (LOAD(after->y[1] + pixel) - mean[1]);
    return v;
}

INLINE void means(const pool_job *job, int cell, float mean[2]) {
    for (int i = 0; i < 2; i++) mean[i] = job->after.y[i] ? job->after.mean[i][cell] : 0;
}

static void NAME(mean_backward)(const void *argument, int item, int thread) {
    const pool_job *job = argument;
    const int channels = job->channels, block = item / channels, channel = item % channels;
    const long plane = PLANE(job->rows, job->columns) * item + ORIGIN(job->columns);
    float g[LANES] __attribute__((aligned(64))), lanes[3][LANES] __attribute__((aligned(64))), mean[2];
    (void)thread;
    means(job, job->group[block] * channels + channel, mean);
    for (int i = 0; i < LANES; i++)
        g[i] = job->g[((long)block * LANES + i) * channels + channel] / (job->rows * job->columns);
    for (int part = 0; part < LANES; part += VL) {
        vec sums[3] = {{0}, {0}, {0}};
        for (int r = 0; r < job->rows; r++)
            for (int c = 0; c < job->columns; c++) {
                const long pixel = plane + r * ROW(job->columns) + c * LANES + part;
                STORE(job->gz + pixel, masked(&job->after, pixel, mean, LOAD(g + part), sums));
            }
        for (int i = 0; i < 3; i++) STORE(lanes[i] + part, sums[i]);
    }
    for (int i = 0; i < 3; i++) job->parts[(long)item * 3 + i] = sum_lanes(lanes[i]);
}

static void NAME(max_forward)(const void *argument, int item, int thread) {
    const pool_job *job = argument;
    const int rows = job->rows / 2, columns = job->columns / 2;
    const float *z = job->z + PLANE(job->rows, job->columns) * item + ORIGIN(job->columns);
    float *out = job->out + PLANE(rows, columns) * item + ORIGIN(columns);
    (void)thread;
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++)
            for (int part = 0; part < LANES; part += VL) {
                const float *p = z + 2 * r * ROW(job->columns) + 2 * c * LANES + part, *q = p + ROW(job->columns);
                STORE(out + r * ROW(columns) + c * LANES + part,
                      maximum(maximum(LOAD(p), LOAD(p + LANES)), maximum(LOAD(q), LOAD(q + LANES))));
            }
}

/* The gradient of a maximum goes to the first pixel of the window that has it. */
static void NAME(max_backward)(const void *argument, int item, int thread) {
    const pool_job *job = argument;
    const int channels = job->channels, block = item / channels, channel = item % channels;
    const int rows = job->rows / 2, columns = job->columns / 2;
    const long plane = PLANE(job->rows, job->columns) * item + ORIGIN(job->columns), row = ROW(job->columns);
    const float *g = job->g + PLANE(rows, columns) * item + ORIGIN(columns);
    float lanes[3][LANES] __attribute__((aligned(64))), mean[2];
    (void)thread;
    means(job, job->group[block] * channels + channel, mean);
    for (int r = 0; r < job->rows; r++) /* a last odd row or column is in no window */
        for (int c = 0; c < job->columns; c++)
            if (r >= 2 * rows || c >= 2 * columns)
                memset(job->gz + plane + r * row + (long)c * LANES, 0, LANES * sizeof(float));
    for (int part = 0; part < LANES; part += VL) {
        vec sums[3] = {{0}, {0}, {0}};
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) {
                const long at = plane + 2 * r * row + 2L * c * LANES + part;
                const vec gradient = LOAD(g + r * ROW(columns) + c * LANES + part);
                const long window[4] = {at, at + LANES, at + row, at + row + LANES};
                vec best = LOAD(job->z + window[0]);
                for (int i = 1; i < 4; i++) best = maximum(LOAD(job->z + window[i]), best);
                ivec open = ~(ivec){0};
                for (int i = 0; i < 4; i++) {
                    const ivec here = open & (LOAD(job->z + window[i]) == best);
                    open &= ~here;
                    const vec v = (vec)((ivec)gradient & here);
                    STORE(job->gz + window[i], masked(&job->after, window[i], mean, v, sums));
                }
            }
        for (int i = 0; i < 3; i++) STORE(lanes[i] + part, sums[i]);
    }
    for (int i = 0; i < 3; i++) job->parts[(long)item * 3 + i] = sum_lanes(lanes[i]);
}

/* -- the machine's peak: an item is a million multiply-adds of TILE registers ------------------------------------------ */

static void NAME(peak)(const void *argument, int item, int thread) {
    float *result = (float *)(intptr_t)argument;
    vec a[TILE];
    (void)thread;
    UNROLL for (int i = 0; i < TILE; i++) a[i] = (vec){0} + (float)(item + i);
    for (long n = 0; n < 1000000 / TILE; n++) UNROLL for (int i = 0; i < TILE; i++) a[i] = a[i] * 0.5f + 0.25f;
    vec sum = {0};
    UNROLL for (int i = 0; i < TILE; i++) sum += a[i];
    if (sum[0] == -1) *result = sum[1]; /* never; keeps the loop */
}

static const loops NAME(table) = {
    ISA, NAME(gather), NAME(weight), NAME(apply), NAME(unapply), NAME(mean_forward), NAME(mean_backward),
    NAME(max_forward), NAME(max_backward), NAME(gather_items), NAME(slots), NAME(chunk), MAX_BLOCKS, NAME(peak), VL,
};
