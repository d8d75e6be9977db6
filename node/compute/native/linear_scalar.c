/* Matrix products in plain C: what every other instruction set has to equal, bit for bit. */
#include <math.h>

#include "kernels.h"

static int supported(void) { return 1; }

static void prepare(const potluck_rows *rows, const float *x, ptrdiff_t stride, int32_t first,
                    int32_t last) {
    int32_t k = rows->k, group = rows->format == POTLUCK_NF4 ? NF4_BLOCK : INT_BLOCK;
    float limit = rows->format == POTLUCK_NF4 ? NF4_LIMIT : INT8_LIMIT;
    int16_t *codes = rows->codes;
    for (int32_t row = first; row < last; row++) {
        const float *from = x + row * stride;
        for (int32_t at = 0; at < blocks_of(k, INT_BLOCK) * INT_BLOCK; at += group) {
            int32_t count = at < k ? least(group, k - at) : 0;
            uint32_t largest = 0;
            for (int32_t i = 0; i < count; i++) {
                uint32_t bits = bits_of_float(from[at + i]) & 0x7fffffff;
                if (bits > largest) largest = bits;
            }
            float inverse, step = step_of(largest, limit, &inverse);
            if (count) rows->scales[(size_t)(at / group) * rows->rows + row] = step;
            int16_t *to = codes + ((size_t)(at / INT_BLOCK) * rows->rows + row) * INT_BLOCK
                          + at % INT_BLOCK;
            for (int32_t i = 0; i < group; i++)
                to[i] = i < count && inverse != 0.0f ? (int16_t)lrintf(from[at + i] * inverse) : 0;
        }
    }
}

static float stored_weight(int32_t format, const void *codes, size_t at) {
    if (format == POTLUCK_FP32) return ((const float *)codes)[at];
    uint16_t bits = ((const uint16_t *)codes)[at];
    return format == POTLUCK_BF16 ? float_of_bf16(bits) : float_of_fp16(bits);
}

static float dot_stored(const potluck_linear *matrix, const potluck_rows *rows, const void *tile,
                        int32_t row, int32_t lane) {
    float y = 0.0f;
    for (int32_t at = 0; at < matrix->k; at += FLOAT_BLOCK) {
        const float *x = (const float *)rows->codes
                         + ((size_t)(at / FLOAT_BLOCK) * rows->rows + row) * FLOAT_BLOCK;
        int32_t count = least(FLOAT_BLOCK, matrix->k - at);
        float sum = 0.0f;
        for (int32_t i = 0; i < count; i++)
            sum = fmaf(x[i], stored_weight(matrix->format, tile, (size_t)(at + i) * 16 + lane), sum);
        y = y + sum;
    }
    return y;
}

static float dot_int8(const potluck_linear *matrix, const potluck_rows *rows, const void *tile,
                      int32_t row, int32_t lane) {
    const int8_t *codes = (const int8_t *)tile + 64;
    float y = 0.0f;
    for (int32_t at = 0; at < matrix->k; at += INT_BLOCK) {
        size_t block = (size_t)(at / INT_BLOCK) * rows->rows + row;
        const int16_t *x = (const int16_t *)rows->codes + block * INT_BLOCK;
        int32_t count = least(INT_BLOCK, matrix->k - at), sum = 0;
        for (int32_t i = 0; i < count; i++)
            sum += x[i] * codes[(size_t)((at + i) / 2) * 32 + lane * 2 + i % 2];
        y = fmaf((float)sum, rows->scales[block], y);
    }
    return y * ((const float *)tile)[lane];
}

static float dot_nf4(const potluck_linear *matrix, const potluck_rows *rows, const void *tile,
                     int32_t row, int32_t lane) {
    float y = 0.0f;
    for (int32_t at = 0; at < matrix->k; at += NF4_BLOCK) {
        const uint8_t *group = (const uint8_t *)tile + (size_t)(at / NF4_BLOCK) * NF4_BLOCK_BYTES;
        const int16_t *x = (const int16_t *)rows->codes + at % INT_BLOCK
                           + ((size_t)(at / INT_BLOCK) * rows->rows + row) * INT_BLOCK;
        int32_t sum = 0;
        for (int32_t i = 0; i < NF4_BLOCK; i++) {
            uint8_t byte = group[64 + (i / 8) * 64 + lane * 4 + i % 8 / 2];
            sum += x[i] * potluck_nf4_table[i % 2 ? byte & 15 : byte >> 4];
        }
        float scaled = (float)sum * ((const float *)group)[lane];
        y = fmaf(scaled, rows->scales[(size_t)(at / NF4_BLOCK) * rows->rows + row], y);
    }
    return y;
}

static void multiply(const potluck_linear *matrix, const potluck_rows *rows, float *y,
                     ptrdiff_t stride, int32_t mode, int32_t first, int32_t last) {
    for (int32_t tile = first; tile < last; tile++) {
        const char *codes = (const char *)matrix->codes + tile * tile_bytes(matrix->format, matrix->k);
        for (int32_t row = 0; row < rows->rows; row++)
            for (int32_t lane = 0; lane < 16 && tile * 16 + lane < matrix->n; lane++) {
                int32_t output = tile * 16 + lane;
                float value = matrix->format == POTLUCK_INT8  ? dot_int8(matrix, rows, codes, row, lane)
                              : matrix->format == POTLUCK_NF4 ? dot_nf4(matrix, rows, codes, row, lane)
                                                              : dot_stored(matrix, rows, codes, row, lane);
                if (matrix->bias) value = value + matrix->bias[output];
                float *to = y + row * stride + output;
                *to = mode == POTLUCK_ADD ? *to + value : value;
            }
    }
}

const potluck_kernels potluck_linear_scalar = {"scalar", supported, prepare, multiply};
