/*
 * Internal to us_torch*.c. A checkpoint goes through them in this order: the zip directory
 * (us_torch_zip.c), the pickle's operations (us_torch_pickle.c, on the machine of us_torch_vm.h)
 * that make values (us_torch_values.c) and tensors (us_torch_build.c), what is found in them
 * (us_torch.c), and settings beside them (us_torch_setting.c).
 */
#ifndef US_TORCH_INT_H
#define US_TORCH_INT_H

#include "us_torch.h"

/* ---- zip ----------------------------------------------------------------------------------- */

/* Bytes that can be read at any place: a file, or memory if fd < 0. */
struct usi_pt_source {
    int fd;
    const unsigned char *mem;
    int64_t size;
};

/* The caller has compared at + n with size. */
enum us_status usi_pt_source_read(const struct usi_pt_source *s, int64_t at, void *out, size_t n,
                                  struct us_err *err) US_WARN_UNUSED;

struct usi_pt_member {
    const char *name; /* without the folder that all members share */
    int64_t header;   /* of its local header */
    int64_t data, size;
    uint32_t crc;
    bool verified;
};

struct usi_pt_zip {
    char *names;
    struct usi_pt_member *members; /* by name */
    int32_t n;
};

/* Reads and checks the directory. Release also after a failure. */
enum us_status usi_pt_zip_read(const struct usi_pt_source *s, struct usi_pt_zip *z,
                               struct us_err *err) US_WARN_UNUSED;
void usi_pt_zip_release(struct usi_pt_zip *z);
/* NULL if there is none. */
struct usi_pt_member *usi_pt_zip_find(const struct usi_pt_zip *z, const char *name);
/* Compares the member's checksum with its bytes, once. */
enum us_status usi_pt_zip_verify(const struct usi_pt_source *s, struct usi_pt_member *m,
                                 struct us_err *err) US_WARN_UNUSED;

/* ---- values -------------------------------------------------------------------------------- */

enum usi_pt_kind {
    USI_PT_NONE = 0,
    USI_PT_FLAG,
    USI_PT_INT,
    USI_PT_BIG, /* an integer beyond 64 bits: kept as nothing but its being there */
    USI_PT_REAL,
    USI_PT_TEXT,
    USI_PT_BYTES,
    USI_PT_TUPLE,
    USI_PT_LIST,
    USI_PT_DICT, /* entries are key, value, key, value */
    USI_PT_SET,
    USI_PT_GLOBAL,
    USI_PT_STORAGE,
    USI_PT_TENSOR,
    USI_PT_OPAQUE /* what a foreign class would have made; entries as DICT, key NONE for arguments
                   */
};

/* The names that mean something to us; every other one is foreign. */
enum usi_pt_known {
    USI_PT_FOREIGN = 0,
    USI_PT_REBUILD_TENSOR,
    USI_PT_REBUILD_PARAMETER,
    USI_PT_ORDERED_DICT,
    USI_PT_SIZE,
    USI_PT_STORAGE_TYPE
};

#define USI_PT_NIL 0xffffffffu

struct usi_pt_slice {
    uint32_t at, n; /* in the pickle */
};

struct usi_pt_value {
    uint8_t kind, known, dtype;
    union {
        int64_t integer; /* INT, FLAG */
        double real;
        struct usi_pt_slice text;
        struct {
            uint32_t first, last; /* links */
        } items;
        struct {
            struct usi_pt_slice module, name;
        } global;
        uint32_t index; /* STORAGE, TENSOR */
    };
    uint32_t n;     /* items, counting keys */
    uint32_t class; /* OPAQUE: the global */
};

struct usi_pt_link {
    uint32_t value, next;
};

struct usi_pt_storage {
    enum us_torch_dtype dtype;
    struct usi_pt_member *member;
    int64_t count;
};

struct usi_pt_tensor {
    uint32_t storage;
    int32_t ndim;
    int64_t offset, count;
    int64_t dim[US_MAX_TORCH_DIMS], stride[US_MAX_TORCH_DIMS];
};

struct usi_pt_values {
    const unsigned char *pickle;
    size_t pickle_bytes;
    struct usi_pt_zip *zip;
    struct usi_pt_value *value;
    struct usi_pt_link *link;
    struct usi_pt_storage *storage;
    struct usi_pt_tensor *tensor;
    uint32_t n_values, cap_values, n_links, cap_links;
    uint32_t n_storages, cap_storages, n_tensors, cap_tensors;
    uint32_t first_foreign, n_foreign; /* a global */
};

void usi_pt_values_release(struct usi_pt_values *v);

/* A new value of that kind, empty; E_TOO_LARGE, E_NOMEM. */
enum us_status usi_pt_value_new(struct usi_pt_values *v, enum usi_pt_kind kind, uint32_t *ret,
                                struct us_err *err) US_WARN_UNUSED;
/* Appends to a container, or a pair to a DICT or OPAQUE. */
enum us_status usi_pt_value_append(struct usi_pt_values *v, uint32_t container, uint32_t item,
                                   struct us_err *err) US_WARN_UNUSED;
enum us_status usi_pt_value_set(struct usi_pt_values *v, uint32_t container, uint32_t key,
                                uint32_t item, struct us_err *err) US_WARN_UNUSED;
/* Item i of a TUPLE or LIST of few items, USI_PT_NIL beyond. */
uint32_t usi_pt_value_item(const struct usi_pt_values *v, uint32_t container, uint32_t i);
/* The member of a DICT or OPAQUE whose key is that text, USI_PT_NIL if none. */
uint32_t usi_pt_value_member(const struct usi_pt_values *v, uint32_t dict, const char *key);
bool usi_pt_value_is_text(const struct usi_pt_values *v, uint32_t value, const char *text);
/* What a value is, in words for errors: "a list", "a torch.foo.Bar". Returns buf. */
const char *usi_pt_value_describe(const struct usi_pt_values *v, uint32_t value, char *buf,
                                  size_t n);
/* "module.name" of a global. Returns buf. */
const char *usi_pt_global_name(const struct usi_pt_values *v, uint32_t global, char *buf, size_t n);
/* Refuses values that contain themselves and nesting over US_MAX_TORCH_DEPTH. */
enum us_status usi_pt_values_check_tree(const struct usi_pt_values *v, uint32_t root,
                                        struct us_err *err) US_WARN_UNUSED;
/* Doubles *cap, at most to max; what names the items in E_TOO_LARGE. */
enum us_status usi_pt_grow(void **p, uint32_t *cap, uint32_t max, size_t item_bytes,
                           const char *what, struct us_err *err) US_WARN_UNUSED;

/* ---- the machine --------------------------------------------------------------------------- */

/* Runs the pickle; *ret_root is what it leaves. */
enum us_status usi_pt_pickle_run(struct usi_pt_values *v, uint32_t *ret_root,
                                 struct us_err *err) US_WARN_UNUSED;

/* A global by its names: sets known, or refuses what no checkpoint needs. */
enum us_status usi_pt_build_global(struct usi_pt_values *v, struct usi_pt_slice module,
                                   struct usi_pt_slice name, uint32_t *ret,
                                   struct us_err *err) US_WARN_UNUSED;
/* callable(*args), as far as we know it; a foreign one gives an OPAQUE. */
enum us_status usi_pt_build_reduce(struct usi_pt_values *v, uint32_t callable, uint32_t args,
                                   uint32_t *ret, struct us_err *err) US_WARN_UNUSED;
/* The state that BUILD hands to `object`. */
enum us_status usi_pt_build_state(struct usi_pt_values *v, uint32_t object, uint32_t state,
                                  struct us_err *err) US_WARN_UNUSED;
/* ('storage', type, key, device, count). */
enum us_status usi_pt_build_persistent(struct usi_pt_values *v, uint32_t id, uint32_t *ret,
                                       struct us_err *err) US_WARN_UNUSED;

/* ---- hyper-parameters ---------------------------------------------------------------------- */

/* us_torch_setting, below `root` and outside of `state`. */
bool usi_pt_find_setting(const struct usi_pt_values *v, uint32_t root, uint32_t state,
                         const char *parent, const char *key, struct us_torch_value *ret);

#endif
