/*
 * SinosoidalCritters (model-spec 14): frames of thick sinusoidal curves whose two channels differ
 * only in which frequencies follow each other, so that a network needs context to tell them apart.
 *
 * Upstream draws from an unseeded generator. Here draw i of frame f is a Philox block keyed by the
 * seed with (i, f) in the counter, so a frame depends on configuration and number alone; the draws
 * keep upstream's order. Sample positions are 0.1 * index, where upstream's two-frequency generator
 * subtracts a start again: a difference of rounding only.
 */
#include "us_critters.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "math/us_philox_math.h"
#include "us_limits.h"

#define GRANULARITY      0.1 /* pixels between samples */
#define AMPLITUDE        8.0
#define HALF_THICKNESS   10 /* thickness 21; the upper end is exclusive, as upstream */
#define JOIN_FRACTION    0.1
#define JOIN_FREQUENCY   0.01
#define N_CURVES         US_CRITTERS_CURVES
#define VERTICAL_FACTOR  0.9
#define HORIZONTAL_SHIFT 0.3
#define MIN_SPACING      16.0
#define MIN_SIZE         89 /* below, the spacing leaves the curves no room: 0.9 * 88 / 5 < 16 */
#define MAX_SIZE         32768
#define MIN_FREQUENCY    1e-3 /* below, the join would start far outside any frame */

static_assert((int64_t)MAX_SIZE * MAX_SIZE <= US_MAX_PLANE_PIXELS, "a frame is a legal plane");

/* Frequency ranges in radians per pixel. */
static const double ranges[4][2] = {{0.05, 0.07}, {0.12, 0.14}, {0.3, 0.32}, {0.6, 0.62}};
/* The two pairs of ranges that make a curve, per channel. */
static const int pairs[2][2][2] = {{{0, 2}, {1, 3}}, {{0, 3}, {1, 2}}};

struct trace {
    double *y;
    int64_t n, cap;
};

struct pixel {
    int32_t y, x;
};

static int64_t sample_count(double start, double length)
{
    return (int64_t)ceil((start + length - start) / GRANULARITY);
}

/* The pieces of the curve in pixels: two halves, or edge, join, edge. */
static void piece_lengths(const struct us_critter_curve *c, int32_t size, double length[3])
{
    double shift = fabs(c->horizontal_shift);
    if (c->n_w == 2) {
        length[0] = length[1] = floor((size + floor(shift)) / 2.0);
        return;
    }
    double total = size + shift;
    length[1] = floor(JOIN_FRACTION * total);
    length[0] = length[2] = floor((total - length[1]) / 2.0);
}

/* The curve before amplitude and shifts. A piece starts where its slope is the slope that the
 * piece before ended with (or the nearest it can have) and is lifted to meet it. */
static void trace_curve(struct trace *t, const struct us_critter_curve *c, const double *length)
{
    double last_x = 0.0, last_y = 0.0, offset = 0.0;
    for (int i = 0; i < c->n_w; i++) {
        double w = c->w[i], start = 0.0;
        if (i > 0) {
            double slope = c->w[i - 1] * cos(c->w[i - 1] * last_x) / w;
            start = acos(fmax(-1.0, fmin(1.0, slope))) / w;
            if (last_y != 0.0)
                offset = last_y - sin(w * start);
        }
        int64_t n = sample_count(start, length[i]);
        last_x = start + GRANULARITY * (double)(n - 1);
        last_y = sin(w * last_x) + offset;
        /* The last sample is the next piece's first one; three-curve drops even the very last. */
        bool keep_last = c->n_w == 2 && i == 1;
        for (int64_t k = 0; k < n - !keep_last; k++) {
            US_ASSERT(t->n < t->cap);
            t->y[t->n++] = sin(w * (start + GRANULARITY * (double)k)) + offset;
        }
    }
}

/* The distinct pixels of the trace inside the frame, in the order of the curve; seen is a zeroed
 * map [size, size]. Returns their number. */
static int64_t rasterise(const struct trace *t, const struct us_critter_curve *c, int32_t size,
                         uint8_t *seen, struct pixel *ret)
{
    double min_y = INFINITY, max_x = GRANULARITY * (double)(t->n - 1);
    for (int64_t k = 0; k < t->n; k++)
        min_y = fmin(min_y, AMPLITUDE * t->y[k]);
    int64_t n = 0;
    for (int64_t k = 0; k < t->n; k++) {
        double x = GRANULARITY * (double)k;
        x = (c->flip ? max_x - x : x) + c->horizontal_shift;
        double y = AMPLITUDE * t->y[k] - min_y + c->vertical_shift;
        int32_t xi = (int32_t)x, yi = (int32_t)y; /* toward zero: (-1, 0) counts as column 0 */
        if (xi < 0 || xi >= size || yi >= size || seen[(int64_t)yi * size + xi] != 0)
            continue;
        seen[(int64_t)yi * size + xi] = 1;
        ret[n++] = (struct pixel){yi, xi};
    }
    return n;
}

/* Core and thickness. Within one shift no pixel repeats; shifts add up. */
static void stamp(double *img, int32_t size, const struct pixel *p, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        img[(int64_t)p[k].y * size + p[k].x] += 1.0;
    for (int32_t dx = -HALF_THICKNESS; dx < HALF_THICKNESS; dx++) {
        for (int32_t dy = -HALF_THICKNESS; dy < HALF_THICKNESS; dy++) {
            if (dx == 0 && dy == 0)
                continue;
            double value = 1.0 / sqrt(0.5 * (double)(dx * dx + dy * dy));
            for (int64_t k = 0; k < n; k++) {
                int32_t y = p[k].y + dy, x = p[k].x + dx;
                if (y > 0 && x > 0 && y < size && x < size)
                    img[(int64_t)y * size + x] += value;
            }
        }
    }
}

static bool size_is_valid(int32_t size)
{
    return size >= 1 && size <= MAX_SIZE;
}

static bool curve_is_valid(const struct us_critter_curve *c, int32_t size)
{
    if (c->n_w != 2 && c->n_w != 3)
        return false;
    for (int i = 0; i < c->n_w; i++)
        if (!(c->w[i] >= MIN_FREQUENCY && c->w[i] <= M_PI))
            return false;
    return c->vertical_shift >= 0.0 && c->vertical_shift <= size &&
           fabs(c->horizontal_shift) <= size;
}

enum us_status us_critters_draw(double *img, int32_t size, const struct us_critter_curve *curve)
{
    if (!size_is_valid(size) || !curve_is_valid(curve, size))
        return US_E_ARG;
    enum us_status s = US_E_NOMEM;
    double length[3];
    piece_lengths(curve, size, length);
    /* At most 2 * size pixels are traced; a piece may round up by a sample or two. */
    struct trace t = {.cap = (int64_t)(2.0 * size / GRANULARITY) + 16};
    t.y = calloc((size_t)t.cap, sizeof(*t.y));
    struct pixel *pixels = calloc((size_t)t.cap, sizeof(*pixels));
    uint8_t *seen = calloc((size_t)size * (size_t)size, sizeof(*seen));
    if (t.y == NULL || pixels == NULL || seen == NULL)
        goto out;
    trace_curve(&t, curve, length);
    stamp(img, size, pixels, rasterise(&t, curve, size, seen, pixels));
    s = US_OK;
out:
    free(seen);
    free(pixels);
    free(t.y);
    return s;
}

/* The uniform numbers of one frame, in order. */
struct draws {
    uint64_t seed;
    int64_t frame;
    uint32_t next;
};

/* In [0, 1), 53 bits. Half a Philox block; the tag keeps these blocks apart from the latents'. */
static double draw(struct draws *d)
{
    static const uint32_t tag = 0x63726974u; /* "crit" */
    const struct us_philox counter = {
        {d->next / 2, tag, (uint32_t)d->frame, (uint32_t)((uint64_t)d->frame >> 32)}};
    struct us_philox r = us_philox4x32(counter, (uint32_t)d->seed, (uint32_t)(d->seed >> 32));
    const uint32_t *w = r.w + 2 * (d->next % 2);
    d->next++;
    return (double)(((uint64_t)w[1] << 32 | w[0]) >> 11) * 0x1p-53;
}

static void draw_rotations(struct draws *d)
{
    for (int k = 0; k < N_CURVES; k++)
        (void)draw(d); /* the largest rotation is 0; the draws keep their place in the order */
}

static void draw_frequencies(struct draws *d, const struct us_critters_config *cfg, int channel,
                             struct us_critter_curve *c)
{
    bool join = cfg->join > 0;
    for (int k = 0; k < N_CURVES; k++) {
        bool first = draw(d) > 0.5 || cfg->pairs == 1; /* drawn in any case: the order is kept */
        const int *pair = pairs[channel][first ? 0 : 1];
        double w[2];
        for (int i = 0; i < 2; i++)
            w[i] = ranges[pair[i]][0] + draw(d) * (ranges[pair[i]][1] - ranges[pair[i]][0]);
        c[k].n_w = join ? 3 : 2;
        c[k].w[0] = w[0];
        c[k].w[1] = join ? JOIN_FREQUENCY : w[1];
        c[k].w[2] = join ? w[1] : 0.0;
    }
}

/* Each curve has a bucket of its own; min_spacing apart from the next one's. */
static void draw_shifts(struct draws *d, int32_t size, struct us_critter_curve *c)
{
    double m = VERTICAL_FACTOR * size, bucket = 1.0 / N_CURVES, spacing = MIN_SPACING / m;
    for (int k = 0; k < N_CURVES; k++)
        c[k].vertical_shift = m * (draw(d) * (bucket - spacing) + k * bucket + spacing / 2.0);
    for (int k = 0; k < N_CURVES; k++)
        c[k].horizontal_shift = draw(d) * HORIZONTAL_SHIFT * size;
    for (int k = 0; k < N_CURVES; k++)
        if (draw(d) > 0.5)
            c[k].horizontal_shift = -c[k].horizontal_shift;
}

static void draw_channel(struct draws *d, const struct us_critters_config *cfg, int channel,
                         struct us_critter_curve *c)
{
    draw_frequencies(d, cfg, channel, c);
    if (channel == 0)
        draw_rotations(d);
    draw_shifts(d, cfg->size, c);
    if (channel == 1)
        draw_rotations(d);
    for (int k = 0; k < N_CURVES; k++)
        c[k].flip = draw(d) > 0.5;
}

enum us_status us_critters_curves(const struct us_critters_config *cfg, int64_t frame,
                                  struct us_critter_curve ret[2][US_CRITTERS_CURVES],
                                  struct us_err *err)
{
    if (!size_is_valid(cfg->size) || cfg->size < MIN_SIZE)
        return us_fail(err, US_E_ARG, "frames of %d pixels a side: must be %d to %d", cfg->size,
                       MIN_SIZE, MAX_SIZE);
    if (cfg->join < 0 || frame < 0)
        return us_fail(err, US_E_ARG, "join %d, frame %lld: neither may be negative", cfg->join,
                       (long long)frame);
    if (cfg->pairs < 0 || cfg->pairs > 2)
        return us_fail(err, US_E_ARG, "%d kinds of curve per channel: must be 1 or 2", cfg->pairs);
    struct draws d = {.seed = cfg->seed, .frame = frame};
    memset(ret, 0, 2 * N_CURVES * sizeof(**ret));
    for (int channel = 0; channel < 2; channel++)
        draw_channel(&d, cfg, channel, ret[channel]);
    return US_OK;
}

enum us_status us_critters_frame(const struct us_critters_config *cfg, int64_t frame, double *ret,
                                 struct us_err *err)
{
    struct us_critter_curve curves[2][N_CURVES];
    US_TRY(us_critters_curves(cfg, frame, curves, err));
    int64_t n_pixels = (int64_t)cfg->size * cfg->size;
    memset(ret, 0, (size_t)(2 * n_pixels) * sizeof(*ret));
    for (int k = 0; k < 2 * N_CURVES; k++) {
        int channel = k / N_CURVES;
        enum us_status s =
            us_critters_draw(ret + channel * n_pixels, cfg->size, &curves[channel][k % N_CURVES]);
        if (s != US_OK)
            return us_fail(err, s, "no memory to draw a curve");
    }
    return US_OK;
}
