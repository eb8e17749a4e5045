/*
 * What the files that are compiled once per instruction set share (us_cpu_kernels.c,
 * us_cpu_train_kernels.c); nobody else includes this. Always-inlined, with the dtype as a constant
 * of the caller, so that each loop becomes one of a single type.
 */
#ifndef US_CPU_VECTOR_H
#define US_CPU_VECTOR_H

#include "math/us_bf16_math.h"
#include "math/us_philox_math.h"
#include "us_cpu_kernels.h"

#define INLINE static inline __attribute__((always_inline))

/* Before a loop: no iteration reads what another writes. Without it an epilogue in place, where
 * each reads what it writes itself, would fall to the scalar loop. Clang's like warns about every
 * loop it leaves scalar, so there (fuzzing builds) it stays out. */
#if defined(__clang__)
#define INDEPENDENT
#else
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

INLINE float load(const void *p, int64_t i, enum us_dtype t)
{
    return t == US_F32 ? ((const float *)p)[i] : us_f32_of_bf16(((const uint16_t *)p)[i]);
}

INLINE void store(void *p, int64_t i, float v, enum us_dtype t)
{
    if (t == US_F32)
        ((float *)p)[i] = v;
    else
        ((uint16_t *)p)[i] = us_bf16_of_f32(v);
}

INLINE const void *advance(const void *p, int64_t n, enum us_dtype t)
{
    return (const char *)p + n * (int64_t)us_dtype_bytes(t);
}

INLINE void *advance_out(void *p, int64_t n, enum us_dtype t)
{
    return (char *)p + n * (int64_t)us_dtype_bytes(t);
}

/* Values pass from one short loop to the next through a buffer of this size, which stays in the
 * first-level cache; one long loop would be bound by its chain of dependent operations. */
#define CHUNK US_CPU_PERIOD

INLINE void convert(const void *in, void *out, int64_t n, enum us_dtype from, enum us_dtype to)
{
    INDEPENDENT
    for (int64_t i = 0; i < n; i++)
        store(out, i, load(in, i, from), to);
}

/* A block as f32: itself, or converted into the buffer. Loops over one type vectorise best. */
INLINE const float *as_f32(const void *p, int64_t i, int32_t n, enum us_dtype t, float *buffer)
{
    const void *from = advance(p, i, t);
    if (t == US_F32)
        return (const float *)from;
    convert(from, buffer, n, t, US_F32);
    return buffer;
}

/* Normals of one pixel are made in blocks of this many counters; four channels each. */
#define GROUPS 32

/* Key and counter, as us_philox_math.h lays them out; c2 without the channel group. */
struct usi_cpu_counter {
    uint32_t k0, k1, c0, c1, c2, c3;
};

/* The sampling proper: Philox and Box-Muller over `n` counters, one per vector lane. */
INLINE void normals(const struct usi_cpu_counter *a, uint32_t group, int32_t n, float *eps)
{
    float z[4][GROUPS];
    INDEPENDENT
    for (int32_t g = 0; g < n; g++) {
        struct us_normal4 r =
            us_noise_normal4(a->k0, a->k1, a->c0, a->c1, a->c2, a->c3, group + (uint32_t)g);
        z[0][g] = r.z[0];
        z[1][g] = r.z[1];
        z[2][g] = r.z[2];
        z[3][g] = r.z[3];
    }
    for (int32_t g = 0; g < n; g++) {
        for (int j = 0; j < 4; j++)
            eps[4 * g + j] = z[j][g];
    }
}

#endif
