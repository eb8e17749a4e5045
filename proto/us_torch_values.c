/*
 * The values that a pickle makes (us_torch_int.h): numbered nodes in arrays, containers as chains
 * of links. There is one budget for nodes and links together, so a small file that puts one value
 * into many places stays small, and no walk here recurses.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_torch_int.h"

#define FIRST_CAP 256

enum us_status usi_pt_grow(void **p, uint32_t *cap, uint32_t max, size_t item_bytes,
                           const char *what, struct us_err *err)
{
    if (*cap >= max)
        return us_fail(err, US_E_TOO_LARGE, "the pickle makes more than %u %s", (unsigned)max,
                       what);
    uint32_t more = *cap == 0 ? FIRST_CAP : *cap * 2;
    if (more > max)
        more = max;
    void *q = reallocarray(*p, more, item_bytes);
    if (q == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %u %s", (unsigned)more, what);
    *p = q;
    *cap = more;
    return US_OK;
}

void usi_pt_values_release(struct usi_pt_values *v)
{
    free(v->value);
    free(v->link);
    free(v->storage);
    free(v->tensor);
    *v = (struct usi_pt_values){0};
}

/* Nodes and links have one budget. */
static enum us_status check_budget(const struct usi_pt_values *v, struct us_err *err)
{
    if (v->n_values + v->n_links >= US_MAX_TORCH_VALUES)
        return us_fail(err, US_E_TOO_LARGE, "the pickle makes more than %d values",
                       US_MAX_TORCH_VALUES);
    return US_OK;
}

enum us_status usi_pt_value_new(struct usi_pt_values *v, enum usi_pt_kind kind, uint32_t *ret,
                                struct us_err *err)
{
    US_TRY(check_budget(v, err));
    if (v->n_values == v->cap_values) {
        void *p = v->value;
        US_TRY(
            usi_pt_grow(&p, &v->cap_values, US_MAX_TORCH_VALUES, sizeof(*v->value), "values", err));
        v->value = p;
    }
    struct usi_pt_value *x = &v->value[v->n_values];
    memset(x, 0, sizeof(*x));
    x->kind = (uint8_t)kind;
    if (kind == USI_PT_TUPLE || kind == USI_PT_LIST || kind == USI_PT_DICT || kind == USI_PT_SET ||
        kind == USI_PT_OPAQUE)
        x->items.first = x->items.last = USI_PT_NIL;
    *ret = v->n_values++;
    return US_OK;
}

enum us_status usi_pt_value_append(struct usi_pt_values *v, uint32_t container, uint32_t item,
                                   struct us_err *err)
{
    US_TRY(check_budget(v, err));
    if (v->n_links == v->cap_links) {
        void *p = v->link;
        US_TRY(usi_pt_grow(&p, &v->cap_links, US_MAX_TORCH_VALUES, sizeof(*v->link), "links", err));
        v->link = p;
    }
    struct usi_pt_value *c = &v->value[container];
    uint32_t at = v->n_links++;
    v->link[at] = (struct usi_pt_link){.value = item, .next = USI_PT_NIL};
    if (c->items.last == USI_PT_NIL)
        c->items.first = at;
    else
        v->link[c->items.last].next = at;
    c->items.last = at;
    c->n++;
    return US_OK;
}

enum us_status usi_pt_value_set(struct usi_pt_values *v, uint32_t container, uint32_t key,
                                uint32_t item, struct us_err *err)
{
    US_TRY(usi_pt_value_append(v, container, key, err));
    return usi_pt_value_append(v, container, item, err);
}

uint32_t usi_pt_value_item(const struct usi_pt_values *v, uint32_t container, uint32_t i)
{
    uint32_t at = v->value[container].items.first;
    for (; at != USI_PT_NIL && i > 0; i--)
        at = v->link[at].next;
    return at == USI_PT_NIL ? USI_PT_NIL : v->link[at].value;
}

bool usi_pt_value_is_text(const struct usi_pt_values *v, uint32_t value, const char *text)
{
    const struct usi_pt_value *x = &v->value[value];
    size_t n = strlen(text);
    return x->kind == USI_PT_TEXT && x->text.n == n && memcmp(v->pickle + x->text.at, text, n) == 0;
}

uint32_t usi_pt_value_member(const struct usi_pt_values *v, uint32_t dict, const char *key)
{
    uint32_t found = USI_PT_NIL; /* as in Python, the last of equal keys wins */
    for (uint32_t at = v->value[dict].items.first; at != USI_PT_NIL;) {
        uint32_t value = v->link[at].next;
        if (usi_pt_value_is_text(v, v->link[at].value, key))
            found = v->link[value].value;
        at = v->link[value].next;
    }
    return found;
}

const char *usi_pt_global_name(const struct usi_pt_values *v, uint32_t global, char *buf, size_t n)
{
    const struct usi_pt_value *g = &v->value[global];
    (void)snprintf(buf, n, "%.*s.%.*s", (int)g->global.module.n,
                   (const char *)v->pickle + g->global.module.at, (int)g->global.name.n,
                   (const char *)v->pickle + g->global.name.at);
    return buf;
}

const char *usi_pt_value_describe(const struct usi_pt_values *v, uint32_t value, char *buf,
                                  size_t n)
{
    static const char *const words[] = {
        [USI_PT_NONE] = "None",        [USI_PT_FLAG] = "a truth value",
        [USI_PT_INT] = "an integer",   [USI_PT_BIG] = "an integer",
        [USI_PT_REAL] = "a number",    [USI_PT_TEXT] = "a text",
        [USI_PT_BYTES] = "bytes",      [USI_PT_TUPLE] = "a tuple",
        [USI_PT_LIST] = "a list",      [USI_PT_DICT] = "a dict",
        [USI_PT_SET] = "a set",        [USI_PT_GLOBAL] = "a name",
        [USI_PT_STORAGE] = "storage",  [USI_PT_TENSOR] = "a tensor",
        [USI_PT_OPAQUE] = "an object",
    };
    const struct usi_pt_value *x = &v->value[value];
    char name[2 * US_MAX_TORCH_NAME];
    if (x->kind == USI_PT_GLOBAL)
        (void)snprintf(buf, n, "the name %s", usi_pt_global_name(v, value, name, sizeof(name)));
    else if (x->kind == USI_PT_OPAQUE)
        (void)snprintf(buf, n, "an object of %s",
                       usi_pt_global_name(v, x->class, name, sizeof(name)));
    else
        (void)snprintf(buf, n, "%s", words[x->kind]);
    return buf;
}

/* ---- the shape of the whole ---------------------------------------------------------------- */

static bool is_container(const struct usi_pt_value *x)
{
    return x->kind == USI_PT_TUPLE || x->kind == USI_PT_LIST || x->kind == USI_PT_DICT ||
           x->kind == USI_PT_SET || x->kind == USI_PT_OPAQUE;
}

enum mark { NEW = 0, OPEN, DONE };

struct walk {
    const struct usi_pt_values *v;
    unsigned char *mark; /* by value */
    struct {
        uint32_t value, next; /* the link to follow */
    } stack[US_MAX_TORCH_DEPTH];
    int depth;
};

static enum us_status enter(struct walk *w, uint32_t value, struct us_err *err)
{
    const struct usi_pt_value *x = &w->v->value[value];
    if (!is_container(x) || w->mark[value] == DONE)
        return US_OK;
    if (w->mark[value] == OPEN)
        return us_fail(err, US_E_FORMAT, "the pickle makes a value that contains itself");
    if (w->depth == US_MAX_TORCH_DEPTH)
        return us_fail(err, US_E_TOO_LARGE, "the pickle nests values more than %d deep",
                       US_MAX_TORCH_DEPTH);
    w->mark[value] = OPEN;
    w->stack[w->depth].value = value;
    w->stack[w->depth++].next = x->items.first;
    return US_OK;
}

/* Depth first, every value once, so that shared values cost nothing more. */
static enum us_status walk_tree(struct walk *w, uint32_t root, struct us_err *err)
{
    US_TRY(enter(w, root, err));
    while (w->depth > 0) {
        uint32_t at = w->stack[w->depth - 1].next;
        if (at == USI_PT_NIL) {
            w->mark[w->stack[--w->depth].value] = DONE;
            continue;
        }
        w->stack[w->depth - 1].next = w->v->link[at].next;
        US_TRY(enter(w, w->v->link[at].value, err));
    }
    return US_OK;
}

enum us_status usi_pt_values_check_tree(const struct usi_pt_values *v, uint32_t root,
                                        struct us_err *err)
{
    struct walk w = {.v = v, .mark = calloc(v->n_values, 1)};
    if (w.mark == NULL)
        return us_fail(err, US_E_NOMEM, "no memory to check %u values", (unsigned)v->n_values);
    enum us_status s = walk_tree(&w, root, err);
    free(w.mark);
    return s;
}
