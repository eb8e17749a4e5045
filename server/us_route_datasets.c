/* Routes of the training data: list, show, add a file, remove. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_datasets.h"
#include "us_problem.h"
#include "us_slow_call.h"

static void list_end(struct us_call *c)
{
    struct us_err err = {0};
    struct us_dataset_name *names = NULL;
    int64_t n = 0;
    if (us_datasets_list(c->server->datasets, &names, &n, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    json_t *array = json_array();
    for (int64_t i = 0; i < n; i++) {
        if (us_owners_may_use(c->server->owners, names[i].name, &c->user, NULL) != US_OK)
            continue;
        bool used = us_datasets_in_use(c->server->datasets, names[i].name);
        (void)json_array_append_new(
            array, json_pack("{s:s, s:b}", "name", names[i].name, "in_use", (int)used));
    }
    free(names);
    us_call_reply_json(c->r, 200, json_pack("{s:o}", "datasets", array));
}

const struct us_route_ops us_route_datasets_list = {.end = list_end};

static json_t *file_json(const struct us_dataset_file *f)
{
    const struct us_image_info *i = &f->info;
    if (f->error[0] != '\0')
        return json_pack("{s:s, s:I, s:s}", "name", f->name, "bytes", (json_int_t)f->bytes, "error",
                         f->error);
    return json_pack("{s:s, s:I, s:s, s:{s:I, s:I, s:I, s:I, s:I}}", "name", f->name, "bytes",
                     (json_int_t)f->bytes, "pixel", us_pixel_name(i->pixel), "shape", "t",
                     (json_int_t)i->t, "z", (json_int_t)i->z, "c", (json_int_t)i->c, "h",
                     (json_int_t)i->h, "w", (json_int_t)i->w);
}

/* Opens every image, hence on a worker. */
static void get_run(struct us_task *t)
{
    struct us_call *c = ((struct us_slow_call *)(void *)t)->call;
    struct us_datasets *ds = c->server->datasets;
    struct us_err err = {0};
    struct us_dataset_file *files = NULL;
    int64_t n = 0, bytes = 0;
    bool splits = false;
    if (us_datasets_files(ds, c->dataset, &files, &n, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    json_t *array = json_array();
    for (int64_t i = 0; i < n; i++) {
        bytes += files[i].bytes;
        splits |= files[i].is_splits;
        if (!files[i].is_splits)
            (void)json_array_append_new(array, file_json(&files[i]));
    }
    free(files);
    us_call_reply_json(c->r, 200,
                       json_pack("{s:s, s:I, s:b, s:b, s:o}", "name", c->dataset, "bytes",
                                 (json_int_t)bytes, "splits", (int)splits, "in_use",
                                 (int)us_datasets_in_use(ds, c->dataset), "files", array));
}

static void get_end(struct us_call *c)
{
    if (us_call_check_capacity(c) && us_slow_call_new(c, get_run) != NULL)
        us_slow_call_submit(c);
}

const struct us_route_ops us_route_dataset_get = {
    .end = get_end, .gone = us_slow_call_gone, .done = us_slow_call_done};

static void put_run(struct us_task *t)
{
    struct us_slow_call *s = (struct us_slow_call *)(void *)t;
    struct us_call *c = s->call;
    const char *file = c->file != NULL ? c->file : US_SPLITS_NAME;
    struct us_err err = {0};
    bool created = false;
    int64_t bytes = s->body.file.bytes;
    if (atomic_load(&t->cancel)) {
        us_problem(c->r, 503, "the daemon is stopping");
        return;
    }
    struct us_owner_claim claim = {.held = false};
    enum us_status st = us_owners_room(c->server->owners, &c->user, bytes, &err);
    if (st == US_OK)
        st = us_owners_claim(c->server->owners, US_RECORD_DATASET, c->dataset, &c->user, &claim,
                             &err);
    if (st == US_OK)
        st = us_datasets_put(c->server->datasets, c->dataset, file, &s->body.file, &created, &err);
    us_owners_end(c->server->owners, &claim);
    if (st != US_OK)
        us_problem_err(c->r, &err);
    else
        us_call_reply_json(c->r, created ? 201 : 200,
                           json_pack("{s:s, s:s, s:I}", "dataset", c->dataset, "file", file,
                                     "bytes", (json_int_t)bytes));
}

static void put_head(struct us_call *c)
{
    us_slow_call_head(c, put_run, "file", c->server->config.max_decoded_bytes);
}

#define PUT_OPS                                                                                    \
    {                                                                                              \
        .takes_body = true, .head = put_head, .body = us_slow_call_body, .end = us_slow_call_end,  \
        .gone = us_slow_call_gone, .done = us_slow_call_done                                       \
    }
const struct us_route_ops us_route_dataset_put = PUT_OPS;
const struct us_route_ops us_route_dataset_splits = PUT_OPS;

static void delete_end(struct us_call *c)
{
    struct us_err err = {0};
    if (us_datasets_delete(c->server->datasets, c->dataset, c->file, &err) != US_OK) {
        us_problem_err(c->r, &err);
        return;
    }
    us_owners_removed(c->server->owners, US_RECORD_DATASET, c->dataset);
    us_http_reply_bytes(c->r, 204, NULL, NULL, 0);
}

const struct us_route_ops us_route_dataset_delete = {.end = delete_end};
const struct us_route_ops us_route_dataset_file_delete = {.end = delete_end};
