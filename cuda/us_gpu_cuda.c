/*
 * A GPU by the CUDA runtime (us_gpu.h). The runtime is linked statically and loads the driver when
 * it is first called, so a program with this file starts on any machine.
 *
 * Faults: an error that the runtime calls sticky makes every later call fail, whoever made it; the
 * device is then poisoned and only a new process can use it again.
 */
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/us_k_sum.h"
#include "us_conv.h"
#include "us_gpu_cuda.h"
#include "us_kernels.h"

/* bf16 products need an Ampere; the rest of the kernels a Turing. */
#define OLDEST_MAJOR 7
#define OLDEST_MINOR 5
#define BF16_MAJOR   8

struct us_gpu_graph {
    cudaGraphExec_t exec;
};

/* ---- kernels ---- */

#define US_KERNEL_EACH(name)                                                                       \
    enum us_status usi_k_cuda_##name(struct us_gpu *g, const struct us_k_##name *args);
#define US_KERNEL_SUM(name) US_KERNEL_EACH(name)
#include "us_kernels.def"
#undef US_KERNEL_SUM
#undef US_KERNEL_EACH

const struct us_kernels us_kernels_cuda = {
    .where = "device",
#define US_KERNEL_EACH(name) .name = usi_k_cuda_##name,
#define US_KERNEL_SUM(name)  US_KERNEL_EACH(name)
#include "us_kernels.def"
#undef US_KERNEL_SUM
#undef US_KERNEL_EACH
};

/* ---- errors ---- */

/* Those after which the context is gone (CUDA's documentation: "the process must be terminated").
 */
static bool is_sticky(cudaError_t e)
{
    switch (e) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorExternalDevice:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorContained:
    case cudaErrorContextIsDestroyed:
    case cudaErrorDevicesUnavailable:
        return true;
    default:
        return false;
    }
}

enum us_status usi_gpu_cuda_result(struct us_gpu *g, int error)
{
    cudaError_t e = (cudaError_t)error;
    if (e == cudaSuccess)
        return g->poisoned ? US_E_DEVICE_LOST : US_OK;
    (void)cudaGetLastError(); /* it would be reported by the next launch too */
    (void)snprintf(g->fault, sizeof(g->fault), "%s: %s", cudaGetErrorName(e),
                   cudaGetErrorString(e));
    if (is_sticky(e))
        g->poisoned = true;
    if (g->poisoned)
        return US_E_DEVICE_LOST;
    return e == cudaErrorMemoryAllocation ? US_E_NOMEM : US_E_BACKEND;
}

static struct us_gpu_cuda *of(struct us_gpu *g)
{
    return (struct us_gpu_cuda *)(void *)g;
}

static cudaStream_t stream(struct us_gpu *g)
{
    return (cudaStream_t)g->stream;
}

/* ---- the table ---- */

static void cuda_free(struct us_gpu *g)
{
    struct us_gpu_cuda *c = of(g);
    if (c == NULL)
        return;
    (void)cudaSetDevice(c->device);
    if (g->stream != NULL)
        (void)cudaStreamSynchronize(stream(g));
    us_cudnn_close(c->cudnn);
    (void)cudaFree(c->sums);
    if (c->copies != NULL)
        (void)cudaStreamDestroy((cudaStream_t)c->copies);
    if (g->stream != NULL)
        (void)cudaStreamDestroy(stream(g));
    free(c);
}

static enum us_status cuda_info(struct us_gpu *g, struct us_gpu_info *ret)
{
    struct cudaDeviceProp p;
    size_t free_bytes = 0, total = 0;
    memset(ret, 0, sizeof(*ret));
    US_TRY(usi_gpu_cuda_result(g, cudaGetDeviceProperties(&p, of(g)->device)));
    US_TRY(usi_gpu_cuda_result(g, cudaMemGetInfo(&free_bytes, &total)));
    US_TRY(usi_gpu_cuda_result(g, cudaDriverGetVersion(&ret->driver)));
    US_TRY(usi_gpu_cuda_result(g, cudaRuntimeGetVersion(&ret->runtime)));
    (void)snprintf(ret->name, sizeof(ret->name), "%.127s", p.name);
    ret->major = p.major;
    ret->minor = p.minor;
    ret->memory_bytes = (int64_t)total;
    ret->free_bytes = (int64_t)free_bytes;
    ret->bf16 = p.major >= BF16_MAJOR;
    ret->cudnn = us_cudnn_version(of(g)->cudnn);
    return US_OK;
}

static enum us_status cuda_use(struct us_gpu *g)
{
    return usi_gpu_cuda_result(g, cudaSetDevice(of(g)->device));
}

static enum us_status cuda_alloc(struct us_gpu *g, size_t bytes, void **ret)
{
    void *p = NULL;
    US_TRY(usi_gpu_cuda_result(g, cudaMalloc(&p, bytes == 0 ? 1 : bytes)));
    *ret = p;
    return US_OK;
}

static void cuda_release(struct us_gpu *g, void *p)
{
    if (p != NULL)
        (void)usi_gpu_cuda_result(g, cudaFree(p));
}

/* Mapped: with unified addressing, which every 64-bit Linux has, a kernel reads it at this
 * address. */
static enum us_status cuda_host_alloc(struct us_gpu *g, size_t bytes, void **ret)
{
    void *p = NULL;
    US_TRY(usi_gpu_cuda_result(
        g, cudaHostAlloc(&p, bytes == 0 ? 1 : bytes, cudaHostAllocMapped | cudaHostAllocPortable)));
    *ret = p;
    return US_OK;
}

static void cuda_host_release(struct us_gpu *g, void *p)
{
    if (p != NULL)
        (void)usi_gpu_cuda_result(g, cudaFreeHost(p));
}

static enum us_status copy(struct us_gpu *g, void *dst, const void *src, size_t bytes,
                           enum cudaMemcpyKind kind)
{
    if (bytes == 0)
        return US_OK;
    return usi_gpu_cuda_result(g, cudaMemcpyAsync(dst, src, bytes, kind, stream(g)));
}

static enum us_status cuda_to_device(struct us_gpu *g, void *dst, const void *src, size_t bytes)
{
    return copy(g, dst, src, bytes, cudaMemcpyHostToDevice);
}

static enum us_status cuda_to_host(struct us_gpu *g, void *dst, const void *src, size_t bytes)
{
    return copy(g, dst, src, bytes, cudaMemcpyDeviceToHost);
}

static enum us_status cuda_copy(struct us_gpu *g, void *dst, const void *src, size_t bytes)
{
    return copy(g, dst, src, bytes, cudaMemcpyDeviceToDevice);
}

static enum us_status cuda_zero(struct us_gpu *g, void *dst, size_t bytes)
{
    if (bytes == 0)
        return US_OK;
    return usi_gpu_cuda_result(g, cudaMemsetAsync(dst, 0, bytes, stream(g)));
}

static enum us_status cuda_sync(struct us_gpu *g)
{
    return usi_gpu_cuda_result(g, cudaStreamSynchronize(stream(g)));
}

/* Relaxed: a kernel's code may be loaded while it is recorded for the first time. */
static enum us_status cuda_graph_begin(struct us_gpu *g)
{
    return usi_gpu_cuda_result(g, cudaStreamBeginCapture(stream(g), cudaStreamCaptureModeRelaxed));
}

static enum us_status cuda_graph_end(struct us_gpu *g, struct us_gpu_graph **ret)
{
    cudaGraph_t recorded = NULL;
    *ret = NULL;
    US_TRY(usi_gpu_cuda_result(g, cudaStreamEndCapture(stream(g), &recorded)));
    struct us_gpu_graph *graph = calloc(1, sizeof(*graph));
    enum us_status s = graph == NULL ? US_E_NOMEM : US_OK;
    if (s == US_OK)
        s = usi_gpu_cuda_result(g, cudaGraphInstantiate(&graph->exec, recorded, 0));
    (void)cudaGraphDestroy(recorded);
    if (s != US_OK) {
        free(graph);
        return s;
    }
    *ret = graph;
    return US_OK;
}

static enum us_status cuda_graph_run(struct us_gpu *g, struct us_gpu_graph *graph)
{
    return usi_gpu_cuda_result(g, cudaGraphLaunch(graph->exec, stream(g)));
}

static void cuda_graph_free(struct us_gpu *g, struct us_gpu_graph *graph)
{
    if (graph == NULL)
        return;
    (void)usi_gpu_cuda_result(g, cudaGraphExecDestroy(graph->exec));
    free(graph);
}

static const struct us_gpu_ops cuda_ops = {
    .name = "cuda",
    .free = cuda_free,
    .info = cuda_info,
    .use = cuda_use,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .host_alloc = cuda_host_alloc,
    .host_release = cuda_host_release,
    .to_device = cuda_to_device,
    .to_host = cuda_to_host,
    .copy = cuda_copy,
    .zero = cuda_zero,
    .sync = cuda_sync,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_run = cuda_graph_run,
    .graph_free = cuda_graph_free,
};

/* ---- opening ---- */

/* Says in a user's words what stands between this process and a GPU; US_OK if nothing does. */
static enum us_status find_devices(int32_t *ret, struct us_err *err)
{
    int n = 0, driver = 0;
    *ret = 0;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess && n > 0) {
        *ret = n;
        return US_OK;
    }
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver);
    if (driver == 0)
        return us_fail(err, US_E_UNSUPPORTED,
                       "no NVIDIA driver is installed (libcuda.so.1 is missing)");
    if (e == cudaErrorInsufficientDriver)
        return us_fail(err, US_E_UNSUPPORTED,
                       "the NVIDIA driver is too old: it supports CUDA %d.%d, this build needs "
                       "%d.%d",
                       driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                       CUDART_VERSION % 1000 / 10);
    if (e == cudaErrorNoDevice || e == cudaSuccess)
        return us_fail(err, US_E_UNSUPPORTED, "the NVIDIA driver finds no GPU");
    return us_fail(err, US_E_UNSUPPORTED, "CUDA does not start: %s (%s)", cudaGetErrorString(e),
                   cudaGetErrorName(e));
}

int32_t us_gpu_cuda_count(struct us_err *why)
{
    int32_t n = 0;
    struct us_gpu *g = NULL;
    if (find_devices(&n, why) != US_OK)
        return 0;
    /* Whether the first works to the end, cuDNN included, is known by trying. */
    if (us_gpu_cuda_open(0, &g, why) != US_OK)
        return 0;
    g->ops->free(g);
    return n;
}

static enum us_status check_device(int32_t device, struct us_err *err)
{
    int32_t n = 0;
    struct cudaDeviceProp p;
    US_TRY(find_devices(&n, err));
    if (device < 0 || device >= n)
        return us_fail(err, US_E_ARG, "there is no GPU %d: this machine has %d, counted from 0",
                       device, n);
    cudaError_t e = cudaGetDeviceProperties(&p, device);
    if (e != cudaSuccess)
        return us_fail(err, US_E_UNSUPPORTED, "GPU %d: %s", device, cudaGetErrorString(e));
    if (p.major < OLDEST_MAJOR || (p.major == OLDEST_MAJOR && p.minor < OLDEST_MINOR))
        return us_fail(err, US_E_UNSUPPORTED,
                       "GPU %d (%s) has compute capability %d.%d; at least %d.%d is needed", device,
                       p.name, p.major, p.minor, OLDEST_MAJOR, OLDEST_MINOR);
    return US_OK;
}

static enum us_status start(struct us_gpu_cuda *c)
{
    struct us_gpu *g = &c->base;
    void *sums = NULL;
    US_TRY(cuda_use(g));
    US_TRY(usi_gpu_cuda_result(
        g, cudaStreamCreateWithFlags((cudaStream_t *)&g->stream, cudaStreamNonBlocking)));
    US_TRY(usi_gpu_cuda_result(
        g, cudaStreamCreateWithFlags((cudaStream_t *)&c->copies, cudaStreamNonBlocking)));
    US_TRY(cuda_alloc(g, US_K_SUM_SCRATCH * sizeof(double), &sums));
    c->sums = sums;
    return US_OK;
}

enum us_status us_gpu_cuda_open(int32_t device, struct us_gpu **ret, struct us_err *err)
{
    US_TRY(check_device(device, err));
    struct us_gpu_cuda *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a device");
    c->base.ops = &cuda_ops;
    c->base.kernels = &us_kernels_cuda;
    c->device = device;
    enum us_status s = start(c);
    if (s != US_OK)
        s = us_fail(err, s, "GPU %d: %s", device, c->base.fault);
    else
        s = us_cudnn_open(&c->base, &c->base.conv, &c->cudnn, err);
    if (s != US_OK) {
        cuda_free(&c->base);
        return s;
    }
    *ret = &c->base;
    return US_OK;
}
