/*
 * ImageJ's description: lines of key=value behind "ImageJ=version", in the first page.
 *
 * Pages are in the order c, z, t with c fastest. images, channels, slices and frames say how many
 * of each; images alone says nothing about the axis. ImageJ stacks above 4 GB have one directory
 * and the other planes behind it. Pixel size is 1/XResolution in `unit`; one unit counts for all
 * axes unless yunit or zunit say otherwise.
 */
#include <stdlib.h>
#include <string.h>

#include "us_tiff_int.h"

struct imagej {
    int64_t images, channels, slices, frames; /* 0: not stated */
    double spacing, interval, fps;
    char unit[3][US_MAX_NAME]; /* x, y, z */
    char unit_t[US_MAX_NAME];
    const char *bad_key; /* a count that is none */
};

enum { LINE_BYTES = 256 };

static bool is_key(const char *line, const char *key, const char **value)
{
    size_t n = strlen(key);
    if (strncmp(line, key, n) != 0 || line[n] != '=')
        return false;
    *value = line + n + 1;
    return true;
}

static void take_line(struct imagej *ij, const char *line)
{
    static const char *const count_keys[] = {"images", "channels", "slices", "frames"};
    static const char *const unit_keys[] = {"unit", "yunit", "zunit"};
    int64_t *counts[] = {&ij->images, &ij->channels, &ij->slices, &ij->frames};
    const char *v;
    for (size_t i = 0; i < US_COUNT(count_keys); i++) {
        if (!is_key(line, count_keys[i], &v))
            continue;
        *counts[i] = usi_parse_count(v, INT32_MAX);
        if (*counts[i] < 1)
            ij->bad_key = count_keys[i];
    }
    for (size_t i = 0; i < US_COUNT(unit_keys); i++) {
        if (is_key(line, unit_keys[i], &v))
            usi_unit_copy(ij->unit[i], US_MAX_NAME, v);
    }
    if (is_key(line, "tunit", &v))
        usi_unit_copy(ij->unit_t, US_MAX_NAME, v);
    else if (is_key(line, "spacing", &v))
        ij->spacing = usi_parse_positive(v + (*v == '-')); /* a sign only tells the direction */
    else if (is_key(line, "finterval", &v))
        ij->interval = usi_parse_positive(v);
    else if (is_key(line, "fps", &v))
        ij->fps = usi_parse_positive(v);
}

/* Lines longer than LINE_BYTES hold no key that we know. */
static void take_lines(struct imagej *ij, const char *text)
{
    while (*text != '\0') {
        char line[LINE_BYTES];
        size_t n = strcspn(text, "\r\n");
        if (n < sizeof(line)) {
            memcpy(line, text, n);
            line[n] = '\0';
            take_line(ij, line);
        }
        text += n + (text[n] != '\0');
    }
}

static void set_sizes(const struct imagej *ij, const struct usi_tiff_page *p,
                      struct us_image_info *info)
{
    const char *ux = ij->unit[0], *uy = ij->unit[1], *uz = ij->unit[2];
    if (ux[0] != '\0' && p->x_res > 0.0) {
        info->size_x = 1.0 / p->x_res;
        usi_unit_copy(info->unit_x, US_MAX_NAME, ux);
    }
    if (ux[0] != '\0' && p->y_res > 0.0) {
        info->size_y = 1.0 / p->y_res;
        usi_unit_copy(info->unit_y, US_MAX_NAME, uy[0] != '\0' ? uy : ux);
    }
    if (ux[0] != '\0' && ij->spacing > 0.0) {
        info->size_z = ij->spacing;
        usi_unit_copy(info->unit_z, US_MAX_NAME, uz[0] != '\0' ? uz : ux);
    }
    info->time_increment = ij->interval > 0.0 ? ij->interval : ij->fps > 0.0 ? 1.0 / ij->fps : 0.0;
    if (info->time_increment > 0.0)
        usi_unit_copy(info->unit_t, US_MAX_NAME, ij->unit_t[0] != '\0' ? ij->unit_t : "s");
}

static enum us_status set_axes(const struct imagej *ij, struct usi_tiff *t,
                               struct us_image_info *info, struct us_err *err)
{
    int64_t images = ij->images > 0 ? ij->images : 1, c = ij->channels, z = ij->slices;
    struct usi_axes a = {
        .t = ij->frames > 0 ? ij->frames : 1, .z = z > 0 ? z : 1, .c = c > 0 ? c : 1};
    bool stated = ij->frames + z + c > 0;
    if (!stated)
        a.t = images;
    US_TRY(usi_tiff_map_new(t, &a, "TZC", err));
    if (t->n_map != images)
        return us_fail(err, US_E_FORMAT,
                       "ImageJ description says %lld images but %lld channels x %lld slices x %lld "
                       "frames",
                       (long long)images, (long long)a.c, (long long)a.z, (long long)a.t);
    if (!usi_tiff_has_pages(t, images))
        return us_fail(err, US_E_CORRUPT,
                       "ImageJ description says %lld images; the file has %lld "
                       "page%s",
                       (long long)images, (long long)t->n_ifd, t->n_ifd == 1 ? "" : "s");
    info->t = a.t;
    info->z = a.z;
    info->c = a.c * t->first.samples;
    info->axes_stated = stated || t->first.samples > 1;
    return US_OK;
}

enum us_status usi_imagej_read(const char *text, struct usi_tiff *t, struct us_image_info *info,
                               bool *ret_taken, struct us_err *err)
{
    *ret_taken = strncmp(text, "ImageJ=", 7) == 0;
    if (!*ret_taken)
        return US_OK;
    struct imagej ij = {0};
    take_lines(&ij, text);
    if (ij.bad_key != NULL)
        return us_fail(err, US_E_FORMAT, "ImageJ description: %s is no count of at least 1",
                       ij.bad_key);
    info->container = US_CONTAINER_IMAGEJ_TIFF;
    set_sizes(&ij, &t->first, info);
    return set_axes(&ij, t, info, err);
}
