/*
 * The prediction kernels of the CUDA backend (cuda/kernels), on the host: each against its formula
 * spelled out per element, to the bit, over odd numbers of channels, types, windows of larger
 * buffers, parts that count as zero and every width of access. Buffers are compared whole, so a
 * write beside the window shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "math/us_bf16_math.h"
#include "math/us_elu_math.h"
#include "math/us_gauss_math.h"
#include "math/us_philox_math.h"
#include "us_backend.h"
#include "us_kernels.h"

#define N 2
#define H 3
#define W 5

/* The window of a buffer: `frame` pixels round it, `gap` channels after each pixel's own. */
struct layout {
    int frame, gap;
    bool aligned; /* 8 channels of a multiple of 8 are */
};

static const struct layout layouts[] = {{0, 0, true}, {1, 8, true}, {2, 3, false}};
static const int32_t channels[] = {1, 3, 7, 8, 20, 64};
static const enum us_dtype dtypes[] = {US_F32, US_BF16};

static uint64_t seed;

static float uniform(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)((double)(seed >> 40) / (double)(1 << 23) * 4.0 - 4.0);
}

struct buf {
    char *mem;
    size_t bytes;
    enum us_dtype dtype;
    int64_t image, row, pixel, first; /* elements */
};

/* h x w pixels of c channels; random, or 0xff where `out`. */
static struct buf make(const struct layout *l, int64_t h, int64_t w, int32_t c, enum us_dtype t,
                       bool out)
{
    struct buf b = {.dtype = t, .pixel = c + l->gap};
    b.row = (w + 2 * l->frame) * b.pixel;
    b.image = (h + 2 * l->frame) * b.row;
    b.first = l->frame * (b.row + b.pixel);
    int64_t count = N * b.image;
    b.bytes = (size_t)count * us_dtype_bytes(t);
    b.mem = aligned_alloc(64, (b.bytes + 63) / 64 * 64);
    assert_non_null(b.mem);
    memset(b.mem, 0xff, b.bytes);
    for (int64_t i = 0; i < count && !out; i++) {
        float v = uniform();
        uint16_t half = us_bf16_of_f32(v);
        if (t == US_F32)
            memcpy(b.mem + 4 * i, &v, 4);
        else
            memcpy(b.mem + 2 * i, &half, 2);
    }
    return b;
}

static char *element(const struct buf *b, int64_t n, int64_t y, int64_t x, int64_t c)
{
    int64_t i = b->first + n * b->image + y * b->row + x * b->pixel + c;
    return b->mem + i * (int64_t)us_dtype_bytes(b->dtype);
}

static float get(const struct buf *b, int64_t n, int64_t y, int64_t x, int64_t c)
{
    float v;
    uint16_t half;
    if (b->dtype == US_F32) {
        memcpy(&v, element(b, n, y, x, c), 4);
        return v;
    }
    memcpy(&half, element(b, n, y, x, c), 2);
    return us_f32_of_bf16(half);
}

static void set(const struct buf *b, int64_t n, int64_t y, int64_t x, int64_t c, float v)
{
    uint16_t half = us_bf16_of_f32(v);
    if (b->dtype == US_F32)
        memcpy(element(b, n, y, x, c), &v, 4);
    else
        memcpy(element(b, n, y, x, c), &half, 2);
}

/* All of it, or the pixels from (1, 2) to (2, 4) if `part`. */
static struct us_k_in in_of(const struct buf *b, int64_t h, int64_t w, bool part)
{
    struct us_k_in k = {.image = b->image, .row = b->row, .pixel = b->pixel, .dtype = b->dtype};
    k.y0 = part ? 1 : 0;
    k.x0 = part ? 2 : 0;
    k.y1 = part ? 2 : h;
    k.x1 = part ? 4 : w;
    k.p = element(b, 0, k.y0, k.x0, 0);
    return k;
}

static struct us_k_out out_of(const struct buf *b)
{
    return (struct us_k_out){element(b, 0, 0, 0, 0), b->image, b->row, b->pixel, b->dtype};
}

static bool in_part(bool part, int64_t y, int64_t x)
{
    return !part || (y == 1 && x >= 2 && x < 4);
}

static float zero_or(const struct buf *b, bool part, int64_t n, int64_t y, int64_t x, int64_t c)
{
    return in_part(part, y, x) ? get(b, n, y, x, c) : 0.0f;
}

static float *row_of(int64_t n)
{
    float *v = aligned_alloc(64, ((size_t)n * sizeof(*v) + 63) / 64 * 64);
    assert_non_null(v);
    for (int64_t i = 0; i < n; i++)
        v[i] = uniform();
    return v;
}

/* One setting of a test, and what its kernel is to write: out and out2 as the kernel gets them,
 * want and want2 by the formula. */
struct setting {
    struct layout l;
    int32_t c;
    enum us_dtype in, to;
    bool part;
    struct buf out, out2, want, want2;
    float *scale, *shift;
};

static void outs_make(struct setting *s)
{
    s->out = make(&s->l, H, W, s->c, s->to, true);
    s->out2 = make(&s->l, H, W, s->c, s->to, true);
    s->want = make(&s->l, H, W, s->c, s->to, true);
    s->want2 = make(&s->l, H, W, s->c, s->to, true);
    s->scale = row_of(s->c);
    s->shift = row_of(s->c);
}

static struct us_k_finish finish_of(const struct setting *s)
{
    return (struct us_k_finish){out_of(&s->out), out_of(&s->out2), s->scale, s->shift};
}

static void expect(const struct setting *s, int64_t n, int64_t y, int64_t x, int64_t c, float v)
{
    set(&s->want, n, y, x, c, v);
    set(&s->want2, n, y, x, c, us_elu(s->scale[c] * v + s->shift[c]));
}

static void outs_check(const struct setting *s, int32_t vec, const char *kernel)
{
    if (memcmp(s->out.mem, s->want.mem, s->out.bytes) != 0 ||
        memcmp(s->out2.mem, s->want2.mem, s->out2.bytes) != 0)
        fail_msg("%s: %d channels, %s to %s, frame %d, gap %d, %s, %d at a time", kernel, s->c,
                 s->in == US_F32 ? "f32" : "bf16", s->to == US_F32 ? "f32" : "bf16", s->l.frame,
                 s->l.gap, s->part ? "a part" : "whole", vec);
    memset(s->out.mem, 0xff, s->out.bytes);
    memset(s->out2.mem, 0xff, s->out2.bytes);
}

static void outs_free(struct setting *s)
{
    free(s->out.mem);
    free(s->out2.mem);
    free(s->want.mem);
    free(s->want2.mem);
    free(s->scale);
    free(s->shift);
}

/* Runs `test` for every combination. */
static void for_all_settings(void (*test)(struct setting *s))
{
    for (size_t i = 0; i < US_COUNT(layouts) * US_COUNT(channels) * 8; i++) {
        struct setting s = {.l = layouts[i / 8 % US_COUNT(layouts)],
                            .c = channels[i / 8 / US_COUNT(layouts)],
                            .in = dtypes[i % 2],
                            .to = dtypes[i / 2 % 2],
                            .part = i / 4 % 2 == 1};
        seed = i;
        outs_make(&s);
        test(&s);
        outs_free(&s);
    }
}

/* The widths of access that the setting allows: vec = 1, then 4, then 8; 0 past the end. */
static int32_t next_vec(const struct setting *s, int32_t vec)
{
    int32_t next = vec == 0 ? 1 : vec == 1 ? 4 : vec == 4 ? 8 : 0;
    return next == 1 || (next > 0 && s->l.aligned && s->c % next == 0) ? next : 0;
}

#define FOR_EACH_VALUE(s)                                                                          \
    for (int64_t n = 0; n < N; n++)                                                                \
        for (int64_t y = 0; y < H; y++)                                                            \
            for (int64_t x = 0; x < W; x++)                                                        \
                for (int64_t c = 0; c < (s)->c; c++)

/* ---- the kernels ---- */

static void check_epilogue(struct setting *s)
{
    struct buf sum = make(&s->l, H, W, s->c, US_F32, false);
    struct buf sum2 = make(&s->l, H, W, s->c, US_F32, false);
    struct buf res = make(&s->l, H, W, s->c, s->in, false);
    float *bias = row_of(s->c);
    FOR_EACH_VALUE(s)
    {
        float v = zero_or(&sum, s->part, n, y, x, c) + get(&sum2, n, y, x, c);
        v = us_elu(v + bias[c]) + get(&res, n, y, x, c);
        expect(s, n, y, x, c, v);
    }
    for (int32_t vec = next_vec(s, 0); vec > 0; vec = next_vec(s, vec)) {
        const struct us_k_epilogue a = {.grid = {N, H, W, s->c, vec},
                                        .x = in_of(&sum, H, W, s->part),
                                        .x2 = in_of(&sum2, H, W, false),
                                        .res = in_of(&res, H, W, false),
                                        .bias = bias,
                                        .elu = 1,
                                        .finish = finish_of(s)};
        assert_int_equal(us_kernels_serial.epilogue(NULL, &a), US_OK);
        outs_check(s, vec, "epilogue");
    }
    free(sum.mem);
    free(sum2.mem);
    free(res.mem);
    free(bias);
}

static void epilogue_is_its_formula(void **state)
{
    for_all_settings(check_epilogue);
}

static void check_gate(struct setting *s)
{
    struct buf ag = make(&s->l, H, W, 2 * s->c, US_F32, false);
    struct buf res = make(&s->l, H, W, s->c, s->in, false);
    float *bias = row_of(2 * (int64_t)s->c);
    FOR_EACH_VALUE(s)
    {
        float a = zero_or(&ag, s->part, n, y, x, c) + bias[c];
        float g = zero_or(&ag, s->part, n, y, x, s->c + c) + bias[s->c + c];
        expect(s, n, y, x, c, get(&res, n, y, x, c) + us_glu(a, g));
    }
    for (int32_t vec = next_vec(s, 0); vec > 0; vec = next_vec(s, vec)) {
        const struct us_k_gate a = {.grid = {N, H, W, s->c, vec},
                                    .x = in_of(&ag, H, W, s->part),
                                    .res = in_of(&res, H, W, false),
                                    .bias = bias,
                                    .finish = finish_of(s)};
        assert_int_equal(us_kernels_serial.gate(NULL, &a), US_OK);
        outs_check(s, vec, "gate");
    }
    free(ag.mem);
    free(res.mem);
    free(bias);
}

static void gate_is_its_formula(void **state)
{
    for_all_settings(check_gate);
}

static void check_copy(struct setting *s)
{
    struct buf in = make(&s->l, H, W, s->c, s->in, false);
    FOR_EACH_VALUE(s)
    set(&s->want, n, y, x, c, zero_or(&in, s->part, n, y, x, c));
    for (int32_t vec = next_vec(s, 0); vec > 0; vec = next_vec(s, vec)) {
        const struct us_k_copy a = {
            .grid = {N, H, W, s->c, vec}, .in = in_of(&in, H, W, s->part), .out = out_of(&s->out)};
        assert_int_equal(us_kernels_serial.copy(NULL, &a), US_OK);
        outs_check(s, vec, "copy");
    }
    free(in.mem);
}

static void copy_moves_and_converts(void **state)
{
    for_all_settings(check_copy);
}

static float draw(const struct us_noise *z, int64_t y, int64_t x, int64_t c)
{
    uint32_t c0 = z->patch, c1 = us_noise_c1_patch((int32_t)y, (int32_t)x);
    if (z->image_keyed) {
        c0 = us_noise_position(z->centre_x, 3, 40, (int32_t)x);
        c1 = us_noise_position(z->centre_y, 3, 30, (int32_t)y);
    }
    uint32_t c2 = us_noise_c2(z->image_keyed, 3, z->sample);
    return us_noise_normal4((uint32_t)z->seed, (uint32_t)(z->seed >> 32), c0, c1, c2, z->frame,
                            (uint32_t)c / 4)
        .z[c % 4];
}

static void check_latent(struct setting *s)
{
    enum { Y0 = 7, X0 = 11, LEVEL = 3 };
    const float *hook[LEVEL + 1] = {0};
    float *eps = row_of(N * (int64_t)30 * 40 * s->c);
    const struct us_noise noise[N] = {
        {.seed = 99ull << 32 | 5, .frame = 2, .sample = 1, .patch = 77, .eps = hook},
        {.seed = 3, .image_keyed = true, .centre_y = -1000, .centre_x = 123456789012}};
    struct buf in = make(&s->l, H, W, 2 * s->c, s->in, false);
    for (int hooked = 0; hooked < 2; hooked++) {
        FOR_EACH_VALUE(s)
        {
            float e = hooked && n == 0 ? eps[((Y0 + y) * 40 + X0 + x) * s->c + c]
                                       : draw(&noise[n], Y0 + y, X0 + x, c);
            float lv = zero_or(&in, s->part, n, y, x, s->c + c);
            set(&s->want, n, y, x, c,
                us_gauss_sample(zero_or(&in, s->part, n, y, x, c), lv, 1.5f, e));
        }
        for (int32_t vec = next_vec(s, 0); vec > 0; vec = next_vec(s, vec)) {
            const struct us_k_latent a = {.grid = {N, H, W, s->c, vec},
                                          .in = in_of(&in, H, W, s->part),
                                          .out = out_of(&s->out),
                                          .var_clip_max = 1.5f,
                                          .level = LEVEL,
                                          .full_h = 30,
                                          .full_w = 40,
                                          .y0 = Y0,
                                          .x0 = X0,
                                          .noise = noise,
                                          .eps = hooked ? eps : NULL};
            assert_int_equal(us_kernels_serial.latent(NULL, &a), US_OK);
            outs_check(s, vec, "latent");
        }
    }
    free(in.mem);
    free(eps);
}

static void latent_draws_by_its_keys(void **state)
{
    for_all_settings(check_latent);
}

/* A convolution k 3 with 8 or 5 input channels, or its transpose with stride 2. */
static float sum_of(const struct buf *in, const float *w, int32_t in_c, int32_t c, bool t,
                    const int64_t at[4])
{
    int64_t n = at[0], oy = at[1], ox = at[2], co = at[3];
    float sum = 0.0f;
    for (int64_t tap = 0; tap < 9; tap++) {
        int64_t y = oy - 1 + tap / 3, x = ox - 1 + tap % 3;
        if (t) {
            y = oy + 1 - tap / 3;
            x = ox + 1 - tap % 3;
            if (y < 0 || x < 0 || y % 2 != 0 || x % 2 != 0)
                continue;
            y /= 2;
            x /= 2;
        }
        if (y < 0 || x < 0 || y >= H || x >= W)
            continue;
        for (int64_t ci = 0; ci < in_c; ci++)
            sum = fmaf(get(in, n, y, x, ci), w[(tap * in_c + ci) * c + co], sum);
    }
    return sum;
}

static void check_direct(struct setting *s)
{
    bool t = s->part; /* the settings' other half serves here for the transposed ones */
    int32_t in_c = s->l.aligned ? 8 : 5;
    struct buf in = make(&s->l, H, W, in_c, s->in, false);
    struct buf res = make(&s->l, H, W, s->c, s->in, false);
    float *bias = row_of(s->c), *w = row_of(9 * (int64_t)in_c * s->c);
    FOR_EACH_VALUE(s)
    {
        const int64_t at[4] = {n, y, x, c};
        float v = us_elu(sum_of(&in, w, in_c, s->c, t, at) + bias[c]);
        expect(s, n, y, x, c, v + get(&res, n, y, x, c));
    }
    for (int32_t vec = next_vec(s, 0); vec > 0; vec = next_vec(s, vec)) {
        const struct us_k_direct a = {.grid = {N, H, (W + US_K_RUN - 1) / US_K_RUN, s->c, vec},
                                      .ow = W,
                                      .x = in_of(&in, H, W, false),
                                      .res = in_of(&res, H, W, false),
                                      .in_c = in_c,
                                      .in_vec = in_c == 8 && vec != 4 ? 8 : 1,
                                      .k = 3,
                                      .stride = t ? 2 : 1,
                                      .top = 1,
                                      .left = 1,
                                      .transposed = t,
                                      .elu = 1,
                                      .w = w,
                                      .bias = bias,
                                      .finish = finish_of(s)};
        assert_int_equal(us_kernels_serial.direct(NULL, &a), US_OK);
        outs_check(s, vec, "direct");
    }
    free(in.mem);
    free(res.mem);
    free(bias);
    free(w);
}

static void direct_is_one_chain_of_multiply_adds(void **state)
{
    for_all_settings(check_direct);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(epilogue_is_its_formula),
        cmocka_unit_test(gate_is_its_formula),
        cmocka_unit_test(copy_moves_and_converts),
        cmocka_unit_test(latent_draws_by_its_keys),
        cmocka_unit_test(direct_is_one_chain_of_multiply_adds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
