/*
 * From a state dictionary to a model (us_import.h): the names first, then the architecture
 * (us_import_arch.c), then every tensor against its parameter, and only then memory for them.
 */
#include "us_import.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_import_int.h"
#include "us_model_file.h"

#define ANCHOR      "first_bottom_up.0.weight" /* every network of the family has it, once */
#define HEAD        "likelihood.parameter_net."
#define LIST_BYTES  224
#define SHAPE_BYTES 192

struct us_import_hints us_import_hints(void)
{
    struct us_arch a = us_arch_default();
    return (struct us_import_hints){.logvar = -1,
                                    .decoder_retain = -1,
                                    .stochastic = true,
                                    .dropout = a.dropout,
                                    .logvar_lower_bound = a.logvar_lower_bound,
                                    .var_clip_max = a.var_clip_max};
}

/* ---- names --------------------------------------------------------------------------------- */

struct import {
    const struct us_state_dict *dict;
    const struct us_import_hints *hints;
    struct usi_names names;
    struct us_import_report report;
    struct us_net *net;
    struct us_model *m;
};

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && strcmp(s + n - k, end) == 0;
}

/* What kind of network of the same authors it is instead, or NULL. */
static const char *other_family(const struct us_state_dict *d)
{
    for (int32_t i = 0; i < d->n; i++) {
        if (strstr(d->tensor[i].name, "inc.double_conv.0.weight") != NULL)
            return "a U-Net";
        if (strstr(d->tensor[i].name, "lowres_output_branches.0.") != NULL)
            return "a BraveNet";
    }
    return NULL;
}

/* The prefix before ANCHOR; "lowres_first_bottom_up" and the like are not it. */
static enum us_status find_prefix(struct import *im, struct us_err *err)
{
    const struct us_state_dict *d = im->dict;
    int32_t found = -1;
    size_t n = 0;
    for (int32_t i = 0; i < d->n; i++) {
        const char *name = d->tensor[i].name;
        if (!ends_with(name, ANCHOR))
            continue;
        size_t k = strlen(name) - strlen(ANCHOR);
        bool whole = k == 0 || name[k - 1] == '.';
        bool asked = im->hints->prefix == NULL ||
                     (strlen(im->hints->prefix) == k && memcmp(name, im->hints->prefix, k) == 0);
        if (!whole || !asked)
            continue;
        if (found >= 0)
            return us_fail(err, US_E_ARG,
                           "two networks: \"%.*s\" and \"%.*s\"; choose one with --prefix", (int)n,
                           d->tensor[found].name, (int)k, name);
        found = i;
        n = k;
    }
    const char *other = found < 0 && im->hints->prefix == NULL ? other_family(d) : NULL;
    if (other != NULL)
        return us_fail(err, US_E_UNSUPPORTED,
                       "this is %s; networks of the ladder VAE family can be imported", other);
    if (found < 0 || n >= sizeof(im->report.prefix))
        return us_fail(err, US_E_FORMAT,
                       "tensor %s%s is missing: not a network of \302\265Split or MicroSplit, or "
                       "under another prefix (--prefix)",
                       im->hints->prefix == NULL ? "" : im->hints->prefix, ANCHOR);
    memcpy(im->report.prefix, d->tensor[found].name, n);
    return US_OK;
}

/* Our name for what follows the prefix. CAREamics registers its head under two names. */
static bool translate(const char *theirs, char *ours, bool *careamics)
{
    static const char *const heads[] = {"output_layer.", "parameter_net."};
    for (size_t i = 0; i < US_COUNT(heads); i++) {
        size_t n = strlen(heads[i]);
        if (strncmp(theirs, heads[i], n) != 0)
            continue;
        *careamics = true;
        return snprintf(ours, US_MAX_PARAM_NAME, HEAD "%s", theirs + n) < US_MAX_PARAM_NAME;
    }
    return snprintf(ours, US_MAX_PARAM_NAME, "%s", theirs) < US_MAX_PARAM_NAME;
}

static int by_name(const void *a, const void *b)
{
    const struct usi_entry *x = a, *y = b;
    int c = strcmp(x->name, y->name);
    return c != 0 ? c : (x->tensor > y->tensor) - (x->tensor < y->tensor);
}

struct usi_entry *usi_names_find(const struct usi_names *names, const char *name)
{
    struct usi_entry key = {.tensor = -1};
    (void)snprintf(key.name, sizeof(key.name), "%s", name);
    int32_t lo = 0, hi = names->n;
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        if (by_name(&names->entry[mid], &key) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < names->n && strcmp(names->entry[lo].name, name) == 0 ? &names->entry[lo] : NULL;
}

static enum us_status list_names(struct import *im, struct us_err *err)
{
    const struct us_state_dict *d = im->dict;
    size_t n = strlen(im->report.prefix);
    im->names.dict = d;
    im->names.entry = calloc((size_t)d->n + 1, sizeof(*im->names.entry));
    if (im->names.entry == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %d names", (int)d->n);
    for (int32_t i = 0; i < d->n; i++) {
        const char *name = d->tensor[i].name;
        if (strncmp(name, im->report.prefix, n) != 0) {
            if (im->report.n_ignored++ == 0)
                (void)snprintf(im->report.first_ignored, sizeof(im->report.first_ignored), "%s",
                               name);
            continue;
        }
        struct usi_entry *e = &im->names.entry[im->names.n++];
        e->tensor = i;
        if (!translate(name + n, e->name, &im->report.careamics))
            return us_fail(err, US_E_FORMAT, "tensor %s: a name of over %d bytes", name,
                           US_MAX_PARAM_NAME - 1);
    }
    qsort(im->names.entry, (size_t)im->names.n, sizeof(*im->names.entry), by_name);
    return US_OK;
}

/* ---- tensors against parameters ------------------------------------------------------------ */

static enum us_status check_tensor(const struct us_state_tensor *t, const struct us_param *p,
                                   struct us_err *err)
{
    char found[SHAPE_BYTES], want[SHAPE_BYTES];
    bool same = t->ndim == p->ndim;
    for (int32_t i = 0; same && i < p->ndim; i++)
        same = t->dim[i] == p->dim[i];
    if (!same)
        return us_fail(err, US_E_FORMAT, "tensor %s has shape %s; expected %s", t->name,
                       usi_shape_text(t->dim, t->ndim, found, sizeof(found)),
                       usi_shape_text(p->dim, p->ndim, want, sizeof(want)));
    bool counter = p->kind == US_PARAM_BN_COUNT;
    if (counter != (t->type == US_STATE_I64) || t->type == US_STATE_OTHER)
        return us_fail(err, US_E_FORMAT, "tensor %s has type %s; expected %s", t->name,
                       t->type_name, counter ? "int64" : "float32, float16, bfloat16 or float64");
    return US_OK;
}

/* The first names of a list that may be long. */
struct name_list {
    char text[LIST_BYTES];
    int32_t n, shown;
};

static void name_list_add(struct name_list *l, const char *name)
{
    size_t used = strlen(l->text), left = sizeof(l->text) - used;
    l->n++;
    if (l->shown < l->n - 1 || strlen(name) + 3 > left)
        return;
    (void)snprintf(l->text + used, left, "%s%s", used == 0 ? "" : ", ", name);
    l->shown++;
}

/* " and 7 more" in buf, or nothing. Returns buf. */
static const char *name_list_rest(const struct name_list *l, char *buf, size_t n)
{
    buf[0] = '\0';
    if (l->n > l->shown)
        (void)snprintf(buf, n, "%s%d more", l->shown > 0 ? " and " : "", (int)(l->n - l->shown));
    return buf;
}

/* All parameters have their tensors, all tensors their parameters. *ret_complete as us_model's;
 * *ret_need: bytes that the parameters would take that are there, and that are not. */
static enum us_status match(struct import *im, bool *ret_complete, int64_t ret_need[2],
                            struct us_err *err)
{
    const uint32_t may = US_PARAM_TRAIN_ONLY | US_PARAM_DEAD | US_PARAM_OPTIONAL;
    struct name_list missing = {0}, surplus = {0};
    char rest[32];
    *ret_complete = true;
    for (int32_t i = 0; i < im->net->n_params; i++) {
        const struct us_param *p = &im->net->params[i];
        struct usi_entry *e = usi_names_find(&im->names, p->name);
        ret_need[e == NULL] += p->alias_of < 0 ? p->count : 0;
        if (e == NULL && (p->flags & may) == 0 && p->alias_of < 0)
            name_list_add(&missing, p->name);
        if (e == NULL && (p->flags & US_PARAM_TRAIN_ONLY) != 0 && (p->flags & US_PARAM_DEAD) == 0)
            *ret_complete = false;
        for (; e != NULL && e < im->names.entry + im->names.n && strcmp(e->name, p->name) == 0;
             e++) {
            e->matched = true;
            US_TRY(check_tensor(&im->dict->tensor[e->tensor], p, err));
        }
    }
    for (int32_t i = 0; i < im->names.n; i++)
        if (!im->names.entry[i].matched)
            name_list_add(&surplus, im->dict->tensor[im->names.entry[i].tensor].name);
    if (missing.n > 0)
        return us_fail(err, US_E_FORMAT, "%d tensors are missing: %s%s", (int)missing.n,
                       missing.text, name_list_rest(&missing, rest, sizeof(rest)));
    if (surplus.n > 0)
        return us_fail(err, US_E_FORMAT, "%d tensors have no place in the network: %s%s",
                       (int)surplus.n, surplus.text, name_list_rest(&surplus, rest, sizeof(rest)));
    return US_OK;
}

/* Tensors may share bytes of the file, and some may be absent: neither is a way to claim memory
 * that the file's size does not justify. The narrowest type has two bytes. */
static enum us_status check_size(const struct import *im, const int64_t need[2], struct us_err *err)
{
    if (need[0] > im->dict->bytes / 2)
        return us_fail(err, US_E_FORMAT,
                       "the tensors hold %lld numbers, which a file of %lld bytes cannot: they "
                       "share their bytes",
                       (long long)need[0], (long long)im->dict->bytes);
    if (need[1] > US_MAX_MODEL_ABSENT_BYTES / (int64_t)sizeof(float))
        return us_fail(err, US_E_TOO_LARGE,
                       "%lld numbers of the network are missing; expected at "
                       "most %lld",
                       (long long)need[1], US_MAX_MODEL_ABSENT_BYTES / (int64_t)sizeof(float));
    return US_OK;
}

/* ---- values -------------------------------------------------------------------------------- */

static void convert(enum us_state_type type, const void *raw, float *out, int64_t n)
{
    const double *wide = raw;
    if (type != US_STATE_F64) {
        usi_widen((enum usi_dtype)type, raw, out, (size_t)n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)wide[i];
}

static enum us_status read_counter(const struct import *im, const struct usi_entry *e,
                                   const struct us_param *p, struct us_err *err)
{
    int64_t x = 0;
    US_TRY(im->dict->read(im->dict->arg, e->tensor, &x, err));
    if (x < 0)
        return us_fail(err, US_E_FORMAT, "tensor %s is %lld; expected 0 or more", p->name,
                       (long long)x);
    im->m->counters[p->offset] = x;
    return US_OK;
}

/* The tensor's numbers; again: they stand in the model already, under another name, and must be the
 * same (lowres_net of model-spec 11.1, CAREamics' two heads). raw: room for the widest type. */
static enum us_status read_floats(const struct import *im, const struct usi_entry *e,
                                  const struct us_param *p, bool again, double *raw,
                                  struct us_err *err)
{
    const struct us_state_tensor *t = &im->dict->tensor[e->tensor];
    float *out = im->m->weights + p->offset, *x = (float *)(raw + p->count);
    US_TRY(im->dict->read(im->dict->arg, e->tensor, raw, err));
    convert(t->type, raw, x, p->count);
    US_TRY(usi_check_finite(x, (size_t)p->count, t->name, 0, err));
    if (again && memcmp(out, x, (size_t)p->count * sizeof(*x)) != 0)
        return us_fail(err, US_E_UNSUPPORTED,
                       "tensor %s differs from what stands under its other name; here both share "
                       "their weights",
                       t->name);
    memcpy(out, x, (size_t)p->count * sizeof(*x));
    return US_OK;
}

static enum us_status read_param(const struct import *im, const struct us_param *p, bool *filled,
                                 double *raw, struct us_err *err)
{
    const struct usi_entry *end = im->names.entry + im->names.n;
    for (const struct usi_entry *e = usi_names_find(&im->names, p->name);
         e != NULL && e < end && strcmp(e->name, p->name) == 0; e++) {
        US_TRY(p->kind == US_PARAM_BN_COUNT ? read_counter(im, e, p, err)
                                            : read_floats(im, e, p, *filled, raw, err));
        *filled = true;
    }
    return US_OK;
}

static enum us_status read_all(const struct import *im, struct us_err *err)
{
    const struct us_net *net = im->m->net;
    int64_t most = 1;
    US_ASSERT(net->n_params > 0);
    for (int32_t i = 0; i < net->n_params; i++)
        most = net->params[i].count > most ? net->params[i].count : most;
    /* One tensor as it stands in the file, and widened. */
    double *raw = calloc((size_t)most, sizeof(double) + sizeof(float));
    bool *filled = calloc((size_t)net->n_params, sizeof(*filled));
    enum us_status s = US_OK;
    if (raw == NULL || filled == NULL)
        s = us_fail(err, US_E_NOMEM, "no memory to read a tensor of %lld numbers", (long long)most);
    for (int32_t i = 0; i < net->n_params && s == US_OK; i++) {
        const struct us_param *p = &net->params[i];
        s = read_param(im, p, &filled[p->alias_of >= 0 ? p->alias_of : i], raw, err);
    }
    free(raw);
    free(filled);
    return s;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static enum us_status import(struct import *im, struct us_err *err)
{
    struct us_arch arch;
    int32_t patch = 0;
    bool complete = false;
    int64_t need[2] = {0};
    US_TRY(find_prefix(im, err));
    US_TRY(list_names(im, err));
    US_TRY(usi_import_arch(&im->names, im->hints, &arch, &patch, err));
    US_TRY(us_net_build(&arch, patch, patch, &im->net, err));
    US_TRY(match(im, &complete, need, err));
    US_TRY(check_size(im, need, err));
    US_TRY(us_model_new(&arch, patch, 0, &im->m, err));
    memset(im->m->weights, 0, (size_t)im->m->net->n_floats * sizeof(float)); /* what is absent */
    im->m->complete = complete;
    return read_all(im, err);
}

enum us_status us_import_model(const struct us_state_dict *dict,
                               const struct us_import_hints *hints, struct us_model **ret,
                               struct us_import_report *report, struct us_err *err)
{
    struct import im = {.dict = dict, .hints = hints};
    enum us_status s = import(&im, err);
    free(im.names.entry);
    us_net_free(im.net);
    if (s != US_OK) {
        us_model_free(im.m);
        return s;
    }
    *report = im.report;
    *ret = im.m;
    return US_OK;
}
