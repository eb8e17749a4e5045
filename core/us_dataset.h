/*
 * Training data (model-spec 13): frames on disk -> splits, statistics, patches with lateral
 * context. A data set may be larger than memory: frames are read when needed and their pyramids
 * kept in a cache of bounded size.
 *
 * core knows no image format: frames come through `struct us_frame_source`, which the program
 * fills (server/us_frames.h reads TIFF folders and stacks).
 */
#ifndef US_DATASET_H
#define US_DATASET_H

#include <stdatomic.h>

#include "us_model.h"
#include "us_stats.h"

enum us_split { US_SPLIT_TRAIN = 0, US_SPLIT_VAL, US_SPLIT_TEST, US_SPLIT_COUNT };

/* Where frames come from. read is called from several threads at once. Planes: the target channels
 * 0..n_channels-1, then, if has_input, one more: the measured superposition. */
struct us_frame_source {
    int64_t n_frames;
    int32_t n_channels;
    bool has_input;
    enum us_status (*shape)(void *arg, int64_t frame, int64_t *h, int64_t *w);
    enum us_status (*read)(void *arg, int64_t frame, int32_t plane, float *out,
                           struct us_err *err); /* f32 [h, w] */
    /* Name of a frame, for splits.json and messages; borrowed. */
    const char *(*name)(void *arg, int64_t frame);
    void *arg;
};

enum us_split_kind {
    /* Type B of 13.2: blocks of up to 3 frames alternate val and test. If the fractions differ,
     * the last frames of the over-full list move (upstream: random ones). */
    US_SPLIT_BLOCKS = 0,
    US_SPLIT_HEAD,  /* type A: test first, then val */
    US_SPLIT_LISTED /* the caller lists frames (splits.json) */
};

struct us_dataset_config {
    int32_t patch, lc_scales;
    enum us_pad_mode padding;
    enum us_split_kind split;
    double val_fraction, test_fraction;    /* 0.1, 0.1 */
    const int64_t *listed[US_SPLIT_COUNT]; /* US_SPLIT_LISTED: frame numbers, borrowed */
    int64_t n_listed[US_SPLIT_COUNT];
    double clip_quantile; /* 0.995 */
    bool clip_channelwise;
    /* Mixing (13.4): input = sum_c alpha_c * channel_c; min = max = 1/n_channels: the average.
     * Otherwise alpha_c is uniform in [min, max] per patch (training only). */
    double alpha_min[US_MAX_TARGETS], alpha_max[US_MAX_TARGETS];
    bool augment;        /* the 8 flips and rotations; off as in the paper */
    int64_t cache_bytes; /* of frame pyramids */
    uint64_t seed;
};

struct us_dataset;

/* Reads the shapes, makes the splits. src is borrowed. Errors say which frame and why: no training
 * frame, frames smaller than a patch, channels that differ. */
enum us_status us_dataset_open(const struct us_frame_source *src,
                               const struct us_dataset_config *cfg, struct us_dataset **ret,
                               struct us_err *err) US_WARN_UNUSED;
void us_dataset_free(struct us_dataset *d);

/* How a pass over all data is followed and stopped; each pointer may be NULL. */
struct us_dataset_watch {
    const atomic_bool *cancel;                                /* polled between planes */
    void (*progress)(void *arg, int64_t done, int64_t total); /* planes of all passes */
    void *arg;
};

/* Clip and statistics of the training split (13.3), or those given (evaluation with a trained
 * model, resume). With a measured input plane, input_mean and input_std are that plane's. watch may
 * be NULL. E_FORMAT names the frame and pixel that is not finite, or the constant channel. */
enum us_status us_dataset_compute_stats(struct us_dataset *d, const struct us_dataset_watch *watch,
                                        struct us_err *err) US_WARN_UNUSED;
void us_dataset_set_stats(struct us_dataset *d, const struct us_stats *stats);
const struct us_stats *us_dataset_stats(const struct us_dataset *d);

const struct us_frame_source *us_dataset_source(const struct us_dataset *d);
/* As given to open, listed frames aside (they were the caller's). */
const struct us_dataset_config *us_dataset_config(const struct us_dataset *d);
/* Patch side, input scales, target channels. */
void us_dataset_shape(const struct us_dataset *d, int32_t *ret_patch, int32_t *ret_scales,
                      int32_t *ret_targets);

/* Frame numbers of a split, in its order; owned by d. */
const int64_t *us_dataset_frames(const struct us_dataset *d, enum us_split s, int64_t *ret_n);

/* Patches of an epoch (13.7): train: sum over frames of (H/P)(W/P) random positions; val and test:
 * the non-overlapping grid. */
int64_t us_dataset_n_patches(const struct us_dataset *d, enum us_split s);

/* Patch number `index` of epoch `epoch`: input[s] f32 [P, P] for each scale, normalised (13.4);
 * target f32 [P, P, T] normalised. Depends on (seed, epoch, index) only; the training order is a
 * permutation of each epoch. Thread-safe. E_IO and so on from the source. */
enum us_status us_dataset_patch(struct us_dataset *d, enum us_split s, uint32_t epoch,
                                int64_t index, float *const *input, float *target,
                                struct us_err *err) US_WARN_UNUSED;

/* SHA-256 of shapes, names and unclipped pixel values (f32) of all frames of a split in its order,
 * hex: provenance and the check on resume. watch may be NULL. E_FORMAT: a pixel that is not finite;
 * E_CANCELLED, E_NOMEM, and what the source returns. */
enum us_status us_dataset_hash(struct us_dataset *d, enum us_split s,
                               const struct us_dataset_watch *watch, char hex[65],
                               struct us_err *err) US_WARN_UNUSED;

/* ---- loading beside compute ---------------------------------------------------------------- */

struct us_loader;

/* Batches of a split from patch `first` of `epoch` on, prepared by `threads` threads at most
 * `ahead` batches ahead. The last batch of an epoch may be smaller (13.7). */
enum us_status us_loader_new(struct us_dataset *d, enum us_split s, uint32_t epoch, int64_t first,
                             int32_t batch, int32_t threads, int32_t ahead, struct us_loader **ret,
                             struct us_err *err) US_WARN_UNUSED;
void us_loader_free(struct us_loader *l); /* stops the threads */

struct us_loader_batch {
    int32_t n;           /* 0: the epoch is over */
    int64_t first;       /* index of its first patch */
    const float *input;  /* [n][scales][P][P] */
    const float *target; /* [n][P][P][T] */
};
/* The next batch in order; valid until the next call. */
enum us_status us_loader_next(struct us_loader *l, struct us_loader_batch *ret,
                              struct us_err *err) US_WARN_UNUSED;

#endif
