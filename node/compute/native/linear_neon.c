/* Matrix products for NEON (AArch64): vectors of 4, multiply-accumulate from 16 to 32 bits. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "kernels.h"

#define TARGET
#define KERNELS potluck_linear_neon
#define ISA_NAME "neon"
#define WIDTH 4
#define TILES 1
#define ROWS 4
/* unpacking is dear here */
#define THROUGH_PANEL(is_nf4, rows) ((rows) > ((is_nf4) ? 4 : 24))
#define BY_TILE(is_nf4, rows) 0

/* Four int32; as weights the same bits are eight int16: four outputs for an even k, then the same
 * four for the odd one, so that no pair has to be added up. */
typedef int32x4_t vi;
typedef float32x4_t vf;
typedef struct {
    int16x4_t even;
    int16x8_t odd;
} vx;

static int supported(void) { return 1; }

OP vi none(void) { return vdupq_n_s32(0); }
OP vi add_ints(vi a, vi b) { return vaddq_s32(a, b); }
OP vi dot(vi sum, vi w, vx x) {
    int16x8_t both = vreinterpretq_s16_s32(w);
    return vmlal_high_s16(vmlal_s16(sum, vget_low_s16(both), x.even), both, x.odd);
}
OP vi load_pairs(const int16_t *at) { return vreinterpretq_s32_s16(vld1q_s16(at)); }
OP void store_pairs(int16_t *at, vi w) { vst1q_s16(at, vreinterpretq_s16_s32(w)); }
OP vx all_pairs(const int16_t *at) { return (vx){vld1_dup_s16(at), vld1q_dup_s16(at + 1)}; }
OP vf to_floats(vi a) { return vcvtq_f32_s32(a); }
OP vf all(float a) { return vdupq_n_f32(a); }
OP vf load(const float *at) { return vld1q_f32(at); }
OP void store(float *at, vf a) { vst1q_f32(at, a); }
OP vf load_unaligned(const float *at) { return vld1q_f32(at); }
OP void store_unaligned(float *at, vf a) { vst1q_f32(at, a); }
OP vf mul(vf a, vf b) { return vmulq_f32(a, b); }
OP vf add(vf a, vf b) { return vaddq_f32(a, b); }
OP vf fma_(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
OP vf load_bf16(const uint16_t *at) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(at), 16)); }
OP vf load_fp16(const uint16_t *at) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at))); }

/* w[pair][v]: even k and odd k of outputs 4 v to 4 v + 3 */
OP void pair_up(vi w[4], int16x8_t even[2], int16x8_t odd[2]) {
    for (int half = 0; half < 2; half++) {
        int64x2_t a = vreinterpretq_s64_s16(even[half]), b = vreinterpretq_s64_s16(odd[half]);
        w[half * 2] = vreinterpretq_s32_s64(vzip1q_s64(a, b));
        w[half * 2 + 1] = vreinterpretq_s32_s64(vzip2q_s64(a, b));
    }
}

OP void unpack_int8(const char *codes, vi w[4][4]) {
    for (int pair = 0; pair < 4; pair++) {
        int8x16x2_t two = vld2q_s8((const int8_t *)codes + pair * 32);
        int16x8_t even[2] = {vmovl_s8(vget_low_s8(two.val[0])), vmovl_high_s8(two.val[0])};
        int16x8_t odd[2] = {vmovl_s8(vget_low_s8(two.val[1])), vmovl_high_s8(two.val[1])};
        pair_up(w[pair], even, odd);
    }
}

/* The values of 16 codes: their low and high bytes looked up, then joined. */
OP void look_up(uint8x16_t index, uint8x16_t low, uint8x16_t high, int16x8_t values[2]) {
    uint8x16_t lows = vqtbl1q_u8(low, index), highs = vqtbl1q_u8(high, index);
    values[0] = vreinterpretq_s16_u8(vzip1q_u8(lows, highs));
    values[1] = vreinterpretq_s16_u8(vzip2q_u8(lows, highs));
}

/* 16 words of 4 bytes, taken apart by vld4: byte p of every output holds k = 2 p (high) and 2 p + 1. */
OP void unpack_nf4(const char *codes, vi w[4][4]) {
    uint8x16x2_t table = vld2q_u8((const uint8_t *)potluck_nf4_table);
    uint8x16x4_t bytes = vld4q_u8((const uint8_t *)codes);
    for (int pair = 0; pair < 4; pair++) {
        int16x8_t even[2], odd[2];
        look_up(vshrq_n_u8(bytes.val[pair], 4), table.val[0], table.val[1], even);
        look_up(vandq_u8(bytes.val[pair], vdupq_n_u8(15)), table.val[0], table.val[1], odd);
        pair_up(w[pair], even, odd);
    }
}

OP uint32_t largest_bits(const float *x, int32_t count) {
    const uint32x4_t magnitude = vdupq_n_u32(0x7fffffff);
    uint32x4_t a = vdupq_n_u32(0), b = a;
    for (int32_t i = 0; i < count; i += 8) {
        a = vmaxq_u32(a, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), magnitude));
        b = vmaxq_u32(b, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i + 4)), magnitude));
    }
    return vmaxvq_u32(vmaxq_u32(a, b));
}

OP void round_values(const float *x, float by, int16_t *to, int32_t count, int is_nf4) {
    (void)is_nf4; /* k stays in its order */
    for (int32_t i = 0; i < count; i += 8) {
        int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), by));
        int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4), by));
        vst1q_s16(to + i, vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
    }
}

#include "linear.inc"
#endif
