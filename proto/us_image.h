/*
 * Images at the border: TIFF, BigTIFF, OME-TIFF, ImageJ TIFF and NPY in; OME-TIFF and NPY out.
 * A reader hands out one plane (y, x) at a time as f32, so a stack larger than memory works.
 *
 * Everything a file claims is checked against us_limits.h before memory is taken. RGB, palette,
 * complex and 64-bit integer pixels are refused by name (E_UNSUPPORTED).
 */
#ifndef US_IMAGE_H
#define US_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_limits.h"
#include "us_status.h"

enum us_pixel {
    US_PIXEL_U8 = 0,
    US_PIXEL_I8,
    US_PIXEL_U16,
    US_PIXEL_I16,
    US_PIXEL_U32,
    US_PIXEL_I32,
    US_PIXEL_F32,
    US_PIXEL_F64
};

enum us_container {
    US_CONTAINER_TIFF = 0,
    US_CONTAINER_OME_TIFF,
    US_CONTAINER_IMAGEJ_TIFF,
    US_CONTAINER_NPY
};

/* What an image is. Planes are ordered by (t, z, c) with c fastest, whatever the file's order. */
struct us_image_info {
    enum us_container container;
    enum us_pixel pixel;
    int64_t t, z, c, h, w; /* each >= 1 */
    /* Physical sizes; 0 = not stated. Units are UTF-8, "" = not stated (OME default: um). */
    double size_x, size_y, size_z, time_increment;
    char unit_x[US_MAX_NAME], unit_y[US_MAX_NAME], unit_z[US_MAX_NAME], unit_t[US_MAX_NAME];
    char name[US_MAX_NAME];                             /* OME Image Name, "" = not stated */
    char channel_name[US_MAX_TARGETS * 4][US_MAX_NAME]; /* "" = not stated */
    /* The file says which of its pages are t, z and c (OME-XML, ImageJ, tifffile's "axes", NPY of
     * four or five dimensions, several samples per pixel). Where it does not, all pages are taken
     * as frames: t = number of pages, z = c = 1, in the file's order. */
    bool axes_stated;
};

struct us_image_reader;

/* Opens a file by its content, not its name: TIFF magic or NPY magic. The error names the path,
 * what was found and what was expected. */
enum us_status us_image_open(const char *path, struct us_image_reader **ret,
                             struct us_err *err) US_WARN_UNUSED;
/* From memory (the fuzzer's door); bytes are borrowed until close. */
enum us_status us_image_open_memory(const void *bytes, size_t n_bytes, struct us_image_reader **ret,
                                    struct us_err *err) US_WARN_UNUSED;
void us_image_close(struct us_image_reader *r);
const struct us_image_info *us_image_info(const struct us_image_reader *r);

/* Reads plane (t, z, c) as f32 [h, w] into out (caller's). 8- and 16-bit values are exact. */
enum us_status us_image_read_plane(struct us_image_reader *r, int64_t t, int64_t z, int64_t c,
                                   float *out, struct us_err *err) US_WARN_UNUSED;

struct us_image_writer;

/* What a writer needs beyond the info: US_PIXEL_F32, US_PIXEL_U16 or US_PIXEL_U8 pixels (values
 * are rounded half away from zero and clamped); NPY is one 5-D array TCZYX -> see below. */
struct us_image_write_options {
    bool npy;             /* NPY v1.0, C order, shape [t,z,c,h,w]; [t,c,h,w] if z is 1; [c,h,w] if t
                             is 1 too; else OME-TIFF */
    bool big;             /* BigTIFF from the start; chosen by itself above 3.9 GB of pixels */
    const char *software; /* e.g. "usplit 0.1.0" */
    const char *description_json; /* free text stored as an OME annotation; NULL = none */
};

/* Opens path for writing (truncates it; the caller renames). info->container is ignored. Pages
 * are written in the OME order XYCZT and must be handed over in that order (c fastest, then z). */
enum us_status us_image_create(const char *path, const struct us_image_info *info,
                               const struct us_image_write_options *opt,
                               struct us_image_writer **ret, struct us_err *err) US_WARN_UNUSED;
/* Appends the next plane, f32 [h, w]. NaN is refused for integer pixels. */
enum us_status us_image_write_plane(struct us_image_writer *w, const float *plane,
                                    struct us_err *err) US_WARN_UNUSED;
/* Finishes the file (all planes must have been written) and fsyncs it. Frees w in any case. */
enum us_status us_image_finish(struct us_image_writer *w, struct us_err *err) US_WARN_UNUSED;
/* Frees w and leaves whatever was written. NULL is fine. */
void us_image_abandon(struct us_image_writer *w);

const char *us_pixel_name(enum us_pixel p); /* "uint16" and so on */

#endif
