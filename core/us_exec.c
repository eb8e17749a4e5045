/*
 * One worker's execution of a plan: its memory block, its bound ops, and host staging for what goes
 * in and comes out. After us_exec_new nothing is allocated.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "us_plan_impl.h"

struct us_exec {
    const struct us_plan *p;
    struct us_backend *be;
    char *block; /* backend memory */
    struct us_bound **bound;
    float *host_in[US_MAX_SCALES];
    float *host_out;
    float *host_block;
    struct us_noise *noise;
    bool profile;
    double seconds[US_OP_COUNT];
};

static size_t round_up(size_t bytes)
{
    return (bytes + US_PLAN_ALIGN - 1) / US_PLAN_ALIGN * US_PLAN_ALIGN;
}

/* Host staging: the input planes of every scale, then the output. */
static enum us_status alloc_host(struct us_exec *e)
{
    const struct us_plan *p = e->p;
    size_t batch = (size_t)p->cfg.batch, side = (size_t)p->net->size;
    size_t plane = round_up(batch * side * side * sizeof(float));
    size_t n_in = (size_t)p->net->arch.lc_scales;
    size_t out = round_up(us_map_bytes(&p->tensors[p->output].map));
    e->host_block = aligned_alloc(US_PLAN_ALIGN, n_in * plane + out);
    e->noise = calloc(batch, sizeof(*e->noise));
    if (e->host_block == NULL || e->noise == NULL)
        return US_E_NOMEM;
    memset(e->host_block, 0, n_in * plane + out);
    for (size_t s = 0; s < n_in; s++)
        e->host_in[s] = e->host_block + s * plane / sizeof(float);
    e->host_out = e->host_block + n_in * plane / sizeof(float);
    return US_OK;
}

static void *address(const struct us_exec *e, int32_t tensor)
{
    return tensor < 0 ? NULL : e->block + e->p->tensors[tensor].offset;
}

static enum us_status bind_ops(struct us_exec *e, struct us_err *err)
{
    const struct us_plan *p = e->p;
    e->bound = calloc((size_t)p->n_steps + 1, sizeof(struct us_bound *));
    if (e->bound == NULL)
        return us_fail(err, US_E_NOMEM, "worker: out of memory");
    for (int32_t i = 0; i < p->n_steps; i++) {
        const struct us_plan_step *s = &p->steps[i];
        const struct us_op_bufs bufs = {
            .in = {address(e, s->in[0]), address(e, s->in[1])},
            .out = address(e, s->out),
            .out2 = address(e, s->out2),
            .packed = (const char *)p->packed + s->packed_offset,
            .scratch = e->block + p->scratch_offset,
            .noise = e->noise,
        };
        enum us_status status = us_backend_ops(e->be)->op_bind(e->be, s->op, &bufs, &e->bound[i]);
        if (status != US_OK)
            return us_fail(err, status, "binding step %d (%s): %s", i, us_op_name(s->kind),
                           us_status_text(status));
    }
    return US_OK;
}

enum us_status us_exec_new(const struct us_plan *p, struct us_exec **ret, struct us_err *err)
{
    struct us_exec *e = calloc(1, sizeof(*e));
    if (e == NULL)
        return us_fail(err, US_E_NOMEM, "worker: out of memory");
    e->p = p;
    e->be = p->be;
    const struct us_backend_ops *ops = us_backend_ops(p->be);
    if (ops->thread_init != NULL)
        ops->thread_init(p->be);
    void *block = NULL;
    enum us_status status = alloc_host(e);
    if (status == US_OK)
        status = ops->buf_alloc(p->be, p->block_bytes, &block);
    e->block = block;
    if (status != US_OK)
        status = us_fail(err, status, "worker: %zu bytes on backend %s: %s", p->block_bytes,
                         ops->name, us_status_text(status));
    else
        status = bind_ops(e, err);
    if (status != US_OK) {
        us_exec_free(e);
        return status;
    }
    *ret = e;
    return US_OK;
}

void us_exec_free(struct us_exec *e)
{
    if (e == NULL)
        return;
    const struct us_backend_ops *ops = us_backend_ops(e->be);
    for (int32_t i = 0; e->bound != NULL && i < e->p->n_steps; i++) {
        if (e->bound[i] != NULL)
            ops->bound_free(e->be, e->bound[i]);
    }
    if (e->block != NULL)
        ops->buf_free(e->be, e->block);
    free(e->bound);
    free(e->host_block);
    free(e->noise);
    free(e);
}

float *us_exec_input(struct us_exec *e, int32_t s)
{
    return e->host_in[s];
}

const float *us_exec_output(const struct us_exec *e)
{
    return e->host_out;
}

struct us_noise *us_exec_noise(struct us_exec *e)
{
    return e->noise;
}

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static enum us_status run_profiled(struct us_exec *e, int32_t i)
{
    const struct us_backend_ops *ops = us_backend_ops(e->be);
    double t = now_s();
    US_TRY(ops->run(e->be, e->bound[i]));
    US_TRY(ops->sync(e->be));
    e->seconds[e->p->steps[i].kind] += now_s() - t;
    return US_OK;
}

static enum us_status run_steps(struct us_exec *e, bool only_sample)
{
    const struct us_backend_ops *ops = us_backend_ops(e->be);
    for (int32_t i = 0; i < e->p->n_steps; i++) {
        if (only_sample && !e->p->steps[i].sample_dep)
            continue;
        US_TRY(e->profile ? run_profiled(e, i) : ops->run(e->be, e->bound[i]));
    }
    int32_t out = e->p->output;
    return ops->copy_out(e->be, e->host_out, address(e, out),
                         us_map_bytes(&e->p->tensors[out].map));
}

enum us_status us_exec_run(struct us_exec *e)
{
    const struct us_plan *p = e->p;
    for (int32_t s = 0; s < p->net->arch.lc_scales; s++) {
        int32_t t = p->input[s];
        if (t >= 0)
            US_TRY(us_backend_ops(e->be)->copy_in(e->be, address(e, t), e->host_in[s],
                                                  us_map_bytes(&p->tensors[t].map)));
    }
    return run_steps(e, false);
}

enum us_status us_exec_run_sample(struct us_exec *e)
{
    US_ASSERT(e->p->cfg.reuse_encoder);
    return run_steps(e, true);
}

void us_exec_profile(struct us_exec *e, bool on)
{
    e->profile = on;
}

const double *us_exec_seconds(const struct us_exec *e)
{
    return e->seconds;
}
