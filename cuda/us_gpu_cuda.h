/*
 * Inside the CUDA implementation of struct us_gpu: what us_gpu_cuda.c, the launchers and cuDNN's
 * files share.
 */
#ifndef US_GPU_CUDA_H
#define US_GPU_CUDA_H

#include "us_gpu.h"

#ifdef __cplusplus
extern "C" {
#endif

struct us_gpu_cuda {
    struct us_gpu base;
    int32_t device;
    void *copies; /* cudaStream_t beside base.stream */
    void *cudnn;  /* us_cudnn_open's handle */
    double *sums; /* device memory for the second step of sums: US_K_SUM_SCRATCH */
};

/* Takes a cudaError_t: US_OK for cudaSuccess, US_E_NOMEM where memory is short, else
 * US_E_DEVICE_LOST after a fault that leaves the device useless (g is poisoned) or US_E_BACKEND;
 * the vendor's words go to g->fault. */
enum us_status usi_gpu_cuda_result(struct us_gpu *g, int error);

static inline double *usi_gpu_cuda_sums(struct us_gpu *g)
{
    return ((struct us_gpu_cuda *)(void *)g)->sums;
}

static inline void *usi_gpu_cuda_cudnn(struct us_gpu *g)
{
    return ((struct us_gpu_cuda *)(void *)g)->cudnn;
}

#ifdef __cplusplus
}
#endif
#endif
