/*
 * One case on one backend. Every buffer lies between two guard bands of 0xff bytes (a NaN in either
 * dtype, so reading one shows as well), outputs and scratch begin as 0xff, and all goes through
 * copy_in and copy_out, as it must for a backend with its own memory.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "math/us_bf16_math.h"
#include "ops_test.h"

#define GUARD 256 /* a multiple of the 64-byte alignment that maps have */

enum { BUF_IN0, BUF_IN1, BUF_OUT, BUF_OUT2, BUF_PACKED, BUF_SCRATCH, BUF_COUNT };

static const char *const buf_names[BUF_COUNT] = {"in",   "second in",      "out",
                                                 "out2", "packed weights", "scratch"};

struct guarded {
    void *base; /* backend memory; the buffer begins GUARD bytes after it */
    size_t bytes;
};

struct run {
    struct us_backend *be;
    const struct us_backend_ops *ops;
    const struct ops_case *c;
    struct us_op *op;
    struct us_bound *bound;
    struct guarded buf[BUF_COUNT];
    unsigned char *packed; /* what pack wrote, with its guards */
};

static enum us_status complain(const struct run *r, const char *what, const char *detail)
{
    print_error("%s on %s: %s%s\n", r->c->name, r->ops->name, what, detail);
    return US_E_BACKEND;
}

static void *inside(const struct guarded *g)
{
    return g->base == NULL ? NULL : (char *)g->base + GUARD;
}

/* The whole of a buffer with its guards, in host memory; caller frees. */
static unsigned char *read_back(const struct run *r, const struct guarded *g)
{
    unsigned char *p = malloc(g->bytes + 2 * GUARD);
    assert_non_null(p);
    assert_int_equal(r->ops->copy_out(r->be, p, g->base, g->bytes + 2 * GUARD), US_OK);
    return p;
}

/* 0xff throughout, or `bytes` of content between the guards. */
static void fill(const struct run *r, const struct guarded *g, const void *content)
{
    unsigned char *p = malloc(g->bytes + 2 * GUARD);
    assert_non_null(p);
    memset(p, 0xff, g->bytes + 2 * GUARD);
    if (content != NULL)
        memcpy(p + GUARD, content, g->bytes);
    assert_int_equal(r->ops->copy_in(r->be, g->base, p, g->bytes + 2 * GUARD), US_OK);
    free(p);
}

static void make_buf(struct run *r, int which, size_t bytes, const void *content)
{
    struct guarded *g = &r->buf[which];
    g->bytes = bytes;
    assert_int_equal(r->ops->buf_alloc(r->be, bytes + 2 * GUARD, &g->base), US_OK);
    assert_int_equal((uintptr_t)g->base % 64, 0);
    fill(r, g, content);
}

/* f32 values in a map's dtype; caller frees. */
static void *to_dtype(const struct us_map *m, const float *v)
{
    int64_t n = us_map_count(m);
    void *p = malloc(us_map_bytes(m));
    assert_non_null(p);
    if (m->dtype == US_F32)
        memcpy(p, v, us_map_bytes(m));
    else
        for (int64_t i = 0; i < n; i++)
            ((uint16_t *)p)[i] = us_bf16_of_f32(v[i]);
    return p;
}

static float *from_dtype(const struct us_map *m, const unsigned char *bytes)
{
    int64_t n = us_map_count(m);
    float *v = malloc((size_t)n * sizeof(*v));
    assert_non_null(v);
    if (m->dtype == US_F32)
        memcpy(v, bytes, us_map_bytes(m));
    for (int64_t i = 0; i < n && m->dtype == US_BF16; i++) {
        uint16_t h;
        memcpy(&h, bytes + 2 * i, sizeof(h));
        v[i] = us_f32_of_bf16(h);
    }
    return v;
}

static void make_inputs(struct run *r, const struct ops_data *d)
{
    for (int i = 0; i < US_OP_MAX_IN; i++) {
        const struct us_map *m = r->c->in[i];
        if (m == NULL)
            continue;
        void *p = to_dtype(m, d->in[i]);
        make_buf(r, BUF_IN0 + i, us_map_bytes(m), p);
        free(p);
    }
}

static enum us_status prepare(struct run *r, const struct ops_data *d)
{
    const struct ops_case *c = r->c;
    make_inputs(r, d);
    make_buf(r, BUF_OUT, us_map_bytes(c->out), NULL);
    if (c->tail)
        make_buf(r, BUF_OUT2, us_map_bytes(c->out), NULL);
    make_buf(r, BUF_PACKED, r->op->packed_bytes, NULL);
    make_buf(r, BUF_SCRATCH, r->op->scratch_bytes, NULL);
    struct us_op_weights w = {d->w, d->b, d->scale, d->shift};
    enum us_status s = r->ops->op_pack(r->be, r->op, &w, inside(&r->buf[BUF_PACKED]));
    if (s != US_OK)
        return complain(r, "pack: ", us_status_text(s));
    r->packed = read_back(r, &r->buf[BUF_PACKED]);
    struct us_op_bufs bufs = {
        .in = {inside(&r->buf[BUF_IN0]), inside(&r->buf[BUF_IN1])},
        .out = inside(&r->buf[BUF_OUT]),
        .out2 = inside(&r->buf[BUF_OUT2]),
        .packed = inside(&r->buf[BUF_PACKED]),
        .scratch = inside(&r->buf[BUF_SCRATCH]),
        .noise = d->noise,
    };
    s = r->ops->op_bind(r->be, r->op, &bufs, &r->bound);
    return s == US_OK ? US_OK : complain(r, "bind: ", us_status_text(s));
}

static enum us_status run_once(struct run *r)
{
    enum us_status s = r->ops->run(r->be, r->bound);
    if (s == US_OK)
        s = r->ops->sync(r->be);
    return s == US_OK ? US_OK : complain(r, "run: ", us_status_text(s));
}

static bool all_ff(const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != 0xff)
            return false;
    return true;
}

static enum us_status check_guards(const struct run *r)
{
    enum us_status s = US_OK;
    for (int i = 0; i < BUF_COUNT; i++) {
        if (r->buf[i].base == NULL)
            continue;
        unsigned char *p = read_back(r, &r->buf[i]);
        if (!all_ff(p, GUARD))
            s = complain(r, "wrote before ", buf_names[i]);
        if (!all_ff(p + GUARD + r->buf[i].bytes, GUARD))
            s = complain(r, "wrote past ", buf_names[i]);
        free(p);
    }
    return s;
}

static enum us_status check_inputs(const struct run *r, const struct ops_data *d)
{
    enum us_status s = US_OK;
    for (int i = 0; i < US_OP_MAX_IN; i++) {
        const struct guarded *g = &r->buf[BUF_IN0 + i];
        if (g->base == NULL)
            continue;
        unsigned char *now = read_back(r, g);
        void *before = to_dtype(r->c->in[i], d->in[i]);
        if (memcmp(now + GUARD, before, g->bytes) != 0)
            s = complain(r, "changed its input: ", buf_names[i]);
        free(before);
        free(now);
    }
    unsigned char *packed = read_back(r, &r->buf[BUF_PACKED]);
    if (memcmp(packed, r->packed, r->buf[BUF_PACKED].bytes + 2 * GUARD) != 0)
        s = complain(r, "changed its packed weights", "");
    free(packed);
    return s;
}

/* The second run starts from fresh 0xff outputs and scratch, and must leave the same bits. */
static enum us_status check_again(struct run *r)
{
    static const int outs[] = {BUF_OUT, BUF_OUT2};
    unsigned char *before[2] = {NULL, NULL};
    for (size_t i = 0; i < 2; i++)
        if (r->buf[outs[i]].base != NULL) {
            before[i] = read_back(r, &r->buf[outs[i]]);
            fill(r, &r->buf[outs[i]], NULL);
        }
    fill(r, &r->buf[BUF_SCRATCH], NULL);
    enum us_status s = run_once(r);
    for (size_t i = 0; i < 2; i++) {
        if (before[i] == NULL)
            continue;
        unsigned char *p = read_back(r, &r->buf[outs[i]]);
        if (s == US_OK && memcmp(p, before[i], r->buf[outs[i]].bytes + 2 * GUARD) != 0)
            s = complain(r, "a second run differs in ", buf_names[outs[i]]);
        free(p);
        free(before[i]);
    }
    return s;
}

static float *take_result(const struct run *r, int which)
{
    if (r->buf[which].base == NULL)
        return NULL;
    unsigned char *p = read_back(r, &r->buf[which]);
    float *v = from_dtype(r->c->out, p + GUARD);
    free(p);
    return v;
}

enum us_status ops_run(struct us_backend *be, const struct ops_case *c, const struct ops_data *d,
                       struct ops_result *ret)
{
    struct run r = {.be = be, .ops = us_backend_ops(be), .c = c};
    struct us_err err = {0};
    ret->out = ret->out2 = NULL;
    enum us_status s = ops_plan(be, c->kind, &c->d, &r.op, &err);
    if (s != US_OK)
        return s == US_E_UNSUPPORTED ? s : complain(&r, "plan: ", err.msg);
    if (r.op->kind != c->kind)
        s = complain(&r, "plan made another kind of op", "");
    if (s == US_OK)
        s = prepare(&r, d);
    if (s == US_OK)
        s = run_once(&r);
    if (s == US_OK)
        s = check_again(&r);
    if (s == US_OK)
        s = check_guards(&r);
    if (s == US_OK)
        s = check_inputs(&r, d);
    if (s == US_OK) {
        ret->out = take_result(&r, BUF_OUT);
        ret->out2 = take_result(&r, BUF_OUT2);
    }
    if (r.bound != NULL)
        r.ops->bound_free(be, r.bound);
    for (int i = 0; i < BUF_COUNT; i++)
        r.ops->buf_free(be, r.buf[i].base);
    r.ops->op_free(be, r.op);
    free(r.packed);
    return s;
}

void ops_run_oracle(const struct ops_suite *s, const struct ops_case *c, const struct ops_data *d,
                    struct ops_result *ret)
{
    int64_t full = ops_at(c->out, c->out->n, 0, 0, 0);
    double *v = calloc((size_t)full, sizeof(*v));
    assert_non_null(v);
    s->oracle(c, d, v);
    size_t bytes = (size_t)us_map_count(c->out) * sizeof(float);
    ret->out = malloc(bytes);
    ret->out2 = c->tail ? malloc(bytes) : NULL;
    assert_non_null(ret->out);
    ops_crop(c->out, v, ret->out);
    if (ret->out2 != NULL) {
        ops_oracle_tail(c->out, d, v);
        ops_crop(c->out, v, ret->out2);
    }
    free(v);
}

void ops_result_free(struct ops_result *r)
{
    free(r->out);
    free(r->out2);
}

enum us_status ops_plan(struct us_backend *be, enum us_op_kind kind, const union ops_desc *d,
                        struct us_op **ret, struct us_err *err)
{
    switch (kind) {
#define US_OP(name)                                                                                \
    case US_OP_##name:                                                                             \
        return us_backend_ops(be)->name##_plan(be, &d->name, ret, err);
#include "us_ops.def"
#undef US_OP
    default:
        return US_E_ARG;
    }
}

enum us_status ops_check(enum us_op_kind kind, const union ops_desc *d, struct us_err *err)
{
    switch (kind) {
#define US_OP(name)                                                                                \
    case US_OP_##name:                                                                             \
        return us_##name##_check(&d->name, err);
#include "us_ops.def"
#undef US_OP
    default:
        return US_E_ARG;
    }
}
