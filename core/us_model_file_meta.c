/*
 * The "usplit" text of a model file <-> struct us_model (model-file.md, "Metadata").
 *
 * One table describes every member: its place in the struct, its type, its bounds. Reading checks
 * against it, writing follows its order. Writing then reads its own text back, so that no file is
 * written that could not be read. Members that the table does not know survive in extra_json.
 */
#include "us_model_file.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bounds of intensities, their statistics and calibrations: far beyond any camera, and float32
 * arithmetic on them stays finite. */
#define INTENSITY_MAX 1e30
#define STD_MIN       1e-30
#define PIXEL_UM_MIN  1e-6
#define PIXEL_UM_MAX  1e6

#define PATH_BYTES 96

enum kind { K_VERSION, K_OBJECT, K_FREE, K_BOOL, K_INT, K_FLOAT, K_DOUBLE, K_WORD, K_NAME };

enum count { ONE = 0, PER_LEVEL, PER_TARGET };

enum presence { REQUIRED = 0, OPTIONAL };

/* What a null stands for. */
enum null_meaning { NO_NULL = 0, NULL_IS_INFINITY, NULL_IS_ZERO };

struct field {
    const char *name;
    enum kind kind;
    size_t offset; /* in struct us_model */
    enum presence presence;
    enum count count; /* a list, one entry per level or target channel */
    enum null_meaning null_meaning;
    double min, max;
    const char *const *words;   /* K_WORD: by enum value, NULL at the end */
    const char *const *refused; /* K_WORD: known, but not by this version */
    const struct field *fields; /* K_OBJECT: members, nameless at the end */
    size_t flag;                /* offset of a bool that says if the member is there; 0: none */
};

#define AT(member)  .offset = offsetof(struct us_model, member)
#define HAS(member) .flag = offsetof(struct us_model, member)

static const char *const family_words[] = {"lvae", NULL};
static const char *const family_refused[] = {"unet", "unet_context", "bravenet", NULL};
static const char *const logvar_words[] = {"none", "pixelwise", "channelwise", "global", NULL};
static const char *const mixing_words[] = {"average", "sum", NULL};
static const char *const method_words[] = {"halving", NULL};
static const char *const method_refused[] = {"single", NULL};
static const char *const padding_words[] = {"reflect", "zero", NULL};

static const struct field architecture_fields[] = {
    {"family", K_WORD, AT(arch.family), .words = family_words, .refused = family_refused},
    {"stochastic", K_BOOL, AT(arch.stochastic)},
    {"z_dims", K_INT, AT(arch.z_dims), .count = PER_LEVEL, .min = 1, .max = US_MAX_ZDIM},
    {"lc_scales", K_INT, AT(arch.lc_scales), .min = 1, .max = US_MAX_SCALES},
    {"decoder_retain", K_BOOL, AT(arch.decoder_retain)},
    {"n_filters", K_INT, AT(arch.n_filters), .min = 1, .max = US_MAX_FILTERS},
    {"blocks_per_level", K_INT, AT(arch.blocks_per_level), .min = 1, .max = US_MAX_BLOCKS},
    {"dropout", K_FLOAT, AT(arch.dropout), .min = 0, .max = 1},
    {"predict_logvar", K_WORD, AT(arch.predict_logvar), .words = logvar_words},
    {"logvar_lower_bound", K_FLOAT, AT(arch.logvar_lower_bound), .min = -1000, .max = 1000},
    {"var_clip_max", K_FLOAT, AT(arch.var_clip_max), .null_meaning = NULL_IS_INFINITY, .min = 0,
     .max = INTENSITY_MAX},
    {"target_channels", K_INT, AT(arch.target_channels), .min = 1, .max = US_MAX_TARGETS},
    {NULL},
};

static const struct field context_fields[] = {
    {"method", K_WORD, AT(data.context_method), .words = method_words, .refused = method_refused},
    {"padding", K_WORD, AT(data.context_padding), .words = padding_words},
    {NULL},
};

static const struct field data_fields[] = {
    {"channels", K_NAME, AT(data.channels), .count = PER_TARGET},
    {"mixing", K_WORD, AT(data.mixing), .words = mixing_words},
    {"clip", K_DOUBLE, AT(data.clip), OPTIONAL, PER_TARGET, NULL_IS_INFINITY, .min = -INTENSITY_MAX,
     .max = INTENSITY_MAX, HAS(data.has_clip)},
    {"input_mean", K_DOUBLE, AT(data.input_mean), .min = -INTENSITY_MAX, .max = INTENSITY_MAX},
    {"input_std", K_DOUBLE, AT(data.input_std), .min = STD_MIN, .max = INTENSITY_MAX},
    {"target_mean", K_DOUBLE, AT(data.target_mean), .count = PER_TARGET, .min = -INTENSITY_MAX,
     .max = INTENSITY_MAX},
    {"target_std", K_DOUBLE, AT(data.target_std), .count = PER_TARGET, .min = STD_MIN,
     .max = INTENSITY_MAX},
    {"context", K_OBJECT, .fields = context_fields},
    {"pixel_size_um", K_DOUBLE, AT(data.pixel_size_um), OPTIONAL, .null_meaning = NULL_IS_ZERO,
     .min = PIXEL_UM_MIN, .max = PIXEL_UM_MAX},
    {NULL},
};

static const struct field prediction_fields[] = {
    {"inner_padding", K_INT, AT(inner_padding), .min = 0, .max = (US_MAX_PATCH - 2) / 2.0},
    {"samples", K_INT, AT(samples), .min = 1, .max = US_MAX_SAMPLES},
    {NULL},
};

static const struct field calibration_fields[] = {
    {"slope", K_DOUBLE, AT(cal_slope), .count = PER_TARGET, .min = -INTENSITY_MAX,
     .max = INTENSITY_MAX},
    {"offset", K_DOUBLE, AT(cal_offset), .count = PER_TARGET, .min = -INTENSITY_MAX,
     .max = INTENSITY_MAX},
    {NULL},
};

static const struct field model_fields[] = {
    {"format_version", K_VERSION, .min = US_MODEL_FORMAT_VERSION, .max = US_MODEL_FORMAT_VERSION},
    {"name", K_NAME, AT(name)},
    {"architecture", K_OBJECT, .fields = architecture_fields},
    {"patch_size", K_INT, AT(patch_size), .min = 8, .max = US_MAX_PATCH},
    {"data", K_OBJECT, .fields = data_fields},
    {"prediction", K_OBJECT, .fields = prediction_fields},
    {"calibration", K_OBJECT, .presence = OPTIONAL, .fields = calibration_fields,
     HAS(has_calibration)},
    {"provenance", K_FREE, .presence = OPTIONAL},
    {NULL},
};

static int32_t list_length(const struct field *f, const struct us_model *m)
{
    return f->count == PER_LEVEL ? m->arch.n_levels : m->arch.target_channels;
}

static size_t item_bytes(const struct field *f)
{
    static const size_t bytes[] = {
        [K_BOOL] = sizeof(bool),     [K_INT] = sizeof(int32_t), [K_FLOAT] = sizeof(float),
        [K_DOUBLE] = sizeof(double), [K_WORD] = sizeof(int),    [K_NAME] = US_MAX_NAME,
    };
    return bytes[f->kind];
}

/* ---- reading ------------------------------------------------------------------------------- */

/* What f allows, in words. */
static const char *expected(const struct field *f, char *buf, size_t n)
{
    const char *or_null = f->null_meaning == NO_NULL ? "" : " or null";
    if (f->kind == K_INT)
        (void)snprintf(buf, n, "an integer from %.0f to %.0f", f->min, f->max);
    else if (f->kind == K_FLOAT || f->kind == K_DOUBLE)
        (void)snprintf(buf, n, "a number from %g to %g%s", f->min, f->max, or_null);
    else if (f->kind == K_BOOL)
        (void)snprintf(buf, n, "true or false");
    else if (f->kind == K_NAME)
        (void)snprintf(buf, n, "1 to %d bytes of UTF-8 without control characters",
                       US_MAX_NAME - 1);
    else if (f->kind == K_WORD) {
        size_t at = 0;
        for (size_t i = 0; f->words[i] != NULL && at < n; i++)
            at += (size_t)snprintf(buf + at, n - at, "%s\"%s\"", i == 0 ? "" : " or ", f->words[i]);
    }
    return buf;
}

static int find_word(const char *const *words, const char *s)
{
    for (int i = 0; words != NULL && s != NULL && words[i] != NULL; i++) {
        if (strcmp(words[i], s) == 0)
            return i;
    }
    return -1;
}

static bool is_name(const char *s)
{
    size_t n = s == NULL ? 0 : strnlen(s, US_MAX_NAME);
    if (n == 0 || n >= US_MAX_NAME)
        return false;
    for (size_t i = 0; i < n;) {
        size_t bytes = usi_utf8_bytes(s + i);
        if (bytes == 0 || (unsigned char)s[i] < 0x20 || s[i] == 0x7f)
            return false;
        i += bytes;
    }
    return true;
}

static bool read_number(const struct field *f, const struct usi_json *v, void *out)
{
    double x = v->type == USI_JSON_INTEGER ? (double)v->integer : v->real;
    if (v->type == USI_JSON_NULL && f->null_meaning != NO_NULL)
        x = f->null_meaning == NULL_IS_INFINITY ? INFINITY : 0.0;
    else if ((v->type != USI_JSON_INTEGER && v->type != USI_JSON_REAL) ||
             !(x >= f->min && x <= f->max))
        return false;
    if (f->kind == K_FLOAT)
        *(float *)out = (float)x;
    else
        *(double *)out = x;
    return true;
}

/* One scalar of type f->kind to *out; false: it is not what the table allows. */
static bool read_scalar(const struct field *f, const struct usi_json *v, void *out)
{
    const char *s = usi_json_string(v);
    int word;
    switch (f->kind) {
    case K_BOOL:
        *(bool *)out = v->type == USI_JSON_TRUE;
        return v->type == USI_JSON_TRUE || v->type == USI_JSON_FALSE;
    case K_INT:
        if (v->type != USI_JSON_INTEGER || (double)v->integer < f->min ||
            (double)v->integer > f->max)
            return false;
        *(int32_t *)out = (int32_t)v->integer;
        return true;
    case K_FLOAT:
    case K_DOUBLE:
        return read_number(f, v, out);
    case K_WORD:
        word = find_word(f->words, s);
        memcpy(out, &word, sizeof(word));
        return word >= 0;
    case K_NAME:
        if (!is_name(s))
            return false;
        memcpy(out, s, strlen(s) + 1);
        return true;
    default:
        return false;
    }
}

static enum us_status refuse(const struct field *f, const struct usi_json *v, const char *path,
                             struct us_err *err)
{
    char found[64], want[128];
    (void)usi_json_describe(v, found, sizeof(found));
    if (find_word(f->refused, usi_json_string(v)) >= 0)
        return us_fail(err, US_E_UNSUPPORTED, "%s is %s, which this version does not support yet",
                       path, found);
    return us_fail(err, US_E_FORMAT, "%s is %s; expected %s", path, found,
                   expected(f, want, sizeof(want)));
}

/* z_dims sets the number of levels; the other lists must fit target_channels, read before. */
static enum us_status read_list(const struct field *f, const struct usi_json *v, const char *path,
                                struct us_model *m, struct us_err *err)
{
    char found[64];
    (void)usi_json_describe(v, found, sizeof(found));
    bool is_list = v->type == USI_JSON_ARRAY;
    if (f->count == PER_LEVEL) {
        if (!is_list || v->n < 1 || v->n > US_MAX_LEVELS)
            return us_fail(err, US_E_FORMAT, "%s is %s; expected a list of 1 to %d, one per level",
                           path, found, US_MAX_LEVELS);
        m->arch.n_levels = v->n;
    }
    if (!is_list || v->n != list_length(f, m))
        return us_fail(err, US_E_FORMAT, "%s is %s; expected a list of %d, one per target channel",
                       path, found, m->arch.target_channels);
    char *out = (char *)m + f->offset;
    int i = 0;
    for (const struct usi_json *x = v->first; x != NULL; x = x->next, i++) {
        char item[PATH_BYTES + 32];
        (void)snprintf(item, sizeof(item), "%s[%d]", path, i);
        if (!read_scalar(f, x, out + (size_t)i * item_bytes(f)))
            return refuse(f, x, item, err);
    }
    return US_OK;
}

static enum us_status read_version(const struct usi_json *v, struct us_err *err)
{
    char found[64];
    (void)usi_json_describe(v, found, sizeof(found));
    if (v->type != USI_JSON_INTEGER || v->integer < 1)
        return us_fail(err, US_E_FORMAT, "format_version is %s; expected %d", found,
                       US_MODEL_FORMAT_VERSION);
    if (v->integer > US_MODEL_FORMAT_VERSION)
        return us_fail(err, US_E_UNSUPPORTED,
                       "format_version is %s, written by a newer usplit; this one reads %d", found,
                       US_MODEL_FORMAT_VERSION);
    return US_OK;
}

static enum us_status read_object(const struct field *fields, const struct usi_json *object,
                                  const char *path, struct us_model *m, struct us_err *err);

static enum us_status read_field(const struct field *f, const struct usi_json *v, const char *path,
                                 struct us_model *m, struct us_err *err)
{
    if (f->kind == K_VERSION)
        return read_version(v, err);
    if (f->kind == K_FREE)
        return US_OK;
    if (f->kind == K_OBJECT)
        return read_object(f->fields, v, path, m, err);
    if (f->count != ONE)
        return read_list(f, v, path, m, err);
    if (!read_scalar(f, v, (char *)m + f->offset))
        return refuse(f, v, path, err);
    return US_OK;
}

static enum us_status read_object(const struct field *fields, const struct usi_json *object,
                                  const char *path, struct us_model *m, struct us_err *err)
{
    char found[64];
    if (object->type != USI_JSON_OBJECT)
        return us_fail(err, US_E_FORMAT, "%s is %s; expected an object",
                       path[0] == '\0' ? "__metadata__.usplit" : path,
                       usi_json_describe(object, found, sizeof(found)));
    for (const struct field *f = fields; f->name != NULL; f++) {
        char member[PATH_BYTES];
        (void)snprintf(member, sizeof(member), "%s%s%s", path, path[0] == '\0' ? "" : ".", f->name);
        const struct usi_json *v = usi_json_get(object, f->name);
        if (v == NULL && f->presence == REQUIRED)
            return us_fail(err, US_E_FORMAT, "%s is missing", member);
        /* A null where nothing stands is the same as leaving the member out. */
        bool is_there = v != NULL && (f->flag == 0 || v->type != USI_JSON_NULL);
        if (f->flag != 0)
            *(bool *)((char *)m + f->flag) = is_there;
        if (is_there)
            US_TRY(read_field(f, v, member, m, err));
    }
    return US_OK;
}

/* What involves more than one member. */
static enum us_status check_together(const struct us_model *m, struct us_err *err)
{
    if (2 * m->inner_padding >= m->patch_size)
        return us_fail(err, US_E_FORMAT,
                       "prediction.inner_padding is %d on patch_size %d; expected at most %d",
                       m->inner_padding, m->patch_size, (m->patch_size - 1) / 2);
    struct us_err why = {0};
    enum us_status s = us_arch_check(&m->arch, m->patch_size, &why);
    if (s != US_OK)
        return us_fail(err, s == US_E_ARG ? US_E_FORMAT : s, "architecture: %s", why.msg);
    return US_OK;
}

/* text is changed by parsing: the caller gives a copy and frees it after the values. */
static enum us_status parse_text(char *copy, struct usi_json **ret, struct us_err *err)
{
    if (copy == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the metadata");
    return usi_json_parse(copy, strlen(copy), US_MAX_MODEL_JSON_VALUES, "__metadata__.usplit", ret,
                          err);
}

enum us_status usi_meta_read(const char *text, struct us_model *m, struct us_err *err)
{
    char *copy = strdup(text);
    struct usi_json *root = NULL;
    enum us_status s = parse_text(copy, &root, err);
    if (s == US_OK)
        s = read_object(model_fields, root, "", m, err);
    if (s == US_OK)
        s = check_together(m, err);
    free(root);
    free(copy);
    return s;
}

/* ---- writing ------------------------------------------------------------------------------- */

/* The double that is spelled like the shortest decimal that names x: 0.1f becomes 0.1. */
static double double_of_float(float x)
{
    char buf[32];
    for (int digits = 6; digits <= 9; digits++) {
        (void)snprintf(buf, sizeof(buf), "%.*g", digits, (double)x);
        if (strtof(buf, NULL) == x)
            break;
    }
    return strtod(buf, NULL);
}

/* What JSON cannot say becomes a value that the reader's check names and refuses. */
static void write_number(struct usi_text *t, const struct field *f, double x)
{
    if ((f->null_meaning == NULL_IS_INFINITY && x == INFINITY) ||
        (f->null_meaning == NULL_IS_ZERO && x == 0.0))
        usi_text_add(t, "null", 4);
    else if (isfinite(x))
        usi_text_add_real(t, x);
    else
        usi_text_add_string(t, "not finite");
}

static void write_word(struct usi_text *t, const struct field *f, int word)
{
    int n = 0;
    while (f->words[n] != NULL)
        n++;
    if (word >= 0 && word < n)
        usi_text_add_string(t, f->words[word]);
    else
        usi_text_printf(t, "%d", word);
}

static void write_scalar(struct usi_text *t, const struct field *f, const void *in)
{
    int word;
    switch (f->kind) {
    case K_BOOL:
        usi_text_printf(t, "%s", *(const bool *)in ? "true" : "false");
        break;
    case K_INT:
        usi_text_printf(t, "%d", *(const int32_t *)in);
        break;
    case K_FLOAT:
        write_number(t, f, double_of_float(*(const float *)in));
        break;
    case K_DOUBLE:
        write_number(t, f, *(const double *)in);
        break;
    case K_WORD:
        memcpy(&word, in, sizeof(word));
        write_word(t, f, word);
        break;
    case K_NAME:
        if (is_name(in))
            usi_text_add_string(t, in);
        else
            usi_text_add(t, "null", 4);
        break;
    default:
        break;
    }
}

static void write_list(struct usi_text *t, const struct field *f, const struct us_model *m)
{
    const char *in = (const char *)m + f->offset;
    usi_text_add(t, "[", 1);
    for (int32_t i = 0; i < list_length(f, m); i++) {
        usi_text_add(t, ", ", i == 0 ? 0 : 2);
        write_scalar(t, f, in + (size_t)i * item_bytes(f));
    }
    usi_text_add(t, "]", 1);
}

static void write_object(struct usi_text *t, const struct field *fields, const struct us_model *m,
                         const struct usi_json *extra);

static void write_field(struct usi_text *t, const struct field *f, const struct us_model *m,
                        const struct usi_json *extra)
{
    if (f->flag != 0 && !*(const bool *)((const char *)m + f->flag))
        usi_text_add(t, "null", 4);
    else if (f->kind == K_VERSION)
        usi_text_printf(t, "%d", US_MODEL_FORMAT_VERSION);
    else if (f->kind == K_OBJECT)
        write_object(t, f->fields, m, extra);
    else if (f->kind == K_FREE && extra == NULL)
        usi_text_add(t, "{}", 2);
    else if (f->kind == K_FREE)
        usi_text_add_json(t, extra);
    else if (f->count != ONE)
        write_list(t, f, m);
    else
        write_scalar(t, f, (const char *)m + f->offset);
}

static bool is_known(const struct field *fields, const char *name)
{
    while (fields->name != NULL && strcmp(fields->name, name) != 0)
        fields++;
    return fields->name != NULL;
}

/* The table's members in its order, then those of extra that the table does not know. */
static void write_object(struct usi_text *t, const struct field *fields, const struct us_model *m,
                         const struct usi_json *extra)
{
    usi_text_add(t, "{", 1);
    for (const struct field *f = fields; f->name != NULL; f++) {
        usi_text_printf(t, "%s\"%s\": ", f == fields ? "" : ", ", f->name);
        write_field(t, f, m, usi_json_get(extra, f->name));
    }
    bool object = extra != NULL && extra->type == USI_JSON_OBJECT;
    for (const struct usi_json *v = object ? extra->first : NULL; v != NULL; v = v->next) {
        if (is_known(fields, v->key))
            continue;
        usi_text_add(t, ", ", 2);
        usi_text_add_string(t, v->key);
        usi_text_add(t, ": ", 2);
        usi_text_add_json(t, v);
    }
    usi_text_add(t, "}", 1);
}

static enum us_status check_readable(const char *text, struct us_err *err)
{
    struct us_model again = {0};
    struct us_err why = {0};
    enum us_status s = usi_meta_read(text, &again, &why);
    if (s == US_OK || s == US_E_NOMEM)
        return s == US_OK ? s : us_fail(err, s, "%s", why.msg);
    return us_fail(err, US_E_ARG, "the model cannot be written: %s", why.msg);
}

enum us_status us_model_metadata(const struct us_model *m, char **ret, struct us_err *err)
{
    char *copy = NULL;
    struct usi_json *extra = NULL;
    struct usi_text text = {0};
    enum us_status s = US_OK;
    if (m->extra_json != NULL) {
        copy = strdup(m->extra_json);
        s = parse_text(copy, &extra, err);
    }
    if (s == US_OK) {
        write_object(&text, model_fields, m, extra);
        s = text.failed ? us_fail(err, US_E_NOMEM, "no memory for the model's metadata")
                        : check_readable(text.p, err);
    }
    free(extra);
    free(copy);
    if (s == US_OK)
        *ret = text.p;
    else
        free(text.p);
    return s;
}
