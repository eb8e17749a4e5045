/*
 * Clip and normalisation statistics of training data (model-spec 13.3): an exact quantile over
 * all pixels, then means and population standard deviations of the clipped data, in double.
 *
 * The data come plane by plane through a callback and are read three times, so that a data set
 * larger than memory works and the quantile is still exact.
 */
#ifndef US_STATS_H
#define US_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "us_limits.h"
#include "us_status.h"

struct us_stats_source {
    int64_t n_frames;
    int32_t n_channels;   /* 1..US_MAX_TARGETS */
    int64_t plane_pixels; /* the largest plane */
    /* Reads one plane into out (room for plane_pixels values) and says how many it wrote. */
    enum us_status (*read)(void *arg, int64_t frame, int32_t channel, float *out, int64_t *ret_n,
                           struct us_err *err);
    void *arg;
    const atomic_bool *cancel; /* nullable; polled between planes: E_CANCELLED */
    void (*progress)(void *arg, int64_t done, int64_t total); /* nullable; planes of all passes */
    void *progress_arg;
};

struct us_stats_config {
    double clip_quantile; /* 0..1; 0.995 in the paper; 1 clips nothing */
    bool channelwise;     /* one quantile per channel instead of one for all */
};

struct us_stats {
    double clip[US_MAX_TARGETS];  /* equal unless channelwise */
    double input_mean, input_std; /* all channels pooled */
    double target_mean[US_MAX_TARGETS], target_std[US_MAX_TARGETS];
};

/* E_FORMAT: a pixel that is not finite (naming frame, channel and index), or constant data, which
 * cannot be normalised. Also E_ARG, E_NOMEM, E_CANCELLED and what the source returns. */
enum us_status us_stats_compute(const struct us_stats_source *src,
                                const struct us_stats_config *cfg, struct us_stats *ret,
                                struct us_err *err) US_WARN_UNUSED;

#endif
