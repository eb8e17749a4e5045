/*
 * One TIFF page: its tags as numbers that have been checked, or the reason why we do not read it.
 *
 * What we do not read (RGB, palettes, odd bit depths, codecs that we do not run) is refused by
 * name, in words that say what was found, what is expected and what to do.
 */
#include <string.h>

#include "us_tiff_int.h"

/* The first value of a tag, or `absent`. */
static enum us_status get_uint(const struct usi_tiff_tags *d, enum usi_tiff_tag tag,
                               uint64_t absent, uint64_t *ret, struct us_err *err)
{
    const struct usi_tiff_value *v = usi_tiff_tag(d, tag);
    *ret = absent;
    if (v->count == 0)
        return US_OK;
    enum us_status s = usi_tiff_uints(d->f, v, 0, 1, ret, err);
    if (s != US_OK)
        us_err_prefix(err, "tag %d", (int)tag);
    return s;
}

/* A tag with one value per sample, all of which must agree. */
static enum us_status get_per_sample(const struct usi_tiff_tags *d, enum usi_tiff_tag tag,
                                     uint64_t samples, uint64_t absent, uint64_t *ret,
                                     struct us_err *err)
{
    uint64_t values[US_MAX_TIFF_SAMPLES];
    const struct usi_tiff_value *v = usi_tiff_tag(d, tag);
    US_TRY(get_uint(d, tag, absent, ret, err));
    if (v->count < 2)
        return US_OK;
    uint64_t n = v->count < samples ? v->count : samples;
    US_TRY(usi_tiff_uints(d->f, v, 0, n, values, err));
    for (uint64_t i = 1; i < n; i++) {
        if (values[i] != values[0])
            return us_fail(err, US_E_UNSUPPORTED,
                           "samples of different types (tag %d is %llu and %llu); expected one "
                           "type for all channels",
                           (int)tag, (unsigned long long)values[0], (unsigned long long)values[i]);
    }
    return US_OK;
}

/* A rational tag, 0 if absent or without meaning. */
static enum us_status get_rational(const struct usi_tiff_tags *d, enum usi_tiff_tag tag,
                                   double *ret, struct us_err *err)
{
    uint8_t b[8];
    const struct usi_tiff_value *v = usi_tiff_tag(d, tag);
    *ret = 0.0;
    if (v->count == 0 || v->type != USI_TIFF_RATIONAL)
        return US_OK;
    US_TRY(usi_source_read(d->f->src, v->at, b, 8, err));
    double denominator = (double)usi_tiff_load(d->f, b + 4, 4);
    if (denominator > 0.0)
        *ret = (double)usi_tiff_load(d->f, b, 4) / denominator;
    return US_OK;
}

static const struct {
    uint16_t value;
    const char *found, *advice;
} photometric_table[] = {
    {0, "inverted grayscale image (MINISWHITE: 0 is white)", "invert it and save it again"},
    {2, "RGB image", "save channels as separate pages"},
    {3, "palette image (colour table)", "save the grayscale data without a colour table"},
    {4, "transparency mask", "save the image itself"},
    {5, "CMYK image", "save channels as separate pages"},
    {6, "YCbCr image", "save channels as separate pages"},
    {8, "CIELab image", "save channels as separate pages"},
    {9, "ICCLab image", "save channels as separate pages"},
    {10, "ITULab image", "save channels as separate pages"},
    {32803, "colour filter array (raw camera) image", "save channels as separate pages"},
    {32844, "LogL image", "save it as 32-bit float"},
    {32845, "LogLuv image", "save channels as separate pages"},
};

static enum us_status refuse_photometric(uint64_t value, int64_t samples, struct us_err *err)
{
    const char *found = "image of an unknown photometric kind", *advice = "save it as grayscale";
    for (size_t i = 0; i < US_COUNT(photometric_table); i++) {
        if (photometric_table[i].value == value) {
            found = photometric_table[i].found;
            advice = photometric_table[i].advice;
        }
    }
    return us_fail(err, US_E_UNSUPPORTED,
                   "%s (photometric %llu, %lld sample%s per pixel); expected one grayscale sample "
                   "per pixel; %s",
                   found, (unsigned long long)value, (long long)samples, samples == 1 ? "" : "s",
                   advice);
}

static enum us_status parse_colour(const struct usi_tiff_tags *d, struct usi_tiff_page *p,
                                   struct us_err *err)
{
    uint64_t samples, photometric, planar, extra, fill;
    US_TRY(get_uint(d, TAG_SAMPLES, 1, &samples, err));
    US_TRY(get_uint(d, TAG_PHOTOMETRIC, 1, &photometric, err));
    US_TRY(get_uint(d, TAG_PLANAR, 1, &planar, err));
    US_TRY(get_uint(d, TAG_EXTRA, 0, &extra, err));
    US_TRY(get_uint(d, TAG_FILL_ORDER, 1, &fill, err));
    if (samples < 1 || samples > US_MAX_TIFF_SAMPLES)
        return us_fail(err, US_E_UNSUPPORTED, "%llu samples per pixel; expected 1 to %d",
                       (unsigned long long)samples, US_MAX_TIFF_SAMPLES);
    if (photometric != 1)
        return refuse_photometric(photometric, (int64_t)samples, err);
    if (extra == 1 || extra == 2)
        return us_fail(err, US_E_UNSUPPORTED,
                       "grayscale image with transparency (alpha); expected "
                       "grayscale only; save it without alpha");
    if (planar != 1 && planar != 2)
        return us_fail(err, US_E_FORMAT, "planar configuration %llu; expected 1 or 2",
                       (unsigned long long)planar);
    if (fill != 1)
        return us_fail(err, US_E_UNSUPPORTED, "reversed bit order (FillOrder %llu); expected 1",
                       (unsigned long long)fill);
    p->samples = (int64_t)samples;
    p->separate = planar == 2 && samples > 1;
    return US_OK;
}

static enum us_status parse_pixel(const struct usi_tiff_tags *d, struct usi_tiff_page *p,
                                  struct us_err *err)
{
    static const char *const format_names[] = {"?",       "unsigned", "signed", "float",
                                               "untyped", "complex",  "complex"};
    static const char kinds[] = "?uifu";
    uint64_t bits, format;
    US_TRY(get_per_sample(d, TAG_BITS, (uint64_t)p->samples, 1, &bits, err));
    US_TRY(get_per_sample(d, TAG_FORMAT, (uint64_t)p->samples, 1, &format, err));
    if (format < 1 || format >= US_COUNT(format_names))
        return us_fail(err, US_E_FORMAT, "sample format %llu is unknown",
                       (unsigned long long)format);
    if (format > 4 || bits > 64 || !usi_pixel_find(kinds[format], (unsigned)bits, &p->pixel))
        return us_fail(
            err, US_E_UNSUPPORTED,
            "%llu-bit %s pixels; expected 8, 16 or 32-bit integers or 32 or 64-bit float",
            (unsigned long long)bits, format_names[format]);
    return US_OK;
}

static enum us_status parse_compression(const struct usi_tiff_tags *d, struct usi_tiff_page *p,
                                        struct us_err *err)
{
    uint64_t compression, predictor;
    US_TRY(get_uint(d, TAG_COMPRESSION, 1, &compression, err));
    US_TRY(get_uint(d, TAG_PREDICTOR, 1, &predictor, err));
    p->codec = usi_tiff_codec_find(compression);
    if (p->codec == NULL)
        return us_fail(err, US_E_UNSUPPORTED,
                       "%s compression (%llu); expected none, LZW, deflate, PackBits, Zstandard, "
                       "LZMA or JPEG; save it again with one of them",
                       usi_tiff_codec_name(compression), (unsigned long long)compression);
    if (compression == USI_TIFF_JPEG && p->pixel != US_PIXEL_U8)
        return us_fail(err, US_E_UNSUPPORTED, "JPEG compression with %s pixels; expected uint8",
                       us_pixel_name(p->pixel));
    p->jpeg_tables = *usi_tiff_tag(d, TAG_JPEG_TABLES);
    if (!p->codec->has_predictor)
        predictor = 1;
    bool is_float = p->pixel == US_PIXEL_F32 || p->pixel == US_PIXEL_F64;
    if (predictor < 1 || predictor > 3 || (predictor == 3 && !is_float))
        return us_fail(err, US_E_FORMAT, "predictor %llu with %s pixels",
                       (unsigned long long)predictor, us_pixel_name(p->pixel));
    p->predictor = (int)predictor;
    return US_OK;
}

static enum us_status parse_layout(const struct usi_tiff_tags *d, struct usi_tiff_page *p,
                                   struct us_err *err)
{
    uint64_t tw, th, rows;
    p->tiled = usi_tiff_tag(d, TAG_TILE_OFFSETS)->count != 0;
    US_TRY(get_uint(d, TAG_TILE_WIDTH, 0, &tw, err));
    US_TRY(get_uint(d, TAG_TILE_HEIGHT, 0, &th, err));
    US_TRY(get_uint(d, TAG_STRIP_ROWS, UINT32_MAX, &rows, err));
    p->offsets = *usi_tiff_tag(d, p->tiled ? TAG_TILE_OFFSETS : TAG_STRIP_OFFSETS);
    p->counts = *usi_tiff_tag(d, p->tiled ? TAG_TILE_BYTES : TAG_STRIP_BYTES);
    if (p->offsets.count == 0)
        return us_fail(err, US_E_FORMAT, "page has neither strips nor tiles");
    if (!p->tiled) {
        p->chunk_w = p->w;
        p->chunk_h = rows == 0 || rows > (uint64_t)p->h ? p->h : (int64_t)rows;
        return US_OK;
    }
    uint64_t pixel_bytes = (uint64_t)(usi_pixel_bytes(p->pixel) * p->samples);
    if (tw == 0 || th == 0)
        return us_fail(err, US_E_FORMAT, "tiles of %llu x %llu pixels", (unsigned long long)tw,
                       (unsigned long long)th);
    if (tw > US_MAX_IMAGE_SIDE || th > US_MAX_IMAGE_SIDE ||
        tw * th > US_MAX_TIFF_TILE_BYTES / pixel_bytes)
        return us_fail(err, US_E_TOO_LARGE, "tiles of %llu x %llu pixels; at most %lld bytes each",
                       (unsigned long long)tw, (unsigned long long)th, US_MAX_TIFF_TILE_BYTES);
    p->chunk_w = (int64_t)tw;
    p->chunk_h = (int64_t)th;
    return US_OK;
}

static enum us_status parse_size(const struct usi_tiff_tags *d, struct usi_tiff_page *p,
                                 struct us_err *err)
{
    uint64_t w, h, subfile;
    US_TRY(get_uint(d, TAG_WIDTH, 0, &w, err));
    US_TRY(get_uint(d, TAG_HEIGHT, 0, &h, err));
    US_TRY(get_uint(d, TAG_SUBFILE, 0, &subfile, err));
    struct us_image_info info = {.t = 1, .z = 1, .c = 1};
    info.w = w > INT64_MAX ? INT64_MAX : (int64_t)w;
    info.h = h > INT64_MAX ? INT64_MAX : (int64_t)h;
    p->w = info.w;
    p->h = info.h;
    p->reduced = (subfile & 5) != 0; /* bit 0: reduced resolution, bit 2: mask */
    return p->reduced ? US_OK : usi_info_check(&info, err);
}

enum us_status usi_tiff_page_parse(const struct usi_tiff_file *f, uint64_t ifd,
                                   struct usi_tiff_page *ret, struct us_err *err)
{
    struct usi_tiff_tags d;
    uint64_t unit;
    memset(ret, 0, sizeof(*ret));
    US_TRY(usi_tiff_tags_read(f, ifd, &d, err));
    US_TRY(parse_size(&d, ret, err));
    if (ret->reduced)
        return US_OK;
    US_TRY(parse_colour(&d, ret, err));
    US_TRY(parse_pixel(&d, ret, err));
    US_TRY(parse_compression(&d, ret, err));
    US_TRY(parse_layout(&d, ret, err));
    US_TRY(get_rational(&d, TAG_X_RES, &ret->x_res, err));
    US_TRY(get_rational(&d, TAG_Y_RES, &ret->y_res, err));
    US_TRY(get_uint(&d, TAG_RES_UNIT, 2, &unit, err));
    ret->resolution_unit = unit <= 3 ? (int)unit : 1;
    ret->description = *usi_tiff_tag(&d, TAG_DESCRIPTION);
    ret->stk = *usi_tiff_tag(&d, TAG_STK);
    return US_OK;
}
