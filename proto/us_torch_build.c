/*
 * What names, calls, states and persistent ids in a checkpoint's pickle become (us_torch_int.h):
 * storages and tensors, each checked against the archive, or nodes that nothing looks into.
 *
 * This is the whole list of names with a meaning. Nothing is ever imported or called.
 */
#include <stdio.h>
#include <string.h>

#include "us_torch_int.h"

static const struct {
    const char *module, *name;
    enum usi_pt_known known;
    enum us_torch_dtype dtype; /* of a STORAGE_TYPE */
} known_names[] = {
    {"torch._utils", "_rebuild_tensor_v2", USI_PT_REBUILD_TENSOR, 0},
    {"torch._utils", "_rebuild_parameter", USI_PT_REBUILD_PARAMETER, 0},
    {"collections", "OrderedDict", USI_PT_ORDERED_DICT, 0},
    {"torch", "Size", USI_PT_SIZE, 0},
    {"torch", "FloatStorage", USI_PT_STORAGE_TYPE, US_TORCH_F32},
    {"torch", "HalfStorage", USI_PT_STORAGE_TYPE, US_TORCH_F16},
    {"torch", "BFloat16Storage", USI_PT_STORAGE_TYPE, US_TORCH_BF16},
    {"torch", "DoubleStorage", USI_PT_STORAGE_TYPE, US_TORCH_F64},
    {"torch", "LongStorage", USI_PT_STORAGE_TYPE, US_TORCH_I64},
    {"torch", "IntStorage", USI_PT_STORAGE_TYPE, US_TORCH_I32},
    {"torch", "ShortStorage", USI_PT_STORAGE_TYPE, US_TORCH_I16},
    {"torch", "CharStorage", USI_PT_STORAGE_TYPE, US_TORCH_I8},
    {"torch", "ByteStorage", USI_PT_STORAGE_TYPE, US_TORCH_U8},
    {"torch", "BoolStorage", USI_PT_STORAGE_TYPE, US_TORCH_BOOL},
};

/* No checkpoint needs these: a file that names one is an attack on other readers, and is refused
 * even where it would be passed over. NULL: the whole module. */
static const struct {
    const char *module, *name;
} hostile_names[] = {
    {"os", NULL},
    {"posix", NULL},
    {"nt", NULL},
    {"sys", NULL},
    {"subprocess", NULL},
    {"commands", NULL},
    {"socket", NULL},
    {"shutil", NULL},
    {"runpy", NULL},
    {"importlib", NULL},
    {"ctypes", NULL},
    {"pty", NULL},
    {"code", NULL},
    {"marshal", NULL},
    {"pickle", NULL},
    {"_pickle", NULL},
    {"webbrowser", NULL},
    {"builtins", "eval"},
    {"builtins", "exec"},
    {"builtins", "compile"},
    {"builtins", "open"},
    {"builtins", "input"},
    {"builtins", "breakpoint"},
    {"builtins", "__import__"},
    {"__builtin__", "eval"},
    {"__builtin__", "exec"},
    {"__builtin__", "execfile"},
    {"__builtin__", "compile"},
    {"__builtin__", "open"},
    {"__builtin__", "file"},
    {"__builtin__", "input"},
    {"__builtin__", "apply"},
    {"__builtin__", "__import__"},
};

static bool slice_is(const struct usi_pt_values *v, struct usi_pt_slice s, const char *text)
{
    size_t n = strlen(text);
    return s.n == n && memcmp(v->pickle + s.at, text, n) == 0;
}

/* The module, or one inside it: os hides in os.path too. */
static bool in_module(const struct usi_pt_values *v, struct usi_pt_slice s, const char *module)
{
    size_t n = strlen(module);
    return s.n >= n && memcmp(v->pickle + s.at, module, n) == 0 &&
           (s.n == n || v->pickle[s.at + n] == '.');
}

static bool is_hostile(const struct usi_pt_values *v, const struct usi_pt_value *g)
{
    for (size_t i = 0; i < US_COUNT(hostile_names); i++) {
        if (hostile_names[i].name == NULL
                ? in_module(v, g->global.module, hostile_names[i].module)
                : slice_is(v, g->global.module, hostile_names[i].module) &&
                      slice_is(v, g->global.name, hostile_names[i].name))
            return true;
    }
    return false;
}

enum us_status usi_pt_build_global(struct usi_pt_values *v, struct usi_pt_slice module,
                                   struct usi_pt_slice name, uint32_t *ret, struct us_err *err)
{
    char text[2 * US_MAX_TORCH_NAME];
    if (module.n == 0 || name.n == 0 || module.n >= US_MAX_TORCH_NAME ||
        name.n >= US_MAX_TORCH_NAME)
        return us_fail(err, US_E_FORMAT,
                       "the pickle names a class with %u and %u bytes; expected "
                       "1 to %d",
                       (unsigned)module.n, (unsigned)name.n, US_MAX_TORCH_NAME - 1);
    US_TRY(usi_pt_value_new(v, USI_PT_GLOBAL, ret, err));
    struct usi_pt_value *g = &v->value[*ret];
    g->global.module = module;
    g->global.name = name;
    for (size_t i = 0; i < US_COUNT(known_names); i++) {
        if (slice_is(v, module, known_names[i].module) && slice_is(v, name, known_names[i].name)) {
            g->known = (uint8_t)known_names[i].known;
            g->dtype = (uint8_t)known_names[i].dtype;
            return US_OK;
        }
    }
    if (is_hostile(v, g))
        return us_fail(err, US_E_UNSUPPORTED,
                       "the pickle names %s, which runs code when PyTorch loads the file; no "
                       "checkpoint needs it. Do not open this file elsewhere",
                       usi_pt_global_name(v, *ret, text, sizeof(text)));
    if (v->n_foreign++ == 0)
        v->first_foreign = *ret;
    return US_OK;
}

/* ---- storages ------------------------------------------------------------------------------ */

/* The archive's member data/KEY. */
static enum us_status find_member(struct usi_pt_values *v, uint32_t key, struct usi_pt_member **ret,
                                  struct us_err *err)
{
    const struct usi_pt_value *k = &v->value[key];
    char name[US_MAX_TORCH_NAME];
    if (k->kind != USI_PT_TEXT || k->text.n > 64)
        return us_fail(err, US_E_FORMAT, "a storage's key is not a short text");
    (void)snprintf(name, sizeof(name), "data/%.*s", (int)k->text.n,
                   (const char *)v->pickle + k->text.at);
    *ret = usi_pt_zip_find(v->zip, name);
    if (*ret == NULL)
        return us_fail(err, US_E_FORMAT, "the pickle refers to zip member %s, which is not there",
                       name);
    return US_OK;
}

static enum us_status add_storage(struct usi_pt_values *v, const struct usi_pt_storage *s,
                                  uint32_t *ret, struct us_err *err)
{
    if (v->n_storages == v->cap_storages) {
        void *p = v->storage;
        US_TRY(usi_pt_grow(&p, &v->cap_storages, US_MAX_TORCH_TENSORS, sizeof(*v->storage),
                           "storages", err));
        v->storage = p;
    }
    US_TRY(usi_pt_value_new(v, USI_PT_STORAGE, ret, err));
    v->value[*ret].index = v->n_storages;
    v->storage[v->n_storages++] = *s;
    return US_OK;
}

enum us_status usi_pt_build_persistent(struct usi_pt_values *v, uint32_t id, uint32_t *ret,
                                       struct us_err *err)
{
    const struct usi_pt_value *t = &v->value[id];
    char text[2 * US_MAX_TORCH_NAME + 32];
    if (t->kind != USI_PT_TUPLE || t->n != 5 ||
        !usi_pt_value_is_text(v, usi_pt_value_item(v, id, 0), "storage"))
        return us_fail(err, US_E_FORMAT,
                       "a persistent id is not (storage, type, key, device, "
                       "count)");
    uint32_t type = usi_pt_value_item(v, id, 1), count = usi_pt_value_item(v, id, 4);
    if (v->value[type].kind != USI_PT_GLOBAL || v->value[type].known != USI_PT_STORAGE_TYPE)
        return us_fail(err, US_E_UNSUPPORTED,
                       "a storage's type is %s; expected torch.FloatStorage "
                       "or another plain one",
                       usi_pt_value_describe(v, type, text, sizeof(text)));
    struct usi_pt_storage s = {.dtype = (enum us_torch_dtype)v->value[type].dtype};
    US_TRY(find_member(v, usi_pt_value_item(v, id, 2), &s.member, err));
    int64_t size = us_torch_dtype_bytes(s.dtype), bytes;
    s.count = v->value[count].kind == USI_PT_INT ? v->value[count].integer : -1;
    if (s.count < 0 || __builtin_mul_overflow(s.count, size, &bytes) || bytes != s.member->size)
        return us_fail(
            err, US_E_FORMAT, "zip member %s has %lld bytes; the pickle says %lld elements of %lld",
            s.member->name, (long long)s.member->size, (long long)s.count, (long long)size);
    return add_storage(v, &s, ret, err);
}

/* ---- tensors ------------------------------------------------------------------------------- */

/* A tuple of integers >= 0. */
static enum us_status read_dims(const struct usi_pt_values *v, uint32_t tuple, const char *what,
                                int64_t *out, int32_t *ret_n, struct us_err *err)
{
    const struct usi_pt_value *t = tuple == USI_PT_NIL ? NULL : &v->value[tuple];
    if (t == NULL || t->kind != USI_PT_TUPLE || t->n > US_MAX_TORCH_DIMS)
        return us_fail(err, US_E_FORMAT, "a tensor's %s is not a tuple of at most %d integers",
                       what, US_MAX_TORCH_DIMS);
    *ret_n = 0;
    for (uint32_t at = t->items.first; at != USI_PT_NIL; at = v->link[at].next) {
        const struct usi_pt_value *x = &v->value[v->link[at].value];
        if (x->kind != USI_PT_INT || x->integer < 0)
            return us_fail(err, US_E_FORMAT,
                           "a tensor's %s has an entry %lld; expected an integer "
                           "of 0 or more",
                           what, x->kind == USI_PT_INT ? (long long)x->integer : 0LL);
        out[(*ret_n)++] = x->integer;
    }
    return US_OK;
}

/* Every element must lie in the storage. */
static enum us_status check_extent(struct usi_pt_tensor *t, const struct usi_pt_storage *s,
                                   struct us_err *err)
{
    int64_t last = t->offset, step;
    bool fits = true, empty = false;
    t->count = 1;
    for (int32_t i = 0; i < t->ndim; i++) {
        empty = empty || t->dim[i] == 0;
        fits = fits && !__builtin_mul_overflow(t->count, t->dim[i], &t->count) &&
               (t->dim[i] == 0 || (!__builtin_mul_overflow(t->dim[i] - 1, t->stride[i], &step) &&
                                   !__builtin_add_overflow(last, step, &last)));
    }
    if (empty)
        t->count = 0;
    for (int32_t i = 0; i < t->ndim; i++) /* a step that is never taken may be any number */
        t->stride[i] = t->dim[i] > 1 ? t->stride[i] : 0;
    if (!fits || t->offset > s->count || (!empty && last >= s->count))
        return us_fail(err, US_E_FORMAT,
                       "a tensor reaches to element %lld of zip member %s, which has %lld",
                       fits ? (long long)last : INT64_MAX, s->member->name, (long long)s->count);
    /* Strides of 0 repeat elements: a few bytes may not stand for a tensor of any size. */
    if (t->count > US_MAX_MODEL_BYTES / 4)
        return us_fail(err, US_E_TOO_LARGE, "a tensor of %lld elements; expected at most %lld",
                       (long long)t->count, US_MAX_MODEL_BYTES / 4);
    return US_OK;
}

/* (storage, offset, shape, strides, requires_grad, hooks[, metadata]). */
static enum us_status build_tensor(struct usi_pt_values *v, uint32_t args, uint32_t *ret,
                                   struct us_err *err)
{
    struct usi_pt_tensor t = {0};
    int32_t n_strides = 0;
    if (v->value[args].n < 6 || v->value[args].n > 7)
        return us_fail(err, US_E_FORMAT, "a tensor is made from %u arguments; expected 6 or 7",
                       (unsigned)v->value[args].n);
    const struct usi_pt_value *storage = &v->value[usi_pt_value_item(v, args, 0)];
    const struct usi_pt_value *offset = &v->value[usi_pt_value_item(v, args, 1)];
    if (storage->kind != USI_PT_STORAGE)
        return us_fail(err, US_E_FORMAT, "a tensor is made from something that is not a storage");
    if (offset->kind != USI_PT_INT || offset->integer < 0)
        return us_fail(err, US_E_FORMAT, "a tensor's offset is not an integer of 0 or more");
    t.storage = storage->index;
    t.offset = offset->integer;
    US_TRY(read_dims(v, usi_pt_value_item(v, args, 2), "shape", t.dim, &t.ndim, err));
    US_TRY(read_dims(v, usi_pt_value_item(v, args, 3), "strides", t.stride, &n_strides, err));
    if (n_strides != t.ndim)
        return us_fail(err, US_E_FORMAT, "a tensor has %d dimensions and %d strides", (int)t.ndim,
                       (int)n_strides);
    US_TRY(check_extent(&t, &v->storage[t.storage], err));
    if (v->n_tensors == v->cap_tensors) {
        void *p = v->tensor;
        US_TRY(usi_pt_grow(&p, &v->cap_tensors, US_MAX_TORCH_TENSORS, sizeof(*v->tensor), "tensors",
                           err));
        v->tensor = p;
    }
    US_TRY(usi_pt_value_new(v, USI_PT_TENSOR, ret, err));
    v->value[*ret].index = v->n_tensors;
    v->tensor[v->n_tensors++] = t;
    return US_OK;
}

/* ---- calls and states ---------------------------------------------------------------------- */

static enum us_status build_opaque(struct usi_pt_values *v, uint32_t class, uint32_t args,
                                   uint32_t *ret, struct us_err *err)
{
    uint32_t none = 0;
    US_TRY(usi_pt_value_new(v, USI_PT_NONE, &none, err));
    US_TRY(usi_pt_value_new(v, USI_PT_OPAQUE, ret, err));
    v->value[*ret].class = class;
    return usi_pt_value_set(v, *ret, none, args, err);
}

enum us_status usi_pt_build_reduce(struct usi_pt_values *v, uint32_t callable, uint32_t args,
                                   uint32_t *ret, struct us_err *err)
{
    const struct usi_pt_value *f = &v->value[callable];
    char text[2 * US_MAX_TORCH_NAME + 32];
    if (f->kind != USI_PT_GLOBAL || v->value[args].kind != USI_PT_TUPLE)
        return us_fail(err, US_E_FORMAT, "the pickle calls %s; expected a class and a tuple",
                       usi_pt_value_describe(v, callable, text, sizeof(text)));
    uint32_t n = v->value[args].n, first = usi_pt_value_item(v, args, 0);
    switch ((enum usi_pt_known)f->known) {
    case USI_PT_FOREIGN:
        return build_opaque(v, callable, args, ret, err);
    case USI_PT_REBUILD_TENSOR:
        return build_tensor(v, args, ret, err);
    case USI_PT_REBUILD_PARAMETER:
        if (n == 0 || v->value[first].kind != USI_PT_TENSOR)
            return us_fail(err, US_E_FORMAT, "a parameter is made from something not a tensor");
        *ret = first;
        return US_OK;
    case USI_PT_ORDERED_DICT:
        if (n != 0)
            return us_fail(err, US_E_UNSUPPORTED,
                           "an OrderedDict made from arguments; torch.save "
                           "writes its items one by one");
        return usi_pt_value_new(v, USI_PT_DICT, ret, err);
    case USI_PT_SIZE:
        if (n != 1 || v->value[first].kind != USI_PT_TUPLE)
            return us_fail(err, US_E_FORMAT, "a torch.Size is made from something not a tuple");
        *ret = first;
        return US_OK;
    case USI_PT_STORAGE_TYPE:
        break;
    }
    return us_fail(err, US_E_UNSUPPORTED, "the pickle calls %s, a storage type",
                   usi_pt_global_name(v, callable, text, sizeof(text)));
}

/* A dictionary's state is attributes beside its items (state_dict's _metadata): of no interest. */
enum us_status usi_pt_build_state(struct usi_pt_values *v, uint32_t object, uint32_t state,
                                  struct us_err *err)
{
    uint32_t none = 0;
    char text[2 * US_MAX_TORCH_NAME + 32];
    if (v->value[object].kind == USI_PT_DICT)
        return US_OK;
    if (v->value[object].kind != USI_PT_OPAQUE)
        return us_fail(err, US_E_FORMAT, "the pickle gives a state to %s",
                       usi_pt_value_describe(v, object, text, sizeof(text)));
    US_TRY(usi_pt_value_new(v, USI_PT_NONE, &none, err));
    return usi_pt_value_set(v, object, none, state, err);
}
