/* Rows and attention for x86 with AVX-512. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,fma")
#endif
#define POTLUCK_AVX512
#include "between.h"

#include "portable.h"

#include "lanes.h"

#define WIDTH 4 /* of four queries: 16 registers of sums, 4 of keys */
#define BETWEEN potluck_between_avx512
#include "between.inc"

#include "attention.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
