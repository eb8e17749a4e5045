/*
 * Lowering: from the network's nodes (the paper's operations) to the backend's ops.
 *
 * Three passes over the nodes. Backwards: which nodes the output needs, and which rectangle of
 * each value. Forwards: each convolution swallows what follows it exactly (batch norm, ELU,
 * residual, gate) and what precedes it (concat, latent scaling, dropout's identity); pads and
 * crops become views of the same buffer; the batch norm and ELU that open a residual block become
 * the tail of whatever made its input. A node that finds no place is an error, never ignored.
 */
#include <stdlib.h>
#include <string.h>

#include "us_plan_impl.h"

#define DEFAULT_ALIGN 1 /* us_plan.h: align */

/* A value as a window on a tensor: tensor coordinates + (dy, dx) = value coordinates. */
struct view {
    int32_t tensor; /* -1: not computed (yet) */
    int32_t dy, dx, full_h, full_w;
    bool zero_outside;
};

struct lowering {
    struct us_plan *p;
    const struct us_net *net;
    struct us_err *err;
    int32_t (*src)[3];    /* [node]: inputs with dropout skipped */
    bool *live, *done;    /* [node] */
    struct us_rect *need; /* [value]; h = 0: not needed */
    struct view *view;    /* [value] */
};

/* ---- which nodes, which rectangles --------------------------------------------------------- */

static struct us_rect whole(const struct us_value *v)
{
    return (struct us_rect){0, 0, v->h, v->w};
}

static void rect_join(struct us_rect *r, struct us_rect o)
{
    if (o.h <= 0 || o.w <= 0)
        return;
    if (r->h == 0) {
        *r = o;
        return;
    }
    int32_t y1 = r->y0 + r->h > o.y0 + o.h ? r->y0 + r->h : o.y0 + o.h;
    int32_t x1 = r->x0 + r->w > o.x0 + o.w ? r->x0 + r->w : o.x0 + o.w;
    r->y0 = r->y0 < o.y0 ? r->y0 : o.y0;
    r->x0 = r->x0 < o.x0 ? r->x0 : o.x0;
    r->h = y1 - r->y0;
    r->w = x1 - r->x0;
}

/* [lo, hi) intersected with [0, n). */
static void clamp_range(int32_t lo, int32_t hi, int32_t n, int32_t *start, int32_t *length)
{
    lo = lo < 0 ? 0 : lo;
    hi = hi > n ? n : hi;
    *start = lo;
    *length = hi > lo ? hi - lo : 0;
}

static int32_t floor_half(int32_t x)
{
    return x >= 0 ? x / 2 : -((1 - x) / 2);
}

/* Input range that output rows (or columns) [o, o+len) of a node read, per axis. */
static void input_range(const struct us_node *n, int32_t o, int32_t len, int32_t shift,
                        int32_t size, int32_t *start, int32_t *length)
{
    int32_t lo = o, hi = o + len;
    switch (n->op) {
    case US_N_CONV:
        lo = o * n->stride - n->pad;
        hi = (o + len - 1) * n->stride - n->pad + n->k;
        break;
    case US_N_CONV_T: /* o = 2i - 1 + k with k in 0..2 */
        lo = floor_half(o);
        hi = floor_half(o + len) + 1;
        break;
    case US_N_PAD:
        lo -= shift;
        hi -= shift;
        break;
    case US_N_CROP:
        lo += shift;
        hi += shift;
        break;
    default:
        break;
    }
    clamp_range(lo, hi, size, start, length);
}

static struct us_rect input_need(const struct lowering *l, const struct us_node *n,
                                 const struct us_value *in, const struct us_rect *out)
{
    bool conv = n->op == US_N_CONV || n->op == US_N_CONV_T;
    if (conv && l->p->cfg.whole_maps)
        return whole(in);
    struct us_rect r;
    input_range(n, out->y0, out->h, n->dy, in->h, &r.y0, &r.h);
    input_range(n, out->x0, out->w, n->dx, in->w, &r.x0, &r.w);
    return r;
}

/* Dropout is the identity in evaluation: its users read its input. */
static void skip_dropout(struct lowering *l)
{
    const struct us_net *net = l->net;
    for (int32_t i = 0; i < net->n_nodes; i++) {
        for (int32_t k = 0; k < 3; k++) {
            int32_t v = k < net->nodes[i].n_in ? net->nodes[i].in[k] : -1;
            while (v >= 0 && net->nodes[net->values[v].node].op == US_N_DROP2D)
                v = net->nodes[net->values[v].node].in[0];
            l->src[i][k] = v;
        }
    }
}

/* Outwards to multiples of n, within n_max. */
static void round_range(int32_t n, int32_t n_max, int32_t *start, int32_t *length)
{
    int32_t end = (*start + *length + n - 1) / n * n;
    *start -= *start % n;
    *length = (end < n_max ? end : n_max) - *start;
}

/* What a node makes becomes a map of its own, except for windows on other maps (pads, crops) and
 * what comes from outside. */
static bool makes_a_map(const struct us_node *n)
{
    return n->op != US_N_PAD && n->op != US_N_CROP && n->op != US_N_INPUT && n->op != US_N_OUTPUT;
}

/* Backwards from the output: whatever is not reached (KL, prior, conv_in_p) stays dead. */
static void find_needs(struct lowering *l)
{
    const struct us_net *net = l->net;
    const struct us_value *out = &net->values[net->output];
    struct us_rect keep = l->p->cfg.keep;
    const int32_t align = l->p->cfg.align > 0 ? l->p->cfg.align : DEFAULT_ALIGN;
    const int32_t result = l->src[out->node][0]; /* what leaves the network stays exact */
    l->need[net->output] = keep.h > 0 ? keep : whole(out);
    for (int32_t i = net->n_nodes - 1; i >= 0; i--) {
        const struct us_node *n = &net->nodes[i];
        struct us_rect *need = &l->need[n->out];
        if (need->h == 0 || n->op == US_N_DROP2D)
            continue;
        l->live[i] = true;
        if (makes_a_map(n) && n->out != result) {
            round_range(align, net->values[n->out].h, &need->y0, &need->h);
            round_range(align, net->values[n->out].w, &need->x0, &need->w);
        }
        for (int32_t k = 0; k < n->n_in; k++) {
            int32_t v = l->src[i][k];
            rect_join(&l->need[v], input_need(l, n, &net->values[v], need));
        }
    }
}

/* ---- looking around ------------------------------------------------------------------------ */

/* The nodes that read value v: their number, and the last one of kind `op` (any: -1). */
static int32_t count_users(const struct lowering *l, int32_t v, int32_t op, int32_t *ret_node)
{
    int32_t n = 0;
    for (int32_t i = 0; i < l->net->n_nodes; i++) {
        if (!l->live[i] || (op >= 0 && (int32_t)l->net->nodes[i].op != op))
            continue;
        bool reads = false;
        for (int32_t k = 0; k < l->net->nodes[i].n_in; k++)
            reads = reads || l->src[i][k] == v;
        if (!reads)
            continue;
        n++;
        *ret_node = i;
    }
    return n;
}

/* The only reader of v if it is of kind op, or -1. */
static int32_t sole_user(const struct lowering *l, int32_t v, enum us_node_op op)
{
    int32_t node = -1;
    if (count_users(l, v, -1, &node) != 1 || l->net->nodes[node].op != op)
        return -1;
    return node;
}

/* If exactly one reader of v is a batch norm followed by nothing but an ELU: that batch norm. */
static int32_t tail_of(const struct lowering *l, int32_t v)
{
    int32_t bn = -1;
    if (count_users(l, v, US_N_BN, &bn) != 1)
        return -1;
    return sole_user(l, l->net->nodes[bn].out, US_N_ELU) >= 0 ? bn : -1;
}

static const struct us_node *maker(const struct lowering *l, int32_t v)
{
    return &l->net->nodes[l->net->values[v].node];
}

static bool latent_is_mean(const struct lowering *l)
{
    return l->p->cfg.latent_mean || !l->net->arch.stochastic;
}

/* ---- tensors and steps --------------------------------------------------------------------- */

static enum us_status out_of_memory(const struct lowering *l)
{
    return us_fail(l->err, US_E_NOMEM, "inference plan: out of memory");
}

static enum us_status new_tensor(struct lowering *l, const struct us_map *map, int32_t *ret)
{
    struct us_plan *p = l->p;
    if (p->n_tensors == p->cap_tensors) {
        int32_t cap = p->cap_tensors ? p->cap_tensors * 2 : 128;
        void *t = reallocarray(p->tensors, (size_t)cap, sizeof(*p->tensors));
        if (t == NULL)
            return out_of_memory(l);
        p->tensors = t;
        p->cap_tensors = cap;
    }
    p->tensors[p->n_tensors] = (struct us_plan_tensor){.map = *map, .first = -1, .last = -1};
    *ret = p->n_tensors++;
    return US_OK;
}

/* A tensor for value v, holding the rectangle that is needed of it, and v's view of it. */
static enum us_status tensor_for(struct lowering *l, int32_t v, int32_t c, enum us_dtype dtype,
                                 int32_t *ret)
{
    const struct us_value *val = &l->net->values[v];
    struct us_map m = us_map_full(l->p->cfg.batch, val->h, val->w, c, dtype);
    m.rect = l->need[v];
    US_TRY(new_tensor(l, &m, ret));
    l->view[v] = (struct view){*ret, 0, 0, val->h, val->w, false};
    return US_OK;
}

/* The map that an op sees when it reads value v. */
static struct us_map map_of(const struct lowering *l, int32_t v)
{
    const struct view *w = &l->view[v];
    US_ASSERT(w->tensor >= 0);
    struct us_map m = l->p->tensors[w->tensor].map;
    m.rect.y0 += w->dy;
    m.rect.x0 += w->dx;
    m.full_h = w->full_h;
    m.full_w = w->full_w;
    m.zero_outside = w->zero_outside;
    return m;
}

static enum us_status new_step(struct lowering *l, enum us_op_kind kind, struct us_plan_step **ret)
{
    struct us_plan *p = l->p;
    if (p->n_steps == p->cap_steps) {
        int32_t cap = p->cap_steps ? p->cap_steps * 2 : 128;
        void *s = reallocarray(p->steps, (size_t)cap, sizeof(*p->steps));
        if (s == NULL)
            return out_of_memory(l);
        p->steps = s;
        p->cap_steps = cap;
    }
    struct us_plan_step *s = &p->steps[p->n_steps++];
    memset(s, 0, sizeof(*s));
    s->kind = kind;
    s->in[0] = s->in[1] = s->out = s->out2 = -1;
    s->param = s->fold_bn = s->tail_bn = -1;
    s->factor = 1.0f;
    *ret = s;
    return US_OK;
}

static void step_reads(struct lowering *l, struct us_plan_step *s, int32_t slot, int32_t v)
{
    s->in[slot] = l->view[v].tensor;
    s->in_map[slot] = map_of(l, v);
    struct us_plan_tensor *t = &l->p->tensors[s->in[slot]];
    t->last = l->p->n_steps - 1;
    s->sample_dep = s->sample_dep || t->sample_dep;
}

/* Makes value v the step's output, in c channels, and attaches the tail that v's readers want. */
static enum us_status step_writes(struct lowering *l, struct us_plan_step *s, int32_t v, int32_t c,
                                  enum us_dtype dtype)
{
    int32_t now = l->p->n_steps - 1;
    US_TRY(tensor_for(l, v, c, dtype, &s->out));
    s->out_map = l->p->tensors[s->out].map;
    int32_t bn = s->kind == US_OP_latent || s->kind == US_OP_copy || s->kind == US_OP_affine_elu
                     ? -1
                     : tail_of(l, v);
    if (bn >= 0) {
        int32_t elu = sole_user(l, l->net->nodes[bn].out, US_N_ELU);
        int32_t act = l->net->nodes[elu].out;
        l->need[act] = l->need[v]; /* the tail has the rectangle of its main output */
        US_TRY(tensor_for(l, act, c, dtype, &s->out2));
        s->tail_bn = l->net->nodes[bn].param;
        l->done[bn] = l->done[elu] = true;
    }
    const int32_t made[2] = {s->out, s->out2};
    for (int32_t i = 0; i < 2 && made[i] >= 0; i++) {
        struct us_plan_tensor *t = &l->p->tensors[made[i]];
        t->first = t->last = now;
        t->sample_dep = s->sample_dep;
    }
    return US_OK;
}

/* ---- one node at a time -------------------------------------------------------------------- */

static enum us_status lower_input(struct lowering *l, const struct us_node *n)
{
    l->need[n->out] = whole(&l->net->values[n->out]); /* patches arrive whole */
    int32_t t;
    US_TRY(tensor_for(l, n->out, 1, US_F32, &t));
    l->p->input[n->scale] = t;
    if (l->p->cfg.dtype == US_F32)
        return US_OK;
    struct us_plan_step *s;
    US_TRY(new_step(l, US_OP_copy, &s));
    step_reads(l, s, 0, n->out);
    return step_writes(l, s, n->out, 1, l->p->cfg.dtype);
}

/* conv 1x1 -> GLU -> + residual, spec 3.2. */
static enum us_status lower_gate(struct lowering *l, int32_t node, int32_t glu)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t gated = l->net->nodes[glu].out;
    int32_t add = sole_user(l, gated, US_N_ADD);
    if (add < 0 || n->k != 1)
        return us_fail(l->err, US_E_UNSUPPORTED, "plan: a gate without residual (node %d)", node);
    int32_t x = l->src[add][0] == gated ? l->src[add][1] : l->src[add][0];
    struct us_plan_step *s;
    US_TRY(new_step(l, US_OP_gate, &s));
    s->param = n->param;
    s->residual = true;
    s->n_out = l->net->values[n->out].c;
    step_reads(l, s, 0, l->src[node][0]);
    step_reads(l, s, 1, x);
    l->done[glu] = l->done[add] = true;
    return step_writes(l, s, l->net->nodes[add].out, l->net->values[gated].c, l->p->cfg.dtype);
}

/* concat -> conv 1x1, spec 3.4. */
static enum us_status lower_merge(struct lowering *l, int32_t node, int32_t concat)
{
    const struct us_node *n = &l->net->nodes[node];
    struct us_plan_step *s;
    US_TRY(new_step(l, US_OP_merge, &s));
    s->param = n->param;
    s->n_out = l->net->values[n->out].c;
    step_reads(l, s, 0, l->src[concat][0]);
    step_reads(l, s, 1, l->src[concat][1]);
    return step_writes(l, s, n->out, s->n_out, l->p->cfg.dtype);
}

/* What a plain convolution swallows after itself: batch norm, ELU, residual; returns the value
 * that the step makes. *ret_residual: the value to add, or -1. */
static int32_t swallow(struct lowering *l, struct us_plan_step *s, int32_t v, int32_t *ret_residual)
{
    int32_t bn = sole_user(l, v, US_N_BN);
    if (bn >= 0) {
        s->fold_bn = l->net->nodes[bn].param;
        l->done[bn] = true;
        v = l->net->nodes[bn].out;
    }
    int32_t elu = sole_user(l, v, US_N_ELU);
    if (elu >= 0) {
        s->act = US_ACT_ELU;
        l->done[elu] = true;
        v = l->net->nodes[elu].out;
    }
    int32_t add = sole_user(l, v, US_N_ADD);
    *ret_residual = -1;
    if (add >= 0) {
        *ret_residual = l->src[add][0] == v ? l->src[add][1] : l->src[add][0];
        l->done[add] = true;
        v = l->net->nodes[add].out;
    }
    return v;
}

/* Channels that anyone reads of a convolution's output: the mean half of a posterior whose mean
 * is taken, the means of the head. They stand first, so a slice of the weights does. */
static int32_t wanted_channels(const struct lowering *l, int32_t v, bool *ret_output)
{
    int32_t c = l->net->values[v].c;
    *ret_output = sole_user(l, v, US_N_OUTPUT) >= 0;
    if (*ret_output && !l->p->cfg.keep_logvar)
        return l->net->arch.target_channels;
    if (latent_is_mean(l) && sole_user(l, v, US_N_LATENT) >= 0)
        return c / 2;
    return c;
}

static enum us_status lower_conv(struct lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t in = l->src[node][0];
    int32_t glu = sole_user(l, n->out, US_N_GLU);
    if (glu >= 0)
        return lower_gate(l, node, glu);
    if (maker(l, in)->op == US_N_CONCAT && n->k == 1)
        return lower_merge(l, node, l->net->values[in].node);
    struct us_plan_step *s;
    US_TRY(new_step(l, US_OP_conv2d, &s));
    s->param = n->param;
    s->k = n->k;
    s->stride = n->stride;
    s->pad = n->pad;
    if (maker(l, in)->op == US_N_MUL) {
        s->factor = maker(l, in)->factor;
        in = l->src[l->net->values[in].node][0];
    }
    int32_t residual;
    int32_t v = swallow(l, s, n->out, &residual);
    bool output;
    s->n_out = wanted_channels(l, n->out, &output);
    step_reads(l, s, 0, in);
    if (residual >= 0) {
        s->residual = true;
        step_reads(l, s, 1, residual);
    }
    return step_writes(l, s, v, s->n_out, output ? US_F32 : l->p->cfg.dtype);
}

static enum us_status lower_conv_t(struct lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    struct us_plan_step *s;
    US_TRY(new_step(l, US_OP_conv_t2d, &s));
    s->param = n->param;
    s->k = n->k;
    s->n_out = l->net->values[n->out].c;
    step_reads(l, s, 0, l->src[node][0]);
    return step_writes(l, s, n->out, s->n_out, l->p->cfg.dtype);
}

static enum us_status lower_latent(struct lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t q = l->src[node][0];
    if (latent_is_mean(l)) {
        l->view[n->out] = l->view[q];
        return US_OK;
    }
    struct us_plan_step *s;
    US_TRY(new_step(l, US_OP_latent, &s));
    s->level = n->level;
    s->sample_dep = true;
    step_reads(l, s, 0, q);
    return step_writes(l, s, n->out, l->net->values[n->out].c, l->p->cfg.dtype);
}

/* A pad is a window of the same buffer whose surroundings are zero. */
static void lower_pad(struct lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    struct view w = l->view[l->src[node][0]];
    w.dy += n->dy;
    w.dx += n->dx;
    w.full_h = l->net->values[n->out].h;
    w.full_w = l->net->values[n->out].w;
    w.zero_outside = true;
    l->view[n->out] = w;
}

/* A crop is a window too if its producer already made no more than the crop keeps; else a copy. */
static enum us_status lower_crop(struct lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t in = l->src[node][0];
    struct view w = l->view[in];
    struct us_rect held = map_of(l, in).rect;
    const struct us_value *v = &l->net->values[n->out];
    const struct us_rect kept = {n->dy, n->dx, v->h, v->w};
    w.dy -= n->dy;
    w.dx -= n->dx;
    w.full_h = v->h;
    w.full_w = v->w;
    if (us_rect_contains(&kept, &held)) {
        l->view[n->out] = w;
        return US_OK;
    }
    struct us_plan_step *s;
    US_TRY(new_step(l, US_OP_copy, &s));
    step_reads(l, s, 0, in);
    US_TRY(step_writes(l, s, n->out, s->in_map[0].c, s->in_map[0].dtype));
    /* The op sees both rectangles in the coordinates of the map it copies from. */
    s->out_map.rect.y0 += n->dy;
    s->out_map.rect.x0 += n->dx;
    s->out_map.full_h = s->in_map[0].full_h;
    s->out_map.full_w = s->in_map[0].full_w;
    return US_OK;
}

/* A batch norm that could not become a tail (its input has several). */
static enum us_status lower_bn(struct lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t elu = sole_user(l, n->out, US_N_ELU);
    if (elu < 0)
        return us_fail(l->err, US_E_UNSUPPORTED, "plan: a batch norm without ELU (node %d)", node);
    struct us_plan_step *s;
    US_TRY(new_step(l, US_OP_affine_elu, &s));
    s->tail_bn = n->param;
    step_reads(l, s, 0, l->src[node][0]);
    l->done[elu] = true;
    return step_writes(l, s, l->net->nodes[elu].out, s->in_map[0].c, s->in_map[0].dtype);
}

static enum us_status lower_node(struct lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    switch (n->op) {
    case US_N_INPUT:
        return lower_input(l, n);
    case US_N_CONV:
        return lower_conv(l, node);
    case US_N_CONV_T:
        return lower_conv_t(l, node);
    case US_N_BN:
        return lower_bn(l, node);
    case US_N_LATENT:
        return lower_latent(l, node);
    case US_N_PAD:
        lower_pad(l, node);
        return US_OK;
    case US_N_CROP:
        return lower_crop(l, node);
    case US_N_CONCAT: /* their convolution reads through them */
    case US_N_MUL:
        return US_OK;
    case US_N_OUTPUT:
        l->p->output = l->view[l->src[node][0]].tensor;
        return US_OK;
    default:
        return us_fail(l->err, US_E_UNSUPPORTED, "plan: no op for %s (node %d)",
                       us_node_op_name(n->op), node);
    }
}

/* Lifetimes that reach beyond the last reader: the output, and, if further samples reuse the
 * encoder, whatever a sample-dependent step reads from it. */
static void extend_lifetimes(struct us_plan *p)
{
    p->tensors[p->output].last = p->n_steps;
    if (!p->cfg.reuse_encoder)
        return;
    for (int32_t i = 0; i < p->n_steps; i++) {
        for (int32_t k = 0; k < US_OP_MAX_IN && p->steps[i].sample_dep; k++) {
            int32_t t = p->steps[i].in[k];
            if (t >= 0 && !p->tensors[t].sample_dep)
                p->tensors[t].last = p->n_steps;
        }
    }
}

static enum us_status lowering_init(struct lowering *l)
{
    size_t nodes = (size_t)l->net->n_nodes, values = (size_t)l->net->n_values;
    l->src = calloc(nodes, sizeof(*l->src));
    l->live = calloc(nodes, sizeof(*l->live));
    l->done = calloc(nodes, sizeof(*l->done));
    l->need = calloc(values, sizeof(*l->need));
    l->view = calloc(values, sizeof(*l->view));
    if (!l->src || !l->live || !l->done || !l->need || !l->view)
        return out_of_memory(l);
    for (size_t v = 0; v < values; v++)
        l->view[v].tensor = -1;
    return US_OK;
}

static void lowering_release(struct lowering *l)
{
    free(l->src);
    free(l->live);
    free(l->done);
    free(l->need);
    free(l->view);
}

enum us_status usi_plan_lower(struct us_plan *p, struct us_err *err)
{
    struct lowering l = {.p = p, .net = p->net, .err = err};
    for (int32_t s = 0; s < US_MAX_SCALES; s++)
        p->input[s] = -1;
    enum us_status status = lowering_init(&l);
    if (status == US_OK) {
        skip_dropout(&l);
        find_needs(&l);
    }
    for (int32_t i = 0; i < p->net->n_nodes && status == US_OK; i++) {
        if (l.live[i] && !l.done[i])
            status = lower_node(&l, i);
    }
    if (status == US_OK)
        extend_lifetimes(p);
    lowering_release(&l);
    return status;
}
