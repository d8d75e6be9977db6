/* Rows and attention for x86 with AVX2 and FMA. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define POTLUCK_AVX2
#include "between.h"

#include "portable.h"

#include "lanes.h"

#define WIDTH 1 /* of four queries: 8 registers of sums, 2 of keys */
#define BETWEEN potluck_between_avx2
#include "between.inc"

#include "attention.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
