/*
 * Bodies of the kernels of the prediction ops (us_k_infer.def), for the device and the host.
 */
#ifndef US_K_INFER_H
#define US_K_INFER_H

#include "kernels/us_k_copy.h"
#include "kernels/us_k_direct.h"
#include "kernels/us_k_epilogue.h"
#include "kernels/us_k_infer_args.h"
#include "kernels/us_k_latent.h"

#endif
