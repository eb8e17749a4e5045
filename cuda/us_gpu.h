/*
 * A GPU as the CUDA backend sees it: memory, copies, one stream, graphs. Two implementations stand
 * behind one table: the CUDA runtime (us_gpu_cuda.c), and the host itself (us_gpu_serial.c), where
 * kernels are plain loops and convolutions plain sums. The second exists so that everything above
 * this line (op table, training table, device-side tiling) runs and is tested where there is no
 * GPU; it is slow and no user is offered it.
 *
 * All work of a struct us_gpu is ordered on one stream; a second one copies beside it. A call
 * returns when its work is queued, unless it says that it waits. After a sticky fault the device is
 * poisoned: every later call returns US_E_DEVICE_LOST and only free is of use.
 */
#ifndef US_GPU_H
#define US_GPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct us_gpu;       /* a device that is open; one per backend */
struct us_gpu_graph; /* work that was recorded once and is started with one call */
struct us_kernels;   /* us_kernels.h */
struct us_conv_ops;  /* us_conv.h */

struct us_gpu_info {
    char name[128];       /* "NVIDIA H200"; "host" for the serial one */
    int32_t major, minor; /* compute capability */
    int64_t memory_bytes, free_bytes;
    bool bf16;                      /* multiplies bf16 (compute capability 8.0 and later) */
    int32_t driver, runtime, cudnn; /* versions as their makers number them; 0: none */
};

struct us_gpu_ops {
    const char *name; /* "cuda", "serial" */
    void (*free)(struct us_gpu *g);
    enum us_status (*info)(struct us_gpu *g, struct us_gpu_info *ret);
    /* The calling thread will use this device. */
    enum us_status (*use)(struct us_gpu *g);
    /* Device memory, 256-byte aligned; US_E_NOMEM where the device has no more (not a fault). */
    enum us_status (*alloc)(struct us_gpu *g, size_t bytes, void **ret);
    void (*release)(struct us_gpu *g, void *p);
    /* Host memory that copies run from without a stop, and that kernels can read at the same
     * address: what changes between two starts of a graph stands there. */
    enum us_status (*host_alloc)(struct us_gpu *g, size_t bytes, void **ret);
    void (*host_release)(struct us_gpu *g, void *p);
    enum us_status (*to_device)(struct us_gpu *g, void *dst, const void *src, size_t bytes);
    enum us_status (*to_host)(struct us_gpu *g, void *dst, const void *src, size_t bytes);
    enum us_status (*copy)(struct us_gpu *g, void *dst, const void *src, size_t bytes);
    enum us_status (*zero)(struct us_gpu *g, void *dst, size_t bytes);
    /* Waits until all queued work is done; a fault of that work is returned here. */
    enum us_status (*sync)(struct us_gpu *g);
    /* Between begin and end work is recorded, not done; end gives the graph. Nothing in between
     * may allocate or wait. The serial implementation records nothing, does the work at once and
     * gives a NULL graph, which callers take as "no graphs here". */
    enum us_status (*graph_begin)(struct us_gpu *g);
    enum us_status (*graph_end)(struct us_gpu *g, struct us_gpu_graph **ret);
    enum us_status (*graph_run)(struct us_gpu *g, struct us_gpu_graph *graph);
    void (*graph_free)(struct us_gpu *g, struct us_gpu_graph *graph);
};

/* First member of both implementations' private struct. */
struct us_gpu {
    const struct us_gpu_ops *ops;
    const struct us_kernels *kernels;
    const struct us_conv_ops *conv;
    void *stream; /* cudaStream_t; NULL for the serial one */
    bool poisoned;
    char fault[192]; /* the vendor's words for what went wrong last; "" if nothing did */
};

/* Number of GPUs that can be used: 0 where there is no driver, no device or no cuDNN. why
 * (nullable) says in words. */
int32_t us_gpu_cuda_count(struct us_err *why);
/* Opens a CUDA device by number from 0. Everything of CUDA that is not in this binary (driver,
 * cuDNN) is looked for here, at run time. US_E_UNSUPPORTED says what is missing. */
enum us_status us_gpu_cuda_open(int32_t device, struct us_gpu **ret,
                                struct us_err *err) US_WARN_UNUSED;
/* The host in the role of a GPU. */
enum us_status us_gpu_serial_open(struct us_gpu **ret, struct us_err *err) US_WARN_UNUSED;

#ifdef __cplusplus
}
#endif
#endif
