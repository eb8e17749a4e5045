/*
 * Result files, see us_outfile.h. The temporary name does not contain the final one, so a final
 * name of the longest length that the file system allows still works; it starts with a dot and
 * ends in .tmp, so that a pattern such as *.tif never picks up half a file.
 */
#include "us_outfile.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static enum us_status status_of_errno(int e)
{
    switch (e) {
    case ENOENT:
    case ENOTDIR:
        return US_E_NOT_FOUND;
    case ENOSPC:
    case EDQUOT:
        return US_E_DISK_FULL;
    case ENOMEM:
        return US_E_NOMEM;
    default:
        return US_E_IO;
    }
}

static enum us_status check_target(const char *path, const char *input, struct us_err *err)
{
    size_t n = strlen(path);
    if (n == 0 || path[n - 1] == '/')
        return us_fail(err, US_E_ARG, "'%s': expected the name of a file to write", path);
    struct stat st;
    if (stat(path, &st) != 0)
        return US_OK; /* new, or creating the temporary file will say what is wrong */
    if (!S_ISREG(st.st_mode))
        return us_fail(err, US_E_ARG, "%s: is not a regular file, expected one or a new name",
                       path);
    struct stat in;
    if (input != NULL && stat(input, &in) == 0 && in.st_dev == st.st_dev && in.st_ino == st.st_ino)
        return us_fail(err, US_E_ARG, "%s: is the input itself, expected another name", path);
    return US_OK;
}

/* "FOLDER/.usplit-RANDOM.tmp" beside path; caller frees. */
static char *tmp_name(const char *path)
{
    uint64_t r = 0;
    if (getrandom(&r, sizeof(r), 0) != (ssize_t)sizeof(r))
        return NULL;
    const char *slash = strrchr(path, '/');
    int folder = slash == NULL ? 0 : (int)(slash - path) + 1;
    char *tmp = NULL;
    if (asprintf(&tmp, "%.*s.usplit-%016" PRIx64 ".tmp", folder, path, r) < 0)
        return NULL;
    return tmp;
}

enum us_status us_outfile_begin(struct us_outfile *o, const char *path, const char *input,
                                struct us_err *err)
{
    *o = (struct us_outfile){0};
    US_TRY(check_target(path, input, err));
    o->path = strdup(path);
    o->tmp = tmp_name(path);
    if (o->path == NULL || o->tmp == NULL) {
        us_outfile_abandon(o);
        return us_fail(err, US_E_NOMEM, "%s: no memory for its name", path);
    }
    /* Mode 0666: the user's umask decides, as for any file that a program writes. */
    int fd = open(o->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
        int e = errno;
        free(o->tmp); /* not ours to unlink */
        o->tmp = NULL;
        us_outfile_abandon(o);
        return us_fail(err, status_of_errno(e), "%s: cannot be written: %s", path, strerror(e));
    }
    (void)close(fd);
    return US_OK;
}

/* So that the new name survives a power cut. Some file systems cannot sync a folder; the content
 * is safe by then, hence no error. */
static void sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == NULL   ? strdup(".")
                   : slash == path ? strdup("/")
                                   : strndup(path, (size_t)(slash - path));
    if (folder == NULL)
        return;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    if (fd < 0)
        return;
    (void)fsync(fd);
    (void)close(fd);
}

enum us_status us_outfile_commit(struct us_outfile *o, struct us_err *err)
{
    if (rename(o->tmp, o->path) != 0) {
        int e = errno;
        (void)us_fail(err, status_of_errno(e), "%s: cannot be written: %s", o->path, strerror(e));
        us_outfile_abandon(o);
        return status_of_errno(e);
    }
    sync_folder(o->path);
    free(o->tmp);
    o->tmp = NULL;
    us_outfile_abandon(o);
    return US_OK;
}

void us_outfile_abandon(struct us_outfile *o)
{
    if (o->tmp != NULL)
        (void)unlink(o->tmp);
    free(o->tmp);
    free(o->path);
    *o = (struct us_outfile){0};
}
