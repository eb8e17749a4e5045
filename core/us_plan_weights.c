/*
 * The canonical weights of one step: the convolution's parameters with everything folded in that
 * is exact in exact arithmetic. Folding is done in double and rounded once.
 *
 *   batch norm after a convolution   w' = s w, b' = s (b - mean) + beta, s = gamma / sqrt(var +
 * eps) a factor on its input            w' = factor w          (latent scaling, spec 4.5) batch
 * norm before an ELU         tail_scale = s, tail_shift = beta - s mean
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "us_plan_impl.h"

#define BN_EPS 1e-5 /* spec 2 */

static const float *param(const struct us_plan *p, const float *weights, int32_t index)
{
    return weights + p->net->params[index].offset;
}

/* Scale and shift of evaluation-mode batch norm, channel c; bn = index of its first parameter. */
static void bn_affine(const struct us_plan *p, const float *weights, int32_t bn, int32_t c,
                      double *ret_scale, double *ret_shift)
{
    double gamma = param(p, weights, bn)[c], beta = param(p, weights, bn + 1)[c];
    double mean = param(p, weights, bn + 2)[c], var = param(p, weights, bn + 3)[c];
    *ret_scale = gamma / sqrt(var + BN_EPS);
    *ret_shift = beta - *ret_scale * mean;
}

/* Convolutions store [out, in, k, k], transposed ones [in, out, k, k]; wanted outputs are a prefix
 * of [out, ..]. */
static void fold_conv(const struct us_plan *p, const struct us_plan_step *s, const float *weights,
                      float *w, float *b)
{
    const struct us_param *wp = &p->net->params[s->param];
    const float *src_w = param(p, weights, s->param), *src_b = param(p, weights, s->param + 1);
    int64_t per_out = wp->count / wp->dim[0];
    if (s->kind == US_OP_conv_t2d) {
        memcpy(w, src_w, (size_t)wp->count * sizeof(float));
        memcpy(b, src_b, (size_t)s->n_out * sizeof(float));
        return;
    }
    for (int32_t c = 0; c < s->n_out; c++) {
        double scale = 1.0, shift = 0.0;
        if (s->fold_bn >= 0)
            bn_affine(p, weights, s->fold_bn, c, &scale, &shift);
        double bias = src_b[c];
        b[c] = (float)(scale * bias + shift);
        for (int64_t i = 0; i < per_out; i++) {
            double v = src_w[c * per_out + i];
            w[c * per_out + i] = (float)(v * scale * (double)s->factor);
        }
    }
}

static int64_t conv_floats(const struct us_plan *p, const struct us_plan_step *s)
{
    if (s->param < 0)
        return 0;
    const struct us_param *wp = &p->net->params[s->param];
    return s->kind == US_OP_conv_t2d ? wp->count : wp->count / wp->dim[0] * s->n_out;
}

enum us_status usi_step_weights(const struct us_plan *p, const struct us_plan_step *s,
                                const float *weights, struct us_step_weights *ret)
{
    int64_t n_w = conv_floats(p, s);
    int64_t n_b = s->param >= 0 ? s->n_out : 0;
    int64_t n_t = s->tail_bn >= 0 ? s->out_map.c : 0;
    memset(ret, 0, sizeof(*ret));
    ret->block = calloc((size_t)(n_w + n_b + 2 * n_t + 1), sizeof(float));
    if (ret->block == NULL)
        return US_E_NOMEM;
    float *w = ret->block, *b = w + n_w, *scale = b + n_b, *shift = scale + n_t;
    if (n_w > 0) {
        fold_conv(p, s, weights, w, b);
        ret->view.w = w;
        ret->view.b = b;
    }
    for (int32_t c = 0; c < n_t; c++) {
        double a, d;
        bn_affine(p, weights, s->tail_bn, c, &a, &d);
        scale[c] = (float)a;
        shift[c] = (float)d;
    }
    if (n_t > 0) {
        ret->view.tail_scale = scale;
        ret->view.tail_shift = shift;
    }
    return US_OK;
}

void usi_step_weights_free(struct us_step_weights *w)
{
    free(w->block);
    w->block = NULL;
}
