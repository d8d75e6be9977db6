/* Matrix products for AVX2 with FMA: vectors of 8, pmaddwd. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#define TARGET __attribute__((target("avx2,fma,f16c")))
#define KERNELS potluck_linear_avx2
#define ISA_NAME "avx2"
#define WIDTH 8
#define TILES 1
#define ROWS 4
/* unpacking is dear here */
#define THROUGH_PANEL(is_nf4, rows) ((rows) > ((is_nf4) ? 4 : 24))
#define BY_TILE(is_nf4, rows) 0

typedef __m256i vi;
typedef __m256 vf;
typedef __m256i vx;

static int supported(void) {
    /* F16C is older than both; not every compiler knows its name here */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

OP vi none(void) { return _mm256_setzero_si256(); }
OP vi add_ints(vi a, vi b) { return _mm256_add_epi32(a, b); }
OP vi dot(vi sum, vi w, vx x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
OP vi load_pairs(const int16_t *at) { return _mm256_load_si256((const vi *)at); }
OP void store_pairs(int16_t *at, vi w) { _mm256_store_si256((vi *)at, w); }
OP vx all_pairs(const int16_t *at) { return _mm256_castps_si256(_mm256_broadcast_ss((const float *)at)); }
OP vf to_floats(vi a) { return _mm256_cvtepi32_ps(a); }
OP vf all(float a) { return _mm256_set1_ps(a); }
OP vf load(const float *at) { return _mm256_load_ps(at); }
OP void store(float *at, vf a) { _mm256_store_ps(at, a); }
OP vf load_unaligned(const float *at) { return _mm256_loadu_ps(at); }
OP void store_unaligned(float *at, vf a) { _mm256_storeu_ps(at, a); }
OP vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
OP vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
OP vf fma_(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
OP vf load_bf16(const uint16_t *at) {
    vi wide = _mm256_cvtepu16_epi32(_mm_load_si128((const __m128i *)at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
OP vf load_fp16(const uint16_t *at) { return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)at)); }

OP void unpack_int8(const char *codes, vi w[4][2]) {
    for (int i = 0; i < 8; i++)
        w[i / 2][i % 2] = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(codes + i * 16)));
}

/* 8 words of 4 bytes: bytes are looked up (the two halves of a code's value in two tables), paired
 * to 16 bits, and brought from (output, pair) to (pair, output): k 1 3, 5 7, 0 2, 4 6. */
OP void unpack_nf4(const char *codes, vi w[4][2]) {
#define TABLE(OF)                                                                                   \
    _mm256_broadcastsi128_si256(_mm_setr_epi8(                                                      \
        OF(-3735), OF(-2600), OF(-1961), OF(-1475), OF(-1062), OF(-690), OF(-340), OF(0), OF(297),  \
        OF(601), OF(919), OF(1262), OF(1646), OF(2101), OF(2700), OF(3735)))
#define LOW_BYTE(value) ((char)(value))
#define HIGH_BYTE(value) ((char)((value) >> 8))
    const vi low = TABLE(LOW_BYTE), high = TABLE(HIGH_BYTE);
    const vi nibble = _mm256_set1_epi8(15);
    for (int half = 0; half < 2; half++) {
        vi bytes = _mm256_load_si256((const vi *)(codes + half * 32));
        for (int shifted = 0; shifted < 2; shifted++) {
            vi index = _mm256_and_si256(shifted ? _mm256_srli_epi16(bytes, 4) : bytes, nibble);
            vi lows = _mm256_shuffle_epi8(low, index), highs = _mm256_shuffle_epi8(high, index);
            vf a = _mm256_castsi256_ps(_mm256_unpacklo_epi8(lows, highs));
            vf b = _mm256_castsi256_ps(_mm256_unpackhi_epi8(lows, highs));
            w[shifted * 2][half] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
            w[shifted * 2 + 1][half] = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
        }
    }
}

OP uint32_t largest_bits(const float *x, int32_t count) {
    const vi magnitude = _mm256_set1_epi32(0x7fffffff);
    vi a = none(), b = none();
    for (int32_t i = 0; i < count; i += 16) {
        a = _mm256_max_epi32(a, _mm256_and_si256(_mm256_loadu_si256((const vi *)(x + i)), magnitude));
        b = _mm256_max_epi32(b, _mm256_and_si256(_mm256_loadu_si256((const vi *)(x + i + 8)), magnitude));
    }
    a = _mm256_max_epi32(a, b);
    __m128i c = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    c = _mm_max_epi32(c, _mm_shuffle_epi32(c, 0x4e));
    c = _mm_max_epi32(c, _mm_shuffle_epi32(c, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(c);
}

OP void round_values(const float *x, float by, int16_t *to, int32_t count, int is_nf4) {
    const vi order = is_nf4 ? _mm256_setr_epi32(1, 3, 5, 7, 0, 2, 4, 6)
                            : _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (int32_t i = 0; i < count; i += 8) {
        vi q = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), all(by)));
        q = _mm256_permutevar8x32_epi32(q, order);
        _mm_storeu_si128((__m128i *)(to + i), _mm_packs_epi32(_mm256_castsi256_si128(q),
                                                              _mm256_extracti128_si256(q, 1)));
    }
}

#include "linear.inc"
#endif
