/*
 * Clip and normalisation statistics; see us_stats.h, model-spec 13.3.
 *
 * The quantile is a radix selection: a float's bits, with the sign folded in, sort like the number
 * itself, so a histogram of the upper 16 bits finds the bucket of an order statistic (pass 1) and a
 * histogram of the lower 16 bits within that bucket finds its value (pass 2). Linear interpolation
 * needs two neighbouring order statistics, which may lie in two buckets. Pass 3 takes the moments.
 */
#include "us_stats.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_BINS  65536
#define N_RANKS 2
#define N_PASS  3

/* Where the pixels of one group (all channels, or one) stand in the search. */
struct group {
    int64_t *high;         /* [N_BINS] of the upper halves */
    int64_t *low[N_RANKS]; /* [N_BINS] of the lower halves within bucket[r] */
    int64_t rank[N_RANKS]; /* order statistic wanted, then its rank within the bucket */
    uint32_t bucket[N_RANKS];
    int64_t n;
    double fraction; /* of the second order statistic in the interpolation */
};

/* Mean and sum of squared deviations of n values, mergeable. */
struct moments {
    int64_t n;
    double mean, m2;
};

struct scan {
    const struct us_stats_source *src;
    const struct us_stats_config *cfg;
    struct us_stats *ret;
    int32_t n_groups;
    struct group *groups;
    struct moments *moments; /* per channel */
    float *plane;
    int64_t done; /* planes, of all passes */
};

/* Maps floats to integers of the same order: negative numbers have their bits inverted. */
static uint32_t sort_key(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof(u));
    return (u & 0x80000000U) != 0 ? ~u : u | 0x80000000U;
}

static float key_value(uint32_t key)
{
    uint32_t u = (key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key;
    float v;
    memcpy(&v, &u, sizeof(v));
    return v;
}

static struct group *group_of(struct scan *s, int32_t channel)
{
    return &s->groups[s->n_groups == 1 ? 0 : channel];
}

/* Pass 1: upper halves; every pixel is checked here, so later passes need not. */
static enum us_status pass_high(struct scan *s, int64_t frame, int32_t channel, int64_t n,
                                struct us_err *err)
{
    struct group *g = group_of(s, channel);
    for (int64_t i = 0; i < n; i++) {
        float v = s->plane[i];
        if (!isfinite(v))
            return us_fail(err, US_E_FORMAT,
                           "frame %" PRId64 " channel %d: pixel %" PRId64
                           " is %g, expected finite values",
                           frame, (int)channel, i, (double)v);
        g->high[sort_key(v + 0.0F) >> 16]++; /* + 0: one zero only */
    }
    g->n += n;
    return US_OK;
}

/* Pass 2: lower halves of the two buckets. */
static enum us_status pass_low(struct scan *s, int64_t frame, int32_t channel, int64_t n,
                               struct us_err *err)
{
    struct group *g = group_of(s, channel);
    for (int64_t i = 0; i < n; i++) {
        uint32_t key = sort_key(s->plane[i] + 0.0F);
        for (int r = 0; r < N_RANKS; r++)
            if (key >> 16 == g->bucket[r])
                g->low[r][key & 0xffffU]++;
    }
    return US_OK;
}

/* Joins b into a (Chan et al.): exact in exact arithmetic, and no large sums of squares. */
static void moments_merge(struct moments *a, const struct moments *b)
{
    if (b->n == 0)
        return;
    int64_t n = a->n + b->n;
    double d = b->mean - a->mean;
    a->mean += d * (double)b->n / (double)n;
    a->m2 += b->m2 + d * d * (double)a->n * (double)b->n / (double)n;
    a->n = n;
}

/* Pass 3: moments of the clipped plane, mean first and deviations from it second. */
static enum us_status pass_moments(struct scan *s, int64_t frame, int32_t channel, int64_t n,
                                   struct us_err *err)
{
    double clip = s->ret->clip[channel];
    struct moments m = {.n = n};
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += fmin((double)s->plane[i], clip);
    m.mean = n > 0 ? sum / (double)n : 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fmin((double)s->plane[i], clip) - m.mean;
        m.m2 += d * d;
    }
    moments_merge(&s->moments[channel], &m);
    return US_OK;
}

typedef enum us_status (*pass_fn)(struct scan *s, int64_t frame, int32_t channel, int64_t n,
                                  struct us_err *err);

static enum us_status for_each_plane(struct scan *s, pass_fn pass, struct us_err *err)
{
    const struct us_stats_source *src = s->src;
    int64_t total = N_PASS * src->n_frames * src->n_channels;
    for (int64_t t = 0; t < src->n_frames; t++) {
        for (int32_t c = 0; c < src->n_channels; c++) {
            if (src->cancel != NULL && atomic_load(src->cancel))
                return us_fail(err, US_E_CANCELLED, "cancelled");
            int64_t n = 0;
            US_TRY(src->read(src->arg, t, c, s->plane, &n, err));
            US_ASSERT(n >= 0 && n <= src->plane_pixels);
            US_TRY(pass(s, t, c, n, err));
            if (src->progress != NULL)
                src->progress(src->progress_arg, ++s->done, total);
        }
    }
    return US_OK;
}

/* The bin that holds the order statistic *rank, which becomes the rank within that bin. */
static uint32_t find_bin(const int64_t *bins, int64_t *rank)
{
    uint32_t b = 0;
    while (*rank >= bins[b]) {
        *rank -= bins[b++];
        US_ASSERT(b < N_BINS);
    }
    return b;
}

/* Between the passes: which two order statistics, and in which buckets they lie. */
static void choose_buckets(struct group *g, double quantile)
{
    double at = quantile * (double)(g->n - 1);
    g->rank[0] = (int64_t)floor(at);
    g->rank[1] = g->rank[0] + 1 < g->n ? g->rank[0] + 1 : g->rank[0];
    g->fraction = at - floor(at);
    for (int r = 0; r < N_RANKS; r++)
        g->bucket[r] = find_bin(g->high, &g->rank[r]);
}

static double interpolate(struct group *g)
{
    double v[N_RANKS];
    for (int r = 0; r < N_RANKS; r++) {
        uint32_t low = find_bin(g->low[r], &g->rank[r]);
        v[r] = (double)key_value(g->bucket[r] << 16 | low);
    }
    return v[0] + (v[1] - v[0]) * g->fraction;
}

static enum us_status find_clips(struct scan *s, struct us_err *err)
{
    US_TRY(for_each_plane(s, pass_high, err));
    for (int32_t i = 0; i < s->n_groups; i++) {
        if (s->groups[i].n == 0)
            return us_fail(err, US_E_ARG, "no pixels");
        choose_buckets(&s->groups[i], s->cfg->clip_quantile);
    }
    US_TRY(for_each_plane(s, pass_low, err));
    for (int32_t i = 0; i < s->n_groups; i++) {
        double clip = interpolate(&s->groups[i]);
        for (int32_t c = 0; c < s->src->n_channels; c++)
            if (s->n_groups == 1 || c == i)
                s->ret->clip[c] = clip;
    }
    return US_OK;
}

static enum us_status find_moments(struct scan *s, struct us_err *err)
{
    US_TRY(for_each_plane(s, pass_moments, err));
    struct moments pooled = {0};
    for (int32_t c = 0; c < s->src->n_channels; c++) {
        const struct moments *m = &s->moments[c];
        moments_merge(&pooled, m);
        s->ret->target_mean[c] = m->mean;
        s->ret->target_std[c] = sqrt(m->m2 / (double)m->n);
        if (!(s->ret->target_std[c] > 0))
            return us_fail(err, US_E_FORMAT,
                           "channel %d (from 0): all pixels are %g after the clip; a channel "
                           "without contrast cannot be normalised",
                           (int)c, m->mean);
    }
    s->ret->input_mean = pooled.mean;
    s->ret->input_std = sqrt(pooled.m2 / (double)pooled.n);
    return US_OK;
}

static enum us_status scan_alloc(struct scan *s, struct us_err *err)
{
    s->plane = calloc((size_t)s->src->plane_pixels, sizeof(float));
    s->moments = calloc((size_t)s->src->n_channels, sizeof(*s->moments));
    s->groups = calloc((size_t)s->n_groups, sizeof(*s->groups));
    bool ok = s->plane != NULL && s->moments != NULL && s->groups != NULL;
    for (int32_t i = 0; ok && i < s->n_groups; i++) {
        struct group *g = &s->groups[i];
        g->high = calloc(N_BINS, sizeof(*g->high));
        ok = g->high != NULL;
        for (int r = 0; ok && r < N_RANKS; r++) {
            g->low[r] = calloc(N_BINS, sizeof(*g->low[r]));
            ok = g->low[r] != NULL;
        }
    }
    return ok ? US_OK : us_fail(err, US_E_NOMEM, "no memory for the statistics of a plane");
}

static void scan_release(struct scan *s)
{
    for (int32_t i = 0; s->groups != NULL && i < s->n_groups; i++) {
        free(s->groups[i].high);
        for (int r = 0; r < N_RANKS; r++)
            free(s->groups[i].low[r]);
    }
    free(s->groups);
    free(s->moments);
    free(s->plane);
}

enum us_status us_stats_compute(const struct us_stats_source *src,
                                const struct us_stats_config *cfg, struct us_stats *ret,
                                struct us_err *err)
{
    if (src->n_channels < 1 || src->n_channels > US_MAX_TARGETS || src->n_frames < 1 ||
        src->plane_pixels < 1)
        return us_fail(err, US_E_ARG, "%" PRId64 " frames of %d channels, expected at least one",
                       src->n_frames, (int)src->n_channels);
    if (!(cfg->clip_quantile >= 0 && cfg->clip_quantile <= 1))
        return us_fail(err, US_E_ARG, "clip quantile %g, expected 0 to 1", cfg->clip_quantile);
    struct scan s = {
        .src = src, .cfg = cfg, .ret = ret, .n_groups = cfg->channelwise ? src->n_channels : 1};
    *ret = (struct us_stats){0};
    enum us_status st = scan_alloc(&s, err);
    if (st == US_OK)
        st = find_clips(&s, err);
    if (st == US_OK)
        st = find_moments(&s, err);
    scan_release(&s);
    return st;
}
