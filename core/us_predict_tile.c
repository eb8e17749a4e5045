/*
 * One tile: cut the patch at every scale, run the network once per posterior sample, keep the
 * centre's running mean and variance, write it in the target's units (model-spec 13.4-13.6, 17).
 *
 * The samples of a tile follow one another here, so the moments need memory for one tile only and
 * what does not depend on the sample is computed once.
 */
#include <math.h>
#include <string.h>

#include "us_predict_impl.h"

static void fill_inputs(struct us_worker *w, const struct us_predict_job *job, int64_t y0,
                        int64_t x0)
{
    const struct us_predictor *p = w->owner;
    const struct us_model_data *d = &p->model->data;
    for (int32_t s = 0; s < p->model->arch.lc_scales; s++)
        us_patch_extract(job->pyramid, s, y0, x0, p->geo.size, d->context_padding,
                         (float)d->input_mean, (float)d->input_std, us_exec_input(w->exec, s));
}

/* Welford's update; the moments stay in double whatever the number of samples. */
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

/* Channel c of the tile into the frame's planes, truncated at the right and bottom border. */
static void write_channel(const struct us_worker *w, const struct us_predict_job *job, int64_t y0,
                          int64_t x0, int32_t c)
{
    const struct us_predictor *p = w->owner;
    const struct us_predict_frame *f = job->frame;
    int32_t channels = p->model->arch.target_channels;
    int64_t h = f->h - y0 < p->geo.grid ? f->h - y0 : p->geo.grid;
    int64_t cols = f->w - x0 < p->geo.grid ? f->w - x0 : p->geo.grid;
    double scale = p->model->data.target_std[c], shift = p->model->data.target_mean[c];
    int32_t n = p->cfg.samples;
    for (int64_t y = 0; y < h; y++) {
        const int64_t src = y * p->geo.grid * channels + c;
        const int64_t dst = ((int64_t)c * f->h + y0 + y) * f->w + x0;
        for (int64_t x = 0; x < cols; x++)
            f->mean[dst + x] = (float)(w->mean[src + x * channels] * scale + shift);
        for (int64_t x = 0; f->std != NULL && x < cols; x++) {
            double var = n > 1 ? w->m2[src + x * channels] / (n - 1) : 0.0;
            f->std[dst + x] = (float)(sqrt(var) * scale);
        }
    }
}

static bool cancelled(const struct us_predict_frame *f)
{
    return f->cancel != NULL && atomic_load_explicit(f->cancel, memory_order_relaxed);
}

enum us_status usi_predict_tile(struct us_worker *w, struct us_predict_job *job, int64_t index)
{
    const struct us_predictor *p = w->owner;
    const int64_t row = index / job->cols, col = index % job->cols;
    const int64_t y0 = row * p->geo.grid - p->geo.pad, x0 = col * p->geo.grid - p->geo.pad;
    const size_t n =
        (size_t)p->geo.grid * (size_t)p->geo.grid * (size_t)p->model->arch.target_channels;
    fill_inputs(w, job, y0, x0);
    memset(w->mean, 0, n * sizeof(*w->mean));
    memset(w->m2, 0, n * sizeof(*w->m2));
    struct us_noise *noise = us_exec_noise(w->exec);
    *noise = (struct us_noise){.seed = p->cfg.seed,
                               .frame = job->frame->frame_index,
                               .patch = (uint32_t)index,
                               .image_keyed = p->cfg.noise == US_NOISE_IMAGE,
                               .centre_y = y0 + p->geo.size / 2,
                               .centre_x = x0 + p->geo.size / 2};
    for (int32_t s = 0; s < p->cfg.samples; s++) {
        if (cancelled(job->frame))
            return US_E_CANCELLED;
        noise->sample = (uint32_t)s;
        US_TRY(s == 0 ? us_exec_run(w->exec) : us_exec_run_sample(w->exec));
        accumulate(w, s);
    }
    for (int32_t c = 0; c < p->model->arch.target_channels; c++)
        write_channel(w, job, row * p->geo.grid, col * p->geo.grid, c);
    return US_OK;
}
