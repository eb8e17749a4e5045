/*
 * Frame pyramid and patches (model-spec 13.5, 13.6).
 *
 * The halving is scikit-image's `resize` to the last bit of float32, because trained weights have
 * seen exactly these pixels: a Gaussian along H, rounded to float32, the same along W, then linear
 * sampling. Sums run in double in SciPy's order: centre first, then pairs from the outside inwards.
 * A factor of two or more means that no filtered row is needed by two output rows, so rows are
 * filtered where they are sampled and the scratch memory is a few rows, not a frame.
 */
#include "us_pyramid.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "math/us_frame_math.h"
#include "us_limits.h"

#define MAX_RADIUS US_HALVING_MAX_RADIUS

/* One allocation for the largest scale. */
struct scratch {
    double *fraction; /* per output column: weight of the right one of its two pixels */
    int64_t *left;    /* per output column: index of the left one */
    float *margin;    /* MAX_RADIUS floats, one row filtered along H, MAX_RADIUS floats */
    float *row[2];    /* the two fully filtered rows that one output row lies between */
};

static int64_t half_of(int64_t n)
{
    return n > 1 ? n / 2 : 1;
}

struct us_halving us_halving_of(int64_t n)
{
    struct us_halving a = {.n = n, .n_out = half_of(n)};
    a.zoom = (double)a.n / (double)a.n_out;
    double sigma = (a.zoom - 1.0) / 2.0;
    a.radius = (int32_t)(4.0 * sigma + 0.5);
    US_ASSERT(a.radius <= MAX_RADIUS);
    a.weight[0] = 1.0;
    for (int j = 1; j <= a.radius; j++)
        a.weight[j] = exp(-0.5 / (sigma * sigma) * (double)(j * j));
    double sum = 0.0;
    for (int j = -a.radius; j <= a.radius; j++)
        sum += a.weight[j < 0 ? -j : j];
    for (int j = 0; j <= a.radius; j++)
        a.weight[j] /= sum;
    return a;
}

/* out[x] = sum_j weight[|j|] tap[radius + j][x]. Inlined with a constant radius so that the loop
 * over x is what the compiler vectorises. */
static inline __attribute__((always_inline)) void
filter_n(const float *const *tap, int radius, const double *weight, int64_t n, float *restrict out)
{
    for (int64_t x = 0; x < n; x++) {
        double sum = (double)tap[radius][x] * weight[0];
        for (int j = radius; j > 0; j--)
            sum += ((double)tap[radius - j][x] + (double)tap[radius + j][x]) * weight[j];
        out[x] = (float)sum;
    }
}

static void filter(const float *const *tap, const struct us_halving *a, int64_t n, float *out)
{
    switch (a->radius) {
    case 0:
        memcpy(out, tap[0], (size_t)n * sizeof(*out));
        break;
    case 2: /* every even size and every odd one from 11 */
        filter_n(tap, 2, a->weight, n, out);
        break;
    default:
        filter_n(tap, a->radius, a->weight, n, out);
        break;
    }
}

/* Row y of src, filtered along H and then W, into out. margin as in struct scratch. */
static void filter_row(const float *src, const struct us_halving *ay, const struct us_halving *ax,
                       int64_t y, float *margin, float *out)
{
    const float *tap[2 * MAX_RADIUS + 1];
    float *line = margin + MAX_RADIUS;
    for (int j = -ay->radius; j <= ay->radius; j++)
        tap[ay->radius + j] = src + us_reflect_index(y + j, ay->n) * ax->n;
    filter(tap, ay, ax->n, line);
    for (int j = 1; j <= ax->radius; j++) {
        line[-j] = line[us_reflect_index(-j, ax->n)];
        line[ax->n - 1 + j] = line[us_reflect_index(ax->n - 1 + j, ax->n)];
    }
    for (int j = -ax->radius; j <= ax->radius; j++)
        tap[ax->radius + j] = line + j;
    filter(tap, ax, ax->n, out);
}

static void sample_row(const struct scratch *m, const struct us_halving *ax, double fy, float *out)
{
    const float *top = m->row[0], *bottom = m->row[1];
    int64_t last = ax->n - 1;
    for (int64_t j = 0; j < ax->n_out; j++) {
        int64_t l = m->left[j], r = l < last ? l + 1 : last;
        out[j] = us_halving_sample(top[l], top[r], bottom[l], bottom[r], fy, m->fraction[j]);
    }
}

/* dst [max(1, h/2), max(1, w/2)] from src [h, w]. */
static void halve(const float *src, int64_t h, int64_t w, struct scratch *m, float *dst)
{
    const struct us_halving ay = us_halving_of(h), ax = us_halving_of(w);
    for (int64_t j = 0; j < ax.n_out; j++)
        us_halving_source(&ax, j, &m->left[j], &m->fraction[j]);
    for (int64_t i = 0; i < ay.n_out; i++) {
        int64_t top;
        double fy;
        us_halving_source(&ay, i, &top, &fy);
        filter_row(src, &ay, &ax, top, m->margin, m->row[0]);
        filter_row(src, &ay, &ax, top + 1 < h ? top + 1 : top, m->margin, m->row[1]);
        sample_row(m, &ax, fy, dst + i * ax.n_out);
    }
}

/* Rows for frames of width w; the one block to free is m->fraction. */
static enum us_status scratch_init(struct scratch *m, int64_t w)
{
    static_assert(sizeof(double) == 8 && sizeof(int64_t) == 8 && sizeof(float) == 4,
                  "the block is cut by decreasing alignment");
    size_t n = (size_t)w, n_out = (size_t)half_of(w);
    size_t bytes =
        n_out * (sizeof(double) + sizeof(int64_t)) + (3 * n + 2 * MAX_RADIUS) * sizeof(float);
    m->fraction = malloc(bytes);
    if (m->fraction == NULL)
        return US_E_NOMEM;
    m->left = (int64_t *)(m->fraction + n_out);
    m->margin = (float *)(m->left + n_out);
    m->row[0] = m->margin + n + 2 * MAX_RADIUS;
    m->row[1] = m->row[0] + n;
    return US_OK;
}

static int64_t copy_clipped(const float *frame, int64_t n, float clip, float *out)
{
    int64_t n_clipped = 0;
    for (int64_t i = 0; i < n; i++) {
        bool above = frame[i] > clip;
        out[i] = above ? clip : frame[i];
        n_clipped += above;
    }
    return n_clipped;
}

enum us_status us_pyramid_build(const float *frame, int64_t h, int64_t w, int32_t n_scales,
                                double clip, struct us_pyramid *ret, int64_t *ret_n_clipped)
{
    *ret = (struct us_pyramid){0};
    if (h < 1 || w < 1 || n_scales < 1 || n_scales > US_MAX_SCALES)
        return US_E_ARG;
    if (h > US_MAX_PLANE_PIXELS / w)
        return US_E_TOO_LARGE;
    struct us_pyramid p = {.n_scales = n_scales};
    struct scratch m = {0};
    enum us_status s = scratch_init(&m, w);
    for (int32_t k = 0; s == US_OK && k < n_scales; k++) {
        p.h[k] = k == 0 ? h : half_of(p.h[k - 1]);
        p.w[k] = k == 0 ? w : half_of(p.w[k - 1]);
        p.data[k] = calloc((size_t)(p.h[k] * p.w[k]), sizeof(float));
        if (p.data[k] == NULL)
            s = US_E_NOMEM;
    }
    if (s != US_OK)
        goto out;
    int64_t n_clipped = copy_clipped(frame, h * w, (float)clip, p.data[0]);
    for (int32_t k = 1; k < n_scales; k++)
        halve(p.data[k - 1], p.h[k - 1], p.w[k - 1], &m, p.data[k]);
    if (ret_n_clipped != NULL)
        *ret_n_clipped = n_clipped;
    *ret = p;
    p = (struct us_pyramid){0};
out:
    free(m.fraction);
    us_pyramid_release(&p);
    return s;
}

void us_pyramid_release(struct us_pyramid *p)
{
    if (p == NULL)
        return;
    for (int k = 0; k < US_MAX_SCALES; k++)
        free(p->data[k]);
    *p = (struct us_pyramid){0};
}

int64_t us_reflect_index(int64_t i, int64_t len)
{
    return us_reflect(i, len);
}

static void fill(float *out, int64_t n, float value)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = value;
}

/* One row of the patch: src is the frame's row, its pixels normalised, the rest padded. */
static void extract_row(const float *src, struct us_patch_axis x, int32_t size,
                        enum us_pad_mode pad, float mean, float std, float *out)
{
    float *content = out + x.before;
    int64_t after = size - x.before - x.len;
    for (int64_t i = 0; i < x.len; i++)
        content[i] = us_patch_value(src[x.lo + i], mean, std);
    if (pad == US_PAD_ZERO) {
        fill(out, x.before, us_patch_value(0.0F, mean, std));
        fill(content + x.len, after, us_patch_value(0.0F, mean, std));
        return;
    }
    for (int64_t i = 1; i <= x.before; i++)
        content[-i] = content[us_reflect(-i, x.len)];
    for (int64_t i = x.len; i < x.len + after; i++)
        content[i] = content[us_reflect(i, x.len)];
}

void us_patch_extract(const struct us_pyramid *p, int32_t s, int64_t h0, int64_t w0, int32_t size,
                      enum us_pad_mode pad, float mean, float std, float *out)
{
    US_ASSERT(s >= 0 && s < p->n_scales);
    const int zero = pad == US_PAD_ZERO;
    struct us_patch_axis y = us_patch_axis_of(us_patch_origin(h0, s, size), size, p->h[s], zero);
    struct us_patch_axis x = us_patch_axis_of(us_patch_origin(w0, s, size), size, p->w[s], zero);
    for (int64_t i = y.before; i < y.before + y.len; i++)
        extract_row(p->data[s] + (y.lo + i - y.before) * p->w[s], x, size, pad, mean, std,
                    out + i * size);
    /* Rows above and below are copies of rows that stand already, or constant. */
    for (int64_t i = 0; i < size; i++) {
        if (i >= y.before && i < y.before + y.len)
            continue;
        if (pad == US_PAD_ZERO) {
            fill(out + i * size, size, us_patch_value(0.0F, mean, std));
        } else {
            int64_t from = y.before + us_reflect(i - y.before, y.len);
            memcpy(out + i * size, out + from * size, (size_t)size * sizeof(*out));
        }
    }
}
