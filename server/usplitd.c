/*
 * usplitd, the daemon: reads its settings, claims its data folder, starts the parts in order,
 * waits for a signal, drains, and stops them in the opposite order.
 *
 * Exit status: 0 stopped as asked, 1 failed, 2 wrong usage.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "us_heap.h"
#include "us_log.h"
#include "us_notify.h"
#include "us_routes.h"
#include "us_spool.h"
#include "us_store_sqlite.h"
#include "us_tls.h"
#include "us_token_cli.h"

#define N_WORKERS      12 /* one computes, others wait for their turn, code replies, read models */
#define MAIN_TICK_MS   100
#define CANCEL_LIMIT_S 5 /* for the replies to what was cancelled */
#define WARN_EXPIRY_S  (14 * 86400)

void us_server_check_models(struct us_server *s)
{
    if (atomic_exchange(&s->check_running, true))
        return;
    if (us_work_submit(s->work, &s->check_task) != US_OK)
        atomic_store(&s->check_running, false);
}

static void check_run(struct us_task *t)
{
    struct us_server *s = (struct us_server *)((char *)t - offsetof(struct us_server, check_task));
    us_registry_check(s->registry, &t->cancel);
    atomic_store(&s->checked, true);
}

static void check_finish(struct us_task *t)
{
    struct us_server *s = (struct us_server *)((char *)t - offsetof(struct us_server, check_task));
    atomic_store(&s->check_running, false);
}

/* One daemon per data folder: two would remove each other's spool files. */
static enum us_status claim_data_dir(struct us_server *s, struct us_err *err)
{
    char path[PATH_MAX];
    const char *dir = s->config.data_dir;
    if (mkdir(dir, 0750) != 0 && errno != EEXIST)
        return us_fail(err, US_E_IO, "data-dir: %s: %s", dir, strerror(errno));
    int n = snprintf(path, sizeof(path), "%s/lock", dir);
    if (n < 0 || n >= (int)sizeof(s->models_dir) - 16)
        return us_fail(err, US_E_ARG, "data-dir: the path is too long");
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
    if (s->lock_fd < 0)
        return us_fail(err, US_E_IO, "data-dir: %s: %s", path, strerror(errno));
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0)
        return us_fail(err, US_E_BUSY, "data-dir: %s is in use by another usplitd", dir);
    (void)snprintf(s->models_dir, sizeof(s->models_dir), "%s/models", dir);
    (void)snprintf(s->spool_dir, sizeof(s->spool_dir), "%s/spool", dir);
    (void)snprintf(s->datasets_dir, sizeof(s->datasets_dir), "%s/datasets", dir);
    (void)snprintf(s->jobs_dir, sizeof(s->jobs_dir), "%s/jobs", dir);
    return us_spool_init(s->spool_dir, err);
}

static enum us_status open_store(struct us_server *s, struct us_err *err)
{
    char path[PATH_MAX];
    (void)snprintf(path, sizeof(path), "%s/usplit.db", s->config.data_dir);
    const struct us_store_sqlite_options opt = {.path = path};
    US_TRY(us_store_sqlite_open(&opt, &s->store, err));
    return us_fsync_dir(s->config.data_dir, err);
}

/* Loopback asks for tokens once there are some; anything that others reach asks always. */
static enum us_auth_mode auth_mode(const struct us_config *c)
{
    struct us_listen l;
    if (c->insecure_no_auth)
        return US_AUTH_NEVER;
    return us_listen_parse(c->listen, &l, NULL) == US_OK && l.loopback ? US_AUTH_IF_TOKENS
                                                                       : US_AUTH_ALWAYS;
}

static enum us_status no_token(const struct us_config *c, struct us_err *err)
{
    return us_fail(err, US_E_ARG,
                   "listen: %.80s can be reached by others, and there is no token yet: make one "
                   "(usplitd token add OWNER --scopes admin --data-dir %.100s), or add "
                   "--insecure-no-auth if everybody on that network may use it",
                   c->listen, c->data_dir);
}

static enum us_status open_auth(struct us_server *s, struct us_err *err)
{
    enum us_status st = us_auth_new(s->store, auth_mode(&s->config), &s->auth, err);
    return st == US_E_ARG ? no_token(&s->config, err) : st;
}

/* What the settings and the data folder say together. look_inside: also in the store, which a
 * start does by itself. */
static enum us_status check_tokens(const struct us_config *c, bool look_inside, struct us_err *err)
{
    char path[PATH_MAX];
    struct us_store *store = NULL;
    struct us_auth *auth = NULL;
    if (auth_mode(c) != US_AUTH_ALWAYS)
        return US_OK;
    (void)snprintf(path, sizeof(path), "%s/usplit.db", c->data_dir);
    if (access(path, F_OK) != 0)
        return no_token(c, err);
    if (!look_inside)
        return US_OK;
    const struct us_store_sqlite_options opt = {.path = path};
    US_TRY(us_store_sqlite_open(&opt, &store, err));
    enum us_status st = us_auth_new(store, US_AUTH_ALWAYS, &auth, err);
    us_auth_free(auth);
    store->ops->close(store);
    return st == US_E_ARG ? no_token(c, err) : st;
}

static enum us_status start_jobs(struct us_server *s, struct us_err *err)
{
    US_TRY(open_store(s, err));
    US_TRY(open_auth(s, err));
    US_TRY(us_backend_choose(s->config.backend, &s->train_backend, err));
    US_TRY(us_datasets_new(s->datasets_dir, &s->datasets, err));
    US_TRY(us_owners_new(s->store, s->datasets, s->registry, &s->owners, err));
    const struct us_jobs_env env = {.dir = s->jobs_dir,
                                    .spool_dir = s->spool_dir,
                                    .store = s->store,
                                    .datasets = s->datasets,
                                    .registry = s->registry,
                                    .predictors = s->predictors,
                                    .work = s->work,
                                    .owners = s->owners,
                                    .backend = s->train_backend,
                                    .max_queued = s->config.max_queued_jobs,
                                    .max_attempts = s->config.max_attempts,
                                    .keep_jobs = s->config.keep_jobs,
                                    .keep_days = s->config.keep_jobs_days,
                                    .threads = (int32_t)s->config.threads};
    US_TRY(us_jobs_new(&env, &s->jobs, err));
    us_datasets_set_users(s->datasets, us_jobs_count_users, s->jobs);
    return US_OK;
}

/* Binds and listens; *ret_port is the real one. */
static enum us_status open_listener(const struct us_config *c, int *ret_fd, uint16_t *ret_port,
                                    struct us_err *err)
{
    struct us_listen l;
    US_TRY(us_listen_parse(c->listen, &l, err));
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(l.port)};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(l.port)};
    struct sockaddr *addr = l.ipv6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
    socklen_t size = l.ipv6 ? sizeof(v6) : sizeof(v4);
    (void)inet_pton(addr->sa_family, l.host, l.ipv6 ? (void *)&v6.sin6_addr : &v4.sin_addr);
    int one = 1;
    int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return us_fail(err, US_E_IO, "listen: %s: %s", c->listen, strerror(errno));
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, addr, size) != 0 || listen(fd, SOMAXCONN) != 0 ||
        getsockname(fd, addr, &size) != 0) {
        int e = errno;
        (void)close(fd);
        return us_fail(err, US_E_IO, "listen: %s: %s", c->listen, strerror(e));
    }
    *ret_port = ntohs(l.ipv6 ? v6.sin6_port : v4.sin_port);
    *ret_fd = fd;
    return US_OK;
}

/* Whole or not at all, so that a script that waits for the file reads a port. */
static enum us_status write_port_file(const char *path, uint16_t port, struct us_err *err)
{
    char tmp[PATH_MAX];
    if (path[0] == '\0')
        return US_OK;
    (void)snprintf(tmp, sizeof(tmp), "%s.new", path);
    FILE *f = fopen(tmp, "we");
    if (f == NULL)
        return us_fail(err, US_E_IO, "port-file: %s: %s", tmp, strerror(errno));
    bool bad = fprintf(f, "%u\n", (unsigned)port) < 0;
    bad |= fclose(f) != 0;
    if (bad || rename(tmp, path) != 0)
        return us_fail(err, US_E_IO, "port-file: %s: %s", path, strerror(errno));
    return US_OK;
}

static enum us_status load_certificate(const struct us_config *c, struct us_err *err)
{
    US_TRY(us_tls_load(c->tls_cert, c->tls_key, err));
    int64_t left_s = us_tls_expires_s() - (int64_t)time(NULL);
    us_log(left_s < WARN_EXPIRY_S ? US_LOG_WARN : US_LOG_INFO,
           "the certificate %s %s %" PRId64 " days", c->tls_cert,
           left_s < 0 ? "has expired since" : "is valid for",
           (left_s < 0 ? -left_s : left_s) / 86400);
    return US_OK;
}

static enum us_status start_http(struct us_server *s, struct us_err *err)
{
    struct us_listen l;
    uint16_t port = 0;
    struct us_http_app app = us_routes_app(s);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    struct us_http_options opt = {
        .n_threads = cores < 2   ? 2
                     : cores > 4 ? 4
                                 : (int)cores,
        .max_connections = s->config.max_connections,
        .header_timeout_s = s->config.header_timeout_s,
        .idle_timeout_s = s->config.idle_timeout_s,
        .body_grace_s = s->config.body_grace_s,
        .min_rate = s->config.min_body_rate,
        .host_names = s->config.host_names,
        .tls = s->config.tls_cert[0] != '\0',
    };
    US_TRY(us_listen_parse(s->config.listen, &l, err));
    if (opt.tls)
        US_TRY(load_certificate(&s->config, err));
    opt.any_host = !l.loopback;
    US_TRY(open_listener(&s->config, &opt.listen_fd, &port, err));
    US_TRY(us_http_start(&opt, &app, &s->http, err));
    us_log(US_LOG_INFO, "usplitd " US_VERSION " listens on %s%s%s:%u (%s), backend %s",
           l.ipv6 ? "[" : "", l.host, l.ipv6 ? "]" : "", (unsigned)port, opt.tls ? "HTTPS" : "HTTP",
           us_backend_ops(s->backend)->name);
    return write_port_file(s->config.port_file, port, err);
}

static void on_job_event(void *arg)
{
    us_http_wake(arg);
}

static enum us_status start(struct us_server *s, struct us_err *err)
{
    const struct us_config *c = &s->config;
    US_TRY(claim_data_dir(s, err));
    US_TRY(us_backend_choose(s->config.backend, &s->backend, err));
    US_TRY(us_registry_new(s->models_dir, c->max_loaded_models, &s->registry, err));
    US_TRY(us_predictors_new(s->backend, c->max_predictors, &s->predictors, err));
    US_TRY(us_work_new(N_WORKERS, c->max_queue, &s->work, err));
    s->check_task = (struct us_task){.run = check_run, .finish = check_finish};
    us_server_check_models(s);
    US_TRY(start_jobs(s, err));
    US_TRY(start_http(s, err));
    us_jobs_on_event(s->jobs, on_job_event, s->http);
    return US_OK;
}

/* The opposite order; copes with whatever start left undone. */
static void stop(struct us_server *s)
{
    us_jobs_join(s->jobs); /* wakes the HTTP layer, and is asked by it */
    us_http_free(s->http);
    us_tls_release();
    us_work_free(s->work);
    us_jobs_free(s->jobs);
    us_owners_free(s->owners);
    us_datasets_free(s->datasets);
    us_auth_free(s->auth);
    if (s->store != NULL)
        s->store->ops->close(s->store);
    us_predictors_free(s->predictors);
    us_registry_free(s->registry);
    if (s->backend != NULL)
        us_backend_ops(s->backend)->free(s->backend);
    if (s->train_backend != NULL)
        us_backend_ops(s->train_backend)->free(s->train_backend);
    if (s->lock_fd >= 0)
        (void)close(s->lock_fd);
}

static void sleep_ms(int64_t ms)
{
    struct timespec ts = {ms / 1000, (ms % 1000) * 1000000L};
    (void)nanosleep(&ts, NULL);
}

/* Waits until no request is active, at most limit_s. */
static bool wait_idle(struct us_server *s, int64_t limit_s)
{
    for (int64_t waited_ms = 0; us_http_active(s->http) > 0; waited_ms += MAIN_TICK_MS) {
        if (waited_ms >= limit_s * 1000)
            return false;
        sleep_ms(MAIN_TICK_MS);
    }
    return true;
}

/* New work is refused at once, running work may finish; what is left then is cancelled and gets
 * its 503. libmicrohttpd must not be stopped while a connection is suspended. */
static void drain(struct us_server *s)
{
    us_notify("STOPPING=1");
    atomic_store(&s->draining, true);
    us_http_quiesce(s->http);
    us_jobs_stop(s->jobs); /* the running training saves a checkpoint and ends */
    us_log(US_LOG_INFO, "stopping: %" PRId64 " requests under way", us_http_active(s->http));
    bool idle = wait_idle(s, s->config.drain_timeout_s);
    us_work_stop(s->work);
    if (!idle)
        (void)wait_idle(s, CANCEL_LIMIT_S);
    us_log(US_LOG_INFO, "stopped%s", idle ? "" : ", some requests were cut off");
}

/* SIGHUP: the certificate is read again; connections stay, and a bad file changes nothing. */
static void reload(struct us_server *s)
{
    struct us_err err = {0};
    us_notify("RELOADING=1");
    if (s->config.tls_cert[0] == '\0')
        us_log(US_LOG_INFO, "reload: there is no certificate to read again");
    else if (load_certificate(&s->config, &err) != US_OK)
        us_log(US_LOG_ERROR, "reload: the old certificate stays: %s", err.msg);
    us_notify("READY=1");
}

/* Until a stop signal (true), or until the store cannot be trusted any more (false). The watchdog
 * is fed only while the HTTP watch thread goes round. */
static bool serve(struct us_server *s, const sigset_t *signals)
{
    int64_t watchdog_ms = us_notify_watchdog_ms(), since_ms = 0;
    uint64_t beat = us_http_heartbeat(s->http);
    us_notify("READY=1");
    for (;;) {
        struct timespec tick = {0, MAIN_TICK_MS * 1000000L};
        int sig = sigtimedwait(signals, NULL, &tick);
        if (sig == SIGTERM || sig == SIGINT)
            return true;
        if (sig == SIGHUP)
            reload(s);
        if (s->store->ops->broken(s->store)) {
            us_log(US_LOG_ERROR, "the store could not bring a write to the disk; a new start reads "
                                 "what is really there");
            return false;
        }
        since_ms += MAIN_TICK_MS;
        if (watchdog_ms == 0 || since_ms < watchdog_ms)
            continue;
        uint64_t now = us_http_heartbeat(s->http);
        if (now != beat)
            us_notify("WATCHDOG=1");
        beat = now;
        since_ms = 0;
    }
}

static int run(struct us_server *s)
{
    struct us_err err = {0};
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL); /* inherited by every thread */
    (void)signal(SIGPIPE, SIG_IGN);
    us_log_init((enum us_log_level)s->config.log_level, (enum us_log_format)s->config.log_format);
    if (start(s, &err) != US_OK) {
        us_log(US_LOG_ERROR, "cannot start: %s", err.msg);
        stop(s);
        return 1;
    }
    bool asked = serve(s, &signals);
    drain(s);
    stop(s);
    return asked ? 0 : 1;
}

int main(int argc, char **argv)
{
    static struct us_server server; /* large, and one per process */
    if (argc > 1 && strcmp(argv[1], "token") == 0)
        return us_token_main(argc - 1, argv + 1);
    us_heap_init();
    struct us_err err = {0};
    enum us_config_action action;
    server.config = us_config_defaults();
    server.lock_fd = -1;
    server.started_s = (int64_t)time(NULL);
    enum us_status st = us_config_args(&server.config, argc, argv, &action, &err);
    if (st == US_OK && (action == US_CONFIG_RUN || action == US_CONFIG_CHECK))
        st = us_config_check(&server.config, &err);
    if (st == US_OK && (action == US_CONFIG_RUN || action == US_CONFIG_CHECK))
        st = check_tokens(&server.config, action == US_CONFIG_CHECK, &err);
    if (st == US_OK && action == US_CONFIG_CHECK && server.config.tls_cert[0] != '\0')
        st = us_tls_check(server.config.tls_cert, server.config.tls_key, &err);
    if (st != US_OK) {
        (void)fprintf(stderr, "usplitd: %s\n", err.msg);
        return 2;
    }
    switch (action) {
    case US_CONFIG_HELP:
        us_config_help(stdout);
        return 0;
    case US_CONFIG_VERSION:
        (void)puts("usplitd " US_VERSION);
        return 0;
    case US_CONFIG_CHECK:
        (void)puts("usplitd: the configuration is fine");
        return 0;
    case US_CONFIG_RUN:
        break;
    }
    return run(&server);
}
