/*
 * The list of backends (us_backend_choice.h), fastest first for `auto`.
 */
#include "us_backend_choice.h"

#include "us_cuda.h"

enum us_status us_backend_choose(int64_t word, struct us_backend **ret, struct us_err *err)
{
    if (word == US_BACKEND_REF)
        return us_ref_open(ret, err);
    if (word >= US_BACKEND_CUDA) {
        int64_t device = word == US_BACKEND_CUDA ? 0 : word - US_BACKEND_CUDA_0;
        enum us_status s = us_cuda_open((int32_t)device, ret, err);
        if (s != US_OK)
            us_err_prefix(err, "--backend cuda");
        return s;
    }
    if (word == US_BACKEND_AUTO && us_cuda_open(0, ret, NULL) == US_OK)
        return US_OK;
    return us_cpu_open(ret, err);
}
