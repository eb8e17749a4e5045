/* Copy cases: rectangles and conversions between f32 and bf16, which must be exact. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "math/us_bf16_math.h"
#include "ops_test.h"

struct row {
    const char *what;
    int n, c, h, w;
    enum us_dtype from, to;
    bool zero;
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
    {"one number", 1, 1, 1, 1, US_F32, US_F32, false, ALL, ALL},
    {"one plane", 1, 1, 64, 64, US_F32, US_F32, false, ALL, ALL},
    {"one plane", 2, 1, 64, 64, US_F32, US_BF16, false, ALL, ALL},
    {"prime", 3, 7, 11, 5, US_F32, US_F32, false, ALL, ALL},
    {"prime", 3, 7, 11, 5, US_F32, US_BF16, false, ALL, ALL},
    {"prime", 3, 7, 11, 5, US_BF16, US_F32, false, ALL, ALL},
    {"prime", 3, 7, 11, 5, US_BF16, US_BF16, false, ALL, ALL},
    {"network's", 1, 64, 32, 32, US_BF16, US_F32, false, ALL, ALL},
    {"part of it", 2, 64, 12, 12, US_F32, US_F32, false, ALL, R(3, 4, 5, 6)},
    {"part of it", 2, 3, 12, 12, US_BF16, US_BF16, false, R(2, 4, 7, 8), R(3, 5, 5, 6)},
    {"part of it", 2, 5, 12, 12, US_F32, US_BF16, false, R(2, 4, 7, 8), R(3, 5, 5, 6)},
    {"one row of it", 1, 4, 12, 12, US_F32, US_F32, false, R(3, 0, 4, 12), R(6, 2, 1, 9)},
    {"padded", 2, 8, 8, 8, US_F32, US_F32, true, R(2, 2, 4, 4), ALL},
    {"padded", 1, 8, 8, 8, US_BF16, US_F32, true, R(2, 3, 4, 4), ALL},
    {"padded", 1, 8, 8, 8, US_F32, US_BF16, true, R(2, 3, 4, 4), R(1, 1, 3, 6)},
    {"all in the pad", 1, 3, 8, 8, US_F32, US_F32, true, R(6, 6, 2, 2), R(0, 0, 3, 5)},
};

#undef R
#undef ALL

static const char *dtype_name(enum us_dtype t)
{
    return t == US_F32 ? "f32" : "bf16";
}

static void get(int i, struct ops_case *c)
{
    const struct row *r = &rows[i];
    struct us_copy_desc *d = &c->d.copy;
    (void)snprintf(c->name, sizeof(c->name), "copy, %s: %d x %d, %dx%d, %s to %s", r->what, r->n,
                   r->c, r->h, r->w, dtype_name(r->from), dtype_name(r->to));
    d->in = ops_map(r->n, r->h, r->w, r->c, r->in, r->zero);
    d->out = ops_map(r->n, r->h, r->w, r->c, r->out, false);
    d->in.dtype = r->from;
    d->out.dtype = r->to;
    c->own_dtypes = true;
    c->ties = true;
    c->in[0] = &d->in;
    c->out = &d->out;
    c->spread = 70000;
}

/* To the nearest of the two bf16 neighbours, by their distances; ties to the even one. */
static double nearest_bf16(double v)
{
    uint32_t low = us_bits_of_float((float)v) & 0xffff0000u;
    uint32_t high = low + 0x10000u;
    double to_low = v - (double)us_float_of_bits(low);
    double to_high = (double)us_float_of_bits(high) - v;
    /* The bits grow with the magnitude; so does the distance's sign with that of v. */
    if (v < 0) {
        to_low = -to_low;
        to_high = -to_high;
    }
    bool up = to_high < to_low || (to_high == to_low && (low & 0x10000u) != 0);
    return (double)us_float_of_bits(up ? high : low);
}

static void oracle(const struct ops_case *c, const struct ops_data *data, double *out)
{
    const struct us_copy_desc *d = &c->d.copy;
    double *in = ops_expand(&d->in, data->in[0]);
    for (int64_t i = 0; i < ops_at(&d->out, d->out.n, 0, 0, 0); i++)
        out[i] = d->out.dtype == US_BF16 ? nearest_bf16(in[i]) : in[i];
    free(in);
}

const struct ops_suite ops_copy_suite = {
    .n_cases = US_COUNT(rows),
    .get = get,
    .oracle = oracle,
    .tol_f32 = 0,
    .tol_bf16 = 0,
};
