/*
 * Writing model files: a temporary file in the same folder, fsync, rename, fsync of the folder. A
 * reader sees the old file or the new one, never a part. The same model gives the same bytes.
 *
 * Counters come first in the data area: each tensor then lies at a multiple of its element size,
 * which readers that map the file rely on.
 */
#include "us_model_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nettle/sha2.h>

#define HEADER_ALIGN 8
#define TMP_ATTEMPTS 16

/* An incomplete model has zeros for weights that no file ever gave: they stay absent. */
static bool is_written(const struct us_model *m, const struct us_param *p)
{
    return m->complete || (p->flags & US_PARAM_TRAIN_ONLY) == 0;
}

static int64_t param_bytes(const struct us_param *p)
{
    return p->count * usi_dtype_bytes(p->kind == US_PARAM_BN_COUNT ? USI_I64 : USI_F32);
}

/* Calls f for each parameter that is written, in the order of the data area. */
static enum us_status for_each_param(const struct us_model *m,
                                     enum us_status (*f)(void *arg, const struct us_param *p),
                                     void *arg)
{
    for (int counters = 1; counters >= 0; counters--) {
        for (int32_t i = 0; i < m->net->n_params; i++) {
            const struct us_param *p = &m->net->params[i];
            if ((p->kind == US_PARAM_BN_COUNT) == (counters == 1) && is_written(m, p))
                US_TRY(f(arg, p));
        }
    }
    return US_OK;
}

/* ---- header -------------------------------------------------------------------------------- */

struct header_writer {
    struct usi_text text;
    int64_t at; /* byte in the data area */
};

static enum us_status add_entry(void *arg, const struct us_param *p)
{
    struct header_writer *w = arg;
    char shape[192];
    int64_t end = w->at + param_bytes(p);
    usi_text_add(&w->text, ",", 1);
    usi_text_add_string(&w->text, p->name);
    usi_text_printf(&w->text, ":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%lld,%lld]}",
                    usi_dtype_name(p->kind == US_PARAM_BN_COUNT ? USI_I64 : USI_F32),
                    usi_shape_text(p->dim, p->ndim, shape, sizeof(shape)), (long long)w->at,
                    (long long)end);
    w->at = end;
    return US_OK;
}

/* The header with its length before it and spaces after it. */
static enum us_status make_header(const struct us_model *m, struct usi_text *ret,
                                  struct us_err *err)
{
    char *metadata;
    US_TRY(us_model_metadata(m, &metadata, err));
    struct header_writer w = {0};
    uint64_t length = 0;
    usi_text_add(&w.text, (const char *)&length, sizeof(length));
    usi_text_printf(&w.text, "{\"__metadata__\":{\"format\":\"%s\",\"usplit\":", US_MODEL_FORMAT);
    usi_text_add_string(&w.text, metadata);
    usi_text_add(&w.text, "}", 1);
    free(metadata);
    (void)for_each_param(m, add_entry, &w); /* cannot fail: the text remembers */
    usi_text_add(&w.text, "}", 1);
    while (w.text.n % HEADER_ALIGN != 0 && !w.text.failed)
        usi_text_add(&w.text, " ", 1);
    *ret = w.text;
    if (w.text.failed)
        return us_fail(err, US_E_NOMEM, "no memory for the header");
    length = w.text.n - sizeof(length);
    memcpy(w.text.p, &length, sizeof(length));
    if (length > US_MAX_MODEL_HEADER_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "the header would have %llu bytes; at most %lld",
                       (unsigned long long)length, US_MAX_MODEL_HEADER_BYTES);
    return US_OK;
}

/* ---- file ---------------------------------------------------------------------------------- */

struct file_writer {
    const struct us_model *m;
    int fd;
    struct sha256_ctx hash;
    struct us_err *err;
};

static enum us_status fail_errno(struct us_err *err, const char *doing)
{
    int e = errno;
    enum us_status s = US_E_IO;
    if (e == ENOSPC || e == EDQUOT || e == EFBIG)
        s = US_E_DISK_FULL;
    else if (e == ENOENT || e == ENOTDIR)
        s = US_E_NOT_FOUND;
    return us_fail(err, s, "%s: %s", doing, strerror(e));
}

static enum us_status write_all(struct file_writer *w, const void *bytes, size_t n)
{
    const char *p = bytes;
    for (size_t at = 0; at < n;) {
        ssize_t r = write(w->fd, p + at, n - at);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return fail_errno(w->err, "writing");
        at += (size_t)r;
    }
    sha256_update(&w->hash, n, bytes);
    return US_OK;
}

static enum us_status write_param(void *arg, const struct us_param *p)
{
    struct file_writer *w = arg;
    const void *data = p->kind == US_PARAM_BN_COUNT ? (const void *)(w->m->counters + p->offset)
                                                    : (const void *)(w->m->weights + p->offset);
    return write_all(w, data, (size_t)param_bytes(p));
}

/* A new file in the folder under a name that nobody can guess or have taken. */
static enum us_status open_tmp(int dir, char *name, size_t n, int *ret_fd, struct us_err *err)
{
    for (int i = 0; i < TMP_ATTEMPTS; i++) {
        uint64_t r;
        if (getrandom(&r, sizeof(r), 0) != (ssize_t)sizeof(r))
            return fail_errno(err, "random name");
        (void)snprintf(name, n, ".usplit-%016llx.tmp", (unsigned long long)r);
        int fd = openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
        if (fd >= 0) {
            *ret_fd = fd;
            return US_OK;
        }
        if (errno != EEXIST)
            return fail_errno(err, "creating a temporary file");
    }
    return us_fail(err, US_E_EXISTS, "no free name for a temporary file");
}

static enum us_status write_contents(struct file_writer *w, const struct usi_text *header)
{
    sha256_init(&w->hash);
    US_TRY(write_all(w, header->p, header->n));
    US_TRY(for_each_param(w->m, write_param, w));
    if (fsync(w->fd) != 0)
        return fail_errno(w->err, "fsync");
    return US_OK;
}

/* Writes header and tensors as `base` in the folder; whatever fails, no temporary file stays. */
static enum us_status write_file(struct us_model *m, int dir, const char *base,
                                 const struct usi_text *header, struct us_err *err)
{
    char tmp[64];
    struct file_writer w = {.m = m, .fd = -1, .err = err};
    US_TRY(open_tmp(dir, tmp, sizeof(tmp), &w.fd, err));
    enum us_status s = write_contents(&w, header);
    if (close(w.fd) != 0 && s == US_OK)
        s = fail_errno(err, "closing");
    if (s == US_OK && renameat(dir, tmp, dir, base) != 0)
        s = fail_errno(err, "renaming");
    if (s != US_OK) {
        (void)unlinkat(dir, tmp, 0);
        return s;
    }
    usi_hash_text(&w.hash, m->sha256);
    if (fsync(dir) != 0)
        return fail_errno(err, "fsync of the folder");
    return US_OK;
}

/* Opens the folder of path; *ret_base points into path. */
static enum us_status open_folder(const char *path, int *ret_dir, const char **ret_base,
                                  struct us_err *err)
{
    const char *slash = strrchr(path, '/');
    const char *base = slash == NULL ? path : slash + 1;
    if (base[0] == '\0' || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
        return us_fail(err, US_E_ARG, "not the name of a file");
    char *folder = slash == NULL   ? strdup(".")
                   : slash == path ? strdup("/")
                                   : strndup(path, (size_t)(slash - path));
    if (folder == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a path");
    *ret_dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *ret_base = base;
    enum us_status s = *ret_dir < 0 ? fail_errno(err, "opening the folder") : US_OK;
    free(folder);
    return s;
}

enum us_status us_model_save(struct us_model *m, const char *path, struct us_err *err)
{
    int dir = -1;
    const char *base = NULL;
    struct usi_text header = {0};
    enum us_status s = make_header(m, &header, err);
    if (s == US_OK)
        s = open_folder(path, &dir, &base, err);
    if (s == US_OK)
        s = write_file(m, dir, base, &header, err);
    if (dir >= 0)
        (void)close(dir);
    free(header.p);
    if (s != US_OK)
        us_err_prefix(err, "model %s", path);
    return s;
}
