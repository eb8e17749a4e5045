/*
 * Architecture defaults, the paper's variants by name, and what the spec forbids (us_arch.h,
 * model-spec 1 and 4). Shapes that only fail for one patch size are refused by us_net_build,
 * which sees them.
 */
#include "us_arch.h"

#include <math.h>
#include <string.h>

#define PAPER_Z_DIM  128
#define PAPER_SCALES 5 /* full resolution and four LC inputs */

struct us_arch us_arch_default(void)
{
    struct us_arch a;
    memset(&a, 0, sizeof(a));
    a.family = US_FAMILY_LVAE;
    a.stochastic = true;
    a.n_levels = 4;
    for (int32_t i = 0; i < a.n_levels; i++)
        a.z_dims[i] = PAPER_Z_DIM;
    a.lc_scales = PAPER_SCALES;
    a.decoder_retain = true;
    a.n_filters = 64;
    a.blocks_per_level = 1;
    a.dropout = 0.1f;
    a.predict_logvar = US_LOGVAR_PIXELWISE;
    a.logvar_lower_bound = -5.0f;
    a.var_clip_max = 20.0f;
    a.target_channels = 2;
    return a;
}

enum us_status us_arch_set_variant(struct us_arch *arch, const char *variant, struct us_err *err)
{
    static const struct {
        const char *name;
        int32_t levels, scales;
        bool retain;
    } variants[] = {
        {"vanilla", 4, 1, false},
        {"lean", 4, PAPER_SCALES, false},
        {"regular", 4, PAPER_SCALES, true},
        {"deep", 8, PAPER_SCALES, true},
    };
    for (size_t v = 0; v < US_COUNT(variants); v++) {
        if (strcmp(variant, variants[v].name) != 0)
            continue;
        arch->n_levels = variants[v].levels;
        arch->lc_scales = variants[v].scales;
        arch->decoder_retain = variants[v].retain;
        for (int32_t i = 0; i < arch->n_levels; i++)
            arch->z_dims[i] = PAPER_Z_DIM;
        return US_OK;
    }
    return us_fail(err, US_E_ARG, "unknown variant \"%s\"; expected vanilla, lean, regular or deep",
                   variant);
}

struct bound {
    const char *name;
    int64_t value, min, max;
};

static enum us_status check_bounds(const struct bound *b, size_t n, struct us_err *err)
{
    for (size_t i = 0; i < n; i++) {
        if (b[i].value < b[i].min || b[i].value > b[i].max)
            return us_fail(err, US_E_ARG, "%s is %lld; expected %lld to %lld", b[i].name,
                           (long long)b[i].value, (long long)b[i].min, (long long)b[i].max);
    }
    return US_OK;
}

static enum us_status check_reals(const struct us_arch *a, struct us_err *err)
{
    if (!(a->dropout >= 0.0f && a->dropout < 1.0f))
        return us_fail(err, US_E_ARG, "dropout is %g; expected 0 <= dropout < 1",
                       (double)a->dropout);
    if (!isfinite(a->logvar_lower_bound))
        return us_fail(err, US_E_ARG, "logvar_lower_bound is %g; expected a finite number",
                       (double)a->logvar_lower_bound);
    if (isnan(a->var_clip_max) || a->var_clip_max < 0.0f)
        return us_fail(err, US_E_ARG, "var_clip_max is %g; expected a number >= 0 or null",
                       (double)a->var_clip_max);
    return US_OK;
}

enum us_status us_arch_check(const struct us_arch *a, int32_t patch, struct us_err *err)
{
    if (a->family != US_FAMILY_LVAE)
        return us_fail(err, US_E_UNSUPPORTED, "network family %d; expected lvae", (int)a->family);
    const struct bound bounds[] = {
        {"patch_size", patch, 8, US_MAX_PATCH},
        {"number of levels (z_dims)", a->n_levels, 1, US_MAX_LEVELS},
        {"lc_scales", a->lc_scales, 1, US_MAX_SCALES},
        {"n_filters", a->n_filters, 1, US_MAX_FILTERS},
        {"blocks_per_level", a->blocks_per_level, 1, US_MAX_BLOCKS},
        {"target_channels", a->target_channels, 1, US_MAX_TARGETS},
        {"predict_logvar", (int64_t)a->predict_logvar, US_LOGVAR_NONE, US_LOGVAR_GLOBAL},
    };
    US_TRY(check_bounds(bounds, US_COUNT(bounds), err));
    for (int32_t i = 0; i < a->n_levels; i++) {
        const struct bound z = {"z_dims entry", a->z_dims[i], 1, US_MAX_ZDIM};
        US_TRY(check_bounds(&z, 1, err));
    }
    if (patch % 2 != 0)
        return us_fail(err, US_E_ARG, "patch_size is %d; expected an even number", patch);
    if (a->lc_scales > 1 + a->n_levels)
        return us_fail(err, US_E_ARG,
                       "lc_scales is %d with %d levels; expected at most levels + 1 = %d, because "
                       "each low-resolution input enters at a level of its own",
                       a->lc_scales, a->n_levels, a->n_levels + 1);
    return check_reals(a, err);
}
