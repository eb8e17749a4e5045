/*
 * The JSON description that Python's tifffile writes: {"shape": [2, 640, 640], "axes": "CYX",
 * "channels": ["actin", "DNA"]}.
 *
 * Only "axes" makes it count: a shape alone names no axis. This is a hint in free text, so what
 * we cannot use (other letters, another number of pages, broken JSON) leaves the file a plain
 * TIFF and is no error.
 */
#include <jansson.h>
#include <string.h>

#include "us_tiff_int.h"

enum { MAX_DIMS = 8, MAX_JSON_BYTES = 64 << 10 };

struct shaped {
    int64_t shape[MAX_DIMS]; /* each 1..US_MAX_PLANES, but for the last two */
    int n_dims;
    const char *axes; /* "" if absent */
};

static bool get_shape(const json_t *root, struct shaped *ret)
{
    const json_t *shape = json_object_get(root, "shape"), *axes = json_object_get(root, "axes");
    size_t n = json_array_size(shape);
    if (n < 2 || n > MAX_DIMS)
        return false;
    for (size_t i = 0; i < n; i++) {
        json_int_t v = json_integer_value(json_array_get(shape, i));
        if (v < 1 || v > (i + 2 < n ? US_MAX_PLANES : US_MAX_IMAGE_SIDE))
            return false;
        ret->shape[i] = v;
    }
    ret->n_dims = (int)n;
    ret->axes = json_is_string(axes) ? json_string_value(axes) : "";
    return true;
}

static void get_channel_names(const json_t *root, struct us_image_info *info)
{
    const json_t *names = json_object_get(root, "channels");
    size_t n = json_array_size(names);
    for (size_t i = 0; i < n && i < US_COUNT(info->channel_name); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        usi_text_copy(info->channel_name[i], US_MAX_NAME, name == NULL ? "" : name);
    }
}

static bool is_page_size(const struct shaped *j, const struct usi_tiff_page *p)
{
    return j->shape[j->n_dims - 2] == p->h && j->shape[j->n_dims - 1] == p->w;
}

/* The letters before YX to sizes; the page axes, slowest first, to order. False if a letter is
 * not T, Z, C, or stands twice, or the last two are not YX. */
static bool split_axes(const struct shaped *j, const struct usi_tiff_page *p, struct usi_axes *a,
                       char order[MAX_DIMS])
{
    int n = j->n_dims, n_order = 0;
    if (strlen(j->axes) != (size_t)n || strcmp(j->axes + n - 2, "YX") != 0)
        return false;
    for (int i = 0; i < n - 2; i++) {
        char c = j->axes[i];
        int64_t *size = c == 'T' ? &a->t : c == 'Z' ? &a->z : c == 'C' ? &a->c : NULL;
        if (size == NULL || strchr(j->axes + i + 1, c) != NULL)
            return false;
        if (c == 'C' && p->samples > 1) { /* the channels are the samples of a page */
            if (j->shape[i] != p->samples)
                return false;
            continue;
        }
        *size = j->shape[i];
        order[n_order++] = c;
    }
    return true;
}

/* A stack of which only the first page has a directory must not pass for one page: its number of
 * planes counts even if its axes say nothing to us. */
static bool is_bare_stack(const struct shaped *j, struct usi_tiff *t, struct usi_axes *a)
{
    *a = (struct usi_axes){.t = 1, .z = 1, .c = 1};
    if (t->n_ifd != 1)
        return false;
    for (int i = 0; i < j->n_dims - 2; i++) {
        if (j->shape[i] > US_MAX_PLANES / a->t)
            return false;
        a->t *= j->shape[i];
    }
    return a->t > 1 && usi_tiff_has_pages(t, a->t);
}

/* Fills info and the map if this is a description of tifffile's that fits the file. */
static enum us_status use_json(const json_t *root, struct usi_tiff *t, struct us_image_info *info,
                               bool *ret_taken, struct us_err *err)
{
    struct shaped j = {0};
    struct usi_axes a = {.t = 1, .z = 1, .c = 1};
    char order[MAX_DIMS] = "";
    if (!get_shape(root, &j) || !is_page_size(&j, &t->first))
        return US_OK;
    /* Three factors of at most 2^20 each. */
    bool stated = split_axes(&j, &t->first, &a, order) && usi_tiff_has_pages(t, a.t * a.z * a.c);
    if (!stated && !is_bare_stack(&j, t, &a))
        return US_OK;
    *ret_taken = true;
    US_TRY(usi_tiff_map_new(t, &a, stated ? order : "T", err));
    info->container = US_CONTAINER_TIFF;
    info->t = a.t;
    info->z = a.z;
    info->c = a.c * t->first.samples;
    info->axes_stated = stated || t->first.samples > 1;
    if (stated)
        get_channel_names(root, info);
    return US_OK;
}

enum us_status usi_shaped_read(const char *text, struct usi_tiff *t, struct us_image_info *info,
                               bool *ret_taken, struct us_err *err)
{
    *ret_taken = false;
    if (*text != '{' || strlen(text) > MAX_JSON_BYTES)
        return US_OK;
    json_t *root = json_loads(text, 0, NULL);
    enum us_status s = use_json(root, t, info, ret_taken, err);
    json_decref(root);
    return s;
}
