/*
 * The operations of a pickle, protocols 2 to 5 (pickletools in CPython), as far as checkpoints use
 * them: one table, one small function per operation. What is not in the table is refused by its
 * code; what is there without a function is refused by its name.
 *
 * The machine itself is us_torch_vm.h; it cannot loop, because each operation reads at least one
 * byte of the pickle.
 */
#include <stdlib.h>
#include <string.h>

#include "us_torch_vm.h"

static enum us_status push_new(struct usi_vm *m, enum usi_pt_kind kind, struct us_err *err)
{
    uint32_t x = 0;
    US_TRY(usi_pt_value_new(m->v, kind, &x, err));
    return usi_vm_push(m, x, err);
}

static struct usi_pt_value *top(struct usi_vm *m)
{
    return &m->v->value[m->stack[m->n_stack - 1]];
}

static enum us_status push_int(struct usi_vm *m, enum usi_pt_kind kind, int64_t x,
                               struct us_err *err)
{
    US_TRY(push_new(m, kind, err));
    top(m)->integer = x;
    return US_OK;
}

static enum us_status push_slice(struct usi_vm *m, enum usi_pt_kind kind, size_t n_length,
                                 struct us_err *err)
{
    struct usi_pt_slice s = {0};
    US_TRY(usi_vm_slice(m, n_length, &s, err));
    US_TRY(push_new(m, kind, err));
    top(m)->text = s;
    return US_OK;
}

/* ---- plain values -------------------------------------------------------------------------- */

#define OP(name) static enum us_status name(struct usi_vm *m, struct us_err *err)

OP(op_none)
{
    return push_new(m, USI_PT_NONE, err);
}

OP(op_true)
{
    return push_int(m, USI_PT_FLAG, 1, err);
}

OP(op_false)
{
    return push_int(m, USI_PT_FLAG, 0, err);
}

OP(op_int4)
{
    uint64_t x = 0;
    US_TRY(usi_vm_number(m, 4, &x, err));
    return push_int(m, USI_PT_INT, (int32_t)(uint32_t)x, err);
}

OP(op_int1)
{
    uint64_t x = 0;
    US_TRY(usi_vm_number(m, 1, &x, err));
    return push_int(m, USI_PT_INT, (int64_t)x, err);
}

OP(op_int2)
{
    uint64_t x = 0;
    US_TRY(usi_vm_number(m, 2, &x, err));
    return push_int(m, USI_PT_INT, (int64_t)x, err);
}

/* Two's complement, little endian, as many bytes as it takes. */
static enum us_status push_long(struct usi_vm *m, size_t n_length, struct us_err *err)
{
    struct usi_pt_slice s = {0};
    US_TRY(usi_vm_slice(m, n_length, &s, err));
    if (s.n > 8)
        return push_new(m, USI_PT_BIG, err);
    const unsigned char *p = m->v->pickle + s.at;
    uint64_t x = s.n > 0 && (p[s.n - 1] & 0x80) != 0 ? UINT64_MAX : 0;
    for (uint32_t i = s.n; i > 0; i--)
        x = x << 8 | p[i - 1];
    return push_int(m, USI_PT_INT, (int64_t)x, err);
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
    US_TRY(usi_vm_take(m, 8, &p, err));
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | p[i];
    US_TRY(push_new(m, USI_PT_REAL, err));
    memcpy(&top(m)->real, &bits, sizeof(bits));
    return US_OK;
}

OP(op_text1)
{
    return push_slice(m, USI_PT_TEXT, 1, err);
}

OP(op_text4)
{
    return push_slice(m, USI_PT_TEXT, 4, err);
}

OP(op_text8)
{
    return push_slice(m, USI_PT_TEXT, 8, err);
}

OP(op_bytes1)
{
    return push_slice(m, USI_PT_BYTES, 1, err);
}

OP(op_bytes4)
{
    return push_slice(m, USI_PT_BYTES, 4, err);
}

OP(op_bytes8)
{
    return push_slice(m, USI_PT_BYTES, 8, err);
}

/* ---- containers ---------------------------------------------------------------------------- */

OP(op_mark)
{
    return usi_vm_push(m, USI_VM_MARK, err);
}

OP(op_empty_list)
{
    return push_new(m, USI_PT_LIST, err);
}

OP(op_empty_tuple)
{
    return push_new(m, USI_PT_TUPLE, err);
}

OP(op_empty_dict)
{
    return push_new(m, USI_PT_DICT, err);
}

OP(op_empty_set)
{
    return push_new(m, USI_PT_SET, err);
}

/* The values from index `first` of the stack on, as a new container in their place. */
static enum us_status collect(struct usi_vm *m, enum usi_pt_kind kind, uint32_t first,
                              uint32_t keep, struct us_err *err)
{
    uint32_t c = 0;
    US_TRY(usi_pt_value_new(m->v, kind, &c, err));
    for (uint32_t i = first; i < m->n_stack; i++)
        US_TRY(usi_pt_value_append(m->v, c, m->stack[i], err));
    m->n_stack = keep;
    return usi_vm_push(m, c, err);
}

static enum us_status collect_marked(struct usi_vm *m, enum usi_pt_kind kind, struct us_err *err)
{
    uint32_t first = 0;
    US_TRY(usi_vm_find_mark(m, &first, err));
    return collect(m, kind, first, first - 1, err);
}

static enum us_status collect_top(struct usi_vm *m, uint32_t n, struct us_err *err)
{
    US_TRY(usi_vm_need(m, n, err));
    return collect(m, USI_PT_TUPLE, m->n_stack - n, m->n_stack - n, err);
}

OP(op_tuple)
{
    return collect_marked(m, USI_PT_TUPLE, err);
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
    return collect_marked(m, USI_PT_LIST, err);
}

OP(op_frozenset)
{
    return collect_marked(m, USI_PT_SET, err);
}

/* Values from `first` on go into the container below `below`: pairs into a DICT, single values into
 * `kind`; an OPAQUE takes both. */
static enum us_status store(struct usi_vm *m, uint32_t below, uint32_t first, enum usi_pt_kind kind,
                            struct us_err *err)
{
    uint32_t none = USI_PT_NIL, n = m->n_stack - first, step = kind == USI_PT_DICT ? 2 : 1;
    char text[2 * US_MAX_TORCH_NAME + 32];
    if (below == 0 || m->stack[below - 1] == USI_VM_MARK)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu finds no container on the stack", m->op,
                       m->op_at);
    uint32_t c = m->stack[below - 1];
    bool opaque = m->v->value[c].kind == USI_PT_OPAQUE;
    if ((!opaque && m->v->value[c].kind != (uint8_t)kind) || n % step != 0)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu puts %u values into %s", m->op, m->op_at,
                       (unsigned)n, usi_pt_value_describe(m->v, c, text, sizeof(text)));
    if (opaque && step == 1)
        US_TRY(usi_pt_value_new(m->v, USI_PT_NONE, &none, err));
    for (uint32_t i = first; i < m->n_stack; i += step) {
        if (step == 2)
            US_TRY(usi_pt_value_set(m->v, c, m->stack[i], m->stack[i + 1], err));
        else if (opaque)
            US_TRY(usi_pt_value_set(m->v, c, none, m->stack[i], err));
        else
            US_TRY(usi_pt_value_append(m->v, c, m->stack[i], err));
    }
    m->n_stack = below;
    return US_OK;
}

static enum us_status store_marked(struct usi_vm *m, enum usi_pt_kind kind, struct us_err *err)
{
    uint32_t first = 0;
    US_TRY(usi_vm_find_mark(m, &first, err));
    return store(m, first - 1, first, kind, err);
}

static enum us_status store_top(struct usi_vm *m, enum usi_pt_kind kind, uint32_t n,
                                struct us_err *err)
{
    US_TRY(usi_vm_need(m, n + 1, err));
    return store(m, m->n_stack - n, m->n_stack - n, kind, err);
}

OP(op_append)
{
    return store_top(m, USI_PT_LIST, 1, err);
}

OP(op_appends)
{
    return store_marked(m, USI_PT_LIST, err);
}

OP(op_setitem)
{
    return store_top(m, USI_PT_DICT, 2, err);
}

OP(op_setitems)
{
    return store_marked(m, USI_PT_DICT, err);
}

OP(op_additems)
{
    return store_marked(m, USI_PT_SET, err);
}

/* ---- classes and tensors ------------------------------------------------------------------- */

OP(op_global)
{
    struct usi_pt_slice module = {0}, name = {0};
    uint32_t g = 0;
    US_TRY(usi_vm_line(m, &module, err));
    US_TRY(usi_vm_line(m, &name, err));
    US_TRY(usi_pt_build_global(m->v, module, name, &g, err));
    return usi_vm_push(m, g, err);
}

OP(op_stack_global)
{
    uint32_t g = 0;
    US_TRY(usi_vm_need(m, 2, err));
    uint32_t name = usi_vm_pop(m), module = usi_vm_pop(m);
    if (m->v->value[name].kind != USI_PT_TEXT || m->v->value[module].kind != USI_PT_TEXT)
        return us_fail(err, US_E_FORMAT, "%s at byte %zu finds no two texts", m->op, m->op_at);
    US_TRY(usi_pt_build_global(m->v, m->v->value[module].text, m->v->value[name].text, &g, err));
    return usi_vm_push(m, g, err);
}

/* NEWOBJ makes an object of a class and arguments, REDUCE calls: for us the same. */
OP(op_reduce)
{
    uint32_t x = 0;
    US_TRY(usi_vm_need(m, 2, err));
    uint32_t args = usi_vm_pop(m), callable = usi_vm_pop(m);
    US_TRY(usi_pt_build_reduce(m->v, callable, args, &x, err));
    return usi_vm_push(m, x, err);
}

/* With arguments by name, which stay beside the object as its state. */
OP(op_newobj_ex)
{
    US_TRY(usi_vm_need(m, 3, err));
    uint32_t named = usi_vm_pop(m);
    US_TRY(op_reduce(m, err));
    return usi_pt_build_state(m->v, m->stack[m->n_stack - 1], named, err);
}

OP(op_build)
{
    US_TRY(usi_vm_need(m, 2, err));
    uint32_t state = usi_vm_pop(m);
    return usi_pt_build_state(m->v, m->stack[m->n_stack - 1], state, err);
}

OP(op_binpersid)
{
    uint32_t x = 0;
    US_TRY(usi_vm_need(m, 1, err));
    US_TRY(usi_pt_build_persistent(m->v, usi_vm_pop(m), &x, err));
    return usi_vm_push(m, x, err);
}

/* ---- memo and control ---------------------------------------------------------------------- */

OP(op_binput)
{
    uint64_t i = 0;
    US_TRY(usi_vm_number(m, 1, &i, err));
    return usi_vm_put(m, i, err);
}

OP(op_long_binput)
{
    uint64_t i = 0;
    US_TRY(usi_vm_number(m, 4, &i, err));
    return usi_vm_put(m, i, err);
}

OP(op_memoize)
{
    return usi_vm_put(m, m->n_memo, err);
}

OP(op_binget)
{
    uint64_t i = 0;
    US_TRY(usi_vm_number(m, 1, &i, err));
    return usi_vm_get(m, i, err);
}

OP(op_long_binget)
{
    uint64_t i = 0;
    US_TRY(usi_vm_number(m, 4, &i, err));
    return usi_vm_get(m, i, err);
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
    US_TRY(usi_vm_find_mark(m, &first, err));
    m->n_stack = first - 1;
    return US_OK;
}

/* Frames only help readers that buffer: their length must fit and says nothing more. */
OP(op_frame)
{
    uint64_t n = 0;
    US_TRY(usi_vm_number(m, 8, &n, err));
    if (n > m->v->pickle_bytes - m->at)
        return us_fail(err, US_E_FORMAT, "FRAME at byte %zu has %llu bytes; %zu are left", m->op_at,
                       (unsigned long long)n, m->v->pickle_bytes - m->at);
    return US_OK;
}

OP(op_proto)
{
    uint64_t n = 0;
    US_TRY(usi_vm_number(m, 1, &n, err));
    if (m->op_at != 0 || n < 2 || n > 5)
        return us_fail(err, US_E_UNSUPPORTED,
                       "pickle protocol %llu at byte %zu; expected 2 to 5 at the start",
                       (unsigned long long)n, m->op_at);
    return US_OK;
}

OP(op_stop)
{
    m->stopped = true;
    return usi_vm_need(m, 1, err);
}

static const struct {
    const char *name;
    enum us_status (*run)(struct usi_vm *m, struct us_err *err); /* NULL: refused */
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

static enum us_status step(struct usi_vm *m, struct us_err *err)
{
    const unsigned char *code = NULL;
    m->op = "an operation";
    m->op_at = m->at;
    US_TRY(usi_vm_take(m, 1, &code, err));
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

enum us_status usi_pt_pickle_run(struct usi_pt_values *v, uint32_t *ret_root, struct us_err *err)
{
    struct usi_vm m = {.v = v};
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
