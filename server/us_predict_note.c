/* Provenance of a prediction; see us_predict_note.h. Members keep this order. */
#include "us_predict_note.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include <jansson.h>

/* JSON has no infinity: "no clip" is null. */
static json_t *number_or_null(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *number_list(const double *v, int32_t n)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < n; i++)
        (void)json_array_append_new(list, number_or_null(v[i]));
    return list;
}

/* Which planes of the input became the network's input. */
static json_t *input_choice(const struct us_predict_file_options *opt)
{
    if (opt->n_mix == 0)
        return json_pack("{s:i}", "channel", (int)(opt->channel < 0 ? 0 : opt->channel));
    json_t *list = json_array();
    for (int32_t i = 0; i < opt->n_mix; i++)
        (void)json_array_append_new(list, json_integer(opt->mix[i]));
    return json_pack("{s:o}", "mix", list);
}

static json_t *plane_list(const struct us_predict_file_options *opt)
{
    json_t *list = json_array();
    if (opt->plane_mean)
        (void)json_array_append_new(list, json_string("mean"));
    if (opt->plane_std)
        (void)json_array_append_new(list, json_string("std"));
    return list;
}

/* The statistics that were applied, so that nobody has to guess them from the pixels. */
static json_t *applied(const struct us_model *m)
{
    int32_t n = m->arch.target_channels;
    return json_pack("{s:o, s:f, s:f, s:o, s:o}", "clip", number_or_null(us_model_input_clip(m)),
                     "input_mean", m->data.input_mean, "input_std", m->data.input_std,
                     "target_mean", number_list(m->data.target_mean, n), "target_std",
                     number_list(m->data.target_std, n));
}

static json_t *build(const struct us_predictor *p, const struct us_model *m,
                     const struct us_predict_config *cfg, const struct us_predict_file_options *opt)
{
    struct us_predictor_stats st = us_predictor_stats(p);
    bool mean = cfg->latent_mean || !m->arch.stochastic;
    return json_pack(
        "{s:s, s:s++, s:o, s:s, s:i, s:s, s:s, s:i, s:I, s:s, s:o, s:s, s:s, s:s, s:o}", "software",
        "usplit " US_VERSION, "model", m->name, "@", m->sha256[0] != '\0' ? m->sha256 : "unsaved",
        "input", input_choice(opt), "tiling", cfg->tiling == US_TILING_OUTER ? "outer" : "inner",
        "padding", (int)cfg->padding, "grid", cfg->grid == US_GRID_SHIFTED ? "shifted" : "fixed",
        "latent", mean ? "mean" : "sample", "samples", (int)cfg->samples, "seed",
        (json_int_t)cfg->seed, "noise", cfg->noise == US_NOISE_IMAGE ? "image" : "patch", "planes",
        plane_list(opt), "dtype", us_pixel_name(opt->dtype), "backend", st.backend, "precision",
        st.precision == US_PREC_BF16 ? "bf16" : "f32", "applied", applied(m));
}

enum us_status us_predict_note(const struct us_predictor *p, const struct us_model *m,
                               const struct us_predict_config *cfg,
                               const struct us_predict_file_options *opt, char **ret,
                               struct us_err *err)
{
    if (cfg->seed > INT64_MAX)
        return us_fail(err, US_E_ARG, "seed: %" PRIu64 ", expected at most %" PRId64, cfg->seed,
                       INT64_MAX);
    json_t *note = build(p, m, cfg, opt);
    if (note == NULL)
        return us_fail(err, US_E_ARG, "model name: not UTF-8 text");
    *ret = json_dumps(note, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(note);
    return *ret != NULL ? US_OK : us_fail(err, US_E_NOMEM, "no memory for the file's description");
}
