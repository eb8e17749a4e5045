/*
 * The OME-TIFF that we write, by hand because it is that simple: uncompressed little-endian
 * pages, one behind the other, each with its directory in front of its pixels. All sizes are known
 * beforehand, so the file is appended to and never sought in.
 *
 *   header | first page's texts | page, page, ...      page = directory | strip tables | pixels
 *
 * Classic TIFF up to 3.9 GB, BigTIFF above. Strips of about 256 KiB. XResolution in centimetres
 * gives readers that know no OME-XML the pixel size.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "us_ome_write.h"

#define CLASSIC_LIMIT 3900000000ULL

enum { ALIGN = 16, MAX_TAGS = 16 };
enum { TYPE_ASCII = 2, TYPE_SHORT = 3, TYPE_LONG = 4, TYPE_RATIONAL = 5, TYPE_LONG8 = 16 };

struct usi_tiff_writer {
    bool big;
    char *xml, *software;
    uint64_t xml_bytes, software_bytes, xml_at, software_at; /* bytes with NUL */
    uint32_t x_res[2], y_res[2];                             /* 0/0: not stated */
    uint64_t at;                                             /* bytes written */
    uint64_t n_strips, strip_bytes, last_strip_bytes;
    uint64_t plane_bytes, dir_bytes; /* dir_bytes: directory and tables, up to the pixels */
    uint8_t *dir;
    uint64_t n_tags, tables_used;
};

static uint64_t align_up(uint64_t v)
{
    return (v + ALIGN - 1) / ALIGN * ALIGN;
}

static void store(uint8_t *p, uint64_t v, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

/* The nearest fraction with 32-bit parts, by continued fractions. */
static void to_rational(double v, uint32_t ret[2])
{
    uint64_t p0 = 0, q0 = 1, p1 = 1, q1 = 0;
    double x = v;
    ret[0] = ret[1] = 0;
    for (int i = 0; i < 40 && x <= UINT32_MAX; i++) {
        uint64_t a = (uint64_t)x, p = a * p1 + p0, q = a * q1 + q0;
        if (p > UINT32_MAX || q > UINT32_MAX)
            break;
        p0 = p1;
        q0 = q1;
        p1 = p;
        q1 = q;
        ret[0] = (uint32_t)p;
        ret[1] = (uint32_t)q;
        if (x - (double)a < 1e-12)
            break;
        x = 1.0 / (x - (double)a);
    }
    if (ret[0] == 0)
        ret[1] = 0;
}

static void set_resolution(struct usi_tiff_writer *t, const struct us_image_info *i)
{
    double ux = usi_unit_um(i->unit_x), uy = usi_unit_um(i->unit_y);
    if (i->size_x > 0.0 && i->size_y > 0.0 && ux > 0.0 && uy > 0.0) {
        to_rational(1e4 / (i->size_x * ux), t->x_res);
        to_rational(1e4 / (i->size_y * uy), t->y_res);
    }
}

static uint64_t header_bytes(const struct usi_tiff_writer *t)
{
    return t->big ? 16 : 8;
}

static uint64_t entries_bytes(const struct usi_tiff_writer *t)
{
    return t->big ? 8 + MAX_TAGS * 20 + 8 : 2 + MAX_TAGS * 12 + 4;
}

/* Sizes of everything, once `big` is decided. */
static void plan(struct usi_tiff_writer *t)
{
    uint64_t table = t->n_strips * (t->big ? 8 : 4) + t->n_strips * 4;
    t->xml_at = align_up(header_bytes(t));
    t->software_at = align_up(t->xml_at + t->xml_bytes);
    t->dir_bytes = align_up(entries_bytes(t) + table + 16); /* 16: two rationals */
}

static uint64_t first_page_at(const struct usi_tiff_writer *t)
{
    return align_up(t->software_at + t->software_bytes);
}

static uint64_t page_bytes(const struct usi_tiff_writer *t)
{
    return t->dir_bytes + align_up(t->plane_bytes);
}

static enum us_status put(struct us_image_writer *w, const void *bytes, uint64_t n,
                          struct us_err *err)
{
    struct usi_tiff_writer *t = w->state;
    US_TRY(usi_write_all(w, bytes, n, err));
    t->at += n;
    return US_OK;
}

/* Zeros up to `at`. Gaps are shorter than ALIGN. */
static enum us_status pad_to(struct us_image_writer *w, uint64_t at, struct us_err *err)
{
    static const uint8_t zeros[ALIGN];
    const struct usi_tiff_writer *t = w->state;
    US_ASSERT(at >= t->at && at - t->at < ALIGN);
    return put(w, zeros, at - t->at, err);
}

static enum us_status write_front(struct us_image_writer *w, struct us_err *err)
{
    struct usi_tiff_writer *t = w->state;
    uint8_t head[16] = "II";
    store(head + 2, t->big ? 43 : 42, 2);
    if (t->big) {
        store(head + 4, 8, 2);
        store(head + 8, first_page_at(t), 8);
    } else {
        store(head + 4, first_page_at(t), 4);
    }
    US_TRY(put(w, head, header_bytes(t), err));
    US_TRY(pad_to(w, t->xml_at, err));
    US_TRY(put(w, t->xml, t->xml_bytes, err));
    US_TRY(pad_to(w, t->software_at, err));
    US_TRY(put(w, t->software, t->software_bytes, err));
    return pad_to(w, first_page_at(t), err);
}

enum us_status usi_tiff_begin(struct us_image_writer *w, const struct us_image_write_options *opt,
                              struct us_err *err)
{
    struct usi_tiff_writer *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a TIFF writer");
    w->state = t;
    const struct us_image_info *i = &w->info;
    uint64_t row_bytes = (uint64_t)(i->w * usi_pixel_bytes(i->pixel));
    t->plane_bytes = row_bytes * (uint64_t)i->h;
    t->strip_bytes = row_bytes * (uint64_t)w->buf_rows;
    t->n_strips = (t->plane_bytes + t->strip_bytes - 1) / t->strip_bytes;
    t->last_strip_bytes = t->plane_bytes - (t->n_strips - 1) * t->strip_bytes;
    set_resolution(t, i);
    t->xml = usi_ome_write(i, opt);
    t->software = strdup(opt->software != NULL ? opt->software : "usplit");
    if (t->xml == NULL || t->software == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the OME-XML");
    t->xml_bytes = strlen(t->xml) + 1;
    t->software_bytes = strlen(t->software) + 1;
    plan(t);
    t->big = opt->big || first_page_at(t) + (uint64_t)w->n_planes * page_bytes(t) > CLASSIC_LIMIT;
    plan(t);
    t->dir = malloc(t->dir_bytes);
    if (t->dir == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a directory of %llu bytes",
                       (unsigned long long)t->dir_bytes);
    return write_front(w, err);
}

/* Adds a tag. Where the value field cannot hold its n values they go to the tables; returns where
 * to store them, or NULL if the caller stored an offset by `elsewhere`. */
static uint8_t *add_tag(struct usi_tiff_writer *t, unsigned tag, unsigned type, uint64_t n,
                        uint64_t n_bytes, uint64_t elsewhere)
{
    int word = t->big ? 8 : 4;
    US_ASSERT(t->n_tags < MAX_TAGS);
    uint8_t *e = t->dir + (t->big ? 8 + t->n_tags * 20 : 2 + t->n_tags * 12);
    t->n_tags++;
    store(e, tag, 2);
    store(e + 2, type, 2);
    store(e + 4, n, word);
    uint8_t *field = e + 4 + word;
    if (elsewhere != 0 && n_bytes > (uint64_t)word) {
        store(field, elsewhere, word);
        return NULL;
    }
    if (n_bytes <= (uint64_t)word)
        return field;
    uint64_t in_dir = t->tables_used;
    t->tables_used += n_bytes;
    US_ASSERT(t->tables_used <= t->dir_bytes);
    store(field, t->at + in_dir, word);
    return t->dir + in_dir;
}

static void add_number(struct usi_tiff_writer *t, unsigned tag, unsigned type, uint64_t v)
{
    int n_bytes = type == TYPE_SHORT ? 2 : 4;
    store(add_tag(t, tag, type, 1, (uint64_t)n_bytes, 0), v, n_bytes);
}

static void add_text(struct usi_tiff_writer *t, unsigned tag, const char *text, uint64_t n_bytes,
                     uint64_t at)
{
    uint8_t *inline_at = add_tag(t, tag, TYPE_ASCII, n_bytes, n_bytes, at);
    if (inline_at != NULL)
        memcpy(inline_at, text, n_bytes);
}

static void add_rational(struct usi_tiff_writer *t, unsigned tag, const uint32_t v[2])
{
    uint8_t *p = add_tag(t, tag, TYPE_RATIONAL, 1, 8, 0);
    store(p, v[0], 4);
    store(p + 4, v[1], 4);
}

static void add_strip_offsets(struct usi_tiff_writer *t)
{
    int word = t->big ? 8 : 4;
    uint8_t *p = add_tag(t, 273, t->big ? TYPE_LONG8 : TYPE_LONG, t->n_strips,
                         t->n_strips * (uint64_t)word, 0);
    for (uint64_t i = 0; i < t->n_strips; i++)
        store(p + i * (uint64_t)word, t->at + t->dir_bytes + i * t->strip_bytes, word);
}

static void add_strip_bytes(struct usi_tiff_writer *t)
{
    uint8_t *p = add_tag(t, 279, TYPE_LONG, t->n_strips, t->n_strips * 4, 0);
    for (uint64_t i = 0; i < t->n_strips; i++)
        store(p + i * 4, i + 1 < t->n_strips ? t->strip_bytes : t->last_strip_bytes, 4);
}

static void fill_directory(struct us_image_writer *w)
{
    struct usi_tiff_writer *t = w->state;
    const struct us_image_info *i = &w->info;
    bool first = w->n_written == 0, sized = t->x_res[1] != 0 && t->y_res[1] != 0;
    add_number(t, 254, TYPE_LONG, 0);
    add_number(t, 256, TYPE_LONG, (uint64_t)i->w);
    add_number(t, 257, TYPE_LONG, (uint64_t)i->h);
    add_number(t, 258, TYPE_SHORT, (uint64_t)usi_pixel_bytes(i->pixel) * 8);
    add_number(t, 259, TYPE_SHORT, 1); /* no compression */
    add_number(t, 262, TYPE_SHORT, 1); /* 0 is black */
    if (first)
        add_text(t, 270, t->xml, t->xml_bytes, t->xml_at);
    add_strip_offsets(t);
    add_number(t, 277, TYPE_SHORT, 1); /* samples per pixel */
    add_number(t, 278, TYPE_LONG, (uint64_t)w->buf_rows);
    add_strip_bytes(t);
    if (sized) {
        add_rational(t, 282, t->x_res);
        add_rational(t, 283, t->y_res);
        add_number(t, 296, TYPE_SHORT, 3); /* per centimetre */
    }
    if (first)
        add_text(t, 305, t->software, t->software_bytes, t->software_at);
    add_number(t, 339, TYPE_SHORT, i->pixel == US_PIXEL_F32 ? 3 : 1);
}

enum us_status usi_tiff_begin_page(struct us_image_writer *w, struct us_err *err)
{
    struct usi_tiff_writer *t = w->state;
    US_TRY(pad_to(w, align_up(t->at), err));
    memset(t->dir, 0, t->dir_bytes);
    t->n_tags = 0;
    t->tables_used = entries_bytes(t);
    fill_directory(w);
    bool last = w->n_written + 1 == w->n_planes;
    uint64_t next = last ? 0 : t->at + page_bytes(t);
    if (t->big) {
        store(t->dir, t->n_tags, 8);
        store(t->dir + 8 + t->n_tags * 20, next, 8);
    } else {
        store(t->dir, t->n_tags, 2);
        store(t->dir + 2 + t->n_tags * 12, next, 4);
    }
    US_TRY(put(w, t->dir, t->dir_bytes, err));
    t->at += t->plane_bytes; /* the caller writes the pixels next */
    return US_OK;
}

void usi_tiff_writer_free(void *state)
{
    struct usi_tiff_writer *t = state;
    if (t == NULL)
        return;
    free(t->xml);
    free(t->software);
    free(t->dir);
    free(t);
}
