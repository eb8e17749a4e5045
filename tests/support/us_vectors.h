/*
 * The deterministic filling of the reference vectors (model-spec 20.1): every parameter of a model
 * and every test input comes from a linear congruential generator seeded with the FNV-1a hash of
 * its name, so that an expected value needs no fixture file.
 */
#ifndef US_VECTORS_H
#define US_VECTORS_H

#include <stdint.h>

#include "us_model.h"

/* FNV-1a, 32 bit, of an ASCII name. "abc" is 440920331. */
uint32_t us_vectors_seed(const char *name);

/* u[0..n): the generator's values in [0, 1) from the seed of name. */
void us_vectors_uniform(const char *name, double *u, int64_t n);

/* out[0..n) = 2 sqrt(3) (u - 1/2), zero mean and unit variance: "input", "target", "eps<i>". */
void us_vectors_normalised(const char *name, float *out, int64_t n);

/* Fills every parameter of the model from its full name, in row-major order of the stored shape.
 * Counters become 0. Data shared by two names (lowres_net) is filled from its owner's name. */
void us_vectors_fill_model(struct us_model *m);

#endif
