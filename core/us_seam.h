/*
 * Seam score: how visible the tile grid is in a predicted plane, without a reference image. The
 * idea is SWITi's (arXiv 2607.18990): in a plane without seams, neighbouring pixels on two sides
 * of a grid line differ like neighbouring pixels anywhere else. The definition here is our own.
 *
 * Let d be the absolute difference of two neighbours along one axis, and the *phase* of d the
 * position of its second pixel modulo the grid. Phase 0 differences cross a grid line (a seam);
 * the other grid - 1 phases lie inside tiles and tell what to expect. Per axis:
 *
 *   excess = mean d of phase 0 / mean d of all other phases - 1
 *   z      = (mean of phase 0 - M) / S, where M and S are mean and standard deviation (n - 1) of
 *            the other phases' means: how unusual phase 0 is among the phases of this very image
 *   ks     = two-sample Kolmogorov-Smirnov distance between the d of phase 0 and all other d, each
 *            d cut to 8 significant bits (a bfloat16), so that counting replaces sorting
 *
 * excess is 0 without seams, 0.1 if differences across seams are a tenth larger, negative where
 * tiles were blended, and does not change with gain or offset of the plane. Judge it by z: in a few
 * sparse bright structures excess scatters by ten percent and more without any seam. Seamless
 * critters frames (256 pixels, grids 16 to 64) passed |z| = 3 in one to four axes of a hundred.
 */
#ifndef US_SEAM_H
#define US_SEAM_H

#include <stdint.h>

#include "us_status.h"

/* One axis. Without a grid line (n_lines 0) the numbers are NAN. */
struct us_seam_axis {
    int64_t n_lines;        /* grid lines that the axis crosses */
    double seam, elsewhere; /* mean d of phase 0, of all other phases */
    double excess;          /* +INFINITY if only seams differ; 0 if nothing differs */
    double z; /* 0 if phase 0 is M to 1e-12; else +-INFINITY if S is 0; NAN for grid 2 */
    double ks;
};

/* An axis without lines does not count; NAN if neither has one. */
struct us_seam {
    struct us_seam_axis y, x; /* differences down and across, i.e. horizontal, vertical lines */
    double excess;            /* (y.seam + x.seam) / (y.elsewhere + x.elsewhere) - 1 */
    double z;                 /* the one farther from 0: the number to judge by */
    double ks;                /* the larger one */
};

/* plane: f32 [h, w], borrowed; grid: side of the inner tiles, the first one at (0, 0). E_ARG if
 * empty, over US_MAX_PLANE_PIXELS, not finite (naming the position) or grid is below 2; E_NOMEM. */
enum us_status us_seam_score(const float *plane, int64_t h, int64_t w, int32_t grid,
                             struct us_seam *ret, struct us_err *err) US_WARN_UNUSED;

/* The same for the planes of a stack together: their differences are pooled, so that many frames
 * make the finding surer instead of giving chance many tries. About 1 MiB. */
struct us_seam_pool;
enum us_status us_seam_pool_new(int64_t h, int64_t w, int32_t grid, struct us_seam_pool **ret,
                                struct us_err *err) US_WARN_UNUSED;
void us_seam_pool_free(struct us_seam_pool *p);
/* On failure the pool is as it was. */
enum us_status us_seam_pool_add(struct us_seam_pool *p, const float *plane,
                                struct us_err *err) US_WARN_UNUSED;
/* Of at least one plane. */
struct us_seam us_seam_pool_score(const struct us_seam_pool *p);

/* Of two z the one farther from 0, the first if they tie; NAN does not count. */
double us_seam_worse(double z, double other);

#endif
