/*
 * The shared formulas as nvcc compiles them, for comparison with gcc's: serially on the host, and
 * by one kernel per formula on the device.
 */
#ifndef US_CUDA_MATH_CHECK_H
#define US_CUDA_MATH_CHECK_H

#include <stdint.h>

#include "us_status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out[i] = the formula of case `which` (enum us_math_case) at in[i], for n words, by the host code
 * that nvcc made. */
void us_cuda_math_host(int which, const uint32_t *in, uint32_t *out, int64_t n);

/* The same on the first GPU. US_E_UNSUPPORTED where there is none; out is then untouched. */
enum us_status us_cuda_math_device(int which, const uint32_t *in, uint32_t *out, int64_t n,
                                   struct us_err *err) US_WARN_UNUSED;

#ifdef __cplusplus
}
#endif

#endif
