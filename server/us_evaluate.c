/* Prediction of known frames and its figures; see us_evaluate.h. */
#include "us_evaluate.h"

#include <stdlib.h>
#include <string.h>

void us_eval_frame_release(struct us_eval_frame *e)
{
    free(e->input);
    free(e->truth);
    free(e->mean);
    *e = (struct us_eval_frame){0};
}

static void clip(float *x, int64_t n, double limit)
{
    float top = (float)limit;
    for (int64_t i = 0; i < n; i++)
        x[i] = x[i] > top ? top : x[i];
}

/* The channels as the model saw them, and their mixture or the measured one. */
static enum us_status read_frame(const struct us_model *m, const struct us_frame_source *src,
                                 int64_t frame, struct us_eval_frame *e, struct us_err *err)
{
    int64_t n = e->h * e->w;
    float weight = m->data.mixing == US_MIX_SUM ? 1.0F : 1.0F / (float)e->n_targets;
    for (int32_t c = 0; c < e->n_targets; c++) {
        float *truth = e->truth + c * n;
        US_TRY(src->read(src->arg, frame, c, truth, err));
        if (m->data.has_clip)
            clip(truth, n, m->data.clip[c]);
        for (int64_t i = 0; i < n && !src->has_input; i++)
            e->input[i] += weight * truth[i];
    }
    if (src->has_input)
        US_TRY(src->read(src->arg, frame, e->n_targets, e->input, err));
    return US_OK;
}

static enum us_status allocate(struct us_eval_frame *e, const char *name, struct us_err *err)
{
    size_t n = (size_t)(e->h * e->w), all = n * (size_t)e->n_targets;
    e->input = calloc(n, sizeof(float));
    e->truth = calloc(all, sizeof(float));
    e->mean = calloc(all, sizeof(float));
    if (e->input == NULL || e->truth == NULL || e->mean == NULL)
        return us_fail(err, US_E_NOMEM, "frame %s: no memory for %lld x %lld pixels", name,
                       (long long)e->w, (long long)e->h);
    return US_OK;
}

enum us_status us_eval_frame_run(struct us_predictor *p, const struct us_model *m,
                                 const struct us_frame_source *src, int64_t frame,
                                 const atomic_bool *cancel, struct us_eval_frame *ret,
                                 struct us_err *err)
{
    *ret = (struct us_eval_frame){.n_targets = m->arch.target_channels};
    if (src->n_channels != ret->n_targets)
        return us_fail(err, US_E_ARG, "the data have %d channels; the model splits into %d",
                       (int)src->n_channels, (int)ret->n_targets);
    US_TRY(src->shape(src->arg, frame, &ret->h, &ret->w));
    US_TRY(allocate(ret, src->name(src->arg, frame), err));
    US_TRY(read_frame(m, src, frame, ret, err));
    struct us_predict_frame f = {.in = ret->input,
                                 .h = ret->h,
                                 .w = ret->w,
                                 .frame_index = (uint32_t)frame,
                                 .mean = ret->mean,
                                 .cancel = cancel};
    enum us_status s = us_predict_run(p, &f, err);
    if (s != US_OK && s != US_E_CANCELLED)
        us_err_prefix(err, "frame %s", src->name(src->arg, frame));
    return s;
}

static void normalise(float *x, int64_t n, double mean, double std)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = (float)(((double)x[i] - mean) / std);
}

enum us_status us_eval_frame_measure(const struct us_model *m, struct us_eval_frame *e,
                                     struct us_metrics *ret, double *baseline, struct us_err *err)
{
    int64_t n = e->h * e->w;
    for (int32_t c = 0; c < e->n_targets; c++) {
        float *truth = e->truth + c * n, *mean = e->mean + c * n;
        normalise(truth, n, m->data.target_mean[c], m->data.target_std[c]);
        normalise(mean, n, m->data.target_mean[c], m->data.target_std[c]);
        US_TRY(us_metrics_compute(truth, mean, e->h, e->w, &ret[c], err));
        if (baseline == NULL)
            continue;
        struct us_metrics in;
        US_TRY(us_metrics_compute(truth, e->input, e->h, e->w, &in, err));
        baseline[c] = in.psnr_ri;
    }
    return US_OK;
}
