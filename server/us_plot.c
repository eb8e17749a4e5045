/* Line plots and image panels; see us_plot.h. */
#include "us_plot.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_plot_canvas.h"

#define CHART_W 800
#define CHART_H 360
#define LEFT    90 /* of the axes, for labels */
#define RIGHT   20
#define TOP     34
#define BOTTOM  44
#define TICKS   6
#define PANEL   320 /* largest side of a panel */
#define GAP     12
#define SAMPLE  65536
#define INK     0x202020U
#define FAINT   0xe4e4e4U

static const uint32_t colours[US_PLOT_MAX_SERIES] = {0x1f6fb4, 0xd95f02, 0x2a9d5c,
                                                     0x9b4fb0, 0xb8860b, 0x555555};

/* ---- charts -------------------------------------------------------------------------------- */

struct axis {
    double low, high, step;
    int32_t from, to; /* pixels of low and high */
};

static int32_t place(const struct axis *a, double v)
{
    return a->from + (int32_t)lround((v - a->low) / (a->high - a->low) * (a->to - a->from));
}

/* A round step (1, 2 or 5 times a power of ten) that gives about TICKS ticks. */
static double round_step(double range)
{
    double raw = range / TICKS, power = pow(10.0, floor(log10(raw)));
    double m = raw / power;
    return power * (m <= 1.0 ? 1.0 : m <= 2.0 ? 2.0 : m <= 5.0 ? 5.0 : 10.0);
}

/* Whether a point can be drawn; a run that diverges may leave any number. */
static bool drawable(const struct us_plot_series *s, int64_t i)
{
    return fabs(s->x[i]) < 1e100 && fabs(s->y[i]) < 1e100; /* false for NaN */
}

/* The range of all series; wide enough to draw whatever they hold. */
static struct axis fit_axis(const struct us_plot_chart *k, bool of_x)
{
    struct axis a = {(double)INFINITY, -(double)INFINITY, 1.0, 0, 0};
    for (int32_t s = 0; s < k->n_series; s++) {
        for (int64_t i = 0; i < k->series[s].n; i++) {
            double x = k->series[s].x[i], y = k->series[s].y[i], v = of_x ? x : y;
            if (!drawable(&k->series[s], i))
                continue;
            a.low = fmin(a.low, v);
            a.high = fmax(a.high, v);
        }
    }
    if (!(a.low <= a.high))
        a.low = a.high = 0.0;
    double least = fmax(1e-6 * fmax(fabs(a.low), fabs(a.high)), 1e-9);
    if (a.high - a.low < least) {
        a.low -= of_x ? 0.0 : fmax(0.5, least);
        a.high += fmax(of_x ? 1.0 : 0.5, least);
    } else if (!of_x) {
        double margin = 0.05 * (a.high - a.low);
        a.low -= margin;
        a.high += margin;
    }
    a.step = round_step(a.high - a.low);
    if (of_x)
        a.step = fmax(1.0, a.step); /* epochs and steps are whole */
    return a;
}

static void draw_ticks(struct us_canvas *c, const struct axis *x, const struct axis *y)
{
    char text[32];
    for (double v = ceil(x->low / x->step) * x->step; v <= x->high; v += x->step) {
        int32_t p = place(x, v);
        us_canvas_line(c, p, y->to, p, y->from, 1, FAINT);
        (void)snprintf(text, sizeof(text), "%.6g", fabs(v) < 1e-9 * x->step ? 0.0 : v);
        us_canvas_text(c, p - us_canvas_text_width(text) / 2, y->from + 6, text, INK);
    }
    for (double v = ceil(y->low / y->step) * y->step; v <= y->high; v += y->step) {
        int32_t p = place(y, v);
        us_canvas_line(c, x->from, p, x->to, p, 1, FAINT);
        (void)snprintf(text, sizeof(text), "%.4g", fabs(v) < 1e-9 * y->step ? 0.0 : v);
        us_canvas_text(c, x->from - 8 - us_canvas_text_width(text), p - US_LETTER_H / 2, text, INK);
    }
}

static void draw_series(struct us_canvas *c, const struct us_plot_series *s, const struct axis *x,
                        const struct axis *y, uint32_t colour)
{
    int32_t px = 0, py = 0;
    bool pen = false; /* whether (px, py) is a point to draw from */
    for (int64_t i = 0; i < s->n; i++) {
        if (!drawable(s, i)) {
            pen = false;
            continue;
        }
        int32_t qx = place(x, s->x[i]), qy = place(y, s->y[i]);
        us_canvas_line(c, pen ? px : qx, pen ? py : qy, qx, qy, 2, colour);
        if (s->n <= 60)
            us_canvas_line(c, qx - 1, qy - 1, qx - 1, qy - 1, 4, colour);
        px = qx;
        py = qy;
        pen = true;
    }
}

static void draw_chart(struct us_canvas *c, const struct us_plot_chart *k, int32_t top)
{
    struct axis x = fit_axis(k, true), y = fit_axis(k, false);
    x.from = LEFT;
    x.to = CHART_W - RIGHT;
    y.from = top + CHART_H - BOTTOM;
    y.to = top + TOP;
    draw_ticks(c, &x, &y);
    us_canvas_line(c, x.from, y.from, x.to, y.from, 1, INK);
    us_canvas_line(c, x.from, y.to, x.from, y.from, 1, INK);
    us_canvas_text(c, LEFT, top + 12, k->title, INK);
    us_canvas_text(c, (x.from + x.to - us_canvas_text_width(k->x_label)) / 2, y.from + 24,
                   k->x_label, INK);
    int32_t right = x.to;
    for (int32_t s = k->n_series - 1; s >= 0; s--) {
        right -= us_canvas_text_width(k->series[s].name);
        us_canvas_text(c, right, top + 12, k->series[s].name, colours[s]);
        right -= 2 * US_LETTER_W;
    }
    for (int32_t s = 0; s < k->n_series; s++)
        draw_series(c, &k->series[s], &x, &y, colours[s]);
}

enum us_status us_plot_lines(const char *path, const struct us_plot_chart *charts, int32_t n_charts,
                             struct us_err *err)
{
    struct us_canvas c;
    for (int32_t i = 0; i < n_charts; i++)
        US_ASSERT(charts[i].n_series <= US_PLOT_MAX_SERIES);
    enum us_status s = us_canvas_init(&c, CHART_W, n_charts * CHART_H, err);
    for (int32_t i = 0; i < n_charts && s == US_OK; i++)
        draw_chart(&c, &charts[i], i * CHART_H);
    if (s == US_OK)
        s = us_canvas_save(&c, path, err);
    us_canvas_release(&c);
    return s;
}

/* ---- panels -------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void us_plot_contrast(const float *pixels, int64_t n, double *ret_low, double *ret_high)
{
    int64_t k = n < SAMPLE ? n : SAMPLE;
    float *v = calloc((size_t)k + 1, sizeof(*v));
    *ret_low = 0.0;
    *ret_high = 1.0;
    if (v == NULL || k == 0) {
        free(v);
        return;
    }
    for (int64_t i = 0; i < k; i++)
        v[i] = pixels[i * n / k];
    qsort(v, (size_t)k, sizeof(*v), by_value);
    *ret_low = (double)v[k / 200];
    *ret_high = (double)v[k - 1 - k / 200];
    free(v);
}

/* How many pixels of an image become one of its panel, along each axis. */
static int64_t shrink(const struct us_plot_panel *p)
{
    int64_t side = p->h > p->w ? p->h : p->w;
    return (side + PANEL - 1) / PANEL;
}

static void draw_panel(struct us_canvas *c, const struct us_plot_panel *p, int32_t x0, int32_t y0)
{
    us_canvas_text(c, x0, y0, p->caption, INK);
    if (p->pixels == NULL)
        return;
    int64_t f = shrink(p);
    double range = p->high > p->low ? p->high - p->low : 1.0;
    for (int64_t y = 0; y < p->h / f; y++) {
        for (int64_t x = 0; x < p->w / f; x++) {
            double sum = 0.0;
            for (int64_t k = 0; k < f * f; k++)
                sum += (double)p->pixels[(y * f + k / f) * p->w + x * f + k % f];
            double v = (sum / (double)(f * f) - p->low) / range;
            uint32_t g = (uint32_t)lround(255.0 * fmin(1.0, fmax(0.0, v)));
            us_canvas_dot(c, x0 + (int32_t)x, y0 + US_LETTER_H + 6 + (int32_t)y,
                          g << 16 | g << 8 | g);
        }
    }
}

enum us_status us_plot_panels(const char *path, const struct us_plot_panel *panels,
                              int32_t n_panels, int32_t n_columns, struct us_err *err)
{
    int32_t w = 16 * US_LETTER_W, h = 1; /* of the largest panel; captions need some room */
    for (int32_t i = 0; i < n_panels; i++) {
        if (panels[i].pixels == NULL)
            continue;
        int32_t pw = (int32_t)(panels[i].w / shrink(&panels[i]));
        int32_t ph = (int32_t)(panels[i].h / shrink(&panels[i]));
        w = pw > w ? pw : w;
        h = ph > h ? ph : h;
    }
    w += GAP;
    h += US_LETTER_H + 6 + GAP;
    int32_t n_rows = (n_panels + n_columns - 1) / n_columns;
    struct us_canvas c;
    enum us_status s = us_canvas_init(&c, n_columns * w + GAP, n_rows * h + GAP, err);
    for (int32_t i = 0; i < n_panels && s == US_OK; i++)
        draw_panel(&c, &panels[i], GAP + i % n_columns * w, GAP + i / n_columns * h);
    if (s == US_OK)
        s = us_canvas_save(&c, path, err);
    us_canvas_release(&c);
    return s;
}
