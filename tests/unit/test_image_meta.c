/* What the pages of a TIFF mean: OME-XML, ImageJ and tifffile descriptions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_image_check.h"

static void imagej_hyperstack_gives_axes_sizes_and_units(void **state)
{
    static const char *const units[] = {"micron", "um",      "\\u00B5m", "\xc2\xb5m",
                                        "\xb5m",  "microns", "\xce\xbcm"};
    for (size_t k = 0; k < US_COUNT(units); k++) {
        char text[300];
        struct mk_file f;
        (void)snprintf(text, sizeof(text),
                       "ImageJ=1.53t\nimages=12\nchannels=2\nslices=3\nframes=2\nhyperstack=true\n"
                       "mode=grayscale\nunit=%s\nfinterval=1.5\nspacing=0.4\nloop=false\n",
                       units[k]);
        check_make_described(&f, 12, text);
        struct us_image_reader *r = check_open_bytes(&f);
        const struct us_image_info *i = us_image_info(r);
        assert_int_equal(i->container, US_CONTAINER_IMAGEJ_TIFF);
        assert_true(i->axes_stated);
        check_shape(r, 2, 3, 2);
        assert_true(i->size_x == 0.2 && i->size_y == 0.2 && i->size_z == 0.4);
        assert_string_equal(i->unit_x, "\xc2\xb5m");
        assert_string_equal(i->unit_z, "\xc2\xb5m");
        assert_true(i->time_increment == 1.5);
        assert_string_equal(i->unit_t, "s");
        check_planes(r);
        us_image_close(r);
        mk_free(&f);
    }
}

static void imagej_stack_without_axes_or_unit_states_neither(void **state)
{
    struct mk_file f;
    check_make_described(&f, 4, "ImageJ=1.53t\nimages=4\nunit=pixel\nspacing=1.0\n");
    struct us_image_reader *r = check_open_bytes(&f);
    check_shape(r, 4, 1, 1);
    assert_false(us_image_info(r)->axes_stated);
    assert_true(us_image_info(r)->size_x == 0.0 && us_image_info(r)->size_z == 0.0);
    us_image_close(r);
    mk_free(&f);
}

/* Above 4 GB ImageJ writes one directory and the pixels of all planes behind the first's. */
static void imagej_stack_with_one_directory_reads_all_planes(void **state)
{
    struct mk_file f;
    mk_init(&f, false, true);
    size_t at = check_put_samples(&f, 0, 9 * 7, 16, false);
    for (int page = 1; page < 5; page++)
        (void)check_put_samples(&f, page, 9 * 7, 16, false);
    struct mk_page p = mk_gray(9, 7, 16, at);
    mk_describe(&f, &p, "ImageJ=1.53t\nimages=5\nslices=5\n");
    (void)mk_page(&f, &p);
    struct us_image_reader *r = check_open_bytes(&f);
    check_shape(r, 1, 5, 1);
    check_planes(r);
    us_image_close(r);
    mk_free(&f);
}

#define OME_HEAD                                                                                   \
    "<?xml version=\"1.0\"?><!-- a comment --><ome:OME xmlns:ome=\"x\" UUID=\"urn:uuid:1\">"
#define OME_PIXELS                                                                                 \
    "<ome:Image ID=\"Image:0\" Name=\"n\"><ome:Pixels DimensionOrder=\"XYZTC\" Type=\"uint16\" "   \
    "SizeX=\"9\" SizeY=\"7\" SizeZ=\"1\" SizeT=\"2\" SizeC=\"2\" PhysicalSizeX=\"0.5\" "           \
    "PhysicalSizeY=\"-1\">"
#define OME_TAIL "</ome:Pixels></ome:Image></ome:OME>"

/* Page k of the file holds check_value(k, .); map[plane] is the page expected for (t, c). */
static void assert_pages(const struct mk_file *f, const int64_t map[4])
{
    float got[9 * 7], want[9 * 7];
    struct us_image_reader *r = check_open_bytes(f);
    check_shape(r, 2, 1, 2);
    for (int64_t k = 0; k < 4; k++) {
        assert_int_equal(us_image_read_plane(r, k / 2, 0, k % 2, got, NULL), US_OK);
        check_fill(want, map[k], 9 * 7);
        assert_memory_equal(got, want, sizeof(got));
    }
    us_image_close(r);
}

static void ome_tiff_data_decide_which_page_is_which_plane(void **state)
{
    static const struct {
        const char *tiff_data;
        int64_t map[4]; /* page of (t 0, c 0), (t 0, c 1), (t 1, c 0), (t 1, c 1) */
        const char *reason;
    } cases[] = {
        {"", {0, 2, 1, 3}, "no TiffData: pages in DimensionOrder, t fastest here"},
        {"<TiffData/>", {0, 2, 1, 3}, "an empty one means all planes"},
        {"<TiffData IFD=\"1\" PlaneCount=\"4\"/>", {1, 3, 2, 4}, "another first page"},
        {"<TiffData IFD=\"4\"/><TiffData IFD=\"3\" FirstC=\"1\"/><TiffData IFD=\"2\" FirstT=\"1\"/>"
         "<TiffData IFD=\"0\" FirstT=\"1\" FirstC=\"1\"/>",
         {4, 3, 2, 0},
         "page by page"},
        {"<TiffData IFD=\"3\" PlaneCount=\"1\"><UUID FileName=\"old name.tif\"> urn:uuid:1 </UUID>"
         "</TiffData><TiffData FirstT=\"1\" PlaneCount=\"3\" IFD=\"0\"/>",
         {3, 1, 0, 2},
         "our own UUID under an old name"},
    };
    for (size_t k = 0; k < US_COUNT(cases); k++) {
        char text[1200];
        struct mk_file f;
        (void)snprintf(text, sizeof(text), OME_HEAD OME_PIXELS "%s" OME_TAIL, cases[k].tiff_data);
        check_make_described(&f, 5, text);
        assert_pages(&f, cases[k].map);
        mk_free(&f);
    }
}

static void ome_size_without_unit_is_micrometres_and_nonsense_is_not_stated(void **state)
{
    struct mk_file f;
    check_make_described(&f, 4, OME_HEAD OME_PIXELS OME_TAIL);
    struct us_image_reader *r = check_open_bytes(&f);
    const struct us_image_info *i = us_image_info(r);
    assert_true(i->size_x == 0.5 && i->size_y == 0.0 && i->size_z == 0.0);
    assert_string_equal(i->unit_x, "\xc2\xb5m");
    assert_string_equal(i->unit_y, "");
    assert_string_equal(i->name, "n");
    us_image_close(r);
    mk_free(&f);
}

static void ome_reads_the_first_image_of_several(void **state)
{
    struct mk_file f;
    static const int64_t map[4] = {0, 2, 1, 3};
    check_make_described(&f, 6,
                         OME_HEAD OME_PIXELS
                         "<TiffData IFD=\"0\" PlaneCount=\"4\"/></ome:Pixels>"
                         "</ome:Image><ome:Image><ome:Pixels SizeX=\"1\"><TiffData IFD=\"4\" "
                         "PlaneCount=\"2\"/></ome:Pixels></ome:Image></ome:OME>");
    assert_pages(&f, map);
    mk_free(&f);
}

static void tifffile_axes_are_read_and_broken_ones_ignored(void **state)
{
    static const struct {
        const char *text;
        int64_t t, z, c;
        bool stated;
    } cases[] = {
        {"{\"shape\": [2, 3, 7, 9], \"axes\": \"ZCYX\"}", 1, 2, 3, true},
        {"{\"axes\": \"CTYX\", \"shape\": [2, 3, 7, 9], \"x\": {\"y\": [1, \"}\"]}}", 3, 1, 2,
         true},
        {"{\"shape\": [6, 7, 9]}", 6, 1, 1, false},
        {"{\"shape\": [6, 7, 9], \"axes\": \"QYX\"}", 6, 1, 1, false},
        {"{\"shape\": [5, 7, 9], \"axes\": \"CYX\"}", 6, 1, 1, false},
        {"{\"shape\": [6, 7, 9], \"axes\": \"CYX\"", 6, 1, 1, false},
        {"{\"shape\": [2, 3, 7, 9], \"axes\": \"CCYX\"}", 6, 1, 1, false},
        {"a description in words", 6, 1, 1, false},
        {"<xml>without the element</xml>", 6, 1, 1, false},
    };
    for (size_t k = 0; k < US_COUNT(cases); k++) {
        struct mk_file f;
        check_make_described(&f, 6, cases[k].text);
        struct us_image_reader *r = check_open_bytes(&f);
        check_shape(r, cases[k].t, cases[k].z, cases[k].c);
        assert_int_equal(us_image_info(r)->axes_stated, cases[k].stated);
        us_image_close(r);
        mk_free(&f);
    }
}

static void channel_names_of_a_tifffile_description_are_kept(void **state)
{
    struct mk_file f;
    check_make_described(&f, 2,
                         "{\"axes\": \"CYX\", \"channels\": [\"ER\", \"\\u00b5-tubulin\"], "
                         "\"shape\": [2, 7, 9]}");
    struct us_image_reader *r = check_open_bytes(&f);
    assert_string_equal(us_image_info(r)->channel_name[0], "ER");
    assert_string_equal(us_image_info(r)->channel_name[1], "\xc2\xb5-tubulin");
    us_image_close(r);
    mk_free(&f);
}

static void reduced_copies_and_masks_between_the_pages_are_left_out(void **state)
{
    struct mk_file f;
    mk_init(&f, false, false);
    for (int page = 0; page < 3; page++) {
        struct mk_page p = mk_gray(9, 7, 16, check_put_samples(&f, page, 9 * 7, 16, false));
        (void)mk_page(&f, &p);
        struct mk_page small = mk_gray(4, 3, 8, mk_noise(&f, 12));
        mk_set(&small, 254, MK_LONG, 1, page == 1 ? 4 : 1);
        mk_set(&small, 262, MK_SHORT, 1, 2);
        (void)mk_page(&f, &small);
    }
    struct us_image_reader *r = check_open_bytes(&f);
    check_shape(r, 3, 1, 1);
    check_planes(r);
    us_image_close(r);
    mk_free(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHECK_TEST(imagej_hyperstack_gives_axes_sizes_and_units),
        CHECK_TEST(imagej_stack_without_axes_or_unit_states_neither),
        CHECK_TEST(imagej_stack_with_one_directory_reads_all_planes),
        CHECK_TEST(ome_tiff_data_decide_which_page_is_which_plane),
        CHECK_TEST(ome_size_without_unit_is_micrometres_and_nonsense_is_not_stated),
        CHECK_TEST(ome_reads_the_first_image_of_several),
        CHECK_TEST(tifffile_axes_are_read_and_broken_ones_ignored),
        CHECK_TEST(channel_names_of_a_tifffile_description_are_kept),
        CHECK_TEST(reduced_copies_and_masks_between_the_pages_are_left_out),
    };
    return cmocka_run_group_tests_name("image_meta", tests, NULL, NULL);
}
