/*
 * Pictures of a training run as PNG: line plots with axes, and panels of images in grey. Small and
 * without other dependencies than libpng; text is in capitals of a 3 x 5 bitmap font.
 *
 * Files are written beside their name and renamed. E_IO, E_DISK_FULL, E_NOMEM name the path.
 */
#ifndef US_PLOT_H
#define US_PLOT_H

#include <stdbool.h>
#include <stdint.h>

#include "us_status.h"

struct us_plot_series {
    const char *name;
    const double *x, *y; /* [n]; points that are not finite are left out */
    int64_t n;
};

struct us_plot_chart {
    const char *title, *x_label;
    const struct us_plot_series *series; /* at most US_PLOT_MAX_SERIES */
    int32_t n_series;
};
#define US_PLOT_MAX_SERIES 6

/* Charts one under the other. */
enum us_status us_plot_lines(const char *path, const struct us_plot_chart *charts, int32_t n_charts,
                             struct us_err *err) US_WARN_UNUSED;

struct us_plot_panel {
    const char *caption;
    const float *pixels; /* [h, w]; NULL: an empty place */
    int64_t h, w;
    double low, high; /* shown black and white; us_plot_contrast gives them */
};

/* Panels row by row, each shrunk to fit where it is larger than its place. */
enum us_status us_plot_panels(const char *path, const struct us_plot_panel *panels,
                              int32_t n_panels, int32_t n_columns,
                              struct us_err *err) US_WARN_UNUSED;

/* The 0.5th and 99.5th percentile of pixels [n] (of an evenly spaced sample of at most 65536). */
void us_plot_contrast(const float *pixels, int64_t n, double *ret_low, double *ret_high);

#endif
