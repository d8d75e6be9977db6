/* Weights as stored, brought into the order in which the kernels read them. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "kernels.h"
#include "transpose.h"

const int16_t potluck_nf4_table[16] = {-3735, -2600, -1961, -1475, -1062, -690, -340, 0,
                                       297,   601,   919,   1262,  1646,  2101, 2700, 3735};

size_t potluck_packed_bytes(int32_t format, int32_t n, int32_t k) {
    if (format < 0 || format >= POTLUCK_FORMATS || n < 1 || k < 1) return 0;
    if (format == POTLUCK_NF4 && k % NF4_BLOCK) return 0;
    return potluck_tiles(n) * tile_bytes(format, k);
}

typedef struct {
    int32_t format, n, k, step;
    const char *codes;
    const float *scales;
    char *packed;
} packing;

static void pack_int8(const packing *job, int32_t first, int32_t count,
                      const char *const rows[16], char *tile) {
    size_t k = job->k, pairs = k / 2;
    float *scales = (float *)tile;
    char *to = tile + 64;
    for (int32_t lane = 0; lane < 16; lane++)
        scales[lane] = lane < count ? job->scales[first + lane] / 127.0f : 0.0f;
    memset(to + pairs * 32, 0, tile_bytes(POTLUCK_INT8, job->k) - 64 - pairs * 32);
    transpose_2(rows, 0, pairs, to);
    for (size_t lane = 0; lane < 16 && k % 2; lane++) to[pairs * 32 + lane * 2] = rows[lane][k - 1];
}

static void pack_nf4(const packing *job, int32_t first, int32_t count,
                     const char *const rows[16], char *tile) {
    int32_t blocks = job->k / NF4_BLOCK;
    for (int32_t block = 0; block < blocks; block++, tile += NF4_BLOCK_BYTES) {
        float *scales = (float *)tile;
        for (int32_t lane = 0; lane < 16; lane++)
            scales[lane] = lane < count
                               ? job->scales[(size_t)(first + lane) * blocks + block] / NF4_UNIT
                               : 0.0f;
        transpose_4(rows, block * 32, 8, tile + 64);
    }
}

static void pack_rows(const packing *job, int32_t first, int32_t count, char *tile) {
    size_t k = job->k;
    size_t row_bytes = job->format == POTLUCK_FP32 ? k * 4 : job->format == POTLUCK_NF4 ? k / 2
                       : job->format == POTLUCK_INT8 ? k : k * 2;
    const char *rows[16]; /* past the last output the first again: nobody reads those lanes */
    for (int32_t lane = 0; lane < 16; lane++)
        rows[lane] = job->codes + (first + (lane < count ? lane : 0)) * row_bytes;
    if (job->format == POTLUCK_INT8)
        pack_int8(job, first, count, rows, tile);
    else if (job->format == POTLUCK_NF4)
        pack_nf4(job, first, count, rows, tile);
    else if (job->format == POTLUCK_FP32)
        transpose_4(rows, 0, k, tile);
    else
        transpose_2(rows, 0, k, tile);
}

static char *tile_of(const packing *job, int32_t index) {
    return job->packed + (size_t)index * job->step * tile_bytes(job->format, job->k);
}

static void pack_tile(void *context, int32_t index, int32_t thread) {
    const packing *job = context;
    (void)thread;
    pack_rows(job, index * 16, least(16, job->n - index * 16), tile_of(job, index));
}

void potluck_pack(potluck_pool *pool, int32_t format, int32_t n, int32_t k, const void *codes,
                  const float *scales, void *packed, int32_t step) {
    packing job = {format, n, k, step, codes, scales, packed};
    potluck_pool_run(pool, pack_tile, &job, potluck_tiles(n));
}

typedef struct {
    packing pack; /* its codes and scales are a thread's, of one tile */
    const char *matrix;
    int32_t dtype, wrong;
    char *room; /* scales, then codes, for each thread */
    size_t scales_bytes, room_bytes;
} coding;

static void code_tile(void *context, int32_t index, int32_t thread) {
    coding *job = context;
    packing own = job->pack;
    int32_t first = index * 16, count = least(16, own.n - first), wrong;
    char *scales = job->room + thread * job->room_bytes, *codes = scales + job->scales_bytes;
    size_t row_bytes = (size_t)own.k * (job->dtype == POTLUCK_FP32 ? 4 : 2);
    const char *from = job->matrix + first * row_bytes;
    if (own.format == POTLUCK_INT8)
        wrong = potluck_quantize_int8(from, job->dtype, count, own.k, (int8_t *)codes,
                                      (float *)scales, 0);
    else
        wrong = potluck_quantize_nf4(from, job->dtype, (int64_t)count * (own.k / NF4_BLOCK),
                                     (uint8_t *)codes, (float *)scales, 0);
    if (wrong) {
        __atomic_store_n(&job->wrong, 1, __ATOMIC_RELAXED);
        return;
    }
    own.codes = codes;
    own.scales = (float *)scales;
    pack_rows(&own, 0, count, tile_of(&own, index));
}

int potluck_pack_from(potluck_pool *pool, int32_t format, int32_t n, int32_t k,
                      const void *matrix, int32_t dtype, void *packed, int32_t step) {
    coding job = {.pack = {format, n, k, step, NULL, NULL, packed}, .matrix = matrix,
                  .dtype = dtype};
    job.scales_bytes = 16 * (size_t)blocks_of(k, NF4_BLOCK) * sizeof(float);
    job.room_bytes = job.scales_bytes + 16 * (size_t)k;
    job.room_bytes = (job.room_bytes + 63) / 64 * 64;
    job.room = malloc(job.room_bytes * potluck_pool_threads(pool));
    if (!job.room) return -1;
    potluck_pool_run(pool, code_tile, &job, potluck_tiles(n));
    free(job.room);
    return job.wrong;
}

enum { HUGE_PAGE = 2 << 20, PAGE = 16 << 10 }; /* PAGE: the largest common one */

static size_t mapped_bytes(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

/* From 2 MiB on a mapping of its own that begins at a multiple of 2 MiB. */
void *potluck_alloc(size_t bytes) {
    if (bytes < HUGE_PAGE) {
        size_t size = (bytes + 63) / 64 * 64 + 64;
        void *memory = NULL;
        if (posix_memalign(&memory, 64, size)) return NULL;
        return memset(memory, 0, size);
    }
    size_t size = mapped_bytes(bytes);
    char *area = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
    if (area == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)area % HUGE_PAGE) % HUGE_PAGE;
    if (before) munmap(area, before);
    munmap(area + before + size, HUGE_PAGE - before);
#ifdef MADV_HUGEPAGE
    madvise(area + before, size, MADV_HUGEPAGE);
#endif
    return area + before;
}

void potluck_release(void *memory, size_t bytes) {
    if (memory == NULL) return;
    if (bytes < HUGE_PAGE)
        free(memory);
    else
        munmap(memory, mapped_bytes(bytes));
}
