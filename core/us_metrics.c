/*
 * Image quality of one frame (model-spec 17.5): range-invariant PSNR, PSNR, SSIM, RMSE.
 *
 * Everything is summed in double, first along a row and then over the rows, which keeps the
 * rounding of a large frame far below the last printed digit. SSIM sums its windows afresh for
 * each row: a running sum would drift.
 */
#include "us_metrics.h"

#include <math.h>
#include <stdlib.h>

#include "us_limits.h"

#define SSIM_SIDE   7
#define SSIM_PIXELS (SSIM_SIDE * SSIM_SIDE)
#define SSIM_K1     0.01
#define SSIM_K2     0.03

struct pair {
    const float *t, *x; /* target, prediction */
    int64_t h, w;
};

/* First moments of a pair, second ones about the means. */
struct moments {
    double mean_t, mean_x;
    double tt, xx, tx; /* sum (t - mean_t)^2, sum (x - mean_x)^2, the mixed one */
    double error;      /* sum (t - x)^2 */
    double range;      /* max t - min t */
};

static enum us_status check_finite(const float *img, int64_t h, int64_t w, const char *name,
                                   struct us_err *err)
{
    for (int64_t i = 0; i < h * w; i++)
        if (!isfinite(img[i]))
            return us_fail(err, US_E_ARG, "%s holds %f at row %lld, column %lld", name,
                           (double)img[i], (long long)(i / w), (long long)(i % w));
    return US_OK;
}

static void moments_init(struct moments *m, const struct pair *p)
{
    double n = (double)(p->h * p->w), lo = p->t[0], hi = p->t[0];
    *m = (struct moments){0};
    for (int64_t y = 0; y < p->h; y++) {
        const float *t = p->t + y * p->w, *x = p->x + y * p->w;
        double sum_t = 0.0, sum_x = 0.0;
        for (int64_t i = 0; i < p->w; i++) {
            sum_t += t[i];
            sum_x += x[i];
            lo = t[i] < lo ? t[i] : lo;
            hi = t[i] > hi ? t[i] : hi;
        }
        m->mean_t += sum_t / n;
        m->mean_x += sum_x / n;
    }
    m->range = hi - lo;
    for (int64_t y = 0; y < p->h; y++) {
        const float *t = p->t + y * p->w, *x = p->x + y * p->w;
        double tt = 0.0, xx = 0.0, tx = 0.0, error = 0.0;
        for (int64_t i = 0; i < p->w; i++) {
            double a = t[i] - m->mean_t, b = x[i] - m->mean_x, d = (double)t[i] - x[i];
            tt += a * a;
            xx += b * b;
            tx += a * b;
            error += d * d;
        }
        m->tt += tt;
        m->xx += xx;
        m->tx += tx;
        m->error += error;
    }
}

/* 20 log10(range / sqrt(mse)) with the limits that the header promises. */
static double psnr(double range, double mse)
{
    if (mse <= 0.0)
        return INFINITY;
    if (!(range > 0.0))
        return NAN;
    return 20.0 * log10(range / sqrt(mse));
}

/* PSNR after the affine map of x that fits t best. Upstream first scales t to unit deviation,
 * which cancels. The moments would give the residual in closed form, but as a difference of large
 * sums that loses the small residual of a good prediction; so it is summed over the pixels. */
static double range_invariant_psnr(const struct pair *p, const struct moments *m)
{
    if (!(m->range > 0.0))
        return NAN;
    double a = m->xx > 0.0 ? m->tx / m->xx : 0.0;
    double residual = 0.0;
    for (int64_t y = 0; y < p->h; y++) {
        const float *t = p->t + y * p->w, *x = p->x + y * p->w;
        double sum = 0.0;
        for (int64_t i = 0; i < p->w; i++) {
            double d = (t[i] - m->mean_t) - a * (x[i] - m->mean_x);
            sum += d * d;
        }
        residual += sum;
    }
    return psnr(m->range, residual / (double)(p->h * p->w));
}

/* The five window sums of SSIM. */
struct window {
    double t, x, tt, xx, tx;
};

static void window_add(struct window *a, const struct window *b)
{
    a->t += b->t;
    a->x += b->x;
    a->tt += b->tt;
    a->xx += b->xx;
    a->tx += b->tx;
}

/* Sums over rows y .. y+6 of each column, of pixels less the frame's means: variances of small
 * signals on a large camera offset keep their digits. */
static void sum_columns(const struct pair *p, const struct moments *m, int64_t y,
                        struct window *column)
{
    for (int64_t i = 0; i < p->w; i++)
        column[i] = (struct window){0};
    for (int64_t k = 0; k < SSIM_SIDE; k++) {
        const float *t = p->t + (y + k) * p->w, *x = p->x + (y + k) * p->w;
        for (int64_t i = 0; i < p->w; i++) {
            double a = t[i] - m->mean_t, b = x[i] - m->mean_x;
            const struct window one = {a, b, a * a, b * b, a * b};
            window_add(&column[i], &one);
        }
    }
}

static double ssim_of_window(const struct window *sum, const struct moments *m, double c1,
                             double c2)
{
    const double norm = (double)SSIM_PIXELS / (SSIM_PIXELS - 1); /* sample covariance */
    double dt = sum->t / SSIM_PIXELS, dx = sum->x / SSIM_PIXELS;
    double vt = norm * (sum->tt / SSIM_PIXELS - dt * dt);
    double vx = norm * (sum->xx / SSIM_PIXELS - dx * dx);
    double vtx = norm * (sum->tx / SSIM_PIXELS - dt * dx);
    double ut = m->mean_t + dt, ux = m->mean_x + dx;
    return (2.0 * ut * ux + c1) * (2.0 * vtx + c2) / ((ut * ut + ux * ux + c1) * (vt + vx + c2));
}

/* The mean over all windows that lie inside the frame: the map without its 3-pixel border. */
static enum us_status ssim(const struct pair *p, const struct moments *m, double *ret)
{
    *ret = NAN;
    if (p->h < SSIM_SIDE || p->w < SSIM_SIDE || !(m->range > 0.0))
        return US_OK;
    struct window *column = calloc((size_t)p->w, sizeof(*column));
    if (column == NULL)
        return US_E_NOMEM;
    double k1 = SSIM_K1 * m->range, k2 = SSIM_K2 * m->range;
    int64_t rows = p->h - SSIM_SIDE + 1, columns = p->w - SSIM_SIDE + 1;
    double total = 0.0;
    for (int64_t y = 0; y < rows; y++) {
        sum_columns(p, m, y, column);
        double row = 0.0;
        for (int64_t i = 0; i < columns; i++) {
            struct window sum = column[i];
            for (int k = 1; k < SSIM_SIDE; k++)
                window_add(&sum, &column[i + k]);
            row += ssim_of_window(&sum, m, k1 * k1, k2 * k2);
        }
        total += row / (double)columns;
    }
    free(column);
    *ret = total / (double)rows;
    return US_OK;
}

enum us_status us_metrics_compute(const float *target, const float *prediction, int64_t h,
                                  int64_t w, struct us_metrics *ret, struct us_err *err)
{
    if (h < 1 || w < 1 || h > US_MAX_PLANE_PIXELS / w)
        return us_fail(err, US_E_ARG, "cannot compare images of %lld x %lld pixels", (long long)h,
                       (long long)w);
    US_TRY(check_finite(target, h, w, "the target", err));
    US_TRY(check_finite(prediction, h, w, "the prediction", err));
    const struct pair p = {target, prediction, h, w};
    struct moments m;
    struct us_metrics r;
    moments_init(&m, &p);
    if (ssim(&p, &m, &r.ssim) != US_OK)
        return us_fail(err, US_E_NOMEM, "no memory for one row of SSIM windows");
    double mse = m.error / (double)(h * w);
    r.rmse = sqrt(mse);
    r.psnr = psnr(m.range, mse);
    r.psnr_ri = range_invariant_psnr(&p, &m);
    *ret = r;
    return US_OK;
}
