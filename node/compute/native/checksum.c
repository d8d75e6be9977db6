/* Sums of lines of 64-bit words, each word times a factor of its place, modulo 2^64.
 *
 * What finds damage in kept blocks (quant/larder.py), at the speed of memory: one product a word,
 * in several chains at once.
 */
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { CHAINS = 16 };

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

/* words (lines, width), factors (width), width a multiple of 16, to sums (lines). */
EXPORT void potluck_line_sums(const uint64_t *words, int64_t lines, int64_t width,
                              const uint64_t *factors, uint64_t *sums) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        lines_avx512(words, lines, width, factors, sums);
        return;
    }
#endif
    lines_plain(words, lines, width, factors, sums);
}
