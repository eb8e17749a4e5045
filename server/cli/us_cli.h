/*
 * Command lines from tables: one record per option gives name, type, bounds, default, help text
 * and the place of its value, so that parser, error texts and --help cannot drift apart.
 *
 * `--name value` and `--name=value`; options and arguments in any order; `--` ends the options.
 * An option given twice is an error, because one of the two was meant for something else.
 */
#ifndef US_CLI_H
#define US_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "us_limits.h"
#include "us_status.h"

#define US_CLI_MAX_LIST 16
#define US_CLI_MAX_ARGS 4
#define US_CLI_MAX_OPTS 64

enum us_cli_type {
    US_CLI_FLAG,  /* bool */
    US_CLI_INT,   /* int64_t, min..max */
    US_CLI_REAL,  /* double, finite */
    US_CLI_TEXT,  /* const char *, borrowed from argv; never empty */
    US_CLI_WORD,  /* int32_t, index into words */
    US_CLI_WORDS, /* uint32_t, bit per word of a comma list */
    US_CLI_INTS,  /* struct us_cli_ints, each min..max */
    US_CLI_REALS, /* struct us_cli_reals; "none" gives +INFINITY */
    US_CLI_TEXTS  /* struct us_cli_texts */
};

struct us_cli_ints {
    int32_t n;
    int64_t v[US_CLI_MAX_LIST];
};
struct us_cli_reals {
    int32_t n;
    double v[US_CLI_MAX_LIST];
};
struct us_cli_texts {
    int32_t n;
    char v[US_CLI_MAX_LIST][US_MAX_NAME];
};

struct us_cli_opt {
    const char *name; /* without the dashes */
    enum us_cli_type type;
    size_t offset; /* of the value in the command's option struct */
    int64_t min, max;
    const char *words; /* WORD, WORDS: "inner|outer" */
    const char *arg;   /* how help calls the value; NULL: words */
    const char *def;   /* parsed like a given value; NULL: zero */
    const char *help;
    bool required;
};

struct us_cli_args;

struct us_cli_cmd {
    const char *name;    /* "predict", "model show" */
    const char *summary; /* one line */
    const char *args;    /* "IN.tif OUT.ome.tif" */
    int min_args, max_args;
    const struct us_cli_opt *opts;
    size_t n_opts;
    size_t opts_bytes;                       /* size of the option struct */
    const char *notes;                       /* more help, or NULL */
    int (*run)(const struct us_cli_args *a); /* exit status */
};

struct us_cli_args {
    const struct us_cli_cmd *cmd;
    const void *opts; /* the command's option struct */
    uint64_t given;   /* bit per option of the table */
    bool help;        /* --help or -h was among them; nothing else was checked */
    int n;
    const char *arg[US_CLI_MAX_ARGS];
};

/* Fills *a and the option struct (opts_bytes, caller's) from argv[0..argc). E_ARG says what was
 * found and what was expected, and for an unknown option the nearest known one. */
enum us_status us_cli_parse(const struct us_cli_cmd *cmd, int argc, char *const *argv, void *opts,
                            struct us_cli_args *a, struct us_err *err) US_WARN_UNUSED;

bool us_cli_given(const struct us_cli_args *a, const char *name);

/* The word at `index` of a "a|b|c" list, copied to buf. */
const char *us_cli_word(const char *words, int32_t index, char *buf, size_t n);

/* Of n names, the one that `given` was probably meant to be, or NULL. */
const char *us_cli_nearest(const char *given, const char *const *names, size_t n);

void us_cli_help(const struct us_cli_cmd *cmd, FILE *out);

/* printf of one line, with every control character but the last newline masked: the text may
 * quote a file. */
void us_cli_print(FILE *out, const char *fmt, ...) US_PRINTF(2, 3);

/* Says the error on one line of stderr; the exit status: 1, or 128 + signal if interrupted. */
int us_cli_fail(const struct us_cli_args *a, const struct us_err *err);

#endif
