/*
 * TIFF and BigTIFF headers and directories (TIFF 6.0 section 2; BigTIFF as libtiff defines it).
 *
 * A directory is read entry by entry. Only the tags in tag_table matter, every value must lie in
 * the file, and loops are found.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "us_tiff_int.h"

/* The tags that we read, in the order of usi_tiff_tags.values. */
static const uint16_t tag_table[] = {
    TAG_SUBFILE,     TAG_WIDTH,       TAG_HEIGHT,      TAG_BITS,          TAG_COMPRESSION,
    TAG_PHOTOMETRIC, TAG_FILL_ORDER,  TAG_DESCRIPTION, TAG_STRIP_OFFSETS, TAG_SAMPLES,
    TAG_STRIP_ROWS,  TAG_STRIP_BYTES, TAG_X_RES,       TAG_Y_RES,         TAG_PLANAR,
    TAG_RES_UNIT,    TAG_PREDICTOR,   TAG_TILE_WIDTH,  TAG_TILE_HEIGHT,   TAG_TILE_OFFSETS,
    TAG_TILE_BYTES,  TAG_EXTRA,       TAG_FORMAT,      TAG_JPEG_TABLES,   TAG_STK,
};
static_assert(US_COUNT(tag_table) == USI_TIFF_TAGS, "one place for each tag");

enum {
    TYPE_BYTE = 1,
    TYPE_SHORT = 3,
    TYPE_LONG = 4,
    TYPE_IFD = 13,
    TYPE_LONG8 = 16,
    TYPE_IFD8 = 18
};

static const uint8_t type_bytes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8};

uint64_t usi_tiff_load(const struct usi_tiff_file *f, const uint8_t *p, int n_bytes)
{
    uint64_t v = 0;
    bool big_endian = usi_host_is_big_endian() != f->swap;
    for (int i = 0; i < n_bytes; i++)
        v |= (uint64_t)p[i] << 8 * (big_endian ? n_bytes - 1 - i : i);
    return v;
}

enum us_status usi_tiff_open_file(struct usi_tiff_file *f, const struct usi_source *src,
                                  struct us_err *err)
{
    uint8_t head[16];
    f->src = src;
    if (src->n_bytes < 8)
        return us_fail(err, US_E_CORRUPT, "TIFF header of 8 bytes cut off after %llu",
                       (unsigned long long)src->n_bytes);
    US_TRY(usi_source_read(src, 0, head, 8, err));
    f->swap = (head[0] == 'M') != usi_host_is_big_endian();
    f->big = usi_tiff_load(f, head + 2, 2) == 43;
    if (!f->big) {
        f->first_ifd = usi_tiff_load(f, head + 4, 4);
        return US_OK;
    }
    if (src->n_bytes < 16)
        return us_fail(err, US_E_CORRUPT, "BigTIFF header of 16 bytes cut off after %llu",
                       (unsigned long long)src->n_bytes);
    US_TRY(usi_source_read(src, 0, head, 16, err));
    if (usi_tiff_load(f, head + 4, 2) != 8 || usi_tiff_load(f, head + 6, 2) != 0)
        return us_fail(err, US_E_FORMAT, "BigTIFF header with offsets of %u bytes; expected 8",
                       (unsigned)usi_tiff_load(f, head + 4, 2));
    f->first_ifd = usi_tiff_load(f, head + 8, 8);
    return US_OK;
}

/* Reads the entry count at `ifd` and checks that the whole directory lies in the file. */
static enum us_status directory_size(const struct usi_tiff_file *f, uint64_t ifd, uint64_t *ret_n,
                                     struct us_err *err)
{
    uint8_t b[8];
    int n_count = f->big ? 8 : 2, n_entry = f->big ? 20 : 12, n_next = f->big ? 8 : 4;
    if (!usi_source_holds(f->src, ifd, (uint64_t)n_count))
        return us_fail(err, US_E_CORRUPT, "directory at byte %llu; the file ends at %llu",
                       (unsigned long long)ifd, (unsigned long long)f->src->n_bytes);
    US_TRY(usi_source_read(f->src, ifd, b, (uint64_t)n_count, err));
    uint64_t n = usi_tiff_load(f, b, n_count);
    if (n == 0)
        return us_fail(err, US_E_FORMAT, "directory at byte %llu has no tags",
                       (unsigned long long)ifd);
    if (n > US_MAX_TIFF_TAGS)
        return us_fail(err, US_E_TOO_LARGE, "directory at byte %llu has %llu tags; at most %d",
                       (unsigned long long)ifd, (unsigned long long)n, US_MAX_TIFF_TAGS);
    if (!usi_source_holds(f->src, ifd + (uint64_t)n_count,
                          n * (uint64_t)n_entry + (uint64_t)n_next))
        return us_fail(err, US_E_CORRUPT, "directory at byte %llu is cut off",
                       (unsigned long long)ifd);
    *ret_n = n;
    return US_OK;
}

static enum us_status next_directory(const struct usi_tiff_file *f, uint64_t ifd, uint64_t *ret,
                                     struct us_err *err)
{
    uint64_t n = 0;
    uint8_t b[8];
    US_TRY(directory_size(f, ifd, &n, err));
    uint64_t at = ifd + (f->big ? 8 + n * 20 : 2 + n * 12);
    US_TRY(usi_source_read(f->src, at, b, f->big ? 8 : 4, err));
    *ret = usi_tiff_load(f, b, f->big ? 8 : 4);
    return US_OK;
}

static enum us_status append_offset(uint64_t **list, int64_t *n, int64_t *cap, uint64_t v,
                                    struct us_err *err)
{
    if (*n == US_MAX_PLANES)
        return us_fail(err, US_E_TOO_LARGE, "more than %lld pages", US_MAX_PLANES);
    if (*n == *cap) {
        int64_t grown = *cap == 0 ? 64 : *cap * 2;
        uint64_t *p = reallocarray(*list, (size_t)grown, sizeof(*p));
        if (p == NULL)
            return us_fail(err, US_E_NOMEM, "no memory for %lld pages", (long long)grown);
        *list = p;
        *cap = grown;
    }
    (*list)[(*n)++] = v;
    return US_OK;
}

/* Loops are found by Brent's method: compare with one remembered directory and move that to the
 * current one at every power of two, so a loop is met within three times its length. */
enum us_status usi_tiff_chain(const struct usi_tiff_file *f, uint64_t **ret, int64_t *ret_n,
                              struct us_err *err)
{
    uint64_t *list = NULL, at = f->first_ifd, remembered = 0;
    int64_t n = 0, cap = 0, move_at = 1;
    enum us_status s = US_OK;

    while (at != 0) {
        if (at == remembered) {
            s = us_fail(err, US_E_FORMAT, "directories form a loop through byte %llu",
                        (unsigned long long)at);
            goto out;
        }
        s = append_offset(&list, &n, &cap, at, err);
        if (s != US_OK)
            goto out;
        if (n == move_at) {
            remembered = at;
            move_at *= 2;
        }
        s = next_directory(f, at, &at, err);
        if (s != US_OK) {
            us_err_prefix(err, "page %lld", (long long)n);
            goto out;
        }
    }
    if (n == 0)
        s = us_fail(err, US_E_FORMAT, "TIFF without pages");
out:
    if (s != US_OK) {
        free(list);
        return s;
    }
    *ret = list;
    *ret_n = n;
    return US_OK;
}

static int find_tag(uint64_t tag)
{
    for (size_t i = 0; i < USI_TIFF_TAGS; i++) {
        if (tag_table[i] == tag)
            return (int)i;
    }
    return -1;
}

const struct usi_tiff_value *usi_tiff_tag(const struct usi_tiff_tags *d, enum usi_tiff_tag tag)
{
    return &d->values[find_tag(tag)];
}

/* Takes one entry, its bytes at b and in the file at `at`. */
static enum us_status take_entry(struct usi_tiff_tags *d, const uint8_t *b, uint64_t at,
                                 struct us_err *err)
{
    const struct usi_tiff_file *f = d->f;
    unsigned tag = (unsigned)usi_tiff_load(f, b, 2);
    int i = find_tag(tag);
    if (i < 0)
        return US_OK;
    struct usi_tiff_value v = {.type = (uint16_t)usi_tiff_load(f, b + 2, 2),
                               .count = usi_tiff_load(f, b + 4, f->big ? 8 : 4)};
    if (v.type >= US_COUNT(type_bytes) || type_bytes[v.type] == 0)
        return us_fail(err, US_E_FORMAT, "tag %u has the unknown type %u", tag, v.type);
    uint64_t unit = type_bytes[v.type];
    if (v.count == 0 || v.count > f->src->n_bytes / unit)
        return us_fail(err, US_E_CORRUPT, "tag %u claims %llu values in a file of %llu bytes", tag,
                       (unsigned long long)v.count, (unsigned long long)f->src->n_bytes);
    uint64_t inline_bytes = f->big ? 8 : 4;
    v.at = v.count * unit <= inline_bytes ? at + (f->big ? 12 : 8)
                                          : usi_tiff_load(f, b + (f->big ? 12 : 8), f->big ? 8 : 4);
    if (!usi_source_holds(f->src, v.at, v.count * unit))
        return us_fail(err, US_E_CORRUPT, "the values of tag %u lie beyond the end of the file",
                       tag);
    if (d->values[i].count != 0)
        return us_fail(err, US_E_FORMAT, "tag %u stands twice in one directory", tag);
    d->values[i] = v;
    return US_OK;
}

enum us_status usi_tiff_tags_read(const struct usi_tiff_file *f, uint64_t ifd,
                                  struct usi_tiff_tags *d, struct us_err *err)
{
    uint64_t n = 0, n_entry = f->big ? 20 : 12;
    uint8_t entries[US_MAX_TIFF_TAGS * 20];
    memset(d, 0, sizeof(*d));
    d->f = f;
    US_TRY(directory_size(f, ifd, &n, err));
    uint64_t at = ifd + (f->big ? 8 : 2);
    US_TRY(usi_source_read(f->src, at, entries, n * n_entry, err));
    for (uint64_t i = 0; i < n; i++)
        US_TRY(take_entry(d, entries + i * n_entry, at + i * n_entry, err));
    return US_OK;
}

enum us_status usi_tiff_uints(const struct usi_tiff_file *f, const struct usi_tiff_value *v,
                              uint64_t first, uint64_t n, uint64_t *ret, struct us_err *err)
{
    uint8_t block[4096];
    if (v->type != TYPE_BYTE && v->type != TYPE_SHORT && v->type != TYPE_LONG &&
        v->type != TYPE_IFD && v->type != TYPE_LONG8 && v->type != TYPE_IFD8)
        return us_fail(err, US_E_FORMAT, "a tag of type %u where a whole number is expected",
                       v->type);
    US_ASSERT(first <= v->count && n <= v->count - first);
    uint64_t unit = type_bytes[v->type], per_block = sizeof(block) / unit;
    for (uint64_t i = 0; i < n; i += per_block) {
        uint64_t take = n - i < per_block ? n - i : per_block;
        US_TRY(usi_source_read(f->src, v->at + (first + i) * unit, block, take * unit, err));
        for (uint64_t k = 0; k < take; k++)
            ret[i + k] = usi_tiff_load(f, block + k * unit, (int)unit);
    }
    return US_OK;
}

enum us_status usi_tiff_text(const struct usi_tiff_file *f, const struct usi_tiff_value *v,
                             char **ret, struct us_err *err)
{
    uint64_t n = v->count == 0 ? 0 : v->count * type_bytes[v->type];
    if (n > US_MAX_TIFF_TAG_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "ImageDescription of %llu bytes; at most %lld",
                       (unsigned long long)n, US_MAX_TIFF_TAG_BYTES);
    char *text = malloc(n + 1);
    if (text == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %llu bytes", (unsigned long long)n);
    enum us_status s = usi_source_read(f->src, v->at, text, n, err);
    if (s != US_OK) {
        free(text);
        return s;
    }
    text[n] = '\0';
    *ret = text;
    return US_OK;
}
