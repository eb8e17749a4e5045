/*
 * Choosing among cuDNN's ways by the clock, once per shape and machine. Each of the first few is
 * started REPEATS times as one graph on memory of its own; the heuristics' favourite stays unless
 * another is clearly faster, so that noise does not decide which bits a model computes.
 */
#include <string.h>
#include <time.h>

#include "us_cudnn.h"

#define MAX_CANDIDATES 8
#define REPEATS        8
#define ROUNDS         3
#define CLEARLY        0.95 /* of the time of the best so far */

/* Memory that a convolution of this description reads and writes. */
struct arena {
    struct us_gpu *g;
    void *x, *y, *w, *bias, *res, *workspace;
};

static int64_t map_elements(const struct us_conv_map *m, int32_t n)
{
    return (n - 1) * m->image_stride + (m->h - 1) * m->row_stride + (m->w - 1) * m->pixel_stride +
           m->c;
}

static enum us_status arena_get(struct us_gpu *g, int64_t elements, size_t size, void **ret)
{
    size_t bytes = (size_t)elements * size;
    US_TRY(g->ops->alloc(g, bytes, ret));
    return g->ops->zero(g, *ret, bytes);
}

/* 4 bytes an element, so that one is room enough whichever side is written in f32. */
static enum us_status arena_open(struct us_gpu *g, const struct us_conv_desc *d, size_t workspace,
                                 struct arena *a)
{
    int64_t channels = d->x.c > d->y.c ? d->x.c : d->y.c;
    US_TRY(arena_get(g, map_elements(&d->x, d->n), 4, &a->x));
    US_TRY(arena_get(g, map_elements(&d->y, d->n), 4, &a->y));
    US_TRY(arena_get(g, (int64_t)d->k * d->k * d->x.c * d->y.c, 4, &a->w));
    US_TRY(arena_get(g, channels, 4, &a->bias));
    if (d->residual)
        US_TRY(arena_get(g, map_elements(&d->res, d->n), 4, &a->res));
    return g->ops->alloc(g, workspace + 1, &a->workspace);
}

static void arena_release(struct arena *a)
{
    void *const all[] = {a->x, a->y, a->w, a->bias, a->res, a->workspace};
    for (size_t i = 0; i < US_COUNT(all); i++)
        if (all[i] != NULL)
            a->g->ops->release(a->g, all[i]);
}

static double now_s(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static enum us_status repeat(const struct us_conv *c, const struct us_conv_bufs *b)
{
    for (int i = 0; i < REPEATS; i++)
        US_TRY(usi_conv_execute(c, b));
    return US_OK;
}

static enum us_status record(const struct us_conv *c, const struct us_conv_bufs *b,
                             struct us_gpu_graph **ret)
{
    struct us_gpu *g = c->cd->gpu;
    US_TRY(g->ops->graph_begin(g));
    enum us_status s = repeat(c, b), ended = g->ops->graph_end(g, ret);
    return s != US_OK ? s : ended;
}

/* Seconds of the fastest of a few rounds. */
static enum us_status measure(const struct us_conv *c, const struct us_conv_bufs *b, double *ret)
{
    struct us_gpu *g = c->cd->gpu;
    struct us_gpu_graph *graph = NULL;
    double best = 0.0;
    /* The first start loads code, which a recording must not have to do. */
    US_TRY(usi_conv_execute(c, b));
    US_TRY(g->ops->sync(g));
    US_TRY(record(c, b, &graph));
    enum us_status s = US_OK;
    for (int i = 0; i < ROUNDS && s == US_OK; i++) {
        double start = now_s();
        s = graph != NULL ? g->ops->graph_run(g, graph) : repeat(c, b);
        if (s == US_OK)
            s = g->ops->sync(g);
        double took = now_s() - start;
        best = i == 0 || took < best ? took : best;
    }
    g->ops->graph_free(g, graph);
    *ret = best;
    return s;
}

/* Times c->plan. */
static enum us_status try_plan(struct us_conv *c, double *ret)
{
    const struct us_conv_desc *d = &c->d;
    struct arena a = {.g = c->cd->gpu};
    enum us_status s = arena_open(a.g, d, c->workspace_bytes, &a);
    if (s == US_OK) {
        struct us_conv_bufs b = {.x = a.x, .y = a.y, .w = a.w, .bias = (const float *)a.bias};
        b.res = a.res;
        b.workspace = a.workspace;
        b.out = d->kind == US_CONV_FORWARD ? a.y : d->kind == US_CONV_DATA ? a.x : a.w;
        s = measure(c, &b, ret);
    }
    arena_release(&a);
    return s;
}

/* The first candidate that becomes a plan, for where nothing is measured. */
static enum us_status first_that_works(struct us_conv *c, const struct us_cudnn_choice *list,
                                       int32_t n, struct us_err *err)
{
    enum us_status s = US_E_UNSUPPORTED;
    for (int32_t i = 0; i < n && s != US_OK; i++)
        s = usi_conv_plan_choice(c, &list[i], err);
    /* Whatever the last one's reason: no candidate is left. */
    return s == US_OK ? US_OK : US_E_UNSUPPORTED;
}

enum us_status usi_conv_tune(struct us_conv *c, struct us_err *err)
{
    struct us_cudnn_choice list[MAX_CANDIDATES];
    int32_t n = 0, best = -1;
    double best_s = 0.0;
    US_TRY(usi_conv_candidates(c, list, MAX_CANDIDATES, &n, err));
    if (c->cd->handle == NULL || !c->cd->tune || n == 1)
        return first_that_works(c, list, n, err);
    for (int32_t i = 0; i < n; i++) {
        double took = 0.0;
        if (usi_conv_plan_choice(c, &list[i], NULL) != US_OK || try_plan(c, &took) != US_OK)
            continue;
        if (best < 0 || took < CLEARLY * best_s) {
            best = i;
            best_s = took;
        }
    }
    if (c->cd->gpu->poisoned)
        return us_fail(err, US_E_DEVICE_LOST, "the GPU failed: %s", c->cd->gpu->fault);
    /* Without memory to measure in, there may still be enough to work in. */
    if (best < 0)
        return first_that_works(c, list, n, err);
    return usi_conv_plan_choice(c, &list[best], err);
}
