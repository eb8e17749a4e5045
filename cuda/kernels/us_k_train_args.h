/*
 * Arguments of the kernels of the training ops (us_k_train.def).
 */
#ifndef US_K_TRAIN_ARGS_H
#define US_K_TRAIN_ARGS_H

#include <stdint.h>

#endif
