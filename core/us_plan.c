/*
 * Building a plan: lower the network, ask the backend for each op, pack its weights, lay out the
 * memory. See us_plan.h; the parts are listed in us_plan_impl.h.
 */
#include "us_plan.h"

#include <stdio.h>
#include <stdlib.h>

#include "us_plan_impl.h"

/* ---- descriptors --------------------------------------------------------------------------- */

static enum us_status plan_conv2d(struct us_plan *p, struct us_plan_step *s, struct us_err *err)
{
    const struct us_conv2d_desc d = {.in = s->in_map[0],
                                     .out = s->out_map,
                                     .res = s->in_map[1],
                                     .k = s->k,
                                     .stride = s->stride,
                                     .pad = s->pad,
                                     .act = s->act,
                                     .residual = s->residual,
                                     .tail = s->out2 >= 0};
    return us_backend_ops(p->be)->conv2d_plan(p->be, &d, &s->op, err);
}

static enum us_status plan_conv_t2d(struct us_plan *p, struct us_plan_step *s, struct us_err *err)
{
    const struct us_conv_t2d_desc d = {.in = s->in_map[0], .out = s->out_map, .tail = s->out2 >= 0};
    return us_backend_ops(p->be)->conv_t2d_plan(p->be, &d, &s->op, err);
}

static enum us_status plan_gate(struct us_plan *p, struct us_plan_step *s, struct us_err *err)
{
    const struct us_gate_desc d = {
        .in = s->in_map[0], .res = s->in_map[1], .out = s->out_map, .tail = s->out2 >= 0};
    return us_backend_ops(p->be)->gate_plan(p->be, &d, &s->op, err);
}

static enum us_status plan_merge(struct us_plan *p, struct us_plan_step *s, struct us_err *err)
{
    const struct us_merge_desc d = {
        .a = s->in_map[0], .b = s->in_map[1], .out = s->out_map, .tail = s->out2 >= 0};
    return us_backend_ops(p->be)->merge_plan(p->be, &d, &s->op, err);
}

static enum us_status plan_latent(struct us_plan *p, struct us_plan_step *s, struct us_err *err)
{
    const struct us_latent_desc d = {.in = s->in_map[0],
                                     .out = s->out_map,
                                     .level = s->level,
                                     .var_clip_max = p->net->arch.var_clip_max};
    return us_backend_ops(p->be)->latent_plan(p->be, &d, &s->op, err);
}

static enum us_status plan_affine_elu(struct us_plan *p, struct us_plan_step *s, struct us_err *err)
{
    const struct us_affine_elu_desc d = {.in = s->in_map[0], .out = s->out_map};
    return us_backend_ops(p->be)->affine_elu_plan(p->be, &d, &s->op, err);
}

static enum us_status plan_copy(struct us_plan *p, struct us_plan_step *s, struct us_err *err)
{
    const struct us_copy_desc d = {.in = s->in_map[0], .out = s->out_map};
    return us_backend_ops(p->be)->copy_plan(p->be, &d, &s->op, err);
}

/* From the op list: what fills each op's descriptor from a step. */
static enum us_status (*const plan_op[US_OP_COUNT])(struct us_plan *, struct us_plan_step *,
                                                    struct us_err *) = {
#define US_OP(name) [US_OP_##name] = plan_##name,
#include "us_ops.def"
#undef US_OP
};

/* ---- building ------------------------------------------------------------------------------ */

static enum us_status plan_ops(struct us_plan *p, struct us_err *err)
{
    for (int32_t i = 0; i < p->n_steps; i++) {
        struct us_plan_step *s = &p->steps[i];
        enum us_status status = plan_op[s->kind](p, s, err);
        if (status != US_OK) {
            us_err_prefix(err, "step %d (%s)", i, us_op_name(s->kind));
            return status;
        }
        s->packed_offset = p->packed_bytes;
        p->packed_bytes +=
            (s->op->packed_bytes + US_PLAN_ALIGN - 1) / US_PLAN_ALIGN * US_PLAN_ALIGN;
        if (s->op->scratch_bytes > p->scratch_bytes)
            p->scratch_bytes = s->op->scratch_bytes;
    }
    return US_OK;
}

static enum us_status pack_weights(struct us_plan *p, const float *weights, struct us_err *err)
{
    const struct us_backend_ops *ops = us_backend_ops(p->be);
    if (ops->buf_alloc(p->be, p->packed_bytes > 0 ? p->packed_bytes : 1, &p->packed) != US_OK)
        return us_fail(err, US_E_NOMEM, "packed weights: %zu bytes on backend %s", p->packed_bytes,
                       ops->name);
    for (int32_t i = 0; i < p->n_steps; i++) {
        const struct us_plan_step *s = &p->steps[i];
        if (s->op->packed_bytes == 0)
            continue;
        struct us_step_weights w;
        if (usi_step_weights(p, s, weights, &w) != US_OK)
            return us_fail(err, US_E_NOMEM, "packing weights: out of memory");
        enum us_status status =
            ops->op_pack(p->be, s->op, &w.view, (char *)p->packed + s->packed_offset);
        usi_step_weights_free(&w);
        if (status != US_OK)
            return us_fail(err, status, "packing the weights of step %d (%s): %s", i,
                           us_op_name(s->kind), us_status_text(status));
    }
    return US_OK;
}

static enum us_status check_config(const struct us_net *net, struct us_backend *be,
                                   const struct us_plan_config *cfg, struct us_err *err)
{
    if (cfg->batch < 1 || cfg->batch > US_MAX_BATCH)
        return us_fail(err, US_E_ARG, "batch is %d; expected 1 to %d", cfg->batch, US_MAX_BATCH);
    if (!us_backend_ops(be)->has_dtype(be, cfg->dtype))
        return us_fail(err, US_E_UNSUPPORTED, "backend %s has no %s on this machine",
                       us_backend_ops(be)->name, cfg->dtype == US_BF16 ? "bf16" : "f32");
    if (cfg->align < 0 || cfg->align > net->size)
        return us_fail(err, US_E_ARG, "align is %d; expected 0 to %d", cfg->align, net->size);
    const struct us_rect all = {0, 0, net->size, net->size};
    if (cfg->keep.h != 0 &&
        (cfg->keep.h < 0 || cfg->keep.w < 1 || !us_rect_contains(&all, &cfg->keep)))
        return us_fail(err, US_E_ARG,
                       "kept rectangle %dx%d at (%d, %d); expected one inside the "
                       "%dx%d patch",
                       cfg->keep.h, cfg->keep.w, cfg->keep.y0, cfg->keep.x0, net->size, net->size);
    return US_OK;
}

enum us_status us_plan_build(const struct us_net *net, const float *weights, struct us_backend *be,
                             const struct us_plan_config *cfg, struct us_plan **ret,
                             struct us_err *err)
{
    US_TRY(check_config(net, be, cfg, err));
    struct us_plan *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return us_fail(err, US_E_NOMEM, "inference plan: out of memory");
    p->net = net;
    p->be = be;
    p->cfg = *cfg;
    enum us_status status = usi_plan_lower(p, err);
    if (status == US_OK)
        status = plan_ops(p, err);
    if (status == US_OK && usi_plan_layout(p) != US_OK)
        status = us_fail(err, US_E_NOMEM, "inference plan: out of memory");
    if (status == US_OK)
        status = pack_weights(p, weights, err);
    if (status != US_OK) {
        us_plan_free(p);
        return status;
    }
    *ret = p;
    return US_OK;
}

void us_plan_free(struct us_plan *p)
{
    if (p == NULL)
        return;
    for (int32_t i = 0; i < p->n_steps; i++) {
        if (p->steps[i].op != NULL)
            us_backend_ops(p->be)->op_free(p->be, p->steps[i].op);
    }
    if (p->packed != NULL)
        us_backend_ops(p->be)->buf_free(p->be, p->packed);
    free(p->steps);
    free(p->tensors);
    free(p);
}

/* ---- questions ----------------------------------------------------------------------------- */

struct us_plan_stats us_plan_stats(const struct us_plan *p)
{
    struct us_plan_stats s = {.n_ops = p->n_steps,
                              .packed_bytes = p->packed_bytes,
                              .block_bytes = p->block_bytes,
                              .sum_bytes = p->scratch_bytes};
    for (int32_t i = 0; i < p->n_tensors; i++)
        s.sum_bytes += us_map_bytes(&p->tensors[i].map);
    for (int32_t i = 0; i < p->n_steps; i++) {
        s.flops += p->steps[i].op->flops;
        if (p->steps[i].sample_dep)
            s.flops_sample += p->steps[i].op->flops;
    }
    return s;
}

const struct us_net *us_plan_net(const struct us_plan *p)
{
    return p->net;
}

int32_t us_plan_out_channels(const struct us_plan *p)
{
    return p->tensors[p->output].map.c;
}

struct us_rect us_plan_keep(const struct us_plan *p)
{
    return p->tensors[p->output].map.rect;
}

static int print_map(char *text, size_t size, const struct us_map *m)
{
    return snprintf(text, size, "%dx%dx%d of %dx%d at (%d,%d)%s", m->rect.h, m->rect.w, m->c,
                    m->full_h, m->full_w, m->rect.y0, m->rect.x0, m->zero_outside ? " padded" : "");
}

void us_plan_dump(const struct us_plan *p, void (*line)(void *arg, const char *text), void *arg)
{
    for (int32_t i = 0; i < p->n_steps; i++) {
        const struct us_plan_step *s = &p->steps[i];
        char in[96], out[96], text[512];
        (void)print_map(in, sizeof(in), &s->in_map[0]);
        (void)print_map(out, sizeof(out), &s->out_map);
        (void)snprintf(text, sizeof(text), "%3d %-10s %s -> %s%s%s  %.1f MFLOP  %s", i,
                       us_op_name(s->kind), in, out, s->out2 >= 0 ? " + tail" : "",
                       s->sample_dep ? " (per sample)" : "", s->op->flops * 1e-6,
                       s->param >= 0 ? p->net->params[s->param].name : "");
        line(arg, text);
    }
}
