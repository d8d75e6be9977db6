/* What compilers spell differently. */
#ifndef POTLUCK_PORTABLE_H
#define POTLUCK_PORTABLE_H

#define INLINE inline __attribute__((always_inline))
#if defined(POTLUCK_PLAIN)
#define UNROLL /* lanes are loops already */
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

#endif
