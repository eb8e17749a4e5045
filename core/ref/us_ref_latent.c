/*
 * Reference posterior sample: z = mean + std * eps (model-spec 5.2, 5.3). eps is Philox's, laid out
 * as math/us_philox_math.h says, or what the test hook holds.
 */
#include "math/us_gauss_math.h"
#include "math/us_philox_math.h"
#include "us_ref.h"

/* eps of one channel; of the block's four the other three are thrown away. */
static float draw(const struct us_latent_desc *d, const struct us_noise *z, int32_t y, int32_t x,
                  int32_t c)
{
    uint32_t c0 = z->patch;
    uint32_t c1 = us_noise_c1_patch(y, x);
    if (z->image_keyed) {
        c0 = us_noise_position(z->centre_x, d->level, d->out.full_w, x);
        c1 = us_noise_position(z->centre_y, d->level, d->out.full_h, y);
    }
    struct us_normal4 r = us_noise_normal4((uint32_t)z->seed, (uint32_t)(z->seed >> 32), c0, c1,
                                           us_noise_c2(z->image_keyed, d->level, z->sample),
                                           z->frame, (uint32_t)c / 4);
    return r.z[c % 4];
}

static void latent_pixel(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int32_t n,
                         int32_t y, int32_t x)
{
    const struct us_latent_desc *d = &op->d.latent;
    const struct us_noise *z = &bufs->noise[n];
    const float *p = usi_ref_pixel(&d->in, bufs->in[0], n, y, x);
    float *out = (float *)bufs->out + us_map_index(&d->out, n, y, x);
    for (int32_t c = 0; c < d->out.c; c++) {
        float mean = p != NULL ? p[c] : 0.0f;
        float lv = p != NULL ? p[d->out.c + c] : 0.0f;
        int64_t at = ((int64_t)y * d->out.full_w + x) * d->out.c + c;
        float eps = z->eps != NULL ? z->eps[d->level][at] : draw(d, z, y, x, c);
        out[c] = us_gauss_sample(mean, lv, d->var_clip_max, eps);
    }
}

enum us_status usi_ref_latent_init(struct usi_ref_op *op, struct us_err *err)
{
    US_TRY(usi_ref_need_f32("in", &op->d.latent.in, err));
    US_TRY(usi_ref_need_f32("out", &op->d.latent.out, err));
    op->out = op->d.latent.out;
    op->pixel = latent_pixel;
    return US_OK;
}
