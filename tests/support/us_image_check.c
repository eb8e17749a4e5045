/* See us_image_check.h. */
#include "us_image_check.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

char check_temp_path[256];

int check_make_temp(void **state)
{
    (void)snprintf(check_temp_path, sizeof(check_temp_path), "%s/usplit-image-XXXXXX", P_tmpdir);
    int fd = mkstemp(check_temp_path);
    return fd < 0 ? -1 : close(fd);
}

int check_drop_temp(void **state)
{
    return unlink(check_temp_path);
}

float check_value(int64_t plane, int64_t k)
{
    return (float)((plane * 37 + k * 11 + k / 7) % 251);
}

void check_fill(float *out, int64_t plane, int64_t n)
{
    for (int64_t k = 0; k < n; k++)
        out[k] = check_value(plane, k);
}

struct us_image_reader *check_open(const char *path)
{
    struct us_image_reader *r;
    struct us_err err = {0};
    if (us_image_open(path, &r, &err) != US_OK)
        fail_msg("%s", err.msg);
    return r;
}

struct us_image_reader *check_open_bytes(const struct mk_file *f)
{
    struct us_image_reader *r;
    struct us_err err = {0};
    if (us_image_open_memory(f->p, f->n, &r, &err) != US_OK)
        fail_msg("%s", err.msg);
    return r;
}

void check_shape(const struct us_image_reader *r, int64_t t, int64_t z, int64_t c)
{
    const struct us_image_info *i = us_image_info(r);
    assert_int_equal(i->t, t);
    assert_int_equal(i->z, z);
    assert_int_equal(i->c, c);
}

void check_planes(struct us_image_reader *r)
{
    float got[CHECK_MAX_PIXELS], want[CHECK_MAX_PIXELS];
    const struct us_image_info *i = us_image_info(r);
    struct us_err err = {0};
    int64_t n = i->h * i->w;
    assert_true(n <= CHECK_MAX_PIXELS);
    for (int64_t c = i->c - 1; c >= 0; c--)
        for (int64_t z = i->z - 1; z >= 0; z--)
            for (int64_t t = 0; t < i->t; t++) {
                memset(got, 0xff, sizeof(got));
                if (us_image_read_plane(r, t, z, c, got, &err) != US_OK)
                    fail_msg("%s", err.msg);
                check_fill(want, (t * i->z + z) * i->c + c, n);
                assert_memory_equal(got, want, (size_t)n * sizeof(*got));
            }
}

size_t check_put_samples(struct mk_file *f, int64_t plane, int64_t n, int bits, bool is_float)
{
    size_t at = f->n;
    for (int64_t k = 0; k < n; k++) {
        float v = check_value(plane, k);
        double d = v;
        uint32_t f_bits;
        uint64_t d_bits;
        memcpy(&f_bits, &v, sizeof(v));
        memcpy(&d_bits, &d, sizeof(d));
        uint64_t bits_of = !is_float ? (uint64_t)v : bits == 32 ? f_bits : d_bits;
        (void)mk_number(f, bits_of, bits / 8);
    }
    return at;
}

void check_make_described(struct mk_file *f, int n_pages, const char *description)
{
    mk_init(f, false, true);
    for (int page = 0; page < n_pages; page++) {
        struct mk_page p = mk_gray(9, 7, 16, check_put_samples(f, page, 9 * 7, 16, false));
        if (page == 0) {
            size_t res = mk_number(f, 5, 4);
            (void)mk_number(f, 1, 4);
            mk_set(&p, 282, MK_RATIONAL, 1, res);
            mk_set(&p, 283, MK_RATIONAL, 1, res);
            mk_set(&p, 296, MK_SHORT, 1, 1);
            mk_describe(f, &p, description);
        }
        (void)mk_page(f, &p);
    }
}
