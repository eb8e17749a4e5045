/*
 * Convolutions in training, by oneDNN: forward, backward to the source and backward to the
 * weights of one convolution, and the changes of weight layout between them and the state dict.
 * Like us_cpu_dnn.h: dense NHWC maps, everything on the calling thread, and a run allocates
 * nothing of ours.
 *
 * A transposed convolution is one of these with its directions renamed (us_cpu_train_conv.c).
 */
#ifndef US_CPU_DNN_TRAIN_H
#define US_CPU_DNN_TRAIN_H

#include "us_cpu_dnn.h"

struct usi_dnn_tconv; /* one convolution; immutable, shared by all threads */
struct usi_dnn_tcall; /* its arguments on one thread */

/* dst[oc, y, x] = b[oc] + sum w[oc, ic, ky, kx] * src[ic, y*stride - pad + ky, ...], n items of
 * [ih, iw, ic] to [oh, ow, oc]; the padding behind follows from the sizes. All sums are f32. */
struct usi_dnn_tconv_spec {
    int32_t n, ic, oc, k, stride, pad;
    int32_t ih, iw, oh, ow;
    enum us_dtype type;     /* of every map that is read, and of the weights in multiplications */
    enum us_dtype dst;      /* what forward writes */
    enum us_dtype diff_src; /* what backward-data writes */
    bool bias;              /* forward adds it, backward-weights writes its gradient */
    bool forward, backward; /* which directions will be run */
};

enum us_status usi_dnn_tconv_new(struct usi_dnn *d, const struct usi_dnn_tconv_spec *spec,
                                 struct usi_dnn_tconv **ret, struct us_err *err) US_WARN_UNUSED;
void usi_dnn_tconv_free(struct usi_dnn_tconv *c);

size_t usi_dnn_tconv_packed_bytes(const struct usi_dnn_tconv *c);
size_t usi_dnn_tconv_scratch_bytes(const struct usi_dnn_tconv *c);

/* scratch: scratch_bytes, 64-byte aligned, borrowed for the call's life. */
enum us_status usi_dnn_tcall_new(const struct usi_dnn_tconv *c, void *scratch,
                                 struct usi_dnn_tcall **ret) US_WARN_UNUSED;
void usi_dnn_tcall_free(struct usi_dnn_tcall *call);

/* w: f32 [oc, ic, k, k]. packed: packed_bytes, 64-byte aligned. */
enum us_status usi_dnn_tcall_pack(struct usi_dnn_tcall *call, const float *w,
                                  void *packed) US_WARN_UNUSED;
/* bias: f32 [oc], NULL if !spec.bias. */
enum us_status usi_dnn_tcall_forward(struct usi_dnn_tcall *call, const void *packed,
                                     const float *bias, const void *src, void *dst) US_WARN_UNUSED;
enum us_status usi_dnn_tcall_data(struct usi_dnn_tcall *call, const void *packed,
                                  const void *diff_dst, void *diff_src) US_WARN_UNUSED;
/* Adds to dw, f32 [oc, ic, k, k]; writes db, f32 [oc], NULL if !spec.bias. */
enum us_status usi_dnn_tcall_weights(struct usi_dnn_tcall *call, const void *src,
                                     const void *diff_dst, float *dw, float *db) US_WARN_UNUSED;

#endif
