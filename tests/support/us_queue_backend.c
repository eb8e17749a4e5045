/*
 * A device made of `ref` and a list; see us_queue_backend.h.
 */
#include "us_queue_backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>

#include "us_frame_ops.h"
#include "us_pyramid.h"

enum work_kind { RUN, HALVE, GATHER, ADD, MERGE, COPY_IN };

struct work {
    enum work_kind kind;
    union {
        struct us_bound *run;
        struct us_frame_halve halve;
        struct us_frame_gather gather;
        struct us_frame_add add;
        struct us_frame_merge merge;
        struct {
            void *dst;
            void *bytes; /* own */
            size_t n;
        } copy;
    } u;
};

struct list {
    struct work *item;
    size_t n, cap;
};

struct us_graph {
    struct list list;
};

/* In front of every buffer, and as long as buffers are aligned. */
struct header {
    _Alignas(64) size_t bytes;
};

struct us_backend {
    struct us_backend_base base;
    struct us_backend *ref;
    struct list queue;
    struct us_graph *recording;
    pthread_mutex_t turn;
    bool is_held; /* by whoever has the turn */
    int64_t n_turns;
    struct list made; /* runs that were done at least once */
    size_t held, limit;
    int64_t n_host, n_graphs, n_replays, n_waiting, longest;
    int64_t fail_in; /* runs; negative: never */
    enum us_status fail_status;
};

static void push(struct list *l, const struct work *w)
{
    if (l->n == l->cap) {
        l->cap = l->cap > 0 ? 2 * l->cap : 64;
        l->item = reallocarray(l->item, l->cap, sizeof(*l->item));
        assert_non_null(l->item);
    }
    l->item[l->n++] = *w;
}

static bool was_made(const struct us_backend *be, const struct us_bound *b)
{
    for (size_t i = 0; i < be->made.n; i++) {
        if (be->made.item[i].u.run == b)
            return true;
    }
    return false;
}

/* Queues, or records. */
static enum us_status take(struct us_backend *be, const struct work *w)
{
    assert_true(be->is_held);
    if (be->recording == NULL) {
        push(&be->queue, w);
        return US_OK;
    }
    assert_true(w->kind != RUN || was_made(be, w->u.run));
    push(&be->recording->list, w);
    return US_OK;
}

/* ---- the work itself ----------------------------------------------------------------------- */

static void tile_corner(const struct us_frame_tiles *t, int32_t item, int64_t *y, int64_t *x)
{
    int64_t tile = t->first + (item < t->n ? item : t->n - 1);
    *y = t->y0 + tile / t->cols * t->grid;
    *x = t->x0 + tile % t->cols * t->grid;
}

static void halve(const struct us_frame_halve *a)
{
    struct us_pyramid p = {0};
    assert_int_equal(us_pyramid_build(a->src, a->y.n, a->x.n, 2, INFINITY, &p, NULL), US_OK);
    assert_int_equal(p.h[1], a->y.n_out);
    assert_int_equal(p.w[1], a->x.n_out);
    memcpy(a->dst, p.data[1], (size_t)(p.h[1] * p.w[1]) * sizeof(float));
    us_pyramid_release(&p);
}

static void gather_all(const struct us_frame_gather *a)
{
    struct us_pyramid p = {.n_scales = a->n_scales};
    for (int32_t s = 0; s < a->n_scales; s++) {
        p.h[s] = a->scale[s].h;
        p.w[s] = a->scale[s].w;
        p.data[s] = (float *)(uintptr_t)a->scale[s].frame;
    }
    for (int32_t s = 0; s < a->n_scales; s++) {
        for (int32_t i = 0; a->scale[s].patches != NULL && i < a->tiles.batch; i++) {
            int64_t y, x;
            tile_corner(&a->tiles, i, &y, &x);
            us_patch_extract(&p, s, y - a->margin, x - a->margin, a->size,
                             a->zero_pad ? US_PAD_ZERO : US_PAD_REFLECT, a->mean, a->std,
                             a->scale[s].patches + (int64_t)i * a->size * a->size);
        }
    }
}

static void add_all(const struct us_frame_add *a)
{
    double weight = 1.0 / (a->n_before + 1.0);
    for (int64_t i = 0; i < a->count; i++) {
        double mean = a->n_before > 0 ? a->mean[i] : 0.0;
        double delta = (double)a->out[i] - mean;
        a->mean[i] = mean + delta * weight;
        if (a->m2 != NULL)
            a->m2[i] =
                (a->n_before > 0 ? a->m2[i] : 0.0) + delta * ((double)a->out[i] - a->mean[i]);
    }
}

static void merge_pixel(const struct us_frame_merge *a, int32_t c, int64_t src, int64_t dst)
{
    const int32_t all = a->before + a->n;
    double mean = a->mean[src], m2 = a->m2 != NULL ? a->m2[src] : 0.0;
    if (a->before > 0) {
        double old = a->mean_plane[dst], share = (double)a->n / all, delta = mean - old;
        mean = old + delta * share;
        m2 += (a->m2 != NULL ? a->m2_plane[dst] : 0.0) + delta * delta * share * a->before;
    }
    if (a->last) {
        mean = mean * a->scale[c] + a->shift[c];
        m2 = all > 1 ? sqrt(m2 / (all - 1)) * a->scale[c] : 0.0;
    }
    a->mean_plane[dst] = (float)mean;
    if (a->m2 != NULL)
        a->m2_plane[dst] = (float)m2;
}

static void merge_all(const struct us_frame_merge *a)
{
    const int32_t grid = a->tiles.grid;
    for (int32_t i = 0; i < a->tiles.n; i++) {
        int64_t y0, x0;
        tile_corner(&a->tiles, i, &y0, &x0);
        for (int32_t k = 0; k < grid * grid * a->channels; k++) {
            int32_t c = k % a->channels;
            int64_t y = y0 + k / a->channels / grid, x = x0 + k / a->channels % grid;
            if (y >= 0 && x >= 0 && y < a->h && x < a->w)
                merge_pixel(a, c, (int64_t)i * grid * grid * a->channels + k,
                            (c * a->h + y) * a->w + x);
        }
    }
}

static enum us_status run_one(struct us_backend *be, struct us_bound *b)
{
    if (be->fail_in >= 0 && be->fail_in-- == 0)
        return be->fail_status;
    if (!was_made(be, b))
        push(&be->made, &(struct work){.kind = RUN, .u.run = b});
    return us_backend_ops(be->ref)->run(be->ref, b);
}

static enum us_status do_work(struct us_backend *be, const struct work *w)
{
    switch (w->kind) {
    case RUN:
        return run_one(be, w->u.run);
    case HALVE:
        halve(&w->u.halve);
        return US_OK;
    case GATHER:
        gather_all(&w->u.gather);
        return US_OK;
    case ADD:
        add_all(&w->u.add);
        return US_OK;
    case MERGE:
        merge_all(&w->u.merge);
        return US_OK;
    case COPY_IN:
        memcpy(w->u.copy.dst, w->u.copy.bytes, w->u.copy.n);
        return US_OK;
    }
    return US_E_ARG;
}

/* After a failure the rest of the queue is lost, as on a device. */
static enum us_status drain(struct us_backend *be)
{
    enum us_status status = US_OK;
    assert_true(be->is_held);
    assert_null(be->recording);
    for (size_t i = 0; i < be->queue.n; i++) {
        struct work *w = &be->queue.item[i];
        if (status == US_OK)
            status = do_work(be, w);
        if (w->kind == COPY_IN)
            free(w->u.copy.bytes);
    }
    be->queue.n = 0;
    if (be->n_waiting > be->longest)
        be->longest = be->n_waiting;
    be->n_waiting = 0;
    return status;
}

/* ---- the table ----------------------------------------------------------------------------- */

static bool queue_has_dtype(struct us_backend *be, enum us_dtype dtype)
{
    return dtype == US_F32;
}

static void queue_free(struct us_backend *be)
{
    assert_int_equal(be->held, 0);
    assert_int_equal(be->n_host, 0);
    assert_int_equal(be->queue.n, 0);
    us_backend_ops(be->ref)->free(be->ref);
    (void)pthread_mutex_destroy(&be->turn);
    free(be->queue.item);
    free(be->made.item);
    free(be);
}

static void queue_hold(struct us_backend *be)
{
    (void)pthread_mutex_lock(&be->turn);
    assert_false(be->is_held);
    be->is_held = true;
    be->n_turns++;
}

static void queue_let_go(struct us_backend *be)
{
    assert_true(be->is_held);
    be->is_held = false;
    (void)pthread_mutex_unlock(&be->turn);
}

static enum us_status queue_buf_alloc(struct us_backend *be, size_t bytes, void **ret)
{
    assert_true(be->is_held);
    assert_null(be->recording);
    if (bytes > be->limit || be->held > be->limit - bytes)
        return US_E_NOMEM;
    struct header *h = aligned_alloc(64, (sizeof(*h) + bytes + 63) / 64 * 64);
    assert_non_null(h);
    h->bytes = bytes;
    memset(h + 1, 0xa5, bytes); /* nobody gets zeros as a present */
    be->held += bytes;
    *ret = h + 1;
    return US_OK;
}

static void queue_buf_free(struct us_backend *be, void *p)
{
    struct header *h = (struct header *)p - 1;
    assert_true(be->is_held);
    assert_int_equal(be->queue.n, 0); /* work may still need it */
    be->held -= h->bytes;
    free(h);
}

static enum us_status queue_copy_in(struct us_backend *be, void *dst, const void *src, size_t n)
{
    assert_null(be->recording);
    struct work w = {.kind = COPY_IN, .u.copy = {dst, malloc(n + 1), n}};
    assert_non_null(w.u.copy.bytes);
    memcpy(w.u.copy.bytes, src, n);
    return take(be, &w);
}

static enum us_status queue_copy_out(struct us_backend *be, void *dst, const void *src, size_t n)
{
    US_TRY(drain(be));
    memcpy(dst, src, n);
    return US_OK;
}

static enum us_status queue_host_alloc(struct us_backend *be, size_t bytes, void **ret)
{
    assert_null(be->recording);
    *ret = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(*ret);
    be->n_host++;
    return US_OK;
}

static void queue_host_free(struct us_backend *be, void *p)
{
    assert_int_equal(be->queue.n, 0);
    be->n_host--;
    free(p);
}

static enum us_status queue_graph_begin(struct us_backend *be)
{
    assert_null(be->recording);
    be->recording = calloc(1, sizeof(*be->recording));
    assert_non_null(be->recording);
    be->n_graphs++;
    return US_OK;
}

static enum us_status queue_graph_end(struct us_backend *be, struct us_graph **ret)
{
    assert_non_null(be->recording);
    *ret = be->recording;
    be->recording = NULL;
    return US_OK;
}

static enum us_status queue_graph_run(struct us_backend *be, struct us_graph *g)
{
    be->n_replays++;
    be->n_waiting++;
    for (size_t i = 0; i < g->list.n; i++)
        US_TRY(take(be, &g->list.item[i]));
    return US_OK;
}

static void queue_graph_free(struct us_backend *be, struct us_graph *g)
{
    free(g->list.item);
    free(g);
}

#define US_OP(name)                                                                                \
    static enum us_status queue_##name##_plan(struct us_backend *be,                               \
                                              const struct us_##name##_desc *desc,                 \
                                              struct us_op **ret, struct us_err *err)              \
    {                                                                                              \
        return us_backend_ops(be->ref)->name##_plan(be->ref, desc, ret, err);                      \
    }
#include "us_ops.def"
#undef US_OP

static void queue_op_free(struct us_backend *be, struct us_op *op)
{
    us_backend_ops(be->ref)->op_free(be->ref, op);
}

static enum us_status queue_op_pack(struct us_backend *be, const struct us_op *op,
                                    const struct us_op_weights *w, void *packed)
{
    return us_backend_ops(be->ref)->op_pack(be->ref, op, w, packed);
}

static enum us_status queue_op_bind(struct us_backend *be, const struct us_op *op,
                                    const struct us_op_bufs *bufs, struct us_bound **ret)
{
    return us_backend_ops(be->ref)->op_bind(be->ref, op, bufs, ret);
}

/* Its address may come back as another's. */
static void queue_bound_free(struct us_backend *be, struct us_bound *b)
{
    assert_int_equal(be->queue.n, 0);
    for (size_t i = 0; i < be->made.n; i++) {
        if (be->made.item[i].u.run == b)
            be->made.item[i] = be->made.item[--be->made.n];
    }
    us_backend_ops(be->ref)->bound_free(be->ref, b);
}

static enum us_status queue_run(struct us_backend *be, struct us_bound *b)
{
    return take(be, &(struct work){.kind = RUN, .u.run = b});
}

static enum us_status queue_halve(struct us_backend *be, const struct us_frame_halve *a)
{
    return take(be, &(struct work){.kind = HALVE, .u.halve = *a});
}

static enum us_status queue_gather(struct us_backend *be, const struct us_frame_gather *a)
{
    return take(be, &(struct work){.kind = GATHER, .u.gather = *a});
}

static enum us_status queue_add(struct us_backend *be, const struct us_frame_add *a)
{
    return take(be, &(struct work){.kind = ADD, .u.add = *a});
}

static enum us_status queue_merge(struct us_backend *be, const struct us_frame_merge *a)
{
    return take(be, &(struct work){.kind = MERGE, .u.merge = *a});
}

static const struct us_frame_ops queue_frame_ops = {.pixels = (int64_t)8 * 64 * 64,
                                                    .halve = queue_halve,
                                                    .gather = queue_gather,
                                                    .add = queue_add,
                                                    .merge = queue_merge};

static const struct us_backend_ops queue_ops = {
    .name = "queue",
    .frame = &queue_frame_ops,
    .has_dtype = queue_has_dtype,
    .free = queue_free,
    .hold = queue_hold,
    .let_go = queue_let_go,
    .buf_alloc = queue_buf_alloc,
    .buf_free = queue_buf_free,
    .copy_in = queue_copy_in,
    .copy_out = queue_copy_out,
    .sync = drain,
    .host_alloc = queue_host_alloc,
    .host_free = queue_host_free,
    .graph_begin = queue_graph_begin,
    .graph_end = queue_graph_end,
    .graph_run = queue_graph_run,
    .graph_free = queue_graph_free,
#define US_OP(name) .name##_plan = queue_##name##_plan,
#include "us_ops.def"
#undef US_OP
    .op_free = queue_op_free,
    .op_pack = queue_op_pack,
    .op_bind = queue_op_bind,
    .bound_free = queue_bound_free,
    .run = queue_run,
};

struct us_backend *us_queue_open(void)
{
    struct us_backend *be = calloc(1, sizeof(*be));
    assert_non_null(be);
    be->base.ops = &queue_ops;
    (void)pthread_mutex_init(&be->turn, NULL);
    be->limit = SIZE_MAX;
    be->fail_in = -1;
    assert_int_equal(us_ref_open(&be->ref, NULL), US_OK);
    return be;
}

size_t us_queue_held(const struct us_backend *be)
{
    return be->held;
}

void us_queue_set_limit(struct us_backend *be, size_t bytes)
{
    be->limit = bytes;
}

void us_queue_fail_at(struct us_backend *be, int64_t n, enum us_status status)
{
    be->fail_in = n;
    be->fail_status = status;
}

int64_t us_queue_graphs(const struct us_backend *be)
{
    return be->n_graphs;
}

int64_t us_queue_replays(const struct us_backend *be)
{
    return be->n_replays;
}

int64_t us_queue_longest(const struct us_backend *be)
{
    return be->longest;
}

int64_t us_queue_turns(const struct us_backend *be)
{
    return be->n_turns;
}
