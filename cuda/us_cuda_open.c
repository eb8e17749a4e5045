/*
 * Opening the CUDA backend on a GPU; kept apart so that tests on the host need no CUDA.
 */
#include "us_cuda_impl.h"

int32_t us_cuda_count(struct us_err *why)
{
    return us_gpu_cuda_count(why);
}

enum us_status us_cuda_open(int32_t device, struct us_backend **ret, struct us_err *err)
{
    struct us_gpu *g = NULL;
    US_TRY(us_gpu_cuda_open(device, &g, err));
    return usi_cuda_new(g, ret, err);
}
