/* The predictor cache; see us_predictors.h. A list of a few entries, newest use first. */
#include "us_predictors.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    struct us_model_ref *ref;
    struct us_predict_config cfg;
    struct us_predictor *predictor;
    int64_t leases;
    bool doomed;
    struct entry *next;
};

struct us_predictors {
    struct us_backend *be;
    int64_t max;
    pthread_mutex_t lock;
    struct entry *first;
};

/* What differs here is another predictor: a new member of the struct belongs here too. The seed
 * comes with each frame. */
static bool same_config(const struct us_predict_config *a, const struct us_predict_config *b)
{
    return a->precision == b->precision && a->tiling == b->tiling && a->padding == b->padding &&
           a->grid == b->grid && a->latent_mean == b->latent_mean && a->samples == b->samples &&
           a->noise == b->noise && a->want_std == b->want_std && a->batch == b->batch &&
           a->threads == b->threads && a->whole_maps == b->whole_maps && a->align == b->align;
}

static void entry_free(struct entry *e)
{
    if (e == NULL)
        return;
    us_predictor_free(e->predictor);
    us_model_ref_release(e->ref);
    free(e);
}

enum us_status us_predictors_new(struct us_backend *be, int64_t max, struct us_predictors **ret,
                                 struct us_err *err)
{
    struct us_predictors *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the predictor cache");
    (void)pthread_mutex_init(&c->lock, NULL);
    c->be = be;
    c->max = max;
    *ret = c;
    return US_OK;
}

void us_predictors_free(struct us_predictors *c)
{
    if (c == NULL)
        return;
    for (struct entry *e = c->first, *next; e != NULL; e = next) {
        next = e->next;
        US_ASSERT(e->leases == 0);
        entry_free(e);
    }
    (void)pthread_mutex_destroy(&c->lock);
    free(c);
}

/* The entry that fits, moved to the front and leased; or NULL. */
static struct entry *take(struct us_predictors *c, const struct us_model_ref *ref,
                          const struct us_predict_config *cfg)
{
    for (struct entry **at = &c->first; *at != NULL; at = &(*at)->next) {
        struct entry *e = *at;
        if (e->doomed || e->ref != ref || !same_config(&e->cfg, cfg))
            continue;
        *at = e->next;
        e->next = c->first;
        c->first = e;
        e->leases++;
        return e;
    }
    return NULL;
}

/* Takes out one idle entry beyond max, the longest unused; the caller frees it unlocked. */
static struct entry *surplus(struct us_predictors *c)
{
    struct entry **oldest = NULL;
    int64_t n = 0;
    for (struct entry **at = &c->first; *at != NULL; at = &(*at)->next) {
        n++;
        if ((*at)->leases == 0)
            oldest = at;
    }
    if (n <= c->max || oldest == NULL)
        return NULL;
    struct entry *e = *oldest;
    *oldest = e->next;
    return e;
}

enum us_status us_predictors_acquire(struct us_predictors *c, struct us_model_ref *ref,
                                     const struct us_predict_config *cfg,
                                     struct us_predictor_lease *ret, struct us_err *err)
{
    (void)pthread_mutex_lock(&c->lock);
    struct entry *e = take(c, ref, cfg);
    (void)pthread_mutex_unlock(&c->lock);
    if (e == NULL) {
        e = calloc(1, sizeof(*e));
        if (e == NULL)
            return us_fail(err, US_E_NOMEM, "no memory for a predictor");
        e->ref = us_model_ref_share(ref);
        e->cfg = *cfg;
        e->leases = 1;
        enum us_status st = us_predictor_new(us_model_ref_get(ref), c->be, cfg, &e->predictor, err);
        if (st != US_OK) {
            entry_free(e);
            return st;
        }
        (void)pthread_mutex_lock(&c->lock);
        e->next = c->first;
        c->first = e;
        struct entry *old = surplus(c);
        (void)pthread_mutex_unlock(&c->lock);
        entry_free(old);
    }
    *ret = (struct us_predictor_lease){e->predictor, e};
    return US_OK;
}

static void unlink_entry(struct us_predictors *c, const struct entry *e)
{
    struct entry **at = &c->first;
    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
}

void us_predictors_give_back(struct us_predictors *c, struct us_predictor_lease *lease)
{
    struct entry *e = lease->entry;
    if (e == NULL)
        return;
    *lease = (struct us_predictor_lease){0};
    (void)pthread_mutex_lock(&c->lock);
    e->leases--;
    bool doomed = e->doomed && e->leases == 0;
    if (doomed)
        unlink_entry(c, e);
    struct entry *old = doomed ? NULL : surplus(c);
    (void)pthread_mutex_unlock(&c->lock);
    entry_free(doomed ? e : old);
}

void us_predictors_drop(struct us_predictors *c, const char *sha256)
{
    struct entry *gone = NULL;
    (void)pthread_mutex_lock(&c->lock);
    for (struct entry **at = &c->first; *at != NULL;) {
        struct entry *e = *at;
        if (strcmp(us_model_ref_get(e->ref)->sha256, sha256) != 0) {
            at = &e->next;
        } else if (e->leases > 0) {
            e->doomed = true;
            at = &e->next;
        } else {
            *at = e->next;
            e->next = gone;
            gone = e;
        }
    }
    (void)pthread_mutex_unlock(&c->lock);
    while (gone != NULL) {
        struct entry *next = gone->next;
        entry_free(gone);
        gone = next;
    }
}
