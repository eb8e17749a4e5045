/* Deterministic filling of models and inputs; see us_vectors.h and model-spec 20.1. */
#include "us_vectors.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

uint32_t us_vectors_seed(const char *name)
{
    uint32_t h = 2166136261u;
    for (const unsigned char *p = (const unsigned char *)name; *p != '\0'; p++)
        h = (h ^ *p) * 16777619u;
    return h;
}

static double next_uniform(uint32_t *state)
{
    *state = 1664525u * *state + 1013904223u;
    return (double)(*state >> 8) / 16777216.0;
}

void us_vectors_uniform(const char *name, double *u, int64_t n)
{
    uint32_t state = us_vectors_seed(name);
    for (int64_t i = 0; i < n; i++)
        u[i] = next_uniform(&state);
}

void us_vectors_normalised(const char *name, float *out, int64_t n)
{
    uint32_t state = us_vectors_seed(name);
    const double scale = 2.0 * sqrt(3.0);
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(scale * (next_uniform(&state) - 0.5));
}

/* value = add + scale * u, by the first rule of 20.1 that fits the name and the rank. */
struct fill_rule {
    double add, scale;
};

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), t = strlen(tail);
    return n >= t && memcmp(s + n - t, tail, t) == 0;
}

static struct fill_rule centred(double scale)
{
    return (struct fill_rule){.add = -0.5 * scale, .scale = scale};
}

static struct fill_rule fill_rule_of(const struct us_param *p)
{
    if (ends_with(p->name, ".running_var"))
        return (struct fill_rule){.add = 0.5, .scale = 1.0};
    if (ends_with(p->name, ".running_mean") || ends_with(p->name, "top_prior_params"))
        return centred(0.2);
    if (p->ndim == 4)
        return centred(2.0 * sqrt(3.0 / (double)(p->dim[1] * p->dim[2] * p->dim[3])));
    if (ends_with(p->name, ".weight"))
        return (struct fill_rule){.add = 0.8, .scale = 0.4};
    return centred(0.2);
}

void us_vectors_fill_model(struct us_model *m)
{
    for (int32_t i = 0; i < m->net->n_params; i++) {
        const struct us_param *p = &m->net->params[i];
        if (p->alias_of >= 0)
            continue;
        if (p->kind == US_PARAM_BN_COUNT) {
            memset(m->counters + p->offset, 0, (size_t)p->count * sizeof(*m->counters));
            continue;
        }
        uint32_t state = us_vectors_seed(p->name);
        struct fill_rule rule = fill_rule_of(p);
        for (int64_t k = 0; k < p->count; k++)
            m->weights[p->offset + k] = (float)(rule.add + rule.scale * next_uniform(&state));
    }
}
