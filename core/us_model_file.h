/*
 * Internal to us_model.c and us_model_file*.c: the pieces that reading and writing a model file
 * share. A file goes through them in this order: the safetensors header (us_model_file_header.c),
 * the "usplit" text in it (us_model_file_meta.c), the tensors' bytes (us_model_file.c). JSON as
 * such is in us_model_file_json.c, writing in us_model_file_save.c.
 */
#ifndef US_MODEL_FILE_H
#define US_MODEL_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_model.h"

#define US_MODEL_FORMAT         "usplit-model" /* __metadata__.format */
#define US_MODEL_FORMAT_VERSION 1
#define US_TENSOR_MAX_DIMS      8

struct json_t;     /* jansson's */
struct sha256_ctx; /* nettle's */

/* A model whose net is built and whose parameter blocks are not there yet. */
enum us_status usi_model_alloc(const struct us_arch *arch, int32_t patch, struct us_model **ret,
                               struct us_err *err) US_WARN_UNUSED;
/* The two blocks, zeroed. */
enum us_status usi_model_alloc_blocks(struct us_model *m, struct us_err *err) US_WARN_UNUSED;

/* ---- JSON ---------------------------------------------------------------------------------- */

/* Caps on a text before it is parsed: jansson takes some hundred bytes for an empty object. */
struct usi_json_limits {
    size_t max_values, max_containers; /* containers: objects and arrays */
};

/* Parses UTF-8 text without duplicate keys, at most US_MAX_JSON_DEPTH deep. what names the text in
 * errors. E_FORMAT, E_TOO_LARGE. *ret: json_decref. */
enum us_status usi_json_parse(const char *text, size_t n_bytes, struct usi_json_limits limits,
                              const char *what, struct json_t **ret,
                              struct us_err *err) US_WARN_UNUSED;

/* A text that grows. After a failed allocation everything is ignored and `failed` stays set. */
struct usi_text {
    char *p; /* always terminated, or NULL */
    size_t n, cap;
    bool failed;
};

void usi_text_add(struct usi_text *t, const char *s, size_t n);
void usi_text_printf(struct usi_text *t, const char *fmt, ...) US_PRINTF(2, 3);
/* s as a JSON string, with its quotes. */
void usi_text_add_string(struct usi_text *t, const char *s);
/* A value, members in their order, numbers as short as round-tripping allows: the same bytes for
 * the same value with every version of jansson and in every locale. */
void usi_text_add_json(struct usi_text *t, const struct json_t *v);

/* For errors: a value in at most n bytes of buf, in words where it is long. Returns buf. */
const char *usi_json_describe(const struct json_t *v, char *buf, size_t n);

/* ---- the safetensors header ---------------------------------------------------------------- */

enum usi_dtype { USI_F32 = 0, USI_BF16, USI_F16, USI_I64 };

struct usi_tensor {
    const char *name; /* borrowed from the header */
    enum usi_dtype dtype;
    int32_t ndim;
    int64_t dim[US_TENSOR_MAX_DIMS];
    int64_t count;      /* elements */
    int64_t begin, end; /* bytes, from the start of the data area */
    int32_t param;      /* index in the parameter table, or -1 */
};

struct usi_header {
    struct json_t *root;
    const char *usplit;         /* the metadata text, borrowed from root */
    struct usi_tensor *tensors; /* in the order of their bytes */
    int32_t n_tensors;
};

/* Parses and checks a header on its own terms: types, sizes, and that the tensors cover the data
 * area of data_bytes exactly, without gap or overlap. Release also after a failure. */
enum us_status usi_header_parse(const char *text, size_t n_bytes, int64_t data_bytes,
                                struct usi_header *h, struct us_err *err) US_WARN_UNUSED;
void usi_header_release(struct usi_header *h);

/* Ties each tensor to its parameter: sets t->param and m->complete. E_FORMAT names a missing,
 * surplus or wrongly shaped tensor. Reorders nothing. */
enum us_status usi_header_match(struct usi_header *h, struct us_model *m,
                                struct us_err *err) US_WARN_UNUSED;

const char *usi_dtype_name(enum usi_dtype t);
int64_t usi_dtype_bytes(enum usi_dtype t);

/* "[64, 1, 3, 3]" in buf. Returns buf. */
const char *usi_shape_text(const int64_t *dim, int32_t ndim, char *buf, size_t n);

/* ---- the "usplit" text --------------------------------------------------------------------- */

/* Fills the plain members of *m (name, arch, patch_size, data, prediction, calibration) from the
 * text; allocates nothing that stays. E_FORMAT and E_UNSUPPORTED name the member. */
enum us_status usi_meta_read(const char *text, struct us_model *m,
                             struct us_err *err) US_WARN_UNUSED;

/* ---- identity ------------------------------------------------------------------------------ */

/* Ends the hash and writes it as 64 hexadecimal digits. */
void usi_hash_text(struct sha256_ctx *hash, char text[65]);

#endif
