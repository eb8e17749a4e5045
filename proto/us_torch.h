/*
 * PyTorch checkpoints: torch.save's zip files, state dictionaries and Lightning `.ckpt` alike, read
 * and written by code of our own.
 *
 * A checkpoint is a pickle, and a pickle is a program. Ours is a subset machine that can make
 * numbers, texts, containers and tensors, and nothing else: no name in a file is ever looked up or
 * called. What a name of a foreign class would have made is kept as an inert node, so that a
 * Lightning file's hyper-parameters can be read past it; a state dictionary that contains one, and
 * any file that names what no checkpoint needs (os.system, builtins.eval), is refused by that name.
 *
 * Memory is bounded by us_limits.h, whatever the file claims; tensors' bytes stay in the file until
 * they are asked for. Source: model-spec 12; the formats are APPNOTE 6.3 and pickletools.
 */
#ifndef US_TORCH_H
#define US_TORCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_limits.h"
#include "us_status.h"

enum us_torch_dtype {
    US_TORCH_F32 = 0,
    US_TORCH_F16,
    US_TORCH_BF16,
    US_TORCH_F64,
    US_TORCH_I64,
    US_TORCH_I32,
    US_TORCH_I16,
    US_TORCH_I8,
    US_TORCH_U8,
    US_TORCH_BOOL,
    US_TORCH_DTYPE_COUNT
};

/* "float32" and so on; a static string. */
const char *us_torch_dtype_name(enum us_torch_dtype t);
int64_t us_torch_dtype_bytes(enum us_torch_dtype t);

/* One tensor of the state dictionary. */
struct us_torch_tensor {
    const char *name; /* as the file spells it */
    enum us_torch_dtype dtype;
    int32_t ndim;
    int64_t dim[US_MAX_TORCH_DIMS];
    int64_t count; /* elements */
};

struct us_torch;

/* Opens a checkpoint and checks all but the tensors' bytes. The state dictionary is the outermost
 * dictionary or its member state_dict, model_state_dict or model. E_FORMAT, E_CORRUPT,
 * E_UNSUPPORTED and E_TOO_LARGE say what was found; the old formats say how to convert. */
enum us_status us_torch_open(const char *path, struct us_torch **ret,
                             struct us_err *err) US_WARN_UNUSED;
/* The same from memory (the fuzzer's door); bytes are borrowed until us_torch_free. */
enum us_status us_torch_parse(const void *bytes, size_t n_bytes, struct us_torch **ret,
                              struct us_err *err) US_WARN_UNUSED;
void us_torch_free(struct us_torch *t);

/* Size of the file. */
int64_t us_torch_bytes(const struct us_torch *t);

/* Whether a file begins as a zip archive does: then it is for us_torch_open. */
bool us_torch_is_zip(const void *bytes, size_t n_bytes);

/* In the file's order. Borrowed. */
const struct us_torch_tensor *us_torch_tensors(const struct us_torch *t, int32_t *ret_n);

/* Tensor i, row-major whatever its strides, into out: count elements of its own type, little
 * endian. The first read of a storage verifies its checksum: E_CORRUPT, E_IO, E_NOMEM. */
enum us_status us_torch_read(struct us_torch *t, int32_t i, void *out,
                             struct us_err *err) US_WARN_UNUSED;

/* Names of foreign classes that the file mentions and that were passed over: how many, and the
 * first of them ("" if none); borrowed. */
int32_t us_torch_foreign(const struct us_torch *t, const char **ret_first);

/* ---- hyper-parameters ---------------------------------------------------------------------- */

#define US_TORCH_LIST 16

enum us_torch_kind { US_TORCH_NONE = 0, US_TORCH_FLAG, US_TORCH_INT, US_TORCH_REAL, US_TORCH_TEXT };

/* A plain value, or a list or tuple of plain values of one kind (integers among reals count as
 * reals). */
struct us_torch_value {
    enum us_torch_kind kind; /* of the value, or of every item */
    bool list;
    int32_t n; /* items of a list, 1 otherwise */
    int64_t integer[US_TORCH_LIST];
    double real[US_TORCH_LIST]; /* filled for INT too */
    char text[US_TORCH_LIST][64];
};

/* The member `key` nearest to the root of what a Lightning file keeps beside its state dictionary;
 * with `parent`, only in a dictionary that is the member `parent` of another. False if there is
 * none, or it is not a plain value. */
bool us_torch_setting(const struct us_torch *t, const char *parent, const char *key,
                      struct us_torch_value *ret);

/* ---- writing ------------------------------------------------------------------------------- */

struct us_torch_out {
    const char *name;
    enum us_torch_dtype dtype; /* F32 or I64 */
    int32_t ndim;
    int64_t dim[US_MAX_TORCH_DIMS];
    const void *data;
    int32_t same_as; /* index of an earlier tensor with the same storage, or -1 */
};

/* Writes a state dictionary to fd as torch.save does: a zip of stored members, their data at
 * multiples of 64 bytes. With `wrapped`, a dictionary with the one member state_dict holds it, as
 * in a Lightning checkpoint. The same tensors give the same bytes. E_TOO_LARGE from 4 GiB on. */
enum us_status us_torch_write(int fd, const struct us_torch_out *tensors, int32_t n, bool wrapped,
                              struct us_err *err) US_WARN_UNUSED;

#endif
