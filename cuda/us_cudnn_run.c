/*
 * Starting a plan: the addresses go to cuDNN as a "variant pack", by the numbers that
 * us_cudnn_graph.c gave the tensors.
 */
#include <stdio.h>
#include <string.h>

#include "us_cudnn.h"
#include "us_kernels.h"

/* Where the narrow weights begin in the workspace. */
#define NARROW_ALIGN 256

static bool is_narrow(const struct us_conv *c)
{
    return c->d.kind == US_CONV_FILTER && !c->own && c->w_dtype == US_BF16;
}

static int64_t weights(const struct us_conv *c)
{
    return (int64_t)c->d.y.c * c->d.k * c->d.k * c->d.x.c;
}

static size_t narrow_at(const struct us_conv *c)
{
    return (c->workspace_bytes + NARROW_ALIGN - 1) / NARROW_ALIGN * NARROW_ALIGN;
}

size_t usi_conv_workspace(const struct us_conv *c)
{
    if (!is_narrow(c))
        return c->workspace_bytes;
    return narrow_at(c) + (size_t)weights(c) * us_dtype_bytes(US_BF16);
}

/* The addresses as cuDNN wants them, by tensor. */
struct pack {
    int64_t uid[5], n;
    void *at[5];
    bool aligned;
};

static void put(struct pack *p, int64_t uid, const void *at, int64_t alignment)
{
    p->uid[p->n] = uid;
    p->at[p->n++] = (void *)(uintptr_t)at; /* cuDNN's array has no const */
    p->aligned = p->aligned && (uintptr_t)at % (uint64_t)alignment == 0;
}

static struct pack pack_of(const struct us_conv_desc *d, const struct us_conv_bufs *b)
{
    struct pack p = {.aligned = true};
    bool to_x = d->kind == US_CONV_DATA, to_y = d->kind == US_CONV_FORWARD;
    bool to_w = d->kind == US_CONV_FILTER;
    put(&p, US_CONV_UID_X, to_x ? b->out : b->x,
        usi_conv_alignment(&d->x, to_x ? d->out_dtype : d->dtype));
    put(&p, US_CONV_UID_Y, to_y ? b->out : b->y,
        usi_conv_alignment(&d->y, to_y ? d->out_dtype : d->dtype));
    put(&p, US_CONV_UID_W, to_w ? b->out : b->w, 16);
    if (d->bias)
        put(&p, US_CONV_UID_BIAS, b->bias, 16);
    if (d->residual)
        put(&p, US_CONV_UID_RES, b->res, usi_conv_alignment(&d->res, d->dtype));
    return p;
}

enum us_status usi_conv_execute(const struct us_conv *c, const struct us_conv_bufs *b)
{
    struct us_cudnn *cd = c->cd;
    struct usi_descs descs = {.api = &cd->api};
    struct pack p = pack_of(&c->d, b);
    if (!p.aligned)
        return US_E_ARG;
    cudnnBackendDescriptor_t pack =
        usi_desc_new(&descs, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, "variant pack");
    usi_desc_set(&descs, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, p.n, p.uid);
    usi_desc_set(&descs, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, p.n,
                 p.at);
    usi_desc_set(&descs, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                 &b->workspace);
    usi_desc_finish(&descs, pack);
    if (descs.status == CUDNN_STATUS_SUCCESS) {
        descs.what = "execution";
        descs.status = cd->api.execute(cd->handle, c->plan, pack);
    }
    struct us_err err = {0};
    enum us_status s = usi_descs_result(&descs, &err);
    if (s != US_OK && cd->gpu->fault[0] == '\0')
        (void)snprintf(cd->gpu->fault, sizeof(cd->gpu->fault), "%.190s", err.msg);
    usi_descs_release(&descs);
    return s;
}

static enum us_status widen(const struct us_conv *c, const struct us_conv_bufs *b)
{
    struct us_gpu *g = c->cd->gpu;
    int32_t channels = c->d.x.c;
    int64_t n = weights(c) / channels;
    struct us_k_copy a = {
        .grid = {.n = 1, .h = 1, .w = n, .c = channels},
        .in = {.p = (char *)b->workspace + narrow_at(c),
               .image = n * channels,
               .row = n * channels,
               .pixel = channels,
               .y1 = 1,
               .x1 = n,
               .dtype = US_BF16},
        .out = {.p = b->out,
                .image = n * channels,
                .row = n * channels,
                .pixel = channels,
                .dtype = US_F32},
    };
    a.grid.vec = channels % 8 == 0 ? 8 : channels % 4 == 0 ? 4 : 1;
    return g->kernels->copy(g, &a);
}

static enum us_status sum_ourselves(const struct us_conv *c, const struct us_conv_bufs *b)
{
    const struct us_conv_desc *d = &c->d;
    struct us_k_conv_filter a = {
        .x = b->x,
        .y = b->y,
        .w = b->out,
        .dtype = d->dtype,
        .x_map = d->x,
        .y_map = d->y,
        .n = d->n,
        .k = d->k,
        .stride = d->stride,
        .top = d->top,
        .left = d->left,
    };
    return c->cd->gpu->kernels->conv_filter(c->cd->gpu, &a);
}

enum us_status usi_conv_start(const struct us_conv *c, const struct us_conv_bufs *b)
{
    struct us_conv_bufs to_narrow = *b;
    if (c->own)
        return sum_ourselves(c, b);
    if (!is_narrow(c))
        return usi_conv_execute(c, b);
    to_narrow.out = (char *)b->workspace + narrow_at(c);
    US_TRY(usi_conv_execute(c, &to_narrow));
    return widen(c, b);
}
