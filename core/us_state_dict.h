/*
 * Named tensors of somebody's trained network, wherever they stand: what us_import.h makes a model
 * from. A safetensors file is read here; PyTorch's checkpoints come from proto (us_torch.h) through
 * the program.
 */
#ifndef US_STATE_DICT_H
#define US_STATE_DICT_H

#include <stdint.h>

#include "us_limits.h"
#include "us_status.h"

enum us_state_type {
    US_STATE_F32 = 0,
    US_STATE_BF16,
    US_STATE_F16,
    US_STATE_I64,
    US_STATE_F64,
    US_STATE_OTHER /* named in errors, never read */
};

struct us_state_tensor {
    const char *name;
    const char *type_name; /* as the file calls it */
    enum us_state_type type;
    int32_t ndim;
    int64_t dim[8];
    int64_t count; /* elements */
};

struct us_state_dict {
    const struct us_state_tensor *tensor;
    int32_t n;
    int64_t bytes; /* of the file: bounds what its tensors may claim together */
    /* Tensor i, row-major, in its own type. */
    enum us_status (*read)(void *arg, int32_t i, void *out, struct us_err *err);
    void *arg;
};

struct us_safetensors;

/* Any safetensors file with F32, BF16, F16 and I64 tensors, within the caps of us_limits.h. The
 * dictionary is borrowed from *ret. E_NOT_FOUND, E_IO, E_FORMAT, E_TOO_LARGE, E_NOMEM. */
enum us_status us_safetensors_open(const char *path, struct us_safetensors **ret,
                                   const struct us_state_dict **ret_dict,
                                   struct us_err *err) US_WARN_UNUSED;
void us_safetensors_free(struct us_safetensors *s);

#endif
