/* Whether a request may be; see us_access.h. */
#include "us_access.h"

#include <stdio.h>
#include <string.h>

#include "us_problem.h"

/* RFC 6750: 401 for no or no good token, 403 for one that may not do this. */
static void refuse(struct us_http_request *r, const struct us_route *route, enum us_status st,
                   const struct us_err *err)
{
    const char *scope = us_scope_name(route->scope);
    if (st == US_E_FORMAT) {
        us_problem(r, 400, "%s", err->msg);
    } else if (st == US_E_ARG || st == US_E_NOT_FOUND) {
        us_problem(r, 401, "%s", err->msg);
        us_http_header(r, "WWW-Authenticate", "Bearer realm=\"usplit\"%s, scope=\"%s\"",
                       st == US_E_NOT_FOUND ? ", error=\"invalid_token\"" : "", scope);
    } else if (st == US_OK) {
        us_problem(r, 403, "this needs a token with the scope '%s'", scope);
        us_http_header(r, "WWW-Authenticate",
                       "Bearer realm=\"usplit\", error=\"insufficient_scope\", scope=\"%s\"",
                       scope);
    } else {
        us_problem(r, 503, "the tokens cannot be read: %s", err->msg);
    }
}

void us_access_authorize(struct us_server *s, struct us_http_request *r,
                         const struct us_route *route, struct us_user *ret)
{
    const char *header = NULL;
    struct us_err err = {0};
    *ret = (struct us_user){.name = ""};
    if (route->scope == US_SCOPE_NONE)
        return;
    enum us_status st = us_head_single(&r->head, "Authorization", &header, &err);
    if (st == US_OK)
        st = us_auth_check(s->auth, header, ret, &err);
    (void)snprintf(r->log_user, sizeof(r->log_user), "%.64s", ret->name);
    if (st == US_OK)
        (void)snprintf(r->log_token, sizeof(r->log_token), "%s", ret->token);
    else if (header != NULL && strchr(header, ' ') != NULL)
        us_token_id(strrchr(header, ' ') + 1, r->log_token);
    if (st != US_OK || !us_scopes_grant(ret->scopes, route->scope))
        refuse(r, route, st, &err);
}

/* ---- whose it is --------------------------------------------------------------------------- */

static bool writes(const struct us_route *route)
{
    return strcmp(route->method, "GET") != 0;
}

/* Somebody else's job is answered as one that is not there. */
static void check_job(struct us_call *c)
{
    struct us_store *s = c->server->store;
    const struct us_store_filter own = {.id = c->job, .owner = c->user.name};
    struct us_err err = {0};
    int64_t n = 0;
    if (us_user_is_admin(&c->user))
        return;
    if (s->ops->count(s, &own, &n, &err) != US_OK)
        us_problem_err(c->r, &err);
    else if (n == 0)
        us_problem(c->r, 404, "there is no job '%s'", c->job);
}

/* What the head says of the body's size; its end decides again. */
static void check_quota(struct us_call *c)
{
    const struct us_framing *f = &c->r->framing;
    struct us_err err = {0};
    int64_t bytes = f->has_length && f->length < INT64_MAX ? (int64_t)f->length : 1;
    if (us_owners_room(c->server->owners, &c->user, bytes, &err) != US_OK)
        us_problem_err(c->r, &err);
}

static void check_dataset(struct us_call *c, bool sends)
{
    struct us_owners *o = c->server->owners;
    struct us_err err = {0};
    enum us_status st = sends ? us_owners_may_make(o, US_RECORD_DATASET, c->dataset, &c->user, &err)
                              : us_owners_may_use(o, c->dataset, &c->user, &err);
    if (st != US_OK)
        us_problem_err(c->r, &err);
}

static void check_model(struct us_call *c)
{
    struct us_err err = {0};
    enum us_status st =
        us_owners_may_make(c->server->owners, US_RECORD_MODEL, c->model, &c->user, &err);
    if (st == US_E_EXISTS)
        us_problem(c->r, 403, "%s", err.msg);
    else if (st != US_OK)
        us_problem_err(c->r, &err);
}

void us_access_check_names(struct us_call *c, const struct us_route *route)
{
    bool sends = route->ops->takes_body && c->job == NULL;
    if (c->job != NULL)
        check_job(c);
    if (c->dataset != NULL)
        check_dataset(c, sends);
    else if (c->model != NULL && writes(route) && route->scope == US_SCOPE_TRAIN)
        check_model(c);
    if (c->r->reply.status == 0 && sends && route->scope == US_SCOPE_TRAIN)
        check_quota(c);
}
