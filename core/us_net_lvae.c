/*
 * The LVAE family: HVAE and HAE, vanilla, Lean-, Regular- and Deep-LC (model-spec 3, 4, 5, 7).
 *
 * Two halves, as upstream's constructor and forward: first every parameter is declared in the
 * order of the state dictionary (spec 11.1), then the nodes are appended in execution order.
 * Comments name the spec's modules: IB (input branch), BU, TD, OB (output block), RB, GRB, M.
 */
#include <math.h>
#include <stdio.h>

#include "us_net_build.h"

/* Names grow inwards: a part's prefix, then ".layer.1" of a merge, then ".block.8.conv". */
#define NAME_BYTES   (US_MAX_PARAM_NAME - 24)
#define MERGE_BYTES  (NAME_BYTES - 16)
#define PREFIX_BYTES (MERGE_BYTES - 16)

/* Indices of the first parameter of each part; gate -1: not gated. */
struct res_block {
    int32_t bn1, conv1, bn2, conv2, gate;
};

struct merge_block {
    int32_t conv;
    struct res_block res;
};

struct input_branch {
    int32_t conv;
    struct res_block res;
};

struct bu_level {
    int32_t down;
    struct res_block res[US_MAX_BLOCKS]; /* [0] follows `down`; the others are `net` */
    struct merge_block lowres;
};

struct td_level {
    int32_t up;
    struct res_block res[US_MAX_BLOCKS];
    int32_t in_p, in_q, out;
    struct merge_block merge, skip;
};

struct lvae {
    struct us_net_builder *b;
    int32_t c, levels, blocks, scales;
    bool lc, retain; /* enable_multiscale, decoder_retain (spec 1) */
    int32_t size;    /* of the maps at full resolution: net->size rounded up (spec 4.2) */
    int32_t prior;
    struct input_branch ib[US_MAX_SCALES];
    struct bu_level bu[US_MAX_LEVELS];
    struct td_level td[US_MAX_LEVELS];
    struct res_block ob[US_MAX_BLOCKS];
    int32_t head;
};

/* ---- parameters, in state-dict order ------------------------------------------------------- */

static struct res_block declare_res(struct lvae *m, const char *prefix, bool gated, uint32_t flags)
{
    char name[NAME_BYTES];
    struct res_block r = {.gate = -1};
    (void)snprintf(name, sizeof(name), "%s.block.0", prefix);
    r.bn1 = usi_param_bn(m->b, name, m->c, flags);
    (void)snprintf(name, sizeof(name), "%s.block.2", prefix);
    r.conv1 = usi_param_conv(m->b, name, m->c, m->c, 3, m->c, flags);
    (void)snprintf(name, sizeof(name), "%s.block.4", prefix);
    r.bn2 = usi_param_bn(m->b, name, m->c, flags);
    (void)snprintf(name, sizeof(name), "%s.block.6", prefix);
    r.conv2 = usi_param_conv(m->b, name, m->c, m->c, 3, m->c, flags);
    if (gated) {
        (void)snprintf(name, sizeof(name), "%s.block.8.conv", prefix);
        r.gate = usi_param_conv(m->b, name, 2 * m->c, m->c, 1, 2 * m->c, flags);
    }
    return r;
}

static struct merge_block declare_merge(struct lvae *m, const char *prefix, uint32_t flags)
{
    char name[MERGE_BYTES];
    struct merge_block mb;
    (void)snprintf(name, sizeof(name), "%s.layer.0", prefix);
    mb.conv = usi_param_conv(m->b, name, m->c, 2 * m->c, 1, m->c, flags);
    (void)snprintf(name, sizeof(name), "%s.layer.1", prefix);
    mb.res = declare_res(m, name, true, flags);
    return mb;
}

static void declare_input_branches(struct lvae *m)
{
    char name[PREFIX_BYTES];
    m->ib[0].conv = usi_param_conv(m->b, "first_bottom_up.0", m->c, 1, 3, m->c, 0);
    m->ib[0].res = declare_res(m, "first_bottom_up.2.res", false, 0);
    for (int32_t s = 1; s < m->scales; s++) {
        (void)snprintf(name, sizeof(name), "lowres_first_bottom_ups.%d.0", s - 1);
        m->ib[s].conv = usi_param_conv(m->b, name, m->c, 1, 5, m->c, 0);
        (void)snprintf(name, sizeof(name), "lowres_first_bottom_ups.%d.2.res", s - 1);
        m->ib[s].res = declare_res(m, name, false, 0);
    }
}

/* Side of the learned top-level prior map (spec 4.6, end): fixed by the training patch. */
static int32_t prior_side(const struct lvae *m)
{
    int32_t patch = m->b->net->patch;
    if (m->retain)
        return patch >> (m->levels + 1 - m->scales);
    int32_t unit = 1 << m->levels;
    return (patch + unit - 1) / unit;
}

static void declare_stochastic(struct lvae *m, int32_t i, uint32_t prior_flags)
{
    char name[PREFIX_BYTES];
    const int32_t z = m->b->net->arch.z_dims[i];
    struct td_level *t = &m->td[i];
    t->in_p = -1;
    if (i < m->levels - 1) {
        (void)snprintf(name, sizeof(name), "top_down_layers.%d.stochastic.conv_in_p", i);
        t->in_p = usi_param_conv(m->b, name, 2 * z, m->c, 3, 2 * z, prior_flags);
    }
    (void)snprintf(name, sizeof(name), "top_down_layers.%d.stochastic.conv_in_q", i);
    t->in_q = usi_param_conv(m->b, name, 2 * z, m->c, 3, 2 * z, 0);
    (void)snprintf(name, sizeof(name), "top_down_layers.%d.stochastic.conv_out", i);
    t->out = usi_param_conv(m->b, name, m->c, z, 3, m->c, 0);
}

static void declare_top_down(struct lvae *m, int32_t i)
{
    char name[PREFIX_BYTES];
    const struct us_arch *a = &m->b->net->arch;
    /* An HAE evaluates neither prior nor conv_in_p (spec 7). */
    uint32_t prior_flags = US_PARAM_TRAIN_ONLY | (a->stochastic ? 0u : (uint32_t)US_PARAM_DEAD);
    struct td_level *t = &m->td[i];
    if (i == m->levels - 1) {
        (void)snprintf(name, sizeof(name), "top_down_layers.%d.top_prior_params", i);
        int32_t side = prior_side(m);
        m->prior = usi_param_prior(m->b, name, 2 * a->z_dims[i], side, side, prior_flags);
    }
    (void)snprintf(name, sizeof(name), "top_down_layers.%d.deterministic_block.0.pre_conv", i);
    t->up = usi_param_conv(m->b, name, m->c, m->c, 3, m->c, 0);
    for (int32_t j = 0; j < m->blocks; j++) {
        (void)snprintf(name, sizeof(name), "top_down_layers.%d.deterministic_block.%d.res", i, j);
        t->res[j] = declare_res(m, name, true, 0);
    }
    declare_stochastic(m, i, prior_flags);
    if (i == m->levels - 1)
        return;
    (void)snprintf(name, sizeof(name), "top_down_layers.%d.merge", i);
    t->merge = declare_merge(m, name, 0);
    (void)snprintf(name, sizeof(name), "top_down_layers.%d.skip_connection_merger", i);
    t->skip = declare_merge(m, name, 0);
}

static void declare_bottom_up(struct lvae *m, int32_t i)
{
    char name[PREFIX_BYTES];
    struct bu_level *l = &m->bu[i];
    (void)snprintf(name, sizeof(name), "bottom_up_layers.%d.net_downsized.0.pre_conv", i);
    l->down = usi_param_conv(m->b, name, m->c, m->c, 3, m->c, 0);
    (void)snprintf(name, sizeof(name), "bottom_up_layers.%d.net_downsized.0.res", i);
    l->res[0] = declare_res(m, name, true, 0);
    int32_t first = m->b->net->n_params;
    for (int32_t j = 1; j < m->blocks; j++) {
        (void)snprintf(name, sizeof(name), "bottom_up_layers.%d.net.%d.res", i, j - 1);
        l->res[j] = declare_res(m, name, true, 0);
    }
    if (!m->lc)
        return;
    usi_param_alias(m->b, first, m->b->net->n_params - first, ".net.", ".lowres_net.");
    (void)snprintf(name, sizeof(name), "bottom_up_layers.%d.lowres_merge", i);
    /* Levels without an LC input own the parameters all the same (spec 4.1). */
    l->lowres = declare_merge(m, name, i + 1 < m->scales ? 0 : US_PARAM_DEAD);
}

static void declare(struct lvae *m)
{
    char name[PREFIX_BYTES];
    const struct us_arch *a = &m->b->net->arch;
    declare_input_branches(m);
    for (int32_t i = 0; i < m->levels; i++)
        declare_top_down(m, i);
    for (int32_t i = 0; i < m->levels; i++)
        declare_bottom_up(m, i);
    for (int32_t j = 0; j < m->blocks; j++) {
        (void)snprintf(name, sizeof(name), "final_top_down.%d.res", j);
        m->ob[j] = declare_res(m, name, true, 0);
    }
    int32_t out = a->target_channels * (a->predict_logvar == US_LOGVAR_NONE ? 1 : 2);
    m->head = usi_param_conv(m->b, "likelihood.parameter_net", out, m->c, 3, out, 0);
}

/* ---- nodes, in execution order ------------------------------------------------------------- */

/* RB or GRB (spec 3.1, 3.2): x + f(x), f = BN ELU conv drop BN ELU conv drop [gate]. */
static int32_t res_block(struct lvae *m, int32_t x, const struct res_block *r)
{
    struct us_net_builder *b = m->b;
    int32_t v = usi_node_unary(b, US_N_ELU, usi_node_bn(b, x, r->bn1));
    v = usi_node_unary(b, US_N_DROP2D, usi_node_conv(b, v, r->conv1, 1, 1));
    v = usi_node_unary(b, US_N_ELU, usi_node_bn(b, v, r->bn2));
    v = usi_node_unary(b, US_N_DROP2D, usi_node_conv(b, v, r->conv2, 1, 1));
    if (r->gate >= 0)
        v = usi_node_glu(b, usi_node_conv(b, v, r->gate, 1, 0));
    return usi_node_add(b, x, v);
}

/* M (spec 3.4); the order of first and second is the checkpoint's. */
static int32_t merge_block(struct lvae *m, int32_t first, int32_t second,
                           const struct merge_block *p)
{
    int32_t v = usi_node_conv(m->b, usi_node_concat(m->b, first, second), p->conv, 1, 0);
    return res_block(m, v, &p->res);
}

/* IB_s (spec 4.1): k 3 for the full resolution, 5 for the context inputs. */
static int32_t input_branch(struct lvae *m, int32_t s)
{
    int32_t v = usi_node_pad_to(m->b, usi_node_input(m->b, s), m->size, m->size);
    v = usi_node_conv(m->b, v, m->ib[s].conv, 1, s == 0 ? 1 : 2);
    return res_block(m, usi_node_unary(m->b, US_N_ELU, v), &m->ib[s].res);
}

static int32_t same_size_blocks(struct lvae *m, int32_t v, const struct res_block *res)
{
    for (int32_t j = 1; j < m->blocks; j++)
        v = res_block(m, v, &res[j]);
    return v;
}

/* Spec 4.3. Fills u[i], the bottom-up value handed to TD_i. */
static void bottom_up(struct lvae *m, int32_t *u)
{
    int32_t x = input_branch(m, 0);
    for (int32_t i = 0; i < m->levels && m->b->status == US_OK; i++) {
        const struct bu_level *l = &m->bu[i];
        int32_t p = res_block(m, usi_node_conv(m->b, x, l->down, 2, 1), &l->res[0]);
        p = same_size_blocks(m, p, l->res);
        if (i + 1 < m->scales) {
            int32_t lc = same_size_blocks(m, input_branch(m, i + 1), l->res);
            p = usi_node_pad_to(m->b, p, m->size, m->size);
            p = merge_block(m, p, lc, &l->lowres);
        }
        x = p;
        u[i] = p;
        if (m->lc && !m->retain) {
            int32_t side = m->size >> (i + 1);
            u[i] = usi_node_crop_to(m->b, p, side, side);
        }
    }
}

/* Latent scaling (spec 4.5): q_in is in effect multiplied by sqrt(2 (1 + i)) when L > 4. */
static int32_t latent_scaling(struct lvae *m, int32_t q_in, int32_t i)
{
    if (m->levels <= 4)
        return q_in;
    return usi_node_mul(m->b, q_in, (float)sqrt(2.0 * (1.0 + i)));
}

/* A latent of odd side would be cropped in training and no longer fit (spec 5.4, 18 row 21). */
static void check_latent_side(struct lvae *m, int32_t q, int32_t i)
{
    if (m->b->status != US_OK || m->b->net->size != m->b->net->patch)
        return;
    int32_t side = usi_value(m->b, q)->w;
    if (side % 2 != 0)
        usi_net_fail(m->b, US_E_ARG,
                     "%d levels on patch size %d: level %d's latent map would be %dx%d; expected "
                     "an even side of 2 or more (fewer levels or a larger patch)",
                     m->levels, m->b->net->patch, i, side, side);
}

/* Spec 5: posterior, sample, KL (training only); returns conv_out(z). */
static int32_t stochastic(struct lvae *m, int32_t i, int32_t q_in, int32_t out)
{
    struct us_net_builder *b = m->b;
    const struct us_net *net = b->net;
    const struct td_level *t = &m->td[i];
    int32_t q = usi_node_conv(b, latent_scaling(m, q_in, i), t->in_q, 1, 1);
    check_latent_side(m, q, i);
    int32_t z = usi_node_latent(b, q, i);
    /* The prior map has the training patch's size: no KL in a graph of another size. */
    if (net->arch.stochastic && net->size == net->patch && b->status == US_OK) {
        int32_t p =
            i == m->levels - 1 ? usi_node_prior(b, m->prior) : usi_node_conv(b, out, t->in_p, 1, 1);
        (void)usi_node_kl(b, q, p, z, i);
    }
    return usi_node_conv(b, z, t->out, 1, 1);
}

/* Spec 4.4; returns the top-down output at full resolution. */
static int32_t top_down(struct lvae *m, const int32_t *u)
{
    struct us_net_builder *b = m->b;
    int32_t out = -1;
    for (int32_t i = m->levels - 1; i >= 0 && b->status == US_OK; i--) {
        const struct td_level *t = &m->td[i];
        bool top = i == m->levels - 1;
        int32_t q_in = top ? u[i] : merge_block(m, u[i], out, &t->merge);
        int32_t s = stochastic(m, i, q_in, out);
        if (!top)
            s = merge_block(m, s, out, &t->skip);
        if (b->status == US_OK && m->retain && usi_value(b, s)->w > m->size / 2)
            s = usi_node_crop_to(b, s, m->size / 2, m->size / 2);
        out = res_block(m, usi_node_conv_t(b, s, t->up), &t->res[0]);
        out = same_size_blocks(m, out, t->res);
    }
    return out;
}

static void forward(struct lvae *m)
{
    int32_t u[US_MAX_LEVELS] = {0}; /* a failed build leaves some unset */
    bottom_up(m, u);
    int32_t h = top_down(m, u);
    for (int32_t j = 0; j < m->blocks; j++)
        h = res_block(m, h, &m->ob[j]);
    h = usi_node_crop_to(m->b, h, m->b->net->size, m->b->net->size);
    (void)usi_node_output(m->b, usi_node_conv(m->b, h, m->head, 1, 1));
}

/* decoder_retain maps halve only above the LC levels; everything must divide there. */
static void check_divides(struct lvae *m)
{
    int32_t halvings = m->retain ? m->levels + 1 - m->scales : 0;
    int32_t unit = 2 << halvings;
    if (m->retain && m->size % unit != 0)
        usi_net_fail(m->b, US_E_ARG,
                     "patch size %d with %d levels and %d input scales; expected a multiple of %d",
                     m->size, m->levels, m->scales, unit);
}

void usi_net_build_lvae(struct us_net_builder *b)
{
    const struct us_arch *a = &b->net->arch;
    struct lvae m = {
        .b = b,
        .c = a->n_filters,
        .levels = a->n_levels,
        .blocks = a->blocks_per_level,
        .scales = a->lc_scales,
        .lc = a->lc_scales > 1,
        .retain = a->decoder_retain && a->lc_scales > 1,
        .size = b->net->size,
        .prior = -1,
    };
    if (!m.retain) { /* spec 4.2: rounded up to a multiple of 2^L */
        int32_t unit = 1 << m.levels;
        m.size = (m.size + unit - 1) / unit * unit;
    }
    check_divides(&m);
    declare(&m);
    forward(&m);
}
