/* Sixteen floats as one value, the same numbers on every processor.
 *
 * Included by between.inc once for each instruction set, after one of POTLUCK_AVX512, POTLUCK_AVX2,
 * POTLUCK_NEON is defined, or none. However wide the registers are, a lane is computed by the same
 * IEEE operations in the same order, and sums over lanes fold in one fixed order: so that equal
 * inputs give equal bits everywhere. Compile with -ffp-contract=off: a product and a sum are fused
 * where `fma16` says so and nowhere else.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define FOR_LANES for (int lane = 0; lane < LANES; lane++)

#if defined(POTLUCK_AVX512)
#include <immintrin.h>
typedef struct { __m512 v; } f16;
static INLINE f16 load16(const float *p) { return (f16){_mm512_loadu_ps(p)}; }
static INLINE void store16(float *p, f16 a) { _mm512_storeu_ps(p, a.v); }
static INLINE f16 all16(float x) { return (f16){_mm512_set1_ps(x)}; }
static INLINE f16 add16(f16 a, f16 b) { return (f16){_mm512_add_ps(a.v, b.v)}; }
static INLINE f16 sub16(f16 a, f16 b) { return (f16){_mm512_sub_ps(a.v, b.v)}; }
static INLINE f16 mul16(f16 a, f16 b) { return (f16){_mm512_mul_ps(a.v, b.v)}; }
static INLINE f16 div16(f16 a, f16 b) { return (f16){_mm512_div_ps(a.v, b.v)}; }
static INLINE f16 max16(f16 a, f16 b) { return (f16){_mm512_max_ps(a.v, b.v)}; }
static INLINE f16 min16(f16 a, f16 b) { return (f16){_mm512_min_ps(a.v, b.v)}; }
static INLINE f16 fma16(f16 a, f16 b, f16 c) { return (f16){_mm512_fmadd_ps(a.v, b.v, c.v)}; }
/* a * b - c is not offered: -(a * b) + c is, since all sets have it in one instruction */
static INLINE f16 fnma16(f16 a, f16 b, f16 c) { return (f16){_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
/* the float whose bits are a's plus b's << 23, b a small whole number held in the low bits */
static INLINE f16 scale16(f16 a, f16 bits) {
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(bits.v), 23);
    return (f16){_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), n))};
}
/* a where x >= limit, else 0 */
static INLINE f16 keep_from16(f16 a, f16 x, float limit) {
    __mmask16 m = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_GE_OQ);
    return (f16){_mm512_maskz_mov_ps(m, a.v)};
}
static INLINE f16 bytes16(const int8_t *p) {
    return (f16){_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)))};
}

#elif defined(POTLUCK_AVX2)
#include <immintrin.h>
typedef struct { __m256 a, b; } f16;
#define PAIR(expression_a, expression_b) ((f16){(expression_a), (expression_b)})
static INLINE f16 load16(const float *p) {
    return PAIR(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
static INLINE void store16(float *p, f16 x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
static INLINE f16 all16(float x) { return PAIR(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
#define OF_TWO(name, each)                                                                         \
    static INLINE f16 name(f16 x, f16 y) { return PAIR(each(x.a, y.a), each(x.b, y.b)); }
OF_TWO(add16, _mm256_add_ps)
OF_TWO(sub16, _mm256_sub_ps)
OF_TWO(mul16, _mm256_mul_ps)
OF_TWO(div16, _mm256_div_ps)
OF_TWO(max16, _mm256_max_ps)
OF_TWO(min16, _mm256_min_ps)
static INLINE f16 fma16(f16 x, f16 y, f16 z) {
    return PAIR(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
static INLINE f16 fnma16(f16 x, f16 y, f16 z) {
    return PAIR(_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b));
}
static INLINE __m256 scale8(__m256 a, __m256 bits) {
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(bits), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), n));
}
OF_TWO(scale16, scale8)
static INLINE f16 keep_from16(f16 a, f16 x, float limit) {
    __m256 from = _mm256_set1_ps(limit);
    return PAIR(_mm256_and_ps(a.a, _mm256_cmp_ps(x.a, from, _CMP_GE_OQ)),
                _mm256_and_ps(a.b, _mm256_cmp_ps(x.b, from, _CMP_GE_OQ)));
}
static INLINE __m256 bytes8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static INLINE f16 bytes16(const int8_t *p) { return PAIR(bytes8(p), bytes8(p + 8)); }

#elif defined(POTLUCK_NEON)
#include <arm_neon.h>
typedef struct { float32x4_t v[4]; } f16;
#define FOR_QUARTERS for (int q = 0; q < 4; q++)
#define QUARTERS(expression)                                                                       \
    f16 out;                                                                                       \
    FOR_QUARTERS out.v[q] = (expression);                                                          \
    return out
static INLINE f16 load16(const float *p) { QUARTERS(vld1q_f32(p + 4 * q)); }
static INLINE void store16(float *p, f16 a) { FOR_QUARTERS vst1q_f32(p + 4 * q, a.v[q]); }
static INLINE f16 all16(float x) { QUARTERS(vdupq_n_f32(x)); }
static INLINE f16 add16(f16 a, f16 b) { QUARTERS(vaddq_f32(a.v[q], b.v[q])); }
static INLINE f16 sub16(f16 a, f16 b) { QUARTERS(vsubq_f32(a.v[q], b.v[q])); }
static INLINE f16 mul16(f16 a, f16 b) { QUARTERS(vmulq_f32(a.v[q], b.v[q])); }
static INLINE f16 div16(f16 a, f16 b) { QUARTERS(vdivq_f32(a.v[q], b.v[q])); }
/* by comparison, as maxps does it: vmaxq_f32 treats zeros of two signs otherwise */
static INLINE f16 max16(f16 a, f16 b) {
    QUARTERS(vbslq_f32(vcgtq_f32(a.v[q], b.v[q]), a.v[q], b.v[q]));
}
static INLINE f16 min16(f16 a, f16 b) {
    QUARTERS(vbslq_f32(vcltq_f32(a.v[q], b.v[q]), a.v[q], b.v[q]));
}
static INLINE f16 fma16(f16 a, f16 b, f16 c) { QUARTERS(vfmaq_f32(c.v[q], a.v[q], b.v[q])); }
static INLINE f16 fnma16(f16 a, f16 b, f16 c) { QUARTERS(vfmsq_f32(c.v[q], a.v[q], b.v[q])); }
static INLINE f16 scale16(f16 a, f16 bits) {
    QUARTERS(vreinterpretq_f32_s32(
        vaddq_s32(vreinterpretq_s32_f32(a.v[q]),
                  vshlq_n_s32(vreinterpretq_s32_f32(bits.v[q]), 23))));
}
static INLINE f16 keep_from16(f16 a, f16 x, float limit) {
    QUARTERS(vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.v[q]),
                                             vcgeq_f32(x.v[q], vdupq_n_f32(limit)))));
}
static INLINE f16 bytes16(const int8_t *p) {
    int16x8_t low = vmovl_s8(vld1_s8(p)), high = vmovl_s8(vld1_s8(p + 8));
    return (f16){{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                  vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
                  vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                  vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))}};
}

#else
typedef struct { float v[LANES]; } f16;
#define EACH(expression)                                                                           \
    f16 out;                                                                                       \
    FOR_LANES out.v[lane] = (expression);                                                          \
    return out
static INLINE f16 load16(const float *p) { EACH(p[lane]); }
static INLINE void store16(float *p, f16 a) { FOR_LANES p[lane] = a.v[lane]; }
static INLINE f16 all16(float x) { EACH(x); }
static INLINE f16 add16(f16 a, f16 b) { EACH(a.v[lane] + b.v[lane]); }
static INLINE f16 sub16(f16 a, f16 b) { EACH(a.v[lane] - b.v[lane]); }
static INLINE f16 mul16(f16 a, f16 b) { EACH(a.v[lane] * b.v[lane]); }
static INLINE f16 div16(f16 a, f16 b) { EACH(a.v[lane] / b.v[lane]); }
static INLINE f16 max16(f16 a, f16 b) { EACH(a.v[lane] > b.v[lane] ? a.v[lane] : b.v[lane]); }
static INLINE f16 min16(f16 a, f16 b) { EACH(a.v[lane] < b.v[lane] ? a.v[lane] : b.v[lane]); }
static INLINE f16 fma16(f16 a, f16 b, f16 c) { EACH(fmaf(a.v[lane], b.v[lane], c.v[lane])); }
static INLINE f16 fnma16(f16 a, f16 b, f16 c) { EACH(fmaf(-a.v[lane], b.v[lane], c.v[lane])); }
static INLINE float scale1(float a, float bits) {
    uint32_t number, shift;
    memcpy(&number, &a, 4);
    memcpy(&shift, &bits, 4);
    number += shift << 23;
    memcpy(&a, &number, 4);
    return a;
}
static INLINE f16 scale16(f16 a, f16 bits) { EACH(scale1(a.v[lane], bits.v[lane])); }
static INLINE f16 keep_from16(f16 a, f16 x, float limit) {
    EACH(x.v[lane] >= limit ? a.v[lane] : 0.0f);
}
static INLINE f16 bytes16(const int8_t *p) { EACH((float)p[lane]); }
#endif

/* The first n lanes, the others zero; and back. */
static INLINE f16 load_part(const float *p, int n) {
    float part[LANES] = {0};
    memcpy(part, p, (size_t)n * sizeof(float));
    return load16(part);
}
static INLINE void store_part(float *p, f16 a, int n) {
    float part[LANES];
    store16(part, a);
    memcpy(p, part, (size_t)n * sizeof(float));
}

static INLINE float sum_lanes(f16 a) {
    float x[LANES];
    store16(x, a);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++) x[lane] += x[lane + half];
    return x[0];
}
static INLINE float max_lanes(f16 a) {
    float x[LANES];
    store16(x, a);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++)
            x[lane] = x[lane] > x[lane + half] ? x[lane] : x[lane + half];
    return x[0];
}

/* exp within 2 units in the last place; 0 below -87, where a float soon has fewer digits.
 * x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) as a polynomial (Cephes' expf), times 2^n.
 * Adding 1.5 * 2^23 rounds n to a whole number and leaves it in the low bits. */
static INLINE f16 exp16(f16 x) {
    f16 magic = all16(12582912.0f);
    f16 bounded = min16(max16(x, all16(-87.0f)), all16(88.0f));
    f16 shifted = fma16(bounded, all16(1.44269504088896341f), magic);
    f16 n = sub16(shifted, magic);
    f16 r = fnma16(n, all16(0.693359375f), bounded);
    r = fma16(n, all16(2.12194440e-4f), r);
    f16 p = all16(1.9875691500e-4f);
    p = fma16(p, r, all16(1.3981999507e-3f));
    p = fma16(p, r, all16(8.3334519073e-3f));
    p = fma16(p, r, all16(4.1665795894e-2f));
    p = fma16(p, r, all16(1.6666665459e-1f));
    p = fma16(p, r, all16(5.0000001201e-1f));
    p = fma16(p, mul16(r, r), add16(r, all16(1.0f)));
    return keep_from16(scale16(p, shifted), x, -87.0f);
}

static INLINE f16 sigmoid16(f16 x) {
    f16 one = all16(1.0f);
    return div16(one, add16(one, exp16(sub16(all16(0.0f), x))));
}

static INLINE f16 tanh16(f16 x) {
    f16 one = all16(1.0f), two = all16(2.0f);
    return sub16(one, div16(two, add16(one, exp16(mul16(two, x)))));
}
