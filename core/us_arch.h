/*
 * The architecture of a network, as the model file states it (model-file.md "architecture",
 * model-spec 1 and 4). Plain data; us_net.h builds the network from it.
 */
#ifndef US_ARCH_H
#define US_ARCH_H

#include <stdbool.h>
#include <stdint.h>

#include "us_limits.h"
#include "us_status.h"

enum us_family { US_FAMILY_LVAE = 0 };

enum us_logvar { US_LOGVAR_NONE = 0, US_LOGVAR_PIXELWISE, US_LOGVAR_CHANNELWISE, US_LOGVAR_GLOBAL };

struct us_arch {
    enum us_family family;
    bool stochastic; /* false = HAE (spec 7) */
    int32_t n_levels;
    int32_t z_dims[US_MAX_LEVELS]; /* finest level first */
    int32_t lc_scales;             /* m: input scales including full resolution; 1 = vanilla */
    bool decoder_retain;           /* false = Lean-LC (spec 1) */
    int32_t n_filters;
    int32_t blocks_per_level;
    float dropout;
    enum us_logvar predict_logvar;
    float logvar_lower_bound;
    float var_clip_max; /* +INFINITY: none */
    int32_t target_channels;
};

/* The paper's Regular-LC HVAE with all defaults of model-file.md. */
struct us_arch us_arch_default(void);

/* "vanilla", "lean", "regular" or "deep" applied to *arch (lc_scales, decoder_retain, z_dims);
 * US_E_ARG for another word. */
enum us_status us_arch_set_variant(struct us_arch *arch, const char *variant,
                                   struct us_err *err) US_WARN_UNUSED;

/* Refuses what the spec forbids, naming value and reason. patch = the training patch size. */
enum us_status us_arch_check(const struct us_arch *arch, int32_t patch,
                             struct us_err *err) US_WARN_UNUSED;

#endif
