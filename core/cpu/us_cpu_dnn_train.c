/*
 * oneDNN 2.x behind us_cpu_dnn_train.h. A convolution is a handful of *steps*, each one primitive
 * with its operands: three directions, two changes of layout before them (forward and
 * backward-data want different ones) and one behind: the weights' gradient comes out in a layout
 * of oneDNN's choice and is added to the state dict's by a reorder with a sum, 12 us for
 * 64 x 64 x 3 x 3.
 *
 * The steps are shared by all threads; a call holds one thread's memory objects for them.
 */
#include "us_cpu_dnn_train.h"

#include <stdlib.h>
#include <string.h>

#include "us_cpu_dnn_int.h"

#define ALIGN        64
#define MAX_OPERANDS 4

enum step_id { FORWARD, DATA, WEIGHTS, PACK_FORWARD, PACK_DATA, UNPACK, N_STEPS };

/* Operands in the order in which run() gets their addresses; the scratchpad comes after them. */
struct step {
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t prim; /* NULL: not wanted */
    int n;
    int arg[MAX_OPERANDS];
    dnnl_memory_desc_t md[MAX_OPERANDS];
};

struct usi_dnn_tconv {
    struct usi_dnn *dnn;
    struct usi_dnn_tconv_spec spec;
    struct step step[N_STEPS];
    size_t data_weights_at, packed_bytes; /* in packed, behind forward's weights */
    size_t gradient_at, scratch_bytes;    /* in scratch, behind the scratchpad */
};

struct usi_dnn_tcall {
    const struct usi_dnn_tconv *conv;
    dnnl_stream_t stream;
    dnnl_exec_arg_t arg[N_STEPS][MAX_OPERANDS + 1];
    char *scratch;
};

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static const dnnl_memory_desc_t *query(const struct step *s, dnnl_query_t what)
{
    return dnnl_primitive_desc_query_md(s->pd, what, 0);
}

/* ---- primitives ---- */

/* What the three directions are described by. */
struct descs {
    dnnl_memory_desc_t src, dst, diff_src, diff_dst, weights, diff_weights, plain, bias;
    dnnl_dims_t stride, before, after;
    dnnl_primitive_attr_t attr;
    dnnl_primitive_attr_t add; /* attr, and the result is added to what is there */
};

static dnnl_status_t describe_maps(const struct usi_dnn_tconv_spec *p, struct descs *d)
{
    dnnl_status_t s = usi_dnn_nhwc(&d->src, p->n, p->ic, p->ih, p->iw, p->type);
    if (s == dnnl_success)
        s = usi_dnn_nhwc(&d->dst, p->n, p->oc, p->oh, p->ow, p->dst);
    if (s == dnnl_success)
        s = usi_dnn_nhwc(&d->diff_src, p->n, p->ic, p->ih, p->iw, p->diff_src);
    if (s == dnnl_success)
        s = usi_dnn_nhwc(&d->diff_dst, p->n, p->oc, p->oh, p->ow, p->type);
    return s;
}

static dnnl_status_t describe_weights(const struct usi_dnn_tconv_spec *p, struct descs *d)
{
    dnnl_dims_t dims = {p->oc, p->ic, p->k, p->k}, b_dims = {p->oc};
    dnnl_status_t s = dnnl_memory_desc_init_by_tag(&d->weights, 4, dims, usi_dnn_dtype(p->type),
                                                   dnnl_format_tag_any);
    if (s == dnnl_success)
        s = dnnl_memory_desc_init_by_tag(&d->diff_weights, 4, dims, dnnl_f32, dnnl_format_tag_any);
    if (s == dnnl_success)
        s = dnnl_memory_desc_init_by_tag(&d->plain, 4, dims, dnnl_f32, dnnl_oihw);
    if (s == dnnl_success)
        s = dnnl_memory_desc_init_by_tag(&d->bias, 1, b_dims, dnnl_f32, dnnl_x);
    return s;
}

static dnnl_status_t make_attrs(struct descs *d)
{
    dnnl_post_ops_t sum = NULL;
    dnnl_status_t s = dnnl_primitive_attr_create(&d->attr);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_scratchpad_mode(d->attr, dnnl_scratchpad_mode_user);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_clone(&d->add, d->attr);
    if (s == dnnl_success)
        s = dnnl_post_ops_create(&sum);
    if (s == dnnl_success)
        s = dnnl_post_ops_append_sum(sum, 1.0f);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_post_ops(d->add, sum);
    dnnl_post_ops_destroy(sum);
    return s;
}

static void pad(const struct usi_dnn_tconv_spec *p, struct descs *d)
{
    d->stride[0] = d->stride[1] = p->stride;
    d->before[0] = d->before[1] = p->pad;
    d->after[0] = (p->oh - 1) * p->stride + p->k - p->ih - p->pad;
    d->after[1] = (p->ow - 1) * p->stride + p->k - p->iw - p->pad;
}

static void operand(struct step *s, int arg, const dnnl_memory_desc_t *md)
{
    s->arg[s->n] = arg;
    s->md[s->n++] = *md;
}

static dnnl_status_t make_forward(struct usi_dnn_tconv *c, const struct descs *d)
{
    struct step *f = &c->step[FORWARD];
    const dnnl_memory_desc_t *bias = c->spec.bias ? &d->bias : NULL;
    dnnl_convolution_desc_t cd;
    dnnl_status_t s = dnnl_convolution_forward_desc_init(
        &cd, dnnl_forward_training, dnnl_convolution_direct, &d->src, &d->weights, bias, &d->dst,
        d->stride, d->before, d->after);
    if (s == dnnl_success)
        s = dnnl_primitive_desc_create(&f->pd, &cd, d->attr, c->dnn->engine, NULL);
    if (s == dnnl_success)
        s = dnnl_primitive_create(&f->prim, f->pd);
    if (s != dnnl_success)
        return s;
    operand(f, DNNL_ARG_SRC, &d->src);
    operand(f, DNNL_ARG_DST, &d->dst);
    operand(f, DNNL_ARG_WEIGHTS, query(f, dnnl_query_weights_md));
    if (bias != NULL)
        operand(f, DNNL_ARG_BIAS, bias);
    return s;
}

static dnnl_status_t make_data(struct usi_dnn_tconv *c, const struct descs *d,
                               const_dnnl_primitive_desc_t hint)
{
    struct step *b = &c->step[DATA];
    dnnl_convolution_desc_t cd;
    dnnl_status_t s = dnnl_convolution_backward_data_desc_init(
        &cd, dnnl_convolution_direct, &d->diff_src, &d->weights, &d->diff_dst, d->stride, d->before,
        d->after);
    if (s == dnnl_success)
        s = dnnl_primitive_desc_create(&b->pd, &cd, d->attr, c->dnn->engine, hint);
    if (s == dnnl_success)
        s = dnnl_primitive_create(&b->prim, b->pd);
    if (s != dnnl_success)
        return s;
    operand(b, DNNL_ARG_DIFF_DST, &d->diff_dst);
    operand(b, DNNL_ARG_DIFF_SRC, &d->diff_src);
    operand(b, DNNL_ARG_WEIGHTS, query(b, dnnl_query_weights_md));
    return s;
}

static dnnl_status_t make_weights(struct usi_dnn_tconv *c, const struct descs *d,
                                  const_dnnl_primitive_desc_t hint)
{
    struct step *w = &c->step[WEIGHTS];
    const dnnl_memory_desc_t *bias = c->spec.bias ? &d->bias : NULL;
    dnnl_convolution_desc_t cd;
    dnnl_status_t s = dnnl_convolution_backward_weights_desc_init(
        &cd, dnnl_convolution_direct, &d->src, &d->diff_weights, bias, &d->diff_dst, d->stride,
        d->before, d->after);
    if (s == dnnl_success)
        s = dnnl_primitive_desc_create(&w->pd, &cd, d->attr, c->dnn->engine, hint);
    if (s == dnnl_success)
        s = dnnl_primitive_create(&w->prim, w->pd);
    if (s != dnnl_success)
        return s;
    operand(w, DNNL_ARG_SRC, &d->src);
    operand(w, DNNL_ARG_DIFF_DST, &d->diff_dst);
    operand(w, DNNL_ARG_DIFF_WEIGHTS, query(w, dnnl_query_diff_weights_md));
    if (bias != NULL)
        operand(w, DNNL_ARG_DIFF_BIAS, bias);
    return s;
}

/* Backward wants to be told of a forward primitive whose maps have its own types. */
static dnnl_status_t make_backward(struct usi_dnn_tconv *c, const struct descs *d)
{
    dnnl_primitive_desc_t hint = NULL;
    dnnl_convolution_desc_t cd;
    dnnl_status_t s = dnnl_convolution_forward_desc_init(
        &cd, dnnl_forward_training, dnnl_convolution_direct, &d->src, &d->weights,
        c->spec.bias ? &d->bias : NULL, &d->diff_dst, d->stride, d->before, d->after);
    if (s == dnnl_success)
        s = dnnl_primitive_desc_create(&hint, &cd, d->attr, c->dnn->engine, NULL);
    if (s == dnnl_success)
        s = make_data(c, d, hint);
    if (s == dnnl_success)
        s = make_weights(c, d, hint);
    dnnl_primitive_desc_destroy(hint);
    return s;
}

static dnnl_status_t make_reorder(struct usi_dnn_tconv *c, enum step_id id,
                                  const dnnl_memory_desc_t *from, const dnnl_memory_desc_t *to,
                                  const_dnnl_primitive_attr_t attr)
{
    struct step *r = &c->step[id];
    dnnl_engine_t e = c->dnn->engine;
    dnnl_status_t s = dnnl_reorder_primitive_desc_create(&r->pd, from, e, to, e, attr);
    if (s == dnnl_success)
        s = dnnl_primitive_create(&r->prim, r->pd);
    if (s != dnnl_success)
        return s;
    operand(r, DNNL_ARG_FROM, from);
    operand(r, DNNL_ARG_TO, to);
    return s;
}

static dnnl_status_t make_reorders(struct usi_dnn_tconv *c, const struct descs *d)
{
    dnnl_status_t s = dnnl_success;
    if (c->spec.forward)
        s = make_reorder(c, PACK_FORWARD, &d->plain,
                         query(&c->step[FORWARD], dnnl_query_weights_md), d->attr);
    if (s == dnnl_success && c->spec.backward)
        s = make_reorder(c, PACK_DATA, &d->plain, query(&c->step[DATA], dnnl_query_weights_md),
                         d->attr);
    if (s == dnnl_success && c->spec.backward)
        s = make_reorder(c, UNPACK, query(&c->step[WEIGHTS], dnnl_query_diff_weights_md), &d->plain,
                         d->add);
    return s;
}

static dnnl_status_t create(struct usi_dnn_tconv *c)
{
    struct descs d;
    memset(&d, 0, sizeof(d));
    pad(&c->spec, &d);
    dnnl_status_t s = describe_maps(&c->spec, &d);
    if (s == dnnl_success)
        s = describe_weights(&c->spec, &d);
    if (s == dnnl_success)
        s = make_attrs(&d);
    if (s == dnnl_success && c->spec.forward)
        s = make_forward(c, &d);
    if (s == dnnl_success && c->spec.backward)
        s = make_backward(c, &d);
    if (s == dnnl_success)
        s = make_reorders(c, &d);
    dnnl_primitive_attr_destroy(d.attr);
    dnnl_primitive_attr_destroy(d.add);
    return s;
}

static size_t md_bytes(const struct usi_dnn_tconv *c, enum step_id id, dnnl_query_t what)
{
    return c->step[id].pd == NULL ? 0 : dnnl_memory_desc_get_size(query(&c->step[id], what));
}

static void lay_out(struct usi_dnn_tconv *c)
{
    c->data_weights_at = aligned(md_bytes(c, FORWARD, dnnl_query_weights_md));
    c->packed_bytes = c->data_weights_at + aligned(md_bytes(c, DATA, dnnl_query_weights_md));
    for (int i = 0; i < N_STEPS; i++) {
        size_t pad_bytes = md_bytes(c, (enum step_id)i, dnnl_query_scratchpad_md);
        c->gradient_at = pad_bytes > c->gradient_at ? pad_bytes : c->gradient_at;
    }
    c->gradient_at = aligned(c->gradient_at);
    c->scratch_bytes = c->gradient_at + aligned(md_bytes(c, WEIGHTS, dnnl_query_diff_weights_md));
}

enum us_status usi_dnn_tconv_new(struct usi_dnn *d, const struct usi_dnn_tconv_spec *spec,
                                 struct usi_dnn_tconv **ret, struct us_err *err)
{
    struct usi_dnn_tconv *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a convolution");
    c->dnn = d;
    c->spec = *spec;
    int threads = usi_dnn_confine();
    dnnl_status_t s = create(c);
    usi_dnn_release(threads);
    if (s != dnnl_success) {
        usi_dnn_tconv_free(c);
        return us_fail(err, usi_dnn_status(s),
                       "oneDNN cannot train a %dx%d stride %d convolution %dx%dx%d -> %dx%dx%d "
                       "(%s, padding %d): %s",
                       spec->k, spec->k, spec->stride, spec->ih, spec->iw, spec->ic, spec->oh,
                       spec->ow, spec->oc, spec->type == US_F32 ? "f32" : "bf16", spec->pad,
                       usi_dnn_word(s));
    }
    lay_out(c);
    *ret = c;
    return US_OK;
}

void usi_dnn_tconv_free(struct usi_dnn_tconv *c)
{
    if (c == NULL)
        return;
    for (int i = 0; i < N_STEPS; i++) {
        dnnl_primitive_destroy(c->step[i].prim);
        dnnl_primitive_desc_destroy(c->step[i].pd);
    }
    free(c);
}

size_t usi_dnn_tconv_packed_bytes(const struct usi_dnn_tconv *c)
{
    return c->packed_bytes;
}

size_t usi_dnn_tconv_scratch_bytes(const struct usi_dnn_tconv *c)
{
    return c->scratch_bytes;
}

/* ---- calls ---- */

static dnnl_status_t bind_step(struct usi_dnn_tcall *call, enum step_id id)
{
    const struct step *p = &call->conv->step[id];
    dnnl_engine_t engine = call->conv->dnn->engine;
    dnnl_exec_arg_t *a = call->arg[id];
    dnnl_status_t s = dnnl_success;
    if (p->prim == NULL)
        return s;
    for (int i = 0; i < p->n && s == dnnl_success; i++) {
        a[i].arg = p->arg[i];
        s = dnnl_memory_create(&a[i].memory, &p->md[i], engine, NULL);
    }
    if (s == dnnl_success) {
        a[p->n].arg = DNNL_ARG_SCRATCHPAD;
        s = dnnl_memory_create(&a[p->n].memory, query(p, dnnl_query_scratchpad_md), engine,
                               call->scratch);
    }
    return s;
}

enum us_status usi_dnn_tcall_new(const struct usi_dnn_tconv *c, void *scratch,
                                 struct usi_dnn_tcall **ret)
{
    struct usi_dnn_tcall *call = calloc(1, sizeof(*call));
    if (call == NULL)
        return US_E_NOMEM;
    call->conv = c;
    call->scratch = scratch;
    dnnl_status_t s = dnnl_stream_create(&call->stream, c->dnn->engine, dnnl_stream_in_order);
    for (int i = 0; i < N_STEPS && s == dnnl_success; i++)
        s = bind_step(call, (enum step_id)i);
    if (s != dnnl_success) {
        usi_dnn_tcall_free(call);
        return usi_dnn_status(s);
    }
    *ret = call;
    return US_OK;
}

void usi_dnn_tcall_free(struct usi_dnn_tcall *call)
{
    if (call == NULL)
        return;
    for (int i = 0; i < N_STEPS; i++)
        for (int k = 0; k < MAX_OPERANDS + 1; k++)
            dnnl_memory_destroy(call->arg[i][k].memory);
    dnnl_stream_destroy(call->stream);
    free(call);
}

/* address: of the step's operands, in their order. */
static enum us_status run(struct usi_dnn_tcall *call, enum step_id id,
                          const void *const address[MAX_OPERANDS])
{
    const struct step *p = &call->conv->step[id];
    dnnl_exec_arg_t *a = call->arg[id];
    dnnl_status_t s = dnnl_success;
    if (p->prim == NULL)
        return US_E_UNSUPPORTED;
    for (int i = 0; i < p->n && s == dnnl_success; i++) {
        union {
            const void *in;
            void *out;
        } handle = {.in = address[i]}; /* oneDNN takes sources as void * too */
        s = dnnl_memory_set_data_handle(a[i].memory, handle.out);
    }
    if (s == dnnl_success)
        s = dnnl_primitive_execute(p->prim, call->stream, p->n + 1, a);
    return usi_dnn_status(s);
}

enum us_status usi_dnn_tcall_pack(struct usi_dnn_tcall *call, const float *w, void *packed)
{
    const struct usi_dnn_tconv *c = call->conv;
    const void *const forward[MAX_OPERANDS] = {w, packed};
    const void *const data[MAX_OPERANDS] = {w, (char *)packed + c->data_weights_at};
    if (c->spec.forward)
        US_TRY(run(call, PACK_FORWARD, forward));
    return c->spec.backward ? run(call, PACK_DATA, data) : US_OK;
}

enum us_status usi_dnn_tcall_forward(struct usi_dnn_tcall *call, const void *packed,
                                     const float *bias, const void *src, void *dst)
{
    const void *const address[MAX_OPERANDS] = {src, dst, packed, bias};
    return run(call, FORWARD, address);
}

enum us_status usi_dnn_tcall_data(struct usi_dnn_tcall *call, const void *packed,
                                  const void *diff_dst, void *diff_src)
{
    const char *weights = (const char *)packed + call->conv->data_weights_at;
    const void *const address[MAX_OPERANDS] = {diff_dst, diff_src, weights};
    return run(call, DATA, address);
}

enum us_status usi_dnn_tcall_weights(struct usi_dnn_tcall *call, const void *src,
                                     const void *diff_dst, float *dw, float *db)
{
    char *gradient = call->scratch + call->conv->gradient_at;
    const void *const address[MAX_OPERANDS] = {src, diff_dst, gradient, db};
    const void *const sum[MAX_OPERANDS] = {gradient, dw};
    US_TRY(run(call, WEIGHTS, address));
    return run(call, UNPACK, sum);
}
