/* Internal to us_import*.c: a state dictionary under the names of model-spec 11. */
#ifndef US_IMPORT_INT_H
#define US_IMPORT_INT_H

#include "us_import.h"

struct usi_entry {
    char name[US_MAX_PARAM_NAME]; /* without prefix, in our naming */
    int32_t tensor;               /* index in the dictionary */
    bool matched;
};

struct usi_names {
    const struct us_state_dict *dict;
    struct usi_entry *entry; /* by name; equal names stand together */
    int32_t n;
};

/* The first entry of that name, or NULL. */
struct usi_entry *usi_names_find(const struct usi_names *names, const char *name);

/* The architecture and patch size that the shapes tell (us_import_arch.c). */
enum us_status usi_import_arch(const struct usi_names *names, const struct us_import_hints *hints,
                               struct us_arch *ret_arch, int32_t *ret_patch,
                               struct us_err *err) US_WARN_UNUSED;

#endif
