/* Folders and stacks of training images as frames, and the lists of splits.json. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "us_frames.h"
#include "us_image.h"
#include "us_model_bytes.h"

enum { SIDE = 9 };

static char folder[512];

/* A fresh folder per test. */
static int make_folder(void **state)
{
    static int number;
    char name[32];
    (void)state;
    (void)snprintf(name, sizeof(name), "data%d", number++);
    (void)snprintf(folder, sizeof(folder), "%s", us_test_path(name));
    return mkdir(folder, 0700);
}

static int drop_folder(void **state)
{
    (void)state;
    char command[600];
    (void)snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

static const char *in_folder(const char *name)
{
    static char path[1024];
    (void)snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static float value(int64_t plane, int64_t k)
{
    return (float)(100 * plane + k);
}

/* t frames of c channels as OME-TIFF with names, or as NPY [c, h, w] if npy. */
static void write_image(const char *name, int64_t t, int64_t c, int64_t h, bool npy)
{
    struct us_image_info v = {.pixel = US_PIXEL_F32,
                              .t = t,
                              .z = 1,
                              .c = c,
                              .h = h,
                              .w = SIDE,
                              .size_x = 250.0,
                              .axes_stated = true};
    (void)snprintf(v.unit_x, sizeof(v.unit_x), "nm");
    for (int64_t i = 0; i < c; i++)
        (void)snprintf(v.channel_name[i], US_MAX_NAME, "%s", i == 0 ? "DNA" : i == 1 ? "ER" : "F");
    struct us_image_write_options o = {.npy = npy, .software = "test"};
    struct us_image_writer *w = NULL;
    float plane[SIDE * 32];
    assert_int_equal(us_image_create(in_folder(name), &v, &o, &w, NULL), US_OK);
    for (int64_t p = 0; p < t * c; p++) {
        for (int64_t k = 0; k < h * SIDE; k++)
            plane[k] = value(p, k);
        assert_int_equal(us_image_write_plane(w, plane, NULL), US_OK);
    }
    assert_int_equal(us_image_finish(w, NULL), US_OK);
}

static void write_text(const char *name, const char *text)
{
    FILE *f = fopen(in_folder(name), "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static struct us_frames *open_ok(const char *path, const struct us_frames_config *cfg)
{
    struct us_frames *f = NULL;
    struct us_err err = {0};
    if (us_frames_open(path, cfg, &f, &err) != US_OK)
        fail_msg("%s", err.msg);
    return f;
}

static void refused(const char *path, const struct us_frames_config *cfg, enum us_status expected,
                    const char *says)
{
    struct us_frames *f = NULL;
    struct us_err err = {0};
    enum us_status s = us_frames_open(path, cfg, &f, &err);
    if (s != expected || strstr(err.msg, says) == NULL)
        fail_msg("status %d, \"%s\"; expected %d, \"%s\"", (int)s, err.msg, (int)expected, says);
    assert_null(f);
}

static const struct us_frames_config all = {0};

static float read_first(const struct us_frame_source *src, int64_t frame, int32_t plane)
{
    float out[SIDE * 32];
    assert_int_equal(src->read(src->arg, frame, plane, out, NULL), US_OK);
    assert_true(out[1] == out[0] + 1.0f);
    return out[0];
}

static void folder_gives_its_images_in_the_order_of_names(void **state)
{
    (void)state;
    write_image("b.TIF", 1, 2, SIDE, false);
    write_image("a.npy", 1, 2, 12, true); /* its pages are channels */
    write_image(".hidden.tif", 1, 3, SIDE, false);
    write_text("notes.txt", "x");
    assert_int_equal(mkdir(in_folder("c.tif"), 0700), 0);
    struct us_frames *f = open_ok(folder, &all);
    const struct us_frame_source *src = us_frames_source(f);
    int64_t h, w;
    assert_int_equal(src->n_frames, 2);
    assert_int_equal(src->n_channels, 2);
    assert_string_equal(src->name(src->arg, 0), "a.npy");
    assert_string_equal(src->name(src->arg, 1), "b.TIF");
    assert_int_equal(src->shape(src->arg, 0, &h, &w), US_OK);
    assert_true(h == 12 && w == SIDE);
    assert_true(read_first(src, 0, 1) == 100.0f);
    assert_true(read_first(src, 1, 1) == 100.0f && read_first(src, 1, 0) == 0.0f);
    assert_false(us_frames_has_splits(f));
    us_frames_free(f);
}

static void stack_gives_frames_channels_names_and_pixel_size(void **state)
{
    (void)state;
    write_image("s.tif", 3, 3, SIDE, false);
    struct us_frames_config cfg = {.n_channels = 2, .has_input = true, .input = {1, ""}};
    cfg.channel[0] = (struct us_channel_choice){0, "F"};
    cfg.channel[1] = (struct us_channel_choice){0, ""};
    char path[1024];
    (void)snprintf(path, sizeof(path), "%s", in_folder("s.tif"));
    struct us_frames *f = open_ok(path, &cfg);
    const struct us_frame_source *src = us_frames_source(f);
    assert_int_equal(src->n_frames, 3);
    assert_true(src->has_input);
    assert_string_equal(src->name(src->arg, 2), "2");
    assert_string_equal(us_frames_channel_name(f, 0), "F");
    assert_string_equal(us_frames_channel_name(f, 1), "DNA");
    assert_true(fabs(us_frames_pixel_size(f) - 0.25) < 1e-12);
    assert_true(read_first(src, 2, 0) == 800.0f); /* F of frame 2: plane 8 */
    assert_true(read_first(src, 2, 1) == 600.0f);
    assert_true(read_first(src, 2, 2) == 700.0f); /* the input */
    us_frames_free(f);
}

static void all_but_the_input_are_targets_without_a_choice(void **state)
{
    (void)state;
    write_image("a.tif", 1, 3, SIDE, false);
    struct us_frames_config cfg = {.has_input = true, .input = {0, "ER"}};
    struct us_frames *f = open_ok(folder, &cfg);
    const struct us_frame_source *src = us_frames_source(f);
    assert_int_equal(src->n_channels, 2);
    assert_true(read_first(src, 0, 1) == 200.0f && read_first(src, 0, 2) == 100.0f);
    us_frames_free(f);
}

static void bad_data_is_refused_with_its_reason(void **state)
{
    (void)state;
    char path[1024];
    refused(in_folder("nothing"), &all, US_E_NOT_FOUND, "No such file");
    refused(folder, &all, US_E_NOT_FOUND, "no images");
    write_image("a.tif", 1, 2, SIDE, false);
    struct us_frames_config cfg = {.n_channels = 2, .channel = {{0, ""}, {2, ""}}};
    refused(folder, &cfg, US_E_ARG, "channel 2 is asked for; it has 2");
    cfg.channel[1] = (struct us_channel_choice){0, "actin"};
    refused(folder, &cfg, US_E_ARG, "no channel is called 'actin'; expected one of DNA, ER");
    cfg.channel[1] = (struct us_channel_choice){0, "DNA"};
    refused(folder, &cfg, US_E_ARG, "chosen twice");
    cfg.channel[1] = (struct us_channel_choice){1, ""};
    cfg.has_input = true;
    refused(folder, &cfg, US_E_ARG, "both input and target");
    write_image("b.tif", 1, 3, SIDE, false);
    refused(folder, &all, US_E_ARG, "3 channels; expected 2 as in a.tif");
    write_image("b.tif", 2, 2, SIDE, false);
    refused(folder, &all, US_E_ARG, "one frame per file");
    write_text("b.tif", "not an image");
    refused(folder, &all, US_E_FORMAT, "b.tif");
    write_image("stack.npy", 1, 4, SIDE, true);
    (void)snprintf(path, sizeof(path), "%s", in_folder("stack.npy"));
    refused(path, &all, US_E_ARG, "4 pages state no axes");
    write_image("one.tif", 3, 1, SIDE, false);
    (void)snprintf(path, sizeof(path), "%s", in_folder("one.tif"));
    refused(path, &all, US_E_ARG, "1 channel to split into");
}

static void splits_are_listed_by_name_and_by_number(void **state)
{
    (void)state;
    static const char *const names[] = {"a.tif", "b.tif", "c.tif", "d.tif"};
    for (size_t i = 0; i < US_COUNT(names); i++)
        write_image(names[i], 1, 2, SIDE, false);
    write_text("splits.json", "{\"train\":[\"d.tif\",\"a.tif\"],\"val\":[\"b.tif\"],\"made\":1,"
                              "\"subsets\":{\"train\":{\"x\":[\"c.tif\"]}}}");
    int64_t n;
    struct us_frames *f = open_ok(folder, &all);
    const int64_t *list = us_frames_split(f, US_SPLIT_TRAIN, &n);
    assert_true(us_frames_has_splits(f) && n == 2 && list[0] == 3 && list[1] == 0);
    list = us_frames_split(f, US_SPLIT_VAL, &n);
    assert_true(n == 1 && list[0] == 1);
    us_frames_free(f);
    struct us_frames_config cfg = {.subset = "x"};
    f = open_ok(folder, &cfg);
    list = us_frames_split(f, US_SPLIT_TRAIN, &n);
    assert_true(n == 1 && list[0] == 2);
    us_frames_free(f);
    write_image("s.ome.tif", 3, 2, SIDE, false);
    write_text("s.ome.tif.splits.json", "{\"train\":[0,2],\"test\":[1]}");
    char path[1024];
    (void)snprintf(path, sizeof(path), "%s", in_folder("s.ome.tif"));
    f = open_ok(path, &all);
    list = us_frames_split(f, US_SPLIT_TRAIN, &n);
    assert_true(n == 2 && list[1] == 2);
    us_frames_free(f);
}

static void bad_splits_are_refused_naming_the_entry(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum us_status status;
        const char *says;
    } bad[] = {
        {"{", US_E_FORMAT, "line 1"},
        {"[]", US_E_FORMAT, "not an object"},
        {"{\"train\":{}}", US_E_FORMAT, "train is not a list"},
        {"{\"train\":[]}", US_E_FORMAT, "lists no frame"},
        {"{\"Train\":[\"a.tif\"]}", US_E_FORMAT, "lists no frame"},
        {"{\"train\":[\"a.tif\",3]}", US_E_FORMAT, "train[1] is not a file name"},
        {"{\"val\":[\"z.tif\"]}", US_E_NOT_FOUND, "val[0] is 'z.tif', which is not there"},
        {"{\"val\":[\"../a.tif\"]}", US_E_NOT_FOUND, "not there"},
        {"{\"train\":[\"a.tif\"],\"test\":[\"a.tif\"]}", US_E_ARG, "stands in train already"},
        {"{\"train\":[\"a.tif\",\"a.tif\"]}", US_E_ARG, "train[1]"},
        {"{\"train\":[],\"train\":[]}", US_E_FORMAT, "duplicate"},
    };
    write_image("a.tif", 1, 2, SIDE, false);
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        write_text("splits.json", bad[i].text);
        refused(folder, &all, bad[i].status, bad[i].says);
    }
    struct us_frames_config cfg = {.subset = "y"};
    write_text("splits.json", "{\"train\":[\"a.tif\"],\"subsets\":{\"train\":{\"x\":[]}}}");
    refused(folder, &cfg, US_E_NOT_FOUND, "subsets.train has no 'y'");
}

static void file_that_changes_while_in_use_is_noticed(void **state)
{
    (void)state;
    write_image("a.tif", 1, 2, SIDE, false);
    struct us_frames *f = open_ok(folder, &all);
    const struct us_frame_source *src = us_frames_source(f);
    write_image("a.tif", 1, 2, 20, false);
    float out[SIDE * 32];
    struct us_err err = {0};
    assert_int_equal(src->read(src->arg, 0, 0, out, &err), US_E_IO);
    assert_non_null(strstr(err.msg, "changed"));
    us_frames_free(f);
}

static void *read_many(void *arg)
{
    const struct us_frame_source *src = arg;
    for (int i = 0; i < 200; i++) {
        int64_t frame = i * 7 % src->n_frames;
        float out[SIDE * 32];
        if (src->read(src->arg, frame, i % 2, out, NULL) != US_OK ||
            out[3] != value(2 * frame + i % 2, 3))
            return arg;
    }
    return NULL;
}

static void threads_read_the_same_stack_at_once(void **state)
{
    (void)state;
    write_image("s.tif", 12, 2, SIDE, false);
    char path[1024];
    (void)snprintf(path, sizeof(path), "%s", in_folder("s.tif"));
    struct us_frames *f = open_ok(path, &all);
    pthread_t id[4];
    for (size_t i = 0; i < US_COUNT(id); i++)
        assert_int_equal(pthread_create(&id[i], NULL, read_many, (void *)us_frames_source(f)), 0);
    for (size_t i = 0; i < US_COUNT(id); i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(id[i], &failed), 0);
        assert_null(failed);
    }
    us_frames_free(f);
}

static int remove_all(void **state)
{
    (void)state;
    us_test_folder_remove();
    return 0;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, drop_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(folder_gives_its_images_in_the_order_of_names),
        TEST(stack_gives_frames_channels_names_and_pixel_size),
        TEST(all_but_the_input_are_targets_without_a_choice),
        TEST(bad_data_is_refused_with_its_reason),
        TEST(splits_are_listed_by_name_and_by_number),
        TEST(bad_splits_are_refused_naming_the_entry),
        TEST(file_that_changes_while_in_use_is_noticed),
        TEST(threads_read_the_same_stack_at_once),
    };
    return cmocka_run_group_tests_name("frames", tests, NULL, remove_all);
}
