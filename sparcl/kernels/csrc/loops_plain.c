/* The loops with vectors of 4 floats, which every compiler lowers to what its machine has (SSE2, NEON, or scalars). */
#define VL 4
#define TILE 8
#define CACHE (24 << 10)
#define ISA "plain"
#define NAME(x) x##_plain
#include "loops.h"

const loops *const loops_plain = &table_plain;
