/*
 * Inside the image module: the byte source, the reader object and what its formats share.
 * Not installed and included by proto/us_image*.c, us_tiff*.c, us_ome*.c, us_imagej.c, us_npy.c.
 *
 * Policy: a format's functions write messages without the file's name; us_image.c puts the name
 * in front once, at the border.
 */
#ifndef US_IMAGE_INT_H
#define US_IMAGE_INT_H

#include "us_image.h"

/* The file as bytes: a descriptor read with pread, or memory. */
struct usi_source {
    int fd; /* -1: memory */
    const uint8_t *mem;
    uint64_t n_bytes;
};

/* Reads exactly n bytes at `at`. E_CORRUPT if the source ends before, E_IO if the system says so.
 */
enum us_status usi_source_read(const struct usi_source *s, uint64_t at, void *buf, uint64_t n,
                               struct us_err *err) US_WARN_UNUSED;
/* True if [at, at + n) lies inside the source. */
bool usi_source_holds(const struct usi_source *s, uint64_t at, uint64_t n);

struct us_image_reader;

/* One container format. open fills r->info and r->state; release takes what open left in
 * r->state, also after a failed open. */
struct usi_format {
    enum us_status (*open)(struct us_image_reader *r, struct us_err *err);
    enum us_status (*read_plane)(struct us_image_reader *r, int64_t t, int64_t z, int64_t c,
                                 float *out, struct us_err *err);
    void (*release)(void *state);
};

extern const struct usi_format usi_format_tiff, usi_format_npy;

#define USI_NAME_BYTES 160

struct us_image_reader {
    struct usi_source src;
    char name[USI_NAME_BYTES]; /* for messages: the path, or its tail if it is long */
    struct us_image_info info;
    const struct usi_format *format;
    void *state;
};

/* Checks h, w, planes of *info against us_limits.h, each by name. */
enum us_status usi_info_check(const struct us_image_info *info, struct us_err *err) US_WARN_UNUSED;

/* Pixels (us_image_pixels.c). */
int64_t usi_pixel_bytes(enum us_pixel p);
/* Which us_pixel has `bits` bits and this kind ('u', 'i' or 'f'); false if none. */
bool usi_pixel_find(char kind, unsigned bits, enum us_pixel *ret);
/* n samples, `stride` bytes apart, to f32. swap: the bytes of a sample are in the other order. */
void usi_pixels_to_f32(enum us_pixel p, bool swap, const void *src, int64_t stride, int64_t n,
                       float *out);
/* n values to little-endian samples of kind F32, U16 or U8: rounded half away from zero, clamped.
 * Returns the index of the first NaN if the pixels are integers, else -1. */
int64_t usi_pixels_from_f32(enum us_pixel p, const float *src, int64_t n, void *out);
bool usi_host_is_big_endian(void);

/* Text (us_image_text.c). */

/* A path for messages: its tail if it is long. */
void usi_name_copy(char dst[USI_NAME_BYTES], const char *path);
/* Bytes of the UTF-8 character at s (not the NUL), 0 if it is malformed. */
int usi_utf8_length(const char *s);
/* Copies at most cap - 1 bytes, never half a UTF-8 character; malformed
 * bytes and control characters become '?'. */
void usi_text_copy(char *dst, size_t cap, const char *src);
/* The same for a unit of length or time: the many spellings of micrometre become U+00B5 "m", and
 * "pixel" becomes "". */
void usi_unit_copy(char *dst, size_t cap, const char *src);
/* Micrometres in one `unit` ("" counts as micrometre), 0 if it is not a unit of length. */
double usi_unit_um(const char *unit);
/* A finite number above 0 that fills the whole text, else 0. */
double usi_parse_positive(const char *s);
/* A decimal count 0..max that fills the whole text, else -1. */
int64_t usi_parse_count(const char *s, int64_t max);

/* Where page indices lie in the (t, z, c) grid of a file: page = t*stride_t + z*stride_z + ... */
struct usi_axes {
    int64_t t, z, c; /* c counts pages, not samples */
    int64_t stride_t, stride_z, stride_c;
};

/* Axes from letters of T, Z, C, slowest first, e.g. "TZC"; a missing one has size 1. */
void usi_axes_set(struct usi_axes *a, const char *letters);

/* The writing side. Both containers only ever append. */
struct us_image_writer {
    int fd;
    char name[USI_NAME_BYTES];
    struct us_image_info info;
    int64_t n_planes, n_written;
    void *state;  /* TIFF: struct usi_tiff_writer */
    uint8_t *buf; /* buf_rows rows: one strip */
    int64_t buf_rows;
    enum us_status failed; /* a writer that failed once stays failed */
};

#define USI_STRIP_BYTES (256LL << 10)

enum us_status usi_write_all(struct us_image_writer *w, const void *bytes, uint64_t n,
                             struct us_err *err) US_WARN_UNUSED;
/* Converts and appends rows of a plane, buf_rows at a time. */
enum us_status usi_write_pixels(struct us_image_writer *w, const float *plane,
                                struct us_err *err) US_WARN_UNUSED;

enum us_status usi_npy_begin(struct us_image_writer *w, struct us_err *err) US_WARN_UNUSED;
/* Makes the OME-XML, plans the file and writes what stands before the first page. */
enum us_status usi_tiff_begin(struct us_image_writer *w, const struct us_image_write_options *opt,
                              struct us_err *err) US_WARN_UNUSED;
/* Appends the directory of the page that comes next. */
enum us_status usi_tiff_begin_page(struct us_image_writer *w, struct us_err *err) US_WARN_UNUSED;
void usi_tiff_writer_free(void *state);

#endif
