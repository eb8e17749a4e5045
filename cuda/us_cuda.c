/*
 * The CUDA backend as one table: memory, copies and graphs here, prediction in us_cuda_infer.c and
 * us_cuda_frame.c, training in us_cuda_train.c. Everything goes through struct us_gpu, so that this
 * file is the same for a GPU and for tests on the host.
 */
#include "us_cuda.h"

#include <stdlib.h>

#include "us_cuda_impl.h"

/* A stage of at most this much is written by one call and read by the next out of the second-level
 * cache (an H200 has 50 MB of it) instead of memory. */
#define STAGE_BYTES (24LL << 20)

static bool cuda_has_dtype(struct us_backend *be, enum us_dtype dtype)
{
    return dtype == US_F32 || (dtype == US_BF16 && be->bf16);
}

static void cuda_free(struct us_backend *be)
{
    if (be == NULL)
        return;
    if (be->pooled != NULL)
        be->gpu->ops->release(be->gpu, be->pooled);
    be->gpu->ops->free(be->gpu);
    (void)pthread_cond_destroy(&be->turned);
    (void)pthread_mutex_destroy(&be->lock);
    free(be);
}

static void cuda_thread_init(struct us_backend *be)
{
    /* If the device is lost, the next call says so. */
    (void)be->gpu->ops->use(be->gpu);
}

/* A mutex alone would let the thread that has just let go hold again before the others wake. */
static void cuda_hold(struct us_backend *be)
{
    (void)pthread_mutex_lock(&be->lock);
    uint64_t ticket = be->next++;
    while (be->turn != ticket)
        (void)pthread_cond_wait(&be->turned, &be->lock);
    (void)pthread_mutex_unlock(&be->lock);
}

static void cuda_let_go(struct us_backend *be)
{
    (void)pthread_mutex_lock(&be->lock);
    be->turn++;
    (void)pthread_cond_broadcast(&be->turned);
    (void)pthread_mutex_unlock(&be->lock);
}

static enum us_status cuda_buf_alloc(struct us_backend *be, size_t bytes, void **ret)
{
    return be->gpu->ops->alloc(be->gpu, bytes, ret);
}

static void cuda_buf_free(struct us_backend *be, void *p)
{
    be->gpu->ops->release(be->gpu, p);
}

static enum us_status cuda_copy_in(struct us_backend *be, void *dst, const void *src, size_t bytes)
{
    return be->gpu->ops->to_device(be->gpu, dst, src, bytes);
}

/* The caller reads dst next. */
static enum us_status cuda_copy_out(struct us_backend *be, void *dst, const void *src, size_t bytes)
{
    US_TRY(be->gpu->ops->to_host(be->gpu, dst, src, bytes));
    return be->gpu->ops->sync(be->gpu);
}

static enum us_status cuda_sync(struct us_backend *be)
{
    return be->gpu->ops->sync(be->gpu);
}

static enum us_status cuda_host_alloc(struct us_backend *be, size_t bytes, void **ret)
{
    return be->gpu->ops->host_alloc(be->gpu, bytes, ret);
}

static void cuda_host_free(struct us_backend *be, void *p)
{
    be->gpu->ops->host_release(be->gpu, p);
}

static enum us_status cuda_graph_begin(struct us_backend *be)
{
    return be->gpu->ops->graph_begin(be->gpu);
}

/* The device's graphs are the backend's, under another name. */
static enum us_status cuda_graph_end(struct us_backend *be, struct us_graph **ret)
{
    struct us_gpu_graph *graph = NULL;
    US_TRY(be->gpu->ops->graph_end(be->gpu, &graph));
    *ret = (struct us_graph *)(void *)graph;
    return US_OK;
}

static enum us_status cuda_graph_run(struct us_backend *be, struct us_graph *g)
{
    return be->gpu->ops->graph_run(be->gpu, (struct us_gpu_graph *)(void *)g);
}

static void cuda_graph_free(struct us_backend *be, struct us_graph *g)
{
    be->gpu->ops->graph_free(be->gpu, (struct us_gpu_graph *)(void *)g);
}

static const struct us_backend_ops cuda_ops = {
    .name = "cuda",
    .train = &usi_cuda_train_ops,
    .frame = &usi_cuda_frame_ops,
    .has_dtype = cuda_has_dtype,
    .free = cuda_free,
    .thread_init = cuda_thread_init,
    .hold = cuda_hold,
    .let_go = cuda_let_go,
    .buf_alloc = cuda_buf_alloc,
    .buf_free = cuda_buf_free,
    .copy_in = cuda_copy_in,
    .copy_out = cuda_copy_out,
    .sync = cuda_sync,
    .host_alloc = cuda_host_alloc,
    .host_free = cuda_host_free,
    .graph_begin = cuda_graph_begin,
    .graph_end = cuda_graph_end,
    .graph_run = cuda_graph_run,
    .graph_free = cuda_graph_free,
#define US_OP(name) .name##_plan = usi_cuda_##name##_plan,
#include "us_ops.def"
#undef US_OP
    .op_free = usi_cuda_op_free,
    .op_pack = usi_cuda_op_pack,
    .op_bind = usi_cuda_op_bind,
    .bound_free = usi_cuda_bound_free,
    .run = usi_cuda_run,
};

enum us_status usi_cuda_new(struct us_gpu *g, struct us_backend **ret, struct us_err *err)
{
    struct us_gpu_info info;
    struct us_backend *be = calloc(1, sizeof(*be));
    enum us_status s = US_OK;
    if (be == NULL)
        s = us_fail(err, US_E_NOMEM, "no memory for the cuda backend");
    else if ((s = g->ops->info(g, &info)) != US_OK)
        s = us_fail(err, s, "the GPU does not say what it is: %s", g->fault);
    if (s != US_OK) {
        g->ops->free(g);
        free(be);
        return s;
    }
    (void)pthread_mutex_init(&be->lock, NULL);
    (void)pthread_cond_init(&be->turned, NULL);
    be->base.ops = &cuda_ops;
    be->gpu = g;
    be->bf16 = info.bf16;
    be->stage_bytes = STAGE_BYTES;
    *ret = be;
    return US_OK;
}

struct us_gpu *us_cuda_gpu(struct us_backend *be)
{
    return be->gpu;
}
