/*
 * Writing images: OME-TIFF and NPY, appended plane by plane (us_image.h).
 *
 * The file is written front to back and never sought in; memory is one strip. The same info,
 * options and planes give the same bytes: no dates, no random identifiers.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "us_image_int.h"

static enum us_status status_of_errno(int e)
{
    switch (e) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return US_E_DISK_FULL;
    case ENOENT:
    case ENOTDIR:
        return US_E_NOT_FOUND;
    default:
        return US_E_IO;
    }
}

enum us_status usi_write_all(struct us_image_writer *w, const void *bytes, uint64_t n,
                             struct us_err *err)
{
    for (uint64_t done = 0; done < n;) {
        ssize_t put = write(w->fd, (const char *)bytes + done, n - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return us_fail(err, status_of_errno(errno), "write failed: %s", strerror(errno));
        done += (uint64_t)put;
    }
    return US_OK;
}

enum us_status usi_write_pixels(struct us_image_writer *w, const float *plane, struct us_err *err)
{
    const struct us_image_info *i = &w->info;
    for (int64_t y = 0; y < i->h; y += w->buf_rows) {
        int64_t rows = i->h - y < w->buf_rows ? i->h - y : w->buf_rows, n = rows * i->w;
        int64_t bad = usi_pixels_from_f32(i->pixel, plane + y * i->w, n, w->buf);
        if (bad >= 0)
            return us_fail(err, US_E_ARG, "NaN at x %lld, y %lld cannot become %s",
                           (long long)(bad % i->w), (long long)(y + bad / i->w),
                           us_pixel_name(i->pixel));
        US_TRY(usi_write_all(w, w->buf, (uint64_t)(n * usi_pixel_bytes(i->pixel)), err));
    }
    return US_OK;
}

static enum us_status check_request(const struct us_image_info *info, struct us_err *err)
{
    US_TRY(usi_info_check(info, err));
    if (info->pixel != US_PIXEL_F32 && info->pixel != US_PIXEL_U16 && info->pixel != US_PIXEL_U8)
        return us_fail(err, US_E_UNSUPPORTED,
                       "writing %s pixels; expected float32, uint16 or uint8",
                       us_pixel_name(info->pixel));
    return US_OK;
}

static enum us_status open_output(struct us_image_writer *w, const char *path,
                                  const struct us_image_write_options *opt, struct us_err *err)
{
    US_TRY(check_request(&w->info, err));
    int64_t row_bytes = w->info.w * usi_pixel_bytes(w->info.pixel);
    w->buf_rows = row_bytes < USI_STRIP_BYTES ? USI_STRIP_BYTES / row_bytes : 1;
    if (w->buf_rows > w->info.h)
        w->buf_rows = w->info.h;
    w->n_planes = w->info.t * w->info.z * w->info.c;
    w->buf = calloc((size_t)w->buf_rows, (size_t)row_bytes);
    if (w->buf == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %lld bytes",
                       (long long)(w->buf_rows * row_bytes));
    w->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w->fd < 0)
        return us_fail(err, status_of_errno(errno), "cannot create: %s", strerror(errno));
    return opt->npy ? usi_npy_begin(w, err) : usi_tiff_begin(w, opt, err);
}

enum us_status us_image_create(const char *path, const struct us_image_info *info,
                               const struct us_image_write_options *opt,
                               struct us_image_writer **ret, struct us_err *err)
{
    *ret = NULL;
    struct us_image_writer *w = calloc(1, sizeof(*w));
    if (w == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for an image writer");
    usi_name_copy(w->name, path);
    w->fd = -1;
    w->info = *info;
    enum us_status s = open_output(w, path, opt, err);
    if (s != US_OK) {
        us_err_prefix(err, "%s", w->name);
        us_image_abandon(w);
        return s;
    }
    *ret = w;
    return US_OK;
}

/* A plane that was written in part leaves no way on: the writer keeps the first failure. */
static enum us_status write_plane(struct us_image_writer *w, const float *plane, struct us_err *err)
{
    if (w->failed != US_OK)
        return us_fail(err, w->failed, "an earlier write failed");
    if (w->n_written == w->n_planes)
        return us_fail(err, US_E_ARG, "plane %lld of %lld", (long long)w->n_planes + 1,
                       (long long)w->n_planes);
    if (w->state != NULL)
        US_TRY(usi_tiff_begin_page(w, err));
    return usi_write_pixels(w, plane, err);
}

enum us_status us_image_write_plane(struct us_image_writer *w, const float *plane,
                                    struct us_err *err)
{
    enum us_status s = write_plane(w, plane, err);
    if (s != US_OK) {
        us_err_prefix(err, "%s: plane %lld", w->name, (long long)w->n_written + 1);
        w->failed = s;
        return s;
    }
    w->n_written++;
    return US_OK;
}

static enum us_status finish(struct us_image_writer *w, struct us_err *err)
{
    if (w->failed != US_OK)
        return us_fail(err, w->failed, "an earlier write failed");
    if (w->n_written != w->n_planes)
        return us_fail(err, US_E_ARG, "%lld of %lld planes written", (long long)w->n_written,
                       (long long)w->n_planes);
    if (fsync(w->fd) != 0)
        return us_fail(err, status_of_errno(errno), "fsync failed: %s", strerror(errno));
    int fd = w->fd;
    w->fd = -1;
    if (close(fd) != 0)
        return us_fail(err, status_of_errno(errno), "close failed: %s", strerror(errno));
    return US_OK;
}

enum us_status us_image_finish(struct us_image_writer *w, struct us_err *err)
{
    enum us_status s = finish(w, err);
    if (s != US_OK)
        us_err_prefix(err, "%s", w->name);
    us_image_abandon(w);
    return s;
}

void us_image_abandon(struct us_image_writer *w)
{
    if (w == NULL)
        return;
    if (w->fd >= 0)
        (void)close(w->fd);
    usi_tiff_writer_free(w->state);
    free(w->buf);
    free(w);
}
