/*
 * What must hold to the bit on every backend, because the bytes of a prediction may depend on
 * neither the batch nor on how much of a map is computed.
 */
#include <stdlib.h>
#include <string.h>

#include "ops_test.h"

void ops_set_dtypes(struct ops_case *c, enum us_dtype in, enum us_dtype out)
{
    if (c->own_dtypes)
        return;
    for (int i = 0; i < US_OP_MAX_IN; i++)
        if (c->in[i] != NULL)
            c->in[i]->dtype = in;
    c->out->dtype = out;
}

static void take(struct ops_case *c, enum us_op_kind kind, const struct ops_suite *s, int i,
                 enum us_dtype dtype, struct ops_data *d)
{
    c->kind = kind;
    s->get(i, c);
    ops_set_dtypes(c, dtype, dtype);
    ops_data_make(c, c->in[0]->dtype == US_BF16, d);
}

/* The last item of the case alone: n = 1, the data from where the item begins. */
static void narrow(struct ops_case *c, struct ops_data *d)
{
    int32_t last = c->out->n - 1;
    for (int i = 0; i < US_OP_MAX_IN; i++) {
        if (c->in[i] == NULL)
            continue;
        c->in[i]->n = 1;
        d->in[i] += last * us_map_count(c->in[i]);
    }
    c->out->n = 1;
    d->noise[0] = d->noise[last];
}

bool ops_item_is_the_same_alone(struct us_backend *be, enum us_op_kind kind,
                                const struct ops_suite *s, int i, enum us_dtype dtype)
{
    struct ops_case c = {0};
    struct ops_data d;
    struct ops_result all = {0}, one = {0};
    take(&c, kind, s, i, dtype, &d);
    int32_t last = c.out->n - 1;
    enum us_status st = ops_run(be, &c, &d, &all);
    bool same = st == US_E_UNSUPPORTED;
    if (st == US_OK) {
        struct ops_data mine = d;
        narrow(&c, &mine);
        st = ops_run(be, &c, &mine, &one);
        int64_t n = us_map_count(c.out);
        size_t bytes = (size_t)n * sizeof(float);
        same = st == US_OK && memcmp(all.out + last * n, one.out, bytes) == 0 &&
               (!c.tail || memcmp(all.out2 + last * n, one.out2, bytes) == 0);
        if (!same)
            print_error("%s: item %d has other bits in a batch than alone\n", c.name, last);
    }
    ops_result_free(&all);
    ops_result_free(&one);
    ops_data_free(&d);
    return same;
}

static bool is_full(const struct us_map *m)
{
    return m == NULL || (m->rect.h == m->full_h && m->rect.w == m->full_w);
}

bool ops_is_whole(const struct ops_case *c)
{
    /* Beyond "same" padding, which no network has, oneDNN takes other kernels for other sizes. */
    if (c->kind == US_OP_conv2d && c->d.conv2d.pad > c->d.conv2d.k / 2)
        return false;
    return is_full(c->in[0]) && is_full(c->in[1]) && is_full(c->out) && c->out->full_h >= 4 &&
           c->out->full_w >= 4;
}

/* The part: off the centre, odd where the size allows it, nowhere at a border. */
static void shrink_axis(int32_t full, int32_t *at, int32_t *size)
{
    *at = full / 4;
    *size = (full / 2) | 1;
    if (*at + *size > full - 1)
        *size = full - 1 - *at;
}

/* What the part can need of an input: its share of the map, and 5 pixels round it. */
static struct us_rect share(const struct us_map *in, const struct us_map *out)
{
    const struct us_rect *o = &out->rect;
    int32_t y0 = o->y0 * in->full_h / out->full_h - 5;
    int32_t x0 = o->x0 * in->full_w / out->full_w - 5;
    int32_t y1 = (o->y0 + o->h) * in->full_h / out->full_h + 6;
    int32_t x1 = (o->x0 + o->w) * in->full_w / out->full_w + 6;
    y0 = y0 < 0 ? 0 : y0;
    x0 = x0 < 0 ? 0 : x0;
    y1 = y1 > in->full_h ? in->full_h : y1;
    x1 = x1 > in->full_w ? in->full_w : x1;
    return (struct us_rect){y0, x0, y1 - y0, x1 - x0};
}

/* The pixels of `part` (a map with a smaller rectangle) out of those of `whole`; caller frees. */
static float *cut(const struct us_map *whole, const float *v, const struct us_map *part)
{
    const struct us_rect *r = &part->rect;
    float *cut_out = malloc((size_t)us_map_count(part) * sizeof(*cut_out));
    assert_non_null(cut_out);
    for (int32_t n = 0; n < part->n; n++)
        for (int32_t y = r->y0; y < r->y0 + r->h; y++)
            memcpy(cut_out + us_map_index(part, n, y, r->x0), v + us_map_index(whole, n, y, r->x0),
                   (size_t)r->w * (size_t)part->c * sizeof(float));
    return cut_out;
}

static bool same_part(const struct us_map *whole, const float *v, const struct us_map *part,
                      const float *got)
{
    float *want = cut(whole, v, part);
    bool same = memcmp(want, got, (size_t)us_map_count(part) * sizeof(*want)) == 0;
    free(want);
    return same;
}

/* Runs a part of the case; `all` is what the whole gave. */
static bool part_agrees(struct us_backend *be, struct ops_case *c, const struct ops_data *d,
                        const struct ops_result *all)
{
    struct us_map whole = *c->out;
    struct ops_data mine = *d;
    struct ops_result part = {0};
    shrink_axis(whole.full_h, &c->out->rect.y0, &c->out->rect.h);
    shrink_axis(whole.full_w, &c->out->rect.x0, &c->out->rect.w);
    for (int i = 0; i < US_OP_MAX_IN; i++) {
        if (c->in[i] == NULL)
            continue;
        struct us_map before = *c->in[i];
        c->in[i]->rect = share(c->in[i], c->out);
        mine.in[i] = cut(&before, d->in[i], c->in[i]);
    }
    bool same = ops_run(be, c, &mine, &part) == US_OK &&
                same_part(&whole, all->out, c->out, part.out) &&
                (!c->tail || same_part(&whole, all->out2, c->out, part.out2));
    for (int i = 0; i < US_OP_MAX_IN; i++)
        free(mine.in[i]);
    ops_result_free(&part);
    return same;
}

bool ops_part_is_that_of_the_whole(struct us_backend *be, enum us_op_kind kind,
                                   const struct ops_suite *s, int i, enum us_dtype dtype)
{
    struct ops_case c = {0};
    struct ops_data d;
    struct ops_result all = {0};
    take(&c, kind, s, i, dtype, &d);
    enum us_status st = ops_run(be, &c, &d, &all);
    bool same = st == US_E_UNSUPPORTED;
    if (st == US_OK) {
        same = part_agrees(be, &c, &d, &all);
        if (!same)
            print_error("%s: a part of the map has other bits than in the whole\n", c.name);
    }
    ops_result_free(&all);
    ops_data_free(&d);
    return same;
}
