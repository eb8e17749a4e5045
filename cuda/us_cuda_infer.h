/*
 * Inside the prediction ops of the CUDA backend: what their files share.
 *
 * An op is up to two *products* (convolutions, by the library or by our kernel `direct`) and a
 * kernel that finishes. Where the library can finish itself, or `direct` does everything, there is
 * one call; else products leave f32 sums in scratch, the *stage*, `chunk` items of the batch at a
 * time so that the stage stays in the device's cache, and the finishing kernel reads them.
 * Binding writes all this down as a list of calls with their addresses; run goes through the list.
 */
#ifndef US_CUDA_INFER_H
#define US_CUDA_INFER_H

#include "us_cuda_impl.h"
#include "us_kernels_args.h"

#define USI_CUDA_ALIGN 256

/* A convolution without its end, over one rectangle. */
struct usi_cuda_want {
    struct us_map in;
    struct us_rect out; /* coordinates of the full output map */
    int32_t n, c;       /* items of one call, output channels */
    int32_t k, stride, pad;
    bool transposed;
};

/* What the library would write besides the sums. */
struct usi_cuda_fuse {
    const struct us_map *out, *res; /* res NULL: none */
    bool elu;
};

struct usi_cuda_product {
    struct usi_cuda_want want;
    bool empty;           /* no output pixel meets the input */
    struct us_conv *conv; /* NULL: `direct` */
    size_t workspace_bytes;
    int32_t read_y, read_x; /* first input pixel that the library reads, full-map coordinates */
    /* Where the library does not take the padding, the input is copied with zeros round it. */
    struct us_rect view; /* h = 0: not copied */
    size_t view_at;      /* in scratch */
    /* The stage, f32 [n, stage_h, stage_w, c]; `part` (coordinates of the full output map) is what
     * of the output the product makes, and begins at off_y, off_x of the stage. */
    struct us_rect part;
    int32_t stage_h, stage_w, off_y, off_x;
    size_t stage_at;
    size_t weights_at; /* in packed */
};

struct usi_cuda_op {
    struct us_op base;
    union {
#define US_OP(name) struct us_##name##_desc name;
#include "us_ops.def"
#undef US_OP
    } d;
    struct us_backend *be;
    struct us_map out;
    const struct us_map *in2; /* the residual or b; NULL: none */
    int32_t n_products;
    struct usi_cuda_product product[2];
    bool fused; /* the library, or `direct`, writes the output itself */
    bool tail;
    int32_t chunk;
    int32_t n_bias, n_tail;
    size_t bias_at, scale_at, shift_at; /* in packed */
    size_t noise_at, workspace_at;      /* in scratch */
};

/* ---- us_cuda_product.c ---- */

/* Plans p for `want`. With fuse (nullable) the whole op is meant: US_E_UNSUPPORTED if the library
 * does not take that. Without, a product the library refuses is left to `direct`. *p is zero or
 * holds an earlier failed try. */
enum us_status usi_cuda_product_plan(struct us_backend *be, const struct usi_cuda_want *want,
                                     const struct usi_cuda_fuse *fuse, struct usi_cuda_product *p,
                                     struct us_err *err) US_WARN_UNUSED;
void usi_cuda_product_release(struct us_backend *be, struct usi_cuda_product *p);

/* Whether `direct` is as fast as a matrix unit can be here, or the library would need channels
 * padded. By channels and kernel alone, so that all rectangles of a map are computed alike. */
bool usi_cuda_wants_direct(const struct usi_cuda_want *w);

size_t usi_cuda_stage_bytes(const struct usi_cuda_product *p);
size_t usi_cuda_view_bytes(const struct usi_cuda_product *p);
size_t usi_cuda_weight_bytes(const struct usi_cuda_product *p);
/* w: canonical weights of the op; the product's input channels are in_c from `first` of in_row. */
void usi_cuda_product_pack(const struct usi_cuda_product *p, const float *w, int32_t in_row,
                           int32_t first, void *packed);

#endif
