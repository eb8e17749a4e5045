/*
 * Opening the CUDA backend on the host, for tests; kept apart so that no program carries it. Where
 * there is a GPU, `./dev gpu` sets US_TEST_GPU, and the same tests run on that.
 */
#include <stdlib.h>

#include "us_cuda_impl.h"

enum us_status us_cuda_serial_open(struct us_backend **ret, struct us_err *err)
{
    struct us_gpu *g = NULL;
    if (getenv("US_TEST_GPU") != NULL)
        return us_cuda_open(0, ret, err);
    US_TRY(us_gpu_serial_open(&g, err));
    return usi_cuda_new(g, ret, err);
}
