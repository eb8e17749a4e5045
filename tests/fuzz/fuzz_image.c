/*
 * libFuzzer target: an image file in memory, TIFF or NPY by its own first bytes. Whatever opens
 * must keep the limits that us_image.h promises, and its first planes must read or fail cleanly.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "us_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_PIXELS = 1 << 22, MAX_PLANES_READ = 4 };

static void check_text(const char *s, size_t cap)
{
    US_ASSERT(memchr(s, '\0', cap) != NULL);
    for (; *s != '\0'; s++)
        US_ASSERT((unsigned char)*s >= 0x20 && *s != 0x7f);
}

static void check_info(const struct us_image_info *i)
{
    US_ASSERT(i->t >= 1 && i->z >= 1 && i->c >= 1 && i->h >= 1 && i->w >= 1);
    US_ASSERT(i->t <= US_MAX_PLANES && i->z <= US_MAX_PLANES && i->c <= US_MAX_PLANES);
    US_ASSERT(i->t * i->z * i->c <= US_MAX_PLANES && i->h * i->w <= US_MAX_PLANE_PIXELS);
    US_ASSERT(i->size_x >= 0.0 && i->size_y >= 0.0 && i->size_z >= 0.0);
    US_ASSERT(i->time_increment >= 0.0);
    check_text(i->name, sizeof(i->name));
    check_text(i->unit_x, sizeof(i->unit_x));
    check_text(i->unit_y, sizeof(i->unit_y));
    check_text(i->unit_z, sizeof(i->unit_z));
    check_text(i->unit_t, sizeof(i->unit_t));
    for (size_t c = 0; c < US_COUNT(i->channel_name); c++)
        check_text(i->channel_name[c], sizeof(i->channel_name[c]));
}

static void read_planes(struct us_image_reader *r)
{
    const struct us_image_info *i = us_image_info(r);
    int64_t n = i->t * i->z * i->c;
    struct us_err err;
    if (i->h * i->w > MAX_PIXELS)
        return;
    /* Exactly one plane, so that a sanitizer sees a pixel too many. */
    float *plane = calloc((size_t)(i->h * i->w), sizeof(*plane));
    US_ASSERT(plane != NULL);
    for (int64_t p = 0; p < n && p < MAX_PLANES_READ; p++)
        (void)!us_image_read_plane(r, p / (i->z * i->c), p / i->c % i->z, p % i->c, plane, &err);
    free(plane);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct us_image_reader *r;
    struct us_err err = {0};
    if (us_image_open_memory(data, size, &r, &err) != US_OK) {
        US_ASSERT(r == NULL && err.status != US_OK);
        check_text(err.msg, sizeof(err.msg));
        return 0;
    }
    check_info(us_image_info(r));
    read_planes(r);
    us_image_close(r);
    return 0;
}
