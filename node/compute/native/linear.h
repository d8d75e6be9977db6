/* Matrix products of the engine: y = x W^T, for weights as stored, int8 and nf4, on any CPU alike.
 *
 * The lanes of a vector are OUTPUTS, never parts of a sum: every output element is one chain over k
 * in a fixed order, so scalar, AVX2, AVX-512 and NEON, any number of rows, any cut into tiles and
 * any number of threads give the same bits. (Where a result is not a number, only that it is none
 * is the same; its sign and payload are the CPU's.)
 *
 * The order, for one row and one output (K = k filled up with zeros to whole blocks):
 *   stored weights (fp32, bf16, fp16)   y = 0; for each block of 128 of k, with s = 0:
 *       s = fma(x[i], w[i], s), i ascending; then y = y + s
 *   int8   y = 0; for each block of 256 of k: y = fma((float)sum(q[i] * w[i]), step, y);
 *       then y = y * (SCB / 127)         sum is exact: |q| <= 32767, |w| <= 128, 256 of them: < 2^31
 *   nf4    y = 0; for each block of 64 of k: y = fma((float)sum(q[i] * c[i]) * (absmax / 3735),
 *       step, y)                         sum is exact: |q| <= 8983, |c| <= 3735, 64 of them: < 2^31
 *   then y = y + bias, then y = (what stood in the output) + y, each where asked for
 * q are the activations of one row, rounded to int16 in steps of (largest magnitude of the block) /
 * 32767 or 8983. A block that holds a NaN or an infinity makes every output of its row NaN; a block
 * whose largest magnitude is below 1e-30 counts as zeros.
 */
#ifndef POTLUCK_LINEAR_H
#define POTLUCK_LINEAR_H

#include <stddef.h>
#include <stdint.h>

#define POTLUCK_API __attribute__((visibility("default")))

enum {                 /* formats of weights */
    POTLUCK_FP32 = 0,
    POTLUCK_BF16 = 1,
    POTLUCK_FP16 = 2,
    POTLUCK_INT8 = 3,
    POTLUCK_NF4 = 4,
    POTLUCK_FORMATS = 5,
};

enum {                 /* what happens to what stands in the output */
    POTLUCK_STORE = 0, /* it is replaced */
    POTLUCK_ADD = 1,   /* the product is added to it (a residual) */
};

#define POTLUCK_LANES 16 /* outputs of a tile: n is padded to a multiple of it */

/* ---- the pool of threads (pool.c) -------------------------------------------------------------
 * `run` calls task(context, i, thread) once for every i below count, on the calling thread and the
 * pool's own, and returns when all are done. `thread` is below potluck_pool_threads: an index for
 * scratch memory of one's own. Tasks are handed out one by one, so make a task 10 us or more. Idle
 * threads spin for some microseconds and then sleep. Callers of one pool take turns; a task must not
 * call run. pool == NULL: everything runs on the calling thread. */
typedef struct potluck_pool potluck_pool;
typedef void (*potluck_task)(void *context, int32_t index, int32_t thread);

POTLUCK_API potluck_pool *potluck_pool_new(int32_t threads); /* >= 1, the caller's counted; NULL: failed */
POTLUCK_API void potluck_pool_free(potluck_pool *pool);
POTLUCK_API int32_t potluck_pool_threads(const potluck_pool *pool);
POTLUCK_API void potluck_pool_run(potluck_pool *pool, potluck_task task, void *context, int32_t count);

/* ---- weights (pack.c) -------------------------------------------------------------------------
 * A packed matrix. `codes` is what potluck_pack wrote: potluck_packed_bytes of memory aligned to 64.
 * `bias` is NULL or has n rounded up to 16 floats. */
typedef struct potluck_linear {
    int32_t format, n, k;
    const void *codes;
    const float *bias;
} potluck_linear;

/* 0: this matrix cannot be packed (a format unknown, n or k < 1, or nf4 with k % 64 != 0). */
POTLUCK_API size_t potluck_packed_bytes(int32_t format, int32_t n, int32_t k);
/* codes: row-major (n, k) of the format's type; nf4: (n, k/2) bytes, high nibble first.
 * scales: int8: SCB (n); nf4: absmax (n, k/64); else unused.
 * step: 1, or 2 to fill each second tile of `packed`: two matrices in turns. */
POTLUCK_API void potluck_pack(potluck_pool *pool, int32_t format, int32_t n, int32_t k,
                              const void *codes, const float *scales, void *packed, int32_t step);
/* Quantizes a matrix of numbers (n, k) to int8 or nf4 and packs it, tile by tile, so that its codes
 * never leave a cache: the bytes of potluck_quantize and potluck_pack. dtype: FP32, BF16 or FP16.
 * Returns 0; 1 when a number is infinite or none; -1 without memory. */
POTLUCK_API int potluck_pack_from(potluck_pool *pool, int32_t format, int32_t n, int32_t k,
                                  const void *matrix, int32_t dtype, void *packed, int32_t step);
/* quantize.c: rows to codes and scales, on the calling thread. */
POTLUCK_API int potluck_quantize_int8(const void *matrix, int dtype, int64_t rows,
                                      int64_t columns, int8_t *codes, float *scales, int isa);
POTLUCK_API int potluck_quantize_nf4(const void *matrix, int dtype, int64_t groups,
                                     uint8_t *codes, float *scales, int isa);
/* Large, aligned, zeroed memory, in huge pages where the system gives them; NULL: none left. */
POTLUCK_API void *potluck_alloc(size_t bytes);
POTLUCK_API void potluck_release(void *memory, size_t bytes);

/* ---- activations (linear.c) -------------------------------------------------------------------
 * Rows are prepared once for a format, and then serve any number of products of that format and k.
 * What `codes` and `scales` hold is private to the instruction set in use. */
typedef struct potluck_rows {
    int32_t format, rows, k;
    void *codes;
    float *scales;
} potluck_rows;

POTLUCK_API size_t potluck_rows_bytes(int32_t format, int32_t rows, int32_t k);
/* Lays the rows out in `memory` (aligned to 64). */
POTLUCK_API potluck_rows potluck_rows_in(int32_t format, int32_t rows, int32_t k, void *memory);
/* Prepares rows first..last-1 of x, whose rows lie `stride` floats apart. Disjoint ranges may be
 * prepared on different threads at once. */
POTLUCK_API void potluck_prepare(const potluck_rows *rows, const float *x, ptrdiff_t stride,
                                 int32_t first, int32_t last);
/* The same for all rows, over the pool. */
POTLUCK_API void potluck_prepare_all(potluck_pool *pool, const potluck_rows *rows, const float *x,
                                     ptrdiff_t stride);

/* ---- products (linear.c) ----------------------------------------------------------------------
 * y[row * stride + output], output < n; nothing past n is touched. */
static inline int32_t potluck_tiles(int32_t n) { return (n + POTLUCK_LANES - 1) / POTLUCK_LANES; }

/* Tiles first..last-1 (16 outputs each) on the calling thread: to be used inside tasks. An even
 * `first` and an even number of tiles are fastest; every cut gives the same bits. */
POTLUCK_API void potluck_multiply_tiles(const potluck_linear *matrix, const potluck_rows *rows,
                                        float *y, ptrdiff_t stride, int32_t mode, int32_t first,
                                        int32_t last);
/* How many tiles make a good task for this many threads. */
POTLUCK_API int32_t potluck_tiles_a_task(const potluck_linear *matrix, int32_t rows, int32_t threads);
/* All tiles, over the pool. */
POTLUCK_API void potluck_multiply(potluck_pool *pool, const potluck_linear *matrix,
                                  const potluck_rows *rows, float *y, ptrdiff_t stride, int32_t mode);

/* ---- the CPU (cpu.c) --------------------------------------------------------------------------
 * Names: "scalar", "avx2", "avx512" (BW), "avx512vnni", "neon". The best that the CPU has is in use,
 * or what the environment variable POTLUCK_ISA names. */
POTLUCK_API const char *potluck_isa(void);
/* 0: in use from now on; -1: this build or this CPU has it not. Not while a product runs, and rows
 * have to be prepared anew. */
POTLUCK_API int potluck_use_isa(const char *name);
POTLUCK_API int potluck_has_isa(const char *name);
/* Bytes a second that `threads` threads read from memory, in the best of many runs of 16 MiB over
 * `bytes` (more than any cache holds: 256 MiB). 0: no memory or no threads, or less than 16 MiB. */
POTLUCK_API double potluck_read_bandwidth(int32_t threads, size_t bytes);
/* A hash of the sources this library was built of. */
POTLUCK_API const char *potluck_stamp(void);

#endif
