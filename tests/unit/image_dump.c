/*
 * A test's window on the image module: prints what a file is and two sums per plane, or writes a
 * file whose pixels follow a formula. check_tifffile.py compares both with tifffile.
 *
 *   image_dump read FILE
 *   image_dump write FILE ome|big|npy float32|uint16|uint8 T Z C H W
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_image.h"

static int complain(const struct us_err *err)
{
    (void)fprintf(stderr, "%s: %s\n", us_status_name(err->status), err->msg);
    return 1;
}

static void print_info(const struct us_image_info *i)
{
    printf("container %d\npixel %s\naxes_stated %d\n", (int)i->container, us_pixel_name(i->pixel),
           (int)i->axes_stated);
    printf("shape %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n", i->t, i->z, i->c,
           i->h, i->w);
    printf("size %.17g %.17g %.17g %.17g\n", i->size_x, i->size_y, i->size_z, i->time_increment);
    printf("unit_x %s\nunit_y %s\nunit_z %s\nunit_t %s\nname %s\n", i->unit_x, i->unit_y, i->unit_z,
           i->unit_t, i->name);
    for (int64_t c = 0; c < i->c && c < (int64_t)US_COUNT(i->channel_name); c++)
        printf("channel %" PRId64 " %s\n", c, i->channel_name[c]);
}

/* The second sum depends on where each value is, so it tells a moved pixel. */
static int print_planes(struct us_image_reader *r, float *plane)
{
    const struct us_image_info *i = us_image_info(r);
    struct us_err err = {0};
    for (int64_t p = 0; p < i->t * i->z * i->c; p++) {
        int64_t t = p / (i->z * i->c), z = p / i->c % i->z, c = p % i->c;
        double sum = 0.0, weighted = 0.0;
        if (us_image_read_plane(r, t, z, c, plane, &err) != US_OK)
            return complain(&err);
        for (int64_t k = 0; k < i->h * i->w; k++) {
            sum += plane[k];
            weighted += (double)plane[k] * (double)(k % 251 + 1);
        }
        printf("plane %" PRId64 " %" PRId64 " %" PRId64 " %.17g %.17g\n", t, z, c, sum, weighted);
    }
    return 0;
}

static int read_file(const char *path)
{
    struct us_err err = {0};
    struct us_image_reader *r;
    if (us_image_open(path, &r, &err) != US_OK)
        return complain(&err);
    const struct us_image_info *i = us_image_info(r);
    print_info(i);
    float *plane = calloc((size_t)(i->h * i->w), sizeof(*plane));
    int status = plane == NULL ? 1 : print_planes(r, plane);
    free(plane);
    us_image_close(r);
    return status;
}

/* Halves and values outside of 0..65535 on purpose: they show the rounding and the clamp. */
static void fill(float *plane, int64_t p, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        plane[k] = (float)((p * 7919 + k * 31) % 70000) - 1000.0f + 0.5f * (float)(k % 2);
}

static int write_file(char **a)
{
    struct us_image_info i = {.size_x = 0.065,
                              .size_y = 0.07,
                              .size_z = 0.3,
                              .time_increment = 2.5,
                              .unit_x = "\xc2\xb5m",
                              .unit_y = "\xc2\xb5m",
                              .unit_z = "\xc2\xb5m",
                              .unit_t = "s",
                              .name = "a <b> & \"c\" \xc2\xb5"};
    struct us_image_write_options opt = {.npy = strcmp(a[1], "npy") == 0,
                                         .big = strcmp(a[1], "big") == 0,
                                         .software = "usplit test",
                                         .description_json = "{\"seed\": 1, \"q\": \"<&>\"}"};
    struct us_image_writer *w;
    struct us_err err = {0};
    i.pixel = strcmp(a[2], "float32") == 0  ? US_PIXEL_F32
              : strcmp(a[2], "uint16") == 0 ? US_PIXEL_U16
                                            : US_PIXEL_U8;
    int64_t *const dims[] = {&i.t, &i.z, &i.c, &i.h, &i.w};
    for (int k = 0; k < 5; k++)
        *dims[k] = strtoll(a[3 + k], NULL, 10);
    for (int64_t c = 0; c < i.c && c < 64; c++)
        (void)snprintf(i.channel_name[c], US_MAX_NAME, "ch\xc3\xa4n<%d>", (int)c);
    if (us_image_create(a[0], &i, &opt, &w, &err) != US_OK)
        return complain(&err);
    float *plane = calloc((size_t)(i.h * i.w), sizeof(*plane));
    for (int64_t p = 0; p < i.t * i.z * i.c && plane != NULL; p++) {
        fill(plane, p, i.h * i.w);
        if (us_image_write_plane(w, plane, &err) != US_OK)
            return complain(&err);
    }
    free(plane);
    return us_image_finish(w, &err) == US_OK ? 0 : complain(&err);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "read") == 0)
        return read_file(argv[2]);
    if (argc == 10 && strcmp(argv[1], "write") == 0)
        return write_file(argv + 2);
    (void)fprintf(stderr, "usage: image_dump read FILE | write FILE KIND TYPE T Z C H W\n");
    return 2;
}
