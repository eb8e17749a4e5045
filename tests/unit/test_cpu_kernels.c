/*
 * The cpu backend's vector code: every table this processor can run gives the same bits, at every
 * length from nothing to beyond a block, with the values that end a formula's range.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/us_cpu_kernels.h"
#include "math/us_bf16_math.h"
#include "us_status.h"

enum { MOST = 3 * US_CPU_PERIOD };

static const struct usi_cpu_kernels *const *table;
static int n_tables;

static float x[2 * MOST], res[MOST], scale[MOST], shift[MOST];
static uint16_t x_bf16[2 * MOST], res_bf16[MOST];

/* What two tables wrote; one element more, which nobody may touch. */
static float out[2][MOST + 1], out2[2][MOST + 1];

static int fill(void **s)
{
    static const float special[] = {0.0f,   -0.0f, 1e-40f, -1e-40f,  88.8f,     -87.4f, 1e30f,
                                    -1e30f, 3e38f, -3e38f, INFINITY, -INFINITY, NAN};
    uint32_t u = 1;
    for (int i = 0; i < 2 * MOST; i++) {
        u = u * 1664525u + 1013904223u;
        x[i] = ((float)(u >> 8) / 8388608.0f - 1.0f) * 12.0f;
        if (i % 17 == 3)
            x[i] = special[(size_t)(i / 17) % US_COUNT(special)];
        x_bf16[i] = us_bf16_of_f32(x[i]);
    }
    for (int i = 0; i < MOST; i++) {
        res[i] = sinf((float)i);
        res_bf16[i] = us_bf16_of_f32(res[i]);
        scale[i] = 1.5f * cosf((float)i);
        shift[i] = sinf(3.0f * (float)i);
    }
    table = usi_cpu_kernels_list(&n_tables);
    return 0;
}

static void clear(void)
{
    memset(out, 0xee, sizeof(out));
    memset(out2, 0xee, sizeof(out2));
}

/* Both wrote the same; behind n elements of dtype t nothing was written. */
static void assert_same(enum us_dtype t, int64_t n, const char *what, const char *isa)
{
    unsigned char untouched[sizeof(float)];
    size_t bytes = (size_t)n * us_dtype_bytes(t);
    memset(untouched, 0xee, sizeof(untouched));
    if (memcmp(out[0], out[1], sizeof(out[0])) != 0 ||
        memcmp(out2[0], out2[1], sizeof(out2[0])) != 0)
        fail_msg("%s: %s and %s differ at length %lld", what, table[0]->isa, isa, (long long)n);
    if (memcmp((char *)out[1] + bytes, untouched, sizeof(untouched)) != 0 ||
        memcmp((char *)out2[1] + bytes, untouched, sizeof(untouched)) != 0)
        fail_msg("%s: %s writes beyond length %lld", what, isa, (long long)n);
}

static void epilogues_have_the_same_bits_on_every_table(void **s)
{
    static const int64_t lengths[] = {0, 1, 3, 16, 63, 512, 513, 700, MOST};
    for (int k = 1; k < n_tables; k++)
        for (size_t l = 0; l < US_COUNT(lengths); l++)
            for (int v = 0; v < 24; v++) {
                int act = v & 1, tail = v >> 1 & 1, to = v >> 2 & 1, r = v >> 3;
                clear();
                for (int i = 0; i < 2; i++) {
                    struct usi_cpu_epilogue e = {.x = x,
                                                 .res = r == US_CPU_RES_BF16 ? (void *)res_bf16
                                                                             : (void *)res,
                                                 .out = out[i],
                                                 .out2 = out2[i],
                                                 .tail = {scale, shift, 7 * 73},
                                                 .n = lengths[l]};
                    table[i == 0 ? 0 : k]->epilogue[act][r][to][tail](&e);
                }
                assert_same((enum us_dtype)to, lengths[l], "epilogue", table[k]->isa);
            }
}

static void an_epilogue_in_place_has_the_bits_of_one_out_of_place(void **s)
{
    for (int k = 0; k < n_tables; k++)
        for (int v = 0; v < 4; v++) {
            struct usi_cpu_epilogue e = {
                .x = x, .res = res, .out = out[0], .tail = {scale, shift, 512}, .n = MOST};
            int r = v & 1 ? US_CPU_RES_F32 : US_CPU_RES_NONE;
            clear();
            e.out2 = out2[0];
            table[k]->epilogue[v >> 1][r][US_F32][1](&e);
            memcpy(out[1], x, MOST * sizeof(*x));
            e.x = e.out = out[1];
            e.out2 = out2[1];
            table[k]->epilogue[v >> 1][r][US_F32][1](&e);
            assert_same(US_F32, MOST, "in place", table[k]->isa);
        }
}

static void gates_have_the_same_bits_on_every_table(void **s)
{
    static const int32_t channels[] = {1, 5, 16, 64, 511, 512, 600};
    for (int k = 1; k < n_tables; k++)
        for (size_t l = 0; l < US_COUNT(channels); l++)
            for (int v = 0; v < 8; v++) {
                int r = v & 1, tail = v >> 1 & 1, to = v >> 2;
                int32_t c = channels[l];
                int64_t pixels = MOST / c;
                clear();
                for (int i = 0; i < 2; i++) {
                    struct usi_cpu_gate_args g = {.x = x,
                                                  .res =
                                                      r == US_BF16 ? (void *)res_bf16 : (void *)res,
                                                  .out = out[i],
                                                  .out2 = out2[i],
                                                  .tail = {scale, shift, MOST},
                                                  .n_pixels = pixels,
                                                  .c = c};
                    table[i == 0 ? 0 : k]->gate[r][to][tail](&g);
                }
                assert_same((enum us_dtype)to, pixels * c, "gate", table[k]->isa);
            }
}

static void conversions_and_affine_elus_have_the_same_bits_on_every_table(void **s)
{
    static const int64_t lengths[] = {0, 1, 31, 64, 600, MOST};
    for (int k = 1; k < n_tables; k++)
        for (size_t l = 0; l < US_COUNT(lengths); l++)
            for (int v = 0; v < 4; v++) {
                int from = v & 1, to = v >> 1;
                const void *in = from == US_BF16 ? (const void *)x_bf16 : (const void *)x;
                struct usi_cpu_tail t = {scale, shift, 700};
                clear();
                for (int i = 0; i < 2; i++) {
                    const struct usi_cpu_kernels *kern = table[i == 0 ? 0 : k];
                    kern->convert[from][to](in, out[i], lengths[l]);
                    kern->affine_elu[from][to](in, out2[i], &t, lengths[l]);
                }
                assert_same((enum us_dtype)to, lengths[l], "conversion", table[k]->isa);
            }
}

static void latents_have_the_same_bits_on_every_table(void **s)
{
    static const int32_t channels[] = {1, 3, 4, 30, 128, 131, 600};
    for (int k = 1; k < n_tables; k++)
        for (size_t l = 0; l < US_COUNT(channels); l++)
            for (int v = 0; v < 8; v++) {
                int from = v & 1, to = v >> 1 & 1, hook = v >> 2;
                clear();
                for (int i = 0; i < 2; i++) {
                    struct usi_cpu_latent_args a = {.in = from == US_BF16 ? (const void *)x_bf16
                                                                          : (const void *)x,
                                                    .out = out[i],
                                                    .eps = hook ? res : NULL,
                                                    .z = channels[l],
                                                    .var_clip_max = 20.0f,
                                                    .k0 = 0x12345678u,
                                                    .k1 = 0xdeadbeefu,
                                                    .c0 = (uint32_t)channels[l],
                                                    .c3 = 9};
                    table[i == 0 ? 0 : k]->latent[from][to](&a);
                }
                assert_same((enum us_dtype)to, channels[l], "latent", table[k]->isa);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(epilogues_have_the_same_bits_on_every_table),
        cmocka_unit_test(an_epilogue_in_place_has_the_bits_of_one_out_of_place),
        cmocka_unit_test(gates_have_the_same_bits_on_every_table),
        cmocka_unit_test(conversions_and_affine_elus_have_the_same_bits_on_every_table),
        cmocka_unit_test(latents_have_the_same_bits_on_every_table),
    };
    return cmocka_run_group_tests(tests, fill, NULL);
}
