/* Matrix products for AVX-512 without VNNI: vpmaddwd and an addition. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")))
#define KERNELS potluck_linear_avx512
#define ISA_NAME "avx512"
#define ROWS 8

OP __m512i dot(__m512i sum, __m512i w, __m512i x) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x));
}

static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
           && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#include "linear_avx512.inc"
#endif
