/* Rows and attention for 64-bit ARM. */
#if defined(__aarch64__)
#define POTLUCK_NEON
#include "between.h"

#include "portable.h"

#include "lanes.h"

#define WIDTH 1 /* of four queries: 16 registers of sums, 4 of keys */
#define BETWEEN potluck_between_neon
#include "between.inc"

#include "attention.inc"
#endif
