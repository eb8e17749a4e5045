/*
 * Binding and running the prediction ops of the CUDA backend: from an op and one worker's buffers
 * to a list of calls with every address in place (us_cuda_infer.h).
 */
#include <stdlib.h>

#include "us_cuda_infer.h"

enum call_kind { CALL_CONV, CALL_DIRECT, CALL_EPILOGUE, CALL_GATE, CALL_COPY, CALL_LATENT };

struct call {
    enum call_kind kind;
    const struct us_conv *conv;
    union {
        struct us_conv_bufs conv;
        struct us_k_direct direct;
        struct us_k_epilogue epilogue;
        struct us_k_gate gate;
        struct us_k_copy copy;
        struct us_k_latent latent;
    } a;
};

struct us_bound {
    const struct usi_cuda_op *op;
    struct us_op_bufs bufs;
    char *scratch; /* bufs.scratch, aligned */
    int32_t n_calls;
    struct call *call;
    float *eps; /* the latent's test hook, device memory; made by the first run that has one */
};

/* ---- maps as the kernels see them ---- */

static const void *at_element(const void *p, enum us_dtype dtype, int64_t i)
{
    return (const char *)p + i * (int64_t)us_dtype_bytes(dtype);
}

/* What m holds of `out`, from item `item` on. */
static struct us_k_in in_map(const struct us_map *m, const void *buf, int32_t item,
                             const struct us_rect *out)
{
    const struct us_rect *r = &m->rect;
    int32_t y0 = r->y0 > out->y0 ? r->y0 : out->y0, x0 = r->x0 > out->x0 ? r->x0 : out->x0;
    int32_t y1 = r->y0 + r->h < out->y0 + out->h ? r->y0 + r->h : out->y0 + out->h;
    int32_t x1 = r->x0 + r->w < out->x0 + out->w ? r->x0 + r->w : out->x0 + out->w;
    struct us_k_in k = {.dtype = m->dtype};
    if (y0 >= y1 || x0 >= x1)
        return k;
    k.p = at_element(buf, m->dtype, us_map_index(m, item, y0, x0));
    k.pixel = m->c;
    k.row = k.pixel * r->w;
    k.image = k.row * r->h;
    k.y0 = y0 - out->y0;
    k.x0 = x0 - out->x0;
    k.y1 = y1 - out->y0;
    k.x1 = x1 - out->x0;
    return k;
}

static struct us_k_out out_map(const struct us_map *m, void *buf, int32_t item)
{
    int64_t pixel = m->c, row = pixel * m->rect.w, image = row * m->rect.h;
    char *p = buf;
    if (p != NULL)
        p += item * image * (int64_t)us_dtype_bytes(m->dtype);
    return (struct us_k_out){p, image, row, pixel, m->dtype};
}

static struct us_k_in stage_in(const struct us_bound *b, const struct usi_cuda_product *p)
{
    const struct us_rect *out = &b->op->out.rect, *part = &p->part;
    struct us_k_in k = {.dtype = US_F32};
    if (p->empty)
        return k;
    k.pixel = p->want.c;
    k.row = k.pixel * p->stage_w;
    k.image = k.row * p->stage_h;
    k.p = at_element(b->scratch + p->stage_at, US_F32, p->off_y * k.row + p->off_x * k.pixel);
    k.y0 = part->y0 - out->y0;
    k.x0 = part->x0 - out->x0;
    k.y1 = k.y0 + part->h;
    k.x1 = k.x0 + part->w;
    return k;
}

/* ---- grids ---- */

#define MAX_MAPS 3

/* Every map and every per-channel row of a kernel's arguments. */
struct maps {
    struct us_k_in *in[MAX_MAPS];
    struct us_k_out *out[MAX_MAPS];
    const float *row[MAX_MAPS];
};

/* Whether vec channels from anywhere in it are aligned accesses of up to 16 bytes. */
static bool aligned(const void *p, enum us_dtype dtype, int64_t strides, int32_t vec)
{
    int64_t bytes = vec * (int64_t)us_dtype_bytes(dtype);
    bytes = bytes > 16 ? 16 : bytes;
    return p == NULL || ((int64_t)((uintptr_t)p % 16) % bytes == 0 &&
                         strides * (int64_t)us_dtype_bytes(dtype) % bytes == 0);
}

static bool all_aligned(const struct maps *m, int32_t vec)
{
    bool ok = true;
    for (int i = 0; i < MAX_MAPS; i++) {
        const struct us_k_in *in = m->in[i];
        const struct us_k_out *out = m->out[i];
        /* A power of two divides all of some numbers if it divides their OR. */
        ok = ok && (in == NULL || aligned(in->p, in->dtype, in->image | in->row | in->pixel, vec));
        ok = ok &&
             (out == NULL || aligned(out->p, out->dtype, out->image | out->row | out->pixel, vec));
        ok = ok && aligned(m->row[i], US_F32, 0, vec);
    }
    return ok;
}

static int32_t widest(int32_t c, const struct maps *m)
{
    bool half = false;
    for (int i = 0; i < MAX_MAPS; i++)
        half = half || (m->in[i] != NULL && m->in[i]->p != NULL && m->in[i]->dtype == US_BF16) ||
               (m->out[i] != NULL && m->out[i]->p != NULL && m->out[i]->dtype == US_BF16);
    if (half && c % 8 == 0 && all_aligned(m, 8))
        return 8;
    return c % 4 == 0 && all_aligned(m, 4) ? 4 : 1;
}

static bool is_dense(const struct us_k_grid *g, int64_t image, int64_t row, int64_t pixel)
{
    return row == g->w * pixel && image == g->h * row;
}

/* Makes one row of all pixels where every map is whole and dense: no divisions are then needed to
 * find a pixel. */
static void flatten(struct us_k_grid *g, const struct maps *m)
{
    for (int i = 0; i < MAX_MAPS; i++) {
        const struct us_k_in *in = m->in[i];
        const struct us_k_out *out = m->out[i];
        if (in != NULL && in->p != NULL &&
            (in->y0 != 0 || in->x0 != 0 || in->y1 != g->h || in->x1 != g->w ||
             !is_dense(g, in->image, in->row, in->pixel)))
            return;
        if (out != NULL && out->p != NULL && !is_dense(g, out->image, out->row, out->pixel))
            return;
    }
    g->w *= g->n * g->h;
    g->n = g->h = 1;
    for (int i = 0; i < MAX_MAPS; i++)
        if (m->in[i] != NULL) {
            m->in[i]->y1 = 1;
            m->in[i]->x1 = g->w;
        }
}

static struct us_k_grid grid_of(const struct us_rect *r, int64_t n, int32_t c, const struct maps *m)
{
    struct us_k_grid g = {n, r->h, r->w, c, widest(c, m)};
    flatten(&g, m);
    return g;
}

/* ---- calls ---- */

static struct call *add_call(struct us_bound *b, enum call_kind kind)
{
    struct call *c = &b->call[b->n_calls++];
    c->kind = kind;
    return c;
}

static const float *packed_row(const struct us_bound *b, size_t at)
{
    return (const float *)(const void *)((const char *)b->bufs.packed + at);
}

static struct us_k_finish finish_of(const struct us_bound *b, int32_t item)
{
    const struct usi_cuda_op *op = b->op;
    struct us_k_finish f = {.out = out_map(&op->out, b->bufs.out, item)};
    if (op->tail) {
        f.out2 = out_map(&op->out, b->bufs.out2, item);
        f.scale = packed_row(b, op->scale_at);
        f.shift = packed_row(b, op->shift_at);
    }
    return f;
}

/* The residual of a conv2d or gate. */
static struct us_k_in residual_of(const struct us_bound *b, int32_t item)
{
    const struct usi_cuda_op *op = b->op;
    bool has = op->in2 != NULL && op->base.kind != US_OP_merge;
    return has ? in_map(op->in2, b->bufs.in[1], item, &op->out.rect) : (struct us_k_in){0};
}

static bool is_elu(const struct usi_cuda_op *op)
{
    return op->base.kind == US_OP_conv2d && op->d.conv2d.act == US_ACT_ELU;
}

static void add_copy(struct us_bound *b, struct us_k_in in, struct us_k_out out,
                     const struct us_rect *r, int64_t n, int32_t c)
{
    struct us_k_copy *k = &add_call(b, CALL_COPY)->a.copy;
    k->in = in;
    k->out = out;
    k->grid = grid_of(r, n, c, &(struct maps){.in = {&k->in}, .out = {&k->out}});
    /* Dense from end to end: channels mean nothing. */
    bool flat = k->grid.n == 1 && k->grid.h == 1 && k->in.p != NULL;
    if (flat && k->grid.w * c % US_K_VEC == 0) {
        k->grid.w = k->in.x1 = k->grid.w * c / US_K_VEC;
        k->grid.c = US_K_VEC;
        k->in.pixel = k->out.pixel = US_K_VEC;
        k->in.row = k->in.image = k->out.row = k->out.image = 0;
        k->grid.vec = widest(US_K_VEC, &(struct maps){.in = {&k->in}, .out = {&k->out}});
    }
}

/* A product by the library: the copy of its input where it needs one, then itself. */
static void add_conv(struct us_bound *b, const struct usi_cuda_product *p, const void *in,
                     int32_t item)
{
    const struct usi_cuda_op *op = b->op;
    const struct us_map *m = &p->want.in;
    const void *from;
    if (p->view.h > 0) {
        struct us_map view = *m;
        view.n = p->want.n;
        view.rect = p->view;
        add_copy(b, in_map(m, in, item, &p->view), out_map(&view, b->scratch + p->view_at, 0),
                 &p->view, p->want.n, m->c);
        from = b->scratch + p->view_at;
    } else {
        from = at_element(in, m->dtype, us_map_index(m, item, p->read_y, p->read_x));
    }
    struct call *c = add_call(b, CALL_CONV);
    c->conv = p->conv;
    *(p->want.transposed ? &c->a.conv.y : &c->a.conv.x) = from;
    c->a.conv.w = (const char *)b->bufs.packed + p->weights_at;
    c->a.conv.workspace = b->scratch + op->workspace_at;
    c->a.conv.out = b->scratch + p->stage_at;
    if (op->fused) {
        c->a.conv.out = out_map(&op->out, b->bufs.out, item).p;
        c->a.conv.bias = packed_row(b, op->bias_at);
        c->a.conv.res = residual_of(b, item).p;
    }
}

static void add_direct(struct us_bound *b, const struct usi_cuda_product *p, const void *in,
                       int32_t item)
{
    const struct usi_cuda_want *w = &p->want;
    const struct us_rect *o = &w->out, *i = &w->in.rect;
    struct us_k_direct *k = &add_call(b, CALL_DIRECT)->a.direct;
    k->x = in_map(&w->in, in, item, i);
    k->in_c = w->in.c;
    k->k = w->k;
    k->stride = w->stride;
    k->transposed = w->transposed;
    k->top =
        w->transposed ? o->y0 + w->pad - w->stride * i->y0 : w->pad + i->y0 - w->stride * o->y0;
    k->left =
        w->transposed ? o->x0 + w->pad - w->stride * i->x0 : w->pad + i->x0 - w->stride * o->x0;
    k->w = packed_row(b, p->weights_at);
    if (b->op->fused) {
        k->res = residual_of(b, item);
        k->bias = packed_row(b, b->op->bias_at);
        k->elu = is_elu(b->op);
        k->finish = finish_of(b, item);
    } else {
        struct us_map stage = us_map_full(w->n, o->h, o->w, w->c, US_F32);
        k->finish.out = out_map(&stage, b->scratch + p->stage_at, 0);
    }
    struct maps m = {.in = {&k->res},
                     .out = {&k->finish.out, &k->finish.out2},
                     .row = {k->bias, k->finish.scale, k->finish.shift}};
    k->ow = o->w;
    k->grid =
        (struct us_k_grid){w->n, o->h, (o->w + US_K_RUN - 1) / US_K_RUN, w->c, widest(w->c, &m)};
    k->in_vec = w->in.c % 8 == 0 && all_aligned(&(struct maps){.in = {&k->x}}, 8) ? 8 : 1;
}

static void add_products(struct us_bound *b, int32_t item)
{
    for (int32_t i = 0; i < b->op->n_products; i++) {
        const struct usi_cuda_product *p = &b->op->product[i];
        if (p->empty)
            continue;
        if (p->conv != NULL)
            add_conv(b, p, b->bufs.in[i], item);
        else
            add_direct(b, p, b->bufs.in[i], item);
    }
}

static void add_epilogue(struct us_bound *b, int32_t item)
{
    const struct usi_cuda_op *op = b->op;
    struct us_k_epilogue *k = &add_call(b, CALL_EPILOGUE)->a.epilogue;
    k->x = stage_in(b, &op->product[0]);
    if (op->n_products > 1)
        k->x2 = stage_in(b, &op->product[1]);
    k->res = residual_of(b, item);
    k->bias = packed_row(b, op->bias_at);
    k->elu = is_elu(op);
    k->finish = finish_of(b, item);
    const struct maps m = {.in = {&k->x, &k->x2, &k->res},
                           .out = {&k->finish.out, &k->finish.out2},
                           .row = {k->bias, k->finish.scale, k->finish.shift}};
    k->grid = grid_of(&op->out.rect, op->chunk, op->out.c, &m);
}

static void add_gate(struct us_bound *b, int32_t item)
{
    const struct usi_cuda_op *op = b->op;
    struct us_k_gate *k = &add_call(b, CALL_GATE)->a.gate;
    k->x = stage_in(b, &op->product[0]);
    k->res = residual_of(b, item);
    k->bias = packed_row(b, op->bias_at);
    k->finish = finish_of(b, item);
    const struct maps m = {.in = {&k->x, &k->res},
                           .out = {&k->finish.out, &k->finish.out2},
                           .row = {k->bias, k->finish.scale, k->finish.shift}};
    k->grid = grid_of(&op->out.rect, op->chunk, op->out.c, &m);
}

/* ELU(scale * in + shift) is a tail of nothing but the input. */
static void add_affine_elu(struct us_bound *b)
{
    const struct usi_cuda_op *op = b->op;
    struct us_k_epilogue *k = &add_call(b, CALL_EPILOGUE)->a.epilogue;
    k->x = in_map(&op->d.affine_elu.in, b->bufs.in[0], 0, &op->out.rect);
    k->finish.out2 = out_map(&op->out, b->bufs.out, 0);
    k->finish.scale = packed_row(b, op->scale_at);
    k->finish.shift = packed_row(b, op->shift_at);
    const struct maps m = {
        .in = {&k->x}, .out = {&k->finish.out2}, .row = {k->finish.scale, k->finish.shift}};
    k->grid = grid_of(&op->out.rect, op->out.n, op->out.c, &m);
}

static void add_latent(struct us_bound *b)
{
    const struct us_latent_desc *d = &b->op->d.latent;
    const struct us_rect *r = &d->out.rect;
    struct us_k_latent *k = &add_call(b, CALL_LATENT)->a.latent;
    k->in = in_map(&d->in, b->bufs.in[0], 0, r);
    k->out = out_map(&d->out, b->bufs.out, 0);
    k->var_clip_max = d->var_clip_max;
    k->level = d->level;
    k->full_h = d->out.full_h;
    k->full_w = d->out.full_w;
    k->y0 = r->y0;
    k->x0 = r->x0;
    k->noise = (const struct us_noise *)(const void *)(b->scratch + b->op->noise_at);
    const struct maps m = {.in = {&k->in}, .out = {&k->out}};
    k->grid = (struct us_k_grid){d->out.n, r->h, r->w, d->out.c, widest(d->out.c, &m)};
}

static void add_calls(struct us_bound *b)
{
    const struct usi_cuda_op *op = b->op;
    if (op->base.kind == US_OP_copy) {
        add_copy(b, in_map(&op->d.copy.in, b->bufs.in[0], 0, &op->out.rect),
                 out_map(&op->out, b->bufs.out, 0), &op->out.rect, op->out.n, op->out.c);
        return;
    }
    if (op->base.kind == US_OP_affine_elu) {
        add_affine_elu(b);
        return;
    }
    if (op->base.kind == US_OP_latent) {
        add_latent(b);
        return;
    }
    for (int32_t item = 0; item < op->out.n; item += op->chunk) {
        add_products(b, item);
        if (op->base.kind == US_OP_gate)
            add_gate(b, item);
        else if (!op->fused)
            add_epilogue(b, item);
    }
}

/* ---- life ---- */

static bool has_all(const struct usi_cuda_op *op, const struct us_op_bufs *bufs)
{
    return bufs->in[0] != NULL && (op->in2 == NULL || bufs->in[1] != NULL) && bufs->out != NULL &&
           (!op->tail || bufs->out2 != NULL) &&
           (op->base.packed_bytes == 0 || bufs->packed != NULL) &&
           (op->base.scratch_bytes == 0 || bufs->scratch != NULL) &&
           (op->base.kind != US_OP_latent || bufs->noise != NULL);
}

static char *round_up(void *p)
{
    uintptr_t over = (uintptr_t)p % USI_CUDA_ALIGN;
    return (char *)p + (over == 0 ? 0 : USI_CUDA_ALIGN - over);
}

enum us_status usi_cuda_op_bind(struct us_backend *be, const struct us_op *base,
                                const struct us_op_bufs *bufs, struct us_bound **ret)
{
    const struct usi_cuda_op *op = (const struct usi_cuda_op *)(const void *)base;
    if (!has_all(op, bufs))
        return US_E_ARG;
    struct us_bound *b = calloc(1, sizeof(*b));
    if (b == NULL)
        return US_E_NOMEM;
    /* Per chunk a copy and a convolution for each product, and the finish. */
    size_t chunks = (size_t)(op->out.n / op->chunk);
    b->call = calloc(chunks * (2 * (size_t)op->n_products + 1), sizeof(*b->call));
    if (b->call == NULL) {
        free(b);
        return US_E_NOMEM;
    }
    b->op = op;
    b->bufs = *bufs;
    b->scratch = bufs->scratch == NULL ? NULL : round_up(bufs->scratch);
    add_calls(b);
    *ret = b;
    return US_OK;
}

void usi_cuda_bound_free(struct us_backend *be, struct us_bound *b)
{
    if (b == NULL)
        return;
    if (b->eps != NULL)
        be->gpu->ops->release(be->gpu, b->eps);
    free(b->call);
    free(b);
}

/* The test hook: its numbers stand in host memory wherever the test put them. The one place where a
 * run may allocate, once. */
static enum us_status send_eps(struct us_gpu *g, struct us_bound *b, struct us_k_latent *k)
{
    const struct us_latent_desc *d = &b->op->d.latent;
    int64_t count = (int64_t)d->out.full_h * d->out.full_w * d->out.c;
    size_t bytes = (size_t)count * sizeof(float);
    for (int32_t n = 0; n < d->out.n; n++) {
        const struct us_noise *z = &b->bufs.noise[n];
        if (z->eps == NULL)
            continue;
        if (b->eps == NULL) {
            void *p = NULL;
            US_TRY(g->ops->alloc(g, (size_t)d->out.n * bytes, &p));
            b->eps = p;
        }
        US_TRY(g->ops->to_device(g, b->eps + n * count, z->eps[d->level], bytes));
    }
    k->eps = b->eps;
    return US_OK;
}

/* The noise's keys go to the device with every run, so that its threads need not read the host's
 * memory one by one. */
static enum us_status run_latent(struct us_gpu *g, struct us_bound *b, struct us_k_latent *k)
{
    size_t bytes = (size_t)b->op->out.n * sizeof(*b->bufs.noise);
    US_TRY(send_eps(g, b, k));
    US_TRY(g->ops->to_device(g, b->scratch + b->op->noise_at, b->bufs.noise, bytes));
    return g->kernels->latent(g, k);
}

static enum us_status run_call(struct us_gpu *g, struct us_bound *b, struct call *c)
{
    switch (c->kind) {
    case CALL_CONV:
        return g->conv->run(g, c->conv, &c->a.conv);
    case CALL_DIRECT:
        return g->kernels->direct(g, &c->a.direct);
    case CALL_EPILOGUE:
        return g->kernels->epilogue(g, &c->a.epilogue);
    case CALL_GATE:
        return g->kernels->gate(g, &c->a.gate);
    case CALL_COPY:
        return g->kernels->copy(g, &c->a.copy);
    case CALL_LATENT:
        return run_latent(g, b, &c->a.latent);
    }
    return US_E_BACKEND;
}

enum us_status usi_cuda_run(struct us_backend *be, struct us_bound *b)
{
    for (int32_t i = 0; i < b->n_calls; i++)
        US_TRY(run_call(be->gpu, b, &b->call[i]));
    return US_OK;
}
