/*
 * Reading images: opening by content, the byte source, and the border where messages get the
 * file's name (us_image.h). The formats themselves are in us_tiff_*.c and us_npy.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "us_image_int.h"

bool usi_source_holds(const struct usi_source *s, uint64_t at, uint64_t n)
{
    return n <= s->n_bytes && at <= s->n_bytes - n;
}

enum us_status usi_source_read(const struct usi_source *s, uint64_t at, void *buf, uint64_t n,
                               struct us_err *err)
{
    if (!usi_source_holds(s, at, n))
        return us_fail(
            err, US_E_CORRUPT, "truncated: %llu bytes expected at %llu, the file ends at %llu",
            (unsigned long long)n, (unsigned long long)at, (unsigned long long)s->n_bytes);
    if (s->fd < 0) {
        memcpy(buf, s->mem + at, n);
        return US_OK;
    }
    for (uint64_t done = 0; done < n;) {
        ssize_t got = pread(s->fd, (char *)buf + done, n - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return us_fail(err, US_E_IO, "read failed: %s", strerror(errno));
        if (got == 0)
            return us_fail(err, US_E_IO, "the file became shorter while it was read");
        done += (uint64_t)got;
    }
    return US_OK;
}

enum us_status usi_info_check(const struct us_image_info *i, struct us_err *err)
{
    if (i->w < 1 || i->h < 1)
        return us_fail(err, US_E_FORMAT, "image of %lld x %lld pixels; expected at least 1 x 1",
                       (long long)i->w, (long long)i->h);
    if (i->w > US_MAX_IMAGE_SIDE || i->h > US_MAX_IMAGE_SIDE)
        return us_fail(err, US_E_TOO_LARGE, "image of %lld x %lld pixels; at most %lld per side",
                       (long long)i->w, (long long)i->h, US_MAX_IMAGE_SIDE);
    if (i->w > US_MAX_PLANE_PIXELS / i->h)
        return us_fail(err, US_E_TOO_LARGE, "image of %lld x %lld pixels; at most %lld per plane",
                       (long long)i->w, (long long)i->h, US_MAX_PLANE_PIXELS);
    if (i->t < 1 || i->z < 1 || i->c < 1)
        return us_fail(err, US_E_FORMAT, "image of T %lld, Z %lld, C %lld; expected at least 1",
                       (long long)i->t, (long long)i->z, (long long)i->c);
    if (i->t > US_MAX_PLANES || i->z > US_MAX_PLANES / i->t || i->c > US_MAX_PLANES / (i->t * i->z))
        return us_fail(err, US_E_TOO_LARGE, "image of T %lld, Z %lld, C %lld; at most %lld planes",
                       (long long)i->t, (long long)i->z, (long long)i->c, US_MAX_PLANES);
    return US_OK;
}

/* What a first look tells: the formats that we read, and those that people often have instead. */
static const struct {
    const char *magic;
    size_t n_magic;
    const struct usi_format *format; /* NULL: only known by name */
    const char *name, *advice;
} magic_table[] = {
    {"II\x2a\0", 4, &usi_format_tiff, "TIFF", ""},
    {"MM\0\x2a", 4, &usi_format_tiff, "TIFF", ""},
    {"II\x2b\0", 4, &usi_format_tiff, "BigTIFF", ""},
    {"MM\0\x2b", 4, &usi_format_tiff, "BigTIFF", ""},
    {"\x93NUMPY", 6, &usi_format_npy, "NPY", ""},
    {"PK\x03\x04", 4, NULL, "ZIP or NPZ archive", "; save one array with numpy.save"},
    {"\x89PNG", 4, NULL, "PNG image", "; save it as TIFF"},
    {"\xff\xd8\xff", 3, NULL, "JPEG image", "; save the original data as TIFF"},
    {"\x89HDF", 4, NULL, "HDF5 file", "; export the image as OME-TIFF"},
    {"ZISRAWFILE", 10, NULL, "Zeiss CZI file", "; export it as OME-TIFF"},
    {"\xda\xce\xbe\x0a", 4, NULL, "Nikon ND2 file", "; export it as OME-TIFF"},
    {"\x70\0\0\0", 4, NULL, "Leica LIF file", "; export it as OME-TIFF"},
    {"\xd0\xcf\x11\xe0", 4, NULL, "Olympus OIB or Zeiss ZVI file", "; export it as OME-TIFF"},
    {"\x1f\x8b", 2, NULL, "gzip data", "; decompress it, or declare Content-Encoding: gzip"},
    {"\x28\xb5\x2f\xfd", 4, NULL, "zstd data",
     "; decompress it, or declare Content-Encoding: zstd"},
};

static enum us_status find_format(struct us_image_reader *r, struct us_err *err)
{
    unsigned char head[16] = {0};
    uint64_t n = r->src.n_bytes < sizeof(head) ? r->src.n_bytes : sizeof(head);
    if (n == 0)
        return us_fail(err, US_E_FORMAT, "empty file; expected TIFF or NPY");
    US_TRY(usi_source_read(&r->src, 0, head, n, err));
    for (size_t i = 0; i < US_COUNT(magic_table); i++) {
        if (n < magic_table[i].n_magic ||
            memcmp(head, magic_table[i].magic, magic_table[i].n_magic) != 0)
            continue;
        r->format = magic_table[i].format;
        if (r->format != NULL)
            return US_OK;
        return us_fail(err, US_E_UNSUPPORTED, "%s; expected TIFF or NPY%s", magic_table[i].name,
                       magic_table[i].advice);
    }
    return us_fail(err, US_E_FORMAT,
                   "unknown file format (it begins with bytes %02x %02x %02x %02x); expected TIFF "
                   "or NPY",
                   head[0], head[1], head[2], head[3]);
}

static enum us_status open_source(struct us_image_reader *r, struct us_image_reader **ret,
                                  struct us_err *err)
{
    enum us_status s = find_format(r, err);
    if (s == US_OK)
        s = r->format->open(r, err);
    if (s != US_OK) {
        us_err_prefix(err, "%s", r->name);
        us_image_close(r);
        return s;
    }
    *ret = r;
    return US_OK;
}

static struct us_image_reader *reader_new(const char *name)
{
    struct us_image_reader *r = calloc(1, sizeof(*r));
    if (r == NULL)
        return NULL;
    r->src.fd = -1;
    usi_name_copy(r->name, name);
    return r;
}

/* Without O_NONBLOCK a FIFO in place of a file would hold us until somebody writes. */
static enum us_status open_regular(const char *path, struct usi_source *src, struct us_err *err)
{
    struct stat st;
    src->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (src->fd < 0) {
        enum us_status s = errno == ENOENT || errno == ENOTDIR ? US_E_NOT_FOUND : US_E_IO;
        return us_fail(err, s, "cannot open: %s", strerror(errno));
    }
    if (fstat(src->fd, &st) != 0)
        return us_fail(err, US_E_IO, "cannot stat: %s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return us_fail(err, US_E_ARG, "not a regular file; expected TIFF or NPY");
    src->n_bytes = (uint64_t)st.st_size;
    return US_OK;
}

enum us_status us_image_open(const char *path, struct us_image_reader **ret, struct us_err *err)
{
    *ret = NULL;
    struct us_image_reader *r = reader_new(path);
    if (r == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for an image reader");
    enum us_status s = open_regular(path, &r->src, err);
    if (s != US_OK) {
        us_err_prefix(err, "%s", r->name);
        us_image_close(r);
        return s;
    }
    return open_source(r, ret, err);
}

enum us_status us_image_open_memory(const void *bytes, size_t n_bytes, struct us_image_reader **ret,
                                    struct us_err *err)
{
    *ret = NULL;
    struct us_image_reader *r = reader_new("image");
    if (r == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for an image reader");
    r->src.mem = bytes;
    r->src.n_bytes = n_bytes;
    return open_source(r, ret, err);
}

void us_image_close(struct us_image_reader *r)
{
    if (r == NULL)
        return;
    if (r->format != NULL)
        r->format->release(r->state);
    if (r->src.fd >= 0)
        (void)close(r->src.fd);
    free(r);
}

const struct us_image_info *us_image_info(const struct us_image_reader *r)
{
    return &r->info;
}

enum us_status us_image_read_plane(struct us_image_reader *r, int64_t t, int64_t z, int64_t c,
                                   float *out, struct us_err *err)
{
    const struct us_image_info *i = &r->info;
    if (t < 0 || t >= i->t || z < 0 || z >= i->z || c < 0 || c >= i->c)
        return us_fail(err, US_E_ARG,
                       "%s: plane t %lld, z %lld, c %lld asked for; the image has T %lld, Z %lld, "
                       "C %lld",
                       r->name, (long long)t, (long long)z, (long long)c, (long long)i->t,
                       (long long)i->z, (long long)i->c);
    enum us_status s = r->format->read_plane(r, t, z, c, out, err);
    if (s != US_OK)
        us_err_prefix(err, "%s: plane t %lld, z %lld, c %lld", r->name, (long long)t, (long long)z,
                      (long long)c);
    return s;
}
