/*
 * Our own kernels. Each is three things with one name:
 *   struct us_k_<name>           its arguments, plain data (us_kernels_args.h)
 *   us_k_<name>_...              its body, in kernels/us_k_<group>.h, as US_HD functions that nvcc
 *                                compiles for the device and gcc for the host
 *   us_kernels.def               its line, from which both tables of launchers come
 *
 * Two kinds of body, with a the arguments:
 *   EACH  int64_t us_k_<name>_count(a): number of independent pieces of work (a piece is 16 bytes
 *         of channels wherever the shape allows);  void us_k_<name>_at(a, i): does piece i.
 *   SUM   sums per row (a channel, an item, the whole) over many terms, f64, in an order that
 *         depends on the arguments only (kernels/us_k_sum.h):
 *           enum { us_k_<name>_sums }       how many at once, up to US_K_MAX_SUMS
 *           enum { us_k_<name>_row_lanes }  US_K_ROWS_ADJACENT or US_K_TERMS_ADJACENT: what lies
 *                                           side by side in memory
 *           int64_t us_k_<name>_rows(a), us_k_<name>_terms(a)
 *           void us_k_<name>_term(a, row, i, double *v)            writes the sums' terms
 *           void us_k_<name>_store(a, row, const double *sums)     takes the result
 *         The serial launcher does the additions of the device in its order: same bits.
 * No atomics, no shape above 2^31 assumed, indices are int64_t.
 */
#ifndef US_KERNELS_H
#define US_KERNELS_H

#include "us_gpu.h"
#include "us_kernels_args.h"

#ifdef __cplusplus
extern "C" {
#endif

struct us_kernels {
    const char *where; /* "device", "host" */
#define US_KERNEL_EACH(name)                                                                       \
    enum us_status (*name)(struct us_gpu * g, const struct us_k_##name *args);
#define US_KERNEL_SUM(name) US_KERNEL_EACH(name)
#include "us_kernels.def"
#undef US_KERNEL_SUM
#undef US_KERNEL_EACH
};

extern const struct us_kernels us_kernels_serial; /* us_kernels_serial.c, gcc */
extern const struct us_kernels us_kernels_cuda;   /* us_kernels_<group>.cu, nvcc */

#ifdef __cplusplus
}
#endif
#endif
