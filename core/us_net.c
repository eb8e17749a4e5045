/*
 * Networks as data: the containers and the primitives that a family's builder uses
 * (us_net_build.h). The families themselves are in us_net_<family>.c.
 */
#include "us_net.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_net_build.h"

void usi_net_fail(struct us_net_builder *b, enum us_status s, const char *fmt, ...)
{
    if (b->status != US_OK)
        return;
    char text[US_ERR_MSG_BYTES];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    b->status = us_fail(b->err, s, "%s", text);
}

/* Makes room for one more element of `size` bytes. */
static void *grow(struct us_net_builder *b, void *array, int32_t n, int32_t *cap, size_t size)
{
    if (n < *cap)
        return array;
    int32_t want = *cap > 0 ? *cap * 2 : 64;
    void *p = reallocarray(array, (size_t)want, size);
    if (p == NULL) {
        usi_net_fail(b, US_E_NOMEM, "network description: out of memory");
        return array;
    }
    *cap = want;
    return p;
}

/* ---- parameters ---------------------------------------------------------------------------- */

static struct us_param *new_param(struct us_net_builder *b, enum us_param_kind kind, uint32_t flags,
                                  const char *name, const char *suffix)
{
    struct us_net *net = b->net;
    net->params = grow(b, net->params, net->n_params, &b->cap_params, sizeof(*net->params));
    if (b->status != US_OK)
        return NULL;
    struct us_param *p = &net->params[net->n_params];
    memset(p, 0, sizeof(*p));
    p->kind = kind;
    p->flags = flags;
    p->alias_of = -1;
    int n = snprintf(p->name, sizeof(p->name), "%s%s", name, suffix);
    if (n < 0 || (size_t)n >= sizeof(p->name)) {
        usi_net_fail(b, US_E_TOO_LARGE, "parameter name %s%s is too long", name, suffix);
        return NULL;
    }
    net->n_params++;
    return p;
}

/* Gives the parameter its shape and its place in the block. */
static int32_t place_param(struct us_net_builder *b, struct us_param *p, int32_t ndim,
                           const int64_t *dim)
{
    if (p == NULL)
        return -1;
    struct us_net *net = b->net;
    p->ndim = ndim;
    p->count = 1;
    for (int32_t i = 0; i < ndim; i++) {
        p->dim[i] = dim[i];
        p->count *= dim[i];
    }
    int64_t *block = p->kind == US_PARAM_BN_COUNT ? &net->n_counters : &net->n_floats;
    p->offset = *block;
    *block += p->count;
    return (int32_t)(p - net->params);
}

int32_t usi_param_conv(struct us_net_builder *b, const char *name, int32_t d0, int32_t d1,
                       int32_t k, int32_t n_bias, uint32_t flags)
{
    const int64_t wd[4] = {d0, d1, k, k}, bd[1] = {n_bias};
    int32_t first = place_param(b, new_param(b, US_PARAM_CONV_W, flags, name, ".weight"), 4, wd);
    (void)place_param(b, new_param(b, US_PARAM_CONV_B, flags, name, ".bias"), 1, bd);
    return first;
}

int32_t usi_param_bn(struct us_net_builder *b, const char *name, int32_t c, uint32_t flags)
{
    static const struct {
        enum us_param_kind kind;
        const char *suffix;
    } parts[] = {
        {US_PARAM_BN_W, ".weight"},
        {US_PARAM_BN_B, ".bias"},
        {US_PARAM_BN_MEAN, ".running_mean"},
        {US_PARAM_BN_VAR, ".running_var"},
        {US_PARAM_BN_COUNT, ".num_batches_tracked"},
    };
    int32_t first = -1;
    const int64_t dim[1] = {c};
    for (size_t i = 0; i < US_COUNT(parts); i++) {
        bool counter = parts[i].kind == US_PARAM_BN_COUNT;
        uint32_t f = flags | (counter ? US_PARAM_OPTIONAL : 0u);
        struct us_param *p = new_param(b, parts[i].kind, f, name, parts[i].suffix);
        int32_t id = place_param(b, p, counter ? 0 : 1, dim);
        first = i == 0 ? id : first;
    }
    return first;
}

int32_t usi_param_prior(struct us_net_builder *b, const char *name, int32_t c, int32_t h, int32_t w,
                        uint32_t flags)
{
    const int64_t dim[4] = {1, c, h, w};
    return place_param(b, new_param(b, US_PARAM_PRIOR, flags, name, ""), 4, dim);
}

void usi_param_alias(struct us_net_builder *b, int32_t first, int32_t n, const char *from,
                     const char *to)
{
    for (int32_t i = first; i < first + n && b->status == US_OK; i++) {
        const struct us_param src = b->net->params[i];
        const char *hit = strstr(src.name, from);
        US_ASSERT(hit != NULL);
        char name[US_MAX_PARAM_NAME * 2];
        (void)snprintf(name, sizeof(name), "%.*s%s%s", (int)(hit - src.name), src.name, to,
                       hit + strlen(from));
        struct us_param *p = new_param(b, src.kind, src.flags | US_PARAM_OPTIONAL, name, "");
        if (p == NULL)
            return;
        p->ndim = src.ndim;
        memcpy(p->dim, src.dim, sizeof(p->dim));
        p->count = src.count;
        p->offset = src.offset;
        p->alias_of = i;
    }
}

/* ---- nodes --------------------------------------------------------------------------------- */

static int32_t new_value(struct us_net_builder *b, int32_t c, int32_t h, int32_t w)
{
    struct us_net *net = b->net;
    net->values = grow(b, net->values, net->n_values, &b->cap_values, sizeof(*net->values));
    if (b->status != US_OK)
        return -1;
    net->values[net->n_values] = (struct us_value){c, h, w, net->n_nodes};
    return net->n_values++;
}

/* Appends a node that makes a value of shape [c, h, w]; NULL after a failure. */
static struct us_node *new_node(struct us_net_builder *b, enum us_node_op op, int32_t c, int32_t h,
                                int32_t w)
{
    struct us_net *net = b->net;
    if (b->status != US_OK)
        return NULL;
    if (c < 1 || h < 1 || w < 1) {
        usi_net_fail(b, US_E_ARG,
                     "the patch is too small for this many levels: a %s map would "
                     "be %dx%d",
                     us_node_op_name(op), h, w);
        return NULL;
    }
    net->nodes = grow(b, net->nodes, net->n_nodes, &b->cap_nodes, sizeof(*net->nodes));
    int32_t v = new_value(b, c, h, w);
    if (b->status != US_OK)
        return NULL;
    struct us_node *n = &net->nodes[net->n_nodes++];
    memset(n, 0, sizeof(*n));
    n->op = op;
    n->out = v;
    n->param = -1;
    return n;
}

static int32_t finish_node(struct us_node *n, int32_t in0, int32_t in1)
{
    if (n == NULL)
        return -1;
    n->in[0] = in0;
    n->in[1] = in1;
    n->n_in = (in0 >= 0) + (in1 >= 0);
    return n->out;
}

/* The shape of a value, or zeros after a failure. */
static struct us_value shape(const struct us_net_builder *b, int32_t v)
{
    return b->status == US_OK && v >= 0 ? b->net->values[v] : (struct us_value){1, 1, 1, -1};
}

int32_t usi_node_input(struct us_net_builder *b, int32_t scale)
{
    struct us_node *n = new_node(b, US_N_INPUT, 1, b->net->size, b->net->size);
    if (n != NULL)
        n->scale = scale;
    return finish_node(n, -1, -1);
}

int32_t usi_node_conv(struct us_net_builder *b, int32_t in, int32_t param, int32_t stride,
                      int32_t pad)
{
    struct us_value s = shape(b, in);
    if (b->status != US_OK)
        return -1;
    const struct us_param *w = &b->net->params[param];
    US_ASSERT(w->dim[1] == s.c);
    int32_t k = (int32_t)w->dim[2];
    struct us_node *n = new_node(b, US_N_CONV, (int32_t)w->dim[0], (s.h + 2 * pad - k) / stride + 1,
                                 (s.w + 2 * pad - k) / stride + 1);
    if (n != NULL) {
        n->param = param;
        n->k = k;
        n->stride = stride;
        n->pad = pad;
    }
    return finish_node(n, in, -1);
}

int32_t usi_node_conv_t(struct us_net_builder *b, int32_t in, int32_t param)
{
    struct us_value s = shape(b, in);
    if (b->status != US_OK)
        return -1;
    const struct us_param *w = &b->net->params[param];
    US_ASSERT(w->dim[0] == s.c && w->dim[2] == 3);
    struct us_node *n = new_node(b, US_N_CONV_T, (int32_t)w->dim[1], s.h * 2, s.w * 2);
    if (n != NULL) {
        n->param = param;
        n->k = 3;
        n->stride = 2;
        n->pad = 1;
    }
    return finish_node(n, in, -1);
}

int32_t usi_node_bn(struct us_net_builder *b, int32_t in, int32_t param)
{
    struct us_value s = shape(b, in);
    struct us_node *n = new_node(b, US_N_BN, s.c, s.h, s.w);
    if (n != NULL)
        n->param = param;
    return finish_node(n, in, -1);
}

int32_t usi_node_unary(struct us_net_builder *b, enum us_node_op op, int32_t in)
{
    struct us_value s = shape(b, in);
    return finish_node(new_node(b, op, s.c, s.h, s.w), in, -1);
}

int32_t usi_node_glu(struct us_net_builder *b, int32_t in)
{
    struct us_value s = shape(b, in);
    return finish_node(new_node(b, US_N_GLU, s.c / 2, s.h, s.w), in, -1);
}

int32_t usi_node_add(struct us_net_builder *b, int32_t x, int32_t y)
{
    struct us_value s = shape(b, x);
    return finish_node(new_node(b, US_N_ADD, s.c, s.h, s.w), x, y);
}

int32_t usi_node_concat(struct us_net_builder *b, int32_t first, int32_t second)
{
    struct us_value s = shape(b, first), t = shape(b, second);
    if (s.h != t.h || s.w != t.w)
        usi_net_fail(b, US_E_ARG,
                     "patch size %d does not suit this network: maps of %dx%d and %dx%d would "
                     "have to be joined; use a multiple of a higher power of two",
                     b->net->size, s.h, s.w, t.h, t.w);
    return finish_node(new_node(b, US_N_CONCAT, s.c + t.c, s.h, s.w), first, second);
}

int32_t usi_node_pad_to(struct us_net_builder *b, int32_t in, int32_t h, int32_t w)
{
    struct us_value s = shape(b, in);
    if (b->status != US_OK || (s.h == h && s.w == w))
        return in;
    US_ASSERT(h >= s.h && w >= s.w);
    struct us_node *n = new_node(b, US_N_PAD, s.c, h, w);
    if (n != NULL) {
        n->dy = (h - s.h) / 2;
        n->dx = (w - s.w) / 2;
    }
    return finish_node(n, in, -1);
}

int32_t usi_node_crop_to(struct us_net_builder *b, int32_t in, int32_t h, int32_t w)
{
    struct us_value s = shape(b, in);
    if (b->status != US_OK || (s.h == h && s.w == w))
        return in;
    if (s.h < h || s.w < w) {
        usi_net_fail(b, US_E_ARG,
                     "patch size %d does not suit this network: a map of %dx%d would "
                     "have to be cropped to %dx%d",
                     b->net->size, s.h, s.w, h, w);
        return -1;
    }
    struct us_node *n = new_node(b, US_N_CROP, s.c, h, w);
    if (n != NULL) {
        n->dy = (s.h - h) / 2;
        n->dx = (s.w - w) / 2;
    }
    return finish_node(n, in, -1);
}

int32_t usi_node_mul(struct us_net_builder *b, int32_t in, float factor)
{
    struct us_value s = shape(b, in);
    struct us_node *n = new_node(b, US_N_MUL, s.c, s.h, s.w);
    if (n != NULL)
        n->factor = factor;
    return finish_node(n, in, -1);
}

int32_t usi_node_latent(struct us_net_builder *b, int32_t q, int32_t level)
{
    struct us_value s = shape(b, q);
    struct us_node *n = new_node(b, US_N_LATENT, s.c / 2, s.h, s.w);
    if (n != NULL)
        n->level = level;
    return finish_node(n, q, -1);
}

int32_t usi_node_prior(struct us_net_builder *b, int32_t param)
{
    if (b->status != US_OK)
        return -1;
    const struct us_param *p = &b->net->params[param];
    struct us_node *n =
        new_node(b, US_N_PRIOR, (int32_t)p->dim[1], (int32_t)p->dim[2], (int32_t)p->dim[3]);
    if (n != NULL)
        n->param = param;
    return finish_node(n, -1, -1);
}

int32_t usi_node_kl(struct us_net_builder *b, int32_t q, int32_t p, int32_t z, int32_t level)
{
    struct us_node *n = new_node(b, US_N_KL, 1, 1, 1);
    if (n == NULL)
        return -1;
    n->level = level;
    int32_t v = finish_node(n, q, p);
    n->in[2] = z;
    n->n_in = 3;
    return v;
}

int32_t usi_node_output(struct us_net_builder *b, int32_t in)
{
    struct us_value s = shape(b, in);
    int32_t v = finish_node(new_node(b, US_N_OUTPUT, s.c, s.h, s.w), in, -1);
    if (b->status == US_OK)
        b->net->output = v;
    return v;
}

/* ---- the whole ----------------------------------------------------------------------------- */

enum us_status us_net_build(const struct us_arch *arch, int32_t patch, int32_t size,
                            struct us_net **ret, struct us_err *err)
{
    US_TRY(us_arch_check(arch, patch, err));
    if (size < 8 || size > US_MAX_PATCH || size % 2 != 0)
        return us_fail(err, US_E_ARG,
                       "prediction patch is %d; expected an even number from 8 to "
                       "%d",
                       size, US_MAX_PATCH);
    struct us_net *net = calloc(1, sizeof(*net));
    if (net == NULL)
        return us_fail(err, US_E_NOMEM, "network description: out of memory");
    net->arch = *arch;
    net->patch = patch;
    net->size = size;
    net->output = -1;
    struct us_net_builder b = {.net = net, .err = err};
    usi_net_build_lvae(&b);
    if (b.status != US_OK) {
        us_net_free(net);
        return b.status;
    }
    *ret = net;
    return US_OK;
}

void us_net_free(struct us_net *net)
{
    if (net == NULL)
        return;
    free(net->params);
    free(net->nodes);
    free(net->values);
    free(net);
}

int32_t us_net_find_param(const struct us_net *net, const char *name)
{
    for (int32_t i = 0; i < net->n_params; i++) {
        if (strcmp(net->params[i].name, name) == 0)
            return i;
    }
    return -1;
}

int64_t us_net_n_trainable(const struct us_net *net)
{
    int64_t n = 0;
    for (int32_t i = 0; i < net->n_params; i++) {
        const struct us_param *p = &net->params[i];
        bool buffer = p->kind == US_PARAM_BN_MEAN || p->kind == US_PARAM_BN_VAR ||
                      p->kind == US_PARAM_BN_COUNT;
        if (!buffer && p->alias_of < 0)
            n += p->count;
    }
    return n;
}

const char *us_node_op_name(enum us_node_op op)
{
    static const char *const names[] = {"INPUT",  "CONV",  "CONV_T", "BN",    "ELU",  "DROP2D",
                                        "GLU",    "ADD",   "CONCAT", "PAD",   "CROP", "MUL",
                                        "LATENT", "PRIOR", "KL",     "OUTPUT"};
    return (size_t)op < US_COUNT(names) ? names[op] : "?";
}
