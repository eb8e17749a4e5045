/* GET /metrics: the text format 0.0.4 of Prometheus; see us_telemetry.h. */
#include "us_telemetry.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "us_problem.h"
#include "us_routes.h"
#include "us_tls.h"

/* Seconds of requests: from a reply out of memory to a stack of hours. */
static const double second_bounds[US_METRIC_BUCKETS] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                                                        1,     2.5,  5,     10,   30,  120,  600};
static const double rate_bounds[US_METRIC_BUCKETS] = {
    1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000, 100000, 300000, 1000000, 3000000};

/* ---- counting ------------------------------------------------------------------------------ */

static void observe(struct us_histogram *h, const double *bounds, double value)
{
    int i = 0;
    while (i < US_METRIC_BUCKETS && value > bounds[i])
        i++;
    atomic_fetch_add(&h->bucket[i], 1);
    atomic_fetch_add(&h->sum_millionths, value > 0 ? (uint64_t)(value * 1e6) : 0);
}

void us_telemetry_request(struct us_telemetry *m, int route, int status, double seconds,
                          int64_t in_bytes, int64_t out_bytes)
{
    int at = route + 1; /* place 0: no route */
    int class = status / 100 - 1;
    US_ASSERT(at >= 0 && at < US_METRIC_MAX_ROUTES);
    if (class >= 0 && class < US_METRIC_CLASSES)
        observe(&m->request[at][class], second_bounds, seconds);
    atomic_fetch_add(&m->in_bytes, (uint64_t)in_bytes);
    atomic_fetch_add(&m->out_bytes, (uint64_t)out_bytes);
    if (status == 401)
        atomic_fetch_add(&m->unauthorized, 1);
    if (status == 403)
        atomic_fetch_add(&m->forbidden, 1);
}

void us_telemetry_prediction(struct us_telemetry *m, double queue_s, int64_t patches,
                             double compute_s)
{
    observe(&m->queue_wait, second_bounds, queue_s);
    atomic_fetch_add(&m->patches, (uint64_t)patches);
    if (compute_s > 0)
        observe(&m->rate, rate_bounds, (double)patches / compute_s);
}

/* ---- the page ------------------------------------------------------------------------------ */

struct page {
    FILE *out;
    const char *name;
    struct us_server *server;
};

/* labels: "" or "{..}". */
static void put(struct page *p, const char *labels, double value)
{
    (void)fprintf(p->out, "%s%s %.15g\n", p->name, labels, value);
}

/* labels: without braces, "" = none. */
static void put_histogram(struct page *p, const char *labels, struct us_histogram *h,
                          const double *bounds)
{
    const char *comma = labels[0] != '\0' ? "," : "";
    const char *open = labels[0] != '\0' ? "{" : "", *close = labels[0] != '\0' ? "}" : "";
    uint64_t n = 0;
    for (int i = 0; i <= US_METRIC_BUCKETS; i++) {
        char bound[32] = "+Inf";
        n += atomic_load(&h->bucket[i]);
        if (i < US_METRIC_BUCKETS)
            (void)snprintf(bound, sizeof(bound), "%g", bounds[i]);
        (void)fprintf(p->out, "%s_bucket{%s%sle=\"%s\"} %" PRIu64 "\n", p->name, labels, comma,
                      bound, n);
    }
    (void)fprintf(p->out, "%s_sum%s%s%s %.15g\n", p->name, open, labels, close,
                  (double)atomic_load(&h->sum_millionths) / 1e6);
    (void)fprintf(p->out, "%s_count%s%s%s %" PRIu64 "\n", p->name, open, labels, close, n);
}

static void write_build_info(struct page *p)
{
    put(p, "{version=\"" US_VERSION "\"}", 1);
}

static void write_device_info(struct page *p)
{
    char labels[96];
    (void)snprintf(labels, sizeof(labels), "{backend=\"%s\",role=\"predict\"}",
                   us_backend_ops(p->server->backend)->name);
    put(p, labels, 1);
    (void)snprintf(labels, sizeof(labels), "{backend=\"%s\",role=\"train\"}",
                   us_backend_ops(p->server->train_backend)->name);
    put(p, labels, 1);
}

static void write_ready(struct page *p)
{
    put(p, "", !atomic_load(&p->server->draining) && atomic_load(&p->server->checked) ? 1 : 0);
}

static bool is_used(const struct us_histogram *h)
{
    for (int i = 0; i <= US_METRIC_BUCKETS; i++) {
        if (atomic_load(&h->bucket[i]) != 0)
            return true;
    }
    return false;
}

/* Pairs that never happened are left out. */
static void write_http_duration(struct page *p)
{
    char labels[192];
    US_ASSERT(us_n_routes < US_METRIC_MAX_ROUTES);
    for (int at = 0; at <= us_n_routes; at++) {
        const struct us_route *r = at > 0 ? &us_routes[at - 1] : NULL;
        for (int class = 0; class < US_METRIC_CLASSES; class ++) {
            struct us_histogram *h = &p->server->metrics.request[at][class];
            if (!is_used(h))
                continue;
            (void)snprintf(labels, sizeof(labels), "method=\"%s\",route=\"%s\",code=\"%dxx\"",
                           r != NULL ? r->method : "", r != NULL ? r->pattern : "", class + 1);
            put_histogram(p, labels, h, second_bounds);
        }
    }
}

static void write_http_in(struct page *p)
{
    put(p, "", (double)atomic_load(&p->server->metrics.in_bytes));
}

static void write_http_out(struct page *p)
{
    put(p, "", (double)atomic_load(&p->server->metrics.out_bytes));
}

static void write_http_active(struct page *p)
{
    put(p, "", (double)us_http_active(p->server->http));
}

static void write_refused(struct page *p)
{
    put(p, "{code=\"401\"}", (double)atomic_load(&p->server->metrics.unauthorized));
    put(p, "{code=\"403\"}", (double)atomic_load(&p->server->metrics.forbidden));
}

static void write_queue(struct page *p)
{
    struct us_work_counts n = us_work_counts(p->server->work);
    put(p, "{state=\"waiting\"}", (double)n.waiting);
    put(p, "{state=\"running\"}", (double)n.running);
}

static void write_queue_wait(struct page *p)
{
    put_histogram(p, "", &p->server->metrics.queue_wait, second_bounds);
}

static void write_patches(struct page *p)
{
    put(p, "", (double)atomic_load(&p->server->metrics.patches));
}

static void write_rate(struct page *p)
{
    put_histogram(p, "", &p->server->metrics.rate, rate_bounds);
}

/* A store that cannot be read now leaves its lines out. */
static void write_jobs(struct page *p)
{
    struct us_store *s = p->server->store;
    char labels[64];
    for (int state = 0; state < US_JOB_STATE_COUNT; state++) {
        const struct us_store_filter f = {.states = US_JOB_BIT(state)};
        int64_t n = 0;
        if (s->ops->count(s, &f, &n, NULL) != US_OK)
            continue;
        (void)snprintf(labels, sizeof(labels), "{state=\"%s\"}",
                       us_job_state_name((enum us_job_state)state));
        put(p, labels, (double)n);
    }
}

static void write_models(struct page *p)
{
    struct us_model_info *list = NULL;
    int64_t n = 0, n_of[US_MODEL_BROKEN + 1] = {0};
    char labels[64];
    if (us_registry_list(p->server->registry, &list, &n, NULL) != US_OK)
        return;
    for (int64_t i = 0; i < n; i++) {
        n_of[list[i].state]++;
        us_model_info_release(&list[i]);
    }
    free(list);
    for (int state = 0; state <= US_MODEL_BROKEN; state++) {
        (void)snprintf(labels, sizeof(labels), "{state=\"%s\"}",
                       us_model_state_name((enum us_model_state)state));
        put(p, labels, (double)n_of[state]);
    }
}

static void write_disk(struct page *p)
{
    struct statvfs fs;
    if (statvfs(p->server->config.data_dir, &fs) == 0)
        put(p, "", (double)fs.f_bavail * (double)fs.f_frsize);
}

static void write_certificate(struct page *p)
{
    if (us_tls_expires_s() != 0)
        put(p, "", (double)us_tls_expires_s());
}

static void write_rss(struct page *p)
{
    long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f == NULL)
        return;
    if (fscanf(f, "%*s %lld", &pages) == 1)
        put(p, "", (double)pages * (double)sysconf(_SC_PAGESIZE));
    (void)fclose(f);
}

static void write_fds(struct page *p)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    if (d == NULL)
        return;
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d))
        n += e->d_name[0] != '.';
    (void)closedir(d);
    put(p, "", n - 1); /* less our own */
}

static void write_cpu(struct page *p)
{
    struct rusage u;
    if (getrusage(RUSAGE_SELF, &u) == 0)
        put(p, "",
            (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
}

static void write_start(struct page *p)
{
    put(p, "", (double)p->server->started_s);
}

static const struct {
    const char *type, *name, *help;
    void (*write)(struct page *p);
} metrics[] = {
#define US_METRIC(type, id, name, help) {#type, name, help, write_##id},
#include "us_telemetry.def"
#undef US_METRIC
};

static void metrics_end(struct us_call *c)
{
    char *text = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&text, &n);
    for (size_t i = 0; i < US_COUNT(metrics) && out != NULL; i++) {
        struct page p = {out, metrics[i].name, c->server};
        (void)fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", p.name, metrics[i].help, p.name,
                      metrics[i].type);
        metrics[i].write(&p);
    }
    if (out != NULL && fclose(out) == 0)
        us_http_reply_bytes(c->r, 200, "text/plain; version=0.0.4; charset=utf-8", text, n);
    else
        us_problem(c->r, 503, "no memory for the metrics");
    us_http_header(c->r, "Cache-Control", "no-store");
    free(text);
}

const struct us_route_ops us_route_metrics = {.end = metrics_end};
