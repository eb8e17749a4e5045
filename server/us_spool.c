/* Spool files; see us_spool.h. */
#include "us_spool.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "us_failpoint.h"

enum us_status us_status_of_errno(int e)
{
    if (e == ENOSPC || e == EDQUOT)
        return US_E_DISK_FULL;
    return e == ENOENT ? US_E_NOT_FOUND : US_E_IO;
}

void us_spool_hide_path(struct us_err *err, const char *path, const char *shown)
{
    char text[US_ERR_MSG_BYTES];
    char *at = err != NULL ? strstr(err->msg, path) : NULL;
    if (at == NULL)
        return;
    (void)snprintf(text, sizeof(text), "%.*s%s%s", (int)(at - err->msg), err->msg, shown,
                   at + strlen(path));
    memcpy(err->msg, text, sizeof(text));
}

enum us_status us_spool_init(const char *dir, struct us_err *err)
{
    if (mkdir(dir, 0700) != 0 && errno != EEXIST)
        return us_fail(err, us_status_of_errno(errno), "%s: %s", dir, strerror(errno));
    DIR *d = opendir(dir);
    if (d == NULL)
        return us_fail(err, US_E_IO, "%s: %s", dir, strerror(errno));
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            (void)unlinkat(dirfd(d), e->d_name, 0);
    }
    (void)closedir(d);
    return US_OK;
}

enum us_status us_spool_create(const char *dir, struct us_spool_file *f, struct us_err *err)
{
    static atomic_uint_fast64_t serial;
    *f = (struct us_spool_file){.fd = -1};
    int n = snprintf(f->path, sizeof(f->path), "%s/%llu", dir,
                     (unsigned long long)atomic_fetch_add(&serial, 1));
    if (n < 0 || (size_t)n >= sizeof(f->path) - 16) { /* room for suffixes of others */
        f->path[0] = '\0';
        return us_fail(err, US_E_TOO_LARGE, "the data folder's path is too long");
    }
    f->fd = open(f->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (f->fd < 0) {
        int e = errno;
        f->path[0] = '\0';
        return us_fail(err, us_status_of_errno(e), "cannot create a spool file: %s", strerror(e));
    }
    return US_OK;
}

enum us_status us_spool_write(struct us_spool_file *f, const void *bytes, size_t n,
                              struct us_err *err)
{
    const char *p = bytes;
    while (n > 0) {
        ssize_t k = write(f->fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0)
            return us_fail(err, us_status_of_errno(errno), "cannot write a spool file: %s",
                           strerror(errno));
        p += k;
        n -= (size_t)k;
        f->bytes += k;
    }
    return US_OK;
}

void us_spool_release(struct us_spool_file *f)
{
    if (f->path[0] == '\0')
        return;
    if (f->fd >= 0)
        (void)close(f->fd);
    (void)unlink(f->path);
    *f = (struct us_spool_file){.fd = -1};
}

enum us_status us_fsync_dir(const char *dir, struct us_err *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return us_fail(err, US_E_IO, "%s: %s", dir, strerror(errno));
    int e = fsync(fd) != 0 ? errno : 0;
    (void)close(fd);
    return e != 0 ? us_fail(err, us_status_of_errno(e), "%s: fsync: %s", dir, strerror(e)) : US_OK;
}

/* fsync of the folder that path stands in. */
static enum us_status fsync_parent(const char *path, struct us_err *err)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t n = slash != NULL ? (size_t)(slash - path) : 0;
    if (n == 0 || n >= sizeof(dir))
        return us_fail(err, US_E_ARG, "%s: not a path with a folder", path);
    memcpy(dir, path, n);
    dir[n] = '\0';
    return us_fsync_dir(dir, err);
}

enum us_status us_spool_publish(struct us_spool_file *f, const char *path, struct us_err *err)
{
    US_TRY(us_failpoint("file.written", err));
    if (fsync(f->fd) != 0)
        return us_fail(err, us_status_of_errno(errno), "fsync of a spool file: %s",
                       strerror(errno));
    US_TRY(us_failpoint("file.synced", err));
    if (rename(f->path, path) != 0)
        return us_fail(err, us_status_of_errno(errno), "%s: rename: %s", path, strerror(errno));
    (void)close(f->fd);
    f->fd = -1;
    f->path[0] = '\0'; /* the name is taken; nothing to remove any more */
    US_TRY(us_failpoint("file.renamed", err));
    return fsync_parent(path, err);
}
