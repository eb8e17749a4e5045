/*
 * Pyramids of training frames, kept in bounded memory. Internal to the data set (us_dataset.c).
 */
#ifndef US_FRAME_CACHE_H
#define US_FRAME_CACHE_H

#include "us_dataset.h"
#include "us_pyramid.h"

#define US_MAX_PLANES_PER_FRAME (US_MAX_TARGETS + 1) /* targets and a measured input */

struct us_cached_frame {
    int64_t frame;
    struct us_pyramid plane[US_MAX_PLANES_PER_FRAME]; /* clipped; targets, then the input if any */
    /* The cache's own. */
    int32_t pins;
    enum { US_FRAME_EMPTY = 0, US_FRAME_LOADING, US_FRAME_READY } state;
    int64_t bytes;
    uint64_t used;
};

struct us_frame_cache;

/* clip[plane]; src is borrowed. A frame in use stays, so the limit is exceeded by at most as many
 * frames as there are threads that read. */
enum us_status us_frame_cache_new(const struct us_frame_source *src, int32_t n_scales,
                                  const double *clip, int64_t max_bytes,
                                  struct us_frame_cache **ret) US_WARN_UNUSED;
void us_frame_cache_free(struct us_frame_cache *c);

/* Pins a frame, reading it if it is not there; several threads may ask at once, one reads. */
enum us_status us_frame_cache_get(struct us_frame_cache *c, int64_t frame,
                                  const struct us_cached_frame **ret,
                                  struct us_err *err) US_WARN_UNUSED;
void us_frame_cache_put(struct us_frame_cache *c, const struct us_cached_frame *f);

#endif
