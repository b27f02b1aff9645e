/* Indices of masks, and the forward and backward pass of a whole network of convolutions. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "network.h"

static const loops *chosen;

/* Names of the instruction sets this machine runs, best first; 0 behind the last. */
const char *kernels_available(int which) {
    const loops *found[4] = {0};
    int count = 0;
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (loops_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        found[count++] = loops_avx512;
    if (loops_avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = loops_avx2;
#endif
    found[count++] = loops_plain;
    return which < count ? found[which]->name : 0;
}

/* Use the instruction set of that name; 0: not available. */
int kernels_choose(const char *name) {
    const loops *all[3] = {loops_avx512, loops_avx2, loops_plain};
    const char *available;
    for (int which = 0; (available = kernels_available(which)); which++)
        if (!strcmp(name, available))
            for (int i = 0; i < 3; i++)
                if (all[i] && !strcmp(all[i]->name, name)) {
                    chosen = all[i];
                    return 1;
                }
    return 0;
}

const char *kernels_chosen(void) { return chosen ? chosen->name : 0; }

/* -- indices --------------------------------------------------------------------------------------------------------- */

typedef struct {
    int32_t output, input, row, column, position;
} weight_place;

/* Fill `table` from the places (selected by parity for stride 2), cells by (chunk of `in`, `out`), in order of places. */
static int fill_table(index_table *table, const weight_place *places, long count, int outputs, int inputs, int chunk,
                      long plane, long row, int backward, int kernel, int stride, int odd_row, int odd_column) {
    const int pad = kernel / 2, chunks = (inputs + chunk - 1) / chunk;
    const long cells = (long)chunks * outputs;
    int32_t *start = calloc(cells + 1, sizeof(int32_t));
    if (!start) return 0;
    for (int pass = 0; pass < 2; pass++) {
        for (long k = 0; k < count; k++) {
            const weight_place *p = places + k;
            int down = p->row, right = p->column, out = p->output, in = p->input;
            if (backward) {
                out = p->input;
                in = p->output;
                down = odd_row + pad - p->row;
                right = odd_column + pad - p->column;
                if (down % stride || right % stride) continue;
                down = down / stride;
                right = right / stride;
            } else {
                down -= pad;
                right -= pad;
            }
            const long cell = (long)(in / chunk) * outputs + out;
            if (pass == 0) {
                start[cell + 1]++;
            } else {
                const int32_t at = start[cell]++;
                table->entries[at].offset = (int32_t)(in * plane + down * row + right * LANES);
                ((int32_t *)table->position)[at] = p->position;
            }
        }
        if (pass == 0) {
            for (long i = 0; i < cells; i++) start[i + 1] += start[i];
            table->count = start[cells];
            table->entries = calloc(table->count + 1, sizeof(entry));
            table->position = calloc(table->count + 1, sizeof(int32_t));
            if (!table->entries || !table->position) {
                free(start);
                return 0;
            }
        } else { /* start[i] has become the end of cell i */
            memmove(start + 1, start, cells * sizeof(int32_t));
            start[0] = 0;
        }
    }
    table->start = start;
    table->outputs = outputs;
    table->chunks = chunks;
    return 1;
}

static void free_table(index_table *table) {
    free((void *)table->start);
    free(table->entries);
    free((void *)table->position);
}

void index_free(layer_index *index) {
    if (!index) return;
    free_table(&index->forward);
    for (int i = 0; i < 4; i++) free_table(&index->backward[i]);
    free(index->items);
    free(index->sorted);
    free(index);
}

/* Split the weight gradient into items of outputs x chunks whose partial sums stay in the second-level cache. */
static int split(layer_index *index) {
    const index_table *table = &index->forward;
    const long cells = (long)table->outputs * table->chunks, most = 4096;
    const double per_cell = (double)table->count / cells;
    long wide = per_cell > 0 ? (long)(most / per_cell) : table->outputs;
    if (wide > table->outputs) wide = table->outputs;
    if (wide > 64) wide = 64;
    if (wide < 1) wide = 1;
    long deep = per_cell > 0 ? (long)(most / (per_cell * wide)) : table->chunks;
    if (deep < 1) deep = 1;
    const long across = (table->outputs + wide - 1) / wide, down = (table->chunks + deep - 1) / deep;
    index->items = malloc(across * down * 4 * sizeof(int32_t));
    if (!index->items) return 0;
    for (long i = 0; i < across; i++)
        for (long j = 0; j < down; j++) {
            int32_t *item = index->items + 4 * index->items_count++;
            item[0] = i * wide;
            item[1] = (i + 1) * wide < table->outputs ? (i + 1) * wide : table->outputs;
            item[2] = j * deep;
            item[3] = (j + 1) * deep < table->chunks ? (j + 1) * deep : table->chunks;
            int64_t entries = 0;
            for (int c = item[2]; c < item[3]; c++)
                entries += table->start[c * table->outputs + item[1]] - table->start[c * table->outputs + item[0]];
            if (entries > index->item_entries) index->item_entries = entries;
        }
    return 1;
}

/* Index the True entries of a mask (outputs, inputs, kernel, kernel) with `mask_strides` in bytes (null: all weights);
 * `weight_strides` in floats. Tables for the input's gradient are left out where `backward` is 0. Null: no memory. */
layer_index *index_new(const uint8_t *mask, const int64_t *mask_strides, const int64_t *weight_strides, int outputs,
                       int inputs, int kernel, int stride, int in_rows, int in_columns, int backward) {
    const int rows = (in_rows - 1) / stride + 1, columns = (in_columns - 1) / stride + 1;
    const long size = (long)outputs * inputs * kernel * kernel;
    layer_index *index = calloc(1, sizeof(layer_index));
    long room = mask ? size / 8 + 16 : size, count = 0;
    weight_place *places = malloc(room * sizeof(weight_place));
    if (!index || !places) goto failed;
    for (int o = 0; o < outputs; o++)
        for (int i = 0; i < inputs; i++)
            for (int r = 0; r < kernel; r++)
                for (int c = 0; c < kernel; c++) {
                    if (mask && !mask[o * mask_strides[0] + i * mask_strides[1] + r * mask_strides[2] +
                                      c * mask_strides[3]])
                        continue;
                    if (count == room) {
                        room *= 2;
                        weight_place *more = realloc(places, room * sizeof(weight_place));
                        if (!more) goto failed;
                        places = more;
                    }
                    places[count++] = (weight_place){o, i, r, c,
                                                     (int32_t)(o * weight_strides[0] + i * weight_strides[1] +
                                                               r * weight_strides[2] + c * weight_strides[3])};
                }
    index->count = count;
    index->sorted = malloc((count + 1) * sizeof(int32_t)); /* a walk in the order of memory */
    if (!index->sorted) goto failed;
    long at = 0;
    const int last = weight_strides[1] == 1; /* channels_last */
    const long outer = last ? kernel * kernel : inputs, inner = last ? inputs : kernel * kernel;
    for (int o = 0; o < outputs; o++)
        for (long a = 0; a < outer; a++)
            for (long b = 0; b < inner; b++) {
                const long i = last ? b : a, tap = last ? a : b, r = tap / kernel, c = tap % kernel;
                if (!mask || mask[o * mask_strides[0] + i * mask_strides[1] + r * mask_strides[2] + c * mask_strides[3]])
                    index->sorted[at++] = (int32_t)(o * weight_strides[0] + i * weight_strides[1] +
                                                    r * weight_strides[2] + c * weight_strides[3]);
            }
    int chunk = chosen->chunk(inputs, kernel, stride, rows, columns);
    if (!fill_table(&index->forward, places, count, outputs, inputs, chunk, PLANE(in_rows, in_columns),
                    ROW(in_columns), 0, kernel, stride, 0, 0))
        goto failed;
    index->forward.rows = rows;
    index->forward.columns = columns;
    if (!split(index)) goto failed;
    index->classes = backward ? stride * stride : 0;
    for (int class = 0; class < index->classes; class++) {
        index_table *table = &index->backward[class];
        table->row = class / stride;
        table->column = class % stride;
        table->rows = (in_rows - table->row + stride - 1) / stride;
        table->columns = (in_columns - table->column + stride - 1) / stride;
        if (table->rows < 0) table->rows = 0;
        if (table->columns < 0) table->columns = 0;
        chunk = chosen->chunk(outputs, kernel, 1, table->rows > 0 ? table->rows : 1,
                              table->columns > 0 ? table->columns : 1);
        if (!fill_table(table, places, count, inputs, outputs, chunk, PLANE(rows, columns), ROW(columns), 1, kernel,
                        stride, table->row, table->column))
            goto failed;
    }
    free(places);
    return index;
failed:
    free(places);
    index_free(index);
    return 0;
}

/* Floats of scratch that a thread needs for a convolution with these indices. */
static long scratch_size(const layer *l) {
    long most = 0;
    const layer_index *both[2] = {l->index, l->gradient_index};
    for (int i = 0; i < 2; i++) {
        const layer_index *index = both[i];
        if (!index) continue;
        const long channels = l->outputs > l->inputs ? l->outputs : l->inputs;
        const long gather = channels * LANES * (3L * chosen->tile_blocks + 16);
        const long weight = (index->item_entries + 1) * LANES;
        if (gather > most) most = gather;
        if (weight > most) most = weight;
    }
    return (most + 15) / 16 * 16;
}

/* Floats of scratch for a thread, and doubles of partial sums, that a network needs. */
int64_t network_scratch(const network *n) {
    long most = LANES;
    for (int i = 0; i < n->count; i++) {
        const long size = scratch_size(n->layers + i);
        if (size > most) most = size;
    }
    return most;
}

static int backward_slots(const layer_index *index) {
    int slots = 0;
    for (int i = 0; i < index->classes; i++) slots += chosen->slots(index->backward[i].rows, index->backward[i].columns);
    return slots;
}

int64_t network_parts(const network *n) {
    long most = 1;
    for (int i = 0; i < n->count; i++) {
        const layer *l = n->layers + i;
        const long forward = (long)chosen->slots(l->rows, l->columns) * l->outputs;
        const long backward = (long)backward_slots(l->index) * l->inputs;
        if (forward > most) most = forward;
        if (backward > most) most = backward;
        if (l->outputs > most) most = l->outputs;
    }
    return most * 3 * n->blocks;
}

/* -- convolution ----------------------------------------------------------------------------------------------------- */

typedef struct {
    const index_table *table;
    const float *weight;
} refresh_job;

#define REFRESH (1 << 16)

static void refresh_item(const void *argument, int item, int thread) {
    const refresh_job *job = argument;
    const index_table *table = job->table;
    const long end = (item + 1L) * REFRESH < table->count ? (item + 1L) * REFRESH : table->count;
    (void)thread;
    for (long k = (long)item * REFRESH; k < end; k++) table->entries[k].value = job->weight[table->position[k]];
}

/* Copy the weights' values into an index. */
static void refresh(const index_table *table, const float *weight, int threads) {
    const refresh_job job = {table, weight};
    parallel_for(refresh_item, &job, (int)((table->count + REFRESH - 1) / REFRESH), threads);
}

static void run_gather(const gather_job *job, int threads) {
    parallel_for(chosen->gather, job, chosen->gather_items(job), threads);
}

static gather_job forward_job(const network *n, const layer *l, const float *in) {
    return (gather_job){
        .in = in + ORIGIN(l->in_columns), .out = n->saved + l->y + ORIGIN(l->columns), .table = &l->index->forward,
        .in_row = ROW(l->in_columns), .in_block = l->inputs * PLANE(l->in_rows, l->in_columns),
        .out_row = ROW(l->columns), .out_plane = PLANE(l->rows, l->columns),
        .out_block = l->outputs * PLANE(l->rows, l->columns), .in_step = l->stride, .out_step = 1,
        .blocks = n->blocks, .sums = l->training ? 1 : 0, .group = n->group, .parts = n->parts,
        .slots = chosen->slots(l->rows, l->columns), .scratch = n->scratch, .scratch_stride = n->scratch_stride,
    };
}

static void convolve_back(const network *n, const layer *l, const float *gy, float *gin, int accumulate,
                          const target *after) {
    gather_job job = {
        .in = gy + ORIGIN(l->columns), .out = gin + ORIGIN(l->in_columns), .in_row = ROW(l->columns),
        .in_block = l->outputs * PLANE(l->rows, l->columns), .out_row = ROW(l->in_columns),
        .out_plane = PLANE(l->in_rows, l->in_columns), .out_block = l->inputs * PLANE(l->in_rows, l->in_columns),
        .in_step = 1, .out_step = l->stride, .blocks = n->blocks, .accumulate = accumulate, .group = n->group,
        .parts = n->parts, .slots = backward_slots(l->index), .scratch = n->scratch,
        .scratch_stride = n->scratch_stride,
    };
    if (after) {
        job.sums = 2;
        job.after = *after;
    }
    for (int i = 0; i < l->index->classes; i++) {
        job.table = &l->index->backward[i];
        refresh(job.table, l->weight, n->threads);
        run_gather(&job, n->threads);
        job.slot += chosen->slots(job.table->rows, job.table->columns);
    }
}

/* Parts into which the blocks are split so that there are some items to hand out; the same for any number of threads. */
static int shares_of(const layer_index *index, int blocks) {
    const int wanted = (8 + index->items_count - 1) / index->items_count;
    return wanted < blocks ? wanted : blocks;
}

static void weight_gradient(const network *n, const layer *l, const float *in, const float *gy) {
    const layer_index *index = l->gradient_index;
    const int64_t count = index->forward.count;
    const weight_job job = {
        .in = in + ORIGIN(l->in_columns), .g = gy + ORIGIN(l->columns), .table = &index->forward,
        .in_row = ROW(l->in_columns), .in_block = l->inputs * PLANE(l->in_rows, l->in_columns),
        .g_row = ROW(l->columns), .g_plane = PLANE(l->rows, l->columns),
        .g_block = l->outputs * PLANE(l->rows, l->columns), .in_step = l->stride, .blocks = n->blocks,
        .items = index->items, .shares = shares_of(index, n->blocks), .sums = n->sums, .scratch = n->scratch,
        .scratch_stride = n->scratch_stride,
    };
    parallel_for(chosen->weight, &job, index->items_count * job.shares, n->threads);
    for (int64_t k = 0; k < count; k++) {
        float sum = n->sums[k];
        for (int share = 1; share < job.shares; share++) sum += n->sums[share * count + k];
        float *to = l->weight_gradient + index->forward.position[k];
        *to = n->add ? *to + sum : sum;
    }
}

/* Floats of `sums` that a network's weight gradients need. */
int64_t network_sums(const network *n) {
    int64_t most = 1;
    for (int i = 0; i < n->count; i++) {
        const layer_index *index = n->layers[i].gradient_index;
        const int64_t size = index ? index->forward.count * shares_of(index, n->blocks) : 0;
        if (size > most) most = size;
    }
    return most;
}

/* -- batch normalization --------------------------------------------------------------------------------------------- */

static float *statistics(const network *n, const layer *l, int which) {
    return n->saved + l->statistics + (long)which * n->groups * l->outputs;
}

/* Add up the partial sums of a channel over the blocks of a group. */
static void add_parts(const network *n, int group, int channels, int channel, int slots, double sums[3]) {
    sums[0] = sums[1] = sums[2] = 0;
    for (int b = 0; b < n->blocks; b++) {
        if (n->group[b] != group) continue;
        for (int s = 0; s < slots; s++)
            for (int i = 0; i < 3; i++) sums[i] += n->parts[(((long)b * slots + s) * channels + channel) * 3 + i];
    }
}

static void normalize(const network *n, const layer *l) {
    float *mean = statistics(n, l, 0), *var = statistics(n, l, 1);
    float *scale = statistics(n, l, 2), *shift = statistics(n, l, 3);
    const int slots = chosen->slots(l->rows, l->columns);
    for (int g = 0; g < n->groups; g++)
        for (int c = 0; c < l->outputs; c++) {
            const long cell = (long)g * l->outputs + c;
            if (l->training) {
                double sums[3];
                const double size = (double)n->group_sizes[g] * l->rows * l->columns;
                add_parts(n, g, l->outputs, c, slots, sums);
                const double middle = sums[0] / size, spread = sums[1] / size - middle * middle;
                mean[cell] = (float)middle;
                var[cell] = spread > 0 || isnan(spread) ? (float)spread : 0;
            } else {
                mean[cell] = l->running_mean[c];
                var[cell] = l->running_var[c];
            }
            scale[cell] = (float)(l->gamma[c] / sqrt((double)var[cell] + l->eps));
            shift[cell] = l->beta[c] - mean[cell] * scale[cell];
        }
}

/* From sums of g and g (y - mean): gradients of scale and shift, and gy = c1 g + c2 y + c3. `which`: 1 for the layer's
 * own sums, 2 for those of a shortcut. */
static void unnormalize(const network *n, const layer *l, const double *sums, int which, float *c) {
    const float *mean = statistics(n, l, 0), *var = statistics(n, l, 1);
    const long cells = (long)n->groups * l->outputs;
    for (int o = 0; o < l->outputs; o++) {
        double gamma = 0, beta = 0;
        for (int g = 0; g < n->groups; g++) {
            const long cell = (long)g * l->outputs + o;
            const double inverse = 1 / sqrt((double)var[cell] + l->eps);
            const double size = (double)n->group_sizes[g] * l->rows * l->columns;
            const double sum = sums[cell * 3], product = sums[cell * 3 + which] * inverse;
            const double c1 = l->gamma[o] * inverse, c2 = l->training ? -c1 * inverse * product / size : 0;
            c[cell] = (float)c1;
            c[cells + cell] = (float)c2;
            c[2 * cells + cell] = l->training ? (float)(-c1 * sum / size - c2 * mean[cell]) : 0;
            gamma += product;
            beta += sum;
        }
        if (l->gamma_gradient) l->gamma_gradient[o] = (float)(gamma + (n->add ? l->gamma_gradient[o] : 0));
        if (l->beta_gradient) l->beta_gradient[o] = (float)(beta + (n->add ? l->beta_gradient[o] : 0));
    }
}

/* -- the network ----------------------------------------------------------------------------------------------------- */

/* Convolution l's input: what the source gives, pooled where it is. */
static float *input_of(const network *n, const layer *l) {
    if (l->source < 0) return n->saved + n->images;
    const layer *source = n->layers + l->source;
    return n->saved + (source->pool == 1 ? source->pooled : source->z);
}

/* Copy images (images, channels, rows, columns), any strides (in floats), into the saved area. */
void network_pack(const network *n, const float *images, const int64_t *strides, int count, int block) {
    const layer *l = n->layers;
    const long row = ROW(l->in_columns), plane = PLANE(l->in_rows, l->in_columns);
    for (int i = 0; i < count; i++) {
        float *to = n->saved + n->images + (block + i / LANES) * l->inputs * plane + ORIGIN(l->in_columns) + i % LANES;
        for (int c = 0; c < l->inputs; c++)
            for (int r = 0; r < l->in_rows; r++)
                for (int k = 0; k < l->in_columns; k++)
                    to[c * plane + r * row + (long)k * LANES] =
                        images[i * strides[0] + c * strides[1] + r * strides[2] + k * strides[3]];
    }
    for (int i = count; i % LANES; i++) { /* filling */
        float *to = n->saved + n->images + (block + i / LANES) * l->inputs * plane + ORIGIN(l->in_columns) + i % LANES;
        for (int c = 0; c < l->inputs; c++)
            for (int r = 0; r < l->in_rows; r++)
                for (int k = 0; k < l->in_columns; k++) to[c * plane + r * row + (long)k * LANES] = 0;
    }
}

/* The features (blocks * 16, channels) of the packed images. */
void network_forward(const network *n, float *features) {
    for (int i = 0; i < n->count; i++) {
        const layer *l = n->layers + i;
        const gather_job job = forward_job(n, l, input_of(n, l));
        refresh(job.table, l->weight, n->threads);
        run_gather(&job, n->threads);
        normalize(n, l);
        if (l->user >= 0) continue;
        const layer *shortcut = l->shortcut >= 0 ? n->layers + l->shortcut : 0;
        const apply_job apply = {
            .y = n->saved + l->y, .z = n->saved + l->z,
            .residual = shortcut ? n->saved + shortcut->y : l->residual >= 0 ? n->saved + n->layers[l->residual].z : 0,
            .scale = statistics(n, l, 2), .shift = statistics(n, l, 3),
            .scale2 = shortcut ? statistics(n, shortcut, 2) : 0, .shift2 = shortcut ? statistics(n, shortcut, 3) : 0,
            .group = n->group, .lanes = n->lanes, .blocks = n->blocks, .channels = l->outputs, .rows = l->rows,
            .columns = l->columns, .relu = l->relu,
        };
        parallel_for(chosen->apply, &apply, n->blocks * l->outputs, n->threads);
        if (l->pool) {
            const pool_job pool = {
                .z = n->saved + l->z, .out = l->pool == 1 ? n->saved + l->pooled : features, .blocks = n->blocks,
                .channels = l->outputs, .rows = l->rows, .columns = l->columns,
            };
            parallel_for(l->pool == 1 ? chosen->max_forward : chosen->mean_forward, &pool, n->blocks * l->outputs,
                         n->threads);
        }
    }
}

/* Bring the running statistics up to date with the groups of a forward pass, one after another. */
void network_running(const network *n) {
    for (int i = 0; i < n->count; i++) {
        const layer *l = n->layers + i;
        if (!l->training || !l->running_mean) continue;
        const float *mean = statistics(n, l, 0), *var = statistics(n, l, 1), m = l->momentum;
        for (int g = 0; g < n->groups; g++) {
            const double size = (double)n->group_sizes[g] * l->rows * l->columns;
            const float unbiased = size > 1 ? (float)(size / (size - 1)) : 1;
            for (int c = 0; c < l->outputs; c++, mean++, var++) {
                l->running_mean[c] += m * (*mean - l->running_mean[c]);
                l->running_var[c] += m * (*var * unbiased - l->running_var[c]);
            }
        }
        if (l->batches) *l->batches += n->groups;
    }
}

/* A parameter that SGD moves. */
typedef struct {
    const layer_index *index; /* of the existing weights; null: all */
    float *value, *momentum;  /* momentum null: plain SGD */
    const float *gradient;
    const uint8_t *learning; /* 0 where the gradient counts as 0; null: everywhere as it is */
    int64_t size;
} descent;

typedef struct {
    const descent *parameters;
    float rate, momentum;
} descent_job;

static void descend(const void *argument, int item, int thread) {
    const descent_job *job = argument;
    const descent *p = job->parameters + item;
    const int32_t *position = p->index ? p->index->sorted : 0;
    const int64_t count = p->index ? p->index->count : p->size;
    (void)thread;
    if (!position && !p->learning && p->momentum) { /* the common dense case, for the compiler to vectorize */
        for (int64_t k = 0; k < count; k++) {
            const float step = job->momentum * p->momentum[k] + p->gradient[k];
            p->momentum[k] = step;
            p->value[k] -= job->rate * step;
        }
        return;
    }
    for (int64_t k = 0; k < count; k++) {
        const int64_t at = position ? position[k] : k;
        float step = !p->learning || p->learning[at] ? p->gradient[at] : 0;
        if (p->momentum) p->momentum[at] = step = job->momentum * p->momentum[at] + step;
        p->value[at] -= job->rate * step;
    }
}

/* One step of SGD on existing weights; the others, and their momentum, stay 0. */
void sgd_step(const descent *parameters, int count, float rate, float momentum, int threads) {
    const descent_job job = {parameters, rate, momentum};
    parallel_for(descend, &job, count, threads);
}

static target target_of(const network *n, const layer *l) {
    const layer *shortcut = l->shortcut >= 0 ? n->layers + l->shortcut : 0;
    const int plain = !shortcut && l->residual < 0; /* y tells alone what ReLU let through: z need not be read */
    return (target){
        .z = plain ? 0 : n->saved + l->z,
        .y = {n->saved + l->y, shortcut ? n->saved + shortcut->y : 0},
        .mean = {statistics(n, l, 0), shortcut ? statistics(n, shortcut, 0) : 0},
        .scale = statistics(n, l, 2), .shift = statistics(n, l, 3),
    };
}

static target shifted(target t, long by) {
    if (t.z) t.z += by;
    for (int i = 0; i < 2; i++)
        if (t.y[i]) t.y[i] += by;
    return t;
}

/* Keep the sums of layer l, whose gradient is complete: (groups, outputs, 3). */
static void keep_sums(const network *n, const layer *l, int slots, double *sums) {
    for (int g = 0; g < n->groups; g++)
        for (int c = 0; c < l->outputs; c++)
            add_parts(n, g, l->outputs, c, slots, sums + ((long)g * l->outputs + c) * 3);
}

static void unpool(const network *n, const layer *l, const float *g, double *sums) {
    pool_job pool = {
        .z = n->saved + l->z, .blocks = n->blocks, .channels = l->outputs, .rows = l->rows, .columns = l->columns,
        .g = g, .gz = n->work + l->gz, .after = target_of(n, l), .group = n->group, .parts = n->parts,
    };
    pool.after.z = pool.z;
    parallel_for(l->pool == 1 ? chosen->max_backward : chosen->mean_backward, &pool, n->blocks * l->outputs,
                 n->threads);
    keep_sums(n, l, 1, sums);
}

/* Gradients of the parameters from that of the features (blocks * 16, channels). 0: no memory. */
int network_backward(const network *n, const float *gradient) {
    long widest = 0;
    for (int i = 0; i < n->count; i++)
        if (n->layers[i].outputs > widest) widest = n->layers[i].outputs;
    const long size = 3 * n->groups * widest;
    double *sums = malloc((n->count * size) * sizeof(double)); /* of every layer, since a shortcut's come early */
    float *c = malloc(size * sizeof(float));
    if (!sums || !c) {
        free(sums);
        free(c);
        return 0;
    }
    unpool(n, n->layers + n->count - 1, gradient, sums + (n->count - 1) * size);
    for (int i = n->count - 1; i >= n->first; i--) {
        const layer *l = n->layers + i;
        const int owner = l->user >= 0 ? l->user : i;
        const long cells = (long)n->groups * l->outputs;
        unnormalize(n, l, sums + owner * size, l->user >= 0 ? 2 : 1, c);
        const unapply_job job = {
            .g = n->work + n->layers[owner].gz, .y = n->saved + l->y, .gy = n->work + l->gy, .c1 = c, .c2 = c + cells,
            .c3 = c + 2 * cells, .group = n->group, .lanes = n->lanes, .blocks = n->blocks, .channels = l->outputs,
            .rows = l->rows, .columns = l->columns,
        };
        parallel_for(chosen->unapply, &job, n->blocks * l->outputs, n->threads);
        if (l->weight_gradient) weight_gradient(n, l, input_of(n, l), n->work + l->gy);
        if (l->source < n->first) continue;
        const layer *source = n->layers + l->source;
        float *gin = n->work + (source->pool == 1 ? source->gpooled : source->gz);
        if (source->pool == 1) {
            convolve_back(n, l, n->work + l->gy, gin, 0, 0);
            unpool(n, source, gin, sums + l->source * size);
        } else if (l->final) {
            const target after = shifted(target_of(n, source), ORIGIN(source->columns));
            convolve_back(n, l, n->work + l->gy, gin, l->accumulate, &after);
            keep_sums(n, source, backward_slots(l->index), sums + l->source * size);
        } else {
            convolve_back(n, l, n->work + l->gy, gin, l->accumulate, 0);
        }
    }
    free(sums);
    free(c);
    return 1;
}

/* -- one convolution ------------------------------------------------------------------------------------------------- */

/* y (saved area of layer 0) of its packed input; then gradients from gy (work area) of weight and input. */
void convolution_forward(const network *n) {
    const layer *l = n->layers;
    const gather_job job = forward_job(n, l, n->saved + n->images);
    refresh(job.table, l->weight, n->threads);
    run_gather(&job, n->threads);
}

void convolution_backward(const network *n) {
    const layer *l = n->layers;
    if (l->weight_gradient) weight_gradient(n, l, n->saved + n->images, n->work + l->gy);
    if (l->index->classes) convolve_back(n, l, n->work + l->gy, n->work + l->gz, 0, 0);
}

/* Copy one plane set (images, channels, rows, columns) contiguous to and from blocks. */
void blocks_pack(const float *from, float *to, int images, int channels, int rows, int columns) {
    const long row = ROW(columns), plane = PLANE(rows, columns);
    for (int i = 0; i < images; i++)
        for (int c = 0; c < channels; c++)
            for (int r = 0; r < rows; r++)
                for (int k = 0; k < columns; k++)
                    to[((i / LANES) * (long)channels + c) * plane + ORIGIN(columns) + r * row + (long)k * LANES +
                       i % LANES] = *from++;
}

void blocks_unpack(const float *from, float *to, int images, int channels, int rows, int columns) {
    const long row = ROW(columns), plane = PLANE(rows, columns);
    for (int i = 0; i < images; i++)
        for (int c = 0; c < channels; c++)
            for (int r = 0; r < rows; r++)
                for (int k = 0; k < columns; k++)
                    *to++ = from[((i / LANES) * (long)channels + c) * plane + ORIGIN(columns) + r * row +
                                 (long)k * LANES + i % LANES];
}

/* Do `items` million vector multiply-adds in registers and return their floating-point operations. */
double peak_work(int items, int threads) {
    float result = 0;
    parallel_for(chosen->peak, &result, items, threads);
    return 2e6 * items * chosen->vector;
}
