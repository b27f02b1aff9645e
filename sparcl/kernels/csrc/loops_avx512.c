/* The loops with AVX-512: 32 registers of 16 floats. */
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#endif
#define VL 16
#define TILE 16
#define CACHE (40 << 10)
#define ISA "avx512"
#define NAME(x) x##_avx512
#include "loops.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const loops *const loops_avx512 = &table_avx512;
#else
const loops *const loops_avx512 = 0;
#endif
