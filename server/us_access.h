/*
 * Whether a request may be: its token, the scope of its route, and whose the job, data set or model
 * of its path is. The router asks before any handler, so that none can forget to.
 */
#ifndef US_ACCESS_H
#define US_ACCESS_H

#include "us_routes.h"

/* Who asks. Sets the refusal: 401 (no token, or no good one), 403 (the scope), 400, 503. */
void us_access_authorize(struct us_server *s, struct us_http_request *r,
                         const struct us_route *route, struct us_user *ret);

/* Sets the refusal where the path names what is somebody else's, or what is sent does not fit into
 * the user's quota: 404, 409, 403, 507. */
void us_access_check_names(struct us_call *c, const struct us_route *route);

#endif
