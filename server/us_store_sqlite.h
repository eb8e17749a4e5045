/*
 * The store in one SQLite file (us_store.h): WAL, synchronous = FULL, one connection that writes
 * and one that reads, all statements prepared.
 *
 * The file carries our application id and a schema number (user_version). An older file is brought
 * up to date on opening, step by step, each step whole or not at all; a newer one is refused.
 */
#ifndef US_STORE_SQLITE_H
#define US_STORE_SQLITE_H

#include "us_store.h"

/* The schema that this build writes. */
#define US_STORE_SCHEMA 1

struct us_store_sqlite_options {
    const char *path;             /* of the file; its folder exists */
    const char *vfs;              /* NULL: the system's; tests name one that fails */
    int64_t (*now_ms)(void *arg); /* NULL: the system's clock */
    void *now_arg;
};

/* E_UNSUPPORTED: a newer schema, or somebody else's file; E_CORRUPT; E_IO, E_DISK_FULL. */
enum us_status us_store_sqlite_open(const struct us_store_sqlite_options *opt,
                                    struct us_store **ret, struct us_err *err) US_WARN_UNUSED;

#endif
