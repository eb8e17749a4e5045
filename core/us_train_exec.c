/*
 * What each instruction of a training program does: operands to addresses, then one call of the
 * backend's training seam.
 */
#include "us_train_impl.h"

static void *at(const struct us_train_worker *w, int32_t tensor, int32_t item)
{
    const struct us_train *t = w->owner;
    if (tensor < 0)
        return NULL;
    const struct us_train_tensor *x = &t->tensors[tensor];
    if (t->ops->batched) /* [items] of each tensor are adjacent */
        return t->items + x->offset;
    return x->per_item ? t->items + (size_t)item * t->item_bytes + x->offset : w->block + x->offset;
}

static struct us_ew ew_of(const struct us_train *t, int32_t tensor)
{
    const struct us_map *m = &t->tensors[tensor].map;
    return (struct us_ew){m->dtype, (int64_t)m->full_h * m->full_w * usi_train_items(t), m->c};
}

static const float *parameter(const struct us_train *t, int32_t param)
{
    return t->weights + t->net->params[param].offset;
}

/* Where this item's lane sums the gradient of a parameter. */
static float *lane_gradient(const struct us_train *t, int32_t item, int32_t param)
{
    return t->lanes + (int64_t)(item % t->n_lanes) * t->net->n_floats +
           t->net->params[param].offset;
}

static enum us_status exec_conv(struct us_train_worker *w, const struct us_instr *i, int32_t item)
{
    const struct us_train *t = w->owner;
    const struct us_train_conv *c = &t->convs[i->index];
    struct us_tconv_ctx *ctx = w->ctx[i->index];
    const void *packed = t->packed + c->packed_offset;
    if (i->kind == US_I_CONV_FWD)
        return t->ops->conv_fwd(t->be, ctx, packed, at(w, i->b, item), at(w, i->a, item));
    if (i->kind == US_I_CONV_DATA)
        return t->ops->conv_bwd_data(t->be, ctx, packed, at(w, i->b, item), at(w, i->a, item));
    return t->ops->conv_bwd_weights(t->be, ctx, at(w, i->b, item), at(w, i->c, item),
                                    lane_gradient(t, item, c->param),
                                    lane_gradient(t, item, c->param + 1));
}

/* The two instructions that see the whole batch. */
static enum us_status exec_bn_whole(struct us_train *t, const struct us_instr *i)
{
    struct us_train_bn *bn = &t->bns[i->index];
    int32_t parts = t->step.n / usi_train_items(t), p = bn->param;
    int64_t count = t->step.n * bn->pixels;
    if (i->kind == US_I_BN_FINISH)
        return t->ops->bn_finish(t->be, bn->c, bn->parts, parts, count, parameter(t, p),
                                 parameter(t, p + 1), &bn->aff, bn->running_mean, bn->running_var);
    return t->ops->bn_bwd_finish(t->be, bn->c, bn->parts, parts, count, parameter(t, p), &bn->aff,
                                 &bn->grad, lane_gradient(t, 0, p), lane_gradient(t, 0, p + 1));
}

static enum us_status exec_bn(struct us_train_worker *w, const struct us_instr *i, int32_t item)
{
    const struct us_train *t = w->owner;
    const struct us_train_bn *bn = &t->bns[i->index];
    const struct us_ew ew = ew_of(t, i->b);
    const void *x = at(w, i->b, item);
    double *part = bn->parts + (int64_t)item * 2 * bn->c;
    switch (i->kind) {
    case US_I_BN_STATS:
        return t->ops->bn_stats(t->be, &ew, x, part);
    case US_I_BN_ELU:
        return t->ops->bn_elu_fwd(t->be, &ew, x, &bn->aff, at(w, i->a, item));
    case US_I_BN_BWD_STATS:
        return t->ops->bn_elu_bwd_stats(t->be, &ew, x, at(w, i->c, item), &bn->aff, part);
    default:
        return t->ops->bn_elu_bwd(t->be, &ew, x, at(w, i->c, item), &bn->aff, &bn->grad,
                                  at(w, i->a, item), i->add);
    }
}

static enum us_status exec_latent(struct us_train_worker *w, const struct us_instr *i, int32_t item)
{
    struct us_train *t = w->owner;
    struct us_train_latent *lat = &t->latents[i->index];
    const void *q = at(w, i->b, item), *p = at(w, i->c, item);
    int32_t n = usi_train_items(t);
    const struct us_kl_share share = {t->net->arch.n_levels, t->step.n, t->cfg.free_bits};
    if (i->kind == US_I_POSTERIOR)
        return t->ops->posterior_fwd(t->be, &lat->desc, n, q, p, &t->keys[item], at(w, i->a, item),
                                     &lat->kl[item]);
    if (lat->has_kl)
        US_TRY(t->ops->kl_coef(t->be, &share, n, &lat->kl[item], t->kl_weight, &lat->coef[item]));
    return t->ops->posterior_bwd(t->be, &lat->desc, n, q, p, &t->keys[item], at(w, i->e, item),
                                 &lat->coef[item], at(w, i->a, item), at(w, i->d, item));
}

static enum us_status exec_loss(struct us_train_worker *w, const struct us_instr *i, int32_t item)
{
    struct us_train *t = w->owner;
    int64_t targets = t->net->arch.target_channels;
    int64_t plane = (int64_t)t->net->size * t->net->size;
    return t->ops->likelihood(t->be, &t->likelihood, usi_train_items(t), at(w, i->b, item),
                              t->target + item * plane * targets, 1.0f / (float)t->step.n,
                              t->rec + item * targets, t->se + item * targets, at(w, i->a, item));
}

static enum us_status exec_input(struct us_train_worker *w, const struct us_instr *i, int32_t item)
{
    struct us_train *t = w->owner;
    const struct us_ew ew = ew_of(t, i->a);
    int64_t plane = (int64_t)t->net->size * t->net->size;
    const float *src = t->input + ((int64_t)i->index * t->cfg.batch + item) * plane;
    return t->ops->convert(t->be, &ew, src, US_F32, at(w, i->a, item));
}

/* Maps in, maps out, no state. */
static enum us_status exec_map(struct us_train_worker *w, const struct us_instr *i, int32_t item)
{
    const struct us_train *t = w->owner;
    const struct us_train_ops *ops = t->ops;
    const struct us_ew ew = ew_of(t, i->a >= 0 ? i->a : i->b);
    int32_t n = usi_train_items(t);
    void *a = at(w, i->a, item), *b = at(w, i->b, item), *c = at(w, i->c, item);
    switch (i->kind) {
    case US_I_ELU:
        return ops->elu_fwd(t->be, &ew, a, a);
    case US_I_ELU_BWD:
        return ops->elu_bwd(t->be, &ew, b, a, a);
    case US_I_DROP:
        return ops->dropout2d(t->be, &ew, a, t->net->arch.dropout, &t->keys[item], n,
                              (uint32_t)i->index);
    case US_I_GLU:
        return ops->glu_fwd(t->be, &ew, b, c, a);
    case US_I_ACCUMULATE:
        return ops->accumulate(t->be, &ew, b, a, i->add);
    case US_I_SCALE:
        return ops->scale(t->be, &ew, a, i->factor);
    case US_I_WINDOW:
        return ops->window(t->be, ew.dtype, n, i->rh, i->rw, i->channels, b, &i->from, a, &i->to,
                           i->add);
    case US_I_ZERO:
        return ops->fill_zero(t->be, a, (size_t)n * us_map_bytes(&t->tensors[i->a].map));
    default: /* US_I_CONVERT */
        return ops->convert(t->be, &ew, b, t->tensors[i->b].map.dtype, a);
    }
}

/* The prior is one map for all items. */
static enum us_status exec_prior(struct us_train_worker *w, const struct us_instr *i, int32_t item)
{
    const struct us_train *t = w->owner;
    int32_t n = usi_train_items(t);
    struct us_ew ew = ew_of(t, i->a >= 0 ? i->a : i->b);
    ew.n_px /= n;
    if (i->kind == US_I_PRIOR_LOAD)
        return t->ops->prior_load(t->be, &ew, n, parameter(t, t->prior_param), at(w, i->a, item));
    return t->ops->prior_grad(t->be, &ew, n, at(w, i->b, item),
                              lane_gradient(t, item, t->prior_param));
}

static enum us_status exec_glu_bwd(struct us_train_worker *w, const struct us_instr *i,
                                   int32_t item)
{
    const struct us_train *t = w->owner;
    const struct us_ew ew = ew_of(t, i->c); /* the c channels of dout; g has twice as many */
    return t->ops->glu_bwd(t->be, &ew, at(w, i->b, item), at(w, i->c, item), at(w, i->a, item));
}

enum us_status usi_train_exec(struct us_train_worker *w, const struct us_instr *i, int32_t item)
{
    switch (i->kind) {
    case US_I_INPUT:
        return exec_input(w, i, item);
    case US_I_CONV_FWD:
    case US_I_CONV_DATA:
    case US_I_CONV_WEIGHTS:
        return exec_conv(w, i, item);
    case US_I_BN_FINISH:
    case US_I_BN_BWD_FINISH:
        return exec_bn_whole(w->owner, i);
    case US_I_BN_STATS:
    case US_I_BN_ELU:
    case US_I_BN_BWD_STATS:
    case US_I_BN_BWD:
        return exec_bn(w, i, item);
    case US_I_POSTERIOR:
    case US_I_POSTERIOR_BWD:
        return exec_latent(w, i, item);
    case US_I_LIKELIHOOD:
        return exec_loss(w, i, item);
    case US_I_GLU_BWD:
        return exec_glu_bwd(w, i, item);
    case US_I_PRIOR_LOAD:
    case US_I_PRIOR_GRAD:
        return exec_prior(w, i, item);
    default:
        return exec_map(w, i, item);
    }
}
