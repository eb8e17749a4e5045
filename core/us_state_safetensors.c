/*
 * A safetensors file as a dictionary of tensors (us_state_dict.h): the header is checked as a model
 * file's is (us_model_file_header.c), the bytes are read when they are asked for.
 */
#include "us_state_dict.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "us_model_file.h"

_Static_assert((int)US_STATE_F32 == (int)USI_F32 && (int)US_STATE_BF16 == (int)USI_BF16 &&
                   (int)US_STATE_F16 == (int)USI_F16 && (int)US_STATE_I64 == (int)USI_I64,
               "the types of model files come first");
_Static_assert(US_TENSOR_MAX_DIMS <= 8, "as many dimensions as us_state_tensor has");

struct us_safetensors {
    int fd;
    int64_t data; /* byte where the tensors begin */
    struct usi_header header;
    struct us_state_tensor *tensors;
    struct us_state_dict dict;
};

static enum us_status read_at(int fd, int64_t at, void *out, size_t n, struct us_err *err)
{
    for (size_t got = 0; got < n;) {
        ssize_t r = pread(fd, (char *)out + got, n - got, at + (int64_t)got);
        if (r < 0 && errno == EINTR)
            continue;
        if (r <= 0)
            return us_fail(err, US_E_IO, "reading at byte %lld: %s", (long long)at + (long long)got,
                           r < 0 ? strerror(errno) : "the file became shorter");
        got += (size_t)r;
    }
    return US_OK;
}

static enum us_status read_tensor(void *arg, int32_t i, void *out, struct us_err *err)
{
    const struct us_safetensors *s = arg;
    const struct usi_tensor *t = &s->header.tensors[i];
    return read_at(s->fd, s->data + t->begin, out, (size_t)(t->end - t->begin), err);
}

static enum us_status read_header(struct us_safetensors *s, int64_t size, struct us_err *err)
{
    uint64_t n = 0;
    if (size < (int64_t)sizeof(n))
        return us_fail(err, US_E_FORMAT,
                       "the file has %lld bytes; a safetensors file has at least "
                       "8",
                       (long long)size);
    US_TRY(read_at(s->fd, 0, &n, sizeof(n), err));
    if (n > (uint64_t)size - sizeof(n))
        return us_fail(err, US_E_FORMAT,
                       "not a safetensors file, or cut: the header would have %llu bytes; the file "
                       "has %lld",
                       (unsigned long long)n, (long long)size);
    if (n > US_MAX_MODEL_HEADER_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "the header has %llu bytes; expected at most %lld",
                       (unsigned long long)n, US_MAX_MODEL_HEADER_BYTES);
    char *text = malloc((size_t)n + 1);
    if (text == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a header of %llu bytes",
                       (unsigned long long)n);
    enum us_status st = read_at(s->fd, sizeof(n), text, (size_t)n, err);
    if (st != US_OK) {
        free(text);
        return st;
    }
    text[n] = '\0';
    s->data = (int64_t)(sizeof(n) + n);
    return usi_header_parse_plain(text, (size_t)n, size - s->data, &s->header, err);
}

static enum us_status list_tensors(struct us_safetensors *s, struct us_err *err)
{
    int32_t n = s->header.n_tensors;
    s->tensors = calloc((size_t)n + 1, sizeof(*s->tensors));
    if (s->tensors == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %d tensors", (int)n);
    for (int32_t i = 0; i < n; i++) {
        const struct usi_tensor *t = &s->header.tensors[i];
        struct us_state_tensor *x = &s->tensors[i];
        x->name = t->name;
        x->type = (enum us_state_type)t->dtype;
        x->type_name = usi_dtype_name(t->dtype);
        x->ndim = t->ndim;
        memcpy(x->dim, t->dim, (size_t)t->ndim * sizeof(*t->dim));
        x->count = t->count;
    }
    s->dict.tensor = s->tensors;
    s->dict.n = n;
    s->dict.read = read_tensor;
    s->dict.arg = s;
    return US_OK;
}

/* O_NONBLOCK: opening a FIFO by mistake must not hang. */
static enum us_status open_file(const char *path, struct us_safetensors *s, struct us_err *err)
{
    struct stat st;
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (s->fd < 0)
        return us_fail(err, errno == ENOENT || errno == ENOTDIR ? US_E_NOT_FOUND : US_E_IO, "%s",
                       strerror(errno));
    if (fstat(s->fd, &st) != 0)
        return us_fail(err, US_E_IO, "%s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return us_fail(err, US_E_FORMAT, "not a regular file");
    if (st.st_size > US_MAX_MODEL_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "the file has %lld bytes; expected at most %lld",
                       (long long)st.st_size, US_MAX_MODEL_BYTES);
    s->dict.bytes = st.st_size;
    US_TRY(read_header(s, st.st_size, err));
    return list_tensors(s, err);
}

enum us_status us_safetensors_open(const char *path, struct us_safetensors **ret,
                                   const struct us_state_dict **ret_dict, struct us_err *err)
{
    struct us_safetensors *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return us_fail(err, US_E_NOMEM, "%s: no memory", path);
    s->fd = -1;
    enum us_status st = open_file(path, s, err);
    if (st != US_OK) {
        us_err_prefix(err, "%s", path);
        us_safetensors_free(s);
        return st;
    }
    *ret = s;
    *ret_dict = &s->dict;
    return US_OK;
}

void us_safetensors_free(struct us_safetensors *s)
{
    if (s == NULL)
        return;
    if (s->fd >= 0)
        (void)close(s->fd);
    usi_header_release(&s->header);
    free(s->tensors);
    free(s);
}
