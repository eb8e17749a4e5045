/*
 * Frames from a formula; see us_fake_frames.h.
 */
#include "us_fake_frames.h"

#include <stdio.h>
#include <string.h>

float us_fake_stripes(int64_t frame, int32_t plane, int64_t y, int64_t x)
{
    int64_t a = plane == 1 ? y : x, period = plane == 1 ? 8 : 4;
    float level = plane == 1 ? 300.0f : 100.0f;
    return level * (float)((a + frame) / (period / 2) % 2) + (float)((x * 7 + y * 13) % 11);
}

static enum us_status shape(void *arg, int64_t frame, int64_t *h, int64_t *w)
{
    const struct us_fake_frames *f = arg;
    *h = f->h[frame];
    *w = f->w[frame];
    return US_OK;
}

static enum us_status read_plane(void *arg, int64_t frame, int32_t plane, float *out,
                                 struct us_err *err)
{
    struct us_fake_frames *f = arg;
    if (plane == 0)
        atomic_fetch_add(&f->reads[frame], 1);
    if (atomic_load(&f->failing) == frame)
        return us_fail(err, US_E_IO, "frame %s: scripted failure", f->name[frame]);
    for (int64_t y = 0; y < f->h[frame]; y++) {
        for (int64_t x = 0; x < f->w[frame]; x++)
            out[y * f->w[frame] + x] = f->pixel(frame, plane, y, x);
    }
    return US_OK;
}

static const char *name(void *arg, int64_t frame)
{
    const struct us_fake_frames *f = arg;
    return f->name[frame];
}

void us_fake_frames_init(struct us_fake_frames *f, int64_t n, int64_t h, int64_t w)
{
    memset(f, 0, sizeof(*f));
    f->src = (struct us_frame_source){
        .n_frames = n, .n_channels = 2, .shape = shape, .read = read_plane, .name = name, .arg = f};
    f->pixel = us_fake_stripes;
    atomic_store(&f->failing, -1);
    for (int64_t i = 0; i < n; i++) {
        f->h[i] = h;
        f->w[i] = w;
        (void)snprintf(f->name[i], sizeof(f->name[i]), "f%lld", (long long)i);
    }
}

struct us_dataset_config us_fake_config(int32_t patch, int32_t scales)
{
    struct us_dataset_config c = {.patch = patch,
                                  .lc_scales = scales,
                                  .padding = US_PAD_ZERO,
                                  .val_fraction = 0.1,
                                  .test_fraction = 0.1,
                                  .clip_quantile = 0.995,
                                  .cache_bytes = INT64_MAX,
                                  .seed = 5};
    for (int i = 0; i < 2; i++)
        c.alpha_min[i] = c.alpha_max[i] = 0.5;
    return c;
}
