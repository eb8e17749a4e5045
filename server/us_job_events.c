/* What a job tells while it runs: server-sent events in a bounded ring; see us_jobs.h. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "us_jobs_int.h"

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

/* Takes data over. An event that does not fit or finds no memory is left out: the job goes on. */
static void push(struct us_jobs *jobs, struct us_job *j, const char *kind, json_t *data)
{
    char *json = data != NULL ? json_dumps(data, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    char *text = NULL;
    json_decref(data);
    uint64_t id = j->next_event;
    int n = json != NULL
                ? asprintf(&text, "id: %" PRIu64 "\nevent: %s\ndata: %s\n\n", id, kind, json)
                : -1;
    free(json);
    if (n < 0)
        return;
    if (n >= US_MAX_EVENT_BYTES) {
        free(text);
        return;
    }
    free(j->ring[id % USI_RING].text);
    j->ring[id % USI_RING].id = id;
    j->ring[id % USI_RING].text = text;
    j->next_event = id + 1;
    if (jobs->on_event != NULL)
        jobs->on_event(jobs->on_event_arg);
}

void usi_job_tell_state(struct us_jobs *jobs, struct us_job *j)
{
    json_t *data = json_pack("{s:s, s:s}", "id", j->id, "state", usi_job_state_name(j->state));
    if (j->reason[0] != '\0')
        (void)json_object_set_new(data, "reason", json_string(j->reason));
    push(jobs, j, "state", data);
}

static json_t *event_json(const struct us_job *j, const struct us_trainer_event *e)
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
        (void)json_object_set_new(d, "val_psnr_channel", reals(e->val_psnr_channel, j->n_targets));
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

static void remember(struct us_job *j, const struct us_trainer_event *e)
{
    struct usi_progress *p = &j->progress;
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

void usi_job_on_trainer(struct us_jobs *jobs, struct us_job *j, const struct us_trainer_event *e)
{
    static const char *const kinds[] = {[US_TRAINER_STEP] = "step",
                                        [US_TRAINER_EPOCH] = "epoch",
                                        [US_TRAINER_CHECKPOINT] = "checkpoint",
                                        [US_TRAINER_NOTE] = "note",
                                        [US_TRAINER_PROGRESS] = "progress"};
    int64_t now = now_ns();
    (void)pthread_mutex_lock(&jobs->lock);
    remember(j, e);
    bool frequent = e->kind == US_TRAINER_STEP || e->kind == US_TRAINER_PROGRESS;
    bool told = !frequent || now - j->step_told_ns >= STEP_EVERY_NS;
    if (told && frequent)
        j->step_told_ns = now;
    if (told)
        push(jobs, j, kinds[e->kind], event_json(j, e));
    (void)pthread_mutex_unlock(&jobs->lock);
}

static json_t *progress_json(const struct us_job *j)
{
    const struct us_trainer_event *e = &j->progress.last;
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:o, s:o}", "epoch", (json_int_t)e->epoch, "step",
                     (json_int_t)e->step, "epoch_done", (json_int_t)e->epoch_done, "epoch_total",
                     (json_int_t)e->epoch_total, "skipped_steps", (json_int_t)e->n_skipped,
                     "patches_per_s", real(e->patches_per_s), "seconds_left",
                     j->state == USI_JOB_RUNNING ? real(e->seconds_left) : json_null());
}

static json_t *metrics_json(const struct us_job *j)
{
    const struct usi_progress *p = &j->progress;
    json_t *d = json_pack("{s:o, s:o, s:o}", "loss", real(p->last.train.loss), "kl",
                          real(p->last.train.kl), "lr", real(p->last.lr));
    if (p->validated) {
        (void)json_object_set_new(d, "val_loss", real(p->val_loss));
        (void)json_object_set_new(d, "val_psnr", real(p->val_psnr));
        (void)json_object_set_new(d, "val_psnr_channel", reals(p->val_psnr_channel, j->n_targets));
        (void)json_object_set_new(d, "best_val_psnr", real(p->best_psnr));
    }
    return d;
}

static json_t *time_json(double t)
{
    char text[40];
    if (t <= 0)
        return json_null();
    time_t s = (time_t)t;
    struct tm tm;
    (void)gmtime_r(&s, &tm);
    size_t n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(text + n, sizeof(text) - n, ".%03dZ", (int)((t - (double)s) * 1e3));
    return json_string(text);
}

json_t *usi_job_json(const struct us_jobs *jobs, const struct us_job *j)
{
    if (j->frozen != NULL)
        return json_deep_copy(j->frozen);
    json_t *d = json_pack("{s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:O}", "id", j->id, "type",
                          "train", "state", usi_job_state_name(j->state), "dataset", j->dataset,
                          "model", j->model, "created", time_json(j->created), "started",
                          time_json(j->started), "ended", time_json(j->ended), "config", j->config);
    if (d == NULL)
        return NULL;
    if (j->reason[0] != '\0')
        (void)json_object_set_new(d, "reason", json_string(j->reason));
    if (j->state == USI_JOB_QUEUED)
        (void)json_object_set_new(d, "queue_position", json_integer(usi_jobs_queued(jobs, j) + 1));
    if (j->progress.any) {
        (void)json_object_set_new(d, "progress", progress_json(j));
        (void)json_object_set_new(d, "metrics", metrics_json(j));
    }
    if (j->model_sha256[0] != '\0')
        (void)json_object_set_new(d, "model_sha256", json_string(j->model_sha256));
    return d;
}

int64_t us_jobs_events(struct us_jobs *jobs, const char *id, uint64_t *after, char *buf, size_t max)
{
    size_t used = 0;
    (void)pthread_mutex_lock(&jobs->lock);
    const struct us_job *j = usi_job_find(jobs, id);
    uint64_t next = j != NULL ? j->next_event : 1;
    uint64_t e = *after < next ? *after + 1 : 1;
    if (e + USI_RING < next)
        e = next - USI_RING;
    for (; j != NULL && e < next; e++) {
        const char *text = j->ring[e % USI_RING].text;
        size_t n = text != NULL ? strlen(text) : 0;
        if (used + n > max)
            break;
        memcpy(buf + used, text != NULL ? text : "", n);
        used += n;
        *after = e;
    }
    bool over = j == NULL || (usi_job_ended(j) && e >= next);
    (void)pthread_mutex_unlock(&jobs->lock);
    return used == 0 && over ? -1 : (int64_t)used;
}
