/*
 * Internal to the network builders (us_net*.c): primitives that append parameters, nodes and
 * values. Errors are sticky: after the first failure every primitive does nothing and returns -1,
 * so a builder reads like the model-spec and checks once at its end.
 */
#ifndef US_NET_BUILD_H
#define US_NET_BUILD_H

#include "us_net.h"

struct us_net_builder {
    struct us_net *net;
    int32_t cap_params, cap_nodes, cap_values;
    enum us_status status;
    struct us_err *err;
};

/* Parameters. Each returns the index of its first entry. `name` is the prefix, at most
 * US_MAX_PARAM_NAME minus 24 bytes; suffixes are upstream's. */
int32_t usi_param_conv(struct us_net_builder *b, const char *name, int32_t d0, int32_t d1,
                       int32_t k, int32_t n_bias, uint32_t flags);
int32_t usi_param_bn(struct us_net_builder *b, const char *name, int32_t c, uint32_t flags);
int32_t usi_param_prior(struct us_net_builder *b, const char *name, int32_t c, int32_t h, int32_t w,
                        uint32_t flags);
/* Repeats entries [first, first+n) with names in which `from` is replaced by `to`. */
void usi_param_alias(struct us_net_builder *b, int32_t first, int32_t n, const char *from,
                     const char *to);

/* Nodes. Each returns the value id that it makes. */
int32_t usi_node_input(struct us_net_builder *b, int32_t scale);
int32_t usi_node_conv(struct us_net_builder *b, int32_t in, int32_t param, int32_t stride,
                      int32_t pad);
int32_t usi_node_conv_t(struct us_net_builder *b, int32_t in, int32_t param);
int32_t usi_node_bn(struct us_net_builder *b, int32_t in, int32_t param);
int32_t usi_node_unary(struct us_net_builder *b, enum us_node_op op, int32_t in); /* ELU, DROP2D */
int32_t usi_node_glu(struct us_net_builder *b, int32_t in);
int32_t usi_node_add(struct us_net_builder *b, int32_t x, int32_t y);
int32_t usi_node_concat(struct us_net_builder *b, int32_t first, int32_t second);
int32_t usi_node_pad_to(struct us_net_builder *b, int32_t in, int32_t h, int32_t w);
int32_t usi_node_crop_to(struct us_net_builder *b, int32_t in, int32_t h, int32_t w);
int32_t usi_node_mul(struct us_net_builder *b, int32_t in, float factor);
int32_t usi_node_latent(struct us_net_builder *b, int32_t q, int32_t level);
int32_t usi_node_prior(struct us_net_builder *b, int32_t param);
int32_t usi_node_kl(struct us_net_builder *b, int32_t q, int32_t p, int32_t z, int32_t level);
int32_t usi_node_output(struct us_net_builder *b, int32_t in);

/* Records the first failure. */
void usi_net_fail(struct us_net_builder *b, enum us_status s, const char *fmt, ...) US_PRINTF(3, 4);

/* Shape of a value; only for valid ids. */
static inline const struct us_value *usi_value(const struct us_net_builder *b, int32_t id)
{
    return &b->net->values[id];
}

/* Family builders: declare the parameters in state-dict order, then the nodes. */
void usi_net_build_lvae(struct us_net_builder *b);

#endif
