/*
 * Compressed TIFF pages, decoded by libtiff from a directory that we write.
 *
 * libtiff sees a virtual BigTIFF: a header of ours, then the file itself shifted by the header's
 * size, then one directory of ours made from values that us_tiff_dir.c and us_tiff_chunk.c have
 * checked. So neither a stranger's tags nor loops of directories reach libtiff, and one handle
 * knows one page and nothing else. Strips are decoded row by row, tiles one at a time. Errors and
 * warnings go to the handle's own handlers; nothing is printed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tiffio.h>

#include "us_tiff_int.h"

enum { HEADER_BYTES = 16, MAX_TAGS = 16, ENTRY_BYTES = 20, MAX_JPEG_TABLES = 64 << 10 };

struct view {
    const struct usi_source *src;
    bool big_endian;
    uint8_t header[HEADER_BYTES];
    uint8_t *dir; /* the directory and its values */
    uint64_t dir_bytes, dir_used;
    uint8_t *entries; /* next free entry in dir */
    uint64_t pos;     /* the handle's position */
    bool strict;      /* a warning counts as an error */
    bool failed;
    char message[160];
};

static uint64_t view_bytes(const struct view *v)
{
    return HEADER_BYTES + v->src->n_bytes + v->dir_bytes;
}

/* The part of [pos, pos + n) that lies in one of the three parts of the view. */
static tmsize_t view_read_part(struct view *v, uint8_t *out, uint64_t n)
{
    uint64_t file_end = HEADER_BYTES + v->src->n_bytes, end = view_bytes(v);
    uint64_t stop = v->pos < HEADER_BYTES ? HEADER_BYTES : v->pos < file_end ? file_end : end;
    uint64_t take = v->pos >= stop ? 0 : n < stop - v->pos ? n : stop - v->pos;
    if (take == 0)
        return 0;
    if (v->pos < HEADER_BYTES)
        memcpy(out, v->header + v->pos, take);
    else if (v->pos >= file_end)
        memcpy(out, v->dir + (v->pos - file_end), take);
    else if (usi_source_read(v->src, v->pos - HEADER_BYTES, out, take, NULL) != US_OK)
        return -1;
    v->pos += take;
    return (tmsize_t)take;
}

static tmsize_t view_read(thandle_t h, void *buf, tmsize_t n)
{
    struct view *v = h;
    tmsize_t done = 0;
    while (done < n) {
        tmsize_t got = view_read_part(v, (uint8_t *)buf + done, (uint64_t)(n - done));
        if (got <= 0)
            return done > 0 ? done : got;
        done += got;
    }
    return done;
}

static tmsize_t view_write(thandle_t h, void *buf, tmsize_t n)
{
    return -1;
}

static toff_t view_seek(thandle_t h, toff_t off, int whence)
{
    struct view *v = h;
    v->pos = whence == SEEK_SET ? off : whence == SEEK_CUR ? v->pos + off : view_bytes(v) + off;
    return v->pos;
}

static int view_close(thandle_t h)
{
    return 0;
}

static toff_t view_size(thandle_t h)
{
    return view_bytes(h);
}

static int keep_message(struct view *v, const char *fmt, va_list ap)
{
    if (!v->failed)
        (void)vsnprintf(v->message, sizeof(v->message), fmt, ap);
    v->failed = true;
    return 1; /* handled: libtiff calls no global handler */
}

US_PRINTF(4, 0)
static int on_error(TIFF *tif, void *user, const char *module, const char *fmt, va_list ap)
{
    return keep_message(user, fmt, ap);
}

US_PRINTF(4, 0)
static int on_warning(TIFF *tif, void *user, const char *module, const char *fmt, va_list ap)
{
    struct view *v = user;
    return v->strict ? keep_message(v, fmt, ap) : 1;
}

static void store(const struct view *v, uint8_t *p, uint64_t value, int n_bytes)
{
    for (int i = 0; i < n_bytes; i++)
        p[i] = (uint8_t)(value >> 8 * (v->big_endian ? n_bytes - 1 - i : i));
}

/* Adds a tag whose values of `unit` bytes are written behind the entries if they do not fit in
 * one. Returns where the n values go. Tags must come in ascending order. */
static uint8_t *add_tag(struct view *v, unsigned tag, unsigned type, uint64_t n, int unit)
{
    uint8_t *e = v->entries;
    US_ASSERT(e < v->dir + 8 + MAX_TAGS * ENTRY_BYTES);
    v->entries += ENTRY_BYTES;
    store(v, e, tag, 2);
    store(v, e + 2, type, 2);
    store(v, e + 4, n, 8);
    if (n * (uint64_t)unit <= 8)
        return e + 12;
    uint8_t *values = v->dir + v->dir_used;
    v->dir_used += n * (uint64_t)unit;
    US_ASSERT(v->dir_used <= v->dir_bytes);
    store(v, e + 12, HEADER_BYTES + v->src->n_bytes + (uint64_t)(values - v->dir), 8);
    return values;
}

static void add_long(struct view *v, unsigned tag, uint64_t value)
{
    store(v, add_tag(v, tag, TIFF_LONG, 1, 4), value, 4);
}

/* One value of the same kind for each sample. */
static void add_shorts(struct view *v, unsigned tag, uint64_t value, int64_t n)
{
    uint8_t *p = add_tag(v, tag, TIFF_SHORT, (uint64_t)n, 2);
    for (int64_t i = 0; i < n; i++)
        store(v, p + 2 * i, value, 2);
}

static void add_long8s(struct view *v, unsigned tag, const uint64_t *values, int64_t n,
                       uint64_t plus)
{
    uint8_t *p = add_tag(v, tag, TIFF_LONG8, (uint64_t)n, 8);
    for (int64_t i = 0; i < n; i++)
        store(v, p + 8 * i, values[i] + plus, 8);
}

static unsigned sample_format(enum us_pixel p)
{
    bool is_float = p == US_PIXEL_F32 || p == US_PIXEL_F64;
    bool is_signed = p == US_PIXEL_I8 || p == US_PIXEL_I16 || p == US_PIXEL_I32;
    return is_float ? SAMPLEFORMAT_IEEEFP : is_signed ? SAMPLEFORMAT_INT : SAMPLEFORMAT_UINT;
}

static enum us_status add_jpeg_tables(struct view *v, const struct usi_tiff_page *p,
                                      struct us_err *err)
{
    if (p->codec->compression != USI_TIFF_JPEG || p->jpeg_tables.count == 0)
        return US_OK;
    uint8_t *values = add_tag(v, TIFFTAG_JPEGTABLES, TIFF_UNDEFINED, p->jpeg_tables.count, 1);
    return usi_source_read(v->src, p->jpeg_tables.at, values, p->jpeg_tables.count, err);
}

static enum us_status fill_directory(struct view *v, const struct usi_tiff_page *p,
                                     const struct usi_tiff_chunks *c, struct us_err *err)
{
    add_long(v, TIFFTAG_IMAGEWIDTH, (uint64_t)p->w);
    add_long(v, TIFFTAG_IMAGELENGTH, (uint64_t)p->h);
    add_shorts(v, TIFFTAG_BITSPERSAMPLE, (uint64_t)usi_pixel_bytes(p->pixel) * 8, p->samples);
    add_shorts(v, TIFFTAG_COMPRESSION, p->codec->compression, 1);
    add_shorts(v, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_MINISBLACK, 1);
    if (!p->tiled)
        add_long8s(v, TIFFTAG_STRIPOFFSETS, c->offset, c->n, HEADER_BYTES);
    add_shorts(v, TIFFTAG_SAMPLESPERPIXEL, (uint64_t)p->samples, 1);
    if (!p->tiled) {
        add_long(v, TIFFTAG_ROWSPERSTRIP, (uint64_t)p->chunk_h);
        add_long8s(v, TIFFTAG_STRIPBYTECOUNTS, c->bytes, c->n, 0);
    }
    add_shorts(v, TIFFTAG_PLANARCONFIG, p->separate ? PLANARCONFIG_SEPARATE : PLANARCONFIG_CONTIG,
               1);
    if (p->codec->has_predictor)
        add_shorts(v, TIFFTAG_PREDICTOR, (uint64_t)p->predictor, 1);
    if (p->tiled) {
        add_long(v, TIFFTAG_TILEWIDTH, (uint64_t)p->chunk_w);
        add_long(v, TIFFTAG_TILELENGTH, (uint64_t)p->chunk_h);
        add_long8s(v, TIFFTAG_TILEOFFSETS, c->offset, c->n, HEADER_BYTES);
        add_long8s(v, TIFFTAG_TILEBYTECOUNTS, c->bytes, c->n, 0);
    }
    if (p->samples > 1)
        add_shorts(v, TIFFTAG_EXTRASAMPLES, EXTRASAMPLE_UNSPECIFIED, p->samples - 1);
    add_shorts(v, TIFFTAG_SAMPLEFORMAT, sample_format(p->pixel), p->samples);
    US_TRY(add_jpeg_tables(v, p, err));
    store(v, v->dir, (uint64_t)(v->entries - v->dir - 8) / ENTRY_BYTES, 8);
    return US_OK;
}

static enum us_status view_init(struct view *v, const struct usi_tiff_file *f,
                                const struct usi_tiff_page *p, const struct usi_tiff_chunks *c,
                                struct us_err *err)
{
    memset(v, 0, sizeof(*v));
    v->src = f->src;
    v->big_endian = usi_host_is_big_endian() != f->swap;
    v->strict = p->codec->compression == USI_TIFF_JPEG; /* its warnings tell of damaged data */
    if (p->jpeg_tables.count > MAX_JPEG_TABLES)
        return us_fail(err, US_E_TOO_LARGE, "JPEG tables of %llu bytes; at most %d",
                       (unsigned long long)p->jpeg_tables.count, MAX_JPEG_TABLES);
    v->dir_used = 8 + MAX_TAGS * ENTRY_BYTES + 8;
    v->dir_bytes =
        v->dir_used + 16 * (uint64_t)c->n + 8 * (uint64_t)p->samples + p->jpeg_tables.count;
    v->dir = calloc(1, v->dir_bytes);
    if (v->dir == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %llu bytes",
                       (unsigned long long)v->dir_bytes);
    v->entries = v->dir + 8;
    memcpy(v->header, v->big_endian ? "MM" : "II", 2);
    store(v, v->header + 2, 43, 2);
    store(v, v->header + 4, 8, 2);
    store(v, v->header + 8, HEADER_BYTES + v->src->n_bytes, 8);
    return fill_directory(v, p, c, err);
}

/* A single allocation inside libtiff never needs more than its input, its tables and a row or
 * tile of output. */
static TIFF *view_open(struct view *v, const struct usi_tiff_chunks *c, int64_t unit_bytes)
{
    TIFFOpenOptions *opts = TIFFOpenOptionsAlloc();
    if (opts == NULL)
        return NULL;
    uint64_t cap = c->most_bytes + 8 * (uint64_t)c->n + 4 * (uint64_t)unit_bytes + (16u << 20);
    TIFFOpenOptionsSetMaxSingleMemAlloc(opts, (tmsize_t)cap);
    TIFFOpenOptionsSetErrorHandlerExtR(opts, on_error, v);
    TIFFOpenOptionsSetWarningHandlerExtR(opts, on_warning, v);
    TIFF *tif = TIFFClientOpenExt("image", "rmc", v, view_read, view_write, view_seek, view_close,
                                  view_size, NULL, NULL, opts);
    TIFFOpenOptionsFree(opts);
    return tif;
}

struct decode {
    const struct usi_tiff_page *p;
    const struct usi_tiff_chunks *c;
    int64_t sample, pixel_bytes, first_byte;
    uint8_t *buf; /* one row or one tile */
    float *out;
};

static bool decode_rows(const struct decode *d, TIFF *tif, const struct view *v)
{
    const struct usi_tiff_page *p = d->p;
    if (TIFFScanlineSize64(tif) != (uint64_t)d->c->row_bytes)
        return false;
    for (int64_t y = 0; y < p->h; y++) {
        if (TIFFReadScanline(tif, d->buf, (uint32_t)y, (uint16_t)d->sample) != 1 || v->failed)
            return false;
        usi_pixels_to_f32(p->pixel, false, d->buf + d->first_byte, d->pixel_bytes, p->w,
                          d->out + y * p->w);
    }
    return true;
}

static bool decode_tiles(const struct decode *d, TIFF *tif, const struct view *v)
{
    const struct usi_tiff_page *p = d->p;
    const struct usi_tiff_chunks *c = d->c;
    int64_t first = p->separate ? d->sample * c->across * c->down : 0;
    tmsize_t tile_bytes = (tmsize_t)(p->chunk_h * c->row_bytes);
    if (TIFFTileSize64(tif) != (uint64_t)tile_bytes)
        return false;
    for (int64_t i = 0; i < c->across * c->down; i++) {
        if (TIFFReadEncodedTile(tif, (uint32_t)(first + i), d->buf, tile_bytes) != tile_bytes ||
            v->failed)
            return false;
        int64_t x = i % c->across * p->chunk_w, iy = i / c->across;
        int64_t cols = p->w - x < p->chunk_w ? p->w - x : p->chunk_w;
        for (int64_t k = 0; k < usi_tiff_chunk_rows(p, iy); k++)
            usi_pixels_to_f32(p->pixel, false, d->buf + k * c->row_bytes + d->first_byte,
                              d->pixel_bytes, cols, d->out + (iy * p->chunk_h + k) * p->w + x);
    }
    return true;
}

enum us_status usi_tiff_decode_codec(const struct usi_tiff_file *f, const struct usi_tiff_page *p,
                                     const struct usi_tiff_chunks *c, int64_t sample, float *out,
                                     struct us_err *err)
{
    struct view v;
    struct decode d = {.p = p, .c = c, .sample = sample, .out = out};
    TIFF *tif = NULL;
    int64_t unit_bytes = (p->tiled ? p->chunk_h : 1) * c->row_bytes;
    d.pixel_bytes = c->samples * usi_pixel_bytes(p->pixel);
    d.first_byte = p->separate ? 0 : sample * usi_pixel_bytes(p->pixel);

    enum us_status s = view_init(&v, f, p, c, err);
    if (s != US_OK)
        goto out;
    d.buf = calloc(1, (size_t)unit_bytes);
    if (d.buf == NULL) {
        s = us_fail(err, US_E_NOMEM, "no memory for %lld bytes", (long long)unit_bytes);
        goto out;
    }
    tif = view_open(&v, c, unit_bytes);
    if (tif == NULL || !(p->tiled ? decode_tiles(&d, tif, &v) : decode_rows(&d, tif, &v)))
        s = us_fail(err, US_E_CORRUPT, "%s data damaged: %s", p->codec->name,
                    v.message[0] != '\0' ? v.message : "sizes do not match");
out:
    if (tif != NULL)
        TIFFClose(tif);
    free(d.buf);
    free(v.dir);
    return s;
}
