/* Folded batch norm and ELU cases; the oracle uses libm's expm1. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops_test.h"

struct row {
    const char *what;
    int n, c, h, w;
    bool zero;
    double spread;
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
    {"one number", 1, 1, 1, 1, false, 2, ALL, ALL},
    {"prime", 3, 13, 7, 11, false, 4, ALL, ALL},
    {"odd channels", 1, 65, 5, 3, false, 4, ALL, ALL},
    {"wide", 1, 1024, 3, 2, false, 4, ALL, ALL},
    {"near zero", 1, 16, 9, 9, false, 1e-4, ALL, ALL},
    {"saturated", 1, 16, 9, 9, false, 1e4, ALL, ALL},
    {"whole patch", 1, 64, 64, 64, false, 4, ALL, ALL},
    {"part of it", 2, 64, 12, 12, false, 4, ALL, R(3, 4, 5, 6)},
    {"just enough", 2, 8, 12, 12, false, 4, R(3, 4, 5, 6), R(3, 4, 5, 6)},
    {"one column of it", 1, 8, 12, 12, false, 4, R(1, 4, 9, 2), R(3, 5, 7, 1)},
    {"padded", 2, 64, 8, 8, true, 4, R(2, 2, 4, 4), ALL},
    {"padded, part", 1, 7, 8, 8, true, 4, R(2, 2, 4, 4), R(1, 3, 4, 5)},
    {"all in the pad", 1, 7, 8, 8, true, 4, R(5, 5, 3, 3), R(0, 0, 4, 4)},
};

#undef R
#undef ALL

static void get(int i, struct ops_case *c)
{
    const struct row *r = &rows[i];
    struct us_affine_elu_desc *d = &c->d.affine_elu;
    (void)snprintf(c->name, sizeof(c->name), "affine_elu, %s: %d x %d, %dx%d", r->what, r->n, r->c,
                   r->h, r->w);
    d->in = ops_map(r->n, r->h, r->w, r->c, r->in, r->zero);
    d->out = ops_map(r->n, r->h, r->w, r->c, r->out, false);
    c->in[0] = &d->in;
    c->out = &d->out;
    c->n_scale = r->c;
    c->spread = r->spread;
}

static void oracle(const struct ops_case *c, const struct ops_data *data, double *out)
{
    const struct us_affine_elu_desc *d = &c->d.affine_elu;
    double *in = ops_expand(&d->in, data->in[0]);
    memcpy(out, in, (size_t)ops_at(&d->out, d->out.n, 0, 0, 0) * sizeof(*out));
    ops_oracle_tail(&d->out, data, out);
    free(in);
}

const struct ops_suite ops_affine_elu_suite = {
    .n_cases = US_COUNT(rows),
    .get = get,
    .oracle = oracle,
    .tol_f32 = 1e-6,           /* 2 ulp of the polynomial, one of the affine part */
    .tol_bf16 = 0x1p-8 + 1e-6, /* and one rounding of the output */
};
