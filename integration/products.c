/* Products of every format on every instruction set of this machine, as hashes of their bits:
 *     format rows isa hash
 * one line each. test_neon.py runs it here and on an emulated ARM. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "linear.h"

enum { N = 45, K = 320, ROWS_MAX = 21 };

static uint32_t state = 1;

static float drawn(void) { /* -1 .. 1, the same on every machine */
    state = state * 1664525u + 1013904223u;
    return (float)(int32_t)(state >> 8) / 8388608.0f - 1.0f;
}

static uint64_t hash_of(const void *memory, size_t bytes) { /* FNV-1a */
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const unsigned char *)memory)[i]) * 0x100000001b3u;
    return hash;
}

static void *room_for(size_t bytes) {
    void *memory = potluck_alloc(bytes);
    if (!memory) exit(2);
    return memory;
}

static void *packed(int32_t format, const float *matrix) {
    static uint16_t halves[N * K];
    void *into = room_for(potluck_packed_bytes(format, N, K));
    if (format == POTLUCK_INT8 || format == POTLUCK_NF4) {
        if (potluck_pack_from(NULL, format, N, K, matrix, POTLUCK_FP32, into, 1)) exit(3);
        return into;
    }
    for (int i = 0; i < N * K; i++) { /* any bits that stand for a number near 1 */
        uint32_t bits;
        memcpy(&bits, matrix + i, sizeof bits);
        halves[i] = format == POTLUCK_BF16 ? bits >> 16 : (bits >> 16 & 0xb3ff) | 0x0400;
    }
    potluck_pack(NULL, format, N, K, format == POTLUCK_FP32 ? (const void *)matrix : halves, NULL,
                 into, 1);
    return into;
}

int main(void) {
    static const char *const ISAS[] = {"scalar", "avx2", "avx512", "avx512vnni", "neon"};
    static float matrix[N * K], x[ROWS_MAX * K], y[ROWS_MAX * N];
    for (int i = 0; i < N * K; i++) matrix[i] = drawn();
    for (int i = 0; i < ROWS_MAX * K; i++) x[i] = drawn() * (i % 97 ? 1.0f : 900.0f);
    for (int32_t format = 0; format < POTLUCK_FORMATS; format++) {
        potluck_linear linear = {format, N, K, packed(format, matrix), NULL};
        for (int32_t count = 1; count <= ROWS_MAX; count += 5) {
            void *memory = room_for(potluck_rows_bytes(format, count, K));
            for (size_t i = 0; i < sizeof ISAS / sizeof *ISAS; i++) {
                if (potluck_use_isa(ISAS[i])) continue;
                potluck_rows rows = potluck_rows_in(format, count, K, memory);
                potluck_prepare(&rows, x, K, 0, count);
                memset(y, 0, sizeof y);
                potluck_multiply(NULL, &linear, &rows, y, N, POTLUCK_STORE);
                printf("%d %d %s %016llx\n", format, count, ISAS[i],
                       (unsigned long long)hash_of(y, (size_t)count * N * sizeof *y));
            }
        }
    }
    return 0;
}
