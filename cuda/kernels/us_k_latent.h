/*
 * A sample of the posterior (model-spec 5.2, 5.3) with the noise of math/us_philox_math.h. One
 * Philox block makes the normals of four channels, so a piece has one block or two.
 */
#ifndef US_K_LATENT_H
#define US_K_LATENT_H

#include "kernels/us_k_vec.h"
#include "math/us_gauss_math.h"
#include "math/us_philox_math.h"
#include "us_backend.h"

US_HD int32_t us_k_latent_width(const struct us_k_latent *a)
{
    return a->grid.vec == 8 ? 8 : 4;
}

US_HD int32_t us_k_latent_groups(const struct us_k_latent *a)
{
    int32_t width = us_k_latent_width(a);
    return (a->grid.c + width - 1) / width;
}

US_HD int64_t us_k_latent_count(const struct us_k_latent *a)
{
    return a->grid.n * a->grid.h * a->grid.w * us_k_latent_groups(a);
}

/* eps of channels at->c .. at->c + 4. */
US_HD struct us_normal4 us_k_latent_draw(const struct us_k_latent *a, const struct us_k_place *at)
{
    const struct us_noise *z = &a->noise[at->n];
    int32_t y = a->y0 + (int32_t)at->y, x = a->x0 + (int32_t)at->x;
    uint32_t c0 = z->patch;
    uint32_t c1 = us_noise_c1_patch(y, x);
    if (z->image_keyed) {
        c0 = us_noise_position(z->centre_x, a->level, a->full_w, x);
        c1 = us_noise_position(z->centre_y, a->level, a->full_h, y);
    }
    return us_noise_normal4((uint32_t)z->seed, (uint32_t)(z->seed >> 32), c0, c1,
                            us_noise_c2(z->image_keyed, a->level, z->sample), z->frame,
                            (uint32_t)at->c / 4);
}

US_HD struct us_normal4 us_k_latent_hook(const struct us_k_latent *a, const struct us_k_place *at)
{
    int64_t y = a->y0 + at->y, x = a->x0 + at->x;
    const float *eps = a->eps + ((at->n * a->full_h + y) * a->full_w + x) * a->grid.c;
    struct us_normal4 r;
    for (int32_t j = 0; j < 4; j++)
        r.z[j] = at->c + j < a->grid.c ? eps[at->c + j] : 0.0f;
    return r;
}

/* Four channels from at->c; `vec` 4, or 1 where neighbours cannot be had in one access. */
US_HD void us_k_latent_block(const struct us_k_latent *a, const struct us_k_place *at, int32_t vec)
{
    int hook = a->eps != NULL && a->noise[at->n].eps != NULL;
    struct us_normal4 eps = hook ? us_k_latent_hook(a, at) : us_k_latent_draw(a, at);
    struct us_k_place mean_at = *at, lv_at = *at;
    float mean[4], lv[4];
    for (int32_t j = 0; j < 4; j += vec) {
        if (at->c + j >= a->grid.c)
            return;
        mean_at.c = at->c + j;
        lv_at.c = a->grid.c + mean_at.c;
        us_k_read(&a->in, &mean_at, vec, mean + j);
        us_k_read(&a->in, &lv_at, vec, lv + j);
        for (int32_t k = j; k < j + vec; k++)
            mean[k] = us_gauss_sample(mean[k], lv[k], a->var_clip_max, eps.z[k]);
        us_k_store(a->out.p, a->out.dtype, us_k_out_at(&a->out, &mean_at), vec, mean + j);
    }
}

US_HD void us_k_latent_at(const struct us_k_latent *a, int64_t i)
{
    int32_t group, width = us_k_latent_width(a);
    struct us_k_place at = us_k_place_of(&a->grid, i, us_k_latent_groups(a), &group);
    at.c = group * width;
    for (int32_t first = 0; first < width; first += 4, at.c += 4) {
        if (a->grid.vec > 1)
            us_k_latent_block(a, &at, 4);
        else
            us_k_latent_block(a, &at, 1);
    }
}

#endif
