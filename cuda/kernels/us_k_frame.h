/*
 * Bodies of the kernels of the tiled frames that stay on the device (us_k_frame.def), for the
 * device and the host.
 */
#ifndef US_K_FRAME_H
#define US_K_FRAME_H

#include "kernels/us_k_frame_args.h"
#include "math/us_hd.h"

#endif
