/*
 * Spool files: request bodies on their way in and replies on their way out, under
 * DATA-DIR/spool. A spool file has a name, because libtiff and the model reader want one, and is
 * gone when its request is; what a crash left is removed at the next start.
 */
#ifndef US_SPOOL_H
#define US_SPOOL_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include "us_status.h"

struct us_spool_file {
    char path[PATH_MAX]; /* "" = none */
    int fd;              /* open for reading and writing, or -1 */
    int64_t bytes;       /* written so far */
};

/* Creates DIR if needed and empties it. */
enum us_status us_spool_init(const char *dir, struct us_err *err) US_WARN_UNUSED;

/* A new empty file in dir. On failure *f is empty, so us_spool_release is fine either way. */
enum us_status us_spool_create(const char *dir, struct us_spool_file *f,
                               struct us_err *err) US_WARN_UNUSED;

/* Appends. E_DISK_FULL, E_IO. */
enum us_status us_spool_write(struct us_spool_file *f, const void *bytes, size_t n,
                              struct us_err *err) US_WARN_UNUSED;

/* Closes and removes. Safe on an empty one and twice. */
void us_spool_release(struct us_spool_file *f);

/* fsyncs the file, renames it to path and fsyncs the folders of both: path then holds either its
 * old bytes or all of the new ones. On success *f is empty. */
enum us_status us_spool_publish(struct us_spool_file *f, const char *path,
                                struct us_err *err) US_WARN_UNUSED;

/* fsync of a folder, so that a rename or unlink in it survives a power cut. */
enum us_status us_fsync_dir(const char *dir, struct us_err *err) US_WARN_UNUSED;

/* Replaces path in the message by shown: a client knows its own file, not where we put it. */
void us_spool_hide_path(struct us_err *err, const char *path, const char *shown);

/* errno -> E_DISK_FULL, E_NOT_FOUND or E_IO. */
enum us_status us_status_of_errno(int e);

#endif
