/* Numbers to int8 and nf4, byte for byte as bitsandbytes 0.50 stores them.
 *
 *   int8  a row: scale = max |w|;        code = round to even of w * ((1 / scale) * 127)
 *   nf4   64 columns: scale = max |w|;   code = how many of 15 bounds are below w * (1 / scale)
 *
 * The loops stand in quantize.inc, compiled once for each kind of vector and chosen when called. No
 * sum is involved, so that all of them give the same bytes. Threads are the caller's: rows are cut
 * between calls.
 *
 * Source: bitsandbytes, backends/default/ops.py (int8_vectorwise_quant, quantize_4bit).
 */
#include <stdint.h>
#include <string.h>

#include "linear.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#include <immintrin.h>
#else
#define X86 0
#endif

#define ALWAYS static inline __attribute__((always_inline))

enum { FP32 = 0, BF16 = 1, FP16 = 2 };
enum { GROUP = 64, CHUNK = 1024 }; /* a chunk: numbers widened at once, that the first cache holds */

#define INFINITE 0x7f800000u
#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding it rounds to even, into the lowest bits */

/* Halfway between the neighbours of the codebook, in fp32: torch's (code[1:] + code[:-1]) / 2. */
static const float BOUNDS[15] = {
    -0x1.b239b00000000p-1f, -0x1.38a4e00000000p-1f, -0x1.d709000000000p-2f, -0x1.5bd4ec0000000p-2f,
    -0x1.e079d80000000p-3f, -0x1.1a71780000000p-3f, -0x1.74f0e20000000p-5f, 0x1.45f5fe0000000p-5f,
    0x1.ec90c40000000p-4f, 0x1.a0cfc00000000p-3f, 0x1.2b05a80000000p-2f, 0x1.8ea7f20000000p-2f,
    0x1.00da080000000p-1f, 0x1.491b5e0000000p-1f, 0x1.b913b40000000p-1f,
};

ALWAYS uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

ALWAYS float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Half precision without a half type, and without arithmetic on numbers below the normal ones. */
ALWAYS float half_of(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t rest = (uint32_t)(half & 0x7fffu) << 13;
    uint32_t exponent = rest & 0x0f800000u;
    uint32_t normal = rest + (112u << 23);
    uint32_t large = normal + (112u << 23); /* infinite, or not a number */
    float small = float_of(rest + (113u << 23)) - float_of(113u << 23);
    uint32_t bits = exponent == 0x0f800000u ? large : exponent ? normal : bits_of(small);
    return float_of(bits | sign);
}

#define NAME(function) function##_plain
#define TARGET
#define LANES 1
#include "quantize.inc"

#if X86
#define NAME(function) function##_avx2
#define TARGET __attribute__((target("avx2,f16c")))
#define LANES 8
#include "quantize.inc"

#define NAME(function) function##_avx512
#if defined(__clang__)
#define WIDE
#else
#define WIDE ",prefer-vector-width=512" /* a 512-bit load of what 256-bit stores wrote has to wait */
#endif
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,f16c" WIDE)))
#define LANES 16
#include "quantize.inc"
#endif

/* isa: 0 the best there is, 1 plain, 2 AVX2, 3 AVX-512; one that is missing falls back. */
#if X86
static int usable(int isa) {
    int best = 1;
    if (__builtin_cpu_supports("avx2")) best = 2;
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        best = 3;
    return isa == 0 || isa > best ? best : isa;
}
#endif

/* matrix (rows, columns) to codes (rows, columns) and scales (rows). dtype: 0 fp32, 1 bf16, 2 fp16.
 * Returns 0, or 1 when a number is infinite or none. */
POTLUCK_API int potluck_quantize_int8(const void *matrix, int dtype, int64_t rows, int64_t columns,
                                 int8_t *codes, float *scales, int isa) {
#if X86
    isa = usable(isa);
    if (isa == 3) return int8_avx512(matrix, dtype, rows, columns, codes, scales);
    if (isa == 2) return int8_avx2(matrix, dtype, rows, columns, codes, scales);
#else
    (void)isa;
#endif
    return int8_plain(matrix, dtype, rows, columns, codes, scales);
}

/* groups of 64 numbers to 32 bytes and one scale each. Returns as above. */
POTLUCK_API int potluck_quantize_nf4(const void *matrix, int dtype, int64_t groups, uint8_t *codes,
                                float *scales, int isa) {
#if X86
    isa = usable(isa);
    if (isa == 3) return nf4_avx512(matrix, dtype, groups, codes, scales);
    if (isa == 2) return nf4_avx2(matrix, dtype, groups, codes, scales);
#else
    (void)isa;
#endif
    return nf4_plain(matrix, dtype, groups, codes, scales);
}
