/* Matrix products for AVX2 with FMA. */
#include "kernels.h"
