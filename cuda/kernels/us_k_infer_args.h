/*
 * Arguments of the kernels of the prediction ops (us_k_infer.def).
 */
#ifndef US_K_INFER_ARGS_H
#define US_K_INFER_ARGS_H

#include <stdint.h>

#endif
