/* What the tests of the image module share: a pixel formula and its check. All assert. */
#ifndef US_IMAGE_CHECK_H
#define US_IMAGE_CHECK_H

#include "us_image.h"
#include "us_tiff_make.h"

enum { CHECK_MAX_PIXELS = 1 << 16 };

/* A value that tells plane and position, exact in 8 bits and up. */
float check_value(int64_t plane, int64_t k);
void check_fill(float *out, int64_t plane, int64_t n);

struct us_image_reader *check_open(const char *path);
struct us_image_reader *check_open_bytes(const struct mk_file *f);
void check_shape(const struct us_image_reader *r, int64_t t, int64_t z, int64_t c);
/* All planes hold check_value(plane, .), asked for in another order than the file's. */
void check_planes(struct us_image_reader *r);

/* Appends check_value(plane, .) as n samples of the kind; returns the offset. */
size_t check_put_samples(struct mk_file *f, int64_t plane, int64_t n, int bits, bool is_float);
/* n pages of 9 x 7 big-endian uint16, the first with this description and 5 pixels per unit. */
void check_make_described(struct mk_file *f, int n_pages, const char *description);

/* A temporary file, for cmocka_unit_test_setup_teardown. */
extern char check_temp_path[256];
int check_make_temp(void **state);
int check_drop_temp(void **state);

#define CHECK_TEST(name) cmocka_unit_test_setup_teardown(name, check_make_temp, check_drop_temp)

#endif
