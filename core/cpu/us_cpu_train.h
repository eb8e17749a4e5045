/* Inside the cpu backend's training half: its convolutions, for the table in us_cpu_train.c. */
#ifndef US_CPU_TRAIN_H
#define US_CPU_TRAIN_H

#include "us_cpu_impl.h"
#include "us_train_ops.h"

enum us_status usi_cpu_tconv_plan(struct us_backend *be, const struct us_tconv_desc *d,
                                  struct us_tconv **ret, struct us_err *err);
void usi_cpu_tconv_free(struct us_backend *be, struct us_tconv *conv);
enum us_status usi_cpu_tconv_bind(struct us_backend *be, const struct us_tconv *conv, void *scratch,
                                  struct us_tconv_ctx **ret);
void usi_cpu_tconv_unbind(struct us_backend *be, struct us_tconv_ctx *ctx);
enum us_status usi_cpu_tconv_pack(struct us_backend *be, struct us_tconv_ctx *ctx, const float *w,
                                  const float *b, void *packed);
enum us_status usi_cpu_tconv_fwd(struct us_backend *be, struct us_tconv_ctx *ctx,
                                 const void *packed, const void *x, void *y);
enum us_status usi_cpu_tconv_bwd_data(struct us_backend *be, struct us_tconv_ctx *ctx,
                                      const void *packed, const void *dy, void *dx);
enum us_status usi_cpu_tconv_bwd_weights(struct us_backend *be, struct us_tconv_ctx *ctx,
                                         const void *x, const void *dy, float *dw, float *db);

#endif
