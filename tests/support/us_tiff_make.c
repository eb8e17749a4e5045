/* TIFF files in memory for tests; see us_tiff_make.h. */
#include "us_tiff_make.h"

#include <stdlib.h>
#include <string.h>

#include "us_status.h"

size_t mk_bytes(struct mk_file *f, const void *p, size_t n)
{
    if (f->n + n > f->cap) {
        f->cap = 2 * (f->n + n);
        f->p = realloc(f->p, f->cap);
        US_ASSERT(f->p != NULL);
    }
    if (n > 0)
        memcpy(f->p + f->n, p, n);
    f->n += n;
    return f->n - n;
}

void mk_patch(struct mk_file *f, size_t at, uint64_t v, int n_bytes)
{
    US_ASSERT(at + (size_t)n_bytes <= f->n);
    for (int i = 0; i < n_bytes; i++)
        f->p[at + (size_t)i] = (uint8_t)(v >> 8 * (f->big_endian ? n_bytes - 1 - i : i));
}

size_t mk_number(struct mk_file *f, uint64_t v, int n_bytes)
{
    static const uint8_t zeros[8];
    size_t at = mk_bytes(f, zeros, (size_t)n_bytes);
    mk_patch(f, at, v, n_bytes);
    return at;
}

size_t mk_noise(struct mk_file *f, size_t n)
{
    size_t at = f->n;
    uint32_t s = 2463534242u;
    for (size_t i = 0; i < n; i++) {
        s = 1664525u * s + 1013904223u;
        uint8_t b = (uint8_t)(s >> 24);
        (void)mk_bytes(f, &b, 1);
    }
    return at;
}

void mk_init(struct mk_file *f, bool big, bool big_endian)
{
    *f = (struct mk_file){.big = big, .big_endian = big_endian};
    (void)mk_bytes(f, big_endian ? "MM" : "II", 2);
    (void)mk_number(f, big ? 43 : 42, 2);
    if (big) {
        (void)mk_number(f, 8, 2);
        (void)mk_number(f, 0, 2);
    }
    f->link = mk_number(f, 0, big ? 8 : 4);
}

void mk_free(struct mk_file *f)
{
    free(f->p);
    *f = (struct mk_file){0};
}

void mk_remove(struct mk_page *p, uint16_t tag)
{
    int kept = 0;
    for (int i = 0; i < p->n; i++) {
        if (p->tags[i].tag != tag)
            p->tags[kept++] = p->tags[i];
    }
    p->n = kept;
}

void mk_set(struct mk_page *p, uint16_t tag, uint16_t type, uint64_t count, uint64_t value)
{
    mk_remove(p, tag);
    US_ASSERT(p->n < MK_MAX_TAGS);
    int i = p->n++;
    for (; i > 0 && p->tags[i - 1].tag > tag; i--)
        p->tags[i] = p->tags[i - 1];
    p->tags[i] = (struct mk_tag){tag, type, count, value};
}

struct mk_page mk_gray(int64_t w, int64_t h, int bits, uint64_t data)
{
    struct mk_page p = {.n = 0};
    mk_set(&p, 256, MK_LONG, 1, (uint64_t)w);
    mk_set(&p, 257, MK_LONG, 1, (uint64_t)h);
    mk_set(&p, 258, MK_SHORT, 1, (uint64_t)bits);
    mk_set(&p, 259, MK_SHORT, 1, 1);
    mk_set(&p, 262, MK_SHORT, 1, 1);
    mk_set(&p, 273, MK_LONG, 1, data);
    mk_set(&p, 277, MK_SHORT, 1, 1);
    mk_set(&p, 278, MK_LONG, 1, (uint64_t)h);
    mk_set(&p, 279, MK_LONG, 1, (uint64_t)(w * h * bits / 8));
    return p;
}

void mk_describe(struct mk_file *f, struct mk_page *p, const char *text)
{
    size_t n = strlen(text) + 1;
    US_ASSERT(n > 8); /* shorter ones would have to stand in the tag */
    mk_set(p, 270, MK_ASCII, n, mk_bytes(f, text, n));
}

static int type_bytes(uint16_t type)
{
    switch (type) {
    case MK_SHORT:
        return 2;
    case MK_LONG:
    case MK_FLOAT:
        return 4;
    case MK_RATIONAL:
    case MK_LONG8:
        return 8;
    default:
        return 1;
    }
}

size_t mk_page(struct mk_file *f, struct mk_page *p)
{
    static const uint8_t zeros[8];
    size_t at = f->n;
    int word = f->big ? 8 : 4;
    mk_patch(f, f->link, at, word);
    (void)mk_number(f, (uint64_t)p->n, f->big ? 8 : 2);
    for (int i = 0; i < p->n; i++) {
        const struct mk_tag *t = &p->tags[i];
        int n_bytes = t->count == 1 && type_bytes(t->type) <= word ? type_bytes(t->type) : word;
        (void)mk_number(f, t->tag, 2);
        (void)mk_number(f, t->type, 2);
        (void)mk_number(f, t->count, word);
        mk_patch(f, mk_bytes(f, zeros, (size_t)word), t->value, n_bytes);
    }
    f->link = mk_number(f, 0, word);
    return at;
}
