/*
 * Every file that a watcher knows, by its path below the watched folder. One entry per path for as
 * long as the program runs, about 400 bytes each: a share that blinks must not make a file new.
 */
#ifndef US_WATCH_TABLE_H
#define US_WATCH_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_status.h"

#define US_SHA256_TEXT 65 /* hex digits and NUL */

/* What a file was: path aside, its identity. sha256 is empty where it is not known. */
struct us_watch_id {
    int64_t size, mtime_ns;
    char sha256[US_SHA256_TEXT];
};

enum us_watch_state {
    US_WATCH_SETTLING, /* may still be growing */
    US_WATCH_WAITING,  /* to be sent, from not_before_s on */
    US_WATCH_BUSY,     /* with a worker */
    US_WATCH_DONE,
    US_WATCH_FAILED, /* until it changes */
    US_WATCH_GONE,
    US_WATCH_LEFT /* --once: given up for this run */
};

/* What the journal says of a file. ARRIVED: the result is whole and on its way to its name. */
enum us_watch_what {
    US_WATCH_UNSAID = 0,
    US_WATCH_IS_ARRIVED,
    US_WATCH_IS_DONE,
    US_WATCH_IS_FAILED
};
struct us_watch_record {
    enum us_watch_what what;
    struct us_watch_id id;
    char result_sha256[US_SHA256_TEXT];
    int64_t line_at; /* where in the journal */
};

struct us_watch_file {
    char *path;
    enum us_watch_state state;
    struct us_watch_id id; /* as last seen */
    struct us_watch_record said;
    double since_s, not_before_s; /* monotonic */
    int64_t attempts;
};

struct us_watch_table {
    struct us_watch_file **all; /* in the order in which they were found */
    size_t n, n_room;
    size_t *slots; /* index + 1; 0: empty */
    size_t n_slots;
};

/* The entry of path, made SETTLING if there is none. E_NOMEM. */
enum us_status us_watch_table_at(struct us_watch_table *t, const char *path,
                                 struct us_watch_file **ret) US_WARN_UNUSED;
void us_watch_table_release(struct us_watch_table *t);

/* "sub/cells.ome.tif" -> "sub/cells-split.ome.tif"; caller frees; NULL: no memory. */
char *us_watch_result_name(const char *path);
/* The other file whose result has the same name and is there, or on its way; NULL: none. */
const struct us_watch_file *us_watch_table_rival(const struct us_watch_table *t,
                                                 const struct us_watch_file *f);
uint64_t us_watch_hash(const char *text);

#define US_WATCH_SUFFIX "-split.ome.tif"

#endif
