/*
 * Shifted grids: where passes lie, that each pixel's result is the textbook's mean and deviation
 * of one prediction per sample, and what may not change it. Tiny networks; equality of two
 * predictions is bit for bit.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "us_plan.h"
#include "us_predict_impl.h"
#include "us_seam.h"
#include "us_tiny.h"

#define PATCH US_TINY_PATCH

static struct us_backend *be;

static int open_cpu(void **state)
{
    return us_cpu_open(&be, NULL) == US_OK ? 0 : -1;
}

static int close_cpu(void **state)
{
    us_backend_ops(be)->free(be);
    return 0;
}

struct result {
    int64_t h, w;
    float *mean, *std;
};

static struct us_predict_config shifted_config(const struct us_model *m, int32_t samples)
{
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.precision = US_PREC_F32;
    cfg.grid = US_GRID_SHIFTED;
    cfg.padding = 24;
    cfg.samples = samples;
    cfg.want_std = true;
    cfg.threads = 2;
    return cfg;
}

static struct us_predictor *new_predictor(const struct us_model *m,
                                          const struct us_predict_config *cfg)
{
    struct us_err err = {0};
    struct us_predictor *p = NULL;
    if (us_predictor_new(m, be, cfg, &p, &err) != US_OK)
        fail_msg("%s", err.msg);
    return p;
}

/* Predicts into planes of NaN, which must all be gone afterwards. */
static struct result run(struct us_predictor *p, const float *in, int64_t h, int64_t w)
{
    struct us_err err = {0};
    struct result r = {.h = h, .w = w};
    size_t n = (size_t)(2 * h * w);
    r.mean = calloc(n, sizeof(float));
    r.std = calloc(n, sizeof(float));
    for (size_t i = 0; i < n; i++)
        r.mean[i] = r.std[i] = NAN;
    struct us_predict_frame f = {.in = in, .h = h, .w = w, .mean = r.mean, .std = r.std};
    if (us_predict_run(p, &f, &err) != US_OK)
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < n; i++)
        assert_true(isfinite(r.mean[i]) && isfinite(r.std[i]));
    return r;
}

static struct result predict(const struct us_model *m, const struct us_predict_config *cfg,
                             int64_t h, int64_t w)
{
    struct us_predictor *p = new_predictor(m, cfg);
    float *in = us_tiny_frame(h, w);
    struct result r = run(p, in, h, w);
    free(in);
    us_predictor_free(p);
    return r;
}

static void release(struct result *r)
{
    free(r->mean);
    free(r->std);
}

static void assert_same(const struct result *a, const struct result *b)
{
    size_t bytes = (size_t)(2 * a->h * a->w) * sizeof(float);
    assert_memory_equal(a->mean, b->mean, bytes);
    assert_memory_equal(a->std, b->std, bytes);
}

/* ---- geometry ------------------------------------------------------------------------------ */

/* Tiles cover [0, n) and none lies outside. */
static void assert_covers(int64_t start, int64_t tiles, int32_t grid, int64_t n)
{
    assert_true(start <= 0 && start + grid > 0);
    assert_true(start + tiles * grid >= n && start + (tiles - 1) * grid < n);
}

static void passes_share_out_lines_and_samples(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = shifted_config(m, 1);
    for (cfg.padding = 0; cfg.padding < 32; cfg.padding++) {
        for (cfg.samples = 1; cfg.samples < 40; cfg.samples++) {
            struct us_tiling_geometry g = usi_tiling_geometry(m, &cfg);
            assert_int_equal(g.grid, PATCH - 2 * cfg.padding);
            assert_true(g.passes <= cfg.samples && g.passes <= g.grid && g.passes <= 16);
            assert_true(g.passes == cfg.samples || g.passes == g.grid || g.passes == 16);
            bool row[PATCH] = {false}, column[PATCH] = {false};
            int32_t next = 0, fewest = g.samples, most = 0;
            for (int32_t k = 0; k < g.passes; k++) {
                struct us_tiling_pass p = usi_tiling_pass(&g, k, 100, 3);
                assert_covers(p.y0, p.rows, g.grid, 100);
                assert_covers(p.x0, p.cols, g.grid, 3);
                assert_true(k > 0 || (p.y0 == 0 && p.x0 == 0));
                int64_t y = (p.y0 + g.grid) % g.grid, x = (p.x0 + g.grid) % g.grid;
                assert_false(row[y] || column[x]); /* no line belongs to two passes */
                row[y] = column[x] = true;
                assert_int_equal(p.first, next);
                next += p.n;
                fewest = p.n < fewest ? p.n : fewest;
                most = p.n > most ? p.n : most;
            }
            assert_int_equal(next, cfg.samples);
            assert_true(fewest >= 1 && most - fewest <= 1);
        }
    }
    us_model_free(m);
}

static void one_prediction_per_pass_is_enough_without_sampling(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = shifted_config(m, 50);
    assert_int_equal(usi_tiling_geometry(m, &cfg).samples, 50);
    cfg.latent_mean = true;
    assert_int_equal(usi_tiling_geometry(m, &cfg).samples, 16);
    cfg.grid = US_GRID_FIXED;
    assert_int_equal(usi_tiling_geometry(m, &cfg).samples, 1);
    us_model_free(m);
}

/* ---- values -------------------------------------------------------------------------------- */

/* The plan alone, tile after tile, every sample from scratch and kept: what us_predict must give.
 * All in the simplest way: no reuse, no regions, no threads. */
struct oracle {
    const struct us_model *m;
    struct us_predict_config cfg;
    int64_t h, w;
    struct us_pyramid pyramid;
    struct us_plan *plan;
    struct us_exec *exec;
    double *sample; /* [samples][2][h][w], in the network's units */
};

static struct oracle oracle_new(const struct us_model *m, const struct us_predict_config *cfg,
                                int64_t h, int64_t w)
{
    struct oracle o = {.m = m, .cfg = *cfg, .h = h, .w = w};
    const struct us_plan_config pc = {.dtype = US_F32, .batch = 1, .whole_maps = true};
    float *in = us_tiny_frame(h, w);
    assert_int_equal(us_plan_build(m->net, m->weights, be, &pc, &o.plan, NULL), US_OK);
    assert_int_equal(us_exec_new(o.plan, &o.exec, NULL), US_OK);
    assert_int_equal(us_pyramid_build(in, h, w, m->arch.lc_scales, INFINITY, &o.pyramid, NULL),
                     US_OK);
    o.sample = calloc((size_t)(cfg->samples * 2 * h * w), sizeof(double));
    for (int64_t i = 0; i < cfg->samples * 2 * h * w; i++)
        o.sample[i] = (double)NAN;
    free(in);
    return o;
}

static void oracle_release(struct oracle *o)
{
    us_exec_free(o->exec);
    us_plan_free(o->plan);
    us_pyramid_release(&o->pyramid);
    free(o->sample);
}

/* One tile whose kept part begins at (y0, x0). */
static void oracle_tile(struct oracle *o, int32_t s, int64_t y0, int64_t x0, uint32_t patch)
{
    int32_t pad = o->cfg.padding, grid = PATCH - 2 * pad;
    for (int32_t i = 0; i < o->m->arch.lc_scales; i++)
        us_patch_extract(&o->pyramid, i, y0 - pad, x0 - pad, PATCH, o->m->data.context_padding,
                         100.0F, 30.0F, us_exec_input(o->exec, i));
    *us_exec_noise(o->exec) = (struct us_noise){.seed = o->cfg.seed,
                                                .sample = (uint32_t)s,
                                                .patch = patch,
                                                .image_keyed = o->cfg.noise == US_NOISE_IMAGE,
                                                .centre_y = y0 - pad + PATCH / 2,
                                                .centre_x = x0 - pad + PATCH / 2};
    assert_int_equal(us_exec_run(o->exec), US_OK);
    const float *out = us_exec_output(o->exec);
    for (int64_t y = y0; y < y0 + grid; y++) {
        for (int64_t x = x0; x < x0 + grid; x++) {
            for (int64_t c = 0; c < 2 && y >= 0 && y < o->h && x >= 0 && x < o->w; c++) {
                double *v = &o->sample[((s * 2 + c) * o->h + y) * o->w + x];
                assert_true(isnan(*v)); /* each sample predicts a pixel once */
                *v = (double)out[((y - y0 + pad) * PATCH + x - x0 + pad) * 2 + c];
            }
        }
    }
}

/* Sample s with grid lines at rows dy + i G and columns dx + i G. */
static void oracle_sample(struct oracle *o, int32_t s, int32_t dy, int32_t dx)
{
    int32_t grid = PATCH - 2 * o->cfg.padding;
    uint32_t patch = 0;
    for (int64_t y0 = dy > 0 ? dy - grid : 0; y0 < o->h; y0 += grid)
        for (int64_t x0 = dx > 0 ? dx - grid : 0; x0 < o->w; x0 += grid)
            oracle_tile(o, s, y0, x0, patch++);
}

/* The largest differences, in units of each target's standard deviation. */
static void assert_oracle(const struct oracle *o, const struct result *r)
{
    int64_t pixels = o->h * o->w;
    int32_t n = o->cfg.samples;
    double worst_mean = 0.0, worst_std = 0.0;
    for (int64_t i = 0; i < 2 * pixels; i++) {
        const struct us_model_data *d = &o->m->data;
        double mean = 0.0, squares = 0.0, scale = d->target_std[i / pixels];
        for (int32_t s = 0; s < n; s++)
            mean += o->sample[s * 2 * pixels + i] / n;
        for (int32_t s = 0; s < n; s++)
            squares += pow(o->sample[s * 2 * pixels + i] - mean, 2.0);
        double got = ((double)r->mean[i] - d->target_mean[i / pixels]) / scale;
        worst_mean = fmax(worst_mean, fabs(got - mean));
        worst_std = fmax(worst_std, fabs((double)r->std[i] / scale - sqrt(squares / (n - 1))));
    }
    print_message("mean within %.1e, std within %.1e\n", worst_mean, worst_std);
    /* The result's own f32 at 5000 +- 1000 is good for 2.4e-7, and earlier passes round too. */
    assert_true(worst_mean < 1e-6 && worst_std < 1e-6);
}

static void five_samples_lie_on_five_grids(void **state)
{
    static const int32_t shift[5][2] = {{0, 0}, {3, 9}, {6, 3}, {9, 12}, {12, 6}};
    static const struct {
        const char *variant;
        int64_t h, w;
        enum us_noise_key noise;
    } cases[] = {{"vanilla", 37, 50, US_NOISE_PATCH},
                 {"deep", 21, 35, US_NOISE_IMAGE},
                 {"regular", 1, 1, US_NOISE_PATCH},
                 {"lean", 5, 19, US_NOISE_IMAGE}};
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_model *m = us_tiny_model(cases[i].variant, 4, 1);
        struct us_predict_config cfg = shifted_config(m, 5);
        cfg.noise = cases[i].noise;
        cfg.seed = 3;
        struct oracle o = oracle_new(m, &cfg, cases[i].h, cases[i].w);
        for (int32_t s = 0; s < 5; s++)
            oracle_sample(&o, s, shift[s][0], shift[s][1]);
        struct result r = predict(m, &cfg, cases[i].h, cases[i].w);
        assert_oracle(&o, &r);
        release(&r);
        oracle_release(&o);
        us_model_free(m);
    }
}

static void more_samples_than_grids_go_round_in_groups(void **state)
{
    struct us_model *m = us_tiny_model("regular", 4, 1);
    struct us_predict_config cfg = shifted_config(m, 37); /* 16 grids of 2 or 3 samples */
    struct oracle o = oracle_new(m, &cfg, 20, 18);
    for (int32_t s = 0, k = 0; s < 37; s++) {
        k += s == (k + 1) * 37 / 16;
        oracle_sample(&o, s, k, 9 * k % 16);
    }
    struct result r = predict(m, &cfg, 20, 18);
    assert_oracle(&o, &r);
    release(&r);
    oracle_release(&o);
    us_model_free(m);
}

/* Where a patch does not reach the frame's border, cropping rows and columns off the frame and
 * predicting on the fixed grid is the same as shifting the grid. */
static void shifting_the_grid_is_cropping_the_frame(void **state)
{
    enum { H = 112, W = 120, DY = 8, DX = 8 };
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = shifted_config(m, 2); /* lines at (0, 0) and (8, 8) */
    cfg.latent_mean = true;
    struct result both = predict(m, &cfg, H, W);
    cfg.grid = US_GRID_FIXED;
    struct result first = predict(m, &cfg, H, W);
    struct us_predictor *p = new_predictor(m, &cfg);
    float *in = us_tiny_frame(H, W), *crop = calloc((H - DY) * (W - DX), sizeof(float));
    for (int y = DY; y < H; y++)
        memcpy(crop + (y - DY) * (W - DX), in + y * W + DX, (W - DX) * sizeof(float));
    struct result second = run(p, crop, H - DY, W - DX);
    for (int c = 0; c < 2; c++) {
        for (int y = 40; y < H - 40; y++) {
            for (int x = 40; x < W - 40; x++) {
                double a = (double)first.mean[(c * H + y) * W + x];
                double b = (double)second.mean[(c * (H - DY) + y - DY) * (W - DX) + x - DX];
                int at = (c * H + y) * W + x;
                assert_true(fabs((double)both.mean[at] - (a + b) / 2) < 1e-6 * 1000);
                assert_true(fabs((double)both.std[at] - fabs(a - b) / sqrt(2)) < 1e-6 * 1000);
            }
        }
    }
    us_predictor_free(p);
    free(in);
    free(crop);
    release(&both);
    release(&first);
    release(&second);
    us_model_free(m);
}

/* ---- what must not matter ------------------------------------------------------------------ */

static void bytes_depend_on_neither_batch_nor_threads(void **state)
{
    static const struct {
        int32_t batch, threads;
    } ways[] = {{1, 1}, {7, 1}, {32, 2}, {1, 3}};
    struct us_model *m = us_tiny_model("regular", 4, 1);
    struct us_predict_config cfg = shifted_config(m, 19);
    struct result first = {0};
    for (size_t i = 0; i < US_COUNT(ways); i++) {
        cfg.batch = ways[i].batch;
        cfg.threads = ways[i].threads;
        struct result r = predict(m, &cfg, 43, 30);
        if (i == 0) {
            first = r;
            continue;
        }
        assert_same(&r, &first);
        release(&r);
    }
    release(&first);
    us_model_free(m);
}

static void one_sample_is_the_fixed_grid(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_predict_config cfg = shifted_config(m, 1);
    struct result shifted = predict(m, &cfg, 41, 33);
    cfg.grid = US_GRID_FIXED;
    struct result fixed = predict(m, &cfg, 41, 33);
    assert_same(&shifted, &fixed);
    release(&shifted);
    cfg.grid = US_GRID_SHIFTED; /* and two samples are not */
    cfg.samples = 2;
    shifted = predict(m, &cfg, 41, 33);
    assert_memory_not_equal(shifted.mean, fixed.mean, 2 * 41 * 33 * sizeof(float));
    release(&shifted);
    release(&fixed);
    us_model_free(m);
}

static void means_are_the_same_without_deviations(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = shifted_config(m, 4);
    struct us_predictor *p = new_predictor(m, &cfg);
    float *in = us_tiny_frame(30, 47), mean[2 * 30 * 47];
    struct result r = run(p, in, 30, 47);
    us_predictor_free(p);
    cfg.want_std = false;
    p = new_predictor(m, &cfg);
    struct us_predict_frame f = {.in = in, .h = 30, .w = 47, .mean = mean};
    assert_int_equal(us_predict_run(p, &f, NULL), US_OK);
    assert_memory_equal(mean, r.mean, sizeof(mean));
    us_predictor_free(p);
    release(&r);
    free(in);
    us_model_free(m);
}

/* ---- progress and cancelling --------------------------------------------------------------- */

struct watch {
    int64_t calls, total, cancel_at;
    atomic_bool cancel;
};

static void watch_progress(void *arg, int64_t done, int64_t total)
{
    struct watch *w = arg;
    w->calls++;
    assert_int_equal(done, w->calls);
    assert_true(w->total == 0 || w->total == total);
    w->total = total;
    if (done == w->cancel_at)
        atomic_store(&w->cancel, true);
}

static void progress_counts_the_patches_of_all_passes(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = shifted_config(m, 3);
    struct us_predictor *p = new_predictor(m, &cfg);
    float *in = us_tiny_frame(33, 20), mean[2 * 33 * 20], std[2 * 33 * 20];
    struct watch watch = {0};
    struct us_predict_frame f = {.in = in,
                                 .h = 33,
                                 .w = 20,
                                 .mean = mean,
                                 .std = std,
                                 .progress = watch_progress,
                                 .progress_arg = &watch};
    assert_int_equal(us_predict_run(p, &f, NULL), US_OK);
    /* Lines of three passes at rows 0, 5, 10 and columns 0, 10, 5 of 16: 3x2, 3x2, 3x2 tiles. */
    assert_int_equal(watch.total, 18);
    assert_int_equal(watch.calls, 18);
    assert_int_equal(us_predict_n_patches(p, 33, 20), 18);
    assert_int_equal(us_predict_n_patches(p, 38, 22), 3 * 2 + 4 * 2 + 3 * 3);
    assert_int_equal(us_predictor_stats(p).passes, 3);
    assert_int_equal(us_predictor_stats(p).grid, 16);
    free(in);
    us_predictor_free(p);
    us_model_free(m);
}

static void a_prediction_cancelled_in_its_second_pass_stops_and_the_next_is_whole(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_predict_config cfg = shifted_config(m, 3);
    cfg.threads = 1;
    struct us_predictor *p = new_predictor(m, &cfg);
    float *in = us_tiny_frame(33, 20), mean[2 * 33 * 20], std[2 * 33 * 20];
    struct result before = run(p, in, 33, 20);
    struct watch watch = {.cancel_at = 8};
    struct us_predict_frame f = {.in = in,
                                 .h = 33,
                                 .w = 20,
                                 .mean = mean,
                                 .std = std,
                                 .cancel = &watch.cancel,
                                 .progress = watch_progress,
                                 .progress_arg = &watch};
    assert_int_equal(us_predict_run(p, &f, NULL), US_E_CANCELLED);
    assert_int_equal(watch.calls, 8); /* not one patch more */
    struct result after = run(p, in, 33, 20);
    assert_same(&before, &after);
    release(&before);
    release(&after);
    free(in);
    us_predictor_free(p);
    us_model_free(m);
}

/* ---- what it is for ------------------------------------------------------------------------ */

/* Of a smooth frame without draws: neighbours differ little, so what the borders of the tiles do
 * stands out. */
static double excess_on(const struct us_model *m, struct us_predict_config *cfg, enum us_grid grid)
{
    enum { S = 96 };
    float in[S * S];
    for (int i = 0; i < S * S; i++)
        in[i] = 130.0F + 20.0F * sinf((float)(i / S) / 11.0F) * sinf((float)(i % S) / 13.0F);
    cfg->grid = grid;
    struct us_predictor *p = new_predictor(m, cfg);
    struct result r = run(p, in, S, S);
    struct us_seam seam;
    assert_int_equal(us_seam_score(r.mean, S, S, us_predictor_stats(p).grid, &seam, NULL), US_OK);
    release(&r);
    us_predictor_free(p);
    return seam.excess;
}

static void seams_fade_on_shifted_grids(void **state)
{
    static const char *const variants[] = {"vanilla", "lean"}; /* the others show none here */
    for (size_t i = 0; i < US_COUNT(variants); i++) {
        struct us_model *m = us_tiny_model(variants[i], 4, 1);
        struct us_predict_config cfg = shifted_config(m, 16);
        cfg.latent_mean = true;
        double fixed = excess_on(m, &cfg, US_GRID_FIXED);
        double shifted = excess_on(m, &cfg, US_GRID_SHIFTED);
        print_message("%s: excess %.3f on a fixed grid, %.3f on shifted ones\n", variants[i], fixed,
                      shifted);
        assert_true(fixed > 0.1 && fabs(shifted) < 0.2 * fixed);
        us_model_free(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passes_share_out_lines_and_samples),
        cmocka_unit_test(one_prediction_per_pass_is_enough_without_sampling),
        cmocka_unit_test(five_samples_lie_on_five_grids),
        cmocka_unit_test(more_samples_than_grids_go_round_in_groups),
        cmocka_unit_test(shifting_the_grid_is_cropping_the_frame),
        cmocka_unit_test(bytes_depend_on_neither_batch_nor_threads),
        cmocka_unit_test(one_sample_is_the_fixed_grid),
        cmocka_unit_test(means_are_the_same_without_deviations),
        cmocka_unit_test(progress_counts_the_patches_of_all_passes),
        cmocka_unit_test(a_prediction_cancelled_in_its_second_pass_stops_and_the_next_is_whole),
        cmocka_unit_test(seams_fade_on_shifted_grids),
    };
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}
