/* Reference end of a step: the lanes' gradients to one, its norm, and Adamax (model-spec 15). */
#include "us_ref_train.h"

#include "math/us_adamax_math.h"

/* Elements whose squares are summed before they meet the others': part of the result's bits. */
#define SQUARES_BLOCK 4096

enum us_status usi_ref_reduce_lanes(struct us_backend *be, const float *lanes, int64_t stride,
                                    int32_t n_lanes, int64_t n, float *dst, double *sq)
{
    double total = 0.0, block = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double s = 0.0;
        for (int32_t l = 0; l < n_lanes; l++)
            s += (double)lanes[l * stride + i];
        dst[i] = (float)s;
        block += (double)dst[i] * (double)dst[i];
        if ((i + 1) % SQUARES_BLOCK == 0 || i + 1 == n) {
            total += block;
            block = 0.0;
        }
    }
    *sq = total;
    return US_OK;
}

enum us_status usi_ref_adamax(struct us_backend *be, const struct us_adamax *a, int64_t n,
                              const float *g, float *m, float *u, float *p)
{
    const struct us_adamax_step s = us_adamax_step_of(a->lr, a->beta1, a->beta2, a->eps, a->bias);
    for (int64_t i = 0; i < n; i++)
        us_adamax_update(&s, us_mul(g[i], a->grad_scale), &m[i], &u[i], &p[i]);
    return US_OK;
}
