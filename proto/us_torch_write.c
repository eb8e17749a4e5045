/*
 * Writing a state dictionary as torch.save does (us_torch.h, model-spec 12): a zip of stored
 * members in a folder "archive", a pickle of protocol 2, raw storages at multiples of 64 bytes. The
 * zip is plain: sizes and checksums stand in both headers, no zip64.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zlib.h>

#include "us_torch.h"

#define FOLDER      "archive/"
#define ALIGN       64
#define ENTRY_BYTES 46
#define LOCAL_BYTES 30
#define END_BYTES   22
#define MAX_BYTES   0xfffffffell /* of a zip without zip64 */
#define MAX_MEMBERS 0xfffe
#define DOS_DATE    0x0021 /* 1980-01-01: the same tensors give the same bytes */
#define EXTRA_PAD   0x4246 /* "FB", the padding field that torch.save writes */
#define ZIP_VERSION 10

/* Bytes that grow; after a failed allocation everything is ignored and `failed` stays set. */
struct buffer {
    unsigned char *p;
    size_t n, cap;
    bool failed;
};

static void put(struct buffer *b, const void *bytes, size_t n)
{
    if (b->cap - b->n < n && !b->failed) {
        size_t cap = b->cap * 2 + n + 256;
        unsigned char *p = realloc(b->p, cap);
        if (p == NULL)
            b->failed = true;
        else
            b->p = p;
        b->cap = p == NULL ? b->cap : cap;
    }
    if (b->failed || n == 0)
        return;
    memcpy(b->p + b->n, bytes, n);
    b->n += n;
}

static void put_le(struct buffer *b, uint64_t x, size_t n)
{
    unsigned char bytes[8];
    for (size_t i = 0; i < n; i++)
        bytes[i] = (unsigned char)(x >> (8 * i));
    put(b, bytes, n);
}

static void put_text(struct buffer *b, const char *s)
{
    put(b, s, strlen(s));
}

/* ---- the pickle ---------------------------------------------------------------------------- */

/* BINUNICODE */
static void pickle_text(struct buffer *b, const char *s)
{
    put_text(b, "X");
    put_le(b, strlen(s), 4);
    put_text(b, s);
}

/* BININT1, BININT, LONG1 */
static void pickle_int(struct buffer *b, int64_t x)
{
    if (x < 256) {
        put_text(b, "K");
        put_le(b, (uint64_t)x, 1);
    } else if (x <= INT32_MAX) {
        put_text(b, "J");
        put_le(b, (uint64_t)x, 4);
    } else {
        put_text(b, "\x8a\x08");
        put_le(b, (uint64_t)x, 8);
    }
}

static void pickle_dims(struct buffer *b, const int64_t *dim, int32_t n)
{
    put_text(b, n == 0 ? ")" : "(");
    for (int32_t i = 0; i < n; i++)
        pickle_int(b, dim[i]);
    if (n > 0)
        put_text(b, "t");
}

static int64_t count_of(const struct us_torch_out *t)
{
    int64_t n = 1;
    for (int32_t i = 0; i < t->ndim; i++)
        n *= t->dim[i];
    return n;
}

static void pickle_tensor(struct buffer *b, const struct us_torch_out *t, int32_t storage)
{
    char key[16];
    int64_t stride[US_MAX_TORCH_DIMS], step = 1;
    for (int32_t i = t->ndim - 1; i >= 0; i--) {
        stride[i] = step;
        step *= t->dim[i];
    }
    (void)snprintf(key, sizeof(key), "%d", (int)storage);
    put_text(b, "ctorch._utils\n_rebuild_tensor_v2\n((");
    pickle_text(b, "storage");
    put_text(b, t->dtype == US_TORCH_I64 ? "ctorch\nLongStorage\n" : "ctorch\nFloatStorage\n");
    pickle_text(b, key);
    pickle_text(b, "cpu");
    pickle_int(b, count_of(t));
    put_text(b, "tQ"); /* the tuple is a persistent id */
    pickle_int(b, 0);
    pickle_dims(b, t->dim, t->ndim);
    pickle_dims(b, stride, t->ndim);
    put_text(b, "\x89"
                "ccollections\nOrderedDict\n)RtR");
}

static void pickle_all(struct buffer *b, const struct us_torch_out *tensors, int32_t n,
                       bool wrapped)
{
    put_text(b, "\x80\x02");
    if (wrapped) {
        put_text(b, "}");
        pickle_text(b, "state_dict");
    }
    put_text(b, "ccollections\nOrderedDict\n)R(");
    for (int32_t i = 0; i < n; i++) {
        pickle_text(b, tensors[i].name);
        pickle_tensor(b, &tensors[i], tensors[i].same_as >= 0 ? tensors[i].same_as : i);
    }
    put_text(b, wrapped ? "us." : "u.");
}

/* ---- the zip ------------------------------------------------------------------------------- */

struct writer {
    int fd;
    int64_t at;
    struct buffer directory;
    int32_t n;
    struct us_err *err;
};

static enum us_status write_all(struct writer *w, const void *bytes, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t r = write(w->fd, (const char *)bytes + at, n - at);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return us_fail(w->err, errno == ENOSPC || errno == EDQUOT ? US_E_DISK_FULL : US_E_IO,
                           "writing: %s", strerror(errno));
        at += (size_t)r;
    }
    w->at += (int64_t)n;
    return US_OK;
}

/* What local header and directory entry have in common, from "version needed" on. */
static void put_common(struct buffer *b, uint32_t crc, size_t n, size_t n_name, size_t n_extra)
{
    put_le(b, ZIP_VERSION, 2);
    put_le(b, 0, 2); /* flags */
    put_le(b, 0, 2); /* stored */
    put_le(b, 0, 2); /* time */
    put_le(b, DOS_DATE, 2);
    put_le(b, crc, 4);
    put_le(b, n, 4);
    put_le(b, n, 4);
    put_le(b, n_name, 2);
    put_le(b, n_extra, 2);
}

static uint32_t checksum(const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    uLong crc = crc32(0, NULL, 0);
    for (size_t at = 0; at < n;) {
        size_t piece = n - at < (1u << 30) ? n - at : 1u << 30;
        crc = crc32(crc, p + at, (uInt)piece);
        at += piece;
    }
    return (uint32_t)crc;
}

/* Padding that brings the data to a multiple of ALIGN; a field needs four bytes for itself. */
static size_t padding(int64_t at, size_t n_name)
{
    size_t data = (size_t)at + LOCAL_BYTES + n_name + 4;
    return 4 + (ALIGN - data % ALIGN) % ALIGN;
}

static enum us_status write_member(struct writer *w, const char *name, const void *bytes, size_t n)
{
    static const char zeros[ALIGN];
    char full[US_MAX_TORCH_NAME];
    struct buffer h = {0};
    int n_name = snprintf(full, sizeof(full), FOLDER "%s", name);
    size_t n_extra = padding(w->at, (size_t)n_name);
    uint32_t crc = checksum(bytes, n);
    if ((int64_t)n > MAX_BYTES - w->at || w->n == MAX_MEMBERS)
        return us_fail(w->err, US_E_TOO_LARGE,
                       "the checkpoint would have over %lld bytes or %d "
                       "members; write a .safetensors instead",
                       MAX_BYTES, MAX_MEMBERS);
    put(&h, "PK\003\004", 4);
    put_common(&h, crc, n, (size_t)n_name, n_extra);
    put(&h, full, (size_t)n_name);
    put_le(&h, EXTRA_PAD, 2);
    put_le(&h, n_extra - 4, 2);
    put(&h, zeros, n_extra - 4);
    struct buffer *d = &w->directory;
    put(d, "PK\001\002", 4);
    put_le(d, ZIP_VERSION, 2); /* made by */
    put_common(d, crc, n, (size_t)n_name, 0);
    put_le(d, 0, 2); /* comment */
    put_le(d, 0, 2); /* disk */
    put_le(d, 0, 2); /* internal attributes */
    put_le(d, 0, 4); /* external attributes */
    put_le(d, (uint64_t)w->at, 4);
    put(d, full, (size_t)n_name);
    w->n++;
    enum us_status s = h.failed || d->failed ? us_fail(w->err, US_E_NOMEM, "no memory for a zip")
                                             : write_all(w, h.p, h.n);
    free(h.p);
    return s == US_OK ? write_all(w, bytes, n) : s;
}

static enum us_status write_end(struct writer *w)
{
    struct buffer *d = &w->directory;
    int64_t at = w->at;
    size_t bytes = d->n;
    if (at + (int64_t)bytes > MAX_BYTES)
        return us_fail(w->err, US_E_TOO_LARGE,
                       "the checkpoint would have over %lld bytes; write a "
                       ".safetensors instead",
                       MAX_BYTES);
    put(d, "PK\005\006", 4);
    put_le(d, 0, 2);
    put_le(d, 0, 2);
    put_le(d, (uint64_t)w->n, 2);
    put_le(d, (uint64_t)w->n, 2);
    put_le(d, bytes, 4);
    put_le(d, (uint64_t)at, 4);
    put_le(d, 0, 2);
    if (d->failed)
        return us_fail(w->err, US_E_NOMEM, "no memory for a zip directory");
    return write_all(w, d->p, d->n);
}

static enum us_status write_zip(struct writer *w, const struct us_torch_out *tensors, int32_t n,
                                const struct buffer *pickle)
{
    char name[32];
    US_TRY(write_member(w, "data.pkl", pickle->p, pickle->n));
    US_TRY(write_member(w, "byteorder", "little", 6));
    for (int32_t i = 0; i < n; i++) {
        if (tensors[i].same_as >= 0)
            continue;
        (void)snprintf(name, sizeof(name), "data/%d", (int)i);
        US_TRY(
            write_member(w, name, tensors[i].data,
                         (size_t)(count_of(&tensors[i]) * us_torch_dtype_bytes(tensors[i].dtype))));
    }
    US_TRY(write_member(w, "version", "3\n", 2));
    return write_end(w);
}

enum us_status us_torch_write(int fd, const struct us_torch_out *tensors, int32_t n, bool wrapped,
                              struct us_err *err)
{
    struct writer w = {.fd = fd, .err = err};
    struct buffer pickle = {0};
    pickle_all(&pickle, tensors, n, wrapped);
    enum us_status s = pickle.failed ? us_fail(err, US_E_NOMEM, "no memory for the pickle")
                                     : write_zip(&w, tensors, n, &pickle);
    free(pickle.p);
    free(w.directory.p);
    return s;
}
