/*
 * Training data of this daemon: DATA-DIR/datasets/NAME/ holds image files and, if the client wants
 * its own, splits.json. The folder is the truth, as for models; us_frames.h says what it may hold.
 *
 * A file is verified before it gets its name, and its name then holds the old bytes or the new
 * ones. While a job holds a data set nothing in it changes.
 */
#ifndef US_DATASETS_H
#define US_DATASETS_H

#include <stdbool.h>
#include <stdint.h>

#include "us_image.h"
#include "us_request.h"
#include "us_spool.h"

#define US_SPLITS_NAME       "splits.json"
#define US_MAX_SPLITS_BYTES  (16LL << 20)
#define US_MAX_DATASET_FILES 1000000
#define US_MAX_DATASET_NAME  US_MAX_MODEL_NAME

struct us_datasets;

/* dir is created if needed; what a crash left half deleted goes. */
enum us_status us_datasets_new(const char *dir, struct us_datasets **ret,
                               struct us_err *err) US_WARN_UNUSED;
void us_datasets_free(struct us_datasets *ds);

/* Who else may need a data set: fn counts the jobs that name it and have not ended. It is called
 * with a lock held, so it may not call back. */
typedef enum us_status (*us_datasets_users_fn)(void *arg, const char *name, int64_t *n,
                                               struct us_err *err);
void us_datasets_set_users(struct us_datasets *ds, us_datasets_users_fn fn, void *arg);

/* All names, sorted. Caller frees the array. */
struct us_dataset_name {
    char name[US_MAX_DATASET_NAME + 1];
};
enum us_status us_datasets_list(struct us_datasets *ds, struct us_dataset_name **ret, int64_t *n,
                                struct us_err *err) US_WARN_UNUSED;

/* The files of one, sorted; image headers are read (slow: for a worker). Caller frees. */
struct us_dataset_file {
    char name[US_MAX_DATASET_NAME + 1];
    int64_t bytes;
    bool is_splits;
    struct us_image_info info; /* of an image without error */
    char error[US_ERR_MSG_BYTES];
};
enum us_status us_datasets_files(struct us_datasets *ds, const char *name,
                                 struct us_dataset_file **ret, int64_t *n,
                                 struct us_err *err) US_WARN_UNUSED;

/* The bytes of all its files. E_NOT_FOUND. */
enum us_status us_datasets_bytes(struct us_datasets *ds, const char *name, int64_t *ret,
                                 struct us_err *err) US_WARN_UNUSED;

/* Verifies a file and puts it into the data set, which begins with its first file (slow). E_ARG: a
 * name without a known ending; E_FORMAT and so on: no image, no splits; E_EXISTS: in use. */
enum us_status us_datasets_put(struct us_datasets *ds, const char *name, const char *file,
                               struct us_spool_file *spool, bool *created,
                               struct us_err *err) US_WARN_UNUSED;

/* E_NOT_FOUND, E_EXISTS: in use. file NULL: the whole data set. */
enum us_status us_datasets_delete(struct us_datasets *ds, const char *name, const char *file,
                                  struct us_err *err) US_WARN_UNUSED;

/* Keeps a data set as it is until the release; they count. What must outlast the process is said by
 * us_datasets_set_users instead. path, if not NULL, gets its folder
 * (PATH_MAX bytes). */
enum us_status us_datasets_hold(struct us_datasets *ds, const char *name, char *path,
                                struct us_err *err) US_WARN_UNUSED;
void us_datasets_release(struct us_datasets *ds, const char *name);
/* Whether it may not change now. */
bool us_datasets_in_use(struct us_datasets *ds, const char *name);

#endif
