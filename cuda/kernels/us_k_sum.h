/*
 * How a SUM kernel adds (us_kernels.h): one order for the device and the host, so that both give
 * the same bits. Row r's terms are dealt out to n_splits blocks of `lanes` threads: the thread
 * (split, lane) adds, one after the other, the terms
 *     split * lanes + lane + k * n_splits * lanes,   k = 0, 1, ...
 * then the lanes of a block are added as a binary tree, and then the blocks, as another. Both
 * counts are powers of two and follow from rows and terms alone.
 *
 * Threads that run together read neighbours: row_lanes rows of one term where rows are adjacent in
 * memory (channels), `lanes` terms of one row where terms are.
 */
#ifndef US_K_SUM_H
#define US_K_SUM_H

#include "math/us_hd.h"

#define US_K_MAX_SUMS    8 /* that one kernel forms per row */
#define US_K_SUM_THREADS 256
#define US_K_MAX_SPLITS  1024
#define US_K_SUM_BLOCKS  1024 /* aimed at: several for each of a large device's processors */
#define US_K_SUM_TERMS   16   /* a thread has at least so many before rows are split further */

/* What us_k_<name>_row_lanes may be. */
#define US_K_TERMS_ADJACENT 1
#define US_K_ROWS_ADJACENT  32

struct us_k_sum_order {
    int32_t row_lanes; /* rows that a block handles */
    int32_t lanes;     /* threads of a block per row; row_lanes * lanes = US_K_SUM_THREADS */
    int32_t n_splits;  /* blocks per row */
    int64_t row_blocks;
};

/* Doubles of scratch that the second tree reads: n_splits of each sum of each row, 0 where rows
 * are not split. */
#define US_K_SUM_SCRATCH ((int64_t)US_K_SUM_BLOCKS * US_K_ROWS_ADJACENT * US_K_MAX_SUMS)

US_HD struct us_k_sum_order us_k_sum_order(int64_t rows, int64_t terms, int32_t max_row_lanes)
{
    struct us_k_sum_order o;
    o.row_lanes = 1;
    while (o.row_lanes < max_row_lanes && o.row_lanes < rows)
        o.row_lanes *= 2;
    o.lanes = US_K_SUM_THREADS / o.row_lanes;
    o.row_blocks = (rows + o.row_lanes - 1) / o.row_lanes;
    o.n_splits = 1;
    while (o.n_splits < US_K_MAX_SPLITS && 2 * o.n_splits * o.row_blocks <= US_K_SUM_BLOCKS &&
           terms / (2 * (int64_t)o.n_splits * o.lanes) >= US_K_SUM_TERMS)
        o.n_splits *= 2;
    return o;
}

#endif
