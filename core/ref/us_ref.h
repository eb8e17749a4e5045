/*
 * Inside the reference backend: what its op files share. Every op runs from the same record: its
 * descriptor, and packed weights in one order, [tap][in channel][out channel] | bias | tail scale |
 * tail shift, so that each convolution is "add one input pixel's contribution to all output
 * channels", repeated.
 *
 * f32 maps only (copy converts bf16 too). Sums of products run in double: this is the referee.
 */
#ifndef US_REF_H
#define US_REF_H

#include "math/us_elu_math.h"
#include "us_backend.h"

struct usi_ref_op {
    struct us_op base;
    union {
#define US_OP(name) struct us_##name##_desc name;
#include "us_ops.def"
#undef US_OP
    } d;
    /* Weights: taps x n_in x n_out, or taps = 0; n_bias; n_tail scales and as many shifts. */
    int64_t taps, n_in, n_out, n_bias, n_tail;
    bool in_first;  /* canonical weights are [in, out, ...], not [out, in, ...] */
    bool in2, out2; /* whether run uses in[1], out2 */
    struct us_map out;
    /* Computes all channels of one pixel of out.rect; run calls it for each. */
    void (*pixel)(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int32_t n, int32_t y,
                  int32_t x);
};

/* Where the parts of the packed weights begin. */
static inline const float *usi_ref_w(const struct us_op_bufs *bufs)
{
    return bufs->packed;
}

static inline const float *usi_ref_bias(const struct usi_ref_op *op, const struct us_op_bufs *bufs)
{
    return usi_ref_w(bufs) + op->taps * op->n_in * op->n_out;
}

static inline const float *usi_ref_scale(const struct usi_ref_op *op, const struct us_op_bufs *bufs)
{
    return usi_ref_bias(op, bufs) + op->n_bias;
}

static inline const float *usi_ref_shift(const struct usi_ref_op *op, const struct us_op_bufs *bufs)
{
    return usi_ref_scale(op, bufs) + op->n_tail;
}

/* Whether the rectangle of m holds pixel (y, x) of the full map. */
static inline bool usi_ref_holds(const struct us_map *m, int64_t y, int64_t x)
{
    const struct us_rect *r = &m->rect;
    return y >= r->y0 && x >= r->x0 && y < (int64_t)r->y0 + r->h && x < (int64_t)r->x0 + r->w;
}

/* Channels of pixel (y, x) of the full map, or NULL where the map is zero: outside the full map,
 * or outside the rectangle of a zero_outside map. The check has seen to it that nothing else is
 * asked for. */
const float *usi_ref_pixel(const struct us_map *m, const void *buf, int32_t n, int64_t y,
                           int64_t x);

/* acc[co] = bias[co] for the op's n_out channels. */
void usi_ref_begin(const struct usi_ref_op *op, const struct us_op_bufs *bufs, double *acc);

/* acc[co] += sum over ci of x[ci] * w[tap][first + ci][co]; nothing when x is NULL. */
void usi_ref_add_pixel(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int64_t tap,
                       int64_t first, int64_t n_x, const float *x, double *acc);

/* Stores channel c of the output pixel that begins at element `at`: out, and the tail from it. */
static inline void usi_ref_store(const struct usi_ref_op *op, const struct us_op_bufs *bufs,
                                 int64_t at, int64_t c, float v)
{
    ((float *)bufs->out)[at + c] = v;
    if (op->out2) {
        float t = us_madd(usi_ref_scale(op, bufs)[c], v, usi_ref_shift(op, bufs)[c]);
        ((float *)bufs->out2)[at + c] = us_elu(t);
    }
}

/* Fills the op's record from op->d (checked already): weights, flops, out, pixel. */
#define US_OP(name) enum us_status usi_ref_##name##_init(struct usi_ref_op *op, struct us_err *err);
#include "us_ops.def"
#undef US_OP

/* US_E_UNSUPPORTED unless the map is f32. */
enum us_status usi_ref_need_f32(const char *name, const struct us_map *m, struct us_err *err);

#endif
