/*
 * Arguments of every kernel: struct us_k_<name>, plain data, passed to the device by value.
 * Pointers are device memory, or host memory from us_gpu_ops.host_alloc where a field says so.
 */
#ifndef US_KERNELS_ARGS_H
#define US_KERNELS_ARGS_H

#include <stdint.h>

#include "us_map.h"

#include "kernels/us_k_conv_args.h"
#include "kernels/us_k_frame_args.h"
#include "kernels/us_k_infer_args.h"
#include "kernels/us_k_train_args.h"

#endif
