/*
 * nvcc's copies of the shared formulas (us_cuda_math_check.h). The host copies are plain loops; the
 * device copies are one grid-stride kernel per formula.
 */
#include "us_cuda_math_check.h"

#include <cuda_runtime.h>

#include "us_cuda_math_cases.h"

#define THREADS_PER_BLOCK 256
#define BLOCKS            64

#define US_MATH_CASE(name, result)                                                                 \
    static void host_##name(const uint32_t *in, uint32_t *out, int64_t n)                          \
    {                                                                                              \
        for (int64_t i = 0; i < n; i++)                                                            \
            out[i] = us_case_##name(in[i]);                                                        \
    }                                                                                              \
    static __global__ void kernel_##name(const uint32_t *in, uint32_t *out, int64_t n)             \
    {                                                                                              \
        int64_t step = (int64_t)gridDim.x * blockDim.x;                                            \
        for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step)         \
            out[i] = us_case_##name(in[i]);                                                        \
    }
#include "us_cuda_math_cases.def"
#undef US_MATH_CASE

typedef void (*host_fn)(const uint32_t *in, uint32_t *out, int64_t n);
typedef void (*kernel_fn)(const uint32_t *in, uint32_t *out, int64_t n);

static const host_fn hosts[US_MATH_CASE_COUNT] = {
#define US_MATH_CASE(name, result) host_##name,
#include "us_cuda_math_cases.def"
#undef US_MATH_CASE
};

static const kernel_fn kernels[US_MATH_CASE_COUNT] = {
#define US_MATH_CASE(name, result) kernel_##name,
#include "us_cuda_math_cases.def"
#undef US_MATH_CASE
};

void us_cuda_math_host(int which, const uint32_t *in, uint32_t *out, int64_t n)
{
    hosts[which](in, out, n);
}

/* Copies in, runs, copies out; the buffers belong to the caller. */
static cudaError_t run_on_device(kernel_fn kernel, const uint32_t *in, uint32_t *out, int64_t n,
                                 uint32_t *d_in, uint32_t *d_out)
{
    size_t bytes = (size_t)n * sizeof(uint32_t);
    cudaError_t e = cudaMemcpy(d_in, in, bytes, cudaMemcpyHostToDevice);
    if (e != cudaSuccess)
        return e;
    kernel<<<BLOCKS, THREADS_PER_BLOCK>>>(d_in, d_out, n);
    e = cudaGetLastError();
    if (e != cudaSuccess)
        return e;
    return cudaMemcpy(out, d_out, bytes, cudaMemcpyDeviceToHost);
}

enum us_status us_cuda_math_device(int which, const uint32_t *in, uint32_t *out, int64_t n,
                                   struct us_err *err)
{
    int count = 0;
    uint32_t *d_in = NULL, *d_out = NULL;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0)
        return us_fail(err, US_E_UNSUPPORTED, "no GPU: %s", cudaGetErrorString(e));
    e = cudaMalloc((void **)&d_in, (size_t)n * sizeof(uint32_t));
    if (e == cudaSuccess)
        e = cudaMalloc((void **)&d_out, (size_t)n * sizeof(uint32_t));
    if (e == cudaSuccess)
        e = run_on_device(kernels[which], in, out, n, d_in, d_out);
    cudaFree(d_in);
    cudaFree(d_out);
    if (e != cudaSuccess)
        return us_fail(err, US_E_BACKEND, "CUDA: %s", cudaGetErrorString(e));
    return US_OK;
}
