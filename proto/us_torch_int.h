/*
 * Internal to us_torch*.c. A checkpoint goes through them in this order: the zip directory
 * (us_torch_zip.c), the pickle's operations (us_torch_pickle.c) that make values
 * (us_torch_values.c) and tensors (us_torch_build.c), what is found in them (us_torch.c), and
 * settings beside them (us_torch_setting.c).
 */
#ifndef US_TORCH_INT_H
#define US_TORCH_INT_H

#include "us_torch.h"

/* ---- zip ----------------------------------------------------------------------------------- */

/* Bytes that can be read at any place: a file, or memory if fd < 0. */
struct ust_source {
    int fd;
    const unsigned char *mem;
    int64_t size;
};

/* The caller has compared at + n with size. */
enum us_status ust_source_read(const struct ust_source *s, int64_t at, void *out, size_t n,
                               struct us_err *err) US_WARN_UNUSED;

struct ust_member {
    const char *name; /* without the folder that all members share */
    int64_t header;   /* of its local header */
    int64_t data, size;
    uint32_t crc;
    bool verified;
};

struct ust_zip {
    char *names;
    struct ust_member *members; /* by name */
    int32_t n;
};

/* Reads and checks the directory. Release also after a failure. */
enum us_status ust_zip_read(const struct ust_source *s, struct ust_zip *z,
                            struct us_err *err) US_WARN_UNUSED;
void ust_zip_release(struct ust_zip *z);
/* NULL if there is none. */
struct ust_member *ust_zip_find(const struct ust_zip *z, const char *name);
/* Compares the member's checksum with its bytes, once. */
enum us_status ust_zip_verify(const struct ust_source *s, struct ust_member *m,
                              struct us_err *err) US_WARN_UNUSED;

/* ---- values -------------------------------------------------------------------------------- */

enum ust_kind {
    UST_NONE = 0,
    UST_FLAG,
    UST_INT,
    UST_BIG, /* an integer beyond 64 bits: kept as nothing but its being there */
    UST_REAL,
    UST_TEXT,
    UST_BYTES,
    UST_TUPLE,
    UST_LIST,
    UST_DICT, /* entries are key, value, key, value */
    UST_SET,
    UST_GLOBAL,
    UST_STORAGE,
    UST_TENSOR,
    UST_OPAQUE /* what a foreign class would have made; entries as DICT, key NONE for arguments */
};

/* The names that mean something to us; every other one is foreign. */
enum ust_known {
    UST_FOREIGN = 0,
    UST_REBUILD_TENSOR,
    UST_REBUILD_PARAMETER,
    UST_ORDERED_DICT,
    UST_SIZE,
    UST_STORAGE_TYPE
};

#define UST_NIL 0xffffffffu

struct ust_slice {
    uint32_t at, n; /* in the pickle */
};

struct ust_value {
    uint8_t kind, known, dtype;
    union {
        int64_t integer; /* INT, FLAG */
        double real;
        struct ust_slice text;
        struct {
            uint32_t first, last; /* links */
        } items;
        struct {
            struct ust_slice module, name;
        } global;
        uint32_t index; /* STORAGE, TENSOR */
    };
    uint32_t n;     /* items, counting keys */
    uint32_t class; /* OPAQUE: the global */
};

struct ust_link {
    uint32_t value, next;
};

struct ust_storage {
    enum us_torch_dtype dtype;
    struct ust_member *member;
    int64_t count;
};

struct ust_tensor {
    uint32_t storage;
    int32_t ndim;
    int64_t offset, count;
    int64_t dim[US_MAX_TORCH_DIMS], stride[US_MAX_TORCH_DIMS];
};

struct ust_values {
    const unsigned char *pickle;
    size_t pickle_bytes;
    struct ust_zip *zip;
    struct ust_value *value;
    struct ust_link *link;
    struct ust_storage *storage;
    struct ust_tensor *tensor;
    uint32_t n_values, cap_values, n_links, cap_links;
    uint32_t n_storages, cap_storages, n_tensors, cap_tensors;
    uint32_t first_foreign, n_foreign; /* a global */
};

void ust_values_release(struct ust_values *v);

/* A new value of that kind, empty; E_TOO_LARGE, E_NOMEM. */
enum us_status ust_value_new(struct ust_values *v, enum ust_kind kind, uint32_t *ret,
                             struct us_err *err) US_WARN_UNUSED;
/* Appends to a container, or a pair to a DICT or OPAQUE. */
enum us_status ust_value_append(struct ust_values *v, uint32_t container, uint32_t item,
                                struct us_err *err) US_WARN_UNUSED;
enum us_status ust_value_set(struct ust_values *v, uint32_t container, uint32_t key, uint32_t item,
                             struct us_err *err) US_WARN_UNUSED;
/* Item i of a TUPLE or LIST of few items, UST_NIL beyond. */
uint32_t ust_value_item(const struct ust_values *v, uint32_t container, uint32_t i);
/* The member of a DICT or OPAQUE whose key is that text, UST_NIL if none. */
uint32_t ust_value_member(const struct ust_values *v, uint32_t dict, const char *key);
bool ust_value_is_text(const struct ust_values *v, uint32_t value, const char *text);
/* What a value is, in words for errors: "a list", "a torch.foo.Bar". Returns buf. */
const char *ust_value_describe(const struct ust_values *v, uint32_t value, char *buf, size_t n);
/* "module.name" of a global. Returns buf. */
const char *ust_global_name(const struct ust_values *v, uint32_t global, char *buf, size_t n);
/* Refuses values that contain themselves and nesting over US_MAX_TORCH_DEPTH. */
enum us_status ust_values_check_tree(const struct ust_values *v, uint32_t root,
                                     struct us_err *err) US_WARN_UNUSED;
/* Doubles *cap, at most to max; what names the items in E_TOO_LARGE. */
enum us_status ust_grow(void **p, uint32_t *cap, uint32_t max, size_t item_bytes, const char *what,
                        struct us_err *err) US_WARN_UNUSED;

/* ---- the machine --------------------------------------------------------------------------- */

/* Runs the pickle; *ret_root is what it leaves. */
enum us_status ust_pickle_run(struct ust_values *v, uint32_t *ret_root,
                              struct us_err *err) US_WARN_UNUSED;

/* A global by its names: sets known, or refuses what no checkpoint needs. */
enum us_status ust_build_global(struct ust_values *v, struct ust_slice module,
                                struct ust_slice name, uint32_t *ret,
                                struct us_err *err) US_WARN_UNUSED;
/* callable(*args), as far as we know it; a foreign one gives an OPAQUE. */
enum us_status ust_build_reduce(struct ust_values *v, uint32_t callable, uint32_t args,
                                uint32_t *ret, struct us_err *err) US_WARN_UNUSED;
/* The state that BUILD hands to `object`. */
enum us_status ust_build_state(struct ust_values *v, uint32_t object, uint32_t state,
                               struct us_err *err) US_WARN_UNUSED;
/* ('storage', type, key, device, count). */
enum us_status ust_build_persistent(struct ust_values *v, uint32_t id, uint32_t *ret,
                                    struct us_err *err) US_WARN_UNUSED;

/* ---- hyper-parameters ---------------------------------------------------------------------- */

/* us_torch_setting, below `root` and outside of `state`. */
bool ust_find_setting(const struct ust_values *v, uint32_t root, uint32_t state, const char *parent,
                      const char *key, struct us_torch_value *ret);

#endif
