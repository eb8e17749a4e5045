/*
 * A build without CUDA has no GPUs and says so, in the words of us_gpu.h.
 */
#include "us_gpu.h"

#define WHY                                                                                        \
    "this build has no CUDA support (it was configured where nvcc or cuDNN's headers are missing)"

int32_t us_gpu_cuda_count(struct us_err *why)
{
    (void)us_fail(why, US_E_UNSUPPORTED, WHY);
    return 0;
}

enum us_status us_gpu_cuda_open(int32_t device, struct us_gpu **ret, struct us_err *err)
{
    return us_fail(err, US_E_UNSUPPORTED, WHY);
}
