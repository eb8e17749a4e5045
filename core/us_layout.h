/*
 * Placing buffers in one block by lifetime. Internal to the plans.
 */
#ifndef US_LAYOUT_H
#define US_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "us_status.h"

#define US_PLAN_ALIGN 64

/* A buffer that holds its value from `first` to `last` inclusive, in the plan's own time. */
struct us_span {
    size_t bytes;
    int32_t first, last;
    size_t offset; /* set by usi_layout: a multiple of US_PLAN_ALIGN */
};

static inline size_t usi_aligned(size_t bytes)
{
    return (bytes + US_PLAN_ALIGN - 1) / US_PLAN_ALIGN * US_PLAN_ALIGN;
}

/* Gives every span its offset; spans alive together do not overlap. *ret_bytes: end of the block.
 * Reproducible: the same spans give the same layout. US_E_NOMEM. */
enum us_status usi_layout(struct us_span *spans, int32_t n, size_t *ret_bytes) US_WARN_UNUSED;

#endif
