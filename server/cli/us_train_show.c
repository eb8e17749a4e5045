/* The live view of a training run; see us_train_show.h. */
#include "us_train_show.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "us_cli.h"

#define REDRAW_S  0.1
#define LINE_S    30.0
#define BAR_WIDTH 20
#define MAX_LINE  400

static double now_s(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

void us_train_show_start(struct us_train_show *v, const struct us_arch *arch, bool quiet)
{
    *v = (struct us_train_show){.quiet = quiet,
                                .terminal = isatty(STDERR_FILENO) == 1,
                                .n_levels = arch->stochastic ? arch->n_levels : 0,
                                .n_targets = arch->target_channels,
                                .told_s = now_s(),
                                .val_psnr = (double)NAN,
                                .best_psnr = (double)NAN};
}

void us_train_show_end(struct us_train_show *v)
{
    if (v->drawn)
        (void)fputs("\r\033[K", stderr);
    (void)fflush(stderr);
    v->drawn = false;
}

static size_t columns(void)
{
    struct winsize ws;
    bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 0;
    return known ? (size_t)ws.ws_col : 80;
}

/* "1:02:03", "2:03" or "-:--". */
static const char *duration(double s, char buf[32])
{
    if (!(s >= 0.0 && s < 3.6e8)) {
        (void)snprintf(buf, 32, "-:--");
        return buf;
    }
    int64_t t = (int64_t)(s + 0.5);
    if (t >= 3600)
        (void)snprintf(buf, 32, "%" PRId64 ":%02d:%02d", t / 3600, (int)(t / 60 % 60),
                       (int)(t % 60));
    else
        (void)snprintf(buf, 32, "%d:%02d", (int)(t / 60), (int)(t % 60));
    return buf;
}

/* " KL 0.12 0.05 .." in nats per item, finest level first; "" for HAE. */
static const char *kl_text(const struct us_train_show *v, const struct us_train_result *r,
                           char *buf, size_t n)
{
    size_t used = 0;
    buf[0] = '\0';
    for (int32_t l = 0; l < v->n_levels && used < n; l++)
        used += (size_t)snprintf(buf + used, n - used, "%s%.3g", l == 0 ? ", KL " : " ",
                                 r->kl_level[l]);
    return buf;
}

static void draw(struct us_train_show *v, const struct us_trainer_event *e)
{
    double now = now_s();
    if (v->drawn && now - v->told_s < REDRAW_S && e->epoch_done < e->epoch_total)
        return;
    char bar[BAR_WIDTH + 1], kl[160], left[32], psnr[48] = "", line[MAX_LINE];
    double share = e->epoch_total > 0 ? (double)e->epoch_done / (double)e->epoch_total : 0.0;
    memset(bar, '.', BAR_WIDTH);
    memset(bar, '#', (size_t)(fmin(1.0, share) * BAR_WIDTH));
    bar[BAR_WIDTH] = '\0';
    if (!isnan(v->val_psnr))
        (void)snprintf(psnr, sizeof(psnr), ", PSNR %.2f (best %.2f)", v->val_psnr, v->best_psnr);
    (void)snprintf(line, sizeof(line),
                   "%s epoch %u, step %" PRId64 ", %.0f/s, %s left, loss %.4f%s%s", bar, e->epoch,
                   e->step, e->patches_per_s, duration(e->seconds_left, left), e->train.loss, psnr,
                   kl_text(v, &e->train, kl, sizeof(kl)));
    size_t width = columns() - 1;
    if (strlen(line) > width)
        line[width] = '\0'; /* a wrapped line could not be drawn over */
    (void)fprintf(stderr, "\r\033[K%s", line);
    (void)fflush(stderr);
    v->drawn = true;
    v->told_s = now;
}

/* A pass over the data before the first step, or validation. */
static void progress(struct us_train_show *v, const struct us_trainer_event *e)
{
    double now = now_s(), every = v->terminal ? REDRAW_S : LINE_S;
    if (now - v->told_s < every || e->pass_total < 1)
        return;
    v->told_s = now;
    v->drawn = v->terminal;
    us_cli_print(stderr, "%s%s: %d %%%s", v->terminal ? "\r\033[K" : "", e->note,
                 (int)(100 * e->pass_done / e->pass_total), v->terminal ? "" : "\n");
    (void)fflush(stderr);
}

static void step(struct us_train_show *v, const struct us_trainer_event *e)
{
    v->last = e->train;
    if (v->terminal) {
        draw(v, e);
        return;
    }
    char kl[160], left[32];
    if (now_s() - v->told_s < LINE_S)
        return;
    v->told_s = now_s();
    us_cli_print(stderr,
                 "epoch %u: step %" PRId64 ", %" PRId64 "/%" PRId64
                 " patches, loss %.4f%s, %.1f patches/s, %s left\n",
                 e->epoch, e->step, e->epoch_done, e->epoch_total, e->train.loss,
                 kl_text(v, &e->train, kl, sizeof(kl)), e->patches_per_s,
                 duration(e->seconds_left, left));
}

static void epoch(struct us_train_show *v, const struct us_trainer_event *e)
{
    char kl[160], left[32], psnr[64] = "no validation";
    v->val_psnr = e->val_psnr;
    if (e->best)
        v->best_psnr = e->val_psnr;
    us_train_show_end(v);
    v->told_s = now_s();
    if (!isnan(e->val_psnr))
        (void)snprintf(psnr, sizeof(psnr), "val PSNR %.2f%s", e->val_psnr,
                       e->best ? " (best)" : "");
    us_cli_print(stderr,
                 "epoch %u: step %" PRId64 ", loss %.4f%s, %s, lr %.3g, %.1f patches/s, %s left\n",
                 e->epoch, e->step, e->train.loss, kl_text(v, &e->train, kl, sizeof(kl)), psnr,
                 e->lr, e->patches_per_s, duration(e->seconds_left, left));
}

void us_train_show_event(void *arg, const struct us_trainer_event *e)
{
    struct us_train_show *v = arg;
    if (v->quiet)
        return;
    switch (e->kind) {
    case US_TRAINER_STEP:
        step(v, e);
        break;
    case US_TRAINER_EPOCH:
        epoch(v, e);
        break;
    case US_TRAINER_NOTE:
        us_train_show_end(v);
        us_cli_print(stderr, "note: %s\n", e->note);
        break;
    case US_TRAINER_PROGRESS:
        progress(v, e);
        break;
    case US_TRAINER_CHECKPOINT:
        break;
    }
}
