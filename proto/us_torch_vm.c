/*
 * What every operation of a pickle works with (us_torch_vm.h): the bytes, the stack, the memo. Each
 * is bounded by us_limits.h, and an error says the operation and its place.
 */
#include <string.h>

#include "us_torch_vm.h"

/* ---- the bytes ----------------------------------------------------------------------------- */

enum us_status usi_vm_take(struct usi_vm *m, size_t n, const unsigned char **ret,
                           struct us_err *err)
{
    if (n > m->v->pickle_bytes - m->at)
        return us_fail(err, US_E_FORMAT, "the pickle ends within %s at byte %zu", m->op, m->op_at);
    *ret = m->v->pickle + m->at;
    m->at += n;
    return US_OK;
}

enum us_status usi_vm_number(struct usi_vm *m, size_t n, uint64_t *ret, struct us_err *err)
{
    const unsigned char *p = NULL;
    US_TRY(usi_vm_take(m, n, &p, err));
    *ret = 0;
    for (size_t i = 0; i < n; i++)
        *ret |= (uint64_t)p[i] << (8 * i);
    return US_OK;
}

enum us_status usi_vm_slice(struct usi_vm *m, size_t n_length, struct usi_pt_slice *ret,
                            struct us_err *err)
{
    uint64_t n = 0;
    const unsigned char *p = NULL;
    US_TRY(usi_vm_number(m, n_length, &n, err));
    if (n > m->v->pickle_bytes)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu has %llu bytes; the pickle has %zu", m->op,
                       m->op_at, (unsigned long long)n, m->v->pickle_bytes);
    US_TRY(usi_vm_take(m, (size_t)n, &p, err));
    *ret = (struct usi_pt_slice){.at = (uint32_t)(p - m->v->pickle), .n = (uint32_t)n};
    return US_OK;
}

enum us_status usi_vm_line(struct usi_vm *m, struct usi_pt_slice *ret, struct us_err *err)
{
    const unsigned char *p = m->v->pickle + m->at;
    const unsigned char *end = memchr(p, '\n', m->v->pickle_bytes - m->at);
    if (end == NULL)
        return us_fail(err, US_E_FORMAT, "the pickle ends within %s at byte %zu", m->op, m->op_at);
    *ret = (struct usi_pt_slice){.at = (uint32_t)m->at, .n = (uint32_t)(end - p)};
    m->at += ret->n + 1;
    return US_OK;
}

/* ---- the stack ----------------------------------------------------------------------------- */

enum us_status usi_vm_push(struct usi_vm *m, uint32_t value, struct us_err *err)
{
    if (m->n_stack == m->cap_stack) {
        void *p = m->stack;
        US_TRY(usi_pt_grow(&p, &m->cap_stack, US_MAX_TORCH_STACK, sizeof(*m->stack),
                           "stack entries", err));
        m->stack = p;
    }
    m->stack[m->n_stack++] = value;
    return US_OK;
}

enum us_status usi_vm_need(const struct usi_vm *m, uint32_t n, struct us_err *err)
{
    bool enough = m->n_stack >= n;
    for (uint32_t i = 0; enough && i < n; i++)
        enough = m->stack[m->n_stack - 1 - i] != USI_VM_MARK;
    if (!enough)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu finds fewer than %u values on the stack",
                       m->op, m->op_at, (unsigned)n);
    return US_OK;
}

uint32_t usi_vm_pop(struct usi_vm *m)
{
    return m->stack[--m->n_stack];
}

enum us_status usi_vm_find_mark(const struct usi_vm *m, uint32_t *ret, struct us_err *err)
{
    for (uint32_t i = m->n_stack; i > 0; i--) {
        if (m->stack[i - 1] == USI_VM_MARK) {
            *ret = i;
            return US_OK;
        }
    }
    return us_fail(err, US_E_FORMAT, "%s at byte %zu finds no mark on the stack", m->op, m->op_at);
}

/* ---- the memo ------------------------------------------------------------------------------ */

enum us_status usi_vm_put(struct usi_vm *m, uint64_t index, struct us_err *err)
{
    US_TRY(usi_vm_need(m, 1, err));
    if (index >= US_MAX_TORCH_MEMO)
        return us_fail(err, US_E_TOO_LARGE, "%s at byte %zu: memo index %llu; expected below %d",
                       m->op, m->op_at, (unsigned long long)index, US_MAX_TORCH_MEMO);
    while (index >= m->cap_memo) {
        void *p = m->memo;
        US_TRY(usi_pt_grow(&p, &m->cap_memo, US_MAX_TORCH_MEMO, sizeof(*m->memo), "memo entries",
                           err));
        m->memo = p;
    }
    while (m->n_memo <= index)
        m->memo[m->n_memo++] = USI_PT_NIL;
    m->memo[index] = m->stack[m->n_stack - 1];
    return US_OK;
}

enum us_status usi_vm_get(struct usi_vm *m, uint64_t index, struct us_err *err)
{
    if (index >= m->n_memo || m->memo[index] == USI_PT_NIL)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu: memo index %llu was never put", m->op,
                       m->op_at, (unsigned long long)index);
    return usi_vm_push(m, m->memo[index], err);
}
