/*
 * The little of oneDNN that the cpu backend needs: one dense NHWC convolution with bias and an
 * optional ELU. Only us_cpu_dnn*.c include dnnl.h, because the 2.x descriptor interface is gone in
 * 3.x: a new Debian release rewrites those files and nothing else.
 *
 * Source and destination are dense [oh, ow, channels] of one item: a pixel stride other than the
 * channel count falls to a reference loop 200 times slower, so it cannot be expressed here.
 * Everything runs on the calling thread.
 */
#ifndef US_CPU_DNN_H
#define US_CPU_DNN_H

#include "us_map.h"
#include "us_status.h"

struct usi_dnn;      /* the engine */
struct usi_dnn_conv; /* one convolution; immutable, shared by all threads */
struct usi_dnn_call; /* its arguments on one thread */

/* out[oc, y, x] = act(b[oc] + sum w[oc, ic, ky, kx] * in[ic, y*stride - pad_top + ky, ...]);
 * outside the source is zero. ih + pad_top + pad_bottom == stride*(oh-1) + kh, likewise for x.
 * Weights take the dtype of the source; sums are f32. */
struct usi_dnn_conv_spec {
    int32_t ic, oc, kh, kw, stride;
    int32_t ih, iw, oh, ow;
    int32_t pad_top, pad_left, pad_bottom, pad_right;
    enum us_dtype src, dst;
    bool bias, elu;
};

enum us_status usi_dnn_open(struct usi_dnn **ret, struct us_err *err) US_WARN_UNUSED;
void usi_dnn_close(struct usi_dnn *d);

/* Whether the processor multiplies bf16, as far as oneDNN will use it; and whether by tiles. */
bool usi_dnn_has_bf16(const struct usi_dnn *d);
bool usi_dnn_has_amx(const struct usi_dnn *d);

/* Confines the calling thread's OpenMP regions to itself for good. */
void usi_dnn_thread_init(void);

enum us_status usi_dnn_conv_new(struct usi_dnn *d, const struct usi_dnn_conv_spec *spec,
                                struct usi_dnn_conv **ret, struct us_err *err) US_WARN_UNUSED;
void usi_dnn_conv_free(struct usi_dnn_conv *c);

const struct usi_dnn_conv_spec *usi_dnn_conv_spec(const struct usi_dnn_conv *c);
size_t usi_dnn_conv_weight_bytes(const struct usi_dnn_conv *c);
size_t usi_dnn_conv_scratch_bytes(const struct usi_dnn_conv *c);
/* Whether weights packed for a serve b as well. */
bool usi_dnn_conv_same_weights(const struct usi_dnn_conv *a, const struct usi_dnn_conv *b);
/* oneDNN's name for the implementation it chose, for tests and benches. */
const char *usi_dnn_conv_impl(const struct usi_dnn_conv *c);

/* w: f32 [oc, ic, kh, kw], contiguous. packed: weight_bytes, 64-byte aligned. */
enum us_status usi_dnn_conv_pack(const struct usi_dnn_conv *c, const float *w,
                                 void *packed) US_WARN_UNUSED;

/* packed, bias (f32 [oc], NULL if !spec.bias) and scratch are borrowed for the call's life. */
enum us_status usi_dnn_call_new(const struct usi_dnn_conv *c, const void *packed, const float *bias,
                                void *scratch, struct usi_dnn_call **ret) US_WARN_UNUSED;
void usi_dnn_call_free(struct usi_dnn_call *call);
enum us_status usi_dnn_call_run(struct usi_dnn_call *call, const void *src,
                                void *dst) US_WARN_UNUSED;

#endif
