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

struct sha256_ctx; /* nettle's */

/* A model whose net is built and whose parameter blocks are not there yet. */
enum us_status usi_model_alloc(const struct us_arch *arch, int32_t patch, struct us_model **ret,
                               struct us_err *err) US_WARN_UNUSED;
/* The two blocks, zeroed. */
enum us_status usi_model_alloc_blocks(struct us_model *m, struct us_err *err) US_WARN_UNUSED;

/* ---- JSON ---------------------------------------------------------------------------------- */

enum usi_json_type {
    USI_JSON_NULL = 0,
    USI_JSON_FALSE,
    USI_JSON_TRUE,
    USI_JSON_INTEGER,
    USI_JSON_REAL,
    USI_JSON_STRING,
    USI_JSON_ARRAY,
    USI_JSON_OBJECT
};

/* One value. Strings and keys are valid UTF-8 without U+0000 and lie in the parsed text. */
struct usi_json {
    enum usi_json_type type;
    int32_t n;                   /* items of an array or object */
    const char *key;             /* of an object's member, else NULL */
    const struct usi_json *next; /* item of the same container */
    union {
        int64_t integer;
        double real;
        const char *string;
        const struct usi_json *first; /* item of an array or object */
    };
};

/* Parses text in place, which must end with a NUL beyond n_bytes, is changed, and must outlive the
 * values. what names the text in errors: E_FORMAT; E_TOO_LARGE over max_values or
 * US_MAX_JSON_DEPTH; E_NOMEM. *ret is the outermost value: free() releases all. */
enum us_status usi_json_parse(char *text, size_t n_bytes, size_t max_values, const char *what,
                              struct usi_json **ret, struct us_err *err) US_WARN_UNUSED;

/* The member called key, or NULL; NULL too if object is NULL or of another type. */
const struct usi_json *usi_json_get(const struct usi_json *object, const char *key);
/* The text of a string; NULL for NULL and for other types. */
const char *usi_json_string(const struct usi_json *v);
/* For errors: a value in at most n bytes of buf, in words where it is long. Returns buf. */
const char *usi_json_describe(const struct usi_json *v, char *buf, size_t n);

/* Bytes of the UTF-8 character (RFC 3629) at s, 0 if there is none. */
size_t usi_utf8_bytes(const char *s);
/* Length of valid UTF-8, at most max bytes and never half a character. */
int usi_utf8_clip(const char *s, size_t max);

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
/* The shortest decimal that reads back as the same double, in every locale. x is finite. */
void usi_text_add_real(struct usi_text *t, double x);
/* A value, members in their order: the same bytes for the same value, always. */
void usi_text_add_json(struct usi_text *t, const struct usi_json *v);

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
    char *text; /* decoded in place; names and usplit lie in it */
    struct usi_json *root;
    const char *usplit;         /* the metadata text */
    struct usi_tensor *tensors; /* in the order of their bytes */
    int32_t n_tensors;
};

/* Parses and checks a header on its own terms: types, sizes, and that the tensors cover the data
 * area of data_bytes exactly, without gap or overlap. text (terminated, from malloc) belongs to the
 * header from the call on. Release also after a failure. */
enum us_status usi_header_parse(char *text, size_t n_bytes, int64_t data_bytes,
                                struct usi_header *h, struct us_err *err) US_WARN_UNUSED;
/* The same for a safetensors file of anybody's: h->usplit stays NULL. */
enum us_status usi_header_parse_plain(char *text, size_t n_bytes, int64_t data_bytes,
                                      struct usi_header *h, struct us_err *err) US_WARN_UNUSED;
void usi_header_release(struct usi_header *h);

/* Ties each tensor to its parameter: sets t->param and m->complete. E_FORMAT names a missing,
 * surplus or wrongly shaped tensor. Reorders nothing. */
enum us_status usi_header_match(struct usi_header *h, struct us_model *m,
                                struct us_err *err) US_WARN_UNUSED;

const char *usi_dtype_name(enum usi_dtype t);
int64_t usi_dtype_bytes(enum usi_dtype t);

/* n elements to float32, exactly; not for I64. */
void usi_widen(enum usi_dtype dtype, const void *raw, float *out, size_t n);
/* E_FORMAT names the tensor and the first element that is not finite, `first` + its index in x. */
enum us_status usi_check_finite(const float *x, size_t n, const char *name, int64_t first,
                                struct us_err *err) US_WARN_UNUSED;

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
