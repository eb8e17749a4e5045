/*
 * One worker's execution of a plan: its memory block, its bound ops, and host staging for what goes
 * in and comes out. After us_exec_new nothing is allocated, but a backend's records of the work.
 *
 * Where a backend records work (us_backend.h), the ops are called one by one the first time, so
 * that whatever they set up is there, recorded the second time, and from then on started with one
 * call. The copies of host staging stay outside the record. A resident exec queues several runs
 * before it waits: each has its own slot of noise, to whose addresses the ops that draw are bound,
 * and so its own record.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "us_plan_impl.h"

/* The whole network, and what depends on the sample. */
enum part { WHOLE, SAMPLE, N_PARTS };

struct record {
    bool made; /* its calls have been made once */
    struct us_graph *graph;
};

struct slot {
    struct us_noise *noise;  /* [batch] */
    struct us_bound **bound; /* per step; those that draw nothing are slot 0's */
    struct record record[N_PARTS];
};

struct us_exec {
    const struct us_plan *p;
    struct us_backend *be;
    char *block; /* backend memory */
    struct slot slot[US_EXEC_AHEAD];
    int32_t n_slots, queued; /* runs since the last wait */
    bool no_graphs;          /* this backend does not record */
    float *host_in[US_MAX_SCALES];
    float *host_out;
    void *host_block; /* staging and noise of all slots */
    bool profile;
    double seconds[US_OP_COUNT];
};

/* ---- memory -------------------------------------------------------------------------------- */

static size_t round_up(size_t bytes)
{
    return (bytes + US_PLAN_ALIGN - 1) / US_PLAN_ALIGN * US_PLAN_ALIGN;
}

static enum us_status take_host_block(struct us_exec *e, size_t bytes)
{
    const struct us_backend_ops *ops = us_backend_ops(e->be);
    if (ops->host_alloc != NULL)
        US_TRY(ops->host_alloc(e->be, bytes, &e->host_block));
    else
        e->host_block = aligned_alloc(US_PLAN_ALIGN, bytes);
    if (e->host_block == NULL)
        return US_E_NOMEM;
    memset(e->host_block, 0, bytes);
    return US_OK;
}

/* The noise of every slot; then, unless the caller works in the backend's memory, staging: the
 * input planes of every scale and the output. */
static enum us_status alloc_host(struct us_exec *e)
{
    const struct us_plan *p = e->p;
    size_t batch = (size_t)p->cfg.batch, side = (size_t)p->net->size;
    size_t noise = round_up(batch * sizeof(struct us_noise));
    size_t plane = round_up(batch * side * side * sizeof(float));
    size_t n_in = (size_t)p->net->arch.lc_scales;
    size_t out = round_up(us_map_bytes(&p->tensors[p->output].map));
    size_t staging = p->cfg.resident ? 0 : n_in * plane + out;
    US_TRY(take_host_block(e, (size_t)e->n_slots * noise + staging));
    char *at = e->host_block;
    for (int32_t k = 0; k < e->n_slots; k++, at += noise)
        e->slot[k].noise = (struct us_noise *)(void *)at;
    if (p->cfg.resident)
        return US_OK;
    for (size_t s = 0; s < n_in; s++, at += plane)
        e->host_in[s] = (float *)(void *)at;
    e->host_out = (float *)(void *)at;
    return US_OK;
}

static void *address(const struct us_exec *e, int32_t tensor)
{
    return tensor < 0 ? NULL : e->block + e->p->tensors[tensor].offset;
}

static enum us_status bind_step(struct us_exec *e, int32_t i, struct slot *slot)
{
    const struct us_plan *p = e->p;
    const struct us_plan_step *s = &p->steps[i];
    const struct us_op_bufs bufs = {
        .in = {address(e, s->in[0]), address(e, s->in[1])},
        .out = address(e, s->out),
        .out2 = address(e, s->out2),
        .packed = (const char *)p->packed + s->packed_offset,
        .scratch = e->block + p->scratch_offset,
        .noise = slot->noise,
    };
    return us_backend_ops(e->be)->op_bind(e->be, s->op, &bufs, &slot->bound[i]);
}

static bool draws(const struct us_plan_step *s)
{
    return s->kind == US_OP_latent;
}

static enum us_status bind_ops(struct us_exec *e, struct us_err *err)
{
    const struct us_plan *p = e->p;
    for (int32_t k = 0; k < e->n_slots; k++) {
        struct slot *slot = &e->slot[k];
        slot->bound = calloc((size_t)p->n_steps + 1, sizeof(struct us_bound *));
        if (slot->bound == NULL)
            return us_fail(err, US_E_NOMEM, "worker: out of memory");
        for (int32_t i = 0; i < p->n_steps; i++) {
            enum us_status status = US_OK;
            if (k > 0 && !draws(&p->steps[i]))
                slot->bound[i] = e->slot[0].bound[i];
            else
                status = bind_step(e, i, slot);
            if (status != US_OK)
                return us_fail(err, status, "binding step %d (%s): %s", i,
                               us_op_name(p->steps[i].kind), us_status_text(status));
        }
    }
    return US_OK;
}

/* ---- life ---------------------------------------------------------------------------------- */

enum us_status us_exec_new(const struct us_plan *p, struct us_exec **ret, struct us_err *err)
{
    struct us_exec *e = calloc(1, sizeof(*e));
    if (e == NULL)
        return us_fail(err, US_E_NOMEM, "worker: out of memory");
    e->p = p;
    e->be = p->be;
    e->n_slots = p->cfg.resident ? US_EXEC_AHEAD : 1;
    const struct us_backend_ops *ops = us_backend_ops(p->be);
    e->no_graphs = ops->graph_begin == NULL;
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

static void slot_release(struct us_exec *e, int32_t k)
{
    const struct us_backend_ops *ops = us_backend_ops(e->be);
    struct slot *slot = &e->slot[k];
    for (int32_t part = 0; part < N_PARTS; part++) {
        if (slot->record[part].graph != NULL)
            ops->graph_free(e->be, slot->record[part].graph);
    }
    for (int32_t i = 0; slot->bound != NULL && i < e->p->n_steps; i++) {
        if (slot->bound[i] != NULL && (k == 0 || draws(&e->p->steps[i])))
            ops->bound_free(e->be, slot->bound[i]);
    }
    free(slot->bound);
}

void us_exec_free(struct us_exec *e)
{
    if (e == NULL)
        return;
    const struct us_backend_ops *ops = us_backend_ops(e->be);
    for (int32_t k = e->n_slots - 1; k >= 0; k--)
        slot_release(e, k);
    if (e->block != NULL)
        ops->buf_free(e->be, e->block);
    if (ops->host_free == NULL)
        free(e->host_block);
    else if (e->host_block != NULL)
        ops->host_free(e->be, e->host_block);
    free(e);
}

float *us_exec_input(struct us_exec *e, int32_t s)
{
    return e->p->cfg.resident ? address(e, e->p->input[s]) : e->host_in[s];
}

const float *us_exec_output(const struct us_exec *e)
{
    return e->p->cfg.resident ? address(e, e->p->output) : e->host_out;
}

struct us_noise *us_exec_noise(struct us_exec *e)
{
    US_ASSERT(e->queued < e->n_slots);
    return e->slot[e->queued].noise;
}

/* ---- runs ---------------------------------------------------------------------------------- */

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static enum us_status run_profiled(struct us_exec *e, struct us_bound *b, enum us_op_kind kind)
{
    const struct us_backend_ops *ops = us_backend_ops(e->be);
    double t = now_s();
    US_TRY(ops->run(e->be, b));
    US_TRY(ops->sync(e->be));
    e->seconds[kind] += now_s() - t;
    return US_OK;
}

static enum us_status make_calls(struct us_exec *e, const struct slot *slot, enum part part)
{
    for (int32_t i = 0; i < e->p->n_steps; i++) {
        const struct us_plan_step *s = &e->p->steps[i];
        if (part == SAMPLE && !s->sample_dep)
            continue;
        US_TRY(e->profile ? run_profiled(e, slot->bound[i], s->kind)
                          : us_backend_ops(e->be)->run(e->be, slot->bound[i]));
    }
    return US_OK;
}

/* The calls, recorded and then started; or just made, where the backend does not record. */
static enum us_status make_record(struct us_exec *e, struct slot *slot, enum part part)
{
    const struct us_backend_ops *ops = us_backend_ops(e->be);
    struct us_graph *graph = NULL;
    US_TRY(ops->graph_begin(e->be));
    enum us_status status = make_calls(e, slot, part);
    enum us_status ended = ops->graph_end(e->be, &graph);
    if (status != US_OK || ended != US_OK) {
        if (graph != NULL)
            ops->graph_free(e->be, graph);
        return status != US_OK ? status : ended;
    }
    slot->record[part].graph = graph;
    e->no_graphs = graph == NULL;
    return graph != NULL ? ops->graph_run(e->be, graph) : US_OK;
}

/* The test hook's noise stands where the caller put it: not the same place at each run. */
static bool hooked(const struct us_exec *e, const struct slot *slot)
{
    for (int32_t i = 0; i < e->p->cfg.batch; i++) {
        if (slot->noise[i].eps != NULL)
            return true;
    }
    return false;
}

static enum us_status queue(struct us_exec *e, enum part part)
{
    US_ASSERT(e->queued < e->n_slots);
    struct slot *slot = &e->slot[e->queued];
    struct record *r = &slot->record[part];
    e->queued++;
    if (e->no_graphs || e->profile || !r->made || hooked(e, slot)) {
        US_TRY(make_calls(e, slot, part));
        r->made = true;
        return US_OK;
    }
    if (r->graph != NULL)
        return us_backend_ops(e->be)->graph_run(e->be, r->graph);
    return make_record(e, slot, part);
}

static enum us_status stage_in(struct us_exec *e)
{
    const struct us_plan *p = e->p;
    for (int32_t s = 0; s < p->net->arch.lc_scales; s++) {
        int32_t t = p->input[s];
        if (t >= 0)
            US_TRY(us_backend_ops(e->be)->copy_in(e->be, address(e, t), e->host_in[s],
                                                  us_map_bytes(&p->tensors[t].map)));
    }
    return US_OK;
}

/* copy_out waits for all that is queued. */
static enum us_status stage_out(struct us_exec *e)
{
    int32_t out = e->p->output;
    return us_backend_ops(e->be)->copy_out(e->be, e->host_out, address(e, out),
                                           us_map_bytes(&e->p->tensors[out].map));
}

static enum us_status run(struct us_exec *e, enum part part)
{
    if (e->p->cfg.resident)
        return queue(e, part);
    if (part == WHOLE)
        US_TRY(stage_in(e));
    enum us_status status = queue(e, part);
    if (status == US_OK)
        status = stage_out(e);
    e->queued = 0;
    return status;
}

enum us_status us_exec_run(struct us_exec *e)
{
    return run(e, WHOLE);
}

enum us_status us_exec_run_sample(struct us_exec *e)
{
    US_ASSERT(e->p->cfg.reuse_encoder);
    return run(e, SAMPLE);
}

int32_t us_exec_queued(const struct us_exec *e)
{
    return e->queued;
}

enum us_status us_exec_wait(struct us_exec *e)
{
    e->queued = 0;
    return us_backend_ops(e->be)->sync(e->be);
}

void us_exec_profile(struct us_exec *e, bool on)
{
    e->profile = on;
}

const double *us_exec_seconds(const struct us_exec *e)
{
    return e->seconds;
}
