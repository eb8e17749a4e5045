/* `usplit evaluate`: how well a model splits frames whose channels are known (spec 17.5). */
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "us_commands.h"
#include "us_evaluate.h"
#include "us_interrupt.h"
#include "us_progress.h"
#include "us_train_config.h"

struct evaluate_opts {
    const char *model, *data, *config;
    struct us_cli_texts channels;
    int32_t split, backend, precision;
    int64_t padding, samples, seed;
    bool json, quiet;
};

enum { SPLIT_ALL = US_SPLIT_COUNT };
#define SPLIT_WORDS "train|val|test|all"

#define OPT(member) .offset = offsetof(struct evaluate_opts, member)
static const struct us_cli_opt evaluate_table[] = {
    {"model", US_CLI_TEXT, OPT(model), .arg = "FILE", .required = true, .help = "the model file"},
    {"data", US_CLI_TEXT, OPT(data), .arg = "DIR|STACK", .required = true,
     .help = "frames with their channels, as for training"},
    {"config", US_CLI_TEXT, OPT(config), .arg = "TRAIN.json",
     .help = "the settings of training: which channels, which frames are the test split"},
    {"channels", US_CLI_TEXTS, OPT(channels), .arg = "A,B",
     .help = "the model's channels in the data, by number from 0 or by name (default: by the "
             "model's names)"},
    {"split", US_CLI_WORD, OPT(split), .words = SPLIT_WORDS, .def = "test",
     .help = "which frames to predict"},
    {"padding", US_CLI_INT, OPT(padding), 0, US_MAX_PATCH, .arg = "PIXELS",
     .help = "inner padding (default: the model's)"},
    {"samples", US_CLI_INT, OPT(samples), 1, US_MAX_SAMPLES, .arg = "N",
     .help = "posterior samples to average (default: the model's)"},
    {"seed", US_CLI_INT, OPT(seed), 0, INT64_MAX, .arg = "S", .def = "0",
     .help = "of the posterior samples"},
    {"backend", US_CLI_WORD, OPT(backend), .words = US_BACKEND_WORDS,
     .arg = "auto|ref|cpu|cuda[:N]", .def = "auto", .help = "what computes; N counts GPUs from 0"},
    {"precision", US_CLI_WORD, OPT(precision), .words = US_PRECISION_WORDS, .def = "auto",
     .help = "of the arithmetic"},
    {"json", US_CLI_FLAG, OPT(json),
     .help = "print as JSON; null stands for a value that is not finite"},
    {"quiet", US_CLI_FLAG, OPT(quiet), .help = "no progress bar"},
};
#undef OPT

struct session {
    struct us_train_settings settings;
    struct us_frames *frames;
    struct us_dataset *dataset;
    struct us_model *model;
    struct us_backend *backend;
    struct us_predictor *predictor;
    struct us_predict_config cfg;
    const int64_t *list; /* frames to predict */
    int64_t n;
    int64_t *everything;   /* the list of --split all */
    struct us_metrics *of; /* [n][targets] */
    double *baseline;      /* [n][targets] */
};

/* ---- data ---------------------------------------------------------------------------------- */

static enum us_status parse_channels(const struct us_cli_texts *t, struct us_tc_channels *ret,
                                     struct us_err *err)
{
    ret->n = t->n;
    for (int32_t i = 0; i < t->n; i++) {
        struct us_channel_choice *k = &ret->v[i];
        *k = (struct us_channel_choice){0};
        size_t digits = strspn(t->v[i], "0123456789");
        if (t->v[i][digits] != '\0')
            memcpy(k->name, t->v[i], US_MAX_NAME);
        else if (digits > 9)
            return us_fail(err, US_E_ARG, "--channels: '%s' is no channel", t->v[i]);
        else
            k->index = strtoll(t->v[i], NULL, 10);
    }
    return US_OK;
}

/* The channels that are called as the model's; else, if there are as many, all of them. */
static enum us_status open_by_name(struct session *s, const char *path, struct us_err *err)
{
    struct us_frames_config which = us_train_frames(&s->settings);
    which.n_channels = s->model->arch.target_channels;
    for (int32_t c = 0; c < which.n_channels; c++) {
        which.channel[c] = (struct us_channel_choice){0};
        memcpy(which.channel[c].name, s->model->data.channels[c], US_MAX_NAME);
    }
    if (us_frames_open(path, &which, &s->frames, NULL) == US_OK)
        return US_OK;
    which.n_channels = 0;
    US_TRY(us_frames_open(path, &which, &s->frames, err));
    int32_t found = us_frames_source(s->frames)->n_channels;
    if (found != s->model->arch.target_channels)
        return us_fail(err, US_E_ARG,
                       "%s: %d channels, none called as the model's %d; choose with --channels",
                       path, (int)found, (int)s->model->arch.target_channels);
    return US_OK;
}

static enum us_status open_frames(const struct evaluate_opts *o, struct session *s,
                                  struct us_err *err)
{
    if (o->channels.n > 0)
        US_TRY(parse_channels(&o->channels, &s->settings.data_channels, err));
    if (s->settings.data_channels.n == 0)
        return open_by_name(s, o->data, err);
    struct us_frames_config which = us_train_frames(&s->settings);
    US_TRY(us_frames_open(o->data, &which, &s->frames, err));
    int32_t found = us_frames_source(s->frames)->n_channels;
    if (found != s->model->arch.target_channels)
        return us_fail(err, US_E_ARG, "%d channels are chosen; the model splits into %d",
                       (int)found, (int)s->model->arch.target_channels);
    return US_OK;
}

/* The split as training made it. Patches play no part, so frames may be of any size. */
static enum us_status open_dataset(struct session *s, struct us_err *err)
{
    struct us_train_setup setup;
    s->settings.training_channel_weights.n = s->settings.data_mixing.n = 0;
    s->settings.architecture_target_channels = 0;
    US_TRY(us_train_setup_make(&s->settings, s->frames, &setup, err));
    setup.dataset.patch = 1;
    setup.dataset.lc_scales = 1;
    return us_dataset_open(us_frames_source(s->frames), &setup.dataset, &s->dataset, err);
}

static enum us_status choose_frames(const struct evaluate_opts *o, struct session *s,
                                    struct us_err *err)
{
    char word[16];
    if (o->split == SPLIT_ALL) {
        s->n = us_frames_source(s->frames)->n_frames;
        s->everything = calloc((size_t)s->n, sizeof(*s->everything));
        if (s->everything == NULL)
            return us_fail(err, US_E_NOMEM, "out of memory");
        for (int64_t i = 0; i < s->n; i++)
            s->everything[i] = i;
        s->list = s->everything;
        return US_OK;
    }
    US_TRY(open_dataset(s, err));
    s->list = us_dataset_frames(s->dataset, (enum us_split)o->split, &s->n);
    if (s->n == 0)
        return us_fail(err, US_E_ARG, "%s: no frame in the %s split; try --split all", o->data,
                       us_cli_word(SPLIT_WORDS, o->split, word, sizeof(word)));
    return US_OK;
}

/* ---- running ------------------------------------------------------------------------------- */

static enum us_status predict_all(const struct evaluate_opts *o, struct session *s,
                                  struct us_err *err)
{
    const atomic_bool *cancel = us_interrupt_install();
    int32_t targets = s->model->arch.target_channels;
    struct us_progress bar;
    enum us_status st = US_OK;
    s->of = calloc((size_t)(s->n * targets), sizeof(*s->of));
    s->baseline = calloc((size_t)(s->n * targets), sizeof(*s->baseline));
    if (s->of == NULL || s->baseline == NULL)
        return us_fail(err, US_E_NOMEM, "out of memory");
    us_progress_start(&bar, "frames", o->quiet);
    for (int64_t i = 0; i < s->n && st == US_OK; i++) {
        struct us_eval_frame e;
        st = us_eval_frame_run(s->predictor, s->model, us_frames_source(s->frames), s->list[i],
                               cancel, &e, err);
        if (st == US_OK)
            st = us_eval_frame_measure(s->model, &e, s->of + i * targets, s->baseline + i * targets,
                                       err);
        us_eval_frame_release(&e);
        us_progress_update(&bar, i + 1, s->n);
    }
    us_progress_end(&bar);
    return st;
}

static enum us_status evaluate(const struct us_cli_args *a, struct session *s, struct us_err *err)
{
    const struct evaluate_opts *o = a->opts;
    s->settings = us_train_settings_defaults();
    if (o->config != NULL)
        US_TRY(us_train_settings_read(o->config, &s->settings, err));
    US_TRY(us_model_load(o->model, &s->model, err));
    US_TRY(open_frames(o, s, err));
    US_TRY(choose_frames(o, s, err));
    US_TRY(us_backend_choose(o->backend, &s->backend, err));
    s->cfg = us_predict_defaults(s->model);
    if (us_cli_given(a, "padding"))
        s->cfg.padding = (int32_t)o->padding;
    if (us_cli_given(a, "samples"))
        s->cfg.samples = (int32_t)o->samples;
    s->cfg.seed = (uint64_t)o->seed;
    s->cfg.precision = o->precision == 2   ? US_PREC_BF16
                       : o->precision == 1 ? US_PREC_F32
                                           : US_PREC_AUTO;
    enum us_status st = us_predictor_new(s->model, s->backend, &s->cfg, &s->predictor, err);
    if (st != US_OK) {
        us_err_prefix(err, "%s", o->model);
        return st;
    }
    return predict_all(o, s, err);
}

/* ---- printing ------------------------------------------------------------------------------ */

struct row {
    double psnr_ri, psnr, ssim, rmse, input_psnr_ri;
};

/* Mean over frames of channel c; c < 0: over channels too. */
static struct row mean_row(const struct session *s, int32_t c)
{
    int32_t targets = s->model->arch.target_channels;
    struct row r = {0};
    int64_t k = 0;
    for (int64_t i = 0; i < s->n * targets; i++) {
        if (c >= 0 && i % targets != c)
            continue;
        const struct us_metrics *m = &s->of[i];
        r.psnr_ri += m->psnr_ri;
        r.psnr += m->psnr;
        r.ssim += m->ssim;
        r.rmse += m->rmse;
        r.input_psnr_ri += s->baseline[i];
        k++;
    }
    double n = (double)k;
    return (struct row){r.psnr_ri / n, r.psnr / n, r.ssim / n, r.rmse / n, r.input_psnr_ri / n};
}

static void print_row(const char *frame, const char *channel, const struct row *r)
{
    us_cli_print(stdout, "%-24s %-20s %8.2f %8.2f %8.4f %10.4g %8.2f\n", frame, channel, r->psnr_ri,
                 r->psnr, r->ssim, r->rmse, r->input_psnr_ri);
}

static struct row frame_row(const struct session *s, int64_t k)
{
    const struct us_metrics *m = &s->of[k];
    return (struct row){m->psnr_ri, m->psnr, m->ssim, m->rmse, s->baseline[k]};
}

static void print_table(const struct session *s)
{
    const struct us_frame_source *src = us_frames_source(s->frames);
    int32_t targets = s->model->arch.target_channels;
    us_cli_print(stdout, "%-24s %-20s %8s %8s %8s %10s %8s\n", "frame", "channel", "RI-PSNR",
                 "PSNR", "SSIM", "RMSE", "of input");
    for (int64_t k = 0; k < s->n * targets; k++) {
        struct row r = frame_row(s, k);
        print_row(src->name(src->arg, s->list[k / targets]), s->model->data.channels[k % targets],
                  &r);
    }
    for (int32_t c = 0; c < targets; c++) {
        struct row r = mean_row(s, c);
        print_row("mean", s->model->data.channels[c], &r);
    }
    struct row r = mean_row(s, -1);
    print_row("mean", "all", &r);
}

static json_t *number_or_null(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

/* name NULL: a row without one. */
static json_t *row_json(const char *name, const struct row *r)
{
    return json_pack("{s:s*, s:o, s:o, s:o, s:o, s:o}", "channel", name, "psnr_ri",
                     number_or_null(r->psnr_ri), "psnr", number_or_null(r->psnr), "ssim",
                     number_or_null(r->ssim), "rmse", number_or_null(r->rmse), "input_psnr_ri",
                     number_or_null(r->input_psnr_ri));
}

static enum us_status print_json(const struct evaluate_opts *o, const struct session *s,
                                 struct us_err *err)
{
    const struct us_frame_source *src = us_frames_source(s->frames);
    int32_t targets = s->model->arch.target_channels;
    char word[16];
    json_t *frames = json_array(), *means = json_array();
    for (int64_t i = 0; i < s->n; i++) {
        json_t *channels = json_array();
        for (int32_t c = 0; c < targets; c++) {
            struct row r = frame_row(s, i * targets + c);
            (void)json_array_append_new(channels, row_json(s->model->data.channels[c], &r));
        }
        (void)json_array_append_new(frames, json_pack("{s:s, s:o}", "frame",
                                                      src->name(src->arg, s->list[i]), "channels",
                                                      channels));
    }
    for (int32_t c = 0; c < targets; c++) {
        struct row r = mean_row(s, c);
        (void)json_array_append_new(means, row_json(s->model->data.channels[c], &r));
    }
    struct row all = mean_row(s, -1);
    json_t *root = json_pack("{s:s, s:s, s:s, s:i, s:i, s:o, s:{s:o, s:o}}", "model",
                             s->model->name, "model_sha256", s->model->sha256, "split",
                             us_cli_word(SPLIT_WORDS, o->split, word, sizeof(word)), "padding",
                             (int)s->cfg.padding, "samples", (int)s->cfg.samples, "frames", frames,
                             "mean", "channels", means, "all", row_json(NULL, &all));
    if (root == NULL)
        return us_fail(err, US_E_ARG, "--json: a frame's name that is not UTF-8 text");
    (void)json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    (void)fputc('\n', stdout);
    json_decref(root);
    return US_OK;
}

static int run_evaluate(const struct us_cli_args *a)
{
    const struct evaluate_opts *o = a->opts;
    struct us_err err = {0};
    struct session s = {0};
    enum us_status st = evaluate(a, &s, &err);
    if (st == US_OK && o->json)
        st = print_json(o, &s, &err);
    else if (st == US_OK)
        print_table(&s);
    us_predictor_free(s.predictor);
    us_cli_backend_free(s.backend);
    us_model_free(s.model);
    us_dataset_free(s.dataset);
    us_frames_free(s.frames);
    free(s.everything);
    free(s.of);
    free(s.baseline);
    return st == US_OK ? 0 : us_cli_fail(a, &err);
}

const struct us_cli_cmd us_cmd_evaluate = {
    .name = "evaluate",
    .summary = "Measure a model on frames whose channels are known.",
    .args = "",
    .opts = evaluate_table,
    .n_opts = US_COUNT(evaluate_table),
    .opts_bytes = sizeof(struct evaluate_opts),
    .notes = "The channels are clipped and mixed as in training. RI-PSNR is range-invariant;\n"
             "\"of input\" is that of the input itself, the best affine fit of the mixture:\n"
             "what a model has to beat.",
    .run = run_evaluate,
};
