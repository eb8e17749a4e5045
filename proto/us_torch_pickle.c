/*
 * The operations of a pickle, protocols 2 to 5 (pickletools in CPython), as far as checkpoints use
 * them: one table, one small function per operation. What is not in the table is refused by its
 * code; what is there without a function is refused by its name.
 *
 * The machine has a stack and a memo of value numbers, both capped, and cannot loop: each operation
 * reads at least one byte of the pickle.
 */
#include <stdlib.h>
#include <string.h>

#include "us_torch_int.h"

#define MARK UST_NIL /* on the stack */

struct vm {
    struct ust_values *v;
    size_t at;
    uint32_t *stack, *memo;
    uint32_t n_stack, cap_stack, n_memo, cap_memo;
    bool stopped;
    const char *op; /* name of the running operation */
    size_t op_at;
};

/* ---- the bytes ----------------------------------------------------------------------------- */

static enum us_status take(struct vm *m, size_t n, const unsigned char **ret, struct us_err *err)
{
    if (n > m->v->pickle_bytes - m->at)
        return us_fail(err, US_E_FORMAT, "the pickle ends within %s at byte %zu", m->op, m->op_at);
    *ret = m->v->pickle + m->at;
    m->at += n;
    return US_OK;
}

/* An unsigned little-endian number of n bytes, n <= 8. */
static enum us_status take_number(struct vm *m, size_t n, uint64_t *ret, struct us_err *err)
{
    const unsigned char *p = NULL;
    US_TRY(take(m, n, &p, err));
    *ret = 0;
    for (size_t i = 0; i < n; i++)
        *ret |= (uint64_t)p[i] << (8 * i);
    return US_OK;
}

/* Bytes with their length before them, in n_length bytes. */
static enum us_status take_slice(struct vm *m, size_t n_length, struct ust_slice *ret,
                                 struct us_err *err)
{
    uint64_t n = 0;
    const unsigned char *p = NULL;
    US_TRY(take_number(m, n_length, &n, err));
    if (n > m->v->pickle_bytes)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu has %llu bytes; the pickle has %zu", m->op,
                       m->op_at, (unsigned long long)n, m->v->pickle_bytes);
    US_TRY(take(m, (size_t)n, &p, err));
    *ret = (struct ust_slice){.at = (uint32_t)(p - m->v->pickle), .n = (uint32_t)n};
    return US_OK;
}

static enum us_status take_line(struct vm *m, struct ust_slice *ret, struct us_err *err)
{
    const unsigned char *p = m->v->pickle + m->at;
    const unsigned char *end = memchr(p, '\n', m->v->pickle_bytes - m->at);
    if (end == NULL)
        return us_fail(err, US_E_FORMAT, "the pickle ends within %s at byte %zu", m->op, m->op_at);
    *ret = (struct ust_slice){.at = (uint32_t)m->at, .n = (uint32_t)(end - p)};
    m->at += ret->n + 1;
    return US_OK;
}

/* ---- the stack ----------------------------------------------------------------------------- */

static enum us_status push(struct vm *m, uint32_t value, struct us_err *err)
{
    if (m->n_stack == m->cap_stack) {
        void *p = m->stack;
        US_TRY(ust_grow(&p, &m->cap_stack, US_MAX_TORCH_STACK, sizeof(*m->stack), "stack entries",
                        err));
        m->stack = p;
    }
    m->stack[m->n_stack++] = value;
    return US_OK;
}

/* The n uppermost values; none may be a mark. */
static enum us_status need(const struct vm *m, uint32_t n, struct us_err *err)
{
    bool enough = m->n_stack >= n;
    for (uint32_t i = 0; enough && i < n; i++)
        enough = m->stack[m->n_stack - 1 - i] != MARK;
    if (!enough)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu finds fewer than %u values on the stack",
                       m->op, m->op_at, (unsigned)n);
    return US_OK;
}

static uint32_t pop(struct vm *m)
{
    return m->stack[--m->n_stack];
}

/* Index of the first value above the uppermost mark. */
static enum us_status find_mark(const struct vm *m, uint32_t *ret, struct us_err *err)
{
    for (uint32_t i = m->n_stack; i > 0; i--) {
        if (m->stack[i - 1] == MARK) {
            *ret = i;
            return US_OK;
        }
    }
    return us_fail(err, US_E_FORMAT, "%s at byte %zu finds no mark on the stack", m->op, m->op_at);
}

static enum us_status push_new(struct vm *m, enum ust_kind kind, struct us_err *err)
{
    uint32_t x = 0;
    US_TRY(ust_value_new(m->v, kind, &x, err));
    return push(m, x, err);
}

static struct ust_value *top(struct vm *m)
{
    return &m->v->value[m->stack[m->n_stack - 1]];
}

static enum us_status push_int(struct vm *m, enum ust_kind kind, int64_t x, struct us_err *err)
{
    US_TRY(push_new(m, kind, err));
    top(m)->integer = x;
    return US_OK;
}

static enum us_status push_slice(struct vm *m, enum ust_kind kind, size_t n_length,
                                 struct us_err *err)
{
    struct ust_slice s = {0};
    US_TRY(take_slice(m, n_length, &s, err));
    US_TRY(push_new(m, kind, err));
    top(m)->text = s;
    return US_OK;
}

/* ---- plain values -------------------------------------------------------------------------- */

#define OP(name) static enum us_status name(struct vm *m, struct us_err *err)

OP(op_none)
{
    return push_new(m, UST_NONE, err);
}

OP(op_true)
{
    return push_int(m, UST_FLAG, 1, err);
}

OP(op_false)
{
    return push_int(m, UST_FLAG, 0, err);
}

OP(op_int4)
{
    uint64_t x = 0;
    US_TRY(take_number(m, 4, &x, err));
    return push_int(m, UST_INT, (int32_t)(uint32_t)x, err);
}

OP(op_int1)
{
    uint64_t x = 0;
    US_TRY(take_number(m, 1, &x, err));
    return push_int(m, UST_INT, (int64_t)x, err);
}

OP(op_int2)
{
    uint64_t x = 0;
    US_TRY(take_number(m, 2, &x, err));
    return push_int(m, UST_INT, (int64_t)x, err);
}

/* Two's complement, little endian, as many bytes as it takes. */
static enum us_status push_long(struct vm *m, size_t n_length, struct us_err *err)
{
    struct ust_slice s = {0};
    US_TRY(take_slice(m, n_length, &s, err));
    if (s.n > 8)
        return push_new(m, UST_BIG, err);
    const unsigned char *p = m->v->pickle + s.at;
    uint64_t x = s.n > 0 && (p[s.n - 1] & 0x80) != 0 ? UINT64_MAX : 0;
    for (uint32_t i = s.n; i > 0; i--)
        x = x << 8 | p[i - 1];
    return push_int(m, UST_INT, (int64_t)x, err);
}

OP(op_long1)
{
    return push_long(m, 1, err);
}

OP(op_long4)
{
    return push_long(m, 4, err);
}

/* The one big-endian number of the format. */
OP(op_real)
{
    const unsigned char *p = NULL;
    uint64_t bits = 0;
    US_TRY(take(m, 8, &p, err));
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | p[i];
    US_TRY(push_new(m, UST_REAL, err));
    memcpy(&top(m)->real, &bits, sizeof(bits));
    return US_OK;
}

OP(op_text1)
{
    return push_slice(m, UST_TEXT, 1, err);
}

OP(op_text4)
{
    return push_slice(m, UST_TEXT, 4, err);
}

OP(op_text8)
{
    return push_slice(m, UST_TEXT, 8, err);
}

OP(op_bytes1)
{
    return push_slice(m, UST_BYTES, 1, err);
}

OP(op_bytes4)
{
    return push_slice(m, UST_BYTES, 4, err);
}

OP(op_bytes8)
{
    return push_slice(m, UST_BYTES, 8, err);
}

/* ---- containers ---------------------------------------------------------------------------- */

OP(op_mark)
{
    return push(m, MARK, err);
}

OP(op_empty_list)
{
    return push_new(m, UST_LIST, err);
}

OP(op_empty_tuple)
{
    return push_new(m, UST_TUPLE, err);
}

OP(op_empty_dict)
{
    return push_new(m, UST_DICT, err);
}

OP(op_empty_set)
{
    return push_new(m, UST_SET, err);
}

/* The values from index `first` of the stack on, as a new container in their place. */
static enum us_status collect(struct vm *m, enum ust_kind kind, uint32_t first, uint32_t keep,
                              struct us_err *err)
{
    uint32_t c = 0;
    US_TRY(ust_value_new(m->v, kind, &c, err));
    for (uint32_t i = first; i < m->n_stack; i++)
        US_TRY(ust_value_append(m->v, c, m->stack[i], err));
    m->n_stack = keep;
    return push(m, c, err);
}

static enum us_status collect_marked(struct vm *m, enum ust_kind kind, struct us_err *err)
{
    uint32_t first = 0;
    US_TRY(find_mark(m, &first, err));
    return collect(m, kind, first, first - 1, err);
}

static enum us_status collect_top(struct vm *m, uint32_t n, struct us_err *err)
{
    US_TRY(need(m, n, err));
    return collect(m, UST_TUPLE, m->n_stack - n, m->n_stack - n, err);
}

OP(op_tuple)
{
    return collect_marked(m, UST_TUPLE, err);
}

OP(op_tuple1)
{
    return collect_top(m, 1, err);
}

OP(op_tuple2)
{
    return collect_top(m, 2, err);
}

OP(op_tuple3)
{
    return collect_top(m, 3, err);
}

OP(op_list)
{
    return collect_marked(m, UST_LIST, err);
}

OP(op_frozenset)
{
    return collect_marked(m, UST_SET, err);
}

/* Values from `first` on go into the container below `below`: pairs into a DICT, single values into
 * `kind`; an OPAQUE takes both. */
static enum us_status store(struct vm *m, uint32_t below, uint32_t first, enum ust_kind kind,
                            struct us_err *err)
{
    uint32_t none = UST_NIL, n = m->n_stack - first, step = kind == UST_DICT ? 2 : 1;
    char text[2 * US_MAX_TORCH_NAME + 32];
    if (below == 0 || m->stack[below - 1] == MARK)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu finds no container on the stack", m->op,
                       m->op_at);
    uint32_t c = m->stack[below - 1];
    bool opaque = m->v->value[c].kind == UST_OPAQUE;
    if ((!opaque && m->v->value[c].kind != (uint8_t)kind) || n % step != 0)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu puts %u values into %s", m->op, m->op_at,
                       (unsigned)n, ust_value_describe(m->v, c, text, sizeof(text)));
    if (opaque && step == 1)
        US_TRY(ust_value_new(m->v, UST_NONE, &none, err));
    for (uint32_t i = first; i < m->n_stack; i += step) {
        if (step == 2)
            US_TRY(ust_value_set(m->v, c, m->stack[i], m->stack[i + 1], err));
        else if (opaque)
            US_TRY(ust_value_set(m->v, c, none, m->stack[i], err));
        else
            US_TRY(ust_value_append(m->v, c, m->stack[i], err));
    }
    m->n_stack = below;
    return US_OK;
}

static enum us_status store_marked(struct vm *m, enum ust_kind kind, struct us_err *err)
{
    uint32_t first = 0;
    US_TRY(find_mark(m, &first, err));
    return store(m, first - 1, first, kind, err);
}

static enum us_status store_top(struct vm *m, enum ust_kind kind, uint32_t n, struct us_err *err)
{
    US_TRY(need(m, n + 1, err));
    return store(m, m->n_stack - n, m->n_stack - n, kind, err);
}

OP(op_append)
{
    return store_top(m, UST_LIST, 1, err);
}

OP(op_appends)
{
    return store_marked(m, UST_LIST, err);
}

OP(op_setitem)
{
    return store_top(m, UST_DICT, 2, err);
}

OP(op_setitems)
{
    return store_marked(m, UST_DICT, err);
}

OP(op_additems)
{
    return store_marked(m, UST_SET, err);
}

/* ---- classes and tensors ------------------------------------------------------------------- */

OP(op_global)
{
    struct ust_slice module = {0}, name = {0};
    uint32_t g = 0;
    US_TRY(take_line(m, &module, err));
    US_TRY(take_line(m, &name, err));
    US_TRY(ust_build_global(m->v, module, name, &g, err));
    return push(m, g, err);
}

OP(op_stack_global)
{
    uint32_t g = 0;
    US_TRY(need(m, 2, err));
    uint32_t name = pop(m), module = pop(m);
    if (m->v->value[name].kind != UST_TEXT || m->v->value[module].kind != UST_TEXT)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu finds no two texts", m->op, m->op_at);
    US_TRY(ust_build_global(m->v, m->v->value[module].text, m->v->value[name].text, &g, err));
    return push(m, g, err);
}

/* NEWOBJ makes an object of a class and arguments, REDUCE calls: for us the same. */
OP(op_reduce)
{
    uint32_t x = 0;
    US_TRY(need(m, 2, err));
    uint32_t args = pop(m), callable = pop(m);
    US_TRY(ust_build_reduce(m->v, callable, args, &x, err));
    return push(m, x, err);
}

/* With arguments by name, which stay beside the object as its state. */
OP(op_newobj_ex)
{
    US_TRY(need(m, 3, err));
    uint32_t named = pop(m);
    US_TRY(op_reduce(m, err));
    return ust_build_state(m->v, m->stack[m->n_stack - 1], named, err);
}

OP(op_build)
{
    US_TRY(need(m, 2, err));
    uint32_t state = pop(m);
    return ust_build_state(m->v, m->stack[m->n_stack - 1], state, err);
}

OP(op_binpersid)
{
    uint32_t x = 0;
    US_TRY(need(m, 1, err));
    US_TRY(ust_build_persistent(m->v, pop(m), &x, err));
    return push(m, x, err);
}

/* ---- memo and control ---------------------------------------------------------------------- */

static enum us_status put(struct vm *m, uint64_t index, struct us_err *err)
{
    US_TRY(need(m, 1, err));
    if (index >= US_MAX_TORCH_MEMO)
        return us_fail(err, US_E_TOO_LARGE, "%s at byte %zu: memo index %llu; expected below %d",
                       m->op, m->op_at, (unsigned long long)index, US_MAX_TORCH_MEMO);
    while (index >= m->cap_memo) {
        void *p = m->memo;
        US_TRY(
            ust_grow(&p, &m->cap_memo, US_MAX_TORCH_MEMO, sizeof(*m->memo), "memo entries", err));
        m->memo = p;
    }
    while (m->n_memo <= index)
        m->memo[m->n_memo++] = UST_NIL;
    m->memo[index] = m->stack[m->n_stack - 1];
    return US_OK;
}

static enum us_status get(struct vm *m, uint64_t index, struct us_err *err)
{
    if (index >= m->n_memo || m->memo[index] == UST_NIL)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu: memo index %llu was never put", m->op,
                       m->op_at, (unsigned long long)index);
    return push(m, m->memo[index], err);
}

OP(op_binput)
{
    uint64_t i = 0;
    US_TRY(take_number(m, 1, &i, err));
    return put(m, i, err);
}

OP(op_long_binput)
{
    uint64_t i = 0;
    US_TRY(take_number(m, 4, &i, err));
    return put(m, i, err);
}

OP(op_memoize)
{
    return put(m, m->n_memo, err);
}

OP(op_binget)
{
    uint64_t i = 0;
    US_TRY(take_number(m, 1, &i, err));
    return get(m, i, err);
}

OP(op_long_binget)
{
    uint64_t i = 0;
    US_TRY(take_number(m, 4, &i, err));
    return get(m, i, err);
}

OP(op_pop)
{
    if (m->n_stack == 0)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu finds an empty stack", m->op, m->op_at);
    m->n_stack--;
    return US_OK;
}

OP(op_pop_mark)
{
    uint32_t first = 0;
    US_TRY(find_mark(m, &first, err));
    m->n_stack = first - 1;
    return US_OK;
}

/* Frames only help readers that buffer: their length must fit and says nothing more. */
OP(op_frame)
{
    uint64_t n = 0;
    US_TRY(take_number(m, 8, &n, err));
    if (n > m->v->pickle_bytes - m->at)
        return us_fail(err, US_E_FORMAT, "FRAME at byte %zu has %llu bytes; %zu are left", m->op_at,
                       (unsigned long long)n, m->v->pickle_bytes - m->at);
    return US_OK;
}

OP(op_proto)
{
    uint64_t n = 0;
    US_TRY(take_number(m, 1, &n, err));
    if (m->op_at != 0 || n < 2 || n > 5)
        return us_fail(err, US_E_UNSUPPORTED,
                       "pickle protocol %llu at byte %zu; expected 2 to 5 at the start",
                       (unsigned long long)n, m->op_at);
    return US_OK;
}

OP(op_stop)
{
    m->stopped = true;
    return need(m, 1, err);
}

static const struct {
    const char *name;
    enum us_status (*run)(struct vm *m, struct us_err *err); /* NULL: refused */
} ops[256] = {
    [0x80] = {"PROTO", op_proto},
    [0x95] = {"FRAME", op_frame},
    ['.'] = {"STOP", op_stop},
    ['N'] = {"NONE", op_none},
    [0x88] = {"NEWTRUE", op_true},
    [0x89] = {"NEWFALSE", op_false},
    ['J'] = {"BININT", op_int4},
    ['K'] = {"BININT1", op_int1},
    ['M'] = {"BININT2", op_int2},
    [0x8a] = {"LONG1", op_long1},
    [0x8b] = {"LONG4", op_long4},
    ['G'] = {"BINFLOAT", op_real},
    ['X'] = {"BINUNICODE", op_text4},
    [0x8c] = {"SHORT_BINUNICODE", op_text1},
    [0x8d] = {"BINUNICODE8", op_text8},
    ['T'] = {"BINSTRING", op_bytes4},
    ['U'] = {"SHORT_BINSTRING", op_bytes1},
    ['B'] = {"BINBYTES", op_bytes4},
    ['C'] = {"SHORT_BINBYTES", op_bytes1},
    [0x8e] = {"BINBYTES8", op_bytes8},
    ['('] = {"MARK", op_mark},
    [']'] = {"EMPTY_LIST", op_empty_list},
    [')'] = {"EMPTY_TUPLE", op_empty_tuple},
    ['}'] = {"EMPTY_DICT", op_empty_dict},
    [0x8f] = {"EMPTY_SET", op_empty_set},
    ['t'] = {"TUPLE", op_tuple},
    [0x85] = {"TUPLE1", op_tuple1},
    [0x86] = {"TUPLE2", op_tuple2},
    [0x87] = {"TUPLE3", op_tuple3},
    ['l'] = {"LIST", op_list},
    [0x91] = {"FROZENSET", op_frozenset},
    ['a'] = {"APPEND", op_append},
    ['e'] = {"APPENDS", op_appends},
    ['s'] = {"SETITEM", op_setitem},
    ['u'] = {"SETITEMS", op_setitems},
    [0x90] = {"ADDITEMS", op_additems},
    ['c'] = {"GLOBAL", op_global},
    [0x93] = {"STACK_GLOBAL", op_stack_global},
    ['R'] = {"REDUCE", op_reduce},
    [0x81] = {"NEWOBJ", op_reduce},
    [0x92] = {"NEWOBJ_EX", op_newobj_ex},
    ['b'] = {"BUILD", op_build},
    ['Q'] = {"BINPERSID", op_binpersid},
    ['q'] = {"BINPUT", op_binput},
    ['r'] = {"LONG_BINPUT", op_long_binput},
    [0x94] = {"MEMOIZE", op_memoize},
    ['h'] = {"BINGET", op_binget},
    ['j'] = {"LONG_BINGET", op_long_binget},
    ['0'] = {"POP", op_pop},
    ['1'] = {"POP_MARK", op_pop_mark},
    ['P'] = {"PERSID", NULL},
    ['i'] = {"INST", NULL},
    ['o'] = {"OBJ", NULL},
    ['I'] = {"INT", NULL},
    ['L'] = {"LONG", NULL},
    ['F'] = {"FLOAT", NULL},
    ['S'] = {"STRING", NULL},
    ['V'] = {"UNICODE", NULL},
    ['d'] = {"DICT", NULL},
    ['g'] = {"GET", NULL},
    ['p'] = {"PUT", NULL},
    ['2'] = {"DUP", NULL},
    [0x82] = {"EXT1", NULL},
    [0x83] = {"EXT2", NULL},
    [0x84] = {"EXT4", NULL},
    [0x96] = {"BYTEARRAY8", NULL},
    [0x97] = {"NEXT_BUFFER", NULL},
    [0x98] = {"READONLY_BUFFER", NULL},
};

static enum us_status step(struct vm *m, struct us_err *err)
{
    const unsigned char *code = NULL;
    m->op = "an operation";
    m->op_at = m->at;
    US_TRY(take(m, 1, &code, err));
    if (m->op_at == 0 && *code != 0x80)
        return us_fail(err, US_E_UNSUPPORTED,
                       "the pickle does not begin with its protocol (0x80); "
                       "found byte 0x%02x",
                       (unsigned)*code);
    if (ops[*code].name == NULL)
        return us_fail(err, US_E_FORMAT, "unknown operation 0x%02x at byte %zu of the pickle",
                       (unsigned)*code, m->op_at);
    m->op = ops[*code].name;
    if (ops[*code].run == NULL)
        return us_fail(err, US_E_UNSUPPORTED,
                       "operation %s at byte %zu of the pickle; torch.save does not write it",
                       m->op, m->op_at);
    return ops[*code].run(m, err);
}

enum us_status ust_pickle_run(struct ust_values *v, uint32_t *ret_root, struct us_err *err)
{
    struct vm m = {.v = v};
    enum us_status s = US_OK;
    while (s == US_OK && !m.stopped)
        s = step(&m, err);
    if (s == US_OK && (m.n_stack != 1 || m.at != v->pickle_bytes))
        s = us_fail(err, US_E_FORMAT,
                    "after STOP the pickle leaves %u values and %zu bytes; expected 1 and 0",
                    (unsigned)m.n_stack, v->pickle_bytes - m.at);
    if (s == US_OK)
        *ret_root = m.stack[0];
    free(m.stack);
    free(m.memo);
    return s;
}
