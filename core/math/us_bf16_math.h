/*
 * bfloat16 as its 16 bits: the upper half of an f32. To bf16 rounds to nearest, ties to even;
 * subnormal numbers are kept, overflow goes to infinity, a NaN stays a (quiet) NaN.
 */
#ifndef US_BF16_MATH_H
#define US_BF16_MATH_H

#include "us_hd.h"

US_HD float us_f32_of_bf16(uint16_t h)
{
    return us_float_of_bits((uint32_t)h << 16);
}

US_HD uint16_t us_bf16_of_f32(float x)
{
    uint32_t u = us_bits_of_float(x);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    /* Rounding could carry a NaN's mantissa away; the quiet bit keeps one. */
    uint32_t quiet = (u >> 16) | 0x40u;
    return (uint16_t)(x == x ? rounded : quiet);
}

#endif
