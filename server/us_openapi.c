/*
 * GET /openapi.json: the interface in OpenAPI 3.1, made from the table that the router runs on
 * (us_routes.def), the table of query parameters, and us_openapi.def. tests/http/test_openapi.py
 * asks every route in it without a token, with wrong ones and for what is somebody else's.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_predict_query.h"
#include "us_slow_call.h"

enum {
#define US_ROUTE(method, pattern, handler, scope, text) R_##handler,
#include "us_routes.def"
#undef US_ROUTE
    N_ROUTES
};

static const char *const ids[N_ROUTES] = {
#define US_ROUTE(method, pattern, handler, scope, text) [R_##handler] = #handler,
#include "us_routes.def"
#undef US_ROUTE
};

/* Lists are words with blanks between them. */
static const struct {
    const char *body, *media, *others, *headers;
    int status;
} ops[N_ROUTES] = {
#define US_OP(handler, body, status, media, others, headers)                                       \
    [R_##handler] = {body, media, others, headers, status},
#include "us_openapi.def"
#undef US_OP
};

/* Calls fn for each word of a list. */
static void each_word(const char *list, void (*fn)(json_t *to, const char *word), json_t *to)
{
    char word[64];
    for (const char *p = list; p != NULL && *p != '\0';) {
        size_t n = strcspn(p, " ");
        (void)snprintf(word, sizeof(word), "%.*s", (int)n, p);
        fn(to, word);
        p += n + (p[n] == ' ');
    }
}

static json_t *problem_ref(void)
{
    return json_pack("{s:s, s:{s:{s:{s:s}}}}", "description", "a problem, as RFC 9457 says it",
                     "content", "application/problem+json", "schema", "$ref",
                     "#/components/schemas/Problem");
}

static void add_problem(json_t *responses, const char *status)
{
    if (status[0] == '2' || status[0] == '3')
        (void)json_object_set_new(
            responses, status,
            json_pack("{s:s}", "description",
                      status[0] == '3' ? "as the client knows it" : "done, another way"));
    else
        (void)json_object_set_new(responses, status, problem_ref());
}

static void add_media(json_t *content, const char *media)
{
    bool json = strcmp(media, "application/json") == 0;
    (void)json_object_set_new(content, media,
                              json_pack("{s:{s:s*}}", "schema", "type", json ? "object" : NULL));
}

static json_t *responses_of(int i)
{
    json_t *all = json_object(), *good = json_pack("{s:s}", "description", "done");
    char status[8];
    if (ops[i].media != NULL && ops[i].media[0] != '\0') {
        json_t *content = json_object();
        each_word(ops[i].media, add_media, content);
        (void)json_object_set_new(good, "content", content);
    }
    (void)snprintf(status, sizeof(status), "%d", ops[i].status != 0 ? ops[i].status : 200);
    (void)json_object_set_new(all, status, good);
    each_word(ops[i].others, add_problem, all);
    if (us_routes[i].scope != US_SCOPE_NONE)
        each_word("401 403", add_problem, all);
    if (strchr(us_routes[i].pattern, '{') != NULL)
        add_problem(all, "404");
    add_problem(all, "503");
    (void)json_object_set_new(all, "default", problem_ref());
    return all;
}

static void add_header(json_t *params, const char *name)
{
    (void)json_array_append_new(params,
                                json_pack("{s:s, s:s, s:b, s:{s:s}}", "name", name, "in", "header",
                                          "required", 0, "schema", "type", "string"));
}

static void add_path_params(json_t *params, const char *pattern)
{
    static const struct {
        char letter;
        const char *what;
    } known[] = {{'m', "a model"}, {'d', "a data set"}, {'f', "a file"}, {'j', "a job"}};
    for (const char *p = strchr(pattern, '{'); p != NULL; p = strchr(p + 1, '{')) {
        const char name[2] = {p[1], '\0'};
        const char *what = "a name";
        for (size_t k = 0; k < US_COUNT(known); k++) {
            if (known[k].letter == p[1])
                what = known[k].what;
        }
        (void)json_array_append_new(
            params, json_pack("{s:s, s:s, s:b, s:s, s:{s:s, s:s}}", "name", name, "in", "path",
                              "required", 1, "description", what, "schema", "type", "string",
                              "pattern", "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$"));
    }
}

static void add_query_params(json_t *params)
{
    const char *name, *allowed;
    for (int i = 0; us_predict_query_param(i, &name, &allowed); i++)
        (void)json_array_append_new(params, json_pack("{s:s, s:s, s:b, s:s, s:{s:s}}", "name", name,
                                                      "in", "query", "required", 0, "description",
                                                      allowed, "schema", "type", "string"));
}

static json_t *operation(int i)
{
    const struct us_route *r = &us_routes[i];
    json_t *params = json_array();
    add_path_params(params, r->pattern);
    if (i == R_predict)
        add_query_params(params);
    each_word(ops[i].headers, add_header, params);
    json_t *security = r->scope == US_SCOPE_NONE
                           ? json_array()
                           : json_pack("[{s:[s]}]", "bearer", us_scope_name(r->scope));
    json_t *op =
        json_pack("{s:s, s:s, s:o, s:o, s:o}", "operationId", ids[i], "summary", r->text,
                  "parameters", params, "security", security, "responses", responses_of(i));
    if (op != NULL && ops[i].body != NULL && ops[i].body[0] != '\0') {
        json_t *content = json_object();
        each_word(ops[i].body, add_media, content);
        (void)json_object_set_new(op, "requestBody",
                                  json_pack("{s:b, s:o}", "required", 1, "content", content));
    }
    return op;
}

static json_t *paths(void)
{
    json_t *all = json_object();
    for (int i = 0; i < us_n_routes; i++) {
        char verb[16];
        size_t n = 0;
        for (const char *m = us_routes[i].method; *m != '\0' && n < sizeof(verb) - 1; m++)
            verb[n++] = (char)(*m | 0x20); /* to small letters */
        verb[n] = '\0';
        json_t *path = json_object_get(all, us_routes[i].pattern);
        if (path == NULL) {
            path = json_object();
            (void)json_object_set_new(all, us_routes[i].pattern, path);
        }
        (void)json_object_set_new(path, verb, operation(i));
    }
    return all;
}

static json_t *components(void)
{
    return json_pack(
        "{s:{s:{s:s, s:s, s:s}}, s:{s:{s:s, s:[sssss], s:{s:{s:s}, s:{s:s}, s:{s:s}, s:{s:s}, "
        "s:{s:s}, s:{s:s}, s:{s:s}}}}}",
        "securitySchemes", "bearer", "type", "http", "scheme", "bearer", "description",
        "a token of 'usplitd token add'; a daemon on loopback asks for it once there is one",
        "schemas", "Problem", "type", "object", "required", "type", "title", "status", "detail",
        "error", "properties", "type", "type", "string", "title", "type", "string", "status",
        "type", "integer", "detail", "type", "string", "instance", "type", "string", "error",
        "type", "string", "request_id", "type", "string");
}

static void openapi_end(struct us_call *c)
{
    json_t *doc = json_pack("{s:s, s:{s:s, s:s, s:s}, s:[{s:s}], s:o, s:o}", "openapi", "3.1.0",
                            "info", "title", "usplitd", "version", US_VERSION, "description",
                            "Splits superimposed fluorescence channels, and trains networks to.",
                            "servers", "url", "/", "paths", paths(), "components", components());
    us_call_reply_json(c->r, 200, doc);
}

const struct us_route_ops us_route_openapi = {.end = openapi_end};
