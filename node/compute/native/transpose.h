/* 16 rows of units of 2 or 4 bytes become units of 16 lanes: how packing moves bytes fast. */
#ifndef POTLUCK_TRANSPOSE_H
#define POTLUCK_TRANSPOSE_H

#include <stddef.h>
#include <string.h>

#if defined(__SSE2__)
#include <emmintrin.h>
typedef __m128i sixteen_bytes;
#define LOAD16(at) _mm_loadu_si128((const __m128i *)(at))
#define STORE16(at, a) _mm_storeu_si128((__m128i *)(at), a)
#define ZIP16(a, b, to, half) (to = half ? _mm_unpackhi_epi16(a, b) : _mm_unpacklo_epi16(a, b))
#define ZIP32(a, b, to, half) (to = half ? _mm_unpackhi_epi32(a, b) : _mm_unpacklo_epi32(a, b))
#define ZIP64(a, b, to, half) (to = half ? _mm_unpackhi_epi64(a, b) : _mm_unpacklo_epi64(a, b))
#elif defined(__aarch64__)
#include <arm_neon.h>
typedef uint8x16_t sixteen_bytes;
#define LOAD16(at) vld1q_u8((const uint8_t *)(at))
#define STORE16(at, a) vst1q_u8((uint8_t *)(at), a)
#define ZIP_AS(bits, a, b, to, half)                                                      \
    (to = vreinterpretq_u8_u##bits(                                                       \
         half ? vzip2q_u##bits(vreinterpretq_u##bits##_u8(a), vreinterpretq_u##bits##_u8(b)) \
              : vzip1q_u##bits(vreinterpretq_u##bits##_u8(a), vreinterpretq_u##bits##_u8(b))))
#define ZIP16(a, b, to, half) ZIP_AS(16, a, b, to, half)
#define ZIP32(a, b, to, half) ZIP_AS(32, a, b, to, half)
#define ZIP64(a, b, to, half) ZIP_AS(64, a, b, to, half)
#endif

/* Unit u of row r goes to (u * 16 + r) * size; from `at` on, in bytes of a row. */
__attribute__((noinline)) static void transpose_plainly(const char *const rows[16], size_t at, ptrdiff_t first,
                                     ptrdiff_t last, size_t size, char *to) {
    for (ptrdiff_t u = first; u < last; u++)
        for (ptrdiff_t r = 0; r < 16; r++)
            memcpy(to + (u * 16 + r) * size, rows[r] + at + u * size, size);
}

#ifdef LOAD16
static inline void transpose_2(const char *const rows[16], size_t at, ptrdiff_t units, char *to) {
    ptrdiff_t u = 0;
    for (; u + 8 <= units; u += 8)
        for (int side = 0; side < 2; side++) {
            sixteen_bytes a[8], b[8];
            for (int r = 0; r < 8; r++) a[r] = LOAD16(rows[side * 8 + r] + at + u * 2);
            for (int i = 0; i < 4; i++) { /* rows 2i, 2i+1 of columns 0-3, and of 4-7 */
                ZIP16(a[2 * i], a[2 * i + 1], b[i], 0);
                ZIP16(a[2 * i], a[2 * i + 1], b[4 + i], 1);
            }
            for (int i = 0; i < 4; i++) { /* rows 4(i%2).. of columns 2(i/2)., and so on */
                ZIP32(b[2 * i], b[2 * i + 1], a[2 * i], 0);
                ZIP32(b[2 * i], b[2 * i + 1], a[2 * i + 1], 1);
            }
            for (int pair = 0; pair < 4; pair++) {
                int i = pair / 2 * 4 + pair % 2;
                ZIP64(a[i], a[i + 2], b[2 * pair], 0);
                ZIP64(a[i], a[i + 2], b[2 * pair + 1], 1);
            }
            for (int c = 0; c < 8; c++) STORE16(to + (u + c) * 32 + side * 16, b[c]);
        }
    transpose_plainly(rows, at, u, units, 2, to);
}

static inline void transpose_4(const char *const rows[16], size_t at, ptrdiff_t units, char *to) {
    ptrdiff_t u = 0;
    for (; u + 4 <= units; u += 4)
        for (int side = 0; side < 4; side++) {
            sixteen_bytes a[4], b[4];
            for (int r = 0; r < 4; r++) a[r] = LOAD16(rows[side * 4 + r] + at + u * 4);
            for (int i = 0; i < 2; i++) {
                ZIP32(a[2 * i], a[2 * i + 1], b[i], 0);
                ZIP32(a[2 * i], a[2 * i + 1], b[2 + i], 1);
            }
            for (int i = 0; i < 2; i++) {
                ZIP64(b[2 * i], b[2 * i + 1], a[2 * i], 0);
                ZIP64(b[2 * i], b[2 * i + 1], a[2 * i + 1], 1);
            }
            for (int c = 0; c < 4; c++) STORE16(to + (u + c) * 64 + side * 16, a[c]);
        }
    transpose_plainly(rows, at, u, units, 4, to);
}
#else
static inline void transpose_2(const char *const rows[16], size_t at, ptrdiff_t units, char *to) {
    transpose_plainly(rows, at, 0, units, 2, to);
}
static inline void transpose_4(const char *const rows[16], size_t at, ptrdiff_t units, char *to) {
    transpose_plainly(rows, at, 0, units, 4, to);
}
#endif

#endif
