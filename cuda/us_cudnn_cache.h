/*
 * Which of cuDNN's ways was the fastest, remembered between runs: a text file with one line per
 * convolution. The file is a help, not a truth: a line that cannot be read is skipped, a choice
 * that no longer works is made anew, a directory that cannot be written costs nothing but time.
 *
 * It lies in $USPLIT_CACHE, $CACHE_DIRECTORY (systemd), $XDG_CACHE_HOME/usplit or
 * $HOME/.cache/usplit, whichever is set first.
 */
#ifndef US_CUDNN_CACHE_H
#define US_CUDNN_CACHE_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "us_status.h"

#define US_CUDNN_MAX_KNOBS 48
#define US_CUDNN_KEY_BYTES 512

/* An engine and its settings, as cuDNN numbers them. */
struct us_cudnn_choice {
    int64_t engine;
    int32_t n_knobs;
    int32_t knob[US_CUDNN_MAX_KNOBS];
    int64_t value[US_CUDNN_MAX_KNOBS];
};

struct us_cudnn_cache_entry {
    char key[US_CUDNN_KEY_BYTES];
    struct us_cudnn_choice choice;
};

struct us_cudnn_cache {
    char path[PATH_MAX]; /* "": nothing is kept on disk */
    struct us_cudnn_cache_entry *entry;
    int32_t n, room;
};

/* Finds the file and reads what it holds. */
enum us_status us_cudnn_cache_open(struct us_cudnn_cache *c) US_WARN_UNUSED;
void us_cudnn_cache_release(struct us_cudnn_cache *c);
/* NULL: not known. Valid until the next put. */
const struct us_cudnn_choice *us_cudnn_cache_get(const struct us_cudnn_cache *c, const char *key);
/* Remembers it here, and on disk beside what others have written there meanwhile. A file that
 * cannot be written is no error. */
enum us_status us_cudnn_cache_put(struct us_cudnn_cache *c, const char *key,
                                  const struct us_cudnn_choice *choice) US_WARN_UNUSED;

#endif
