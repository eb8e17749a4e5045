/* Serves what is embedded; see us_web.h. The files are open to all: they hold no data, and whoever
 * has a token must be able to load the page that asks for it. */
#include "us_web.h"

#include <stdlib.h>
#include <string.h>

#include "us_coding.h"
#include "us_problem.h"
#include "us_routes.h"
#include "us_train_config.h"

static const struct us_web_file *find(const char *name)
{
    for (int i = 0; i < us_n_web_files; i++) {
        if (strcmp(us_web_files[i].name, name) == 0)
            return &us_web_files[i];
    }
    return NULL;
}

/* What a browser may do with the page: run our files, talk to us, nothing else. */
static void add_policy(struct us_http_request *r)
{
    us_http_header(r, "Content-Security-Policy",
                   "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
                   "frame-ancestors 'none'");
    us_http_header(r, "Referrer-Policy", "no-referrer");
    us_http_header(r, "Cross-Origin-Opener-Policy", "same-origin");
    us_http_header(r, "Cross-Origin-Resource-Policy", "same-origin");
}

void us_web_reply(struct us_http_request *r, const char *name)
{
    const struct us_web_file *f = find(name);
    char tag[80];
    if (f == NULL) {
        us_problem(r, 404, "the dashboard has no file '%.100s'", name);
        return;
    }
    const bool zip = f->gzip != NULL && us_coding_gzip_ok(us_head_get(&r->head, "Accept-Encoding"));
    const char *known = us_head_get(&r->head, "If-None-Match");
    (void)snprintf(tag, sizeof(tag), "%s%s", f->tag, zip ? "-gzip" : "");
    if (known != NULL && us_etag_listed(known, tag)) {
        us_http_reply_bytes(r, 304, NULL, NULL, 0);
    } else {
        us_http_reply_bytes(r, 200, f->type, zip ? f->gzip : f->bytes,
                            zip ? f->n_gzip : f->n_bytes);
        if (zip)
            us_http_header(r, "Content-Encoding", "gzip");
    }
    us_http_header(r, "ETag", "\"%s\"", tag);
    us_http_header(r, "Vary", "Accept, Accept-Encoding");
    us_http_header(r, "Cache-Control", "no-cache"); /* kept, and asked for by its tag */
    add_policy(r);
}

static void file_end(struct us_call *c)
{
    us_web_reply(c->r, c->file);
}

const struct us_route_ops us_route_web_file = {.end = file_end};

static void settings_end(struct us_call *c)
{
    char *text = us_train_settings_describe();
    if (text != NULL)
        us_http_reply_bytes(c->r, 200, "application/json", text, strlen(text));
    else
        us_problem(c->r, 503, "no memory for the reply");
    us_http_header(c->r, "Cache-Control", "no-cache");
    free(text);
}

const struct us_route_ops us_route_web_settings = {.end = settings_end};
