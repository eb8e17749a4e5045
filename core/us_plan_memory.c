/*
 * The plan's memory: one block for all maps of a worker (us_layout.h), the ops' scratch behind it.
 */
#include <stdlib.h>

#include "us_layout.h"
#include "us_plan_impl.h"

enum us_status usi_plan_layout(struct us_plan *p)
{
    struct us_span *spans = calloc((size_t)p->n_tensors + 1, sizeof(*spans));
    if (spans == NULL)
        return US_E_NOMEM;
    for (int32_t i = 0; i < p->n_tensors; i++) {
        const struct us_plan_tensor *t = &p->tensors[i];
        spans[i] = (struct us_span){us_map_bytes(&t->map), t->first, t->last, 0};
    }
    enum us_status status = usi_layout(spans, p->n_tensors, &p->scratch_offset);
    for (int32_t i = 0; i < p->n_tensors && status == US_OK; i++)
        p->tensors[i].offset = (int64_t)spans[i].offset;
    p->block_bytes = p->scratch_offset + usi_aligned(p->scratch_bytes);
    free(spans);
    return status;
}
