/*
 * The header of a safetensors file: a JSON object that gives each tensor's type, shape and place,
 * and a map of strings called __metadata__. A stranger may have written it. Nothing here trusts a
 * number before it has been compared with the size of the file.
 */
#include "us_model_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An object, its three members, four dimensions, two offsets, and as many again to spare. */
#define VALUES_PER_TENSOR 20

static const struct {
    const char *name;
    int64_t bytes;
} dtypes[] = {
    [USI_F32] = {"F32", 4},
    [USI_BF16] = {"BF16", 2},
    [USI_F16] = {"F16", 2},
    [USI_I64] = {"I64", 8},
};

const char *usi_dtype_name(enum usi_dtype t)
{
    return dtypes[t].name;
}

int64_t usi_dtype_bytes(enum usi_dtype t)
{
    return dtypes[t].bytes;
}

const char *usi_shape_text(const int64_t *dim, int32_t ndim, char *buf, size_t n)
{
    size_t at = (size_t)snprintf(buf, n, "[");
    for (int32_t i = 0; i < ndim && at < n; i++)
        at += (size_t)snprintf(buf + at, n - at, "%s%lld", i == 0 ? "" : ", ", (long long)dim[i]);
    if (at < n)
        (void)snprintf(buf + at, n - at, "]");
    return buf;
}

/* ---- one tensor ---------------------------------------------------------------------------- */

static enum us_status read_dtype(const struct usi_json *v, struct usi_tensor *t, struct us_err *err)
{
    char found[64];
    const char *word = usi_json_string(v);
    for (size_t i = 0; word != NULL && i < US_COUNT(dtypes); i++) {
        if (strcmp(word, dtypes[i].name) == 0) {
            t->dtype = (enum usi_dtype)i;
            return US_OK;
        }
    }
    return us_fail(err, US_E_FORMAT, "tensor %s: dtype is %s; expected F32, BF16, F16 or I64",
                   t->name, usi_json_describe(v, found, sizeof(found)));
}

/* A list of n integers >= 0; max_n is the room in out. */
static bool read_integers(const struct usi_json *v, int64_t *out, int32_t max_n, int32_t *ret_n)
{
    if (v->type != USI_JSON_ARRAY || v->n > max_n)
        return false;
    *ret_n = 0;
    for (const struct usi_json *x = v->first; x != NULL; x = x->next) {
        if (x->type != USI_JSON_INTEGER || x->integer < 0)
            return false;
        out[(*ret_n)++] = x->integer;
    }
    return true;
}

static enum us_status read_shape(const struct usi_json *v, struct usi_tensor *t, struct us_err *err)
{
    if (!read_integers(v, t->dim, US_TENSOR_MAX_DIMS, &t->ndim))
        return us_fail(err, US_E_FORMAT,
                       "tensor %s: shape is not a list of at most %d integers of 0 or more",
                       t->name, US_TENSOR_MAX_DIMS);
    t->count = 1;
    bool fits = true;
    for (int32_t i = 0; i < t->ndim; i++)
        fits = fits && !__builtin_mul_overflow(t->count, t->dim[i], &t->count);
    char text[192];
    if (!fits)
        return us_fail(err, US_E_FORMAT, "tensor %s: shape %s holds more elements than any file",
                       t->name, usi_shape_text(t->dim, t->ndim, text, sizeof(text)));
    return US_OK;
}

static enum us_status read_offsets(const struct usi_json *v, int64_t data_bytes,
                                   struct usi_tensor *t, struct us_err *err)
{
    int64_t at[2], need;
    int32_t n = 0;
    if (!read_integers(v, at, 2, &n) || n != 2)
        return us_fail(err, US_E_FORMAT, "tensor %s: data_offsets is not a list of two integers",
                       t->name);
    t->begin = at[0];
    t->end = at[1];
    if (t->begin > t->end || t->end > data_bytes)
        return us_fail(err, US_E_FORMAT,
                       "tensor %s: data_offsets [%lld, %lld] lie outside of the file's %lld bytes "
                       "of data",
                       t->name, (long long)t->begin, (long long)t->end, (long long)data_bytes);
    char text[192];
    if (__builtin_mul_overflow(t->count, dtypes[t->dtype].bytes, &need) ||
        need != t->end - t->begin)
        return us_fail(err, US_E_FORMAT,
                       "tensor %s: %s %s does not take the %lld bytes it is given", t->name,
                       dtypes[t->dtype].name, usi_shape_text(t->dim, t->ndim, text, sizeof(text)),
                       (long long)(t->end - t->begin));
    return US_OK;
}

static enum us_status read_tensor(const struct usi_json *v, int64_t data_bytes,
                                  struct usi_tensor *t, struct us_err *err)
{
    *t = (struct usi_tensor){.name = v->key, .param = -1};
    if (strlen(v->key) >= US_MAX_PARAM_NAME)
        return us_fail(err, US_E_FORMAT, "a tensor's name has %zu bytes; expected at most %d",
                       strlen(v->key), US_MAX_PARAM_NAME - 1);
    static const char *const names[] = {"dtype", "shape", "data_offsets"};
    const struct usi_json *member[US_COUNT(names)];
    for (size_t i = 0; i < US_COUNT(names); i++) {
        member[i] = usi_json_get(v, names[i]);
        if (member[i] == NULL)
            return us_fail(err, US_E_FORMAT, "tensor %s: %s is missing", v->key, names[i]);
    }
    if (v->n != US_COUNT(names))
        return us_fail(err, US_E_FORMAT,
                       "tensor %s has members beside dtype, shape and data_offsets", v->key);
    US_TRY(read_dtype(member[0], t, err));
    US_TRY(read_shape(member[1], t, err));
    return read_offsets(member[2], data_bytes, t, err);
}

/* ---- the whole header ---------------------------------------------------------------------- */

static enum us_status read_metadata(struct usi_header *h, struct us_err *err)
{
    const struct usi_json *map = usi_json_get(h->root, "__metadata__");
    if (map == NULL)
        return us_fail(err, US_E_FORMAT,
                       "no __metadata__: the file is not a usplit model, only tensors");
    bool strings = map->type == USI_JSON_OBJECT;
    for (const struct usi_json *v = strings ? map->first : NULL; v != NULL; v = v->next)
        strings = strings && v->type == USI_JSON_STRING;
    if (!strings)
        return us_fail(err, US_E_FORMAT, "__metadata__ is not a map of strings");
    const struct usi_json *format = usi_json_get(map, "format");
    char found[64];
    if (format == NULL)
        return us_fail(err, US_E_FORMAT, "__metadata__.format is missing; expected \"%s\"",
                       US_MODEL_FORMAT);
    if (strcmp(format->string, US_MODEL_FORMAT) != 0)
        return us_fail(err, US_E_FORMAT, "__metadata__.format is %s; expected \"%s\"",
                       usi_json_describe(format, found, sizeof(found)), US_MODEL_FORMAT);
    h->usplit = usi_json_string(usi_json_get(map, "usplit"));
    if (h->usplit == NULL)
        return us_fail(err, US_E_FORMAT, "__metadata__.usplit is missing");
    return US_OK;
}

static enum us_status read_tensors(struct usi_header *h, int64_t data_bytes, struct us_err *err)
{
    int32_t n = h->root->n - 1; /* all but __metadata__ */
    if (n > US_MAX_MODEL_TENSORS)
        return us_fail(err, US_E_TOO_LARGE, "header lists %d tensors; expected at most %d", n,
                       US_MAX_MODEL_TENSORS);
    h->tensors = calloc((size_t)n + 1, sizeof(*h->tensors));
    if (h->tensors == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %d tensor descriptions", n);
    for (const struct usi_json *v = h->root->first; v != NULL; v = v->next) {
        if (strcmp(v->key, "__metadata__") != 0)
            US_TRY(read_tensor(v, data_bytes, &h->tensors[h->n_tensors++], err));
    }
    return US_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct usi_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* The tensors must tile the data area: what nobody owns could hide anything. */
static enum us_status check_cover(struct usi_header *h, int64_t data_bytes, struct us_err *err)
{
    qsort(h->tensors, (size_t)h->n_tensors, sizeof(*h->tensors), by_place);
    int64_t at = 0;
    for (int32_t i = 0; i < h->n_tensors; i++) {
        const struct usi_tensor *t = &h->tensors[i];
        if (t->begin < at)
            return us_fail(err, US_E_FORMAT, "tensors %s and %s overlap", t[-1].name, t->name);
        if (t->begin > at)
            return us_fail(err, US_E_FORMAT, "%lld bytes before tensor %s belong to no tensor",
                           (long long)(t->begin - at), t->name);
        at = t->end;
    }
    if (at != data_bytes)
        return us_fail(err, US_E_FORMAT, "the file's last %lld bytes belong to no tensor",
                       (long long)(data_bytes - at));
    return US_OK;
}

/* model: the metadata must be ours. */
static enum us_status parse(char *text, size_t n_bytes, int64_t data_bytes, bool model,
                            struct usi_header *h, struct us_err *err)
{
    *h = (struct usi_header){.text = text};
    US_TRY(usi_json_parse(text, n_bytes, (size_t)VALUES_PER_TENSOR * US_MAX_MODEL_TENSORS, "header",
                          &h->root, err));
    if (h->root->type != USI_JSON_OBJECT)
        return us_fail(err, US_E_FORMAT, "header is not a JSON object");
    if (model)
        US_TRY(read_metadata(h, err));
    US_TRY(read_tensors(h, data_bytes, err));
    return check_cover(h, data_bytes, err);
}

enum us_status usi_header_parse(char *text, size_t n_bytes, int64_t data_bytes,
                                struct usi_header *h, struct us_err *err)
{
    return parse(text, n_bytes, data_bytes, true, h, err);
}

enum us_status usi_header_parse_plain(char *text, size_t n_bytes, int64_t data_bytes,
                                      struct usi_header *h, struct us_err *err)
{
    return parse(text, n_bytes, data_bytes, false, h, err);
}

void usi_header_release(struct usi_header *h)
{
    free(h->tensors);
    free(h->root);
    free(h->text);
    *h = (struct usi_header){0};
}

/* ---- against the parameter table ----------------------------------------------------------- */

static enum us_status check_tensor(const struct usi_tensor *t, const struct us_param *p,
                                   struct us_err *err)
{
    bool same = t->ndim == p->ndim;
    for (int32_t i = 0; same && i < p->ndim; i++)
        same = t->dim[i] == p->dim[i];
    char found[192], want[192];
    if (!same)
        return us_fail(err, US_E_FORMAT, "tensor %s has shape %s; expected %s", p->name,
                       usi_shape_text(t->dim, t->ndim, found, sizeof(found)),
                       usi_shape_text(p->dim, p->ndim, want, sizeof(want)));
    bool counter = p->kind == US_PARAM_BN_COUNT;
    if (counter != (t->dtype == USI_I64))
        return us_fail(err, US_E_FORMAT, "tensor %s has dtype %s; expected %s", p->name,
                       dtypes[t->dtype].name, counter ? "I64" : "F32, BF16 or F16");
    return US_OK;
}

/* Zeros stand in for what prediction does not need; they must not become a way to claim memory
 * that the file's size does not justify. */
static enum us_status check_absent(const struct us_param *p, int64_t *absent_bytes,
                                   struct us_model *m, struct us_err *err)
{
    char want[192];
    const uint32_t may = US_PARAM_TRAIN_ONLY | US_PARAM_DEAD | US_PARAM_OPTIONAL;
    if ((p->flags & may) == 0)
        return us_fail(err, US_E_FORMAT, "tensor %s is missing; expected F32 %s", p->name,
                       usi_shape_text(p->dim, p->ndim, want, sizeof(want)));
    if ((p->flags & US_PARAM_OPTIONAL) != 0)
        return US_OK;
    if ((p->flags & US_PARAM_TRAIN_ONLY) != 0 && (p->flags & US_PARAM_DEAD) == 0)
        m->complete = false;
    *absent_bytes += p->count * usi_dtype_bytes(USI_F32);
    if (*absent_bytes > US_MAX_MODEL_ABSENT_BYTES)
        return us_fail(err, US_E_TOO_LARGE,
                       "tensor %s and others are missing that would take %lld bytes; expected at "
                       "most %lld",
                       p->name, (long long)*absent_bytes, (long long)US_MAX_MODEL_ABSENT_BYTES);
    return US_OK;
}

static int by_name(const void *a, const void *b)
{
    const struct usi_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static struct usi_tensor *find_tensor(struct usi_tensor **sorted, int32_t n, const char *name)
{
    const struct usi_tensor wanted = {.name = name}, *key = &wanted;
    struct usi_tensor **hit =
        bsearch(&key, sorted, (size_t)n, sizeof(struct usi_tensor *), by_name);
    return hit == NULL ? NULL : *hit;
}

static enum us_status check_surplus(const struct usi_header *h, struct us_err *err)
{
    char found[192];
    for (int32_t i = 0; i < h->n_tensors; i++) {
        const struct usi_tensor *t = &h->tensors[i];
        if (t->param < 0)
            return us_fail(err, US_E_FORMAT,
                           "tensor %s, %s %s, has no place in the network that the metadata "
                           "describes",
                           t->name, dtypes[t->dtype].name,
                           usi_shape_text(t->dim, t->ndim, found, sizeof(found)));
    }
    return US_OK;
}

enum us_status usi_header_match(struct usi_header *h, struct us_model *m, struct us_err *err)
{
    struct usi_tensor **sorted = calloc((size_t)h->n_tensors + 1, sizeof(struct usi_tensor *));
    if (sorted == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %d tensor descriptions", h->n_tensors);
    for (int32_t i = 0; i < h->n_tensors; i++)
        sorted[i] = &h->tensors[i];
    qsort(sorted, (size_t)h->n_tensors, sizeof(struct usi_tensor *), by_name);

    enum us_status s = US_OK;
    int64_t absent_bytes = 0;
    m->complete = true;
    for (int32_t i = 0; i < m->net->n_params && s == US_OK; i++) {
        const struct us_param *p = &m->net->params[i];
        struct usi_tensor *t = find_tensor(sorted, h->n_tensors, p->name);
        if (t != NULL)
            t->param = i;
        s = t != NULL ? check_tensor(t, p, err) : check_absent(p, &absent_bytes, m, err);
    }
    free(sorted);
    return s == US_OK ? check_surplus(h, err) : s;
}
