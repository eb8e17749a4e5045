/*
 * The CUDA backend (core/us_backend.h, core/us_train_ops.h) over a struct us_gpu: cuDNN and our own
 * kernels for an NVIDIA GPU, or the same code with plain loops under it, "cuda-serial", which is
 * for tests.
 *
 * One backend is one device and one ordered queue of work: one thread uses it at a time
 * (us_backend.h, hold). run and
 * the training calls return when their work is queued; copy_out and sync wait.
 */
#ifndef US_CUDA_H
#define US_CUDA_H

#include "us_backend.h"
#include "us_gpu.h"

/* Number of GPUs that can be used; 0 where this build has no CUDA, or driver, device or cuDNN are
 * missing, and *why (nullable) then says which. */
int32_t us_cuda_count(struct us_err *why);

/* Opens GPU `device`, counted from 0. US_E_UNSUPPORTED says what is missing. Caller frees with
 * ops->free. */
enum us_status us_cuda_open(int32_t device, struct us_backend **ret,
                            struct us_err *err) US_WARN_UNUSED;

/* The same backend on the host. */
enum us_status us_cuda_serial_open(struct us_backend **ret, struct us_err *err) US_WARN_UNUSED;

/* The device below a backend that one of the two calls above opened. */
struct us_gpu *us_cuda_gpu(struct us_backend *be);

#endif
