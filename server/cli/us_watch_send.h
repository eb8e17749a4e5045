/*
 * One file of a watcher to the daemon and its result to the disk, in bounded memory both ways.
 *
 * Order of the durable steps: result written beside its place and synced; journal "arrived" with
 * its SHA-256; renamed; journal "done". A kill between any two leaves what the next start can
 * finish without asking the daemon again, or nothing.
 */
#ifndef US_WATCH_SEND_H
#define US_WATCH_SEND_H

#include "us_http_client.h"
#include "us_watch_journal.h"

enum us_watch_verdict {
    US_WATCH_GOT = 0,   /* recorded as done */
    US_WATCH_REFUSED,   /* recorded as failed: the same again would change nothing */
    US_WATCH_AGAIN,     /* later, this file */
    US_WATCH_AGAIN_ALL, /* later, all files: the server or the disk is not there */
    US_WATCH_CHANGED,   /* it grew meanwhile: settle anew */
    US_WATCH_VANISHED,
    US_WATCH_STOPPED, /* cancelled */
    US_WATCH_BROKEN   /* the journal cannot be trusted any more: end */
};

struct us_watch_place {
    const char *dir, *out;  /* folders */
    const char *url;        /* of the request, with its query */
    const char *token_file; /* read for each request, so that it can be replaced; NULL: token */
    const char *token;      /* NULL: none */
    bool zstd;
    struct us_watch_journal *journal;
};

struct us_watch_job {
    const struct us_watch_place *place;
    struct us_http_client *client;
    const char *path;
    struct us_watch_id id;        /* as it was when it had settled */
    struct us_watch_record said;  /* in: what was recorded before; out: what is now */
    struct us_http_answer answer; /* out */
    char result[4096];            /* out: its name below OUT, for the log */
    struct us_err err;            /* out: the reason of anything but GOT */
};

enum us_watch_verdict us_watch_send(struct us_watch_job *job);
/* Records job->err's text as the reason why this file fails. */
enum us_watch_verdict us_watch_refuse(struct us_watch_job *job);

/* At the start: a file whose result had arrived when the program died. Brings the result to its
 * place and records it, or finds nothing: then *ret_done is false and the file is to be sent. */
enum us_status us_watch_finish(const struct us_watch_place *p, struct us_watch_file *f,
                               bool *ret_done, struct us_err *err) US_WARN_UNUSED;
/* Then: removes what killed downloads left in OUT. */
void us_watch_sweep(const struct us_watch_place *p);

#endif
