/*
 * Frames that exist only as a formula: a source for data sets in tests, which counts what is read
 * and fails where it is told to.
 */
#ifndef US_FAKE_FRAMES_H
#define US_FAKE_FRAMES_H

#include "us_dataset.h"

#define US_FAKE_MAX 1024

struct us_fake_frames {
    struct us_frame_source src;
    int64_t h[US_FAKE_MAX], w[US_FAKE_MAX];
    char name[US_FAKE_MAX][24];
    float (*pixel)(int64_t frame, int32_t plane, int64_t y, int64_t x);
    _Atomic int64_t reads[US_FAKE_MAX]; /* of plane 0 */
    _Atomic int64_t failing;            /* frame whose read fails; -1: none */
};

/* n frames of h x w and two channels: stripes along x in one, along y in the other. */
void us_fake_frames_init(struct us_fake_frames *f, int64_t n, int64_t h, int64_t w);

/* The paper's settings for two channels, zero padding, a cache that holds everything. */
struct us_dataset_config us_fake_config(int32_t patch, int32_t scales);

/* The texture of us_fake_frames_init. */
float us_fake_stripes(int64_t frame, int32_t plane, int64_t y, int64_t x);

#endif
