/*
 * Opening other people's checkpoints (us_model_import.h), and what their hyper-parameters say.
 *
 * Hyper-parameters are looked for by name (us_torch_setting): uSplit's configuration, where a
 * program kept it, and CAREamics' model and data configurations. They only fill gaps. A file that
 * has none is as good as one that has all.
 */
#include "us_model_import.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "us_torch.h"

struct us_model_source {
    struct us_torch *torch; /* one of these two */
    struct us_safetensors *safetensors;
    struct us_state_tensor *tensors; /* of torch */
    struct us_state_dict torch_dict;
    const struct us_state_dict *dict;
};

/* ---- opening ------------------------------------------------------------------------------- */

static enum us_status read_torch(void *arg, int32_t i, void *out, struct us_err *err)
{
    return us_torch_read(arg, i, out, err);
}

static enum us_state_type type_of(enum us_torch_dtype t)
{
    switch (t) {
    case US_TORCH_F32:
        return US_STATE_F32;
    case US_TORCH_F16:
        return US_STATE_F16;
    case US_TORCH_BF16:
        return US_STATE_BF16;
    case US_TORCH_F64:
        return US_STATE_F64;
    case US_TORCH_I64:
        return US_STATE_I64;
    default:
        return US_STATE_OTHER;
    }
}

_Static_assert(US_MAX_TORCH_DIMS <= 8, "as many dimensions as us_state_tensor has");

static enum us_status list_torch(struct us_model_source *s, struct us_err *err)
{
    int32_t n = 0;
    const struct us_torch_tensor *t = us_torch_tensors(s->torch, &n);
    s->tensors = calloc((size_t)n + 1, sizeof(*s->tensors));
    if (s->tensors == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %d tensors", (int)n);
    for (int32_t i = 0; i < n; i++) {
        struct us_state_tensor *x = &s->tensors[i];
        x->name = t[i].name;
        x->type = type_of(t[i].dtype);
        x->type_name = us_torch_dtype_name(t[i].dtype);
        x->ndim = t[i].ndim;
        memcpy(x->dim, t[i].dim, (size_t)t[i].ndim * sizeof(*x->dim));
        x->count = t[i].count;
    }
    s->torch_dict = (struct us_state_dict){.tensor = s->tensors,
                                           .n = n,
                                           .bytes = us_torch_bytes(s->torch),
                                           .read = read_torch,
                                           .arg = s->torch};
    s->dict = &s->torch_dict;
    return US_OK;
}

/* A safetensors file begins with the length of its header, which begins with a brace. */
static bool is_safetensors(const char *path)
{
    unsigned char head[9] = {0};
    FILE *f = fopen(path, "rbe");
    size_t n = f == NULL ? 0 : fread(head, 1, sizeof(head), f);
    if (f != NULL)
        (void)fclose(f);
    return n == sizeof(head) && head[8] == '{' && !us_torch_is_zip(head, n);
}

enum us_status us_model_source_open(const char *path, struct us_model_source **ret,
                                    struct us_err *err)
{
    struct us_model_source *s = calloc(1, sizeof(*s));
    enum us_status st = US_OK;
    if (s == NULL)
        return us_fail(err, US_E_NOMEM, "%s: no memory", path);
    if (is_safetensors(path))
        st = us_safetensors_open(path, &s->safetensors, &s->dict, err);
    else
        st = us_torch_open(path, &s->torch, err);
    if (st == US_OK && s->torch != NULL)
        st = list_torch(s, err);
    if (st != US_OK) {
        us_model_source_free(s);
        return st;
    }
    *ret = s;
    return US_OK;
}

void us_model_source_free(struct us_model_source *s)
{
    if (s == NULL)
        return;
    us_torch_free(s->torch);
    us_safetensors_free(s->safetensors);
    free(s->tensors);
    free(s);
}

enum us_status us_model_source_import(const struct us_model_source *s,
                                      const struct us_import_hints *hints, struct us_model **ret,
                                      struct us_import_report *report, struct us_err *err)
{
    return us_import_model(s->dict, hints, ret, report, err);
}

int32_t us_model_source_foreign(const struct us_model_source *s, const char **ret_first)
{
    *ret_first = "";
    return s->torch == NULL ? 0 : us_torch_foreign(s->torch, ret_first);
}

/* ---- what the hyper-parameters say of the network ------------------------------------------ */

/* The first of several names that a setting goes by; NULL ends them. */
static bool find(const struct us_model_source *s, const char *const *keys,
                 struct us_torch_value *ret)
{
    for (; s->torch != NULL && *keys != NULL; keys++)
        if (us_torch_setting(s->torch, NULL, *keys, ret))
            return true;
    return false;
}

#define KEYS(...)                                                                                  \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

static bool is_number(const struct us_torch_value *v)
{
    return v->kind == US_TORCH_INT || v->kind == US_TORCH_REAL;
}

static void find_real(const struct us_model_source *s, const char *const *keys, float *out)
{
    struct us_torch_value v;
    if (find(s, keys, &v) && !v.list && is_number(&v))
        *out = (float)v.real[0];
}

static enum us_status check_word(const struct us_model_source *s, const char *const *keys,
                                 const char *what, const char *expected, struct us_err *err)
{
    struct us_torch_value v;
    if (!find(s, keys, &v) || v.list || v.kind != US_TORCH_TEXT ||
        strcasecmp(v.text[0], expected) == 0)
        return US_OK;
    return us_fail(err, US_E_UNSUPPORTED, "the file's settings say %s %s; our networks have %s",
                   what, v.text[0], expected);
}

static enum us_status read_logvar(const struct us_model_source *s, struct us_import_hints *hints,
                                  struct us_err *err)
{
    static const char *const words[] = {"", "pixelwise", "channelwise", "global"};
    struct us_torch_value v;
    if (!find(s, KEYS("predict_logvar"), &v) || v.list)
        return US_OK;
    if (v.kind == US_TORCH_NONE)
        hints->logvar = US_LOGVAR_NONE;
    for (size_t i = 1; v.kind == US_TORCH_TEXT && i < US_COUNT(words); i++) {
        if (strcmp(v.text[0], words[i]) == 0) {
            hints->logvar = (int32_t)i;
            return US_OK;
        }
    }
    if (v.kind == US_TORCH_TEXT)
        return us_fail(
            err, US_E_UNSUPPORTED,
            "the file's settings say predict_logvar %s; expected pixelwise, channelwise, "
            "global or none",
            v.text[0]);
    return US_OK;
}

/* input_shape is (y, x), image_size a number. */
static void read_patch(const struct us_model_source *s, struct us_import_hints *hints)
{
    struct us_torch_value v;
    if (!find(s, KEYS("input_shape", "image_size"), &v) || v.kind != US_TORCH_INT || v.n < 1)
        return;
    int64_t p = v.integer[v.n - 1];
    if (p >= 1 && p <= US_MAX_PATCH)
        hints->patch = (int32_t)p;
}

enum us_status us_model_source_hints(const struct us_model_source *s, struct us_import_hints *hints,
                                     struct us_err *err)
{
    struct us_torch_value v;
    US_TRY(check_word(s, KEYS("nonlin", "nonlinearity"), "activation", "elu", err));
    US_TRY(check_word(s, KEYS("merge_type"), "merge_type", "residual", err));
    US_TRY(check_word(s, KEYS("res_block_type"), "res_block_type", "bacdbacd", err));
    if (find(s, KEYS("padding_mode"), &v) && v.kind == US_TORCH_TEXT &&
        strcmp(v.text[0], "reflect") != 0 && strcmp(v.text[0], "constant") != 0)
        return us_fail(err, US_E_UNSUPPORTED,
                       "the file's settings say padding_mode %s; expected reflect or constant",
                       v.text[0]);
    US_TRY(read_logvar(s, hints, err));
    read_patch(s, hints);
    if (find(s, KEYS("non_stochastic_version"), &v) && v.kind == US_TORCH_FLAG)
        hints->stochastic = v.integer[0] == 0;
    if (find(s, KEYS("output_channels", "target_ch"), &v) && v.kind == US_TORCH_INT && !v.list &&
        v.integer[0] >= 1 && v.integer[0] <= US_MAX_TARGETS)
        hints->target_channels = (int32_t)v.integer[0];
    find_real(s, KEYS("encoder_dropout", "dropout"), &hints->dropout);
    find_real(s, KEYS("logvar_lowerbound"), &hints->logvar_lower_bound);
    find_real(s, KEYS("var_clip_max"), &hints->var_clip_max);
    /* The encoder has a setting of the same name, which is always true. */
    if (s->torch != NULL &&
        us_torch_setting(s->torch, "decoder", "multiscale_retain_spatial_dims", &v) &&
        v.kind == US_TORCH_FLAG)
        hints->decoder_retain = v.integer[0] != 0;
    return US_OK;
}

/* ---- what they say of the images ----------------------------------------------------------- */

/* n finite numbers; a single one counts as a list of one. */
static bool find_reals(const struct us_model_source *s, const char *const *keys, int32_t n,
                       double *out)
{
    struct us_torch_value v;
    if (!find(s, keys, &v) || !is_number(&v) || v.n != n)
        return false;
    for (int32_t i = 0; i < n; i++)
        if (!isfinite(v.real[i]))
            return false;
    memcpy(out, v.real, (size_t)n * sizeof(*out));
    return true;
}

bool us_model_source_data(const struct us_model_source *s, struct us_model_data *data,
                          int32_t n_targets)
{
    struct us_torch_value v;
    struct us_model_data d = *data;
    if (find(s, KEYS("padding_mode"), &v) && v.kind == US_TORCH_TEXT)
        data->context_padding = strcmp(v.text[0], "constant") == 0 ? US_PAD_ZERO : US_PAD_REFLECT;
    double clip;
    if (find_reals(s, KEYS("max_val"), 1, &clip)) {
        data->has_clip = true;
        for (int32_t c = 0; c < n_targets; c++)
            data->clip[c] = clip;
    }
    if (!find_reals(s, KEYS("input_means", "image_means", "input_mean"), 1, &d.input_mean) ||
        !find_reals(s, KEYS("input_stds", "image_stds", "input_std"), 1, &d.input_std) ||
        !find_reals(s, KEYS("target_means", "target_mean"), n_targets, d.target_mean) ||
        !find_reals(s, KEYS("target_stds", "target_std"), n_targets, d.target_std))
        return false;
    data->input_mean = d.input_mean;
    data->input_std = d.input_std;
    memcpy(data->target_mean, d.target_mean, sizeof(d.target_mean));
    memcpy(data->target_std, d.target_std, sizeof(d.target_std));
    return true;
}
