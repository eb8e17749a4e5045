/*
 * What the cpu backend relies on in oneDNN: the network's shapes get vectorised implementations, no
 * thread is started, bands share weights, and a refusal says what was refused. A new oneDNN that
 * fails here is slower or different, not necessarily wrong.
 */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/us_cpu_dnn.h"

static struct usi_dnn *dnn;

static int open_dnn(void **s)
{
    return usi_dnn_open(&dnn, NULL) == US_OK ? 0 : -1;
}

static int close_dnn(void **s)
{
    usi_dnn_close(dnn);
    return 0;
}

/* Rows of a band of a `side` wide map: its first rows, some in the middle, its last ones. */
static struct usi_dnn_conv_spec band(int32_t side, int32_t k, int32_t ic, int32_t oc, int32_t where)
{
    int32_t rows = side < 16 ? side : 16, pad = k / 2;
    struct usi_dnn_conv_spec p = {.ic = ic,
                                  .oc = oc,
                                  .kh = k,
                                  .kw = k,
                                  .stride = 1,
                                  .iw = side,
                                  .oh = rows,
                                  .ow = side,
                                  .pad_left = pad,
                                  .pad_right = pad,
                                  .bias = true};
    p.pad_top = where == 0 ? pad : 0;
    p.pad_bottom = where == 2 ? pad : 0;
    p.ih = rows + k - 1 - p.pad_top - p.pad_bottom;
    return p;
}

static void assert_fast(struct usi_dnn_conv_spec p, enum us_dtype src, enum us_dtype dst)
{
    struct usi_dnn_conv *c;
    struct us_err err = {.status = US_OK};
    p.src = src;
    p.dst = dst;
    if (usi_dnn_conv_new(dnn, &p, &c, &err) != US_OK)
        fail_msg("%s", err.msg);
    if (strncmp(usi_dnn_conv_impl(c), "ref", 3) == 0)
        fail_msg("%dx%d, %d -> %d channels, %d wide: %s", p.kh, p.kw, p.ic, p.oc, p.iw,
                 usi_dnn_conv_impl(c));
    usi_dnn_conv_free(c);
}

static void shapes_of_the_network_get_no_reference_loop(void **s)
{
    /* Sides that pruning leaves (performance.md 5), and the full ones. */
    static const int32_t side[] = {64, 44, 38, 37, 31, 27, 21, 19, 8, 4};
    static const struct {
        int32_t k, ic, oc;
    } conv[] = {{3, 64, 64}, {3, 64, 256}, {3, 128, 64}, {3, 64, 4},
                {3, 1, 64},  {5, 1, 64},   {1, 64, 128}, {1, 64, 64}};
    for (size_t i = 0; i < US_COUNT(side); i++)
        for (size_t j = 0; j < US_COUNT(conv); j++)
            for (int32_t where = 0; where < 3; where++) {
                struct usi_dnn_conv_spec p =
                    band(side[i], conv[j].k, conv[j].ic, conv[j].oc, where);
                assert_fast(p, US_F32, US_F32);
                if (!usi_dnn_has_bf16(dnn))
                    continue;
                assert_fast(p, US_BF16, US_BF16);
                assert_fast(p, US_BF16, US_F32);
            }
}

static int n_threads(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/task");
    assert_non_null(d);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

/* OpenMP's own threads would spin beside the workers long after they were of use. */
static void planning_and_packing_start_no_thread(void **s)
{
    struct usi_dnn_conv *c;
    struct usi_dnn_conv_spec p = band(64, 3, 256, 256, 1);
    float *w = calloc(256 * 256 * 9, sizeof(*w));
    assert_non_null(w);
    int before = n_threads();
    assert_int_equal(usi_dnn_conv_new(dnn, &p, &c, NULL), US_OK);
    void *packed = aligned_alloc(64, (usi_dnn_conv_weight_bytes(c) + 63) / 64 * 64);
    assert_non_null(packed);
    assert_int_equal(usi_dnn_conv_pack(c, w, packed), US_OK);
    assert_int_equal(n_threads(), before);
    usi_dnn_conv_free(c);
    free(packed);
    free(w);
}

static void bands_of_one_map_share_their_weights(void **s)
{
    struct usi_dnn_conv *c[3];
    for (int32_t i = 0; i < 3; i++) {
        struct usi_dnn_conv_spec p = band(64, 3, 64, 64, i);
        assert_int_equal(usi_dnn_conv_new(dnn, &p, &c[i], NULL), US_OK);
    }
    assert_true(usi_dnn_conv_same_weights(c[0], c[1]));
    assert_true(usi_dnn_conv_same_weights(c[0], c[2]));
    for (int32_t i = 0; i < 3; i++)
        usi_dnn_conv_free(c[i]);
}

static void a_refusal_names_shapes_and_the_reason(void **s)
{
    struct usi_dnn_conv *c = NULL;
    struct us_err err = {.status = US_OK};
    struct usi_dnn_conv_spec p = band(16, 3, 16, 16, 1);
    p.oh = 99; /* not what the padding gives */
    assert_int_equal(usi_dnn_conv_new(dnn, &p, &c, &err), US_E_BACKEND);
    assert_null(c);
    assert_non_null(strstr(err.msg, "3x3 stride 1"));
    assert_non_null(strstr(err.msg, "99x16x16"));
    assert_non_null(strstr(err.msg, "invalid arguments"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes_of_the_network_get_no_reference_loop),
        cmocka_unit_test(planning_and_packing_start_no_thread),
        cmocka_unit_test(bands_of_one_map_share_their_weights),
        cmocka_unit_test(a_refusal_names_shapes_and_the_reason),
    };
    return cmocka_run_group_tests(tests, open_dnn, close_dnn);
}
