/*
 * Batches made beside compute: a ring of slots, each filled by one thread, handed out in order.
 * A failure travels in its batch's place, so the consumer sees it exactly where it happened.
 */
#include <pthread.h>
#include <stdlib.h>

#include "us_dataset.h"

struct slot {
    int64_t batch; /* number of the batch it holds or will hold */
    bool ready;
    int32_t n;
    float *input, *target;
    enum us_status status;
    struct us_err err;
};

struct us_loader {
    struct us_dataset *d;
    enum us_split split;
    uint32_t epoch;
    int64_t first, total; /* patches of the epoch: from first to total */
    int32_t batch, scales, side, targets, n_slots, n_threads;
    struct slot *slots;
    float *memory;
    pthread_t *threads;
    pthread_mutex_t lock;
    pthread_cond_t filled, taken;
    int64_t next_fill, next_take; /* batch numbers */
    bool quit;
};

static int64_t n_batches(const struct us_loader *l)
{
    return (l->total - l->first + l->batch - 1) / l->batch;
}

static enum us_status fill(struct us_loader *l, struct slot *s)
{
    int64_t begin = l->first + s->batch * l->batch, plane = (int64_t)l->side * l->side;
    int64_t left = l->total - begin;
    s->n = left < l->batch ? (int32_t)left : l->batch;
    float *input[US_MAX_SCALES];
    for (int32_t i = 0; i < s->n; i++) {
        for (int32_t k = 0; k < l->scales; k++)
            input[k] = s->input + ((int64_t)i * l->scales + k) * plane;
        US_TRY(us_dataset_patch(l->d, l->split, l->epoch, begin + i, input,
                                s->target + i * plane * l->targets, &s->err));
    }
    return US_OK;
}

/* Batch next_take - 1 is being read until the next call, so its slot is not free yet. */
static void *loader_main(void *arg)
{
    struct us_loader *l = arg;
    pthread_mutex_lock(&l->lock);
    for (;;) {
        while (!l->quit && l->next_fill < n_batches(l) &&
               l->next_fill >= l->next_take - 1 + l->n_slots)
            pthread_cond_wait(&l->taken, &l->lock);
        if (l->quit || l->next_fill >= n_batches(l))
            break;
        struct slot *s = &l->slots[l->next_fill % l->n_slots];
        s->batch = l->next_fill++;
        s->ready = false;
        pthread_mutex_unlock(&l->lock);
        enum us_status status = fill(l, s);
        pthread_mutex_lock(&l->lock);
        s->status = status;
        s->ready = true;
        pthread_cond_broadcast(&l->filled);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static enum us_status alloc_slots(struct us_loader *l)
{
    size_t plane = (size_t)l->side * (size_t)l->side;
    size_t in = plane * (size_t)l->batch * (size_t)l->scales;
    size_t out = plane * (size_t)l->batch * (size_t)l->targets;
    l->slots = calloc((size_t)l->n_slots, sizeof(*l->slots));
    l->threads = calloc((size_t)l->n_threads, sizeof(*l->threads));
    l->memory = calloc((size_t)l->n_slots * (in + out), sizeof(float));
    if (l->slots == NULL || l->threads == NULL || l->memory == NULL)
        return US_E_NOMEM;
    for (int32_t i = 0; i < l->n_slots; i++) {
        l->slots[i].batch = -1;
        l->slots[i].input = l->memory + (size_t)i * (in + out);
        l->slots[i].target = l->slots[i].input + in;
    }
    return US_OK;
}

enum us_status us_loader_new(struct us_dataset *d, enum us_split s, uint32_t epoch, int64_t first,
                             int32_t batch, int32_t threads, int32_t ahead, struct us_loader **ret,
                             struct us_err *err)
{
    struct us_loader *l = calloc(1, sizeof(*l));
    if (l == NULL)
        return us_fail(err, US_E_NOMEM, "loader: out of memory");
    us_dataset_shape(d, &l->side, &l->scales, &l->targets);
    l->d = d;
    l->split = s;
    l->epoch = epoch;
    l->first = first;
    l->total = us_dataset_n_patches(d, s);
    l->batch = batch > 0 ? batch : 1;
    l->n_threads = threads > 0 ? threads : 1;
    /* One slot more than is prepared ahead: the one that the consumer reads. */
    l->n_slots = (ahead > 0 ? ahead : 1) + 1;
    (void)pthread_mutex_init(&l->lock, NULL);
    (void)pthread_cond_init(&l->filled, NULL);
    (void)pthread_cond_init(&l->taken, NULL);
    int32_t wanted = l->n_threads, started = 0;
    enum us_status status = alloc_slots(l);
    while (status == US_OK && started < wanted) {
        if (pthread_create(&l->threads[started], NULL, loader_main, l) != 0)
            break;
        started++;
    }
    l->n_threads = started; /* fewer threads only load more slowly; none is a failure */
    if (status != US_OK || started == 0) {
        us_loader_free(l);
        return us_fail(err, US_E_NOMEM, "loader: out of memory or threads");
    }
    *ret = l;
    return US_OK;
}

void us_loader_free(struct us_loader *l)
{
    if (l == NULL)
        return;
    pthread_mutex_lock(&l->lock);
    l->quit = true;
    pthread_cond_broadcast(&l->taken);
    pthread_mutex_unlock(&l->lock);
    for (int32_t i = 0; l->threads != NULL && i < l->n_threads; i++)
        (void)pthread_join(l->threads[i], NULL);
    (void)pthread_cond_destroy(&l->taken);
    (void)pthread_cond_destroy(&l->filled);
    (void)pthread_mutex_destroy(&l->lock);
    free(l->threads);
    free(l->slots);
    free(l->memory);
    free(l);
}

enum us_status us_loader_next(struct us_loader *l, struct us_loader_batch *ret, struct us_err *err)
{
    pthread_mutex_lock(&l->lock);
    int64_t b = l->next_take;
    if (b >= n_batches(l)) {
        pthread_mutex_unlock(&l->lock);
        *ret = (struct us_loader_batch){.first = l->total};
        return US_OK;
    }
    struct slot *s = &l->slots[b % l->n_slots];
    while (s->batch != b || !s->ready)
        pthread_cond_wait(&l->filled, &l->lock);
    enum us_status status = s->status;
    if (status == US_OK) {
        *ret = (struct us_loader_batch){s->n, l->first + b * l->batch, s->input, s->target};
        l->next_take++;
        pthread_cond_broadcast(&l->taken);
    } else if (err != NULL) {
        *err = s->err;
    }
    pthread_mutex_unlock(&l->lock);
    return status;
}
