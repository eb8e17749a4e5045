/*
 * A convolution (us_conv.h) as cuDNN's operation graph: one convolution operation, then up to three
 * pointwise ones (bias, ELU, residual) whose intermediates are virtual tensors in f32. cuDNN names
 * dimensions N, C, H, W whatever the order in memory; the strides say NHWC.
 */
#include "us_cudnn.h"

#define MAX_OPS 4

struct graph {
    struct usi_descs *b;
    const struct us_conv_desc *d;
    const struct us_conv_map *out; /* FORWARD and DATA */
    enum us_dtype w_dtype;
    cudnnBackendDescriptor_t op[MAX_OPS];
    int64_t n_ops;
    int64_t next_virtual;
};

static cudnnDataType_t data_type(enum us_dtype t)
{
    return t == US_F32 ? CUDNN_DATA_FLOAT : CUDNN_DATA_BFLOAT16;
}

static int64_t greatest_common(int64_t a, int64_t b)
{
    while (b != 0) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Windows begin at any pixel, and at a channel that the channels before it, all of one kind, lead
 * to. */
int64_t usi_conv_alignment(const struct us_conv_map *m, enum us_dtype dtype)
{
    int64_t elements = greatest_common(m->pixel_stride, m->c);
    elements = greatest_common(greatest_common(elements, m->row_stride), m->image_stride);
    return greatest_common(16, elements * (int64_t)us_dtype_bytes(dtype));
}

static cudnnBackendDescriptor_t tensor(struct graph *g, const char *what, int64_t uid,
                                       cudnnDataType_t type, const int64_t dims[4],
                                       const int64_t strides[4], int64_t alignment)
{
    struct usi_descs *b = g->b;
    cudnnBackendDescriptor_t t = usi_desc_new(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR, what);
    bool is_virtual = uid >= US_CONV_UID_VIRTUAL;
    usi_desc_set(b, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    usi_desc_set(b, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    usi_desc_set(b, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
    usi_desc_set(b, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    usi_desc_set(b, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    usi_desc_set(b, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    usi_desc_finish(b, t);
    return t;
}

static cudnnBackendDescriptor_t map_tensor(struct graph *g, const char *what, int64_t uid,
                                           const struct us_conv_map *m, enum us_dtype dtype)
{
    const int64_t dims[4] = {g->d->n, m->c, m->h, m->w};
    const int64_t strides[4] = {m->image_stride, 1, m->row_stride, m->pixel_stride};
    return tensor(g, what, uid, data_type(dtype), dims, strides, usi_conv_alignment(m, dtype));
}

/* Something of the output's shape that never reaches memory: f32. */
static cudnnBackendDescriptor_t between(struct graph *g)
{
    int64_t h = g->out->h, w = g->out->w, c = g->out->c;
    const int64_t dims[4] = {g->d->n, c, h, w};
    const int64_t strides[4] = {h * w * c, 1, w * c, c};
    return tensor(g, "virtual tensor", g->next_virtual++, CUDNN_DATA_FLOAT, dims, strides, 16);
}

static cudnnBackendDescriptor_t weights_tensor(struct graph *g)
{
    const struct us_conv_desc *d = g->d;
    int64_t k = d->k, c = d->x.c;
    const int64_t dims[4] = {d->y.c, c, k, k};
    const int64_t strides[4] = {k * k * c, 1, k * c, c};
    return tensor(g, "weights", US_CONV_UID_W, data_type(g->w_dtype), dims, strides, 16);
}

static cudnnBackendDescriptor_t bias_tensor(struct graph *g)
{
    int64_t c = g->out->c;
    const int64_t dims[4] = {1, c, 1, 1}, strides[4] = {c, 1, c, c};
    return tensor(g, "bias", US_CONV_UID_BIAS, CUDNN_DATA_FLOAT, dims, strides, 16);
}

static cudnnBackendDescriptor_t convolution(struct graph *g)
{
    const struct us_conv_desc *d = g->d;
    struct usi_descs *b = g->b;
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t dims = 2, dilations[2] = {1, 1}, strides[2] = {d->stride, d->stride};
    const int64_t before[2] = {d->top, d->left}, after[2] = {d->bottom, d->right};
    cudnnBackendDescriptor_t c =
        usi_desc_new(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, "convolution");
    usi_desc_set(b, c, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    usi_desc_set(b, c, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    usi_desc_set(b, c, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims);
    usi_desc_set(b, c, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilations);
    usi_desc_set(b, c, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, strides);
    usi_desc_set(b, c, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, before);
    usi_desc_set(b, c, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, after);
    usi_desc_finish(b, c);
    return c;
}

/* What each kind of convolution calls its operation and its three tensors. */
static const struct {
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t conv, x, y, w, alpha, beta;
} kinds[] = {
    [US_CONV_FORWARD] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                         CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    [US_CONV_DATA] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                      CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    [US_CONV_FILTER] = {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                        CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA},
};

static void add_convolution(struct graph *g, cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t y,
                            cudnnBackendDescriptor_t w)
{
    struct usi_descs *b = g->b;
    cudnnBackendDescriptor_t conv = convolution(g);
    const float alpha = 1.0f, beta = 0.0f;
    cudnnBackendDescriptor_t op = usi_desc_new(b, kinds[g->d->kind].type, "convolution operation");
    usi_desc_link(b, op, kinds[g->d->kind].conv, conv);
    usi_desc_link(b, op, kinds[g->d->kind].x, x);
    usi_desc_link(b, op, kinds[g->d->kind].y, y);
    usi_desc_link(b, op, kinds[g->d->kind].w, w);
    usi_desc_set(b, op, kinds[g->d->kind].alpha, CUDNN_TYPE_FLOAT, 1, &alpha);
    usi_desc_set(b, op, kinds[g->d->kind].beta, CUDNN_TYPE_FLOAT, 1, &beta);
    usi_desc_finish(b, op);
    g->op[g->n_ops++] = op;
}

/* to = mode(from) or mode(from, other); other may be NULL. */
static void add_pointwise(struct graph *g, cudnnPointwiseMode_t mode, cudnnBackendDescriptor_t from,
                          cudnnBackendDescriptor_t other, cudnnBackendDescriptor_t to)
{
    struct usi_descs *b = g->b;
    cudnnDataType_t compute = CUDNN_DATA_FLOAT;
    const double elu_alpha = 1.0;
    cudnnBackendDescriptor_t pw = usi_desc_new(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, "pointwise");
    usi_desc_set(b, pw, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    usi_desc_set(b, pw, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &compute);
    if (mode == CUDNN_POINTWISE_ELU_FWD)
        usi_desc_set(b, pw, CUDNN_ATTR_POINTWISE_ELU_ALPHA, CUDNN_TYPE_DOUBLE, 1, &elu_alpha);
    usi_desc_finish(b, pw);
    cudnnBackendDescriptor_t op =
        usi_desc_new(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, "pointwise operation");
    usi_desc_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, pw);
    usi_desc_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, from);
    if (other != NULL)
        usi_desc_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, other);
    usi_desc_link(b, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, to);
    usi_desc_finish(b, op);
    g->op[g->n_ops++] = op;
}

static void add_epilogue(struct graph *g, cudnnBackendDescriptor_t from,
                         cudnnBackendDescriptor_t out)
{
    const struct us_conv_desc *d = g->d;
    cudnnBackendDescriptor_t to;
    if (d->bias) {
        to = d->elu || d->residual ? between(g) : out;
        add_pointwise(g, CUDNN_POINTWISE_ADD, from, bias_tensor(g), to);
        from = to;
    }
    if (d->elu) {
        to = d->residual ? between(g) : out;
        add_pointwise(g, CUDNN_POINTWISE_ELU_FWD, from, NULL, to);
        from = to;
    }
    if (d->residual)
        add_pointwise(g, CUDNN_POINTWISE_ADD, from,
                      map_tensor(g, "residual", US_CONV_UID_RES, &d->res, d->dtype), out);
}

/* The map that is written is not in `dtype` but in `out_dtype`, and moves to the end of the
 * epilogue if there is one. */
static void add_operations(struct graph *g)
{
    const struct us_conv_desc *d = g->d;
    bool epilogue = d->bias || d->elu || d->residual;
    bool to_y = d->kind == US_CONV_FORWARD, to_x = d->kind == US_CONV_DATA;
    cudnnBackendDescriptor_t w = weights_tensor(g);
    cudnnBackendDescriptor_t x =
        map_tensor(g, "x", US_CONV_UID_X, &d->x, to_x ? d->out_dtype : d->dtype);
    cudnnBackendDescriptor_t y =
        map_tensor(g, "y", US_CONV_UID_Y, &d->y, to_y ? d->out_dtype : d->dtype);
    if (!epilogue) {
        add_convolution(g, x, y, w);
        return;
    }
    cudnnBackendDescriptor_t sum = between(g);
    add_convolution(g, to_x ? sum : x, to_y ? sum : y, w);
    add_epilogue(g, sum, to_x ? x : y);
}

cudnnBackendDescriptor_t usi_conv_graph(struct usi_descs *b, const struct us_cudnn *cd,
                                        const struct us_conv_desc *d, enum us_dtype w_dtype)
{
    struct graph g = {.b = b, .d = d, .w_dtype = w_dtype, .next_virtual = US_CONV_UID_VIRTUAL};
    g.out = d->kind == US_CONV_DATA ? &d->x : &d->y;
    add_operations(&g);
    cudnnBackendDescriptor_t graph =
        usi_desc_new(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "operation graph");
    if (cd->handle != NULL)
        usi_desc_set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &cd->handle);
    usi_desc_set(b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, g.n_ops,
                 g.op);
    usi_desc_finish(b, graph);
    return graph;
}
