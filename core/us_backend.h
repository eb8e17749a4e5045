/*
 * THE SEAM between a network's plan and whatever computes it: `ref` (plain loops, the referee),
 * `cpu` (oneDNN), later `cuda`. A backend is one `static const struct us_backend_ops`.
 *
 * An op lives in three steps, because oneDNN and cuDNN both want it so:
 *   plan   descriptor -> immutable `struct us_op` (slow; shared by all workers),
 *   pack   canonical f32 weights -> the op's own layout (once per model; shared by all workers),
 *   bind   op + fixed buffer addresses of one worker -> `struct us_bound`; after that
 *   run    takes nothing but the bound op, allocates nothing, and may be repeated for ever.
 *
 * Every op computes out.rect of the full output map. It may read in.rect only; where the formula
 * needs a pixel outside the full map (or outside rect with in.zero_outside) that pixel is zero;
 * where it needs a pixel inside the full map that rect does not hold, plan returns US_E_ARG.
 *
 * An output pixel has the same bits whatever else is computed with it: in any rectangle, alone or
 * in a batch (convolutions with pad <= k/2). A prediction's bytes stand on it.
 *
 * Maps are NHWC compact buffers (us_map.h), 64-byte aligned. Sizes are pixels unless named _bytes.
 */
#ifndef US_BACKEND_H
#define US_BACKEND_H

#include "us_map.h"
#include "us_status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum us_op_kind {
#define US_OP(name) US_OP_##name,
#include "us_ops.def"
#undef US_OP
    US_OP_COUNT
};

enum us_act { US_ACT_NONE = 0, US_ACT_ELU = 1 };

/*
 * The tail: a second output out2 = ELU(scale_c * out + shift_c), same rect, shape and dtype as
 * out, written in the same pass. It is the folded batch norm and ELU with which the next residual
 * block begins (spec 3.1); computed from the f32 value before out is rounded to its dtype.
 */

/* out = act(conv(in, w) + b) (+ res); cross-correlation, zero padding, dilation 1, groups 1.
 * w f32 [out.c, in.c, k, k], b f32 [out.c]. With `residual`, in2 has the shape of out and is
 * added after the activation; its rect `res` contains out.rect. */
struct us_conv2d_desc {
    struct us_map in, out, res;
    int32_t k, stride, pad;
    enum us_act act;
    bool residual;
    bool tail;
};

/* Transposed convolution, k 3, stride 2, padding 1, output padding 1: full_h doubles exactly.
 * w f32 [in.c, out.c, 3, 3], b f32 [out.c]:
 * out[co, 2*iy-1+ky, 2*ix-1+kx] += in[ci, iy, ix] * w[ci, co, ky, kx]. */
struct us_conv_t2d_desc {
    struct us_map in, out;
    bool tail;
};

/* [a | g] = w . in + b ; out = res + ELU(a) * sigmoid(g).  w f32 [2C, C], b f32 [2C], C = in.c =
 * out.c = res.c. The residual is always present here. in2 = res. */
struct us_gate_desc {
    struct us_map in, res, out;
    bool tail;
};

/* out = w . [a ; b] + bias: 1x1 convolution of the concatenation of a (first) and b.
 * w f32 [out.c, a.c + b.c], b f32 [out.c]. Either input may be zero_outside. */
struct us_merge_desc {
    struct us_map a, b, out;
    bool tail;
};

/* z = mean + std * eps. in [.., 2Z]: channels 0..Z-1 mean, Z..2Z-1 raw log-variance lv (spec 5.2:
 * lv' = min(lv, var_clip_max); var = (lv' <= 0 ? exp(lv') : 1 + lv') + 1e-6); out [.., Z].
 * eps comes from Philox keyed as math/us_philox_math.h says, or from the test hook. */
struct us_latent_desc {
    struct us_map in, out;
    int32_t level;
    float var_clip_max; /* +INFINITY: no clip */
};

/* out = ELU(scale_c * in + shift_c). scale and shift come as the tail's weights. */
struct us_affine_elu_desc {
    struct us_map in, out;
};

/* out = in restricted to out.rect, converted to out.dtype; zero where in is zero_outside. */
struct us_copy_desc {
    struct us_map in, out;
};

/* Canonical weights, f32, layouts as above; entries an op does not use are NULL. Borrowed until
 * pack returns. */
struct us_op_weights {
    const float *w, *b;
    const float *tail_scale, *tail_shift; /* [out.c] */
};

/*
 * What a latent draws, per item of the batch; the plan's owner fills it before each run.
 * patch-keyed (image_keyed false): the noise depends on (seed, frame, sample, patch, level,
 * position in the level's full map, channel). image_keyed: on (seed, frame, sample, level,
 * absolute position floor(centre / pitch) + (j - size/2), channel), pitch = 2^(level+1) pixels,
 * so overlapping patches draw the same noise where they see the same pixel.
 */
struct us_noise {
    uint64_t seed;
    uint32_t frame;
    uint32_t sample;
    uint32_t patch; /* index of the patch within its frame */
    bool image_keyed;
    int64_t centre_y, centre_x; /* centre of the patch, full-resolution pixels of the frame */
    /* Test hook: eps[level] is f32 [full_h, full_w, Z] for this item, or eps is NULL. */
    const float *const *eps;
};

#define US_OP_MAX_IN 2

/* Addresses for one worker, in the backend's memory; noise is host memory, [n] items, read at
 * each run. in[0] = in or a, in[1] = res or b. scratch holds op->scratch_bytes. */
struct us_op_bufs {
    const void *in[US_OP_MAX_IN];
    void *out, *out2;
    const void *packed;
    void *scratch;
    const struct us_noise *noise;
};

struct us_backend; /* backend-private; begins with struct us_backend_base */
struct us_bound;   /* backend-private */
struct us_graph;   /* backend-private: recorded work */

/* First member of every backend's private op. */
struct us_op {
    enum us_op_kind kind;
    size_t packed_bytes;  /* packed weights; 0: none */
    size_t scratch_bytes; /* per worker, valid during run only, may be shared between ops */
    double flops;         /* 2 x multiply-adds of one run, for profiles */
};

struct us_train_ops; /* us_train_ops.h */
struct us_frame_ops; /* us_frame_ops.h */

struct us_backend_ops {
    const char *name;
    /* What training needs besides; NULL: this backend only predicts. */
    const struct us_train_ops *train;
    /* Tiles of frames in the backend's memory; NULL: patches go in and out one by one. */
    const struct us_frame_ops *frame;
    /* Whether activations may be of this dtype on this machine. */
    bool (*has_dtype)(struct us_backend *be, enum us_dtype dtype);
    void (*free)(struct us_backend *be);
    /* Called once by each worker thread before anything else of the backend. */
    void (*thread_init)(struct us_backend *be);
    /* A device has one queue of work, which one thread fills at a time: hold waits for the calling
     * thread's turn, in the order of asking, let_go ends it. Whoever shares such a backend with
     * other threads calls the rest of the table between the two only. NULL: no need. */
    void (*hold)(struct us_backend *be);
    void (*let_go)(struct us_backend *be);

    enum us_status (*buf_alloc)(struct us_backend *be, size_t bytes, void **ret);
    void (*buf_free)(struct us_backend *be, void *p);
    enum us_status (*copy_in)(struct us_backend *be, void *dst, const void *src, size_t bytes);
    enum us_status (*copy_out)(struct us_backend *be, void *dst, const void *src, size_t bytes);
    enum us_status (*sync)(struct us_backend *be);

    /* A device's extras; all NULL where work is done by the call that asks for it (ref, cpu).
     *
     * Host memory that the device's kernels read at the same address, 64-byte aligned. What a call
     * takes from host memory while it runs (us_noise, us_draw, the eps they point to, training's
     * kl_weight) must stand there, and stay unchanged until the next sync or copy_out: calls only
     * queue their work. */
    enum us_status (*host_alloc)(struct us_backend *be, size_t bytes, void **ret);
    void (*host_free)(struct us_backend *be, void *p);
    /* Work recorded once and started with one call ever after. Between begin and end the calls of
     * one thread that only queue work (run, and the training seam's but conv_plan, conv_bind and
     * their frees) are recorded with their addresses and arguments and not done; what is to differ
     * from start to start stands in host_alloc memory. buf_alloc, host_alloc, copy_in, copy_out and
     * sync may not be called in between. Every recorded call must have been made at least once
     * before.
     * *ret NULL after US_OK: this device has no graphs, and the work has been done by the calls as
     * always; the caller then makes the calls again each time. */
    enum us_status (*graph_begin)(struct us_backend *be);
    enum us_status (*graph_end)(struct us_backend *be, struct us_graph **ret);
    enum us_status (*graph_run)(struct us_backend *be, struct us_graph *g);
    void (*graph_free)(struct us_backend *be, struct us_graph *g);

#define US_OP(name)                                                                                \
    enum us_status (*name##_plan)(struct us_backend * be, const struct us_##name##_desc *desc,     \
                                  struct us_op **ret, struct us_err *err);
#include "us_ops.def"
#undef US_OP
    void (*op_free)(struct us_backend *be, struct us_op *op);
    /* packed: op->packed_bytes of backend memory. */
    enum us_status (*op_pack)(struct us_backend *be, const struct us_op *op,
                              const struct us_op_weights *w, void *packed);
    enum us_status (*op_bind)(struct us_backend *be, const struct us_op *op,
                              const struct us_op_bufs *bufs, struct us_bound **ret);
    void (*bound_free)(struct us_backend *be, struct us_bound *b);
    enum us_status (*run)(struct us_backend *be, struct us_bound *b);
};

struct us_backend_base {
    const struct us_backend_ops *ops;
};

static inline const struct us_backend_ops *us_backend_ops(const struct us_backend *be)
{
    return ((const struct us_backend_base *)(const void *)be)->ops;
}

/* "conv2d" and so on. */
const char *us_op_name(enum us_op_kind kind);

/* Checks that a descriptor's rectangles, shapes and channels fit together: shared by all backends
 * so that they refuse the same things with the same words. US_E_ARG says what does not fit. */
#define US_OP(name)                                                                                \
    enum us_status us_##name##_check(const struct us_##name##_desc *desc, struct us_err *err)      \
        US_WARN_UNUSED;
#include "us_ops.def"
#undef US_OP

/* Starts the reference backend (core/ref): f32, plain loops, NHWC as everyone. Caller frees with
 * ops->free. */
enum us_status us_ref_open(struct us_backend **ret, struct us_err *err) US_WARN_UNUSED;

/* Starts the CPU backend (core/cpu): oneDNN convolutions, own vector code for the rest. f32 on
 * every processor; bf16 where the processor multiplies it (AVX512_BF16 or AMX). */
enum us_status us_cpu_open(struct us_backend **ret, struct us_err *err) US_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
