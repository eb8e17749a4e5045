/* Zip archives byte by byte, see us_torch_make.h. */
#include "us_torch_make.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>

#define MAX_PARTS 8
#define CAP       (1 << 20)

struct out {
    unsigned char *p;
    size_t n;
};

static void put(struct out *o, const void *bytes, size_t n)
{
    assert_true(o->n + n <= CAP);
    if (n > 0)
        memcpy(o->p + o->n, bytes, n);
    o->n += n;
}

static void le(struct out *o, uint64_t x, int n)
{
    for (int i = 0; i < n; i++) {
        unsigned char b = (unsigned char)(x >> (8 * i));
        put(o, &b, 1);
    }
}

static uint32_t crc_of(const struct us_zip_part *p)
{
    if (p->crc_lie != 0)
        return p->crc_lie;
    return (uint32_t)crc32(crc32(0, NULL, 0), p->data, (uInt)p->n);
}

static uint32_t size_of(const struct us_zip_part *p)
{
    return p->size_lie != 0 ? p->size_lie : (uint32_t)p->n;
}

static void put_local(struct out *o, const struct us_zip_part *p)
{
    uint32_t size = p->local_size_lie != 0 ? p->local_size_lie : size_of(p);
    const char *name = p->local_name != NULL ? p->local_name : p->name;
    put(o, "PK\003\004", 4);
    le(o, 20, 2);
    le(o, p->flags, 2);
    le(o, p->method, 2);
    le(o, 0, 4);
    le(o, crc_of(p), 4);
    le(o, p->zip64 ? UINT32_MAX : size, 4);
    le(o, p->zip64 ? UINT32_MAX : size, 4);
    le(o, strlen(name), 2);
    le(o, 0, 2);
    put(o, name, strlen(name));
    put(o, p->data, p->n);
}

static void put_entry(struct out *o, const struct us_zip_part *p, size_t at)
{
    size_t extra = p->zip64_bytes != 0 ? p->zip64_bytes : 24;
    uint64_t size = p->zip64_size_lie != 0 ? p->zip64_size_lie : size_of(p);
    put(o, "PK\001\002", 4);
    le(o, 20, 2);
    le(o, 20, 2);
    le(o, p->flags, 2);
    le(o, p->method, 2);
    le(o, 0, 4);
    le(o, crc_of(p), 4);
    le(o, p->zip64 ? UINT32_MAX : size_of(p), 4);
    le(o, p->zip64 ? UINT32_MAX : size_of(p), 4);
    le(o, strlen(p->name), 2);
    le(o, p->zip64 ? 4 + extra : 0, 2);
    le(o, 0, 8);
    le(o, 0, 2);
    le(o, p->zip64 ? UINT32_MAX : at, 4);
    put(o, p->name, strlen(p->name));
    if (!p->zip64)
        return;
    le(o, 1, 2);
    le(o, extra, 2);
    const uint64_t field[] = {size, size, at};
    for (size_t i = 0; i < extra / 8; i++)
        le(o, i < 3 ? field[i] : 0, 8);
}

static void put_end(struct out *o, const struct us_zip_make *m, size_t at, size_t bytes)
{
    uint64_t n = (uint64_t)m->n + m->count_plus, place = at + m->directory_at_plus;
    size_t end64 = o->n;
    if (m->zip64 && !m->no_end64) {
        put(o, "PK\006\006", 4);
        le(o, 44, 8);
        le(o, 20, 2);
        le(o, 20, 2);
        le(o, 0, 8);
        le(o, n, 8);
        le(o, n, 8);
        le(o, bytes, 8);
        le(o, place, 8);
        put(o, "PK\006\007", 4);
        le(o, 0, 4);
        le(o, end64 + m->end64_at_plus, 8);
        le(o, 1, 4);
    }
    put(o, "PK\005\006", 4);
    le(o, 0, 4);
    le(o, m->zip64 ? UINT16_MAX : n, 2);
    le(o, m->zip64 ? UINT16_MAX : n, 2);
    le(o, m->zip64 ? UINT32_MAX : bytes, 4);
    le(o, m->zip64 ? UINT32_MAX : place, 4);
    le(o, 0, 2);
}

unsigned char *us_zip_make(const struct us_zip_make *m, size_t *ret_n)
{
    struct out o = {.p = calloc(1, CAP)};
    size_t at[MAX_PARTS];
    assert_non_null(o.p);
    assert_true(m->n <= MAX_PARTS);
    o.n = m->before;
    for (int i = 0; i < m->n; i++) {
        const struct us_zip_part *p = &m->part[i];
        at[i] = p->offset_plus_1 != 0 ? p->offset_plus_1 - 1 : o.n;
        put_local(&o, p);
    }
    size_t directory = o.n;
    for (int i = 0; i < m->n; i++)
        put_entry(&o, &m->part[i], at[i]);
    put_end(&o, m, directory, o.n - directory);
    o.n += m->after;
    *ret_n = o.n;
    return o.p;
}

const float us_torch_numbers[4] = {1.5f, -2.0f, 3.25f, 1e-3f};

unsigned char *us_torch_checkpoint(const void *pickle, size_t n, size_t *ret_n)
{
    const struct us_zip_part part[] = {
        {.name = "a/data.pkl", .data = pickle, .n = n},
        {.name = "a/data/0", .data = us_torch_numbers, .n = sizeof(us_torch_numbers)},
    };
    const struct us_zip_make make = {.part = part, .n = 2};
    return us_zip_make(&make, ret_n);
}
