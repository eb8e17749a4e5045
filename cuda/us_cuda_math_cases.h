/*
 * The cases of us_cuda_math_cases.def as functions, for whichever compiler includes this: gcc makes
 * the referee's copy, nvcc a host copy and a device copy.
 */
#ifndef US_CUDA_MATH_CASES_H
#define US_CUDA_MATH_CASES_H

#include "us_adamax_math.h"
#include "us_bf16_math.h"
#include "us_elbo_math.h"
#include "us_elu_math.h"
#include "us_exp_math.h"
#include "us_frame_math.h"
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

/* A log-variance of x against a prior of 1/4 and a mean 3/8 away: derivatives 0 and 2 are of the
 * means, 1 and 3 of the log-variances. */
US_HD uint32_t us_case_kl_d(float x, int closed, int which)
{
    struct us_kl_in k = us_kl_in_of(0.5f, x, 0.125f, 0.25f, 20.0f);
    struct us_kl_grad g = closed ? us_kl_closed_d(&k) : us_kl_sampled_d(&k, -0.75f);
    float means = which & 2 ? g.mean_p : g.mean_q;
    float logvars = which & 2 ? g.lv_p : g.lv_q;
    return us_bits_of_float(which & 1 ? logvars : means);
}

US_HD uint32_t us_case_kl(float x, int closed)
{
    struct us_kl_in k = us_kl_in_of(0.5f, x, 0.125f, 0.25f, 20.0f);
    return us_bits_of_float(closed ? us_kl_closed(&k) : us_kl_sampled(&k, -0.75f));
}

US_HD uint32_t us_case_glu_d(float x, int gate)
{
    struct us_glu_grad r = us_glu_d(x, 1.0f - x, 0.75f);
    return us_bits_of_float(gate ? r.g : r.a);
}

/* A step with gradient x; which of m, u and p. */
US_HD uint32_t us_case_adamax(float x, int which)
{
    struct us_adamax_step s = us_adamax_step_of(1e-3f, 0.9f, 0.999f, 1e-8f, 0.271);
    float m = 0.375f, u = 0.625f, p = 0.875f;
    us_adamax_update(&s, x, &m, &u, &p);
    return us_bits_of_float(which == 0 ? m : which == 1 ? u : p);
}

US_HD uint32_t us_case_dropout(uint32_t u)
{
    struct us_philox r = us_dropout_words(0xa4093822u, 0x299f31d0u, u, 5u, u >> 9, 3u);
    return us_bits_of_float(us_dropout_factor(r.w[u & 3u], 0.1f));
}

US_HD uint32_t us_case_halving(uint32_t u, int fraction)
{
    const struct us_halving a = {101, 50, 101.0 / 50.0, 2, {0.0, 0.0, 0.0, 0.0, 0.0}};
    int64_t left;
    double between;
    us_halving_source(&a, u % 50u, &left, &between);
    return fraction ? us_bits_of_float((float)between) : (uint32_t)left;
}

/* A patch of 32 pixels somewhere about a frame of 45. */
US_HD uint32_t us_case_patch(uint32_t u, int zero_pad)
{
    struct us_patch_axis a = us_patch_axis_of((int64_t)(u >> 8 & 127u) - 40, 32, 45, zero_pad);
    return (uint32_t)us_patch_source(a, u & 31u, zero_pad);
}

/* x joins two values; then these three join two others, or leave their deviation. */
US_HD uint32_t us_case_moments(float x, int which)
{
    struct us_moments old = {0.125, 2.5}, m = {-0.375, 1.0 / 3.0};
    m = us_moments_add(m, x, 1.0 / 3.0);
    if (which == 4)
        return us_bits_of_float((float)us_moments_std(m, 3));
    if (which >= 2)
        m = us_moments_join(old, 2, m, 0.6);
    return us_bits_of_float((float)(which & 1 ? m.m2 : m.mean));
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
