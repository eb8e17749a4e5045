/*
 * The route of a frame through a backend that keeps it in its own memory (us_frame_ops.h): the
 * frame in, its scales made there, batch after batch of tiles cut, predicted and merged, the result
 * out. The calling thread only queues work, a few runs ahead of the device, and takes turns with
 * others that share it: where it waits, another may go on. Nothing but the frame and the result is
 * copied, so copies need no stream of their own.
 *
 * Tiles do not overlap within a pass, moments belong to one tile, and noise is keyed by the tile's
 * number: the batch size cannot change a byte unless the backend's ops let it. A batch that the
 * memory does not hold is halved; a frame that it does not hold is an error with the numbers.
 */
#include <stdatomic.h>
#include <stdlib.h>

#include "us_frame_ops.h"
#include "us_predict_impl.h"

#define ALIGN 256
/* A frame's memory up to this is kept for the next frame; more is given back, so that no idle
 * predictor sits on a device that others want. */
#define KEPT_BYTES ((size_t)256 << 20)

struct us_batched {
    struct us_exec *exec;
    double *mean, *m2;   /* [batch, grid, grid, target_channels] */
    size_t moment_bytes; /* of each */
    char *kept;          /* memory for a frame that no job has now, or NULL */
    size_t kept_bytes;
    _Atomic size_t frame_bytes; /* of all frames: kept, computed, and of those that wait */
};

/* Where a frame's parts stand in its memory, bytes. */
struct frame_layout {
    int64_t h[US_MAX_SCALES], w[US_MAX_SCALES];
    size_t scale[US_MAX_SCALES];
    size_t mean, m2, end;
};

/* ---- memory -------------------------------------------------------------------------------- */

static const struct us_frame_ops *frame_ops(const struct us_predictor *p)
{
    return us_backend_ops(p->be)->frame;
}

/* The calling thread's turn at the backend. */
static void take_turn(struct us_predictor *p)
{
    const struct us_backend_ops *ops = us_backend_ops(p->be);
    if (ops->hold != NULL)
        ops->hold(p->be);
    if (ops->thread_init != NULL)
        ops->thread_init(p->be);
}

static void end_turn(struct us_predictor *p)
{
    const struct us_backend_ops *ops = us_backend_ops(p->be);
    if (ops->let_go != NULL)
        ops->let_go(p->be);
}

static size_t round_up(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* h and w as check_frame of us_predict.c lets them through: no sum here can overflow. */
static struct frame_layout lay_out(const struct us_predictor *p, int64_t h, int64_t w, bool std)
{
    struct frame_layout l = {.end = 0};
    const size_t plane = (size_t)(h * w) * sizeof(float);
    const size_t result = round_up((size_t)p->model->arch.target_channels * plane);
    for (int32_t s = 0; s < p->model->arch.lc_scales; s++) {
        l.h[s] = s == 0 ? h : us_halving_of(l.h[s - 1]).n_out;
        l.w[s] = s == 0 ? w : us_halving_of(l.w[s - 1]).n_out;
        l.scale[s] = l.end;
        l.end += round_up((size_t)(l.h[s] * l.w[s]) * sizeof(float));
    }
    l.mean = l.end;
    l.m2 = l.mean + result;
    l.end = l.m2 + (std ? result : 0);
    return l;
}

static enum us_status take_moments(struct us_predictor *p, int32_t batch, struct us_err *err)
{
    const struct us_backend_ops *ops = us_backend_ops(p->be);
    struct us_batched *b = p->batched;
    void *mean = NULL, *m2 = NULL;
    b->moment_bytes = (size_t)batch * (size_t)p->geo.grid * (size_t)p->geo.grid *
                      (size_t)p->model->arch.target_channels * sizeof(double);
    enum us_status status = ops->buf_alloc(p->be, b->moment_bytes, &mean);
    b->mean = mean;
    if (status == US_OK)
        status = ops->buf_alloc(p->be, b->moment_bytes, &m2);
    b->m2 = m2;
    if (status != US_OK)
        return us_fail(err, status, "moments of %d tiles: %zu bytes on backend %s: %s", batch,
                       2 * b->moment_bytes, ops->name, us_status_text(status));
    return US_OK;
}

static void give_buf(struct us_predictor *p, void *buf)
{
    if (buf != NULL)
        us_backend_ops(p->be)->buf_free(p->be, buf);
}

/* Undoes what depends on the batch. */
static void unprepare(struct us_predictor *p)
{
    struct us_batched *b = p->batched;
    us_exec_free(b->exec);
    b->exec = NULL;
    give_buf(p, b->mean);
    give_buf(p, b->m2);
    b->mean = b->m2 = NULL;
    us_plan_free(p->plan);
    p->plan = NULL;
}

static enum us_status prepare(struct us_predictor *p, int32_t batch, struct us_err *err)
{
    US_TRY(usi_predict_plan(p, batch, true, err));
    US_TRY(take_moments(p, batch, err));
    return us_exec_new(p->plan, &p->batched->exec, err);
}

enum us_status usi_batched_new(struct us_predictor *p, struct us_err *err)
{
    p->batched = calloc(1, sizeof(*p->batched));
    if (p->batched == NULL)
        return us_fail(err, US_E_NOMEM, "predictor: out of memory");
    take_turn(p);
    enum us_status status = prepare(p, p->cfg.batch, err);
    while (status == US_E_NOMEM && p->cfg.batch > 1) {
        unprepare(p);
        p->cfg.batch /= 2;
        status = prepare(p, p->cfg.batch, err);
    }
    end_turn(p);
    return status;
}

static void drop_kept(struct us_predictor *p)
{
    struct us_batched *b = p->batched;
    give_buf(p, b->kept);
    b->kept = NULL;
    atomic_fetch_sub(&b->frame_bytes, b->kept_bytes);
    b->kept_bytes = 0;
}

void usi_batched_free(struct us_predictor *p)
{
    if (p->batched == NULL)
        return;
    take_turn(p);
    drop_kept(p);
    unprepare(p);
    end_turn(p);
    free(p->batched);
    p->batched = NULL;
}

size_t usi_batched_bytes(const struct us_predictor *p)
{
    const struct us_batched *b = p->batched;
    return b == NULL ? 0 : 2 * b->moment_bytes + atomic_load(&b->frame_bytes);
}

size_t usi_batched_frame_bytes(const struct us_predictor *p, int64_t h, int64_t w)
{
    return lay_out(p, h, w, p->cfg.want_std).end;
}

/* The job's memory: what was kept, if it is enough. */
static enum us_status take_frame(struct us_predictor *p, struct us_predict_job *job, size_t bytes,
                                 struct us_err *err)
{
    struct us_batched *b = p->batched;
    const struct us_predict_frame *f = job->frame;
    if (b->kept_bytes >= bytes) {
        job->memory = b->kept;
        job->memory_bytes = b->kept_bytes;
        b->kept = NULL;
        b->kept_bytes = 0;
        return US_OK;
    }
    drop_kept(p);
    void *frame = NULL;
    enum us_status status = us_backend_ops(p->be)->buf_alloc(p->be, bytes, &frame);
    if (status != US_OK)
        return us_fail(err, status,
                       "frame of %lld x %lld: %zu bytes on backend %s beside the network's "
                       "%zu: %s",
                       (long long)f->h, (long long)f->w, bytes, us_backend_ops(p->be)->name,
                       us_plan_stats(p->plan).block_bytes + us_plan_stats(p->plan).packed_bytes,
                       us_status_text(status));
    job->memory = frame;
    job->memory_bytes = bytes;
    atomic_fetch_add(&b->frame_bytes, bytes);
    return US_OK;
}

static void leave_frame(struct us_predictor *p, struct us_predict_job *job)
{
    struct us_batched *b = p->batched;
    drop_kept(p); /* another job's, if its turn was in between */
    b->kept = job->memory;
    b->kept_bytes = job->memory_bytes;
    if (b->kept_bytes > KEPT_BYTES)
        drop_kept(p);
}

/* ---- a frame ------------------------------------------------------------------------------- */

static float *part(const struct us_predict_job *job, size_t offset)
{
    return (float *)(void *)(job->memory + offset);
}

/* The frame goes in, its smaller scales are made there. */
static enum us_status load(struct us_predictor *p, const struct us_predict_job *job,
                           const struct frame_layout *l)
{
    US_TRY(us_backend_ops(p->be)->copy_in(p->be, part(job, l->scale[0]), job->pyramid->data[0],
                                          (size_t)(l->h[0] * l->w[0]) * sizeof(float)));
    for (int32_t s = 1; s < p->model->arch.lc_scales; s++) {
        const struct us_frame_halve a = {.src = part(job, l->scale[s - 1]),
                                         .dst = part(job, l->scale[s]),
                                         .y = us_halving_of(l->h[s - 1]),
                                         .x = us_halving_of(l->w[s - 1])};
        US_TRY(frame_ops(p)->halve(p->be, &a));
    }
    return US_OK;
}

static enum us_status gather(struct us_predictor *p, const struct us_predict_job *job,
                             const struct frame_layout *l, const struct us_frame_tiles *tiles)
{
    const struct us_model_data *d = &p->model->data;
    struct us_frame_gather a = {.tiles = *tiles,
                                .size = p->geo.size,
                                .margin = p->geo.pad,
                                .zero_pad = d->context_padding == US_PAD_ZERO,
                                .mean = (float)d->input_mean,
                                .std = (float)d->input_std,
                                .n_scales = p->model->arch.lc_scales};
    for (int32_t s = 0; s < a.n_scales; s++) {
        a.scale[s].frame = part(job, l->scale[s]);
        a.scale[s].h = l->h[s];
        a.scale[s].w = l->w[s];
        a.scale[s].patches = us_exec_input(p->batched->exec, s);
    }
    return frame_ops(p)->gather(p->be, &a);
}

static enum us_status merge(struct us_predictor *p, const struct us_predict_job *job,
                            const struct frame_layout *l, const struct us_frame_tiles *tiles)
{
    const struct us_batched *b = p->batched;
    const struct us_predict_frame *f = job->frame;
    struct us_frame_merge a = {.tiles = *tiles,
                               .mean = b->mean,
                               .m2 = f->std != NULL ? b->m2 : NULL,
                               .channels = p->model->arch.target_channels,
                               .h = f->h,
                               .w = f->w,
                               .mean_plane = part(job, l->mean),
                               .m2_plane = f->std != NULL ? part(job, l->m2) : NULL,
                               .before = job->pass.first,
                               .n = job->pass.n,
                               .last = job->pass.first + job->pass.n == p->geo.samples};
    for (int32_t c = 0; c < a.channels; c++) {
        a.scale[c] = p->model->data.target_std[c];
        a.shift[c] = p->model->data.target_mean[c];
    }
    return frame_ops(p)->merge(p->be, &a);
}

/* Waits for all that is queued; the tiles merged so far are then done. */
static enum us_status wait(struct us_predictor *p, struct us_predict_job *job)
{
    struct us_predict_frame *f = job->frame;
    US_TRY(us_exec_wait(p->batched->exec));
    end_turn(p);
    take_turn(p);
    if (job->done == job->merged)
        return US_OK;
    job->done = job->merged;
    if (f->progress != NULL)
        f->progress(f->progress_arg, job->done, job->total);
    return US_OK;
}

/* One run for one sample of all tiles, and its part in their moments. */
static enum us_status predict(struct us_predictor *p, struct us_predict_job *job,
                              const struct us_frame_tiles *tiles, int32_t s)
{
    const struct us_batched *b = p->batched;
    if (us_exec_queued(b->exec) == US_EXEC_AHEAD)
        US_TRY(wait(p, job));
    if (usi_predict_cancelled(job->frame))
        return US_E_CANCELLED;
    struct us_noise *noise = us_exec_noise(b->exec);
    for (int32_t i = 0; i < tiles->batch; i++) {
        int64_t tile = tiles->first + (i < tiles->n ? i : tiles->n - 1);
        noise[i] = usi_predict_noise(p, job, tile, job->pass.first + s);
    }
    US_TRY(s == 0 ? us_exec_run(b->exec) : us_exec_run_sample(b->exec));
    const struct us_frame_add a = {.out = us_exec_output(b->exec),
                                   .mean = b->mean,
                                   .m2 = job->frame->std != NULL ? b->m2 : NULL,
                                   .count = (int64_t)(b->moment_bytes / sizeof(double)),
                                   .n_before = s};
    return frame_ops(p)->add(p->be, &a);
}

/* Between two batches: what is queued ends first, the next turn finds the frame where it was. */
static enum us_status pass_on(struct us_predictor *p, struct us_predict_job *job)
{
    US_TRY(wait(p, job));
    end_turn(p);
    usi_predict_pass_on(p, job);
    take_turn(p);
    return usi_predict_cancelled(job->frame) ? US_E_CANCELLED : US_OK;
}

static enum us_status run_pass(struct us_predictor *p, struct us_predict_job *job,
                               const struct frame_layout *l)
{
    const struct us_tiling_pass *t = &job->pass;
    const int64_t n = t->rows * t->cols;
    struct us_frame_tiles tiles = {
        .y0 = t->y0, .x0 = t->x0, .cols = t->cols, .batch = p->cfg.batch, .grid = p->geo.grid};
    for (; tiles.first < n; tiles.first += tiles.batch) {
        int64_t left = n - tiles.first;
        tiles.n = left < tiles.batch ? (int32_t)left : tiles.batch;
        if (usi_predict_turn_wanted(job))
            US_TRY(pass_on(p, job));
        US_TRY(gather(p, job, l, &tiles));
        for (int32_t s = 0; s < t->n; s++)
            US_TRY(predict(p, job, &tiles, s));
        US_TRY(merge(p, job, l, &tiles));
        job->merged += tiles.n;
    }
    return US_OK;
}

/* Everything that is queued is done afterwards, whatever happened. */
static enum us_status run_passes(struct us_predictor *p, struct us_predict_job *job,
                                 const struct frame_layout *l)
{
    enum us_status status = load(p, job, l);
    for (int32_t k = 0; k < p->geo.passes && status == US_OK; k++) {
        job->pass = usi_tiling_pass(&p->geo, k, job->frame->h, job->frame->w);
        status = run_pass(p, job, l);
    }
    if (status == US_OK)
        return wait(p, job);
    /* The first failure is the one to tell. */
    enum us_status later = us_exec_wait(p->batched->exec);
    (void)later;
    return status;
}

static enum us_status unload(struct us_predictor *p, const struct us_predict_job *job,
                             const struct frame_layout *l)
{
    const struct us_backend_ops *ops = us_backend_ops(p->be);
    const struct us_predict_frame *f = job->frame;
    size_t bytes = (size_t)p->model->arch.target_channels * (size_t)(f->h * f->w) * sizeof(float);
    US_TRY(ops->copy_out(p->be, f->mean, part(job, l->mean), bytes));
    return f->std == NULL ? US_OK : ops->copy_out(p->be, f->std, part(job, l->m2), bytes);
}

static enum us_status run_frame(struct us_predictor *p, struct us_predict_job *job,
                                struct us_err *err)
{
    const struct us_predict_frame *f = job->frame;
    const struct frame_layout l = lay_out(p, f->h, f->w, f->std != NULL);
    US_TRY(take_frame(p, job, l.end, err));
    enum us_status status = run_passes(p, job, &l);
    if (status == US_OK)
        status = unload(p, job, &l);
    leave_frame(p, job);
    if (status != US_OK)
        return us_fail(err, status, "prediction: %s", us_status_text(status));
    return US_OK;
}

enum us_status usi_batched_run(struct us_predictor *p, struct us_predict_job *job,
                               struct us_err *err)
{
    take_turn(p);
    enum us_status status = run_frame(p, job, err);
    end_turn(p);
    return status;
}
