/*
 * A result file that appears whole or not at all: it is written under a name of its own in the
 * same folder and renamed over the final name when it is complete.
 */
#ifndef US_OUTFILE_H
#define US_OUTFILE_H

#include "us_status.h"

/* Zero-initialised means "nothing open"; abandon is then harmless. */
struct us_outfile {
    char *path; /* the final name */
    char *tmp;  /* where to write until commit; exists, empty, after begin */
};

/* Refuses a path that exists and is not a regular file (a rename would replace a device) and one
 * that is the file `input` (nullable). E_ARG, E_NOT_FOUND, E_IO, E_DISK_FULL name the path. */
enum us_status us_outfile_begin(struct us_outfile *o, const char *path, const char *input,
                                struct us_err *err) US_WARN_UNUSED;

/* Renames to the final name and syncs the folder. The content must have been synced by whoever
 * wrote it. Releases o; on failure the temporary file is gone. */
enum us_status us_outfile_commit(struct us_outfile *o, struct us_err *err) US_WARN_UNUSED;

/* Removes the temporary file and releases o. */
void us_outfile_abandon(struct us_outfile *o);

#endif
