/*
 * Bodies of the kernels of the training ops (us_k_train.def), for the device and the host.
 */
#ifndef US_K_TRAIN_H
#define US_K_TRAIN_H

#include "kernels/us_k_train_args.h"
#include "math/us_hd.h"

#endif
