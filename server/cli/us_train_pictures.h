/* The pictures that `usplit train` leaves: curves of its history, an example split. */
#ifndef US_TRAIN_PICTURES_H
#define US_TRAIN_PICTURES_H

#include "us_backend.h"
#include "us_dataset.h"

/* Loss and PSNR over the epochs of a history file (over steps, if there was but one epoch). */
enum us_status us_train_curves(const char *history, const char *png,
                               struct us_err *err) US_WARN_UNUSED;

/* One frame that was not trained on, if there is one: input, truth and prediction. */
enum us_status us_train_example(const struct us_model *m, struct us_backend *be,
                                struct us_dataset *d, const char *png,
                                struct us_err *err) US_WARN_UNUSED;

#endif
