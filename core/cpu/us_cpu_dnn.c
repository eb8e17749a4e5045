/*
 * oneDNN 2.x behind us_cpu_dnn.h. Policy (performance.md 2 and 3, measured): NHWC activations,
 * weights in the layout the primitive asks for, scratchpad given by the caller (a primitive is
 * shared between threads, and this build's own scratchpad is not), one OpenMP thread. Primitives
 * of equal shape share their machine code through oneDNN's own cache.
 */
#include "us_cpu_dnn_int.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

struct usi_dnn_conv {
    struct usi_dnn *dnn;
    struct usi_dnn_conv_spec spec;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t prim;
    dnnl_memory_desc_t src, dst, bias;
    const dnnl_memory_desc_t *weights, *scratch; /* owned by pd */
};

enum { ARG_SRC, ARG_DST, ARG_WEIGHTS, ARG_SCRATCH, ARG_BIAS, ARG_COUNT };

struct usi_dnn_call {
    dnnl_primitive_t prim; /* the conv's */
    dnnl_stream_t stream;
    dnnl_exec_arg_t arg[ARG_COUNT];
    int n_args;
};

const char *usi_dnn_word(dnnl_status_t s)
{
    static const char *const word[] = {"success",       "out of memory", "invalid arguments",
                                       "unimplemented", "iterator ends", "runtime error",
                                       "not required"};
    return (unsigned)s < US_COUNT(word) ? word[s] : "unknown status";
}

enum us_status usi_dnn_status(dnnl_status_t s)
{
    if (s == dnnl_success)
        return US_OK;
    return s == dnnl_out_of_memory ? US_E_NOMEM : US_E_BACKEND;
}

enum us_status usi_dnn_open(struct usi_dnn **ret, struct us_err *err)
{
    struct usi_dnn *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the oneDNN engine");
    dnnl_status_t s = dnnl_engine_create(&d->engine, dnnl_cpu, 0);
    if (s != dnnl_success) {
        free(d);
        return us_fail(err, US_E_BACKEND, "oneDNN has no CPU engine: %s", usi_dnn_word(s));
    }
    d->isa = dnnl_get_effective_cpu_isa();
    *ret = d;
    return US_OK;
}

void usi_dnn_close(struct usi_dnn *d)
{
    if (d == NULL)
        return;
    dnnl_engine_destroy(d->engine);
    free(d);
}

bool usi_dnn_has_amx(const struct usi_dnn *d)
{
    return d->isa == dnnl_cpu_isa_avx512_core_amx;
}

bool usi_dnn_has_bf16(const struct usi_dnn *d)
{
    return d->isa == dnnl_cpu_isa_avx512_core_bf16 || usi_dnn_has_amx(d);
}

void usi_dnn_thread_init(void)
{
    omp_set_num_threads(1);
}

int usi_dnn_confine(void)
{
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    return threads;
}

void usi_dnn_release(int threads)
{
    omp_set_num_threads(threads);
}

/* ---- primitives ---- */

dnnl_status_t usi_dnn_nhwc(dnnl_memory_desc_t *md, int32_t n, int32_t c, int32_t h, int32_t w,
                           enum us_dtype t)
{
    dnnl_dims_t dims = {n, c, h, w};
    return dnnl_memory_desc_init_by_tag(md, 4, dims, usi_dnn_dtype(t), dnnl_nhwc);
}

/* Fills the memory descriptors and the convolution's. Weights: any layout, oneDNN chooses. */
static dnnl_status_t describe(struct usi_dnn_conv *c, dnnl_convolution_desc_t *cd)
{
    const struct usi_dnn_conv_spec *p = &c->spec;
    dnnl_dims_t w_dims = {p->oc, p->ic, p->kh, p->kw};
    dnnl_dims_t b_dims = {p->oc};
    dnnl_dims_t stride = {p->stride, p->stride};
    dnnl_dims_t before = {p->pad_top, p->pad_left};
    dnnl_dims_t after = {p->pad_bottom, p->pad_right};
    dnnl_memory_desc_t w;
    dnnl_status_t s = usi_dnn_nhwc(&c->src, 1, p->ic, p->ih, p->iw, p->src);
    if (s == dnnl_success)
        s = usi_dnn_nhwc(&c->dst, 1, p->oc, p->oh, p->ow, p->dst);
    if (s == dnnl_success)
        s = dnnl_memory_desc_init_by_tag(&w, 4, w_dims, usi_dnn_dtype(p->src), dnnl_format_tag_any);
    if (s == dnnl_success)
        s = dnnl_memory_desc_init_by_tag(&c->bias, 1, b_dims, dnnl_f32, dnnl_x);
    if (s == dnnl_success)
        s = dnnl_convolution_forward_desc_init(cd, dnnl_forward_inference, dnnl_convolution_direct,
                                               &c->src, &w, p->bias ? &c->bias : NULL, &c->dst,
                                               stride, before, after);
    return s;
}

/* Scratchpad from the caller; ELU after the sum where wanted. */
static dnnl_status_t make_attr(const struct usi_dnn_conv_spec *p, dnnl_primitive_attr_t *ret)
{
    dnnl_post_ops_t post = NULL;
    dnnl_status_t s = dnnl_primitive_attr_create(ret);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_scratchpad_mode(*ret, dnnl_scratchpad_mode_user);
    if (s == dnnl_success && p->elu) {
        s = dnnl_post_ops_create(&post);
        if (s == dnnl_success)
            s = dnnl_post_ops_append_eltwise(post, 1.0f, dnnl_eltwise_elu, 1.0f, 0.0f);
        if (s == dnnl_success)
            s = dnnl_primitive_attr_set_post_ops(*ret, post);
        dnnl_post_ops_destroy(post);
    }
    return s;
}

/* What it has made when it fails, usi_dnn_conv_free takes away. */
static dnnl_status_t create(struct usi_dnn_conv *c)
{
    dnnl_convolution_desc_t cd;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t s = describe(c, &cd);
    if (s == dnnl_success)
        s = make_attr(&c->spec, &attr);
    if (s == dnnl_success)
        s = dnnl_primitive_desc_create(&c->pd, &cd, attr, c->dnn->engine, NULL);
    if (s == dnnl_success)
        s = dnnl_primitive_create(&c->prim, c->pd);
    if (s == dnnl_success) {
        c->weights = dnnl_primitive_desc_query_md(c->pd, dnnl_query_weights_md, 0);
        c->scratch = dnnl_primitive_desc_query_md(c->pd, dnnl_query_scratchpad_md, 0);
    }
    dnnl_primitive_attr_destroy(attr);
    return s;
}

enum us_status usi_dnn_conv_new(struct usi_dnn *d, const struct usi_dnn_conv_spec *spec,
                                struct usi_dnn_conv **ret, struct us_err *err)
{
    struct usi_dnn_conv *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a convolution");
    c->dnn = d;
    c->spec = *spec;
    int threads = usi_dnn_confine();
    dnnl_status_t s = create(c);
    usi_dnn_release(threads);
    if (s != dnnl_success) {
        usi_dnn_conv_free(c);
        return us_fail(err, usi_dnn_status(s),
                       "oneDNN refuses a %dx%d stride %d convolution %dx%dx%d -> %dx%dx%d "
                       "(%s -> %s, padding %d,%d,%d,%d): %s",
                       spec->kh, spec->kw, spec->stride, spec->ih, spec->iw, spec->ic, spec->oh,
                       spec->ow, spec->oc, spec->src == US_F32 ? "f32" : "bf16",
                       spec->dst == US_F32 ? "f32" : "bf16", spec->pad_top, spec->pad_left,
                       spec->pad_bottom, spec->pad_right, usi_dnn_word(s));
    }
    *ret = c;
    return US_OK;
}

void usi_dnn_conv_free(struct usi_dnn_conv *c)
{
    if (c == NULL)
        return;
    dnnl_primitive_destroy(c->prim);
    dnnl_primitive_desc_destroy(c->pd);
    free(c);
}

const struct usi_dnn_conv_spec *usi_dnn_conv_spec(const struct usi_dnn_conv *c)
{
    return &c->spec;
}

size_t usi_dnn_conv_weight_bytes(const struct usi_dnn_conv *c)
{
    return dnnl_memory_desc_get_size(c->weights);
}

size_t usi_dnn_conv_scratch_bytes(const struct usi_dnn_conv *c)
{
    return dnnl_memory_desc_get_size(c->scratch);
}

bool usi_dnn_conv_same_weights(const struct usi_dnn_conv *a, const struct usi_dnn_conv *b)
{
    return dnnl_memory_desc_equal(a->weights, b->weights) != 0;
}

const char *usi_dnn_conv_impl(const struct usi_dnn_conv *c)
{
    const char *name = NULL;
    if (dnnl_primitive_desc_query(c->pd, dnnl_query_impl_info_str, 0, &name) != dnnl_success)
        return "?";
    return name;
}

/* ---- weights ---- */

static dnnl_status_t reorder(dnnl_engine_t engine, const dnnl_memory_desc_t *from,
                             dnnl_memory_t src, const dnnl_memory_desc_t *to, dnnl_memory_t dst)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t prim = NULL;
    dnnl_stream_t stream = NULL;
    dnnl_exec_arg_t arg[] = {{DNNL_ARG_FROM, src}, {DNNL_ARG_TO, dst}};
    dnnl_status_t s = dnnl_reorder_primitive_desc_create(&pd, from, engine, to, engine, NULL);
    if (s == dnnl_success)
        s = dnnl_primitive_create(&prim, pd);
    if (s == dnnl_success)
        s = dnnl_stream_create(&stream, engine, dnnl_stream_in_order);
    if (s == dnnl_success)
        s = dnnl_primitive_execute(prim, stream, (int)US_COUNT(arg), arg);
    if (s == dnnl_success)
        s = dnnl_stream_wait(stream);
    dnnl_stream_destroy(stream);
    dnnl_primitive_destroy(prim);
    dnnl_primitive_desc_destroy(pd);
    return s;
}

enum us_status usi_dnn_conv_pack(const struct usi_dnn_conv *c, const float *w, void *packed)
{
    const struct usi_dnn_conv_spec *p = &c->spec;
    dnnl_engine_t engine = c->dnn->engine;
    dnnl_dims_t dims = {p->oc, p->ic, p->kh, p->kw};
    dnnl_memory_desc_t plain;
    dnnl_memory_t src = NULL, dst = NULL;
    union {
        const float *in;
        void *out;
    } handle = {.in = w}; /* oneDNN takes a source as void * and only reads it */
    int threads = usi_dnn_confine();
    dnnl_status_t s = dnnl_memory_desc_init_by_tag(&plain, 4, dims, dnnl_f32, dnnl_oihw);
    if (s == dnnl_success)
        s = dnnl_memory_create(&src, &plain, engine, handle.out);
    if (s == dnnl_success)
        s = dnnl_memory_create(&dst, c->weights, engine, packed);
    if (s == dnnl_success)
        s = reorder(engine, &plain, src, c->weights, dst);
    dnnl_memory_destroy(dst);
    dnnl_memory_destroy(src);
    usi_dnn_release(threads);
    return usi_dnn_status(s);
}

/* ---- calls ---- */

static dnnl_status_t add_arg(struct usi_dnn_call *call, dnnl_engine_t engine, int index,
                             const dnnl_memory_desc_t *md, const void *data)
{
    union {
        const void *in;
        void *out;
    } handle = {.in = data};
    dnnl_exec_arg_t *a = &call->arg[call->n_args++];
    a->arg = index;
    return dnnl_memory_create(&a->memory, md, engine, handle.out);
}

enum us_status usi_dnn_call_new(const struct usi_dnn_conv *c, const void *packed, const float *bias,
                                void *scratch, struct usi_dnn_call **ret)
{
    dnnl_engine_t engine = c->dnn->engine;
    struct usi_dnn_call *call = calloc(1, sizeof(*call));
    if (call == NULL)
        return US_E_NOMEM;
    call->prim = c->prim;
    dnnl_status_t s = dnnl_stream_create(&call->stream, engine, dnnl_stream_in_order);
    /* In the order of the enum; source and destination get their addresses at each run. */
    if (s == dnnl_success)
        s = add_arg(call, engine, DNNL_ARG_SRC, &c->src, NULL);
    if (s == dnnl_success)
        s = add_arg(call, engine, DNNL_ARG_DST, &c->dst, NULL);
    if (s == dnnl_success)
        s = add_arg(call, engine, DNNL_ARG_WEIGHTS, c->weights, packed);
    if (s == dnnl_success)
        s = add_arg(call, engine, DNNL_ARG_SCRATCHPAD, c->scratch, scratch);
    if (s == dnnl_success && c->spec.bias)
        s = add_arg(call, engine, DNNL_ARG_BIAS, &c->bias, bias);
    if (s != dnnl_success) {
        usi_dnn_call_free(call);
        return usi_dnn_status(s);
    }
    *ret = call;
    return US_OK;
}

void usi_dnn_call_free(struct usi_dnn_call *call)
{
    if (call == NULL)
        return;
    for (int i = 0; i < call->n_args; i++)
        dnnl_memory_destroy(call->arg[i].memory);
    dnnl_stream_destroy(call->stream);
    free(call);
}

enum us_status usi_dnn_call_run(struct usi_dnn_call *call, const void *src, void *dst)
{
    union {
        const void *in;
        void *out;
    } handle = {.in = src};
    /* Setting a handle stores a pointer; executing makes oneDNN allocate a few hundred bytes for
     * its argument table, half a microsecond in all. */
    dnnl_status_t s = dnnl_memory_set_data_handle(call->arg[ARG_SRC].memory, handle.out);
    if (s == dnnl_success)
        s = dnnl_memory_set_data_handle(call->arg[ARG_DST].memory, dst);
    if (s == dnnl_success)
        s = dnnl_primitive_execute(call->prim, call->stream, call->n_args, call->arg);
    return usi_dnn_status(s);
}
