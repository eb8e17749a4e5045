/* What is told of jobs: JSON for clients, events from the training, server-sent events; see
 * us_jobs.h. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "us_failpoint.h"
#include "us_jobs_int.h"
#include "us_log.h"

#define STEP_EVERY_NS 500000000LL

static int64_t now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* JSON has no NaN: null. */
static json_t *real(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *reals(const double *x, int32_t n)
{
    json_t *a = json_array();
    for (int32_t i = 0; i < n; i++)
        (void)json_array_append_new(a, real(x[i]));
    return a;
}

static json_t *event_json(const struct usi_run *run, const struct us_trainer_event *e)
{
    json_t *d =
        json_pack("{s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "epoch", (json_int_t)e->epoch, "step",
                  (json_int_t)e->step, "epoch_done", (json_int_t)e->epoch_done, "epoch_total",
                  (json_int_t)e->epoch_total, "lr", real(e->lr), "patches_per_s",
                  real(e->patches_per_s), "seconds_left", real(e->seconds_left));
    if (e->kind == US_TRAINER_STEP || e->kind == US_TRAINER_EPOCH) {
        (void)json_object_set_new(d, "loss", real(e->train.loss));
        (void)json_object_set_new(d, "kl", real(e->train.kl));
    }
    if (e->kind == US_TRAINER_EPOCH) {
        (void)json_object_set_new(d, "val_loss", real(e->val_loss));
        (void)json_object_set_new(d, "val_psnr", real(e->val_psnr));
        (void)json_object_set_new(d, "val_psnr_channel",
                                  reals(e->val_psnr_channel, run->n_targets));
        (void)json_object_set_new(d, "best", json_boolean(e->best));
    }
    if (e->kind == US_TRAINER_NOTE && e->note != NULL)
        (void)json_object_set_new(d, "note", json_string(e->note));
    if (e->kind == US_TRAINER_PROGRESS) {
        (void)json_object_set_new(d, "pass", json_string(e->note));
        (void)json_object_set_new(d, "pass_done", json_integer((json_int_t)e->pass_done));
        (void)json_object_set_new(d, "pass_total", json_integer((json_int_t)e->pass_total));
    }
    return d;
}

static void remember(struct usi_progress *p, const struct us_trainer_event *e)
{
    struct us_train_result train = p->last.train; /* checkpoints and notes carry none */
    if (e->kind == US_TRAINER_STEP || e->kind == US_TRAINER_EPOCH)
        train = e->train;
    p->last = *e;
    p->last.train = train;
    p->last.note = NULL; /* borrowed */
    p->any = true;
    if (e->kind != US_TRAINER_EPOCH)
        return;
    p->best_psnr = !p->validated || e->best ? e->val_psnr : p->best_psnr;
    p->validated = true;
    p->val_loss = e->val_loss;
    p->val_psnr = e->val_psnr;
    memcpy(p->val_psnr_channel, e->val_psnr_channel, sizeof(p->val_psnr_channel));
}

static json_t *progress_json(const struct us_trainer_event *e)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "epoch", (json_int_t)e->epoch, "step",
                     (json_int_t)e->step, "epoch_done", (json_int_t)e->epoch_done, "epoch_total",
                     (json_int_t)e->epoch_total, "skipped_steps", (json_int_t)e->n_skipped,
                     "patches_per_s", real(e->patches_per_s), "seconds_left",
                     real(e->seconds_left));
}

static json_t *metrics_json(const struct usi_run *run)
{
    const struct usi_progress *p = &run->progress;
    json_t *d = json_pack("{s:o, s:o, s:o}", "loss", real(p->last.train.loss), "kl",
                          real(p->last.train.kl), "lr", real(p->last.lr));
    if (p->validated) {
        (void)json_object_set_new(d, "val_loss", real(p->val_loss));
        (void)json_object_set_new(d, "val_psnr", real(p->val_psnr));
        (void)json_object_set_new(d, "val_psnr_channel",
                                  reals(p->val_psnr_channel, run->n_targets));
        (void)json_object_set_new(d, "best_val_psnr", real(p->best_psnr));
    }
    return d;
}

static char *dump(json_t *doc)
{
    char *text = doc != NULL ? json_dumps(doc, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(doc);
    return text;
}

char *usi_run_progress(const struct usi_run *run)
{
    if (!run->progress.any)
        return NULL;
    return dump(json_pack("{s:o, s:o}", "progress", progress_json(&run->progress.last), "metrics",
                          metrics_json(run)));
}

/* One event and the progress into the store; a heartbeat by the way. What it cannot take now is
 * left out, the training goes on. */
static void tell(struct usi_run *run, const char *kind, const struct us_trainer_event *e)
{
    struct us_jobs *jobs = run->jobs;
    struct us_err err = {0};
    enum us_job_wish wish = US_WISH_NONE;
    char *data = dump(event_json(run, e)), *progress = usi_run_progress(run);
    const bool fits = data != NULL && strlen(data) + 64 < US_MAX_EVENT_BYTES;
    const struct us_store_beat beat = {.lease_ms = USI_JOB_LEASE_MS,
                                       .progress = progress,
                                       .advanced = e->kind == US_TRAINER_CHECKPOINT,
                                       .kind = fits ? kind : NULL,
                                       .data = data};
    enum us_status st = usi_ops(jobs)->heartbeat(jobs->env.store, &run->claim, &beat, &wish, &err);
    free(data);
    free(progress);
    if (st == US_E_CANCELLED || wish != US_WISH_NONE)
        atomic_store(&run->cancel, true);
    else if (st != US_OK && !run->warned)
        us_log(US_LOG_WARN, "job %s: its progress is not on disk: %s", run->claim.id, err.msg);
    run->warned |= st != US_OK;
}

void usi_run_on_trainer(struct usi_run *run, const struct us_trainer_event *e)
{
    static const char *const kinds[] = {[US_TRAINER_STEP] = "step",
                                        [US_TRAINER_EPOCH] = "epoch",
                                        [US_TRAINER_CHECKPOINT] = "checkpoint",
                                        [US_TRAINER_NOTE] = "note",
                                        [US_TRAINER_PROGRESS] = "progress"};
    int64_t *told_ns = e->kind == US_TRAINER_STEP       ? &run->step_told_ns
                       : e->kind == US_TRAINER_PROGRESS ? &run->pass_told_ns
                                                        : NULL;
    int64_t now = now_ns();
    remember(&run->progress, e);
    if (told_ns != NULL && now - *told_ns < STEP_EVERY_NS)
        return;
    if (told_ns != NULL)
        *told_ns = now;
    if (e->kind == US_TRAINER_CHECKPOINT)
        (void)!us_failpoint("job.checkpoint", NULL);
    tell(run, kinds[e->kind], e);
}

/* ---- for clients --------------------------------------------------------------------------- */

static json_t *time_json(int64_t ms)
{
    char text[40];
    if (ms <= 0)
        return json_null();
    time_t s = (time_t)(ms / 1000);
    struct tm tm;
    (void)gmtime_r(&s, &tm);
    size_t n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(text + n, sizeof(text) - n, ".%03dZ", (int)(ms % 1000));
    return json_string(text);
}

/* What an object in a text of ours says goes beside what is there. */
static void merge(json_t *d, const char *text)
{
    json_t *more = text != NULL ? json_loads(text, 0, NULL) : NULL;
    if (more != NULL)
        (void)json_object_update(d, more);
    json_decref(more);
}

static json_t *config_of(const char *spec)
{
    json_t *doc = spec != NULL ? json_loads(spec, 0, NULL) : NULL;
    json_t *config = json_incref(json_object_get(doc, "config"));
    json_decref(doc);
    return config != NULL ? config : json_object();
}

json_t *usi_job_json(const struct us_store_job *j)
{
    json_t *d = json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:I, s:o}", "id", j->id, "type",
                          j->type, "state", us_job_state_name(j->state), "dataset", j->dataset,
                          "model", j->model, "created", time_json(j->created_ms), "started",
                          time_json(j->started_ms), "ended", time_json(j->ended_ms), "attempts",
                          (json_int_t)j->attempts, "config", config_of(j->spec));
    if (d == NULL)
        return NULL;
    if (j->owner[0] != '\0')
        (void)json_object_set_new(d, "owner", json_string(j->owner));
    if (j->reason[0] != '\0')
        (void)json_object_set_new(d, "reason", json_string(j->reason));
    if (j->state == US_JOB_QUEUED)
        (void)json_object_set_new(d, "queue_position", json_integer(j->position));
    merge(d, j->progress);
    merge(d, j->result);
    json_t *progress = json_object_get(d, "progress");
    if (progress != NULL && j->state != US_JOB_RUNNING)
        (void)json_object_set_new(progress, "seconds_left", json_null());
    return d;
}

struct page {
    char *buf;
    size_t used, max;
};

static bool add_event(void *arg, const struct us_store_event *e)
{
    struct page *p = arg;
    char text[US_MAX_EVENT_BYTES];
    int n = snprintf(text, sizeof(text), "id: %" PRIu64 "\nevent: %s\ndata: %s\n\n", e->id, e->kind,
                     e->data);
    if (n < 0 || (size_t)n >= sizeof(text))
        return true; /* one that would never fit: the numbers tell that it is missing */
    if (p->used + (size_t)n > p->max)
        return false;
    memcpy(p->buf + p->used, text, (size_t)n);
    p->used += (size_t)n;
    return true;
}

int64_t us_jobs_events(struct us_jobs *jobs, const char *id, uint64_t *after, char *buf, size_t max)
{
    struct page p = {.buf = buf, .max = max};
    bool ended = false;
    if (usi_ops(jobs)->events(jobs->env.store, id, after, add_event, &p, &ended, NULL) != US_OK)
        return -1;
    return p.used == 0 && ended ? -1 : (int64_t)p.used;
}
