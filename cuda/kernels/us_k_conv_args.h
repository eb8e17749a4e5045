/*
 * Arguments of the kernels that help cuDNN out (us_k_conv.def).
 */
#ifndef US_K_CONV_ARGS_H
#define US_K_CONV_ARGS_H

#include <stdint.h>

#include "us_conv.h"

/* US_CONV_FILTER of us_conv.h. */
struct us_k_conv_filter {
    const void *x, *y;
    float *w;
    enum us_dtype dtype; /* of x and y */
    struct us_conv_map x_map, y_map;
    int32_t n, k, stride, top, left;
};

#endif
