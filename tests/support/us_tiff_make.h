/*
 * TIFF files in memory for tests: directories are written tag by tag, so every lie is possible.
 * All functions assert on failure.
 */
#ifndef US_TIFF_MAKE_H
#define US_TIFF_MAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mk_file {
    uint8_t *p;
    size_t n, cap;
    bool big, big_endian;
    size_t link; /* where the offset of the next directory goes */
};

/* Types of the TIFF standard. */
enum {
    MK_BYTE = 1,
    MK_ASCII = 2,
    MK_SHORT = 3,
    MK_LONG = 4,
    MK_RATIONAL = 5,
    MK_FLOAT = 11,
    MK_LONG8 = 16
};

struct mk_tag {
    uint16_t tag, type;
    uint64_t count;
    uint64_t value; /* the value if one fits in the field, else the offset of the values */
};

enum { MK_MAX_TAGS = 24 };

struct mk_page {
    struct mk_tag tags[MK_MAX_TAGS];
    int n;
};

void mk_init(struct mk_file *f, bool big, bool big_endian);
void mk_free(struct mk_file *f);
/* Appends bytes or a number in the file's byte order; returns the offset. */
size_t mk_bytes(struct mk_file *f, const void *p, size_t n);
size_t mk_number(struct mk_file *f, uint64_t v, int n_bytes);
void mk_patch(struct mk_file *f, size_t at, uint64_t v, int n_bytes);

/* Sets a tag (in place if it is there already); _remove takes one out. */
void mk_set(struct mk_page *p, uint16_t tag, uint16_t type, uint64_t count, uint64_t value);
void mk_remove(struct mk_page *p, uint16_t tag);
/* An uncompressed grayscale page of one strip whose pixels are at `data`. */
struct mk_page mk_gray(int64_t w, int64_t h, int bits, uint64_t data);
/* Sets the description, appending it to the file. */
void mk_describe(struct mk_file *f, struct mk_page *p, const char *text);
/* Appends the directory (tags sorted) and links it; returns its offset. */
size_t mk_page(struct mk_file *f, struct mk_page *p);

/* n bytes of a fixed pseudo-random sequence. */
size_t mk_noise(struct mk_file *f, size_t n);

#endif
