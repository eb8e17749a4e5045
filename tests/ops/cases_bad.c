/* Descriptors that do not fit together: each a good one with one thing spoilt, and why. */
#include <math.h>
#include <string.h>

#include "ops_test.h"

static const struct us_rect whole = {0, 0, 0, 0};

static struct us_conv2d_desc good_conv2d(void)
{
    struct us_conv2d_desc d = {.k = 3, .stride = 1, .pad = 1};
    d.in = ops_map(2, 16, 12, 8, whole, false);
    d.out = d.res = ops_map(2, 16, 12, 4, whole, false);
    return d;
}

static struct us_conv_t2d_desc good_conv_t2d(void)
{
    struct us_conv_t2d_desc d = {.tail = true};
    d.in = ops_map(2, 8, 6, 8, whole, false);
    d.out = ops_map(2, 16, 12, 4, whole, false);
    return d;
}

static struct us_gate_desc good_gate(void)
{
    struct us_gate_desc d = {.tail = true};
    d.in = d.res = d.out = ops_map(2, 16, 12, 8, whole, false);
    return d;
}

static struct us_merge_desc good_merge(void)
{
    struct us_merge_desc d = {.tail = true};
    d.a = d.b = d.out = ops_map(2, 16, 12, 8, whole, false);
    return d;
}

static struct us_latent_desc good_latent(void)
{
    struct us_latent_desc d = {.level = 1, .var_clip_max = 20};
    d.in = ops_map(2, 16, 12, 16, whole, false);
    d.out = ops_map(2, 16, 12, 8, whole, false);
    return d;
}

static struct us_affine_elu_desc good_affine_elu(void)
{
    struct us_affine_elu_desc d;
    d.in = d.out = ops_map(2, 16, 12, 8, whole, false);
    return d;
}

static struct us_copy_desc good_copy(void)
{
    struct us_copy_desc d;
    d.in = d.out = ops_map(2, 16, 12, 8, whole, false);
    return d;
}

/* Spoils a good descriptor by the given statements and expects the refusal to hold `words`. */
#define REFUSED(op, words, reason, ...)                                                            \
    do {                                                                                           \
        union ops_desc u = {.op = good_##op()};                                                    \
        struct us_##op##_desc *d = &u.op;                                                          \
        __VA_ARGS__;                                                                               \
        ops_expect_refused(US_OP_##op, &u, words, reason);                                         \
    } while (0)

/* What check_map refuses; shared by all ops, shown on one. */
void maps_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    REFUSED(conv2d, "in: 0 items", "no items", d->in.n = d->out.n = 0);
    REFUSED(conv2d, "in: 2 items, -8 channels", "negative channels", d->in.c = -8);
    REFUSED(conv2d, "unknown dtype 7", "dtype outside the list", d->in.dtype = (enum us_dtype)7);
    REFUSED(conv2d, "is empty", "empty rectangle", d->out.rect.h = 0);
    REFUSED(conv2d, "not inside the 16x12 map", "rectangle before the map", d->in.rect.y0 = -1);
    REFUSED(conv2d, "not inside the 16x12 map", "rectangle past the map", d->out.rect.x0 = 1);
    REFUSED(conv2d, "not inside the 16x12 map", "rectangle end overflows 32 bits",
            d->in.rect.h = INT32_MAX;
            d->in.rect.y0 = 15);
    REFUSED(conv2d, "do not fit in memory", "element count overflows 64 bits",
            d->in = d->out = ops_map(INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX, whole, false));
    REFUSED(conv2d, "weights do not fit in memory", "weight count overflows 64 bits",
            d->in = ops_map(1, 1, 1, INT32_MAX, whole, false);
            d->out = ops_map(1, INT32_MAX, INT32_MAX, 1, whole, false); d->out.c = INT32_MAX;
            d->out.rect = (struct us_rect){0, 0, 1, 1}; d->k = INT32_MAX; d->pad = INT32_MAX - 1);
}

void conv2d_windows_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSED(conv2d, "in has 2 items, out has 3", "batch sizes differ", d->out.n = 3);
    REFUSED(conv2d, "kernel 0", "no kernel", d->k = 0);
    REFUSED(conv2d, "stride 0", "no stride", d->stride = 0);
    REFUSED(conv2d, "stride -2", "negative stride", d->stride = -2);
    REFUSED(conv2d, "padding -1", "negative padding", d->pad = -1);
    REFUSED(conv2d, "0 <= padding < kernel", "windows that see no input", d->pad = 3);
    REFUSED(conv2d, "unknown activation 5", "activation outside the list", d->act = (enum us_act)5);
    REFUSED(conv2d, "larger than the 16x12 map", "kernel over the map", d->k = 15; d->pad = 0);
    REFUSED(conv2d, "out is a 16x12 map, not 14x10", "size ignores padding", d->pad = 0);
    REFUSED(conv2d, "out is a 16x12 map, not 8x6", "size ignores stride", d->stride = 2);
    REFUSED(conv2d, "the output needs rows 0..15", "input lacks its last row", d->in.rect.h = 15);
    REFUSED(conv2d, "needs rows 2..6, columns 0..11", "one halo row missing",
            d->out.rect = (struct us_rect){3, 0, 3, 12};
            d->in.rect = (struct us_rect){3, 0, 4, 12});
    REFUSED(conv2d, "needs rows 3..7, columns 3..7", "stride 2 reaches one row and column further",
            d->stride = 2;
            d->out = ops_map(2, 8, 6, 4, (struct us_rect){2, 2, 2, 2}, false);
            d->in.rect = (struct us_rect){3, 3, 5, 4});
}

void conv2d_residuals_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSED(conv2d, "res has 3 channels, not 4", "residual of other depth", d->residual = true;
            d->res.c = 3);
    REFUSED(conv2d, "res is a 15x12 map", "residual of other size", d->residual = true;
            d->res = ops_map(2, 15, 12, 4, whole, false));
    REFUSED(conv2d, "res has 1 items", "residual of another batch", d->residual = true;
            d->res.n = 1);
    REFUSED(conv2d, "res holds rows 0..14", "residual lacks a row", d->residual = true;
            d->res.rect.h = 15);
    REFUSED(conv2d, "res does not hold the whole", "residual in a pad", d->residual = true;
            d->res.zero_outside = true; d->res.rect.h = 15);
}

void conv_t2d_descriptors_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSED(conv_t2d, "out is a 16x12 map, not 18x12", "not twice the input", d->in.full_h = 9);
    REFUSED(conv_t2d, "not 4294967294x", "double size overflows 32 bits",
            d->in = ops_map(1, INT32_MAX, 1, 1, whole, false);
            d->out.n = 1);
    REFUSED(conv_t2d, "needs rows 2..4", "an odd last row reads one row further",
            d->out.rect = (struct us_rect){4, 0, 4, 12};
            d->in.rect = (struct us_rect){2, 0, 2, 6});
    REFUSED(conv_t2d, "in has 2 items, out has 1", "batch sizes differ", d->out.n = 1);
}

void gate_descriptors_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSED(gate, "in has 7 channels, not 8", "input of other depth", d->in.c = 7);
    REFUSED(gate, "res has 9 channels, not 8", "residual of other depth", d->res.c = 9);
    REFUSED(gate, "in holds rows 0..15, columns 0..10", "input lacks a column", d->in.rect.w = 11);
    REFUSED(gate, "res does not hold the whole", "residual in a pad", d->res.zero_outside = true;
            d->res.rect.w = 11);
}

void merge_descriptors_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSED(merge, "a is a 8x12 map, not 16x12", "a of other size",
            d->a = ops_map(2, 8, 12, 8, whole, false));
    REFUSED(merge, "b has 1 items, out has 2", "b of another batch", d->b.n = 1);
    REFUSED(merge, "b holds rows 4..11", "b not padded and too small",
            d->b.rect = (struct us_rect){4, 3, 8, 6});
}

void latent_descriptors_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSED(latent, "in has 15 channels, not 16", "not mean and log-variance", d->in.c = 15);
    REFUSED(latent, "level 16 is not in 0..15", "level past the counter's field", d->level = 16);
    REFUSED(latent, "level -1", "negative level", d->level = -1);
    REFUSED(latent, "at most 1024", "channels past the counter's field", d->out.c = 1025;
            d->in.c = 2050);
    REFUSED(latent, "at most 65536", "rows past the counter's field",
            d->in = ops_map(1, 65537, 1, 2, whole, false);
            d->out = ops_map(1, 65537, 1, 1, whole, false));
    REFUSED(latent, "not a number", "NaN clip", d->var_clip_max = NAN);
}

void affine_elu_descriptors_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSED(affine_elu, "in has 4 channels, not 8", "other depth", d->in.c = 4);
    REFUSED(affine_elu, "in holds rows 1..15", "input lacks a row",
            d->in.rect = (struct us_rect){1, 0, 15, 12});
}

void copy_descriptors_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    REFUSED(copy, "in is a 16x12 map, not 16x13", "other size",
            d->out = ops_map(2, 16, 13, 8, whole, false));
    REFUSED(copy, "in has 8 channels, not 4", "other depth", d->out.c = 4);
}
