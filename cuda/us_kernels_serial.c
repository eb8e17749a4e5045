/*
 * The launchers of our kernels on the host: plain loops over the bodies that the device runs, and
 * for sums the additions of the device in the device's order (kernels/us_k_sum.h).
 */
#include <string.h>

#include "kernels/us_k_conv.h"
#include "kernels/us_k_frame.h"
#include "kernels/us_k_infer.h"
#include "kernels/us_k_sum.h"
#include "kernels/us_k_train.h"
#include "us_kernels.h"

/* v[0] = the sum of v[0], v[step], ... by a binary tree; n is a power of two. */
static inline void add_tree(double *v, int32_t n, int32_t step)
{
    for (int32_t half = n / 2; half > 0; half /= 2)
        for (int32_t i = 0; i < half; i++)
            v[i * step] += v[(i + half) * step];
}

#define US_KERNEL_EACH(name)                                                                       \
    static enum us_status serial_##name(struct us_gpu *g, const struct us_k_##name *a)             \
    {                                                                                              \
        int64_t n = us_k_##name##_count(a);                                                        \
        for (int64_t i = 0; i < n; i++)                                                            \
            us_k_##name##_at(a, i);                                                                \
        return US_OK;                                                                              \
    }

/* lane: [lanes][sums], split: [n_splits][sums]. */
#define US_KERNEL_SUM(name)                                                                        \
    static void serial_lane_##name(const struct us_k_##name *a, int64_t row, int64_t first,        \
                                   int64_t step, int64_t n_terms, double *lane)                    \
    {                                                                                              \
        double term[us_k_##name##_sums];                                                           \
        for (int32_t j = 0; j < us_k_##name##_sums; j++)                                           \
            lane[j] = 0.0;                                                                         \
        for (int64_t i = first; i < n_terms; i += step) {                                          \
            us_k_##name##_term(a, row, i, term);                                                   \
            for (int32_t j = 0; j < us_k_##name##_sums; j++)                                       \
                lane[j] += term[j];                                                                \
        }                                                                                          \
    }                                                                                              \
    static enum us_status serial_##name(struct us_gpu *g, const struct us_k_##name *a)             \
    {                                                                                              \
        enum { sums = us_k_##name##_sums };                                                        \
        double lane[US_K_SUM_THREADS * sums], split[US_K_MAX_SPLITS * sums];                       \
        int64_t rows = us_k_##name##_rows(a), n_terms = us_k_##name##_terms(a);                    \
        struct us_k_sum_order o = us_k_sum_order(rows, n_terms, us_k_##name##_row_lanes);          \
        for (int64_t row = 0; row < rows; row++) {                                                 \
            for (int32_t s = 0; s < o.n_splits; s++) {                                             \
                for (int32_t l = 0; l < o.lanes; l++)                                              \
                    serial_lane_##name(a, row, (int64_t)s *o.lanes + l,                            \
                                       (int64_t)o.n_splits * o.lanes, n_terms, lane + l * sums);   \
                for (int32_t j = 0; j < sums; j++)                                                 \
                    add_tree(lane + j, o.lanes, sums);                                             \
                memcpy(split + s * sums, lane, sums * sizeof(double));                             \
            }                                                                                      \
            for (int32_t j = 0; j < sums; j++)                                                     \
                add_tree(split + j, o.n_splits, sums);                                             \
            us_k_##name##_store(a, row, split);                                                    \
        }                                                                                          \
        return US_OK;                                                                              \
    }
#include "us_kernels.def"
#undef US_KERNEL_SUM
#undef US_KERNEL_EACH

const struct us_kernels us_kernels_serial = {
    .where = "host",
#define US_KERNEL_EACH(name) .name = serial_##name,
#define US_KERNEL_SUM(name)  US_KERNEL_EACH(name)
#include "us_kernels.def"
#undef US_KERNEL_SUM
#undef US_KERNEL_EACH
};
