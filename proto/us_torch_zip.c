/*
 * The zip archive of a PyTorch checkpoint (APPNOTE 6.3, model-spec 12): the directory at the end,
 * and each member's local header against it.
 *
 * Zip files say everything twice, and readers that believe different halves see different files.
 * Here both halves must agree, members must not overlap, and nothing may follow the directory: what
 * torch.save writes passes, tricks do not. Members are stored as they are; torch never compresses.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

#include "us_torch_int.h"

#define END_BYTES     22
#define LOCATOR_BYTES 20
#define END64_BYTES   56
#define ENTRY_BYTES   46
#define LOCAL_BYTES   30

#define SIG_END     0x06054b50u
#define SIG_LOCATOR 0x07064b50u
#define SIG_END64   0x06064b50u
#define SIG_ENTRY   0x02014b50u
#define SIG_LOCAL   0x04034b50u

#define EXTRA_ZIP64     1
#define FLAG_ENCRYPTED  (1u | 1u << 6 | 1u << 13)
#define FLAG_DESCRIPTOR (1u << 3) /* sizes follow the data; the local header may leave them out */
#define MARK32          0xffffffffu
#define MARK16          0xffffu

#define PIECE_BYTES (64 << 10)

static uint32_t le16(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t le32(const unsigned char *p)
{
    return le16(p) | le16(p + 2) << 16;
}

static uint64_t le64(const unsigned char *p)
{
    return le32(p) | (uint64_t)le32(p + 4) << 32;
}

enum us_status usi_pt_source_read(const struct usi_pt_source *s, int64_t at, void *out, size_t n,
                                  struct us_err *err)
{
    US_ASSERT(at >= 0 && at <= s->size && n <= (uint64_t)(s->size - at));
    if (s->fd < 0) {
        if (n > 0)
            memcpy(out, s->mem + at, n);
        return US_OK;
    }
    for (size_t got = 0; got < n;) {
        ssize_t r = pread(s->fd, (char *)out + got, n - got, at + (int64_t)got);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return us_fail(err, US_E_IO, "reading at byte %lld: %s", (long long)at + (long long)got,
                           r < 0 ? strerror(errno) : "the file became shorter");
        got += (size_t)r;
    }
    return US_OK;
}

/* ---- the end ------------------------------------------------------------------------------- */

struct directory {
    uint64_t n, at, bytes;
    int64_t end; /* where it must end */
};

static enum us_status not_zip(struct us_err *err, const char *why)
{
    return us_fail(err, US_E_FORMAT, "not a whole zip archive: %s", why);
}

/* A field of 16 or 32 bits that zip64 repeats must say the same or be all ones. */
static bool agrees(uint64_t narrow, uint64_t mark, uint64_t wide)
{
    return narrow == wide || narrow == mark;
}

static enum us_status read_end64(const struct usi_pt_source *s, const unsigned char *locator,
                                 const unsigned char *end, struct directory *d, struct us_err *err)
{
    unsigned char r[END64_BYTES];
    uint64_t at = le64(locator + 8);
    if (le32(locator + 4) != 0 || le32(locator + 16) != 1)
        return us_fail(err, US_E_UNSUPPORTED, "a zip archive in several parts");
    if (s->size < END_BYTES + LOCATOR_BYTES + END64_BYTES ||
        at != (uint64_t)(s->size - END_BYTES - LOCATOR_BYTES - END64_BYTES))
        return not_zip(err, "the zip64 record is not before its locator");
    US_TRY(usi_pt_source_read(s, (int64_t)at, r, sizeof(r), err));
    if (le32(r) != SIG_END64 || le64(r + 4) != END64_BYTES - 12)
        return not_zip(err, "the zip64 record is not one");
    if (le32(r + 16) != 0 || le32(r + 20) != 0 || le64(r + 24) != le64(r + 32))
        return us_fail(err, US_E_UNSUPPORTED, "a zip archive in several parts");
    d->n = le64(r + 32);
    d->bytes = le64(r + 40);
    d->at = le64(r + 48);
    d->end = (int64_t)at;
    if (!agrees(le16(end + 10), MARK16, d->n) || !agrees(le32(end + 12), MARK32, d->bytes) ||
        !agrees(le32(end + 16), MARK32, d->at))
        return not_zip(err, "its zip64 record contradicts its end record");
    return US_OK;
}

static enum us_status read_end(const struct usi_pt_source *s, struct directory *d,
                               struct us_err *err)
{
    unsigned char r[END_BYTES + LOCATOR_BYTES] = {0};
    if (s->size < END_BYTES)
        return not_zip(err, "it is too short");
    size_t have = s->size < (int64_t)sizeof(r) ? (size_t)s->size : sizeof(r);
    US_TRY(usi_pt_source_read(s, s->size - (int64_t)have, r + sizeof(r) - have, have, err));
    const unsigned char *end = r + LOCATOR_BYTES;
    if (le32(end) != SIG_END || le16(end + 20) != 0)
        return not_zip(err, "its directory is not at the end (cut, or something was appended)");
    if (le16(end + 4) != 0 || le16(end + 6) != 0 || le16(end + 8) != le16(end + 10))
        return us_fail(err, US_E_UNSUPPORTED, "a zip archive in several parts");
    if (le32(r) == SIG_LOCATOR) {
        US_TRY(read_end64(s, r, end, d, err));
    } else {
        d->n = le16(end + 10);
        d->bytes = le32(end + 12);
        d->at = le32(end + 16);
        d->end = s->size - END_BYTES;
        if (d->n == MARK16 || d->bytes == MARK32 || d->at == MARK32)
            return not_zip(err, "it refers to a zip64 record and has none");
    }
    if (d->n == 0 || d->n > US_MAX_TORCH_MEMBERS || d->bytes > US_MAX_TORCH_DIRECTORY_BYTES)
        return us_fail(err, d->n == 0 ? US_E_FORMAT : US_E_TOO_LARGE,
                       "a zip directory of %llu members in %llu bytes; expected 1 to %d in at most "
                       "%lld",
                       (unsigned long long)d->n, (unsigned long long)d->bytes, US_MAX_TORCH_MEMBERS,
                       US_MAX_TORCH_DIRECTORY_BYTES);
    if (d->at > (uint64_t)d->end || d->bytes != (uint64_t)d->end - d->at)
        return not_zip(err, "its directory is not where its end record says");
    return US_OK;
}

/* ---- members ------------------------------------------------------------------------------- */

/* The 64-bit fields of an entry: exactly those that the entry itself leaves open. */
static enum us_status read_zip64(const unsigned char *extra, size_t n, uint64_t *field[3],
                                 size_t n_open, const char *name, struct us_err *err)
{
    bool found = false;
    for (size_t at = 0; at < n;) {
        if (n - at < 4 || le16(extra + at + 2) > n - at - 4)
            return us_fail(err, US_E_FORMAT, "zip member %s: malformed extra field", name);
        size_t bytes = le16(extra + at + 2);
        const unsigned char *p = extra + at + 4;
        if (le16(extra + at) == EXTRA_ZIP64) {
            if (found || bytes != 8 * n_open)
                return us_fail(err, US_E_FORMAT,
                               "zip member %s: a zip64 field of %zu bytes; expected %zu", name,
                               bytes, found ? 0 : 8 * n_open);
            for (size_t i = 0; i < n_open; i++)
                *field[i] = le64(p + 8 * i);
            found = true;
        }
        at += 4 + bytes;
    }
    if (n_open > 0 && !found)
        return us_fail(err, US_E_FORMAT, "zip member %s refers to a zip64 field and has none",
                       name);
    return US_OK;
}

/* A plain relative path: nothing that leaves a folder, nothing that two systems read differently.
 */
static bool good_name(const char *name, size_t n)
{
    size_t part = 0;
    for (size_t i = 0; i <= n; i++) {
        unsigned char c = i < n ? (unsigned char)name[i] : '/';
        if (c < 0x20 || c == 0x7f || c == '\\' || c == ':')
            return false;
        if (c != '/')
            continue;
        size_t len = i - part;
        if (len == 0 || (len <= 2 && memcmp(name + part, "..", len) == 0))
            return false;
        part = i + 1;
    }
    return n > 0;
}

static enum us_status check_method(uint32_t flags, uint32_t method, const char *name,
                                   struct us_err *err)
{
    if ((flags & FLAG_ENCRYPTED) != 0)
        return us_fail(err, US_E_UNSUPPORTED, "zip member %s is encrypted", name);
    if (method != 0)
        return us_fail(err, US_E_UNSUPPORTED,
                       "zip member %s is compressed (method %u); torch.save stores its members as "
                       "they are",
                       name, (unsigned)method);
    return US_OK;
}

/* The entry at p, n bytes left in the directory; its name has been copied to m->name. */
static enum us_status read_entry(const unsigned char *p, const struct directory *d,
                                 struct usi_pt_member *m, struct us_err *err)
{
    uint32_t flags = le16(p + 8);
    US_TRY(check_method(flags, le16(p + 10), m->name, err));
    uint64_t stored = le32(p + 20), size = le32(p + 24), header = le32(p + 42);
    uint64_t *field[3];
    size_t n_open = 0;
    if (size == MARK32)
        field[n_open++] = &size;
    if (stored == MARK32)
        field[n_open++] = &stored;
    if (header == MARK32)
        field[n_open++] = &header;
    US_TRY(read_zip64(p + ENTRY_BYTES + le16(p + 28), le16(p + 30), field, n_open, m->name, err));
    if (le16(p + 34) != 0)
        return us_fail(err, US_E_UNSUPPORTED, "zip member %s is on another disk", m->name);
    if (size != stored)
        return us_fail(err, US_E_FORMAT,
                       "zip member %s: %llu bytes stored for %llu; expected as many", m->name,
                       (unsigned long long)stored, (unsigned long long)size);
    if (header > d->at || d->at - header < LOCAL_BYTES || size > d->at - header - LOCAL_BYTES)
        return us_fail(err, US_E_FORMAT,
                       "zip member %s, %llu bytes at %llu, lies outside of the archive", m->name,
                       (unsigned long long)size, (unsigned long long)header);
    m->header = (int64_t)header;
    m->size = (int64_t)size;
    m->crc = le32(p + 16);
    return US_OK;
}

/* A local size or checksum: the directory's, unless it stands elsewhere. */
static bool local_agrees(uint32_t local, uint64_t value, bool later)
{
    return local == (uint32_t)value || local == MARK32 || (later && local == 0);
}

/* The local header says the same; sets m->data. full: the name with its folder. */
static enum us_status check_local(const struct usi_pt_source *s, const struct directory *d,
                                  const unsigned char *entry, const char *full,
                                  struct usi_pt_member *m, struct us_err *err)
{
    unsigned char h[LOCAL_BYTES + US_MAX_TORCH_NAME];
    size_t n_name = le16(entry + 28);
    if ((uint64_t)m->header + LOCAL_BYTES + n_name > d->at)
        return us_fail(err, US_E_FORMAT, "zip member %s: its header is cut", full);
    US_TRY(usi_pt_source_read(s, m->header, h, LOCAL_BYTES + n_name, err));
    bool later = (le16(h + 6) & FLAG_DESCRIPTOR) != 0;
    if (le32(h) != SIG_LOCAL || le16(h + 6) != le16(entry + 8) || le16(h + 8) != le16(entry + 10) ||
        le16(h + 26) != n_name || memcmp(h + LOCAL_BYTES, full, n_name) != 0 ||
        !local_agrees(le32(h + 14), m->crc, later) ||
        !local_agrees(le32(h + 18), (uint64_t)m->size, later) ||
        !local_agrees(le32(h + 22), (uint64_t)m->size, later))
        return us_fail(err, US_E_FORMAT, "zip member %s: its header contradicts the directory",
                       full);
    m->data = m->header + LOCAL_BYTES + (int64_t)n_name + (int64_t)le16(h + 28);
    if (m->data > (int64_t)d->at || m->size > (int64_t)d->at - m->data)
        return us_fail(err, US_E_FORMAT, "zip member %s: its %lld bytes reach into the directory",
                       full, (long long)m->size);
    return US_OK;
}

/* ---- the directory ------------------------------------------------------------------------- */

struct reading {
    const struct usi_pt_source *s;
    const unsigned char *text;
    struct directory d;
    struct usi_pt_zip *z;
    size_t at, names; /* bytes used of text and of z->names */
};

static enum us_status read_member(struct reading *r, struct us_err *err)
{
    const unsigned char *p = r->text + r->at;
    size_t left = (size_t)r->d.bytes - r->at;
    if (left < ENTRY_BYTES || le32(p) != SIG_ENTRY)
        return not_zip(err, "its directory has fewer members than it says");
    size_t n_name = le16(p + 28), bytes = ENTRY_BYTES + n_name + le16(p + 30) + le16(p + 32);
    if (bytes > left)
        return not_zip(err, "its directory is cut");
    char *name = r->z->names + r->names;
    if (n_name >= US_MAX_TORCH_NAME || !good_name((const char *)p + ENTRY_BYTES, n_name))
        return us_fail(err, US_E_FORMAT,
                       "zip member %.*s: not a plain relative path of at most %d "
                       "bytes",
                       n_name < 100 ? (int)n_name : 100, (const char *)p + ENTRY_BYTES,
                       US_MAX_TORCH_NAME - 1);
    memcpy(name, p + ENTRY_BYTES, n_name);
    name[n_name] = '\0';
    struct usi_pt_member *m = &r->z->members[r->z->n];
    m->name = name;
    US_TRY(read_entry(p, &r->d, m, err));
    US_TRY(check_local(r->s, &r->d, p, name, m, err));
    r->z->n++;
    r->at += bytes;
    r->names += n_name + 1;
    return US_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct usi_pt_member *x = a, *y = b;
    return (x->header > y->header) - (x->header < y->header);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct usi_pt_member *)a)->name, ((const struct usi_pt_member *)b)->name);
}

static enum us_status check_places(struct usi_pt_zip *z, struct us_err *err)
{
    qsort(z->members, (size_t)z->n, sizeof(*z->members), by_place);
    if (z->members[0].header != 0)
        return not_zip(err, "something stands before its first member");
    for (int32_t i = 1; i < z->n; i++) {
        const struct usi_pt_member *m = &z->members[i];
        if (m->header < m[-1].data + m[-1].size)
            return us_fail(err, US_E_FORMAT, "zip members %s and %s overlap", m[-1].name, m->name);
    }
    return US_OK;
}

/* torch.save puts all members into one folder, whose name depends on the file's: it is dropped. */
static enum us_status strip_folder(struct usi_pt_zip *z, struct us_err *err)
{
    size_t n = strcspn(z->members[0].name, "/");
    for (int32_t i = 0; i < z->n; i++) {
        struct usi_pt_member *m = &z->members[i];
        if (strncmp(m->name, z->members[0].name, n) != 0 || m->name[n] != '/')
            return us_fail(err, US_E_FORMAT,
                           "not a PyTorch checkpoint: zip members %s and %s are not in one folder",
                           z->members[0].name, m->name);
    }
    for (int32_t i = 0; i < z->n; i++)
        z->members[i].name += n + 1;
    qsort(z->members, (size_t)z->n, sizeof(*z->members), by_name);
    for (int32_t i = 1; i < z->n; i++)
        if (by_name(&z->members[i - 1], &z->members[i]) == 0)
            return us_fail(err, US_E_FORMAT, "zip member %s is there twice", z->members[i].name);
    return US_OK;
}

static enum us_status read_directory(struct reading *r, struct us_err *err)
{
    for (uint64_t i = 0; i < r->d.n; i++)
        US_TRY(read_member(r, err));
    if (r->at != r->d.bytes)
        return not_zip(err, "its directory has more members than it says");
    US_TRY(check_places(r->z, err));
    return strip_folder(r->z, err);
}

enum us_status usi_pt_zip_read(const struct usi_pt_source *s, struct usi_pt_zip *z,
                               struct us_err *err)
{
    struct reading r = {.s = s, .z = z};
    *z = (struct usi_pt_zip){0};
    US_TRY(read_end(s, &r.d, err));
    /* Every member takes ENTRY_BYTES of the directory, so this follows from its size. */
    if (r.d.n > r.d.bytes / ENTRY_BYTES)
        return not_zip(err, "its directory has fewer members than it says");
    unsigned char *text = malloc((size_t)r.d.bytes);
    z->names = malloc((size_t)r.d.bytes);
    z->members = calloc((size_t)r.d.n, sizeof(*z->members));
    enum us_status st = US_OK;
    if (text == NULL || z->names == NULL || z->members == NULL)
        st = us_fail(err, US_E_NOMEM, "no memory for a zip directory of %llu bytes",
                     (unsigned long long)r.d.bytes);
    if (st == US_OK)
        st = usi_pt_source_read(s, (int64_t)r.d.at, text, (size_t)r.d.bytes, err);
    r.text = text;
    if (st == US_OK)
        st = read_directory(&r, err);
    free(text);
    return st;
}

void usi_pt_zip_release(struct usi_pt_zip *z)
{
    free(z->names);
    free(z->members);
    *z = (struct usi_pt_zip){0};
}

struct usi_pt_member *usi_pt_zip_find(const struct usi_pt_zip *z, const char *name)
{
    const struct usi_pt_member key = {.name = name};
    return bsearch(&key, z->members, (size_t)z->n, sizeof(*z->members), by_name);
}

enum us_status usi_pt_zip_verify(const struct usi_pt_source *s, struct usi_pt_member *m,
                                 struct us_err *err)
{
    unsigned char piece[PIECE_BYTES];
    uLong crc = crc32(0, NULL, 0);
    if (m->verified)
        return US_OK;
    for (int64_t at = 0; at < m->size;) {
        size_t n = m->size - at < PIECE_BYTES ? (size_t)(m->size - at) : PIECE_BYTES;
        US_TRY(usi_pt_source_read(s, m->data + at, piece, n, err));
        crc = crc32(crc, piece, (uInt)n);
        at += (int64_t)n;
    }
    if ((uint32_t)crc != m->crc)
        return us_fail(err, US_E_CORRUPT,
                       "zip member %s: CRC-32 is %08lx; the directory says %08lx (damaged file)",
                       m->name, (unsigned long)crc, (unsigned long)m->crc);
    m->verified = true;
    return US_OK;
}
