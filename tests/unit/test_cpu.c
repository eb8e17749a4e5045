/*
 * The cpu backend against the reference backend on random descriptors: small maps, odd shapes,
 * random rectangles, paddings and zero borders, several items. The op conformance test has the
 * cases with a reason; this one has those nobody thought of. Further: what run may not do, that is
 * allocate, or depend on the thread.
 */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "math/us_bf16_math.h"
#include "us_backend.h"

/* ---- allocations of the program itself: the linker sends them here (--wrap) ---- */

/* volatile: the compiler knows that malloc changes no variable of ours. */
static volatile int own_allocations;
static volatile int until_failure; /* allocations until one fails; 0: none does */

static bool fails(void)
{
    own_allocations++;
    return until_failure > 0 && --until_failure == 0;
}

#define WRAP(name, params, args)                                                                   \
    void *__real_##name params;                                                                    \
    void *__wrap_##name params;                                                                    \
    void *__wrap_##name params                                                                     \
    {                                                                                              \
        return fails() ? NULL : __real_##name args;                                                \
    }
WRAP(malloc, (size_t bytes), (bytes))
WRAP(calloc, (size_t n, size_t bytes), (n, bytes))
WRAP(realloc, (void *p, size_t bytes), (p, bytes))
WRAP(reallocarray, (void *p, size_t n, size_t bytes), (p, n, bytes))
WRAP(aligned_alloc, (size_t align, size_t bytes), (align, bytes))

/* ---- random numbers, SplitMix64 ---- */

static uint64_t state;

static uint32_t draw(void)
{
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

/* In lo..hi. */
static int32_t pick(int32_t lo, int32_t hi)
{
    return lo + (int32_t)(draw() % (uint32_t)(hi - lo + 1));
}

static bool flip(void)
{
    return (draw() & 1u) != 0;
}

static float *randoms(int64_t n, float spread)
{
    float *p = calloc((size_t)n, sizeof(*p));
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++)
        p[i] = ((float)(draw() >> 8) / 8388608.0f - 1.0f) * spread;
    return p;
}

/* Mostly small, for the borders; `large`: always enough for several bands of rows. */
static bool large;

static int32_t side(int32_t lo)
{
    return large ? pick(40, 60) : pick(lo, 12);
}

/* ---- one case ---- */

union any_desc {
#define US_OP(name) struct us_##name##_desc name;
#include "us_ops.def"
#undef US_OP
};

struct test_case {
    enum us_op_kind kind;
    union any_desc d;
    struct us_map *in[2], *out; /* into d; in[1] may be NULL */
    bool tail;
    int64_t n_w, n_b;
};

static int32_t channels(void)
{
    static const int32_t set[] = {1, 2, 3, 4, 7, 8, 16, 17, 32, 64};
    return large ? 64 : set[draw() % US_COUNT(set)];
}

static struct us_map random_map(int32_t n, int32_t h, int32_t w, int32_t c)
{
    struct us_map m = us_map_full(n, h, w, c, US_F32);
    if (flip()) {
        m.rect.y0 = large ? pick(0, h / 4) : pick(0, h - 1);
        m.rect.x0 = large ? pick(0, w / 4) : pick(0, w - 1);
        m.rect.h = pick(large ? h / 2 : 1, h - m.rect.y0);
        m.rect.w = pick(large ? w / 2 : 1, w - m.rect.x0);
    }
    return m;
}

/* A rectangle of m that holds rows y0..y1 and columns x0..x1 (half-open) of the map, or, one time
 * in four, any rectangle with zeros round it. */
static void hold(struct us_map *m, int32_t y0, int32_t y1, int32_t x0, int32_t x1)
{
    y0 = y0 < 0 ? 0 : y0;
    x0 = x0 < 0 ? 0 : x0;
    y1 = y1 > m->full_h ? m->full_h : y1;
    x1 = x1 > m->full_w ? m->full_w : x1;
    m->zero_outside = false;
    if (pick(0, 3) == 0) {
        *m = random_map(m->n, m->full_h, m->full_w, m->c);
        m->zero_outside = true;
        return;
    }
    /* A need wholly outside the map leaves any one pixel. */
    if (y0 >= y1 || x0 >= x1) {
        m->rect = (struct us_rect){0, 0, 1, 1};
        return;
    }
    bool tight_rows = flip(), tight_columns = flip();
    m->rect.y0 = tight_rows ? y0 : pick(0, y0);
    m->rect.x0 = tight_columns ? x0 : pick(0, x0);
    m->rect.h = (tight_rows ? y1 : pick(y1, m->full_h)) - m->rect.y0;
    m->rect.w = (tight_columns ? x1 : pick(x1, m->full_w)) - m->rect.x0;
}

static void hold_output(struct us_map *m, const struct us_map *out)
{
    const struct us_rect *r = &out->rect;
    hold(m, r->y0, r->y0 + r->h, r->x0, r->x0 + r->w);
}

/* Like hold_output, but every pixel is there. */
static void hold_residual(struct us_map *m, const struct us_map *out)
{
    do
        hold_output(m, out);
    while (m->zero_outside);
}

static void random_conv2d(struct test_case *t)
{
    struct us_conv2d_desc *d = &t->d.conv2d;
    d->k = pick(1, 5);
    d->stride = pick(1, 3);
    d->pad = pick(0, d->k - 1);
    int32_t h = side(d->k), w = side(d->k), n = pick(1, 2);
    d->in = us_map_full(n, h, w, channels(), US_F32);
    d->out = random_map(n, (h + 2 * d->pad - d->k) / d->stride + 1,
                        (w + 2 * d->pad - d->k) / d->stride + 1, channels());
    const struct us_rect *r = &d->out.rect;
    int32_t y0 = r->y0 * d->stride - d->pad, x0 = r->x0 * d->stride - d->pad;
    hold(&d->in, y0, y0 + (r->h - 1) * d->stride + d->k, x0, x0 + (r->w - 1) * d->stride + d->k);
    d->act = flip() ? US_ACT_ELU : US_ACT_NONE;
    d->tail = t->tail;
    d->residual = flip();
    d->res = d->out;
    hold_residual(&d->res, &d->out);
    t->in[0] = &d->in;
    t->in[1] = d->residual ? &d->res : NULL;
    t->out = &d->out;
    t->n_w = (int64_t)d->out.c * d->in.c * d->k * d->k;
    t->n_b = d->out.c;
}

static void random_conv_t2d(struct test_case *t)
{
    struct us_conv_t2d_desc *d = &t->d.conv_t2d;
    int32_t n = pick(1, 2), h = side(1), w = side(1);
    d->in = us_map_full(n, h, w, channels(), US_F32);
    d->out = random_map(n, 2 * h, 2 * w, channels());
    const struct us_rect *r = &d->out.rect;
    hold(&d->in, r->y0 / 2, (r->y0 + r->h) / 2 + 1, r->x0 / 2, (r->x0 + r->w) / 2 + 1);
    d->tail = t->tail;
    t->in[0] = &d->in;
    t->out = &d->out;
    t->n_w = (int64_t)d->out.c * d->in.c * 9;
    t->n_b = d->out.c;
}

static void random_gate(struct test_case *t)
{
    struct us_gate_desc *d = &t->d.gate;
    int32_t c = channels();
    d->out = random_map(pick(1, 2), side(1), side(1), c);
    d->in = d->res = d->out;
    hold_output(&d->in, &d->out);
    hold_residual(&d->res, &d->out);
    d->tail = t->tail;
    t->in[0] = &d->in;
    t->in[1] = &d->res;
    t->out = &d->out;
    t->n_w = 2 * (int64_t)c * c;
    t->n_b = 2 * c;
}

static void random_merge(struct test_case *t)
{
    struct us_merge_desc *d = &t->d.merge;
    d->out = random_map(pick(1, 2), side(1), side(1), channels());
    d->a = d->b = d->out;
    d->a.c = channels();
    d->b.c = channels();
    hold_output(&d->a, &d->out);
    hold_output(&d->b, &d->out);
    d->tail = t->tail;
    t->in[0] = &d->a;
    t->in[1] = &d->b;
    t->out = &d->out;
    t->n_w = (int64_t)d->out.c * (d->a.c + d->b.c);
    t->n_b = d->out.c;
}

static void random_latent(struct test_case *t)
{
    struct us_latent_desc *d = &t->d.latent;
    d->out = random_map(pick(1, 2), side(1), side(1), pick(1, 150));
    d->in = d->out;
    d->in.c = 2 * d->out.c;
    hold_output(&d->in, &d->out);
    d->level = pick(0, 3);
    d->var_clip_max = flip() ? 1.5f : INFINITY;
    t->tail = false;
    t->in[0] = &d->in;
    t->out = &d->out;
}

static void random_affine_elu(struct test_case *t)
{
    struct us_affine_elu_desc *d = &t->d.affine_elu;
    d->out = random_map(pick(1, 2), side(1), side(1), flip() ? channels() : 700);
    d->in = d->out;
    hold_output(&d->in, &d->out);
    t->tail = false;
    t->in[0] = &d->in;
    t->out = &d->out;
}

static void random_copy(struct test_case *t)
{
    struct us_copy_desc *d = &t->d.copy;
    d->out = random_map(pick(1, 2), side(1), side(1), channels());
    d->in = d->out;
    hold_output(&d->in, &d->out);
    t->tail = false;
    t->in[0] = &d->in;
    t->out = &d->out;
}

static void random_case(enum us_op_kind kind, struct test_case *t)
{
    static void (*const make[US_OP_COUNT])(struct test_case * t) = {
#define US_OP(name) [US_OP_##name] = random_##name,
#include "us_ops.def"
#undef US_OP
    };
    memset(t, 0, sizeof(*t));
    t->kind = kind;
    t->tail = flip();
    make[kind](t);
}

/* ---- running it ---- */

struct test_data {
    float *in[2], *w, *b, *scale, *shift;
    struct us_noise noise[2];
};

static void round_bf16(float *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = us_f32_of_bf16(us_bf16_of_f32(p[i]));
}

static void make_data(const struct test_case *t, bool bf16, struct test_data *x)
{
    memset(x, 0, sizeof(*x));
    for (int i = 0; i < 2; i++)
        if (t->in[i] != NULL) {
            x->in[i] = randoms(us_map_count(t->in[i]), 2.0f);
            if (bf16)
                round_bf16(x->in[i], us_map_count(t->in[i]));
        }
    int64_t fan_in = t->n_w / (t->out->c > 0 ? t->out->c : 1);
    if (t->n_w > 0) {
        x->w = randoms(t->n_w, 1.0f / sqrtf((float)(fan_in > 0 ? fan_in : 1)));
        x->b = randoms(t->n_b, 1.0f);
        if (bf16)
            round_bf16(x->w, t->n_w);
    }
    x->scale = randoms(t->out->c, 1.5f);
    x->shift = randoms(t->out->c, 1.0f);
    for (uint32_t i = 0; i < 2; i++)
        x->noise[i] = (struct us_noise){.seed = 7u << 20 | draw(),
                                        .frame = i,
                                        .sample = draw() & 0xffffu,
                                        .patch = draw(),
                                        .image_keyed = flip(),
                                        .centre_y = pick(-99, 99),
                                        .centre_x = pick(-99, 99)};
}

static void free_data(struct test_data *x)
{
    free(x->in[0]);
    free(x->in[1]);
    free(x->w);
    free(x->b);
    free(x->scale);
    free(x->shift);
}

struct placed {
    struct us_backend *be;
    const struct us_backend_ops *ops;
    struct us_op *op;
    struct us_bound *bound;
    struct us_op_bufs bufs;
    void *in[2], *packed;
};

static enum us_status plan(struct us_backend *be, const struct test_case *t, struct us_op **ret,
                           struct us_err *err)
{
    switch (t->kind) {
#define US_OP(name)                                                                                \
    case US_OP_##name:                                                                             \
        return us_backend_ops(be)->name##_plan(be, &t->d.name, ret, err);
#include "us_ops.def"
#undef US_OP
    case US_OP_COUNT:
        break;
    }
    return US_E_ARG;
}

static void *filled(struct placed *p, const struct us_map *m, const float *from)
{
    void *ret;
    size_t bytes = us_map_bytes(m);
    assert_int_equal(p->ops->buf_alloc(p->be, bytes, &ret), US_OK);
    memset(ret, 0xff, bytes);
    for (int64_t i = 0; from != NULL && i < us_map_count(m); i++) {
        if (m->dtype == US_F32)
            ((float *)ret)[i] = from[i];
        else
            ((uint16_t *)ret)[i] = us_bf16_of_f32(from[i]);
    }
    return ret;
}

static void place(struct placed *p, struct us_backend *be, const struct test_case *t,
                  const struct test_data *x)
{
    struct us_err err = {.status = US_OK};
    memset(p, 0, sizeof(*p));
    p->be = be;
    p->ops = us_backend_ops(be);
    if (plan(be, t, &p->op, &err) != US_OK)
        fail_msg("%s: %s", p->ops->name, err.msg);
    for (int i = 0; i < 2; i++)
        if (t->in[i] != NULL)
            p->bufs.in[i] = p->in[i] = filled(p, t->in[i], x->in[i]);
    p->bufs.out = filled(p, t->out, NULL);
    p->bufs.out2 = t->tail ? filled(p, t->out, NULL) : NULL;
    assert_int_equal(p->ops->buf_alloc(be, p->op->packed_bytes, &p->packed), US_OK);
    assert_int_equal(p->ops->buf_alloc(be, p->op->scratch_bytes, &p->bufs.scratch), US_OK);
    memset(p->bufs.scratch, 0xff, p->op->scratch_bytes);
    p->bufs.packed = p->packed;
    p->bufs.noise = x->noise;
    struct us_op_weights w = {x->w, x->b, x->scale, x->shift};
    assert_int_equal(p->ops->op_pack(be, p->op, &w, p->packed), US_OK);
    assert_int_equal(p->ops->op_bind(be, p->op, &p->bufs, &p->bound), US_OK);
}

static void remove_placed(struct placed *p)
{
    p->ops->bound_free(p->be, p->bound);
    p->ops->buf_free(p->be, p->bufs.scratch);
    p->ops->buf_free(p->be, p->packed);
    p->ops->buf_free(p->be, p->bufs.out);
    p->ops->buf_free(p->be, p->bufs.out2);
    for (int i = 0; i < 2; i++)
        p->ops->buf_free(p->be, p->in[i]);
    p->ops->op_free(p->be, p->op);
}

static float element(const void *p, enum us_dtype t, int64_t i)
{
    return t == US_F32 ? ((const float *)p)[i] : us_f32_of_bf16(((const uint16_t *)p)[i]);
}

static void describe(const struct test_case *t, char *text, size_t bytes)
{
    const struct us_map *i = t->in[0], *o = t->out;
    (void)snprintf(text, bytes,
                   "%s: %d x %dx%dx%d [%d,%d %dx%d]%s dtype %d -> %dx%dx%d [%d,%d %dx%d] dtype %d",
                   us_op_name(t->kind), i->n, i->full_h, i->full_w, i->c, i->rect.y0, i->rect.x0,
                   i->rect.h, i->rect.w, i->zero_outside ? " zero outside" : "", (int)i->dtype,
                   o->full_h, o->full_w, o->c, o->rect.y0, o->rect.x0, o->rect.h, o->rect.w,
                   (int)o->dtype);
}

static void compare(const struct test_case *t, const void *want, const void *got, double tolerance)
{
    double scale = 1.0;
    for (int64_t i = 0; i < us_map_count(t->out); i++)
        scale = fmax(scale, fabs((double)((const float *)want)[i]));
    for (int64_t i = 0; i < us_map_count(t->out); i++) {
        double a = (double)((const float *)want)[i];
        double b = (double)element(got, t->out->dtype, i);
        if (!(fabs(a - b) <= tolerance * scale)) {
            char text[256];
            describe(t, text, sizeof(text));
            fail_msg("%s: element %lld is %g, not %g", text, (long long)i, b, a);
        }
    }
}

static struct us_backend *cpu, *ref;

/* Sums of up to 1600 products in another order; 1 / fan_in weights keep them near 1. */
#define TOLERANCE_F32 4e-6
/* Half a unit of bf16's last place, and as much again for the tail of a rounded value. */
#define TOLERANCE_BF16 (1.0 / 256)

static void check_against_ref(enum us_op_kind kind, int cases, enum us_dtype in, enum us_dtype out)
{
    for (int i = 0; i < cases; i++) {
        struct test_case t;
        struct test_data x;
        struct placed want, got;
        state = (uint64_t)kind << 32 | (uint64_t)i;
        random_case(kind, &t);
        make_data(&t, in == US_BF16, &x);
        place(&want, ref, &t, &x);
        for (int j = 0; j < 2; j++)
            if (t.in[j] != NULL)
                t.in[j]->dtype = in;
        t.out->dtype = out;
        place(&got, cpu, &t, &x);
        assert_int_equal(want.ops->run(ref, want.bound), US_OK);
        assert_int_equal(got.ops->run(cpu, got.bound), US_OK);
        double tolerance = out == US_BF16 ? TOLERANCE_BF16 : TOLERANCE_F32;
        compare(&t, want.bufs.out, got.bufs.out, tolerance);
        if (t.tail)
            compare(&t, want.bufs.out2, got.bufs.out2, 2 * tolerance);
        remove_placed(&want);
        remove_placed(&got);
        free_data(&x);
    }
}

/* ---- tests ---- */

static void random_descriptors_f32_match_ref(void **s)
{
    for (int kind = 0; kind < US_OP_COUNT; kind++)
        check_against_ref((enum us_op_kind)kind, 400, US_F32, US_F32);
}

/* The bands of us_cpu_window.c: residuals, tails and padded maps across their edges. */
static void large_maps_match_ref(void **s)
{
    static const struct {
        enum us_op_kind kind;
        int cases;
    } set[] = {{US_OP_conv2d, 6}, {US_OP_conv_t2d, 4}, {US_OP_gate, 8}, {US_OP_merge, 80}};
    large = true;
    for (size_t i = 0; i < US_COUNT(set); i++)
        check_against_ref(set[i].kind, set[i].cases, US_F32, US_F32);
    large = false;
}

static void random_descriptors_bf16_match_ref(void **s)
{
    if (!us_backend_ops(cpu)->has_dtype(cpu, US_BF16))
        skip();
    for (int kind = 0; kind < US_OP_COUNT; kind++)
        check_against_ref((enum us_op_kind)kind, 100, US_BF16, US_BF16);
}

static void random_descriptors_mixed_dtypes_match_ref(void **s)
{
    if (!us_backend_ops(cpu)->has_dtype(cpu, US_BF16))
        skip();
    for (int kind = 0; kind < US_OP_COUNT; kind++) {
        check_against_ref((enum us_op_kind)kind, 40, US_BF16, US_F32);
        check_against_ref((enum us_op_kind)kind, 40, US_F32, US_BF16);
    }
}

static void elementwise_ops_f32_give_the_bits_of_ref(void **s)
{
    static const enum us_op_kind kinds[] = {US_OP_latent, US_OP_affine_elu, US_OP_copy};
    for (size_t k = 0; k < US_COUNT(kinds); k++)
        for (int i = 0; i < 50; i++) {
            struct test_case t;
            struct test_data x;
            struct placed want, got;
            state = (uint64_t)i + 1000;
            random_case(kinds[k], &t);
            make_data(&t, false, &x);
            place(&want, ref, &t, &x);
            place(&got, cpu, &t, &x);
            assert_int_equal(want.ops->run(ref, want.bound), US_OK);
            assert_int_equal(got.ops->run(cpu, got.bound), US_OK);
            assert_memory_equal(want.bufs.out, got.bufs.out, us_map_bytes(t.out));
            remove_placed(&want);
            remove_placed(&got);
            free_data(&x);
        }
}

static void run_after_bind_allocates_nothing(void **s)
{
    for (int kind = 0; kind < US_OP_COUNT; kind++)
        for (int i = 0; i < 20; i++) {
            struct test_case t;
            struct test_data x;
            struct placed p;
            state = (uint64_t)i;
            random_case((enum us_op_kind)kind, &t);
            make_data(&t, false, &x);
            place(&p, cpu, &t, &x);
            int before = own_allocations;
            assert_int_equal(p.ops->run(cpu, p.bound), US_OK);
            assert_int_equal(own_allocations, before);
            remove_placed(&p);
            free_data(&x);
        }
    /* The counter counts. */
    int before = own_allocations;
    void *volatile p = malloc(1);
    free(p);
    assert_int_equal(own_allocations, before + 1);
}

/* Plan, pack and bind of one op while allocation `at` fails; false once `at` is beyond the last. */
static bool survives_failure(const struct test_case *t, const struct test_data *x, int at)
{
    const struct us_backend_ops *ops = us_backend_ops(cpu);
    struct placed p;
    struct us_op *op = NULL;
    struct us_bound *bound = NULL;
    struct us_op_weights w = {x->w, x->b, x->scale, x->shift};
    place(&p, cpu, t, x);
    until_failure = at;
    enum us_status s = plan(cpu, t, &op, NULL);
    if (s == US_OK)
        s = ops->op_pack(cpu, op, &w, p.packed);
    if (s == US_OK)
        s = ops->op_bind(cpu, op, &p.bufs, &bound);
    bool failed = until_failure == 0;
    until_failure = 0;
    assert_int_equal(s, failed ? US_E_NOMEM : US_OK);
    ops->bound_free(cpu, bound);
    ops->op_free(cpu, op);
    remove_placed(&p);
    return failed;
}

static void each_failing_allocation_is_reported(void **s)
{
    for (int kind = 0; kind < US_OP_COUNT; kind++) {
        struct test_case t;
        struct test_data x;
        state = (uint64_t)kind + 5;
        random_case((enum us_op_kind)kind, &t);
        make_data(&t, false, &x);
        int at = 1;
        while (survives_failure(&t, &x, at))
            at++;
        assert_true(at > 2); /* op and bound at least */
        free_data(&x);
    }
}

static void *run_placed(void *arg)
{
    struct placed *p = arg;
    p->ops->thread_init(p->be);
    for (int i = 0; i < 5; i++)
        if (p->ops->run(p->be, p->bound) != US_OK)
            return NULL;
    return p;
}

static void two_threads_sharing_an_op_give_the_same_bytes(void **s)
{
    enum { THREADS = 2 };
    for (int kind = 0; kind < US_OP_COUNT; kind++) {
        struct test_case t;
        struct test_data x;
        struct placed p[THREADS];
        pthread_t thread[THREADS];
        state = (uint64_t)kind + 77;
        random_case((enum us_op_kind)kind, &t);
        make_data(&t, false, &x);
        for (int i = 0; i < THREADS; i++)
            place(&p[i], cpu, &t, &x);
        /* Both bind the first one's op and weights, each with its own buffers. */
        struct us_bound *own = p[1].bound;
        p[1].bufs.packed = p[0].packed;
        assert_int_equal(p[1].ops->op_bind(cpu, p[0].op, &p[1].bufs, &p[1].bound), US_OK);
        p[1].ops->bound_free(cpu, own);
        for (int i = 0; i < THREADS; i++)
            assert_int_equal(pthread_create(&thread[i], NULL, run_placed, &p[i]), 0);
        for (int i = 0; i < THREADS; i++) {
            void *ok;
            assert_int_equal(pthread_join(thread[i], &ok), 0);
            assert_non_null(ok);
        }
        assert_memory_equal(p[0].bufs.out, p[1].bufs.out, us_map_bytes(t.out));
        for (int i = THREADS - 1; i >= 0; i--)
            remove_placed(&p[i]);
        free_data(&x);
    }
}

static void a_map_beyond_the_limits_is_refused_by_name(void **s)
{
    struct us_copy_desc d = {.in = us_map_full(1, 1 << 25, 1, 1, US_F32)};
    struct us_err err = {.status = US_OK};
    struct us_op *op;
    d.in.rect.h = 1;
    d.out = d.in;
    assert_int_equal(us_backend_ops(cpu)->copy_plan(cpu, &d, &op, &err), US_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "copy: "));
    assert_non_null(strstr(err.msg, "33554432"));
}

static void missing_buffers_and_weights_are_refused(void **s)
{
    struct test_case t;
    struct test_data x;
    struct placed p;
    state = 3;
    random_case(US_OP_gate, &t);
    make_data(&t, false, &x);
    place(&p, cpu, &t, &x);
    struct us_op_weights no_bias = {.w = x.w, .tail_scale = x.scale, .tail_shift = x.shift};
    assert_int_equal(p.ops->op_pack(cpu, p.op, &no_bias, p.packed), US_E_ARG);
    struct us_op_bufs no_res = p.bufs;
    struct us_bound *bound;
    no_res.in[1] = NULL;
    assert_int_equal(p.ops->op_bind(cpu, p.op, &no_res, &bound), US_E_ARG);
    remove_placed(&p);
    free_data(&x);
}

static int open_backends(void **s)
{
    struct us_err err = {.status = US_OK};
    if (us_cpu_open(&cpu, &err) != US_OK || us_ref_open(&ref, &err) != US_OK)
        return -1;
    us_backend_ops(cpu)->thread_init(cpu);
    return 0;
}

static int close_backends(void **s)
{
    us_backend_ops(cpu)->free(cpu);
    us_backend_ops(ref)->free(ref);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_descriptors_f32_match_ref),
        cmocka_unit_test(large_maps_match_ref),
        cmocka_unit_test(random_descriptors_bf16_match_ref),
        cmocka_unit_test(random_descriptors_mixed_dtypes_match_ref),
        cmocka_unit_test(elementwise_ops_f32_give_the_bits_of_ref),
        cmocka_unit_test(run_after_bind_allocates_nothing),
        cmocka_unit_test(each_failing_allocation_is_reported),
        cmocka_unit_test(two_threads_sharing_an_op_give_the_same_bytes),
        cmocka_unit_test(a_map_beyond_the_limits_is_refused_by_name),
        cmocka_unit_test(missing_buffers_and_weights_are_refused),
    };
    return cmocka_run_group_tests(tests, open_backends, close_backends);
}
