/*
 * A model in memory: everything that one model file holds (model-file.md). The weights stand in
 * one block of floats and one of counters, at the offsets of the parameter table (us_net.h).
 */
#ifndef US_MODEL_H
#define US_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "us_arch.h"
#include "us_net.h"
#include "us_status.h"

enum us_pad_mode { US_PAD_REFLECT = 0, US_PAD_ZERO };
enum us_mixing { US_MIX_AVERAGE = 0, US_MIX_SUM };
enum us_context_method { US_CONTEXT_HALVING = 0, US_CONTEXT_SINGLE };

struct us_model_data {
    char channels[US_MAX_TARGETS][US_MAX_NAME];
    enum us_mixing mixing;
    bool has_clip;
    double clip[US_MAX_TARGETS]; /* upper clip per target channel; +INFINITY = none */
    double input_mean, input_std;
    double target_mean[US_MAX_TARGETS], target_std[US_MAX_TARGETS];
    enum us_context_method context_method;
    enum us_pad_mode context_padding;
    double pixel_size_um; /* 0: not stated */
};

struct us_model {
    char name[US_MAX_NAME];
    struct us_arch arch;
    int32_t patch_size;
    struct us_model_data data;
    int32_t inner_padding; /* default of predictions made with it */
    int32_t samples;
    bool has_calibration;
    double cal_slope[US_MAX_TARGETS], cal_offset[US_MAX_TARGETS];
    char *extra_json;   /* the whole "usplit" text as read: unknown members survive; or NULL */
    bool complete;      /* has every tensor that training reads (prediction needs fewer) */
    char sha256[65];    /* hex identity of the file it came from; "" if it never was one */
    struct us_net *net; /* at patch_size; owns the parameter table */
    float *weights;     /* net->n_floats */
    int64_t *counters;  /* net->n_counters */
};

void us_model_free(struct us_model *m);

/* A fresh model with initialised parameters (spec 2, "Parameter initialisation"): U(-b, b) with
 * b = 1/sqrt(fan_in), from Philox keyed by seed and the parameter's index. Statistics 0 and 1,
 * channels "channel 1".. , clip none. *ret is owned by the caller. */
enum us_status us_model_new(const struct us_arch *arch, int32_t patch, uint64_t seed,
                            struct us_model **ret, struct us_err *err) US_WARN_UNUSED;

/* The upper clip for a mixed input image (model-file.md): +INFINITY if there is none. */
double us_model_input_clip(const struct us_model *m);

/* States in m's data what its frames were normalised by: means, deviations, clip. */
struct us_stats;
void us_model_set_stats(struct us_model *m, const struct us_stats *st);

/* Reads and verifies a model file (us_model_file.c). Memory is bounded by the file's size and the
 * caps of us_limits.h, whatever its header claims. E_FORMAT / E_NOT_FOUND / E_TOO_LARGE /
 * E_UNSUPPORTED name the tensor or member, what was found and what was expected. */
enum us_status us_model_load(const char *path, struct us_model **ret,
                             struct us_err *err) US_WARN_UNUSED;

/* The same from memory (the fuzzer's door); bytes are borrowed until return. */
enum us_status us_model_parse(const void *bytes, size_t n_bytes, struct us_model **ret,
                              struct us_err *err) US_WARN_UNUSED;

/* Writes the file beside its final name, fsyncs, renames, fsyncs the folder. On success m->sha256
 * is the new file's identity. */
enum us_status us_model_save(struct us_model *m, const char *path,
                             struct us_err *err) US_WARN_UNUSED;

/* The "usplit" metadata text (caller frees), as it would be written. */
enum us_status us_model_metadata(const struct us_model *m, char **ret,
                                 struct us_err *err) US_WARN_UNUSED;

#endif
