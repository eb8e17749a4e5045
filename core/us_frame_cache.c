/*
 * Least-recently-used cache of frame pyramids. The lock is never held while a frame is read: its
 * slot is marked as loading and whoever else wants it waits.
 */
#include "us_frame_cache.h"

#include <pthread.h>
#include <stdlib.h>

struct us_frame_cache {
    const struct us_frame_source *src;
    int32_t n_scales, n_planes;
    double clip[US_MAX_PLANES_PER_FRAME];
    int64_t max_bytes, bytes;
    uint64_t clock;
    pthread_mutex_t lock;
    pthread_cond_t ready;
    struct us_cached_frame *slot; /* one per frame of the source */
};

enum us_status us_frame_cache_new(const struct us_frame_source *src, int32_t n_scales,
                                  const double *clip, int64_t max_bytes,
                                  struct us_frame_cache **ret)
{
    struct us_frame_cache *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return US_E_NOMEM;
    c->slot = calloc((size_t)src->n_frames + 1, sizeof(*c->slot));
    if (c->slot == NULL) {
        free(c);
        return US_E_NOMEM;
    }
    c->src = src;
    c->n_scales = n_scales;
    c->n_planes = src->n_channels + (src->has_input ? 1 : 0);
    for (int32_t i = 0; i < c->n_planes; i++)
        c->clip[i] = clip[i];
    c->max_bytes = max_bytes;
    (void)pthread_mutex_init(&c->lock, NULL);
    (void)pthread_cond_init(&c->ready, NULL);
    *ret = c;
    return US_OK;
}

static void drop(struct us_frame_cache *c, struct us_cached_frame *f)
{
    for (int32_t i = 0; i < c->n_planes; i++)
        us_pyramid_release(&f->plane[i]);
    c->bytes -= f->bytes;
    f->bytes = 0;
    f->state = US_FRAME_EMPTY;
}

void us_frame_cache_free(struct us_frame_cache *c)
{
    if (c == NULL)
        return;
    for (int64_t i = 0; i < c->src->n_frames; i++)
        drop(c, &c->slot[i]);
    (void)pthread_cond_destroy(&c->ready);
    (void)pthread_mutex_destroy(&c->lock);
    free(c->slot);
    free(c);
}

static int64_t frame_bytes(const struct us_frame_cache *c, const struct us_cached_frame *f)
{
    int64_t n = 0;
    for (int32_t i = 0; i < c->n_planes; i++) {
        for (int32_t s = 0; s < f->plane[i].n_scales; s++)
            n += f->plane[i].h[s] * f->plane[i].w[s];
    }
    return n * (int64_t)sizeof(float);
}

static enum us_status read_frame(const struct us_frame_cache *c, struct us_cached_frame *f,
                                 struct us_err *err)
{
    const struct us_frame_source *src = c->src;
    int64_t h, w;
    US_TRY(src->shape(src->arg, f->frame, &h, &w));
    float *plane = calloc((size_t)h * (size_t)w, sizeof(float));
    enum us_status s = plane != NULL ? US_OK : US_E_NOMEM;
    for (int32_t i = 0; i < c->n_planes && s == US_OK; i++) {
        s = src->read(src->arg, f->frame, i, plane, err);
        if (s != US_OK)
            break;
        s = us_pyramid_build(plane, h, w, c->n_scales, c->clip[i], &f->plane[i], NULL);
    }
    free(plane);
    if (s == US_E_NOMEM)
        return us_fail(err, s, "frame %s of %lld x %lld: out of memory",
                       src->name(src->arg, f->frame), (long long)h, (long long)w);
    return s;
}

/* Under the lock: makes room by dropping what nobody uses, oldest first. */
static void evict(struct us_frame_cache *c)
{
    while (c->bytes > c->max_bytes) {
        struct us_cached_frame *oldest = NULL;
        for (int64_t i = 0; i < c->src->n_frames; i++) {
            struct us_cached_frame *f = &c->slot[i];
            if (f->state == US_FRAME_READY && f->pins == 0 &&
                (oldest == NULL || f->used < oldest->used))
                oldest = f;
        }
        if (oldest == NULL)
            return;
        drop(c, oldest);
    }
}

enum us_status us_frame_cache_get(struct us_frame_cache *c, int64_t frame,
                                  const struct us_cached_frame **ret, struct us_err *err)
{
    struct us_cached_frame *f = &c->slot[frame];
    enum us_status s = US_OK;
    pthread_mutex_lock(&c->lock);
    while (f->state == US_FRAME_LOADING)
        pthread_cond_wait(&c->ready, &c->lock);
    f->pins++;
    f->used = ++c->clock;
    if (f->state == US_FRAME_EMPTY) {
        f->state = US_FRAME_LOADING;
        f->frame = frame;
        pthread_mutex_unlock(&c->lock);
        s = read_frame(c, f, err);
        pthread_mutex_lock(&c->lock);
        f->state = US_FRAME_READY;
        f->bytes = frame_bytes(c, f);
        c->bytes += f->bytes;
        if (s != US_OK) {
            f->pins--;
            drop(c, f);
        }
        evict(c);
        pthread_cond_broadcast(&c->ready);
    }
    pthread_mutex_unlock(&c->lock);
    *ret = f;
    return s;
}

void us_frame_cache_put(struct us_frame_cache *c, const struct us_cached_frame *f)
{
    pthread_mutex_lock(&c->lock);
    c->slot[f->frame].pins--;
    evict(c);
    pthread_mutex_unlock(&c->lock);
}
