/*
 * The options that say how a model's images were normalised and what its predictions default to:
 * the same for every command that writes a model file.
 */
#ifndef US_MODEL_FLAGS_H
#define US_MODEL_FLAGS_H

#include "us_cli.h"
#include "us_model.h"

struct us_model_flags {
    int64_t padding, samples;
    double input_mean, input_std, pixel_size;
    struct us_cli_texts channels;
    struct us_cli_reals target_mean, target_std, clip;
};

/* Rows of an option table; `options` has a struct us_model_flags called `flags`. */
#define US_MODEL_FLAG(options, member) .offset = offsetof(options, flags.member)
#define US_MODEL_FLAG_ROWS(options)                                                                \
    {"channels", US_CLI_TEXTS, US_MODEL_FLAG(options, channels), .arg = "NAME,NAME",               \
     .help = "the channels that it splits into; their number is the network's"},                   \
        {"input-mean", US_CLI_REAL, US_MODEL_FLAG(options, input_mean), .arg = "X",                \
         .help = "of the input"},                                                                  \
        {"input-std", US_CLI_REAL, US_MODEL_FLAG(options, input_std), .arg = "X",                  \
         .help = "of the input"},                                                                  \
        {"target-mean", US_CLI_REALS, US_MODEL_FLAG(options, target_mean), .arg = "X,X",           \
         .help = "of each channel"},                                                               \
        {"target-std", US_CLI_REALS, US_MODEL_FLAG(options, target_std), .arg = "X,X",             \
         .help = "of each channel"},                                                               \
        {"clip", US_CLI_REALS, US_MODEL_FLAG(options, clip), .arg = "X,X",                         \
         .help = "upper clip of each channel; none = no clip"},                                    \
        {"pixel-size", US_CLI_REAL, US_MODEL_FLAG(options, pixel_size), .arg = "UM",               \
         .help = "micrometres per pixel that the model expects"},                                  \
        {"padding",                                                                                \
         US_CLI_INT,                                                                               \
         US_MODEL_FLAG(options, padding),                                                          \
         0,                                                                                        \
         US_MAX_PATCH,                                                                             \
         .arg = "PIXELS",                                                                          \
         .help = "inner padding that predictions use unless told otherwise"},                      \
    {                                                                                              \
        "samples", US_CLI_INT, US_MODEL_FLAG(options, samples), 1, US_MAX_SAMPLES,                 \
            .arg = "N", .help = "posterior samples that predictions average unless told otherwise" \
    }

/* What the command line gives, over whatever m holds. E_ARG names the option. */
enum us_status us_model_flags_apply(const struct us_cli_args *a, const struct us_model_flags *f,
                                    struct us_model *m, struct us_err *err) US_WARN_UNUSED;

#endif
