/* `usplit model import` and `usplit model export`: PyTorch's checkpoints in, and the way back. */
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "us_commands.h"
#include "us_interrupt.h"
#include "us_model_flags.h"
#include "us_model_import.h"
#include "us_progress.h"
#include "us_train_config.h"

struct import_opts {
    const char *name, *prefix, *stats_from;
    int32_t variant, logvar, context, context_padding, mixing, split;
    bool hae, quiet;
    int64_t patch;
    struct us_cli_ints stats_channels;
    struct us_model_flags flags;
};

#define OPT(member) .offset = offsetof(struct import_opts, member)
static const struct us_cli_opt import_table[] = {
    {"name", US_CLI_TEXT, OPT(name), .arg = "NAME", .def = "imported", .help = "of the model"},
    {"variant", US_CLI_WORD, OPT(variant), .words = "lean|regular|deep",
     .help = "where the tensors' shapes leave open if the decoder keeps the context"},
    {"hae", US_CLI_FLAG, OPT(hae),
     .help = "the network was trained without latent noise (HAE instead of HVAE)"},
    {"patch", US_CLI_INT, OPT(patch), 1, US_MAX_PATCH, .arg = "PIXELS",
     .help = "side of a training patch (default: from the prior's shape)"},
    {"logvar", US_CLI_WORD, OPT(logvar), .words = "none|pixelwise|channelwise|global",
     .help = "what the predicted variance belongs to (default: from the head's shape)"},
    {"prefix", US_CLI_TEXT, OPT(prefix), .arg = "TEXT",
     .help = "before the names of the tensors, where there are several networks"},
    {"stats-from", US_CLI_TEXT, OPT(stats_from), .arg = "DIR|STACK",
     .help = "take clip, means and deviations from the training images, as training does"},
    {"stats-channels", US_CLI_INTS, OPT(stats_channels), 0, INT32_MAX, .arg = "A,B",
     .help = "which of their channels, counted from 0 (default: all)"},
    {"stats-split", US_CLI_WORD, OPT(split), .words = "auto|blocks|head|listed", .def = "auto",
     .help = "which frames are the training split, see docs/training.md"},
    {"mixing", US_CLI_WORD, OPT(mixing), .words = "average|sum", .def = "average",
     .help = "what the training input was of the channels"},
    {"context", US_CLI_WORD, OPT(context), .words = "halving|single",
     .help = "how low-resolution inputs were made (uSplit: halving)"},
    {"context-padding", US_CLI_WORD, OPT(context_padding), .words = "reflect|zero",
     .help = "beyond the border of the image (default: the file's, else reflect)"},
    US_MODEL_FLAG_ROWS(struct import_opts),
    {"quiet", US_CLI_FLAG, OPT(quiet), .help = "print nothing but errors"},
};
#undef OPT

enum { VARIANT_LEAN = 0 };

/* The command line over the file's own settings. */
static void set_hints(const struct us_cli_args *a, struct us_import_hints *h)
{
    const struct import_opts *o = a->opts;
    h->prefix = o->prefix;
    if (us_cli_given(a, "variant"))
        h->decoder_retain = o->variant != VARIANT_LEAN;
    if (us_cli_given(a, "patch"))
        h->patch = (int32_t)o->patch;
    if (us_cli_given(a, "logvar"))
        h->logvar = o->logvar;
    if (o->hae)
        h->stochastic = false;
    if (o->flags.channels.n > 0)
        h->target_channels = o->flags.channels.n;
}

/* ---- statistics ---------------------------------------------------------------------------- */

static enum us_status stats_of(const struct us_frames *f, const struct us_train_settings *s,
                               bool quiet, struct us_model *m, struct us_err *err)
{
    struct us_train_setup setup;
    struct us_dataset *d = NULL;
    US_TRY(us_train_setup_make(s, f, &setup, err));
    setup.dataset.patch = setup.dataset.lc_scales = 1; /* frames of any size */
    US_TRY(us_dataset_open(us_frames_source(f), &setup.dataset, &d, err));
    struct us_progress bar;
    struct us_dataset_watch watch = {
        .cancel = us_interrupt_install(), .progress = us_progress_update, .arg = &bar};
    us_progress_start(&bar, "planes", quiet);
    enum us_status st = us_dataset_compute_stats(d, &watch, err);
    us_progress_end(&bar);
    if (st == US_OK)
        us_model_set_stats(m, us_dataset_stats(d));
    us_dataset_free(d);
    return st;
}

static enum us_status stats_from(const struct import_opts *o, struct us_model *m,
                                 struct us_err *err)
{
    struct us_train_settings s = us_train_settings_defaults();
    struct us_frames *f = NULL;
    int32_t n = m->arch.target_channels;
    s.data_split = o->split;
    s.data_channels.n = o->stats_channels.n;
    for (int32_t i = 0; i < o->stats_channels.n; i++)
        s.data_channels.v[i].index = o->stats_channels.v[i];
    struct us_frames_config which = us_train_frames(&s);
    US_TRY(us_frames_open(o->stats_from, &which, &f, err));
    enum us_status st = US_OK;
    int32_t found = us_frames_source(f)->n_channels;
    if (found != n)
        st = us_fail(err, US_E_ARG,
                     "%s: %d channels; the model splits into %d (choose with --stats-channels)",
                     o->stats_from, (int)found, (int)n);
    if (st == US_OK)
        st = stats_of(f, &s, o->quiet, m, err);
    for (int32_t c = 0; c < n && st == US_OK; c++)
        if (us_frames_channel_name(f, c)[0] != '\0')
            (void)snprintf(m->data.channels[c], US_MAX_NAME, "%s", us_frames_channel_name(f, c));
    us_frames_free(f);
    return st;
}

/* Without means and deviations a prediction is wrong by any factor: they are not guessed. */
static enum us_status require_stats(const struct us_cli_args *a, bool known, struct us_err *err)
{
    static const char *const needed[] = {"input-mean", "input-std", "target-mean", "target-std"};
    const struct import_opts *o = a->opts;
    for (size_t i = 0; i < US_COUNT(needed) && !known && o->stats_from == NULL; i++)
        if (!us_cli_given(a, needed[i]))
            return us_fail(err, US_E_ARG,
                           "%s: the file does not say how its images were normalised; give the "
                           "training images with --stats-from, or --input-mean, --input-std, "
                           "--target-mean and --target-std",
                           a->arg[0]);
    return US_OK;
}

/* CAREamics made its context by halving at first and by one resize later; the files do not say. */
static enum us_status check_context(const struct us_cli_args *a, const struct us_model *m,
                                    const struct us_import_report *r, struct us_err *err)
{
    const struct import_opts *o = a->opts;
    bool lc = m->arch.lc_scales > 1, given = us_cli_given(a, "context");
    if (lc && given && o->context == US_CONTEXT_SINGLE)
        return us_fail(err, US_E_UNSUPPORTED,
                       "%s: low-resolution inputs made by one resize each; predictions of this "
                       "version halve step by step",
                       a->arg[0]);
    if (lc && !given && r->careamics)
        return us_fail(
            err, US_E_ARG,
            "%s: a network of CAREamics, whose low-resolution inputs were halved step by "
            "step (careamics.lvae_training) or resized once (careamics.dataset): say "
            "which with --context",
            a->arg[0]);
    return US_OK;
}

/* ---- import -------------------------------------------------------------------------------- */

static enum us_status set_model(const struct us_cli_args *a, const struct us_model_source *src,
                                const struct us_import_report *r, struct us_model *m,
                                struct us_err *err)
{
    const struct import_opts *o = a->opts;
    US_TRY(check_context(a, m, r, err));
    (void)snprintf(m->name, sizeof(m->name), "%s", o->name);
    US_TRY(require_stats(a, us_model_source_data(src, &m->data, m->arch.target_channels), err));
    if (o->stats_from != NULL)
        US_TRY(stats_from(o, m, err));
    m->data.mixing = (enum us_mixing)o->mixing;
    if (us_cli_given(a, "context-padding"))
        m->data.context_padding = (enum us_pad_mode)o->context_padding;
    return us_model_flags_apply(a, &o->flags, m, err);
}

static void print_report(const struct us_cli_args *a, const struct us_model_source *src,
                         const struct us_import_report *r, const struct us_model *m)
{
    const char *foreign;
    int32_t n_foreign = us_model_source_foreign(src, &foreign);
    const struct us_arch *k = &m->arch;
    us_cli_print(stderr,
                 "%s: %s, %d levels, %d input scale%s%s, %d filters, patch %d, %d channels%s\n",
                 a->arg[0], k->stochastic ? "HVAE" : "HAE", (int)k->n_levels, (int)k->lc_scales,
                 k->lc_scales == 1 ? "" : "s",
                 k->lc_scales == 1   ? ""
                 : k->decoder_retain ? " kept by the decoder"
                                     : " in the encoder only",
                 (int)k->n_filters, (int)m->patch_size, (int)k->target_channels,
                 r->careamics ? ", named as CAREamics does" : "");
    if (r->n_ignored > 0)
        us_cli_print(stderr, "%s: passed over %d tensors that do not begin with \"%s\": %s ..\n",
                     a->arg[0], (int)r->n_ignored, r->prefix, r->first_ignored);
    if (n_foreign > 0)
        us_cli_print(stderr, "%s: passed over objects of foreign classes, %d in all, first %s\n",
                     a->arg[0], (int)n_foreign, foreign);
    if (!m->complete)
        us_cli_print(stderr, "%s: tensors that training needs are missing: prediction only\n",
                     a->arg[0]);
    us_cli_print(stderr, "%s: %" PRId64 " trainable parameters, sha256 %s\n", a->arg[1],
                 us_net_n_trainable(m->net), m->sha256);
}

static enum us_status import_model(const struct us_cli_args *a, struct us_err *err)
{
    const struct import_opts *o = a->opts;
    struct us_model_source *src = NULL;
    struct us_model *m = NULL;
    struct us_import_hints hints = us_import_hints();
    struct us_import_report report;
    US_TRY(us_model_source_open(a->arg[0], &src, err));
    enum us_status s = us_model_source_hints(src, &hints, err);
    set_hints(a, &hints);
    if (s == US_OK)
        s = us_model_source_import(src, &hints, &m, &report, err);
    if (s != US_OK)
        us_err_prefix(err, "%s", a->arg[0]);
    if (s == US_OK)
        s = set_model(a, src, &report, m, err);
    if (s == US_OK)
        s = us_model_save(m, a->arg[1], err);
    if (s == US_OK && !o->quiet)
        print_report(a, src, &report, m);
    us_model_free(m);
    us_model_source_free(src);
    return s;
}

static int run_import(const struct us_cli_args *a)
{
    const struct import_opts *o = a->opts;
    struct us_err err = {0};
    if (strlen(o->name) >= US_MAX_NAME) {
        us_cli_print(stderr, "usplit model import: --name: %zu bytes, expected at most %d\n",
                     strlen(o->name), US_MAX_NAME - 1);
        return 2;
    }
    if ((o->stats_channels.n > 0 || us_cli_given(a, "stats-split")) && o->stats_from == NULL) {
        us_cli_print(stderr, "usplit model import: %s needs --stats-from\n",
                     o->stats_channels.n > 0 ? "--stats-channels" : "--stats-split");
        return 2;
    }
    return import_model(a, &err) == US_OK ? 0 : us_cli_fail(a, &err);
}

const struct us_cli_cmd us_cmd_model_import = {
    .name = "model import",
    .summary = "Make a model file from a PyTorch checkpoint or a safetensors file.",
    .args = "CHECKPOINT OUT.safetensors",
    .min_args = 2,
    .max_args = 2,
    .opts = import_table,
    .n_opts = US_COUNT(import_table),
    .opts_bytes = sizeof(struct import_opts),
    .notes = "CHECKPOINT is a .pt, .pth or .ckpt of PyTorch 1.6 or later, or a .safetensors.\n"
             "It is data: nothing in it is ever run. The network is read off the tensors'\n"
             "names and shapes. How images were normalised is in no published checkpoint:\n"
             "take it from the training images, as training does, or give the numbers.\n"
             "docs/import.md says which programs' files work.",
    .run = run_import,
};

/* ---- export -------------------------------------------------------------------------------- */

static int run_export(const struct us_cli_args *a)
{
    struct us_err err = {0};
    struct us_model *m = NULL;
    enum us_status s = us_model_load(a->arg[0], &m, &err);
    if (s == US_OK)
        s = us_model_export(m, a->arg[0], a->arg[1], &err);
    us_model_free(m);
    return s == US_OK ? 0 : us_cli_fail(a, &err);
}

const struct us_cli_cmd us_cmd_model_export = {
    .name = "model export",
    .summary = "Write a model's parameters as PyTorch loads them.",
    .args = "MODEL.safetensors OUT.pt",
    .min_args = 2,
    .max_args = 2,
    .notes = "OUT.pt (or .pth) is a state dictionary for load_state_dict(strict=True) of the\n"
             "published implementation, OUT.ckpt holds one as \"state_dict\". PyTorch's formats\n"
             "have no place for the normalisation of images; OUT.safetensors keeps it.",
    .run = run_export,
};
