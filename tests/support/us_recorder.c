/*
 * ref with a queue before its training table; see us_recorder.h.
 */
#include "us_recorder.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_train_ops.h"

/* The parameters of the calls that only queue work: V as it is, C a struct that is read when the
 * call is made, M the same by a pointer that is not const. */
#define ARGS_conv_pack(V, C, M)                                                                    \
    V(struct us_tconv_ctx *, ctx) V(const float *, w) V(const float *, b) V(void *, packed)
#define ARGS_conv_fwd(V, C, M)                                                                     \
    V(struct us_tconv_ctx *, ctx) V(const void *, packed) V(const void *, x) V(void *, y)
#define ARGS_conv_bwd_data(V, C, M)                                                                \
    V(struct us_tconv_ctx *, ctx) V(const void *, packed) V(const void *, dy) V(void *, dx)
#define ARGS_conv_bwd_weights(V, C, M)                                                             \
    V(struct us_tconv_ctx *, ctx)                                                                  \
    V(const void *, x) V(const void *, dy) V(float *, dw) V(float *, db)
#define ARGS_bn_stats(V, C, M) C(struct us_ew, e) V(const void *, x) V(double *, part)
#define ARGS_bn_finish(V, C, M)                                                                    \
    V(int32_t, c)                                                                                  \
    V(const double *, parts)                                                                       \
    V(int32_t, n_parts)                                                                            \
    V(int64_t, count)                                                                              \
    V(const float *, gamma)                                                                        \
    V(const float *, beta) M(struct us_bn_affine, aff) V(float *, mean) V(float *, var)
#define ARGS_bn_elu_fwd(V, C, M)                                                                   \
    C(struct us_ew, e) V(const void *, x) C(struct us_bn_affine, aff) V(void *, h)
#define ARGS_bn_elu_bwd_stats(V, C, M)                                                             \
    C(struct us_ew, e)                                                                             \
    V(const void *, x) V(const void *, dh) C(struct us_bn_affine, aff) V(double *, part)
#define ARGS_bn_bwd_finish(V, C, M)                                                                \
    V(int32_t, c)                                                                                  \
    V(const double *, parts)                                                                       \
    V(int32_t, n_parts)                                                                            \
    V(int64_t, count)                                                                              \
    V(const float *, gamma)                                                                        \
    C(struct us_bn_affine, aff) M(struct us_bn_grad, g) V(float *, dgamma) V(float *, dbeta)
#define ARGS_bn_elu_bwd(V, C, M)                                                                   \
    C(struct us_ew, e)                                                                             \
    V(const void *, x)                                                                             \
    V(const void *, dh)                                                                            \
    C(struct us_bn_affine, aff) C(struct us_bn_grad, g) V(void *, dx) V(bool, add)
#define ARGS_elu_fwd(V, C, M) C(struct us_ew, e) V(const void *, x) V(void *, y)
#define ARGS_elu_bwd(V, C, M)                                                                      \
    C(struct us_ew, e) V(const void *, y) V(const void *, dy) V(void *, dx)
#define ARGS_dropout2d(V, C, M)                                                                    \
    C(struct us_ew, e)                                                                             \
    V(void *, x) V(float, p) V(const struct us_draw *, draw) V(int32_t, items) V(uint32_t, node)
#define ARGS_glu_fwd(V, C, M)                                                                      \
    C(struct us_ew, e) V(const void *, g) V(const void *, res) V(void *, out)
#define ARGS_glu_bwd(V, C, M)                                                                      \
    C(struct us_ew, e) V(const void *, g) V(const void *, dout) V(void *, dg)
#define ARGS_accumulate(V, C, M) C(struct us_ew, e) V(const void *, src) V(void *, dst) V(bool, add)
#define ARGS_scale(V, C, M)      C(struct us_ew, e) V(void *, x) V(float, factor)
#define ARGS_window(V, C, M)                                                                       \
    V(enum us_dtype, dtype)                                                                        \
    V(int32_t, items)                                                                              \
    V(int32_t, rh)                                                                                 \
    V(int32_t, rw)                                                                                 \
    V(int32_t, c)                                                                                  \
    V(const void *, src)                                                                           \
    C(struct us_window, from) V(void *, dst) C(struct us_window, to) V(bool, add)
#define ARGS_fill_zero(V, C, M) V(void *, dst) V(size_t, bytes)
#define ARGS_convert(V, C, M)                                                                      \
    C(struct us_ew, e) V(const void *, src) V(enum us_dtype, from) V(void *, dst)
#define ARGS_prior_load(V, C, M)                                                                   \
    C(struct us_ew, e) V(int32_t, items) V(const float *, prior) V(void *, p)
#define ARGS_prior_grad(V, C, M)                                                                   \
    C(struct us_ew, e) V(int32_t, items) V(const void *, dp) V(float *, dprior)
#define ARGS_posterior_fwd(V, C, M)                                                                \
    C(struct us_posterior, d)                                                                      \
    V(int32_t, items)                                                                              \
    V(const void *, q)                                                                             \
    V(const void *, p) V(const struct us_draw *, draw) V(void *, z) V(double *, kl)
#define ARGS_kl_coef(V, C, M)                                                                      \
    C(struct us_kl_share, d)                                                                       \
    V(int32_t, items) V(const double *, kl) V(const float *, kl_weight) V(float *, coef)
#define ARGS_posterior_bwd(V, C, M)                                                                \
    C(struct us_posterior, d)                                                                      \
    V(int32_t, items)                                                                              \
    V(const void *, q)                                                                             \
    V(const void *, p)                                                                             \
    V(const struct us_draw *, draw)                                                                \
    V(const void *, dz) V(const float *, coef) V(void *, dq) V(void *, dp)
#define ARGS_likelihood(V, C, M)                                                                   \
    C(struct us_likelihood, d)                                                                     \
    V(int32_t, items)                                                                              \
    V(const float *, head)                                                                         \
    V(const float *, target)                                                                       \
    V(float, grad_weight) V(double *, rec) V(double *, se) V(float *, dhead)
#define ARGS_reduce_lanes(V, C, M)                                                                 \
    V(const float *, lanes)                                                                        \
    V(int64_t, stride) V(int32_t, n_lanes) V(int64_t, n) V(float *, dst) V(double *, sq)
#define ARGS_adamax(V, C, M)                                                                       \
    C(struct us_adamax, a)                                                                         \
    V(int64_t, n) V(const float *, g) V(float *, m) V(float *, u) V(float *, p)

#define CALLS(OP)                                                                                  \
    OP(conv_pack)                                                                                  \
    OP(conv_fwd)                                                                                   \
    OP(conv_bwd_data)                                                                              \
    OP(conv_bwd_weights)                                                                           \
    OP(bn_stats)                                                                                   \
    OP(bn_finish)                                                                                  \
    OP(bn_elu_fwd)                                                                                 \
    OP(bn_elu_bwd_stats)                                                                           \
    OP(bn_bwd_finish)                                                                              \
    OP(bn_elu_bwd)                                                                                 \
    OP(elu_fwd)                                                                                    \
    OP(elu_bwd)                                                                                    \
    OP(dropout2d)                                                                                  \
    OP(glu_fwd)                                                                                    \
    OP(glu_bwd)                                                                                    \
    OP(accumulate)                                                                                 \
    OP(scale)                                                                                      \
    OP(window)                                                                                     \
    OP(fill_zero)                                                                                  \
    OP(convert)                                                                                    \
    OP(prior_load)                                                                                 \
    OP(prior_grad)                                                                                 \
    OP(posterior_fwd) OP(kl_coef) OP(posterior_bwd) OP(likelihood) OP(reduce_lanes) OP(adamax)

/* ---- a piece of work: a call with its arguments -------------------------------------------- */

#define FIELD(type, name) type name;
#define OP(name)                                                                                   \
    struct call_##name {                                                                           \
        ARGS_##name(FIELD, FIELD, FIELD)                                                           \
    };
CALLS(OP)
#undef OP

struct work {
    enum us_status (*make)(const struct work *w);
    union {
#define OP(name) struct call_##name name;
        CALLS(OP)
#undef OP
    } u;
};

struct list {
    struct work *item;
    size_t n, cap;
};

struct us_graph {
    struct list list;
};

static struct {
    struct us_backend *be;
    const struct us_backend_ops *ref;
    struct us_backend_ops ops;
    struct us_train_ops train;
    struct list queue;
    struct us_graph *recording;
    int n_graphs, n_replays, n_live, fail_in;
    enum us_status fail_status;
} it;

static void push(struct list *l, const struct work *w)
{
    if (l->n == l->cap) {
        l->cap = l->cap > 0 ? 2 * l->cap : 64;
        l->item = reallocarray(l->item, l->cap, sizeof(*l->item));
        assert_non_null(l->item);
    }
    l->item[l->n++] = *w;
}

static enum us_status take(const struct work *w)
{
    push(it.recording != NULL ? &it.recording->list : &it.queue, w);
    return US_OK;
}

#define PARAM_V(type, name) , type name
#define PARAM_C(type, name) , const type *name
#define PARAM_M(type, name) , type *name
#define SET_V(type, name)   .name = name,
#define SET_C(type, name)   .name = *name,
#define ARG_V(type, name)   , k.name
#define ARG_C(type, name)   , &k.name

/* The call as it will be made on ref, and the entry of the table that queues it. */
#define OP(name)                                                                                   \
    static enum us_status make_##name(const struct work *w)                                        \
    {                                                                                              \
        struct call_##name k = w->u.name;                                                          \
        return it.ref->train->name(it.be ARGS_##name(ARG_V, ARG_C, ARG_C));                        \
    }                                                                                              \
    static enum us_status queue_##name(                                                            \
        struct us_backend *be ARGS_##name(PARAM_V, PARAM_C, PARAM_M))                              \
    {                                                                                              \
        const struct work work_ = {                                                                \
            .make = make_##name,                                                                   \
            .u.name = {ARGS_##name(SET_V, SET_C, SET_C)},                                          \
        };                                                                                         \
        return take(&work_);                                                                       \
    }
CALLS(OP)
#undef OP

/* After a failure the rest of the queue is lost, as on a device. */
static enum us_status drain(void)
{
    enum us_status status = US_OK;
    assert_null(it.recording);
    for (size_t i = 0; i < it.queue.n && status == US_OK; i++) {
        status = it.queue.item[i].make(&it.queue.item[i]);
        if (it.fail_in >= 0 && it.fail_in-- == 0)
            status = it.fail_status;
    }
    it.queue.n = 0;
    return status;
}

/* ---- the table ----------------------------------------------------------------------------- */

static enum us_status recorder_alloc(struct us_backend *be, size_t bytes, void **ret)
{
    assert_null(it.recording);
    US_TRY(it.ref->buf_alloc(be, bytes, ret));
    memset(*ret, 0xff, bytes); /* NaN: nobody gets zeros as a present */
    it.n_live++;
    return US_OK;
}

static void recorder_release(struct us_backend *be, void *p)
{
    assert_int_equal(it.queue.n, 0); /* work may still need it */
    it.n_live--;
    it.ref->buf_free(be, p);
}

static enum us_status recorder_copy_in(struct us_backend *be, void *dst, const void *src,
                                       size_t bytes)
{
    assert_null(it.recording);
    US_TRY(drain());
    return it.ref->copy_in(be, dst, src, bytes);
}

static enum us_status recorder_copy_out(struct us_backend *be, void *dst, const void *src,
                                        size_t bytes)
{
    US_TRY(drain());
    return it.ref->copy_out(be, dst, src, bytes);
}

static enum us_status recorder_sync(struct us_backend *be)
{
    return drain();
}

static enum us_status recorder_begin(struct us_backend *be)
{
    assert_null(it.recording);
    it.recording = calloc(1, sizeof(*it.recording));
    assert_non_null(it.recording);
    return US_OK;
}

static enum us_status recorder_end(struct us_backend *be, struct us_graph **ret)
{
    assert_non_null(it.recording);
    *ret = it.recording;
    it.recording = NULL;
    it.n_graphs++;
    it.n_live++;
    return US_OK;
}

static enum us_status recorder_run(struct us_backend *be, struct us_graph *g)
{
    it.n_replays++;
    for (size_t i = 0; i < g->list.n; i++)
        push(&it.queue, &g->list.item[i]);
    return US_OK;
}

static void recorder_graph_free(struct us_backend *be, struct us_graph *g)
{
    assert_int_equal(it.queue.n, 0);
    it.n_live--;
    free(g->list.item);
    free(g);
}

static void recorder_free(struct us_backend *be)
{
    assert_int_equal(it.n_live, 0);
    assert_int_equal(it.queue.n, 0);
    free(it.queue.item);
    it.ref->free(be);
    it.be = NULL;
}

enum us_status us_recorder_open(struct us_backend **ret, struct us_err *err)
{
    assert_null(it.be);
    memset(&it, 0, sizeof(it));
    it.fail_in = -1;
    US_TRY(us_ref_open(&it.be, err));
    it.ref = us_backend_ops(it.be);
    it.ops = *it.ref;
    it.train = *it.ref->train;
    it.train.batched = true;
#define OP(name) it.train.name = queue_##name;
    CALLS(OP)
#undef OP
    it.ops.name = "recorder";
    it.ops.train = &it.train;
    it.ops.free = recorder_free;
    it.ops.buf_alloc = recorder_alloc;
    it.ops.buf_free = recorder_release;
    it.ops.host_alloc = recorder_alloc;
    it.ops.host_free = recorder_release;
    it.ops.copy_in = recorder_copy_in;
    it.ops.copy_out = recorder_copy_out;
    it.ops.sync = recorder_sync;
    it.ops.graph_begin = recorder_begin;
    it.ops.graph_end = recorder_end;
    it.ops.graph_run = recorder_run;
    it.ops.graph_free = recorder_graph_free;
    ((struct us_backend_base *)(void *)it.be)->ops = &it.ops;
    *ret = it.be;
    return US_OK;
}

int us_recorder_graphs(void)
{
    return it.n_graphs;
}

int us_recorder_replays(void)
{
    return it.n_replays;
}

void us_recorder_fail_at(int n, enum us_status status)
{
    it.fail_in = n;
    it.fail_status = status;
}
