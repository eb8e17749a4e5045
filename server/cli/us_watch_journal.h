/*
 * The memory of a watcher: OUT/.usplit-watch.jsonl, one JSON object per line, each synced before
 * the step that it announces or confirms. The first line says which folder and which request the
 * results belong to; the last line of a file counts. A line that a power cut tore is dropped. The
 * lock beside it keeps a second watcher out.
 */
#ifndef US_WATCH_JOURNAL_H
#define US_WATCH_JOURNAL_H

#include "us_watch_table.h"

#define US_WATCH_JOURNAL ".usplit-watch.jsonl"
#define US_WATCH_LOCK    ".usplit-watch.lock"

struct us_watch_journal;

/* Locks out_dir, reads what is known into t (records, and states accordingly) and drops outdated
 * lines. dir, request: what the results are of; E_ARG if the journal is of something else. E_BUSY:
 * another watcher. E_CORRUPT names the line. */
enum us_status us_watch_journal_open(const char *out_dir, const char *dir, const char *request,
                                     struct us_watch_table *t, struct us_watch_journal **ret,
                                     struct us_err *err) US_WARN_UNUSED;
void us_watch_journal_close(struct us_watch_journal *j); /* NULL is fine */

/* Adds a line and syncs it; sets r->line_at. model, reason: may be NULL. Threads may call it.
 * E_DISK_FULL leaves the journal as it was. After E_IO nothing is known of the disk: end. */
enum us_status us_watch_journal_add(struct us_watch_journal *j, const char *path,
                                    struct us_watch_record *r, const char *model,
                                    const char *reason, struct us_err *err) US_WARN_UNUSED;

#endif
