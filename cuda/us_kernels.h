/*
 * Our own kernels. Each is three things with one name:
 *   struct us_k_<name>           its arguments, plain data (us_kernels_args.h)
 *   us_k_<name>_...              its body, in kernels/us_k_<group>.h, as US_HD functions that nvcc
 *                                compiles for the device and gcc for the host
 *   us_kernels.def               its line, from which both tables of launchers come
 *
 * Two kinds of body:
 *   EACH  us_k_<name>_count(args): number of independent pieces of work (a piece is 16 bytes of
 *         channels wherever the shape allows);  us_k_<name>_at(args, i): does piece i.
 *   SUM   a sum per row (a channel, an item, the whole) over many terms, f64, in an order that
 *         depends on the arguments only: us_k_<name>_rows, _terms, _term(args, row, i) ->
 *         a few f64 (at most US_K_MAX_SUMS), and _store(args, row, sums). The device adds a fixed
 *         number of strided partial sums per row by a tree; the serial launcher does the same
 *         additions in the same order, so both give the same bits.
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
