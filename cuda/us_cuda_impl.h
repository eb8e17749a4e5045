/*
 * Inside the CUDA backend: what its files share.
 */
#ifndef US_CUDA_IMPL_H
#define US_CUDA_IMPL_H

#include <pthread.h>

#include "us_backend.h"
#include "us_conv.h"
#include "us_cuda.h"
#include "us_gpu.h"
#include "us_kernels.h"
#include "us_train_ops.h"

struct us_backend {
    struct us_backend_base base;
    struct us_gpu *gpu;
    /* Who may use the device: the ticket `turn`; `next` is the next one to be given out. */
    pthread_mutex_t lock;
    pthread_cond_t turned;
    uint64_t turn, next;
    bool bf16;
    /* What an op of prediction may leave in scratch between two calls (us_cuda_infer.h, stage). */
    int64_t stage_bytes;
    /* Training's log-variances per item (us_cuda_train_loss.c), device memory; NULL until used. */
    double *pooled;
};

/* Takes g: the backend frees it, also when this fails. */
enum us_status usi_cuda_new(struct us_gpu *g, struct us_backend **ret,
                            struct us_err *err) US_WARN_UNUSED;

/* us_cuda_train.c */
extern const struct us_train_ops usi_cuda_train_ops;

/* us_cuda_frame.c */
extern const struct us_frame_ops usi_cuda_frame_ops;

/* ---- us_cuda_infer.c, us_cuda_bind.c: entries of struct us_backend_ops ---- */

#define US_OP(name)                                                                                \
    enum us_status usi_cuda_##name##_plan(struct us_backend *be,                                   \
                                          const struct us_##name##_desc *desc, struct us_op **ret, \
                                          struct us_err *err);
#include "us_ops.def"
#undef US_OP
void usi_cuda_op_free(struct us_backend *be, struct us_op *op);
enum us_status usi_cuda_op_pack(struct us_backend *be, const struct us_op *op,
                                const struct us_op_weights *w, void *packed);
enum us_status usi_cuda_op_bind(struct us_backend *be, const struct us_op *op,
                                const struct us_op_bufs *bufs, struct us_bound **ret);
void usi_cuda_bound_free(struct us_backend *be, struct us_bound *b);
enum us_status usi_cuda_run(struct us_backend *be, struct us_bound *b);

#endif
