/*
 * Inside the CUDA backend: what its files share.
 */
#ifndef US_CUDA_IMPL_H
#define US_CUDA_IMPL_H

#include "us_backend.h"
#include "us_conv.h"
#include "us_cuda.h"
#include "us_gpu.h"
#include "us_kernels.h"
#include "us_train_ops.h"

struct us_backend {
    struct us_backend_base base;
    struct us_gpu *gpu;
    bool bf16;
};

/* Takes g: the backend frees it, also when this fails. */
enum us_status usi_cuda_new(struct us_gpu *g, struct us_backend **ret,
                            struct us_err *err) US_WARN_UNUSED;

#endif
