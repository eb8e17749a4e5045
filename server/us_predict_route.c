/*
 * POST /v1/models/{m}/predict: an image in, the split image out.
 *
 * The head decides all it can (405 to 422 before any body byte). The body streams into a spool
 * file, its coding undone on the way. Then the request is parked and a worker predicts with the
 * same us_predict_file that `usplit predict` uses, so that both give the same bytes; coding the
 * reply overlaps with the next prediction. A client that hangs up cancels within one patch.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <nettle/sha2.h>

#include "us_body.h"
#include "us_predict_query.h"
#include "us_problem.h"
#include "us_routes.h"

#define ENCODE_LEVEL 1 /* network speed matters more than the last percent */
#define ENCODE_PIECE (256 << 10)

struct prediction {
    struct us_task task; /* first: the queue hands it back */
    struct us_call *call;
    struct us_body body;
    struct us_predict_query query;
    struct us_predict_turns turns;
    bool npy;
    enum us_coding coding; /* of the reply */
    int64_t submit_ns, begin_ns;
    char result_path[PATH_MAX + 8]; /* "" = none yet */
    struct us_spool_file coded;     /* the reply after its coding, if any */
    /* What the reply's headers tell. */
    struct us_predict_config config;
    struct us_predict_file_report report;
    char model_sha256[65];
    double prepare_s, encode_s;
    char etag[2 * SHA256_DIGEST_SIZE + 1];
};

static int64_t now_ns(void)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* The server's settings under the model's recommendation under the request's parameters. */
static void settle_config(const struct us_server *s, const struct us_model *m,
                          const struct prediction *p, struct us_predict_config *config,
                          struct us_predict_file_options *file)
{
    *config = us_predict_defaults(m);
    *file = us_predict_file_defaults();
    config->precision = (enum us_precision)s->config.precision;
    config->threads = (int32_t)s->config.threads;
    us_predict_query_apply(&p->query, config, file);
    file->npy = p->npy;
    file->max_pixels = s->config.max_pixels;
    file->cancel = &p->task.cancel;
    file->turns = &p->turns;
}

/* Model, predictor, prediction: everything that holds the compute turn. */
static enum us_status compute(struct prediction *p, struct us_err *err)
{
    struct us_server *s = p->call->server;
    struct us_model_ref *ref = NULL;
    struct us_predictor_lease lease = {0};
    struct us_predict_file_options file;
    US_TRY(us_registry_acquire(s->registry, p->call->model, &ref, err));
    const struct us_model *m = us_model_ref_get(ref);
    settle_config(s, m, p, &p->config, &file);
    (void)snprintf(p->model_sha256, sizeof(p->model_sha256), "%s", m->sha256);
    enum us_status st = us_predictors_acquire(s->predictors, ref, &p->config, &lease, err);
    p->prepare_s = (double)(now_ns() - p->begin_ns) / 1e9;
    if (st == US_OK) {
        (void)snprintf(p->result_path, sizeof(p->result_path), "%s.out", p->body.file.path);
        st = us_predict_file(lease.predictor, m, p->body.file.path, p->result_path, &p->config,
                             &file, &p->report, err);
        us_spool_hide_path(err, p->result_path, "the result");
        us_spool_hide_path(err, p->body.file.path, "the image");
    }
    us_predictors_give_back(s->predictors, &lease);
    us_model_ref_release(ref);
    return st;
}

/* Where the reply's bytes go while its file is read: to the coded file, if one is wanted, and
 * always into the hash of what is sent. */
struct packer {
    struct sha256_ctx hash;
    struct us_spool_file *out; /* NULL: the result file itself is sent */
    struct us_err *err;
};

static enum us_status pack(void *arg, const void *bytes, size_t n)
{
    struct packer *k = arg;
    sha256_update(&k->hash, n, bytes);
    return k->out != NULL ? us_spool_write(k->out, bytes, n, k->err) : US_OK;
}

static enum us_status pack_all(struct packer *k, struct us_encoder *enc, int fd,
                               const atomic_bool *cancel, struct us_err *err)
{
    enum us_status st = US_OK;
    char *piece = malloc(ENCODE_PIECE);
    if (piece == NULL)
        return us_fail(err, US_E_NOMEM, "no memory to code the reply");
    while (st == US_OK) {
        ssize_t n = read(fd, piece, ENCODE_PIECE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            st = us_fail(err, US_E_IO, "cannot read the result: %s", strerror(errno));
        else if (atomic_load(cancel))
            st = us_fail(err, US_E_CANCELLED, "cancelled");
        else if (n == 0)
            break;
        else
            st = enc != NULL ? us_encoder_feed(enc, piece, (size_t)n) : pack(k, piece, (size_t)n);
    }
    if (st == US_OK && enc != NULL)
        st = us_encoder_end(enc);
    free(piece);
    return st;
}

static void digest_hex(struct sha256_ctx *hash, char *hex)
{
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(hash, sizeof(digest), digest);
    for (size_t i = 0; i < sizeof(digest); i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

/* Opens what will be sent (*ret_fd, *ret_bytes) and hashes it. */
static enum us_status encode(struct prediction *p, int *ret_fd, int64_t *ret_bytes,
                             struct us_err *err)
{
    bool coded = p->coding != US_CODING_IDENTITY;
    struct packer k = {.out = coded ? &p->coded : NULL, .err = err};
    struct us_encoder *enc = NULL;
    enum us_status st = US_OK;
    sha256_init(&k.hash);
    int fd = open(p->result_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return us_fail(err, US_E_IO, "cannot read the result: %s", strerror(errno));
    if (coded) {
        st = us_spool_create(p->call->server->spool_dir, &p->coded, err);
        if (st == US_OK)
            st = us_encoder_new(p->coding, ENCODE_LEVEL, pack, &k, &enc);
    }
    if (st == US_OK)
        st = pack_all(&k, enc, fd, &p->task.cancel, err);
    us_encoder_free(enc);
    if (st == US_OK && coded) { /* send the coded file: its descriptor passes over */
        (void)close(fd);
        fd = p->coded.fd;
        p->coded.fd = -1;
    }
    off_t end = st == US_OK ? lseek(fd, 0, SEEK_END) : -1;
    if (st == US_OK && end < 0)
        st = us_fail(err, US_E_IO, "cannot measure the result: %s", strerror(errno));
    if (st != US_OK) {
        (void)close(fd);
        if (err->status == US_OK)
            (void)us_fail(err, st, "the reply cannot be coded: %s", us_status_text(st));
        return st;
    }
    digest_hex(&k.hash, p->etag);
    *ret_fd = fd;
    *ret_bytes = end;
    return US_OK;
}

static void add_headers(struct prediction *p)
{
    struct us_http_request *r = p->call->r;
    const struct us_predict_file_report *rep = &p->report;
    double queue_s = (double)(p->begin_ns - p->submit_ns) / 1e9;
    us_http_header(r, "Content-Disposition", "attachment; filename=\"%s-split.%s\"", p->call->model,
                   p->npy ? "npy" : "ome.tif");
    if (p->coding != US_CODING_IDENTITY)
        us_http_header(r, "Content-Encoding", "%s", us_coding_name(p->coding));
    us_http_header(r, "Vary", "Accept, Accept-Encoding");
    us_http_header(r, "ETag", "\"%s\"", p->etag);
    us_http_header(r, "Cache-Control", "private, no-store");
    us_http_header(r, "X-Usplit-Model", "%s@%s", p->call->model, p->model_sha256);
    us_http_header(r, "X-Usplit-Seed", "%" PRIu64, p->config.seed);
    us_http_header(r, "X-Usplit-Padding", "%" PRId32, p->config.padding);
    us_http_header(r, "X-Usplit-Samples", "%" PRId32, p->config.samples);
    us_http_header(r, "X-Usplit-Clipped-Pixels", "%" PRId64, rep->n_clipped);
    if (!isnan(rep->seam_z)) /* some tile border crosses the image */
        us_http_header(r, "X-Usplit-Seam-Score", "%.2f", rep->seam_z);
    if (p->query.file.dtype == US_PIXEL_U16)
        us_http_header(r, "X-Usplit-Saturated-Values", "%" PRId64, rep->n_saturated);
    us_http_header(r, "Server-Timing",
                   "queue;dur=%.1f, prepare;dur=%.1f, decode;dur=%.1f, compute;dur=%.1f, "
                   "seams;dur=%.1f, encode;dur=%.1f",
                   queue_s * 1e3, p->prepare_s * 1e3, rep->decode_s * 1e3, rep->compute_s * 1e3,
                   rep->seam_s * 1e3, (rep->encode_s + p->encode_s) * 1e3);
}

static void predict_run(struct us_task *t)
{
    struct prediction *p = (struct prediction *)(void *)t;
    struct us_http_request *r = p->call->r;
    struct us_err err = {0};
    int fd = -1;
    int64_t n = 0;
    p->begin_ns = now_ns();
    enum us_status st = atomic_load(&t->cancel) ? US_E_CANCELLED : compute(p, &err);
    us_work_compute_done(p->call->server->work, t);
    int64_t encode_ns = now_ns();
    if (st == US_OK)
        st = encode(p, &fd, &n, &err);
    p->encode_s = (double)(now_ns() - encode_ns) / 1e9;
    if (st == US_E_CANCELLED) { /* by the client, who will not see this, or by a stop */
        us_problem(r, 503, "the daemon is stopping");
    } else if (st != US_OK) {
        us_problem_err(r, &err);
    } else {
        us_telemetry_prediction(&p->call->server->metrics,
                                (double)(p->begin_ns - p->submit_ns) / 1e9,
                                p->report.n_patches * p->config.samples, p->report.compute_s);
        us_http_reply_fd(r, 200, p->npy ? "application/x-npy" : "image/tiff", fd, n);
        add_headers(p);
    }
}

static void predict_finish(struct us_task *t)
{
    us_http_resume(((struct prediction *)(void *)t)->call->r);
}

static void predict_done(struct us_call *c)
{
    struct prediction *p = c->state;
    if (p == NULL)
        return;
    us_body_release(&p->body);
    us_spool_release(&p->coded);
    if (p->result_path[0] != '\0')
        (void)unlink(p->result_path);
    free(p);
}

/* Everything about the request that its head alone can make impossible. */
static void check_head(struct us_call *c, struct prediction *p)
{
    struct us_err err = {0};
    const struct us_head *head = &c->r->head;
    struct us_model_info info;
    enum us_status st = us_predict_query_parse(&c->r->target, &p->query, &err);
    if (st != US_OK) {
        us_problem(c->r, st == US_E_ARG ? 400 : 422, "%s", err.msg);
        return;
    }
    enum us_media accept = us_media_accept(us_head_get(head, "Accept"));
    p->npy = accept == US_MEDIA_NPY;
    p->coding = us_coding_accept(us_head_get(head, "Accept-Encoding"));
    if (accept == US_MEDIA_NONE) {
        us_problem(c->r, 406, "Accept allows neither image/tiff nor application/x-npy");
        return;
    }
    if (us_media_of_body(us_head_get(head, "Content-Type")) == US_MEDIA_UNKNOWN) {
        us_problem(c->r, 415,
                   "Content-Type '%.80s'; allowed: image/tiff, application/x-npy, "
                   "application/octet-stream (curl -H 'Content-Type: image/tiff')",
                   us_head_get(head, "Content-Type"));
        us_http_header(c->r, "Accept", "image/tiff, application/x-npy, application/octet-stream");
        return;
    }
    if (us_registry_find(c->server->registry, c->model, &info, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    if (info.state == US_MODEL_BROKEN)
        us_problem(c->r, 422, "model '%s' cannot be used: %s", c->model, info.error);
    us_model_info_release(&info);
}

static void predict_head(struct us_call *c)
{
    const struct us_config *conf = &c->server->config;
    const struct us_body_limits limits = {conf->max_body_bytes, conf->max_decoded_bytes};
    struct us_err err = {0};
    struct prediction *p = calloc(1, sizeof(*p));
    if (p == NULL) {
        us_problem(c->r, 503, "no memory for the request");
        return;
    }
    c->state = p;
    p->task = (struct us_task){.run = predict_run, .finish = predict_finish, .exclusive = true};
    p->turns = (struct us_predict_turns){us_work_wanted, us_work_pass_on, &p->task};
    us_call_owner(c, p->task.owner, sizeof(p->task.owner));
    p->task.class = us_user_class(&c->user, US_JOB_INTERACTIVE);
    p->call = c;
    p->body.file.fd = p->coded.fd = -1;
    check_head(c, p);
    if (c->r->reply.status != 0 || !us_call_check_length(c, conf->max_body_bytes) ||
        !us_call_check_capacity(c))
        return;
    us_body_reply(c->r,
                  us_body_init(&p->body, us_head_get(&c->r->head, "Content-Encoding"),
                               c->server->spool_dir, &limits, &err),
                  &err);
}

static void predict_body(struct us_call *c, const void *bytes, size_t n)
{
    struct prediction *p = c->state;
    struct us_err err = {0};
    us_body_reply(c->r, us_body_feed(&p->body, bytes, n, &err), &err);
}

static void predict_end(struct us_call *c)
{
    struct prediction *p = c->state;
    struct us_server *s = c->server;
    struct us_http_request *r = c->r;
    struct us_err err = {0};
    us_body_reply(r, us_body_end(&p->body, &err), &err);
    if (r->reply.status != 0)
        return;
    p->submit_ns = now_ns();
    us_http_suspend(r);
    if (us_work_submit(s->work, &p->task) != US_OK) {
        us_problem(r, 503, "the queue is full or the daemon is stopping");
        us_http_resume(r);
    }
}

static void predict_gone(struct us_call *c)
{
    struct prediction *p = c->state;
    us_work_cancel(c->server->work, &p->task);
}

const struct us_route_ops us_route_predict = {.takes_body = true,
                                              .head = predict_head,
                                              .body = predict_body,
                                              .end = predict_end,
                                              .gone = predict_gone,
                                              .done = predict_done};
