/* What the files of the matrix products share: the layouts, and the table of one instruction set.
 *
 * Packed weights, by tiles of 16 outputs:
 *   stored  [k][16] of the stored type
 *   int8    16 floats SCB/127, then [k to a multiple of 8 / 2][16][2] int8: pairs of k side by side,
 *           as pmaddwd and vpdpwssd take them once widened
 *   nf4     for each 64 of k: 16 floats absmax/3735, then [8][16] words of 32 bits, each the 8 codes
 *           of one output as bitsandbytes stores them (4 bytes, high nibble first)
 * Prepared rows: values [block][rows][block size], so rows lie a constant apart, and steps
 *   [quantization block][rows]. A block is 128 floats, or 256 int16 (nf4: four steps a block), filled
 *   up with zeros. An instruction set may order the 8 values of a group of 8 as its unpacking wants. */
#ifndef POTLUCK_KERNELS_H
#define POTLUCK_KERNELS_H

#include <string.h>

#include "linear.h"

enum {
    FLOAT_BLOCK = 128,
    INT_BLOCK = 256,
    NF4_BLOCK = 64,
    NF4_BLOCK_BYTES = 64 + 512,
    INT8_LIMIT = 32767, /* 256 * 32767 * 128 = 2^31 - 65536 * 16 < 2^31 */
    NF4_LIMIT = 8983,   /*  64 * 8983 * 3735 = 2147296320      < 2^31 */
    NF4_UNIT = 3735,    /* of the integers up to 4095 the one that renders the codebook best: 1e-4 */
    ROWS_A_PANEL = 128, /* rows that share one unpacking of the weights */
};
_Static_assert((int64_t)INT_BLOCK * INT8_LIMIT * 128 <= INT32_MAX, "int8 sums fit an int32");
_Static_assert((int64_t)NF4_BLOCK * NF4_LIMIT * NF4_UNIT <= INT32_MAX, "nf4 sums fit an int32");

static const float SMALLEST_MAGNITUDE = 1e-30f; /* of a block that is not taken for zeros */

/* The nf4 codebook times 3735, rounded. */
extern const int16_t potluck_nf4_table[16];

/* Of a file whose TARGET names an instruction set. */
#define OP TARGET static inline __attribute__((always_inline))

typedef struct potluck_kernels {
    const char *name;
    int (*supported)(void);
    /* as potluck_prepare, for int8 and nf4; for stored weights it is one for all */
    void (*prepare)(const potluck_rows *rows, const float *x, ptrdiff_t stride, int32_t first,
                    int32_t last);
    /* as potluck_multiply_tiles */
    void (*multiply)(const potluck_linear *matrix, const potluck_rows *rows, float *y,
                     ptrdiff_t stride, int32_t mode, int32_t first, int32_t last);
} potluck_kernels;

extern const potluck_kernels potluck_linear_scalar;
extern const potluck_kernels potluck_linear_avx2;
extern const potluck_kernels potluck_linear_avx512;
extern const potluck_kernels potluck_linear_avx512vnni;
extern const potluck_kernels potluck_linear_neon;

const potluck_kernels *potluck_kernels_in_use(void);

static inline int32_t blocks_of(int32_t k, int32_t block) { return (k + block - 1) / block; }
static inline int32_t least(int32_t a, int32_t b) { return a < b ? a : b; }

/* Bytes of one packed tile. */
static inline size_t tile_bytes(int32_t format, int32_t k) {
    switch (format) {
    case POTLUCK_FP32: return (size_t)k * 64;
    case POTLUCK_BF16:
    case POTLUCK_FP16: return (size_t)k * 32;
    case POTLUCK_INT8: return 64 + (size_t)blocks_of(k, 8) * 128;
    default: return (size_t)(k / NF4_BLOCK) * NF4_BLOCK_BYTES;
    }
}

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of_bf16(uint16_t bits) { return float_of_bits((uint32_t)bits << 16); }

static inline float float_of_fp16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x0400) return float_of_bits(sign | ((rest << 13) + 0x38000000));
    float small = (float)rest * 0x1p-24f; /* zero or subnormal: exact */
    return float_of_bits(sign | bits_of_float(small));
}

/* The step of a block whose largest magnitude has these bits, and what x is multiplied by. A block
 * that is not finite gets a step that is not a number. */
static inline float step_of(uint32_t largest_bits, float limit, float *inverse) {
    float largest = float_of_bits(largest_bits);
    *inverse = 0.0f;
    if (largest_bits >= 0x7f800000) return float_of_bits(0x7fc00000);
    if (largest < SMALLEST_MAGNITUDE) return 0.0f;
    *inverse = limit / largest;
    return largest / limit;
}

#endif
