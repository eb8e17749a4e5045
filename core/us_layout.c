/*
 * Largest first, each buffer takes the lowest gap that no buffer alive at the same time occupies:
 * simple, and within a few per cent of the peak of live bytes for these networks.
 */
#include "us_layout.h"

#include <stdbool.h>
#include <stdlib.h>

static bool alive_together(const struct us_span *a, const struct us_span *b)
{
    return a->first <= b->last && b->first <= a->last;
}

struct order {
    const struct us_span *spans;
    int32_t index;
};

/* Largest first; equal sizes in the order of creation, so that the layout is reproducible. */
static int by_size(const void *x, const void *y)
{
    const struct order *a = x, *b = y;
    size_t sa = usi_aligned(a->spans[a->index].bytes), sb = usi_aligned(b->spans[b->index].bytes);
    if (sa != sb)
        return sa > sb ? -1 : 1;
    return a->index < b->index ? -1 : 1;
}

/* The lowest offset at which span s meets none of the n placed ones. */
static size_t lowest_gap(const struct us_span *spans, const struct order *placed, int32_t n,
                         const struct us_span *s)
{
    size_t offset = 0, bytes = usi_aligned(s->bytes);
    for (bool moved = true; moved;) {
        moved = false;
        for (int32_t i = 0; i < n; i++) {
            const struct us_span *o = &spans[placed[i].index];
            size_t end = o->offset + usi_aligned(o->bytes);
            if (alive_together(o, s) && offset < end && o->offset < offset + bytes) {
                offset = end;
                moved = true;
            }
        }
    }
    return offset;
}

enum us_status usi_layout(struct us_span *spans, int32_t n, size_t *ret_bytes)
{
    struct order *order = calloc((size_t)n + 1, sizeof(*order));
    if (order == NULL)
        return US_E_NOMEM;
    for (int32_t i = 0; i < n; i++)
        order[i] = (struct order){spans, i};
    qsort(order, (size_t)n, sizeof(*order), by_size);
    size_t end = 0;
    for (int32_t i = 0; i < n; i++) {
        struct us_span *s = &spans[order[i].index];
        s->offset = lowest_gap(spans, order, i, s);
        size_t top = s->offset + usi_aligned(s->bytes);
        end = top > end ? top : end;
    }
    free(order);
    *ret_bytes = end;
    return US_OK;
}
