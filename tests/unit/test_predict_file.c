/*
 * us_predict_file: axes, channel choice, mixing, planes, pixel types, and that a failure leaves
 * nothing behind. The predictor is replaced at link time by arithmetic whose result is known, so
 * each test sees exactly which pixels went in and where they came out.
 */
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "us_predict_file.h"

#define H 3
#define W 4
#define N (H * W)

/* The predictor's stand-in: channel c of the result is in * (c + 1) + 1000 * frame_index, its
 * deviation c + 0.5. */
struct us_predictor {
    int32_t n_targets, threads;
    bool poison; /* leaves a NaN */
    enum us_status fail_with;
    int64_t fail_at_frame;
};

enum us_status us_predict_run(struct us_predictor *p, struct us_predict_frame *f,
                              struct us_err *err)
{
    if (p->fail_with != US_OK && f->frame_index == p->fail_at_frame)
        return us_fail(err, p->fail_with, "row 1, column 2 is nan");
    for (int32_t c = 0; c < p->n_targets; c++) {
        for (int64_t i = 0; i < f->h * f->w; i++) {
            int64_t at = c * f->h * f->w + i;
            f->mean[at] = f->in[i] * (float)(c + 1) + 1000.0F * (float)f->frame_index;
            if (f->std != NULL)
                f->std[at] = (float)c + 0.5F;
        }
    }
    if (p->poison)
        f->mean[W + 2] = NAN;
    f->n_clipped = 1;
    if (f->progress != NULL)
        f->progress(f->progress_arg, 2, 2);
    return US_OK;
}

int64_t us_predict_n_patches(const struct us_predictor *p, int64_t h, int64_t w)
{
    return 2;
}

struct us_predictor_stats us_predictor_stats(const struct us_predictor *p)
{
    return (struct us_predictor_stats){
        .backend = "fake", .precision = US_PREC_F32, .threads = p->threads, .batch = 1, .grid = 2};
}

double us_model_input_clip(const struct us_model *m)
{
    return m->data.has_clip ? m->data.clip[0] : (double)INFINITY;
}

/* One folder per test, two channels called "a" and "b". */
struct fixture {
    char dir[64], in[96], out[96];
    struct us_model model;
    struct us_predictor predictor;
    struct us_predict_config cfg;
    struct us_predict_file_options opt;
    struct us_predict_file_report report;
    struct us_err err;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    const char *tmp = getenv("TMPDIR");
    (void)snprintf(f->dir, sizeof(f->dir), "%s/usplit-test-XXXXXX", tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(f->dir));
    (void)snprintf(f->in, sizeof(f->in), "%s/in", f->dir);
    (void)snprintf(f->out, sizeof(f->out), "%s/out.ome.tif", f->dir);
    f->model.arch.target_channels = f->predictor.n_targets = 2;
    (void)snprintf(f->model.name, sizeof(f->model.name), "model");
    (void)snprintf(f->model.data.channels[0], US_MAX_NAME, "a");
    (void)snprintf(f->model.data.channels[1], US_MAX_NAME, "b");
    f->model.data.input_std = f->model.data.target_std[0] = f->model.data.target_std[1] = 1;
    f->cfg.samples = 1;
    f->opt = us_predict_file_defaults();
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    DIR *d = opendir(f->dir);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;)
        (void)unlinkat(dirfd(d), e->d_name, 0);
    if (d != NULL)
        (void)closedir(d);
    (void)rmdir(f->dir);
    free(f);
    return 0;
}

/* Pixel i of plane p of every input. */
static float pixel(int64_t p, int64_t i)
{
    return (float)(100 * p + i);
}

static void write_input(struct fixture *f, int64_t t, int64_t z, int64_t c)
{
    struct us_image_info info = {.pixel = US_PIXEL_U16, .t = t, .z = z, .c = c, .h = H, .w = W};
    struct us_image_write_options wo = {.software = "test"};
    struct us_image_writer *w = NULL;
    float plane[N];
    assert_int_equal(us_image_create(f->in, &info, &wo, &w, NULL), US_OK);
    for (int64_t p = 0; p < t * z * c; p++) {
        for (int64_t i = 0; i < N; i++)
            plane[i] = pixel(p, i);
        assert_int_equal(us_image_write_plane(w, plane, NULL), US_OK);
    }
    assert_int_equal(us_image_finish(w, NULL), US_OK);
}

/* An NPY file [n_pages, H, W] of doubles: nothing says what its pages are. */
static void write_pages(struct fixture *f, int n_pages)
{
    char head[128];
    (void)memset(head, ' ', sizeof(head));
    (void)memcpy(head, "\x93NUMPY\x01\x00\x76\x00", 10);
    int n =
        snprintf(head + 10, sizeof(head) - 10,
                 "{'descr': '<f8', 'fortran_order': False, 'shape': (%d, %d, %d)}", n_pages, H, W);
    head[10 + n] = ' ';
    head[127] = '\n';
    FILE *out = fopen(f->in, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(head, 1, sizeof(head), out), sizeof(head));
    for (int p = 0; p < n_pages; p++) {
        for (int i = 0; i < N; i++) {
            double v = (double)pixel(p, i);
            assert_int_equal(fwrite(&v, sizeof(v), 1, out), 1);
        }
    }
    assert_int_equal(fclose(out), 0);
}

static enum us_status run(struct fixture *f)
{
    return us_predict_file(&f->predictor, &f->model, f->in, f->out, &f->cfg, &f->opt, &f->report,
                           &f->err);
}

static int64_t files_in(const struct fixture *f)
{
    int64_t n = 0;
    DIR *d = opendir(f->dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    (void)closedir(d);
    return n;
}

/* Refused with this status, these words, and nothing but the input in the folder. */
static void assert_refused(struct fixture *f, enum us_status want, const char *words)
{
    enum us_status s = run(f);
    if (s != want || strstr(f->err.msg, words) == NULL)
        fail_msg("%s: '%s', expected %s: '%s'", us_status_name(s), f->err.msg, us_status_name(want),
                 words);
    assert_int_equal(files_in(f), 1);
}

static struct us_image_reader *open_output(struct fixture *f)
{
    struct us_image_reader *r = NULL;
    if (us_image_open(f->out, &r, &f->err) != US_OK)
        fail_msg("%s", f->err.msg);
    return r;
}

/* Every pixel of output plane (t, z, c) is scale * (in of plane p) + offset. */
static void assert_plane(struct us_image_reader *r, int64_t t, int64_t z, int64_t c, int64_t p,
                         float scale, float offset)
{
    float plane[N];
    assert_int_equal(us_image_read_plane(r, t, z, c, plane, NULL), US_OK);
    for (int64_t i = 0; i < N; i++)
        assert_true(plane[i] == scale * pixel(p, i) + offset);
}

static void single_image_gives_one_frame_of_named_channels(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 1);
    assert_int_equal(run(f), US_OK);
    struct us_image_reader *r = open_output(f);
    const struct us_image_info *v = us_image_info(r);
    assert_int_equal(v->t * v->z, 1);
    assert_int_equal(v->c, 2);
    assert_int_equal(v->pixel, US_PIXEL_F32);
    assert_string_equal(v->channel_name[0], "a");
    assert_string_equal(v->channel_name[1], "b");
    assert_plane(r, 0, 0, 0, 0, 1, 0);
    assert_plane(r, 0, 0, 1, 0, 2, 0);
    us_image_close(r);
    assert_int_equal(f->report.n_frames, 1);
    assert_int_equal(f->report.n_patches, 2);
    assert_int_equal(f->report.n_clipped, 1);
    assert_int_equal(files_in(f), 2);
}

static void stack_keeps_its_times_and_slices_in_order(void **state)
{
    struct fixture *f = *state;
    write_input(f, 2, 3, 1);
    assert_int_equal(run(f), US_OK);
    struct us_image_reader *r = open_output(f);
    assert_int_equal(us_image_info(r)->t, 2);
    assert_int_equal(us_image_info(r)->z, 3);
    for (int64_t t = 0; t < 2; t++)
        for (int64_t z = 0; z < 3; z++)
            assert_plane(r, t, z, 1, t * 3 + z, 2, 1000.0F * (float)(t * 3 + z));
    us_image_close(r);
    assert_int_equal(f->report.n_frames, 6);
}

static void pages_without_stated_axes_are_what_the_option_says(void **state)
{
    struct fixture *f = *state;
    write_pages(f, 3);
    assert_int_equal(run(f), US_OK);
    assert_int_equal(f->report.in.t, 3);
    f->opt.pages = 'z';
    assert_int_equal(run(f), US_OK);
    assert_int_equal(f->report.in.z, 3);
    struct us_image_reader *r = open_output(f);
    assert_int_equal(us_image_info(r)->z, 3);
    assert_plane(r, 0, 2, 0, 2, 1, 2000);
    us_image_close(r);
    f->opt.pages = 'c';
    f->opt.channel = 2;
    assert_int_equal(run(f), US_OK);
    r = open_output(f);
    assert_int_equal(us_image_info(r)->t, 1);
    assert_plane(r, 0, 0, 0, 2, 1, 0);
    us_image_close(r);
}

static void channel_chosen_in_every_frame(void **state)
{
    struct fixture *f = *state;
    write_input(f, 2, 1, 3);
    f->opt.channel = 1;
    assert_int_equal(run(f), US_OK);
    struct us_image_reader *r = open_output(f);
    assert_plane(r, 0, 0, 0, 1, 1, 0);
    assert_plane(r, 1, 0, 0, 4, 1, 1000);
    us_image_close(r);
}

static void channel_chosen_in_every_slice_of_every_time(void **state)
{
    struct fixture *f = *state;
    write_input(f, 2, 3, 2);
    f->opt.channel = 1;
    assert_int_equal(run(f), US_OK);
    struct us_image_reader *r = open_output(f);
    for (int64_t t = 0; t < 2; t++)
        for (int64_t z = 0; z < 3; z++)
            assert_plane(r, t, z, 0, (t * 3 + z) * 2 + 1, 1, 1000.0F * (float)(t * 3 + z));
    us_image_close(r);
}

static void mixture_is_the_average_or_the_sum_as_trained(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 3);
    f->opt.n_mix = 2;
    f->opt.mix[0] = 0;
    f->opt.mix[1] = 2;
    assert_int_equal(run(f), US_OK);
    struct us_image_reader *r = open_output(f);
    assert_plane(r, 0, 0, 0, 1, 1, 0); /* the average of planes 0 and 2 is plane 1 */
    us_image_close(r);
    f->model.data.mixing = US_MIX_SUM;
    assert_int_equal(run(f), US_OK);
    r = open_output(f);
    assert_plane(r, 0, 0, 0, 1, 2, 0);
    us_image_close(r);
}

static void mixed_channels_are_clipped_each_at_its_own_clip(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 2);
    f->opt.n_mix = 2;
    f->opt.mix[1] = 1;
    f->model.data.has_clip = true;
    f->model.data.clip[0] = 9;
    f->model.data.clip[1] = 100;
    assert_int_equal(run(f), US_OK);
    float plane[N];
    struct us_image_reader *r = open_output(f);
    assert_int_equal(us_image_read_plane(r, 0, 0, 0, plane, NULL), US_OK);
    assert_true(plane[0] == 50);
    assert_true(plane[N - 1] == 54.5F);
    us_image_close(r);
    /* Two pixels of the first above 9, eleven of the second above 100, one of the predictor. */
    assert_int_equal(f->report.n_clipped, 2 + 11 + 1);
}

static void channel_choice_that_is_missing_or_wrong_is_refused(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 3);
    assert_refused(f, US_E_ARG, "has 3 channels");
    f->opt.channel = 3;
    assert_refused(f, US_E_ARG, "channel 3, but the image has 3 channels");
    f->opt.n_mix = 2;
    assert_refused(f, US_E_ARG, "both channel and mix");
    f->opt.channel = -1;
    assert_refused(f, US_E_ARG, "channel 0 is listed twice");
    f->opt.mix[1] = 7;
    assert_refused(f, US_E_ARG, "mix 7");
    f->opt.n_mix = 0;
    f->opt.channel = 1;
    write_pages(f, 3);
    assert_refused(f, US_E_ARG, "3 pages are taken as frames");
}

static void deviation_planes_follow_the_means(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 1);
    f->opt.plane_std = true;
    assert_refused(f, US_E_ARG, "does not make it");
    f->cfg.want_std = true;
    assert_int_equal(run(f), US_OK);
    struct us_image_reader *r = open_output(f);
    assert_int_equal(us_image_info(r)->c, 4);
    assert_string_equal(us_image_info(r)->channel_name[3], "b std");
    assert_plane(r, 0, 0, 1, 0, 2, 0);
    assert_plane(r, 0, 0, 2, 0, 0, 0.5F);
    assert_plane(r, 0, 0, 3, 0, 0, 1.5F);
    us_image_close(r);
    f->opt.plane_mean = false;
    assert_int_equal(run(f), US_OK);
    r = open_output(f);
    assert_int_equal(us_image_info(r)->c, 2);
    assert_string_equal(us_image_info(r)->channel_name[0], "a std");
    us_image_close(r);
}

static void integer_output_is_clamped_and_counted(void **state)
{
    struct fixture *f = *state;
    write_input(f, 67, 1, 1); /* frame 66 has values above 65535 */
    f->opt.dtype = US_PIXEL_U16;
    assert_int_equal(run(f), US_OK);
    struct us_image_reader *r = open_output(f);
    float plane[N];
    assert_int_equal(us_image_info(r)->pixel, US_PIXEL_U16);
    assert_int_equal(us_image_read_plane(r, 66, 0, 0, plane, NULL), US_OK);
    assert_true(plane[N - 1] == 65535);
    assert_plane(r, 1, 0, 0, 1, 1, 1000);
    us_image_close(r);
    /* Frames 60 to 66 of channel a: 1100 p + i; of channel b: 1200 p + 2 i. */
    int64_t want = 0;
    for (int64_t p = 0; p < 67; p++)
        for (int64_t i = 0; i < N; i++)
            want += (1100 * p + i > 65535) + (1200 * p + 2 * i > 65535);
    assert_true(want > 0);
    assert_int_equal(f->report.n_saturated, want);
}

static void model_supplies_the_pixel_size_that_the_input_lacks(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 1);
    f->model.data.pixel_size_um = 0.25;
    assert_int_equal(run(f), US_OK);
    struct us_image_reader *r = open_output(f);
    assert_true(fabs(us_image_info(r)->size_x - 0.25) < 1e-9);
    assert_true(fabs(us_image_info(r)->size_y - 0.25) < 1e-9);
    us_image_close(r);
}

static void failed_prediction_names_file_and_frame_and_leaves_nothing(void **state)
{
    struct fixture *f = *state;
    write_input(f, 3, 1, 1);
    f->predictor.fail_with = US_E_FORMAT;
    f->predictor.fail_at_frame = 1;
    assert_refused(f, US_E_FORMAT, "/in: frame t=1 z=0: row 1, column 2 is nan");
}

static void raised_cancel_flag_keeps_the_old_output(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 1);
    assert_int_equal(run(f), US_OK);
    struct stat before, after;
    assert_int_equal(stat(f->out, &before), 0);
    atomic_bool cancel = true;
    f->opt.cancel = &cancel;
    assert_int_equal(run(f), US_E_CANCELLED);
    assert_int_equal(stat(f->out, &after), 0);
    assert_true(before.st_ino == after.st_ino);
    assert_int_equal(files_in(f), 2);
}

static void output_that_cannot_be_is_refused(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 1);
    (void)snprintf(f->out, sizeof(f->out), "%s", f->in);
    assert_refused(f, US_E_ARG, "is the input itself");
    (void)snprintf(f->out, sizeof(f->out), "%s/", f->dir);
    assert_refused(f, US_E_ARG, "expected the name of a file");
    (void)snprintf(f->out, sizeof(f->out), "%s", f->dir);
    assert_refused(f, US_E_ARG, "not a regular file");
    (void)snprintf(f->out, sizeof(f->out), "/dev/null");
    assert_refused(f, US_E_ARG, "not a regular file");
    (void)snprintf(f->out, sizeof(f->out), "%s/missing/out.tif", f->dir);
    assert_refused(f, US_E_NOT_FOUND, "missing/out.tif");
}

static void stack_over_the_pixel_limit_is_refused(void **state)
{
    struct fixture *f = *state;
    write_input(f, 3, 1, 1);
    f->opt.max_pixels = 3 * N - 1;
    assert_refused(f, US_E_TOO_LARGE, "at most 35 pixels");
    f->opt.max_pixels = 3 * N;
    assert_int_equal(run(f), US_OK);
}

static void read_all(const char *path, char *buf, size_t n, size_t *ret)
{
    FILE *in = fopen(path, "rb");
    assert_non_null(in);
    *ret = fread(buf, 1, n, in);
    (void)fclose(in);
    assert_true(*ret > 0 && *ret < n);
}

static void bytes_do_not_depend_on_the_number_of_threads(void **state)
{
    struct fixture *f = *state;
    static char a[16384], b[16384];
    size_t n_a = 0, n_b = 0;
    write_input(f, 1, 1, 1);
    f->predictor.threads = 1;
    assert_int_equal(run(f), US_OK);
    read_all(f->out, a, sizeof(a), &n_a);
    f->predictor.threads = 8;
    assert_int_equal(run(f), US_OK);
    read_all(f->out, b, sizeof(b), &n_b);
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a);
    /* What made the file stands in the file. */
    assert_non_null(memmem(a, n_a, "model@unsaved", 13));
}

static void seed_beyond_the_range_of_json_is_refused(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 1);
    f->cfg.seed = UINT64_MAX;
    assert_refused(f, US_E_ARG, "seed: 18446744073709551615");
}

/* Writes one f32 image. */
static void write_floats(struct fixture *f, const float *plane)
{
    struct us_image_info info = {.pixel = US_PIXEL_F32, .t = 1, .z = 1, .c = 1, .h = H, .w = W};
    struct us_image_write_options wo = {.software = "test"};
    struct us_image_writer *w = NULL;
    assert_int_equal(us_image_create(f->in, &info, &wo, &w, NULL), US_OK);
    assert_int_equal(us_image_write_plane(w, plane, NULL), US_OK);
    assert_int_equal(us_image_finish(w, NULL), US_OK);
}

static void values_that_round_into_range_are_not_counted(void **state)
{
    struct fixture *f = *state;
    const float in[N] = {-0.5F, -0.49F, 65535.49F, 65535.5F, 65534.5F};
    const float want[N] = {0, 0, 65535, 65535, 65535};
    float plane[N];
    write_floats(f, in);
    f->model.arch.target_channels = f->predictor.n_targets = 1;
    f->opt.dtype = US_PIXEL_U16;
    assert_int_equal(run(f), US_OK);
    struct us_image_reader *r = open_output(f);
    assert_int_equal(us_image_read_plane(r, 0, 0, 0, plane, NULL), US_OK);
    us_image_close(r);
    assert_memory_equal(plane, want, sizeof(want));
    assert_int_equal(f->report.n_saturated, 2); /* -0.5 rounds to -1, 65535.5 to 65536 */
}

/* A ramp with a step of 50 between columns 1 and 2: its one grid line at grid 2. */
static void seams_are_scored_along_the_grid_for_each_channel(void **state)
{
    struct fixture *f = *state;
    float plane[N];
    for (int64_t i = 0; i < N; i++)
        plane[i] = (float)(i % W + i / W) + (i % W >= 2 ? 50.0F : 0.0F);
    write_floats(f, plane);
    assert_int_equal(run(f), US_OK);
    /* Across: 51 at the line, 1 elsewhere. Down: 1 everywhere. (51 + 1) / (1 + 1) - 1. The second
     * channel is twice the first. */
    for (int c = 0; c < 2; c++) {
        assert_true(fabs(f->report.seam[c].excess - 25) < 1e-9);
        assert_true(fabs(f->report.seam[c].x.seam - 51 * (c + 1)) < 1e-9);
    }
    assert_true(isnan(f->report.seam_z)); /* z needs a grid of 3 */
}

static void seams_of_a_stack_are_pooled_over_its_frames(void **state)
{
    struct fixture *f = *state;
    write_input(f, 5, 2, 1);
    assert_int_equal(run(f), US_OK);
    /* Each frame is a ramp: 1 across, 4 down, seam or not. */
    assert_true(fabs(f->report.seam[0].excess) < 1e-9);
    assert_int_equal(f->report.seam[1].x.n_lines, 1);
    assert_true(fabs(f->report.seam[1].y.seam - 8) < 1e-9);
}

static void prediction_that_is_not_finite_is_refused_with_its_place(void **state)
{
    struct fixture *f = *state;
    write_input(f, 1, 1, 1);
    f->predictor.poison = true;
    assert_refused(f, US_E_ARG,
                   "the prediction of channel a: the plane holds nan at row 1, column 2");
}

struct counted {
    int64_t calls, done, total;
};

static void count_progress(void *arg, int64_t done, int64_t total)
{
    struct counted *c = arg;
    c->calls++;
    assert_true(done > c->done);
    c->done = done;
    c->total = total;
}

static void progress_counts_the_patches_of_the_whole_file(void **state)
{
    struct fixture *f = *state;
    struct counted c = {0};
    write_input(f, 3, 1, 1);
    f->opt.progress = count_progress;
    f->opt.progress_arg = &c;
    assert_int_equal(run(f), US_OK);
    assert_int_equal(c.calls, 3);
    assert_int_equal(c.done, 6);
    assert_int_equal(c.total, 6);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(single_image_gives_one_frame_of_named_channels),
        TEST(stack_keeps_its_times_and_slices_in_order),
        TEST(pages_without_stated_axes_are_what_the_option_says),
        TEST(channel_chosen_in_every_frame),
        TEST(channel_chosen_in_every_slice_of_every_time),
        TEST(mixture_is_the_average_or_the_sum_as_trained),
        TEST(mixed_channels_are_clipped_each_at_its_own_clip),
        TEST(channel_choice_that_is_missing_or_wrong_is_refused),
        TEST(deviation_planes_follow_the_means),
        TEST(integer_output_is_clamped_and_counted),
        TEST(model_supplies_the_pixel_size_that_the_input_lacks),
        TEST(failed_prediction_names_file_and_frame_and_leaves_nothing),
        TEST(raised_cancel_flag_keeps_the_old_output),
        TEST(output_that_cannot_be_is_refused),
        TEST(stack_over_the_pixel_limit_is_refused),
        TEST(bytes_do_not_depend_on_the_number_of_threads),
        TEST(seed_beyond_the_range_of_json_is_refused),
        TEST(values_that_round_into_range_are_not_counted),
        TEST(seams_are_scored_along_the_grid_for_each_channel),
        TEST(seams_of_a_stack_are_pooled_over_its_frames),
        TEST(prediction_that_is_not_finite_is_refused_with_its_place),
        TEST(progress_counts_the_patches_of_the_whole_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
