/*
 * Internal to us_torch_pickle.c and us_torch_vm.c: the machine that runs a pickle. It has a stack
 * and a memo of value numbers and makes no value itself. Errors name the running operation.
 */
#ifndef US_TORCH_VM_H
#define US_TORCH_VM_H

#include "us_torch_int.h"

#define USI_VM_MARK USI_PT_NIL /* on the stack */

struct usi_vm {
    struct usi_pt_values *v;
    size_t at;
    uint32_t *stack, *memo;
    uint32_t n_stack, cap_stack, n_memo, cap_memo;
    bool stopped;
    const char *op; /* name of the running operation */
    size_t op_at;
};

/* The next n bytes of the pickle. */
enum us_status usi_vm_take(struct usi_vm *m, size_t n, const unsigned char **ret,
                           struct us_err *err) US_WARN_UNUSED;
/* An unsigned little-endian number of n bytes, n <= 8. */
enum us_status usi_vm_number(struct usi_vm *m, size_t n, uint64_t *ret,
                             struct us_err *err) US_WARN_UNUSED;
/* Bytes with their length before them, in n_length bytes. */
enum us_status usi_vm_slice(struct usi_vm *m, size_t n_length, struct usi_pt_slice *ret,
                            struct us_err *err) US_WARN_UNUSED;
/* Bytes up to a line feed. */
enum us_status usi_vm_line(struct usi_vm *m, struct usi_pt_slice *ret,
                           struct us_err *err) US_WARN_UNUSED;

enum us_status usi_vm_push(struct usi_vm *m, uint32_t value, struct us_err *err) US_WARN_UNUSED;
/* Checks that the n uppermost entries are values: no mark is among them. */
enum us_status usi_vm_need(const struct usi_vm *m, uint32_t n, struct us_err *err) US_WARN_UNUSED;
/* After usi_vm_need. */
uint32_t usi_vm_pop(struct usi_vm *m);
/* Index of the first value above the uppermost mark. */
enum us_status usi_vm_find_mark(const struct usi_vm *m, uint32_t *ret,
                                struct us_err *err) US_WARN_UNUSED;

/* The uppermost value into the memo, and a value of the memo onto the stack. */
enum us_status usi_vm_put(struct usi_vm *m, uint64_t index, struct us_err *err) US_WARN_UNUSED;
enum us_status usi_vm_get(struct usi_vm *m, uint64_t index, struct us_err *err) US_WARN_UNUSED;

#endif
