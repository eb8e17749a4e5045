/* The finder of a watcher, its start and its end; see us_watch.h. */
#include "us_watch.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "us_interrupt.h"
#include "us_watch_int.h"

#define MAX_PARALLEL 16
#define TICK_S       0.5  /* a signal may have gone to another thread */
#define LOAD         20.0 /* at most one part in so many of the time goes into reading the folder */

/* A record holds for the file as it is now. */
static bool is_settled(const struct us_watch *w, const struct us_watch_file *f,
                       const struct us_watch_id *id)
{
    char path[4096 + 16];
    struct stat st;
    if (f->said.what == US_WATCH_UNSAID || f->said.what == US_WATCH_IS_ARRIVED ||
        !us_watch_id_same(&f->said.id, id))
        return false;
    if (f->said.what == US_WATCH_IS_FAILED)
        return !w->cfg->retry_failed || f->state != US_WATCH_GONE;
    if (!w->cfg->redo_missing)
        return true;
    char *name = us_watch_result_name(f->path);
    (void)snprintf(path, sizeof(path), "%s/%s", w->place.out, name == NULL ? "" : name);
    free(name);
    return stat(path, &st) == 0;
}

/* A file of the folder, as it is now. */
static void look_at(struct us_watch *w, struct us_watch_file *f, const struct us_watch_id *id)
{
    if (f->state == US_WATCH_BUSY || f->state == US_WATCH_WAITING || f->state == US_WATCH_LEFT)
        return; /* whoever sends it looks again */
    bool same = us_watch_id_same(&f->id, id);
    if (f->state == US_WATCH_SETTLING && f->id.size >= 0 && same)
        return;
    if (is_settled(w, f, id)) {
        f->state = f->said.what == US_WATCH_IS_DONE ? US_WATCH_DONE : US_WATCH_FAILED;
        f->id = f->said.id;
        return;
    }
    f->state = US_WATCH_SETTLING;
    f->id = *id;
    f->since_s = us_watch_now();
    f->attempts = 0;
    f->not_before_s = 0;
}

static enum us_status on_found(void *arg, const char *path, const struct us_watch_id *id)
{
    struct us_watch *w = arg;
    struct us_watch_file *f = NULL;
    (void)pthread_mutex_lock(&w->mutex);
    enum us_status st = us_watch_table_at(&w->table, path, &f);
    if (st == US_OK)
        look_at(w, f, id);
    (void)pthread_mutex_unlock(&w->mutex);
    return st;
}

/* A file that is due: is it what it was when its time began? */
static void check_settled(struct us_watch *w, struct us_watch_file *f, double now)
{
    struct stat st;
    char *path = NULL;
    if (asprintf(&path, "%s/%s", w->place.dir, f->path) < 0)
        return;
    if (stat(path, &st) != 0) {
        f->state = US_WATCH_GONE;
    } else {
        struct us_watch_id id = us_watch_id_of(&st);
        bool same = us_watch_id_same(&id, &f->id);
        f->state = same ? US_WATCH_WAITING : US_WATCH_SETTLING;
        f->since_s = now;
        f->id = id;
    }
    free(path);
}

/* Moves what has settled on. *ret_s: when the next file is due. Whether anything is open. */
static bool settle(struct us_watch *w, double *ret_s)
{
    bool open = false;
    double now = us_watch_now();
    (void)pthread_mutex_lock(&w->mutex);
    for (size_t i = 0; i < w->table.n; i++) {
        struct us_watch_file *f = w->table.all[i];
        if (f->state == US_WATCH_SETTLING && f->since_s + w->cfg->settle_s <= now)
            check_settled(w, f, now);
        if (f->state == US_WATCH_SETTLING)
            *ret_s = fmin(*ret_s, f->since_s + w->cfg->settle_s);
        open = open || f->state == US_WATCH_SETTLING || f->state == US_WATCH_WAITING ||
               f->state == US_WATCH_BUSY;
    }
    (void)pthread_cond_broadcast(&w->work);
    (void)pthread_mutex_unlock(&w->mutex);
    return open;
}

/* One pass over the folder. Once, a folder that cannot be read is an error; else it may come back.
 */
static enum us_status scan(struct us_watch *w, struct us_err *err)
{
    struct stat out;
    struct us_err why = {0};
    struct us_watch_scan s = {.dir = w->place.dir,
                              .match = w->cfg->match,
                              .recursive = w->cfg->recursive,
                              .inotify_fd = w->inotify_fd,
                              .found = on_found,
                              .arg = w};
    if (stat(w->place.out, &out) == 0) {
        s.out_dev = out.st_dev;
        s.out_ino = out.st_ino;
    }
    enum us_status st = us_watch_scan(&s, &why);
    if (st == US_E_IO && !w->cfg->once) {
        const struct us_watch_event e = {.event = "unreadable", .reason = why.msg};
        if (!w->complained)
            us_watch_say(w->cfg->json, &e);
        w->complained = true;
        return US_OK;
    }
    w->complained = false;
    if (st != US_OK)
        return us_fail(err, st, "%s",
                       why.msg[0] != '\0' ? why.msg : "no memory for the names of the files");
    return US_OK;
}

/* Sleeps until when_s, a worker, a signal, or news of the folder: then true. */
static bool wait_for_news(struct us_watch *w, double when_s)
{
    struct pollfd p[] = {{.fd = w->wake_fd, .events = POLLIN},
                         {.fd = w->inotify_fd, .events = POLLIN}};
    double s = fmin(fmax(when_s - us_watch_now(), 0), TICK_S);
    uint64_t n = 0;
    (void)poll(p, US_COUNT(p), (int)ceil(s * 1000));
    (void)!read(w->wake_fd, &n, sizeof(n));
    return us_watch_inotify_drain(w->inotify_fd);
}

static enum us_status find_files(struct us_watch *w, struct us_err *err)
{
    double scan_s = 0, earliest_s = 0; /* when the folder is read next, and not before */
    for (bool first = true; !atomic_load(&w->stop); first = false) {
        double now = us_watch_now();
        if (atomic_load(w->interrupt))
            return us_fail(err, US_E_CANCELLED, "interrupted");
        if (now >= scan_s && (first || !w->cfg->once)) {
            US_TRY(scan(w, err));
            double took = us_watch_now() - now;
            earliest_s = us_watch_now() + fmax(0.2, LOAD * took);
            scan_s = fmax(us_watch_now() + w->cfg->rescan_s, earliest_s);
        }
        double until = w->cfg->once ? now + TICK_S : scan_s;
        if (!settle(w, &until) && w->cfg->once)
            return US_OK;
        if (wait_for_news(w, until))
            scan_s = fmin(scan_s, fmax(earliest_s, us_watch_now()));
    }
    return US_OK;
}

/* Threads that leave signals to the main one, which polls. */
static int start_workers(struct us_watch *w, pthread_t *threads)
{
    sigset_t all, old;
    int n = 0;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    while (n < w->cfg->parallel && n < MAX_PARALLEL &&
           pthread_create(&threads[n], NULL, us_watch_worker, w) == 0)
        n++;
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    return n;
}

static enum us_status run_threads(struct us_watch *w, struct us_err *err)
{
    pthread_t threads[MAX_PARALLEL];
    int n = start_workers(w, threads);
    enum us_status st =
        n > 0 ? find_files(w, err) : us_fail(err, US_E_NOMEM, "no thread can be started");
    (void)pthread_mutex_lock(&w->mutex);
    atomic_store(&w->stop, true);
    (void)pthread_cond_broadcast(&w->work);
    (void)pthread_mutex_unlock(&w->mutex);
    while (n > 0)
        (void)pthread_join(threads[--n], NULL);
    if (w->broken) {
        if (err != NULL)
            *err = w->err;
        return w->err.status;
    }
    return st;
}

/* What was under way when the program last ended. */
static enum us_status finish_arrived(struct us_watch *w, struct us_err *err)
{
    for (size_t i = 0; i < w->table.n; i++) {
        struct us_watch_file *f = w->table.all[i];
        bool done = false;
        if (w->cfg->retry_failed && f->state == US_WATCH_FAILED)
            f->state = US_WATCH_GONE; /* new when it is found */
        if (f->said.what != US_WATCH_IS_ARRIVED)
            continue;
        US_TRY(us_watch_finish(&w->place, f, &done, err));
        if (!done)
            continue;
        f->state = US_WATCH_DONE;
        w->totals.n_done++;
        const struct us_watch_event e = {.event = "done", .file = f->path};
        us_watch_say(w->cfg->json, &e);
    }
    us_watch_sweep(&w->place);
    return US_OK;
}

/* Files that are known as failed and are still what they were count in every run. */
static void count_failed(struct us_watch *w)
{
    w->totals.n_failed = 0;
    for (size_t i = 0; i < w->table.n; i++) {
        struct stat st;
        char *path = NULL;
        if (w->table.all[i]->state != US_WATCH_FAILED ||
            asprintf(&path, "%s/%s", w->place.dir, w->table.all[i]->path) < 0)
            continue;
        w->totals.n_failed += stat(path, &st) == 0;
        free(path);
    }
}

static enum us_status run(struct us_watch *w, struct us_err *err)
{
    char *dir = realpath(w->place.dir, NULL);
    if (dir == NULL)
        return us_fail(err, US_E_NOT_FOUND, "%s: %s", w->place.dir, strerror(errno));
    enum us_status st = us_watch_journal_open(w->place.out, dir, w->cfg->request, &w->table,
                                              &w->place.journal, err);
    free(dir);
    if (st == US_OK)
        st = finish_arrived(w, err);
    if (st == US_OK)
        st = us_http_client_start(err);
    w->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    w->inotify_fd = w->cfg->once ? -1 : us_watch_inotify();
    if (st == US_OK && w->wake_fd < 0)
        st = us_fail(err, US_E_IO, "no event descriptor: %s", strerror(errno));
    if (st == US_OK)
        st = run_threads(w, err);
    if (w->wake_fd >= 0)
        (void)close(w->wake_fd);
    if (w->inotify_fd >= 0)
        (void)close(w->inotify_fd);
    return st;
}

enum us_status us_watch_run(const struct us_watch_config *c, struct us_watch_totals *ret,
                            struct us_err *err)
{
    struct us_watch w = {.cfg = c, .place = c->place, .interrupt = us_interrupt_install()};
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&w.mutex, NULL);
    (void)pthread_cond_init(&w.work, &attr);
    (void)pthread_condattr_destroy(&attr);
    enum us_status st = run(&w, err);
    count_failed(&w);
    *ret = w.totals;
    us_watch_journal_close(w.place.journal);
    us_watch_table_release(&w.table);
    (void)pthread_cond_destroy(&w.work);
    (void)pthread_mutex_destroy(&w.mutex);
    return st;
}
