/* Pixels of TIFF files that others write: sample types, byte orders, codecs, strips, tiles. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>
#include <tiffio.h>
#include <zlib.h>

#include "us_image_check.h"

static void every_sample_type_reads_in_both_byte_orders_and_both_headers(void **state)
{
    static const struct {
        int bits, format;
        enum us_pixel pixel;
    } types[] = {{8, 1, US_PIXEL_U8},   {16, 1, US_PIXEL_U16}, {32, 1, US_PIXEL_U32},
                 {16, 2, US_PIXEL_I16}, {32, 2, US_PIXEL_I32}, {32, 3, US_PIXEL_F32},
                 {64, 3, US_PIXEL_F64}};
    for (size_t k = 0; k < US_COUNT(types); k++)
        for (int flags = 0; flags < 4; flags++) {
            struct mk_file f;
            mk_init(&f, flags & 1, flags & 2);
            for (int page = 0; page < 3; page++) {
                size_t at = check_put_samples(&f, page, 9 * 7, types[k].bits, types[k].format == 3);
                struct mk_page p = mk_gray(9, 7, types[k].bits, at);
                mk_set(&p, 339, MK_SHORT, 1, (uint64_t)types[k].format);
                (void)mk_page(&f, &p);
            }
            struct us_image_reader *r = check_open_bytes(&f);
            assert_int_equal(us_image_info(r)->pixel, types[k].pixel);
            assert_int_equal(us_image_info(r)->container, US_CONTAINER_TIFF);
            assert_false(us_image_info(r)->axes_stated);
            check_shape(r, 3, 1, 1);
            check_planes(r);
            us_image_close(r);
            mk_free(&f);
        }
}

static void signed_and_wide_integers_keep_sign_and_range(void **state)
{
    static const struct {
        int bits, format;
        uint64_t in;
        float out;
    } cases[] = {
        {8, 2, 0x80, -128.0f},
        {8, 1, 0x80, 128.0f},
        {16, 2, 0x8000, -32768.0f},
        {16, 1, 0xffff, 65535.0f},
        {32, 2, 0x80000000u, -2147483648.0f},
        {32, 1, 0xffffffffu, 4294967296.0f},
        {64, 3, 0xfff0000000000000u, -INFINITY},
    };
    for (size_t k = 0; k < US_COUNT(cases); k++) {
        struct mk_file f;
        float out;
        mk_init(&f, false, k % 2 == 1);
        struct mk_page p =
            mk_gray(1, 1, cases[k].bits, mk_number(&f, cases[k].in, cases[k].bits / 8));
        mk_set(&p, 339, MK_SHORT, 1, (uint64_t)cases[k].format);
        (void)mk_page(&f, &p);
        struct us_image_reader *r = check_open_bytes(&f);
        assert_int_equal(us_image_read_plane(r, 0, 0, 0, &out, NULL), US_OK);
        assert_true(out == cases[k].out);
        us_image_close(r);
        mk_free(&f);
    }
}

/* What libtiff writes: 2 pages of 3 samples each, 45 x 37 pixels. */
struct codec_case {
    uint16_t compression, predictor;
    int bits;
    bool is_float, tiled, separate;
    const char *mode;
};

enum { CODEC_W = 45, CODEC_H = 37, CODEC_SAMPLES = 3 };

/* One chunk at (x0, y0): pixel-interleaved, or one sample of it. */
static void make_chunk(const struct codec_case *c, int64_t page, int sample, int64_t x0, int64_t y0,
                       int64_t w, int64_t h, uint8_t *out)
{
    int samples = c->separate ? 1 : CODEC_SAMPLES;
    for (int64_t y = y0; y < y0 + h; y++)
        for (int64_t x = x0; x < x0 + w; x++)
            for (int s = 0; s < samples; s++) {
                bool inside = x < CODEC_W && y < CODEC_H;
                float v =
                    inside ? check_value(page * CODEC_SAMPLES + sample + s, y * CODEC_W + x) : 0.0f;
                uint16_t v16 = (uint16_t)v;
                uint8_t v8 = (uint8_t)v;
                if (c->is_float)
                    memcpy(out, &v, 4);
                else
                    memcpy(out, c->bits == 16 ? (void *)&v16 : (void *)&v8, (size_t)c->bits / 8);
                out += c->bits / 8;
            }
}

static void write_codec_page(TIFF *t, const struct codec_case *c, int64_t page)
{
    static uint8_t chunk[64 * 64 * 4 * CODEC_SAMPLES];
    int64_t cw = c->tiled ? 32 : CODEC_W, ch = c->tiled ? 16 : 8;
    int64_t across = (CODEC_W + cw - 1) / cw, down = (CODEC_H + ch - 1) / ch;
    TIFFSetField(t, TIFFTAG_IMAGEWIDTH, CODEC_W);
    TIFFSetField(t, TIFFTAG_IMAGELENGTH, CODEC_H);
    TIFFSetField(t, TIFFTAG_BITSPERSAMPLE, c->bits);
    TIFFSetField(t, TIFFTAG_SAMPLESPERPIXEL, CODEC_SAMPLES);
    TIFFSetField(t, TIFFTAG_SAMPLEFORMAT, c->is_float ? SAMPLEFORMAT_IEEEFP : SAMPLEFORMAT_UINT);
    TIFFSetField(t, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_MINISBLACK);
    TIFFSetField(t, TIFFTAG_PLANARCONFIG,
                 c->separate ? PLANARCONFIG_SEPARATE : PLANARCONFIG_CONTIG);
    TIFFSetField(t, TIFFTAG_COMPRESSION, c->compression);
    if (c->compression == COMPRESSION_LZMA)
        TIFFSetField(t, TIFFTAG_LZMAPRESET, 0); /* the others take 94 MB per strip */
    if (c->predictor != 0)
        TIFFSetField(t, TIFFTAG_PREDICTOR, c->predictor);
    if (c->tiled) {
        TIFFSetField(t, TIFFTAG_TILEWIDTH, (uint32_t)cw);
        TIFFSetField(t, TIFFTAG_TILELENGTH, (uint32_t)ch);
    } else {
        TIFFSetField(t, TIFFTAG_ROWSPERSTRIP, (uint32_t)ch);
    }
    for (int64_t i = 0; i < across * down * (c->separate ? CODEC_SAMPLES : 1); i++) {
        int64_t in_plane = i % (across * down), y0 = in_plane / across * ch;
        int64_t rows = !c->tiled && CODEC_H - y0 < ch ? CODEC_H - y0 : ch;
        make_chunk(c, page, (int)(i / (across * down)), in_plane % across * cw, y0, cw, rows,
                   chunk);
        tmsize_t n = (tmsize_t)(cw * rows * c->bits / 8 * (c->separate ? 1 : CODEC_SAMPLES));
        tmsize_t put = c->tiled ? TIFFWriteEncodedTile(t, (uint32_t)i, chunk, n)
                                : TIFFWriteEncodedStrip(t, (uint32_t)i, chunk, n);
        assert_int_equal(put, n);
    }
    assert_int_equal(TIFFWriteDirectory(t), 1);
}

static void check_codec(const struct codec_case *c)
{
    TIFF *t = TIFFOpen(check_temp_path, c->mode);
    assert_non_null(t);
    for (int64_t page = 0; page < 2; page++)
        write_codec_page(t, c, page);
    TIFFClose(t);
    struct us_image_reader *r = check_open(check_temp_path);
    check_shape(r, 2, 1, CODEC_SAMPLES);
    assert_true(us_image_info(r)->axes_stated); /* samples are channels */
    check_planes(r);
    us_image_close(r);
}

/* Predictor 3 is for floats. libtiff 4.5 swaps bytes once too often when it writes that into a
 * big-endian file, so those are made by hand below. */
static uint16_t last_predictor(const struct codec_case *c)
{
    return c->is_float && c->mode[1] == 'l' ? 3 : 2;
}

static void every_codec_reads_strips_and_tiles_with_and_without_predictor(void **state)
{
    static const uint16_t plain[] = {COMPRESSION_NONE, COMPRESSION_PACKBITS};
    static const uint16_t predicting[] = {COMPRESSION_LZW, COMPRESSION_ADOBE_DEFLATE,
                                          COMPRESSION_ZSTD, COMPRESSION_LZMA};
    static const char *const modes[] = {"wl", "wb", "wl8", "wb8"};
    for (int flags = 0; flags < 16; flags++) {
        struct codec_case c = {
            .tiled = flags & 1, .separate = flags & 2, .mode = modes[flags >> 2]};
        for (int kind = 0; kind < 3; kind++) { /* uint8, uint16, float32 */
            c.bits = 8 << kind;
            c.is_float = kind == 2;
            c.predictor = 0;
            for (size_t k = 0; k < US_COUNT(plain); k++) {
                c.compression = plain[k];
                check_codec(&c);
            }
            for (size_t k = 0; k < US_COUNT(predicting); k++)
                for (uint16_t predictor = 1; predictor <= last_predictor(&c); predictor++) {
                    c.compression = predicting[k];
                    c.predictor = predictor;
                    check_codec(&c);
                }
        }
    }
}

/* Each row: the bytes of all floats by significance, highest first, then differences. */
static void floating_point_predictor_does_not_depend_on_the_byte_order(void **state)
{
    enum { W = 9, H = 7 };
    for (int big_endian = 0; big_endian < 2; big_endian++) {
        uint8_t rows[H][4 * W], packed[1024];
        uLongf n = sizeof(packed);
        struct mk_file f;
        for (int y = 0; y < H; y++) {
            for (int x = 0; x < W; x++) {
                float v = check_value(0, y * W + x);
                uint32_t bits;
                memcpy(&bits, &v, sizeof(v));
                for (int b = 0; b < 4; b++)
                    rows[y][b * W + x] = (uint8_t)(bits >> (24 - 8 * b));
            }
            for (int k = 4 * W - 1; k > 0; k--)
                rows[y][k] = (uint8_t)(rows[y][k] - rows[y][k - 1]);
        }
        assert_int_equal(compress(packed, &n, rows[0], sizeof(rows)), Z_OK);
        mk_init(&f, false, big_endian);
        struct mk_page p = mk_gray(W, H, 32, mk_bytes(&f, packed, n));
        mk_set(&p, 259, MK_SHORT, 1, COMPRESSION_ADOBE_DEFLATE);
        mk_set(&p, 279, MK_LONG, 1, n);
        mk_set(&p, 317, MK_SHORT, 1, 3);
        mk_set(&p, 339, MK_SHORT, 1, 3);
        (void)mk_page(&f, &p);
        struct us_image_reader *r = check_open_bytes(&f);
        check_planes(r);
        us_image_close(r);
        mk_free(&f);
    }
}

enum { JPEG_SIDE = 64 };

static void write_jpeg(const uint8_t *in)
{
    TIFF *t = TIFFOpen(check_temp_path, "w");
    assert_non_null(t);
    TIFFSetField(t, TIFFTAG_IMAGEWIDTH, JPEG_SIDE);
    TIFFSetField(t, TIFFTAG_IMAGELENGTH, JPEG_SIDE);
    TIFFSetField(t, TIFFTAG_BITSPERSAMPLE, 8);
    TIFFSetField(t, TIFFTAG_SAMPLESPERPIXEL, 1);
    TIFFSetField(t, TIFFTAG_PHOTOMETRIC, PHOTOMETRIC_MINISBLACK);
    TIFFSetField(t, TIFFTAG_COMPRESSION, COMPRESSION_JPEG);
    TIFFSetField(t, TIFFTAG_ROWSPERSTRIP, 16);
    for (uint32_t s = 0; s < 4; s++)
        assert_true(TIFFWriteEncodedStrip(t, s, (void *)(in + s * 16 * JPEG_SIDE), 16 * JPEG_SIDE) >
                    0);
    TIFFClose(t);
}

static void jpeg_grayscale_reads_close_to_what_was_stored(void **state)
{
    uint8_t in[JPEG_SIDE * JPEG_SIDE];
    float out[JPEG_SIDE * JPEG_SIDE];
    for (int k = 0; k < JPEG_SIDE * JPEG_SIDE; k++)
        in[k] = (uint8_t)(k / JPEG_SIDE * 2 + k % JPEG_SIDE);
    write_jpeg(in);
    struct us_image_reader *r = check_open(check_temp_path);
    assert_int_equal(us_image_read_plane(r, 0, 0, 0, out, NULL), US_OK);
    for (int k = 0; k < JPEG_SIDE * JPEG_SIDE; k++)
        assert_true(fabsf(out[k] - (float)in[k]) <= 8.0f);
    us_image_close(r);
}

/* libjpeg fills what is missing with gray and calls it a warning. */
static void jpeg_that_ends_early_is_refused_and_not_filled_with_gray(void **state)
{
    uint8_t in[JPEG_SIDE * JPEG_SIDE];
    float out[JPEG_SIDE * JPEG_SIDE];
    struct us_err err = {0};
    uint64_t *offsets, *counts;
    for (int k = 0; k < JPEG_SIDE * JPEG_SIDE; k++)
        in[k] = (uint8_t)(k * 2654435761u >> 24);
    write_jpeg(in);
    TIFF *t = TIFFOpen(check_temp_path, "r");
    assert_non_null(t);
    assert_int_equal(TIFFGetField(t, TIFFTAG_STRIPOFFSETS, &offsets), 1);
    assert_int_equal(TIFFGetField(t, TIFFTAG_STRIPBYTECOUNTS, &counts), 1);
    long middle = (long)(offsets[2] + counts[2] / 2);
    TIFFClose(t);
    FILE *f = fopen(check_temp_path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, middle, SEEK_SET), 0);
    assert_int_equal(fwrite("\xff\xd9", 1, 2, f), 2); /* JPEG's end of image */
    assert_int_equal(fclose(f), 0);
    struct us_image_reader *r = check_open(check_temp_path);
    assert_int_equal(us_image_read_plane(r, 0, 0, 0, out, &err), US_E_CORRUPT);
    assert_non_null(strstr(err.msg, "JPEG data damaged"));
    us_image_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHECK_TEST(every_sample_type_reads_in_both_byte_orders_and_both_headers),
        CHECK_TEST(signed_and_wide_integers_keep_sign_and_range),
        CHECK_TEST(every_codec_reads_strips_and_tiles_with_and_without_predictor),
        CHECK_TEST(floating_point_predictor_does_not_depend_on_the_byte_order),
        CHECK_TEST(jpeg_grayscale_reads_close_to_what_was_stored),
        CHECK_TEST(jpeg_that_ends_early_is_refused_and_not_filled_with_gray),
    };
    return cmocka_run_group_tests_name("image_codec", tests, NULL, NULL);
}
