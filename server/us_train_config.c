/*
 * The table of training settings and its JSON; see us_train_config.h. A setting is one record with
 * its place in struct us_train_settings, so adding one is one line in us_train_config.def.
 */
#include "us_train_config.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

enum kind { INT, REAL, BOUND, FLAG, WORD, TEXT, INTS, REALS, CHANNELS, MIXING };

struct setting {
    const char *section, *name;
    enum kind kind;
    size_t offset;
    int64_t def, min, max;    /* integers; CHANNELS and INTS: max_n is most */
    double rdef, rmin, rmax;  /* reals */
    int32_t most;             /* entries of a list */
    const char *words, *tdef; /* WORD; WORD and TEXT */
    const char *text;
};

#define AT(s, m) offsetof(struct us_train_settings, s##_##m)
static const struct setting table[] = {
#define US_TC_INT(s, m, d, lo, hi, t)                                                              \
    {.section = #s,                                                                                \
     .name = #m,                                                                                   \
     .kind = INT,                                                                                  \
     .offset = AT(s, m),                                                                           \
     .def = d,                                                                                     \
     .min = lo,                                                                                    \
     .max = hi,                                                                                    \
     .text = t},
#define US_TC_REAL(s, m, d, lo, hi, t)                                                             \
    {.section = #s,                                                                                \
     .name = #m,                                                                                   \
     .kind = REAL,                                                                                 \
     .offset = AT(s, m),                                                                           \
     .rdef = d,                                                                                    \
     .rmin = lo,                                                                                   \
     .rmax = hi,                                                                                   \
     .text = t},
#define US_TC_BOUND(s, m, d, lo, hi, t)                                                            \
    {.section = #s,                                                                                \
     .name = #m,                                                                                   \
     .kind = BOUND,                                                                                \
     .offset = AT(s, m),                                                                           \
     .rdef = d,                                                                                    \
     .rmin = lo,                                                                                   \
     .rmax = hi,                                                                                   \
     .text = t},
#define US_TC_FLAG(s, m, d, t)                                                                     \
    {.section = #s, .name = #m, .kind = FLAG, .offset = AT(s, m), .def = d, .text = t},
#define US_TC_WORD(s, m, d, w, t)                                                                  \
    {.section = #s, .name = #m, .kind = WORD, .offset = AT(s, m), .tdef = d, .words = w, .text = t},
#define US_TC_TEXT(s, m, d, t)                                                                     \
    {.section = #s, .name = #m, .kind = TEXT, .offset = AT(s, m), .tdef = d, .text = t},
#define US_TC_INTS(s, m, lo, hi, n, t)                                                             \
    {.section = #s,                                                                                \
     .name = #m,                                                                                   \
     .kind = INTS,                                                                                 \
     .offset = AT(s, m),                                                                           \
     .min = lo,                                                                                    \
     .max = hi,                                                                                    \
     .most = n,                                                                                    \
     .text = t},
#define US_TC_REALS(s, m, lo, hi, t)                                                               \
    {.section = #s,                                                                                \
     .name = #m,                                                                                   \
     .kind = REALS,                                                                                \
     .offset = AT(s, m),                                                                           \
     .rmin = lo,                                                                                   \
     .rmax = hi,                                                                                   \
     .most = US_MAX_TARGETS,                                                                       \
     .text = t},
#define US_TC_CHANNELS(s, m, n, t)                                                                 \
    {.section = #s, .name = #m, .kind = CHANNELS, .offset = AT(s, m), .most = n, .text = t},
#define US_TC_MIXING(s, m, t)                                                                      \
    {.section = #s,                                                                                \
     .name = #m,                                                                                   \
     .kind = MIXING,                                                                               \
     .offset = AT(s, m),                                                                           \
     .most = US_MAX_TARGETS,                                                                       \
     .text = t},
#include "us_train_config.def"
#undef US_TC_INT
#undef US_TC_REAL
#undef US_TC_BOUND
#undef US_TC_FLAG
#undef US_TC_WORD
#undef US_TC_TEXT
#undef US_TC_INTS
#undef US_TC_REALS
#undef US_TC_CHANNELS
#undef US_TC_MIXING
};

static const char *const sections[] = {"architecture", "data", "training"};

/* One value on its way in. */
struct slot {
    const char *what; /* the text's name */
    const struct setting *s;
    const json_t *v;
    void *dst;
    struct us_err *err;
};

static bool at_top(const struct setting *s)
{
    return strcmp(s->section, "top") == 0;
}

/* "training.batch" */
static const char *key_of(const struct setting *s, char buf[64])
{
    (void)snprintf(buf, 64, "%s%s%s", at_top(s) ? "" : s->section, at_top(s) ? "" : ".", s->name);
    return buf;
}

/* A number as people write it. */
static const char *real_text(double x, char buf[32])
{
    (void)snprintf(buf, 32, "%.12g", x);
    return buf;
}

/* What may stand there, in words: for errors and the table. */
static const char *allowed(const struct setting *s, char *buf, size_t n)
{
    char lo[32], hi[32];
    switch (s->kind) {
    case INT:
        (void)snprintf(buf, n, "an integer from %" PRId64 " to %" PRId64, s->min, s->max);
        break;
    case REAL:
    case BOUND:
        (void)snprintf(buf, n, "a number from %s to %s%s", real_text(s->rmin, lo),
                       real_text(s->rmax, hi), s->kind == BOUND ? ", or null" : "");
        break;
    case FLAG:
        (void)snprintf(buf, n, "true or false");
        break;
    case WORD:
        (void)snprintf(buf, n, "one of %s", s->words);
        break;
    case TEXT:
        (void)snprintf(buf, n, "a text of at most %d bytes", US_MAX_NAME - 1);
        break;
    case INTS:
        (void)snprintf(buf, n, "a list of 1 to %d integers from %" PRId64 " to %" PRId64,
                       (int)s->most, s->min, s->max);
        break;
    case REALS:
        (void)snprintf(buf, n, "a list of 1 to %d numbers from %s to %s, or null", (int)s->most,
                       real_text(s->rmin, lo), real_text(s->rmax, hi));
        break;
    case CHANNELS:
        (void)snprintf(buf, n,
                       s->most == 1 ? "a channel's number or name, or null"
                                    : "a list of 1 to %d channels' numbers or names, or null",
                       (int)s->most);
        break;
    case MIXING:
        (void)snprintf(buf, n, "\"average\" or a list of [min, max] with 0 <= min <= max <= 100");
        break;
    }
    return buf;
}

static enum us_status refuse(const struct slot *k)
{
    char key[64], may[160], *found = json_dumps(k->v, JSON_ENCODE_ANY | JSON_COMPACT);
    enum us_status s =
        us_fail(k->err, US_E_ARG, "%s: %s: found %.80s; allowed: %s", k->what, key_of(k->s, key),
                found != NULL ? found : "a value", allowed(k->s, may, sizeof(may)));
    free(found);
    return s;
}

/* ---- values -------------------------------------------------------------------------------- */

static bool take_int(const struct setting *s, const json_t *v, int64_t *dst)
{
    if (!json_is_integer(v) || json_integer_value(v) < s->min || json_integer_value(v) > s->max)
        return false;
    *dst = json_integer_value(v);
    return true;
}

static bool take_real(double min, double max, const json_t *v, double *dst)
{
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x >= min && x <= max))
        return false;
    *dst = x;
    return true;
}

/* Index of the text among words ("a|b|c"), or -1. */
static int32_t word_index(const char *words, const char *text)
{
    size_t n = strlen(text);
    int32_t i = 0;
    for (const char *p = words;; p++, i++) {
        size_t len = strcspn(p, "|");
        if (len == n && memcmp(p, text, n) == 0)
            return i;
        p += len;
        if (*p == '\0')
            return -1;
    }
}

static bool take_word(const struct setting *s, const json_t *v, int32_t *dst)
{
    int32_t i = json_is_string(v) ? word_index(s->words, json_string_value(v)) : -1;
    if (i < 0)
        return false;
    *dst = i;
    return true;
}

static bool take_text(const json_t *v, char dst[US_MAX_NAME])
{
    size_t n = json_string_length(v);
    if (!json_is_string(v) || n >= US_MAX_NAME || strlen(json_string_value(v)) != n)
        return false;
    memcpy(dst, json_string_value(v), n + 1);
    return true;
}

static bool list_of(const struct setting *s, const json_t *v)
{
    return json_is_array(v) && json_array_size(v) >= 1 && json_array_size(v) <= (size_t)s->most;
}

static bool take_ints(const struct setting *s, const json_t *v, struct us_tc_ints *dst)
{
    bool ok = list_of(s, v);
    dst->n = ok ? (int32_t)json_array_size(v) : 0;
    for (int32_t i = 0; i < dst->n && ok; i++)
        ok = take_int(s, json_array_get(v, (size_t)i), &dst->v[i]);
    return ok;
}

static bool take_reals(const struct setting *s, const json_t *v, struct us_tc_reals *dst)
{
    double sum = 0.0;
    *dst = (struct us_tc_reals){0};
    if (json_is_null(v))
        return true;
    bool ok = list_of(s, v);
    dst->n = ok ? (int32_t)json_array_size(v) : 0;
    for (int32_t i = 0; i < dst->n && ok; i++) {
        ok = take_real(s->rmin, s->rmax, json_array_get(v, (size_t)i), &dst->v[i]);
        sum += dst->v[i];
    }
    return ok && sum > 0.0; /* all zero would train nothing */
}

static bool take_channel(const json_t *v, struct us_channel_choice *dst)
{
    *dst = (struct us_channel_choice){0};
    if (json_is_string(v))
        return take_text(v, dst->name) && dst->name[0] != '\0';
    dst->index = json_integer_value(v);
    return json_is_integer(v) && dst->index >= 0;
}

static bool take_channels(const struct setting *s, const json_t *v, struct us_tc_channels *dst)
{
    dst->n = 0;
    if (json_is_null(v))
        return true;
    if (s->most == 1) {
        dst->n = 1;
        return take_channel(v, &dst->v[0]);
    }
    bool ok = list_of(s, v);
    dst->n = ok ? (int32_t)json_array_size(v) : 0;
    for (int32_t i = 0; i < dst->n && ok; i++)
        ok = take_channel(json_array_get(v, (size_t)i), &dst->v[i]);
    return ok;
}

static bool take_mixing(const struct setting *s, const json_t *v, struct us_tc_mixing *dst)
{
    dst->n = 0;
    if (json_is_string(v))
        return strcmp(json_string_value(v), "average") == 0;
    bool ok = list_of(s, v);
    dst->n = ok ? (int32_t)json_array_size(v) : 0;
    double top = 0.0;
    for (int32_t i = 0; i < dst->n && ok; i++) {
        const json_t *pair = json_array_get(v, (size_t)i);
        ok = json_array_size(pair) == 2 &&
             take_real(0.0, 100.0, json_array_get(pair, 0), &dst->min[i]) &&
             take_real(dst->min[i], 100.0, json_array_get(pair, 1), &dst->max[i]);
        top = fmax(top, dst->max[i]);
    }
    return ok && top > 0.0;
}

static enum us_status take(const struct slot *k)
{
    const struct setting *s = k->s;
    bool ok = false;
    switch (s->kind) {
    case INT:
        ok = take_int(s, k->v, k->dst);
        break;
    case BOUND:
        ok = json_is_null(k->v) || take_real(s->rmin, s->rmax, k->v, k->dst);
        if (json_is_null(k->v))
            *(double *)k->dst = (double)INFINITY;
        break;
    case REAL:
        ok = take_real(s->rmin, s->rmax, k->v, k->dst);
        break;
    case FLAG:
        ok = json_is_boolean(k->v);
        *(bool *)k->dst = json_is_true(k->v);
        break;
    case WORD:
        ok = take_word(s, k->v, k->dst);
        break;
    case TEXT:
        ok = take_text(k->v, k->dst);
        break;
    case INTS:
        ok = take_ints(s, k->v, k->dst);
        break;
    case REALS:
        ok = take_reals(s, k->v, k->dst);
        break;
    case CHANNELS:
        ok = take_channels(s, k->v, k->dst);
        break;
    case MIXING:
        ok = take_mixing(s, k->v, k->dst);
        break;
    }
    return ok ? US_OK : refuse(k);
}

/* ---- the file ------------------------------------------------------------------------------ */

/* What the variant decides, before the members that may say otherwise. */
static void apply_variant(struct us_train_settings *s)
{
    static const char *const words[] = {"vanilla", "lean", "regular", "deep"};
    struct us_arch a = us_arch_default();
    US_ASSERT(us_arch_set_variant(&a, words[s->architecture_variant], NULL) == US_OK);
    s->architecture_z_dims.n = a.n_levels;
    for (int32_t i = 0; i < a.n_levels; i++)
        s->architecture_z_dims.v[i] = a.z_dims[i];
    s->architecture_lc_scales = a.lc_scales;
    s->architecture_decoder_retain = a.decoder_retain;
}

static void set_default(const struct setting *s, void *dst)
{
    switch (s->kind) {
    case INT:
        *(int64_t *)dst = s->def;
        break;
    case REAL:
    case BOUND:
        *(double *)dst = s->rdef;
        break;
    case FLAG:
        *(bool *)dst = s->def != 0;
        break;
    case WORD:
        *(int32_t *)dst = word_index(s->words, s->tdef);
        break;
    case TEXT:
        (void)snprintf(dst, US_MAX_NAME, "%s", s->tdef);
        break;
    case INTS:
    case REALS:
    case CHANNELS:
    case MIXING:
        break; /* zero; apply_variant fills z_dims */
    }
}

struct us_train_settings us_train_settings_defaults(void)
{
    struct us_train_settings s;
    memset(&s, 0, sizeof(s));
    for (size_t i = 0; i < US_COUNT(table); i++)
        set_default(&table[i], (char *)&s + table[i].offset);
    apply_variant(&s);
    return s;
}

/* How many single-character changes lie between two names, roughly: shared prefix and suffix do
 * not count. Enough to find a typing error among sixty names. */
static size_t unlike(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b), front = 0, back = 0;
    while (front < n && front < m && a[front] == b[front])
        front++;
    while (back < n - front && back < m - front && a[n - 1 - back] == b[m - 1 - back])
        back++;
    size_t x = n - front - back, y = m - front - back;
    return x > y ? x : y;
}

static void nearer(const char *key, const char *name, const char **best, size_t *least)
{
    size_t d = unlike(key, name);
    if (d < *least) {
        *least = d;
        *best = name;
    }
}

static enum us_status unknown_key(const char *what, const char *section, const char *key,
                                  struct us_err *err)
{
    const char *best = "", *elsewhere = NULL;
    size_t least = SIZE_MAX;
    bool top = strcmp(section, "top") == 0;
    for (size_t i = 0; i < US_COUNT(table); i++) {
        if (strcmp(table[i].section, section) == 0)
            nearer(key, table[i].name, &best, &least);
        else if (strcmp(table[i].name, key) == 0)
            elsewhere = table[i].section;
    }
    for (size_t i = 0; i < US_COUNT(sections) && top; i++)
        nearer(key, sections[i], &best, &least);
    const char *prefix = top ? "" : section, *dot = top ? "" : ".";
    if (elsewhere != NULL)
        return us_fail(err, US_E_ARG, "%s: unknown key %s%s%.60s; it belongs to %s", what, prefix,
                       dot, key, strcmp(elsewhere, "top") == 0 ? "the top" : elsewhere);
    return us_fail(err, US_E_ARG, "%s: unknown key %s%s%.60s; the nearest known one is %s%s%s",
                   what, prefix, dot, key, prefix, dot, best);
}

static const struct setting *find_setting(const char *section, const char *key)
{
    for (size_t i = 0; i < US_COUNT(table); i++) {
        if (strcmp(table[i].section, section) == 0 && strcmp(table[i].name, key) == 0)
            return &table[i];
    }
    return NULL;
}

static bool is_section(const char *key)
{
    for (size_t i = 0; i < US_COUNT(sections); i++) {
        if (strcmp(sections[i], key) == 0)
            return true;
    }
    return false;
}

static enum us_status check_keys(const char *what, const char *section, const json_t *object,
                                 struct us_err *err)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)object, key, v)
    {
        if (find_setting(section, key) == NULL && !(strcmp(section, "top") == 0 && is_section(key)))
            return unknown_key(what, section, key, err);
    }
    return US_OK;
}

static enum us_status read_section(const char *what, const char *section, const json_t *object,
                                   struct us_train_settings *ret, struct us_err *err)
{
    if (!json_is_object(object))
        return us_fail(err, US_E_ARG, "%s: %s is not an object", what, section);
    US_TRY(check_keys(what, section, object, err));
    for (size_t i = 0; i < US_COUNT(table); i++) {
        struct slot k = {what, &table[i], json_object_get(object, table[i].name),
                         (char *)ret + table[i].offset, err};
        if (k.v == NULL || strcmp(table[i].section, section) != 0)
            continue;
        US_TRY(take(&k));
        if (strcmp(table[i].name, "variant") == 0)
            apply_variant(ret);
    }
    return US_OK;
}

enum us_status us_train_settings_parse(const char *text, size_t n, const char *what,
                                       struct us_train_settings *ret, struct us_err *err)
{
    if (n > (size_t)US_MAX_TRAIN_CONFIG_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "%s: %zu bytes; expected at most %lld", what, n,
                       US_MAX_TRAIN_CONFIG_BYTES);
    json_error_t at;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &at);
    if (root == NULL)
        return us_fail(err, US_E_FORMAT, "%s: line %d: %s", what, at.line, at.text);
    struct us_train_settings s = us_train_settings_defaults();
    enum us_status status = json_is_object(root)
                                ? read_section(what, "top", root, &s, err)
                                : us_fail(err, US_E_ARG, "%s: not an object", what);
    for (size_t i = 0; i < US_COUNT(sections) && status == US_OK; i++) {
        const json_t *section = json_object_get(root, sections[i]);
        if (section != NULL)
            status = read_section(what, sections[i], section, &s, err);
    }
    json_decref(root);
    if (status == US_OK)
        *ret = s;
    return status;
}

enum us_status us_train_settings_read(const char *path, struct us_train_settings *ret,
                                      struct us_err *err)
{
    FILE *in = fopen(path, "rbe");
    if (in == NULL)
        return us_fail(err, errno == ENOENT ? US_E_NOT_FOUND : US_E_IO, "%s: %s", path,
                       strerror(errno));
    char *text = malloc((size_t)US_MAX_TRAIN_CONFIG_BYTES + 1);
    enum us_status s = US_OK;
    if (text == NULL)
        s = us_fail(err, US_E_NOMEM, "%s: out of memory", path);
    size_t n = text != NULL ? fread(text, 1, (size_t)US_MAX_TRAIN_CONFIG_BYTES + 1, in) : 0;
    if (s == US_OK && ferror(in) != 0)
        s = us_fail(err, US_E_IO, "%s: %s", path, strerror(errno));
    if (s == US_OK)
        s = us_train_settings_parse(text, n, path, ret, err);
    free(text);
    (void)fclose(in);
    return s;
}

/* ---- printing ------------------------------------------------------------------------------ */

static json_t *word_json(const struct setting *s, int32_t index)
{
    const char *p = s->words;
    for (; index > 0; index--)
        p += strcspn(p, "|") + 1;
    return json_stringn(p, strcspn(p, "|"));
}

static json_t *channel_json(const struct us_channel_choice *c)
{
    return c->name[0] != '\0' ? json_string(c->name) : json_integer(c->index);
}

static json_t *channels_json(const struct setting *s, const struct us_tc_channels *c)
{
    if (c->n == 0)
        return json_null();
    if (s->most == 1)
        return channel_json(&c->v[0]);
    json_t *list = json_array();
    for (int32_t i = 0; i < c->n; i++)
        (void)json_array_append_new(list, channel_json(&c->v[i]));
    return list;
}

static json_t *mixing_json(const struct us_tc_mixing *m)
{
    if (m->n == 0)
        return json_string("average");
    json_t *list = json_array();
    for (int32_t i = 0; i < m->n; i++)
        (void)json_array_append_new(list, json_pack("[f, f]", m->min[i], m->max[i]));
    return list;
}

static json_t *reals_json(const struct us_tc_reals *r)
{
    if (r->n == 0)
        return json_null();
    json_t *list = json_array();
    for (int32_t i = 0; i < r->n; i++)
        (void)json_array_append_new(list, json_real(r->v[i]));
    return list;
}

static json_t *ints_json(const struct us_tc_ints *r)
{
    json_t *list = json_array();
    for (int32_t i = 0; i < r->n; i++)
        (void)json_array_append_new(list, json_integer(r->v[i]));
    return list;
}

static json_t *value_json(const struct setting *s, const void *v)
{
    switch (s->kind) {
    case INT:
        return json_integer(*(const int64_t *)v);
    case REAL:
    case BOUND:
        return isfinite(*(const double *)v) ? json_real(*(const double *)v) : json_null();
    case FLAG:
        return json_boolean(*(const bool *)v);
    case WORD:
        return word_json(s, *(const int32_t *)v);
    case TEXT:
        return json_string(v);
    case INTS:
        return ints_json(v);
    case REALS:
        return reals_json(v);
    case CHANNELS:
        return channels_json(s, v);
    case MIXING:
        return mixing_json(v);
    }
    return NULL;
}

char *us_train_settings_print(const struct us_train_settings *s)
{
    json_t *root = json_object();
    for (size_t i = 0; i < US_COUNT(table); i++) {
        json_t *in = root;
        if (!at_top(&table[i])) {
            in = json_object_get(root, table[i].section);
            if (in == NULL && json_object_set_new(root, table[i].section, json_object()) == 0)
                in = json_object_get(root, table[i].section);
        }
        (void)json_object_set_new(in, table[i].name,
                                  value_json(&table[i], (const char *)s + table[i].offset));
    }
    /* 15 digits print 0.1 as 0.1; the parser gives back the same double for what people type. */
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    json_decref(root);
    return text;
}

static json_t *describe(const struct setting *s, const struct us_train_settings *d)
{
    static const char *const kinds[] = {"int",  "real", "bound", "flag",     "word",
                                        "text", "ints", "reals", "channels", "mixing"};
    char key[64], may[160];
    json_t *row = json_pack("{s:s, s:s, s:o, s:s, s:s}", "key", key_of(s, key), "kind",
                            kinds[s->kind], "default", value_json(s, (const char *)d + s->offset),
                            "allowed", allowed(s, may, sizeof(may)), "text", s->text);
    if (s->kind == INT) {
        (void)json_object_set_new(row, "min", json_integer(s->min));
        (void)json_object_set_new(row, "max", json_integer(s->max));
    } else if (s->kind == REAL || s->kind == BOUND) {
        (void)json_object_set_new(row, "min", json_real(s->rmin));
        (void)json_object_set_new(row, "max", json_real(s->rmax));
    } else if (s->kind == WORD) {
        (void)json_object_set_new(row, "words", json_string(s->words));
    }
    return row;
}

char *us_train_settings_describe(void)
{
    const struct us_train_settings d = us_train_settings_defaults();
    json_t *list = json_array();
    for (size_t i = 0; i < US_COUNT(table); i++)
        (void)json_array_append_new(list, describe(&table[i], &d));
    json_t *root = json_pack("{s:o}", "settings", list);
    char *text = root != NULL ? json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(15)) : NULL;
    json_decref(root);
    return text;
}

void us_train_settings_table(FILE *out)
{
    const struct us_train_settings d = us_train_settings_defaults();
    (void)fputs("| setting | default | allowed | meaning |\n|---|---|---|---|\n", out);
    for (size_t i = 0; i < US_COUNT(table); i++) {
        char key[64], may[160];
        json_t *v = value_json(&table[i], (const char *)&d + table[i].offset);
        char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15));
        (void)allowed(&table[i], may, sizeof(may));
        for (char *p = may; *p != '\0'; p++) {
            if (*p == '|')
                *p = '/'; /* a bar would end the cell */
        }
        (void)fprintf(out, "| `%s` | `%s` | %s | %s |\n", key_of(&table[i], key),
                      text != NULL ? text : "", may, table[i].text);
        free(text);
        json_decref(v);
    }
}
