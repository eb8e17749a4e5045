/*
 * Where the tiles of a prediction lie: their sizes (model-spec 17.1, 17.2) and the passes over a
 * frame. Shifting the grid from pass to pass is SWITi's idea (arXiv 2607.18990).
 *
 * A pass covers every pixel once. With K passes over a grid of side G, pass k has its lines at
 * row floor(k G / K) and column floor((a k mod K) G / K) modulo G, with a the number coprime to K
 * that is nearest to K over the golden ratio: a lattice rule. On each axis the K positions are
 * evenly spaced and belong to one pass each, so a step at a border of one pass enters the mean as
 * 1/K of itself and no two passes step at the same place; in the plane the pairs keep apart, so
 * every pixel is seen from well spread places of a tile. Pass 0 is the fixed grid. More than G
 * passes would put lines where lines are already, and more than MAX_PASSES make a step that is no
 * longer seen weaker still while each pass runs the encoder anew for every patch.
 */
#include <stdlib.h>

#include "us_predict_impl.h"

#define MAX_PASSES 16

static int32_t smaller(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

struct us_tiling_geometry usi_tiling_geometry(const struct us_model *m,
                                              const struct us_predict_config *cfg)
{
    struct us_tiling_geometry g = {.size = m->patch_size, .pad = cfg->padding, .passes = 1};
    if (cfg->tiling == US_TILING_OUTER)
        g.size += 2 * cfg->padding;
    g.grid = g.size - 2 * g.pad;
    g.samples = cfg->samples;
    if (cfg->grid == US_GRID_SHIFTED)
        g.passes = smaller(cfg->samples, smaller(g.grid, MAX_PASSES));
    /* Without sampling every further sample of a pass would be its first one again. */
    if (cfg->latent_mean || !m->arch.stochastic)
        g.samples = g.passes;
    return g;
}

static bool coprime(int32_t a, int32_t b)
{
    while (b != 0) {
        int32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a == 1;
}

/* The lattice's second generator. */
static int32_t generator(int32_t n)
{
    int32_t ideal = (int32_t)((n * 618034LL + 500000) / 1000000); /* n over the golden ratio */
    for (int32_t away = 0;; away++) {
        if (ideal - away > 0 && coprime(ideal - away, n))
            return ideal - away;
        if (coprime(ideal + away, n))
            return ideal + away;
    }
}

/* The corner of the first tile, on the frame's edge or before it, and how many tiles follow. */
static void lay_axis(int32_t shift, int32_t grid, int64_t n, int64_t *ret_start, int64_t *ret_tiles)
{
    *ret_start = shift > 0 ? shift - grid : 0;
    *ret_tiles = (n - *ret_start + grid - 1) / grid;
}

struct us_tiling_pass usi_tiling_pass(const struct us_tiling_geometry *g, int32_t k, int64_t h,
                                      int64_t w)
{
    struct us_tiling_pass p;
    int32_t n = g->passes;
    lay_axis(k * g->grid / n, g->grid, h, &p.y0, &p.rows);
    lay_axis(k * generator(n) % n * g->grid / n, g->grid, w, &p.x0, &p.cols);
    p.first = (int32_t)((int64_t)k * g->samples / n);
    p.n = (int32_t)((int64_t)(k + 1) * g->samples / n) - p.first;
    return p;
}
