/*
 * Tiled prediction for backends that keep a whole frame in their own memory: patches are cut,
 * moments kept and tiles merged where the network runs, so that nothing but the frame goes in and
 * nothing but the result comes out. A backend without this table (ref, cpu) is given single patches
 * by worker threads instead (us_predict.c); the formulas of both are math/us_frame_math.h.
 *
 * Every pointer is backend memory. Calls queue their work and return; arguments are read before
 * they do. Sides are pixels.
 */
#ifndef US_FRAME_OPS_H
#define US_FRAME_OPS_H

#include <stdint.h>

#include "math/us_frame_math.h"
#include "us_limits.h"
#include "us_status.h"

#ifdef __cplusplus
extern "C" {
#endif

struct us_backend;

/* One scale of a frame from the one before it, as us_pyramid_build makes it. */
struct us_frame_halve {
    const float *src; /* [y.n, x.n] */
    float *dst;       /* [y.n_out, x.n_out] */
    struct us_halving y, x;
};

/* Which tiles a batch holds. Item i is tile number first + min(i, n - 1) of a pass, that is the
 * tile at row number / cols and column number % cols: the last batch of a pass is filled up with
 * its last tile, whose repetitions merge drops. */
struct us_frame_tiles {
    int64_t y0, x0; /* top left corner of tile 0 in the frame, 0 or negative */
    int64_t cols;   /* tiles side by side */
    int64_t first;
    int32_t n, batch; /* tiles, items; 1 <= n <= batch */
    int32_t grid;     /* side of a tile */
};

/* Patches of all items at all scales, as us_patch_extract (us_pyramid.h) cuts them. */
struct us_frame_gather {
    struct us_frame_tiles tiles;
    int32_t size;     /* side of a patch */
    int32_t margin;   /* a patch begins so many pixels above and left of its tile */
    int32_t zero_pad; /* pad with zeros instead of reflections */
    float mean, std;  /* of the input's normalisation */
    int32_t n_scales;
    struct {
        const float *frame; /* [h, w] */
        int64_t h, w;
        float *patches; /* [batch, size, size]; NULL: nobody reads this scale */
    } scale[US_MAX_SCALES];
};

/* The moments of every element of out take in one more sample. */
struct us_frame_add {
    const float *out; /* [count] */
    double *mean;     /* [count]; ignored and overwritten when n_before is 0 */
    double *m2;       /* likewise; NULL: not wanted */
    int64_t count;
    int32_t n_before; /* samples that the moments hold already */
};

/* The moments of a pass join those of earlier passes in the frame's planes; the last pass leaves
 * the result there instead. Pixels outside the frame are dropped. */
struct us_frame_merge {
    struct us_frame_tiles tiles;
    const double *mean, *m2; /* [batch, grid, grid, channels]; m2 NULL: not wanted */
    int32_t channels;
    int64_t h, w;
    float *mean_plane; /* [channels][h][w] */
    float *m2_plane;   /* likewise, in the end the standard deviation; NULL as m2 is */
    int32_t before, n; /* predictions of a pixel in earlier passes, in this one */
    int32_t last;      /* no further pass follows */
    double scale[US_MAX_TARGETS], shift[US_MAX_TARGETS]; /* to the target's units */
};

struct us_frame_ops {
    /* Pixels of the patches of one run with which the device is busy: what a predictor chooses its
     * batch by. */
    int64_t pixels;
    enum us_status (*halve)(struct us_backend *be, const struct us_frame_halve *a);
    enum us_status (*gather)(struct us_backend *be, const struct us_frame_gather *a);
    enum us_status (*add)(struct us_backend *be, const struct us_frame_add *a);
    enum us_status (*merge)(struct us_backend *be, const struct us_frame_merge *a);
};

#ifdef __cplusplus
}
#endif
#endif
