/*
 * A checkpoint opened (us_torch.h): the archive, its pickle, the state dictionary in it, and the
 * bytes of its tensors when they are asked for.
 */
#include "us_torch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "us_torch_int.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensors are read as they lie in a file");

struct us_torch {
    struct usi_pt_source source;
    struct usi_pt_zip zip;
    unsigned char *pickle;
    struct usi_pt_values values;
    uint32_t root, state; /* values; equal for a bare state dictionary */
    char *names;
    struct us_torch_tensor *tensors;
    uint32_t *of; /* of tensors[i]: its index in values.tensor */
    int32_t n;
    char foreign[2 * US_MAX_TORCH_NAME];
};

static const struct {
    const char *name;
    int64_t bytes;
} dtypes[US_TORCH_DTYPE_COUNT] = {
    [US_TORCH_F32] = {"float32", 4},   [US_TORCH_F16] = {"float16", 2},
    [US_TORCH_BF16] = {"bfloat16", 2}, [US_TORCH_F64] = {"float64", 8},
    [US_TORCH_I64] = {"int64", 8},     [US_TORCH_I32] = {"int32", 4},
    [US_TORCH_I16] = {"int16", 2},     [US_TORCH_I8] = {"int8", 1},
    [US_TORCH_U8] = {"uint8", 1},      [US_TORCH_BOOL] = {"bool", 1},
};

const char *us_torch_dtype_name(enum us_torch_dtype t)
{
    return dtypes[t].name;
}

int64_t us_torch_dtype_bytes(enum us_torch_dtype t)
{
    return dtypes[t].bytes;
}

bool us_torch_is_zip(const void *bytes, size_t n_bytes)
{
    return n_bytes >= 4 && memcmp(bytes, "PK\003\004", 4) == 0;
}

/* ---- the file ------------------------------------------------------------------------------ */

/* The long integer with which torch.save began its files before version 1.6, as it was pickled. */
static const unsigned char old_magic[] = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c,
                                          0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};

#define TAR_MAGIC_AT 257

static enum us_status check_kind(const struct usi_pt_source *s, struct us_err *err)
{
    unsigned char head[TAR_MAGIC_AT + 5] = {0};
    size_t n = s->size < (int64_t)sizeof(head) ? (size_t)s->size : sizeof(head);
    US_TRY(usi_pt_source_read(s, 0, head, n, err));
    if (us_torch_is_zip(head, n))
        return US_OK;
    if (memcmp(head, old_magic, sizeof(old_magic)) == 0 ||
        memcmp(head + TAR_MAGIC_AT, "ustar", 5) == 0)
        return us_fail(
            err, US_E_UNSUPPORTED,
            "a checkpoint in PyTorch's format before 1.6. Convert it where you trust it: "
            "python3 -c 'import torch; torch.save(torch.load(\"OLD\", "
            "map_location=\"cpu\"), \"NEW\")'");
    return us_fail(err, US_E_FORMAT,
                   "not a PyTorch checkpoint: it begins with %02x %02x %02x %02x, "
                   "not as a zip archive",
                   head[0], head[1], head[2], head[3]);
}

static enum us_status read_pickle(struct us_torch *t, struct us_err *err)
{
    struct usi_pt_member *m = usi_pt_zip_find(&t->zip, "data.pkl");
    if (usi_pt_zip_find(&t->zip, "constants.pkl") != NULL)
        return us_fail(err, US_E_UNSUPPORTED,
                       "a TorchScript archive, which is a program; save the "
                       "module's state_dict() instead");
    if (m == NULL)
        return us_fail(err, US_E_FORMAT,
                       "not a PyTorch checkpoint: a zip archive without data.pkl");
    if (m->size > US_MAX_TORCH_PICKLE_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "data.pkl has %lld bytes; expected at most %lld",
                       (long long)m->size, US_MAX_TORCH_PICKLE_BYTES);
    US_TRY(usi_pt_zip_verify(&t->source, m, err));
    t->pickle = malloc((size_t)m->size + 1);
    if (t->pickle == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a pickle of %lld bytes", (long long)m->size);
    t->values.pickle = t->pickle;
    t->values.pickle_bytes = (size_t)m->size;
    t->values.zip = &t->zip;
    return usi_pt_source_read(&t->source, m->data, t->pickle, (size_t)m->size, err);
}

/* Newer versions say which end comes first; older ones always wrote little endian. */
static enum us_status check_byte_order(struct us_torch *t, struct us_err *err)
{
    char text[6] = "";
    struct usi_pt_member *m = usi_pt_zip_find(&t->zip, "byteorder");
    if (m == NULL)
        return US_OK;
    if (m->size == 6)
        US_TRY(usi_pt_source_read(&t->source, m->data, text, 6, err));
    if (m->size != 6 || memcmp(text, "little", 6) != 0)
        return us_fail(err, US_E_UNSUPPORTED, "the checkpoint's byte order is not little");
    return US_OK;
}

/* ---- the state dictionary ------------------------------------------------------------------ */

static enum us_status find_state(struct us_torch *t, struct us_err *err)
{
    static const char *const members[] = {"state_dict", "model_state_dict", "model"};
    const struct usi_pt_values *v = &t->values;
    char text[2 * US_MAX_TORCH_NAME + 32];
    if (v->value[t->root].kind != USI_PT_DICT)
        return us_fail(err, US_E_FORMAT,
                       "the checkpoint holds %s; expected a state dictionary (save "
                       "model.state_dict(), not the model)",
                       usi_pt_value_describe(v, t->root, text, sizeof(text)));
    t->state = t->root;
    for (size_t i = 0; i < US_COUNT(members); i++) {
        uint32_t x = usi_pt_value_member(v, t->root, members[i]);
        if (x == USI_PT_NIL)
            continue;
        if (v->value[x].kind != USI_PT_DICT)
            return us_fail(err, US_E_FORMAT, "the checkpoint's %s is %s; expected a dict",
                           members[i], usi_pt_value_describe(v, x, text, sizeof(text)));
        t->state = x;
        break;
    }
    /* Beside a state dictionary stand objects of many libraries; in a bare one nothing may. */
    if (t->state == t->root && v->n_foreign > 0)
        return us_fail(err, US_E_UNSUPPORTED,
                       "the pickle names %s; a state dictionary needs no "
                       "such class",
                       usi_pt_global_name(v, v->first_foreign, text, sizeof(text)));
    return US_OK;
}

static enum us_status add_tensor(struct us_torch *t, uint32_t key, uint32_t value, char **names,
                                 struct us_err *err)
{
    const struct usi_pt_values *v = &t->values;
    const struct usi_pt_value *k = &v->value[key];
    char text[2 * US_MAX_TORCH_NAME + 32];
    if (k->kind != USI_PT_TEXT || k->text.n == 0 || k->text.n >= US_MAX_TORCH_NAME ||
        memchr(v->pickle + k->text.at, '\0', k->text.n) != NULL)
        return us_fail(err, US_E_FORMAT,
                       "a key of the state dictionary is %s; expected a text of 1 "
                       "to %d bytes",
                       usi_pt_value_describe(v, key, text, sizeof(text)), US_MAX_TORCH_NAME - 1);
    memcpy(*names, v->pickle + k->text.at, k->text.n);
    (*names)[k->text.n] = '\0';
    if (v->value[value].kind != USI_PT_TENSOR)
        return us_fail(err, US_E_UNSUPPORTED, "state dictionary: %s is %s; expected a tensor",
                       *names, usi_pt_value_describe(v, value, text, sizeof(text)));
    const struct usi_pt_tensor *x = &v->tensor[v->value[value].index];
    struct us_torch_tensor *out = &t->tensors[t->n];
    out->name = *names;
    out->dtype = v->storage[x->storage].dtype;
    out->ndim = x->ndim;
    memcpy(out->dim, x->dim, sizeof(out->dim));
    out->count = x->count;
    t->of[t->n++] = v->value[value].index;
    *names += k->text.n + 1;
    return US_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Python keeps one of two equal keys; a file that has both was not written by torch.save. */
static enum us_status check_names(const struct us_torch *t, struct us_err *err)
{
    const char **sorted = calloc((size_t)t->n + 1, sizeof(*sorted));
    if (sorted == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %d names", (int)t->n);
    for (int32_t i = 0; i < t->n; i++)
        sorted[i] = t->tensors[i].name;
    qsort(sorted, (size_t)t->n, sizeof(*sorted), by_name);
    enum us_status s = US_OK;
    for (int32_t i = 1; i < t->n && s == US_OK; i++)
        if (strcmp(sorted[i - 1], sorted[i]) == 0)
            s = us_fail(err, US_E_FORMAT, "state dictionary: %s is there twice", sorted[i]);
    free(sorted);
    return s;
}

static enum us_status list_tensors(struct us_torch *t, struct us_err *err)
{
    const struct usi_pt_values *v = &t->values;
    uint32_t n = v->value[t->state].n / 2;
    if (n > US_MAX_MODEL_TENSORS)
        return us_fail(err, US_E_TOO_LARGE,
                       "the state dictionary has %u entries; expected at most "
                       "%d",
                       (unsigned)n, US_MAX_MODEL_TENSORS);
    t->tensors = calloc((size_t)n + 1, sizeof(*t->tensors));
    t->of = calloc((size_t)n + 1, sizeof(*t->of));
    /* One text can be the key of many entries: the names' room is by entry, not by byte read. */
    t->names = calloc((size_t)n + 1, US_MAX_TORCH_NAME);
    if (t->tensors == NULL || t->of == NULL || t->names == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %u entries of a state dictionary",
                       (unsigned)n);
    char *names = t->names;
    for (uint32_t at = v->value[t->state].items.first; at != USI_PT_NIL;) {
        uint32_t value = v->link[at].next;
        US_TRY(add_tensor(t, v->link[at].value, v->link[value].value, &names, err));
        at = v->link[value].next;
    }
    return check_names(t, err);
}

static enum us_status open_source(struct us_torch *t, struct us_err *err)
{
    US_TRY(check_kind(&t->source, err));
    US_TRY(usi_pt_zip_read(&t->source, &t->zip, err));
    US_TRY(check_byte_order(t, err));
    US_TRY(read_pickle(t, err));
    US_TRY(usi_pt_pickle_run(&t->values, &t->root, err));
    US_TRY(usi_pt_values_check_tree(&t->values, t->root, err));
    US_TRY(find_state(t, err));
    if (t->values.n_foreign > 0)
        (void)usi_pt_global_name(&t->values, t->values.first_foreign, t->foreign,
                                 sizeof(t->foreign));
    return list_tensors(t, err);
}

/* O_NONBLOCK: opening a FIFO by mistake must not hang. */
static enum us_status open_file(const char *path, struct usi_pt_source *s, struct us_err *err)
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
    if (st.st_size > US_MAX_TORCH_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "the file has %lld bytes; expected at most %lld",
                       (long long)st.st_size, US_MAX_TORCH_BYTES);
    s->size = st.st_size;
    return US_OK;
}

enum us_status us_torch_open(const char *path, struct us_torch **ret, struct us_err *err)
{
    struct us_torch *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return us_fail(err, US_E_NOMEM, "%s: no memory", path);
    enum us_status s = open_file(path, &t->source, err);
    if (s == US_OK)
        s = open_source(t, err);
    if (s != US_OK) {
        us_err_prefix(err, "%s", path);
        us_torch_free(t);
        return s;
    }
    *ret = t;
    return US_OK;
}

enum us_status us_torch_parse(const void *bytes, size_t n_bytes, struct us_torch **ret,
                              struct us_err *err)
{
    struct us_torch *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return us_fail(err, US_E_NOMEM, "no memory");
    t->source = (struct usi_pt_source){.fd = -1, .mem = bytes, .size = (int64_t)n_bytes};
    enum us_status s = open_source(t, err);
    if (s != US_OK)
        us_torch_free(t);
    else
        *ret = t;
    return s;
}

void us_torch_free(struct us_torch *t)
{
    if (t == NULL)
        return;
    if (t->source.mem == NULL && t->source.fd >= 0)
        (void)close(t->source.fd);
    usi_pt_values_release(&t->values);
    usi_pt_zip_release(&t->zip);
    free(t->pickle);
    free(t->names);
    free(t->tensors);
    free(t->of);
    free(t);
}

const struct us_torch_tensor *us_torch_tensors(const struct us_torch *t, int32_t *ret_n)
{
    *ret_n = t->n;
    return t->tensors;
}

int64_t us_torch_bytes(const struct us_torch *t)
{
    return t->source.size;
}

int32_t us_torch_foreign(const struct us_torch *t, const char **ret_first)
{
    *ret_first = t->foreign;
    return (int32_t)t->values.n_foreign;
}

bool us_torch_setting(const struct us_torch *t, const char *parent, const char *key,
                      struct us_torch_value *ret)
{
    return usi_pt_find_setting(&t->values, t->root, t->state, parent, key, ret);
}

/* ---- tensors' bytes ------------------------------------------------------------------------ */

static bool is_contiguous(const struct usi_pt_tensor *x)
{
    int64_t step = 1;
    for (int32_t i = x->ndim - 1; i >= 0; i--) {
        if (x->dim[i] != 1 && x->stride[i] != step)
            return false;
        step *= x->dim[i];
    }
    return true;
}

/* Row-major elements of a strided tensor from its storage. */
static void gather(const struct usi_pt_tensor *x, const unsigned char *storage, size_t bytes,
                   unsigned char *out)
{
    int64_t at[US_MAX_TORCH_DIMS] = {0}, place = x->offset;
    for (int64_t i = 0; i < x->count; i++) {
        memcpy(out + (size_t)i * bytes, storage + (size_t)place * bytes, bytes);
        for (int32_t d = x->ndim - 1; d >= 0; d--) {
            place += x->stride[d];
            if (++at[d] < x->dim[d])
                break;
            place -= x->stride[d] * x->dim[d];
            at[d] = 0;
        }
    }
}

enum us_status us_torch_read(struct us_torch *t, int32_t i, void *out, struct us_err *err)
{
    const struct usi_pt_tensor *x = &t->values.tensor[t->of[i]];
    struct usi_pt_storage *s = &t->values.storage[x->storage];
    int64_t bytes = dtypes[s->dtype].bytes;
    US_TRY(usi_pt_zip_verify(&t->source, s->member, err));
    if (x->count == 0)
        return US_OK;
    if (is_contiguous(x))
        return usi_pt_source_read(&t->source, s->member->data + x->offset * bytes, out,
                                  (size_t)(x->count * bytes), err);
    unsigned char *all = malloc((size_t)s->member->size);
    if (all == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a storage of %lld bytes",
                       (long long)s->member->size);
    enum us_status st =
        usi_pt_source_read(&t->source, s->member->data, all, (size_t)s->member->size, err);
    if (st == US_OK)
        gather(x, all, (size_t)bytes, out);
    free(all);
    return st;
}
