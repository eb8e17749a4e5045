/*
 * Arguments of the kernels of the prediction ops (us_k_infer.def). All of them run over a grid: the
 * pixels of an output rectangle times its channels, `vec` channels at a time.
 */
#ifndef US_K_INFER_ARGS_H
#define US_K_INFER_ARGS_H

#include <stdint.h>

#include "us_map.h"

#define US_K_VEC 8 /* channels of the widest piece: 16 bytes of bf16, 32 of f32 */
#define US_K_RUN 4 /* neighbouring pixels of a piece of `direct` */

/* vec is 8 or 4 where it divides c and every address is a multiple of it, else 1. Maps that are
 * all dense are one row: n = h = 1. */
struct us_k_grid {
    int64_t n, h, w;
    int32_t c, vec;
};

/* What is read: a part of the output rectangle. Rows and columns are counted from that rectangle's
 * first pixel; it holds y0 <= y < y1, x0 <= x < x1 and counts as zero elsewhere. Strides are in
 * elements, channels are adjacent. */
struct us_k_in {
    const void *p; /* item 0, pixel (y0, x0); NULL: not there */
    int64_t image, row, pixel;
    int64_t y0, x0, y1, x1;
    enum us_dtype dtype;
};

/* What is written: the whole output rectangle. */
struct us_k_out {
    void *p; /* item 0, pixel (0, 0); NULL: not wanted */
    int64_t image, row, pixel;
    enum us_dtype dtype;
};

/* How every op with weights ends: the f32 value v goes to out, and ELU(scale * v + shift) to out2
 * (us_backend.h, the tail). */
struct us_k_finish {
    struct us_k_out out, out2;
    const float *scale, *shift; /* [c]; read only with out2 */
};

/* v = act(x + x2 + bias) + res. x + x2 is added first, so that it does not matter which is which.
 */
struct us_k_epilogue {
    struct us_k_grid grid;
    struct us_k_in x, x2, res;
    const float *bias; /* [c] or NULL */
    int32_t elu;
    struct us_k_finish finish;
};

/* v = res + ELU(a + bias) * sigmoid(g + bias): x has 2 c channels, a before g. */
struct us_k_gate {
    struct us_k_grid grid;
    struct us_k_in x, res;
    const float *bias; /* [2 c] */
    struct us_k_finish finish;
};

/* out = in, converted. */
struct us_k_copy {
    struct us_k_grid grid;
    struct us_k_in in;
    struct us_k_out out;
};

/* z = mean + std * eps (us_latent_desc): in has 2 c channels, means before log-variances. A piece
 * has at least the four channels of one Philox block. */
struct us_k_latent {
    struct us_k_grid grid;
    struct us_k_in in;
    struct us_k_out out;
    float var_clip_max;
    int32_t level, full_h, full_w;
    int32_t y0, x0;               /* the output rectangle's first pixel in the full map */
    const struct us_noise *noise; /* [n], device memory; eps says yes or no and is not followed */
    const float *eps;             /* test hook: [n, full_h, full_w, c] or NULL */
};

/*
 * Convolution by plain sums over [tap][in channel], for what a matrix unit gains nothing on or
 * what the library refuses: v = act(x * w + bias) + res. The grid's w counts runs of US_K_RUN
 * pixels of `ow`. Output pixel y reads, forward, input rows stride*y - top + ky; transposed, the
 * rows whose stride-th multiple is y + top - ky. x: y0 = x0 = 0, its own rows and columns.
 */
struct us_k_direct {
    struct us_k_grid grid;
    int64_t ow;
    struct us_k_in x, res;
    int32_t in_c, in_vec; /* in_vec: 8 or 1, as the grid's vec */
    int32_t k, stride, top, left;
    int32_t transposed, elu;
    const float *w;    /* [k*k][in_c][c] */
    const float *bias; /* [c] or NULL */
    struct us_k_finish finish;
};

#endif
