/* What compilers spell differently. */
#ifndef POTLUCK_PORTABLE_H
#define POTLUCK_PORTABLE_H

#if defined(POTLUCK_PLAIN)
#define INLINE inline /* lanes are loops here: large, and nothing is won by their expansion */
#else
#define INLINE inline __attribute__((always_inline))
#endif

#if defined(POTLUCK_PLAIN)
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#endif
