/* Convolution cases; the oracle scatters each input pixel over the outputs that it meets. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ops_test.h"

struct row {
    const char *what;
    int n, ci, co, h, w; /* h, w of the full input map */
    int k, stride, pad;
    enum us_act act;
    bool residual, tail, zero;
    struct us_rect in, out, res; /* empty: the whole map */
};

#define N US_ACT_NONE
#define E US_ACT_ELU
#define R(y, x, h, w)                                                                              \
    {                                                                                              \
        y, x, h, w                                                                                 \
    }
#define ALL                                                                                        \
    {                                                                                              \
        0, 0, 0, 0                                                                                 \
    }

static const struct row rows[] = {
    /*                         n  ci  co   h   w  k  s  p  act  res    tail   zero */
    {"one pixel", 1, 1, 1, 1, 1, 1, 1, 0, N, false, false, false, ALL, ALL, ALL},
    {"one pixel, 3x3", 1, 1, 1, 1, 1, 3, 1, 1, N, false, true, false, ALL, ALL, ALL},
    {"one pixel, stride 2", 2, 3, 2, 1, 1, 3, 2, 1, E, false, false, false, ALL, ALL, ALL},
    {"one row", 1, 4, 8, 1, 17, 3, 1, 1, N, false, false, false, ALL, ALL, ALL},
    {"one column", 3, 8, 4, 19, 1, 3, 1, 1, E, true, true, false, ALL, ALL, ALL},
    {"odd and prime", 1, 7, 13, 11, 23, 3, 1, 1, E, true, true, false, ALL, ALL, ALL},
    {"prime channels, 1x1", 2, 17, 31, 13, 5, 1, 1, 0, N, true, false, false, ALL, ALL, ALL},
    {"first block, grey", 2, 1, 64, 32, 32, 5, 1, 2, E, false, true, false, ALL, ALL, ALL},
    {"5x5, prime", 1, 5, 11, 13, 9, 5, 1, 2, E, true, true, false, ALL, ALL, ALL},
    {"5x5, stride 2", 1, 3, 64, 20, 28, 5, 2, 2, E, false, true, false, ALL, ALL, ALL},
    {"residual block", 1, 64, 64, 16, 16, 3, 1, 1, N, true, true, false, ALL, ALL, ALL},
    {"before an ELU", 2, 64, 64, 8, 8, 3, 1, 1, E, false, false, false, ALL, ALL, ALL},
    {"posterior head", 1, 64, 256, 8, 12, 3, 1, 1, N, false, false, false, ALL, ALL, ALL},
    {"latent to features", 1, 128, 64, 8, 8, 3, 1, 1, N, false, true, false, ALL, ALL, ALL},
    {"likelihood head", 3, 64, 4, 16, 16, 1, 1, 0, N, false, false, false, ALL, ALL, ALL},
    {"whole patch", 1, 64, 64, 64, 64, 3, 1, 1, E, false, true, false, ALL, ALL, ALL},
    {"down, even", 2, 64, 64, 16, 16, 3, 2, 1, N, false, true, false, ALL, ALL, ALL},
    {"down, odd", 1, 8, 16, 15, 31, 3, 2, 1, N, false, true, false, ALL, ALL, ALL},
    {"stride 3, no padding", 1, 3, 5, 17, 19, 3, 3, 0, E, false, false, false, ALL, ALL, ALL},
    {"no padding", 1, 6, 6, 9, 7, 3, 1, 0, N, false, true, false, ALL, ALL, ALL},
    {"wide padding", 1, 2, 3, 6, 5, 3, 1, 2, N, false, false, false, ALL, ALL, ALL},
    {"even kernel", 1, 3, 4, 10, 10, 2, 2, 0, N, false, false, false, ALL, ALL, ALL},
    {"inner output", 1, 16, 16, 12, 12, 3, 1, 1, E, false, true, false, ALL, R(3, 4, 5, 6), ALL},
    {"corner output", 2, 8, 8, 12, 12, 3, 1, 1, N, true, true, false, ALL, R(0, 0, 5, 7), ALL},
    {"last corner output", 1, 8, 8, 12, 12, 3, 1, 1, N, true, true, false, ALL, R(7, 5, 5, 7), ALL},
    {"just enough input", 2, 64, 64, 12, 12, 3, 1, 1, N, true, true, false, R(2, 3, 7, 8),
     R(3, 4, 5, 6), R(3, 4, 5, 6)},
    {"input to the border", 1, 8, 8, 12, 12, 3, 1, 1, N, true, false, false, R(0, 0, 7, 12),
     R(0, 0, 6, 12), R(0, 0, 12, 12)},
    {"more input than needed", 1, 8, 8, 16, 16, 3, 1, 1, E, true, true, false, R(1, 2, 13, 14),
     R(5, 6, 3, 4), R(4, 6, 6, 5)},
    {"one output pixel", 1, 8, 8, 9, 9, 3, 1, 1, N, false, true, false, R(3, 3, 3, 3),
     R(4, 4, 1, 1), ALL},
    {"stride 2, part of it", 1, 8, 8, 16, 16, 3, 2, 1, N, false, true, false, R(3, 1, 9, 9),
     R(2, 1, 4, 4), ALL},
    {"stride 2, at the border", 1, 8, 8, 15, 15, 3, 2, 1, N, false, true, false, R(7, 7, 8, 8),
     R(4, 4, 4, 4), ALL},
    {"5x5, part of it", 2, 4, 64, 20, 20, 5, 1, 2, E, false, true, false, R(2, 0, 11, 9),
     R(4, 0, 7, 7), ALL},
    {"1x1, part of it", 1, 64, 64, 10, 10, 1, 1, 0, N, true, true, false, R(1, 2, 8, 7),
     R(2, 3, 5, 5), R(1, 3, 6, 6)},
    {"padded centre", 2, 64, 64, 16, 16, 3, 1, 1, N, false, true, true, R(4, 4, 8, 8), ALL, ALL},
    {"padded centre, part", 1, 8, 8, 16, 16, 3, 1, 1, E, true, true, true, R(4, 4, 8, 8),
     R(2, 3, 9, 7), ALL},
    {"all of it in the pad", 1, 3, 5, 16, 16, 3, 1, 1, E, false, true, true, R(8, 8, 4, 4),
     R(0, 0, 4, 5), ALL},
    {"padded, stride 2", 1, 8, 8, 16, 16, 3, 2, 1, N, false, false, true, R(4, 4, 8, 8), ALL, ALL},
    {"padded, 1x1", 1, 8, 8, 8, 8, 1, 1, 0, N, false, true, true, R(2, 2, 4, 4), ALL, ALL},
    {"padded, one pixel left", 1, 16, 16, 8, 8, 5, 1, 2, N, false, false, true, R(3, 4, 1, 1), ALL,
     ALL},
};

#undef N
#undef E
#undef R
#undef ALL

static void get(int i, struct ops_case *c)
{
    const struct row *r = &rows[i];
    struct us_conv2d_desc *d = &c->d.conv2d;
    (void)snprintf(c->name, sizeof(c->name), "conv2d, %s: %d x %d->%d, %dx%d, k %d, s %d, p %d",
                   r->what, r->n, r->ci, r->co, r->h, r->w, r->k, r->stride, r->pad);
    int oh = (r->h + 2 * r->pad - r->k) / r->stride + 1;
    int ow = (r->w + 2 * r->pad - r->k) / r->stride + 1;
    d->in = ops_map(r->n, r->h, r->w, r->ci, r->in, r->zero);
    d->out = ops_map(r->n, oh, ow, r->co, r->out, false);
    d->res = ops_map(r->n, oh, ow, r->co, r->res, false);
    d->k = r->k;
    d->stride = r->stride;
    d->pad = r->pad;
    d->act = r->act;
    d->residual = r->residual;
    d->tail = r->tail;
    c->in[0] = &d->in;
    c->in[1] = r->residual ? &d->res : NULL;
    c->out = &d->out;
    c->tail = r->tail;
    c->fan_in = (int64_t)r->ci * r->k * r->k;
    c->n_w = c->fan_in * r->co;
    c->n_b = r->co;
    c->n_scale = r->tail ? r->co : 0;
    c->spread = 2;
}

/* Adds in[ci] * w[co, ci] to every output that the pixel (y, x) meets. */
static void scatter(const struct us_conv2d_desc *d, const float *w, int32_t y, int32_t x, double v,
                    double *plane)
{
    for (int32_t ky = 0; ky < d->k; ky++)
        for (int32_t kx = 0; kx < d->k; kx++) {
            int32_t oy = y + d->pad - ky;
            int32_t ox = x + d->pad - kx;
            if (oy < 0 || ox < 0 || oy % d->stride != 0 || ox % d->stride != 0)
                continue;
            oy /= d->stride;
            ox /= d->stride;
            if (oy < d->out.full_h && ox < d->out.full_w)
                plane[(int64_t)oy * d->out.full_w + ox] += v * (double)w[ky * d->k + kx];
        }
}

static void finish(const struct us_conv2d_desc *d, const struct ops_data *data, double *out)
{
    double *res = d->residual ? ops_expand(&d->res, data->in[1]) : NULL;
    int64_t plane = (int64_t)d->out.full_h * d->out.full_w;
    for (int64_t i = 0; i < ops_at(&d->out, d->out.n, 0, 0, 0); i++) {
        out[i] += (double)data->b[i / plane % d->out.c];
        if (d->act == US_ACT_ELU)
            out[i] = ops_elu(out[i]);
        if (res != NULL)
            out[i] += res[i];
    }
    free(res);
}

static void oracle(const struct ops_case *c, const struct ops_data *data, double *out)
{
    const struct us_conv2d_desc *d = &c->d.conv2d;
    double *in = ops_expand(&d->in, data->in[0]);
    int32_t kk = d->k * d->k;
    for (int32_t n = 0; n < d->in.n; n++)
        for (int32_t ci = 0; ci < d->in.c; ci++)
            for (int32_t y = 0; y < d->in.full_h; y++)
                for (int32_t x = 0; x < d->in.full_w; x++) {
                    double v = in[ops_at(&d->in, n, ci, y, x)];
                    for (int32_t co = 0; co < d->out.c; co++)
                        scatter(d, data->w + ((int64_t)co * d->in.c + ci) * kk, y, x, v,
                                out + ops_at(&d->out, n, co, 0, 0));
                }
    free(in);
    finish(d, data, out);
}

const struct ops_suite ops_conv2d_suite = {
    .n_cases = US_COUNT(rows),
    .get = get,
    .oracle = oracle,
    .tol_f32 = 1e-5,           /* the order of up to 1600 additions */
    .tol_bf16 = 0x1p-8 + 1e-5, /* and one rounding of the output */
};
