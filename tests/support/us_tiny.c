/*
 * Tiny networks and frames for tests; see us_tiny.h.
 */
#include "us_tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "us_vectors.h"

struct us_model *us_tiny_model(const char *variant, int32_t n_filters, int32_t blocks)
{
    struct us_arch a = us_arch_default();
    struct us_model *m = NULL;
    struct us_err err = {0};
    assert_int_equal(us_arch_set_variant(&a, variant, NULL), US_OK);
    a.n_filters = n_filters;
    a.blocks_per_level = blocks;
    for (int32_t i = 0; i < a.n_levels; i++)
        a.z_dims[i] = n_filters;
    if (us_model_new(&a, US_TINY_PATCH, 1, &m, &err) != US_OK)
        fail_msg("%s", err.msg);
    us_vectors_fill_model(m);
    m->data.input_mean = 100.0;
    m->data.input_std = 30.0;
    m->data.target_mean[0] = 50.0;
    m->data.target_mean[1] = 5000.0;
    m->data.target_std[0] = 10.0;
    m->data.target_std[1] = 1000.0;
    return m;
}

float *us_tiny_frame(int64_t h, int64_t w)
{
    float *f = calloc((size_t)(h * w), sizeof(*f));
    assert_non_null(f);
    for (int64_t i = 0; i < h * w; i++)
        f[i] = (float)(100 + (i * 2654435761u >> 7) % 61);
    return f;
}
