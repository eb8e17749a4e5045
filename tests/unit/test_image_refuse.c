/*
 * Hostile and unfit image files: each is refused, with the status and the words that say why, and
 * without taking memory for what it claims.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>
#include <zlib.h>

#include "us_image_check.h"

/* One change of the sound page of make_case. */
struct patch {
    uint16_t tag, type;
    uint64_t count, value;
};

struct page_case {
    struct patch patches[5];
    enum us_status status;
    const char *words; /* that the message must contain */
    const char *reason;
};

enum { DROP = 0xffff }; /* as a type: the tag is removed */

/* An 8 x 8 page of 16 bits in 128 bytes; offset 8 is where its pixels are. */
static struct mk_page sound_page(struct mk_file *f)
{
    mk_init(f, false, false);
    return mk_gray(8, 8, 16, mk_noise(f, 128));
}

static const struct page_case page_cases[] = {
    {{{262, MK_SHORT, 1, 2}, {277, MK_SHORT, 1, 3}},
     US_E_UNSUPPORTED,
     "RGB image (photometric 2, 3 samples per pixel); expected one grayscale sample per pixel; "
     "save channels as separate pages",
     "RGB"},
    {{{262, MK_SHORT, 1, 3}}, US_E_UNSUPPORTED, "palette", "colour table"},
    {{{262, MK_SHORT, 1, 5}}, US_E_UNSUPPORTED, "CMYK", "CMYK"},
    {{{262, MK_SHORT, 1, 6}}, US_E_UNSUPPORTED, "YCbCr", "YCbCr"},
    {{{262, MK_SHORT, 1, 8}}, US_E_UNSUPPORTED, "CIELab", "CIELab"},
    {{{262, MK_SHORT, 1, 0}}, US_E_UNSUPPORTED, "MINISWHITE", "inverted"},
    {{{262, MK_SHORT, 1, 77}}, US_E_UNSUPPORTED, "unknown photometric", "no such colour"},
    {{{277, MK_SHORT, 1, 2}, {338, MK_SHORT, 1, 2}}, US_E_UNSUPPORTED, "alpha", "transparency"},
    {{{258, MK_SHORT, 1, 1}}, US_E_UNSUPPORTED, "1-bit unsigned", "bilevel"},
    {{{258, MK_SHORT, 1, 4}}, US_E_UNSUPPORTED, "4-bit", "nibbles"},
    {{{258, MK_SHORT, 1, 12}}, US_E_UNSUPPORTED, "12-bit", "packed 12-bit camera data"},
    {{{258, DROP, 0, 0}}, US_E_UNSUPPORTED, "1-bit", "no BitsPerSample means 1"},
    {{{258, MK_SHORT, 1, 64}}, US_E_UNSUPPORTED, "64-bit unsigned", "64-bit integers"},
    {{{339, MK_SHORT, 1, 3}}, US_E_UNSUPPORTED, "16-bit float", "half float"},
    {{{258, MK_SHORT, 1, 32}, {339, MK_SHORT, 1, 6}}, US_E_UNSUPPORTED, "complex", "complex"},
    {{{339, MK_SHORT, 1, 9}}, US_E_FORMAT, "sample format 9", "no such format"},
    {{{266, MK_SHORT, 1, 2}}, US_E_UNSUPPORTED, "FillOrder 2", "reversed bits"},
    {{{284, MK_SHORT, 1, 3}}, US_E_FORMAT, "planar configuration 3", "no such layout"},
    {{{277, MK_SHORT, 1, 0}}, US_E_UNSUPPORTED, "0 samples", "no samples"},
    {{{277, MK_SHORT, 1, 60000}}, US_E_UNSUPPORTED, "60000 samples", "more samples than the cap"},
    {{{259, MK_SHORT, 1, 34887}}, US_E_UNSUPPORTED, "LERC compression", "codec that we do not run"},
    {{{259, MK_SHORT, 1, 6}}, US_E_UNSUPPORTED, "old-style JPEG", "codec that we do not run"},
    {{{259, MK_SHORT, 1, 9999}}, US_E_UNSUPPORTED, "unknown compression (9999)", "no such codec"},
    {{{259, MK_SHORT, 1, 7}}, US_E_UNSUPPORTED, "JPEG compression with uint16", "12-bit JPEG"},
    {{{259, MK_SHORT, 1, 5}, {317, MK_SHORT, 1, 3}}, US_E_FORMAT, "predictor 3", "floats only"},
    {{{259, MK_SHORT, 1, 5}, {317, MK_SHORT, 1, 9}}, US_E_FORMAT, "predictor 9", "no such one"},
    {{{256, MK_LONG, 1, 0}}, US_E_FORMAT, "image of 0 x 8", "zero width"},
    {{{257, DROP, 0, 0}}, US_E_FORMAT, "image of 8 x 0", "no height"},
    {{{256, MK_LONG, 1, 0x80000000u}}, US_E_TOO_LARGE, "2147483648 x 8", "side above the limit"},
    {{{256, MK_LONG, 1, 65536}, {257, MK_LONG, 1, 32768}},
     US_E_TOO_LARGE,
     "65536 x 32768",
     "2^31 pixels"},
    {{{256, MK_LONG, 1, 32768}, {257, MK_LONG, 1, 32768}},
     US_E_CORRUPT,
     "header claims 1 planes of 32768 x 32768",
     "2^30 pixels in a small file"},
    {{{256, MK_LONG, 1, 32768}, {257, MK_LONG, 1, 32768}, {259, MK_SHORT, 1, 50000}},
     US_E_CORRUPT,
     "header claims 1 planes of 32768 x 32768",
     "the same with the best compression there is"},
    {{{256, MK_LONG, 1, 1000},
      {257, MK_LONG, 1, 100},
      {259, MK_SHORT, 1, 8},
      {278, MK_LONG, 1, 100},
      {279, MK_LONG, 1, 100}},
     US_E_CORRUPT,
     "claims 200000 bytes of pixels from 100 stored",
     "one strip claims more than deflate gives"},
    {{{256, MK_BYTE, 1, 8}, {256, MK_FLOAT, 1, 8}}, US_E_FORMAT, "tag 256", "width as a float"},
    {{{256, 99, 1, 8}}, US_E_FORMAT, "tag 256 has the unknown type 99", "no such type"},
    {{{270, MK_ASCII, 0xfffffff0u, 8}},
     US_E_CORRUPT,
     "tag 270 claims 4294967280 values",
     "count of 4 G"},
    {{{270, MK_ASCII, 100, 0xffffff00u}}, US_E_CORRUPT, "tag 270 lie beyond the end", "offset"},
    {{{256, MK_LONG, 0, 8}}, US_E_CORRUPT, "tag 256 claims 0 values", "no value"},
    {{{273, DROP, 0, 0}}, US_E_FORMAT, "neither strips nor tiles", "no pixels"},
    {{{273, MK_LONG, 1, 0xfffffff0u}},
     US_E_CORRUPT,
     "truncated: strip 1 needs bytes 4294967280",
     "strip beyond the end"},
    {{{279, MK_LONG, 1, 100}}, US_E_CORRUPT, "strip 1 has 100 bytes; expected 128", "short strip"},
    {{{278, MK_LONG, 1, 2}},
     US_E_CORRUPT,
     "1 strips with 1 sizes for 8 x 8 pixels; expected 4",
     "fewer offsets than strips"},
    {{{278, MK_LONG, 1, 1},
      {257, MK_LONG, 1, 16000000},
      {259, MK_SHORT, 1, 50000},
      {256, MK_LONG, 1, 1}},
     US_E_CORRUPT,
     "header claims",
     "16 million strips of one row"},
    {{{257, MK_LONG, 1, 4000000},
      {278, MK_LONG, 1, 1},
      {256, MK_LONG, 1, 1},
      {258, MK_SHORT, 1, 8},
      {259, MK_SHORT, 1, 50000}},
     US_E_CORRUPT,
     "1 strips with 1 sizes for 1 x 4000000 pixels; expected 4000000",
     "4 million strips of a row"},
    {{{322, MK_LONG, 1, 0}, {323, MK_LONG, 1, 16}, {324, MK_LONG, 1, 8}, {325, MK_LONG, 1, 128}},
     US_E_FORMAT,
     "tiles of 0 x 16",
     "tile without width"},
    {{{322, MK_LONG, 1, 1 << 20},
      {323, MK_LONG, 1, 1 << 20},
      {324, MK_LONG, 1, 8},
      {325, MK_LONG, 1, 128}},
     US_E_TOO_LARGE,
     "tiles of 1048576 x 1048576",
     "2^40 pixels per tile"},
    {{{322, MK_LONG, 1, 8192},
      {323, MK_LONG, 1, 8192},
      {324, MK_LONG, 1, 8},
      {325, MK_LONG, 1, 128}},
     US_E_CORRUPT,
     "tile 1 has 128 bytes",
     "tile larger than the image"},
    {{{322, MK_LONG, 1, 8192},
      {323, MK_LONG, 1, 8192},
      {324, MK_LONG, 1, 8},
      {325, MK_LONG, 1, 128},
      {259, MK_SHORT, 1, 50000}},
     US_E_CORRUPT,
     "tile 1 claims 134217728",
     "the same, compressed"},
    {{{322, MK_LONG, 1, 1}, {323, MK_LONG, 1, 1}, {324, MK_LONG, 1, 8}, {325, MK_LONG, 1, 2}},
     US_E_CORRUPT,
     "1 tiles with 1 sizes",
     "64 tiles, one offset"},
    {{{277, MK_SHORT, 1, 2}, {258, MK_LONG, 2, 8}},
     US_E_UNSUPPORTED,
     "samples of different types",
     "the noise as two bit depths"},
    {{{33629, MK_LONG, 7, 8}},
     US_E_UNSUPPORTED,
     "MetaMorph STK stack of 7 planes",
     "one directory, planes that only MetaMorph knows"},
    {{{254, MK_LONG, 1, 1}}, US_E_UNSUPPORTED, "reduced copies or masks only", "no full page"},
    {{{259, MK_SHORT, 1, 5}}, US_E_CORRUPT, "LZW data damaged", "noise is no LZW"},
    {{{259, MK_SHORT, 1, 8}}, US_E_CORRUPT, "deflate data damaged", "noise is no deflate"},
    {{{259, MK_SHORT, 1, 50000}}, US_E_CORRUPT, "Zstandard data damaged", "noise is no zstd"},
    {{{259, MK_SHORT, 1, 34925}}, US_E_CORRUPT, "LZMA data damaged", "noise is no LZMA"},
    {{{259, MK_SHORT, 1, 32773}, {279, MK_LONG, 1, 20}},
     US_E_CORRUPT,
     "PackBits data damaged",
     "runs end early"},
    {{{259, MK_SHORT, 1, 7}, {258, MK_SHORT, 1, 8}},
     US_E_CORRUPT,
     "JPEG data damaged",
     "noise is no JPEG"},
};

/* Opens and reads all planes (small ones only). The first failure, or US_OK. */
static enum us_status read_all(const void *bytes, size_t n, struct us_err *err)
{
    float plane[4096];
    struct us_image_reader *r;
    US_TRY(us_image_open_memory(bytes, n, &r, err));
    const struct us_image_info *i = us_image_info(r);
    enum us_status s = US_OK;
    for (int64_t p = 0; p < i->t * i->z * i->c && s == US_OK && i->h * i->w <= 4096; p++)
        s = us_image_read_plane(r, p / (i->z * i->c), p / i->c % i->z, p % i->c, plane, err);
    us_image_close(r);
    return s;
}

static void assert_refused(const struct mk_file *f, enum us_status status, const char *words,
                           const char *reason)
{
    struct us_err err = {0};
    enum us_status s = read_all(f->p, f->n, &err);
    if (s != status || strstr(err.msg, words) == NULL)
        fail_msg("%s: got %s \"%s\", expected %s with \"%s\"", reason, us_status_name(s), err.msg,
                 us_status_name(status), words);
    assert_true(strncmp(err.msg, "image: ", 7) == 0);
}

static void unfit_page_is_refused_by_name(void **state)
{
    for (size_t k = 0; k < US_COUNT(page_cases); k++) {
        const struct page_case *c = &page_cases[k];
        struct mk_file f;
        struct mk_page p = sound_page(&f);
        for (size_t i = 0; i < US_COUNT(c->patches) && c->patches[i].tag != 0; i++) {
            const struct patch *q = &c->patches[i];
            if (q->type == DROP)
                mk_remove(&p, q->tag);
            else
                mk_set(&p, q->tag, q->type, q->count, q->value);
        }
        (void)mk_page(&f, &p);
        assert_refused(&f, c->status, c->words, c->reason);
        mk_free(&f);
    }
}

static void sound_page_is_read(void **state)
{
    struct mk_file f;
    struct us_err err = {0};
    struct mk_page p = sound_page(&f);
    (void)mk_page(&f, &p);
    assert_int_equal(read_all(f.p, f.n, &err), US_OK);
    mk_free(&f);
}

static void later_page_that_differs_is_refused_by_its_number(void **state)
{
    static const struct {
        struct patch patch;
        const char *words, *reason;
    } cases[] = {
        {{256, MK_LONG, 1, 7}, "page 3 of 4: 7 x 8 pixels; expected 8 x 8", "size"},
        {{339, MK_SHORT, 1, 2}, "page 3 of 4: 1 samples of int16; expected 1 of uint16", "type"},
        {{277, MK_SHORT, 1, 2}, "page 3 of 4: 2 samples of uint16", "samples per pixel"},
        {{262, MK_SHORT, 1, 2}, "page 3 of 4: RGB image", "an RGB page in a gray stack"},
    };
    for (size_t k = 0; k < US_COUNT(cases); k++) {
        struct mk_file f;
        struct us_err err = {0};
        struct mk_page p = sound_page(&f);
        for (int page = 0; page < 4; page++) {
            struct mk_page q = p;
            if (page == 2)
                mk_set(&q, cases[k].patch.tag, cases[k].patch.type, 1, cases[k].patch.value);
            (void)mk_page(&f, &q);
        }
        assert_int_equal(read_all(f.p, f.n, &err), US_E_UNSUPPORTED);
        if (strstr(err.msg, cases[k].words) == NULL)
            fail_msg("%s: %s", cases[k].reason, err.msg);
        mk_free(&f);
    }
}

static void loops_of_directories_are_found(void **state)
{
    for (int back_to = 0; back_to < 5; back_to++) {
        struct mk_file f;
        size_t at[5];
        struct mk_page p = sound_page(&f);
        for (int page = 0; page < 5; page++)
            at[page] = mk_page(&f, &p);
        mk_patch(&f, f.link, at[back_to], 4);
        assert_refused(&f, US_E_FORMAT, "directories form a loop", "last links back");
        mk_free(&f);
    }
}

static void directory_that_lies_about_itself_is_refused(void **state)
{
    struct mk_file f;
    struct mk_page p = sound_page(&f);
    size_t at = mk_page(&f, &p);
    mk_patch(&f, at, 60000, 2);
    assert_refused(&f, US_E_TOO_LARGE, "60000 tags; at most 512", "thousands of tags");
    mk_patch(&f, at, 500, 2);
    assert_refused(&f, US_E_CORRUPT, "is cut off", "more tags than there are bytes");
    mk_patch(&f, at, 0, 2);
    assert_refused(&f, US_E_FORMAT, "has no tags", "empty");
    mk_patch(&f, at, (uint64_t)p.n, 2);
    mk_patch(&f, at + 2 + 12, 256, 2);
    assert_refused(&f, US_E_FORMAT, "tag 256 stands twice", "two widths");
    mk_patch(&f, 4, 0xfffffffe, 4);
    assert_refused(&f, US_E_CORRUPT, "directory at byte 4294967294", "first directory outside");
    mk_patch(&f, 4, 0, 4);
    assert_refused(&f, US_E_FORMAT, "TIFF without pages", "no directory");
    mk_free(&f);
}

static void big_tiff_offsets_at_the_end_of_64_bits_do_not_wrap(void **state)
{
    static const struct {
        struct patch patch;
        const char *words;
    } cases[] = {
        {{273, MK_LONG8, 1, 0xffffffffffffff80u}, "truncated: strip 1"},
        {{256, MK_LONG8, 1, 0xffffffffffffffffu}, "at most 16777216 per side"},
        {{257, MK_LONG8, 1, 0x8000000000000000u}, "at most 16777216 per side"},
        {{270, MK_LONG8, 0x2000000000000001u, 8}, "claims 2305843009213693953 values"},
        {{270, MK_ASCII, 16, 0xfffffffffffffff8u}, "lie beyond the end"},
    };
    for (size_t k = 0; k < US_COUNT(cases); k++) {
        struct mk_file f;
        struct us_err err = {0};
        mk_init(&f, true, k % 2 == 1);
        struct mk_page p = mk_gray(8, 8, 16, mk_noise(&f, 128));
        const struct patch *q = &cases[k].patch;
        mk_set(&p, q->tag, q->type, q->count, q->value);
        (void)mk_page(&f, &p);
        assert_int_not_equal(read_all(f.p, f.n, &err), US_OK);
        if (strstr(err.msg, cases[k].words) == NULL)
            fail_msg("%s instead of %s", err.msg, cases[k].words);
        mk_free(&f);
    }
}

static void many_pages_over_the_same_pixels_may_not_claim_more_than_the_file(void **state)
{
    struct mk_file f;
    mk_init(&f, false, false);
    struct mk_page p = mk_gray(64, 64, 16, mk_noise(&f, 64 * 64 * 2));
    for (int page = 0; page < 100; page++)
        (void)mk_page(&f, &p);
    assert_refused(&f, US_E_CORRUPT, "header claims 100 planes", "overlapping pages");
    mk_free(&f);
}

/* ImageJ's way above 4 GB: here a page of two strips and, behind it, two more planes. */
static void stack_of_one_directory_needs_its_pixels_in_one_piece(void **state)
{
    static const struct {
        size_t gap;    /* between the strips */
        size_t behind; /* bytes behind them */
        enum us_status status;
    } cases[] = {{0, 256, US_OK}, {2, 256, US_E_CORRUPT}, {0, 255, US_E_CORRUPT}};
    for (size_t k = 0; k < US_COUNT(cases); k++) {
        struct mk_file f;
        struct us_err err = {0};
        mk_init(&f, false, false);
        struct mk_page p = mk_gray(8, 8, 16, 0);
        mk_describe(&f, &p, "ImageJ=1.53t\nimages=3\nslices=3\n");
        size_t offsets = mk_number(&f, 0, 8), counts = mk_number(&f, 64 | 64ULL << 32, 8);
        mk_set(&p, 273, MK_LONG, 2, offsets);
        mk_set(&p, 278, MK_LONG, 1, 4);
        mk_set(&p, 279, MK_LONG, 2, counts);
        (void)mk_page(&f, &p);
        size_t pixels = mk_noise(&f, 128 + cases[k].gap + cases[k].behind);
        mk_patch(&f, offsets, pixels, 4);
        mk_patch(&f, offsets + 4, pixels + 64 + cases[k].gap, 4);
        assert_int_equal(read_all(f.p, f.n, &err), cases[k].status);
        if (cases[k].status != US_OK)
            assert_non_null(strstr(err.msg, "says 3 images; the file has 1 page"));
        mk_free(&f);
    }
}

#define OME(attributes, content)                                                                   \
    "<OME><Image><Pixels DimensionOrder=\"XYCZT\" Type=\"uint16\" SizeX=\"9\" SizeY=\"7\" "        \
    "SizeZ=\"1\" " attributes ">" content "</Pixels></Image></OME>"

static const struct {
    const char *text;
    enum us_status status;
    const char *words, *reason;
} description_cases[] = {
    {"ImageJ=1.53t\nimages=5\nframes=5\n", US_E_CORRUPT, "says 5 images; the file has 4 pages",
     "page missing"},
    {"ImageJ=1.53t\nimages=4\nchannels=3\n", US_E_FORMAT, "4 images but 3 channels", "product"},
    {"ImageJ=1.53t\nimages=-4\n", US_E_FORMAT, "images is no count", "negative"},
    {"ImageJ=1.53t\nimages=99999999999999999999\n", US_E_FORMAT, "images is no count", "huge"},
    {"ImageJ=1.53t\nimages=4\nslices=2000000\nframes=2000000\n", US_E_TOO_LARGE,
     "at most 1048576 planes", "product over the cap"},
    {OME("SizeC=\"1\" SizeT=\"5\"", ""), US_E_FORMAT, "the file has 4 pages and the image 5 planes",
     "more planes than pages"},
    {OME("SizeC=\"1\"", ""), US_E_FORMAT, "SizeT is \"absent\"", "attribute missing"},
    {OME("SizeC=\"1\" SizeT=\"0\"", ""), US_E_FORMAT, "SizeT is \"0\"", "zero frames"},
    {OME("SizeC=\"1\" SizeT=\"1e3\"", ""), US_E_FORMAT, "SizeT is \"1e3\"", "no count"},
    {OME("SizeC=\"2000000\" SizeT=\"2000000\"", ""), US_E_TOO_LARGE, "at most 1048576 planes",
     "product over the cap"},
    {OME("SizeC=\"1\" SizeT=\"4\"", "<TiffData IFD=\"4\"/>"), US_E_FORMAT, "from page 5 on",
     "page outside of the file"},
    {OME("SizeC=\"1\" SizeT=\"4\"", "<TiffData FirstT=\"4\"/>"), US_E_FORMAT, "TiffData for T 4",
     "plane outside of the image"},
    {OME("SizeC=\"1\" SizeT=\"4\"", "<TiffData IFD=\"0\" PlaneCount=\"5\"/>"), US_E_FORMAT,
     "TiffData asks for 5 pages", "too many planes"},
    {OME("SizeC=\"1\" SizeT=\"4\"", "<TiffData IFD=\"0\"/><TiffData IFD=\"1\"/>"), US_E_FORMAT,
     "two TiffData elements for one plane", "plane twice"},
    {OME("SizeC=\"1\" SizeT=\"4\"", "<TiffData IFD=\"0\" PlaneCount=\"3\"/>"), US_E_FORMAT,
     "names pages for 3 of 4 planes", "interrupted acquisition"},
    {OME("SizeC=\"1\" SizeT=\"4\"", "<TiffData><UUID FileName=\"a\">u1</UUID></TiffData>"
                                    "<TiffData><UUID>u2</UUID></TiffData>"),
     US_E_FORMAT, "two TiffData elements", "two files, same planes"},
    {OME("SizeC=\"1\" SizeT=\"4\"",
         "<TiffData IFD=\"0\" PlaneCount=\"2\"><UUID FileName=\"a\">u1</UUID></TiffData>"
         "<TiffData IFD=\"0\" FirstT=\"2\" PlaneCount=\"2\"><UUID>u2</UUID></TiffData>"),
     US_E_UNSUPPORTED, "planes in several files (u2)", "multi-file"},
    {"<OME><BinaryOnly MetadataFile=\"x\" UUID=\"y\"/></OME>", US_E_UNSUPPORTED, "BinaryOnly",
     "metadata elsewhere"},
    {"<OME></OME>", US_E_FORMAT, "without an Image", "no image"},
    {"<OME><Image/></OME>", US_E_FORMAT, "without an Image with Pixels", "no pixels"},
    {"<OME><Image><Pixels DimensionOrder=\"YXCZT\"/></Image></OME>", US_E_FORMAT,
     "DimensionOrder is \"YXCZT\"", "order that is none"},
    {"<OME><Image><Pixels DimensionOrder=\"XYCCT\"/></Image></OME>", US_E_FORMAT,
     "DimensionOrder is \"XYCCT\"", "axis twice"},
    {"<OME><Image><Pixels DimensionOrder=\"XYCZT\" SizeX=\"9\" SizeY=\"8\" SizeZ=\"1\" SizeC=\"1\" "
     "SizeT=\"4\"/></Image></OME>",
     US_E_FORMAT, "OME-XML says 9 x 8 pixels, the page has 9 x 7", "size"},
    {"<OME><Image>", US_E_FORMAT, "malformed at line 1", "XML cut off"},
    {"<OME a=\"1\" a=\"2\"/>", US_E_FORMAT, "malformed at line 1", "attribute twice"},
    {"<!DOCTYPE OME [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]>"
     "<OME>&b;</OME>",
     US_E_FORMAT, "document type", "entity expansion"},
    {"<!DOCTYPE OME SYSTEM \"file:///etc/passwd\"><OME/>", US_E_FORMAT, "document type",
     "external entity"},
};

static void description_that_contradicts_the_file_is_refused(void **state)
{
    for (size_t k = 0; k < US_COUNT(description_cases); k++) {
        struct mk_file f;
        check_make_described(&f, 4, description_cases[k].text);
        assert_refused(&f, description_cases[k].status, description_cases[k].words,
                       description_cases[k].reason);
        mk_free(&f);
    }
}

/* head, then `unit` n times, then tail. */
static void describe_repeated(struct mk_file *f, const char *head, const char *unit, size_t n,
                              const char *tail)
{
    size_t n_head = strlen(head), n_unit = strlen(unit), n_tail = strlen(tail);
    char *text = malloc(n_head + n_unit * n + n_tail + 1), *at = text;
    assert_non_null(text);
    at = mempcpy(at, head, n_head);
    for (size_t i = 0; i < n; i++)
        at = mempcpy(at, unit, n_unit);
    memcpy(at, tail, n_tail + 1);
    check_make_described(f, 4, text);
    free(text);
}

static void deep_long_or_huge_descriptions_are_refused_quickly(void **state)
{
    struct mk_file f;
    describe_repeated(&f, "<OME>", "<a>", 200000, "");
    assert_refused(&f, US_E_TOO_LARGE, "nests deeper than 64", "deep XML");
    mk_free(&f);
    describe_repeated(&f, "<OME>", " ", US_MAX_TIFF_TAG_BYTES, "</OME>");
    assert_refused(&f, US_E_TOO_LARGE, "ImageDescription of 16777", "over the cap");
    mk_free(&f);
    describe_repeated(&f,
                      "<OME><Image><Pixels DimensionOrder=\"XYCZT\" SizeX=\"9\" SizeY=\"7\" "
                      "SizeZ=\"1\" SizeC=\"1\" SizeT=\"1000000\">",
                      "<TiffData IFD=\"0\" PlaneCount=\"1000000\"/>", 100000,
                      "</Pixels></Image></OME>");
    assert_refused(&f, US_E_FORMAT, "TiffData asks for 1000000 pages", "quadratic work");
    mk_free(&f);
    describe_repeated(&f, "{\"shape\": ", "[", 30000, "");
    assert_int_equal(read_all(f.p, f.n, NULL), US_OK); /* a plain TIFF with odd text */
    mk_free(&f);
}

static const struct {
    const char *header;
    size_t data_bytes;
    enum us_status status;
    const char *words, *reason;
} npy_cases[] = {
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }", 12, US_OK, "", "sound"},
    {"{'shape':(2,3),\"descr\":\"<u2\",'fortran_order':False}", 12, US_OK, "", "another order"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }", 11, US_E_CORRUPT,
     "truncated: NPY shape needs 12 bytes of data; the file has 11", "cut off"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }", 13, US_E_CORRUPT,
     "NPY shape needs 12 bytes of data; the file has 13", "too long"},
    {"{'descr': '<u2', 'fortran_order': True, 'shape': (2, 3), }", 12, US_E_UNSUPPORTED,
     "Fortran order", "column-major"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (6,), }", 12, US_E_UNSUPPORTED,
     "1 dimension;", "vector"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (), }", 2, US_E_UNSUPPORTED, "0 dimensions",
     "scalar"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (1,1,1,1,2,3), }", 12, US_E_UNSUPPORTED,
     "more than 5 dimensions", "6-D"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (0, 3), }", 0, US_E_FORMAT,
     "image of 3 x 0", "empty"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (-2, 3), }", 12, US_E_FORMAT,
     "entry that is no count", "negative"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (99999999999999999999999999, 3), }", 12,
     US_E_FORMAT, "no count", "27 digits"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (9223372036854775807, 3), }", 12,
     US_E_TOO_LARGE, "entry 9223372036854775807", "2^63 - 1"},
    {"{'descr': '<f8', 'fortran_order': False, 'shape': (32768, 32768), }", 12, US_E_CORRUPT,
     "needs 8589934592 bytes", "claims 8 GB"},
    {"{'descr': '<f8', 'fortran_order': False, 'shape': (65536, 32768), }", 12, US_E_TOO_LARGE,
     "32768 x 65536", "2^31 pixels"},
    {"{'descr': '<f8', 'fortran_order': False, 'shape': (1048577, 2, 3), }", 12, US_E_TOO_LARGE,
     "at most 1048576 planes", "too many pages"},
    {"{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3), }", 48, US_E_UNSUPPORTED,
     "type '<i8'", "64-bit"},
    {"{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }", 12, US_E_UNSUPPORTED,
     "type '<f2'", "half float"},
    {"{'descr': '<c8', 'fortran_order': False, 'shape': (2, 3), }", 48, US_E_UNSUPPORTED,
     "type '<c8'", "complex"},
    {"{'descr': '|b1', 'fortran_order': False, 'shape': (2, 3), }", 6, US_E_UNSUPPORTED,
     "type '|b1'", "boolean"},
    {"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }", 48, US_E_UNSUPPORTED,
     "type '|O'", "Python objects: would be code"},
    {"{'descr': '|u2', 'fortran_order': False, 'shape': (2, 3), }", 12, US_E_UNSUPPORTED,
     "type '|u2'", "two bytes without an order"},
    {"{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (2, 3), }", 12, US_E_UNSUPPORTED,
     "records", "structured"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), 'x': 1}", 12, US_E_FORMAT,
     "key \"x\" is unknown", "another key"},
    {"{'descr': '<u2', 'shape': (2, 3), }", 12, US_E_FORMAT, "lacks", "key missing"},
    {"{'shape': (2, 3), 'shape': (2, 3), }", 12, US_E_FORMAT, "double", "key twice"},
    {"{'descr': '<u2', 'fortran_order': 0, 'shape': (2, 3), }", 12, US_E_FORMAT,
     "\"fortran_order\" is", "0 is not False"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), } + x", 12, US_E_FORMAT,
     "text after", "an expression"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': [2, 3], }", 12, US_E_FORMAT,
     "shape is no tuple", "list"},
    {"{'descr': '<u2', 'fortran_order': False, 'shape': (2 3), }", 12, US_E_FORMAT,
     "shape is no tuple", "comma missing"},
    {"__import__('os')", 12, US_E_FORMAT, "no dictionary", "code"},
    {"", 12, US_E_FORMAT, "no dictionary", "no header"},
};

static void make_npy(struct mk_file *f, const char *header, size_t data_bytes)
{
    size_t n = strlen(header);
    *f = (struct mk_file){0};
    (void)mk_bytes(f, "\x93NUMPY\x01\x00", 8);
    (void)mk_number(f, n, 2);
    (void)mk_bytes(f, header, n);
    (void)mk_noise(f, data_bytes);
}

static void npy_header_that_is_not_exactly_ours_is_refused(void **state)
{
    for (size_t k = 0; k < US_COUNT(npy_cases); k++) {
        struct mk_file f;
        make_npy(&f, npy_cases[k].header, npy_cases[k].data_bytes);
        if (npy_cases[k].status == US_OK)
            assert_int_equal(read_all(f.p, f.n, NULL), US_OK);
        else
            assert_refused(&f, npy_cases[k].status, npy_cases[k].words, npy_cases[k].reason);
        mk_free(&f);
    }
    struct mk_file f = {0};
    (void)mk_bytes(&f, "\x93NUMPY\x02\x00\xff\xff\xff\xff{", 13);
    assert_refused(&f, US_E_TOO_LARGE, "NPY header of 4294967295 bytes", "4 GB of header");
    f.p[6] = 9;
    assert_refused(&f, US_E_UNSUPPORTED, "NPY version 9.0", "from the future");
    mk_free(&f);
}

static const struct {
    const char *bytes;
    size_t n;
    enum us_status status;
    const char *words;
} stranger_cases[] = {
    {"", 0, US_E_FORMAT, "empty file"},
    {"I", 1, US_E_FORMAT, "unknown file format"},
    {"II*\0", 4, US_E_CORRUPT, "TIFF header of 8 bytes cut off after 4"},
    {"MM\0+\0\x08\0\0", 8, US_E_CORRUPT, "BigTIFF header of 16 bytes cut off after 8"},
    {"II+\0\x04\0\0\0\x10\0\0\0\0\0\0\0", 16, US_E_FORMAT, "offsets of 4 bytes"},
    {"II*\0\0\0\0\0", 8, US_E_FORMAT, "TIFF without pages"},
    {"\x89PNG\r\n\x1a\n", 8, US_E_UNSUPPORTED, "PNG image; expected TIFF or NPY"},
    {"\xff\xd8\xff\xe0", 4, US_E_UNSUPPORTED, "JPEG image"},
    {"PK\x03\x04", 4, US_E_UNSUPPORTED, "NPZ"},
    {"ZISRAWFILE", 10, US_E_UNSUPPORTED, "Zeiss CZI file"},
    {"\x1f\x8b\x08\x00", 4, US_E_UNSUPPORTED, "gzip data"},
    {"\x28\xb5\x2f\xfd", 4, US_E_UNSUPPORTED, "zstd data"},
    {"GIF89a", 6, US_E_FORMAT, "47 49 46 38"},
    {"\x93NUMPY", 6, US_E_CORRUPT, "truncated"},
};

static void file_of_another_kind_is_named(void **state)
{
    for (size_t k = 0; k < US_COUNT(stranger_cases); k++) {
        struct us_err err = {0};
        enum us_status s = read_all(stranger_cases[k].bytes, stranger_cases[k].n, &err);
        if (s != stranger_cases[k].status || strstr(err.msg, stranger_cases[k].words) == NULL)
            fail_msg("case %d: %s %s", (int)k, us_status_name(s), err.msg);
    }
}

static void message_never_holds_control_characters_of_the_file(void **state)
{
    struct mk_file f;
    struct us_err err = {0};
    check_make_described(&f, 4, OME("SizeC=\"1\" SizeT=\"&#10;&#9;x\x7f\"", ""));
    assert_int_equal(read_all(f.p, f.n, &err), US_E_FORMAT);
    for (const char *p = err.msg; *p != '\0'; p++)
        assert_true((unsigned char)*p >= 0x20 && *p != 0x7f);
    mk_free(&f);
}

/* A whole file of each kind, its last bytes pixels. */
static void make_whole(struct mk_file *f, int kind)
{
    uint8_t raw[128], packed[256];
    uLongf n = sizeof(packed);
    if (kind == 3) {
        make_npy(f, npy_cases[0].header, 12);
        return;
    }
    mk_init(f, kind == 1, kind == 2);
    struct mk_page p = mk_gray(8, 8, 16, 0);
    mk_describe(f, &p,
                "<OME><Image><Pixels DimensionOrder=\"XYCZT\" SizeX=\"8\" SizeY=\"8\" "
                "SizeZ=\"1\" SizeC=\"1\" SizeT=\"1\"/></Image></OME>");
    size_t link = f->link, at = mk_page(f, &p), data = f->n;
    for (int i = 0; i < 128; i++)
        raw[i] = (uint8_t)(i * 7);
    if (kind == 2) {
        assert_int_equal(compress(packed, &n, raw, sizeof(raw)), Z_OK);
        data = mk_bytes(f, packed, n);
        mk_set(&p, 259, MK_SHORT, 1, 8);
        mk_set(&p, 279, MK_LONG, 1, n);
    } else {
        (void)mk_bytes(f, raw, sizeof(raw));
    }
    mk_set(&p, 273, MK_LONG, 1, data);
    struct mk_file again = *f; /* the directory once more, now that the offset is known */
    again.n = at;
    again.link = link;
    (void)mk_page(&again, &p);
}

static void file_cut_at_any_byte_is_refused(void **state)
{
    for (int kind = 0; kind < 4; kind++) {
        struct mk_file f;
        struct us_err err = {0};
        make_whole(&f, kind);
        if (read_all(f.p, f.n, &err) != US_OK)
            fail_msg("kind %d: %s", kind, err.msg);
        for (size_t n = 0; n < f.n; n++) {
            uint8_t *cut = malloc(n + 1); /* its own block, so that a sanitizer sees the end */
            assert_non_null(cut);
            memcpy(cut, f.p, n);
            if (read_all(cut, n, &err) == US_OK)
                fail_msg("kind %d was read from %d of %d bytes", kind, (int)n, (int)f.n);
            free(cut);
        }
        mk_free(&f);
    }
}

static void file_with_any_byte_changed_is_read_or_refused_and_nothing_else(void **state)
{
    static const uint8_t changes[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    for (int kind = 0; kind < 4; kind++) {
        struct mk_file f;
        make_whole(&f, kind);
        for (size_t at = 0; at < f.n; at++)
            for (size_t k = 0; k < US_COUNT(changes); k++) {
                struct us_err err = {0};
                uint8_t kept = f.p[at];
                f.p[at] = changes[k];
                enum us_status s = read_all(f.p, f.n, &err);
                assert_true(s == US_OK || err.msg[0] != '\0');
                f.p[at] = kept;
            }
        mk_free(&f);
    }
}

/* All of the above claimed gigabytes. What was taken for it shows in the peak. */
static void none_of_this_took_memory(void **state)
{
    struct rusage u;
    assert_int_equal(getrusage(RUSAGE_SELF, &u), 0);
    assert_true(u.ru_maxrss < 400 * 1024); /* KiB; a 16 MB description and a sanitizer fit */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sound_page_is_read),
        cmocka_unit_test(unfit_page_is_refused_by_name),
        cmocka_unit_test(later_page_that_differs_is_refused_by_its_number),
        cmocka_unit_test(loops_of_directories_are_found),
        cmocka_unit_test(directory_that_lies_about_itself_is_refused),
        cmocka_unit_test(big_tiff_offsets_at_the_end_of_64_bits_do_not_wrap),
        cmocka_unit_test(many_pages_over_the_same_pixels_may_not_claim_more_than_the_file),
        cmocka_unit_test(stack_of_one_directory_needs_its_pixels_in_one_piece),
        cmocka_unit_test(description_that_contradicts_the_file_is_refused),
        cmocka_unit_test(deep_long_or_huge_descriptions_are_refused_quickly),
        cmocka_unit_test(npy_header_that_is_not_exactly_ours_is_refused),
        cmocka_unit_test(file_of_another_kind_is_named),
        cmocka_unit_test(message_never_holds_control_characters_of_the_file),
        cmocka_unit_test(file_cut_at_any_byte_is_refused),
        cmocka_unit_test(file_with_any_byte_changed_is_read_or_refused_and_nothing_else),
        cmocka_unit_test(none_of_this_took_memory),
    };
    return cmocka_run_group_tests_name("image_refuse", tests, NULL, NULL);
}
