/*
 * Posterior sample cases. The oracle has its own Philox, written from the paper with the counter
 * layout of math/us_philox_math.h's comment, and libm's log, sin, cos, exp in double.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ops_test.h"

struct row {
    const char *what;
    int n, z, h, w, level;
    double clip, spread;
    bool hook, image, zero;
    int64_t centre;
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
    {"one number", 1, 1, 1, 1, 0, 20, 2, true, false, false, 0, ALL, ALL},
    {"hook, prime", 2, 7, 5, 11, 3, 20, 4, true, false, false, 0, ALL, ALL},
    {"hook, network's", 3, 128, 8, 8, 1, 20, 4, true, false, false, 0, ALL, ALL},
    {"hook, clipped", 1, 16, 8, 8, 2, 1.5, 50, true, false, false, 0, ALL, ALL},
    {"hook, no clip", 1, 16, 8, 8, 2, INFINITY, 200, true, false, false, 0, ALL, ALL},
    {"hook, part of it", 2, 12, 12, 12, 7, 20, 4, true, false, false, 0, R(2, 3, 8, 9),
     R(3, 4, 5, 6)},
    {"patch, one number", 1, 1, 1, 1, 0, 20, 2, false, false, false, 0, ALL, ALL},
    {"patch, prime", 3, 7, 5, 11, 3, 20, 4, false, false, false, 0, ALL, ALL},
    {"patch, network's", 1, 128, 32, 32, 0, 20, 4, false, false, false, 0, ALL, ALL},
    {"patch, widest", 1, 1024, 2, 3, 15, 20, 4, false, false, false, 0, ALL, ALL},
    {"patch, part of it", 2, 128, 12, 12, 4, 20, 4, false, false, false, 0, ALL, R(3, 4, 5, 6)},
    {"image, at 0", 2, 128, 8, 8, 0, 20, 4, false, true, false, 0, ALL, ALL},
    {"image, odd side", 1, 6, 7, 9, 2, 20, 4, false, true, false, 1001, ALL, ALL},
    {"image, far out", 1, 5, 4, 6, 5, 20, 4, false, true, false, -12345678901, ALL, ALL},
    {"image, part of it", 2, 32, 12, 12, 1, 20, 4, false, true, false, -77, R(2, 3, 8, 9),
     R(3, 4, 5, 6)},
    {"padded", 1, 9, 8, 8, 1, 20, 4, false, false, true, 0, R(2, 2, 4, 4), ALL},
    {"padded, hook", 2, 8, 8, 8, 1, 20, 4, true, false, true, 0, R(2, 2, 4, 4), R(1, 0, 4, 5)},
};

#undef R
#undef ALL

static void get(int i, struct ops_case *c)
{
    const struct row *r = &rows[i];
    struct us_latent_desc *d = &c->d.latent;
    (void)snprintf(c->name, sizeof(c->name), "latent, %s: %d x %d, %dx%d, level %d", r->what, r->n,
                   r->z, r->h, r->w, r->level);
    d->in = ops_map(r->n, r->h, r->w, 2 * r->z, r->in, r->zero);
    d->out = ops_map(r->n, r->h, r->w, r->z, r->out, false);
    d->level = r->level;
    d->var_clip_max = (float)r->clip;
    c->in[0] = &d->in;
    c->out = &d->out;
    c->spread = r->spread;
    c->eps_hook = r->hook;
    c->image_keyed = r->image;
    c->centre = r->centre;
}

static void philox(uint64_t key, const uint64_t counter[4], uint64_t w[4])
{
    const uint64_t mask = 0xffffffffu;
    uint64_t k[2] = {key & mask, key >> 32};
    for (int i = 0; i < 4; i++)
        w[i] = counter[i];
    for (int round = 0; round < 10; round++) {
        uint64_t low = w[0] * 0xd2511f53u;
        uint64_t high = w[2] * 0xcd9e8d57u;
        uint64_t next[4] = {(high >> 32) ^ w[1] ^ k[0], high & mask, (low >> 32) ^ w[3] ^ k[1],
                            low & mask};
        for (int i = 0; i < 4; i++)
            w[i] = next[i];
        k[0] = (k[0] + 0x9e3779b9u) & mask;
        k[1] = (k[1] + 0xbb67ae85u) & mask;
    }
}

static uint64_t absolute(int64_t centre, int32_t level, int32_t size, int32_t j)
{
    int64_t pitch = (int64_t)1 << (level + 1);
    int64_t base = (int64_t)floor((double)centre / (double)pitch);
    return (uint64_t)(base + j - size / 2) & 0xffffffffu;
}

static double draw(const struct us_latent_desc *d, const struct us_noise *z, int32_t c, int32_t y,
                   int32_t x)
{
    uint64_t counter[4] = {z->patch, (uint64_t)y * 65536 + (uint64_t)x, 0, z->frame};
    if (z->image_keyed) {
        counter[0] = absolute(z->centre_x, d->level, d->out.full_w, x);
        counter[1] = absolute(z->centre_y, d->level, d->out.full_h, y);
    }
    counter[2] = (z->image_keyed ? (uint64_t)1 << 31 : 0) + ((uint64_t)d->level << 26) +
                 ((uint64_t)c / 4 << 16) + z->sample;
    uint64_t w[4];
    philox(z->seed, counter, w);
    const uint64_t *pair = w + (c % 4 < 2 ? 0 : 2);
    double u = ((double)(pair[0] / 2) * 2 + 1) / 4294967296.0;
    double r = sqrt(-2 * log(u < 1 ? u : 1));
    double angle = 2 * M_PI * ((double)pair[1] / 4294967296.0);
    return c % 2 == 0 ? r * cos(angle) : r * sin(angle);
}

static double sample(const struct us_latent_desc *d, double mean, double lv, double eps)
{
    lv = fmin(lv, (double)d->var_clip_max);
    double var = (lv <= 0 ? exp(lv) : 1 + lv) + 1e-6;
    return mean + sqrt(var) * eps;
}

static void oracle(const struct ops_case *c, const struct ops_data *data, double *out)
{
    const struct us_latent_desc *d = &c->d.latent;
    double *in = ops_expand(&d->in, data->in[0]);
    const struct us_map *o = &d->out;
    for (int32_t n = 0; n < o->n; n++)
        for (int32_t ch = 0; ch < o->c; ch++)
            for (int32_t y = 0; y < o->full_h; y++)
                for (int32_t x = 0; x < o->full_w; x++) {
                    int64_t hook_at = ((int64_t)y * o->full_w + x) * o->c + ch;
                    double eps = c->eps_hook ? (double)data->eps[n][hook_at]
                                             : draw(d, &data->noise[n], ch, y, x);
                    out[ops_at(o, n, ch, y, x)] =
                        sample(d, in[ops_at(&d->in, n, ch, y, x)],
                               in[ops_at(&d->in, n, o->c + ch, y, x)], eps);
                }
    free(in);
}

const struct ops_suite ops_latent_suite = {
    .n_cases = US_COUNT(rows),
    .get = get,
    .oracle = oracle,
    .tol_f32 = 2e-6,           /* a few ulp of log, sine and exp */
    .tol_bf16 = 0x1p-8 + 2e-6, /* and one rounding of the output */
};
