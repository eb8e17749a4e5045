/*
 * Strips and tiles of a TIFF page: which codecs we run, the table of chunks and its checks.
 *
 * A chunk must lie in the file, and hold enough bytes for the pixels that it claims: all of them
 * without compression, and no less than 1/ratio of them with. A header that claims more than its
 * file can hold is refused here, before anybody takes memory for the pixels.
 */
#include <stdlib.h>
#include <string.h>

#include "us_tiff_int.h"

/* Ratios: PackBits gives 128 bytes for 2. Deflate gives 258 for 2 bits at best. LZW's strings grow
 * by one per code until 4095, so 1350 on average. Zstandard gives 128 KiB for a block of 4 bytes,
 * LZMA about 7000. JPEG: an 8 x 8 block costs 2 bits at least, less in progressive files. */
static const struct usi_tiff_codec codecs[] = {
    {1, "no", 1, false},
    {5, "LZW", 1400, true},
    {7, "JPEG", 1100, false},
    {8, "deflate", 1040, true},
    {32773, "PackBits", 64, false},
    {32946, "deflate", 1040, true},
    {34925, "LZMA", 8000, true},
    {50000, "Zstandard", 33000, true},
};

static const struct {
    uint16_t compression;
    const char *name;
} other_codecs[] = {
    {2, "CCITT"},          {3, "CCITT"},         {4, "CCITT"},         {6, "old-style JPEG"},
    {9, "JBIG"},           {10, "JBIG"},         {32766, "NeXT"},      {32809, "ThunderScan"},
    {32909, "PixarLog"},   {33003, "JPEG 2000"}, {33005, "JPEG 2000"}, {34661, "JBIG"},
    {34676, "SGILog"},     {34677, "SGILog"},    {34712, "JPEG 2000"}, {34887, "LERC"},
    {34892, "lossy JPEG"}, {50001, "WebP"},      {50002, "JPEG XL"},
};

const struct usi_tiff_codec *usi_tiff_codec_find(uint64_t compression)
{
    for (size_t i = 0; i < US_COUNT(codecs); i++) {
        if (codecs[i].compression == compression)
            return &codecs[i];
    }
    return NULL;
}

const char *usi_tiff_codec_name(uint64_t compression)
{
    for (size_t i = 0; i < US_COUNT(other_codecs); i++) {
        if (other_codecs[i].compression == compression)
            return other_codecs[i].name;
    }
    return "unknown";
}

int64_t usi_tiff_chunk_rows(const struct usi_tiff_page *p, int64_t iy)
{
    int64_t left = p->h - iy * p->chunk_h;
    return left < p->chunk_h ? left : p->chunk_h;
}

int64_t usi_tiff_page_bytes(const struct usi_tiff_page *p)
{
    return p->w * p->h * p->samples * usi_pixel_bytes(p->pixel);
}

/* Bytes of chunk i without compression. Tiles are whole at the right and bottom, strips are not. */
static uint64_t raw_bytes(const struct usi_tiff_page *p, const struct usi_tiff_chunks *c, int64_t i)
{
    int64_t iy = i % (c->across * c->down) / c->across;
    int64_t rows = p->tiled ? p->chunk_h : usi_tiff_chunk_rows(p, iy);
    return (uint64_t)(rows * c->row_bytes);
}

static enum us_status check_chunk(const struct usi_tiff_file *f, const struct usi_tiff_page *p,
                                  const struct usi_tiff_chunks *c, int64_t i, struct us_err *err)
{
    const char *what = p->tiled ? "tile" : "strip";
    uint64_t raw = raw_bytes(p, c, i), stored = c->bytes[i];
    if (p->codec->compression == USI_TIFF_NONE) {
        /* Some writers leave the count 0 or let it overflow: the size is known without it. */
        if (stored != 0 && stored < raw)
            return us_fail(err, US_E_CORRUPT, "%s %lld has %llu bytes; expected %llu", what,
                           (long long)i + 1, (unsigned long long)stored, (unsigned long long)raw);
        stored = raw;
    }
    if (!usi_source_holds(f->src, c->offset[i], stored))
        return us_fail(
            err, US_E_CORRUPT, "truncated: %s %lld needs bytes %llu to %llu, the file ends at %llu",
            what, (long long)i + 1, (unsigned long long)c->offset[i],
            (unsigned long long)(c->offset[i] + stored), (unsigned long long)f->src->n_bytes);
    if (stored == 0 || raw / (uint64_t)p->codec->ratio > stored)
        return us_fail(err, US_E_CORRUPT,
                       "%s %lld claims %llu bytes of pixels from %llu stored; %s compression gives "
                       "at most %lld times as many",
                       what, (long long)i + 1, (unsigned long long)raw, (unsigned long long)stored,
                       p->codec->name, (long long)p->codec->ratio);
    return US_OK;
}

/* Number and shape of the chunks, from the page alone. */
static void plan_chunks(const struct usi_tiff_page *p, struct usi_tiff_chunks *c)
{
    c->samples = p->separate ? 1 : p->samples;
    c->across = p->tiled ? (p->w + p->chunk_w - 1) / p->chunk_w : 1;
    c->down = (p->h + p->chunk_h - 1) / p->chunk_h;
    c->n = c->across * c->down * (p->separate ? p->samples : 1);
    c->row_bytes = p->chunk_w * c->samples * usi_pixel_bytes(p->pixel);
}

enum us_status usi_tiff_chunks_load(const struct usi_tiff_file *f, const struct usi_tiff_page *p,
                                    struct usi_tiff_chunks *c, struct us_err *err)
{
    const char *what = p->tiled ? "tiles" : "strips";
    memset(c, 0, sizeof(*c));
    plan_chunks(p, c);
    uint64_t n = (uint64_t)c->n;
    bool counts_needed = p->codec->compression != USI_TIFF_NONE;
    if (p->offsets.count < n || (p->counts.count < n && (counts_needed || p->counts.count != 0)))
        return us_fail(err, US_E_CORRUPT,
                       "%llu %s with %llu sizes for %lld x %lld pixels; "
                       "expected %llu",
                       (unsigned long long)p->offsets.count, what,
                       (unsigned long long)p->counts.count, (long long)p->w, (long long)p->h,
                       (unsigned long long)n);
    c->offset = calloc(n, 2 * sizeof(*c->offset));
    if (c->offset == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a table of %llu %s", (unsigned long long)n,
                       what);
    c->bytes = c->offset + n;
    US_TRY(usi_tiff_uints(f, &p->offsets, 0, n, c->offset, err));
    if (p->counts.count != 0)
        US_TRY(usi_tiff_uints(f, &p->counts, 0, n, c->bytes, err));
    for (int64_t i = 0; i < c->n; i++) {
        US_TRY(check_chunk(f, p, c, i, err));
        if (c->bytes[i] > c->most_bytes)
            c->most_bytes = c->bytes[i];
    }
    return US_OK;
}

void usi_tiff_chunks_release(struct usi_tiff_chunks *c)
{
    free(c->offset);
    c->offset = NULL;
    c->bytes = NULL;
}
