/*
 * Training data: splits, statistics and patches (us_dataset.h, model-spec 13).
 *
 * Every random choice of a patch (where, how mixed, how turned) comes from Philox keyed by (seed,
 * epoch, index), and an epoch's order from a keyed bijection, so any patch of any epoch can be
 * made by any thread at any time and a resumed run sees what the first would have seen.
 */
#include "us_dataset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "math/us_philox_math.h"
#include "us_frame_cache.h"

#define ORDER_STREAM 0x6f726465u /* "orde": tags of the Philox streams */
#define CROP_STREAM  0x63726f70u
#define MIX_STREAM   0x6d697863u

struct split {
    int64_t *frames;
    int64_t n;
    int64_t *end; /* [n]: patches of frames 0..i together */
};

struct us_dataset {
    const struct us_frame_source *src;
    struct us_dataset_config cfg;
    int64_t *h, *w; /* [n_frames] */
    struct split split[US_SPLIT_COUNT];
    struct us_stats stats;
    struct us_frame_cache *cache;
};

/* ---- splits (13.2) ------------------------------------------------------------------------- */

static void append(struct split *s, int64_t frame)
{
    s->frames[s->n++] = frame;
}

/* Type A: test first, then validation, then training. */
static void split_head(struct us_dataset *d, int64_t n)
{
    int64_t test = (int64_t)((double)n * d->cfg.test_fraction);
    int64_t val = (int64_t)((double)n * d->cfg.val_fraction);
    for (int64_t i = 0; i < n; i++)
        append(&d->split[i < test         ? US_SPLIT_TEST
                         : i < test + val ? US_SPLIT_VAL
                                          : US_SPLIT_TRAIN],
               i);
}

/* Type B: chunks of up to three frames go to validation and test in turn; a remainder follows the
 * rule of 13.2. Then, if the fractions differ, frames move from the over-full list's end. */
static void split_blocks(struct us_dataset *d, int64_t n)
{
    double v = d->cfg.val_fraction, t = d->cfg.test_fraction;
    int64_t s = (int64_t)((v + t) * (double)n);
    int64_t k = s / 2 < 3 ? s / 2 : 3;
    k = k < 1 ? 1 : k;
    int64_t chunks = s / k, done = chunks * k;
    for (int64_t i = 0; i < done; i++)
        append(&d->split[i / k % 2 == 0 ? US_SPLIT_VAL : US_SPLIT_TEST], i);
    bool last_even = chunks > 0 && (chunks - 1) % 2 == 0;
    for (int64_t i = done; i < s; i++)
        append(&d->split[last_even || i < done + (s - done) / 2 ? US_SPLIT_TEST : US_SPLIT_VAL], i);
    for (int64_t i = s; i < n; i++)
        append(&d->split[US_SPLIT_TRAIN], i);
    struct split *from = &d->split[v < t ? US_SPLIT_VAL : US_SPLIT_TEST];
    struct split *to = &d->split[v < t ? US_SPLIT_TEST : US_SPLIT_VAL];
    int64_t move = v == 0.0 || t == 0.0 ? from->n : (int64_t)(fabs(t - v) * (double)n / 2.0);
    for (; v != t && move > 0 && from->n > 0; move--)
        append(to, from->frames[--from->n]);
}

static enum us_status split_listed(struct us_dataset *d, struct us_err *err)
{
    for (int s = 0; s < US_SPLIT_COUNT; s++) {
        for (int64_t i = 0; i < d->cfg.n_listed[s]; i++) {
            int64_t f = d->cfg.listed[s][i];
            if (f < 0 || f >= d->src->n_frames)
                return us_fail(err, US_E_ARG, "split lists frame %lld of %lld", (long long)f,
                               (long long)d->src->n_frames);
            for (int o = 0; o <= s; o++) {
                for (int64_t j = 0; j < d->split[o].n; j++) {
                    if (d->split[o].frames[j] == f)
                        return us_fail(err, US_E_ARG, "frame %s stands in the splits twice",
                                       d->src->name(d->src->arg, f));
                }
            }
            append(&d->split[s], f);
        }
    }
    return US_OK;
}

/* Patches that one frame gives: training as many random ones as the grid holds (13.7). */
static int64_t frame_patches(const struct us_dataset *d, int64_t frame)
{
    return (d->h[frame] / d->cfg.patch) * (d->w[frame] / d->cfg.patch);
}

static enum us_status make_splits(struct us_dataset *d, struct us_err *err)
{
    int64_t n = d->src->n_frames;
    for (int s = 0; s < US_SPLIT_COUNT; s++) {
        d->split[s].frames = calloc((size_t)n + 1, sizeof(int64_t));
        d->split[s].end = calloc((size_t)n + 1, sizeof(int64_t));
        if (d->split[s].frames == NULL || d->split[s].end == NULL)
            return us_fail(err, US_E_NOMEM, "data set: out of memory");
    }
    if (d->cfg.split == US_SPLIT_LISTED)
        US_TRY(split_listed(d, err));
    else if (d->cfg.split == US_SPLIT_HEAD)
        split_head(d, n);
    else
        split_blocks(d, n);
    for (int s = 0; s < US_SPLIT_COUNT; s++) {
        for (int64_t i = 0; i < d->split[s].n; i++)
            d->split[s].end[i] =
                frame_patches(d, d->split[s].frames[i]) + (i > 0 ? d->split[s].end[i - 1] : 0);
    }
    return US_OK;
}

/* ---- life ---------------------------------------------------------------------------------- */

static enum us_status check_config(const struct us_frame_source *src,
                                   const struct us_dataset_config *cfg, struct us_err *err)
{
    if (src->n_frames < 1)
        return us_fail(err, US_E_ARG, "data set: no frames; expected at least one");
    if (src->n_channels < 1 || src->n_channels > US_MAX_TARGETS)
        return us_fail(err, US_E_ARG, "data set: %d channels; expected 1 to %d", src->n_channels,
                       US_MAX_TARGETS);
    if (cfg->patch < 1 || cfg->patch > US_MAX_PATCH)
        return us_fail(err, US_E_ARG, "patch is %d; expected 1 to %d", cfg->patch, US_MAX_PATCH);
    if (cfg->lc_scales < 1 || cfg->lc_scales > US_MAX_SCALES)
        return us_fail(err, US_E_ARG, "lc_scales is %d; expected 1 to %d", cfg->lc_scales,
                       US_MAX_SCALES);
    bool fractions = cfg->val_fraction >= 0.0 && cfg->test_fraction >= 0.0 &&
                     cfg->val_fraction + cfg->test_fraction < 1.0;
    if (!fractions)
        return us_fail(err, US_E_ARG,
                       "val_fraction %g and test_fraction %g; expected numbers >= 0 "
                       "with a sum below 1",
                       cfg->val_fraction, cfg->test_fraction);
    for (int32_t c = 0; c < src->n_channels; c++) {
        if (!(cfg->alpha_min[c] >= 0.0 && cfg->alpha_max[c] >= cfg->alpha_min[c] &&
              isfinite(cfg->alpha_max[c])))
            return us_fail(err, US_E_ARG,
                           "mixing range of channel %d is %g to %g; expected "
                           "0 <= min <= max",
                           c, cfg->alpha_min[c], cfg->alpha_max[c]);
    }
    return US_OK;
}

static enum us_status read_shapes(struct us_dataset *d, struct us_err *err)
{
    const struct us_frame_source *src = d->src;
    d->h = calloc((size_t)src->n_frames, sizeof(int64_t));
    d->w = calloc((size_t)src->n_frames, sizeof(int64_t));
    if (d->h == NULL || d->w == NULL)
        return us_fail(err, US_E_NOMEM, "data set: out of memory");
    for (int64_t i = 0; i < src->n_frames; i++) {
        enum us_status s = src->shape(src->arg, i, &d->h[i], &d->w[i]);
        if (s != US_OK)
            return us_fail(err, s, "frame %s: %s", src->name(src->arg, i), us_status_text(s));
        if (d->h[i] < d->cfg.patch || d->w[i] < d->cfg.patch)
            return us_fail(err, US_E_ARG,
                           "frame %s is %lld x %lld; expected at least the patch "
                           "size %d",
                           src->name(src->arg, i), (long long)d->h[i], (long long)d->w[i],
                           d->cfg.patch);
    }
    return US_OK;
}

enum us_status us_dataset_open(const struct us_frame_source *src,
                               const struct us_dataset_config *cfg, struct us_dataset **ret,
                               struct us_err *err)
{
    US_TRY(check_config(src, cfg, err));
    struct us_dataset *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return us_fail(err, US_E_NOMEM, "data set: out of memory");
    d->src = src;
    d->cfg = *cfg;
    enum us_status s = read_shapes(d, err);
    if (s == US_OK)
        s = make_splits(d, err);
    if (s == US_OK && d->split[US_SPLIT_TRAIN].n == 0 && d->split[US_SPLIT_VAL].n == 0 &&
        d->split[US_SPLIT_TEST].n == 0)
        s = us_fail(err, US_E_ARG, "data set: every split is empty");
    if (s != US_OK) {
        us_dataset_free(d);
        return s;
    }
    *ret = d;
    return US_OK;
}

void us_dataset_free(struct us_dataset *d)
{
    if (d == NULL)
        return;
    us_frame_cache_free(d->cache);
    for (int s = 0; s < US_SPLIT_COUNT; s++) {
        free(d->split[s].frames);
        free(d->split[s].end);
    }
    free(d->h);
    free(d->w);
    free(d);
}

const struct us_frame_source *us_dataset_source(const struct us_dataset *d)
{
    return d->src;
}

const struct us_dataset_config *us_dataset_config(const struct us_dataset *d)
{
    return &d->cfg;
}

void us_dataset_shape(const struct us_dataset *d, int32_t *ret_patch, int32_t *ret_scales,
                      int32_t *ret_targets)
{
    *ret_patch = d->cfg.patch;
    *ret_scales = d->cfg.lc_scales;
    *ret_targets = d->src->n_channels;
}

const int64_t *us_dataset_frames(const struct us_dataset *d, enum us_split s, int64_t *ret_n)
{
    *ret_n = d->split[s].n;
    return d->split[s].frames;
}

int64_t us_dataset_n_patches(const struct us_dataset *d, enum us_split s)
{
    return d->split[s].n > 0 ? d->split[s].end[d->split[s].n - 1] : 0;
}

/* ---- statistics (13.3) --------------------------------------------------------------------- */

/* The highest clip: what a mixed or measured image is cut at (model-file.md). */
static double input_clip(const struct us_dataset *d)
{
    double c = d->stats.clip[0];
    for (int32_t i = 1; i < d->src->n_channels; i++)
        c = fmax(c, d->stats.clip[i]);
    return c;
}

static enum us_status read_target(void *arg, int64_t frame, int32_t channel, float *out,
                                  int64_t *ret_n, struct us_err *err)
{
    const struct us_dataset *d = arg;
    int64_t f = d->split[US_SPLIT_TRAIN].frames[frame];
    *ret_n = d->h[f] * d->w[f];
    US_TRY(d->src->read(d->src->arg, f, channel, out, err));
    for (int64_t i = 0; i < *ret_n; i++) { /* here, where the frame has a name */
        if (!isfinite(out[i]))
            return us_fail(err, US_E_FORMAT,
                           "frame %s channel %d: pixel (%lld, %lld) is %g; expected finite values",
                           d->src->name(d->src->arg, f), channel, (long long)(i / d->w[f]),
                           (long long)(i % d->w[f]), (double)out[i]);
    }
    return US_OK;
}

static enum us_status read_input(void *arg, int64_t frame, int32_t channel, float *out,
                                 int64_t *ret_n, struct us_err *err)
{
    const struct us_dataset *d = arg;
    US_TRY(read_target(arg, frame, d->src->n_channels, out, ret_n, err));
    float clip = (float)input_clip(d);
    for (int64_t i = 0; i < *ret_n; i++)
        out[i] = out[i] > clip ? clip : out[i];
    return US_OK;
}

enum us_status us_dataset_compute_stats(struct us_dataset *d, const struct us_dataset_watch *watch,
                                        struct us_err *err)
{
    if (d->split[US_SPLIT_TRAIN].n == 0)
        return us_fail(err, US_E_ARG, "data set: no training frame among %lld; statistics need one",
                       (long long)d->src->n_frames);
    struct us_stats_source src = {.n_frames = d->split[US_SPLIT_TRAIN].n,
                                  .n_channels = d->src->n_channels,
                                  .read = read_target,
                                  .arg = d,
                                  .cancel = watch != NULL ? watch->cancel : NULL,
                                  .progress = watch != NULL ? watch->progress : NULL,
                                  .progress_arg = watch != NULL ? watch->arg : NULL};
    for (int64_t i = 0; i < d->split[US_SPLIT_TRAIN].n; i++) {
        int64_t f = d->split[US_SPLIT_TRAIN].frames[i], n = d->h[f] * d->w[f];
        src.plane_pixels = n > src.plane_pixels ? n : src.plane_pixels;
    }
    struct us_stats_config cfg = {d->cfg.clip_quantile, d->cfg.clip_channelwise};
    struct us_stats stats = {0};
    US_TRY(us_stats_compute(&src, &cfg, &stats, err));
    d->stats = stats;
    if (d->src->has_input) {
        src.read = read_input;
        src.n_channels = 1;
        cfg.clip_quantile = 1.0;
        struct us_stats input = {0};
        enum us_status s = us_stats_compute(&src, &cfg, &input, err);
        if (s != US_OK) {
            us_err_prefix(err, "measured input");
            return s;
        }
        stats.input_mean = input.input_mean;
        stats.input_std = input.input_std;
    }
    us_dataset_set_stats(d, &stats);
    return US_OK;
}

void us_dataset_set_stats(struct us_dataset *d, const struct us_stats *stats)
{
    d->stats = *stats;
    us_frame_cache_free(d->cache); /* it holds clipped frames */
    d->cache = NULL;
    double clip[US_MAX_PLANES_PER_FRAME];
    for (int32_t c = 0; c < d->src->n_channels; c++)
        clip[c] = stats->clip[c];
    clip[d->src->n_channels] = input_clip(d);
    /* Without memory for the slots the first patch says so. */
    if (us_frame_cache_new(d->src, d->cfg.lc_scales, clip, d->cfg.cache_bytes, &d->cache) != US_OK)
        d->cache = NULL;
}

const struct us_stats *us_dataset_stats(const struct us_dataset *d)
{
    return &d->stats;
}

/* ---- patches (13.4, 13.6, 13.7) ------------------------------------------------------------ */

static struct us_philox draw(const struct us_dataset *d, uint32_t stream, uint32_t epoch,
                             uint64_t index)
{
    const struct us_philox c = {{(uint32_t)index, (uint32_t)(index >> 32), stream, epoch}};
    return us_philox4x32(c, (uint32_t)d->cfg.seed, (uint32_t)(d->cfg.seed >> 32));
}

/* Uniform in [0, n) from 32 random bits. */
static int64_t below(uint32_t bits, int64_t n)
{
    return (int64_t)(((uint64_t)bits * (uint64_t)n) >> 32);
}

/* The epoch's order: a four-round Feistel network over the next even number of bits, walked until
 * it lands in [0, n). A bijection, so every patch is seen once per epoch. */
static int64_t shuffled(const struct us_dataset *d, uint32_t epoch, int64_t index, int64_t n)
{
    int bits = 2;
    while (bits < 62 && (INT64_C(1) << bits) < n)
        bits += 2;
    uint64_t half = (UINT64_C(1) << (bits / 2)) - 1, x = (uint64_t)index;
    do {
        uint64_t left = x >> (bits / 2), right = x & half;
        for (uint64_t round = 0; round < 4; round++) {
            uint32_t f = draw(d, ORDER_STREAM, epoch, right | round << 56).w[0];
            uint64_t next = left ^ (f & half);
            left = right;
            right = next;
        }
        x = left << (bits / 2) | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}

struct place {
    int64_t frame, y0, x0;
    int turn; /* one of the 8 flips and rotations */
    double alpha[US_MAX_TARGETS];
};

/* The frame of patch `index`; *ret_rest: its number within the frame. */
static int64_t frame_of(const struct split *s, int64_t index, int64_t *ret_rest)
{
    int64_t lo = 0, hi = s->n - 1;
    while (lo < hi) {
        int64_t mid = (lo + hi) / 2;
        if (s->end[mid] > index)
            hi = mid;
        else
            lo = mid + 1;
    }
    *ret_rest = index - (lo > 0 ? s->end[lo - 1] : 0);
    return s->frames[lo];
}

/* Random top-left corners: the last possible one is never drawn (13.7). */
static int64_t corner(uint32_t bits, int64_t n, int32_t patch)
{
    return n > patch ? below(bits, n - patch) : 0;
}

static struct place locate(const struct us_dataset *d, enum us_split s, uint32_t epoch,
                           int64_t index)
{
    struct place p = {0};
    int64_t rest, n = us_dataset_n_patches(d, s);
    int32_t patch = d->cfg.patch;
    bool train = s == US_SPLIT_TRAIN;
    p.frame = frame_of(&d->split[s], train ? shuffled(d, epoch, index, n) : index, &rest);
    struct us_philox r = draw(d, CROP_STREAM, epoch, (uint64_t)index);
    if (train) {
        p.y0 = corner(r.w[0], d->h[p.frame], patch);
        p.x0 = corner(r.w[1], d->w[p.frame], patch);
        p.turn = d->cfg.augment ? (int)(r.w[2] >> 29) : 0;
    } else {
        int64_t cols = d->w[p.frame] / patch;
        p.y0 = rest / cols * patch;
        p.x0 = rest % cols * patch;
    }
    for (int32_t c = 0; c < d->src->n_channels; c++) {
        double lo = d->cfg.alpha_min[c], hi = d->cfg.alpha_max[c];
        uint32_t u = draw(d, MIX_STREAM + (uint32_t)c, epoch, (uint64_t)index).w[0];
        p.alpha[c] = train ? lo + (hi - lo) * ((double)u + 0.5) / 4294967296.0 : 0.5 * (lo + hi);
    }
    return p;
}

/* Turns a square map of `c` interleaved channels: bit 2 transposes, bits 1 and 0 flip y and x. */
static void turn(float *map, int32_t side, int32_t c, int how, float *scratch)
{
    if (how == 0)
        return;
    memcpy(scratch, map, (size_t)side * (size_t)side * (size_t)c * sizeof(float));
    for (int32_t y = 0; y < side; y++) {
        for (int32_t x = 0; x < side; x++) {
            int32_t sy = how & 4 ? x : y, sx = how & 4 ? y : x;
            sy = how & 2 ? side - 1 - sy : sy;
            sx = how & 1 ? side - 1 - sx : sx;
            for (int32_t k = 0; k < c; k++)
                map[((int64_t)y * side + x) * c + k] = scratch[((int64_t)sy * side + sx) * c + k];
        }
    }
}

/* input_s = (sum_c alpha_c channel_c - mean) / std, or the measured superposition. */
static void make_input(const struct us_dataset *d, const struct us_cached_frame *f,
                       const struct place *p, int32_t s, float *out, float *scratch)
{
    int32_t side = d->cfg.patch, n = side * side;
    float mean = (float)d->stats.input_mean, std = (float)d->stats.input_std;
    if (d->src->has_input) {
        us_patch_extract(&f->plane[d->src->n_channels], s, p->y0, p->x0, side, d->cfg.padding, mean,
                         std, out);
        return;
    }
    memset(out, 0, (size_t)n * sizeof(float));
    for (int32_t c = 0; c < d->src->n_channels; c++) {
        float alpha = (float)p->alpha[c];
        us_patch_extract(&f->plane[c], s, p->y0, p->x0, side, d->cfg.padding, 0.0f, 1.0f, scratch);
        for (int32_t i = 0; i < n; i++)
            out[i] += alpha * scratch[i];
    }
    for (int32_t i = 0; i < n; i++)
        out[i] = (out[i] - mean) / std;
}

static void make_target(const struct us_dataset *d, const struct us_cached_frame *f,
                        const struct place *p, float *out, float *scratch)
{
    int32_t side = d->cfg.patch, channels = d->src->n_channels;
    for (int32_t c = 0; c < channels; c++) {
        us_patch_extract(&f->plane[c], 0, p->y0, p->x0, side, d->cfg.padding,
                         (float)d->stats.target_mean[c], (float)d->stats.target_std[c], scratch);
        for (int32_t i = 0; i < side * side; i++)
            out[(int64_t)i * channels + c] = scratch[i];
    }
}

enum us_status us_dataset_patch(struct us_dataset *d, enum us_split s, uint32_t epoch,
                                int64_t index, float *const *input, float *target,
                                struct us_err *err)
{
    if (index < 0 || index >= us_dataset_n_patches(d, s))
        return us_fail(err, US_E_ARG, "patch %lld; expected 0 to %lld", (long long)index,
                       (long long)us_dataset_n_patches(d, s) - 1);
    int32_t side = d->cfg.patch;
    size_t n = (size_t)side * (size_t)side * (size_t)d->src->n_channels;
    float *scratch = calloc(n, sizeof(float));
    if (scratch == NULL || d->cache == NULL) {
        free(scratch);
        return us_fail(err, US_E_NOMEM, "data set: out of memory, or no statistics yet");
    }
    struct place p = locate(d, s, epoch, index);
    const struct us_cached_frame *f = NULL;
    enum us_status status = us_frame_cache_get(d->cache, p.frame, &f, err);
    if (status == US_OK) {
        for (int32_t k = 0; k < d->cfg.lc_scales; k++) {
            make_input(d, f, &p, k, input[k], scratch);
            turn(input[k], side, 1, p.turn, scratch);
        }
        make_target(d, f, &p, target, scratch);
        turn(target, side, d->src->n_channels, p.turn, scratch);
        us_frame_cache_put(d->cache, f);
    }
    free(scratch);
    return status;
}
