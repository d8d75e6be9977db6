/* Rows and attention in plain C: what every compiler and processor can do. */
#define POTLUCK_PLAIN
#include "between.h"

#include "portable.h"

#include "lanes.h"

#define WIDTH 1 /* lanes of sixteen that a pass takes at once: as many as the registers hold */
#define BETWEEN potluck_between_plain
#include "between.inc"

#include "attention.inc"
