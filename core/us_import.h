/*
 * A model from somebody's state dictionary (us_state_dict.h): the architecture is read off the
 * names and shapes, and every tensor is matched to its parameter (model-spec 11, us_net.h).
 *
 * Two namings are known: upstream's, which is ours, and that of CAREamics (MicroSplit), where the
 * head is called output_layer and parameter_net. Either may stand behind a prefix ("model.",
 * "module."). What a state dictionary cannot say (noise or not, the activation, how images were
 * normalised) comes from the caller.
 */
#ifndef US_IMPORT_H
#define US_IMPORT_H

#include "us_model.h"
#include "us_state_dict.h"

/* What the caller knows; us_import_hints() knows nothing and takes the paper's values. */
struct us_import_hints {
    const char *prefix;      /* before every name, e.g. "ema.model."; NULL: found */
    int32_t patch;           /* training patch size; 0: from the prior's shape */
    int32_t target_channels; /* 0: from the head */
    int32_t logvar;          /* enum us_logvar, or -1: from the head */
    int32_t decoder_retain;  /* 1: Regular or Deep-LC, 0: Lean-LC, -1: from the prior's shape */
    bool stochastic;         /* HVAE or HAE: the tensors are the same */
    float dropout, logvar_lower_bound, var_clip_max; /* as us_arch */
};

struct us_import_hints us_import_hints(void);

/* What was found, to be shown. */
struct us_import_report {
    char prefix[US_MAX_TENSOR_NAME];
    bool careamics;    /* its naming */
    int32_t n_ignored; /* tensors without the prefix: of other parts of a training program */
    char first_ignored[US_MAX_TENSOR_NAME];
};

/* *ret: a complete model, or one for prediction only if what training needs is missing; its data
 * members are us_model_new's. E_FORMAT names tensors that are missing, surplus or of another shape
 * (found and expected); E_UNSUPPORTED names a network of another kind; E_ARG a hint that
 * contradicts the tensors, or one that is needed. Memory is bounded by dict->bytes. */
enum us_status us_import_model(const struct us_state_dict *dict,
                               const struct us_import_hints *hints, struct us_model **ret,
                               struct us_import_report *report, struct us_err *err) US_WARN_UNUSED;

#endif
