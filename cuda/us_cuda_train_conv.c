/*
 * Training's convolutions on the CUDA backend: the three passes by the library (us_conv.h), or by
 * our own kernels where it gains nothing or refuses: few channels on one side (the first layers,
 * the head), or shapes that it does not take.
 *
 * Let x be the larger map and y the smaller. A convolution goes FORWARD from x to y and its data
 * gradient is DATA; a transposed one goes the other way. Both keep their weights as [y][x][taps],
 * so one packing serves both.
 */
#include <stdlib.h>

#include "us_cuda_train.h"

/* A kernel of up to so many taps on one pixel is bound by memory, not by arithmetic. */
#define DIRECT_MAX_TAPS 32
/* Below, more than half of a matrix unit's columns would be idle. */
#define MIN_CHANNELS 8

enum pass { PASS_FORWARD, PASS_DATA, PASS_FILTER, N_PASSES }; /* as enum us_conv_kind */

struct usi_cuda_tconv {
    struct us_tconv base;
    struct us_tconv_desc d;
    const struct us_map *x, *y;
    struct us_conv *lib[N_PASSES];              /* NULL: our own */
    bool fused;                                 /* the library adds the bias */
    size_t weights_at, direct_at[2], bias_at;   /* in packed; direct by pass */
    size_t workspace_at, stage_at, gradient_at; /* in scratch */
};

struct us_tconv_ctx {
    const struct usi_cuda_tconv *conv;
    char *scratch;
};

static const struct usi_cuda_tconv *of(const struct us_tconv *conv)
{
    return (const struct usi_cuda_tconv *)(const void *)conv;
}

static int64_t n_weights(const struct usi_cuda_tconv *c)
{
    return (int64_t)c->x->c * c->y->c * c->d.k * c->d.k;
}

/* The pass that makes the op's output. */
static enum pass output_pass(const struct us_tconv_desc *d)
{
    return d->transposed ? PASS_DATA : PASS_FORWARD;
}

static const struct us_map *source(const struct usi_cuda_tconv *c, enum pass p)
{
    return p == PASS_FORWARD ? c->x : c->y;
}

static const struct us_map *result(const struct usi_cuda_tconv *c, enum pass p)
{
    return p == PASS_FORWARD ? c->y : c->x;
}

/* ---- planning ------------------------------------------------------------------------------ */

static struct us_conv_map whole(const struct us_map *m)
{
    int64_t row = (int64_t)m->full_w * m->c;
    return (struct us_conv_map){m->full_h, m->full_w, m->c, row * m->full_h, row, m->c};
}

/* What an axis needs after its last pixel: the same as before it where rows that the stride leaves
 * over allow that, as they do for every shape of these networks. */
static int32_t pad_after(const struct us_tconv_desc *d, int32_t x, int32_t y)
{
    int32_t least = (y - 1) * d->stride + d->k - x - d->pad;
    return d->pad >= least && d->pad < least + d->stride ? d->pad : least;
}

/* By channels and kernel alone: packed weights may not depend on the batch. */
static bool wants_own(const struct usi_cuda_tconv *c, enum pass p)
{
    const struct us_map *x = c->x, *y = c->y;
    bool odd = c->d.in.dtype == US_BF16 && (x->c % 8 != 0 || y->c % 8 != 0);
    if (p == PASS_FILTER)
        return odd || x->c < MIN_CHANNELS || y->c < MIN_CHANNELS;
    return odd || result(c, p)->c < MIN_CHANNELS ||
           (int64_t)source(c, p)->c * c->d.k * c->d.k <= DIRECT_MAX_TAPS;
}

static struct us_conv_desc describe(const struct usi_cuda_tconv *c, enum pass p)
{
    const struct us_tconv_desc *d = &c->d;
    return (struct us_conv_desc){
        .kind = (enum us_conv_kind)p,
        .dtype = d->in.dtype,
        .out_dtype = p == PASS_FILTER      ? US_F32
                     : p == output_pass(d) ? d->out.dtype
                                           : d->in.dtype,
        .n = d->in.n,
        .x = whole(c->x),
        .y = whole(c->y),
        .k = d->k,
        .stride = d->stride,
        .top = d->pad,
        .left = d->pad,
        .bottom = pad_after(d, c->x->full_h, c->y->full_h),
        .right = pad_after(d, c->x->full_w, c->y->full_w),
    };
}

/* Refused is no failure: c->lib[p] stays NULL. */
static enum us_status ask(struct us_backend *be, struct usi_cuda_tconv *c, enum pass p,
                          const struct us_conv_desc *d, size_t *workspace, struct us_err *err)
{
    struct us_err why = {0};
    size_t bytes = 0;
    enum us_status s = be->gpu->conv->plan(be->gpu, d, &c->lib[p], &bytes, &why);
    if (s == US_E_UNSUPPORTED) {
        c->lib[p] = NULL;
        return US_OK;
    }
    if (s != US_OK)
        return us_fail(err, s, "%s", why.msg);
    *workspace = bytes > *workspace ? bytes : *workspace;
    return US_OK;
}

/* The output pass has a bias: in the library's epilogue, or by our kernel from f32 sums. */
static enum us_status plan_pass(struct us_backend *be, struct usi_cuda_tconv *c, enum pass p,
                                size_t *workspace, struct us_err *err)
{
    if (wants_own(c, p))
        return US_OK;
    struct us_conv_desc d = describe(c, p);
    if (p != output_pass(&c->d))
        return ask(be, c, p, &d, workspace, err);
    d.bias = true;
    US_TRY(ask(be, c, p, &d, workspace, err));
    c->fused = c->lib[p] != NULL;
    if (c->fused)
        return US_OK;
    d.bias = false;
    d.out_dtype = US_F32;
    return ask(be, c, p, &d, workspace, err);
}

static size_t reserve(size_t *total, size_t bytes)
{
    size_t at = *total;
    *total += (bytes + USI_CUDA_TRAIN_ALIGN - 1) / USI_CUDA_TRAIN_ALIGN * USI_CUDA_TRAIN_ALIGN;
    return at;
}

/* Whether the library's sums wait for their bias in scratch: f32 ones can do so where they go. */
static bool is_staged(const struct usi_cuda_tconv *c)
{
    return c->lib[output_pass(&c->d)] != NULL && !c->fused && c->d.out.dtype != US_F32;
}

static void lay_out(struct usi_cuda_tconv *c, size_t workspace)
{
    size_t *packed = &c->base.packed_bytes, *scratch = &c->base.scratch_bytes;
    size_t n = (size_t)n_weights(c);
    c->bias_at = reserve(packed, (size_t)c->d.out.c * sizeof(float));
    if (c->lib[PASS_FORWARD] != NULL || c->lib[PASS_DATA] != NULL)
        c->weights_at = reserve(packed, n * us_dtype_bytes(c->d.in.dtype));
    for (int p = PASS_FORWARD; p <= PASS_DATA; p++)
        if (c->lib[p] == NULL)
            c->direct_at[p] = reserve(packed, n * sizeof(float));
    c->workspace_at = reserve(scratch, workspace);
    if (c->lib[PASS_FILTER] != NULL)
        c->gradient_at = reserve(scratch, n * sizeof(float));
    if (is_staged(c))
        c->stage_at = reserve(scratch, (size_t)us_map_count(&c->d.out) * sizeof(float));
    *scratch += USI_CUDA_TRAIN_ALIGN; /* bind rounds its address up */
}

enum us_status usi_cuda_tconv_plan(struct us_backend *be, const struct us_tconv_desc *d,
                                   struct us_tconv **ret, struct us_err *err)
{
    US_TRY(us_tconv_check(d, err));
    struct usi_cuda_tconv *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a convolution");
    c->d = *d;
    c->x = d->transposed ? &c->d.out : &c->d.in;
    c->y = d->transposed ? &c->d.in : &c->d.out;
    c->base.flops = 2.0 * (double)us_map_count(c->y) * (double)c->x->c * d->k * d->k;
    size_t workspace = 0;
    enum us_status s = US_OK;
    for (int p = PASS_FORWARD; p < N_PASSES && s == US_OK; p++)
        s = plan_pass(be, c, (enum pass)p, &workspace, err);
    if (s != US_OK) {
        usi_cuda_tconv_free(be, &c->base);
        return s;
    }
    lay_out(c, workspace);
    *ret = &c->base;
    return US_OK;
}

void usi_cuda_tconv_free(struct us_backend *be, struct us_tconv *conv)
{
    struct usi_cuda_tconv *c = (struct usi_cuda_tconv *)(void *)conv;
    for (int p = PASS_FORWARD; c != NULL && p < N_PASSES; p++)
        if (c->lib[p] != NULL)
            be->gpu->conv->free(be->gpu, c->lib[p]);
    free(c);
}

enum us_status usi_cuda_tconv_bind(struct us_backend *be, const struct us_tconv *conv,
                                   void *scratch, struct us_tconv_ctx **ret)
{
    if (scratch == NULL)
        return US_E_ARG;
    struct us_tconv_ctx *ctx = malloc(sizeof(*ctx));
    if (ctx == NULL)
        return US_E_NOMEM;
    uintptr_t over = (uintptr_t)scratch % USI_CUDA_TRAIN_ALIGN;
    ctx->conv = of(conv);
    ctx->scratch = (char *)scratch + (over == 0 ? 0 : USI_CUDA_TRAIN_ALIGN - over);
    *ret = ctx;
    return US_OK;
}

void usi_cuda_tconv_unbind(struct us_backend *be, struct us_tconv_ctx *ctx)
{
    free(ctx);
}

/* ---- weights ------------------------------------------------------------------------------- */

enum us_status usi_cuda_tconv_pack(struct us_backend *be, struct us_tconv_ctx *ctx, const float *w,
                                   const float *b, void *packed)
{
    const struct usi_cuda_tconv *c = ctx->conv;
    struct us_gpu *g = be->gpu;
    int32_t taps = c->d.k * c->d.k;
    char *to = packed;
    US_TRY(g->ops->copy(g, to + c->bias_at, b, (size_t)c->d.out.c * sizeof(*b)));
    if (c->lib[PASS_FORWARD] != NULL || c->lib[PASS_DATA] != NULL) {
        const struct us_k_pack k = {.from = w,
                                    .to = to + c->weights_at,
                                    .y_c = c->y->c,
                                    .x_c = c->x->c,
                                    .taps = taps,
                                    .dtype = c->d.in.dtype};
        US_TRY(g->kernels->pack(g, &k));
    }
    for (int p = PASS_FORWARD; p <= PASS_DATA; p++) {
        const struct us_k_pack_direct k = {.from = w,
                                           .to = (float *)(void *)(to + c->direct_at[p]),
                                           .y_c = c->y->c,
                                           .x_c = c->x->c,
                                           .taps = taps,
                                           .from_y = p == PASS_DATA};
        if (c->lib[p] == NULL)
            US_TRY(g->kernels->pack_direct(g, &k));
    }
    return US_OK;
}

/* ---- passes -------------------------------------------------------------------------------- */

static struct us_k_in in_map(const struct us_map *m, const void *p)
{
    int64_t row = (int64_t)m->full_w * m->c;
    return (struct us_k_in){p, row * m->full_h, row, m->c, 0, 0, m->full_h, m->full_w, m->dtype};
}

static struct us_k_out out_map(const struct us_map *m, void *p)
{
    int64_t row = (int64_t)m->full_w * m->c;
    return (struct us_k_out){p, row * m->full_h, row, m->c, m->dtype};
}

/* Channels per access; all maps of a plan are aligned to 64 bytes. */
static int32_t width_of(const struct us_map *m, const void *p, const void *q)
{
    const struct us_ew e = {m->dtype, 1, m->c};
    const void *const all[] = {p, q};
    return usi_cuda_dense(&e, 8, all, 2).vec;
}

static enum us_status run_direct(struct us_backend *be, const struct us_tconv_ctx *ctx, enum pass p,
                                 const char *packed, const float *bias, const void *from, void *to)
{
    const struct usi_cuda_tconv *c = ctx->conv;
    const struct us_map *in = source(c, p);
    struct us_map out = *result(c, p);
    if (p != output_pass(&c->d)) /* a gradient has the type of its map's other side */
        out.dtype = c->d.in.dtype;
    struct us_map src = *in;
    if (p != output_pass(&c->d))
        src.dtype = c->d.in.dtype;
    const struct us_k_direct k = {
        .grid = {out.n, out.full_h, (out.full_w + US_K_RUN - 1) / US_K_RUN, out.c,
                 width_of(&out, to, bias)},
        .ow = out.full_w,
        .x = in_map(&src, from),
        .in_c = in->c,
        .in_vec = width_of(&src, from, NULL) == 8 ? 8 : 1,
        .k = c->d.k,
        .stride = c->d.stride,
        .top = c->d.pad,
        .left = c->d.pad,
        .transposed = p == PASS_DATA,
        .w = (const float *)(const void *)(packed + c->direct_at[p]),
        .bias = bias,
        .finish = {.out = out_map(&out, to)},
    };
    return be->gpu->kernels->direct(be->gpu, &k);
}

/* to = from + bias; `from` may be `to`. */
static enum us_status add_bias(struct us_backend *be, const struct us_map *m, const float *from,
                               const float *bias, void *to)
{
    struct us_map stage = *m;
    stage.dtype = US_F32;
    struct us_k_epilogue k = {.x = in_map(&stage, from), .bias = bias};
    int32_t vec = width_of(m, to, NULL), other = width_of(&stage, from, bias);
    k.finish.out = out_map(m, to);
    /* Dense maps are one row. */
    k.grid = (struct us_k_grid){1, 1, (int64_t)m->n * m->full_h * m->full_w, m->c,
                                other < vec ? other : vec};
    k.x.y1 = 1;
    k.x.x1 = k.grid.w;
    return be->gpu->kernels->epilogue(be->gpu, &k);
}

static enum us_status run_lib(struct us_backend *be, const struct us_tconv_ctx *ctx, enum pass p,
                              const char *packed, const float *bias, const void *from, void *to)
{
    const struct usi_cuda_tconv *c = ctx->conv;
    const struct us_conv_bufs b = {
        .x = p == PASS_FORWARD ? from : NULL,
        .y = p == PASS_DATA ? from : NULL,
        .w = packed + c->weights_at,
        .out = to,
        .bias = bias,
        .workspace = ctx->scratch + c->workspace_at,
    };
    return be->gpu->conv->run(be->gpu, c->lib[p], &b);
}

enum us_status usi_cuda_tconv_fwd(struct us_backend *be, struct us_tconv_ctx *ctx,
                                  const void *packed, const void *x, void *y)
{
    const struct usi_cuda_tconv *c = ctx->conv;
    enum pass p = output_pass(&c->d);
    const float *bias = (const float *)(const void *)((const char *)packed + c->bias_at);
    if (c->lib[p] == NULL)
        return run_direct(be, ctx, p, packed, bias, x, y);
    if (c->fused)
        return run_lib(be, ctx, p, packed, bias, x, y);
    void *sums = is_staged(c) ? ctx->scratch + c->stage_at : y;
    US_TRY(run_lib(be, ctx, p, packed, NULL, x, sums));
    return add_bias(be, &c->d.out, sums, bias, y);
}

enum us_status usi_cuda_tconv_bwd_data(struct us_backend *be, struct us_tconv_ctx *ctx,
                                       const void *packed, const void *dy, void *dx)
{
    enum pass p = output_pass(&ctx->conv->d) == PASS_FORWARD ? PASS_DATA : PASS_FORWARD;
    if (ctx->conv->lib[p] == NULL)
        return run_direct(be, ctx, p, packed, NULL, dy, dx);
    return run_lib(be, ctx, p, packed, NULL, dy, dx);
}

static enum us_status weight_gradient(struct us_backend *be, const struct us_tconv_ctx *ctx,
                                      const void *x, const void *y, float *dw)
{
    const struct usi_cuda_tconv *c = ctx->conv;
    struct us_gpu *g = be->gpu;
    if (c->lib[PASS_FILTER] == NULL) {
        const struct us_k_filter k = {.x = x,
                                      .y = y,
                                      .to = dw,
                                      .dtype = c->d.in.dtype,
                                      .n = c->d.in.n,
                                      .x_h = c->x->full_h,
                                      .x_w = c->x->full_w,
                                      .x_c = c->x->c,
                                      .y_h = c->y->full_h,
                                      .y_w = c->y->full_w,
                                      .y_c = c->y->c,
                                      .k = c->d.k,
                                      .stride = c->d.stride,
                                      .pad = c->d.pad};
        return g->kernels->filter(g, &k);
    }
    float *sums = (float *)(void *)(ctx->scratch + c->gradient_at);
    const struct us_conv_bufs b = {
        .x = x, .y = y, .out = sums, .workspace = ctx->scratch + c->workspace_at};
    const struct us_k_unpack_add k = {
        .from = sums, .to = dw, .y_c = c->y->c, .x_c = c->x->c, .taps = c->d.k * c->d.k};
    US_TRY(g->conv->run(g, c->lib[PASS_FILTER], &b));
    return g->kernels->unpack_add(g, &k);
}

enum us_status usi_cuda_tconv_bwd_weights(struct us_backend *be, struct us_tconv_ctx *ctx,
                                          const void *x, const void *dy, float *dw, float *db)
{
    const struct us_tconv_desc *d = &ctx->conv->d;
    const struct us_ew e = {d->in.dtype, (int64_t)d->out.n * d->out.full_h * d->out.full_w,
                            d->out.c};
    const void *const maps[] = {dy};
    const struct us_k_bias_grad k = {.m = usi_cuda_dense(&e, 4, maps, 1), .dy = dy, .to = db};
    US_TRY(weight_gradient(be, ctx, d->transposed ? dy : x, d->transposed ? x : dy, dw));
    return be->gpu->kernels->bias_grad(be->gpu, &k);
}
