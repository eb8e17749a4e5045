/* A new job from a client's JSON: checked whole, against its data too, before it is accepted. */
#include <inttypes.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_failpoint.h"
#include "us_jobs_int.h"

static enum us_status check_members(const json_t *doc, struct us_err *err)
{
    static const char *const known[] = {"type", "dataset", "config", "model", "replace"};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)doc, key, value)
    {
        bool ok = false;
        for (size_t i = 0; i < US_COUNT(known); i++)
            ok |= strcmp(key, known[i]) == 0;
        if (!ok)
            return us_fail(
                err, US_E_ARG,
                "unknown member '%.100s'; expected type, dataset, config, model, replace", key);
    }
    return US_OK;
}

static enum us_status take_name(const json_t *doc, const char *member, char *ret, size_t size,
                                struct us_err *err)
{
    const char *t = json_string_value(json_object_get(doc, member));
    if (t == NULL || !us_model_name_ok(t))
        return us_fail(err, US_E_ARG,
                       "%s: found %s%.100s%s; expected a name of 1 to %d characters of A-Z a-z 0-9 "
                       ". _ -, not beginning with a dot",
                       member, t != NULL ? "'" : "", t != NULL ? t : "none", t != NULL ? "'" : "",
                       US_MAX_MODEL_NAME);
    (void)snprintf(ret, size, "%s", t);
    return US_OK;
}

static enum us_status take_config(const json_t *doc, struct usi_order *o, struct us_err *err)
{
    const json_t *c = json_object_get(doc, "config");
    char *text = c != NULL ? json_dumps(c, JSON_COMPACT | JSON_ENCODE_ANY) : strdup("{}");
    if (text == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the job");
    o->settings = us_train_settings_defaults();
    enum us_status st = us_train_settings_parse(text, strlen(text), "config", &o->settings, err);
    free(text);
    return st;
}

static enum us_status take_order(const json_t *doc, struct usi_order *o, struct us_err *err)
{
    const char *type = json_string_value(json_object_get(doc, "type"));
    const json_t *replace = json_object_get(doc, "replace");
    US_TRY(check_members(doc, err));
    if (type == NULL || strcmp(type, "train") != 0)
        return us_fail(err, US_E_ARG, "type: found '%.100s'; expected 'train'",
                       type != NULL ? type : "none");
    if (replace != NULL && !json_is_boolean(replace))
        return us_fail(err, US_E_ARG, "replace: expected true or false");
    o->replace = json_is_true(replace);
    US_TRY(take_name(doc, "dataset", o->dataset, sizeof(o->dataset), err));
    US_TRY(take_name(doc, "model", o->model, sizeof(o->model), err));
    return take_config(doc, o, err);
}

enum us_status usi_order_parse(const char *text, size_t n, struct usi_order *ret,
                               struct us_err *err)
{
    json_error_t at;
    json_t *doc = json_loadb(text, n, JSON_REJECT_DUPLICATES, &at);
    enum us_status st;
    if (json_is_object(doc))
        st = take_order(doc, ret, err);
    else
        st = us_fail(err, US_E_FORMAT, "the job: line %d: %s", doc == NULL ? at.line : 1,
                     doc == NULL ? at.text : "found no JSON object");
    json_decref(doc);
    return st;
}

/* A new job on its way into the store. */
struct fresh {
    struct us_jobs *jobs;
    const struct us_user *user;
    struct usi_order order;
    char id[US_JOB_ID_BYTES];
    char *spec;
    struct us_store_new row;
};

/* That the settings fit the data is known now, not after hours in the queue. */
static enum us_status check_data(const struct fresh *f, struct us_err *err)
{
    struct us_frames *frames = NULL;
    struct us_train_setup setup;
    US_TRY(usi_job_open_frames(f->jobs, f->order.dataset, &f->order.settings, &frames, err));
    enum us_status st = us_train_setup_make(&f->order.settings, frames, &setup, err);
    if (st == US_OK)
        st = us_train_setup_precision(&setup, f->jobs->env.backend, err);
    us_frames_free(frames);
    return st;
}

/* The model's name must be free, unless the client says otherwise: also of jobs still to end. */
static enum us_status check_model(const struct fresh *f, struct us_err *err)
{
    const struct us_store_filter same = {
        .states = US_JOBS_UNFINISHED, .model = f->order.model, .limit = 1};
    struct us_model_info info;
    struct us_store_job *list = NULL;
    int64_t n = 0;
    if (f->order.replace)
        return us_owners_may_make(f->jobs->env.owners, US_RECORD_MODEL, f->order.model, f->user,
                                  err);
    if (us_registry_find(f->jobs->env.registry, f->order.model, &info, NULL) == US_OK) {
        us_model_info_release(&info);
        return us_fail(err, US_E_EXISTS,
                       "the model '%s' exists; \"replace\": true trains another in its place",
                       f->order.model);
    }
    US_TRY(usi_ops(f->jobs)->list(f->jobs->env.store, &same, &list, &n, err));
    enum us_status st = n == 0 ? US_OK
                               : us_fail(err, US_E_EXISTS, "the job %s is to make the model '%s'",
                                         list[0].id, f->order.model);
    for (int64_t i = 0; i < n; i++)
        us_store_job_release(&list[i]);
    free(list);
    return st;
}

static enum us_status check_room(struct us_jobs *jobs, struct us_err *err)
{
    const struct us_store_filter queued = {.states = US_JOB_BIT(US_JOB_QUEUED)};
    int64_t n = 0;
    (void)pthread_mutex_lock(&jobs->lock);
    bool stopping = jobs->stopping;
    (void)pthread_mutex_unlock(&jobs->lock);
    if (stopping)
        return us_fail(err, US_E_CANCELLED, "the daemon is stopping");
    US_TRY(usi_ops(jobs)->count(jobs->env.store, &queued, &n, err));
    return n < jobs->env.max_queued
               ? US_OK
               : us_fail(err, US_E_BUSY, "the queue is full: %" PRId64 " jobs are waiting", n);
}

/* What the user's token allows besides. */
static enum us_status check_user(const struct fresh *f, struct us_err *err)
{
    const struct us_user *u = f->user;
    const struct us_store_filter own = {.states = US_JOBS_UNFINISHED, .owner = u->name};
    int64_t n = 0;
    US_TRY(us_owners_may_use(f->jobs->env.owners, f->order.dataset, u, err));
    US_TRY(us_owners_room(f->jobs->env.owners, u, 1, err));
    if (u->max_jobs == 0)
        return US_OK;
    US_TRY(usi_ops(f->jobs)->count(f->jobs->env.store, &own, &n, err));
    return n < u->max_jobs ? US_OK
                           : us_fail(err, US_E_BUSY,
                                     "your quota: %" PRId64 " unfinished jobs; allowed: %" PRId64,
                                     n, u->max_jobs);
}

/* The folder first: a row without one would be a job that cannot run. */
static enum us_status accept(struct fresh *f, bool *repeated, struct us_err *err)
{
    char own[US_JOB_ID_BYTES];
    US_TRY(usi_job_make_dir(f->jobs, f->id, err));
    memcpy(own, f->id, sizeof(own));
    f->row.id = own;
    enum us_status st = us_failpoint("job.folder", err);
    if (st == US_OK)
        st = usi_ops(f->jobs)->put(f->jobs->env.store, &f->row, f->id, repeated, err);
    if (st == US_OK)
        (void)!us_failpoint("job.accepted", NULL);
    if (st != US_OK || *repeated)
        usi_job_remove_dir(f->jobs, own);
    return st;
}

/* With submit_lock held: what was free stays free until the job is in the store. */
static enum us_status submit(struct fresh *f, bool *repeated, struct us_err *err)
{
    struct us_jobs *jobs = f->jobs;
    enum us_status st = usi_ops(jobs)->find_key(jobs->env.store, &f->row, f->id, err);
    *repeated = st == US_OK;
    if (st != US_E_NOT_FOUND)
        return st;
    US_TRY(check_room(jobs, err));
    US_TRY(check_user(f, err));
    /* Held until the row is there, which says the same from then on. */
    US_TRY(us_datasets_hold(jobs->env.datasets, f->order.dataset, NULL, err));
    st = check_data(f, err);
    if (st == US_OK)
        st = check_model(f, err);
    if (st == US_OK)
        st = accept(f, repeated, err);
    us_datasets_release(jobs->env.datasets, f->order.dataset);
    return st;
}

static enum us_status take_body(struct fresh *f, const char *body, size_t n, const char *key,
                                struct us_err *err)
{
    struct sha256_ctx hash;
    if (key != NULL && (key[0] == '\0' || strlen(key) > US_MAX_JOB_KEY))
        return us_fail(err, US_E_ARG, "Idempotency-Key: %zu bytes; expected 1 to %d", strlen(key),
                       US_MAX_JOB_KEY);
    US_TRY(usi_order_parse(body, n, &f->order, err));
    f->spec = strndup(body, n);
    if (f->spec == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the job");
    f->row = (struct us_store_new){.type = "train",
                                   .owner = f->user->name,
                                   .class = us_user_class(f->user, US_JOB_TRAIN),
                                   .dataset = f->order.dataset,
                                   .model = f->order.model,
                                   .spec = f->spec,
                                   .key = key};
    sha256_init(&hash);
    sha256_update(&hash, n, (const uint8_t *)body);
    sha256_digest(&hash, sizeof(f->row.fingerprint), f->row.fingerprint);
    return US_OK;
}

enum us_status us_jobs_submit(struct us_jobs *jobs, const struct us_user *user, const char *body,
                              size_t n, const char *key, char id[US_JOB_ID_BYTES], bool *repeated,
                              json_t **ret_job, struct us_err *err)
{
    *ret_job = NULL;
    *repeated = false;
    struct fresh *f = calloc(1, sizeof(*f));
    if (f == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the job");
    f->jobs = jobs;
    f->user = user;
    enum us_status st = take_body(f, body, n, key, err);
    if (st == US_OK) {
        (void)pthread_mutex_lock(&jobs->submit_lock);
        st = submit(f, repeated, err);
        (void)pthread_mutex_unlock(&jobs->submit_lock);
    }
    if (st == US_OK)
        st = us_jobs_get(jobs, f->id, ret_job, err);
    if (st == US_OK)
        memcpy(id, f->id, US_JOB_ID_BYTES);
    free(f->spec);
    free(f);
    return st;
}
