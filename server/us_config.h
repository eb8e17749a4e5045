/*
 * The settings of usplitd: one table (us_config.def) from which come the struct, the flags, the
 * `key = value` file, their bounds, the error texts and --help.
 *
 * Order of authority: defaults, then the file of --config, then flags. The parsers here do no
 * I/O except us_config_read_file, so the fuzzer can drive them.
 */
#ifndef US_CONFIG_H
#define US_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "us_backend_choice.h"
#include "us_limits.h"
#include "us_status.h"

#define US_CONF_TEXT_BYTES 1024       /* longest text value, with NUL */
#define US_CONF_FILE_BYTES (1L << 20) /* longest configuration file */

struct us_config {
#define US_CONF_TEXT(m, def, form, text)          char m[US_CONF_TEXT_BYTES];
#define US_CONF_INT(m, def, min, max, unit, text) int64_t m;
#define US_CONF_BYTES(m, def, min, max, text)     int64_t m;
#define US_CONF_CHOICE(m, def, choices, text)     int64_t m; /* index into choices */
#define US_CONF_FLAG(m, text)                     bool m;
#include "us_config.def"
#undef US_CONF_TEXT
#undef US_CONF_INT
#undef US_CONF_BYTES
#undef US_CONF_CHOICE
#undef US_CONF_FLAG
};

/* What the command line asks for besides settings. */
enum us_config_action { US_CONFIG_RUN = 0, US_CONFIG_CHECK, US_CONFIG_HELP, US_CONFIG_VERSION };

struct us_config us_config_defaults(void);

/* Sets one setting. where ("FILE:LINE", "command line") opens the error, which names key, value
 * and what is allowed. */
enum us_status us_config_set(struct us_config *c, const char *key, const char *value,
                             const char *where, struct us_err *err) US_WARN_UNUSED;

/* Applies a whole configuration text: `key = value` lines, # comments, blank lines. name is the
 * file's name for errors. Unknown and repeated keys are errors. */
enum us_status us_config_parse(struct us_config *c, const char *text, size_t n, const char *name,
                               struct us_err *err) US_WARN_UNUSED;
enum us_status us_config_read_file(struct us_config *c, const char *path,
                                   struct us_err *err) US_WARN_UNUSED;

/* Reads the whole command line (argv[0] is skipped), including the file of --config. E_ARG for
 * wrong usage. The result is not yet checked as a whole: us_config_check. */
enum us_status us_config_args(struct us_config *c, int argc, char *const *argv,
                              enum us_config_action *ret, struct us_err *err) US_WARN_UNUSED;

/* Where to listen, taken apart. host has no brackets. */
struct us_listen {
    char host[64];
    uint16_t port;
    bool ipv6, loopback;
};
enum us_status us_listen_parse(const char *text, struct us_listen *ret,
                               struct us_err *err) US_WARN_UNUSED;

/* Rules between settings: an address to listen on, a data folder is named. */
enum us_status us_config_check(const struct us_config *c, struct us_err *err) US_WARN_UNUSED;

/* A decimal number; with suffix also K, M, G or T after it. False: none, or over int64. */
bool us_config_number(const char *text, bool suffix, int64_t *ret);

void us_config_help(FILE *out);

#endif
