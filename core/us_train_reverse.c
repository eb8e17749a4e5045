/*
 * The backward half of a training program: the nodes in reverse order of their emission.
 *
 * A value's gradient is written by the first of its readers that is met and added to by the
 * others. A residual's gradient is not copied: the block's input takes over the buffer of its
 * output's gradient, which nobody reads any more once the gate has been differentiated.
 */
#include "us_train_impl.h"

static int32_t like(struct us_train_lowering *l, int32_t v)
{
    const struct us_value *x = &l->net->values[v];
    return usi_tl_tensor(l, x->h, x->w, x->c, l->t->cfg.dtype);
}

/* v's gradient becomes (or grows by) what stands in tensor g. */
static void give(struct us_train_lowering *l, int32_t v, int32_t g)
{
    if (l->values[v].grad < 0)
        l->values[v].grad = g;
    else
        usi_tl_emit(l, US_I_ACCUMULATE, l->values[v].grad, g, -1, -1)->add = true;
}

static bool is_input(const struct us_train_lowering *l, int32_t v)
{
    return l->values[v].recipe == US_R_INPUT;
}

static void reverse_conv(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t dy = l->values[n->out].grad, conv = l->conv_of[node];
    if (l->t->convs[conv].param == l->t->convs[l->head_bwd].param && conv != l->head_bwd) {
        int32_t narrow = like(l, n->out);
        (void)usi_tl_emit(l, US_I_CONVERT, narrow, dy, -1, -1);
        dy = narrow;
        conv = l->head_bwd;
    }
    (void)usi_tl_emit(l, US_I_CONV_WEIGHTS, -1, usi_tl_operand(l, n->in[0]), dy, conv);
    if (is_input(l, n->in[0]))
        return;
    int32_t dx = like(l, n->in[0]);
    (void)usi_tl_emit(l, US_I_CONV_DATA, dx, dy, -1, conv);
    give(l, n->in[0], dx);
}

static void reverse_bn(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t elu = usi_tl_sole_user(l, n->out, US_N_ELU), bn = l->bn_of[node];
    int32_t dh = l->values[l->net->nodes[elu].out].grad;
    int32_t x = usi_tl_operand(l, n->in[0]);
    (void)usi_tl_emit(l, US_I_BN_BWD_STATS, -1, x, dh, bn);
    usi_tl_barrier(l);
    (void)usi_tl_emit(l, US_I_BN_BWD_FINISH, -1, -1, -1, bn);
    bool add = l->values[n->in[0]].grad >= 0;
    if (!add)
        l->values[n->in[0]].grad = dh; /* in place */
    usi_tl_emit(l, US_I_BN_BWD, l->values[n->in[0]].grad, x, dh, bn)->add = add;
}

static void reverse_glu(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    const struct us_node *a = &l->net->nodes[usi_tl_sole_user(l, n->out, US_N_ADD)];
    int32_t x = a->in[0] == n->out ? a->in[1] : a->in[0];
    int32_t dout = l->values[a->out].grad;
    int32_t g = usi_tl_operand(l, n->in[0]);
    (void)usi_tl_emit(l, US_I_GLU_BWD, g, g, dout, -1);
    l->values[n->in[0]].grad = g;
    give(l, x, dout);
}

/* The branch is masked in place by dropout, so it gets a copy; the residual the buffer itself. */
static void reverse_add(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t dout = l->values[n->out].grad, copy = like(l, n->out);
    (void)usi_tl_emit(l, US_I_ACCUMULATE, copy, dout, -1, -1);
    l->values[n->in[1]].grad = copy;
    give(l, n->in[0], dout);
}

static void reverse_in_place(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t g = l->values[n->out].grad;
    if (n->op == US_N_ELU)
        (void)usi_tl_emit(l, US_I_ELU_BWD, g, usi_tl_operand(l, n->out), -1, -1);
    else if (!l->t->cfg.no_dropout && l->net->arch.dropout > 0.0f)
        (void)usi_tl_emit(l, US_I_DROP, g, -1, -1, node);
    l->values[n->in[0]].grad = g;
}

/* A padded or cropped map that had a buffer of its own. */
static void reverse_window(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t v = n->in[0];
    if (l->values[n->out].recipe != US_R_TENSOR || is_input(l, v))
        return;
    const struct us_value *src = &l->net->values[v], *dst = &l->net->values[n->out];
    bool pad = n->op == US_N_PAD, add = l->values[v].grad >= 0;
    if (!add)
        l->values[v].grad = like(l, v);
    if (!add && !pad)
        (void)usi_tl_emit(l, US_I_ZERO, l->values[v].grad, -1, -1, -1);
    struct us_instr *i =
        usi_tl_emit(l, US_I_WINDOW, l->values[v].grad, l->values[n->out].grad, -1, -1);
    i->add = add;
    i->rh = pad ? src->h : dst->h;
    i->rw = pad ? src->w : dst->w;
    i->channels = src->c;
    i->from = (struct us_window){dst->h, dst->w, dst->c, 0, pad ? n->dy : 0, pad ? n->dx : 0};
    i->to = (struct us_window){src->h, src->w, src->c, 0, pad ? 0 : n->dy, pad ? 0 : n->dx};
}

static void reverse_mul(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t g = l->values[n->out].grad;
    usi_tl_emit(l, US_I_SCALE, g, -1, -1, -1)->factor = n->factor;
    give(l, n->in[0], g);
}

static void reverse_latent(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    const struct us_train_latent *lat = &l->t->latents[n->level];
    int32_t q = n->in[0], p = -1, tp = -1, dp = -1;
    for (int32_t i = 0; i < l->net->n_nodes && lat->has_kl; i++) {
        if (l->net->nodes[i].op == US_N_KL && l->net->nodes[i].level == n->level)
            p = l->net->nodes[i].in[1];
    }
    if (p >= 0) {
        tp = usi_tl_operand(l, p);
        dp = like(l, p);
    }
    int32_t dq = like(l, q);
    int32_t tq = usi_tl_operand(l, q);
    usi_tl_emit_five(l, US_I_POSTERIOR_BWD, dq, tq, tp, dp, l->values[n->out].grad, n->level);
    give(l, q, dq);
    if (p >= 0)
        give(l, p, dp);
}

static void reverse_node(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    switch (n->op) {
    case US_N_CONV:
    case US_N_CONV_T:
        reverse_conv(l, node);
        break;
    case US_N_BN:
        reverse_bn(l, node);
        break;
    case US_N_GLU:
        reverse_glu(l, node);
        break;
    case US_N_ADD:
        reverse_add(l, node);
        break;
    case US_N_ELU:
    case US_N_DROP2D:
        reverse_in_place(l, node);
        break;
    case US_N_CONCAT:
        usi_tl_concat_half(l, node, 0, l->values[n->out].grad, true);
        usi_tl_concat_half(l, node, 1, l->values[n->out].grad, true);
        break;
    case US_N_PAD:
    case US_N_CROP:
        reverse_window(l, node);
        break;
    case US_N_MUL:
        reverse_mul(l, node);
        break;
    case US_N_LATENT:
        reverse_latent(l, node);
        break;
    case US_N_PRIOR:
        (void)usi_tl_emit(l, US_I_PRIOR_GRAD, -1, l->values[n->out].grad, -1, -1);
        break;
    default: /* inputs have no gradient; output and KL made theirs in the forward half */
        break;
    }
}

void usi_train_reverse(struct us_train_lowering *l)
{
    for (int32_t i = l->n_order - 1; i >= 0 && l->status == US_OK; i--)
        reverse_node(l, l->order[i]);
}
