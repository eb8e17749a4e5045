/*
 * The identity of training data: SHA-256 over what the training split holds, so that a checkpoint
 * is never resumed on other data and a model says what it has seen.
 */
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_dataset.h"

/* Bytes of all planes of one frame, after its name and shape. */
static enum us_status hash_frame(const struct us_frame_source *src, int64_t frame,
                                 struct sha256_ctx *sha, struct us_err *err)
{
    int64_t h, w;
    US_TRY(src->shape(src->arg, frame, &h, &w));
    int32_t planes = src->n_channels + (src->has_input ? 1 : 0);
    char head[US_ERR_MSG_BYTES];
    int n = snprintf(head, sizeof(head), "%s\n%lld %lld %d\n", src->name(src->arg, frame),
                     (long long)h, (long long)w, planes);
    sha256_update(sha, n < (int)sizeof(head) ? (size_t)n : sizeof(head) - 1, (const uint8_t *)head);
    size_t bytes = (size_t)h * (size_t)w * sizeof(float);
    float *plane = malloc(bytes);
    if (plane == NULL)
        return us_fail(err, US_E_NOMEM, "data hash: out of memory");
    enum us_status s = US_OK;
    for (int32_t i = 0; i < planes && s == US_OK; i++) {
        s = src->read(src->arg, frame, i, plane, err);
        if (s == US_OK)
            sha256_update(sha, bytes, (const uint8_t *)plane);
    }
    free(plane);
    return s;
}

enum us_status us_dataset_hash(struct us_dataset *d, char hex[65], struct us_err *err)
{
    struct sha256_ctx sha;
    sha256_init(&sha);
    int64_t n;
    const int64_t *frames = us_dataset_frames(d, US_SPLIT_TRAIN, &n);
    for (int64_t i = 0; i < n; i++)
        US_TRY(hash_frame(us_dataset_source(d), frames[i], &sha, err));
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(&sha, sizeof(digest), digest);
    for (size_t i = 0; i < sizeof(digest); i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    return US_OK;
}
