/* The data of a case: a deterministic generator, and maps as whole NCHW arrays of double. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "math/us_bf16_math.h"
#include "ops_test.h"

struct us_map ops_map(int32_t n, int32_t h, int32_t w, int32_t c, struct us_rect rect, bool zero)
{
    struct us_map m = us_map_full(n, h, w, c, US_F32);
    if (rect.h > 0)
        m.rect = rect;
    m.zero_outside = zero;
    return m;
}

/* splitmix64: small, and has nothing to do with the generator under test. */
static uint64_t next_word(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t ops_seed(const char *name)
{
    uint64_t h = 5381;
    for (; *name != '\0'; name++)
        h = h * 33 + (unsigned char)*name;
    return h;
}

float *ops_uniform(uint64_t *state, int64_t n, double lo, double hi, bool bf16)
{
    float *p = malloc((size_t)(n > 0 ? n : 1) * sizeof(*p));
    assert_non_null(p);
    for (int64_t i = 0; i < n; i++) {
        double u = (double)(next_word(state) >> 11) * 0x1p-53;
        p[i] = (float)(lo + (hi - lo) * u);
        if (bf16)
            p[i] = us_f32_of_bf16(us_bf16_of_f32(p[i]));
    }
    return p;
}

static void make_noise(const struct ops_case *c, uint64_t *state, struct ops_data *d)
{
    int64_t n_eps = (int64_t)c->out->full_h * c->out->full_w * c->out->c;
    for (int32_t n = 0; n < c->out->n; n++) {
        struct us_noise *z = &d->noise[n];
        z->seed = next_word(state);
        z->frame = (uint32_t)next_word(state);
        z->sample = (uint32_t)next_word(state) & 0xffffu;
        z->patch = (uint32_t)next_word(state);
        z->image_keyed = c->image_keyed;
        z->centre_y = c->centre;
        z->centre_x = -3 * c->centre - n;
        if (!c->eps_hook)
            continue;
        d->eps[n] = ops_uniform(state, n_eps, -3, 3, false);
        d->eps_levels[n][c->d.latent.level] = d->eps[n];
        z->eps = d->eps_levels[n];
    }
}

void ops_data_make(const struct ops_case *c, bool bf16, struct ops_data *d)
{
    uint64_t state = ops_seed(c->name);
    memset(d, 0, sizeof(*d));
    for (int i = 0; i < US_OP_MAX_IN; i++)
        if (c->in[i] != NULL)
            d->in[i] = ops_uniform(&state, us_map_count(c->in[i]), -c->spread, c->spread, bf16);
    /* Two bits below bf16's: one number in four lies half way. */
    for (int64_t i = 0; c->ties && !bf16 && i < us_map_count(c->in[0]); i++)
        d->in[0][i] = us_float_of_bits(us_bits_of_float(d->in[0][i]) & 0xffffc000u);
    if (c->n_w > 0) {
        double a = sqrt(3.0 / (double)c->fan_in);
        d->w = ops_uniform(&state, c->n_w, -a, a, bf16);
    }
    if (c->n_b > 0)
        d->b = ops_uniform(&state, c->n_b, -0.5, 0.5, false);
    if (c->n_scale > 0) {
        d->scale = ops_uniform(&state, c->n_scale, -1.5, 1.5, false);
        d->shift = ops_uniform(&state, c->n_scale, -0.5, 0.5, false);
    }
    if (c->kind == US_OP_latent)
        make_noise(c, &state, d);
}

void ops_data_free(struct ops_data *d)
{
    for (int i = 0; i < US_OP_MAX_IN; i++)
        free(d->in[i]);
    for (int i = 0; i < OPS_MAX_N; i++)
        free(d->eps[i]);
    free(d->w);
    free(d->b);
    free(d->scale);
    free(d->shift);
}

int64_t ops_at(const struct us_map *m, int32_t n, int32_t c, int32_t y, int32_t x)
{
    return (((int64_t)n * m->c + c) * m->full_h + y) * m->full_w + x;
}

double *ops_expand(const struct us_map *m, const float *buf)
{
    const struct us_rect *r = &m->rect;
    int64_t count = ops_at(m, m->n, 0, 0, 0);
    double *full = malloc((size_t)count * sizeof(*full));
    assert_non_null(full);
    for (int64_t i = 0; i < count; i++)
        full[i] = m->zero_outside ? 0.0 : NAN;
    for (int32_t n = 0; n < m->n; n++)
        for (int32_t y = 0; y < r->h; y++)
            for (int32_t x = 0; x < r->w; x++)
                for (int32_t c = 0; c < m->c; c++)
                    full[ops_at(m, n, c, r->y0 + y, r->x0 + x)] = (double)*buf++;
    return full;
}

void ops_crop(const struct us_map *m, const double *full, float *out)
{
    const struct us_rect *r = &m->rect;
    for (int32_t n = 0; n < m->n; n++)
        for (int32_t y = 0; y < r->h; y++)
            for (int32_t x = 0; x < r->w; x++)
                for (int32_t c = 0; c < m->c; c++)
                    *out++ = (float)full[ops_at(m, n, c, r->y0 + y, r->x0 + x)];
}

double ops_elu(double x)
{
    return x > 0 ? x : expm1(x);
}

void ops_oracle_tail(const struct us_map *m, const struct ops_data *d, double *full)
{
    int64_t plane = (int64_t)m->full_h * m->full_w;
    for (int64_t i = 0; i < ops_at(m, m->n, 0, 0, 0); i++) {
        int64_t c = i / plane % m->c;
        full[i] = ops_elu((double)d->scale[c] * full[i] + (double)d->shift[c]);
    }
}
