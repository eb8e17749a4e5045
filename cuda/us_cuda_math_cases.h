/*
 * The cases of us_cuda_math_cases.def as functions, for whichever compiler includes this: gcc makes
 * the referee's copy, nvcc a host copy and a device copy.
 */
#ifndef US_CUDA_MATH_CASES_H
#define US_CUDA_MATH_CASES_H

#include "us_bf16_math.h"
#include "us_elu_math.h"
#include "us_exp_math.h"
#include "us_gauss_math.h"
#include "us_philox_math.h"

US_HD uint32_t us_case_sincos(uint32_t u, int cosine)
{
    float s, c;
    us_sincos_turn(u, &s, &c);
    return us_bits_of_float(cosine ? c : s);
}

US_HD uint32_t us_case_philox(uint32_t u, int word)
{
    struct us_philox c;
    c.w[0] = u;
    c.w[1] = ~u;
    c.w[2] = u >> 7;
    c.w[3] = 3u;
    return us_philox4x32(c, 0x243f6a88u, 0x85a308d3u).w[word];
}

US_HD uint32_t us_case_normal(uint32_t u, int index)
{
    return us_bits_of_float(
        us_noise_normal4(0x13198a2eu, 0x03707344u, u, 5u, 2u << 26, 0u, 9u).z[index]);
}

#define US_MATH_CASE(name, result)                                                                 \
    US_HD uint32_t us_case_##name(uint32_t u)                                                      \
    {                                                                                              \
        float x = us_float_of_bits(u);                                                             \
        (void)x;                                                                                   \
        return (result);                                                                           \
    }
#include "us_cuda_math_cases.def"
#undef US_MATH_CASE

enum us_math_case {
#define US_MATH_CASE(name, result) US_CASE_##name,
#include "us_cuda_math_cases.def"
#undef US_MATH_CASE
    US_MATH_CASE_COUNT
};

#endif
