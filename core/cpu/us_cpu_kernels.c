/*
 * The loops behind us_cpu_kernels.h. This file is compiled once per instruction set, each time
 * with US_CPU_KERNELS naming its table, US_CPU_ISA its name and US_CPU_TRAIN_KERNELS the table of
 * training (us_cpu_train_kernels.c). Policy: the formulas live in
 * core/math; a loop here only walks memory and leaves the vectors to the compiler, with dtypes and
 * options as constants of always-inlined bodies.
 */
#include "us_cpu_kernels.h"

#include "math/us_elu_math.h"
#include "math/us_gauss_math.h"
#include "us_cpu_vector.h"

extern const struct usi_cpu_kernels US_CPU_KERNELS;
extern const struct usi_cpu_train_kernels US_CPU_TRAIN_KERNELS;

/* ---- the end of every producer: round to out's dtype, tail ---- */

/* n <= CHUNK. */
INLINE void scale_elu(const void *in, void *out, const float *scale, const float *shift, int64_t n,
                      enum us_dtype from, enum us_dtype to)
{
    float buffer[CHUNK];
    float *v = to == US_F32 ? (float *)out : buffer;
    INDEPENDENT
    for (int64_t i = 0; i < n; i++)
        v[i] = us_elu(us_madd(scale[i], load(in, i, from), shift[i]));
    if (to != US_F32)
        convert(v, out, n, US_F32, to);
}

INLINE int64_t shortest(int64_t a, int64_t b, int64_t c)
{
    int64_t m = a < b ? a : b;
    return m < c ? m : c;
}

/* ---- epilogue of convolutions and merges ---- */

/* With f32 output the values pass through the output itself, else through a buffer. */
INLINE void epilogue(const struct usi_cpu_epilogue *e, bool act, enum usi_cpu_res res,
                     enum us_dtype t, bool tail)
{
    bool compute = act || res != US_CPU_RES_NONE;
    int64_t period = tail ? e->tail.period : CHUNK, pos = 0;
    float buffer[CHUNK];
    for (int64_t at = 0, n; at < e->n; at += n) {
        n = shortest(CHUNK, period - pos, e->n - at);
        void *out = advance_out(e->out, at, t);
        const float *x = e->x + at;
        if (compute) {
            const void *r = res == US_CPU_RES_NONE ? NULL : advance(e->res, at, (enum us_dtype)res);
            float *v = t == US_F32 ? (float *)out : buffer;
            INDEPENDENT
            for (int64_t i = 0; i < n; i++) {
                float y = act ? us_elu(x[i]) : x[i];
                v[i] = res == US_CPU_RES_NONE ? y : y + load(r, i, (enum us_dtype)res);
            }
            x = v;
        }
        if (out != x)
            convert(x, out, n, US_F32, t);
        if (tail)
            scale_elu(x, advance_out(e->out2, at, t), e->tail.scale + pos, e->tail.shift + pos, n,
                      US_F32, t);
        pos = pos + n == period ? 0 : pos + n;
    }
}

/* activation, residual, dtype of out, tail */
/* clang-format off */
#define EPILOGUES(X)                                                                               \
    X(0, F32, F32, 0) X(0, F32, F32, 1) X(0, F32, BF16, 0) X(0, F32, BF16, 1)                      \
    X(0, BF16, F32, 0) X(0, BF16, F32, 1) X(0, BF16, BF16, 0) X(0, BF16, BF16, 1)                  \
    X(0, NONE, F32, 0) X(0, NONE, F32, 1) X(0, NONE, BF16, 0) X(0, NONE, BF16, 1)                  \
    X(1, F32, F32, 0) X(1, F32, F32, 1) X(1, F32, BF16, 0) X(1, F32, BF16, 1)                      \
    X(1, BF16, F32, 0) X(1, BF16, F32, 1) X(1, BF16, BF16, 0) X(1, BF16, BF16, 1)                  \
    X(1, NONE, F32, 0) X(1, NONE, F32, 1) X(1, NONE, BF16, 0) X(1, NONE, BF16, 1)
/* clang-format on */

#define EPILOGUE_FUNCTION(act, res, out, tail)                                                     \
    static void epilogue_##act##_##res##_##out##_##tail(const struct usi_cpu_epilogue *e)          \
    {                                                                                              \
        epilogue(e, act, US_CPU_RES_##res, US_##out, tail);                                        \
    }
EPILOGUES(EPILOGUE_FUNCTION)

/* ---- gate ---- */

/* Channels c0 .. c0+n of m pixels. */
INLINE void gate_block(const struct usi_cpu_gate_args *g, int64_t p, int64_t m, int32_t c0,
                       int32_t n, enum us_dtype res, enum us_dtype t, bool tail)
{
    float buffer[CHUNK];
    int64_t at = p * g->c + c0;
    void *out = advance_out(g->out, at, t);
    float *v = t == US_F32 ? (float *)out : buffer;
    const void *r = advance(g->res, at, res);
    for (int64_t j = 0; j < m; j++) {
        const float *x = g->x + 2 * (p + j) * g->c + c0;
        const float *y = x + g->c;
        INDEPENDENT
        for (int32_t i = 0; i < n; i++)
            v[j * n + i] = us_glu(x[i], y[i]) + load(r, j * n + i, res);
    }
    if (t != US_F32)
        convert(v, out, m * n, US_F32, t);
    if (tail)
        scale_elu(v, advance_out(g->out2, at, t), g->tail.scale + c0, g->tail.shift + c0, m * n,
                  US_F32, t);
}

INLINE void gate(const struct usi_cpu_gate_args *g, enum us_dtype res, enum us_dtype t, bool tail)
{
    int64_t batch = g->c < CHUNK ? CHUNK / g->c : 1; /* pixels at once */
    for (int64_t p = 0; p < g->n_pixels; p += batch) {
        int64_t m = g->n_pixels - p < batch ? g->n_pixels - p : batch;
        for (int32_t c0 = 0; c0 < g->c; c0 += CHUNK)
            gate_block(g, p, m, c0, g->c - c0 < CHUNK ? g->c - c0 : CHUNK, res, t, tail);
    }
}

#define GATES(X)                                                                                   \
    X(F32, F32, 0)                                                                                 \
    X(F32, F32, 1)                                                                                 \
    X(F32, BF16, 0)                                                                                \
    X(F32, BF16, 1) X(BF16, F32, 0) X(BF16, F32, 1) X(BF16, BF16, 0) X(BF16, BF16, 1)

#define GATE_FUNCTION(res, out, tail)                                                              \
    static void gate_##res##_##out##_##tail(const struct usi_cpu_gate_args *g)                     \
    {                                                                                              \
        gate(g, US_##res, US_##out, tail);                                                         \
    }
GATES(GATE_FUNCTION)

/* ---- affine + ELU ---- */

INLINE void affine_elu(const void *in, void *out, const struct usi_cpu_tail *t, int64_t n_all,
                       enum us_dtype from, enum us_dtype to)
{
    int64_t pos = 0;
    for (int64_t at = 0, n; at < n_all; at += n) {
        n = shortest(CHUNK, t->period - pos, n_all - at);
        scale_elu(advance(in, at, from), advance_out(out, at, to), t->scale + pos, t->shift + pos,
                  n, from, to);
        pos = pos + n == t->period ? 0 : pos + n;
    }
}

/* ---- latent ---- */

INLINE void latent(const struct usi_cpu_latent_args *a, enum us_dtype from, enum us_dtype to)
{
    const struct usi_cpu_counter counter = {a->k0, a->k1, a->c0, a->c1, a->c2, a->c3};
    float drawn[4 * GROUPS], mean_f32[4 * GROUPS], lv_f32[4 * GROUPS], sum[4 * GROUPS];
    for (int32_t c0 = 0; c0 < a->z; c0 += 4 * GROUPS) {
        int32_t n = a->z - c0 < 4 * GROUPS ? a->z - c0 : 4 * GROUPS;
        const float *eps = a->eps != NULL ? a->eps + c0 : drawn;
        const float *mean = as_f32(a->in, c0, n, from, mean_f32);
        const float *lv = as_f32(a->in, a->z + c0, n, from, lv_f32);
        void *out = advance_out(a->out, c0, to);
        float *z = to == US_F32 ? (float *)out : sum;
        if (a->eps == NULL)
            normals(&counter, (uint32_t)c0 / 4, (n + 3) / 4, drawn);
        INDEPENDENT
        for (int32_t i = 0; i < n; i++)
            z[i] = us_gauss_sample(mean[i], lv[i], a->var_clip_max, eps[i]);
        if (to != US_F32)
            convert(z, out, n, US_F32, to);
    }
}

#define PAIRS(X) X(F32, F32) X(F32, BF16) X(BF16, F32) X(BF16, BF16)

#define PAIR_FUNCTIONS(in, out)                                                                    \
    static void affine_elu_##in##_##out(const void *x, void *y, const struct usi_cpu_tail *t,      \
                                        int64_t n)                                                 \
    {                                                                                              \
        affine_elu(x, y, t, n, US_##in, US_##out);                                                 \
    }                                                                                              \
    static void convert_##in##_##out(const void *x, void *y, int64_t n)                            \
    {                                                                                              \
        convert(x, y, n, US_##in, US_##out);                                                       \
    }                                                                                              \
    static void latent_##in##_##out(const struct usi_cpu_latent_args *a)                           \
    {                                                                                              \
        latent(a, US_##in, US_##out);                                                              \
    }
PAIRS(PAIR_FUNCTIONS)

#define EPILOGUE_ENTRY(act, res, out, tail)                                                        \
    .epilogue[act][US_CPU_RES_##res][US_##out][tail] = epilogue_##act##_##res##_##out##_##tail,
#define GATE_ENTRY(res, out, tail) .gate[US_##res][US_##out][tail] = gate_##res##_##out##_##tail,
#define PAIR_ENTRIES(in, out)                                                                      \
    .affine_elu[US_##in][US_##out] = affine_elu_##in##_##out,                                      \
    .convert[US_##in][US_##out] = convert_##in##_##out,                                            \
    .latent[US_##in][US_##out] = latent_##in##_##out,

const struct usi_cpu_kernels US_CPU_KERNELS = {.isa = US_CPU_ISA,
                                               .train = &US_CPU_TRAIN_KERNELS,
                                               EPILOGUES(EPILOGUE_ENTRY) GATES(GATE_ENTRY)
                                                   PAIRS(PAIR_ENTRIES)};
