/* `usplit metrics`: how close an image comes to the truth, per frame and channel (spec 17.5). */
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#include <jansson.h>

#include "us_commands.h"
#include "us_interrupt.h"
#include "us_metrics.h"

struct metrics_opts {
    bool json;
};

static const struct us_cli_opt metrics_table[] = {
    {"json", US_CLI_FLAG, offsetof(struct metrics_opts, json),
     .help = "print as JSON; null stands for a value that is not finite"},
};

/* The metrics of struct us_metrics in the order in which they are printed. */
static const struct {
    const char *name;
    size_t offset;
} columns[] = {
    {"psnr_ri", offsetof(struct us_metrics, psnr_ri)},
    {"psnr", offsetof(struct us_metrics, psnr)},
    {"ssim", offsetof(struct us_metrics, ssim)},
    {"rmse", offsetof(struct us_metrics, rmse)},
};

static double *column(struct us_metrics *m, size_t i)
{
    return (double *)(void *)((char *)m + columns[i].offset);
}

/* Truth and prediction, side by side. mean: of all frames, per channel; all: of the channels. */
struct comparison {
    const char *path[2];
    struct us_image_reader *reader[2];
    struct us_image_info axes;
    float *plane[2];
    int64_t n;             /* planes */
    struct us_metrics *of; /* [n], c fastest */
    struct us_metrics *mean;
    struct us_metrics all;
};

/* The axes of the pair. A file that does not state its axes takes them from the one that does. */
static enum us_status match_axes(struct comparison *k, struct us_err *err)
{
    const struct us_image_info *a = us_image_info(k->reader[0]), *b = us_image_info(k->reader[1]);
    k->axes = a->axes_stated || !b->axes_stated ? *a : *b;
    k->n = k->axes.t * k->axes.z * k->axes.c;
    bool same = a->t == b->t && a->z == b->z && a->c == b->c;
    bool guess = !(a->axes_stated && b->axes_stated) && a->t * a->z * a->c == b->t * b->z * b->c;
    if (a->h == b->h && a->w == b->w && (same || guess))
        return US_OK;
    return us_fail(err, US_E_ARG,
                   "%s: T %" PRId64 " Z %" PRId64 " C %" PRId64 ", %" PRId64 " x %" PRId64
                   " pixels, expected T %" PRId64 " Z %" PRId64 " C %" PRId64 ", %" PRId64
                   " x %" PRId64 " as in %s",
                   k->path[1], b->t, b->z, b->c, b->w, b->h, a->t, a->z, a->c, a->w, a->h,
                   k->path[0]);
}

static enum us_status read_pair(struct comparison *k, int64_t i, struct us_err *err)
{
    for (int f = 0; f < 2; f++) {
        const struct us_image_info *v = us_image_info(k->reader[f]);
        US_TRY(us_image_read_plane(k->reader[f], i / (v->z * v->c), i / v->c % v->z, i % v->c,
                                   k->plane[f], err));
    }
    return US_OK;
}

static void average(struct comparison *k)
{
    int64_t n_frames = k->axes.t * k->axes.z;
    for (size_t col = 0; col < US_COUNT(columns); col++) {
        for (int64_t i = 0; i < k->n; i++)
            *column(&k->mean[i % k->axes.c], col) += *column(&k->of[i], col) / (double)n_frames;
        for (int64_t c = 0; c < k->axes.c; c++)
            *column(&k->all, col) += *column(&k->mean[c], col) / (double)k->axes.c;
    }
}

static enum us_status compare(struct comparison *k, struct us_err *err)
{
    const atomic_bool *cancel = us_interrupt_install();
    for (int f = 0; f < 2; f++)
        US_TRY(us_image_open(k->path[f], &k->reader[f], err));
    US_TRY(match_axes(k, err));
    for (int f = 0; f < 2; f++)
        k->plane[f] = calloc((size_t)(k->axes.h * k->axes.w), sizeof(float));
    k->of = calloc((size_t)k->n, sizeof(*k->of));
    k->mean = calloc((size_t)k->axes.c, sizeof(*k->mean));
    if (k->plane[0] == NULL || k->plane[1] == NULL || k->of == NULL || k->mean == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for two planes of %" PRId64 " x %" PRId64,
                       k->axes.w, k->axes.h);
    for (int64_t i = 0; i < k->n; i++) {
        if (atomic_load(cancel))
            return us_fail(err, US_E_CANCELLED, "cancelled");
        US_TRY(read_pair(k, i, err));
        enum us_status s =
            us_metrics_compute(k->plane[0], k->plane[1], k->axes.h, k->axes.w, &k->of[i], err);
        if (s != US_OK) {
            us_err_prefix(err, "%s, %s: plane %" PRId64, k->path[0], k->path[1], i);
            return s;
        }
    }
    average(k);
    return US_OK;
}

/* A channel's name: as stated, else its number. */
static const char *channel_name(const struct comparison *k, int64_t c, char *buf, size_t n)
{
    const char *name = "";
    if (c < (int64_t)US_COUNT(k->axes.channel_name))
        name = k->axes.channel_name[c];
    if (name[0] != '\0')
        (void)snprintf(buf, n, "%s", name);
    else
        (void)snprintf(buf, n, "%" PRId64, c);
    return buf;
}

static void print_row(const char *t, const char *z, const char *name, struct us_metrics *m)
{
    us_cli_print(stdout, "%6s %6s %-20s %10.4f %10.4f %10.6f %12.6g\n", t, z, name, m->psnr_ri,
                 m->psnr, m->ssim, m->rmse);
}

static void print_table(struct comparison *k)
{
    char name[US_MAX_NAME], t[24], z[24];
    us_cli_print(stdout, "%6s %6s %-20s %10s %10s %10s %12s\n", "t", "z", "channel", "RI-PSNR",
                 "PSNR", "SSIM", "RMSE");
    for (int64_t i = 0; i < k->n; i++) {
        (void)snprintf(t, sizeof(t), "%" PRId64, i / (k->axes.z * k->axes.c));
        (void)snprintf(z, sizeof(z), "%" PRId64, i / k->axes.c % k->axes.z);
        print_row(t, z, channel_name(k, i % k->axes.c, name, sizeof(name)), &k->of[i]);
    }
    for (int64_t c = 0; c < k->axes.c; c++)
        print_row("mean", "", channel_name(k, c, name, sizeof(name)), &k->mean[c]);
    if (k->axes.c > 1)
        print_row("mean", "", "all", &k->all);
}

static json_t *metrics_json(struct us_metrics *m)
{
    json_t *o = json_object();
    for (size_t i = 0; i < US_COUNT(columns); i++) {
        double v = *column(m, i);
        (void)json_object_set_new(o, columns[i].name, isfinite(v) ? json_real(v) : json_null());
    }
    return o;
}

/* Metrics of the channels from `m` on. A name that is not UTF-8 becomes the channel's number. */
static json_t *channels_json(const struct comparison *k, struct us_metrics *m)
{
    json_t *list = json_array();
    for (int64_t c = 0; c < k->axes.c; c++) {
        char name[US_MAX_NAME];
        json_t *o = metrics_json(&m[c]);
        json_t *text = json_string(channel_name(k, c, name, sizeof(name)));
        (void)json_object_set_new(o, "channel", text != NULL ? text : json_integer(c));
        (void)json_array_append_new(list, o);
    }
    return list;
}

static void print_json(struct comparison *k)
{
    json_t *frames = json_array();
    for (int64_t i = 0; i < k->n; i += k->axes.c)
        (void)json_array_append_new(frames, json_pack("{s:I, s:I, s:o}", "t",
                                                      (json_int_t)(i / (k->axes.z * k->axes.c)),
                                                      "z", (json_int_t)(i / k->axes.c % k->axes.z),
                                                      "channels", channels_json(k, &k->of[i])));
    json_t *root = json_pack("{s:o, s:{s:o, s:o}}", "frames", frames, "mean", "channels",
                             channels_json(k, k->mean), "all", metrics_json(&k->all));
    (void)json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    (void)fputc('\n', stdout);
    json_decref(root);
}

static int run_metrics(const struct us_cli_args *a)
{
    const struct metrics_opts *o = a->opts;
    struct us_err err = {0};
    struct comparison k = {.path = {a->arg[0], a->arg[1]}};
    enum us_status s = compare(&k, &err);
    if (s == US_OK && o->json)
        print_json(&k);
    else if (s == US_OK)
        print_table(&k);
    for (int f = 0; f < 2; f++) {
        us_image_close(k.reader[f]);
        free(k.plane[f]);
    }
    free(k.of);
    free(k.mean);
    return s == US_OK ? 0 : us_cli_fail(a, &err);
}

const struct us_cli_cmd us_cmd_metrics = {
    .name = "metrics",
    .summary = "Compare an image with the truth: range-invariant PSNR, PSNR, SSIM, RMSE.",
    .args = "TRUTH.tif IMAGE.tif",
    .min_args = 2,
    .max_args = 2,
    .opts = metrics_table,
    .n_opts = US_COUNT(metrics_table),
    .opts_bytes = sizeof(struct metrics_opts),
    .notes = "Both images must have the same frames, channels and size. Ranges are the\n"
             "truth's.",
    .run = run_metrics,
};
