/*
 * The forward half of a training program, node by node from the network description.
 *
 * What backward will need either stays in a buffer per item (convolution outputs, block outputs,
 * posterior parameters, latents) or gets a recipe: batch norm + ELU, a gate's pre-activations,
 * concatenations, converted inputs are made again when they are needed, in the worker's memory.
 * That halves the maps kept per item for about 6 % more arithmetic.
 */
#include <stdlib.h>
#include <string.h>

#include "us_train_impl.h"

static void fail(struct us_train_lowering *l, enum us_status s, const char *what)
{
    if (l->status == US_OK)
        l->status = us_fail(l->err, s, "training plan: %s", what);
}

/* ---- building blocks ----------------------------------------------------------------------- */

int32_t usi_tl_tensor(struct us_train_lowering *l, int32_t h, int32_t w, int32_t c,
                      enum us_dtype dtype)
{
    struct us_train *t = l->t;
    if (t->n_tensors == t->cap_tensors) {
        int32_t cap = t->cap_tensors ? t->cap_tensors * 2 : 256;
        void *p = reallocarray(t->tensors, (size_t)cap, sizeof(*t->tensors));
        if (p == NULL) {
            fail(l, US_E_NOMEM, "out of memory");
            return 0;
        }
        t->tensors = p;
        t->cap_tensors = cap;
    }
    t->tensors[t->n_tensors] =
        (struct us_train_tensor){.map = us_map_full(1, h, w, c, dtype), .first = -1, .last = -1};
    return t->n_tensors++;
}

static int32_t tensor_like(struct us_train_lowering *l, int32_t v)
{
    const struct us_value *x = &l->net->values[v];
    return usi_tl_tensor(l, x->h, x->w, x->c, l->t->cfg.dtype);
}

static void touch(struct us_train *t, int32_t tensor, int32_t instr)
{
    if (tensor < 0)
        return;
    struct us_train_tensor *x = &t->tensors[tensor];
    int32_t segment = t->program[instr].segment;
    if (x->first < 0)
        x->first = instr;
    else if (t->program[x->first].segment != segment)
        x->per_item = true;
    x->last = instr;
}

struct us_instr *usi_tl_emit(struct us_train_lowering *l, enum us_instr_kind kind, int32_t a,
                             int32_t b, int32_t c, int32_t index)
{
    static struct us_instr nowhere; /* after a failure: written, never read */
    struct us_train *t = l->t;
    if (t->n_program == t->cap_program) {
        int32_t cap = t->cap_program ? t->cap_program * 2 : 1024;
        void *p = reallocarray(t->program, (size_t)cap, sizeof(*t->program));
        if (p == NULL) {
            fail(l, US_E_NOMEM, "out of memory");
            return &nowhere;
        }
        t->program = p;
        t->cap_program = cap;
    }
    if (l->status != US_OK)
        return &nowhere;
    int32_t now = t->n_program++;
    struct us_instr *i = &t->program[now];
    *i = (struct us_instr){.kind = kind,
                           .a = a,
                           .b = b,
                           .c = c,
                           .d = -1,
                           .e = -1,
                           .index = index,
                           .segment = t->n_segments};
    touch(t, a, now);
    touch(t, b, now);
    touch(t, c, now);
    return i;
}

void usi_tl_emit_five(struct us_train_lowering *l, enum us_instr_kind kind, int32_t a, int32_t b,
                      int32_t c, int32_t d, int32_t e, int32_t index)
{
    struct us_instr *i = usi_tl_emit(l, kind, a, b, c, index);
    i->d = d;
    i->e = e;
    if (l->status != US_OK)
        return;
    touch(l->t, d, l->t->n_program - 1);
    touch(l->t, e, l->t->n_program - 1);
}

/* What follows runs only when every item has come this far. */
void usi_tl_barrier(struct us_train_lowering *l)
{
    l->t->n_segments++;
}

int32_t usi_tl_sole_user(const struct us_train_lowering *l, int32_t v, enum us_node_op op)
{
    int32_t found = -1, n = 0;
    for (int32_t i = 0; i < l->net->n_nodes; i++) {
        for (int32_t k = 0; k < l->net->nodes[i].n_in; k++) {
            if (l->net->nodes[i].in[k] == v) {
                n++;
                found = i;
            }
        }
    }
    return n == 1 && l->net->nodes[found].op == op ? found : -1;
}

/* ---- recipes ------------------------------------------------------------------------------- */

/* Where value v really lives: views are followed to their source, offsets added up. */
static int32_t base_of(const struct us_train_lowering *l, int32_t v, int32_t *oy, int32_t *ox)
{
    *oy = *ox = 0;
    while (l->values[v].recipe == US_R_VIEW) {
        *oy += l->values[v].oy;
        *ox += l->values[v].ox;
        v = l->values[v].source;
    }
    return v;
}

static int32_t imax(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static int32_t imin(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

/* The gradient buffer of base value v and whether it must be added to; a window that does not
 * cover all of v starts from zero. */
static int32_t gradient_window(struct us_train_lowering *l, int32_t v, bool covers, bool *ret_add)
{
    *ret_add = l->values[v].grad >= 0;
    if (*ret_add)
        return l->values[v].grad;
    int32_t g = l->values[v].grad = tensor_like(l, v);
    if (!covers) {
        (void)usi_tl_emit(l, US_I_ZERO, g, -1, -1, -1);
        *ret_add = true;
    }
    return g;
}

void usi_tl_concat_half(struct us_train_lowering *l, int32_t node, int32_t which, int32_t buffer,
                        bool backward)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t u = n->in[which], oy, ox;
    int32_t v = base_of(l, u, &oy, &ox);
    const struct us_value *su = &l->net->values[u], *sv = &l->net->values[v];
    int32_t y0 = imax(0, -oy), x0 = imax(0, -ox);
    int32_t rh = imin(su->h, sv->h - oy) - y0, rw = imin(su->w, sv->w - ox) - x0;
    int32_t before = which == 0 ? 0 : l->net->values[n->in[0]].c;
    const struct us_window in_cat = {su->h, su->w, l->net->values[n->out].c, before, y0, x0};
    const struct us_window in_src = {sv->h, sv->w, sv->c, 0, y0 + oy, x0 + ox};
    struct us_instr *i;
    if (backward) {
        bool add;
        int32_t g = gradient_window(l, v, rh == sv->h && rw == sv->w, &add);
        i = usi_tl_emit(l, US_I_WINDOW, g, buffer, -1, -1);
        i->from = in_cat;
        i->to = in_src;
        i->add = add;
    } else {
        int32_t src = usi_tl_operand(l, v);
        i = usi_tl_emit(l, US_I_WINDOW, buffer, src, -1, -1);
        i->from = in_src;
        i->to = in_cat;
    }
    i->rh = rh;
    i->rw = rw;
    i->channels = su->c;
}

static int32_t make_concat(struct us_train_lowering *l, int32_t v)
{
    int32_t node = l->net->values[v].node, buffer = tensor_like(l, v);
    bool padded = false;
    for (int32_t k = 0; k < 2; k++) {
        int32_t oy, ox;
        (void)base_of(l, l->net->nodes[node].in[k], &oy, &ox);
        padded = padded || oy < 0 || ox < 0;
    }
    if (padded)
        (void)usi_tl_emit(l, US_I_ZERO, buffer, -1, -1, -1);
    for (int32_t k = 0; k < 2; k++)
        usi_tl_concat_half(l, node, k, buffer, false);
    return buffer;
}

static void set_tensor(struct us_train_lowering *l, int32_t v, int32_t tensor)
{
    l->values[v].recipe = US_R_TENSOR;
    l->values[v].tensor = tensor;
}

int32_t usi_tl_operand(struct us_train_lowering *l, int32_t v)
{
    const struct us_train_value x = l->values[v];
    int32_t t;
    switch (x.recipe) {
    case US_R_TENSOR:
        return x.tensor;
    case US_R_INPUT:
        t = tensor_like(l, v);
        (void)usi_tl_emit(l, US_I_INPUT, t, -1, -1, x.index);
        return t;
    case US_R_BN_ELU:
        t = tensor_like(l, v);
        (void)usi_tl_emit(l, US_I_BN_ELU, t, usi_tl_operand(l, x.source), -1, x.index);
        if (l->t->ops->batched) /* a device has the memory */
            set_tensor(l, v, t);
        return t;
    case US_R_CONV:
        t = tensor_like(l, v);
        (void)usi_tl_emit(l, US_I_CONV_FWD, t, usi_tl_operand(l, x.source), -1, x.index);
        return t;
    case US_R_CONCAT:
        return make_concat(l, v);
    case US_R_MUL:
        t = tensor_like(l, v);
        (void)usi_tl_emit(l, US_I_ACCUMULATE, t, usi_tl_operand(l, x.source), -1, -1);
        usi_tl_emit(l, US_I_SCALE, t, -1, -1, -1)->factor =
            l->net->nodes[l->net->values[v].node].factor;
        return t;
    default:
        fail(l, US_E_UNSUPPORTED, "a value is read that has no recipe");
        return 0;
    }
}

static void set_recipe(struct us_train_lowering *l, int32_t v, enum us_recipe r, int32_t source,
                       int32_t index)
{
    l->values[v].recipe = r;
    l->values[v].source = source;
    l->values[v].index = index;
}

/* ---- nodes --------------------------------------------------------------------------------- */

/* A convolution's place in the plan; `out_dtype` differs from cfg.dtype only for the head. */
static int32_t new_conv(struct us_train_lowering *l, const struct us_node *n,
                        enum us_dtype out_dtype)
{
    struct us_train *t = l->t;
    void *p = reallocarray(t->convs, (size_t)t->n_convs + 1, sizeof(*t->convs));
    if (p == NULL) {
        fail(l, US_E_NOMEM, "out of memory");
        return 0;
    }
    t->convs = p;
    struct us_train_conv *c = &t->convs[t->n_convs];
    const struct us_value *in = &l->net->values[n->in[0]], *out = &l->net->values[n->out];
    struct us_tconv_desc d = {
        .in = us_map_full(1, in->h, in->w, in->c, t->cfg.dtype),
        .out = us_map_full(1, out->h, out->w, out->c, out_dtype),
        .k = n->k,
        .stride = n->stride,
        .pad = n->pad,
        .transposed = n->op == US_N_CONV_T,
    };
    *c = (struct us_train_conv){.param = n->param, .desc = d};
    d.in.n = d.out.n = t->ops->batched ? t->cfg.batch : 1;
    t->n_convs++;
    if (l->status == US_OK)
        l->status = t->ops->conv_plan(t->be, &d, &c->conv, l->err);
    return t->n_convs - 1;
}

static void lower_conv(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    const struct us_value *out = &l->net->values[n->out];
    bool head = usi_tl_sole_user(l, n->out, US_N_OUTPUT) >= 0;
    int32_t conv = l->conv_of[node] = new_conv(l, n, head ? US_F32 : l->t->cfg.dtype);
    if (usi_tl_sole_user(l, n->out, US_N_GLU) >= 0) {
        set_recipe(l, n->out, US_R_CONV, n->in[0], conv);
        return;
    }
    int32_t x = usi_tl_operand(l, n->in[0]);
    int32_t y = usi_tl_tensor(l, out->h, out->w, out->c, head ? US_F32 : l->t->cfg.dtype);
    (void)usi_tl_emit(l, US_I_CONV_FWD, y, x, -1, conv);
    set_tensor(l, n->out, y);
    l->head_bwd = conv;
    if (head && l->t->cfg.dtype != US_F32)
        l->head_bwd = new_conv(l, n, l->t->cfg.dtype);
}

static void lower_bn(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    struct us_train *t = l->t;
    int32_t elu = usi_tl_sole_user(l, n->out, US_N_ELU);
    if (elu < 0) {
        fail(l, US_E_UNSUPPORTED, "a batch norm without ELU");
        return;
    }
    void *p = reallocarray(t->bns, (size_t)t->n_bns + 1, sizeof(*t->bns));
    if (p == NULL) {
        fail(l, US_E_NOMEM, "out of memory");
        return;
    }
    t->bns = p;
    const struct us_value *x = &l->net->values[n->in[0]];
    int32_t bn = l->bn_of[node] = l->bn_of[elu] = t->n_bns++;
    t->bns[bn] = (struct us_train_bn){.param = n->param, .c = x->c, .pixels = (int64_t)x->h * x->w};
    (void)usi_tl_emit(l, US_I_BN_STATS, -1, usi_tl_operand(l, n->in[0]), -1, bn);
    usi_tl_barrier(l);
    (void)usi_tl_emit(l, US_I_BN_FINISH, -1, -1, -1, bn);
    set_recipe(l, l->net->nodes[elu].out, US_R_BN_ELU, n->in[0], bn);
    l->done[elu] = true;
}

/* GLU and the residual that always follows it: out = x + glu(g). */
static void lower_glu(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t add = usi_tl_sole_user(l, n->out, US_N_ADD);
    if (add < 0) {
        fail(l, US_E_UNSUPPORTED, "a gate without residual");
        return;
    }
    const struct us_node *a = &l->net->nodes[add];
    int32_t x = a->in[0] == n->out ? a->in[1] : a->in[0];
    int32_t g = usi_tl_operand(l, n->in[0]);
    int32_t out = tensor_like(l, a->out);
    (void)usi_tl_emit(l, US_I_GLU, out, g, usi_tl_operand(l, x), -1);
    set_tensor(l, a->out, out);
    l->done[add] = true;
}

/* A residual without gate: the sum takes the place of the convolution's output. */
static void lower_add(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t sum = usi_tl_operand(l, n->in[1]);
    usi_tl_emit(l, US_I_ACCUMULATE, sum, usi_tl_operand(l, n->in[0]), -1, -1)->add = true;
    set_tensor(l, n->out, sum);
}

/* In place: nobody else reads what dropout or an ELU after a convolution takes. */
static void lower_in_place(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t x = usi_tl_operand(l, n->in[0]);
    if (n->op == US_N_ELU)
        (void)usi_tl_emit(l, US_I_ELU, x, -1, -1, -1);
    else if (!l->t->cfg.no_dropout && l->net->arch.dropout > 0.0f)
        (void)usi_tl_emit(l, US_I_DROP, x, -1, -1, node);
    set_tensor(l, n->out, x);
}

/* Concatenations read windows; whoever else reads a padded or cropped map gets a buffer. */
static void lower_window(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t sign = n->op == US_N_CROP ? 1 : -1;
    set_recipe(l, n->out, US_R_VIEW, n->in[0], -1);
    l->values[n->out].oy = sign * n->dy;
    l->values[n->out].ox = sign * n->dx;
    if (usi_tl_sole_user(l, n->out, US_N_CONCAT) >= 0)
        return;
    const struct us_value *src = &l->net->values[n->in[0]], *dst = &l->net->values[n->out];
    int32_t from = usi_tl_operand(l, n->in[0]), to = tensor_like(l, n->out);
    bool pad = n->op == US_N_PAD;
    if (pad)
        (void)usi_tl_emit(l, US_I_ZERO, to, -1, -1, -1);
    struct us_instr *i = usi_tl_emit(l, US_I_WINDOW, to, from, -1, -1);
    i->rh = pad ? src->h : dst->h;
    i->rw = pad ? src->w : dst->w;
    i->channels = src->c;
    i->from = (struct us_window){src->h, src->w, src->c, 0, pad ? 0 : n->dy, pad ? 0 : n->dx};
    i->to = (struct us_window){dst->h, dst->w, dst->c, 0, pad ? n->dy : 0, pad ? n->dx : 0};
    set_tensor(l, n->out, to);
}

static void lower_node(struct us_train_lowering *l, int32_t node);

static int32_t kl_of(const struct us_train_lowering *l, int32_t level)
{
    for (int32_t i = 0; i < l->net->n_nodes; i++) {
        if (l->net->nodes[i].op == US_N_KL && l->net->nodes[i].level == level)
            return i;
    }
    return -1;
}

static void lower_latent(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    const struct us_value *z = &l->net->values[n->out];
    struct us_train_latent *lat = &l->t->latents[n->level];
    const struct us_arch *a = &l->net->arch;
    int32_t kl = kl_of(l, n->level), p = -1;
    lat->has_kl = kl >= 0;
    lat->desc = (struct us_posterior){
        .ew = {l->t->cfg.dtype, (int64_t)z->h * z->w, z->c},
        .h = z->h,
        .w = z->w,
        .level = n->level,
        .var_clip_max = a->var_clip_max,
        .analytical = l->t->cfg.analytical_kl,
        .deterministic = !a->stochastic,
    };
    if (lat->has_kl) { /* the prior's side first: the sample and its KL are one pass */
        int32_t pv = l->net->nodes[kl].in[1];
        int32_t maker = l->net->values[pv].node;
        if (!l->done[maker])
            lower_node(l, maker);
        p = usi_tl_operand(l, pv);
        l->done[kl] = true;
    }
    int32_t t = tensor_like(l, n->out);
    (void)usi_tl_emit(l, US_I_POSTERIOR, t, usi_tl_operand(l, n->in[0]), p, n->level);
    set_tensor(l, n->out, t);
}

static void lower_prior(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    int32_t t = tensor_like(l, n->out);
    l->t->prior_param = n->param;
    (void)usi_tl_emit(l, US_I_PRIOR_LOAD, t, -1, -1, -1);
    set_tensor(l, n->out, t);
}

static void lower_output(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    const struct us_value *x = &l->net->values[n->in[0]];
    int32_t dhead = usi_tl_tensor(l, x->h, x->w, x->c, US_F32);
    l->t->likelihood.h = x->h;
    l->t->likelihood.w = x->w;
    (void)usi_tl_emit(l, US_I_LIKELIHOOD, dhead, usi_tl_operand(l, n->in[0]), -1, -1);
    l->values[n->in[0]].grad = dhead;
}

static void lower_node(struct us_train_lowering *l, int32_t node)
{
    const struct us_node *n = &l->net->nodes[node];
    l->done[node] = true;
    switch (n->op) {
    case US_N_INPUT:
        set_recipe(l, n->out, US_R_INPUT, -1, n->scale);
        break;
    case US_N_CONV:
    case US_N_CONV_T:
        lower_conv(l, node);
        break;
    case US_N_BN:
        lower_bn(l, node);
        break;
    case US_N_ELU:
    case US_N_DROP2D:
        lower_in_place(l, node);
        break;
    case US_N_GLU:
        lower_glu(l, node);
        break;
    case US_N_ADD:
        lower_add(l, node);
        break;
    case US_N_CONCAT:
        set_recipe(l, n->out, US_R_CONCAT, -1, -1);
        break;
    case US_N_PAD:
    case US_N_CROP:
        lower_window(l, node);
        break;
    case US_N_MUL:
        set_recipe(l, n->out, US_R_MUL, n->in[0], -1);
        break;
    case US_N_LATENT:
        lower_latent(l, node);
        break;
    case US_N_PRIOR:
        lower_prior(l, node);
        break;
    case US_N_OUTPUT:
        lower_output(l, node);
        break;
    case US_N_KL:
        break; /* part of its latent */
    }
    l->order[l->n_order++] = node;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static enum us_status lowering_init(struct us_train_lowering *l)
{
    size_t nodes = (size_t)l->net->n_nodes, values = (size_t)l->net->n_values;
    l->values = calloc(values, sizeof(*l->values));
    l->done = calloc(nodes, sizeof(*l->done));
    l->order = calloc(nodes, sizeof(*l->order));
    l->conv_of = calloc(nodes, sizeof(*l->conv_of));
    l->bn_of = calloc(nodes, sizeof(*l->bn_of));
    if (!l->values || !l->done || !l->order || !l->conv_of || !l->bn_of)
        return us_fail(l->err, US_E_NOMEM, "training plan: out of memory");
    for (size_t v = 0; v < values; v++)
        l->values[v].grad = -1;
    for (size_t i = 0; i < nodes; i++)
        l->conv_of[i] = l->bn_of[i] = -1;
    return US_OK;
}

static void lowering_release(struct us_train_lowering *l)
{
    free(l->values);
    free(l->done);
    free(l->order);
    free(l->conv_of);
    free(l->bn_of);
}

/* Where each segment starts. */
static void index_segments(struct us_train_lowering *l)
{
    struct us_train *t = l->t;
    t->n_segments++;
    t->segment_start = calloc((size_t)t->n_segments + 1, sizeof(*t->segment_start));
    if (t->segment_start == NULL) {
        fail(l, US_E_NOMEM, "out of memory");
        return;
    }
    int32_t s = 0;
    for (int32_t i = 0; i < t->n_program; i++) {
        while (s < t->program[i].segment)
            t->segment_start[++s] = i;
    }
    while (s < t->n_segments)
        t->segment_start[++s] = t->n_program;
}

enum us_status usi_train_lower(struct us_train *t, struct us_err *err)
{
    struct us_train_lowering l = {.t = t, .net = t->net, .err = err};
    t->prior_param = -1;
    l.status = lowering_init(&l);
    for (int32_t i = 0; i < t->net->n_nodes && l.status == US_OK; i++) {
        if (!l.done[i])
            lower_node(&l, i);
    }
    if (l.status == US_OK)
        usi_train_reverse(&l);
    if (l.status == US_OK)
        index_segments(&l);
    lowering_release(&l);
    return l.status;
}
