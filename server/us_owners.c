/* Who may see and change what; see us_owners.h. */
#include "us_owners.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct us_owners {
    struct us_store *store;
    struct us_datasets *datasets;
    struct us_registry *registry;
    pthread_mutex_t lock; /* a name is judged and claimed under it */
    struct us_owner_claim *claims;
};

enum us_status us_owners_new(struct us_store *store, struct us_datasets *datasets,
                             struct us_registry *registry, struct us_owners **ret,
                             struct us_err *err)
{
    struct us_owners *o = calloc(1, sizeof(*o));
    if (o == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the owners");
    (void)pthread_mutex_init(&o->lock, NULL);
    o->store = store;
    o->datasets = datasets;
    o->registry = registry;
    *ret = o;
    return US_OK;
}

void us_owners_free(struct us_owners *o)
{
    if (o == NULL)
        return;
    US_ASSERT(o->claims == NULL);
    (void)pthread_mutex_destroy(&o->lock);
    free(o);
}

/* Bytes under a name; E_NOT_FOUND: nothing is there. */
static enum us_status measure(const struct us_owners *o, enum us_record_kind kind, const char *name,
                              int64_t *bytes)
{
    struct us_model_info info;
    if (kind == US_RECORD_DATASET)
        return us_datasets_bytes(o->datasets, name, bytes, NULL);
    US_TRY(us_registry_find(o->registry, name, &info, NULL));
    *bytes = info.file_bytes;
    us_model_info_release(&info);
    return US_OK;
}

static bool is_claimed(const struct us_owners *o, enum us_record_kind kind, const char *name)
{
    for (const struct us_owner_claim *c = o->claims; c != NULL; c = c->next) {
        if (c->kind == kind && strcmp(c->name, name) == 0)
            return true;
    }
    return false;
}

/* Something is under the name, or is just being put there. */
static bool is_taken(const struct us_owners *o, enum us_record_kind kind, const char *name)
{
    int64_t bytes;
    return is_claimed(o, kind, name) || measure(o, kind, name, &bytes) != US_E_NOT_FOUND;
}

static enum us_status taken(enum us_record_kind kind, const char *name, struct us_err *err)
{
    if (kind == US_RECORD_DATASET)
        return us_fail(err, US_E_EXISTS, "the name '%s' is taken by a data set of somebody else",
                       name);
    return us_fail(err, US_E_EXISTS,
                   "the model '%s' is somebody else's: to replace or remove it takes the scope "
                   "'admin'",
                   name);
}

/* With the lock held. *mine: there is a record already, and it is as it should be. */
static enum us_status judge(const struct us_owners *o, enum us_record_kind kind, const char *name,
                            const struct us_user *u, bool *mine, struct us_err *err)
{
    struct us_store_record r;
    enum us_status st = o->store->ops->record_get(o->store, kind, name, &r, err);
    if (st != US_OK && st != US_E_NOT_FOUND)
        return st;
    bool is_mine = st == US_OK && strcmp(r.owner, u->name) == 0;
    bool free_name = !is_mine && !is_taken(o, kind, name);
    if (!is_mine && !free_name && !us_user_is_admin(u))
        return taken(kind, name, err);
    *mine = is_mine || !free_name;
    return US_OK;
}

enum us_status us_owners_may_make(struct us_owners *o, enum us_record_kind kind, const char *name,
                                  const struct us_user *u, struct us_err *err)
{
    bool mine;
    if (us_user_is_admin(u))
        return US_OK;
    (void)pthread_mutex_lock(&o->lock);
    enum us_status st = judge(o, kind, name, u, &mine, err);
    (void)pthread_mutex_unlock(&o->lock);
    return st;
}

enum us_status us_owners_may_use(struct us_owners *o, const char *dataset, const struct us_user *u,
                                 struct us_err *err)
{
    struct us_store_record r;
    if (us_user_is_admin(u))
        return US_OK;
    enum us_status st = o->store->ops->record_get(o->store, US_RECORD_DATASET, dataset, &r, err);
    if (st == US_OK && strcmp(r.owner, u->name) == 0)
        return US_OK;
    if (st != US_OK && st != US_E_NOT_FOUND)
        return st;
    return us_fail(err, US_E_NOT_FOUND, "there is no data set '%s'", dataset);
}

/* ---- claims -------------------------------------------------------------------------------- */

static void hold(struct us_owners *o, enum us_record_kind kind, const char *name,
                 struct us_owner_claim *c)
{
    c->kind = kind;
    (void)snprintf(c->name, sizeof(c->name), "%s", name);
    c->held = true;
    c->next = o->claims;
    c->at = &o->claims;
    if (c->next != NULL)
        c->next->at = &c->next;
    o->claims = c;
}

static enum us_status write_owner(struct us_owners *o, enum us_record_kind kind, const char *name,
                                  const char *owner, struct us_err *err)
{
    struct us_store_record r;
    if (o->store->ops->record_get(o->store, kind, name, &r, NULL) == US_OK) /* of nothing */
        US_TRY(o->store->ops->record_delete(o->store, kind, name, err));
    r = (struct us_store_record){.kind = kind};
    (void)snprintf(r.name, sizeof(r.name), "%s", name);
    (void)snprintf(r.owner, sizeof(r.owner), "%s", owner);
    return o->store->ops->record_put(o->store, &r, err);
}

enum us_status us_owners_claim(struct us_owners *o, enum us_record_kind kind, const char *name,
                               const struct us_user *u, struct us_owner_claim *c,
                               struct us_err *err)
{
    bool mine = false;
    c->held = false;
    if (u->name[0] == '\0') /* no tokens, no owners */
        return US_OK;
    (void)pthread_mutex_lock(&o->lock);
    enum us_status st = judge(o, kind, name, u, &mine, err);
    if (st == US_OK && !mine)
        st = write_owner(o, kind, name, u->name, err);
    if (st == US_OK)
        hold(o, kind, name, c);
    (void)pthread_mutex_unlock(&o->lock);
    return st;
}

enum us_status us_owners_claim_for_job(struct us_owners *o, const char *model, const char *owner,
                                       int64_t submitted_ms, struct us_owner_claim *c,
                                       struct us_err *err)
{
    struct us_store_record r;
    struct us_user u = {.name = ""};
    (void)snprintf(u.name, sizeof(u.name), "%s", owner);
    if (o->store->ops->record_get(o->store, US_RECORD_MODEL, model, &r, NULL) != US_OK ||
        r.created_ms <= submitted_ms) /* it was judged then */
        u.scopes = US_SCOPE_ADMIN;
    return us_owners_claim(o, US_RECORD_MODEL, model, &u, c, err);
}

/* With the lock held. */
static void forget_nothing(struct us_owners *o, enum us_record_kind kind, const char *name)
{
    struct us_store_record r;
    if (!is_taken(o, kind, name) &&
        o->store->ops->record_get(o->store, kind, name, &r, NULL) == US_OK)
        (void)!o->store->ops->record_delete(o->store, kind, name, NULL);
}

void us_owners_end(struct us_owners *o, struct us_owner_claim *c)
{
    if (!c->held)
        return;
    (void)pthread_mutex_lock(&o->lock);
    c->held = false;
    *c->at = c->next;
    if (c->next != NULL)
        c->next->at = c->at;
    forget_nothing(o, c->kind, c->name);
    (void)pthread_mutex_unlock(&o->lock);
}

void us_owners_removed(struct us_owners *o, enum us_record_kind kind, const char *name)
{
    (void)pthread_mutex_lock(&o->lock);
    forget_nothing(o, kind, name);
    (void)pthread_mutex_unlock(&o->lock);
}

/* ---- quota --------------------------------------------------------------------------------- */

static enum us_status sum_bytes(const struct us_owners *o, const char *owner, int64_t *sum,
                                struct us_err *err)
{
    for (int kind = 0; kind < US_RECORD_KIND_COUNT; kind++) {
        struct us_store_record *list = NULL;
        int64_t n = 0, bytes = 0;
        US_TRY(
            o->store->ops->record_list(o->store, (enum us_record_kind)kind, owner, &list, &n, err));
        for (int64_t i = 0; i < n; i++) {
            if (measure(o, list[i].kind, list[i].name, &bytes) == US_OK)
                *sum += bytes;
        }
        free(list);
    }
    return US_OK;
}

enum us_status us_owners_room(struct us_owners *o, const struct us_user *u, int64_t more_bytes,
                              struct us_err *err)
{
    int64_t used = 0;
    if (u->max_bytes == 0 || u->name[0] == '\0')
        return US_OK;
    US_TRY(sum_bytes(o, u->name, &used, err));
    if (used < u->max_bytes && more_bytes <= u->max_bytes - used)
        return US_OK;
    return us_fail(err, US_E_DISK_FULL,
                   "your quota: data sets and models hold %" PRId64 " of %" PRId64
                   " bytes, and %" PRId64 " more do not fit; delete some",
                   used, u->max_bytes, more_bytes);
}
