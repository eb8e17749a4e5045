/* `usplit predict`: one image file in, its split channels out (server/us_predict_file.h). */
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include <jansson.h>

#include "us_commands.h"
#include "us_interrupt.h"
#include "us_predict_file.h"
#include "us_progress.h"

struct predict_opts {
    const char *model;
    int64_t padding, samples, seed, threads, batch, channel;
    int32_t tiling, grid, latent, noise, dtype, backend, precision, pages;
    uint32_t planes;
    struct us_cli_ints mix;
    bool json, quiet;
};

#define OPT(member) .offset = offsetof(struct predict_opts, member)
static const struct us_cli_opt predict_table[] = {
    {"model", US_CLI_TEXT, OPT(model), .arg = "FILE", .required = true,
     .help = "model file (.safetensors)"},
    {"padding", US_CLI_INT, OPT(padding), 0, US_MAX_PATCH, .arg = "PIXELS",
     .help = "dropped (inner) or added (outer) on each side of a patch (default: the model's)"},
    {"tiling", US_CLI_WORD, OPT(tiling), .words = "inner|outer", .def = "inner",
     .help = "how patches meet: inner drops their borders, outer enlarges them"},
    {"grid", US_CLI_WORD, OPT(grid), .words = "fixed|shifted", .def = "fixed",
     .help = "all samples on one grid of tiles, or on shifted ones: fewer seams, more work"},
    {"latent", US_CLI_WORD, OPT(latent), .words = "sample|mean", .def = "sample",
     .help = "draw the latents, or take the mean of their posterior"},
    {"samples", US_CLI_INT, OPT(samples), 1, US_MAX_SAMPLES, .arg = "N",
     .help = "posterior samples to average (default: the model's)"},
    {"seed", US_CLI_INT, OPT(seed), 0, INT64_MAX, .arg = "S", .def = "0",
     .help = "of the random numbers: equal seeds give equal bytes"},
    {"noise", US_CLI_WORD, OPT(noise), .words = "patch|image", .def = "patch",
     .help = "draw noise for each patch, or for each position in the image"},
    {"planes", US_CLI_WORDS, OPT(planes), .words = "mean|std", .arg = "mean,std", .def = "mean",
     .help = "what to write: mean and standard deviation over the samples"},
    {"dtype", US_CLI_WORD, OPT(dtype), .words = "float32|uint16", .def = "float32",
     .help = "pixels of the output; uint16 is rounded and clamped"},
    {"backend", US_CLI_WORD, OPT(backend), .words = US_BACKEND_WORDS,
     .arg = "auto|ref|cpu|cuda[:N]", .def = "auto", .help = "what computes; N counts GPUs from 0"},
    {"precision", US_CLI_WORD, OPT(precision), .words = US_PRECISION_WORDS, .def = "auto",
     .help = "inside the network; auto is bf16 where the processor multiplies it"},
    {"threads", US_CLI_INT, OPT(threads), 0, US_MAX_THREADS, .arg = "N", .def = "0",
     .help = "0 = one for each available processor"},
    {"batch", US_CLI_INT, OPT(batch), 0, US_MAX_BATCH, .arg = "N", .def = "0",
     .help = "patches that a thread takes at a time, or a GPU per run; 0 = choose"},
    {"channel", US_CLI_INT, OPT(channel), 0, INT32_MAX, .arg = "N",
     .help = "the channel of the input to split, counted from 0"},
    {"mix", US_CLI_INTS, OPT(mix), 0, INT32_MAX, .arg = "A,B",
     .help = "superpose these channels of the input, as the model's training did"},
    {"pages", US_CLI_WORD, OPT(pages), .words = "t|z|c", .def = "t",
     .help = "what pages are where the file does not say: times, slices or channels"},
    {"json", US_CLI_FLAG, OPT(json), .help = "print a report as JSON"},
    {"quiet", US_CLI_FLAG, OPT(quiet), .help = "print nothing but errors"},
};
#undef OPT

/* Everything that must be closed again. */
struct session {
    struct us_model *model;
    struct us_backend *backend;
    struct us_predictor *predictor;
    struct us_predict_config cfg;
    struct us_predict_file_options file;
    struct us_predict_file_report report;
    struct us_progress progress;
};

void us_cli_backend_free(struct us_backend *be)
{
    if (be != NULL)
        us_backend_ops(be)->free(be);
}

/* What the model recommends, unless the command line says otherwise. */
static struct us_predict_config predict_config(const struct us_cli_args *a,
                                               const struct us_model *m)
{
    const struct predict_opts *o = a->opts;
    struct us_predict_config c = us_predict_defaults(m);
    if (us_cli_given(a, "padding"))
        c.padding = (int32_t)o->padding;
    if (us_cli_given(a, "samples"))
        c.samples = (int32_t)o->samples;
    c.tiling = o->tiling == 1 ? US_TILING_OUTER : US_TILING_INNER;
    c.grid = o->grid == 1 ? US_GRID_SHIFTED : US_GRID_FIXED;
    c.latent_mean = o->latent == 1;
    c.seed = (uint64_t)o->seed;
    c.noise = o->noise == 1 ? US_NOISE_IMAGE : US_NOISE_PATCH;
    c.precision = o->precision == 2 ? US_PREC_BF16 : o->precision == 1 ? US_PREC_F32 : US_PREC_AUTO;
    c.want_std = (o->planes & 2) != 0;
    c.threads = (int32_t)o->threads;
    c.batch = (int32_t)o->batch;
    return c;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n > k && strcasecmp(s + n - k, end) == 0;
}

static struct us_predict_file_options file_options(const struct us_cli_args *a)
{
    const struct predict_opts *o = a->opts;
    struct us_predict_file_options f = us_predict_file_defaults();
    f.plane_mean = (o->planes & 1) != 0;
    f.plane_std = (o->planes & 2) != 0;
    f.dtype = o->dtype == 1 ? US_PIXEL_U16 : US_PIXEL_F32;
    f.npy = ends_with(a->arg[1], ".npy");
    f.channel = us_cli_given(a, "channel") ? (int32_t)o->channel : -1;
    f.n_mix = o->mix.n;
    for (int32_t i = 0; i < o->mix.n; i++)
        f.mix[i] = (int32_t)o->mix.v[i];
    f.pages = "tzc"[o->pages];
    return f;
}

static void print_summary(const struct us_cli_args *a, const struct session *s)
{
    const struct us_predict_file_report *r = &s->report;
    us_cli_print(stderr,
                 "%s: %" PRId64 " frame%s of %" PRId64 " x %" PRId64 ", %" PRId64
                 " patches in %.2f s (%.1f/s), %" PRId64 " pixels clipped",
                 a->arg[1], r->n_frames, r->n_frames == 1 ? "" : "s", r->in.w, r->in.h,
                 r->n_patches, r->compute_s,
                 r->compute_s > 0 ? (double)r->n_patches / r->compute_s : 0.0, r->n_clipped);
    if (s->file.dtype == US_PIXEL_U16)
        us_cli_print(stderr, ", %" PRId64 " values outside uint16", r->n_saturated);
    for (int32_t c = 0; c < s->model->arch.target_channels && !isnan(r->seam_z); c++)
        us_cli_print(stderr, "%s%s %+.1f %% (z %.1f)", c == 0 ? ", seams: " : ", ",
                     s->model->data.channels[c], 100 * r->seam[c].excess, r->seam[c].z);
    us_cli_print(stderr, "\n");
}

static json_t *number_or_null(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

static json_t *seams_json(const struct session *s)
{
    const struct us_predict_file_report *r = &s->report;
    json_t *list = json_array();
    for (int32_t c = 0; c < s->model->arch.target_channels; c++)
        (void)json_array_append_new(
            list, json_pack("{s:s, s:o, s:o, s:o}", "name", s->model->data.channels[c], "excess",
                            number_or_null(r->seam[c].excess), "z", number_or_null(r->seam[c].z),
                            "ks", number_or_null(r->seam[c].ks)));
    return json_pack("{s:o, s:o}", "z", number_or_null(r->seam_z), "channels", list);
}

static json_t *report_json(const struct us_cli_args *a, const struct session *s)
{
    const struct us_predict_file_report *r = &s->report;
    struct us_predictor_stats st = us_predictor_stats(s->predictor);
    return json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:i, s:s, s:i, s:I, s:s, s:s, s:i, s:i,"
        " s:f, s:o, s:{s:f, s:f, s:f, s:f}}",
        "input", a->arg[0], "output", a->arg[1], "model", s->model->name, "model_sha256",
        s->model->sha256, "frames", (json_int_t)r->n_frames, "height", (json_int_t)r->in.h, "width",
        (json_int_t)r->in.w, "patches", (json_int_t)r->n_patches, "clipped_pixels",
        (json_int_t)r->n_clipped, "saturated_values", (json_int_t)r->n_saturated, "padding",
        (int)s->cfg.padding, "grid", s->cfg.grid == US_GRID_SHIFTED ? "shifted" : "fixed",
        "samples", (int)s->cfg.samples, "seed", (json_int_t)s->cfg.seed, "backend", st.backend,
        "precision", st.precision == US_PREC_BF16 ? "bf16" : "f32", "threads", (int)st.threads,
        "batch", (int)st.batch, "patches_per_second",
        r->compute_s > 0 ? (double)r->n_patches / r->compute_s : 0.0, "seams", seams_json(s),
        "seconds", "decode", r->decode_s, "compute", r->compute_s, "seams", r->seam_s, "encode",
        r->encode_s);
}

static enum us_status print_json(const struct us_cli_args *a, const struct session *s,
                                 struct us_err *err)
{
    json_t *report = report_json(a, s);
    if (report == NULL)
        return us_fail(err, US_E_ARG, "--json: a file name that is not UTF-8 text");
    (void)json_dumpf(report, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    (void)fputc('\n', stdout);
    json_decref(report);
    return US_OK;
}

static enum us_status predict(const struct us_cli_args *a, struct session *s, struct us_err *err)
{
    const struct predict_opts *o = a->opts;
    US_TRY(us_model_load(o->model, &s->model, err));
    US_TRY(us_backend_choose(o->backend, &s->backend, err));
    s->cfg = predict_config(a, s->model);
    s->file = file_options(a);
    enum us_status st = us_predictor_new(s->model, s->backend, &s->cfg, &s->predictor, err);
    if (st != US_OK) {
        us_err_prefix(err, "%s", o->model);
        return st;
    }
    s->file.cancel = us_interrupt_install();
    us_progress_start(&s->progress, "patches", o->quiet);
    s->file.progress = us_progress_update;
    s->file.progress_arg = &s->progress;
    st = us_predict_file(s->predictor, s->model, a->arg[0], a->arg[1], &s->cfg, &s->file,
                         &s->report, err);
    us_progress_end(&s->progress);
    return st;
}

static int run_predict(const struct us_cli_args *a)
{
    const struct predict_opts *o = a->opts;
    const char *out = a->arg[1];
    struct us_err err = {0};
    if (!ends_with(out, ".tif") && !ends_with(out, ".tiff") && !ends_with(out, ".npy")) {
        us_cli_print(stderr,
                     "usplit predict: %s: expected a name in .ome.tif, .tif, .tiff or .npy\n", out);
        return 2;
    }
    if (us_cli_given(a, "channel") && o->mix.n > 0) {
        us_cli_print(stderr, "usplit predict: --channel and --mix exclude each other\n");
        return 2;
    }
    struct session s = {0};
    enum us_status st = predict(a, &s, &err);
    if (st == US_OK && o->json)
        st = print_json(a, &s, &err);
    if (st == US_OK && !o->quiet)
        print_summary(a, &s);
    us_predictor_free(s.predictor);
    us_cli_backend_free(s.backend);
    us_model_free(s.model);
    return st == US_OK ? 0 : us_cli_fail(a, &err);
}

const struct us_cli_cmd us_cmd_predict = {
    .name = "predict",
    .summary = "Split an image of superposed structures into its channels.",
    .args = "IN.tif OUT.ome.tif",
    .min_args = 2,
    .max_args = 2,
    .opts = predict_table,
    .n_opts = US_COUNT(predict_table),
    .opts_bytes = sizeof(struct predict_opts),
    .notes = "IN is a TIFF, BigTIFF, OME-TIFF, ImageJ TIFF or NPY file. OUT becomes an\n"
             "OME-TIFF, or an NPY file if its name ends in .npy. All frames are split.\n"
             "Seams: how much more neighbours differ across tile borders than elsewhere;\n"
             "a z within 3 either way is chance. With --samples 16, --grid shifted makes\n"
             "them fade.",
    .run = run_predict,
};
