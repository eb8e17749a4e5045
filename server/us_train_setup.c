/* Training settings fitted to a data set; see us_train_config.h. */
#include <stdio.h>
#include <string.h>

#include "us_backend.h"
#include "us_train_config.h"

/* The words of us_train_config.def in the order of core's enums. */
static const enum us_logvar logvar_of[] = {US_LOGVAR_NONE, US_LOGVAR_PIXELWISE,
                                           US_LOGVAR_CHANNELWISE, US_LOGVAR_GLOBAL};
enum { SPLIT_AUTO = 0, SPLIT_BLOCKS, SPLIT_HEAD, SPLIT_LISTED };
enum { LOSS_ELBO = 0, LOSS_MSE };

struct us_frames_config us_train_frames(const struct us_train_settings *s)
{
    struct us_frames_config c = {.n_channels = s->data_channels.n,
                                 .has_input = s->data_input_channel.n > 0,
                                 .input = s->data_input_channel.v[0],
                                 .subset = s->data_subset};
    memcpy(c.channel, s->data_channels.v, sizeof(c.channel));
    return c;
}

static struct us_arch make_arch(const struct us_train_settings *s, int32_t n_channels)
{
    struct us_arch a = us_arch_default();
    a.family = US_FAMILY_LVAE;
    a.stochastic = s->architecture_stochastic;
    a.n_levels = s->architecture_z_dims.n;
    memset(a.z_dims, 0, sizeof(a.z_dims));
    for (int32_t i = 0; i < a.n_levels; i++)
        a.z_dims[i] = (int32_t)s->architecture_z_dims.v[i];
    a.lc_scales = (int32_t)s->architecture_lc_scales;
    a.decoder_retain = s->architecture_decoder_retain;
    a.n_filters = (int32_t)s->architecture_n_filters;
    a.blocks_per_level = (int32_t)s->architecture_blocks_per_level;
    a.dropout = (float)s->architecture_dropout;
    a.predict_logvar = logvar_of[s->architecture_predict_logvar];
    a.logvar_lower_bound = (float)s->architecture_logvar_lower_bound;
    a.var_clip_max = (float)s->architecture_var_clip_max;
    a.target_channels = n_channels;
    return a;
}

/* Lists of one entry per channel must fit the data. */
static enum us_status check_lists(const struct us_train_settings *s, int32_t n, struct us_err *err)
{
    if (s->architecture_target_channels != 0 && s->architecture_target_channels != n)
        return us_fail(err, US_E_ARG,
                       "architecture.target_channels: found %lld; the data give %d channels "
                       "(choose with data.channels)",
                       (long long)s->architecture_target_channels, (int)n);
    if (s->training_channel_weights.n != 0 && s->training_channel_weights.n != n)
        return us_fail(err, US_E_ARG,
                       "training.channel_weights: found %d numbers; allowed: one for each of %d "
                       "channels, or null",
                       (int)s->training_channel_weights.n, (int)n);
    if (s->data_mixing.n != 0 && s->data_mixing.n != n)
        return us_fail(err, US_E_ARG,
                       "data.mixing: found %d ranges; allowed: one for each of %d channels, or "
                       "\"average\"",
                       (int)s->data_mixing.n, (int)n);
    return US_OK;
}

static enum us_status choose_split(const struct us_train_settings *s, const struct us_frames *f,
                                   struct us_dataset_config *d, struct us_err *err)
{
    bool listed = us_frames_has_splits(f);
    if (s->data_split == SPLIT_LISTED && !listed)
        return us_fail(err, US_E_ARG, "data.split: found \"listed\", but there is no splits.json");
    d->split = s->data_split == SPLIT_HEAD ? US_SPLIT_HEAD : US_SPLIT_BLOCKS;
    if (s->data_split == SPLIT_LISTED || (s->data_split == SPLIT_AUTO && listed))
        d->split = US_SPLIT_LISTED;
    for (int i = 0; i < US_SPLIT_COUNT && d->split == US_SPLIT_LISTED; i++)
        d->listed[i] = us_frames_split(f, (enum us_split)i, &d->n_listed[i]);
    return US_OK;
}

static enum us_status make_dataset(const struct us_train_settings *s, const struct us_frames *f,
                                   int32_t n, struct us_dataset_config *d, struct us_err *err)
{
    *d = (struct us_dataset_config){.patch = (int32_t)s->top_patch_size,
                                    .lc_scales = (int32_t)s->architecture_lc_scales,
                                    .padding = s->data_padding == 0 ? US_PAD_REFLECT : US_PAD_ZERO,
                                    .val_fraction = s->data_val_fraction,
                                    .test_fraction = s->data_test_fraction,
                                    .clip_quantile = s->data_clip_percentile,
                                    .clip_channelwise = s->data_clip_channelwise,
                                    .augment = s->data_augment,
                                    .cache_bytes = s->data_cache_mib << 20,
                                    .seed = (uint64_t)s->training_seed};
    for (int32_t c = 0; c < n; c++) {
        d->alpha_min[c] = s->data_mixing.n > 0 ? s->data_mixing.min[c] : 1.0 / n;
        d->alpha_max[c] = s->data_mixing.n > 0 ? s->data_mixing.max[c] : 1.0 / n;
    }
    return choose_split(s, f, d, err);
}

static struct us_trainer_config make_trainer(const struct us_train_settings *s)
{
    struct us_trainer_config t = us_trainer_defaults();
    t.batch = (int32_t)s->training_batch;
    t.max_epochs = (int32_t)s->training_max_epochs;
    t.max_steps = s->training_max_steps;
    t.lr = s->training_lr;
    t.lr_patience = (int32_t)s->training_lr_patience;
    t.lr_factor = s->training_lr_factor;
    t.stop_patience = (int32_t)s->training_stop_patience;
    t.kl_weight = s->training_kl_weight;
    t.kl_annealing = s->training_kl_annealing;
    t.kl_start = (int32_t)s->training_kl_start;
    t.kl_anneal_epochs = (int32_t)s->training_kl_anneal_epochs;
    t.max_skipped = (int32_t)s->training_max_skipped;
    t.checkpoint_steps = (int32_t)s->training_checkpoint_steps;
    t.val_patches_max = (int32_t)s->training_val_patches_max;
    t.seed = (uint64_t)s->training_seed;
    t.train.threads = (int32_t)s->training_threads;
    t.train.analytical_kl = s->training_analytical_kl;
    t.train.free_bits = (float)s->training_free_bits;
    t.train.clip_norm = (float)s->training_clip_norm;
    t.train.mse = s->training_loss == LOSS_MSE;
    for (int32_t c = 0; c < s->training_channel_weights.n; c++)
        t.train.channel_weight[c] = (float)s->training_channel_weights.v[c];
    return t;
}

enum us_status us_train_setup_make(const struct us_train_settings *s, const struct us_frames *f,
                                   struct us_train_setup *ret, struct us_err *err)
{
    struct us_train_setup u;
    memset(&u, 0, sizeof(u));
    int32_t n = us_frames_source(f)->n_channels;
    US_TRY(check_lists(s, n, err));
    (void)snprintf(u.name, sizeof(u.name), "%s", s->top_name);
    u.patch = (int32_t)s->top_patch_size;
    u.arch = make_arch(s, n);
    US_TRY(us_arch_check(&u.arch, u.patch, err));
    US_TRY(make_dataset(s, f, n, &u.dataset, err));
    u.trainer = make_trainer(s);
    u.precision = s->training_precision == 2   ? US_PREC_BF16
                  : s->training_precision == 1 ? US_PREC_F32
                                               : US_PREC_AUTO;
    *ret = u;
    return US_OK;
}

enum us_status us_train_setup_precision(struct us_train_setup *s, struct us_backend *be,
                                        struct us_err *err)
{
    bool bf16 = us_backend_ops(be)->has_dtype(be, US_BF16);
    if (s->precision == US_PREC_BF16 && !bf16)
        return us_fail(err, US_E_UNSUPPORTED,
                       "training.precision: backend %s on this processor has f32 only",
                       us_backend_ops(be)->name);
    if (s->precision == US_PREC_AUTO)
        s->precision = bf16 ? US_PREC_BF16 : US_PREC_F32;
    s->trainer.train.dtype = s->precision == US_PREC_BF16 ? US_BF16 : US_F32;
    return US_OK;
}

/* Whether validation mixes the plain sum: then predictions are to be fed with it too. */
static bool is_sum(const struct us_train_setup *s)
{
    for (int32_t c = 0; c < s->arch.target_channels; c++) {
        if (s->dataset.alpha_min[c] + s->dataset.alpha_max[c] != 2.0)
            return false;
    }
    return s->arch.target_channels > 1;
}

enum us_status us_train_setup_model(const struct us_train_setup *s, const struct us_frames *f,
                                    struct us_model **ret, struct us_err *err)
{
    struct us_model *m = NULL;
    US_TRY(us_model_new(&s->arch, s->patch, s->trainer.seed, &m, err));
    (void)snprintf(m->name, sizeof(m->name), "%s", s->name);
    for (int32_t c = 0; c < s->arch.target_channels; c++) {
        if (us_frames_channel_name(f, c)[0] != '\0')
            (void)snprintf(m->data.channels[c], US_MAX_NAME, "%s", us_frames_channel_name(f, c));
    }
    m->data.pixel_size_um = us_frames_pixel_size(f);
    m->data.context_padding = s->dataset.padding;
    m->data.mixing = is_sum(s) ? US_MIX_SUM : US_MIX_AVERAGE;
    *ret = m;
    return US_OK;
}
