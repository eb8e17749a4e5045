/*
 * Shapes. A *map* is a feature map [N, H, W, C] (NHWC, channels fastest) of which a compact
 * buffer holds one rectangle: `rect` in the coordinates of the full map, buffer shape
 * [n, rect.h, rect.w, c] without gaps. Whoever shrinks the rectangles (region of interest) changes
 * no op: an op computes out.rect from in.rect and knows the true borders from full_h and full_w.
 *
 * No arithmetic on pixels here, only geometry.
 */
#ifndef US_MAP_H
#define US_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum us_dtype { US_F32 = 0, US_BF16 = 1 };

/* Half-open rectangle [y0, y0+h) x [x0, x0+w), in pixels of the full map. */
struct us_rect {
    int32_t y0, x0, h, w;
};

struct us_map {
    int32_t n, c;
    int32_t full_h, full_w;
    struct us_rect rect;
    enum us_dtype dtype;
    /* The full map is zero outside rect (a centred zero pad that was never materialised). If
     * false, pixels outside rect are unknown and must not be needed. */
    bool zero_outside;
};

static inline size_t us_dtype_bytes(enum us_dtype t)
{
    return t == US_F32 ? 4 : 2;
}

static inline struct us_map us_map_full(int32_t n, int32_t h, int32_t w, int32_t c,
                                        enum us_dtype dtype)
{
    struct us_map m;
    m.n = n;
    m.c = c;
    m.full_h = h;
    m.full_w = w;
    m.rect.y0 = 0;
    m.rect.x0 = 0;
    m.rect.h = h;
    m.rect.w = w;
    m.dtype = dtype;
    m.zero_outside = false;
    return m;
}

/* Elements and bytes of the compact buffer. */
static inline int64_t us_map_count(const struct us_map *m)
{
    return (int64_t)m->n * m->rect.h * m->rect.w * m->c;
}

static inline size_t us_map_bytes(const struct us_map *m)
{
    return (size_t)us_map_count(m) * us_dtype_bytes(m->dtype);
}

/* Element index of pixel (y, x) of the *full* map, channel 0, item n; (y, x) lies in rect. */
static inline int64_t us_map_index(const struct us_map *m, int32_t n, int32_t y, int32_t x)
{
    return (((int64_t)n * m->rect.h + (y - m->rect.y0)) * m->rect.w + (x - m->rect.x0)) * m->c;
}

static inline bool us_rect_contains(const struct us_rect *outer, const struct us_rect *inner)
{
    return inner->y0 >= outer->y0 && inner->x0 >= outer->x0 &&
           inner->y0 + inner->h <= outer->y0 + outer->h &&
           inner->x0 + inner->w <= outer->x0 + outer->w;
}

static inline bool us_rect_equal(const struct us_rect *a, const struct us_rect *b)
{
    return a->y0 == b->y0 && a->x0 == b->x0 && a->h == b->h && a->w == b->w;
}

#ifdef __cplusplus
}
#endif
#endif
