/* Routes about the daemon itself: index, healthz, readyz. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_problem.h"
#include "us_routes.h"

/* A plain page that is true today; the dashboard takes its place later. */
static void index_end(struct us_call *c)
{
    char *page = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&page, &n);
    if (f == NULL) {
        us_problem(c->r, 503, "no memory for the page");
        return;
    }
    (void)fputs(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>usplitd</title>"
        "<h1>usplitd " US_VERSION "</h1><p>Splits superimposed fluorescence channels. "
        "Post an image:</p><pre>curl --data-binary @image.tif -H 'Content-Type: image/tiff' "
        "-o split.ome.tif http://HOST:PORT/v1/models/NAME/predict</pre><table>",
        f);
    for (int i = 0; i < us_n_routes; i++) {
        const struct us_route *r = &us_routes[i];
        bool link = strcmp(r->method, "GET") == 0 && strchr(r->pattern, '{') == NULL;
        (void)fprintf(f, "<tr><td>%s<td>", r->method);
        if (link)
            (void)fprintf(f, "<a href=\"%s\">%s</a>", r->pattern, r->pattern);
        else
            (void)fprintf(f, "<code>%s</code>", r->pattern);
        (void)fprintf(f, "<td>%s\n", r->text);
    }
    (void)fputs("</table></html>\n", f);
    if (fclose(f) == 0)
        us_http_reply_bytes(c->r, 200, "text/html; charset=utf-8", page, n);
    else
        us_problem(c->r, 503, "no memory for the page");
    us_http_header(c->r, "Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'");
    free(page);
}

const struct us_route_ops us_route_index = {.end = index_end};

static void healthz_end(struct us_call *c)
{
    us_http_reply_bytes(c->r, 200, "text/plain; charset=utf-8", "ok\n", 3);
    us_http_header(c->r, "Cache-Control", "no-store");
}

const struct us_route_ops us_route_healthz = {.end = healthz_end};

static void readyz_end(struct us_call *c)
{
    struct us_server *s = c->server;
    struct us_work_counts n = us_work_counts(s->work);
    bool draining = atomic_load(&s->draining);
    bool ready = !draining && atomic_load(&s->checked);
    json_t *j = json_pack("{s:s, s:s, s:s, s:I, s:I}", "status",
                          ready      ? "ready"
                          : draining ? "stopping"
                                     : "checking models",
                          "version", US_VERSION, "backend", us_backend_ops(s->backend)->name,
                          "waiting", (json_int_t)n.waiting, "running", (json_int_t)n.running);
    char *text = j != NULL ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    if (text != NULL)
        us_http_reply_bytes(c->r, ready ? 200 : 503, "application/json", text, strlen(text));
    else
        us_problem(c->r, 503, "no memory for the reply");
    us_http_header(c->r, "Cache-Control", "no-store");
    free(text);
}

const struct us_route_ops us_route_readyz = {.end = readyz_end};
