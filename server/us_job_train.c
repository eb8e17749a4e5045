/* One training from the data set's folder to the registry; see us_jobs.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "us_jobs_int.h"

#define YIELD_MS       5
#define YIELD_LIMIT_MS 1000 /* per step: predictions without end do not stop training */
#define COPY_BYTES     65536

/* A data set of one stack is that file, else it is the folder. */
static enum us_status find_images(struct us_jobs *jobs, const char *dataset, char *path,
                                  struct us_err *err)
{
    struct us_dataset_file *files = NULL;
    const struct us_dataset_file *image = NULL;
    int64_t n = 0, n_images = 0;
    US_TRY(us_datasets_hold(jobs->env.datasets, dataset, path, err));
    enum us_status st = us_datasets_files(jobs->env.datasets, dataset, &files, &n, err);
    for (int64_t i = 0; i < n && st == US_OK; i++) {
        if (files[i].is_splits)
            continue;
        image = &files[i];
        n_images++;
    }
    if (n_images == 1 && image->info.axes_stated && image->info.t * image->info.z > 1) {
        size_t used = strlen(path);
        (void)snprintf(path + used, PATH_MAX - used, "/%s", image->name);
    }
    free(files);
    us_datasets_release(jobs->env.datasets, dataset);
    return st;
}

enum us_status usi_job_open_frames(struct us_jobs *jobs, const char *dataset,
                                   const struct us_train_settings *s, struct us_frames **ret,
                                   struct us_err *err)
{
    char path[PATH_MAX];
    US_TRY(find_images(jobs, dataset, path, err));
    const struct us_frames_config cfg = us_train_frames(s);
    enum us_status st = us_frames_open(path, &cfg, ret, err);
    us_spool_hide_path(err, path, dataset);
    return st == US_E_NOT_FOUND ? us_fail(err, US_E_ARG, "the data set '%s' has no images", dataset)
                                : st;
}

struct run {
    struct us_jobs *jobs;
    struct us_job *job;
};

/* Between two steps a prediction goes first: it would share the cores otherwise. */
static void yield_to_predictions(const struct run *r)
{
    const struct timespec nap = {0, YIELD_MS * 1000000L};
    for (int ms = 0; ms < YIELD_LIMIT_MS && !atomic_load(&r->job->cancel); ms += YIELD_MS) {
        if (us_work_counts(r->jobs->env.work).running == 0)
            return;
        (void)nanosleep(&nap, NULL);
    }
}

static void on_event(void *arg, const struct us_trainer_event *e)
{
    const struct run *r = arg;
    usi_job_on_trainer(r->jobs, r->job, e);
    if (e->kind == US_TRAINER_STEP)
        yield_to_predictions(r);
}

static enum us_status copy_into(struct us_spool_file *f, int fd, struct us_err *err)
{
    char piece[COPY_BYTES];
    for (;;) {
        ssize_t n = read(fd, piece, sizeof(piece));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return us_fail(err, US_E_IO, "the result cannot be read: %s", strerror(errno));
        if (n == 0)
            return US_OK;
        US_TRY(us_spool_write(f, piece, (size_t)n, err));
    }
}

/* The job keeps its file, the registry gets a copy: each may go without the other. */
static enum us_status publish(struct us_jobs *jobs, struct us_job *j, const char *path,
                              struct us_err *err)
{
    struct us_spool_file f;
    struct us_registry_put put = {.name = j->model, .if_none_match = j->replace ? NULL : "*"};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return us_fail(err, US_E_IO, "the result cannot be read: %s", strerror(errno));
    enum us_status st = us_spool_create(jobs->env.spool_dir, &f, err);
    if (st == US_OK)
        st = copy_into(&f, fd, err);
    if (st == US_OK)
        st = us_registry_put(jobs->env.registry, &put, &f, err);
    if (st == US_OK && put.old_sha256[0] != '\0')
        us_predictors_drop(jobs->env.predictors, put.old_sha256);
    (void)pthread_mutex_lock(&jobs->lock);
    if (st == US_OK)
        memcpy(j->model_sha256, put.info.sha256, sizeof(j->model_sha256));
    (void)pthread_mutex_unlock(&jobs->lock);
    us_model_info_release(&put.info);
    us_spool_release(&f);
    (void)close(fd);
    return st;
}

static enum us_status train(struct us_jobs *jobs, struct us_job *j, struct us_frames *f,
                            struct us_err *err)
{
    char folder[PATH_MAX], history[PATH_MAX], result[PATH_MAX];
    struct us_train_setup setup;
    struct us_model *m = NULL;
    struct us_dataset *d = NULL;
    struct run run = {jobs, j};
    usi_job_path(jobs, j->id, NULL, folder);
    usi_job_path(jobs, j->id, "history.jsonl", history);
    usi_job_path(jobs, j->id, "result.safetensors", result);
    const struct us_trainer_io io = {.checkpoint_dir = folder,
                                     .history_path = history,
                                     .event = on_event,
                                     .arg = &run,
                                     .cancel = &j->cancel};
    enum us_status st = us_train_setup_make(&j->settings, f, &setup, err);
    if (st == US_OK)
        st = us_train_setup_precision(&setup, jobs->env.backend, err);
    if (st != US_OK)
        goto out;
    (void)snprintf(setup.name, sizeof(setup.name), "%s", j->model);
    if (setup.trainer.train.threads == 0)
        setup.trainer.train.threads = jobs->env.threads;
    st = us_train_setup_model(&setup, f, &m, err);
    if (st == US_OK)
        st = us_dataset_open(us_frames_source(f), &setup.dataset, &d, err);
    if (st == US_OK)
        st = us_trainer_run(m, d, jobs->env.backend, &setup.trainer, &io, NULL, err);
    if (st == US_OK)
        st = us_model_save(m, result, err);
    if (st == US_OK)
        st = publish(jobs, j, result, err);
out:
    us_spool_hide_path(err, folder, "the job");
    us_dataset_free(d);
    us_model_free(m);
    return st;
}

enum us_status usi_job_train(struct us_jobs *jobs, struct us_job *j, struct us_err *err)
{
    struct us_frames *f = NULL;
    US_TRY(usi_job_open_frames(jobs, j->dataset, &j->settings, &f, err));
    enum us_status st = train(jobs, j, f, err);
    us_frames_free(f);
    return st;
}
