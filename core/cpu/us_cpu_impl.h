/*
 * Inside the cpu backend: what its op files share. An op is a few *convolutions* (each a window of
 * a map, computed in bands of output rows), their *sources* (the dense buffer that holds the
 * window) and an own pass over each band while it is still in the cache. Bands exist for that
 * alone: results do not depend on them.
 *
 * Everything is decided at plan time; run walks items and bands and allocates nothing itself.
 */
#ifndef US_CPU_IMPL_H
#define US_CPU_IMPL_H

#include "us_backend.h"
#include "us_cpu_dnn.h"
#include "us_cpu_kernels.h"

#define US_CPU_ALIGN 64

/* Staged rows of one band; with a band of input and output beside it, within a 1 MiB cache. */
#define US_CPU_BAND_BYTES (256 << 10)

struct us_backend {
    struct us_backend_base base;
    struct usi_dnn *dnn;
    const struct usi_cpu_kernels *kern;
    /* [dtype of the source] whether ELU belongs into oneDNN's convolution or into an own pass:
     * free inside where sums end in vector registers, 30-60 % on top of a tile (AMX) one. */
    bool fuse_elu[2];
};

/* ---- sources ---- */

/* The part of a map an op reads, as one dense rectangle per item: the map's own buffer where its
 * columns are the needed ones, else a copy in scratch. Outside `view` the map is zero. */
struct usi_cpu_source {
    struct us_map map;
    struct us_rect view; /* full-map coordinates; may reach beyond the map when copied */
    size_t copy_bytes;   /* 0: view is the map's buffer */
    size_t copy_at;      /* in scratch */
};

/* need may reach beyond the map. Up to pad_y rows and pad_x columns of zeros round the view are
 * left to the reader; with more the zeros are written out. */
void usi_cpu_source_plan(struct usi_cpu_source *s, const struct us_map *map, struct us_rect need,
                         int32_t pad_y, int32_t pad_x);

/* For ops that read pixel by pixel: any rectangle that holds out.rect will do. */
void usi_cpu_source_under(struct usi_cpu_source *s, const struct us_map *map,
                          const struct us_map *out);

/* ---- convolutions ---- */

struct usi_cpu_window {
    int32_t kh, kw, stride;
    int32_t y0, x0; /* input pixel under the first tap of the first output; full-map coordinates */
    int32_t oh, ow;
    int32_t ic, oc;
    enum us_dtype src, dst;
    bool bias, elu;
    struct us_rect view; /* the source's */
    int32_t first_rows;  /* output rows of the first band */
    int32_t band_rows;   /* and of all further ones but the last */
};

struct usi_cpu_band {
    int32_t y0, h;  /* output rows */
    int64_t src_at; /* first element it reads, in the source's view */
    int32_t prim;
};

/* Bands at the border have their own padding, so their own primitive; mostly all primitives take
 * one packing of the weights, and only distinct packings are stored. */
struct usi_cpu_prim {
    struct usi_dnn_conv *conv;
    size_t weights_at; /* in packed, from the convolution's own part */
    bool first_use;    /* this primitive packs its weights; false: an earlier one did */
};

struct usi_cpu_conv {
    struct usi_cpu_window win;
    int32_t n_bands, n_prims;
    struct usi_cpu_band *band;
    struct usi_cpu_prim *prim;
    size_t weight_bytes, scratch_bytes;
    size_t packed_at;   /* in packed */
    int32_t first_call; /* in us_bound.call */
};

/* *c is zero-initialised and is released by usi_cpu_conv_release also after a failure. */
enum us_status usi_cpu_conv_plan(struct us_backend *be, const struct usi_cpu_window *win,
                                 struct usi_cpu_conv *c, struct us_err *err) US_WARN_UNUSED;
void usi_cpu_conv_release(struct usi_cpu_conv *c);
/* w f32 [oc, ic, kh, kw]; packed as handed to op_pack. */
enum us_status usi_cpu_conv_pack(const struct usi_cpu_conv *c, const float *w,
                                 void *packed) US_WARN_UNUSED;

/* Rows per band such that rows of row_bytes each fill about US_CPU_BAND_BYTES, evenly. */
int32_t usi_cpu_band_rows(int32_t rows, int64_t row_bytes);

/* ---- ops ---- */

#define US_CPU_MAX_CONVS 4

/* First member of us_op: base, so that the two pointers convert into each other. */
struct usi_cpu_op {
    struct us_op base;
    struct us_backend *be;
    union {
#define US_OP(name) struct us_##name##_desc name;
#include "us_ops.def"
#undef US_OP
    } d;
    /* Set by the op's init, as far as it uses them. */
    enum us_status (*pack)(const struct usi_cpu_op *op, const struct us_op_weights *w,
                           void *packed); /* the convolutions' weights */
    enum us_status (*run)(const struct us_bound *b);
    struct usi_cpu_source src[US_OP_MAX_IN];
    struct usi_cpu_conv conv[US_CPU_MAX_CONVS];
    int32_t n_conv;
    int32_t n_in;           /* inputs a run reads; set by us_cpu.c to 1 before init */
    bool out2;              /* whether a run writes the tail's output */
    int32_t n_bias, n_tail; /* elements */
    size_t stage_bytes[2];
    void (*epilogue)(const struct usi_cpu_epilogue *a); /* NULL: none */
    void (*gate)(const struct usi_cpu_gate_args *a);
    /* Set by us_cpu.c after init: offsets in packed and scratch. */
    size_t bias_at, scale_at, shift_at;
    size_t dnn_at, stage_at[2];
    int64_t tail_period;
    int32_t n_calls;
};

struct us_bound {
    const struct usi_cpu_op *op;
    struct us_op_bufs bufs;
    struct usi_cpu_tail tail;
    struct usi_dnn_call **call; /* [op->n_calls], by convolution and primitive */
};

/* Fills the op from op->d, which has passed its check. */
#define US_OP(name)                                                                                \
    enum us_status usi_cpu_##name##_init(struct usi_cpu_op *op, struct us_err *err) US_WARN_UNUSED;
#include "us_ops.def"
#undef US_OP

/* US_E_UNSUPPORTED for maps and kernels so large that coordinates could leave 32 bits. */
enum us_status usi_cpu_limits(const struct us_map *m, int32_t k, struct us_err *err) US_WARN_UNUSED;

/* The dense rectangle of item n of source i: [view.h, view.w, c]. Copies it first if need be. */
const void *usi_cpu_source_item(const struct us_bound *b, int32_t i, int32_t n);

/* Computes one band of convolution i: dst [band.h, win.ow, win.oc]. */
enum us_status usi_cpu_conv_run(const struct us_bound *b, int32_t i, int32_t band, const void *src,
                                void *dst) US_WARN_UNUSED;

/* Rows y .. y+h (full map) of item n: applies op->epilogue to x f32 [h, out.rect.w, out.c]; res may
 * be NULL. */
void usi_cpu_epilogue_rows(const struct us_bound *b, const struct us_map *out,
                           const struct us_map *res, int32_t n, int32_t y, int32_t h,
                           const float *x);

static inline void *usi_cpu_stage(const struct us_bound *b, int32_t i)
{
    return (char *)b->bufs.scratch + b->op->stage_at[i];
}

/* Address of pixel (y, x) of the full map in a map's buffer. */
static inline const void *usi_cpu_pixel(const struct us_map *m, const void *buf, int32_t n,
                                        int32_t y, int32_t x)
{
    return (const char *)buf + (size_t)us_map_index(m, n, y, x) * us_dtype_bytes(m->dtype);
}

static inline void *usi_cpu_pixel_out(const struct us_map *m, void *buf, int32_t n, int32_t y,
                                      int32_t x)
{
    return (char *)buf + (size_t)us_map_index(m, n, y, x) * us_dtype_bytes(m->dtype);
}

static inline size_t usi_cpu_aligned(size_t bytes)
{
    return (bytes + US_CPU_ALIGN - 1) / US_CPU_ALIGN * US_CPU_ALIGN;
}

static inline int32_t usi_cpu_min(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static inline int32_t usi_cpu_max(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

/* The common part of two rectangles; h or w <= 0 if there is none. */
static inline struct us_rect usi_cpu_rect_meet(struct us_rect a, struct us_rect b)
{
    struct us_rect r;
    r.y0 = usi_cpu_max(a.y0, b.y0);
    r.x0 = usi_cpu_max(a.x0, b.x0);
    r.h = usi_cpu_min(a.y0 + a.h, b.y0 + b.h) - r.y0;
    r.w = usi_cpu_min(a.x0 + a.w, b.x0 + b.w) - r.x0;
    return r;
}

#endif
