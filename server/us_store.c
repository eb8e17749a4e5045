/* What every store shares; see us_store.h. */
#include "us_store.h"

#include <stdlib.h>

const char *us_job_state_name(enum us_job_state s)
{
    static const char *const names[] = {"queued", "running",   "succeeded",
                                        "failed", "cancelled", "paused"};
    _Static_assert(US_COUNT(names) == US_JOB_STATE_COUNT, "every state has a name");
    return (unsigned)s < US_COUNT(names) ? names[s] : "unknown";
}

void us_store_job_release(struct us_store_job *job)
{
    free(job->spec);
    free(job->progress);
    free(job->result);
    job->spec = job->progress = job->result = NULL;
}
