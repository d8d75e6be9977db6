/* Matrix products for AVX-512 with VNNI: vpdpwssd takes a pair of products and adds them. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")))
#define OP TARGET static inline __attribute__((always_inline))
#define KERNELS potluck_linear_avx512vnni
#define ISA_NAME "avx512vnni"
#define DOT(sum, w, x) _mm512_dpwssd_epi32(sum, w, x)

static int supported(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")
           && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#include "linear_avx512.inc"
#endif
