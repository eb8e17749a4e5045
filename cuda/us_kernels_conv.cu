/*
 * The kernels that help cuDNN out, on the device; their bodies are in kernels/us_k_conv.h.
 */
#include "kernels/us_k_conv.h"

#include "us_kernels_launch.cuh"

#define US_KERNEL_EACH(name) US_K_LAUNCH_EACH(name)
#define US_KERNEL_SUM(name)  US_K_LAUNCH_SUM(name)
#include "kernels/us_k_conv.def"
#undef US_KERNEL_SUM
#undef US_KERNEL_EACH
