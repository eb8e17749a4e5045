/*
 * Who may see and change what. A data set belongs to the user who stored its first file, and does
 * not exist for others; a model may be read by everybody and changed by whoever stored or trained
 * it. Admins may everything, and so does everybody while no token is asked for. What has no owner
 * (made without tokens, or put into the folder by hand) belongs to the admins.
 *
 * Owners are records of the store; the folders say what exists. A record is written before the
 * first file and removed after the last, so that a crash in between leaves a record of nothing,
 * which binds nobody. (Jobs know their owner themselves.)
 */
#ifndef US_OWNERS_H
#define US_OWNERS_H

#include "us_auth.h"
#include "us_datasets.h"
#include "us_registry.h"

struct us_owners;

/* All borrowed. */
enum us_status us_owners_new(struct us_store *store, struct us_datasets *datasets,
                             struct us_registry *registry, struct us_owners **ret,
                             struct us_err *err) US_WARN_UNUSED;
void us_owners_free(struct us_owners *o); /* NULL is fine */

/* Whether the user may read and change the data set. E_NOT_FOUND. */
enum us_status us_owners_may_use(struct us_owners *o, const char *dataset, const struct us_user *u,
                                 struct us_err *err) US_WARN_UNUSED;
/* Whether the user may write under this name: it is free or theirs. E_EXISTS. */
enum us_status us_owners_may_make(struct us_owners *o, enum us_record_kind kind, const char *name,
                                  const struct us_user *u, struct us_err *err) US_WARN_UNUSED;

/* us_owners_may_make, and the name is the user's until us_owners_end, whoever else asks. ok: there
 * is something under it now, which keeps its owner or has the user. */
struct us_owner_claim {
    enum us_record_kind kind;
    char name[US_STORE_NAME_BYTES];
    bool held;
    struct us_owner_claim *next, **at;
};
enum us_status us_owners_claim(struct us_owners *o, enum us_record_kind kind, const char *name,
                               const struct us_user *u, struct us_owner_claim *c,
                               struct us_err *err) US_WARN_UNUSED;
void us_owners_end(struct us_owners *o, struct us_owner_claim *c);
/* After a removal: the record goes if nothing is left under the name. */
void us_owners_removed(struct us_owners *o, enum us_record_kind kind, const char *name);

/* What a job made goes by its owner's right at the time when it was submitted: a model that
 * somebody else stored since then stays. As us_owners_claim. */
enum us_status us_owners_claim_for_job(struct us_owners *o, const char *model, const char *owner,
                                       int64_t submitted_ms, struct us_owner_claim *c,
                                       struct us_err *err) US_WARN_UNUSED;

/* Whether so many bytes more fit into the user's quota. E_DISK_FULL says what is there. Looks at
 * every file of theirs, and only where there is a quota. */
enum us_status us_owners_room(struct us_owners *o, const struct us_user *u, int64_t more_bytes,
                              struct us_err *err) US_WARN_UNUSED;

#endif
