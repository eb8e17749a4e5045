/*
 * Bodies of the kernels of the training ops (us_k_train.def), for the device and the host. The
 * formulas are those of core/math, with the reference's roundings: where nothing is summed, f32
 * maps get the reference's bits.
 */
#ifndef US_K_TRAIN_H
#define US_K_TRAIN_H

#include "kernels/us_k_loss.h"
#include "kernels/us_k_map.h"
#include "kernels/us_k_norm.h"
#include "kernels/us_k_step.h"
#include "kernels/us_k_weights.h"

#endif
