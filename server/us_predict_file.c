/*
 * Image file in, split image file out; see us_predict_file.h. A stack is streamed: one frame is
 * read, predicted and written before the next is read, so memory does not grow with its length.
 *
 * What the output says of its own making (us_predict_note.c) depends on model, input and settings
 * only, never on the clock, the number of threads or the batch: equal requests give equal bytes.
 */
#include "us_predict_file.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "us_outfile.h"
#include "us_predict_note.h"

/* All of one conversion. Buffers are f32 [h, w], mean and std [target_channels, h, w]. */
struct job {
    struct us_predictor *p;
    const struct us_model *m;
    const struct us_predict_config *cfg;
    const struct us_predict_file_options *opt;
    const char *in_path;
    struct us_image_reader *reader;
    struct us_image_writer *writer;
    struct us_image_info in; /* axes as we take them */
    int64_t n_pixels;
    float *frame, *plane;
    float *mean, *std;
    int64_t patches_before; /* of the frames done */
    struct us_seam_pool *seam[US_MAX_TARGETS];
    struct us_predict_file_report *ret;
};

struct us_predict_file_options us_predict_file_defaults(void)
{
    return (struct us_predict_file_options){
        .plane_mean = true, .dtype = US_PIXEL_F32, .channel = -1, .pages = 't'};
}

static double now_s(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static enum us_status check_options(const struct us_predict_config *cfg,
                                    const struct us_predict_file_options *opt, struct us_err *err)
{
    if (!opt->plane_mean && !opt->plane_std)
        return us_fail(err, US_E_ARG, "planes: none chosen, expected mean, std or both");
    if (opt->plane_std && !cfg->want_std)
        return us_fail(err, US_E_ARG,
                       "planes: std is asked for, but the predictor does not make it");
    if (opt->dtype != US_PIXEL_F32 && opt->dtype != US_PIXEL_U16)
        return us_fail(err, US_E_ARG, "dtype: %s, expected float32 or uint16",
                       us_pixel_name(opt->dtype));
    if (opt->channel >= 0 && opt->n_mix > 0)
        return us_fail(err, US_E_ARG, "both channel and mix are given, expected one of them");
    if (opt->n_mix < 0 || opt->n_mix > US_MAX_TARGETS)
        return us_fail(err, US_E_ARG, "mix: %d channels, expected at most %d", (int)opt->n_mix,
                       US_MAX_TARGETS);
    if (opt->pages != 't' && opt->pages != 'z' && opt->pages != 'c')
        return us_fail(err, US_E_ARG, "pages: expected t, z or c");
    return US_OK;
}

/* What the axes of an image mean to us: as its file states them, else all pages along `pages`. */
static struct us_image_info take_axes(const struct us_image_info *info, char pages)
{
    struct us_image_info v = *info;
    int32_t n_long = (v.t > 1) + (v.z > 1) + (v.c > 1);
    if (v.axes_stated || n_long != 1)
        return v;
    int64_t n = v.t * v.z * v.c;
    v.t = pages == 't' ? n : 1;
    v.z = pages == 'z' ? n : 1;
    v.c = pages == 'c' ? n : 1;
    return v;
}

/* Reads plane (t, z, c) of the axes as we take them. Planes are numbered alike in both views,
 * because at most one axis is longer than 1 where they differ. */
static enum us_status read_plane(struct job *j, int64_t t, int64_t z, int64_t c, float *out,
                                 struct us_err *err)
{
    const struct us_image_info *file = us_image_info(j->reader);
    int64_t i = (t * j->in.z + z) * j->in.c + c;
    return us_image_read_plane(j->reader, i / (file->z * file->c), i / file->c % file->z,
                               i % file->c, out, err);
}

static enum us_status check_channel(const struct job *j, int32_t channel, const char *what,
                                    struct us_err *err)
{
    if (channel >= 0 && channel < j->in.c)
        return US_OK;
    if (!j->in.axes_stated && j->in.t * j->in.z > 1)
        return us_fail(err, US_E_ARG,
                       "%s: %s %d, but its %lld pages are taken as frames (pages=c takes them as "
                       "channels)",
                       j->in_path, what, (int)channel, (long long)(j->in.t * j->in.z));
    return us_fail(err, US_E_ARG, "%s: %s %d, but the image has %lld channel%s, counted from 0",
                   j->in_path, what, (int)channel, (long long)j->in.c, j->in.c == 1 ? "" : "s");
}

/* The network's input is one image of superposed structures: which one must be unambiguous. */
static enum us_status check_channels(const struct job *j, struct us_err *err)
{
    if (j->opt->channel >= 0)
        return check_channel(j, j->opt->channel, "channel", err);
    for (int32_t i = 0; i < j->opt->n_mix; i++) {
        US_TRY(check_channel(j, j->opt->mix[i], "mix", err));
        for (int32_t k = 0; k < i; k++)
            if (j->opt->mix[k] == j->opt->mix[i])
                return us_fail(err, US_E_ARG, "mix: channel %d is listed twice",
                               (int)j->opt->mix[i]);
    }
    if (j->opt->n_mix > 0 || j->in.c == 1)
        return US_OK;
    return us_fail(err, US_E_ARG,
                   "%s: has %lld channels, expected one image of superposed structures: pick one "
                   "(channel=0 to %lld) or superpose some of them (mix=0,1)",
                   j->in_path, (long long)j->in.c, (long long)j->in.c - 1);
}

/* Everything that can be refused before any work is done. */
static enum us_status check_input(const struct job *j, struct us_err *err)
{
    const struct us_image_info *v = &j->in;
    if (v->h < 1 || v->w < 1)
        return us_fail(err, US_E_FORMAT, "%s: %lld x %lld pixels, expected at least 1 x 1",
                       j->in_path, (long long)v->w, (long long)v->h);
    if (v->h > US_MAX_PLANE_PIXELS / v->w)
        return us_fail(err, US_E_TOO_LARGE, "%s: %lld x %lld pixels, expected at most %lld a frame",
                       j->in_path, (long long)v->w, (long long)v->h, US_MAX_PLANE_PIXELS);
    if (v->t > US_MAX_PLANES / v->z)
        return us_fail(err, US_E_TOO_LARGE, "%s: %lld x %lld frames, expected at most %lld",
                       j->in_path, (long long)v->t, (long long)v->z, US_MAX_PLANES);
    int64_t frames = v->t * v->z;
    if (j->opt->max_pixels > 0 && frames > j->opt->max_pixels / (v->h * v->w))
        return us_fail(err, US_E_TOO_LARGE,
                       "%s: %lld frames of %lld x %lld pixels, expected at most %lld pixels in all",
                       j->in_path, (long long)frames, (long long)v->w, (long long)v->h,
                       (long long)j->opt->max_pixels);
    return check_channels(j, err);
}

static enum us_status alloc_buffers(struct job *j, struct us_err *err)
{
    size_t n = (size_t)j->n_pixels;
    size_t n_out = n * (size_t)j->m->arch.target_channels;
    j->frame = calloc(n, sizeof(float));
    j->mean = calloc(n_out, sizeof(float));
    if (j->opt->n_mix > 0)
        j->plane = calloc(n, sizeof(float));
    if (j->cfg->want_std)
        j->std = calloc(n_out, sizeof(float));
    if (j->frame == NULL || j->mean == NULL || (j->opt->n_mix > 0 && j->plane == NULL) ||
        (j->cfg->want_std && j->std == NULL))
        return us_fail(err, US_E_NOMEM, "%s: no memory for a frame of %lld x %lld pixels",
                       j->in_path, (long long)j->in.w, (long long)j->in.h);
    for (int32_t c = 0; c < j->m->arch.target_channels; c++)
        US_TRY(us_seam_pool_new(j->in.h, j->in.w, us_predictor_stats(j->p).grid, &j->seam[c], err));
    return US_OK;
}

/* The upper clip of one of the mixed channels: its own if the mixture is of the model's target
 * channels, one each, else the input's (spec 13.3 clips before it mixes). */
static double mix_clip(const struct job *j, int32_t i)
{
    if (j->m->data.has_clip && j->opt->n_mix == j->m->arch.target_channels)
        return j->m->data.clip[i];
    return us_model_input_clip(j->m);
}

/* frame = average (or sum, as the model was trained) of the listed channels, each clipped. An
 * infinite pixel is left as it is: the predictor refuses it and says where. */
static enum us_status read_mix(struct job *j, int64_t t, int64_t z, struct us_err *err)
{
    float weight = j->m->data.mixing == US_MIX_SUM ? 1.0F : 1.0F / (float)j->opt->n_mix;
    memset(j->frame, 0, (size_t)j->n_pixels * sizeof(float));
    for (int32_t i = 0; i < j->opt->n_mix; i++) {
        US_TRY(read_plane(j, t, z, j->opt->mix[i], j->plane, err));
        float clip = (float)mix_clip(j, i);
        for (int64_t k = 0; k < j->n_pixels; k++) {
            float v = j->plane[k];
            if (v > clip && v <= FLT_MAX) {
                v = clip;
                j->ret->n_clipped++;
            }
            j->frame[k] += weight * v;
        }
    }
    return US_OK;
}

static enum us_status read_frame(struct job *j, int64_t t, int64_t z, struct us_err *err)
{
    double t0 = now_s();
    enum us_status s =
        j->opt->n_mix > 0
            ? read_mix(j, t, z, err)
            : read_plane(j, t, z, j->opt->channel < 0 ? 0 : j->opt->channel, j->frame, err);
    j->ret->decode_s += now_s() - t0;
    return s;
}

static void frame_progress(void *arg, int64_t done, int64_t total)
{
    struct job *j = arg;
    j->opt->progress(j->opt->progress_arg, j->patches_before + done, j->ret->n_patches);
}

static enum us_status predict_frame(struct job *j, int64_t t, int64_t z, struct us_err *err)
{
    struct us_predict_frame f = {
        .in = j->frame,
        .h = j->in.h,
        .w = j->in.w,
        .frame_index = (uint32_t)(t * j->in.z + z),
        .mean = j->mean,
        .std = j->std,
        .seed = &j->cfg->seed,
        .turns = j->opt->turns,
        .cancel = j->opt->cancel,
        .progress = j->opt->progress != NULL ? frame_progress : NULL,
        .progress_arg = j,
    };
    double t0 = now_s();
    enum us_status s = us_predict_run(j->p, &f, err);
    j->ret->compute_s += now_s() - t0;
    if (s != US_OK) {
        if (j->ret->n_frames > 1)
            us_err_prefix(err, "%s: frame t=%lld z=%lld", j->in_path, (long long)t, (long long)z);
        else
            us_err_prefix(err, "%s", j->in_path);
        return s;
    }
    j->ret->n_clipped += f.n_clipped;
    j->patches_before += us_predict_n_patches(j->p, j->in.h, j->in.w);
    return US_OK;
}

/* Values that rounding to uint16 will move to 0 or 65535. */
static int64_t count_saturated(const float *v, int64_t n)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        count += v[i] <= -0.5F || v[i] >= 65535.5F;
    return count;
}

static enum us_status write_planes(struct job *j, const float *planes, struct us_err *err)
{
    for (int32_t c = 0; c < j->m->arch.target_channels; c++) {
        const float *plane = planes + (int64_t)c * j->n_pixels;
        if (j->opt->dtype == US_PIXEL_U16)
            j->ret->n_saturated += count_saturated(plane, j->n_pixels);
        US_TRY(us_image_write_plane(j->writer, plane, err));
    }
    return US_OK;
}

static enum us_status write_frame(struct job *j, struct us_err *err)
{
    double t0 = now_s();
    enum us_status s = j->opt->plane_mean ? write_planes(j, j->mean, err) : US_OK;
    if (s == US_OK && j->opt->plane_std)
        s = write_planes(j, j->std, err);
    j->ret->encode_s += now_s() - t0;
    return s;
}

/* Adds the frame's mean planes to the seam score along the grid of the tiles. */
static enum us_status pool_seams(struct job *j, struct us_err *err)
{
    double t0 = now_s();
    enum us_status s = US_OK;
    for (int32_t c = 0; c < j->m->arch.target_channels && s == US_OK; c++) {
        s = us_seam_pool_add(j->seam[c], j->mean + (int64_t)c * j->n_pixels, err);
        if (s != US_OK)
            us_err_prefix(err, "%s: the prediction of channel %s", j->in_path,
                          j->m->data.channels[c]);
    }
    j->ret->seam_s += now_s() - t0;
    return s;
}

static void score_seams(struct job *j)
{
    double t0 = now_s();
    for (int32_t c = 0; c < j->m->arch.target_channels; c++) {
        j->ret->seam[c] = us_seam_pool_score(j->seam[c]);
        j->ret->seam_z = us_seam_worse(j->ret->seam_z, j->ret->seam[c].z);
    }
    j->ret->seam_s += now_s() - t0;
}

static enum us_status run_frames(struct job *j, struct us_err *err)
{
    for (int64_t t = 0; t < j->in.t; t++) {
        for (int64_t z = 0; z < j->in.z; z++) {
            if (j->opt->cancel != NULL && atomic_load(j->opt->cancel))
                return us_fail(err, US_E_CANCELLED, "%s: cancelled", j->in_path);
            US_TRY(read_frame(j, t, z, err));
            US_TRY(predict_frame(j, t, z, err));
            US_TRY(pool_seams(j, err)); /* before writing: it refuses what is not finite */
            US_TRY(write_frame(j, err));
        }
    }
    score_seams(j);
    return US_OK;
}

/* The output's description: the input's axes and sizes, the model's channels. */
static struct us_image_info output_info(const struct job *j)
{
    struct us_image_info o = j->in;
    const struct us_model_data *d = &j->m->data;
    int32_t n = j->m->arch.target_channels, c = 0;
    o.container = j->opt->npy ? US_CONTAINER_NPY : US_CONTAINER_OME_TIFF;
    o.pixel = j->opt->dtype;
    o.axes_stated = true;
    memset(o.channel_name, 0, sizeof(o.channel_name));
    if (j->opt->plane_mean)
        for (int32_t i = 0; i < n; i++)
            (void)snprintf(o.channel_name[c++], US_MAX_NAME, "%s", d->channels[i]);
    if (j->opt->plane_std)
        for (int32_t i = 0; i < n; i++)
            (void)snprintf(o.channel_name[c++], US_MAX_NAME, "%.*s std", US_MAX_NAME - 5,
                           d->channels[i]);
    o.c = c;
    if (o.size_x <= 0 && o.size_y <= 0 && d->pixel_size_um > 0) {
        o.size_x = o.size_y = d->pixel_size_um;
        (void)snprintf(o.unit_x, US_MAX_NAME, "\u00b5m");
        (void)snprintf(o.unit_y, US_MAX_NAME, "\u00b5m");
    }
    return o;
}

/* Opens the writer, runs the frames and finishes the file at `path`. */
static enum us_status write_file(struct job *j, const char *path, struct us_err *err)
{
    char *note = NULL;
    US_TRY(us_predict_note(j->p, j->m, j->cfg, j->opt, &note, err));
    struct us_image_info info = output_info(j);
    struct us_image_write_options wo = {
        .npy = j->opt->npy, .software = "usplit " US_VERSION, .description_json = note};
    enum us_status s = us_image_create(path, &info, &wo, &j->writer, err);
    free(note);
    if (s != US_OK)
        return s;
    US_TRY(run_frames(j, err));
    double t0 = now_s();
    s = us_image_finish(j->writer, err);
    j->writer = NULL; /* freed in any case */
    j->ret->encode_s += now_s() - t0;
    return s;
}

enum us_status us_predict_file(struct us_predictor *p, const struct us_model *m,
                               const char *in_path, const char *out_path,
                               const struct us_predict_config *cfg,
                               const struct us_predict_file_options *opt,
                               struct us_predict_file_report *ret, struct us_err *err)
{
    struct job j = {.p = p, .m = m, .cfg = cfg, .opt = opt, .in_path = in_path, .ret = ret};
    struct us_outfile out = {0};
    *ret = (struct us_predict_file_report){.seam_z = (double)NAN};
    US_TRY(check_options(cfg, opt, err));
    double t0 = now_s();
    enum us_status s = us_image_open(in_path, &j.reader, err);
    if (s != US_OK)
        return s;
    j.in = take_axes(us_image_info(j.reader), opt->pages);
    s = check_input(&j, err);
    if (s != US_OK)
        goto out;
    j.n_pixels = j.in.h * j.in.w;
    ret->in = j.in;
    ret->n_frames = j.in.t * j.in.z;
    ret->n_patches = ret->n_frames * us_predict_n_patches(p, j.in.h, j.in.w);
    ret->decode_s = now_s() - t0;
    s = alloc_buffers(&j, err);
    if (s == US_OK)
        s = us_outfile_begin(&out, out_path, in_path, err);
    if (s == US_OK)
        s = write_file(&j, out.tmp, err);
    if (s == US_OK)
        s = us_outfile_commit(&out, err);
out:
    us_image_abandon(j.writer);
    us_image_close(j.reader);
    us_outfile_abandon(&out);
    free(j.frame);
    free(j.plane);
    free(j.mean);
    free(j.std);
    for (int32_t c = 0; c < US_MAX_TARGETS; c++)
        us_seam_pool_free(j.seam[c]);
    return s;
}
