/*
 * Launchers of our kernels on the device. EACH: a grid-stride loop over the pieces. SUM: blocks
 * form partial sums, a second kernel adds those of each row (kernels/us_k_sum.h has the order).
 * US_K_LAUNCH_EACH/SUM make the kernel and its entry of the table us_kernels_cuda.
 */
#ifndef US_KERNELS_LAUNCH_CUH
#define US_KERNELS_LAUNCH_CUH

#include <cuda_runtime.h>

#include "kernels/us_k_sum.h"
#include "us_gpu_cuda.h"
#include "us_kernels.h"

#define US_K_EACH_THREADS 256
/* More blocks than any device runs at once; a thread then takes more than one piece. */
#define US_K_EACH_MAX_BLOCKS 65536

static inline cudaStream_t us_k_stream(const struct us_gpu *g)
{
    return (cudaStream_t)g->stream;
}

static inline unsigned us_k_each_blocks(int64_t count)
{
    int64_t blocks = (count + US_K_EACH_THREADS - 1) / US_K_EACH_THREADS;
    return (unsigned)(blocks < US_K_EACH_MAX_BLOCKS ? blocks : US_K_EACH_MAX_BLOCKS);
}

#define US_K_LAUNCH_EACH(name)                                                                     \
    static __global__ void __launch_bounds__(US_K_EACH_THREADS)                                    \
        kernel_##name(const struct us_k_##name a, int64_t count)                                   \
    {                                                                                              \
        int64_t step = (int64_t)gridDim.x * blockDim.x;                                            \
        for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step)     \
            us_k_##name##_at(&a, i);                                                               \
    }                                                                                              \
    extern "C" enum us_status usi_k_cuda_##name(struct us_gpu *g, const struct us_k_##name *a)     \
    {                                                                                              \
        int64_t count = us_k_##name##_count(a);                                                    \
        if (count <= 0)                                                                            \
            return US_OK;                                                                          \
        kernel_##name<<<us_k_each_blocks(count), US_K_EACH_THREADS, 0, us_k_stream(g)>>>(*a,       \
                                                                                         count);   \
        return usi_gpu_cuda_result(g, cudaGetLastError());                                         \
    }

/* at[0] = the sum of n values at at[0], at[step], ..., by a binary tree; every thread of the block
 * calls it, `i` is its place among the n. */
static __device__ inline void us_k_add_tree(double *at, int i, int n, int step)
{
    for (int half = n / 2; half > 0; half /= 2) {
        __syncthreads();
        if (i < half)
            at[i * step] += at[(i + half) * step];
    }
    __syncthreads();
}

/* The grid is (row_blocks, n_splits). A thread is (lane, row of the block), rows fastest. */
#define US_K_LAUNCH_SUM(name)                                                                      \
    static __global__ void __launch_bounds__(US_K_SUM_THREADS)                                     \
        kernel_##name(const struct us_k_##name a, int64_t rows, int64_t n_terms,                   \
                      struct us_k_sum_order o, double *scratch)                                    \
    {                                                                                              \
        __shared__ double part[us_k_##name##_sums][US_K_SUM_THREADS];                              \
        int in_block = (int)threadIdx.x % o.row_lanes, lane = (int)threadIdx.x / o.row_lanes;      \
        int64_t row = (int64_t)blockIdx.x * o.row_lanes + in_block;                                \
        int64_t step = (int64_t)o.n_splits * o.lanes;                                              \
        double sum[us_k_##name##_sums], term[us_k_##name##_sums];                                  \
        for (int j = 0; j < us_k_##name##_sums; j++)                                               \
            sum[j] = 0.0;                                                                          \
        if (row < rows)                                                                            \
            for (int64_t i = (int64_t)blockIdx.y * o.lanes + lane; i < n_terms; i += step) {       \
                us_k_##name##_term(&a, row, i, term);                                              \
                for (int j = 0; j < us_k_##name##_sums; j++)                                       \
                    sum[j] += term[j];                                                             \
            }                                                                                      \
        for (int j = 0; j < us_k_##name##_sums; j++) {                                             \
            part[j][threadIdx.x] = sum[j];                                                         \
            us_k_add_tree(&part[j][in_block], lane, o.lanes, o.row_lanes);                         \
            sum[j] = part[j][in_block];                                                            \
        }                                                                                          \
        if (row >= rows || lane != 0)                                                              \
            return;                                                                                \
        if (o.n_splits == 1)                                                                       \
            us_k_##name##_store(&a, row, sum);                                                     \
        else                                                                                       \
            for (int j = 0; j < us_k_##name##_sums; j++)                                           \
                scratch[(row * us_k_##name##_sums + j) * o.n_splits + blockIdx.y] = sum[j];        \
    }                                                                                              \
    static __global__ void __launch_bounds__(US_K_SUM_THREADS)                                     \
        finish_##name(const struct us_k_##name a, int32_t n_splits, const double *scratch)         \
    {                                                                                              \
        __shared__ double part[US_K_MAX_SPLITS];                                                   \
        double sum[us_k_##name##_sums];                                                            \
        int64_t row = (int64_t)blockIdx.x;                                                         \
        for (int j = 0; j < us_k_##name##_sums; j++) {                                             \
            const double *from = scratch + (row * us_k_##name##_sums + j) * n_splits;              \
            for (int s = (int)threadIdx.x; s < n_splits; s += US_K_SUM_THREADS)                    \
                part[s] = from[s];                                                                 \
            for (int half = n_splits / 2; half > 0; half /= 2) {                                   \
                __syncthreads();                                                                   \
                for (int s = (int)threadIdx.x; s < half; s += US_K_SUM_THREADS)                    \
                    part[s] += part[s + half];                                                     \
            }                                                                                      \
            __syncthreads();                                                                       \
            sum[j] = part[0];                                                                      \
            __syncthreads();                                                                       \
        }                                                                                          \
        if (threadIdx.x == 0)                                                                      \
            us_k_##name##_store(&a, row, sum);                                                     \
    }                                                                                              \
    extern "C" enum us_status usi_k_cuda_##name(struct us_gpu *g, const struct us_k_##name *a)     \
    {                                                                                              \
        int64_t rows = us_k_##name##_rows(a), n_terms = us_k_##name##_terms(a);                    \
        if (rows <= 0)                                                                             \
            return US_OK;                                                                          \
        struct us_k_sum_order o = us_k_sum_order(rows, n_terms, us_k_##name##_row_lanes);          \
        double *scratch = usi_gpu_cuda_sums(g);                                                    \
        dim3 grid((unsigned)o.row_blocks, (unsigned)o.n_splits);                                   \
        kernel_##name<<<grid, US_K_SUM_THREADS, 0, us_k_stream(g)>>>(*a, rows, n_terms, o,         \
                                                                     scratch);                     \
        US_TRY(usi_gpu_cuda_result(g, cudaGetLastError()));                                        \
        if (o.n_splits == 1)                                                                       \
            return US_OK;                                                                          \
        finish_##name<<<(unsigned)rows, US_K_SUM_THREADS, 0, us_k_stream(g)>>>(*a, o.n_splits,     \
                                                                               scratch);           \
        return usi_gpu_cuda_result(g, cudaGetLastError());                                         \
    }

#endif
