/*
 * Convolutions (us_conv.h) as plain sums on the host. Operands are widened to f32; FORWARD and DATA
 * add in f32 as the device does, tap by tap and channel by channel; FILTER, whose sums are as long
 * as the maps are large, adds in f64. Weights are first laid out [tap][in][out] in the workspace,
 * so that every inner loop runs over adjacent output channels.
 */
#include <stdlib.h>
#include <string.h>

#include "math/us_bf16_math.h"
#include "math/us_elu_math.h"
#include "us_conv.h"

struct us_conv {
    struct us_conv_desc d;
    bool data;                  /* DATA: `in` is the smaller side */
    struct us_conv_map in, out; /* FORWARD, DATA; FILTER: x and y */
    int64_t taps;
};

static float load(const void *p, enum us_dtype t, int64_t i)
{
    return t == US_F32 ? ((const float *)p)[i] : us_f32_of_bf16(((const uint16_t *)p)[i]);
}

static void store(void *p, enum us_dtype t, int64_t i, float v)
{
    if (t == US_F32)
        ((float *)p)[i] = v;
    else
        ((uint16_t *)p)[i] = us_bf16_of_f32(v);
}

/* Widens n adjacent values. */
static void load_row(const void *p, enum us_dtype t, int64_t first, int64_t n, float *to)
{
    if (t == US_F32)
        memcpy(to, (const float *)p + first, (size_t)n * sizeof(float));
    else
        for (int64_t i = 0; i < n; i++)
            to[i] = us_f32_of_bf16(((const uint16_t *)p)[first + i]);
}

static int64_t pixel(const struct us_conv_map *m, int64_t n, int64_t y, int64_t x)
{
    return n * m->image_stride + y * m->row_stride + x * m->pixel_stride;
}

static size_t weight_floats(const struct us_conv *c)
{
    return (size_t)c->taps * (size_t)c->in.c * (size_t)c->out.c;
}

/* The workspace: weights, then one row of the input and one of sums. */
static size_t workspace_bytes(const struct us_conv *c)
{
    if (c->d.kind == US_CONV_FILTER)
        return weight_floats(c) * sizeof(double) +
               ((size_t)c->in.c + (size_t)c->out.c) * sizeof(float);
    return (weight_floats(c) + (size_t)c->in.c + (size_t)c->out.c) * sizeof(float);
}

/* w [y.c][tap][x.c] -> [tap][in][out]. */
static void lay_out_weights(const struct us_conv *c, const void *w, float *to)
{
    int64_t xc = c->d.x.c, yc = c->d.y.c;
    for (int64_t k = 0; k < yc; k++)
        for (int64_t t = 0; t < c->taps; t++)
            for (int64_t i = 0; i < xc; i++) {
                float v = load(w, c->d.dtype, (k * c->taps + t) * xc + i);
                to[c->data ? (t * yc + k) * xc + i : (t * xc + i) * yc + k] = v;
            }
}

/* Which pixel of the input meets tap k of output pixel `at` along one axis of length n; -1: none.
 */
static int64_t meets(const struct us_conv *c, int64_t at, int32_t k, int32_t before, int32_t n)
{
    int64_t stride = c->d.stride;
    if (!c->data) {
        int64_t i = stride * at - before + k;
        return i >= 0 && i < n ? i : -1;
    }
    int64_t i = at + before - k;
    return i >= 0 && i % stride == 0 && i / stride < n ? i / stride : -1;
}

static void add_pixel(const float *in, int64_t n_in, const float *w, int64_t n_out, float *sum)
{
    for (int64_t i = 0; i < n_in; i++, w += n_out) {
        float v = in[i];
        for (int64_t o = 0; o < n_out; o++)
            sum[o] += v * w[o];
    }
}

static void store_pixel(const struct us_conv *c, const struct us_conv_bufs *b, int64_t at,
                        int64_t res_at, const float *sum)
{
    for (int64_t o = 0; o < c->out.c; o++) {
        float v = sum[o];
        if (c->d.bias)
            v += b->bias[o];
        if (c->d.elu)
            v = us_elu(v);
        if (c->d.residual)
            v += load(b->res, c->d.dtype, res_at + o);
        store(b->out, c->d.out_dtype, at + o, v);
    }
}

static void run_map(const struct us_conv *c, const struct us_conv_bufs *b)
{
    const struct us_conv_desc *d = &c->d;
    const void *from = c->data ? b->y : b->x;
    float *w = b->workspace, *row = w + weight_floats(c), *sum = row + c->in.c;
    lay_out_weights(c, b->w, w);
    for (int64_t n = 0; n < d->n; n++)
        for (int64_t y = 0; y < c->out.h; y++)
            for (int64_t x = 0; x < c->out.w; x++) {
                memset(sum, 0, (size_t)c->out.c * sizeof(float));
                for (int32_t t = 0; t < d->k * d->k; t++) {
                    int64_t iy = meets(c, y, t / d->k, d->top, c->in.h);
                    int64_t ix = meets(c, x, t % d->k, d->left, c->in.w);
                    if (iy < 0 || ix < 0)
                        continue;
                    load_row(from, d->dtype, pixel(&c->in, n, iy, ix), c->in.c, row);
                    add_pixel(row, c->in.c, w + (int64_t)t * c->in.c * c->out.c, c->out.c, sum);
                }
                store_pixel(c, b, pixel(&c->out, n, y, x), pixel(&d->res, n, y, x), sum);
            }
}

static void add_outer(const float *x, int64_t n_x, const float *y, int64_t n_y, int64_t y_step,
                      double *sum)
{
    for (int64_t k = 0; k < n_y; k++) {
        double v = (double)y[k];
        for (int64_t i = 0; i < n_x; i++)
            sum[k * y_step + i] += v * (double)x[i];
    }
}

static void run_filter(const struct us_conv *c, const struct us_conv_bufs *b)
{
    const struct us_conv_desc *d = &c->d;
    double *sum = b->workspace;
    float *x_row = (float *)(void *)(sum + weight_floats(c)), *y_row = x_row + d->x.c;
    float *out = b->out;
    memset(sum, 0, weight_floats(c) * sizeof(double));
    for (int64_t n = 0; n < d->n; n++)
        for (int64_t y = 0; y < d->y.h; y++)
            for (int64_t x = 0; x < d->y.w; x++) {
                load_row(b->y, d->dtype, pixel(&d->y, n, y, x), d->y.c, y_row);
                for (int32_t t = 0; t < d->k * d->k; t++) {
                    int64_t iy = meets(c, y, t / d->k, d->top, d->x.h);
                    int64_t ix = meets(c, x, t % d->k, d->left, d->x.w);
                    if (iy < 0 || ix < 0)
                        continue;
                    load_row(b->x, d->dtype, pixel(&d->x, n, iy, ix), d->x.c, x_row);
                    add_outer(x_row, d->x.c, y_row, d->y.c, c->taps * d->x.c,
                              sum + (int64_t)t * d->x.c);
                }
            }
    for (size_t i = 0; i < weight_floats(c); i++)
        out[i] = (float)sum[i];
}

static enum us_status serial_plan(struct us_gpu *g, const struct us_conv_desc *d,
                                  struct us_conv **ret, size_t *ret_workspace_bytes,
                                  struct us_err *err)
{
    US_TRY(us_conv_check(d, err));
    struct us_conv *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a convolution");
    c->d = *d;
    c->data = d->kind == US_CONV_DATA;
    c->in = c->data ? d->y : d->x;
    c->out = c->data ? d->x : d->y;
    c->taps = (int64_t)d->k * d->k;
    *ret = c;
    *ret_workspace_bytes = workspace_bytes(c);
    return US_OK;
}

static void serial_free(struct us_gpu *g, struct us_conv *c)
{
    free(c);
}

static enum us_status serial_run(struct us_gpu *g, const struct us_conv *c,
                                 const struct us_conv_bufs *b)
{
    if (c->d.kind == US_CONV_FILTER)
        run_filter(c, b);
    else
        run_map(c, b);
    return US_OK;
}

const struct us_conv_ops us_conv_serial_ops = {
    .plan = serial_plan,
    .free = serial_free,
    .run = serial_run,
};
