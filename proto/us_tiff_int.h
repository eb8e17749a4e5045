/*
 * Inside the TIFF reader: header and directories (us_tiff_dir.c), one page (us_tiff_page.c),
 * strips and tiles (us_tiff_chunk.c), pixels (us_tiff_decode.c, us_tiff_codec.c), and what the
 * pages mean (us_tiff_read.c, us_ome_read.c, us_imagej.c, us_tiff_shaped.c).
 *
 * Policy: we read directories ourselves, tag by tag and each within the file, and take only the
 * tags that matter. libtiff decodes compressed data only, and sees a directory that we wrote from
 * checked values (us_tiff_codec.c), never the stranger's: its directory reader is what makes
 * small files eat gigabytes.
 */
#ifndef US_TIFF_INT_H
#define US_TIFF_INT_H

#include "us_image_int.h"

enum { USI_TIFF_NONE = 1, USI_TIFF_JPEG = 7 }; /* values of the Compression tag */

struct usi_tiff_file {
    const struct usi_source *src;
    bool big;  /* BigTIFF */
    bool swap; /* the file's byte order is not ours */
    uint64_t first_ifd;
};

/* Where the values of one tag are. count 0: the tag is absent. The values lie in the file. */
struct usi_tiff_value {
    uint16_t type;
    uint64_t count;
    uint64_t at;
};

enum usi_tiff_tag {
    TAG_SUBFILE = 254,
    TAG_WIDTH = 256,
    TAG_HEIGHT = 257,
    TAG_BITS = 258,
    TAG_COMPRESSION = 259,
    TAG_PHOTOMETRIC = 262,
    TAG_FILL_ORDER = 266,
    TAG_DESCRIPTION = 270,
    TAG_STRIP_OFFSETS = 273,
    TAG_SAMPLES = 277,
    TAG_STRIP_ROWS = 278,
    TAG_STRIP_BYTES = 279,
    TAG_X_RES = 282,
    TAG_Y_RES = 283,
    TAG_PLANAR = 284,
    TAG_RES_UNIT = 296,
    TAG_PREDICTOR = 317,
    TAG_TILE_WIDTH = 322,
    TAG_TILE_HEIGHT = 323,
    TAG_TILE_OFFSETS = 324,
    TAG_TILE_BYTES = 325,
    TAG_EXTRA = 338,
    TAG_FORMAT = 339,
    TAG_JPEG_TABLES = 347,
    TAG_STK = 33629,
};

enum { USI_TIFF_TAGS = 25, USI_TIFF_RATIONAL = 5 };

/* The tags of one directory that we read; use usi_tiff_tag to look one up. */
struct usi_tiff_tags {
    const struct usi_tiff_file *f;
    struct usi_tiff_value values[USI_TIFF_TAGS];
};

/* A codec that we let libtiff run. `ratio` bounds bytes out per byte in: the format's own limit,
 * rounded up, so a small file cannot claim a large image. */
struct usi_tiff_codec {
    uint16_t compression;
    const char *name;
    int64_t ratio;
    bool has_predictor;
};

/* One page, its tags checked one by one; see usi_tiff_page_parse. */
struct usi_tiff_page {
    int64_t w, h;
    enum us_pixel pixel;
    int64_t samples; /* per pixel */
    bool separate;   /* planar configuration: each sample has strips of its own */
    bool reduced;    /* a smaller copy or a mask of another page */
    const struct usi_tiff_codec *codec;
    int predictor;
    bool tiled;
    int64_t chunk_w, chunk_h; /* tile, or w x rows per strip */
    struct usi_tiff_value offsets, counts, jpeg_tables, description, stk;
    double x_res, y_res; /* 0: absent */
    int resolution_unit; /* as in the file; 2 (inch) if absent */
};

enum us_status usi_tiff_open_file(struct usi_tiff_file *f, const struct usi_source *src,
                                  struct us_err *err) US_WARN_UNUSED;
/* Follows the chain of directories. *ret is malloc'ed, caller frees. */
enum us_status usi_tiff_chain(const struct usi_tiff_file *f, uint64_t **ret, int64_t *ret_n,
                              struct us_err *err) US_WARN_UNUSED;
/* A number of n_bytes at p, in the file's byte order. */
uint64_t usi_tiff_load(const struct usi_tiff_file *f, const uint8_t *p, int n_bytes);
enum us_status usi_tiff_tags_read(const struct usi_tiff_file *f, uint64_t ifd,
                                  struct usi_tiff_tags *ret, struct us_err *err) US_WARN_UNUSED;
/* Never NULL; a count of 0 says that the tag is absent. */
const struct usi_tiff_value *usi_tiff_tag(const struct usi_tiff_tags *t, enum usi_tiff_tag tag);
/* Reads the directory at `ifd` and refuses, by name, what we do not read. */
enum us_status usi_tiff_page_parse(const struct usi_tiff_file *f, uint64_t ifd,
                                   struct usi_tiff_page *ret, struct us_err *err) US_WARN_UNUSED;
/* Values first .. first + n of an integer tag. */
enum us_status usi_tiff_uints(const struct usi_tiff_file *f, const struct usi_tiff_value *v,
                              uint64_t first, uint64_t n, uint64_t *ret,
                              struct us_err *err) US_WARN_UNUSED;
/* The bytes of a text tag with a NUL behind, *ret malloc'ed; "" if the tag is absent. */
enum us_status usi_tiff_text(const struct usi_tiff_file *f, const struct usi_tiff_value *v,
                             char **ret, struct us_err *err) US_WARN_UNUSED;

/* us_tiff_chunk.c: strips and tiles, both called chunks. */
const struct usi_tiff_codec *usi_tiff_codec_find(uint64_t compression);
/* "LERC" and so on, for the message about a codec that we do not run; "unknown" if unknown. */
const char *usi_tiff_codec_name(uint64_t compression);

struct usi_tiff_chunks {
    int64_t across, down;     /* strips: across = 1 */
    int64_t n;                /* across * down, times samples if separate */
    int64_t samples;          /* in one chunk */
    int64_t row_bytes;        /* of a full chunk row */
    uint64_t *offset, *bytes; /* offset is malloc'ed and owns both */
    uint64_t most_bytes;      /* the largest of bytes */
};

/* Loads the page's chunk table and checks each chunk against the file: it lies inside and holds
 * enough for what it claims. release_chunks may follow a failed load. */
enum us_status usi_tiff_chunks_load(const struct usi_tiff_file *f, const struct usi_tiff_page *p,
                                    struct usi_tiff_chunks *ret, struct us_err *err) US_WARN_UNUSED;
void usi_tiff_chunks_release(struct usi_tiff_chunks *c);
/* Rows of chunk row `iy` that lie in the image. */
int64_t usi_tiff_chunk_rows(const struct usi_tiff_page *p, int64_t iy);
/* Bytes of one page without compression, all samples. */
int64_t usi_tiff_page_bytes(const struct usi_tiff_page *p);

/* us_tiff_decode.c: decodes one sample of one page to f32 [h, w]. skip_bytes moves all offsets,
 * for stacks whose pages follow the first one without directories (uncompressed only). */
enum us_status usi_tiff_decode(const struct usi_tiff_file *f, const struct usi_tiff_page *p,
                               int64_t sample, uint64_t skip_bytes, float *out,
                               struct us_err *err) US_WARN_UNUSED;
/* The same for compressed pages (us_tiff_codec.c), through libtiff. */
enum us_status usi_tiff_decode_codec(const struct usi_tiff_file *f, const struct usi_tiff_page *p,
                                     const struct usi_tiff_chunks *c, int64_t sample, float *out,
                                     struct us_err *err) US_WARN_UNUSED;

/* What the metadata say about the pages. Readers of metadata fill info and the map. */
struct usi_tiff {
    struct usi_tiff_file file;
    uint64_t *ifd; /* n_ifd offsets in the chain's order */
    int64_t n_ifd;
    struct usi_tiff_page first; /* the first page that is used; all used pages are like it */
    bool contiguous;            /* one directory, further pages follow its pixels */
    uint32_t *map;              /* page of plane (t, z, c / samples), [t][z][c / samples] */
    int64_t n_map;
};

#define USI_NO_PAGE UINT32_MAX

/* Allocates t->map for axes a (counts checked against the limits). order: letters, slowest first;
 * NULL leaves every entry USI_NO_PAGE. */
enum us_status usi_tiff_map_new(struct usi_tiff *t, struct usi_axes *a, const char *order,
                                struct us_err *err) US_WARN_UNUSED;

/* True if the file has n pages: n directories, or one uncompressed page with the pixels of the
 * others behind it (ImageJ above 4 GB, tifffile's truncate), which sets t->contiguous. */
bool usi_tiff_has_pages(struct usi_tiff *t, int64_t n);

/* Each looks at the description of the first page. *ret_taken: it is of this kind and t->map and
 * info are filled. A description of the kind that contradicts itself or the file is an error. */
enum us_status usi_ome_read(const char *xml, struct usi_tiff *t, struct us_image_info *info,
                            bool *ret_taken, struct us_err *err) US_WARN_UNUSED;
enum us_status usi_imagej_read(const char *text, struct usi_tiff *t, struct us_image_info *info,
                               bool *ret_taken, struct us_err *err) US_WARN_UNUSED;
enum us_status usi_shaped_read(const char *text, struct usi_tiff *t, struct us_image_info *info,
                               bool *ret_taken, struct us_err *err) US_WARN_UNUSED;

#endif
