/*
 * Products (us_cuda_infer.h): from rectangles of maps to the windows and paddings of us_conv.h.
 * A crop is a window; a pad is the convolution's own where the library takes it.
 *
 * cuDNN may refuse padding that differs between the two sides of an axis, which happens at the
 * borders of regions. Then the same sums are had without any padding: forward from a copy of the
 * input with zeros round it, transposed by making the rows that the input reaches beyond the
 * wanted ones too.
 */
#include "math/us_bf16_math.h"
#include "us_cuda_infer.h"
#include "us_limits.h"

/* A kernel of up to so many taps on one pixel is bound by memory, not by arithmetic. */
#define DIRECT_MAX_TAPS 32
/* Below, more than half of a matrix unit's columns would be idle. */
#define DIRECT_MAX_CHANNELS 8

/* One axis of a product: the output rows that meet the input and the input rows that they read. */
struct axis {
    int64_t out0, out_n, in0, in_n;
    int64_t before, after;
};

static int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0 ? 1 : 0);
}

/* Rows that the stride leaves over may count as padding: equal on both sides if they allow it. */
static void even_out(struct axis *a, int32_t stride)
{
    if (a->before > a->after && a->before < a->after + stride)
        a->after = a->before;
}

/* Output o reads input rows o*stride - pad .. + k. False: none of them meets the input. */
static bool forward_axis(const struct usi_cuda_want *w, int64_t out0, int64_t out_n, int64_t in0,
                         int64_t in_n, struct axis *a)
{
    int64_t lo = max64(out0, -floor_div(-(in0 + w->pad - w->k + 1), w->stride));
    int64_t hi = min64(out0 + out_n - 1, floor_div(in0 + in_n - 1 + w->pad, w->stride));
    if (lo > hi)
        return false;
    int64_t first = lo * w->stride - w->pad, last = hi * w->stride - w->pad + w->k - 1;
    a->out0 = lo;
    a->out_n = hi - lo + 1;
    a->in0 = max64(first, in0);
    a->in_n = min64(last, in0 + in_n - 1) - a->in0 + 1;
    a->before = a->in0 - first;
    a->after = last - (a->in0 + a->in_n - 1);
    even_out(a, w->stride);
    return a->in_n > 0;
}

/* Input i reaches output rows i*stride - pad .. + k. */
static bool transposed_axis(const struct usi_cuda_want *w, int64_t out0, int64_t out_n, int64_t in0,
                            int64_t in_n, struct axis *a)
{
    int64_t lo = max64(in0, -floor_div(-(out0 + w->pad - w->k + 1), w->stride));
    int64_t hi = min64(in0 + in_n - 1, floor_div(out0 + out_n - 1 + w->pad, w->stride));
    if (lo > hi)
        return false;
    int64_t first = lo * w->stride - w->pad, last = hi * w->stride - w->pad + w->k - 1;
    a->in0 = lo;
    a->in_n = hi - lo + 1;
    a->out0 = max64(out0, first);
    a->out_n = min64(out0 + out_n - 1, last) - a->out0 + 1;
    a->before = a->out0 - first;
    a->after = last - (a->out0 + a->out_n - 1);
    even_out(a, w->stride);
    return a->out_n > 0;
}

static bool find_axis(const struct usi_cuda_want *w, bool rows, struct axis *a)
{
    const struct us_rect *o = &w->out, *i = &w->in.rect;
    bool (*find)(const struct usi_cuda_want *w, int64_t out0, int64_t out_n, int64_t in0,
                 int64_t in_n, struct axis *a) = w->transposed ? transposed_axis : forward_axis;
    return rows ? find(w, o->y0, o->h, i->y0, i->h, a) : find(w, o->x0, o->w, i->x0, i->w, a);
}

/* Padding gone: forward by reading beyond the input, transposed by writing beyond the output. */
static void open_axis(const struct usi_cuda_want *w, struct axis *a)
{
    if (w->transposed) {
        a->out0 -= a->before;
        a->out_n = (a->in_n - 1) * w->stride + w->k;
    } else {
        a->in0 -= a->before;
        a->in_n = (a->out_n - 1) * w->stride + w->k;
    }
    a->before = a->after = 0;
}

bool usi_cuda_wants_direct(const struct usi_cuda_want *w)
{
    if ((int64_t)w->in.c * w->k * w->k <= DIRECT_MAX_TAPS || w->c < DIRECT_MAX_CHANNELS)
        return true;
    return w->in.dtype == US_BF16 && (w->in.c % 8 != 0 || w->c % 8 != 0);
}

static struct us_conv_map conv_map(int64_t h, int64_t w, int32_t c, int64_t row_pixels,
                                   int64_t image_pixels)
{
    return (struct us_conv_map){(int32_t)h, (int32_t)w, c, image_pixels * c, row_pixels * c, c};
}

static struct us_conv_map map_window(const struct us_map *m, int64_t h, int64_t w)
{
    return conv_map(h, w, m->c, m->rect.w, (int64_t)m->rect.h * m->rect.w);
}

/* One way to ask the library. */
struct attempt {
    bool open;                        /* without padding */
    const struct usi_cuda_fuse *fuse; /* NULL: into the stage */
};

static struct us_conv_desc describe(const struct usi_cuda_product *p, const struct axis *y,
                                    const struct axis *x, const struct attempt *t)
{
    const struct usi_cuda_want *w = &p->want;
    struct us_conv_map in = p->view.h > 0
                                ? conv_map(y->in_n, x->in_n, w->in.c, x->in_n, y->in_n * x->in_n)
                                : map_window(&w->in, y->in_n, x->in_n);
    struct us_conv_map out = conv_map(y->out_n, x->out_n, w->c, x->out_n, y->out_n * x->out_n);
    struct us_conv_desc d = {
        .kind = w->transposed ? US_CONV_DATA : US_CONV_FORWARD,
        .dtype = w->in.dtype,
        .out_dtype = t->fuse != NULL ? t->fuse->out->dtype : US_F32,
        .n = w->n,
        .x = w->transposed ? out : in,
        .y = w->transposed ? in : out,
        .k = w->k,
        .stride = w->stride,
        .top = (int32_t)y->before,
        .left = (int32_t)x->before,
        .bottom = (int32_t)y->after,
        .right = (int32_t)x->after,
    };
    if (t->fuse != NULL) {
        d.bias = true;
        d.elu = t->fuse->elu;
        d.residual = t->fuse->res != NULL;
        if (d.residual)
            d.res = map_window(t->fuse->res, y->out_n, x->out_n);
    }
    return d;
}

/* p's places for these axes; y and x are as the library will see them. */
static void place(struct usi_cuda_product *p, struct axis *y, struct axis *x, bool open)
{
    const struct usi_cuda_want *w = &p->want;
    int64_t out_y = y->out0, out_x = x->out0;
    p->part =
        (struct us_rect){(int32_t)y->out0, (int32_t)x->out0, (int32_t)y->out_n, (int32_t)x->out_n};
    p->view = (struct us_rect){0, 0, 0, 0};
    if (open) {
        open_axis(w, y);
        open_axis(w, x);
        if (!w->transposed)
            p->view = (struct us_rect){(int32_t)y->in0, (int32_t)x->in0, (int32_t)y->in_n,
                                       (int32_t)x->in_n};
    }
    p->read_y = (int32_t)y->in0;
    p->read_x = (int32_t)x->in0;
    p->stage_h = (int32_t)y->out_n;
    p->stage_w = (int32_t)x->out_n;
    p->off_y = (int32_t)(out_y - y->out0);
    p->off_x = (int32_t)(out_x - x->out0);
}

static enum us_status ask(struct us_backend *be, struct usi_cuda_product *p, struct axis y,
                          struct axis x, const struct attempt *t, struct us_err *err)
{
    place(p, &y, &x, t->open);
    struct us_conv_desc d = describe(p, &y, &x, t);
    return be->gpu->conv->plan(be->gpu, &d, &p->conv, &p->workspace_bytes, err);
}

/* `direct` makes the whole rectangle, zeros included, and knows the padding itself. */
static void leave_to_direct(struct usi_cuda_product *p)
{
    p->conv = NULL;
    p->workspace_bytes = 0;
    p->part = p->want.out;
    p->view = (struct us_rect){0, 0, 0, 0};
    p->stage_h = p->part.h;
    p->stage_w = p->part.w;
    p->off_y = p->off_x = 0;
}

enum us_status usi_cuda_product_plan(struct us_backend *be, const struct usi_cuda_want *want,
                                     const struct usi_cuda_fuse *fuse, struct usi_cuda_product *p,
                                     struct us_err *err)
{
    struct axis y, x;
    *p = (struct usi_cuda_product){.want = *want};
    bool meets = find_axis(want, true, &y) && find_axis(want, false, &x);
    bool whole = meets && y.out_n == want->out.h && x.out_n == want->out.w;
    if (fuse != NULL && !whole)
        return us_fail(err, US_E_UNSUPPORTED, "a part of the output meets no input");
    p->empty = !meets;
    if (!meets)
        return US_OK;
    bool even = y.before == y.after && x.before == x.after;
    /* An opened transposed product is larger than the output: only the stage holds it. Where there
     * is a stage anyway that is free, so lopsided padding is not asked for. */
    bool can_open = !even && !(want->transposed && fuse != NULL);
    bool open_first = want->transposed && fuse == NULL && !even;
    enum us_status s = US_E_UNSUPPORTED;
    for (int i = 0; i < 2 && s == US_E_UNSUPPORTED && !usi_cuda_wants_direct(want); i++) {
        struct attempt t = {(i == 1) != open_first, fuse};
        if (!t.open || can_open)
            s = ask(be, p, y, x, &t, err);
    }
    if (s != US_E_UNSUPPORTED || fuse != NULL)
        return s;
    leave_to_direct(p);
    return US_OK;
}

void usi_cuda_product_release(struct us_backend *be, struct usi_cuda_product *p)
{
    if (p->conv != NULL)
        be->gpu->conv->free(be->gpu, p->conv);
    p->conv = NULL;
}

size_t usi_cuda_stage_bytes(const struct usi_cuda_product *p)
{
    if (p->empty)
        return 0;
    return (size_t)p->want.n * (size_t)p->stage_h * (size_t)p->stage_w * (size_t)p->want.c *
           sizeof(float);
}

size_t usi_cuda_view_bytes(const struct usi_cuda_product *p)
{
    return (size_t)p->want.n * (size_t)p->view.h * (size_t)p->view.w * (size_t)p->want.in.c *
           us_dtype_bytes(p->want.in.dtype);
}

/* ---- weights ---- */

size_t usi_cuda_weight_bytes(const struct usi_cuda_product *p)
{
    const struct usi_cuda_want *w = &p->want;
    if (p->empty)
        return 0;
    size_t count = (size_t)w->k * (size_t)w->k * (size_t)w->in.c * (size_t)w->c;
    return count * (p->conv != NULL ? us_dtype_bytes(w->in.dtype) : sizeof(float));
}

/* The library reads [out][tap][in] (transposed: [in][tap][out]) in the input's type, `direct`
 * [tap][in][out] in f32. */
void usi_cuda_product_pack(const struct usi_cuda_product *p, const float *w, int32_t in_row,
                           int32_t first, void *packed)
{
    const struct usi_cuda_want *want = &p->want;
    int64_t taps = (int64_t)want->k * want->k, in_c = want->in.c, out_c = want->c;
    if (p->empty)
        return;
    for (int64_t o = 0; o < out_c; o++)
        for (int64_t i = 0; i < in_c; i++)
            for (int64_t t = 0; t < taps; t++) {
                int64_t pair = want->transposed ? i * out_c + o : o * in_row + first + i;
                float v = w[pair * taps + t];
                if (p->conv == NULL) {
                    ((float *)packed)[(t * in_c + i) * out_c + o] = v;
                    continue;
                }
                int64_t at =
                    want->transposed ? (i * taps + t) * out_c + o : (o * taps + t) * in_c + i;
                if (want->in.dtype == US_F32)
                    ((float *)packed)[at] = v;
                else
                    ((uint16_t *)packed)[at] = us_bf16_of_f32(v);
            }
}
