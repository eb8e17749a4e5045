/* `usplit train`: a model from a lab's own images (core/us_trainer.h). */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "us_commands.h"
#include "us_interrupt.h"
#include "us_train_config.h"
#include "us_train_pictures.h"
#include "us_train_show.h"

#define LAST_CHECKPOINT     "last.usplit-ckpt"
#define PREVIOUS_CHECKPOINT "previous.usplit-ckpt"

struct train_opts {
    const char *config, *data, *out, *resume, *checkpoint_dir;
    int64_t seed, max_steps;
    int32_t backend;
    bool print_config, print_table, resume_elsewhere, overwrite, json, quiet;
};

#define OPT(member) .offset = offsetof(struct train_opts, member)
static const struct us_cli_opt train_table[] = {
    {"config", US_CLI_TEXT, OPT(config), .arg = "TRAIN.json",
     .help = "settings (docs/training.md); without it everything is as in the paper"},
    {"data", US_CLI_TEXT, OPT(data), .arg = "DIR|STACK",
     .help = "folder of images, one frame each, or a stack that states its axes"},
    {"out", US_CLI_TEXT, OPT(out), .arg = "MODEL.safetensors",
     .help = "the trained model (default: its name)"},
    {"resume", US_CLI_TEXT, OPT(resume), .arg = "CHECKPOINT",
     .help = "continue an interrupted run; the result is the same as without interruption"},
    {"resume-elsewhere", US_CLI_FLAG, OPT(resume_elsewhere),
     .help = "resume on another backend or precision too; the result is then another"},
    {"checkpoint-dir", US_CLI_TEXT, OPT(checkpoint_dir), .arg = "DIR",
     .help = "for checkpoints (default: MODEL.ckpt)"},
    {"overwrite", US_CLI_FLAG, OPT(overwrite),
     .help = "begin anew although there is a checkpoint or a model of that name"},
    {"seed", US_CLI_INT, OPT(seed), 0, INT64_MAX, .arg = "S", .help = "instead of training.seed"},
    {"max-steps", US_CLI_INT, OPT(max_steps), 0, INT32_MAX, .arg = "N",
     .help = "instead of training.max_steps"},
    {"backend", US_CLI_WORD, OPT(backend), .words = US_BACKEND_WORDS,
     .arg = "auto|ref|cpu|cuda[:N]", .def = "auto", .help = "what computes; N counts GPUs from 0"},
    {"print-config", US_CLI_FLAG, OPT(print_config),
     .help = "print the settings with every default as JSON, and train nothing"},
    {"print-table", US_CLI_FLAG, OPT(print_table),
     .help = "print what every setting means and allows, and train nothing"},
    {"json", US_CLI_FLAG, OPT(json), .help = "print the result as JSON"},
    {"quiet", US_CLI_FLAG, OPT(quiet), .help = "print nothing but errors"},
};
#undef OPT

/* All of one run; zero-initialised. Paths are on the heap. */
struct session {
    struct us_train_settings settings;
    struct us_train_setup setup;
    struct us_frames *frames;
    struct us_dataset *dataset;
    struct us_backend *backend;
    struct us_model *model;
    char *out, *history, *checkpoints, *last, *previous;
    struct us_train_show show;
};

/* ---- paths --------------------------------------------------------------------------------- */

/* out without ".safetensors", then the suffix. */
static char *beside(const char *out, const char *suffix)
{
    static const char end[] = ".safetensors";
    size_t n = strlen(out), k = sizeof(end) - 1;
    char *p = NULL;
    if (n > k && strcmp(out + n - k, end) == 0)
        n -= k;
    return asprintf(&p, "%.*s%s", (int)n, out, suffix) < 0 ? NULL : p;
}

static enum us_status make_paths(const struct train_opts *o, struct session *s, struct us_err *err)
{
    if (o->out != NULL)
        s->out = strdup(o->out);
    else if (asprintf(&s->out, "%s.safetensors", s->setup.name) < 0)
        s->out = NULL;
    if (s->out == NULL)
        return us_fail(err, US_E_NOMEM, "out of memory");
    if (o->out == NULL && (strchr(s->out, '/') != NULL || s->setup.name[0] == '\0'))
        return us_fail(err, US_E_ARG, "the model's name '%s' makes no file name; give --out",
                       s->setup.name);
    s->history = beside(s->out, ".history.jsonl");
    s->checkpoints =
        o->checkpoint_dir != NULL ? strdup(o->checkpoint_dir) : beside(s->out, ".ckpt");
    if (s->history == NULL || s->checkpoints == NULL ||
        asprintf(&s->last, "%s/" LAST_CHECKPOINT, s->checkpoints) < 0 ||
        asprintf(&s->previous, "%s/" PREVIOUS_CHECKPOINT, s->checkpoints) < 0)
        return us_fail(err, US_E_NOMEM, "out of memory");
    return US_OK;
}

/* Days of work are not to be lost by running the same line again. */
static enum us_status protect(const struct train_opts *o, const struct session *s,
                              struct us_err *err)
{
    if (mkdir(s->checkpoints, 0777) != 0 && errno != EEXIST)
        return us_fail(err, US_E_IO, "the folder of checkpoints %s cannot be made: %s",
                       s->checkpoints, strerror(errno));
    if (access(s->checkpoints, W_OK | X_OK) != 0)
        return us_fail(err, US_E_IO, "the folder of checkpoints %s cannot be written to: %s",
                       s->checkpoints, strerror(errno));
    if (o->resume != NULL || o->overwrite)
        return US_OK;
    /* A kill between the two renames of a checkpoint leaves the previous one alone. */
    if (access(s->last, F_OK) == 0 || access(s->previous, F_OK) == 0)
        return us_fail(err, US_E_ARG,
                       "%s holds a run already; continue it with --resume %s, or --overwrite it",
                       s->checkpoints, s->last);
    if (access(s->out, F_OK) == 0)
        return us_fail(err, US_E_ARG,
                       "%s: is there already; --overwrite it, or choose another --out", s->out);
    return US_OK;
}

/* ---- telling ------------------------------------------------------------------------------- */

/* A word as a shell reads it. */
static void print_quoted(const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "_-./=:,+@%";
    if (word[0] != '\0' && word[strspn(word, plain)] == '\0') {
        us_cli_print(stderr, " %s", word);
        return;
    }
    us_cli_print(stderr, " '");
    for (; *word != '\0'; word++) {
        if (*word == '\'')
            us_cli_print(stderr, "'\\''");
        else
            us_cli_print(stderr, "%c", *word);
    }
    us_cli_print(stderr, "'");
}

/* The line that goes on where an interrupted run stopped. */
static void print_resume(const struct us_cli_args *a, const struct session *s)
{
    const struct train_opts *o = a->opts;
    char word[32];
    const struct {
        const char *name, *value;
    } texts[] = {{"--config", o->config},
                 {"--data", o->data},
                 {"--out", s->out},
                 {"--checkpoint-dir", o->checkpoint_dir},
                 {"--resume", s->last}};
    us_cli_print(stderr, "continue with:\n");
    us_cli_print(stderr, "usplit train");
    for (size_t i = 0; i < US_COUNT(texts); i++) {
        if (texts[i].value == NULL)
            continue;
        us_cli_print(stderr, " %s", texts[i].name);
        print_quoted(texts[i].value);
    }
    if (us_cli_given(a, "seed"))
        us_cli_print(stderr, " --seed %" PRId64, o->seed);
    if (us_cli_given(a, "max-steps"))
        us_cli_print(stderr, " --max-steps %" PRId64, o->max_steps);
    if (us_cli_given(a, "backend"))
        us_cli_print(stderr, " --backend %s",
                     us_cli_word(US_BACKEND_WORDS, o->backend, word, sizeof(word)));
    if (o->resume_elsewhere)
        us_cli_print(stderr, " --resume-elsewhere");
    us_cli_print(stderr, "\n");
}

static void print_data(const struct session *s)
{
    static const char *const name[US_SPLIT_COUNT] = {"train", "val", "test"};
    us_cli_print(stderr, "%s: %" PRId64 " parameters, channels", s->setup.name,
                 us_net_n_trainable(s->model->net));
    for (int32_t c = 0; c < s->model->arch.target_channels; c++)
        us_cli_print(stderr, "%s %s", c == 0 ? "" : ",", s->model->data.channels[c]);
    us_cli_print(stderr, ";");
    for (int k = 0; k < US_SPLIT_COUNT; k++) {
        int64_t n = 0;
        (void)us_dataset_frames(s->dataset, (enum us_split)k, &n);
        us_cli_print(stderr, " %s %" PRId64 " frame%s (%" PRId64 " patches)%s", name[k], n,
                     n == 1 ? "" : "s", us_dataset_n_patches(s->dataset, (enum us_split)k),
                     k + 1 < US_SPLIT_COUNT ? "," : "\n");
    }
    if (us_dataset_n_patches(s->dataset, US_SPLIT_VAL) == 0)
        us_cli_print(stderr, "note: no validation frames: the last epoch's weights are kept, and "
                             "training does not end by itself\n");
}

static json_t *number_or_null(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

/* What the trained model says of itself: where it comes from, and its statistics. */
static json_t *result_json(const struct session *s)
{
    const struct us_model_data *d = &s->model->data;
    json_t *extra = s->model->extra_json != NULL ? json_loads(s->model->extra_json, 0, NULL) : NULL;
    json_t *channels = json_array(), *provenance = json_object_get(extra, "provenance");
    for (int32_t c = 0; c < s->model->arch.target_channels; c++)
        (void)json_array_append_new(channels,
                                    json_pack("{s:s, s:o, s:f, s:f}", "name", d->channels[c],
                                              "clip", number_or_null(d->clip[c]), "mean",
                                              d->target_mean[c], "std", d->target_std[c]));
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:f, s:f, s:o, s:O*}", "model", s->out, "sha256",
                             s->model->sha256, "history", s->history, "checkpoint", s->last,
                             "input_mean", d->input_mean, "input_std", d->input_std, "channels",
                             channels, "provenance", provenance);
    json_decref(extra);
    return root;
}

static void print_result(const struct session *s, const json_t *result)
{
    const struct us_model_data *d = &s->model->data;
    const json_t *from = json_object_get(result, "provenance");
    const char *hash = json_string_value(json_object_get(from, "data_sha256"));
    const json_t *psnr = json_object_get(from, "val_psnr");
    us_cli_print(stderr, "data sha256 %s\n", hash != NULL ? hash : "unknown");
    us_cli_print(stderr, "input mean %.6g, std %.6g", d->input_mean, d->input_std);
    for (int32_t c = 0; c < s->model->arch.target_channels; c++)
        us_cli_print(stderr, "; %s clip %.6g, mean %.6g, std %.6g", d->channels[c], d->clip[c],
                     d->target_mean[c], d->target_std[c]);
    us_cli_print(stderr, "\n");
    us_cli_print(stderr, "%s: sha256 %s", s->out, s->model->sha256);
    if (json_is_number(psnr))
        us_cli_print(stderr, ", val PSNR %.2f at epoch %" PRId64, json_number_value(psnr),
                     (int64_t)json_integer_value(json_object_get(from, "best_epoch")));
    us_cli_print(stderr, "\n");
}

static enum us_status report(const struct train_opts *o, const struct session *s,
                             struct us_err *err)
{
    json_t *result = result_json(s);
    if (result == NULL)
        return us_fail(err, US_E_NOMEM, "the result could not be put into JSON");
    if (!o->quiet)
        print_result(s, result);
    if (o->json) {
        (void)json_dumpf(result, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
        (void)fputc('\n', stdout);
    }
    json_decref(result);
    return US_OK;
}

/* ---- running ------------------------------------------------------------------------------- */

static enum us_status read_settings(const struct us_cli_args *a, struct us_train_settings *ret,
                                    struct us_err *err)
{
    const struct train_opts *o = a->opts;
    *ret = us_train_settings_defaults();
    if (o->config != NULL)
        US_TRY(us_train_settings_read(o->config, ret, err));
    if (us_cli_given(a, "seed"))
        ret->training_seed = o->seed;
    if (us_cli_given(a, "max-steps"))
        ret->training_max_steps = o->max_steps;
    return US_OK;
}

static enum us_status prepare(const struct us_cli_args *a, struct session *s, struct us_err *err)
{
    const struct train_opts *o = a->opts;
    struct us_frames_config which = us_train_frames(&s->settings);
    US_TRY(us_frames_open(o->data, &which, &s->frames, err));
    US_TRY(us_train_setup_make(&s->settings, s->frames, &s->setup, err));
    US_TRY(us_dataset_open(us_frames_source(s->frames), &s->setup.dataset, &s->dataset, err));
    US_TRY(us_backend_choose(o->backend, &s->backend, err));
    US_TRY(us_train_setup_precision(&s->setup, s->backend, err));
    US_TRY(us_train_setup_model(&s->setup, s->frames, &s->model, err));
    US_TRY(make_paths(o, s, err));
    return protect(o, s, err);
}

static enum us_status train(const struct us_cli_args *a, struct session *s, struct us_err *err)
{
    const struct train_opts *o = a->opts;
    US_TRY(prepare(a, s, err));
    if (!o->quiet)
        print_data(s);
    us_train_show_start(&s->show, &s->setup.arch, o->quiet);
    struct us_trainer_io io = {.checkpoint_dir = s->checkpoints,
                               .history_path = s->history,
                               .event = us_train_show_event,
                               .arg = &s->show,
                               .resume_elsewhere = o->resume_elsewhere,
                               .cancel = us_interrupt_install()};
    enum us_status st =
        us_trainer_run(s->model, s->dataset, s->backend, &s->setup.trainer, &io, o->resume, err);
    us_train_show_end(&s->show);
    if (st == US_OK)
        st = us_model_save(s->model, s->out, err);
    return st;
}

/* Pictures are a help, not the result: if one fails, that is said and the model stands. */
static void draw_pictures(const struct train_opts *o, struct session *s)
{
    struct us_err err = {0};
    char *curves = beside(s->out, ".curves.png"), *example = beside(s->out, ".example.png");
    if (curves != NULL && us_train_curves(s->history, curves, &err) != US_OK)
        us_cli_print(stderr, "usplit train: no picture of the curves: %s\n", err.msg);
    else if (example != NULL &&
             us_train_example(s->model, s->backend, s->dataset, example, &err) != US_OK)
        us_cli_print(stderr, "usplit train: no picture of an example: %s\n", err.msg);
    else if (!o->quiet && curves != NULL && example != NULL)
        us_cli_print(stderr, "pictures: %s, %s\n", curves, example);
    free(curves);
    free(example);
}

static void release(struct session *s)
{
    us_model_free(s->model);
    us_cli_backend_free(s->backend);
    us_dataset_free(s->dataset);
    us_frames_free(s->frames);
    free(s->out);
    free(s->history);
    free(s->checkpoints);
    free(s->last);
    free(s->previous);
}

static int print_settings(const struct us_train_settings *s)
{
    char *text = us_train_settings_print(s);
    if (text == NULL)
        return 1;
    (void)puts(text);
    free(text);
    return 0;
}

static int run_train(const struct us_cli_args *a)
{
    const struct train_opts *o = a->opts;
    struct us_err err = {0};
    struct session s = {0};
    if (o->print_table) {
        us_train_settings_table(stdout);
        return 0;
    }
    enum us_status st = read_settings(a, &s.settings, &err);
    if (st == US_OK && o->print_config)
        return print_settings(&s.settings);
    if (st == US_OK && o->data == NULL) {
        us_cli_print(stderr, "usplit train: --data DIR|STACK is missing\n");
        return 2;
    }
    if (st == US_OK)
        st = train(a, &s, &err);
    if (st == US_OK)
        st = report(o, &s, &err);
    if (st == US_OK)
        draw_pictures(o, &s);
    int status = st == US_OK ? 0 : us_cli_fail(a, &err);
    bool goes_on = st == US_E_CANCELLED || st == US_E_DISK_FULL;
    if (goes_on && s.last != NULL && access(s.last, F_OK) == 0)
        print_resume(a, &s);
    release(&s);
    return status;
}

const struct us_cli_cmd us_cmd_train = {
    .name = "train",
    .summary = "Train a model on images of the separate channels.",
    .args = "",
    .opts = train_table,
    .n_opts = US_COUNT(train_table),
    .opts_bytes = sizeof(struct train_opts),
    .notes = "A frame has the channels that the model is to separate; their mixture is computed,\n"
             "or measured too (data.input_channel). splits.json in the folder may list which\n"
             "frames train, validate and test. Beside the model come MODEL.history.jsonl and\n"
             "the checkpoints. Interrupted with Ctrl-C, a run says how to continue it.",
    .run = run_train,
};
