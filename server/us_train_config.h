/*
 * TRAIN.json: what to train and how, checked key by key against one table (us_train_config.def).
 * The command line and the daemon read it through here. An unknown key, a wrong type or a value out
 * of range is E_ARG with key, value and what is allowed; malformed JSON is E_FORMAT with its line.
 */
#ifndef US_TRAIN_CONFIG_H
#define US_TRAIN_CONFIG_H

#include <stdio.h>

#include "us_frames.h"
#include "us_predict.h"
#include "us_trainer.h"

#define US_MAX_TRAIN_CONFIG_BYTES (1LL << 20)

struct us_tc_ints {
    int32_t n;
    int64_t v[US_MAX_LEVELS];
};
struct us_tc_reals {
    int32_t n; /* 0: null */
    double v[US_MAX_TARGETS];
};
struct us_tc_channels {
    int32_t n; /* 0: null */
    struct us_channel_choice v[US_MAX_TARGETS];
};
struct us_tc_mixing {
    int32_t n; /* 0: the average */
    double min[US_MAX_TARGETS], max[US_MAX_TARGETS];
};

/* The file's members as they stand in it: training.batch is training_batch. */
struct us_train_settings {
#define US_TC_INT(s, m, def, min, max, text)   int64_t s##_##m;
#define US_TC_REAL(s, m, def, min, max, text)  double s##_##m;
#define US_TC_BOUND(s, m, def, min, max, text) double s##_##m; /* +INFINITY: none */
#define US_TC_FLAG(s, m, def, text)            bool s##_##m;
#define US_TC_WORD(s, m, def, words, text)     int32_t s##_##m;
#define US_TC_TEXT(s, m, def, text)            char s##_##m[US_MAX_NAME];
#define US_TC_INTS(s, m, min, max, most, text) struct us_tc_ints s##_##m;
#define US_TC_REALS(s, m, min, max, text)      struct us_tc_reals s##_##m;
#define US_TC_CHANNELS(s, m, most, text)       struct us_tc_channels s##_##m;
#define US_TC_MIXING(s, m, text)               struct us_tc_mixing s##_##m;
#include "us_train_config.def"
#undef US_TC_INT
#undef US_TC_REAL
#undef US_TC_BOUND
#undef US_TC_FLAG
#undef US_TC_WORD
#undef US_TC_TEXT
#undef US_TC_INTS
#undef US_TC_REALS
#undef US_TC_CHANNELS
#undef US_TC_MIXING
};

struct us_train_settings us_train_settings_defaults(void);

/* Parses n bytes of JSON over the defaults. what names the text in errors. *ret is untouched on
 * failure. */
enum us_status us_train_settings_parse(const char *text, size_t n, const char *what,
                                       struct us_train_settings *ret,
                                       struct us_err *err) US_WARN_UNUSED;
/* The same from a file of at most US_MAX_TRAIN_CONFIG_BYTES. */
enum us_status us_train_settings_read(const char *path, struct us_train_settings *ret,
                                      struct us_err *err) US_WARN_UNUSED;

/* The settings as JSON, every member: what it prints parses to the same settings. Caller frees;
 * NULL: no memory. */
char *us_train_settings_print(const struct us_train_settings *s);

/* The table as JSON for forms: {"settings":[{"key","kind","default","allowed","text"}]}, besides
 * "min" and "max" of numbers and "words" of choices. Caller frees; NULL: no memory. */
char *us_train_settings_describe(void);

/* The table as Markdown, one row per setting (docs/training.md). */
void us_train_settings_table(FILE *out);

/* Settings put together for one data set. */
struct us_train_setup {
    char name[US_MAX_NAME];
    struct us_arch arch;
    int32_t patch;
    struct us_dataset_config dataset; /* its lists are borrowed from the frames */
    struct us_trainer_config trainer; /* trainer.train.dtype: see us_train_setup_precision */
    enum us_precision precision;
};

/* Which channels to open. subset is borrowed from s. */
struct us_frames_config us_train_frames(const struct us_train_settings *s);

/* Fits the settings to the data: number of channels, splits, mixing. E_ARG names the setting. */
enum us_status us_train_setup_make(const struct us_train_settings *s, const struct us_frames *f,
                                   struct us_train_setup *ret, struct us_err *err) US_WARN_UNUSED;

/* Resolves precision for a backend; E_UNSUPPORTED if it has no such thing. */
enum us_status us_train_setup_precision(struct us_train_setup *s, struct us_backend *be,
                                        struct us_err *err) US_WARN_UNUSED;

/* A fresh model for this set-up: parameters from the seed, names of channels, pixel size and border
 * as the data state them. */
enum us_status us_train_setup_model(const struct us_train_setup *s, const struct us_frames *f,
                                    struct us_model **ret, struct us_err *err) US_WARN_UNUSED;

#endif
