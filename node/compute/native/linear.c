/* Products over the pool: rows are prepared once, tiles of outputs are cut over the threads. */
#include "kernels.h"

static int is_stored(int32_t format) { return format <= POTLUCK_FP16; }

static size_t values_bytes(int32_t format, int32_t rows, int32_t k) {
    if (is_stored(format))
        return (size_t)blocks_of(k, FLOAT_BLOCK) * rows * FLOAT_BLOCK * sizeof(float);
    return (size_t)blocks_of(k, INT_BLOCK) * rows * INT_BLOCK * sizeof(int16_t);
}

size_t potluck_rows_bytes(int32_t format, int32_t rows, int32_t k) {
    size_t steps = is_stored(format) ? 0 : (size_t)blocks_of(k, NF4_BLOCK) * rows * sizeof(float);
    return values_bytes(format, rows, k) + (steps + 63) / 64 * 64;
}

potluck_rows potluck_rows_in(int32_t format, int32_t rows, int32_t k, void *memory) {
    float *scales = (float *)((char *)memory + values_bytes(format, rows, k));
    return (potluck_rows){format, rows, k, memory, is_stored(format) ? NULL : scales};
}

static void copy_rows(const potluck_rows *rows, const float *x, ptrdiff_t stride, int32_t first,
                      int32_t last) {
    for (int32_t at = 0; at < rows->k; at += FLOAT_BLOCK) {
        int32_t count = least(FLOAT_BLOCK, rows->k - at);
        float *block = (float *)rows->codes + (size_t)(at / FLOAT_BLOCK) * rows->rows * FLOAT_BLOCK;
        for (int32_t row = first; row < last; row++) {
            float *to = block + (size_t)row * FLOAT_BLOCK;
            memcpy(to, x + row * stride + at, count * sizeof(float));
            memset(to + count, 0, (FLOAT_BLOCK - count) * sizeof(float));
        }
    }
}

void potluck_prepare(const potluck_rows *rows, const float *x, ptrdiff_t stride, int32_t first,
                     int32_t last) {
    if (is_stored(rows->format))
        copy_rows(rows, x, stride, first, last);
    else
        potluck_kernels_in_use()->prepare(rows, x, stride, first, last);
}

typedef struct {
    const potluck_rows *rows;
    const float *x;
    ptrdiff_t stride;
    int32_t rows_a_task;
} preparation;

static void prepare_some(void *context, int32_t index, int32_t thread) {
    const preparation *job = context;
    int32_t first = index * job->rows_a_task;
    (void)thread;
    potluck_prepare(job->rows, job->x, job->stride, first,
                    least(job->rows->rows, first + job->rows_a_task));
}

void potluck_prepare_all(potluck_pool *pool, const potluck_rows *rows, const float *x,
                         ptrdiff_t stride) {
    int32_t rows_a_task = 1 + 32768 / rows->k; /* some 10 us of work */
    preparation job = {rows, x, stride, rows_a_task};
    if (rows->rows <= rows_a_task)
        potluck_prepare(rows, x, stride, 0, rows->rows);
    else
        potluck_pool_run(pool, prepare_some, &job, blocks_of(rows->rows, rows_a_task));
}

void potluck_multiply_tiles(const potluck_linear *matrix, const potluck_rows *rows, float *y,
                            ptrdiff_t stride, int32_t mode, int32_t first, int32_t last) {
    potluck_kernels_in_use()->multiply(matrix, rows, y, stride, mode, first, last);
}

int32_t potluck_tiles_a_task(const potluck_linear *matrix, int32_t rows, int32_t threads) {
    int32_t tiles = potluck_tiles(matrix->n);
    if (threads < 2) return tiles;
    /* Four tasks a thread leave little to wait for at the end; below some 250,000 products a task
     * costs more to hand out than it is worth. */
    int32_t even = blocks_of(tiles, threads * 4);
    int32_t worth = (int32_t)(250000 / ((int64_t)matrix->k * 16 * rows) + 1);
    int32_t size = even > worth ? even : worth;
    size += size & 1;
    return least(size, tiles);
}

typedef struct {
    const potluck_linear *matrix;
    const potluck_rows *rows;
    float *y;
    ptrdiff_t stride;
    int32_t mode, tiles_a_task;
} product;

static void multiply_some(void *context, int32_t index, int32_t thread) {
    const product *job = context;
    int32_t first = index * job->tiles_a_task;
    (void)thread;
    potluck_multiply_tiles(job->matrix, job->rows, job->y, job->stride, job->mode, first,
                           least(potluck_tiles(job->matrix->n), first + job->tiles_a_task));
}

void potluck_multiply(potluck_pool *pool, const potluck_linear *matrix, const potluck_rows *rows,
                      float *y, ptrdiff_t stride, int32_t mode) {
    int32_t size = potluck_tiles_a_task(matrix, rows->rows, potluck_pool_threads(pool));
    product job = {matrix, rows, y, stride, mode, size};
    potluck_pool_run(pool, multiply_some, &job, blocks_of(potluck_tiles(matrix->n), size));
}
