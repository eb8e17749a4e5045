/*
 * The cpu backend's own vector code: everything that is not a convolution. us_cpu_kernels.c is
 * plain loops over the scalar formulas of core/math, compiled once per instruction set; the table
 * for this processor is chosen at run time. All tables give the same bits (no fused
 * multiply-adds, no reassociation), which tests/unit/test_cpu_kernels.c checks.
 *
 * Buffers do not overlap, except that an epilogue's x may be its out. Lengths are elements.
 */
#ifndef US_CPU_KERNELS_H
#define US_CPU_KERNELS_H

#include "us_map.h"

/* Channel vectors are stored repeated up to this many elements, so that the inner loops run over
 * several pixels at once. */
#define US_CPU_PERIOD 512

/* scale and shift hold `period` elements: c * max(1, US_CPU_PERIOD / c) for c channels. */
struct usi_cpu_tail {
    const float *scale, *shift;
    int64_t period;
};

/* out = act(x) + res; out2 = ELU(scale * out + shift). x f32 [n], all others [n]. */
struct usi_cpu_epilogue {
    const float *x;
    const void *res;
    void *out, *out2;
    struct usi_cpu_tail tail;
    int64_t n;
};

/* x f32 [n_pixels, 2c]: out = ELU(x[0..c)) * sigmoid(x[c..2c)) + res, out2 as above. */
struct usi_cpu_gate_args {
    const float *x;
    const void *res;
    void *out, *out2;
    struct usi_cpu_tail tail;
    int64_t n_pixels;
    int32_t c;
};

/* in [2z] -> out [z] of one pixel. eps f32 [z] or NULL: then the normals of counter (c0, c1, c2,
 * c3) under the key (k0, k1), as us_philox_math.h lays them out. */
struct usi_cpu_latent_args {
    const void *in;
    void *out;
    const float *eps;
    int32_t z;
    float var_clip_max;
    uint32_t k0, k1, c0, c1, c2, c3;
};

struct usi_cpu_train_kernels; /* us_cpu_train_kernels.h */

enum usi_cpu_res { US_CPU_RES_F32 = US_F32, US_CPU_RES_BF16 = US_BF16, US_CPU_RES_NONE };

struct usi_cpu_kernels {
    const char *isa;
    /* [activation][enum usi_cpu_res][dtype of out][tail] */
    void (*epilogue[2][3][2][2])(const struct usi_cpu_epilogue *a);
    /* [dtype of res][dtype of out][tail] */
    void (*gate[2][2][2])(const struct usi_cpu_gate_args *a);
    /* [dtype of in][dtype of out]: out = ELU(scale * in + shift) */
    void (*affine_elu[2][2])(const void *in, void *out, const struct usi_cpu_tail *t, int64_t n);
    /* [dtype of in][dtype of out] */
    void (*convert[2][2])(const void *in, void *out, int64_t n);
    /* [dtype of in][dtype of out] */
    void (*latent[2][2])(const struct usi_cpu_latent_args *a);
    const struct usi_cpu_train_kernels *train;
};

/* The tables this processor can run, the best last; *ret_n of them. Static. */
const struct usi_cpu_kernels *const *usi_cpu_kernels_list(int *ret_n);

#endif
