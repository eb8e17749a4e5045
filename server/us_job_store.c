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

#define JOB_FILE    "job.json"
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
    double now = usi_now();
    time_t s = (time_t)now;
    uint32_t random = 0;
    struct tm tm;
    (void)gmtime_r(&s, &tm);
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != (ssize_t)sizeof(random))
        random = (uint32_t)clock();
    size_t n = strftime(id, US_JOB_ID_BYTES, "%Y%m%dT%H%M%S", &tm);
    (void)snprintf(id + n, US_JOB_ID_BYTES - n, "%03d-%06x", (int)((now - (double)s) * 1e3),
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

enum us_status usi_job_store(const struct us_jobs *jobs, const char *id, const char *text,
                             struct us_err *err)
{
    char path[PATH_MAX];
    struct us_spool_file f;
    if (text == NULL)
        return us_fail(err, US_E_NOMEM, "no memory to write down the job");
    usi_job_path(jobs, id, JOB_FILE, path);
    enum us_status st = us_spool_create(jobs->env.spool_dir, &f, err);
    if (st == US_OK)
        st = us_spool_write(&f, text, strlen(text), err);
    if (st == US_OK)
        st = us_spool_publish(&f, path, err);
    us_spool_release(&f);
    us_spool_hide_path(err, path, "the job");
    return st;
}

/* ---- after a restart ----------------------------------------------------------------------- */

static bool has_checkpoint(const struct us_jobs *jobs, const char *id)
{
    char path[PATH_MAX];
    usi_job_path(jobs, id, "last.usplit-ckpt", path);
    return access(path, F_OK) == 0;
}

static void settle_unfinished(struct us_jobs *jobs, struct us_job *j)
{
    struct us_err err = {0};
    char reason[128];
    (void)snprintf(reason, sizeof(reason), "daemon restarted%s",
                   has_checkpoint(jobs, j->id) ? "; the job's checkpoint is kept" : "");
    (void)json_object_set_new(j->frozen, "state", json_string("failed"));
    (void)json_object_set_new(j->frozen, "reason", json_string(reason));
    (void)json_object_del(j->frozen, "queue_position");
    char *text = json_dumps(j->frozen, JSON_COMPACT);
    (void)!usi_job_store(jobs, j->id, text, &err); /* else the next start says the same again */
    free(text);
}

static const char *text_of(const json_t *j, const char *member)
{
    const char *t = json_string_value(json_object_get(j, member));
    return t != NULL ? t : "";
}

static enum usi_job_state state_of(const char *name)
{
    for (int s = USI_JOB_QUEUED; s <= USI_JOB_CANCELLED; s++) {
        if (strcmp(name, usi_job_state_name((enum usi_job_state)s)) == 0)
            return (enum usi_job_state)s;
    }
    return USI_JOB_FAILED;
}

/* A folder without a readable job.json is left alone and not listed: it is not ours to judge. */
static struct us_job *read_job(struct us_jobs *jobs, const char *id)
{
    char path[PATH_MAX];
    if (strlen(id) >= US_JOB_ID_BYTES || !us_model_name_ok(id))
        return NULL;
    usi_job_path(jobs, id, JOB_FILE, path);
    json_t *doc = json_load_file(path, 0, NULL);
    struct us_job *j = json_is_object(doc) ? calloc(1, sizeof(*j)) : NULL;
    if (j == NULL) {
        json_decref(doc);
        return NULL;
    }
    (void)snprintf(j->id, sizeof(j->id), "%s", id);
    j->frozen = doc;
    j->next_event = 1;
    j->state = state_of(text_of(doc, "state"));
    if (!usi_job_ended(j))
        settle_unfinished(jobs, j);
    j->state = state_of(text_of(doc, "state"));
    (void)snprintf(j->reason, sizeof(j->reason), "%s", text_of(doc, "reason"));
    usi_job_tell_state(jobs, j);
    return j;
}

enum us_status usi_jobs_recover(struct us_jobs *jobs, struct us_err *err)
{
    struct dirent **list = NULL;
    int n = scandir(jobs->dir, &list, NULL, alphasort);
    if (n < 0)
        return us_fail(err, US_E_IO, "%s: %s", jobs->dir, strerror(errno));
    for (int i = 0; i < n; i++) {
        struct us_job *j = read_job(jobs, list[i]->d_name);
        free(list[i]);
        if (j == NULL)
            continue;
        *jobs->last = j;
        jobs->last = &j->next;
        jobs->n_jobs++;
    }
    free(list);
    return US_OK;
}
