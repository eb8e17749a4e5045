/*
 * The models of this daemon: DATA-DIR/models/NAME.safetensors, and nothing else on disk.
 *
 * The folder is the truth: a file put, replaced or removed by hand is noticed at the next lookup
 * (inode, size, time). A file that cannot be loaded is listed with its error and harms nobody.
 * Loaded models are counted references: a request keeps the version it began with, whatever is
 * put, deleted or unloaded meanwhile. Models are read outside of the lock, once at a time each.
 */
#ifndef US_REGISTRY_H
#define US_REGISTRY_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "us_model.h"
#include "us_request.h"
#include "us_spool.h"

struct us_registry;

enum us_model_state {
    US_MODEL_UNCHECKED = 0, /* on disk, not read yet */
    US_MODEL_ON_DISK,       /* verified, not in memory */
    US_MODEL_LOADED,
    US_MODEL_BROKEN /* see error */
};
const char *us_model_state_name(enum us_model_state s);

/* A copy of what is known about one model. metadata is the "usplit" JSON text or NULL. */
struct us_model_info {
    char name[US_MAX_MODEL_NAME + 1];
    enum us_model_state state;
    char sha256[65]; /* "" if unchecked or broken */
    int64_t file_bytes, n_parameters;
    bool complete;
    char *metadata;
    char error[US_ERR_MSG_BYTES];
};
void us_model_info_release(struct us_model_info *info);

/* A loaded model that stays as it is until released. */
struct us_model_ref;
const struct us_model *us_model_ref_get(const struct us_model_ref *ref);
struct us_model_ref *us_model_ref_share(struct us_model_ref *ref);
void us_model_ref_release(struct us_model_ref *ref); /* NULL is fine */

/* dir is created if needed. max_loaded: models kept in memory while nobody uses them. */
enum us_status us_registry_new(const char *dir, int64_t max_loaded, struct us_registry **ret,
                               struct us_err *err) US_WARN_UNUSED;
void us_registry_free(struct us_registry *reg);

/* Looks at the folder again. *n_unchecked (nullable): files that nobody has read yet. */
enum us_status us_registry_scan(struct us_registry *reg, int64_t *n_unchecked,
                                struct us_err *err) US_WARN_UNUSED;
/* Reads every unchecked file once (slow: for a worker). *cancel stops between two files. */
void us_registry_check(struct us_registry *reg, const atomic_bool *cancel);

/* All models by name. Caller releases each and frees the array. */
enum us_status us_registry_list(struct us_registry *reg, struct us_model_info **ret, int64_t *n,
                                struct us_err *err) US_WARN_UNUSED;
/* E_NOT_FOUND. */
enum us_status us_registry_find(struct us_registry *reg, const char *name,
                                struct us_model_info *ret, struct us_err *err) US_WARN_UNUSED;
/* The model in memory, read now if need be (slow: for a worker). */
enum us_status us_registry_acquire(struct us_registry *reg, const char *name,
                                   struct us_model_ref **ret, struct us_err *err) US_WARN_UNUSED;
/* Forgets the memory copy; running requests keep theirs until they end. */
enum us_status us_registry_unload(struct us_registry *reg, const char *name,
                                  struct us_err *err) US_WARN_UNUSED;

/* Verifies the file and puts it in place of NAME (slow: for a worker). if_match, if_none_match:
 * header values or NULL; E_EXISTS if they forbid it. On success info is what stands there now
 * (caller releases), created: there was no model before, old_sha256: else what it was, if known. */
struct us_registry_put {
    const char *name, *if_match, *if_none_match;
    bool created;
    char old_sha256[65];
    struct us_model_info info;
};
enum us_status us_registry_put(struct us_registry *reg, struct us_registry_put *put,
                               struct us_spool_file *file, struct us_err *err) US_WARN_UNUSED;
enum us_status us_registry_delete(struct us_registry *reg, const char *name,
                                  struct us_err *err) US_WARN_UNUSED;
/* Opens the model's file; sha256 [65] becomes "" if it was not read yet. */
enum us_status us_registry_open_file(struct us_registry *reg, const char *name, int *ret_fd,
                                     int64_t *ret_bytes, char *sha256,
                                     struct us_err *err) US_WARN_UNUSED;

#endif
