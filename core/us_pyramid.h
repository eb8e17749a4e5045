/*
 * A frame at all input scales, and patches cut from it (model-spec 13.5, 13.6).
 */
#ifndef US_PYRAMID_H
#define US_PYRAMID_H

#include "math/us_frame_math.h"
#include "us_model.h"

struct us_pyramid {
    int32_t n_scales;
    int64_t h[US_MAX_SCALES], w[US_MAX_SCALES];
    float *data[US_MAX_SCALES]; /* row-major [h, w]; data[0] is owned too */
};

/* Scale 0 is a copy of frame with values above clip set to clip (+INFINITY: none); scale s is
 * scale s-1 resized to (max(1, h/2), max(1, w/2)) exactly as 13.5 says. Caller releases *ret.
 * frame: f32 [h, w], borrowed. E_ARG for an empty frame or n_scales outside 1..US_MAX_SCALES,
 * E_TOO_LARGE above US_MAX_PLANE_PIXELS, E_NOMEM; *ret is then empty. ret_n_clipped may be NULL. */
enum us_status us_pyramid_build(const float *frame, int64_t h, int64_t w, int32_t n_scales,
                                double clip, struct us_pyramid *ret,
                                int64_t *ret_n_clipped) US_WARN_UNUSED;
void us_pyramid_release(struct us_pyramid *p);

/* How an axis of n >= 1 pixels is halved. */
struct us_halving us_halving_of(int64_t n);

/* Patch of scale s for the full-resolution top-left corner (h0, w0), which may be negative, side
 * `size`: out[size*size] = (pixel - mean) / std in f32. Padding acts on the cropped content only
 * (13.6); US_PAD_ZERO pads raw zeros *before* normalisation. A patch entirely outside the frame
 * repeats the nearest edge pixels (US_PAD_ZERO: all padding). size >= 1. Allocates nothing. */
void us_patch_extract(const struct us_pyramid *p, int32_t s, int64_t h0, int64_t w0, int32_t size,
                      enum us_pad_mode pad, float mean, float std, float *out);

/* 13.6: index in [0, len) that position i, counted from the first content pixel and negative or
 * beyond len in the padding, repeats: reflect without edge repetition, periodic; len 1
 * replicates. */
int64_t us_reflect_index(int64_t i, int64_t len);

#endif
