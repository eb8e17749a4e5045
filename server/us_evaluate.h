/*
 * How well a model splits frames whose channels are known (model-spec 17.5): the channels are
 * clipped and mixed as in training, or the measured input is taken, the frame is predicted, and
 * both are compared in normalised units.
 */
#ifndef US_EVALUATE_H
#define US_EVALUATE_H

#include "us_dataset.h"
#include "us_metrics.h"
#include "us_predict.h"

/* One frame, f32, in the data's units. Zero-initialised means empty. */
struct us_eval_frame {
    int64_t h, w;
    int32_t n_targets;
    float *input; /* [h, w] */
    float *truth; /* [n_targets, h, w], clipped as in training */
    float *mean;  /* [n_targets, h, w], predicted */
};
void us_eval_frame_release(struct us_eval_frame *e);

/* Reads and predicts frame number `frame` of src, which must have m's number of channels; its
 * number keys the noise. p is a predictor of m. cancel is nullable. *ret is released by the caller,
 * after a failure too. */
enum us_status us_eval_frame_run(struct us_predictor *p, const struct us_model *m,
                                 const struct us_frame_source *src, int64_t frame,
                                 const atomic_bool *cancel, struct us_eval_frame *ret,
                                 struct us_err *err) US_WARN_UNUSED;

/* Of the prediction, per channel; and, if baseline is not NULL, of the input after its best affine
 * fit: the range-invariant PSNR that a model has to beat (dB, NAN where it cannot be said). e's
 * truth and mean are normalised in place. */
enum us_status us_eval_frame_measure(const struct us_model *m, struct us_eval_frame *e,
                                     struct us_metrics *ret, double *baseline,
                                     struct us_err *err) US_WARN_UNUSED;

#endif
