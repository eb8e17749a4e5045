/*
 * Reference-free seam score; defined in us_seam.h.
 *
 * One pass over a plane adds, per axis, to the sum of differences at each position and to two
 * histograms; the phases follow from the positions. Differences are formed in double, which is
 * exact enough for any two floats and cannot overflow.
 */
#include "us_seam.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "us_limits.h"

#define N_KEYS   32768 /* a non-negative float without its lower 16 bits */
#define ROUNDING 1e-12 /* relative; above what the sums of a plane lose */

/* What the pass collects along one axis of n pixels. */
struct tally {
    int64_t n;
    double *sum;               /* [n]: of d whose second pixel is at this position */
    int64_t *seam, *elsewhere; /* [N_KEYS]: how many d have this key */
};

static enum us_status tally_init(struct tally *t, int64_t n)
{
    t->n = n;
    t->sum = calloc((size_t)n, sizeof(*t->sum));
    t->seam = calloc(N_KEYS, sizeof(*t->seam));
    t->elsewhere = calloc(N_KEYS, sizeof(*t->elsewhere));
    return t->sum != NULL && t->seam != NULL && t->elsewhere != NULL ? US_OK : US_E_NOMEM;
}

static void tally_release(struct tally *t)
{
    free(t->sum);
    free(t->seam);
    free(t->elsewhere);
}

/* Ordered like d itself: the bits of a non-negative float grow with it. */
static uint32_t key_of(double d)
{
    float f = (float)d;
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits >> 16;
}

/* Differences of row to the row above. */
static void tally_down(struct tally *t, const float *row, int64_t y, int64_t w, int32_t grid)
{
    int64_t *count = y % grid == 0 ? t->seam : t->elsewhere;
    const float *above = row - w;
    double sum = 0.0;
    for (int64_t x = 0; x < w; x++) {
        double d = fabs((double)row[x] - above[x]);
        sum += d;
        count[key_of(d)]++;
    }
    t->sum[y] += sum;
}

/* Differences within a row, tile by tile: the first one of a tile crosses the line. */
static void tally_across(struct tally *t, const float *row, int64_t w, int32_t grid)
{
    for (int64_t tile = 0; tile < w; tile += grid) {
        int64_t end = tile + grid < w ? tile + grid : w;
        for (int64_t x = tile > 0 ? tile : 1; x < end; x++) {
            double d = fabs((double)row[x] - row[x - 1]);
            t->sum[x] += d;
            (x == tile ? t->seam : t->elsewhere)[key_of(d)]++;
        }
    }
}

static double ks_distance(const struct tally *t)
{
    int64_t n_seam = 0, n_elsewhere = 0;
    for (int k = 0; k < N_KEYS; k++) {
        n_seam += t->seam[k];
        n_elsewhere += t->elsewhere[k];
    }
    int64_t below_seam = 0, below_elsewhere = 0;
    double largest = 0.0;
    for (int k = 0; k < N_KEYS; k++) {
        below_seam += t->seam[k];
        below_elsewhere += t->elsewhere[k];
        double gap =
            (double)below_seam / (double)n_seam - (double)below_elsewhere / (double)n_elsewhere;
        largest = fmax(largest, fabs(gap));
    }
    return largest;
}

/* How large a difference is; infinite if there is nothing to measure it by. */
static double relative(double difference, double scale)
{
    if (difference == 0.0)
        return 0.0;
    return scale > 0.0 ? difference / scale : copysign(INFINITY, difference);
}

/* Mean d of one phase; width is the number of differences at one position. */
static double phase_mean(const struct tally *t, int64_t phase, int64_t width, int32_t grid)
{
    double sum = 0.0;
    int64_t n = 0;
    for (int64_t i = phase > 0 ? phase : grid; i < t->n; i += grid, n++)
        sum += t->sum[i];
    return sum / (double)(n * width);
}

static void score_axis(const struct tally *t, int64_t width, int32_t grid, struct us_seam_axis *a)
{
    *a = (struct us_seam_axis){0, NAN, NAN, NAN, NAN, NAN};
    a->n_lines = (t->n - 1) / grid;
    if (a->n_lines == 0)
        return;
    double inside = 0.0, mean = 0.0, squares = 0.0;
    for (int64_t i = 1; i < t->n; i++)
        inside += i % grid == 0 ? 0.0 : t->sum[i];
    a->elsewhere = inside / (double)((t->n - 1 - a->n_lines) * width);
    a->seam = phase_mean(t, 0, width, grid);
    a->excess = relative(a->seam - a->elsewhere, a->elsewhere);
    a->ks = ks_distance(t);
    if (grid == 2)
        return;
    for (int32_t k = 1; k < grid; k++)
        mean += phase_mean(t, k, width, grid);
    mean /= grid - 1;
    for (int32_t k = 1; k < grid; k++)
        squares += pow(phase_mean(t, k, width, grid) - mean, 2.0);
    double gap = a->seam - mean;
    a->z = fabs(gap) <= ROUNDING * mean ? 0.0 : relative(gap, sqrt(squares / (grid - 2)));
}

double us_seam_worse(double z, double other)
{
    return isnan(z) || fabs(other) > fabs(z) ? other : z;
}

static void combine(struct us_seam *s)
{
    double seam = 0.0, elsewhere = 0.0;
    const struct us_seam_axis *axes[2] = {&s->y, &s->x};
    s->excess = s->z = s->ks = NAN;
    for (int i = 0; i < 2; i++) {
        if (axes[i]->n_lines == 0)
            continue;
        seam += axes[i]->seam;
        elsewhere += axes[i]->elsewhere;
        s->excess = relative(seam - elsewhere, elsewhere);
        s->z = us_seam_worse(s->z, axes[i]->z);
        s->ks = fmax(s->ks, axes[i]->ks); /* fmax passes over the NAN */
    }
}

/* ---- planes -------------------------------------------------------------------------------- */

struct us_seam_pool {
    int64_t h, w, n_planes;
    int32_t grid;
    struct tally down, across;
};

enum us_status us_seam_pool_new(int64_t h, int64_t w, int32_t grid, struct us_seam_pool **ret,
                                struct us_err *err)
{
    if (h < 1 || w < 1 || h > US_MAX_PLANE_PIXELS / w)
        return us_fail(err, US_E_ARG, "no seam score of a plane of %lld x %lld pixels",
                       (long long)h, (long long)w);
    if (grid < 2)
        return us_fail(err, US_E_ARG, "grid %d: tiles of one pixel have no inside", grid);
    struct us_seam_pool *p = calloc(1, sizeof(*p));
    if (p == NULL || tally_init(&p->down, h) != US_OK || tally_init(&p->across, w) != US_OK) {
        us_seam_pool_free(p);
        return us_fail(err, US_E_NOMEM, "no memory for the seam histograms");
    }
    p->h = h;
    p->w = w;
    p->grid = grid;
    *ret = p;
    return US_OK;
}

void us_seam_pool_free(struct us_seam_pool *p)
{
    if (p == NULL)
        return;
    tally_release(&p->down);
    tally_release(&p->across);
    free(p);
}

enum us_status us_seam_pool_add(struct us_seam_pool *p, const float *plane, struct us_err *err)
{
    for (int64_t i = 0; i < p->h * p->w; i++)
        if (!isfinite(plane[i]))
            return us_fail(err, US_E_ARG, "the plane holds %f at row %lld, column %lld",
                           (double)plane[i], (long long)(i / p->w), (long long)(i % p->w));
    for (int64_t y = 0; y < p->h; y++) {
        if (y > 0)
            tally_down(&p->down, plane + y * p->w, y, p->w, p->grid);
        tally_across(&p->across, plane + y * p->w, p->w, p->grid);
    }
    p->n_planes++;
    return US_OK;
}

struct us_seam us_seam_pool_score(const struct us_seam_pool *p)
{
    struct us_seam s;
    US_ASSERT(p->n_planes > 0);
    score_axis(&p->down, p->n_planes * p->w, p->grid, &s.y);
    score_axis(&p->across, p->n_planes * p->h, p->grid, &s.x);
    combine(&s);
    return s;
}

enum us_status us_seam_score(const float *plane, int64_t h, int64_t w, int32_t grid,
                             struct us_seam *ret, struct us_err *err)
{
    struct us_seam_pool *p = NULL;
    US_TRY(us_seam_pool_new(h, w, grid, &p, err));
    enum us_status s = us_seam_pool_add(p, plane, err);
    if (s == US_OK)
        *ret = us_seam_pool_score(p);
    us_seam_pool_free(p);
    return s;
}
