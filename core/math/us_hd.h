/*
 * What every scalar formula in this folder stands on: the US_HD marker, bit casts and the two
 * multiply-add spellings. The headers here are the only home of each formula; ref, cpu and cuda
 * call the same text. Rules: C11 and C++17, no state, no branches (selects only), no libm call
 * except sqrtf, so that gcc vectorises a plain loop over any of them; NaN in gives NaN out and no
 * undefined behaviour.
 *
 * -fno-trapping-math (values do not change, only exception flags, which nobody reads) lets gcc turn
 * the selects into vector blends.
 *
 * Bits: a host build has -ffp-contract=off; nvcc would contract a*b+c, so the device spelling of
 * us_madd names the two roundings. Formulas written with us_madd and plain + - / sqrtf give the
 * same bits on every processor and on the device.
 */
#ifndef US_HD_H
#define US_HD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Always inlined: a loop over a function that the compiler left as a call does not vectorise. */
#if defined(__CUDACC__)
#define US_HD static __host__ __device__ __forceinline__
#else
#define US_HD static inline __attribute__((always_inline, unused))
#endif

US_HD uint32_t us_bits_of_float(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof(u));
    return u;
}

US_HD float us_float_of_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof(x));
    return x;
}

/* The int32 with the same bits; a plain cast is implementation-defined above INT32_MAX. */
US_HD int32_t us_int_of_bits(uint32_t u)
{
    int32_t i;
    memcpy(&i, &u, sizeof(i));
    return i;
}

/* a*b + c, rounded twice on every target. */
US_HD float us_madd(float a, float b, float c)
{
#if defined(__CUDA_ARCH__)
    return __fadd_rn(__fmul_rn(a, b), c);
#else
    return a * b + c;
#endif
}

/* a*b that no compiler may fuse into a following addition. */
US_HD float us_mul(float a, float b)
{
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

#endif
