/*
 * The loops behind us_cpu_train_kernels.h, compiled once per instruction set with
 * US_CPU_TRAIN_KERNELS naming the table. Policy as in us_cpu_kernels.c: formulas live in core/math,
 * a loop walks memory, the compiler makes the vectors.
 *
 * A map with channel vectors is walked in *spans*: some pixels of up to CHUNK channels that lie
 * together, with the vectors repeated to the span's length, so that inner loops are long.
 */
#include "us_cpu_train_kernels.h"

#include <string.h>

#include "math/us_adamax_math.h"
#include "math/us_elbo_math.h"
#include "math/us_elu_math.h"
#include "us_cpu_vector.h"

extern const struct usi_cpu_train_kernels US_CPU_TRAIN_KERNELS;

/* ---- spans ---- */

INLINE int64_t at_most(int64_t n, int64_t most)
{
    return n < most ? n : most;
}

/* Channels c0 .. c0+n of m pixels at a time; m > 1 only if these are all channels. */
struct span {
    int32_t c0, n, m;
};

INLINE struct span span_at(const struct us_ew *e, int32_t c0)
{
    struct span s = {c0, e->c - c0 < CHUNK ? e->c - c0 : CHUNK, 1};
    if (s.n == e->c)
        s.m = CHUNK / s.n;
    return s;
}

/* Some pixels of a span: m of them from pixel p on, n elements from element `at` on. */
struct run {
    int64_t p, m, at, n;
};

INLINE struct run run_at(const struct us_ew *e, struct span s, int64_t p)
{
    int64_t m = at_most(e->n_px - p, s.m);
    struct run r = {p, m, p * e->c + s.c0, m * s.n};
    return r;
}

/* The span's part of a channel vector, once per pixel. */
INLINE void repeat(const float *v, struct span s, float *out)
{
    for (int32_t j = 0; j < s.m; j++)
        for (int32_t i = 0; i < s.n; i++)
            out[j * s.n + i] = v[i];
}

/* Where a loop's f32 results go before they are rounded: `out` itself if it is f32. */
INLINE float *result(void *out, int64_t at, enum us_dtype t, float *buffer)
{
    return t == US_F32 ? (float *)out + at : buffer;
}

INLINE void finish(const float *v, void *out, int64_t at, int64_t n, enum us_dtype t)
{
    if (t != US_F32)
        convert(v, advance_out(out, at, t), n, US_F32, t);
}

/* ---- sums per channel ---- */

/* Written out as vectors of one register: gcc leaves the plain loop over an array of sums scalar.
 * Their width does not show, as each channel has a sum of its own. */
#if defined(__AVX512F__)
#define WIDE 8
#elif defined(__AVX__)
#define WIDE 4
#else
#define WIDE 2
#endif
typedef double f64_wide __attribute__((vector_size(WIDE * sizeof(double))));
typedef float f32_wide __attribute__((vector_size(WIDE * sizeof(float))));

INLINE f64_wide load_wide(const float *p)
{
    f32_wide v;
    memcpy(&v, p, sizeof(v));
    return __builtin_convertvector(v, f64_wide);
}

/* s1[i] += sum over pixels of v, s2[i] += sum of v * u, i < n; pixel by pixel, in order. A product
 * of two f32 is exact in double. */
INLINE void add_moments(const float *v, const float *u, int64_t m, int32_t n, double *s1,
                        double *s2)
{
    int32_t c = 0;
    for (; c + WIDE <= n; c += WIDE) {
        f64_wide a, b;
        memcpy(&a, s1 + c, sizeof(a));
        memcpy(&b, s2 + c, sizeof(b));
        for (int64_t j = 0; j < m; j++) {
            f64_wide x = load_wide(v + j * n + c);
            a += x;
            b += x * load_wide(u + j * n + c);
        }
        memcpy(s1 + c, &a, sizeof(a));
        memcpy(s2 + c, &b, sizeof(b));
    }
    for (; c < n; c++)
        for (int64_t j = 0; j < m; j++) {
            double x = (double)v[j * n + c];
            s1[c] += x;
            s2[c] += x * (double)u[j * n + c];
        }
}

INLINE void clear(double *part, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        part[i] = 0.0;
}

/* Sums over a long run in numbered lanes: element i of the run goes to lane i mod LANES. */
#define LANES 16
struct lane_sum {
    double lane[LANES];
};

INLINE double lane_total(const struct lane_sum *s)
{
    double t = 0.0;
    for (int i = 0; i < LANES; i++)
        t += s->lane[i];
    return t;
}

/* ---- batch norm + ELU ---- */

INLINE void bn_stats(const struct us_ew *e, const void *x, double *part, enum us_dtype t)
{
    float buffer[CHUNK];
    clear(part, 2 * (int64_t)e->c);
    for (struct span s = span_at(e, 0); s.n > 0; s = span_at(e, s.c0 + s.n))
        for (struct run r = run_at(e, s, 0); r.m > 0; r = run_at(e, s, r.p + r.m)) {
            const float *v = as_f32(x, r.at, (int32_t)r.n, t, buffer);
            add_moments(v, v, r.m, s.n, part + s.c0, part + e->c + s.c0);
        }
}

INLINE void bn_elu_fwd(const struct us_ew *e, const void *x, const struct us_bn_affine *aff,
                       void *h, enum us_dtype t)
{
    float scale[CHUNK], shift[CHUNK], buffer[CHUNK];
    for (struct span s = span_at(e, 0); s.n > 0; s = span_at(e, s.c0 + s.n)) {
        repeat(aff->scale + s.c0, s, scale);
        repeat(aff->shift + s.c0, s, shift);
        for (struct run r = run_at(e, s, 0); r.m > 0; r = run_at(e, s, r.p + r.m)) {
            const void *from = advance(x, r.at, t);
            float *v = result(h, r.at, t, buffer);
            INDEPENDENT
            for (int64_t i = 0; i < r.n; i++)
                v[i] = us_elu(us_madd(scale[i], load(from, i, t), shift[i]));
            finish(v, h, r.at, r.n, t);
        }
    }
}

/* The gradient at the ELU's input. */
INLINE void elu_input_gradient(const void *x, const void *dh, int64_t at, int64_t n,
                               const float *scale, const float *shift, float *dy, enum us_dtype t)
{
    const void *from = advance(x, at, t), *d = advance(dh, at, t);
    INDEPENDENT
    for (int64_t i = 0; i < n; i++)
        dy[i] = us_mul(load(d, i, t), us_elu_d(us_madd(scale[i], load(from, i, t), shift[i])));
}

INLINE void bn_elu_bwd_stats(const struct us_ew *e, const void *x, const void *dh,
                             const struct us_bn_affine *aff, double *part, enum us_dtype t)
{
    float scale[CHUNK], shift[CHUNK], mean[CHUNK], inv_std[CHUNK], dy[CHUNK], xhat[CHUNK];
    clear(part, 2 * (int64_t)e->c);
    for (struct span s = span_at(e, 0); s.n > 0; s = span_at(e, s.c0 + s.n)) {
        repeat(aff->scale + s.c0, s, scale);
        repeat(aff->shift + s.c0, s, shift);
        repeat(aff->mean + s.c0, s, mean);
        repeat(aff->inv_std + s.c0, s, inv_std);
        for (struct run r = run_at(e, s, 0); r.m > 0; r = run_at(e, s, r.p + r.m)) {
            const void *from = advance(x, r.at, t);
            elu_input_gradient(x, dh, r.at, r.n, scale, shift, dy, t);
            INDEPENDENT
            for (int64_t i = 0; i < r.n; i++)
                xhat[i] = us_mul(load(from, i, t) - mean[i], inv_std[i]);
            add_moments(dy, xhat, r.m, s.n, part + s.c0, part + e->c + s.c0);
        }
    }
}

INLINE void bn_elu_bwd(const struct us_ew *e, const void *x, const void *dh,
                       const struct us_bn_affine *aff, const struct us_bn_grad *g, void *dx,
                       enum us_dtype t, bool add)
{
    float scale[CHUNK], shift[CHUNK], a[CHUNK], b[CHUNK], d[CHUNK], dy[CHUNK], buffer[CHUNK];
    for (struct span s = span_at(e, 0); s.n > 0; s = span_at(e, s.c0 + s.n)) {
        repeat(aff->scale + s.c0, s, scale);
        repeat(aff->shift + s.c0, s, shift);
        repeat(g->a + s.c0, s, a);
        repeat(g->b + s.c0, s, b);
        repeat(g->d + s.c0, s, d);
        for (struct run r = run_at(e, s, 0); r.m > 0; r = run_at(e, s, r.p + r.m)) {
            const void *from = advance(x, r.at, t), *old = advance(dx, r.at, t);
            float *v = result(dx, r.at, t, buffer);
            elu_input_gradient(x, dh, r.at, r.n, scale, shift, dy, t);
            INDEPENDENT
            for (int64_t i = 0; i < r.n; i++) {
                float y = us_madd(a[i], dy[i], us_madd(b[i], load(from, i, t), d[i]));
                v[i] = add ? load(old, i, t) + y : y;
            }
            finish(v, dx, r.at, r.n, t);
        }
    }
}

/* ---- ELU, gate, dropout ---- */

INLINE void elu_fwd(const void *x, void *y, int64_t all, enum us_dtype t)
{
    float buffer[CHUNK];
    for (int64_t at = 0, n; at < all; at += n) {
        n = at_most(all - at, CHUNK);
        const void *from = advance(x, at, t);
        float *v = result(y, at, t, buffer);
        INDEPENDENT
        for (int64_t i = 0; i < n; i++)
            v[i] = us_elu(load(from, i, t));
        finish(v, y, at, n, t);
    }
}

INLINE void elu_bwd(const void *y, const void *dy, void *dx, int64_t all, enum us_dtype t)
{
    INDEPENDENT
    for (int64_t i = 0; i < all; i++)
        store(dx, i, us_mul(load(dy, i, t), us_elu_d_of_y(load(y, i, t))), t);
}

/* The factors of the span's channels. */
INLINE void draw_factors(struct span s, float p, const struct us_draw *draw, uint32_t node,
                         float *factor)
{
    struct us_philox r = {{0}};
    for (int32_t i = 0; i < s.n; i++) { /* c0 is a multiple of 4 */
        if (i % 4 == 0)
            r = us_dropout_words((uint32_t)draw->seed, (uint32_t)(draw->seed >> 32), draw->item,
                                 node, draw->step, (uint32_t)(s.c0 + i) / 4);
        factor[i] = us_dropout_factor(r.w[i % 4], p);
    }
}

INLINE void dropout2d(const struct us_ew *e, void *x, float p, const struct us_draw *draw,
                      uint32_t node, enum us_dtype t)
{
    float drawn[CHUNK], factor[CHUNK];
    for (struct span s = span_at(e, 0); s.n > 0; s = span_at(e, s.c0 + s.n)) {
        draw_factors(s, p, draw, node, drawn);
        repeat(drawn, s, factor);
        for (struct run r = run_at(e, s, 0); r.m > 0; r = run_at(e, s, r.p + r.m)) {
            void *v = advance_out(x, r.at, t);
            INDEPENDENT
            for (int64_t i = 0; i < r.n; i++)
                store(v, i, us_mul(load(v, i, t), factor[i]), t);
        }
    }
}

/* The two halves of g for channels c0 .. of pixel p. */
INLINE const void *gate_half(const struct us_ew *e, const void *g, int64_t p, int32_t c0, int half,
                             enum us_dtype t)
{
    return advance(g, (2 * p + half) * e->c + c0, t);
}

INLINE void glu_fwd(const struct us_ew *e, const void *g, const void *res, void *out,
                    enum us_dtype t)
{
    float buffer[CHUNK];
    for (struct span s = span_at(e, 0); s.n > 0; s = span_at(e, s.c0 + s.n))
        for (struct run r = run_at(e, s, 0); r.m > 0; r = run_at(e, s, r.p + r.m)) {
            const void *res_at = advance(res, r.at, t);
            float *v = result(out, r.at, t, buffer);
            for (int64_t j = 0; j < r.m; j++) {
                const void *a = gate_half(e, g, r.p + j, s.c0, 0, t);
                const void *b = gate_half(e, g, r.p + j, s.c0, 1, t);
                INDEPENDENT
                for (int32_t i = 0; i < s.n; i++)
                    v[j * s.n + i] =
                        load(res_at, j * s.n + i, t) + us_glu(load(a, i, t), load(b, i, t));
            }
            finish(v, out, r.at, r.n, t);
        }
}

INLINE void glu_bwd(const struct us_ew *e, const void *g, const void *dout, void *dg,
                    enum us_dtype t)
{
    float da[CHUNK], db[CHUNK];
    for (struct span s = span_at(e, 0); s.n > 0; s = span_at(e, s.c0 + s.n))
        for (struct run r = run_at(e, s, 0); r.m > 0; r = run_at(e, s, r.p + r.m)) {
            for (int64_t j = 0; j < r.m; j++) {
                const void *a = gate_half(e, g, r.p + j, s.c0, 0, t);
                const void *b = gate_half(e, g, r.p + j, s.c0, 1, t);
                const void *d = advance(dout, r.at + j * s.n, t);
                INDEPENDENT
                for (int32_t i = 0; i < s.n; i++) {
                    struct us_glu_grad y = us_glu_d(load(a, i, t), load(b, i, t), load(d, i, t));
                    da[j * s.n + i] = y.a;
                    db[j * s.n + i] = y.g;
                }
            }
            for (int64_t j = 0; j < r.m; j++) {
                int64_t to = 2 * (r.p + j) * e->c + s.c0;
                convert(da + j * s.n, advance_out(dg, to, t), s.n, US_F32, t);
                convert(db + j * s.n, advance_out(dg, to + e->c, t), s.n, US_F32, t);
            }
        }
}

/* ---- sums of maps ---- */

INLINE void accumulate(const void *src, void *dst, int64_t n, enum us_dtype t)
{
    INDEPENDENT
    for (int64_t i = 0; i < n; i++)
        store(dst, i, load(dst, i, t) + load(src, i, t), t);
}

INLINE void scale(void *x, float factor, int64_t n, enum us_dtype t)
{
    INDEPENDENT
    for (int64_t i = 0; i < n; i++)
        store(x, i, us_mul(load(x, i, t), factor), t);
}

INLINE void add_bias(const struct us_ew *e, const float *x, const float *bias, void *y,
                     enum us_dtype t)
{
    float b[CHUNK];
    for (struct span s = span_at(e, 0); s.n > 0; s = span_at(e, s.c0 + s.n)) {
        repeat(bias + s.c0, s, b);
        for (struct run r = run_at(e, s, 0); r.m > 0; r = run_at(e, s, r.p + r.m)) {
            void *to = advance_out(y, r.at, t);
            const float *v = x + r.at;
            INDEPENDENT
            for (int64_t i = 0; i < r.n; i++)
                store(to, i, v[i] + b[i], t);
        }
    }
}

/* ---- the learned prior ---- */

/* [c][pixel] <-> [pixel][c], by tiles whose rows are whole cache lines on either side: the strides
 * are powers of two, and a plain loop's lines would all fall into one set of the cache. */
#define TILE_C  16
#define TILE_PX 64

INLINE void prior_load(const struct us_ew *e, const float *prior, void *out, enum us_dtype t)
{
    float tile[TILE_C][TILE_PX];
    for (int64_t p = 0; p < e->n_px; p += TILE_PX)
        for (int32_t c = 0; c < e->c; c += TILE_C) {
            int64_t n_c = at_most(e->c - c, TILE_C), n_p = at_most(e->n_px - p, TILE_PX);
            for (int64_t i = 0; i < n_c; i++)
                for (int64_t j = 0; j < n_p; j++)
                    tile[i][j] = prior[(c + i) * e->n_px + p + j];
            for (int64_t j = 0; j < n_p; j++)
                for (int64_t i = 0; i < n_c; i++)
                    store(out, (p + j) * e->c + c + i, tile[i][j], t);
        }
}

INLINE void prior_grad(const struct us_ew *e, const void *dp, float *dprior, enum us_dtype t)
{
    float tile[TILE_PX][TILE_C];
    for (int64_t p = 0; p < e->n_px; p += TILE_PX)
        for (int32_t c = 0; c < e->c; c += TILE_C) {
            int64_t n_c = at_most(e->c - c, TILE_C), n_p = at_most(e->n_px - p, TILE_PX);
            for (int64_t j = 0; j < n_p; j++)
                for (int64_t i = 0; i < n_c; i++)
                    tile[j][i] = load(dp, (p + j) * e->c + c + i, t);
            for (int64_t i = 0; i < n_c; i++)
                for (int64_t j = 0; j < n_p; j++)
                    dprior[(c + i) * e->n_px + p + j] += tile[j][i];
        }
}

/* ---- posterior ---- */

#define Z_BLOCK (4 * GROUPS)

/* One block of a pixel's channels as f32. */
struct latent_block {
    float buffer[5][Z_BLOCK];
    const float *eps, *mean_q, *lv_q, *mean_p, *lv_p;
    int32_t c0, n;
};

INLINE struct usi_cpu_counter counter_of(const struct us_posterior *d, const struct us_draw *draw,
                                         int64_t px)
{
    int32_t y = (int32_t)(px / d->w), x = (int32_t)(px % d->w);
    struct usi_cpu_counter c = {(uint32_t)draw->seed,    (uint32_t)(draw->seed >> 32), draw->item,
                                us_noise_c1_patch(y, x), us_noise_c2(0, d->level, 0),  draw->step};
    return c;
}

INLINE void load_block(const struct usi_cpu_posterior_args *a, int64_t px, int32_t c0,
                       struct latent_block *b, enum us_dtype t)
{
    int32_t z = a->d->ew.c;
    int64_t at = 2 * px * z + c0;
    b->c0 = c0;
    b->n = z - c0 < Z_BLOCK ? z - c0 : Z_BLOCK;
    b->mean_q = as_f32(a->q, at, b->n, t, b->buffer[0]);
    b->lv_q = as_f32(a->q, at + z, b->n, t, b->buffer[1]);
    b->mean_p = as_f32(a->p, at, b->n, t, b->buffer[2]);
    b->lv_p = as_f32(a->p, at + z, b->n, t, b->buffer[3]);
    if (a->draw->eps != NULL) {
        b->eps = a->draw->eps[a->d->level] + px * z + c0;
        return;
    }
    struct usi_cpu_counter counter = counter_of(a->d, a->draw, px);
    normals(&counter, (uint32_t)c0 / 4, (b->n + 3) / 4, b->buffer[4]);
    b->eps = b->buffer[4];
}

INLINE void sample_block(const struct usi_cpu_posterior_args *a, const struct latent_block *b,
                         float *z, float *kl, bool analytical)
{
    float clip = a->d->var_clip_max;
    INDEPENDENT
    for (int32_t i = 0; i < b->n; i++) {
        struct us_kl_in k = us_kl_in_of(b->mean_q[i], b->lv_q[i], b->mean_p[i], b->lv_p[i], clip);
        z[i] = us_madd(sqrtf(k.var_q), b->eps[i], b->mean_q[i]);
        kl[i] = analytical ? us_kl_closed(&k) : us_kl_sampled(&k, b->eps[i]);
    }
}

INLINE void add_lanes(const float *v, int32_t n, struct lane_sum *sum)
{
    int32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            sum->lane[l] += (double)v[i + l];
    for (int l = 0; i + l < n; l++)
        sum->lane[l] += (double)v[i + l];
}

INLINE double posterior_fwd(const struct usi_cpu_posterior_args *a, enum us_dtype t)
{
    struct lane_sum sum = {{0}};
    struct latent_block b;
    float z[Z_BLOCK], kl[Z_BLOCK];
    for (int64_t px = 0; px < (int64_t)a->d->h * a->d->w; px++)
        for (int32_t c0 = 0; c0 < a->d->ew.c; c0 += Z_BLOCK) {
            load_block(a, px, c0, &b, t);
            if (a->d->analytical)
                sample_block(a, &b, z, kl, true);
            else
                sample_block(a, &b, z, kl, false);
            convert(z, advance_out(a->z, px * a->d->ew.c + c0, t), b.n, US_F32, t);
            add_lanes(kl, b.n, &sum);
        }
    return lane_total(&sum);
}

/* Gradients of one block, f32. */
struct latent_grad {
    float mean_q[Z_BLOCK], lv_q[Z_BLOCK], mean_p[Z_BLOCK], lv_p[Z_BLOCK];
};

INLINE void differentiate(const struct usi_cpu_posterior_args *a, const struct latent_block *b,
                          const float *dz, struct latent_grad *r, bool analytical)
{
    float clip = a->d->var_clip_max, per = a->per;
    INDEPENDENT
    for (int32_t i = 0; i < b->n; i++) {
        float eps = b->eps[i];
        struct us_kl_in k = us_kl_in_of(b->mean_q[i], b->lv_q[i], b->mean_p[i], b->lv_p[i], clip);
        struct us_kl_grad g = analytical ? us_kl_closed_d(&k) : us_kl_sampled_d(&k, eps);
        float lv_d = us_sample_lv_d(k.var_q, k.dvar_q, eps);
        r->mean_q[i] = us_madd(per, g.mean_q, dz[i]);
        r->lv_q[i] = us_madd(per, g.lv_q, us_mul(dz[i], lv_d));
        r->mean_p[i] = us_mul(per, g.mean_p);
        r->lv_p[i] = us_mul(per, g.lv_p);
    }
}

INLINE void store_gradients(const struct usi_cpu_posterior_args *a, const struct latent_block *b,
                            int64_t px, const struct latent_grad *g, enum us_dtype t)
{
    int32_t z = a->d->ew.c;
    int64_t at = 2 * px * z + b->c0;
    convert(g->mean_q, advance_out(a->dq, at, t), b->n, US_F32, t);
    convert(g->lv_q, advance_out(a->dq, at + z, t), b->n, US_F32, t);
    convert(g->mean_p, advance_out(a->dp, at, t), b->n, US_F32, t);
    convert(g->lv_p, advance_out(a->dp, at + z, t), b->n, US_F32, t);
}

INLINE void posterior_bwd(const struct usi_cpu_posterior_args *a, enum us_dtype t)
{
    struct latent_block b;
    struct latent_grad g;
    float buffer[Z_BLOCK] = {0};
    for (int64_t px = 0; px < (int64_t)a->d->h * a->d->w; px++)
        for (int32_t c0 = 0; c0 < a->d->ew.c; c0 += Z_BLOCK) {
            load_block(a, px, c0, &b, t);
            const float *dz = buffer;
            if (a->dz != NULL)
                dz = as_f32(a->dz, px * a->d->ew.c + c0, b.n, t, buffer);
            if (a->d->analytical)
                differentiate(a, &b, dz, &g, true);
            else
                differentiate(a, &b, dz, &g, false);
            store_gradients(a, &b, px, &g, t);
        }
}

/* ---- the end of a step ---- */

static double reduce_lanes(const float *lanes, int64_t stride, int32_t n_lanes, int64_t all,
                           float *dst)
{
    struct lane_sum squares = {{0}};
    double sum[CHUNK];
    for (int64_t at = 0, n; at < all; at += n) { /* CHUNK is a multiple of LANES */
        n = at_most(all - at, CHUNK);
        clear(sum, n);
        for (int32_t l = 0; l < n_lanes; l++)
            for (int64_t i = 0; i < n; i++)
                sum[i] += (double)lanes[l * stride + at + i];
        for (int64_t i = 0; i < n; i++)
            dst[at + i] = (float)sum[i];
        for (int64_t i = 0; i < n; i++)
            sum[i] = (double)dst[at + i] * (double)dst[at + i];
        for (int64_t i = 0; i < n; i++)
            squares.lane[i % LANES] += sum[i];
    }
    return lane_total(&squares);
}

static void adamax(const struct us_adamax *a, int64_t n, const float *g, float *m, float *u,
                   float *p)
{
    const struct us_adamax_step s = us_adamax_step_of(a->lr, a->beta1, a->beta2, a->eps, a->bias);
    float factor = a->grad_scale;
    INDEPENDENT
    for (int64_t i = 0; i < n; i++)
        us_adamax_update(&s, us_mul(g[i], factor), &m[i], &u[i], &p[i]);
}

/* ---- the table ---- */

#define DTYPES(X) X(F32) X(BF16)

#define FUNCTIONS(T)                                                                               \
    static void bn_stats_##T(const struct us_ew *e, const void *x, double *part)                   \
    {                                                                                              \
        bn_stats(e, x, part, US_##T);                                                              \
    }                                                                                              \
    static void bn_elu_fwd_##T(const struct us_ew *e, const void *x,                               \
                               const struct us_bn_affine *aff, void *h)                            \
    {                                                                                              \
        bn_elu_fwd(e, x, aff, h, US_##T);                                                          \
    }                                                                                              \
    static void bn_elu_bwd_stats_##T(const struct us_ew *e, const void *x, const void *dh,         \
                                     const struct us_bn_affine *aff, double *part)                 \
    {                                                                                              \
        bn_elu_bwd_stats(e, x, dh, aff, part, US_##T);                                             \
    }                                                                                              \
    static void bn_elu_bwd_##T##_0(const struct us_ew *e, const void *x, const void *dh,           \
                                   const struct us_bn_affine *aff, const struct us_bn_grad *g,     \
                                   void *dx)                                                       \
    {                                                                                              \
        bn_elu_bwd(e, x, dh, aff, g, dx, US_##T, false);                                           \
    }                                                                                              \
    static void bn_elu_bwd_##T##_1(const struct us_ew *e, const void *x, const void *dh,           \
                                   const struct us_bn_affine *aff, const struct us_bn_grad *g,     \
                                   void *dx)                                                       \
    {                                                                                              \
        bn_elu_bwd(e, x, dh, aff, g, dx, US_##T, true);                                            \
    }                                                                                              \
    static void elu_fwd_##T(const void *x, void *y, int64_t n)                                     \
    {                                                                                              \
        elu_fwd(x, y, n, US_##T);                                                                  \
    }                                                                                              \
    static void elu_bwd_##T(const void *y, const void *dy, void *dx, int64_t n)                    \
    {                                                                                              \
        elu_bwd(y, dy, dx, n, US_##T);                                                             \
    }                                                                                              \
    static void dropout2d_##T(const struct us_ew *e, void *x, float p, const struct us_draw *draw, \
                              uint32_t node)                                                       \
    {                                                                                              \
        dropout2d(e, x, p, draw, node, US_##T);                                                    \
    }                                                                                              \
    static void glu_fwd_##T(const struct us_ew *e, const void *g, const void *res, void *out)      \
    {                                                                                              \
        glu_fwd(e, g, res, out, US_##T);                                                           \
    }                                                                                              \
    static void glu_bwd_##T(const struct us_ew *e, const void *g, const void *dout, void *dg)      \
    {                                                                                              \
        glu_bwd(e, g, dout, dg, US_##T);                                                           \
    }                                                                                              \
    static void accumulate_##T(const void *src, void *dst, int64_t n)                              \
    {                                                                                              \
        accumulate(src, dst, n, US_##T);                                                           \
    }                                                                                              \
    static void scale_##T(void *x, float factor, int64_t n)                                        \
    {                                                                                              \
        scale(x, factor, n, US_##T);                                                               \
    }                                                                                              \
    static void bias_##T(const struct us_ew *e, const float *x, const float *bias, void *y)        \
    {                                                                                              \
        add_bias(e, x, bias, y, US_##T);                                                           \
    }                                                                                              \
    static void prior_load_##T(const struct us_ew *e, const float *prior, void *p)                 \
    {                                                                                              \
        prior_load(e, prior, p, US_##T);                                                           \
    }                                                                                              \
    static void prior_grad_##T(const struct us_ew *e, const void *dp, float *dprior)               \
    {                                                                                              \
        prior_grad(e, dp, dprior, US_##T);                                                         \
    }                                                                                              \
    static double posterior_fwd_##T(const struct usi_cpu_posterior_args *a)                        \
    {                                                                                              \
        return posterior_fwd(a, US_##T);                                                           \
    }                                                                                              \
    static void posterior_bwd_##T(const struct usi_cpu_posterior_args *a)                          \
    {                                                                                              \
        posterior_bwd(a, US_##T);                                                                  \
    }
DTYPES(FUNCTIONS)

#define ENTRIES(T)                                                                                 \
    .bn_stats[US_##T] = bn_stats_##T, .bn_elu_fwd[US_##T] = bn_elu_fwd_##T,                        \
    .bn_elu_bwd_stats[US_##T] = bn_elu_bwd_stats_##T, .bn_elu_bwd[US_##T][0] = bn_elu_bwd_##T##_0, \
    .bn_elu_bwd[US_##T][1] = bn_elu_bwd_##T##_1, .elu_fwd[US_##T] = elu_fwd_##T,                   \
    .elu_bwd[US_##T] = elu_bwd_##T, .dropout2d[US_##T] = dropout2d_##T,                            \
    .glu_fwd[US_##T] = glu_fwd_##T, .glu_bwd[US_##T] = glu_bwd_##T,                                \
    .accumulate[US_##T] = accumulate_##T, .scale[US_##T] = scale_##T, .bias[US_##T] = bias_##T,    \
    .prior_load[US_##T] = prior_load_##T, .prior_grad[US_##T] = prior_grad_##T,                    \
    .posterior_fwd[US_##T] = posterior_fwd_##T, .posterior_bwd[US_##T] = posterior_bwd_##T,

const struct usi_cpu_train_kernels US_CPU_TRAIN_KERNELS = {
    DTYPES(ENTRIES).reduce_lanes = reduce_lanes, .adamax = adamax};
