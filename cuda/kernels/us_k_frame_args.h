/*
 * Arguments of the kernels of the frames that stay on the device (us_k_frame.def); their meaning is
 * that of us_frame_ops.h. One scale and one channel per launch: an index into an argument that only
 * the running thread knows would make it copy the arguments to memory first.
 */
#ifndef US_K_FRAME_ARGS_H
#define US_K_FRAME_ARGS_H

#include <stdint.h>

#include "us_frame_ops.h"

struct us_k_frame_halve {
    struct us_frame_halve a;
};

struct us_k_frame_gather {
    struct us_frame_tiles tiles;
    int32_t size, margin, zero_pad;
    float mean, std;
    int32_t scale;
    const float *frame; /* [h, w] */
    int64_t h, w;
    float *patches; /* [batch, size, size] */
};

struct us_k_frame_add {
    struct us_frame_add a;
    double weight; /* of the sample: 1 / (n_before + 1) */
};

struct us_k_frame_merge {
    struct us_frame_tiles tiles;
    const double *mean, *m2; /* [batch, grid, grid, channels] */
    int32_t channel, channels;
    int64_t h, w;
    float *mean_plane, *m2_plane; /* [h, w] */
    int32_t before, n, last;
    double share; /* of this pass in all predictions so far: n / (before + n) */
    double scale, shift;
};

#endif
