/*
 * One run of training's ops: every device buffer lies between two guard bands of 0xff bytes, which
 * are NaN in every dtype, so reading one shows as well; all goes through copy_in and copy_out.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "math/us_bf16_math.h"
#include "train_test.h"

#define GUARD 256 /* a multiple of the 64-byte alignment that maps have */

void tt_ok(enum us_status s, const char *what)
{
    if (s != US_OK)
        fail_msg("%s: %s", what, us_status_text(s));
}

void tt_open(struct tt *tt, struct us_backend *be, const char *name)
{
    memset(tt, 0, sizeof(*tt));
    tt->be = be;
    tt->ops = us_backend_ops(be);
    tt->t = us_backend_train_ops(be);
    tt->dtype = US_F32;
    tt->state = ops_seed(name);
}

static void *keep(struct tt *tt, void *p)
{
    assert_non_null(p);
    assert_true(tt->n_host < TT_MAX_BUFS);
    tt->host[tt->n_host++] = p;
    return p;
}

float *tt_uniform(struct tt *tt, int64_t n, double lo, double hi)
{
    return keep(tt, ops_uniform(&tt->state, n, lo, hi, tt->round));
}

void *tt_zeros(struct tt *tt, int64_t n, size_t size)
{
    return keep(tt, calloc((size_t)(n > 0 ? n : 1), size));
}

void *tt_lend(struct tt *tt, const void *v, size_t bytes)
{
    void *p = NULL;
    assert_true(tt->n_lent < TT_MAX_LENT);
    if (tt->ops->host_alloc != NULL)
        tt_ok(tt->ops->host_alloc(tt->be, bytes, &p), "host_alloc");
    else
        p = malloc(bytes);
    assert_non_null(p);
    memcpy(p, v, bytes);
    return tt->lent[tt->n_lent++] = p;
}

static void *add_buf(struct tt *tt, size_t bytes, const void *content, bool constant)
{
    void *base = NULL;
    unsigned char *p = malloc(bytes + 2 * GUARD);
    assert_non_null(p);
    assert_true(tt->n_bufs < TT_MAX_BUFS);
    memset(p, 0xff, bytes + 2 * GUARD);
    if (content != NULL)
        memcpy(p + GUARD, content, bytes);
    tt_ok(tt->ops->buf_alloc(tt->be, bytes + 2 * GUARD, &base), "buf_alloc");
    assert_int_equal((uintptr_t)base % 64, 0);
    tt_ok(tt->ops->copy_in(tt->be, base, p, bytes + 2 * GUARD), "copy_in");
    tt->bufs[tt->n_bufs].base = base;
    tt->bufs[tt->n_bufs].bytes = bytes;
    tt->bufs[tt->n_bufs].want = constant ? p : NULL;
    tt->n_bufs++;
    if (!constant)
        free(p);
    return (char *)base + GUARD;
}

static void *add_map(struct tt *tt, int64_t n, const float *v, bool constant)
{
    if (tt->dtype == US_F32 || v == NULL)
        return add_buf(tt, (size_t)n * us_dtype_bytes(tt->dtype), v, constant);
    uint16_t *h = malloc((size_t)n * sizeof(*h));
    assert_non_null(h);
    for (int64_t i = 0; i < n; i++)
        h[i] = us_bf16_of_f32(v[i]);
    void *p = add_buf(tt, (size_t)n * sizeof(*h), h, constant);
    free(h);
    return p;
}

void *tt_map_in(struct tt *tt, int64_t n, const float *v)
{
    return add_map(tt, n, v, true);
}

void *tt_map_io(struct tt *tt, int64_t n, const float *v)
{
    return add_map(tt, n, v, false);
}

float *tt_f32_in(struct tt *tt, int64_t n, const float *v)
{
    return add_buf(tt, (size_t)n * sizeof(*v), v, true);
}

float *tt_f32_io(struct tt *tt, int64_t n, const float *v)
{
    return add_buf(tt, (size_t)n * sizeof(*v), v, false);
}

double *tt_f64_in(struct tt *tt, int64_t n, const double *v)
{
    return add_buf(tt, (size_t)n * sizeof(*v), v, true);
}

double *tt_f64_io(struct tt *tt, int64_t n, const double *v)
{
    return add_buf(tt, (size_t)n * sizeof(*v), v, false);
}

void *tt_raw(struct tt *tt, size_t bytes)
{
    return add_buf(tt, bytes, NULL, false);
}

static void *read_back(struct tt *tt, const void *p, size_t bytes)
{
    void *v = keep(tt, malloc(bytes > 0 ? bytes : 1));
    tt_ok(tt->ops->sync(tt->be), "sync");
    tt_ok(tt->ops->copy_out(tt->be, v, p, bytes), "copy_out");
    return v;
}

float *tt_get_f32(struct tt *tt, const void *p, int64_t n)
{
    return read_back(tt, p, (size_t)n * sizeof(float));
}

double *tt_get_f64(struct tt *tt, const void *p, int64_t n)
{
    return read_back(tt, p, (size_t)n * sizeof(double));
}

float *tt_get_map(struct tt *tt, const void *p, int64_t n)
{
    if (tt->dtype == US_F32)
        return tt_get_f32(tt, p, n);
    const uint16_t *h = read_back(tt, p, (size_t)n * sizeof(*h));
    float *v = keep(tt, malloc((size_t)n * sizeof(*v)));
    for (int64_t i = 0; i < n; i++)
        v[i] = us_f32_of_bf16(h[i]);
    return v;
}

static bool all_ff(const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != 0xff)
            return false;
    return true;
}

void tt_close(struct tt *tt)
{
    int damaged = 0;
    for (int i = 0; i < tt->n_bufs; i++) {
        size_t bytes = tt->bufs[i].bytes;
        unsigned char *p = malloc(bytes + 2 * GUARD);
        assert_non_null(p);
        tt_ok(tt->ops->copy_out(tt->be, p, tt->bufs[i].base, bytes + 2 * GUARD), "copy_out");
        if (!all_ff(p, GUARD) || !all_ff(p + GUARD + bytes, GUARD)) {
            print_error("buffer %d: written outside\n", i);
            damaged++;
        }
        if (tt->bufs[i].want != NULL && memcmp(p, tt->bufs[i].want, bytes + 2 * GUARD) != 0) {
            print_error("buffer %d: an input changed\n", i);
            damaged++;
        }
        tt->ops->buf_free(tt->be, tt->bufs[i].base);
        free(tt->bufs[i].want);
        free(p);
    }
    for (int i = 0; i < tt->n_host; i++)
        free(tt->host[i]);
    for (int i = 0; i < tt->n_lent; i++) {
        if (tt->ops->host_free != NULL)
            tt->ops->host_free(tt->be, tt->lent[i]);
        else
            free(tt->lent[i]);
    }
    tt->n_bufs = tt->n_host = tt->n_lent = 0;
    assert_int_equal(damaged, 0);
}

enum us_status tt_conv_open(struct tt *tt, const struct us_tconv_desc *d, const float *w,
                            const float *b, struct tt_conv *c)
{
    struct us_err err = {0};
    int64_t n_w = (int64_t)d->k * d->k * d->in.c * d->out.c;
    enum us_status s = tt->t->conv_plan(tt->be, d, &c->conv, &err);
    if (s == US_E_UNSUPPORTED)
        return s;
    if (s != US_OK)
        fail_msg("conv_plan: %s", err.msg);
    tt_ok(tt->t->conv_bind(tt->be, c->conv, tt_raw(tt, c->conv->scratch_bytes), &c->ctx),
          "conv_bind");
    c->packed = tt_raw(tt, c->conv->packed_bytes);
    tt_ok(tt->t->conv_pack(tt->be, c->ctx, tt_f32_in(tt, n_w, w), tt_f32_in(tt, d->out.c, b),
                           c->packed),
          "conv_pack");
    return US_OK;
}

void tt_conv_close(struct tt *tt, struct tt_conv *c)
{
    tt->t->conv_unbind(tt->be, c->ctx);
    tt->t->conv_free(tt->be, c->conv);
}

void tt_expect_near(const char *what, int64_t n, const float *got, const double *want, double tol)
{
    double largest = 0.0;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(want[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= tol * largest))
            fail_msg("%s: element %lld is %.9g, not %.9g (largest %g, allowed %g of it)", what,
                     (long long)i, (double)got[i], want[i], largest, tol);
}

void tt_expect_gradient(const char *what, int64_t n_x, const float *x, int64_t first, int64_t n,
                        tt_loss *loss, const void *ctx, const float *got, double tol)
{
    const double h = 1e-5;
    double *v = malloc((size_t)n_x * sizeof(*v));
    double *want = malloc((size_t)n * sizeof(*want));
    assert_non_null(v);
    assert_non_null(want);
    for (int64_t i = 0; i < n_x; i++)
        v[i] = (double)x[i];
    for (int64_t i = 0; i < n; i++) {
        double at = v[first + i];
        v[first + i] = at + h;
        double up = loss(v, ctx);
        v[first + i] = at - h;
        double down = loss(v, ctx);
        v[first + i] = at;
        want[i] = (up - down) / (2.0 * h);
    }
    tt_expect_near(what, n, got, want, tol);
    free(v);
    free(want);
}
