/*
 * Checkpoint files (us_checkpoint.h). Reading verifies the checksum of the whole file before any
 * section is copied; sizes are the reader's, so a hostile file cannot ask for memory.
 */
#include "us_checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <nettle/sha2.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC   "USPLCKPT"
#define VERSION 1
#define ALIGN   64
#define PIECE   (1 << 20)

struct head {
    char magic[8];
    uint32_t version, n_sections;
    uint64_t file_bytes;
};

struct entry {
    char name[US_CHECKPOINT_NAME_BYTES];
    uint64_t offset, bytes;
};

static uint64_t aligned(uint64_t x)
{
    return (x + ALIGN - 1) / ALIGN * ALIGN;
}

static enum us_status fail_io(struct us_err *err, const char *path, const char *what)
{
    int e = errno;
    if (e == ENOSPC || e == EDQUOT)
        return us_fail(err, US_E_DISK_FULL,
                       "%s: %s: %s; the checkpoint before it is kept: make room, then resume", path,
                       what, strerror(e));
    return us_fail(err, US_E_IO, "%s: %s: %s", path, what, strerror(e));
}

/* ---- writing ------------------------------------------------------------------------------- */

struct writer {
    int fd;
    uint64_t at;
    struct sha256_ctx sha;
};

static bool put(struct writer *w, const void *bytes, size_t n)
{
    sha256_update(&w->sha, n, bytes);
    w->at += n;
    for (const char *p = bytes; n > 0;) {
        ssize_t k = write(w->fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return false;
        p += k;
        n -= (size_t)k;
    }
    return true;
}

static bool pad(struct writer *w)
{
    static const char zeros[ALIGN];
    return put(w, zeros, (size_t)(aligned(w->at) - w->at));
}

static bool write_all(int fd, const struct us_checkpoint_section *s, int n)
{
    struct writer w = {.fd = fd};
    sha256_init(&w.sha);
    struct head h = {MAGIC, VERSION, (uint32_t)n, 0};
    memcpy(h.magic, MAGIC, sizeof(h.magic));
    uint64_t offset = aligned(sizeof(h) + (uint64_t)n * sizeof(struct entry)), end = offset;
    for (int i = 0; i < n; i++)
        end = aligned(end + s[i].bytes);
    h.file_bytes = end + SHA256_DIGEST_SIZE;
    bool ok = put(&w, &h, sizeof(h));
    for (int i = 0; i < n && ok; i++) {
        struct entry e = {.offset = offset, .bytes = s[i].bytes};
        (void)snprintf(e.name, sizeof(e.name), "%s", s[i].name);
        ok = put(&w, &e, sizeof(e));
        offset = aligned(offset + s[i].bytes);
    }
    ok = ok && pad(&w);
    for (int i = 0; i < n && ok; i++)
        ok = put(&w, s[i].data, s[i].bytes) && pad(&w);
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(&w.sha, sizeof(digest), digest);
    return ok && put(&w, digest, sizeof(digest)) && fsync(fd) == 0;
}

static enum us_status sync_folder(const char *path, struct us_err *err)
{
    char *folder = strdup(path);
    if (folder == NULL)
        return us_fail(err, US_E_NOMEM, "%s: out of memory", path);
    char *slash = strrchr(folder, '/');
    if (slash != NULL)
        slash[slash == folder ? 1 : 0] = '\0';
    int fd = open(slash != NULL ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    bool ok = fd >= 0 && fsync(fd) == 0;
    if (fd >= 0)
        (void)close(fd);
    return ok ? US_OK : fail_io(err, path, "syncing its folder");
}

enum us_status us_checkpoint_write(const char *path, const char *previous,
                                   const struct us_checkpoint_section *s, int n, struct us_err *err)
{
    US_ASSERT(n <= US_CHECKPOINT_MAX_SECTIONS);
    size_t room = strlen(path) + 16;
    char *tmp = malloc(room);
    if (tmp == NULL)
        return us_fail(err, US_E_NOMEM, "%s: out of memory", path);
    (void)snprintf(tmp, room, "%s.writing", path);
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    enum us_status status = fd < 0 ? fail_io(err, tmp, "creating") : US_OK;
    if (status == US_OK && !write_all(fd, s, n))
        status = fail_io(err, tmp, "writing");
    if (fd >= 0 && close(fd) != 0 && status == US_OK)
        status = fail_io(err, tmp, "closing");
    if (status == US_OK && previous != NULL && rename(path, previous) != 0 && errno != ENOENT)
        status = fail_io(err, path, "keeping the previous one");
    if (status == US_OK && rename(tmp, path) != 0)
        status = fail_io(err, path, "renaming");
    if (status != US_OK && fd >= 0)
        (void)unlink(tmp);
    free(tmp);
    return status == US_OK ? sync_folder(path, err) : status;
}

/* ---- reading ------------------------------------------------------------------------------- */

static bool get(int fd, uint64_t offset, void *out, size_t n)
{
    for (char *p = out; n > 0;) {
        ssize_t k = pread(fd, p, n, (off_t)offset);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0)
            return false;
        p += k;
        offset += (uint64_t)k;
        n -= (size_t)k;
    }
    return true;
}

static enum us_status verify(int fd, const char *path, uint64_t bytes, struct us_err *err)
{
    struct sha256_ctx sha;
    sha256_init(&sha);
    uint8_t *piece = malloc(PIECE), found[SHA256_DIGEST_SIZE], want[SHA256_DIGEST_SIZE];
    if (piece == NULL)
        return us_fail(err, US_E_NOMEM, "%s: out of memory", path);
    uint64_t end = bytes - sizeof(want);
    bool ok = true;
    for (uint64_t at = 0; at < end && ok;) {
        size_t n = end - at < PIECE ? (size_t)(end - at) : PIECE;
        ok = get(fd, at, piece, n);
        if (ok)
            sha256_update(&sha, n, piece);
        at += n;
    }
    free(piece);
    sha256_digest(&sha, sizeof(found), found);
    if (!ok || !get(fd, end, want, sizeof(want)))
        return us_fail(err, US_E_IO, "%s: cannot be read to its end", path);
    if (memcmp(found, want, sizeof(want)) != 0)
        return us_fail(err, US_E_CORRUPT, "%s: its checksum does not match its content", path);
    return US_OK;
}

static enum us_status check_head(int fd, const char *path, uint64_t *ret_bytes, int *ret_sections,
                                 struct us_err *err)
{
    struct stat st;
    struct head h;
    if (fstat(fd, &st) != 0)
        return fail_io(err, path, "examining");
    uint64_t least = sizeof(h) + SHA256_DIGEST_SIZE;
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size < least || !get(fd, 0, &h, sizeof(h)) ||
        memcmp(h.magic, MAGIC, sizeof(h.magic)) != 0)
        return us_fail(err, US_E_FORMAT, "%s: not a usplit checkpoint", path);
    if (h.version != VERSION)
        return us_fail(err, US_E_UNSUPPORTED, "%s: checkpoint version %u; expected %d", path,
                       h.version, VERSION);
    if (h.file_bytes != (uint64_t)st.st_size)
        return us_fail(err, US_E_CORRUPT, "%s: %lld bytes; its header says %llu", path,
                       (long long)st.st_size, (unsigned long long)h.file_bytes);
    if (h.n_sections > US_CHECKPOINT_MAX_SECTIONS)
        return us_fail(err, US_E_FORMAT, "%s: %u sections; expected at most %d", path, h.n_sections,
                       US_CHECKPOINT_MAX_SECTIONS);
    *ret_bytes = h.file_bytes;
    *ret_sections = (int)h.n_sections;
    return US_OK;
}

/* The table's entry of that name. */
static enum us_status find_entry(int fd, const char *path, int n_sections, const char *name,
                                 struct entry *ret, struct us_err *err)
{
    for (int i = 0; i < n_sections; i++) {
        if (!get(fd, sizeof(struct head) + (uint64_t)i * sizeof(*ret), ret, sizeof(*ret)))
            return us_fail(err, US_E_IO, "%s: cannot read its table", path);
        ret->name[sizeof(ret->name) - 1] = '\0';
        if (strcmp(ret->name, name) == 0)
            return US_OK;
    }
    return us_fail(err, US_E_UNSUPPORTED, "%s: no section %s; made by another version of usplit",
                   path, name);
}

/* Copies one section if its table entry is the expected one. */
static enum us_status read_section(int fd, const char *path, int n_sections,
                                   const struct us_checkpoint_section *s, bool copy,
                                   uint64_t file_bytes, struct us_err *err)
{
    struct entry e;
    US_TRY(find_entry(fd, path, n_sections, s->name, &e, err));
    if (e.bytes != s->bytes)
        return us_fail(err, US_E_ARG, "%s: section %s of %llu bytes; expected %zu", path, e.name,
                       (unsigned long long)e.bytes, s->bytes);
    if (e.offset > file_bytes || e.bytes > file_bytes - e.offset)
        return us_fail(err, US_E_FORMAT, "%s: section %s lies outside the file", path, e.name);
    if (copy && !get(fd, e.offset, s->data, s->bytes))
        return us_fail(err, US_E_IO, "%s: cannot read section %s", path, e.name);
    return US_OK;
}

enum us_status us_checkpoint_read(const char *path, const struct us_checkpoint_section *s, int n,
                                  struct us_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return us_fail(err, errno == ENOENT ? US_E_NOT_FOUND : US_E_IO, "%s: %s", path,
                       strerror(errno));
    uint64_t bytes = 0;
    int n_sections = 0;
    enum us_status status = check_head(fd, path, &bytes, &n_sections, err);
    if (status == US_OK)
        status = verify(fd, path, bytes, err);
    for (int copy = 0; copy < 2 && status == US_OK; copy++) {
        for (int i = 0; i < n && status == US_OK; i++)
            status = read_section(fd, path, n_sections, &s[i], copy == 1, bytes, err);
    }
    (void)close(fd);
    return status;
}
