/*
 * A library with cuDNN's interface for machines without a GPU: it takes descriptors as the real one
 * does, refuses those that the real one would (attribute, type, count, missing ones, order of
 * finalizing), and executes operation graphs of one convolution and pointwise operations as plain
 * sums on the host. Its heuristics propose engines of every sort:
 *   0 not deterministic, 1 ordinary, with a knob, 2 compiles at run time; 3 the fallback.
 * Graphs with pointwise operations have only engine 2, as cuDNN's with bf16.
 */
#include <cudnn_graph.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "math/us_bf16_math.h"

#define API        __attribute__((visibility("default")))
#define MAX_ATTRS  16
#define MAX_VALUES 8
#define MAX_OPS    8
#define BAD        CUDNN_STATUS_BAD_PARAM

struct cudnnContext {
    int unused;
};

struct attr {
    int name;
    int64_t n;
    char value[MAX_VALUES * 8];
};

struct desc {
    int type, n_attrs;
    bool finished;
    int64_t notes; /* engine: its index; knobs: their number */
    struct attr attr[MAX_ATTRS];
};

/* ---- what may be set ---- */

static size_t value_bytes(int type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN:
        return sizeof(bool);
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
        return 8;
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return sizeof(void *);
    default:
        return 4; /* enums and float */
    }
}

/* descriptor, attribute, type, fewest and most values; required ones have fewest > 0. */
static const struct rule {
    int desc, name, type, least, most;
} rules[] = {
#define T CUDNN_BACKEND_TENSOR_DESCRIPTOR
    {T, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, 1},
    {T, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, 1},
    {T, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, 4},
    {T, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, 4},
    {T, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, 1},
    {T, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 0, 1},
#undef T
#define C CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR
    {C, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, 1},
    {C, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, 1},
    {C, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, 1},
    {C, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, 2},
    {C, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, 2},
    {C, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, 2},
    {C, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, 2},
#undef C
#define CONV(KIND, DESC, X, Y, W)                                                                  \
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_##DESC##_DESCRIPTOR,                                      \
     CUDNN_ATTR_OPERATION_CONVOLUTION_##KIND##_CONV_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},    \
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_##DESC##_DESCRIPTOR,                                  \
         CUDNN_ATTR_OPERATION_CONVOLUTION_##KIND##_##X, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},      \
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_##DESC##_DESCRIPTOR,                                  \
         CUDNN_ATTR_OPERATION_CONVOLUTION_##KIND##_##Y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},      \
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_##DESC##_DESCRIPTOR,                                  \
         CUDNN_ATTR_OPERATION_CONVOLUTION_##KIND##_##W, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},      \
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_##DESC##_DESCRIPTOR,                                  \
         CUDNN_ATTR_OPERATION_CONVOLUTION_##KIND##_ALPHA, CUDNN_TYPE_FLOAT, 1, 1},                 \
    {                                                                                              \
        CUDNN_BACKEND_OPERATION_CONVOLUTION_##DESC##_DESCRIPTOR,                                   \
            CUDNN_ATTR_OPERATION_CONVOLUTION_##KIND##_BETA, CUDNN_TYPE_FLOAT, 1, 1                 \
    }
    CONV(FORWARD, FORWARD, X, Y, W),
    CONV(BWD_DATA, BACKWARD_DATA, DX, DY, W),
    CONV(BWD_FILTER, BACKWARD_FILTER, X, DY, DW),
#undef CONV
#define P CUDNN_BACKEND_POINTWISE_DESCRIPTOR
    {P, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, 1},
    {P, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, 1},
    {P, CUDNN_ATTR_POINTWISE_ELU_ALPHA, CUDNN_TYPE_DOUBLE, 0, 1},
#undef P
#define O CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR
    {O, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},
    {O, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},
    {O, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, 1},
    {O, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},
#undef O
#define G CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR
    {G, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, 1},
    {G, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, MAX_OPS},
#undef G
#define H CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR
    {H, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},
    {H, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, 1},
#undef H
    {CUDNN_BACKEND_ENGINE_DESCRIPTOR, CUDNN_ATTR_ENGINE_OPERATION_GRAPH,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},
    {CUDNN_BACKEND_ENGINE_DESCRIPTOR, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, 1},
    {CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, CUDNN_TYPE_KNOB_TYPE,
     1, 1},
    {CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR, CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, CUDNN_TYPE_INT64, 1,
     1},
    {CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
     1, 1},
    {CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, CUDNN_ATTR_ENGINECFG_KNOB_CHOICES,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, MAX_VALUES},
#define E CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR
    {E, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, 1},
    {E, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, 1},
#undef E
#define V CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR
    {V, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 1, MAX_VALUES},
    {V, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 1, MAX_VALUES},
    {V, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, 1},
#undef V
};

#define N_RULES ((int)(sizeof(rules) / sizeof(rules[0])))

static const struct rule *rule_of(int desc, int name)
{
    for (int i = 0; i < N_RULES; i++)
        if (rules[i].desc == desc && rules[i].name == name)
            return &rules[i];
    return NULL;
}

static const struct attr *find(const struct desc *d, int name)
{
    for (int i = 0; i < d->n_attrs; i++)
        if (d->attr[i].name == name)
            return &d->attr[i];
    return NULL;
}

static int64_t get_int(const struct desc *d, int name, int i)
{
    int64_t v = 0;
    const struct attr *a = find(d, name);
    if (a != NULL)
        memcpy(&v, a->value + 8 * i, 8);
    return v;
}

static int get_enum(const struct desc *d, int name)
{
    int v = 0;
    const struct attr *a = find(d, name);
    if (a != NULL)
        memcpy(&v, a->value, 4);
    return v;
}

static struct desc *get_desc(const struct desc *d, int name, int i)
{
    struct desc *v = NULL;
    const struct attr *a = find(d, name);
    if (a != NULL && i < a->n)
        memcpy(&v, a->value + sizeof(v) * (size_t)i, sizeof(v));
    return v;
}

/* ---- the interface: objects ---- */

API size_t cudnnGetVersion(void)
{
    return 90999;
}

API const char *cudnnGetErrorString(cudnnStatus_t s)
{
    return s == BAD ? "fake: bad parameter" : "fake: other";
}

API void cudnnGetLastErrorString(char *to, size_t n)
{
    if (n > 0)
        to[0] = '\0';
}

API cudnnStatus_t cudnnCreate(cudnnHandle_t *ret)
{
    *ret = calloc(1, sizeof(**ret));
    return *ret == NULL ? BAD : CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnDestroy(cudnnHandle_t h)
{
    free(h);
    return CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnSetStream(cudnnHandle_t h, cudaStream_t s)
{
    return h == NULL ? BAD : CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                               cudnnBackendDescriptor_t *ret)
{
    struct desc *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return BAD;
    d->type = (int)type;
    *ret = d;
    return CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d)
{
    free(d);
    return CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t to,
                                           cudnnBackendAttributeName_t name,
                                           cudnnBackendAttributeType_t type, int64_t n,
                                           const void *values)
{
    struct desc *d = to;
    const struct rule *r = rule_of(d->type, (int)name);
    if (d->finished || r == NULL || (int)type != r->type || n < 1 || n > r->most || n < r->least ||
        values == NULL || find(d, (int)name) != NULL || d->n_attrs == MAX_ATTRS)
        return BAD;
    if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
        for (int64_t i = 0; i < n; i++) {
            const struct desc *other = ((struct desc *const *)values)[i];
            if (other == NULL || !other->finished)
                return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
        }
    struct attr *a = &d->attr[d->n_attrs++];
    a->name = (int)name;
    a->n = n;
    memcpy(a->value, values, (size_t)n * value_bytes((int)type));
    return CUDNN_STATUS_SUCCESS;
}

static bool is_fused(const struct desc *graph)
{
    return find(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS)->n > 1;
}

API cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t to)
{
    struct desc *d = to;
    for (int i = 0; i < N_RULES; i++)
        if (rules[i].desc == d->type && rules[i].least > 0 && find(d, rules[i].name) == NULL)
            return BAD;
    if (d->finished)
        return BAD;
    if (d->type == CUDNN_BACKEND_ENGINE_DESCRIPTOR) {
        d->notes = get_int(d, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, 0);
        if (is_fused(get_desc(d, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, 0)) != (d->notes == 2))
            return CUDNN_STATUS_NOT_SUPPORTED;
    }
    d->finished = true;
    return CUDNN_STATUS_SUCCESS;
}

/* ---- the interface: questions ---- */

static cudnnStatus_t results(const struct desc *heur, int64_t n, int64_t *ret_n, void *to)
{
    static const int64_t first[3] = {0, 1, 2}, fallback[1] = {3}, fused[1] = {2};
    bool is_fallback = get_enum(heur, CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_FALLBACK;
    const int64_t *list = is_fallback ? fallback : first;
    *ret_n = is_fallback ? 1 : 3;
    if (is_fused(get_desc(heur, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, 0))) {
        list = fused;
        *ret_n = is_fallback ? 0 : 1;
    }
    for (int64_t i = 0; i < *ret_n && i < n; i++) {
        struct desc *config = ((struct desc **)to)[i];
        if (config == NULL || config->type != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)
            return BAD;
        config->finished = true;
        config->notes = list[i];
    }
    return CUDNN_STATUS_SUCCESS;
}

static cudnnStatus_t engine_notes(const struct desc *engine, int name, int64_t *ret_n, void *to)
{
    int note = name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE
                   ? (int)CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC
                   : (int)CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
    *ret_n = engine->notes == (name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE ? 0 : 2) ? 1 : 0;
    if (*ret_n > 0)
        memcpy(to, &note, sizeof(note));
    return CUDNN_STATUS_SUCCESS;
}

/* Engine 1 has one knob, 12 = 5. */
static cudnnStatus_t knobs(const struct desc *config, int64_t n, int64_t *ret_n, void *to)
{
    *ret_n = config->notes == 1 && n > 0 ? 1 : 0;
    if (*ret_n > 0)
        ((struct desc **)to)[0]->finished = true;
    return CUDNN_STATUS_SUCCESS;
}

API cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const from,
                                           cudnnBackendAttributeName_t name,
                                           cudnnBackendAttributeType_t type, int64_t n,
                                           int64_t *ret_n, void *to)
{
    const struct desc *d = from;
    const int knob = CUDNN_KNOB_TYPE_SPLIT_K_BUF;
    const int64_t value = 5, bytes = 100;
    if (!d->finished || n < 1)
        return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    *ret_n = 1;
    switch ((int)name) {
    case CUDNN_ATTR_ENGINEHEUR_RESULTS:
        return results(d, n, ret_n, to);
    case CUDNN_ATTR_ENGINECFG_ENGINE:
        (*(struct desc **)to)->notes = d->notes;
        (*(struct desc **)to)->finished = true;
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_ENGINE_NUMERICAL_NOTE:
    case CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE:
        return engine_notes(d, (int)name, ret_n, to);
    case CUDNN_ATTR_ENGINECFG_KNOB_CHOICES:
        return knobs(d, n, ret_n, to);
    case CUDNN_ATTR_ENGINE_GLOBAL_INDEX:
        memcpy(to, &d->notes, 8);
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE:
        memcpy(to, &knob, 4);
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE:
        memcpy(to, &value, 8);
        return CUDNN_STATUS_SUCCESS;
    case CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE:
        memcpy(to, &bytes, 8);
        return CUDNN_STATUS_SUCCESS;
    default:
        return BAD;
    }
}

/* ---- execution ---- */

struct tensor {
    const struct desc *desc;
    int64_t dim[4], stride[4];
    int type;
    char *at;
};

struct run {
    const struct desc *pack;
    /* Virtual tensors, in the order of their first use. */
    struct {
        int64_t uid;
        char *memory;
    } between[MAX_OPS];
    int n_between;
    bool bad;
};

static char *between(struct run *r, int64_t uid, size_t bytes)
{
    for (int i = 0; i < r->n_between; i++)
        if (r->between[i].uid == uid)
            return r->between[i].memory;
    if (r->n_between == MAX_OPS)
        abort();
    r->between[r->n_between].uid = uid;
    r->between[r->n_between].memory = calloc(1, bytes);
    return r->between[r->n_between++].memory;
}

static char *given(struct run *r, const struct desc *t, int64_t uid)
{
    const struct attr *ids = find(r->pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    for (int i = 0; i < ids->n; i++) {
        uintptr_t p = (uintptr_t)get_int(r->pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, i);
        if (get_int(r->pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, i) != uid)
            continue;
        r->bad =
            r->bad || p == 0 || p % (uint64_t)get_int(t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, 0) != 0;
        return (char *)p;
    }
    r->bad = true;
    return NULL;
}

static struct tensor tensor_of(struct run *r, const struct desc *op, int name)
{
    struct tensor t = {.desc = get_desc(op, name, 0)};
    const struct attr *is_virtual = find(t.desc, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
    int64_t uid = get_int(t.desc, CUDNN_ATTR_TENSOR_UNIQUE_ID, 0), elements = 1;
    for (int i = 0; i < 4; i++) {
        t.dim[i] = get_int(t.desc, CUDNN_ATTR_TENSOR_DIMENSIONS, i);
        t.stride[i] = get_int(t.desc, CUDNN_ATTR_TENSOR_STRIDES, i);
        elements *= t.dim[i];
    }
    t.type = get_enum(t.desc, CUDNN_ATTR_TENSOR_DATA_TYPE);
    t.at = is_virtual != NULL && is_virtual->value[0] != 0 ? between(r, uid, 4 * (size_t)elements)
                                                           : given(r, t.desc, uid);
    return t;
}

/* A dimension of 1 is the same everywhere. */
static int64_t place(const struct tensor *t, int64_t n, int64_t c, int64_t h, int64_t w)
{
    const int64_t i[4] = {n, c, h, w};
    int64_t at = 0;
    for (int d = 0; d < 4; d++)
        at += (t->dim[d] == 1 ? 0 : i[d]) * t->stride[d];
    return at;
}

static float load(const struct tensor *t, int64_t i)
{
    return t->type == CUDNN_DATA_FLOAT ? ((const float *)(const void *)t->at)[i]
                                       : us_f32_of_bf16(((const uint16_t *)(const void *)t->at)[i]);
}

static void store(const struct tensor *t, int64_t i, double v)
{
    if (t->type == CUDNN_DATA_FLOAT)
        ((float *)(void *)t->at)[i] = (float)v;
    else
        ((uint16_t *)(void *)t->at)[i] = us_bf16_of_f32((float)v);
}

enum { OF_X, OF_Y, OF_W };

struct product {
    const struct tensor *t;
    int64_t at[3][4];
};

/* Adds a product to its place among the results, which stand densely in dimension order. */
static void add_product(const struct product *p, int of, double *sum)
{
    const int64_t *i = p->at[of], *dim = p->t[of].dim;
    double term = 1.0;
    for (int o = 0; o < 3; o++)
        if (o != of)
            term *=
                load(&p->t[o], place(&p->t[o], p->at[o][0], p->at[o][1], p->at[o][2], p->at[o][3]));
    sum[((i[0] * dim[1] + i[1]) * dim[2] + i[2]) * dim[3] + i[3]] += term;
}

/* All products of one image, output channel and output pixel. */
static void add_pixel(const struct desc *conv, const struct tensor *t, int of, int64_t n, int64_t k,
                      int64_t pixel, double *sum)
{
    int64_t oh = pixel / t[OF_Y].dim[3], ow = pixel % t[OF_Y].dim[3];
    for (int64_t kh = 0; kh < t[OF_W].dim[2]; kh++)
        for (int64_t kw = 0; kw < t[OF_W].dim[3]; kw++) {
            int64_t ih = oh * get_int(conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, 0) + kh -
                         get_int(conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, 0);
            int64_t iw = ow * get_int(conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, 1) + kw -
                         get_int(conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, 1);
            if (ih < 0 || iw < 0 || ih >= t[OF_X].dim[2] || iw >= t[OF_X].dim[3])
                continue;
            for (int64_t c = 0; c < t[OF_X].dim[1]; c++) {
                struct product p = {t, {{n, c, ih, iw}, {n, k, oh, ow}, {k, c, kh, kw}}};
                add_product(&p, of, sum);
            }
        }
}

/* The shapes must fit, paddings after the map included. */
static bool shapes_fit(const struct desc *conv, const struct tensor *t)
{
    bool fit = t[OF_X].dim[0] == t[OF_Y].dim[0] && t[OF_X].dim[1] == t[OF_W].dim[1] &&
               t[OF_Y].dim[1] == t[OF_W].dim[0];
    for (int d = 0; d < 2; d++) {
        int64_t room = t[OF_X].dim[2 + d] + get_int(conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, d) +
                       get_int(conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, d) - t[OF_W].dim[2 + d];
        fit = fit && room / get_int(conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, d) + 1 ==
                         t[OF_Y].dim[2 + d];
    }
    return fit;
}

static void store_sums(const struct tensor *t, const double *sum)
{
    for (int64_t i = 0; i < t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3]; i++) {
        int64_t w = i % t->dim[3], h = i / t->dim[3] % t->dim[2];
        int64_t c = i / t->dim[3] / t->dim[2] % t->dim[1],
                n = i / t->dim[3] / t->dim[2] / t->dim[1];
        store(t, place(t, n, c, h, w), sum[i]);
    }
}

static void convolve(struct run *r, const struct desc *op)
{
    static const struct {
        int type, conv, name[3], result;
    } kinds[] = {
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
         {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
          CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W},
         OF_Y},
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
         {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W},
         OF_X},
        {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
         CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
         {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
          CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW},
         OF_W},
    };
    int kind = 0;
    while (kinds[kind].type != op->type)
        kind++;
    const struct desc *conv = get_desc(op, kinds[kind].conv, 0);
    struct tensor t[3];
    for (int o = 0; o < 3; o++)
        t[o] = tensor_of(r, op, kinds[kind].name[o]);
    int of = kinds[kind].result;
    r->bad = r->bad || !shapes_fit(conv, t);
    double *sum =
        calloc((size_t)(t[of].dim[0] * t[of].dim[1] * t[of].dim[2] * t[of].dim[3]), sizeof(double));
    for (int64_t n = 0; n < t[OF_Y].dim[0] && !r->bad; n++)
        for (int64_t k = 0; k < t[OF_Y].dim[1]; k++)
            for (int64_t i = 0; i < t[OF_Y].dim[2] * t[OF_Y].dim[3]; i++)
                add_pixel(conv, t, of, n, k, i, sum);
    if (!r->bad)
        store_sums(&t[of], sum);
    free(sum);
}

static void pointwise(struct run *r, const struct desc *op)
{
    const struct desc *pw = get_desc(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, 0);
    bool elu = get_enum(pw, CUDNN_ATTR_POINTWISE_MODE) == CUDNN_POINTWISE_ELU_FWD;
    struct tensor x = tensor_of(r, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC), b = {0};
    struct tensor y = tensor_of(r, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
    r->bad = r->bad || (elu && find(pw, CUDNN_ATTR_POINTWISE_ELU_ALPHA) == NULL);
    if (!elu)
        b = tensor_of(r, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
    for (int64_t i = 0; i < y.dim[0] * y.dim[1] * y.dim[2] * y.dim[3] && !r->bad; i++) {
        int64_t w = i % y.dim[3], h = i / y.dim[3] % y.dim[2];
        int64_t c = i / y.dim[3] / y.dim[2] % y.dim[1], n = i / y.dim[3] / y.dim[2] / y.dim[1];
        double v = load(&x, place(&x, n, c, h, w));
        if (elu)
            v = v < 0.0 ? expm1(v) : v;
        else
            v += load(&b, place(&b, n, c, h, w));
        store(&y, place(&y, n, c, h, w), v);
    }
}

API cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                      cudnnBackendDescriptor_t pack)
{
    struct run r = {.pack = pack};
    const struct desc *p = plan;
    if (handle == NULL || !p->finished || !r.pack->finished)
        return BAD;
    const struct desc *config = get_desc(p, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, 0);
    const struct desc *engine = get_desc(config, CUDNN_ATTR_ENGINECFG_ENGINE, 0);
    const struct desc *graph = get_desc(engine, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, 0);
    int64_t n = find(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS)->n;
    for (int i = 0; i < n; i++) {
        const struct desc *op = get_desc(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, i);
        if (op->type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)
            pointwise(&r, op);
        else
            convolve(&r, op);
    }
    for (int i = 0; i < r.n_between; i++)
        free(r.between[i].memory);
    return r.bad ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS;
}
