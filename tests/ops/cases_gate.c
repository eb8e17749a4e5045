/* Gate cases; the oracle sums over NCHW planes and uses libm's exp. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ops_test.h"

struct row {
    const char *what;
    int n, c, h, w;
    bool tail, zero;
    double spread;
    struct us_rect in, res, out;
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
    {"one number", 1, 1, 1, 1, true, false, 2, ALL, ALL, ALL},
    {"one channel", 2, 1, 5, 7, false, false, 2, ALL, ALL, ALL},
    {"prime", 1, 13, 7, 11, true, false, 2, ALL, ALL, ALL},
    {"odd channels", 3, 65, 3, 5, true, false, 2, ALL, ALL, ALL},
    {"network's", 1, 64, 16, 16, true, false, 2, ALL, ALL, ALL},
    {"network's, batch", 3, 64, 8, 8, false, false, 2, ALL, ALL, ALL},
    {"whole patch", 1, 64, 64, 64, true, false, 2, ALL, ALL, ALL},
    {"saturated", 1, 16, 9, 9, true, false, 300, ALL, ALL, ALL},
    {"wide", 1, 256, 4, 3, true, false, 2, ALL, ALL, ALL},
    {"part of it", 2, 64, 12, 12, true, false, 2, ALL, ALL, R(3, 4, 5, 6)},
    {"just enough", 1, 64, 12, 12, true, false, 2, R(3, 4, 5, 6), R(3, 4, 5, 6), R(3, 4, 5, 6)},
    {"rectangles differ", 2, 8, 12, 12, true, false, 2, R(2, 4, 7, 8), R(3, 1, 9, 10),
     R(3, 5, 5, 6)},
    {"one pixel of it", 1, 8, 12, 12, false, false, 2, ALL, R(2, 1, 3, 4), R(4, 3, 1, 1)},
    {"padded input", 1, 8, 8, 8, true, true, 2, R(2, 2, 4, 4), ALL, ALL},
    {"padded, part", 2, 64, 8, 8, true, true, 2, R(2, 2, 4, 4), R(1, 0, 5, 8), R(1, 1, 4, 6)},
};

#undef R
#undef ALL

static void get(int i, struct ops_case *c)
{
    const struct row *r = &rows[i];
    struct us_gate_desc *d = &c->d.gate;
    (void)snprintf(c->name, sizeof(c->name), "gate, %s: %d x %d, %dx%d", r->what, r->n, r->c, r->h,
                   r->w);
    d->in = ops_map(r->n, r->h, r->w, r->c, r->in, r->zero);
    d->res = ops_map(r->n, r->h, r->w, r->c, r->res, false);
    d->out = ops_map(r->n, r->h, r->w, r->c, r->out, false);
    d->tail = r->tail;
    c->in[0] = &d->in;
    c->in[1] = &d->res;
    c->out = &d->out;
    c->tail = r->tail;
    c->fan_in = r->c;
    c->n_w = 2 * (int64_t)r->c * r->c;
    c->n_b = 2 * (int64_t)r->c;
    c->n_scale = r->tail ? r->c : 0;
    c->spread = r->spread;
}

/* b[row] + w[row] . in at one position */
static double dot(const struct us_map *m, const double *in, const struct ops_data *data,
                  int32_t row, int64_t pixel)
{
    double v = (double)data->b[row];
    for (int32_t ci = 0; ci < m->c; ci++)
        v += (double)data->w[(int64_t)row * m->c + ci] *
             in[(int64_t)ci * m->full_h * m->full_w + pixel];
    return v;
}

static void oracle(const struct ops_case *c, const struct ops_data *data, double *out)
{
    const struct us_gate_desc *d = &c->d.gate;
    double *in = ops_expand(&d->in, data->in[0]);
    double *res = ops_expand(&d->res, data->in[1]);
    int64_t plane = (int64_t)d->out.full_h * d->out.full_w;
    for (int32_t n = 0; n < d->out.n; n++)
        for (int32_t co = 0; co < d->out.c; co++)
            for (int64_t p = 0; p < plane; p++) {
                const double *item = in + ops_at(&d->in, n, 0, 0, 0);
                double a = dot(&d->in, item, data, co, p);
                double g = dot(&d->in, item, data, d->out.c + co, p);
                int64_t at = ops_at(&d->out, n, co, 0, 0) + p;
                out[at] = res[at] + ops_elu(a) / (1 + exp(-g));
            }
    free(in);
    free(res);
}

const struct ops_suite ops_gate_suite = {
    .n_cases = US_COUNT(rows),
    .get = get,
    .oracle = oracle,
    .tol_f32 = 1e-5,           /* the order of the sum; 4 ulp of ELU and sigmoid */
    .tol_bf16 = 0x1p-8 + 1e-5, /* and one rounding of the output */
};
