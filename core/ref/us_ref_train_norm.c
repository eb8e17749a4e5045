/*
 * Reference batch norm with ELU in training (model-spec 2, 3.1): statistics, forward, and the two
 * passes of the backward. The formulas of a channel stand in math/us_bn_math.h.
 */
#include "us_ref_train.h"

#include "math/us_bn_math.h"

enum us_status usi_ref_bn_stats(struct us_backend *be, const struct us_ew *e, const void *x,
                                double *part)
{
    const float *v = x;
    REF_NEED_F32(e->dtype);
    for (int32_t c = 0; c < 2 * e->c; c++)
        part[c] = 0.0;
    for (int64_t i = 0; i < e->n_px; i++, v += e->c)
        for (int32_t c = 0; c < e->c; c++) {
            part[c] += (double)v[c];
            part[e->c + c] += (double)v[c] * (double)v[c];
        }
    return US_OK;
}

/* Entry i of all parts, in order. */
static double sum_parts(const double *parts, int32_t n_parts, int32_t c, int32_t i)
{
    double s = 0.0;
    for (int32_t p = 0; p < n_parts; p++)
        s += parts[(int64_t)p * 2 * c + i];
    return s;
}

enum us_status usi_ref_bn_finish(struct us_backend *be, int32_t c, const double *parts,
                                 int32_t n_parts, int64_t count, const float *gamma,
                                 const float *beta, struct us_bn_affine *aff, float *running_mean,
                                 float *running_var)
{
    for (int32_t i = 0; i < c; i++) {
        struct us_bn_moments m = us_bn_moments_of(sum_parts(parts, n_parts, c, i),
                                                  sum_parts(parts, n_parts, c, c + i), count);
        double inv_std = us_bn_inv_std(m.var);
        double scale = (double)gamma[i] * inv_std;
        aff->mean[i] = (float)m.mean;
        aff->inv_std[i] = (float)inv_std;
        aff->scale[i] = (float)scale;
        aff->shift[i] = (float)((double)beta[i] - m.mean * scale);
        running_mean[i] = us_bn_running(running_mean[i], m.mean);
        running_var[i] = us_bn_running(running_var[i], m.unbiased);
    }
    return US_OK;
}

static float before_elu(const struct us_bn_affine *aff, int32_t c, float x)
{
    return us_madd(aff->scale[c], x, aff->shift[c]);
}

enum us_status usi_ref_bn_elu_fwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                  const struct us_bn_affine *aff, void *h)
{
    const float *v = x;
    float *out = h;
    REF_NEED_F32(e->dtype);
    for (int64_t i = 0; i < e->n_px; i++, v += e->c, out += e->c)
        for (int32_t c = 0; c < e->c; c++)
            out[c] = us_elu(before_elu(aff, c, v[c]));
    return US_OK;
}

enum us_status usi_ref_bn_elu_bwd_stats(struct us_backend *be, const struct us_ew *e, const void *x,
                                        const void *dh, const struct us_bn_affine *aff,
                                        double *part)
{
    const float *v = x, *g = dh;
    REF_NEED_F32(e->dtype);
    for (int32_t c = 0; c < 2 * e->c; c++)
        part[c] = 0.0;
    for (int64_t i = 0; i < e->n_px; i++, v += e->c, g += e->c)
        for (int32_t c = 0; c < e->c; c++) {
            double dy = (double)us_mul(g[c], us_elu_d(before_elu(aff, c, v[c])));
            double xhat = ((double)v[c] - (double)aff->mean[c]) * (double)aff->inv_std[c];
            part[c] += dy;
            part[e->c + c] += dy * xhat;
        }
    return US_OK;
}

enum us_status usi_ref_bn_bwd_finish(struct us_backend *be, int32_t c, const double *parts,
                                     int32_t n_parts, int64_t count, const float *gamma,
                                     const struct us_bn_affine *aff, struct us_bn_grad *g,
                                     float *dgamma, float *dbeta)
{
    for (int32_t i = 0; i < c; i++) {
        double s1 = sum_parts(parts, n_parts, c, i);
        double s2 = sum_parts(parts, n_parts, c, c + i);
        struct us_bn_dx d = us_bn_dx_of(s1, s2, count, (double)gamma[i], (double)aff->mean[i],
                                        (double)aff->inv_std[i]);
        g->a[i] = (float)d.a;
        g->b[i] = (float)d.b;
        g->d[i] = (float)d.d;
        dbeta[i] += (float)s1;
        dgamma[i] += (float)s2;
    }
    return US_OK;
}

enum us_status usi_ref_bn_elu_bwd(struct us_backend *be, const struct us_ew *e, const void *x,
                                  const void *dh, const struct us_bn_affine *aff,
                                  const struct us_bn_grad *g, void *dx, bool add)
{
    const float *v = x, *gh = dh;
    float *out = dx;
    REF_NEED_F32(e->dtype);
    for (int64_t i = 0; i < e->n_px; i++, v += e->c, gh += e->c, out += e->c)
        for (int32_t c = 0; c < e->c; c++) {
            float dy = us_mul(gh[c], us_elu_d(before_elu(aff, c, v[c])));
            double d =
                (double)g->a[c] * (double)dy + (double)g->b[c] * (double)v[c] + (double)g->d[c];
            out[c] = (float)(add ? (double)out[c] + d : d);
        }
    return US_OK;
}
