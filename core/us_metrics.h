/*
 * Image quality metrics (model-spec 17.5), double arithmetic, images f32 row-major.
 */
#ifndef US_METRICS_H
#define US_METRICS_H

#include <stdint.h>

#include "us_status.h"

struct us_metrics {
    double psnr_ri; /* range-invariant PSNR, dB */
    double psnr;    /* range = max - min of the target, dB; +INFINITY for identical images */
    double ssim;    /* 7x7 uniform window; NAN if a side is below 7 */
    double rmse;
};

/* target and prediction: f32 [h, w]. E_ARG if empty or not finite (naming the position). */
enum us_status us_metrics_compute(const float *target, const float *prediction, int64_t h,
                                  int64_t w, struct us_metrics *ret,
                                  struct us_err *err) US_WARN_UNUSED;

#endif
