/*
 * Convolutions of the CUDA backend: cuDNN's graph API (us_cudnn.c, the only file that includes
 * cuDNN) or plain sums (us_conv_serial.c, for tests without a GPU).
 *
 * One description serves prediction and training, because a transposed convolution's forward pass
 * is a convolution's gradient by its input. Let x be the larger side and y the smaller:
 *   y[n, oy, ox, k] = sum over ky, kx, c of x[n, stride*oy - top + ky, stride*ox - left + kx, c] *
 *                     w[k, ky, kx, c]       (x is zero outside)
 *   FORWARD  y from x        DATA  x from y (sums over k)        FILTER  w from x and y
 * Maps are NHWC windows of larger maps: pixel (y, x) of image n begins at element
 * n*image_stride + y*row_stride + x*pixel_stride, its channels are adjacent. So a crop costs
 * nothing (a pointer and strides) and padding is top, left, bottom, right of the convolution:
 * neither is ever materialised. top or left may be negative only if the caller shifted x instead:
 * they are >= 0.
 */
#ifndef US_CONV_H
#define US_CONV_H

#include "us_gpu.h"
#include "us_map.h"

#ifdef __cplusplus
extern "C" {
#endif

enum us_conv_kind { US_CONV_FORWARD, US_CONV_DATA, US_CONV_FILTER };

struct us_conv_map {
    int32_t h, w, c;
    int64_t image_stride, row_stride, pixel_stride; /* elements */
};

struct us_conv_desc {
    enum us_conv_kind kind;
    enum us_dtype dtype;     /* of x, y and w (FILTER: of x and y; w is then f32) */
    enum us_dtype out_dtype; /* of what is written by FORWARD and DATA: dtype or US_F32 */
    int32_t n;
    struct us_conv_map x, y;
    int32_t k, stride; /* kernel side; w is [y.c][k][k][x.c] */
    int32_t top, left, bottom, right;
    /* Epilogue of FORWARD and DATA, in f32 before rounding: + bias[c], then ELU, then + res, where
     * res has the shape of the output, dtype `dtype`, strides of its own. */
    bool bias, elu, residual;
    struct us_conv_map res;
    /* f32 convolutions may round their operands to TF32. */
    bool tf32;
};

struct us_conv; /* one plan; provider-private, immutable */

struct us_conv_bufs {
    const void *x, *y, *w; /* the two that are read */
    void *out;             /* the third */
    const float *bias;     /* f32, [channels of the output] */
    const void *res;
    void *workspace;
};

struct us_conv_ops {
    /* Chooses how (timed once per shape, remembered on disk) and says what memory that takes.
     * US_E_UNSUPPORTED: no way to do this with its epilogue; the caller then plans it without and
     * adds the epilogue by a kernel of ours (us_kernels.def: epilogue). */
    enum us_status (*plan)(struct us_gpu *g, const struct us_conv_desc *d, struct us_conv **ret,
                           size_t *ret_workspace_bytes, struct us_err *err);
    void (*free)(struct us_gpu *g, struct us_conv *c);
    /* Queues it. Allocates nothing; may be recorded in a graph; the same bits every time. */
    enum us_status (*run)(struct us_gpu *g, const struct us_conv *c, const struct us_conv_bufs *b);
};

/* Refuses descriptions that contradict themselves, US_E_ARG; every plan begins with it. */
enum us_status us_conv_check(const struct us_conv_desc *d, struct us_err *err) US_WARN_UNUSED;

extern const struct us_conv_ops us_conv_serial_ops;
/* us_gpu_cuda.c loads cuDNN and takes its table from here; US_E_UNSUPPORTED where it is absent. */
enum us_status us_cudnn_open(struct us_gpu *g, const struct us_conv_ops **ret, void **ret_handle,
                             struct us_err *err) US_WARN_UNUSED;
void us_cudnn_close(void *handle);
/* 91900 for 9.19.0; 0 for NULL. */
int32_t us_cudnn_version(const void *handle);

#ifdef __cplusplus
}
#endif
#endif
