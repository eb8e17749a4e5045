/*
 * Times every op shape of the Regular-LC network on the cpu backend, one thread, f32 and bf16:
 * milliseconds (best of several), GFLOP/s, GB/s of the maps it must read and write, and the ratio
 * to the fastest rate any plain convolution of the run reached, which stands for the processor's
 * peak. Where a row adds work of our own to the row above (ELU, residual, tail), the difference is
 * what that costs.
 *
 * Usage: bench_ops [seconds per row]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "math/us_bf16_math.h"
#include "us_backend.h"

union any_desc {
#define US_OP(name) struct us_##name##_desc name;
#include "us_ops.def"
#undef US_OP
};

/* One shape; side is the output's, channels are 64 unless said. */
struct row {
    const char *what;
    enum us_op_kind kind;
    int32_t ic, oc, k, stride;
    bool elu, residual, tail, part;
};

static const struct row rows[] = {
    {.what = "conv 3x3", .kind = US_OP_conv2d, .k = 3},
    {.what = "conv 3x3, ELU", .kind = US_OP_conv2d, .k = 3, .elu = true},
    {.what = "conv 3x3, tail", .kind = US_OP_conv2d, .k = 3, .tail = true},
    {.what = "conv 3x3, residual", .kind = US_OP_conv2d, .k = 3, .residual = true},
    {.what = "conv 3x3 stride 2, tail", .kind = US_OP_conv2d, .k = 3, .stride = 2, .tail = true},
    {.what = "conv 3x3 to 256", .kind = US_OP_conv2d, .k = 3, .oc = 256},
    {.what = "conv 3x3 from 128", .kind = US_OP_conv2d, .k = 3, .ic = 128},
    {.what = "conv 3x3 to 4", .kind = US_OP_conv2d, .k = 3, .oc = 4},
    {.what = "conv 3x3 from 1, ELU, tail",
     .kind = US_OP_conv2d,
     .k = 3,
     .ic = 1,
     .elu = true,
     .tail = true},
    {.what = "conv 5x5 from 1, ELU, tail",
     .kind = US_OP_conv2d,
     .k = 5,
     .ic = 1,
     .elu = true,
     .tail = true},
    {.what = "conv_t 3x3", .kind = US_OP_conv_t2d},
    {.what = "conv_t 3x3, tail", .kind = US_OP_conv_t2d, .tail = true},
    {.what = "gate", .kind = US_OP_gate},
    {.what = "gate, tail", .kind = US_OP_gate, .tail = true},
    {.what = "merge", .kind = US_OP_merge},
    {.what = "merge, tail", .kind = US_OP_merge, .tail = true},
    {.what = "merge, quarter of a, tail", .kind = US_OP_merge, .part = true, .tail = true},
    {.what = "latent 128", .kind = US_OP_latent},
    {.what = "affine_elu", .kind = US_OP_affine_elu},
    {.what = "copy", .kind = US_OP_copy},
};

struct bench {
    struct us_backend *be;
    const struct us_backend_ops *ops;
    double seconds; /* per row */
    double peak[2]; /* GFLOP/s by dtype */
};

struct shape {
    union any_desc d;
    const struct us_map *in[2], *out;
    bool tail;
    int64_t n_w, n_b;
};

static int32_t or_64(int32_t c)
{
    return c > 0 ? c : 64;
}

static void make_conv(const struct row *r, int32_t side, enum us_dtype t, struct shape *s)
{
    struct us_conv2d_desc *d = &s->d.conv2d;
    int32_t stride = r->stride > 0 ? r->stride : 1;
    d->in = us_map_full(1, side * stride, side * stride, or_64(r->ic), t);
    d->out = d->res = us_map_full(1, side, side, or_64(r->oc), t);
    d->k = r->k;
    d->stride = stride;
    d->pad = r->k / 2;
    d->act = r->elu ? US_ACT_ELU : US_ACT_NONE;
    d->residual = r->residual;
    d->tail = r->tail;
    s->in[0] = &d->in;
    s->in[1] = r->residual ? &d->res : NULL;
    s->out = &d->out;
    s->n_w = (int64_t)d->out.c * d->in.c * r->k * r->k;
    s->n_b = d->out.c;
}

static void make_merge(const struct row *r, int32_t side, enum us_dtype t, struct shape *s)
{
    struct us_merge_desc *d = &s->d.merge;
    d->a = d->b = d->out = us_map_full(1, side, side, 64, t);
    if (r->part) {
        d->a.rect = (struct us_rect){side / 4, side / 4, side / 2, side / 2};
        d->a.zero_outside = true;
    }
    d->tail = r->tail;
    s->in[0] = &d->a;
    s->in[1] = &d->b;
    s->out = &d->out;
    s->n_w = 64 * 128;
    s->n_b = 64;
}

static void make_shape(const struct row *r, int32_t side, enum us_dtype t, struct shape *s)
{
    struct us_map m = us_map_full(1, side, side, 64, t);
    memset(s, 0, sizeof(*s));
    s->tail = r->tail;
    switch (r->kind) {
    case US_OP_conv2d:
        make_conv(r, side, t, s);
        break;
    case US_OP_conv_t2d:
        s->d.conv_t2d.in = us_map_full(1, side / 2, side / 2, 64, t);
        s->d.conv_t2d.out = m;
        s->d.conv_t2d.tail = r->tail;
        s->in[0] = &s->d.conv_t2d.in;
        s->out = &s->d.conv_t2d.out;
        s->n_w = 64 * 64 * 9;
        s->n_b = 64;
        break;
    case US_OP_gate:
        s->d.gate = (struct us_gate_desc){.in = m, .res = m, .out = m, .tail = r->tail};
        s->in[0] = &s->d.gate.in;
        s->in[1] = &s->d.gate.res;
        s->out = &s->d.gate.out;
        s->n_w = 128 * 64;
        s->n_b = 128;
        break;
    case US_OP_merge:
        make_merge(r, side, t, s);
        break;
    case US_OP_latent:
        s->d.latent.in = us_map_full(1, side, side, 256, t);
        s->d.latent.out = us_map_full(1, side, side, 128, t);
        s->d.latent.var_clip_max = 20.0f;
        s->in[0] = &s->d.latent.in;
        s->out = &s->d.latent.out;
        break;
    default: /* affine_elu and copy begin alike: in, out */
        s->d.copy = (struct us_copy_desc){.in = m, .out = m};
        s->in[0] = &s->d.copy.in;
        s->out = &s->d.copy.out;
        break;
    }
}

static enum us_status plan(struct us_backend *be, enum us_op_kind kind, const union any_desc *d,
                           struct us_op **ret, struct us_err *err)
{
    switch (kind) {
#define US_OP(name)                                                                                \
    case US_OP_##name:                                                                             \
        return us_backend_ops(be)->name##_plan(be, &d->name, ret, err);
#include "us_ops.def"
#undef US_OP
    case US_OP_COUNT:
        break;
    }
    return US_E_ARG;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Numbers between -1 and 1, spread so that both arms of every select are taken. */
static void *values(struct bench *b, int64_t n, enum us_dtype t)
{
    void *p;
    if (b->ops->buf_alloc(b->be, (size_t)n * us_dtype_bytes(t), &p) != US_OK)
        return NULL;
    for (int64_t i = 0; i < n; i++) {
        float v = (float)((i * 7919) % 2001 - 1000) / 1000.0f;
        if (t == US_F32)
            ((float *)p)[i] = v;
        else
            ((uint16_t *)p)[i] = us_bf16_of_f32(v);
    }
    return p;
}

static enum us_status best_of(struct bench *b, struct us_bound *bound, double *ret)
{
    double best = INFINITY, begin = now();
    for (int runs = 1; now() - begin < b->seconds;) {
        double t = now();
        for (int i = 0; i < runs; i++)
            US_TRY(b->ops->run(b->be, bound));
        t = (now() - t) / runs;
        best = t < best ? t : best;
        runs = t > 2e-3 ? 1 : (int)(2e-3 / t) + 1;
    }
    *ret = best;
    return US_OK;
}

static double map_bytes(const struct shape *s)
{
    double sum = (double)us_map_bytes(s->out) * (s->tail ? 2 : 1);
    for (int i = 0; i < 2; i++)
        sum += s->in[i] != NULL ? (double)us_map_bytes(s->in[i]) : 0.0;
    return sum;
}

static void report(struct bench *b, const struct row *r, int32_t side, enum us_dtype t,
                   const struct shape *s, double flops, double seconds)
{
    double rate = flops / seconds / 1e9;
    bool plain = r->kind == US_OP_conv2d && !r->tail && !r->residual && !r->elu;
    if (plain && rate > b->peak[t])
        b->peak[t] = rate;
    printf("%-27s %3d  %-4s %8.3f %8.0f %6.2f %7.1f\n", r->what, side, t == US_F32 ? "f32" : "bf16",
           seconds * 1e3, rate, b->peak[t] > 0 ? rate / b->peak[t] : 0.0,
           map_bytes(s) / seconds / 1e9);
}

struct held {
    struct us_op *op;
    struct us_bound *bound;
    void *in[2], *out, *out2, *packed, *scratch;
    float *w, *bias, *scale;
};

static void release(struct bench *b, struct held *h)
{
    b->ops->bound_free(b->be, h->bound);
    b->ops->op_free(b->be, h->op);
    void *bufs[] = {h->in[0],   h->in[1], h->out,  h->out2, h->packed,
                    h->scratch, h->w,     h->bias, h->scale};
    for (size_t i = 0; i < US_COUNT(bufs); i++)
        b->ops->buf_free(b->be, bufs[i]);
}

static enum us_status prepare(struct bench *b, const struct shape *s, struct held *h)
{
    static const struct us_noise noise = {.seed = 1};
    for (int i = 0; i < 2; i++)
        if (s->in[i] != NULL)
            h->in[i] = values(b, us_map_count(s->in[i]), s->in[i]->dtype);
    h->out = values(b, us_map_count(s->out), s->out->dtype);
    h->out2 = values(b, us_map_count(s->out), s->out->dtype);
    h->w = values(b, s->n_w, US_F32);
    h->bias = values(b, s->n_b, US_F32);
    h->scale = values(b, s->out->c, US_F32);
    US_TRY(b->ops->buf_alloc(b->be, h->op->packed_bytes, &h->packed));
    US_TRY(b->ops->buf_alloc(b->be, h->op->scratch_bytes, &h->scratch));
    struct us_op_weights w = {h->w, h->bias, h->scale, h->scale};
    US_TRY(b->ops->op_pack(b->be, h->op, &w, h->packed));
    struct us_op_bufs bufs = {{h->in[0], h->in[1]}, h->out, h->out2, h->packed, h->scratch, &noise};
    return b->ops->op_bind(b->be, h->op, &bufs, &h->bound);
}

static enum us_status run_row(struct bench *b, const struct row *r, int32_t side, enum us_dtype t)
{
    struct shape s;
    struct held h = {.op = NULL};
    struct us_err err = {.status = US_OK};
    double seconds = 0;
    make_shape(r, side, t, &s);
    enum us_status status = plan(b->be, r->kind, &s.d, &h.op, &err);
    if (status == US_OK)
        status = prepare(b, &s, &h);
    if (status == US_OK)
        status = best_of(b, h.bound, &seconds);
    if (status == US_OK)
        report(b, r, side, t, &s, h.op->flops, seconds);
    else
        fprintf(stderr, "%s: %s %s\n", r->what, us_status_text(status), err.msg);
    release(b, &h);
    return status;
}

int main(int argc, char **argv)
{
    struct us_err err = {.status = US_OK};
    struct bench b = {.seconds = argc > 1 ? strtod(argv[1], NULL) : 0.2};
    static const int32_t sides[] = {64, 32};
    enum us_status s = us_cpu_open(&b.be, &err);
    if (s != US_OK) {
        fprintf(stderr, "bench_ops: %s\n", err.msg);
        return 1;
    }
    b.ops = us_backend_ops(b.be);
    b.ops->thread_init(b.be);
    printf("%-27s %3s  %-4s %8s %8s %6s %7s\n", "op, 64 channels", "out", "type", "ms", "GFLOP/s",
           "/ peak", "GB/s");
    for (int t = US_F32; t <= US_BF16 && s == US_OK; t++)
        for (size_t i = 0; i < US_COUNT(sides) && b.ops->has_dtype(b.be, (enum us_dtype)t); i++)
            for (size_t r = 0; r < US_COUNT(rows) && s == US_OK; r++)
                s = run_row(&b, &rows[r], sides[i], (enum us_dtype)t);
    b.ops->free(b.be);
    return s == US_OK ? 0 : 1;
}
