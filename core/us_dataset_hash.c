/*
 * The identity of data: SHA-256 over what a split holds, so that a checkpoint is never resumed on
 * other data and a model says what it has seen. Every pixel of the split passes here, so this is
 * also where one that is no number is found.
 */
#include <math.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_dataset.h"

struct pass {
    const struct us_frame_source *src;
    const struct us_dataset_watch *watch;
    struct sha256_ctx sha;
    int32_t planes; /* of each frame */
    int64_t done, total;
};

static enum us_status check_finite(const struct pass *p, int64_t frame, int32_t plane,
                                   const float *pixel, int64_t n, int64_t w, struct us_err *err)
{
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(pixel[i]))
            return us_fail(err, US_E_FORMAT,
                           "frame %s channel %d: pixel (%lld, %lld) is %g; expected finite values",
                           p->src->name(p->src->arg, frame), plane, (long long)(i / w),
                           (long long)(i % w), (double)pixel[i]);
    }
    return US_OK;
}

static enum us_status hash_plane(struct pass *p, int64_t frame, int32_t plane, float *pixel,
                                 int64_t height, int64_t width, struct us_err *err)
{
    const struct us_dataset_watch *w = p->watch;
    if (w != NULL && w->cancel != NULL && atomic_load(w->cancel))
        return us_fail(err, US_E_CANCELLED, "cancelled");
    US_TRY(p->src->read(p->src->arg, frame, plane, pixel, err));
    US_TRY(check_finite(p, frame, plane, pixel, height * width, width, err));
    sha256_update(&p->sha, (size_t)height * (size_t)width * sizeof(float), (const uint8_t *)pixel);
    p->done++;
    if (w != NULL && w->progress != NULL)
        w->progress(w->arg, p->done, p->total);
    return US_OK;
}

/* Bytes of all planes of one frame, after its name and shape. */
static enum us_status hash_frame(struct pass *p, int64_t frame, struct us_err *err)
{
    const struct us_frame_source *src = p->src;
    int64_t h, w;
    US_TRY(src->shape(src->arg, frame, &h, &w));
    char head[US_ERR_MSG_BYTES];
    int n = snprintf(head, sizeof(head), "%s\n%lld %lld %d\n", src->name(src->arg, frame),
                     (long long)h, (long long)w, p->planes);
    sha256_update(&p->sha, n < (int)sizeof(head) ? (size_t)n : sizeof(head) - 1,
                  (const uint8_t *)head);
    float *pixel = calloc((size_t)(h * w), sizeof(float));
    if (pixel == NULL)
        return us_fail(err, US_E_NOMEM, "data hash: out of memory");
    enum us_status s = US_OK;
    for (int32_t i = 0; i < p->planes && s == US_OK; i++)
        s = hash_plane(p, frame, i, pixel, h, w, err);
    free(pixel);
    return s;
}

enum us_status us_dataset_hash(struct us_dataset *d, enum us_split s,
                               const struct us_dataset_watch *watch, char hex[65],
                               struct us_err *err)
{
    struct pass p = {.src = us_dataset_source(d), .watch = watch};
    int64_t n;
    const int64_t *frames = us_dataset_frames(d, s, &n);
    p.planes = p.src->n_channels + (p.src->has_input ? 1 : 0);
    p.total = n * p.planes;
    sha256_init(&p.sha);
    for (int64_t i = 0; i < n; i++)
        US_TRY(hash_frame(&p, frames[i], err));
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(&p.sha, sizeof(digest), digest);
    for (size_t i = 0; i < sizeof(digest); i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return US_OK;
}
