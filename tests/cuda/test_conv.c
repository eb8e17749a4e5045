/*
 * Convolutions of the CUDA backend (us_conv.h) by every provider against sums written down from the
 * header's formula: the host's, cuDNN's interface over a library of ours that checks each
 * descriptor and computes (fake_cudnn.c), and cuDNN itself where there is a GPU. Also the choices
 * that are remembered on disk.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "math/us_bf16_math.h"
#include "us_conv.h"
#include "us_kernels.h"
#ifdef US_TEST_WITH_CUDNN
#include "us_cudnn.h"
#include "us_gpu_cuda.h"
#endif

/* ---- providers ---- */

static struct us_gpu *open_serial(void)
{
    struct us_gpu *g = NULL;
    assert_int_equal(us_gpu_serial_open(&g, NULL), US_OK);
    return g;
}

static void close_plain(struct us_gpu *g)
{
    g->ops->free(g);
}

/* NULL where there is no GPU. */
static struct us_gpu *open_cuda(void)
{
    struct us_gpu *g = NULL;
    struct us_err err = {0};
    if (us_gpu_cuda_open(0, &g, &err) != US_OK)
        print_message("no GPU: %s\n", err.msg);
    return g;
}

#ifdef US_TEST_WITH_CUDNN
/* The host in the role of a GPU, with cuDNN's provider over our library. */
static struct us_gpu *open_fake(void)
{
    struct us_gpu_cuda *c = calloc(1, sizeof(*c));
    struct us_gpu *serial = open_serial();
    struct us_err err = {0};
    assert_non_null(c);
    c->base = *serial;
    serial->ops->free(serial);
    const char *fake = getenv("US_TEST_FAKE_CUDNN");
    assert_non_null(fake);
    assert_int_equal(setenv("USPLIT_CUDNN", fake, 1), 0);
    if (us_cudnn_open(&c->base, &c->base.conv, &c->cudnn, &err) != US_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(unsetenv("USPLIT_CUDNN"), 0);
    return &c->base;
}

static void close_fake(struct us_gpu *g)
{
    us_cudnn_close(usi_gpu_cuda_cudnn(g));
    g->ops->free(g);
}
#endif

struct provider {
    const char *name;
    struct us_gpu *(*open)(void);
    void (*close)(struct us_gpu *g);
    bool epilogue; /* must not refuse one */
};

static const struct provider serial_provider = {"serial", open_serial, close_plain, true};
static const struct provider cuda_provider = {"cuda", open_cuda, close_plain, false};
#ifdef US_TEST_WITH_CUDNN
static const struct provider fake_provider = {"fake cuDNN", open_fake, close_fake, true};
#endif

/* ---- cases ---- */

/* x is xh x xw x xc and y has yc channels; pad: top, left, bottom, right. margin: the maps are
 * windows of maps that are larger by this many pixels on every side and this many times 8
 * channels. */
static const struct shape {
    int32_t n, xh, xw, xc, yc, k, stride, pad[4], margin;
} shapes[] = {
    {1, 1, 1, 1, 1, 1, 1, {0, 0, 0, 0}, 0},   {2, 7, 5, 3, 4, 3, 1, {1, 1, 1, 1}, 0},
    {1, 8, 8, 8, 16, 3, 1, {1, 1, 1, 1}, 1},  {2, 9, 6, 8, 8, 1, 1, {0, 0, 0, 0}, 0},
    {1, 8, 10, 4, 8, 3, 2, {1, 1, 1, 1}, 0},  {1, 8, 10, 8, 8, 3, 2, {1, 1, 0, 0}, 1},
    {2, 11, 12, 1, 8, 5, 2, {2, 2, 2, 2}, 0}, {1, 6, 6, 8, 2, 1, 1, {0, 0, 0, 0}, 2},
    {1, 5, 9, 8, 8, 3, 1, {0, 2, 1, 0}, 0},   {1, 12, 7, 16, 8, 4, 3, {0, 1, 2, 3}, 0},
    {1, 6, 6, 2, 3, 5, 1, {4, 4, 4, 4}, 0},
};

struct variant {
    enum us_dtype dtype, out;
    bool bias, elu, residual;
};

static const struct variant variants[] = {
    {US_F32, US_F32, false, false, false}, {US_BF16, US_BF16, false, false, false},
    {US_F32, US_F32, true, false, false},  {US_F32, US_F32, true, true, true},
    {US_BF16, US_BF16, true, true, true},  {US_BF16, US_BF16, false, true, false},
    {US_BF16, US_F32, true, false, true},
};

/* A map in memory: the whole, and where its window begins. */
struct buffer {
    struct us_conv_map map;
    enum us_dtype dtype;
    int64_t count, first;
    float *value; /* [count] */
};

static uint32_t next_random(void)
{
    static uint32_t state = 12345;
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static float random_value(enum us_dtype dtype)
{
    float v = (float)next_random() / (float)(1 << 23) - 1.0F;
    return dtype == US_F32 ? v : us_f32_of_bf16(us_bf16_of_f32(v));
}

static struct buffer buffer_new(int32_t n, int32_t h, int32_t w, int32_t c, int32_t margin,
                                enum us_dtype dtype)
{
    int64_t all_w = w + 2 * margin, all_h = h + 2 * margin, all_c = c + 8 * margin;
    struct buffer b = {.dtype = dtype, .count = n * all_h * all_w * all_c};
    b.map = (struct us_conv_map){h, w, c, all_h * all_w * all_c, all_w * all_c, all_c};
    b.first = margin * (all_w + 1) * all_c + 8 * (int64_t)margin;
    b.value = calloc((size_t)b.count, sizeof(float));
    assert_non_null(b.value);
    for (int64_t i = 0; i < b.count; i++)
        b.value[i] = random_value(dtype);
    return b;
}

static int64_t at(const struct us_conv_map *m, int64_t n, int64_t y, int64_t x, int64_t c)
{
    return n * m->image_stride + y * m->row_stride + x * m->pixel_stride + c;
}

/* ---- the formula ---- */

struct problem {
    struct us_conv_desc d;
    struct buffer x, y, w, res; /* of the three, the one that is written holds what was there */
    float *bias;
    double *want, *bound; /* by element of the output's window: value, sum of |products| */
};

/* Every product of the formula, sent to whichever of the three is the result. */
static void add_products(const struct problem *p, const struct buffer *out)
{
    const struct us_conv_desc *d = &p->d;
    for (int64_t n = 0; n < d->n; n++)
        for (int64_t i = 0; i < (int64_t)d->y.h * d->y.w * d->k * d->k; i++) {
            int64_t kx = i % d->k, ky = i / d->k % d->k;
            int64_t ox = i / d->k / d->k % d->y.w, oy = i / d->k / d->k / d->y.w;
            int64_t ix = d->stride * ox - d->left + kx, iy = d->stride * oy - d->top + ky;
            if (ix < 0 || iy < 0 || ix >= d->x.w || iy >= d->x.h)
                continue;
            for (int64_t k = 0; k < d->y.c; k++)
                for (int64_t c = 0; c < d->x.c; c++) {
                    int64_t xi = at(&p->x.map, n, iy, ix, c), yi = at(&p->y.map, n, oy, ox, k);
                    int64_t wi = ((k * d->k + ky) * d->k + kx) * d->x.c + c;
                    double x = p->x.value[p->x.first + xi], y = p->y.value[p->y.first + yi];
                    double w = p->w.value[wi];
                    double term = out == &p->y ? x * w : out == &p->x ? y * w : x * y;
                    int64_t to = out == &p->y ? yi : out == &p->x ? xi : wi;
                    p->want[to] += term;
                    p->bound[to] += fabs(term);
                }
        }
}

static void add_epilogue(const struct problem *p, const struct buffer *out)
{
    const struct us_conv_desc *d = &p->d;
    for (int64_t n = 0; n < d->n; n++)
        for (int64_t y = 0; y < out->map.h; y++)
            for (int64_t x = 0; x < out->map.w; x++)
                for (int64_t c = 0; c < out->map.c; c++) {
                    double *v = &p->want[at(&out->map, n, y, x, c)];
                    double *bound = &p->bound[at(&out->map, n, y, x, c)];
                    double res = d->residual
                                     ? p->res.value[p->res.first + at(&p->res.map, n, y, x, c)]
                                     : 0.0;
                    *v += d->bias ? p->bias[c] : 0.0;
                    *v = d->elu && *v < 0.0 ? expm1(*v) : *v;
                    *v += res;
                    *bound += fabs(res) + (d->bias ? fabs(p->bias[c]) : 0.0);
                }
}

static struct buffer *output(struct problem *p)
{
    return p->d.kind == US_CONV_FORWARD ? &p->y : p->d.kind == US_CONV_DATA ? &p->x : &p->w;
}

static struct problem problem_new(enum us_conv_kind kind, const struct shape *s,
                                  const struct variant *v)
{
    struct problem p = {0};
    struct us_conv_desc *d = &p.d;
    int32_t yh = (s->xh + s->pad[0] + s->pad[2] - s->k) / s->stride + 1;
    int32_t yw = (s->xw + s->pad[1] + s->pad[3] - s->k) / s->stride + 1;
    p.x =
        buffer_new(s->n, s->xh, s->xw, s->xc, s->margin, kind == US_CONV_DATA ? v->out : v->dtype);
    p.y = buffer_new(s->n, yh, yw, s->yc, s->margin, kind == US_CONV_FORWARD ? v->out : v->dtype);
    p.w = buffer_new(1, s->yc * s->k, s->k, s->xc, 0, kind == US_CONV_FILTER ? US_F32 : v->dtype);
    *d = (struct us_conv_desc){.kind = kind,
                               .dtype = v->dtype,
                               .out_dtype = v->out,
                               .n = s->n,
                               .x = p.x.map,
                               .y = p.y.map,
                               .k = s->k,
                               .stride = s->stride,
                               .top = s->pad[0],
                               .left = s->pad[1],
                               .bottom = s->pad[2],
                               .right = s->pad[3]};
    struct buffer *out = output(&p);
    if (kind != US_CONV_FILTER) {
        d->bias = v->bias;
        d->elu = v->elu;
        d->residual = v->residual;
    }
    p.res = buffer_new(s->n, out->map.h, out->map.w, out->map.c, 1, v->dtype);
    d->res = p.res.map;
    p.bias = calloc((size_t)out->map.c, sizeof(float));
    p.want = calloc((size_t)out->count, sizeof(double));
    p.bound = calloc((size_t)out->count, sizeof(double));
    assert_true(p.bias != NULL && p.want != NULL && p.bound != NULL);
    for (int32_t i = 0; i < out->map.c; i++)
        p.bias[i] = random_value(US_F32);
    add_products(&p, out);
    if (kind != US_CONV_FILTER)
        add_epilogue(&p, out);
    return p;
}

static void problem_release(struct problem *p)
{
    void *const all[] = {p->x.value, p->y.value, p->w.value, p->res.value,
                         p->bias,    p->want,    p->bound};
    for (size_t i = 0; i < US_COUNT(all); i++)
        free(all[i]);
}

/* ---- running it ---- */

static void *upload(struct us_gpu *g, const float *value, int64_t n, enum us_dtype dtype)
{
    size_t bytes = (size_t)n * us_dtype_bytes(dtype);
    uint16_t *narrow = calloc((size_t)n, sizeof(*narrow));
    void *p = NULL;
    assert_non_null(narrow);
    for (int64_t i = 0; i < n; i++)
        narrow[i] = us_bf16_of_f32(value[i]);
    assert_int_equal(g->ops->alloc(g, bytes, &p), US_OK);
    assert_int_equal(g->ops->to_device(g, p, dtype == US_F32 ? (const void *)value : narrow, bytes),
                     US_OK);
    assert_int_equal(g->ops->sync(g), US_OK);
    free(narrow);
    return p;
}

static void download(struct us_gpu *g, const void *p, int64_t n, enum us_dtype dtype, float *to)
{
    size_t bytes = (size_t)n * us_dtype_bytes(dtype);
    uint16_t *narrow = calloc((size_t)n, sizeof(*narrow));
    assert_non_null(narrow);
    void *host = dtype == US_F32 ? (void *)to : narrow;
    assert_int_equal(g->ops->to_host(g, host, p, bytes), US_OK);
    assert_int_equal(g->ops->sync(g), US_OK);
    for (int64_t i = 0; i < n && dtype == US_BF16; i++)
        to[i] = us_f32_of_bf16(narrow[i]);
    free(narrow);
}

static void *window(const struct buffer *b, void *p)
{
    return (char *)p + (size_t)b->first * us_dtype_bytes(b->dtype);
}

/* Runs twice into got and again, which must agree to the bit. */
static enum us_status run(struct us_gpu *g, struct problem *p, float *got, float *again,
                          struct us_err *err)
{
    struct us_conv *conv = NULL;
    struct buffer *out = output(p);
    size_t bytes = 0;
    US_TRY(g->conv->plan(g, &p->d, &conv, &bytes, err));
    void *dev[] = {upload(g, p->x.value, p->x.count, p->x.dtype),
                   upload(g, p->y.value, p->y.count, p->y.dtype),
                   upload(g, p->w.value, p->w.count, p->w.dtype),
                   upload(g, p->res.value, p->res.count, p->res.dtype),
                   upload(g, p->bias, out->map.c, US_F32),
                   NULL};
    assert_int_equal(g->ops->alloc(g, bytes + 1, &dev[5]), US_OK);
    int o = out == &p->x ? 0 : out == &p->y ? 1 : 2;
    struct us_conv_bufs b = {.x = window(&p->x, dev[0]),
                             .y = window(&p->y, dev[1]),
                             .w = dev[2],
                             .res = window(&p->res, dev[3]),
                             .bias = (const float *)dev[4],
                             .out = window(out, dev[o]),
                             .workspace = dev[5]};
    assert_int_equal(g->conv->run(g, conv, &b), US_OK);
    download(g, dev[o], out->count, out->dtype, got);
    assert_int_equal(g->conv->run(g, conv, &b), US_OK);
    download(g, dev[o], out->count, out->dtype, again);
    for (size_t i = 0; i < US_COUNT(dev); i++)
        g->ops->release(g, dev[i]);
    g->conv->free(g, conv);
    return US_OK;
}

/* Sums of f32 in some order, then the rounding of the result; FILTER through bf16 (us_cudnn.c). */
static double allowed(const struct problem *p, double bound, double want, enum us_dtype out)
{
    bool narrow = out == US_BF16 || (p->d.kind == US_CONV_FILTER && p->d.dtype == US_BF16);
    return 4e-6 * bound + 1e-6 * fabs(want) + (narrow ? fabs(want) / 256.0 : 0.0) + 1e-7;
}

static void check(const struct provider *how, struct problem *p, const float *got,
                  const float *again)
{
    const struct buffer *out = output(p);
    assert_memory_equal(got, again, (size_t)out->count * sizeof(float));
    /* What is no pixel of the window is as before. */
    bool *inside = calloc((size_t)out->count, sizeof(bool));
    assert_non_null(inside);
    int64_t images = p->d.kind == US_CONV_FILTER ? 1 : p->d.n;
    for (int64_t n = 0; n < images; n++)
        for (int64_t y = 0; y < out->map.h; y++)
            for (int64_t x = 0; x < out->map.w; x++)
                for (int64_t c = 0; c < out->map.c; c++) {
                    int64_t i = at(&out->map, n, y, x, c);
                    double limit = allowed(p, p->bound[i], p->want[i], out->dtype);
                    inside[out->first + i] = true;
                    if (!(fabs((double)got[out->first + i] - p->want[i]) <= limit))
                        fail_msg("%s: kind %d, k %d, stride %d, (%d %d %d %d): %g, not %g",
                                 how->name, p->d.kind, p->d.k, p->d.stride, (int)n, (int)y, (int)x,
                                 (int)c, (double)got[out->first + i], p->want[i]);
                }
    for (int64_t i = 0; i < out->count; i++)
        if (!inside[i] && got[i] != out->value[i])
            fail_msg("%s: wrote beside its window", how->name);
    free(inside);
}

/* Every shape, kind and variant; returns how many the provider left to the caller. */
static int check_provider(const struct provider *how)
{
    int refused = 0;
    struct us_gpu *g = how->open();
    if (g == NULL)
        skip();
    for (size_t i = 0; i < US_COUNT(shapes) * US_COUNT(variants) * 3; i++) {
        const struct variant *v = &variants[i / 3 % US_COUNT(variants)];
        struct problem p =
            problem_new((enum us_conv_kind)(i % 3), &shapes[i / 3 / US_COUNT(variants)], v);
        struct us_err err = {0};
        float *got = calloc((size_t)output(&p)->count, sizeof(float));
        float *again = calloc((size_t)output(&p)->count, sizeof(float));
        assert_true(got != NULL && again != NULL);
        enum us_status s = run(g, &p, got, again, &err);
        bool may_refuse =
            !how->epilogue && (p.d.bias || p.d.elu || p.d.residual || p.d.out_dtype != p.d.dtype ||
                               p.d.kind != US_CONV_FILTER);
        if (s == US_OK)
            check(how, &p, got, again);
        else if (s != US_E_UNSUPPORTED || !may_refuse)
            fail_msg("%s: %s", how->name, err.msg);
        refused += s != US_OK;
        free(got);
        free(again);
        problem_release(&p);
    }
    how->close(g);
    return refused;
}

static void serial_convolutions_follow_the_formula(void **state)
{
    assert_int_equal(check_provider(&serial_provider), 0);
}

static void cuda_convolutions_follow_the_formula(void **state)
{
    print_message("%d left to our own kernels\n", check_provider(&cuda_provider));
}

/* ---- descriptions that contradict themselves ---- */

static void wrong_descriptions_are_refused(void **state)
{
    const struct variant plain = {US_F32, US_F32, false, false, false};
    struct us_gpu *g = open_serial();
    struct us_conv *conv = NULL;
    size_t bytes = 0;
    for (int i = 0; i < 8; i++) {
        struct problem p = problem_new(US_CONV_FORWARD, &shapes[1], &plain);
        struct us_err err = {0};
        switch (i) {
        case 0:
            p.d.n = 0;
            break;
        case 1:
            p.d.y.h++;
            break; /* not what the convolution gives */
        case 2:
            p.d.top = -1;
            break; /* a crop is the caller's pointer */
        case 3:
            p.d.x.pixel_stride = 1;
            break; /* pixels overlap */
        case 4:
            p.d.k = 40;
            break; /* larger than the padded map */
        case 5:
            p.d.residual = true;
            p.d.res.c++;
            break;
        case 6:
            p.d.kind = US_CONV_FILTER;
            p.d.bias = true;
            break;
        default:
            p.d.out_dtype = US_BF16;
            break; /* neither dtype nor f32 */
        }
        assert_int_equal(g->conv->plan(g, &p.d, &conv, &bytes, &err), US_E_ARG);
        assert_true(err.msg[0] != '\0');
        problem_release(&p);
    }
    g->ops->free(g);
}

/* ---- our own gradient by weights ---- */

static void own_filter_kernel_follows_the_formula(void **state)
{
    struct us_gpu *g = open_serial();
    for (size_t i = 0; i < US_COUNT(shapes) * 2; i++) {
        struct problem p = problem_new(US_CONV_FILTER, &shapes[i / 2], &variants[i % 2]);
        float *got = calloc((size_t)p.w.count, sizeof(float));
        assert_non_null(got);
        void *x = upload(g, p.x.value, p.x.count, p.x.dtype);
        void *y = upload(g, p.y.value, p.y.count, p.y.dtype);
        struct us_k_conv_filter a = {.x = window(&p.x, x),
                                     .y = window(&p.y, y),
                                     .w = got,
                                     .dtype = p.d.dtype,
                                     .x_map = p.d.x,
                                     .y_map = p.d.y,
                                     .n = p.d.n,
                                     .k = p.d.k,
                                     .stride = p.d.stride,
                                     .top = p.d.top,
                                     .left = p.d.left};
        assert_int_equal(g->kernels->conv_filter(g, &a), US_OK);
        check(&serial_provider, &p, got, got);
        g->ops->release(g, x);
        g->ops->release(g, y);
        free(got);
        problem_release(&p);
    }
    g->ops->free(g);
}

#ifdef US_TEST_WITH_CUDNN
/* ---- cuDNN's interface ---- */

static void descriptors_mean_what_the_formula_says(void **state)
{
    assert_int_equal(setenv("USPLIT_CUDNN_COMPILE", "1", 1), 0);
    assert_int_equal(check_provider(&fake_provider), 0);
    assert_int_equal(unsetenv("USPLIT_CUDNN_COMPILE"), 0);
}

static void without_compiling_epilogues_are_left_to_the_caller(void **state)
{
    struct provider how = fake_provider;
    how.epilogue = false;
    assert_true(check_provider(&how) > 0);
}

static void misaligned_addresses_are_refused(void **state)
{
    const struct variant plain = {US_F32, US_F32, false, false, false};
    struct us_gpu *g = open_fake();
    struct problem p = problem_new(US_CONV_FORWARD, &shapes[3], &plain);
    struct us_conv *conv = NULL;
    size_t bytes = 0;
    static float memory[4096] __attribute__((aligned(256)));
    assert_int_equal(g->conv->plan(g, &p.d, &conv, &bytes, NULL), US_OK);
    struct us_conv_bufs b = {
        .x = memory + 1, .w = memory, .out = memory + 2048, .workspace = memory + 4000};
    assert_int_equal(g->conv->run(g, conv, &b), US_E_ARG);
    g->conv->free(g, conv);
    problem_release(&p);
    close_fake(g);
}

/* ---- choices on disk ---- */

static char cache_dir[64];

static void write_cache(const char *text)
{
    char path[128];
    (void)snprintf(path, sizeof(path), "%s/cudnn-choices", cache_dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void choices_are_remembered(void **state)
{
    struct us_cudnn_cache a, b;
    struct us_cudnn_choice v = {
        .engine = 7, .n_knobs = 2, .knob = {3, 12}, .value = {-1, 1LL << 40}};
    write_cache("");
    assert_int_equal(us_cudnn_cache_open(&a), US_OK);
    assert_int_equal(us_cudnn_cache_open(&b), US_OK);
    assert_null(us_cudnn_cache_get(&a, "one"));
    assert_int_equal(us_cudnn_cache_put(&a, "one", &v), US_OK);
    v.engine = 8;
    /* b has not seen a's file, and must not lose what it holds. */
    assert_int_equal(us_cudnn_cache_put(&b, "two", &v), US_OK);
    us_cudnn_cache_release(&a);
    us_cudnn_cache_release(&b);
    assert_int_equal(us_cudnn_cache_open(&a), US_OK);
    const struct us_cudnn_choice *one = us_cudnn_cache_get(&a, "one");
    assert_non_null(one);
    assert_int_equal(one->engine, 7);
    assert_int_equal(one->n_knobs, 2);
    assert_int_equal(one->knob[1], 12);
    assert_int_equal(one->value[0], -1);
    assert_int_equal(one->value[1], 1LL << 40);
    assert_non_null(us_cudnn_cache_get(&a, "two"));
    us_cudnn_cache_release(&a);
}

static void damaged_lines_are_skipped(void **state)
{
    static const struct {
        const char *line, *why;
    } bad[] = {
        {"key", "no engine"},
        {"key 1 2=3 ", "torn off: no full stop"},
        {"key 1 2=3 .x", "not the end"},
        {"key -1 .", "engines are counted from 0"},
        {"key 1 2 .", "a knob without a value"},
        {"key 1 -2=3 .", "knobs are counted from 0"},
        {"key 1 2=99999999999999999999 .", "over 64 bits"},
        {"key x .", "not a number"},
        {" 1 .", "no key"},
    };
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        char text[256];
        struct us_cudnn_cache c;
        (void)snprintf(text, sizeof(text), "usplit cudnn choices 1\n%s\ngood 5 .\n", bad[i].line);
        write_cache(text);
        assert_int_equal(us_cudnn_cache_open(&c), US_OK);
        if (us_cudnn_cache_get(&c, "key") != NULL || us_cudnn_cache_get(&c, "good") == NULL)
            fail_msg("%s", bad[i].why);
        us_cudnn_cache_release(&c);
    }
}

static void unknown_file_is_ignored(void **state)
{
    struct us_cudnn_cache c;
    write_cache("usplit cudnn choices 2\nkey 5 .\n");
    assert_int_equal(us_cudnn_cache_open(&c), US_OK);
    assert_null(us_cudnn_cache_get(&c, "key"));
    us_cudnn_cache_release(&c);
}

/* The library's engine 0 is not deterministic: a file that names it changes nothing. */
static void forbidden_engine_of_a_file_is_not_used(void **state)
{
    const struct variant plain = {US_F32, US_F32, false, false, false};
    struct problem p = problem_new(US_CONV_FORWARD, &shapes[3], &plain);
    char path[128], text[8192] = "";
    (void)snprintf(path, sizeof(path), "%s/cudnn-choices", cache_dir);
    for (int i = 0; i < 2; i++) {
        struct us_conv *conv = NULL;
        size_t bytes = 0;
        struct us_gpu *g = open_fake();
        assert_int_equal(g->conv->plan(g, &p.d, &conv, &bytes, NULL), US_OK);
        assert_int_not_equal(conv->choice.engine, 0);
        g->conv->free(g, conv);
        close_fake(g);
        FILE *f = fopen(path, "r");
        assert_non_null(f);
        size_t n = fread(text, 1, sizeof(text) - 1, f);
        (void)fclose(f);
        text[n] = '\0';
        char *engine = strrchr(text, 'w');
        assert_non_null(engine);
        (void)snprintf(engine, 16, "wf 0 .\n");
        write_cache(text);
    }
    problem_release(&p);
}

static int make_cache_dir(void **state)
{
    (void)snprintf(cache_dir, sizeof(cache_dir), "usplit-conv-XXXXXX");
    char where[256];
    if (mkdtemp(cache_dir) == NULL || getcwd(where, sizeof(where)) == NULL)
        return -1;
    char full[384];
    (void)snprintf(full, sizeof(full), "%s/%s", where, cache_dir);
    return setenv("USPLIT_CACHE", full, 1);
}

static int remove_cache_dir(void **state)
{
    char path[128];
    (void)snprintf(path, sizeof(path), "%s/cudnn-choices", cache_dir);
    (void)unlink(path);
    return rmdir(cache_dir);
}
#else
static int make_cache_dir(void **state)
{
    return 0;
}

static int remove_cache_dir(void **state)
{
    return 0;
}
#endif

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(serial_convolutions_follow_the_formula),
        cmocka_unit_test(cuda_convolutions_follow_the_formula),
        cmocka_unit_test(wrong_descriptions_are_refused),
        cmocka_unit_test(own_filter_kernel_follows_the_formula),
#ifdef US_TEST_WITH_CUDNN
        cmocka_unit_test(descriptors_mean_what_the_formula_says),
        cmocka_unit_test(without_compiling_epilogues_are_left_to_the_caller),
        cmocka_unit_test(misaligned_addresses_are_refused),
        cmocka_unit_test(choices_are_remembered),
        cmocka_unit_test(damaged_lines_are_skipped),
        cmocka_unit_test(unknown_file_is_ignored),
        cmocka_unit_test(forbidden_engine_of_a_file_is_not_used),
#endif
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_cache_dir, remove_cache_dir);
}
