/*
 * The random numbers of the latents: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3", SC 2011) and Box-Muller. A number depends on its counter alone, so
 * neither batch size, threads, order nor backend can change it. The bits are the same on every
 * processor and on the device (see us_hd.h).
 *
 * Layout, part of the public promise "same seed, same bytes":
 *   key  = the 64-bit seed, low word first
 *   c0   = patch-keyed: index of the patch in its frame;   image-keyed: absolute x
 *   c1   = patch-keyed: y << 16 | x in the level's map;    image-keyed: absolute y
 *   c2   = image_keyed << 31 | level << 26 | (channel / 4) << 16 | sample
 *   c3   = frame
 * One counter gives the normals of channels 4g .. 4g+3 of one position: words 0, 1 make the first
 * pair, words 2, 3 the second. An absolute position is floor(centre / pitch) + (j - size/2), with
 * pitch = 2^(level+1) pixels, size the side of the level's full map and j the index in it, stored
 * as 32-bit two's complement. Grouping over channels, never over pixels, keeps every number where
 * it is when only a part of the map is computed (performance.md 5).
 *
 * Training draws with its own seed and is patch-keyed: frame is the step, patch the index of the
 * sample in the step's batch, sample 0. Dropout uses the level that no latent has:
 *   c0   = index of the sample in the batch
 *   c1   = node: which dropout of the network
 *   c2   = US_DROPOUT_TAG | channel / 4; word channel % 4 of the block decides
 *   c3   = step
 */
#ifndef US_PHILOX_MATH_H
#define US_PHILOX_MATH_H

#include "us_exp_math.h"

#define US_PHILOX_M0     0xd2511f53u
#define US_PHILOX_M1     0xcd9e8d57u
#define US_PHILOX_W0     0x9e3779b9u
#define US_PHILOX_W1     0xbb67ae85u
#define US_PHILOX_ROUNDS 10

#define US_DROPOUT_TAG 0x7c000000u /* level 31, not image-keyed */

#define US_TWO_PI     6.28318548f
#define US_TWO_POW_31 4.65661287e-10f /* 2^-31 */
#define US_TWO_POW_32 2.32830644e-10f /* 2^-32 */

struct us_philox {
    uint32_t w[4];
};

struct us_normal4 {
    float z[4];
};

/* One block of ten rounds: counter c, key k0 (low), k1 (high). */
US_HD struct us_philox us_philox4x32(struct us_philox c, uint32_t k0, uint32_t k1)
{
    uint32_t x0 = c.w[0], x1 = c.w[1], x2 = c.w[2], x3 = c.w[3];
#if defined(__CUDACC__)
#pragma unroll
#elif !defined(__clang__)
#pragma GCC unroll 10
#endif
    for (int i = 0; i < US_PHILOX_ROUNDS; i++) {
        uint64_t p0 = (uint64_t)US_PHILOX_M0 * x0;
        uint64_t p1 = (uint64_t)US_PHILOX_M1 * x2;
        x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
        x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
        x1 = (uint32_t)p1;
        x3 = (uint32_t)p0;
        k0 += US_PHILOX_W0;
        k1 += US_PHILOX_W1;
    }
    struct us_philox r;
    r.w[0] = x0;
    r.w[1] = x1;
    r.w[2] = x2;
    r.w[3] = x3;
    return r;
}

/* A word to a number in (0, 1], steps of 2^-31 near 0; the smallest is 2^-32. */
US_HD float us_unit_of_word(uint32_t w)
{
    return us_madd((float)us_int_of_bits(w >> 1), US_TWO_POW_31, US_TWO_POW_32);
}

/* Sine and cosine of 2 pi w / 2^32. The nearest quarter turn is split off in integers, exactly. */
US_HD void us_sincos_turn(uint32_t w, float *ret_sin, float *ret_cos)
{
    uint32_t q = (w + 0x20000000u) >> 30;
    float t = us_mul((float)us_int_of_bits(w - (q << 30)), US_TWO_POW_32);
    float x = us_mul(t, US_TWO_PI); /* |x| <= pi/4 */
    float x2 = us_mul(x, x);
    float s = us_madd(-0.000195186003f, x2, 0.00833219104f);
    s = us_madd(s, x2, -0.166666552f);
    s = us_madd(us_mul(s, x2), x, x);
    float c = us_madd(2.44306684e-05f, x2, -0.00138873013f);
    c = us_madd(c, x2, 0.0416666456f);
    c = us_madd(us_mul(c, x2), x2, us_madd(x2, -0.5f, 1.0f));
    float a = (q & 1u) != 0u ? c : s;
    float b = (q & 1u) != 0u ? s : c;
    /* The signs of the four quadrants: sine - in 2, 3; cosine - in 1, 2. */
    *ret_sin = us_float_of_bits(us_bits_of_float(a) ^ ((q & 2u) << 30));
    *ret_cos = us_float_of_bits(us_bits_of_float(b) ^ (((q + 1u) & 2u) << 30));
}

/* Four independent standard normals from four words; |z| <= 6.67. */
US_HD struct us_normal4 us_normal4_of_words(struct us_philox r)
{
    struct us_normal4 n;
    float s0, c0, s1, c1;
    float r0 = sqrtf(us_mul(-2.0f, us_log_inner(us_unit_of_word(r.w[0]))));
    float r1 = sqrtf(us_mul(-2.0f, us_log_inner(us_unit_of_word(r.w[2]))));
    us_sincos_turn(r.w[1], &s0, &c0);
    us_sincos_turn(r.w[3], &s1, &c1);
    n.z[0] = us_mul(r0, c0);
    n.z[1] = us_mul(r0, s0);
    n.z[2] = us_mul(r1, c1);
    n.z[3] = us_mul(r1, s1);
    return n;
}

/* c0 and c1, see the layout above. */
US_HD uint32_t us_noise_c1_patch(int32_t y, int32_t x)
{
    return (uint32_t)y << 16 | ((uint32_t)x & 0xffffu);
}

/* Absolute position of index j of a full map with side `size`; two's complement. */
US_HD uint32_t us_noise_position(int64_t centre, int32_t level, int32_t size, int32_t j)
{
    /* floor(centre / 2^(level+1)) for either sign; the arithmetic shift of gcc and nvcc. */
    return (uint32_t)(uint64_t)(centre >> (level + 1)) + (uint32_t)j - (uint32_t)(size / 2);
}

/* c2 without the channel group; add group << 16. */
US_HD uint32_t us_noise_c2(int image_keyed, int32_t level, uint32_t sample)
{
    return (image_keyed ? 0x80000000u : 0u) | ((uint32_t)level & 31u) << 26 | (sample & 0xffffu);
}

/* The normals of channels 4 * group .. 4 * group + 3. */
US_HD struct us_normal4 us_noise_normal4(uint32_t k0, uint32_t k1, uint32_t c0, uint32_t c1,
                                         uint32_t c2, uint32_t c3, uint32_t group)
{
    struct us_philox c;
    c.w[0] = c0;
    c.w[1] = c1;
    c.w[2] = c2 | group << 16;
    c.w[3] = c3;
    return us_normal4_of_words(us_philox4x32(c, k0, k1));
}

/* The words that decide about channels 4 * group .. 4 * group + 3. */
US_HD struct us_philox us_dropout_words(uint32_t k0, uint32_t k1, uint32_t item, uint32_t node,
                                        uint32_t step, uint32_t group)
{
    struct us_philox c;
    c.w[0] = item;
    c.w[1] = node;
    c.w[2] = US_DROPOUT_TAG | group;
    c.w[3] = step;
    return us_philox4x32(c, k0, k1);
}

/* Whether a channel with this word stays, which it does with probability 1 - p. */
US_HD int us_dropout_keep(uint32_t word, float p)
{
    return us_unit_of_word(word) > p;
}

/* What dropout multiplies a channel by: 0, or 1 / (1 - p). p 0 keeps all, p 1 none. */
US_HD float us_dropout_factor(uint32_t word, float p)
{
    return us_dropout_keep(word, p) ? 1.0f / (1.0f - p) : 0.0f;
}

#endif
