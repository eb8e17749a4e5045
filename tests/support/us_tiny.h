/*
 * Tiny networks and frames for tests of plans and predictors: the geometry of the published
 * networks at 1/256 of their cost.
 */
#ifndef US_TINY_H
#define US_TINY_H

#include <stdint.h>

#include "us_model.h"

#define US_TINY_PATCH 64

/* variant: as us_arch_set_variant names them; blocks per level as given. n_filters filters and
 * latent channels (4 is tiny), filled by the rule of the reference vectors. Statistics of a 1:100
 * brightness ratio between two targets. Fails the test if it cannot. Caller frees. */
struct us_model *us_tiny_model(const char *variant, int32_t n_filters, int32_t blocks);

/* f32 [h, w] of a fixed texture without periods, values 100 to 160. Caller frees. */
float *us_tiny_frame(int64_t h, int64_t w);

#endif
