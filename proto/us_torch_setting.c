/*
 * Finding a hyper-parameter in what a Lightning file keeps beside its state dictionary. Their
 * places differ between projects and versions, so they are looked for by name, nearest to the root
 * first; objects of foreign classes (AttributeDict, ConfigDict) are looked through like
 * dictionaries.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_torch_int.h"

/* A ConfigDict of ml_collections keeps its members one step further down. */
#define TRANSPARENT_KEY "_fields"
/* Thousands of tensors, and members called "step" and the like. */
#define SKIPPED_KEY "optimizer_states"

struct search {
    const struct usi_pt_values *v;
    uint32_t state;
    const char *parent, *key;
    uint32_t *queue;
    unsigned char *seen;   /* by value */
    unsigned char *inside; /* by value: it is the member `parent` */
    uint32_t n_queue;
};

static void visit(struct search *s, uint32_t value, bool inside)
{
    uint8_t kind = s->v->value[value].kind;
    bool walked =
        kind == USI_PT_DICT || kind == USI_PT_OPAQUE || kind == USI_PT_LIST || kind == USI_PT_TUPLE;
    if (!walked || s->seen[value] != 0 || value == s->state)
        return;
    s->seen[value] = 1;
    s->inside[value] = inside;
    s->queue[s->n_queue++] = value;
}

/* A plain value as item i of *ret. */
static bool read_plain(const struct usi_pt_values *v, const struct usi_pt_value *x, int32_t i,
                       struct us_torch_value *ret)
{
    static const enum us_torch_kind kinds[] = {[USI_PT_NONE] = US_TORCH_NONE,
                                               [USI_PT_FLAG] = US_TORCH_FLAG,
                                               [USI_PT_INT] = US_TORCH_INT,
                                               [USI_PT_REAL] = US_TORCH_REAL,
                                               [USI_PT_TEXT] = US_TORCH_TEXT};
    if (x->kind > USI_PT_TEXT || x->kind == USI_PT_BIG)
        return false;
    enum us_torch_kind kind = kinds[x->kind];
    bool numbers = (kind == US_TORCH_INT && ret->kind == US_TORCH_REAL) ||
                   (kind == US_TORCH_REAL && ret->kind == US_TORCH_INT);
    if (i > 0 && kind != ret->kind && !numbers)
        return false;
    if (i == 0 || numbers)
        ret->kind = numbers ? US_TORCH_REAL : kind;
    if (x->kind == USI_PT_INT || x->kind == USI_PT_FLAG) {
        ret->integer[i] = x->integer;
        ret->real[i] = (double)x->integer;
    } else if (x->kind == USI_PT_REAL) {
        ret->real[i] = x->real;
    } else if (x->kind == USI_PT_TEXT) {
        if (x->text.n >= sizeof(ret->text[i]))
            return false;
        memcpy(ret->text[i], v->pickle + x->text.at, x->text.n);
    }
    return true;
}

static bool read_value(const struct usi_pt_values *v, uint32_t value, struct us_torch_value *ret)
{
    const struct usi_pt_value *x = &v->value[value];
    memset(ret, 0, sizeof(*ret));
    ret->n = 1;
    if (x->kind != USI_PT_LIST && x->kind != USI_PT_TUPLE)
        return read_plain(v, x, 0, ret);
    if (x->n > US_TORCH_LIST)
        return false;
    ret->list = true;
    ret->n = (int32_t)x->n;
    int32_t i = 0;
    for (uint32_t at = x->items.first; at != USI_PT_NIL; at = v->link[at].next)
        if (!read_plain(v, &v->value[v->link[at].value], i++, ret))
            return false;
    return true;
}

/* The members of a DICT or OPAQUE: is one of them what we look for? */
static bool search_members(struct search *s, uint32_t dict, struct us_torch_value *ret)
{
    const struct usi_pt_values *v = s->v;
    bool here = s->parent == NULL || s->inside[dict] != 0;
    for (uint32_t at = v->value[dict].items.first; at != USI_PT_NIL;) {
        uint32_t key = v->link[at].value, link = v->link[at].next, value = v->link[link].value;
        bool through =
            v->value[key].kind != USI_PT_TEXT || usi_pt_value_is_text(v, key, TRANSPARENT_KEY);
        if (here && usi_pt_value_is_text(v, key, s->key) && read_value(v, value, ret))
            return true;
        if (!usi_pt_value_is_text(v, key, SKIPPED_KEY))
            visit(s, value,
                  (through && s->inside[dict] != 0) ||
                      (s->parent != NULL && usi_pt_value_is_text(v, key, s->parent)));
        at = v->link[link].next;
    }
    return false;
}

static bool search_all(struct search *s, uint32_t root, struct us_torch_value *ret)
{
    visit(s, root, false);
    for (uint32_t i = 0; i < s->n_queue; i++) {
        uint32_t x = s->queue[i];
        uint8_t kind = s->v->value[x].kind;
        if (kind == USI_PT_DICT || kind == USI_PT_OPAQUE) {
            if (search_members(s, x, ret))
                return true;
            continue;
        }
        for (uint32_t at = s->v->value[x].items.first; at != USI_PT_NIL; at = s->v->link[at].next)
            visit(s, s->v->link[at].value, s->inside[x] != 0);
    }
    return false;
}

bool usi_pt_find_setting(const struct usi_pt_values *v, uint32_t root, uint32_t state,
                         const char *parent, const char *key, struct us_torch_value *ret)
{
    struct search s = {.v = v, .state = state, .parent = parent, .key = key};
    s.queue = calloc(v->n_values, sizeof(*s.queue));
    s.seen = calloc(v->n_values, 1);
    s.inside = calloc(v->n_values, 1);
    bool found = false;
    if (s.queue != NULL && s.seen != NULL && s.inside != NULL && root != state)
        found = search_all(&s, root, ret);
    free(s.queue);
    free(s.seen);
    free(s.inside);
    return found;
}
