/*
 * SinosoidalCritters, the paper's synthetic data (model-spec 14), seeded: the same seed gives the
 * same frames everywhere.
 */
#ifndef US_CRITTERS_H
#define US_CRITTERS_H

#include <stdbool.h>
#include <stdint.h>

#include "us_status.h"

/* One curve with everything decided; n_w 2 = two-frequency, 3 = three-curve with w[1] the joining
 * frequency. Frequencies in radians per pixel, 1e-3 to pi; shifts in pixels, at most the size of
 * the frame, the vertical one not negative. */
struct us_critter_curve {
    double w[3];
    int32_t n_w;
    double vertical_shift, horizontal_shift;
    bool flip;
};

/* Adds one curve to img, f64 [size, size] (spec 14: amplitude 8, thickness 21, granularity 0.1,
 * join fraction 0.1). size 1 to 32768. E_ARG, E_NOMEM; img is then untouched. */
enum us_status us_critters_draw(double *img, int32_t size,
                                const struct us_critter_curve *curve) US_WARN_UNUSED;

struct us_critters_config {
    int32_t size; /* frame side: 256 or 128 in the paper; 89 (five curves 16 apart) to 32768 */
    int32_t join; /* 0 = two-frequency; > 0 = three-curve: the join is a tenth of the length */
    /* Kinds of curve per channel: 2 = the paper's, where either half of a curve occurs in both
     * channels; 1 = the first kind only, where one half is shared and the other tells. 0 is 2. */
    int32_t pairs;
    uint64_t seed;
};

#define US_CRITTERS_CURVES 5

/* The curves of both channels of frame number `frame`, from 0: the drawn numbers before any pixel.
 * Depends on (cfg, frame) only. E_ARG. */
enum us_status us_critters_curves(const struct us_critters_config *cfg, int64_t frame,
                                  struct us_critter_curve ret[2][US_CRITTERS_CURVES],
                                  struct us_err *err) US_WARN_UNUSED;

/* Frame number `frame` from 0: ret f64 [2, size, size], every pixel written; depends on
 * (cfg, frame) only. E_ARG, E_NOMEM. */
enum us_status us_critters_frame(const struct us_critters_config *cfg, int64_t frame, double *ret,
                                 struct us_err *err) US_WARN_UNUSED;

#endif
