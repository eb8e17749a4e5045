/*
 * Opening the CUDA backend on the host, for tests; kept apart so that no program carries it.
 */
#include "us_cuda_impl.h"

enum us_status us_cuda_serial_open(struct us_backend **ret, struct us_err *err)
{
    struct us_gpu *g = NULL;
    US_TRY(us_gpu_serial_open(&g, err));
    return usi_cuda_new(g, ret, err);
}
