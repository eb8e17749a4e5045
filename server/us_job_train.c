/* One training from the data set's folder to the registry; see us_jobs.h. */
#include <errno.h>
#include <fcntl.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "us_failpoint.h"
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

/* Between two steps a prediction goes first: it would share the cores otherwise. */
static void yield_to_predictions(const struct usi_run *run)
{
    const struct timespec nap = {0, YIELD_MS * 1000000L};
    for (int ms = 0; ms < YIELD_LIMIT_MS && !atomic_load(&run->cancel); ms += YIELD_MS) {
        if (us_work_counts(run->jobs->env.work).running == 0)
            return;
        (void)nanosleep(&nap, NULL);
    }
}

static void on_event(void *arg, const struct us_trainer_event *e)
{
    struct usi_run *run = arg;
    usi_run_on_trainer(run, e);
    if (e->kind == US_TRAINER_STEP)
        yield_to_predictions(run);
}

static enum us_status copy_into(struct us_spool_file *f, int fd, char sha256[65],
                                struct us_err *err)
{
    char piece[COPY_BYTES];
    struct sha256_ctx hash;
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_init(&hash);
    for (;;) {
        ssize_t n = read(fd, piece, sizeof(piece));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return us_fail(err, US_E_IO, "the result cannot be read: %s", strerror(errno));
        if (n == 0)
            break;
        sha256_update(&hash, (size_t)n, (const uint8_t *)piece);
        US_TRY(us_spool_write(f, piece, (size_t)n, err));
    }
    sha256_digest(&hash, sizeof(digest), digest);
    for (size_t i = 0; i < sizeof(digest); i++)
        (void)snprintf(sha256 + 2 * i, 3, "%02x", digest[i]);
    return US_OK;
}

/* Whether the registry has these very bytes: an earlier attempt came so far. */
static bool is_published(struct us_jobs *jobs, const char *model, const char *sha256)
{
    struct us_model_ref *ref = NULL;
    struct us_model_info info;
    if (us_registry_acquire(jobs->env.registry, model, &ref, NULL) != US_OK)
        return false;
    us_model_ref_release(ref);
    if (us_registry_find(jobs->env.registry, model, &info, NULL) != US_OK)
        return false;
    bool same = strcmp(info.sha256, sha256) == 0;
    us_model_info_release(&info);
    return same;
}

/* The model is whose the job is. */
static enum us_status claim_name(struct usi_run *run, struct us_owner_claim *claim,
                                 struct us_err *err)
{
    struct us_jobs *jobs = run->jobs;
    struct us_store_job job;
    US_TRY(usi_ops(jobs)->get(jobs->env.store, run->claim.id, &job, err));
    enum us_status st = us_owners_claim_for_job(jobs->env.owners, run->order.model, job.owner,
                                                job.created_ms, claim, err);
    us_store_job_release(&job);
    return st;
}

static enum us_status put_model(struct usi_run *run, struct us_spool_file *f, struct us_err *err)
{
    struct us_jobs *jobs = run->jobs;
    struct us_owner_claim claim;
    US_TRY(claim_name(run, &claim, err));
    struct us_registry_put put = {.name = run->order.model,
                                  .if_none_match = run->order.replace ? NULL : "*"};
    enum us_status st = us_registry_put(jobs->env.registry, &put, f, err);
    us_owners_end(jobs->env.owners, &claim);
    if (st == US_OK && put.old_sha256[0] != '\0')
        us_predictors_drop(jobs->env.predictors, put.old_sha256);
    us_model_info_release(&put.info);
    return st;
}

/* The job keeps its file, the registry gets a copy: each may go without the other. */
static enum us_status publish(struct usi_run *run, const char *path, struct us_err *err)
{
    struct us_spool_file f;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return us_fail(err, US_E_IO, "the result cannot be read: %s", strerror(errno));
    enum us_status st = us_spool_create(run->jobs->env.spool_dir, &f, err);
    if (st == US_OK)
        st = copy_into(&f, fd, run->model_sha256, err);
    if (st == US_OK && !is_published(run->jobs, run->order.model, run->model_sha256))
        st = put_model(run, &f, err);
    if (st == US_OK)
        st = us_failpoint("job.published", err);
    us_spool_release(&f);
    (void)close(fd);
    return st;
}

/* The kill may have come between the two renames of a checkpoint: either name will do. */
static const char *find_checkpoint(const struct usi_run *run, char *path)
{
    char other[PATH_MAX];
    usi_job_path(run->jobs, run->claim.id, USI_JOB_CHECKPOINT, path);
    usi_job_path(run->jobs, run->claim.id, USI_JOB_CHECKPOINT2, other);
    return access(path, F_OK) == 0 || access(other, F_OK) == 0 ? path : NULL;
}

static enum us_status train(struct usi_run *run, struct us_frames *f, const char *result,
                            struct us_err *err)
{
    struct us_jobs *jobs = run->jobs;
    char folder[PATH_MAX], history[PATH_MAX], checkpoint[PATH_MAX];
    struct us_train_setup setup;
    struct us_model *m = NULL;
    struct us_dataset *d = NULL;
    usi_job_path(jobs, run->claim.id, NULL, folder);
    usi_job_path(jobs, run->claim.id, USI_JOB_HISTORY, history);
    const struct us_trainer_io io = {.checkpoint_dir = folder,
                                     .history_path = history,
                                     .event = on_event,
                                     .arg = run,
                                     .cancel = &run->cancel};
    enum us_status st = us_train_setup_make(&run->order.settings, f, &setup, err);
    if (st == US_OK)
        st = us_train_setup_precision(&setup, jobs->env.backend, err);
    if (st != US_OK)
        goto out;
    (void)snprintf(setup.name, sizeof(setup.name), "%s", run->order.model);
    if (setup.trainer.train.threads == 0)
        setup.trainer.train.threads = jobs->env.threads;
    run->n_targets = us_frames_source(f)->n_channels;
    st = us_train_setup_model(&setup, f, &m, err);
    if (st == US_OK)
        st = us_dataset_open(us_frames_source(f), &setup.dataset, &d, err);
    if (st == US_OK)
        st = us_trainer_run(m, d, jobs->env.backend, &setup.trainer, &io,
                            find_checkpoint(run, checkpoint), err);
    if (st == US_OK)
        st = us_model_save(m, result, err);
out:
    us_dataset_free(d);
    us_model_free(m);
    return st;
}

enum us_status usi_job_train(struct usi_run *run, struct us_err *err)
{
    char folder[PATH_MAX], result[PATH_MAX];
    struct us_frames *f = NULL;
    enum us_status st = US_OK;
    usi_job_path(run->jobs, run->claim.id, NULL, folder);
    usi_job_path(run->jobs, run->claim.id, USI_JOB_RESULT, result);
    if (access(result, F_OK) != 0) { /* else an attempt before this one came so far */
        st = usi_job_open_frames(run->jobs, run->order.dataset, &run->order.settings, &f, err);
        if (st == US_OK)
            st = train(run, f, result, err);
        us_frames_free(f);
    }
    if (st == US_OK)
        st = us_failpoint("job.trained", err);
    if (st == US_OK)
        st = publish(run, result, err);
    us_spool_hide_path(err, folder, "the job");
    return st;
}
