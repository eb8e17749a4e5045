/*
 * Frames that stay on the device (us_frame_ops.h): one kernel per scale, sample and channel.
 */
#include "us_cuda_impl.h"
#include "us_frame_ops.h"

/* 128 patches of 64 x 64: enough pieces of work for every processor of a large device also in the
 * layers at an eighth of the side (design: >= 128 patches per start). */
#define RUN_PIXELS ((int64_t)128 * 64 * 64)

static enum us_status cuda_halve(struct us_backend *be, const struct us_frame_halve *a)
{
    const struct us_k_frame_halve k = {*a};
    return be->gpu->kernels->frame_halve(be->gpu, &k);
}

static enum us_status cuda_gather(struct us_backend *be, const struct us_frame_gather *a)
{
    for (int32_t s = 0; s < a->n_scales; s++) {
        const struct us_k_frame_gather k = {.tiles = a->tiles,
                                            .size = a->size,
                                            .margin = a->margin,
                                            .zero_pad = a->zero_pad,
                                            .mean = a->mean,
                                            .std = a->std,
                                            .scale = s,
                                            .frame = a->scale[s].frame,
                                            .h = a->scale[s].h,
                                            .w = a->scale[s].w,
                                            .patches = a->scale[s].patches};
        if (k.patches != NULL)
            US_TRY(be->gpu->kernels->frame_gather(be->gpu, &k));
    }
    return US_OK;
}

static enum us_status cuda_add(struct us_backend *be, const struct us_frame_add *a)
{
    const struct us_k_frame_add k = {.a = *a, .weight = 1.0 / (a->n_before + 1.0)};
    return be->gpu->kernels->frame_add(be->gpu, &k);
}

static enum us_status cuda_merge(struct us_backend *be, const struct us_frame_merge *a)
{
    for (int32_t c = 0; c < a->channels; c++) {
        const int64_t plane = c * a->h * a->w;
        const struct us_k_frame_merge k = {
            .tiles = a->tiles,
            .mean = a->mean,
            .m2 = a->m2,
            .channel = c,
            .channels = a->channels,
            .h = a->h,
            .w = a->w,
            .mean_plane = a->mean_plane + plane,
            .m2_plane = a->m2 != NULL ? a->m2_plane + plane : NULL,
            .before = a->before,
            .n = a->n,
            .last = a->last,
            .share = (double)a->n / (a->before + a->n),
            .scale = a->scale[c],
            .shift = a->shift[c],
        };
        US_TRY(be->gpu->kernels->frame_merge(be->gpu, &k));
    }
    return US_OK;
}

const struct us_frame_ops usi_cuda_frame_ops = {
    .pixels = RUN_PIXELS,
    .halve = cuda_halve,
    .gather = cuda_gather,
    .add = cuda_add,
    .merge = cuda_merge,
};
