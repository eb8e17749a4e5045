/*
 * Pixels of one TIFF page to float. Uncompressed strips and tiles are read with pread and
 * converted through a bounded buffer; compressed ones go to us_tiff_codec.c.
 */
#include <stdlib.h>
#include <string.h>

#include "us_tiff_int.h"

#define BUFFER_BYTES (1LL << 20)

/* What both raw paths need. */
struct raw {
    const struct usi_tiff_file *f;
    const struct usi_tiff_page *p;
    const struct usi_tiff_chunks *c;
    int64_t pixel_bytes; /* of one pixel of a chunk: all its samples */
    int64_t first_byte;  /* of the wanted sample in a pixel */
    uint64_t skip;
    uint8_t *buf;
    int64_t buf_bytes;
    float *out;
};

/* The pixels of a strip are one run in the file and in the image: copied in blocks. */
static enum us_status read_strip(const struct raw *r, int64_t chunk, int64_t iy, struct us_err *err)
{
    int64_t n = usi_tiff_chunk_rows(r->p, iy) * r->p->w;
    int64_t per_block = r->buf_bytes / r->pixel_bytes;
    uint64_t at = r->c->offset[chunk] + r->skip;
    float *out = r->out + iy * r->p->chunk_h * r->p->w;
    for (int64_t i = 0; i < n; i += per_block) {
        int64_t take = n - i < per_block ? n - i : per_block;
        US_TRY(usi_source_read(r->f->src, at + (uint64_t)(i * r->pixel_bytes), r->buf,
                               (uint64_t)(take * r->pixel_bytes), err));
        usi_pixels_to_f32(r->p->pixel, r->f->swap, r->buf + r->first_byte, r->pixel_bytes, take,
                          out + i);
    }
    return US_OK;
}

static enum us_status read_tile(const struct raw *r, int64_t chunk, int64_t ix, int64_t iy,
                                struct us_err *err)
{
    const struct usi_tiff_page *p = r->p;
    int64_t rows = usi_tiff_chunk_rows(p, iy), left = p->w - ix * p->chunk_w;
    int64_t cols = left < p->chunk_w ? left : p->chunk_w;
    US_TRY(usi_source_read(r->f->src, r->c->offset[chunk] + r->skip, r->buf,
                           (uint64_t)(rows * r->c->row_bytes), err));
    for (int64_t y = 0; y < rows; y++)
        usi_pixels_to_f32(p->pixel, r->f->swap, r->buf + y * r->c->row_bytes + r->first_byte,
                          r->pixel_bytes, cols,
                          r->out + (iy * p->chunk_h + y) * p->w + ix * p->chunk_w);
    return US_OK;
}

static enum us_status read_raw(struct raw *r, int64_t sample, struct us_err *err)
{
    const struct usi_tiff_page *p = r->p;
    const struct usi_tiff_chunks *c = r->c;
    int64_t first = p->separate ? sample * c->across * c->down : 0;
    r->pixel_bytes = c->samples * usi_pixel_bytes(p->pixel);
    r->first_byte = p->separate ? 0 : sample * usi_pixel_bytes(p->pixel);
    r->buf_bytes = p->tiled ? p->chunk_h * c->row_bytes : BUFFER_BYTES;
    r->buf = malloc((size_t)r->buf_bytes);
    if (r->buf == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %lld bytes", (long long)r->buf_bytes);
    enum us_status s = US_OK;
    for (int64_t i = 0; i < c->across * c->down && s == US_OK; i++)
        s = p->tiled ? read_tile(r, first + i, i % c->across, i / c->across, err)
                     : read_strip(r, first + i, i, err);
    free(r->buf);
    return s;
}

enum us_status usi_tiff_decode(const struct usi_tiff_file *f, const struct usi_tiff_page *p,
                               int64_t sample, uint64_t skip_bytes, float *out, struct us_err *err)
{
    struct usi_tiff_chunks c;
    US_ASSERT(sample >= 0 && sample < p->samples);
    enum us_status s = usi_tiff_chunks_load(f, p, &c, err);
    if (s == US_OK && p->codec->compression == USI_TIFF_NONE) {
        struct raw r = {.f = f, .p = p, .c = &c, .skip = skip_bytes, .out = out};
        s = read_raw(&r, sample, err);
    } else if (s == US_OK) {
        s = usi_tiff_decode_codec(f, p, &c, sample, out, err);
    }
    usi_tiff_chunks_release(&c);
    return s;
}
