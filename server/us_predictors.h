/*
 * Prepared predictors: planning and packing a network takes far longer than a small image, so the
 * last few (model, settings) pairs stay, whatever the seed. All who want the same share it: the
 * work queue lets one of them compute at a time (us_work.h), and between two patches of one frame a
 * predictor is free for another (us_predict.h).
 */
#ifndef US_PREDICTORS_H
#define US_PREDICTORS_H

#include "us_predict.h"
#include "us_registry.h"

struct us_predictors;

enum us_status us_predictors_new(struct us_backend *be, int64_t max, struct us_predictors **ret,
                                 struct us_err *err) US_WARN_UNUSED;
void us_predictors_free(struct us_predictors *c);

/* A predictor for ref's model with *cfg, but the seed: that is said with each frame. Takes its own
 * reference. By whoever has the turn (us_work.h), so that no two prepare the same. */
struct us_predictor_lease {
    struct us_predictor *predictor;
    void *entry;
};
enum us_status us_predictors_acquire(struct us_predictors *c, struct us_model_ref *ref,
                                     const struct us_predict_config *cfg,
                                     struct us_predictor_lease *ret,
                                     struct us_err *err) US_WARN_UNUSED;
void us_predictors_give_back(struct us_predictors *c, struct us_predictor_lease *lease);

/* Frees the idle predictors of models with this identity; leased ones go when given back. */
void us_predictors_drop(struct us_predictors *c, const char *sha256);

#endif
