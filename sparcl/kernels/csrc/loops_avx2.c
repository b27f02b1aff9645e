/* The loops with AVX2 and FMA: 16 registers of 8 floats. */
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define VL 8
#define TILE 8
#define CACHE (24 << 10)
#define ISA "avx2"
#define NAME(x) x##_avx2
#include "loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const loops *const loops_avx2 = &table_avx2;
#else
const loops *const loops_avx2 = 0;
#endif
