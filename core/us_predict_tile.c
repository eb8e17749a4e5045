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
#include <string.h>

#include "math/us_frame_math.h"
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

/* One more sample after n_before. */
static void accumulate(struct us_worker *w, int32_t n_before)
{
    const struct us_predictor *p = w->owner;
    const float *out = us_exec_output(w->exec);
    int64_t n = (int64_t)p->geo.grid * p->geo.grid * p->model->arch.target_channels;
    double weight = 1.0 / (n_before + 1.0);
    for (int64_t i = 0; i < n; i++) {
        struct us_moments m =
            us_moments_add((struct us_moments){w->mean[i], w->m2[i]}, out[i], weight);
        w->mean[i] = m.mean;
        w->m2[i] = m.m2;
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
 * of earlier passes join them. The last pass leaves the result. */
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
        struct us_moments v = {w->mean[src], w->m2[src]};
        if (before > 0) {
            struct us_moments old = {f->mean[dst], f->std != NULL ? f->std[dst] : 0.0};
            v = us_moments_join(old, before, v, share);
        }
        f->mean[dst] = (float)(last ? v.mean * scale + shift : v.mean);
        if (f->std != NULL)
            f->std[dst] = (float)(last ? us_moments_std(v, all) * scale : v.m2);
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

bool usi_predict_cancelled(const struct us_predict_frame *f)
{
    return f->cancel != NULL && atomic_load_explicit(f->cancel, memory_order_relaxed);
}

/* Corner of a tile in the frame. */
static void tile_corner(const struct us_predictor *p, const struct us_tiling_pass *t, int64_t index,
                        int64_t *ret_y, int64_t *ret_x)
{
    *ret_y = t->y0 + index / t->cols * p->geo.grid;
    *ret_x = t->x0 + index % t->cols * p->geo.grid;
}

struct us_noise usi_predict_noise(const struct us_predictor *p, const struct us_predict_job *job,
                                  int64_t index, int32_t sample)
{
    int64_t y0, x0;
    tile_corner(p, &job->pass, index, &y0, &x0);
    return (struct us_noise){.seed = job->seed,
                             .frame = job->frame->frame_index,
                             .sample = (uint32_t)sample,
                             .patch = (uint32_t)index,
                             .image_keyed = p->cfg.noise == US_NOISE_IMAGE,
                             .centre_y = y0 - p->geo.pad + p->geo.size / 2,
                             .centre_x = x0 - p->geo.pad + p->geo.size / 2};
}

enum us_status usi_predict_tile(struct us_worker *w, struct us_predict_job *job, int64_t index)
{
    const struct us_predictor *p = w->owner;
    const struct us_tiling_geometry *g = &p->geo;
    const struct us_tiling_pass *t = &job->pass;
    const size_t n = (size_t)g->grid * (size_t)g->grid * (size_t)p->model->arch.target_channels;
    int64_t y0, x0;
    tile_corner(p, t, index, &y0, &x0);
    fill_inputs(w, job, y0 - g->pad, x0 - g->pad);
    memset(w->mean, 0, n * sizeof(*w->mean));
    memset(w->m2, 0, n * sizeof(*w->m2));
    for (int32_t s = 0; s < t->n; s++) {
        if (usi_predict_cancelled(job->frame))
            return US_E_CANCELLED;
        *us_exec_noise(w->exec) = usi_predict_noise(p, job, index, t->first + s);
        US_TRY(s == 0 ? us_exec_run(w->exec) : us_exec_run_sample(w->exec));
        accumulate(w, s);
    }
    merge_tile(w, job, y0, x0);
    return US_OK;
}
