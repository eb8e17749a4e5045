/*
 * Image quality metrics (model-spec 17.5), double arithmetic, images f32 row-major.
 */
#ifndef US_METRICS_H
#define US_METRICS_H

#include <stdint.h>

#include "us_status.h"

/* What cannot be said is NAN, for the writer to print as absent: psnr_ri, psnr and ssim of a
 * constant target (it has no range), ssim of an image with a side below 7. */
struct us_metrics {
    double psnr_ri; /* range-invariant PSNR, dB: after the best affine map of the prediction. A
                     * perfect fit is bounded by rounding only: +INFINITY or above 250 */
    double psnr;    /* range = max - min of the target, dB; +INFINITY for identical images,
                     * constant ones too */
    double ssim;    /* 7x7 uniform window, mean over the windows inside the frame */
    double rmse;
};

/* target and prediction: f32 [h, w], borrowed. E_ARG if empty, over US_MAX_PLANE_PIXELS or not
 * finite (naming the image and the position), E_NOMEM; *ret is then untouched. */
enum us_status us_metrics_compute(const float *target, const float *prediction, int64_t h,
                                  int64_t w, struct us_metrics *ret,
                                  struct us_err *err) US_WARN_UNUSED;

#endif
