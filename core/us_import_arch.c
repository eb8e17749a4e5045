/*
 * The architecture of a network from its state dictionary (us_import.h, model-spec 4.6 and 11.1).
 * Counts of levels, inputs and blocks are counts of names, widths are shapes of single tensors; the
 * patch size and whether the decoder keeps context follow from the shape of the top-level prior.
 * Whatever is misread here fails when all shapes are compared.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_import_int.h"

#define HEAD        "likelihood.parameter_net.weight"
#define USUAL_PATCH 64 /* of every published configuration */

/* A name with a level or number in it: before, number, after. */
struct place {
    const char *before;
    int32_t number;
    const char *after;
};

#define FIRST ((struct place){"first_bottom_up.", 0, ".weight"})

static const struct us_state_tensor *find(const struct usi_names *names, struct place p, char *name)
{
    (void)snprintf(name, US_MAX_PARAM_NAME, "%s%d%s", p.before, (int)p.number, p.after);
    const struct usi_entry *e = usi_names_find(names, name);
    return e == NULL ? NULL : &names->dict->tensor[e->tensor];
}

/* How many numbers from 0 on a name exists for. */
static int32_t count_names(const struct usi_names *names, const char *before, const char *after,
                           int32_t max)
{
    char name[US_MAX_PARAM_NAME];
    int32_t n = 0;
    while (n < max && find(names, (struct place){before, n, after}, name) != NULL)
        n++;
    return n;
}

static enum us_status dim_of(const struct usi_names *names, struct place p, int32_t axis,
                             int32_t max, int32_t *ret, struct us_err *err)
{
    char name[US_MAX_PARAM_NAME];
    const struct us_state_tensor *t = find(names, p, name);
    if (t == NULL)
        return us_fail(err, US_E_FORMAT, "tensor %s is missing", name);
    if (t->ndim == 5)
        return us_fail(err, US_E_UNSUPPORTED,
                       "tensor %s has 5 dimensions: a network for volumes; only two-dimensional "
                       "ones can be imported",
                       name);
    if (t->ndim != 4 || t->dim[axis] < 1 || t->dim[axis] > max)
        return us_fail(
            err, US_E_FORMAT,
            "tensor %s: dimension %d is %lld of %d; expected 4 dimensions, this one 1 to "
            "%d",
            name, (int)axis, axis < t->ndim ? (long long)t->dim[axis] : 0LL, (int)t->ndim,
            (int)max);
    *ret = (int32_t)t->dim[axis];
    return US_OK;
}

/* Twice the target channels with a predicted variance, as many without: 2 outputs are two channels,
 * because one channel is nothing to split. */
static enum us_status read_head(const struct usi_names *names, const struct us_import_hints *hints,
                                struct us_arch *a, struct us_err *err)
{
    int32_t out = 0, t = hints->target_channels;
    const struct usi_entry *head = usi_names_find(names, HEAD);
    if (head == NULL)
        return us_fail(err, US_E_FORMAT, "tensor %s is missing", HEAD);
    const struct us_state_tensor *w = &names->dict->tensor[head->tensor];
    if (w->ndim != 4 || w->dim[0] < 1 || w->dim[0] > 2 * US_MAX_TARGETS)
        return us_fail(err, US_E_FORMAT, "tensor %s gives %lld channels; expected 1 to %d", HEAD,
                       w->ndim == 4 ? (long long)w->dim[0] : 0LL, 2 * US_MAX_TARGETS);
    out = (int32_t)w->dim[0];
    a->predict_logvar = hints->logvar >= 0 ? (enum us_logvar)hints->logvar : US_LOGVAR_PIXELWISE;
    if (hints->logvar < 0 && (t != 0 ? out == t : out == 2 || out % 2 != 0))
        a->predict_logvar = US_LOGVAR_NONE;
    int32_t per = a->predict_logvar == US_LOGVAR_NONE ? 1 : 2;
    a->target_channels = out / per;
    if (out % per != 0 || (t != 0 && t != a->target_channels))
        return us_fail(err, US_E_ARG,
                       "the head gives %d channels: %d targets with a predicted variance, or %d "
                       "without; %d were asked for",
                       (int)out, (int)out / 2, (int)out, t != 0 ? (int)t : (int)out / per);
    return US_OK;
}

/* ---- patch size and decoder ---------------------------------------------------------------- */

/* Side of the prior (model-spec 4.6, end). */
static int32_t prior_side(const struct us_arch *a, bool retain, int32_t patch)
{
    if (retain)
        return patch >> (a->n_levels + 1 - a->lc_scales);
    return (int32_t)(((int64_t)patch + (1LL << a->n_levels) - 1) >> a->n_levels);
}

static bool is_possible(const struct us_arch *a, bool retain, int32_t side, int32_t patch)
{
    struct us_arch try = *a;
    try.decoder_retain = retain;
    return prior_side(a, retain, patch) == side && us_arch_check(&try, patch, NULL) == US_OK;
}

/* Without a prior, or with one of another shape than the hints say. */
static enum us_status need_hints(const struct us_import_hints *hints, int32_t side,
                                 struct us_arch *a, int32_t *ret_patch, struct us_err *err)
{
    bool lc = a->lc_scales > 1;
    if (side > 0 && hints->patch > 0)
        return us_fail(err, US_E_ARG,
                       "the top-level prior is %dx%d; a patch of %d with %d levels and %d input "
                       "scales would make it %dx%d (Regular- and Deep-LC) or %dx%d (vanilla and "
                       "Lean-LC)",
                       (int)side, (int)side, (int)hints->patch, (int)a->n_levels, (int)a->lc_scales,
                       (int)prior_side(a, lc, hints->patch), (int)prior_side(a, lc, hints->patch),
                       (int)prior_side(a, false, hints->patch),
                       (int)prior_side(a, false, hints->patch));
    if (hints->patch == 0 || (lc && hints->decoder_retain < 0))
        return us_fail(
            err, US_E_ARG,
            "the tensors leave open which patch size and decoder the network was trained "
            "with; say --patch%s",
            lc ? " and --variant" : "");
    *ret_patch = hints->patch;
    a->decoder_retain = lc && hints->decoder_retain == 1;
    return US_OK;
}

static enum us_status read_patch(const struct usi_names *names, const struct us_import_hints *hints,
                                 struct us_arch *a, int32_t *ret_patch, struct us_err *err)
{
    char name[US_MAX_PARAM_NAME];
    const struct us_state_tensor *t =
        find(names, (struct place){"top_down_layers.", a->n_levels - 1, ".top_prior_params"}, name);
    int32_t side = 0, n = 0, patch[2] = {0};
    bool retain[2] = {false}, usual = false;
    if (t != NULL && t->ndim == 4 && t->dim[2] == t->dim[3] && t->dim[2] <= US_MAX_PATCH)
        side = (int32_t)t->dim[2];
    for (int32_t r = 1; r >= 0 && side > 0; r--) {
        int64_t p = (int64_t)side << (r == 1 ? a->n_levels + 1 - a->lc_scales : a->n_levels);
        p = hints->patch > 0 ? hints->patch : p;
        bool wanted = a->lc_scales > 1 ? hints->decoder_retain != 1 - r : r == 0;
        if (!wanted || p > US_MAX_PATCH || !is_possible(a, r == 1, side, (int32_t)p))
            continue;
        if (p == USUAL_PATCH && !usual) /* the published size wins over others */
            n = 0;
        else if (usual)
            continue;
        usual = p == USUAL_PATCH;
        retain[n] = r == 1;
        patch[n++] = (int32_t)p;
    }
    if (n != 1)
        return need_hints(hints, side, a, ret_patch, err);
    *ret_patch = patch[0];
    a->decoder_retain = retain[0];
    return US_OK;
}

/* ---- the whole ----------------------------------------------------------------------------- */

enum us_status usi_import_arch(const struct usi_names *names, const struct us_import_hints *hints,
                               struct us_arch *ret_arch, int32_t *ret_patch, struct us_err *err)
{
    struct us_arch a = us_arch_default();
    US_TRY(dim_of(names, FIRST, 0, US_MAX_FILTERS, &a.n_filters, err));
    a.n_levels =
        count_names(names, "top_down_layers.", ".stochastic.conv_out.weight", US_MAX_LEVELS);
    if (a.n_levels == 0)
        return us_fail(err, US_E_FORMAT,
                       "tensor top_down_layers.0.stochastic.conv_out.weight is missing");
    for (int32_t i = 0; i < a.n_levels; i++)
        US_TRY(dim_of(names, (struct place){"top_down_layers.", i, ".stochastic.conv_out.weight"},
                      1, US_MAX_ZDIM, &a.z_dims[i], err));
    a.lc_scales =
        1 + count_names(names, "lowres_first_bottom_ups.", ".0.weight", US_MAX_SCALES - 1);
    a.blocks_per_level = count_names(names, "top_down_layers.0.deterministic_block.",
                                     ".res.block.0.weight", US_MAX_BLOCKS);
    if (a.blocks_per_level == 0)
        return us_fail(err, US_E_FORMAT,
                       "tensor top_down_layers.0.deterministic_block.0.res.block.0.weight is "
                       "missing: residual blocks of another kind (expected batch norm first)");
    a.stochastic = hints->stochastic;
    a.dropout = hints->dropout;
    a.logvar_lower_bound = hints->logvar_lower_bound;
    a.var_clip_max = hints->var_clip_max;
    a.decoder_retain = false;
    US_TRY(read_head(names, hints, &a, err));
    if (a.lc_scales > a.n_levels + 1)
        return us_fail(err, US_E_FORMAT, "%d input branches and %d levels; expected at most %d",
                       (int)a.lc_scales, (int)a.n_levels, (int)a.n_levels + 1);
    US_TRY(read_patch(names, hints, &a, ret_patch, err));
    *ret_arch = a;
    return US_OK;
}
