/* Images at the border: what we write we read, and what the system refuses is said. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <math.h>

#include "us_image_check.h"

static struct us_image_info described(enum us_pixel pixel, int64_t t, int64_t z, int64_t c)
{
    struct us_image_info i = {.pixel = pixel,
                              .t = t,
                              .z = z,
                              .c = c,
                              .h = 23,
                              .w = 31,
                              .size_x = 0.1083,
                              .size_y = 1.0 / 3.0,
                              .size_z = 2.0,
                              .time_increment = 0.25,
                              .unit_x = "\xc2\xb5m",
                              .unit_y = "nm",
                              .unit_z = "mm",
                              .unit_t = "min",
                              .name = "<&\"'> \xe2\x86\x92 \xf0\x9f\x94\xac"};
    for (int64_t k = 0; k < c && k < (int64_t)US_COUNT(i.channel_name); k++)
        (void)snprintf(i.channel_name[k], US_MAX_NAME, "channel \"%d\" & \xc3\xa9", (int)k);
    return i;
}

static void write_file(const struct us_image_info *i, const struct us_image_write_options *opt)
{
    float plane[CHECK_MAX_PIXELS];
    struct us_image_writer *w;
    struct us_err err = {0};
    assert_int_equal(us_image_create(check_temp_path, i, opt, &w, &err), US_OK);
    for (int64_t p = 0; p < i->t * i->z * i->c; p++) {
        check_fill(plane, p, i->h * i->w);
        assert_int_equal(us_image_write_plane(w, plane, &err), US_OK);
    }
    assert_int_equal(us_image_finish(w, &err), US_OK);
}

static void assert_info_kept(const struct us_image_info *a, const struct us_image_info *b)
{
    assert_true(a->size_x == b->size_x && a->size_y == b->size_y && a->size_z == b->size_z);
    assert_true(a->time_increment == b->time_increment);
    assert_string_equal(a->unit_x, b->unit_x);
    assert_string_equal(a->unit_y, b->unit_y);
    assert_string_equal(a->unit_z, b->unit_z);
    assert_string_equal(a->unit_t, b->unit_t);
    assert_string_equal(a->name, b->name);
    assert_memory_equal(a->channel_name, b->channel_name, sizeof(a->channel_name));
}

static void written_image_reads_back_in_every_container_and_type(void **state)
{
    static const enum us_pixel pixels[] = {US_PIXEL_F32, US_PIXEL_U16, US_PIXEL_U8};
    static const int64_t shapes[][3] = {{1, 1, 1}, {1, 1, 3}, {4, 1, 2}, {2, 3, 2}, {1, 5, 1}};
    for (size_t p = 0; p < US_COUNT(pixels); p++)
        for (size_t s = 0; s < US_COUNT(shapes); s++)
            for (int kind = 0; kind < 3; kind++) {
                struct us_image_info i =
                    described(pixels[p], shapes[s][0], shapes[s][1], shapes[s][2]);
                struct us_image_write_options opt = {.npy = kind == 2, .big = kind == 1};
                write_file(&i, &opt);
                struct us_image_reader *r = check_open(check_temp_path);
                const struct us_image_info *got = us_image_info(r);
                assert_int_equal(got->pixel, i.pixel);
                assert_int_equal(got->t * got->z * got->c, i.t * i.z * i.c);
                if (kind < 2) {
                    assert_int_equal(got->container, US_CONTAINER_OME_TIFF);
                    assert_true(got->axes_stated);
                    check_shape(r, i.t, i.z, i.c);
                    assert_info_kept(got, &i);
                }
                check_planes(r);
                us_image_close(r);
            }
}

static void strips_of_a_tall_page_hold_all_rows(void **state)
{
    struct us_image_info i = described(US_PIXEL_F32, 1, 1, 1);
    i.h = 16; /* 4096 floats are 16 KiB: 16 rows are one strip, 17 are two */
    for (i.h = 15; i.h <= 16; i.h++) {
        i.w = 4096;
        write_file(&i, &(struct us_image_write_options){0});
        struct us_image_reader *r = check_open(check_temp_path);
        check_planes(r);
        us_image_close(r);
    }
    for (i.w = 1; i.w <= 3;
         i.w++) { /* 65536 x 1 pixels of one byte: one strip of 256 KiB or less */
        i.pixel = US_PIXEL_U16;
        i.h = CHECK_MAX_PIXELS / i.w;
        write_file(&i, &(struct us_image_write_options){0});
        struct us_image_reader *r = check_open(check_temp_path);
        check_planes(r);
        us_image_close(r);
    }
}

static size_t slurp(unsigned char *out, size_t cap)
{
    FILE *f = fopen(check_temp_path, "rb");
    assert_non_null(f);
    size_t n = fread(out, 1, cap, f);
    assert_int_equal(fclose(f), 0);
    return n;
}

static void same_image_gives_the_same_bytes(void **state)
{
    static unsigned char a[1 << 16], b[1 << 16];
    struct us_image_info i = described(US_PIXEL_U16, 2, 1, 2);
    struct us_image_write_options opt = {.software = "usplit", .description_json = "{\"seed\":1}"};
    write_file(&i, &opt);
    size_t n = slurp(a, sizeof(a));
    write_file(&i, &opt);
    assert_int_equal(slurp(b, sizeof(b)), n);
    assert_memory_equal(a, b, n);
}

static void integers_are_rounded_half_away_and_clamped(void **state)
{
    static const struct {
        float in;
        float u8, u16;
    } cases[] = {
        {0.5f, 1, 1},           {0.49999997f, 0, 0},    {1.5f, 2, 2},           {2.5f, 3, 3},
        {-0.5f, 0, 0},          {-7.0f, 0, 0},          {254.5f, 255, 255},     {255.4f, 255, 255},
        {256.0f, 255, 256},     {65534.5f, 255, 65535}, {65535.5f, 255, 65535}, {1e30f, 255, 65535},
        {INFINITY, 255, 65535}, {-INFINITY, 0, 0},
    };
    enum { N = US_COUNT(cases) };
    for (int wide = 0; wide < 2; wide++) {
        struct us_image_info i = {
            .pixel = wide ? US_PIXEL_U16 : US_PIXEL_U8, .t = 1, .z = 1, .c = 1, .h = 1, .w = N};
        float in[N], out[N];
        struct us_image_writer *w;
        for (int k = 0; k < N; k++)
            in[k] = cases[k].in;
        assert_int_equal(
            us_image_create(check_temp_path, &i, &(struct us_image_write_options){0}, &w, NULL),
            US_OK);
        assert_int_equal(us_image_write_plane(w, in, NULL), US_OK);
        assert_int_equal(us_image_finish(w, NULL), US_OK);
        struct us_image_reader *r = check_open(check_temp_path);
        assert_int_equal(us_image_read_plane(r, 0, 0, 0, out, NULL), US_OK);
        for (int k = 0; k < N; k++)
            assert_true(out[k] == (wide ? cases[k].u16 : cases[k].u8));
        us_image_close(r);
    }
}

static void nan_is_refused_for_integers_with_its_position_and_kept_in_floats(void **state)
{
    float plane[23 * 31], got[23 * 31];
    struct us_image_info i = described(US_PIXEL_U16, 1, 1, 1);
    struct us_image_writer *w;
    struct us_err err = {0};
    check_fill(plane, 0, i.h * i.w);
    plane[2 * 31 + 5] = NAN;
    assert_int_equal(
        us_image_create(check_temp_path, &i, &(struct us_image_write_options){0}, &w, &err), US_OK);
    assert_int_equal(us_image_write_plane(w, plane, &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "x 5, y 2"));
    plane[2 * 31 + 5] = 0.0f; /* part of a plane is written: there is no way back */
    assert_int_equal(us_image_write_plane(w, plane, &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "an earlier write failed"));
    assert_int_equal(us_image_finish(w, &err), US_E_ARG); /* frees it */
    plane[2 * 31 + 5] = NAN;

    i.pixel = US_PIXEL_F32;
    assert_int_equal(
        us_image_create(check_temp_path, &i, &(struct us_image_write_options){0}, &w, &err), US_OK);
    assert_int_equal(us_image_write_plane(w, plane, &err), US_OK);
    assert_int_equal(us_image_finish(w, &err), US_OK);
    struct us_image_reader *r = check_open(check_temp_path);
    assert_int_equal(us_image_read_plane(r, 0, 0, 0, got, &err), US_OK);
    assert_memory_equal(got, plane, sizeof(plane));
    us_image_close(r);
}

static void writer_that_misses_planes_or_gets_too_many_says_so(void **state)
{
    float plane[23 * 31] = {0};
    struct us_image_info i = described(US_PIXEL_F32, 1, 1, 2);
    struct us_image_write_options opt = {0};
    struct us_image_writer *w;
    struct us_err err = {0};
    assert_int_equal(us_image_create(check_temp_path, &i, &opt, &w, &err), US_OK);
    assert_int_equal(us_image_write_plane(w, plane, &err), US_OK);
    assert_int_equal(us_image_finish(w, &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "1 of 2 planes"));

    assert_int_equal(us_image_create(check_temp_path, &i, &opt, &w, &err), US_OK);
    for (int k = 0; k < 2; k++)
        assert_int_equal(us_image_write_plane(w, plane, &err), US_OK);
    assert_int_equal(us_image_write_plane(w, plane, &err), US_E_ARG);
    us_image_abandon(w);
    us_image_abandon(NULL);
}

static void writer_names_what_the_system_refuses(void **state)
{
    struct us_image_info i = described(US_PIXEL_F32, 1, 1, 1);
    struct us_image_write_options opt = {0};
    struct us_image_writer *w;
    struct us_err err = {0};
    assert_int_equal(us_image_create("no such folder/x.tif", &i, &opt, &w, &err), US_E_NOT_FOUND);
    assert_null(w);
    assert_non_null(strstr(err.msg, "no such folder/x.tif"));
    assert_int_equal(us_image_create("/dev/full", &i, &opt, &w, &err), US_E_DISK_FULL);
    i.pixel = US_PIXEL_I32;
    assert_int_equal(us_image_create(check_temp_path, &i, &opt, &w, &err), US_E_UNSUPPORTED);
    i = described(US_PIXEL_F32, 1, 1, 0);
    assert_int_equal(us_image_create(check_temp_path, &i, &opt, &w, &err), US_E_FORMAT);
    i.c = US_MAX_PLANES + 1;
    assert_int_equal(us_image_create(check_temp_path, &i, &opt, &w, &err), US_E_TOO_LARGE);
}

static void bytes_that_are_no_utf8_never_reach_the_xml(void **state)
{
    struct us_image_info i = described(US_PIXEL_U8, 1, 1, 1);
    (void)snprintf(i.name, sizeof(i.name), "a\x80 b\x01 c\xc3");
    (void)snprintf(i.channel_name[0], US_MAX_NAME, "tab\tend");
    write_file(&i, &(struct us_image_write_options){.description_json = "\xed\xa0\x80\n]]>"});
    struct us_image_reader *r = check_open(check_temp_path);
    assert_string_equal(us_image_info(r)->name, "a\xef\xbf\xbd b\xef\xbf\xbd c\xef\xbf\xbd");
    assert_string_equal(us_image_info(r)->channel_name[0], "tab?end");
    us_image_close(r);
}

static void plane_outside_of_the_image_is_refused(void **state)
{
    struct mk_file f;
    float out[9 * 7];
    struct us_err err = {0};
    check_make_described(&f, 2, "any text at all");
    struct us_image_reader *r = check_open_bytes(&f);
    assert_int_equal(us_image_read_plane(r, 2, 0, 0, out, &err), US_E_ARG);
    assert_int_equal(us_image_read_plane(r, 0, -1, 0, out, &err), US_E_ARG);
    assert_int_equal(us_image_read_plane(r, 0, 0, 1, out, &err), US_E_ARG);
    us_image_close(r);
    mk_free(&f);
}

static void what_is_no_regular_file_is_refused_without_waiting(void **state)
{
    struct us_image_reader *r;
    struct us_err err = {0};
    assert_int_equal(us_image_open("no such file.tif", &r, &err), US_E_NOT_FOUND);
    assert_non_null(strstr(err.msg, "no such file.tif"));
    assert_int_equal(us_image_open(".", &r, &err), US_E_ARG);
    assert_int_equal(unlink(check_temp_path), 0);
    assert_int_equal(mkfifo(check_temp_path, 0600), 0);
    assert_int_equal(us_image_open(check_temp_path, &r, &err), US_E_ARG);
    assert_null(r);
    us_image_close(NULL);
}

static void file_that_shrinks_after_opening_gives_an_error_and_no_pixels(void **state)
{
    float plane[23 * 31];
    struct us_image_info i = described(US_PIXEL_F32, 1, 1, 2);
    struct us_err err = {0};
    write_file(&i, &(struct us_image_write_options){0});
    struct us_image_reader *r = check_open(check_temp_path);
    assert_int_equal(truncate(check_temp_path, 3000), 0);
    assert_int_equal(us_image_read_plane(r, 0, 0, 1, plane, &err), US_E_IO);
    us_image_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHECK_TEST(written_image_reads_back_in_every_container_and_type),
        CHECK_TEST(strips_of_a_tall_page_hold_all_rows),
        CHECK_TEST(same_image_gives_the_same_bytes),
        CHECK_TEST(integers_are_rounded_half_away_and_clamped),
        CHECK_TEST(nan_is_refused_for_integers_with_its_position_and_kept_in_floats),
        CHECK_TEST(writer_that_misses_planes_or_gets_too_many_says_so),
        CHECK_TEST(writer_names_what_the_system_refuses),
        CHECK_TEST(bytes_that_are_no_utf8_never_reach_the_xml),
        CHECK_TEST(plane_outside_of_the_image_is_refused),
        CHECK_TEST(what_is_no_regular_file_is_refused_without_waiting),
        CHECK_TEST(file_that_shrinks_after_opening_gives_an_error_and_no_pixels),
    };
    return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
