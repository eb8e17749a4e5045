/* `usplit model init`: a fresh model file with initialised parameters. */
#include <inttypes.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "us_commands.h"
#include "us_interrupt.h"
#include "us_model.h"
#include "us_model_flags.h"
#include "us_progress.h"
#include "us_stats.h"

/* Spec 13.3: the training data are clipped at this quantile. */
#define CLIP_QUANTILE 0.995

struct init_opts {
    const char *name, *stats_from;
    int32_t variant;
    bool hae, quiet;
    int64_t patch, seed, lc_scales, filters, blocks;
    struct us_cli_ints z_dims, stats_channels;
    struct us_model_flags flags;
};

#define VARIANT_WORDS "vanilla|lean|regular|deep"
#define OPT(member)   .offset = offsetof(struct init_opts, member)
static const struct us_cli_opt init_table[] = {
    {"variant", US_CLI_WORD, OPT(variant), .words = VARIANT_WORDS, .required = true,
     .help = "of the network, as the paper calls them"},
    {"hae", US_CLI_FLAG, OPT(hae), .help = "without latent noise (HAE instead of HVAE)"},
    {"patch", US_CLI_INT, OPT(patch), 1, US_MAX_PATCH, .arg = "PIXELS", .def = "64",
     .help = "side of a patch"},
    {"seed", US_CLI_INT, OPT(seed), 0, INT64_MAX, .arg = "S", .def = "0",
     .help = "of the initial parameters"},
    {"z-dims", US_CLI_INTS, OPT(z_dims), 1, US_MAX_ZDIM, .arg = "Z,Z,..",
     .help = "latent channels, one number per level, finest first (default: the variant's)"},
    {"lc-scales", US_CLI_INT, OPT(lc_scales), 1, US_MAX_SCALES, .arg = "N",
     .help = "input scales including full resolution (default: the variant's)"},
    {"filters", US_CLI_INT, OPT(filters), 1, US_MAX_FILTERS, .arg = "N",
     .help = "feature channels (default 64)"},
    {"blocks", US_CLI_INT, OPT(blocks), 1, US_MAX_BLOCKS, .arg = "N",
     .help = "residual blocks per level (default 1)"},
    {"name", US_CLI_TEXT, OPT(name), .arg = "NAME", .def = "untrained", .help = "of the model"},
    {"stats-from", US_CLI_TEXT, OPT(stats_from), .arg = "TIFF",
     .help = "take clip, means and deviations from this multi-channel training image"},
    {"stats-channels", US_CLI_INTS, OPT(stats_channels), 0, INT32_MAX, .arg = "A,B",
     .help = "which of its channels, counted from 0"},
    US_MODEL_FLAG_ROWS(struct init_opts),
    {"quiet", US_CLI_FLAG, OPT(quiet), .help = "print nothing but errors"},
};
#undef OPT

static enum us_status make_arch(const struct us_cli_args *a, struct us_arch *arch,
                                struct us_err *err)
{
    const struct init_opts *o = a->opts;
    char word[16];
    *arch = us_arch_default();
    US_TRY(
        us_arch_set_variant(arch, us_cli_word(VARIANT_WORDS, o->variant, word, sizeof(word)), err));
    arch->stochastic = !o->hae;
    if (o->z_dims.n > 0) {
        arch->n_levels = o->z_dims.n;
        for (int32_t i = 0; i < o->z_dims.n; i++)
            arch->z_dims[i] = (int32_t)o->z_dims.v[i];
    }
    if (us_cli_given(a, "lc-scales"))
        arch->lc_scales = (int32_t)o->lc_scales;
    if (us_cli_given(a, "filters"))
        arch->n_filters = (int32_t)o->filters;
    if (us_cli_given(a, "blocks"))
        arch->blocks_per_level = (int32_t)o->blocks;
    if (o->flags.channels.n > 0)
        arch->target_channels = o->flags.channels.n;
    return us_arch_check(arch, (int32_t)o->patch, err);
}

/* A training image as a source of planes. */
struct training_image {
    struct us_image_reader *reader;
    const char *path;
    int64_t n_pages_per_frame; /* planes of one frame, all channels */
    int32_t channel[US_MAX_TARGETS];
};

static enum us_status read_training(void *arg, int64_t frame, int32_t channel, float *out,
                                    int64_t *ret_n, struct us_err *err)
{
    const struct training_image *t = arg;
    const struct us_image_info *v = us_image_info(t->reader);
    int64_t i = frame * t->n_pages_per_frame + t->channel[channel];
    *ret_n = v->h * v->w;
    return us_image_read_plane(t->reader, i / (v->z * v->c), i / v->c % v->z, i % v->c, out, err);
}

/* How many channels a frame of the training image has. Pages of a file without stated axes are
 * channels (interface.md, training data): all of one frame, or of frames one after the other. */
static enum us_status layout_training(const struct init_opts *o, int32_t n_targets,
                                      struct training_image *t, struct us_err *err)
{
    const struct us_image_info *v = us_image_info(t->reader);
    int64_t n_pages = v->t * v->z * v->c, c = v->c;
    if (!v->axes_stated && c == 1)
        c = o->stats_channels.n > 0 || n_pages % n_targets != 0 ? n_pages : n_targets;
    if (o->stats_channels.n == 0 && c != n_targets)
        return us_fail(err, US_E_ARG,
                       "%s: %" PRId64 " channels, expected %d (or choose with --stats-channels)",
                       t->path, c, (int)n_targets);
    if (o->stats_channels.n > 0 && o->stats_channels.n != n_targets)
        return us_fail(err, US_E_ARG, "--stats-channels: %d channels, expected %d",
                       (int)o->stats_channels.n, (int)n_targets);
    for (int32_t k = 0; k < n_targets; k++) {
        int64_t pick = o->stats_channels.n > 0 ? o->stats_channels.v[k] : k;
        if (pick >= c)
            return us_fail(err, US_E_ARG,
                           "%s: channel %" PRId64 ", but it has %" PRId64 ", counted from 0",
                           t->path, pick, c);
        t->channel[k] = (int32_t)pick;
    }
    t->n_pages_per_frame = c;
    return US_OK;
}

static enum us_status stats_from(const struct us_cli_args *a, struct us_model *m,
                                 struct us_err *err)
{
    const struct init_opts *o = a->opts;
    struct training_image t = {.path = o->stats_from};
    struct us_progress bar;
    US_TRY(us_image_open(t.path, &t.reader, err));
    const struct us_image_info *v = us_image_info(t.reader);
    enum us_status s = layout_training(o, m->arch.target_channels, &t, err);
    if (s == US_OK) {
        struct us_stats_config cfg = {.clip_quantile = CLIP_QUANTILE};
        struct us_stats st;
        struct us_stats_source src = {.n_frames = v->t * v->z * v->c / t.n_pages_per_frame,
                                      .n_channels = m->arch.target_channels,
                                      .plane_pixels = v->h * v->w,
                                      .read = read_training,
                                      .arg = &t,
                                      .cancel = us_interrupt_install(),
                                      .progress = us_progress_update,
                                      .progress_arg = &bar};
        us_progress_start(&bar, "planes", o->quiet);
        s = us_stats_compute(&src, &cfg, &st, err);
        us_progress_end(&bar);
        if (s == US_OK)
            us_model_set_stats(m, &st);
        else if (s == US_E_FORMAT)
            us_err_prefix(err, "%s", t.path);
    }
    us_image_close(t.reader);
    return s;
}

static enum us_status init_model(const struct us_cli_args *a, struct us_model **ret,
                                 struct us_err *err)
{
    const struct init_opts *o = a->opts;
    struct us_arch arch;
    US_TRY(make_arch(a, &arch, err));
    US_TRY(us_model_new(&arch, (int32_t)o->patch, (uint64_t)o->seed, ret, err));
    struct us_model *m = *ret;
    (void)snprintf(m->name, sizeof(m->name), "%s", o->name);
    if (o->stats_from != NULL)
        US_TRY(stats_from(a, m, err));
    US_TRY(us_model_flags_apply(a, &o->flags, m, err)); /* what is given explicitly wins */
    return us_model_save(m, a->arg[0], err);
}

static int run_init(const struct us_cli_args *a)
{
    const struct init_opts *o = a->opts;
    struct us_err err = {0};
    struct us_model *m = NULL;
    if (strlen(o->name) >= US_MAX_NAME) {
        us_cli_print(stderr, "usplit model init: --name: %zu bytes, expected at most %d\n",
                     strlen(o->name), US_MAX_NAME - 1);
        return 2;
    }
    if (o->stats_channels.n > 0 && o->stats_from == NULL) {
        us_cli_print(stderr, "usplit model init: --stats-channels needs --stats-from\n");
        return 2;
    }
    enum us_status s = init_model(a, &m, &err);
    if (s == US_OK && !o->quiet)
        us_cli_print(stderr, "%s: %" PRId64 " trainable parameters, sha256 %s\n", a->arg[0],
                     us_net_n_trainable(m->net), m->sha256);
    us_model_free(m);
    return s == US_OK ? 0 : us_cli_fail(a, &err);
}

const struct us_cli_cmd us_cmd_model_init = {
    .name = "model init",
    .summary = "Write a fresh model file with initialised parameters.",
    .args = "OUT.safetensors",
    .min_args = 1,
    .max_args = 1,
    .opts = init_table,
    .n_opts = US_COUNT(init_table),
    .opts_bytes = sizeof(struct init_opts),
    .notes = "The parameters are random: such a model has the shape and the cost of a trained\n"
             "one, and splits nothing. --stats-from clips at the 0.995 quantile, as the\n"
             "paper's training does.",
    .run = run_init,
};
