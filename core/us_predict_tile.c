/*
 * One tile: cut the patch at every scale, run the network once per posterior sample of the pass,
 * put the centre's mean and variance into the frame (model-spec 13.4-13.6, 17).
 *
 * A pass's samples of a tile follow one another here, so that their moments need memory for one
 * tile only and what does not depend on the sample is computed once. Between passes the result's
 * own planes hold each pixel's running mean and sum of squared deviations, in the network's units:
 * no memory beyond the result, whatever the number of samples. A tile's moments are f64; the planes
 * are f32, so each pass but the last rounds once. There are few passes and the values have unit
 * variance by normalisation: the result loses about 1e-6 of the target's standard deviation.
 */
#include <math.h>
#include <string.h>

#include "us_predict_impl.h"

/* Part of a tile inside the frame. */
struct window {
    int64_t y, x, h, w; /* in the frame */
    int64_t dy, dx;     /* of its corner from the tile's */
};

static void fill_inputs(struct us_worker *w, const struct us_predict_job *job, int64_t y0,
                        int64_t x0)
{
    const struct us_predictor *p = w->owner;
    const struct us_model_data *d = &p->model->data;
    for (int32_t s = 0; s < p->model->arch.lc_scales; s++)
        us_patch_extract(job->pyramid, s, y0, x0, p->geo.size, d->context_padding,
                         (float)d->input_mean, (float)d->input_std, us_exec_input(w->exec, s));
}

/* Welford's update with one more sample after n_before. */
static void accumulate(struct us_worker *w, int32_t n_before)
{
    const struct us_predictor *p = w->owner;
    const float *out = us_exec_output(w->exec);
    int64_t n = (int64_t)p->geo.grid * p->geo.grid * p->model->arch.target_channels;
    double weight = 1.0 / (n_before + 1.0);
    for (int64_t i = 0; i < n; i++) {
        double delta = (double)out[i] - w->mean[i];
        w->mean[i] += delta * weight;
        w->m2[i] += delta * ((double)out[i] - w->mean[i]);
    }
}

static struct window clip_tile(const struct us_predict_frame *f, int64_t y0, int64_t x0,
                               int32_t grid)
{
    struct window v = {.y = y0 > 0 ? y0 : 0, .x = x0 > 0 ? x0 : 0};
    v.h = (y0 + grid < f->h ? y0 + grid : f->h) - v.y;
    v.w = (x0 + grid < f->w ? x0 + grid : f->w) - v.x;
    v.dy = v.y - y0;
    v.dx = v.x - x0;
    return v;
}

/* n values of channel c, from src in the tile's moments to dst in the frame's planes, where those
 * of earlier passes join them (Chan, Golub, LeVeque 1979). The last pass leaves the result. */
static void merge_row(const struct us_worker *w, const struct us_predict_job *job, int32_t c,
                      int64_t src, int64_t dst, int64_t n)
{
    const struct us_model *m = w->owner->model;
    const struct us_predict_frame *f = job->frame;
    const int32_t before = job->pass.first, all = before + job->pass.n;
    const bool last = all == w->owner->geo.samples;
    const double share = (double)job->pass.n / all;
    const double scale = m->data.target_std[c], shift = m->data.target_mean[c];
    for (int64_t i = 0; i < n; i++, src += m->arch.target_channels, dst++) {
        double mean = w->mean[src], m2 = w->m2[src];
        if (before > 0) {
            double old = f->mean[dst], delta = mean - old;
            mean = old + delta * share;
            m2 += f->std != NULL ? f->std[dst] + delta * delta * share * before : 0.0;
        }
        f->mean[dst] = (float)(last ? mean * scale + shift : mean);
        if (f->std == NULL)
            continue;
        if (last)
            m2 = all > 1 ? sqrt(m2 / (all - 1)) * scale : 0.0;
        f->std[dst] = (float)m2;
    }
}

static void merge_tile(const struct us_worker *w, const struct us_predict_job *job, int64_t y0,
                       int64_t x0)
{
    const struct us_predict_frame *f = job->frame;
    const int32_t grid = w->owner->geo.grid, channels = w->owner->model->arch.target_channels;
    const struct window v = clip_tile(f, y0, x0, grid);
    for (int32_t c = 0; c < channels; c++)
        for (int64_t y = 0; y < v.h; y++)
            merge_row(w, job, c, ((v.dy + y) * grid + v.dx) * channels + c,
                      ((int64_t)c * f->h + v.y + y) * f->w + v.x, v.w);
}

static bool cancelled(const struct us_predict_frame *f)
{
    return f->cancel != NULL && atomic_load_explicit(f->cancel, memory_order_relaxed);
}

enum us_status usi_predict_tile(struct us_worker *w, struct us_predict_job *job, int64_t index)
{
    const struct us_predictor *p = w->owner;
    const struct us_tiling_geometry *g = &p->geo;
    const struct us_tiling_pass *t = &job->pass;
    const int64_t y0 = t->y0 + index / t->cols * g->grid, x0 = t->x0 + index % t->cols * g->grid;
    const size_t n = (size_t)g->grid * (size_t)g->grid * (size_t)p->model->arch.target_channels;
    fill_inputs(w, job, y0 - g->pad, x0 - g->pad);
    memset(w->mean, 0, n * sizeof(*w->mean));
    memset(w->m2, 0, n * sizeof(*w->m2));
    struct us_noise *noise = us_exec_noise(w->exec);
    *noise = (struct us_noise){.seed = p->cfg.seed,
                               .frame = job->frame->frame_index,
                               .patch = (uint32_t)index,
                               .image_keyed = p->cfg.noise == US_NOISE_IMAGE,
                               .centre_y = y0 - g->pad + g->size / 2,
                               .centre_x = x0 - g->pad + g->size / 2};
    for (int32_t s = 0; s < t->n; s++) {
        if (cancelled(job->frame))
            return US_E_CANCELLED;
        noise->sample = (uint32_t)(t->first + s);
        US_TRY(s == 0 ? us_exec_run(w->exec) : us_exec_run_sample(w->exec));
        accumulate(w, s);
    }
    merge_tile(w, job, y0, x0);
    return US_OK;
}
