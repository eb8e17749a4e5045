/* Fail points for tests; see us_failpoint.h. */
#include "us_failpoint.h"

#ifdef US_FAILPOINTS
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {
#define US_FAILPOINT(name, text) name,
#include "us_failpoint.def"
#undef US_FAILPOINT
};

static struct {
    const char *name; /* NULL: none is armed */
    size_t name_bytes;
    long at, passed;
    enum us_status status; /* US_OK: kill */
} armed;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t read_once = PTHREAD_ONCE_INIT;

static void arm(void)
{
    const char *t = getenv("USPLIT_FAIL");
    if (t == NULL || t[0] == '\0')
        return;
    armed.name_bytes = strcspn(t, ":");
    armed.at = 1;
    for (const char *p = t + armed.name_bytes; *p == ':'; p += strcspn(p, ":")) {
        p++;
        if (*p >= '0' && *p <= '9')
            armed.at = strtol(p, NULL, 10);
        else if (strncmp(p, "io", 2) == 0)
            armed.status = US_E_IO;
        else if (strncmp(p, "full", 4) == 0)
            armed.status = US_E_DISK_FULL;
    }
    armed.name = t;
}

static bool is_known(const char *name)
{
    bool known = false;
    for (size_t i = 0; i < US_COUNT(names); i++)
        known |= strcmp(names[i], name) == 0;
    return known;
}

enum us_status us_failpoint(const char *name, struct us_err *err)
{
    (void)pthread_once(&read_once, arm);
    US_ASSERT(is_known(name));
    if (armed.name == NULL || strlen(name) != armed.name_bytes ||
        strncmp(name, armed.name, armed.name_bytes) != 0)
        return US_OK;
    (void)pthread_mutex_lock(&lock);
    bool now = ++armed.passed >= armed.at;
    (void)pthread_mutex_unlock(&lock);
    if (!now)
        return US_OK;
    while (armed.status == US_OK)
        (void)kill(getpid(), SIGKILL);
    return us_fail(err, armed.status, "fail point %s", name);
}
#endif
