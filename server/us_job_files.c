/* Job folders: DATA-DIR/jobs/ID; see us_jobs.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "us_jobs_int.h"

#define JOB_FILE    "job.json" /* of versions without a store */
#define ID_ATTEMPTS 100

void usi_job_path(const struct us_jobs *jobs, const char *id, const char *file, char *path)
{
    int n = snprintf(path, PATH_MAX, "%s/%s%s%s", jobs->dir, id, file != NULL ? "/" : "",
                     file != NULL ? file : "");
    US_ASSERT(n > 0 && n < PATH_MAX);
}

/* Ids sort by time; the random end keeps those of one millisecond apart. */
static void make_id(char id[US_JOB_ID_BYTES])
{
    uint32_t random = 0;
    struct timespec now;
    struct tm tm;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &tm);
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != (ssize_t)sizeof(random))
        random = (uint32_t)clock();
    size_t n = strftime(id, US_JOB_ID_BYTES, "%Y%m%dT%H%M%S", &tm);
    (void)snprintf(id + n, US_JOB_ID_BYTES - n, "%03d-%06x", (int)(now.tv_nsec / 1000000),
                   (unsigned)(random & 0xffffff));
}

enum us_status usi_job_make_dir(struct us_jobs *jobs, char id[US_JOB_ID_BYTES], struct us_err *err)
{
    char path[PATH_MAX];
    for (int i = 0; i < ID_ATTEMPTS; i++) {
        make_id(id);
        usi_job_path(jobs, id, NULL, path);
        if (mkdir(path, 0755) == 0)
            return us_fsync_dir(jobs->dir, err);
        if (errno != EEXIST)
            break;
    }
    return us_fail(err, us_status_of_errno(errno), "the job's folder: %s", strerror(errno));
}

void usi_job_remove_dir(const struct us_jobs *jobs, const char *id)
{
    char path[PATH_MAX];
    usi_job_path(jobs, id, NULL, path);
    DIR *d = opendir(path);
    if (d == NULL)
        return;
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            (void)unlinkat(dirfd(d), e->d_name, 0);
    }
    (void)closedir(d);
    (void)rmdir(path);
}

/* ---- at the start -------------------------------------------------------------------------- */

static const char *text_of(const json_t *j, const char *member)
{
    const char *t = json_string_value(json_object_get(j, member));
    return t != NULL ? t : "";
}

static enum us_job_state state_of(const char *name)
{
    enum us_job_state s = US_JOB_QUEUED;
    while (s < US_JOB_STATE_COUNT && strcmp(name, us_job_state_name(s)) != 0)
        s++;
    return s == US_JOB_RUNNING || s == US_JOB_STATE_COUNT ? US_JOB_QUEUED : s;
}

/* "2026-01-31T12:00:00.123Z", 0 if it is none. */
static int64_t time_of(const char *text)
{
    struct tm tm = {0};
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    return end != NULL ? (int64_t)timegm(&tm) * 1000 : 0;
}

static char *dump(json_t *doc)
{
    char *text = doc != NULL ? json_dumps(doc, JSON_COMPACT) : NULL;
    json_decref(doc);
    return text;
}

/* What versions without a store said in job.json; an unfinished one is queued: its checkpoint is
 * there, it goes on. */
static enum us_status adopt(struct us_jobs *jobs, const char *id, const json_t *doc,
                            struct us_err *err)
{
    struct us_store_job j = {.class = US_JOB_TRAIN,
                             .state = state_of(text_of(doc, "state")),
                             .created_ms = time_of(text_of(doc, "created")),
                             .started_ms = time_of(text_of(doc, "started")),
                             .ended_ms = time_of(text_of(doc, "ended"))};
    const json_t *progress = json_object_get(doc, "progress");
    const json_t *metrics = json_object_get(doc, "metrics");
    const json_t *config = json_object_get(doc, "config");
    (void)snprintf(j.id, sizeof(j.id), "%s", id);
    (void)snprintf(j.type, sizeof(j.type), "train");
    (void)snprintf(j.dataset, sizeof(j.dataset), "%s", text_of(doc, "dataset"));
    (void)snprintf(j.model, sizeof(j.model), "%s", text_of(doc, "model"));
    (void)snprintf(j.reason, sizeof(j.reason), "%s", text_of(doc, "reason"));
    j.spec = dump(json_pack("{s:s, s:s, s:s, s:O*}", "type", "train", "dataset", j.dataset, "model",
                            j.model, "config", config));
    j.progress = progress != NULL
                     ? dump(json_pack("{s:O, s:O*}", "progress", progress, "metrics", metrics))
                     : NULL;
    j.result = dump(json_pack("{s:s}", "model_sha256", text_of(doc, "model_sha256")));
    enum us_status st = j.spec == NULL || j.result == NULL
                            ? us_fail(err, US_E_NOMEM, "no memory for the jobs")
                            : usi_ops(jobs)->adopt(jobs->env.store, &j, err);
    us_store_job_release(&j);
    return st == US_E_EXISTS ? US_OK : st; /* a start that was cut off here */
}

/* Of our make: make_id. */
static bool is_id(const char *name)
{
    static const char form[] = "00000000T000000000-xxxxxx";
    size_t i = 0;
    for (; form[i] != '\0' && name[i] != '\0'; i++) {
        bool digit = name[i] >= '0' && name[i] <= '9';
        bool hex = digit || (name[i] >= 'a' && name[i] <= 'f');
        if (form[i] == '0' ? !digit : form[i] == 'x' ? !hex : form[i] != name[i])
            return false;
    }
    return form[i] == '\0' && name[i] == '\0';
}

/* A folder that no row knows: of an older version, of a job that was being accepted or forgotten
 * when the power went, or not ours, which is left alone. */
static enum us_status settle_dir(struct us_jobs *jobs, const char *id, struct us_err *err)
{
    const struct us_store_filter f = {.id = id};
    char path[PATH_MAX];
    int64_t known = 0;
    if (!is_id(id))
        return US_OK;
    US_TRY(usi_ops(jobs)->count(jobs->env.store, &f, &known, err));
    usi_job_path(jobs, id, JOB_FILE, path);
    json_t *doc = json_load_file(path, 0, NULL);
    enum us_status st = US_OK;
    if (known == 0 && json_is_object(doc))
        st = adopt(jobs, id, doc, err);
    else if (known == 0)
        usi_job_remove_dir(jobs, id);
    if (st == US_OK && doc != NULL)
        (void)unlink(path); /* from here on the store says it */
    json_decref(doc);
    return st;
}

enum us_status usi_jobs_settle_dirs(struct us_jobs *jobs, struct us_err *err)
{
    struct dirent **list = NULL;
    enum us_status st = US_OK;
    int n = scandir(jobs->dir, &list, NULL, alphasort);
    if (n < 0)
        return us_fail(err, US_E_IO, "%s: %s", jobs->dir, strerror(errno));
    for (int i = 0; i < n; i++) {
        if (st == US_OK)
            st = settle_dir(jobs, list[i]->d_name, err);
        free(list[i]);
    }
    free(list);
    return st;
}
