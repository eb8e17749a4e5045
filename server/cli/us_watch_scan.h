/*
 * What lies in the watched folder. Reading it again and again is the truth; inotify, where the
 * system and the file system have it, only says when to read sooner: network shares tell nothing of
 * what other machines write.
 */
#ifndef US_WATCH_SCAN_H
#define US_WATCH_SCAN_H

#include <sys/stat.h>

#include "us_cli.h"
#include "us_watch_table.h"

struct us_watch_scan {
    const char *dir;
    const struct us_cli_texts *match; /* patterns for the last part of the name */
    bool recursive;
    dev_t out_dev; /* the folder of results: never entered, unless it is dir itself */
    ino_t out_ino;
    int inotify_fd; /* -1: none */
    /* A regular file; path is borrowed. */
    enum us_status (*found)(void *arg, const char *path, const struct us_watch_id *id);
    void *arg;
};

/* One pass. Hidden files, results (*-split.ome.tif) and linked folders are left out; folders that
 * cannot be read are passed over, except the first: E_IO. Or what `found` returned. */
enum us_status us_watch_scan(const struct us_watch_scan *s, struct us_err *err) US_WARN_UNUSED;

struct us_watch_id us_watch_id_of(const struct stat *st);
static inline bool us_watch_id_same(const struct us_watch_id *a, const struct us_watch_id *b)
{
    return a->size == b->size && a->mtime_ns == b->mtime_ns;
}

/* An inotify descriptor that does not block, or -1. */
int us_watch_inotify(void);
/* Takes what has come; whether there was anything. */
bool us_watch_inotify_drain(int fd);

#endif
