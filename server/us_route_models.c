/* Routes of the model registry: list, show, store, delete, fetch, load, unload. */
#include <inttypes.h>
#include <jansson.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "us_body.h"
#include "us_problem.h"
#include "us_routes.h"

static json_t *info_json(const struct us_model_info *info)
{
    json_t *j =
        json_pack("{s:s, s:s, s:I}", "name", info->name, "state", us_model_state_name(info->state),
                  "file_bytes", (json_int_t)info->file_bytes);
    if (j == NULL)
        return NULL;
    if (info->sha256[0] != '\0') {
        (void)json_object_set_new(j, "sha256", json_string(info->sha256));
        (void)json_object_set_new(j, "parameters", json_integer(info->n_parameters));
        (void)json_object_set_new(j, "trainable", json_boolean(info->complete));
    }
    if (info->state == US_MODEL_BROKEN)
        (void)json_object_set_new(j, "error", json_string(info->error));
    if (info->metadata != NULL)
        (void)json_object_set_new(j, "metadata", json_loads(info->metadata, 0, NULL));
    return j;
}

/* Takes j over. */
static void reply_json(struct us_http_request *r, int status, json_t *j)
{
    char *text = j != NULL ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    if (text != NULL)
        us_http_reply_bytes(r, status, "application/json", text, strlen(text));
    else
        us_problem(r, 503, "no memory for the reply");
    us_http_header(r, "Cache-Control", "no-cache");
    free(text);
}

/* The reply that shows one model as it is now. */
static void reply_model(struct us_call *c, int status)
{
    struct us_err err = {0};
    struct us_model_info info;
    if (us_registry_find(c->server->registry, c->model, &info, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    reply_json(c->r, status, info_json(&info));
    if (info.state == US_MODEL_UNCHECKED)
        us_server_check_models(c->server);
    us_model_info_release(&info);
}

static void list_end(struct us_call *c)
{
    struct us_err err = {0};
    struct us_model_info *list = NULL;
    int64_t n = 0, n_unchecked = 0;
    struct us_registry *reg = c->server->registry;
    if (us_registry_scan(reg, &n_unchecked, &err) != US_OK ||
        us_registry_list(reg, &list, &n, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    json_t *array = json_array();
    for (int64_t i = 0; i < n; i++) {
        (void)json_array_append_new(array, info_json(&list[i]));
        us_model_info_release(&list[i]);
    }
    free(list);
    reply_json(c->r, 200, json_pack("{s:o}", "models", array));
    if (n_unchecked > 0)
        us_server_check_models(c->server);
}

const struct us_route_ops us_route_models_list = {.end = list_end};

static void get_end(struct us_call *c)
{
    reply_model(c, 200);
}

const struct us_route_ops us_route_model_get = {.end = get_end};

/* Predictors of the version that is leaving would keep its memory. */
static void drop_predictors(struct us_call *c)
{
    struct us_model_info info;
    if (us_registry_find(c->server->registry, c->model, &info, NULL) != US_OK)
        return;
    if (info.sha256[0] != '\0')
        us_predictors_drop(c->server->predictors, info.sha256);
    us_model_info_release(&info);
}

static void delete_end(struct us_call *c)
{
    struct us_err err = {0};
    drop_predictors(c);
    if (us_registry_delete(c->server->registry, c->model, &err) != US_OK)
        us_problem_err(c->r, &err);
    else
        us_http_reply_bytes(c->r, 204, NULL, NULL, 0);
}

const struct us_route_ops us_route_model_delete = {.end = delete_end};

static void unload_end(struct us_call *c)
{
    struct us_err err = {0};
    drop_predictors(c);
    if (us_registry_unload(c->server->registry, c->model, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    (void)malloc_trim(0); /* to the system, not to the allocator's pockets */
    reply_model(c, 200);
}

const struct us_route_ops us_route_model_unload = {.end = unload_end};

static void file_end(struct us_call *c)
{
    struct us_err err = {0};
    int fd;
    int64_t n;
    char sha256[65];
    if (us_registry_open_file(c->server->registry, c->model, &fd, &n, sha256, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    const char *known = us_head_get(&c->r->head, "If-None-Match");
    if (known != NULL && sha256[0] != '\0' && us_etag_listed(known, sha256)) {
        (void)close(fd);
        us_http_reply_bytes(c->r, 304, NULL, NULL, 0);
    } else {
        us_http_reply_fd(c->r, 200, "application/octet-stream", fd, n);
        us_http_header(c->r, "Content-Disposition", "attachment; filename=\"%s.safetensors\"",
                       c->model);
    }
    if (sha256[0] != '\0')
        us_http_header(c->r, "ETag", "\"%s\"", sha256);
    us_http_header(c->r, "Cache-Control", "private, no-cache");
}

const struct us_route_ops us_route_model_file = {.end = file_end};

/* load and put read a model file, which is work for the queue. */
struct slow_call {
    struct us_task task; /* first: the queue hands it back */
    struct us_call *call;
    struct us_body body; /* put only */
};

static void slow_finish(struct us_task *t)
{
    us_http_resume(((struct slow_call *)(void *)t)->call->r);
}

static struct slow_call *slow_new(struct us_call *c, void (*run)(struct us_task *t))
{
    struct slow_call *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        us_problem(c->r, 503, "no memory for the request");
        return NULL;
    }
    s->task = (struct us_task){.run = run, .finish = slow_finish};
    s->call = c;
    s->body.file.fd = -1;
    c->state = s;
    return s;
}

static void slow_submit(struct us_call *c)
{
    struct slow_call *s = c->state;
    struct us_server *server = c->server;
    struct us_http_request *r = c->r;
    us_http_suspend(r);
    if (us_work_submit(server->work, &s->task) != US_OK) {
        us_problem(r, 503, "the queue is full or the daemon is stopping");
        us_http_resume(r);
    }
}

static void slow_gone(struct us_call *c)
{
    struct slow_call *s = c->state;
    us_work_cancel(c->server->work, &s->task);
}

static void slow_done(struct us_call *c)
{
    struct slow_call *s = c->state;
    if (s != NULL)
        us_body_release(&s->body);
    free(s);
}

static void load_run(struct us_task *t)
{
    struct us_call *c = ((struct slow_call *)(void *)t)->call;
    struct us_err err = {0};
    struct us_model_ref *ref = NULL;
    if (atomic_load(&t->cancel))
        us_problem(c->r, 503, "the daemon is stopping");
    else if (us_registry_acquire(c->server->registry, c->model, &ref, &err) != US_OK)
        us_problem_err(c->r, &err);
    else
        reply_model(c, 200);
    us_model_ref_release(ref);
}

static void load_end(struct us_call *c)
{
    if (us_call_check_capacity(c) && slow_new(c, load_run) != NULL)
        slow_submit(c);
}

const struct us_route_ops us_route_model_load = {
    .end = load_end, .gone = slow_gone, .done = slow_done};

/* Once begun, a client that leaves does not undo it: the model is stored whole. */
static void put_run(struct us_task *t)
{
    struct slow_call *s = (struct slow_call *)(void *)t;
    struct us_call *c = s->call;
    struct us_err err = {0};
    struct us_registry_put put = {.name = c->model,
                                  .if_match = us_head_get(&c->r->head, "If-Match"),
                                  .if_none_match = us_head_get(&c->r->head, "If-None-Match")};
    if (atomic_load(&t->cancel)) {
        us_problem(c->r, 503, "the daemon is stopping");
        return;
    }
    enum us_status st = us_registry_put(c->server->registry, &put, &s->body.file, &err);
    if (st == US_E_EXISTS) {
        us_problem(c->r, 412, "%s", err.msg);
    } else if (st != US_OK) {
        us_problem_err(c->r, &err);
    } else {
        reply_json(c->r, put.created ? 201 : 200, info_json(&put.info));
        us_http_header(c->r, "Location", "/v1/models/%s", c->model);
        us_http_header(c->r, "ETag", "\"%s\"", put.info.sha256);
        if (put.old_sha256[0] != '\0' && strcmp(put.old_sha256, put.info.sha256) != 0)
            us_predictors_drop(c->server->predictors, put.old_sha256);
    }
    us_model_info_release(&put.info);
}

/* Browsers' form encodings wrap the file; everything else is taken for the file itself. */
static bool is_form(const char *type)
{
    return type != NULL && (strncasecmp(type, "multipart/", 10) == 0 ||
                            strncasecmp(type, "application/x-www-form-urlencoded", 33) == 0);
}

static void put_head(struct us_call *c)
{
    const struct us_config *conf = &c->server->config;
    const struct us_body_limits limits = {conf->max_body_bytes, US_MAX_MODEL_BYTES};
    struct us_err err = {0};
    if (is_form(us_head_get(&c->r->head, "Content-Type"))) {
        us_problem(c->r, 415, "send the model file itself as the body (curl -T FILE), not a form");
        return;
    }
    if (!us_call_check_length(c, conf->max_body_bytes) || !us_call_check_capacity(c))
        return;
    struct slow_call *s = slow_new(c, put_run);
    if (s == NULL)
        return;
    us_body_reply(c->r,
                  us_body_init(&s->body, us_head_get(&c->r->head, "Content-Encoding"),
                               c->server->spool_dir, &limits, &err),
                  &err);
}

static void put_body(struct us_call *c, const void *bytes, size_t n)
{
    struct slow_call *s = c->state;
    struct us_err err = {0};
    us_body_reply(c->r, us_body_feed(&s->body, bytes, n, &err), &err);
}

static void put_end(struct us_call *c)
{
    struct slow_call *s = c->state;
    struct us_err err = {0};
    us_body_reply(c->r, us_body_end(&s->body, &err), &err);
    if (c->r->reply.status == 0)
        slow_submit(c);
}

const struct us_route_ops us_route_model_put = {.takes_body = true,
                                                .head = put_head,
                                                .body = put_body,
                                                .end = put_end,
                                                .gone = slow_gone,
                                                .done = slow_done};
