/* Matrix products for AVX-512 with VNNI: vpdpwssd takes a pair of products and adds them. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,f16c")))
#define KERNELS potluck_linear_avx512vnni
#define ISA_NAME "avx512vnni"
#define ROWS 10

/* In assembly, because compilers copy and spill the sums of the intrinsic. */
OP __m512i dot(__m512i sum, __m512i w, __m512i x) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}

static int supported(void) {
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw")
           && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#include "linear_avx512.inc"
#endif
