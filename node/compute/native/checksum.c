/* Sums of lines of 64-bit words, each word times a factor of its place, modulo 2^64.
 *
 * What finds damage in kept blocks (quant/larder.py), at the speed of memory: one product a word,
 * in several chains at once.
 */
#include "linear.h"

enum { CHAINS = 16, LINES_A_TASK = 8 }; /* of 32 KiB each: some 10 us */

#define LINES(name, target)                                                                        \
    target static void lines_##name(const uint64_t *words, int64_t lines, int64_t width,           \
                                    const uint64_t *factors, uint64_t *sums) {                     \
        for (int64_t line = 0; line < lines; line++) {                                             \
            const uint64_t *at = words + line * width;                                             \
            uint64_t chains[CHAINS] = {0};                                                         \
            for (int64_t i = 0; i < width; i += CHAINS)                                            \
                for (int c = 0; c < CHAINS; c++) chains[c] += at[i + c] * factors[i + c];          \
            uint64_t sum = 0;                                                                      \
            for (int c = 0; c < CHAINS; c++) sum += chains[c];                                     \
            sums[line] = sum;                                                                      \
        }                                                                                          \
    }

/* Only AVX-512 has a product of 64 bits; without it the plain one is twice as fast as vectors'. */
#if defined(__GNUC__) && !defined(__clang__)
LINES(plain, __attribute__((optimize("no-tree-vectorize"))))
#else
LINES(plain, )
#endif
#if defined(__x86_64__) && defined(__GNUC__)
LINES(avx512, __attribute__((target("avx512f,avx512dq,avx512vl"))))
#endif

typedef struct {
    const uint64_t *words, *factors;
    uint64_t *sums;
    int64_t lines, width;
} summing;

static void sum_lines(void *context, int32_t index, int32_t thread) {
    (void)thread;
    const summing *job = context;
    int64_t first = (int64_t)index * LINES_A_TASK, left = job->lines - first;
    int64_t lines = left < LINES_A_TASK ? left : LINES_A_TASK;
    const uint64_t *words = job->words + first * job->width;
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        lines_avx512(words, lines, job->width, job->factors, job->sums + first);
        return;
    }
#endif
    lines_plain(words, lines, job->width, job->factors, job->sums + first);
}

/* words (lines, width), factors (width), width a multiple of 16, to sums (lines). */
POTLUCK_API void potluck_line_sums(potluck_pool *pool, const uint64_t *words, int64_t lines,
                                   int64_t width, const uint64_t *factors, uint64_t *sums) {
    summing job = {words, factors, sums, lines, width};
    potluck_pool_run(pool, sum_lines, &job, (int32_t)((lines + LINES_A_TASK - 1) / LINES_A_TASK));
}
