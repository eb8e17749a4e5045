/* Routes of the model registry: list, show, store, delete, fetch, load, unload. */
#include <inttypes.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "us_problem.h"
#include "us_slow_call.h"

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

/* The reply that shows one model as it is now. */
static void reply_model(struct us_call *c, int status)
{
    struct us_err err = {0};
    struct us_model_info info;
    if (us_registry_find(c->server->registry, c->model, &info, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    us_call_reply_json(c->r, status, info_json(&info));
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
    us_call_reply_json(c->r, 200, json_pack("{s:o}", "models", array));
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
    if (us_registry_delete(c->server->registry, c->model, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    us_owners_removed(c->server->owners, US_RECORD_MODEL, c->model);
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

static void load_run(struct us_task *t)
{
    struct us_call *c = ((struct us_slow_call *)(void *)t)->call;
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
    if (us_call_check_capacity(c) && us_slow_call_new(c, load_run) != NULL)
        us_slow_call_submit(c);
}

const struct us_route_ops us_route_model_load = {
    .end = load_end, .gone = us_slow_call_gone, .done = us_slow_call_done};

/* Once begun, a client that leaves does not undo it: the model is stored whole. */
static void put_run(struct us_task *t)
{
    struct us_slow_call *s = (struct us_slow_call *)(void *)t;
    struct us_call *c = s->call;
    struct us_err err = {0};
    struct us_registry_put put = {.name = c->model,
                                  .if_match = us_head_get(&c->r->head, "If-Match"),
                                  .if_none_match = us_head_get(&c->r->head, "If-None-Match")};
    if (atomic_load(&t->cancel)) {
        us_problem(c->r, 503, "the daemon is stopping");
        return;
    }
    struct us_owner_claim claim;
    enum us_status st = us_owners_room(c->server->owners, &c->user, s->body.file.bytes, &err);
    if (st == US_OK)
        st = us_owners_claim(c->server->owners, US_RECORD_MODEL, c->model, &c->user, &claim, &err);
    if (st != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    st = us_registry_put(c->server->registry, &put, &s->body.file, &err);
    us_owners_end(c->server->owners, &claim);
    if (st == US_E_EXISTS) {
        us_problem(c->r, 412, "%s", err.msg);
    } else if (st != US_OK) {
        us_problem_err(c->r, &err);
    } else {
        us_call_reply_json(c->r, put.created ? 201 : 200, info_json(&put.info));
        us_http_header(c->r, "Location", "/v1/models/%s", c->model);
        us_http_header(c->r, "ETag", "\"%s\"", put.info.sha256);
        if (put.old_sha256[0] != '\0' && strcmp(put.old_sha256, put.info.sha256) != 0)
            us_predictors_drop(c->server->predictors, put.old_sha256);
    }
    us_model_info_release(&put.info);
}

static void put_head(struct us_call *c)
{
    us_slow_call_head(c, put_run, "model file", US_MAX_MODEL_BYTES);
}

const struct us_route_ops us_route_model_put = {.takes_body = true,
                                                .head = put_head,
                                                .body = us_slow_call_body,
                                                .end = us_slow_call_end,
                                                .gone = us_slow_call_gone,
                                                .done = us_slow_call_done};
