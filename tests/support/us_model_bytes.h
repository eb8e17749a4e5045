/*
 * Model files as byte strings for tests: a small valid one, taken apart into header and data, and
 * put together again after a test has changed something. All failures end the test (cmocka).
 */
#ifndef US_MODEL_BYTES_H
#define US_MODEL_BYTES_H

#include <stddef.h>

#include "us_model.h"

/* A folder for one test program's files, made on the first call; us_test_folder_remove deletes it
 * with what is in it. */
const char *us_test_folder(void);
void us_test_folder_remove(void);
/* Number of files in it. */
int us_test_folder_count(void);
/* The path of a file in it; valid until the next call. */
const char *us_test_path(const char *name);

struct us_model_bytes {
    char *header; /* JSON text, terminated */
    char *data;
    size_t n_data;
};

/* Two levels, two scales, four filters, patch 16; two blocks per level, so that lowres_net stands
 * beside net. Filled as model-spec 20.1. Caller frees. */
struct us_model *us_small_model(void);

/* The file that us_model_save writes. Caller frees (us_model_bytes_free). */
struct us_model_bytes us_model_bytes_of(struct us_model *m);
void us_model_bytes_free(struct us_model_bytes *b);

/* Length, header and data in a row; *ret_n bytes. Caller frees. */
char *us_model_bytes_join(const struct us_model_bytes *b, size_t *ret_n);

/* us_model_parse of the joined bytes. */
enum us_status us_model_bytes_parse(const struct us_model_bytes *b, struct us_model **ret,
                                    struct us_err *err);

/* text with the first occurrence of `find` replaced; the test fails if there is none. Caller
 * frees. */
char *us_text_replace(const char *text, const char *find, const char *with);

/* The first byte of a tensor in b->data. */
char *us_model_bytes_tensor(const struct us_model_bytes *b, const char *name);

#endif
