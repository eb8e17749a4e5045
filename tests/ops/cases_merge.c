/* Merge cases; the oracle concatenates in NCHW first, then multiplies. */
#include <stdio.h>
#include <stdlib.h>

#include "ops_test.h"

struct row {
    const char *what;
    int n, ca, cb, co, h, w;
    bool tail, zero_a, zero_b;
    struct us_rect a, b, out;
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
    {"one pixel", 1, 1, 1, 1, 1, 1, true, false, false, ALL, ALL, ALL},
    {"prime", 2, 5, 7, 11, 13, 3, true, false, false, ALL, ALL, ALL},
    {"unequal", 1, 1, 64, 16, 6, 10, false, false, false, ALL, ALL, ALL},
    {"unequal, other way", 3, 33, 2, 16, 5, 5, true, false, false, ALL, ALL, ALL},
    {"network's", 1, 64, 64, 64, 16, 16, true, false, false, ALL, ALL, ALL},
    {"network's, batch", 3, 64, 64, 64, 8, 8, false, false, false, ALL, ALL, ALL},
    {"whole patch", 1, 64, 64, 64, 64, 64, true, false, false, ALL, ALL, ALL},
    {"part of it", 2, 64, 64, 64, 12, 12, true, false, false, ALL, ALL, R(3, 4, 5, 6)},
    {"just enough", 1, 64, 64, 64, 12, 12, true, false, false, R(3, 4, 5, 6), R(3, 4, 5, 6),
     R(3, 4, 5, 6)},
    {"rectangles differ", 2, 8, 8, 8, 12, 12, true, false, false, R(1, 3, 8, 9), R(2, 0, 9, 12),
     R(3, 4, 5, 6)},
    {"one pixel of it", 1, 8, 8, 8, 12, 12, false, false, false, ALL, R(4, 3, 1, 1), R(4, 3, 1, 1)},
    {"a padded", 2, 64, 64, 64, 16, 16, true, true, false, R(4, 4, 8, 8), ALL, ALL},
    {"b padded", 1, 8, 16, 8, 16, 16, true, false, true, ALL, R(4, 4, 8, 8), ALL},
    {"both padded", 2, 8, 8, 8, 16, 16, true, true, true, R(4, 4, 8, 8), R(1, 6, 9, 9), ALL},
    {"a padded, part", 1, 8, 8, 8, 16, 16, true, true, false, R(4, 4, 8, 8), R(2, 2, 10, 8),
     R(3, 2, 9, 7)},
    {"a all in the pad", 1, 8, 8, 8, 16, 16, true, true, false, R(12, 12, 3, 3), ALL,
     R(0, 0, 5, 5)},
    {"a all in the pad, both sides", 1, 4, 4, 4, 9, 9, true, true, true, R(8, 8, 1, 1),
     R(0, 8, 1, 1), R(2, 2, 3, 3)},
};

#undef R
#undef ALL

static void get(int i, struct ops_case *c)
{
    const struct row *r = &rows[i];
    struct us_merge_desc *d = &c->d.merge;
    (void)snprintf(c->name, sizeof(c->name), "merge, %s: %d x %d+%d->%d, %dx%d", r->what, r->n,
                   r->ca, r->cb, r->co, r->h, r->w);
    d->a = ops_map(r->n, r->h, r->w, r->ca, r->a, r->zero_a);
    d->b = ops_map(r->n, r->h, r->w, r->cb, r->b, r->zero_b);
    d->out = ops_map(r->n, r->h, r->w, r->co, r->out, false);
    d->tail = r->tail;
    c->in[0] = &d->a;
    c->in[1] = &d->b;
    c->out = &d->out;
    c->tail = r->tail;
    c->fan_in = (int64_t)r->ca + r->cb;
    c->n_w = c->fan_in * r->co;
    c->n_b = r->co;
    c->n_scale = r->tail ? r->co : 0;
    c->spread = 2;
}

static void oracle(const struct ops_case *c, const struct ops_data *data, double *out)
{
    const struct us_merge_desc *d = &c->d.merge;
    double *side[2] = {ops_expand(&d->a, data->in[0]), ops_expand(&d->b, data->in[1])};
    int64_t plane = (int64_t)d->out.full_h * d->out.full_w;
    int32_t both = d->a.c + d->b.c;
    for (int32_t n = 0; n < d->out.n; n++)
        for (int32_t ci = 0; ci < both; ci++) {
            const double *in = ci < d->a.c ? side[0] + ops_at(&d->a, n, ci, 0, 0)
                                           : side[1] + ops_at(&d->b, n, ci - d->a.c, 0, 0);
            for (int32_t co = 0; co < d->out.c; co++)
                for (int64_t p = 0; p < plane; p++)
                    out[ops_at(&d->out, n, co, 0, 0) + p] +=
                        in[p] * (double)data->w[(int64_t)co * both + ci];
        }
    for (int64_t i = 0; i < ops_at(&d->out, d->out.n, 0, 0, 0); i++)
        out[i] += (double)data->b[i / plane % d->out.c];
    free(side[0]);
    free(side[1]);
}

const struct ops_suite ops_merge_suite = {
    .n_cases = US_COUNT(rows),
    .get = get,
    .oracle = oracle,
    .tol_f32 = 1e-5,           /* the order of up to 128 additions */
    .tol_bf16 = 0x1p-8 + 1e-5, /* and one rounding of the output */
};
