/*
 * Inside the CUDA backend's training half (us_train_ops.h): its functions and what they share.
 */
#ifndef US_CUDA_TRAIN_H
#define US_CUDA_TRAIN_H

#include "us_cuda_impl.h"

#define USI_CUDA_TRAIN_ALIGN 256

/* ---- us_cuda_train.c ---- */

/* A dense map of which every pointer in `p` (NULL: none) is an operand; at most `widest` (8 or 4)
 * channels a piece. */
struct us_k_dense usi_cuda_dense(const struct us_ew *e, int32_t widest, const void *const *p,
                                 int32_t n);

/* ---- us_cuda_train_conv.c ---- */

enum us_status usi_cuda_tconv_plan(struct us_backend *be, const struct us_tconv_desc *d,
                                   struct us_tconv **ret, struct us_err *err);
void usi_cuda_tconv_free(struct us_backend *be, struct us_tconv *conv);
enum us_status usi_cuda_tconv_bind(struct us_backend *be, const struct us_tconv *conv,
                                   void *scratch, struct us_tconv_ctx **ret);
void usi_cuda_tconv_unbind(struct us_backend *be, struct us_tconv_ctx *ctx);
enum us_status usi_cuda_tconv_pack(struct us_backend *be, struct us_tconv_ctx *ctx, const float *w,
                                   const float *b, void *packed);
enum us_status usi_cuda_tconv_fwd(struct us_backend *be, struct us_tconv_ctx *ctx,
                                  const void *packed, const void *x, void *y);
enum us_status usi_cuda_tconv_bwd_data(struct us_backend *be, struct us_tconv_ctx *ctx,
                                       const void *packed, const void *dy, void *dx);
enum us_status usi_cuda_tconv_bwd_weights(struct us_backend *be, struct us_tconv_ctx *ctx,
                                          const void *x, const void *dy, float *dw, float *db);

/* ---- us_cuda_train_loss.c ---- */

enum us_status usi_cuda_posterior_fwd(struct us_backend *be, const struct us_posterior *d,
                                      int32_t items, const void *q, const void *p,
                                      const struct us_draw *draw, void *z, double *kl);
enum us_status usi_cuda_kl_coef(struct us_backend *be, const struct us_kl_share *d, int32_t items,
                                const double *kl, const float *kl_weight, float *coef);
enum us_status usi_cuda_posterior_bwd(struct us_backend *be, const struct us_posterior *d,
                                      int32_t items, const void *q, const void *p,
                                      const struct us_draw *draw, const void *dz, const float *coef,
                                      void *dq, void *dp);
enum us_status usi_cuda_likelihood(struct us_backend *be, const struct us_likelihood *d,
                                   int32_t items, const float *head, const float *target,
                                   float grad_weight, double *rec, double *se, float *dhead);
enum us_status usi_cuda_reduce_lanes(struct us_backend *be, const float *lanes, int64_t stride,
                                     int32_t n_lanes, int64_t n, float *dst, double *sq);
enum us_status usi_cuda_adamax(struct us_backend *be, const struct us_adamax *a, int64_t n,
                               const float *g, float *m, float *u, float *p);

#endif
