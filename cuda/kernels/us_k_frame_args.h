/*
 * Arguments of the kernels of the tiled frames that stay on the device (us_k_frame.def).
 */
#ifndef US_K_FRAME_ARGS_H
#define US_K_FRAME_ARGS_H

#include <stdint.h>

#endif
