/* A new job from a client's JSON: checked whole, against its data too, before it is accepted. */
#include <inttypes.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_jobs_int.h"

/* Jobs listed; the oldest ended ones are forgotten, folders and all, beyond that. */
#define MAX_JOBS 1000

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

static enum us_status take_config(const json_t *doc, struct us_job *j, struct us_err *err)
{
    json_t *c = json_object_get(doc, "config");
    j->config = c != NULL ? json_incref(c) : json_object();
    char *text = json_dumps(j->config, JSON_COMPACT | JSON_ENCODE_ANY);
    if (text == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the job");
    j->settings = us_train_settings_defaults();
    enum us_status st = us_train_settings_parse(text, strlen(text), "config", &j->settings, err);
    free(text);
    return st;
}

static enum us_status parse(const char *body, size_t n, struct us_job *j, struct us_err *err)
{
    json_error_t at;
    json_t *doc = json_loadb(body, n, JSON_REJECT_DUPLICATES, &at);
    if (!json_is_object(doc)) {
        json_decref(doc);
        return us_fail(err, US_E_FORMAT, "the job: line %d: %s", doc == NULL ? at.line : 1,
                       doc == NULL ? at.text : "found no JSON object");
    }
    const char *type = json_string_value(json_object_get(doc, "type"));
    const json_t *replace = json_object_get(doc, "replace");
    enum us_status st = check_members(doc, err);
    if (st == US_OK && (type == NULL || strcmp(type, "train") != 0))
        st = us_fail(err, US_E_ARG, "type: found '%.100s'; expected 'train'",
                     type != NULL ? type : "none");
    if (st == US_OK && replace != NULL && !json_is_boolean(replace))
        st = us_fail(err, US_E_ARG, "replace: expected true or false");
    j->replace = json_is_true(replace);
    if (st == US_OK)
        st = take_name(doc, "dataset", j->dataset, sizeof(j->dataset), err);
    if (st == US_OK)
        st = take_name(doc, "model", j->model, sizeof(j->model), err);
    if (st == US_OK)
        st = take_config(doc, j, err);
    json_decref(doc);
    return st;
}

/* That the settings fit the data is known now, not after hours in the queue. */
static enum us_status check_data(struct us_jobs *jobs, struct us_job *j, struct us_err *err)
{
    struct us_frames *f = NULL;
    struct us_train_setup setup;
    US_TRY(usi_job_open_frames(jobs, j->dataset, &j->settings, &f, err));
    enum us_status st = us_train_setup_make(&j->settings, f, &setup, err);
    if (st == US_OK)
        st = us_train_setup_precision(&setup, jobs->env.backend, err);
    j->n_targets = us_frames_source(f)->n_channels;
    us_frames_free(f);
    return st;
}

/* The model's name must be free, unless the client says otherwise: also of jobs still to end. */
static enum us_status check_model(struct us_jobs *jobs, const struct us_job *j, struct us_err *err)
{
    struct us_model_info info;
    if (j->replace)
        return US_OK;
    if (us_registry_find(jobs->env.registry, j->model, &info, NULL) == US_OK) {
        us_model_info_release(&info);
        return us_fail(err, US_E_EXISTS,
                       "the model '%s' exists; \"replace\": true trains another in its place",
                       j->model);
    }
    enum us_status st = US_OK;
    (void)pthread_mutex_lock(&jobs->lock);
    for (const struct us_job *o = jobs->first; o != NULL && st == US_OK; o = o->next) {
        if (!usi_job_ended(o) && strcmp(o->model, j->model) == 0)
            st = us_fail(err, US_E_EXISTS, "the job %s is to make the model '%s'", o->id, o->model);
    }
    (void)pthread_mutex_unlock(&jobs->lock);
    return st;
}

/* The job that the key was given for already. E_ARG: with another body. */
static enum us_status find_key(struct us_jobs *jobs, const struct us_job *j,
                               char id[US_JOB_ID_BYTES], json_t **ret, struct us_err *err)
{
    enum us_status st = US_OK;
    (void)pthread_mutex_lock(&jobs->lock);
    for (const struct us_job *o = jobs->first; o != NULL && j->key[0] != '\0'; o = o->next) {
        if (strcmp(o->key, j->key) != 0)
            continue;
        if (memcmp(o->fingerprint, j->fingerprint, sizeof(j->fingerprint)) != 0) {
            st = us_fail(err, US_E_ARG,
                         "Idempotency-Key: this key was used with another body, for job %s", o->id);
        } else {
            memcpy(id, o->id, US_JOB_ID_BYTES);
            *ret = usi_job_json(jobs, o);
        }
        break;
    }
    (void)pthread_mutex_unlock(&jobs->lock);
    return st;
}

static enum us_status check_room(struct us_jobs *jobs, struct us_err *err)
{
    (void)pthread_mutex_lock(&jobs->lock);
    int64_t n = usi_jobs_queued(jobs, NULL);
    bool stopping = jobs->stopping;
    (void)pthread_mutex_unlock(&jobs->lock);
    if (stopping)
        return us_fail(err, US_E_CANCELLED, "the daemon is stopping");
    return n < jobs->env.max_queued
               ? US_OK
               : us_fail(err, US_E_BUSY, "the queue is full: %" PRId64 " jobs are waiting", n);
}

/* With the lock held: the oldest ended job leaves the list, or NULL. */
static struct us_job *forget_one(struct us_jobs *jobs)
{
    struct us_job **at = &jobs->first;
    while (*at != NULL && !usi_job_ended(*at))
        at = &(*at)->next;
    struct us_job *j = *at;
    if (jobs->n_jobs <= MAX_JOBS || j == NULL)
        return NULL;
    *at = j->next;
    if (jobs->last == &j->next)
        jobs->last = at;
    jobs->n_jobs--;
    return j;
}

/* On disk first, then in the list. Takes j over if it succeeds. */
static enum us_status accept(struct us_jobs *jobs, struct us_job *j, json_t **ret,
                             struct us_err *err)
{
    US_TRY(usi_job_make_dir(jobs, j->id, err));
    j->created = usi_now();
    json_t *doc = usi_job_json(jobs, j);
    if (doc != NULL)
        (void)json_object_del(doc, "queue_position");
    char *text = doc != NULL ? json_dumps(doc, JSON_COMPACT) : NULL;
    json_decref(doc);
    enum us_status st = usi_job_store(jobs, j->id, text, err);
    free(text);
    if (st != US_OK) {
        usi_job_remove_dir(jobs, j->id);
        return st;
    }
    (void)pthread_mutex_lock(&jobs->lock);
    *jobs->last = j;
    jobs->last = &j->next;
    jobs->n_jobs++;
    usi_job_tell_state(jobs, j);
    *ret = usi_job_json(jobs, j);
    struct us_job *old = forget_one(jobs);
    (void)pthread_cond_broadcast(&jobs->wake);
    (void)pthread_mutex_unlock(&jobs->lock);
    if (old != NULL)
        usi_job_remove_dir(jobs, old->id);
    usi_job_free(old);
    return US_OK;
}

/* With submit_lock held: what was free stays free until the job is in the list. */
static enum us_status submit(struct us_jobs *jobs, struct us_job *j, char id[US_JOB_ID_BYTES],
                             bool *repeated, json_t **ret, struct us_err *err)
{
    US_TRY(find_key(jobs, j, id, ret, err));
    *repeated = *ret != NULL;
    if (*repeated)
        return US_OK;
    US_TRY(check_room(jobs, err));
    US_TRY(us_datasets_hold(jobs->env.datasets, j->dataset, NULL, err));
    enum us_status st = check_data(jobs, j, err);
    if (st == US_OK)
        st = check_model(jobs, j, err);
    if (st == US_OK)
        st = accept(jobs, j, ret, err);
    if (st != US_OK)
        us_datasets_release(jobs->env.datasets, j->dataset);
    return st;
}

enum us_status us_jobs_submit(struct us_jobs *jobs, const char *body, size_t n, const char *key,
                              char id[US_JOB_ID_BYTES], bool *repeated, json_t **ret_job,
                              struct us_err *err)
{
    struct sha256_ctx hash;
    enum us_status st = US_OK;
    struct us_job *j = calloc(1, sizeof(*j));
    *ret_job = NULL;
    *repeated = false;
    if (j == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the job");
    j->next_event = 1;
    sha256_init(&hash);
    sha256_update(&hash, n, (const uint8_t *)body);
    sha256_digest(&hash, sizeof(j->fingerprint), j->fingerprint);
    if (key != NULL && (key[0] == '\0' || strlen(key) > US_MAX_JOB_KEY))
        st = us_fail(err, US_E_ARG, "Idempotency-Key: %zu bytes; expected 1 to %d", strlen(key),
                     US_MAX_JOB_KEY);
    if (st == US_OK && key != NULL)
        memcpy(j->key, key, strlen(key) + 1);
    if (st == US_OK)
        st = parse(body, n, j, err);
    (void)pthread_mutex_lock(&jobs->submit_lock);
    if (st == US_OK)
        st = submit(jobs, j, id, repeated, ret_job, err);
    if (st == US_OK && !*repeated)
        memcpy(id, j->id, US_JOB_ID_BYTES); /* under submit_lock: nothing forgets it meanwhile */
    (void)pthread_mutex_unlock(&jobs->submit_lock);
    if (st != US_OK || *repeated)
        usi_job_free(j);
    return st;
}
