/*
 * Reading model files: safetensors with our metadata (model-file.md).
 *
 * The file is read once, front to back, and hashed on the way; it is never mapped, because a file
 * that shrinks under a mapping kills the process. Header, metadata and the list of tensors are
 * checked before the parameter blocks are allocated. Weights are widened to float32 exactly, and
 * a weight that is not finite is refused.
 */
#include "us_model_file.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nettle/sha2.h>

#include "math/us_bf16_math.h"

#define PIECE_BYTES (64 << 10) /* of a tensor, read at a time */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are read as they lie in a file");

/* Bytes that come from a file or from memory, once, in order. */
struct source {
    int fd; /* -1: memory */
    const unsigned char *mem;
    int64_t size, at;
    struct sha256_ctx hash;
};

static enum us_status read_some(struct source *s, void *out, size_t n, struct us_err *err)
{
    size_t got = 0;
    while (got < n) {
        ssize_t r = read(s->fd, (char *)out + got, n - got);
        if (r < 0 && errno == EINTR)
            continue;
        if (r < 0)
            return us_fail(err, US_E_IO, "reading at byte %lld: %s",
                           (long long)(s->at + (int64_t)got), strerror(errno));
        if (r == 0)
            return us_fail(err, US_E_IO,
                           "the file ends at byte %lld; it had %lld when it was opened",
                           (long long)(s->at + (int64_t)got), (long long)s->size);
        got += (size_t)r;
    }
    return US_OK;
}

/* The next n bytes; the caller has compared n with s->size. */
static enum us_status source_read(struct source *s, void *out, size_t n, struct us_err *err)
{
    US_ASSERT(n <= (uint64_t)(s->size - s->at));
    if (s->fd < 0)
        memcpy(out, s->mem + s->at, n);
    else
        US_TRY(read_some(s, out, n, err));
    sha256_update(&s->hash, n, out);
    s->at += (int64_t)n;
    return US_OK;
}

/* After the last byte: nothing more may have come. */
static enum us_status source_finish(struct source *s, char sha256[65], struct us_err *err)
{
    char more;
    US_ASSERT(s->at == s->size);
    if (s->fd >= 0 && read(s->fd, &more, 1) > 0)
        return us_fail(err, US_E_IO, "the file grew while it was read; it had %lld bytes",
                       (long long)s->size);
    usi_hash_text(&s->hash, sha256);
    return US_OK;
}

void usi_hash_text(struct sha256_ctx *hash, char text[65])
{
    uint8_t digest[SHA256_DIGEST_SIZE];
    sha256_digest(hash, sizeof(digest), digest);
    for (size_t i = 0; i < sizeof(digest); i++)
        (void)snprintf(text + 2 * i, 3, "%02x", digest[i]);
}

/* ---- tensors ------------------------------------------------------------------------------- */

/* binary16 to float32, exact: 1 sign, 5 exponent (bias 15), 10 mantissa bits. */
static float f32_of_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, m = h & 0x3ffu;
    if (exponent == 0) /* zero or subnormal: m * 2^-24 */
        return us_float_of_bits(us_bits_of_float((float)m * 0x1p-24f) | sign);
    if (exponent == 31) /* infinity or NaN */
        return us_float_of_bits(sign | 0x7f800000u | m << 13);
    return us_float_of_bits(sign | (exponent + 127 - 15) << 23 | m << 13);
}

void usi_widen(enum usi_dtype dtype, const void *raw, float *out, size_t n)
{
    const uint16_t *half = raw;
    if (dtype == USI_F32) {
        memcpy(out, raw, n * sizeof(*out));
        return;
    }
    for (size_t i = 0; i < n; i++)
        out[i] = dtype == USI_BF16 ? us_f32_of_bf16(half[i]) : f32_of_f16(half[i]);
}

enum us_status usi_check_finite(const float *x, size_t n, const char *name, int64_t first,
                                struct us_err *err)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++)
        bad |= (us_bits_of_float(x[i]) & 0x7f800000u) == 0x7f800000u;
    for (size_t i = 0; bad != 0 && i < n; i++) {
        if (!isfinite(x[i]))
            return us_fail(err, US_E_FORMAT,
                           "tensor %s: element %lld is %g; expected a finite number", name,
                           (long long)first + (long long)i, (double)x[i]);
    }
    return US_OK;
}

struct loader {
    struct source src;
    struct us_model *m;
    struct usi_header header;
    bool *filled; /* by parameter: its data stand in the block */
    _Alignas(8) unsigned char raw[PIECE_BYTES];
    float wide[PIECE_BYTES / 2]; /* of the narrowest type */
};

static enum us_status read_counter(struct loader *l, const struct us_param *p, bool again,
                                   struct us_err *err)
{
    int64_t v;
    US_TRY(source_read(&l->src, &v, sizeof(v), err));
    if (v < 0)
        return us_fail(err, US_E_FORMAT, "tensor %s is %lld; expected 0 or more", p->name,
                       (long long)v);
    int64_t *out = l->m->counters + p->offset;
    if (again && *out != v)
        return us_fail(err, US_E_FORMAT, "tensor %s is %lld; under its other name it is %lld",
                       p->name, (long long)v, (long long)*out);
    *out = v;
    return US_OK;
}

/* Reads a tensor to its place. again: the other name of the same data was read before (lowres_net,
 * spec 11.1); then the content must be the same. */
static enum us_status read_floats(struct loader *l, const struct usi_tensor *t,
                                  const struct us_param *p, bool again, struct us_err *err)
{
    size_t bytes = (size_t)usi_dtype_bytes(t->dtype);
    float *out = l->m->weights + p->offset;
    for (int64_t at = 0; at < t->count;) {
        size_t n = PIECE_BYTES / bytes;
        if ((int64_t)n > t->count - at)
            n = (size_t)(t->count - at);
        US_TRY(source_read(&l->src, l->raw, n * bytes, err));
        usi_widen(t->dtype, l->raw, l->wide, n);
        US_TRY(usi_check_finite(l->wide, n, p->name, at, err));
        if (again && memcmp(out + at, l->wide, n * sizeof(*out)) != 0)
            return us_fail(err, US_E_FORMAT,
                           "tensor %s differs from what stands under its other name (net and "
                           "lowres_net share their weights)",
                           p->name);
        memcpy(out + at, l->wide, n * sizeof(*out));
        at += (int64_t)n;
    }
    return US_OK;
}

static enum us_status read_tensors(struct loader *l, struct us_err *err)
{
    l->filled = calloc((size_t)l->m->net->n_params, sizeof(*l->filled));
    if (l->filled == NULL)
        return us_fail(err, US_E_NOMEM, "no memory to read %d tensors", l->header.n_tensors);
    for (int32_t i = 0; i < l->header.n_tensors; i++) {
        const struct usi_tensor *t = &l->header.tensors[i];
        const struct us_param *p = &l->m->net->params[t->param];
        bool *filled = &l->filled[p->alias_of >= 0 ? p->alias_of : t->param];
        US_TRY(p->kind == US_PARAM_BN_COUNT ? read_counter(l, p, *filled, err)
                                            : read_floats(l, t, p, *filled, err));
        *filled = true;
    }
    return US_OK;
}

/* ---- the file ------------------------------------------------------------------------------ */

static enum us_status read_header_length(struct source *s, int64_t *ret, struct us_err *err)
{
    uint64_t n;
    if (s->size < (int64_t)sizeof(n))
        return us_fail(err, US_E_FORMAT, "the file has %lld bytes; a model has at least 8",
                       (long long)s->size);
    US_TRY(source_read(s, &n, sizeof(n), err));
    if (n > (uint64_t)(s->size - s->at))
        return us_fail(err, US_E_FORMAT,
                       "not a safetensors file, or cut: the header would have %llu bytes; the file "
                       "has %lld",
                       (unsigned long long)n, (long long)s->size);
    if (n > US_MAX_MODEL_HEADER_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "the header has %llu bytes; expected at most %lld",
                       (unsigned long long)n, US_MAX_MODEL_HEADER_BYTES);
    *ret = (int64_t)n;
    return US_OK;
}

static enum us_status read_header(struct loader *l, struct us_err *err)
{
    int64_t n = 0;
    US_TRY(read_header_length(&l->src, &n, err));
    char *text = malloc((size_t)n + 1);
    if (text == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a header of %lld bytes", (long long)n);
    enum us_status s = source_read(&l->src, text, (size_t)n, err);
    if (s != US_OK) {
        free(text);
        return s;
    }
    text[n] = '\0';
    return usi_header_parse(text, (size_t)n, l->src.size - l->src.at, &l->header, err);
}

/* The model that the metadata describe, without its parameter blocks. */
static enum us_status describe_model(struct loader *l, struct us_err *err)
{
    struct us_model plain = {0};
    US_TRY(usi_meta_read(l->header.usplit, &plain, err));
    struct us_err why = {0};
    enum us_status s = usi_model_alloc(&plain.arch, plain.patch_size, &l->m, &why);
    if (s != US_OK)
        return us_fail(err, s == US_E_ARG ? US_E_FORMAT : s, "architecture: %s", why.msg);
    plain.net = l->m->net;
    *l->m = plain;
    l->m->extra_json = strdup(l->header.usplit);
    if (l->m->extra_json == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the metadata");
    return US_OK;
}

static enum us_status load(struct loader *l, struct us_err *err)
{
    if (l->src.size > US_MAX_MODEL_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "the file has %lld bytes; expected at most %lld",
                       (long long)l->src.size, US_MAX_MODEL_BYTES);
    sha256_init(&l->src.hash);
    US_TRY(read_header(l, err));
    US_TRY(describe_model(l, err));
    US_TRY(usi_header_match(&l->header, l->m, err));
    US_TRY(usi_model_alloc_blocks(l->m, err));
    US_TRY(read_tensors(l, err));
    return source_finish(&l->src, l->m->sha256, err);
}

static enum us_status load_source(int fd, const void *mem, int64_t size, struct us_model **ret,
                                  struct us_err *err)
{
    struct loader *l = calloc(1, sizeof(*l));
    if (l == NULL)
        return us_fail(err, US_E_NOMEM, "no memory to read a model");
    l->src.fd = fd;
    l->src.mem = mem;
    l->src.size = size;
    enum us_status s = load(l, err);
    if (s == US_OK)
        *ret = l->m;
    else
        us_model_free(l->m);
    usi_header_release(&l->header);
    free(l->filled);
    free(l);
    return s;
}

enum us_status us_model_parse(const void *bytes, size_t n_bytes, struct us_model **ret,
                              struct us_err *err)
{
    if (n_bytes > (uint64_t)US_MAX_MODEL_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "a model of %zu bytes; expected at most %lld", n_bytes,
                       US_MAX_MODEL_BYTES);
    return load_source(-1, bytes, (int64_t)n_bytes, ret, err);
}

/* O_NONBLOCK: opening a FIFO by mistake must not hang. */
static enum us_status open_file(const char *path, int *ret_fd, int64_t *ret_size,
                                struct us_err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return us_fail(err, errno == ENOENT || errno == ENOTDIR ? US_E_NOT_FOUND : US_E_IO, "%s",
                       strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0) {
        enum us_status s = us_fail(err, US_E_IO, "%s", strerror(errno));
        (void)close(fd);
        return s;
    }
    if (!S_ISREG(st.st_mode)) {
        (void)close(fd);
        return us_fail(err, US_E_FORMAT, "not a regular file");
    }
    *ret_fd = fd;
    *ret_size = st.st_size;
    return US_OK;
}

enum us_status us_model_load(const char *path, struct us_model **ret, struct us_err *err)
{
    int fd = -1;
    int64_t size = 0;
    enum us_status s = open_file(path, &fd, &size, err);
    if (s == US_OK) {
        s = load_source(fd, NULL, size, ret, err);
        (void)close(fd);
    }
    if (s != US_OK)
        us_err_prefix(err, "model %s", path);
    return s;
}
