/*
 * Models in memory: allocation, initialisation, release (us_model.h). Files are in
 * us_model_file*.c.
 *
 * Initialisation is the framework's default (model-spec 2): convolution weights and biases are
 * U(-b, b) with b = 1/sqrt(fan_in). The uniform numbers come from Philox, keyed by the seed and
 * counted by parameter and element, so a parameter's values depend on nothing but its place in
 * the table.
 */
#include "us_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "math/us_philox_math.h"
#include "us_model_file.h"
#include "us_stats.h"

#define DEFAULT_INNER_PADDING 24 /* the paper's, for a patch of 64 */

/* Fourth counter word of the initialisation: no frame has this number (us_philox_math.h), so no
 * weight repeats a latent's noise under the same seed. */
#define INIT_DOMAIN 0x74696e69u

void us_model_free(struct us_model *m)
{
    if (m == NULL)
        return;
    free(m->extra_json);
    free(m->weights);
    free(m->counters);
    us_net_free(m->net);
    free(m);
}

enum us_status usi_model_alloc(const struct us_arch *arch, int32_t patch, struct us_model **ret,
                               struct us_err *err)
{
    struct us_model *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return us_fail(err, US_E_NOMEM, "model: out of memory");
    m->arch = *arch;
    m->patch_size = patch;
    enum us_status s = us_net_build(arch, patch, patch, &m->net, err);
    if (s != US_OK)
        us_model_free(m);
    else
        *ret = m;
    return s;
}

enum us_status usi_model_alloc_blocks(struct us_model *m, struct us_err *err)
{
    int64_t bytes = m->net->n_floats * (int64_t)sizeof(*m->weights);
    if (bytes > US_MAX_MODEL_BYTES)
        return us_fail(err, US_E_TOO_LARGE,
                       "the network's parameters take %lld bytes; expected at most %lld",
                       (long long)bytes, (long long)US_MAX_MODEL_BYTES);
    /* calloc: pages of parameters that nobody fills stay untouched. */
    m->weights = calloc((size_t)m->net->n_floats, sizeof(*m->weights));
    m->counters = calloc((size_t)m->net->n_counters + 1, sizeof(*m->counters));
    if (m->weights == NULL || m->counters == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the %lld bytes of the network's parameters",
                       (long long)bytes);
    return US_OK;
}

/* out[0..n) = U(-b, b), 24 bits each, for parameter `index` of the table. */
static void fill_uniform(float *out, int64_t n, float b, uint32_t index, uint64_t seed)
{
    for (int64_t i = 0; i < n; i += 4) {
        uint64_t block = (uint64_t)i / 4;
        struct us_philox c = {{(uint32_t)block, (uint32_t)(block >> 32), index, INIT_DOMAIN}};
        struct us_philox r = us_philox4x32(c, (uint32_t)seed, (uint32_t)(seed >> 32));
        for (int64_t k = i; k < n && k < i + 4; k++)
            out[k] = b * ((float)us_int_of_bits(r.w[k - i] >> 8) * 0x1p-23f - 1.0f);
    }
}

static void fill_constant(float *out, int64_t n, float value)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = value;
}

/* Dimension 1 counts for both kinds of convolution: Cin, or Cout of a transposed one (spec 2). */
static float conv_bound(const struct us_param *w)
{
    US_ASSERT(w->kind == US_PARAM_CONV_W);
    return (float)(1.0 / sqrt((double)(w->dim[1] * w->dim[2] * w->dim[3])));
}

static void init_param(struct us_model *m, int32_t i, uint64_t seed)
{
    const struct us_param *p = &m->net->params[i];
    float *out = m->weights + p->offset;
    switch (p->kind) {
    case US_PARAM_CONV_W:
        fill_uniform(out, p->count, conv_bound(p), (uint32_t)i, seed);
        break;
    case US_PARAM_CONV_B: /* follows its weight in the table */
        fill_uniform(out, p->count, conv_bound(p - 1), (uint32_t)i, seed);
        break;
    case US_PARAM_BN_W:
    case US_PARAM_BN_VAR:
        fill_constant(out, p->count, 1.0f);
        break;
    case US_PARAM_BN_B:
    case US_PARAM_BN_MEAN:
    case US_PARAM_BN_COUNT:
    case US_PARAM_PRIOR:
        break; /* the blocks are zero already */
    }
}

static void set_default_data(struct us_model *m)
{
    (void)snprintf(m->name, sizeof(m->name), "untitled");
    m->data.input_std = 1.0;
    for (int32_t c = 0; c < m->arch.target_channels; c++) {
        (void)snprintf(m->data.channels[c], US_MAX_NAME, "channel %d", (int)c + 1);
        m->data.target_std[c] = 1.0;
        m->data.clip[c] = INFINITY;
        m->cal_slope[c] = 1.0;
    }
    int32_t most = m->patch_size / 2 - 1;
    m->inner_padding = most < DEFAULT_INNER_PADDING ? most : DEFAULT_INNER_PADDING;
    m->samples = 1;
}

enum us_status us_model_new(const struct us_arch *arch, int32_t patch, uint64_t seed,
                            struct us_model **ret, struct us_err *err)
{
    struct us_model *m;
    US_TRY(usi_model_alloc(arch, patch, &m, err));
    enum us_status s = usi_model_alloc_blocks(m, err);
    if (s != US_OK) {
        us_model_free(m);
        return s;
    }
    for (int32_t i = 0; i < m->net->n_params; i++) {
        if (m->net->params[i].alias_of < 0)
            init_param(m, i, seed);
    }
    set_default_data(m);
    m->complete = true;
    *ret = m;
    return US_OK;
}

/* The largest bound of the targets: for equal ones, as in every published data set, their common
 * value. A target without a bound leaves the mixture without one. */
double us_model_input_clip(const struct us_model *m)
{
    if (!m->data.has_clip)
        return INFINITY;
    double clip = -INFINITY;
    for (int32_t c = 0; c < m->arch.target_channels; c++)
        clip = fmax(clip, m->data.clip[c]);
    return clip;
}

void us_model_set_stats(struct us_model *m, const struct us_stats *st)
{
    struct us_model_data *d = &m->data;
    d->has_clip = true;
    d->input_mean = st->input_mean;
    d->input_std = st->input_std;
    for (int32_t c = 0; c < m->arch.target_channels; c++) {
        d->clip[c] = st->clip[c];
        d->target_mean[c] = st->target_mean[c];
        d->target_std[c] = st->target_std[c];
    }
}
