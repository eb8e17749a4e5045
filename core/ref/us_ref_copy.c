/* Reference copy of a rectangle; the one reference op that also reads and writes bf16. */
#include "math/us_bf16_math.h"
#include "us_ref.h"

static float load(const struct us_map *m, const void *buf, int64_t at)
{
    return m->dtype == US_F32 ? ((const float *)buf)[at]
                              : us_f32_of_bf16(((const uint16_t *)buf)[at]);
}

static void store(const struct us_map *m, void *buf, int64_t at, float v)
{
    if (m->dtype == US_F32)
        ((float *)buf)[at] = v;
    else
        ((uint16_t *)buf)[at] = us_bf16_of_f32(v);
}

static void copy_pixel(const struct usi_ref_op *op, const struct us_op_bufs *bufs, int32_t n,
                       int32_t y, int32_t x)
{
    const struct us_copy_desc *d = &op->d.copy;
    bool inside = usi_ref_holds(&d->in, y, x);
    int64_t from = inside ? us_map_index(&d->in, n, y, x) : 0;
    int64_t to = us_map_index(&d->out, n, y, x);
    for (int32_t c = 0; c < d->out.c; c++)
        store(&d->out, bufs->out, to + c, inside ? load(&d->in, bufs->in[0], from + c) : 0.0f);
}

enum us_status usi_ref_copy_init(struct usi_ref_op *op, struct us_err *err)
{
    op->out = op->d.copy.out;
    op->pixel = copy_pixel;
    return US_OK;
}
