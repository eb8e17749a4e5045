/*
 * What `usplit train` shows while it runs: on a terminal a bar that is redrawn in place, elsewhere
 * a line per epoch, and one for the step whenever half a minute has passed without a line.
 */
#ifndef US_TRAIN_SHOW_H
#define US_TRAIN_SHOW_H

#include "us_trainer.h"

struct us_train_show {
    bool quiet, terminal;
    int32_t n_levels, n_targets; /* of the network */
    bool drawn;                  /* a bar stands on the terminal */
    double told_s;               /* when something was last said */
    struct us_train_result last; /* of the latest step */
    double val_psnr, best_psnr;  /* NAN: none yet */
};

void us_train_show_start(struct us_train_show *v, const struct us_arch *arch, bool quiet);
/* For us_trainer_io.event; arg is the struct us_train_show. */
void us_train_show_event(void *arg, const struct us_trainer_event *e);
/* Clears the bar. */
void us_train_show_end(struct us_train_show *v);

#endif
