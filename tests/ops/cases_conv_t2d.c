/* Transposed convolution cases; the oracle is the definition of model-spec 2, a scatter. */
#include <stdio.h>
#include <stdlib.h>

#include "ops_test.h"

struct row {
    const char *what;
    int n, ci, co, h, w; /* h, w of the full input map */
    bool tail, zero;
    struct us_rect in, out;
};

#define R(y, x, h, w)                                                                              \
    {                                                                                              \
        y, x, h, w                                                                                 \
    }
#define ALL                                                                                        \
    {                                                                                              \
        0, 0, 0, 0                                                                                 \
    }

static const struct row rows[] = {
    {"one pixel", 1, 1, 1, 1, 1, false, false, ALL, ALL},
    {"one row", 2, 3, 5, 1, 7, true, false, ALL, ALL},
    {"one column", 1, 5, 3, 6, 1, true, false, ALL, ALL},
    {"prime", 3, 7, 11, 5, 13, true, false, ALL, ALL},
    {"up from 4", 1, 64, 64, 4, 4, true, false, ALL, ALL},
    {"up from 16", 2, 64, 64, 16, 16, false, false, ALL, ALL},
    {"up from 32", 1, 64, 64, 32, 32, true, false, ALL, ALL},
    {"odd corner", 1, 8, 8, 8, 8, true, false, R(0, 0, 4, 4), R(0, 0, 7, 7)},
    {"even corner", 1, 8, 8, 8, 8, true, false, R(0, 0, 5, 4), R(0, 0, 8, 6)},
    {"begins even", 2, 16, 8, 8, 8, true, false, R(2, 3, 3, 3), R(4, 6, 5, 4)},
    {"begins odd", 1, 16, 8, 8, 8, false, false, R(2, 3, 4, 3), R(5, 7, 6, 4)},
    {"just the last", 1, 8, 16, 8, 8, true, false, R(7, 7, 1, 1), R(15, 15, 1, 1)},
    {"one even pixel", 1, 4, 4, 8, 8, true, false, R(3, 4, 1, 1), R(6, 8, 1, 1)},
    {"one odd pixel", 1, 4, 4, 8, 8, true, false, R(3, 4, 2, 2), R(7, 9, 1, 1)},
    {"more than needed", 1, 64, 64, 16, 16, true, false, R(2, 1, 13, 14), R(10, 9, 11, 12)},
    {"padded centre", 2, 8, 8, 8, 8, true, true, R(2, 2, 4, 4), ALL},
    {"padded, part", 1, 64, 64, 8, 8, true, true, R(2, 2, 4, 4), R(1, 3, 9, 8)},
    {"all of it in the pad", 1, 3, 4, 8, 8, true, true, R(6, 6, 2, 2), R(0, 0, 5, 5)},
};

#undef R
#undef ALL

static void get(int i, struct ops_case *c)
{
    const struct row *r = &rows[i];
    struct us_conv_t2d_desc *d = &c->d.conv_t2d;
    (void)snprintf(c->name, sizeof(c->name), "conv_t2d, %s: %d x %d->%d, %dx%d", r->what, r->n,
                   r->ci, r->co, r->h, r->w);
    d->in = ops_map(r->n, r->h, r->w, r->ci, r->in, r->zero);
    d->out = ops_map(r->n, 2 * r->h, 2 * r->w, r->co, r->out, false);
    d->tail = r->tail;
    c->in[0] = &d->in;
    c->out = &d->out;
    c->tail = r->tail;
    c->fan_in = (int64_t)r->ci * 9 / 4 + 1;
    c->n_w = (int64_t)r->ci * r->co * 9;
    c->n_b = r->co;
    c->n_scale = r->tail ? r->co : 0;
    c->spread = 2;
}

static void scatter(const struct us_conv_t2d_desc *d, const float *w, int32_t iy, int32_t ix,
                    double v, double *plane)
{
    for (int32_t ky = 0; ky < 3; ky++)
        for (int32_t kx = 0; kx < 3; kx++) {
            int32_t oy = 2 * iy - 1 + ky;
            int32_t ox = 2 * ix - 1 + kx;
            if (oy >= 0 && ox >= 0 && oy < d->out.full_h && ox < d->out.full_w)
                plane[(int64_t)oy * d->out.full_w + ox] += v * (double)w[3 * ky + kx];
        }
}

static void oracle(const struct ops_case *c, const struct ops_data *data, double *out)
{
    const struct us_conv_t2d_desc *d = &c->d.conv_t2d;
    double *in = ops_expand(&d->in, data->in[0]);
    for (int32_t n = 0; n < d->in.n; n++)
        for (int32_t ci = 0; ci < d->in.c; ci++)
            for (int32_t y = 0; y < d->in.full_h; y++)
                for (int32_t x = 0; x < d->in.full_w; x++)
                    for (int32_t co = 0; co < d->out.c; co++)
                        scatter(d, data->w + ((int64_t)ci * d->out.c + co) * 9, y, x,
                                in[ops_at(&d->in, n, ci, y, x)],
                                out + ops_at(&d->out, n, co, 0, 0));
    int64_t plane = (int64_t)d->out.full_h * d->out.full_w;
    for (int64_t i = 0; i < ops_at(&d->out, d->out.n, 0, 0, 0); i++)
        out[i] += (double)data->b[i / plane % d->out.c];
    free(in);
}

const struct ops_suite ops_conv_t2d_suite = {
    .n_cases = US_COUNT(rows),
    .get = get,
    .oracle = oracle,
    .tol_f32 = 1e-5,           /* the order of up to 256 additions */
    .tol_bf16 = 0x1p-8 + 1e-5, /* and one rounding of the output */
};
