/*
 * Named places at durable steps where a test can make the daemon die or fail:
 * USPLIT_FAIL=NAME[:N][:WHAT] acts when place NAME is passed for the N-th time (1). WHAT is `kill`
 * (SIGKILL to ourselves, the default), `io` or `full` (the step fails so, from then on each time).
 *
 * Only builds with the meson option `failpoints` look at the variable; in others every place is a
 * constant that the compiler drops. us_failpoint.def is the list, and each of its names is killed
 * at by tests/http/test_crash.py.
 */
#ifndef US_FAILPOINT_H
#define US_FAILPOINT_H

#include "us_status.h"

#ifdef US_FAILPOINTS
enum us_status us_failpoint(const char *name, struct us_err *err) US_WARN_UNUSED;
#else
static inline enum us_status us_failpoint(const char *name, struct us_err *err)
{
    return US_OK;
}
#endif

#endif
