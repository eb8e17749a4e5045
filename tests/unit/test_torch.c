/*
 * PyTorch checkpoints (proto/us_torch.h): what PyTorch wrote is read, what we write is read
 * back. Files made to mislead are in test_torch_refuse.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "us_torch.h"
#include "us_torch_make.h"

#define LIGHTNING "tests/fuzz/corpus/torch/lightning.ckpt" /* by PyTorch 1.13 */

static void a_small_checkpoint_is_read(void **state)
{
    size_t n;
    struct us_err err = {0};
    struct us_torch *t = NULL;
    unsigned char *bytes = us_torch_checkpoint(US_BYTES(PICKLE_DICT(PICKLE_TENSOR)), &n);
    assert_int_equal(us_torch_parse(bytes, n, &t, &err), US_OK);
    int32_t count = 0;
    const struct us_torch_tensor *x = us_torch_tensors(t, &count);
    float out[4];
    assert_int_equal(count, 1);
    assert_string_equal(x->name, "w");
    assert_int_equal(x->ndim, 1);
    assert_int_equal(x->dim[0], 4);
    assert_int_equal(us_torch_read(t, 0, out, &err), US_OK);
    assert_memory_equal(out, us_torch_numbers, sizeof(out));
    us_torch_free(t);
    free(bytes);
}

/* Transposed, shifted, repeated and empty views of one storage. */
static void views_are_read_in_row_major_order(void **state)
{
    static const struct {
        const char *pickle;
        size_t n;
        int32_t count;
        float expected[8];
    } cases[] = {
        {US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS
                              "K\000(K\002K\002t(K\001K\002t" PICKLE_HOOKS)),
         4,
         {1.5f, 3.25f, -2.0f, 1e-3f}},
        {US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS "K\002(K\002t(K\001t" PICKLE_HOOKS)),
         2,
         {3.25f, 1e-3f}},
        {US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS
                              "K\001(K\003K\002t(K\000K\001t" PICKLE_HOOKS)),
         6,
         {-2.0f, 3.25f, -2.0f, 3.25f, -2.0f, 3.25f}},
        {US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS "K\003))" PICKLE_HOOKS)), 1, {1e-3f}},
        {US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS
                              "K\004(K\000K\007t(K\007K\001t" PICKLE_HOOKS)),
         0,
         {0}},
        /* a step that is never taken */
        {US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS
                              "K\001(K\001K\002t(\212\010\377\377\377\377\377\377\377\177"
                              "K\002t" PICKLE_HOOKS)),
         2,
         {-2.0f, 1e-3f}},
    };
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        size_t n;
        float out[8] = {0};
        int32_t count = 0;
        struct us_err err = {0};
        struct us_torch *t = NULL;
        unsigned char *bytes = us_torch_checkpoint(cases[i].pickle, cases[i].n, &n);
        if (us_torch_parse(bytes, n, &t, &err) != US_OK)
            fail_msg("case %zu: %s", i, err.msg);
        assert_int_equal(us_torch_tensors(t, &count)->count, cases[i].count);
        assert_int_equal(us_torch_read(t, 0, out, &err), US_OK);
        assert_memory_equal(out, cases[i].expected, sizeof(out));
        us_torch_free(t);
        free(bytes);
    }
}

static void zip64_archives_are_read(void **state)
{
    const struct us_zip_part part[] = {
        {.name = "a/data.pkl",
         .data = PICKLE_DICT(PICKLE_TENSOR),
         .n = sizeof(PICKLE_DICT(PICKLE_TENSOR)) - 1},
        {.name = "a/data/0",
         .data = us_torch_numbers,
         .n = sizeof(us_torch_numbers),
         .zip64 = true},
    };
    const struct us_zip_make make = {.part = part, .n = 2, .zip64 = true};
    size_t n;
    float out[4];
    struct us_err err = {0};
    struct us_torch *t = NULL;
    unsigned char *bytes = us_zip_make(&make, &n);
    if (us_torch_parse(bytes, n, &t, &err) != US_OK)
        fail_msg("%s", err.msg);
    assert_int_equal(us_torch_read(t, 0, out, &err), US_OK);
    assert_memory_equal(out, us_torch_numbers, sizeof(out));
    us_torch_free(t);
    free(bytes);
}

static void damaged_numbers_are_noticed_when_read(void **state)
{
    size_t n;
    float out[4];
    struct us_err err = {0};
    struct us_torch *t = NULL;
    unsigned char *bytes = us_torch_checkpoint(US_BYTES(PICKLE_DICT(PICKLE_TENSOR)), &n);
    unsigned char *data = memmem(bytes, n, us_torch_numbers, sizeof(us_torch_numbers));
    assert_non_null(data);
    data[5] ^= 1;
    assert_int_equal(us_torch_parse(bytes, n, &t, &err), US_OK);
    assert_int_equal(us_torch_read(t, 0, out, &err), US_E_CORRUPT);
    assert_non_null(strstr(err.msg, "data/0"));
    us_torch_free(t);
    free(bytes);
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    size_t n;
    unsigned char *bytes = us_torch_checkpoint(US_BYTES(PICKLE_DICT(PICKLE_TENSOR)), &n);
    for (size_t cut = 0; cut < n; cut++) {
        struct us_torch *t = NULL;
        unsigned char *part = malloc(cut + 1); /* so that a sanitizer sees its end */
        assert_non_null(part);
        memcpy(part, bytes, cut);
        assert_int_not_equal(us_torch_parse(part, cut, &t, NULL), US_OK);
        free(part);
    }
    free(bytes);
}

/* ---- files of PyTorch ---------------------------------------------------------------------- */

static void check_numbers(const struct us_torch *t, const char *parent, const char *key,
                          enum us_torch_kind kind, int32_t n, double first)
{
    struct us_torch_value v;
    if (!us_torch_setting(t, parent, key, &v))
        fail_msg("%s is not found", key);
    assert_int_equal(v.kind, kind);
    assert_int_equal(v.n, n);
    assert_true(v.real[0] == first);
}

static void a_lightning_checkpoint_is_read_past_its_foreign_classes(void **state)
{
    struct us_err err = {0};
    struct us_torch *t = NULL;
    struct us_torch_value v;
    const char *foreign;
    int32_t n;
    if (us_torch_open(LIGHTNING, &t, &err) != US_OK)
        fail_msg("%s", err.msg);
    assert_string_equal(us_torch_tensors(t, &n)->name, "first_bottom_up.0.weight");
    assert_int_equal(n, 221);
    assert_int_equal(us_torch_foreign(t, &foreign), 1);
    assert_string_equal(foreign, "pytorch_lightning.utilities.parsing.AttributeDict");
    check_numbers(t, NULL, "target_means", US_TORCH_REAL, 3, 1.5);
    check_numbers(t, NULL, "target_stds", US_TORCH_INT, 3, 4);
    check_numbers(t, "encoder", "dropout", US_TORCH_REAL, 1, 0.2);
    assert_false(us_torch_setting(t, "decoder", "dropout", &v));
    assert_true(us_torch_setting(t, "decoder", "multiscale_retain_spatial_dims", &v));
    assert_int_equal(v.kind, US_TORCH_FLAG);
    assert_true(us_torch_setting(t, NULL, "nonlin", &v));
    assert_string_equal(v.text[0], "elu");
    assert_false(us_torch_setting(t, NULL, "first_bottom_up.0.weight", &v));
    us_torch_free(t);
}

static void formats_before_1_6_are_refused_with_the_way_to_convert(void **state)
{
    struct us_err err = {0};
    struct us_torch *t = NULL;
    assert_int_equal(us_torch_open("tests/fuzz/corpus/torch/old.pt", &t, &err), US_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "before 1.6"));
    assert_non_null(strstr(err.msg, "torch.save("));
}

/* ---- what we write ------------------------------------------------------------------------- */

static const int64_t counters[1] = {1234567890123};
static const struct us_torch_out outs[] = {
    {"a.weight", US_TORCH_F32, 2, {2, 2}, us_torch_numbers, -1},
    {"a.count", US_TORCH_I64, 0, {0}, counters, -1},
    {"b.weight", US_TORCH_F32, 2, {2, 2}, us_torch_numbers, 0},
    {"c", US_TORCH_F32, 1, {3}, us_torch_numbers + 1, -1},
};

static unsigned char *written(bool wrapped, size_t *ret_n)
{
    FILE *f = tmpfile();
    struct us_err err = {0};
    assert_non_null(f);
    if (us_torch_write(fileno(f), outs, (int32_t)US_COUNT(outs), wrapped, &err) != US_OK)
        fail_msg("%s", err.msg);
    off_t n = lseek(fileno(f), 0, SEEK_END);
    assert_true(n > 0);
    unsigned char *bytes = malloc((size_t)n);
    assert_non_null(bytes);
    assert_int_equal(pread(fileno(f), bytes, (size_t)n, 0), n);
    assert_int_equal(fclose(f), 0);
    *ret_n = (size_t)n;
    return bytes;
}

static void what_is_written_is_read_back(void **state)
{
    for (int wrapped = 0; wrapped < 2; wrapped++) {
        size_t n;
        struct us_err err = {0};
        struct us_torch *t = NULL;
        unsigned char *bytes = written(wrapped == 1, &n);
        if (us_torch_parse(bytes, n, &t, &err) != US_OK)
            fail_msg("%s", err.msg);
        int32_t count = 0;
        const struct us_torch_tensor *x = us_torch_tensors(t, &count);
        assert_int_equal(count, US_COUNT(outs));
        for (int32_t i = 0; i < count; i++) {
            int64_t room[4] = {0};
            assert_string_equal(x[i].name, outs[i].name);
            assert_int_equal(x[i].dtype, outs[i].dtype);
            assert_int_equal(x[i].ndim, outs[i].ndim);
            assert_memory_equal(x[i].dim, outs[i].dim, sizeof(x[i].dim));
            assert_int_equal(us_torch_read(t, i, room, &err), US_OK);
            assert_memory_equal(room, outs[i].data,
                                (size_t)(x[i].count * us_torch_dtype_bytes(x[i].dtype)));
        }
        us_torch_free(t);
        free(bytes);
    }
}

/* PyTorch maps files: data at multiples of 64 bytes, each storage once, the same bytes always. */
static void written_data_are_aligned_shared_and_reproducible(void **state)
{
    size_t n, again_n;
    unsigned char *bytes = written(false, &n), *again = written(false, &again_n);
    assert_int_equal(n, again_n);
    assert_memory_equal(bytes, again, n);
    const unsigned char *first = memmem(bytes, n, us_torch_numbers, sizeof(us_torch_numbers));
    assert_non_null(first);
    assert_int_equal((first - bytes) % 64, 0);
    assert_null(memmem(first + 1, n - (size_t)(first + 1 - bytes), us_torch_numbers,
                       sizeof(us_torch_numbers)));
    free(bytes);
    free(again);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_checkpoint_is_read),
        cmocka_unit_test(views_are_read_in_row_major_order),
        cmocka_unit_test(zip64_archives_are_read),
        cmocka_unit_test(damaged_numbers_are_noticed_when_read),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(a_lightning_checkpoint_is_read_past_its_foreign_classes),
        cmocka_unit_test(formats_before_1_6_are_refused_with_the_way_to_convert),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(written_data_are_aligned_shared_and_reproducible),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
