/*
 * One block for all maps of a worker. Largest first, each tensor takes the lowest gap that no
 * tensor alive at the same time occupies: simple, and within a few per cent of the peak of live
 * bytes for these networks (tests/unit/test_plan.c holds it to that).
 */
#include <stdlib.h>

#include "us_plan_impl.h"

static int64_t aligned(size_t bytes)
{
    return (int64_t)((bytes + US_PLAN_ALIGN - 1) / US_PLAN_ALIGN * US_PLAN_ALIGN);
}

static int64_t tensor_bytes(const struct us_plan_tensor *t)
{
    return aligned(us_map_bytes(&t->map));
}

static bool alive_together(const struct us_plan_tensor *a, const struct us_plan_tensor *b)
{
    return a->first <= b->last && b->first <= a->last;
}

struct order {
    int32_t tensor;
    int64_t bytes;
};

/* Largest first; equal sizes in the order of creation, so that the layout is reproducible. */
static int by_size(const void *x, const void *y)
{
    const struct order *a = x, *b = y;
    if (a->bytes != b->bytes)
        return a->bytes > b->bytes ? -1 : 1;
    return a->tensor < b->tensor ? -1 : 1;
}

/* The lowest offset at which tensor t meets none of the `n` placed ones; order[0..n) placed. */
static int64_t lowest_gap(const struct us_plan *p, const struct order *order, int32_t n, int32_t t)
{
    int64_t offset = 0, bytes = tensor_bytes(&p->tensors[t]);
    for (bool moved = true; moved;) {
        moved = false;
        for (int32_t i = 0; i < n; i++) {
            const struct us_plan_tensor *o = &p->tensors[order[i].tensor];
            if (!alive_together(o, &p->tensors[t]))
                continue;
            if (offset < o->offset + tensor_bytes(o) && o->offset < offset + bytes) {
                offset = o->offset + tensor_bytes(o);
                moved = true;
            }
        }
    }
    return offset;
}

enum us_status usi_plan_layout(struct us_plan *p)
{
    struct order *order = calloc((size_t)p->n_tensors + 1, sizeof(*order));
    if (order == NULL)
        return US_E_NOMEM;
    for (int32_t i = 0; i < p->n_tensors; i++)
        order[i] = (struct order){i, tensor_bytes(&p->tensors[i])};
    qsort(order, (size_t)p->n_tensors, sizeof(*order), by_size);
    int64_t end = 0;
    for (int32_t i = 0; i < p->n_tensors; i++) {
        struct us_plan_tensor *t = &p->tensors[order[i].tensor];
        t->offset = lowest_gap(p, order, i, order[i].tensor);
        if (t->offset + order[i].bytes > end)
            end = t->offset + order[i].bytes;
    }
    free(order);
    p->scratch_offset = (size_t)end;
    p->block_bytes = (size_t)end + (size_t)aligned(p->scratch_bytes);
    return US_OK;
}
