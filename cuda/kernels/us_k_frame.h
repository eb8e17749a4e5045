/*
 * Bodies of the kernels of the frames that stay on the device (us_k_frame.def), for the device and
 * the host. Neighbouring threads read and write neighbouring pixels of a row. Moments are f64, as
 * on the host's route: a few hundred values per tile, nothing beside the network.
 */
#ifndef US_K_FRAME_H
#define US_K_FRAME_H

#include "kernels/us_k_frame_args.h"
#include "kernels/us_k_vec.h"
#include "math/us_frame_math.h"

/* ---- halve: a piece is one pixel of the smaller scale, all sums as us_pyramid.c adds them ---- */

US_HD int64_t us_k_frame_halve_count(const struct us_k_frame_halve *k)
{
    return k->a.y.n_out * k->a.x.n_out;
}

/* By constants: an index that only the thread knows would send the arguments through memory. */
US_HD double us_k_halving_weight(const struct us_halving *h, int32_t j)
{
    return j == 0   ? h->weight[0]
           : j == 1 ? h->weight[1]
           : j == 2 ? h->weight[2]
           : j == 3 ? h->weight[3]
                    : h->weight[4];
}

/* Pixel (y, x) of the larger scale, filtered down its column. */
US_HD float us_k_filter_column(const struct us_frame_halve *a, int64_t y, int64_t x)
{
    double sum = (double)a->src[y * a->x.n + x] * us_k_halving_weight(&a->y, 0);
    for (int32_t j = a->y.radius; j > 0; j--) {
        double above = (double)a->src[us_reflect(y - j, a->y.n) * a->x.n + x];
        double below = (double)a->src[us_reflect(y + j, a->y.n) * a->x.n + x];
        sum += (above + below) * us_k_halving_weight(&a->y, j);
    }
    return (float)sum;
}

/* The same, then along its row. */
US_HD float us_k_filter(const struct us_frame_halve *a, int64_t y, int64_t x)
{
    double sum = (double)us_k_filter_column(a, y, x) * us_k_halving_weight(&a->x, 0);
    for (int32_t j = a->x.radius; j > 0; j--) {
        double left = (double)us_k_filter_column(a, y, us_reflect(x - j, a->x.n));
        double right = (double)us_k_filter_column(a, y, us_reflect(x + j, a->x.n));
        sum += (left + right) * us_k_halving_weight(&a->x, j);
    }
    return (float)sum;
}

US_HD void us_k_frame_halve_at(const struct us_k_frame_halve *k, int64_t i)
{
    const struct us_frame_halve *a = &k->a;
    int64_t row = us_k_divide(i, a->x.n_out), top, left;
    double fy, fx;
    us_halving_source(&a->y, row, &top, &fy);
    us_halving_source(&a->x, i - row * a->x.n_out, &left, &fx);
    int64_t bottom = top + 1 < a->y.n ? top + 1 : top;
    int64_t right = left + 1 < a->x.n ? left + 1 : left;
    a->dst[i] =
        us_halving_sample(us_k_filter(a, top, left), us_k_filter(a, top, right),
                          us_k_filter(a, bottom, left), us_k_filter(a, bottom, right), fy, fx);
}

/* Top left corner of an item's tile. */
US_HD void us_k_tile_corner(const struct us_frame_tiles *t, int32_t item, int64_t *y, int64_t *x)
{
    int64_t tile = t->first + (item < t->n ? item : t->n - 1);
    int64_t row = us_k_divide(tile, t->cols);
    *y = t->y0 + row * t->grid;
    *x = t->x0 + (tile - row * t->cols) * t->grid;
}

/* ---- gather: a piece is four pixels of a patch's row, or one ---- */

US_HD int32_t us_k_frame_gather_width(const struct us_k_frame_gather *a)
{
    return a->size % 4 == 0 ? 4 : 1;
}

US_HD int64_t us_k_frame_gather_count(const struct us_k_frame_gather *a)
{
    return (int64_t)a->tiles.batch * a->size * (a->size / us_k_frame_gather_width(a));
}

US_HD float us_k_frame_pixel(const struct us_k_frame_gather *a, struct us_patch_axis ax, int64_t y,
                             int32_t x)
{
    int64_t from = us_patch_source(ax, x, a->zero_pad);
    float v = y < 0 || from < 0 ? 0.0f : a->frame[y * a->w + from];
    return us_patch_value(v, a->mean, a->std);
}

US_HD void us_k_frame_gather_at(const struct us_k_frame_gather *a, int64_t i)
{
    const int32_t width = us_k_frame_gather_width(a), per_row = a->size / width;
    int64_t row = us_k_divide(i, per_row);
    int32_t x = (int32_t)(i - row * per_row) * width;
    int32_t item = (int32_t)us_k_divide(row, a->size);
    int32_t y = (int32_t)(row - (int64_t)item * a->size);
    int64_t y0, x0;
    us_k_tile_corner(&a->tiles, item, &y0, &x0);
    y0 = us_patch_origin(y0 - a->margin, a->scale, a->size);
    x0 = us_patch_origin(x0 - a->margin, a->scale, a->size);
    struct us_patch_axis ay = us_patch_axis_of(y0, a->size, a->h, a->zero_pad);
    struct us_patch_axis ax = us_patch_axis_of(x0, a->size, a->w, a->zero_pad);
    int64_t from = us_patch_source(ay, y, a->zero_pad);
    float v[4];
    if (width == 1) {
        a->patches[i] = us_k_frame_pixel(a, ax, from, x);
        return;
    }
    US_K_UNROLL
    for (int32_t j = 0; j < 4; j++)
        v[j] = us_k_frame_pixel(a, ax, from, x + j);
    us_k_store(a->patches, US_F32, 4 * i, 4, v);
}

/* ---- add: a piece is one value ---- */

US_HD int64_t us_k_frame_add_count(const struct us_k_frame_add *k)
{
    return k->a.count;
}

US_HD void us_k_frame_add_at(const struct us_k_frame_add *k, int64_t i)
{
    const struct us_frame_add *a = &k->a;
    struct us_moments m = {0.0, 0.0};
    if (a->n_before > 0) {
        m.mean = a->mean[i];
        m.m2 = a->m2 != NULL ? a->m2[i] : 0.0;
    }
    m = us_moments_add(m, a->out[i], k->weight);
    a->mean[i] = m.mean;
    if (a->m2 != NULL)
        a->m2[i] = m.m2;
}

/* ---- merge: a piece is one pixel of a tile ---- */

US_HD int64_t us_k_frame_merge_count(const struct us_k_frame_merge *a)
{
    return (int64_t)a->tiles.n * a->tiles.grid * a->tiles.grid;
}

US_HD void us_k_frame_merge_at(const struct us_k_frame_merge *a, int64_t i)
{
    const int32_t grid = a->tiles.grid;
    int64_t row = us_k_divide(i, grid);
    int32_t item = (int32_t)us_k_divide(row, grid);
    int64_t y, x;
    us_k_tile_corner(&a->tiles, item, &y, &x);
    y += row - (int64_t)item * grid;
    x += i - row * grid;
    if (y < 0 || x < 0 || y >= a->h || x >= a->w)
        return;
    const int64_t from = i * a->channels + a->channel, to = y * a->w + x;
    struct us_moments v = {a->mean[from], a->m2 != NULL ? a->m2[from] : 0.0};
    if (a->before > 0) {
        struct us_moments old = {a->mean_plane[to], a->m2 != NULL ? a->m2_plane[to] : 0.0};
        v = us_moments_join(old, a->before, v, a->share);
    }
    a->mean_plane[to] = (float)(a->last ? v.mean * a->scale + a->shift : v.mean);
    if (a->m2 != NULL)
        a->m2_plane[to] = (float)(a->last ? us_moments_std(v, a->before + a->n) * a->scale : v.m2);
}

#endif
