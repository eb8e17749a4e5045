/*
 * Every op on every backend (ops_test.h): one test per backend, op and dtypes, made from the
 * op list, so that an op without cases does not link.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops_test.h"
#include "us_cuda.h"

static const struct ops_suite *const suites[US_OP_COUNT] = {
#define US_OP(name) [US_OP_##name] = &ops_##name##_suite,
#include "us_ops.def"
#undef US_OP
};

static const struct {
    const char *name;
    enum us_status (*open)(struct us_backend **ret, struct us_err *err);
} backend_list[] = {
    {"ref", us_ref_open},
    {"cpu", us_cpu_open},
    {"cuda_serial", us_cuda_serial_open},
    {"cuda_strict", ops_cuda_strict_open},
    {"cuda_direct", ops_cuda_direct_open},
};

#define REF        0
#define DETOURS    3 /* from here on: backends that must take a way round */
#define N_BACKENDS US_COUNT(backend_list)

static struct us_backend *backends[N_BACKENDS];

struct us_backend *ops_backend(int i)
{
    return i < (int)N_BACKENDS ? backends[i] : NULL;
}

/* How the maps of a run are typed. */
static const struct mode {
    const char *name;
    enum us_dtype in, out;
} modes[] = {
    {"f32", US_F32, US_F32},
    {"bf16", US_BF16, US_BF16},
    {"f32_to_bf16", US_F32, US_BF16},
    {"bf16_to_f32", US_BF16, US_F32},
};

static int open_backends(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_BACKENDS; i++) {
        struct us_err err = {0};
        if (backend_list[i].open(&backends[i], &err) != US_OK) {
            print_error("%s: %s\n", backend_list[i].name, err.msg);
            return -1;
        }
        us_backend_ops(backends[i])->thread_init(backends[i]);
    }
    return 0;
}

static int free_backends(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_BACKENDS; i++)
        if (backends[i] != NULL)
            us_backend_ops(backends[i])->free(backends[i]);
    return 0;
}

void ops_expect_refused(enum us_op_kind kind, const union ops_desc *d, const char *words,
                        const char *reason)
{
    struct us_err err = {0};
    enum us_status s = ops_check(kind, d, &err);
    if (s != US_E_ARG || strstr(err.msg, words) == NULL ||
        strncmp(err.msg, us_op_name(kind), strlen(us_op_name(kind))) != 0)
        fail_msg("%s (%s): status %s, message \"%s\" lacks \"%s\"", us_op_name(kind), reason,
                 us_status_name(s), err.msg, words);
    for (size_t i = 0; i < N_BACKENDS; i++) {
        struct us_op *op = NULL;
        struct us_err mine = {0};
        s = ops_plan(backends[i], kind, d, &op, &mine);
        if (s != US_E_ARG || op != NULL || strcmp(mine.msg, err.msg) != 0)
            fail_msg("%s (%s): %s says %s: %s", us_op_name(kind), reason, backend_list[i].name,
                     us_status_name(s), mine.msg);
    }
}

/* What one test covers; the test's state. */
struct slot {
    int backend;
    enum us_op_kind kind;
    const struct mode *mode;
    double used; /* the largest share of its bound that a difference took */
    char name[128];
};

/* The expected result, on the same (rounded) data: ref's from its oracle, the others' from ref. */
static enum us_status expected(const struct slot *slot, const struct ops_suite *s,
                               struct ops_case *c, const struct ops_data *d, struct ops_result *ret)
{
    if (slot->backend != REF && !c->own_dtypes)
        return ops_run(backends[REF], c, d, ret);
    ops_run_oracle(s, c, d, ret);
    return US_OK;
}

/* The comparison counts NaN as different: what was never written is one. */
static bool agrees(struct slot *slot, const struct ops_case *c, const char *what, const float *got,
                   const float *want, double tol)
{
    int64_t n = us_map_count(c->out);
    double largest = 0, worst = -1;
    int64_t at = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs((double)want[i]));
    for (int64_t i = 0; i < n; i++) {
        double diff = fabs((double)got[i] - (double)want[i]);
        if (diff > worst || isnan(diff)) {
            worst = diff;
            at = i;
        }
        if (isnan(diff))
            break;
    }
    if (worst > 0)
        slot->used = fmax(slot->used, worst / (tol * largest));
    if (worst <= tol * largest)
        return true;
    const struct us_rect *r = &c->out->rect;
    int64_t pixel = at / c->out->c;
    print_error("%s: %s differs by %g (largest value %g, bound %g) at item %lld, row %lld, column "
                "%lld, channel %lld: %g, not %g\n",
                c->name, what, worst, largest, tol * largest, (long long)(pixel / r->w / r->h),
                (long long)(r->y0 + pixel / r->w % r->h), (long long)(r->x0 + pixel % r->w),
                (long long)(at % c->out->c), (double)got[at], (double)want[at]);
    return false;
}

/* US_E_UNSUPPORTED: the backend does not take these dtypes. US_E_BACKEND: wrong, and said so. */
static enum us_status run_case(struct slot *slot, int i)
{
    const struct ops_suite *s = suites[slot->kind];
    struct us_backend *be = backends[slot->backend];
    struct ops_case c = {.kind = slot->kind};
    struct ops_data d;
    struct ops_result want = {0}, got = {0};
    s->get(i, &c);
    bool round =
        (c.own_dtypes ? c.in[0]->dtype : slot->mode->in) == US_BF16 || slot->mode->out == US_BF16;
    ops_data_make(&c, round, &d);
    enum us_status st = expected(slot, s, &c, &d, &want);
    ops_set_dtypes(&c, slot->mode->in, slot->mode->out);
    if (st == US_OK)
        st = ops_run(be, &c, &d, &got);
    double tol = c.out->dtype == US_BF16 ? s->tol_bf16 : s->tol_f32;
    if (st == US_OK && !agrees(slot, &c, "out", got.out, want.out, tol))
        st = US_E_BACKEND;
    if (st == US_OK && c.tail && !agrees(slot, &c, "out2", got.out2, want.out2, tol))
        st = US_E_BACKEND;
    ops_result_free(&want);
    ops_result_free(&got);
    ops_data_free(&d);
    return st;
}

static void every_case_agrees(void **state)
{
    struct slot *slot = *state;
    const struct us_backend_ops *ops = us_backend_ops(backends[slot->backend]);
    bool bf16 = slot->mode->in == US_BF16 || slot->mode->out == US_BF16;
    if (bf16 && !ops->has_dtype(backends[slot->backend], US_BF16)) {
        print_message("skipped: %s multiplies no bf16 on this processor\n", ops->name);
        skip();
    }
    int n = suites[slot->kind]->n_cases, wrong = 0, unsupported = 0;
    for (int i = 0; i < n; i++) {
        enum us_status s = run_case(slot, i);
        wrong += s == US_E_BACKEND;
        unsupported += s == US_E_UNSUPPORTED;
        assert_true(s == US_OK || s == US_E_BACKEND || s == US_E_UNSUPPORTED);
    }
    assert_int_equal(wrong, 0);
    if (unsupported == n) {
        print_message("skipped: %s does not take %s\n", ops->name, slot->name);
        skip();
    }
    /* Some cases but not others: only copies to bf16, on a processor that cannot multiply it. */
    assert_true(unsupported == 0 || !ops->has_dtype(backends[slot->backend], US_BF16));
    print_message("largest difference: %.0f %% of its bound\n", 100 * slot->used);
}

static bool lacks_dtype(const struct slot *slot)
{
    struct us_backend *be = backends[slot->backend];
    if (us_backend_ops(be)->has_dtype(be, slot->mode->in))
        return false;
    print_message("skipped: %s multiplies no %s on this processor\n", us_backend_ops(be)->name,
                  slot->mode->name);
    return true;
}

static void items_of_a_batch_have_the_bits_they_have_alone(void **state)
{
    const struct slot *slot = *state;
    int wrong = 0, batches = 0;
    if (lacks_dtype(slot))
        skip();
    for (int i = 0; i < suites[slot->kind]->n_cases; i++) {
        struct ops_case c = {.kind = slot->kind};
        suites[slot->kind]->get(i, &c);
        if (c.out->n == 1)
            continue;
        batches++;
        wrong += !ops_item_is_the_same_alone(backends[slot->backend], slot->kind,
                                             suites[slot->kind], i, slot->mode->in);
    }
    assert_int_equal(wrong, 0);
    assert_true(batches > 0);
}

static void parts_have_the_bits_they_have_in_the_whole(void **state)
{
    const struct slot *slot = *state;
    int wrong = 0, wholes = 0;
    if (lacks_dtype(slot))
        skip();
    for (int i = 0; i < suites[slot->kind]->n_cases; i++) {
        struct ops_case c = {.kind = slot->kind};
        suites[slot->kind]->get(i, &c);
        if (!ops_is_whole(&c))
            continue;
        wholes++;
        wrong += !ops_part_is_that_of_the_whole(backends[slot->backend], slot->kind,
                                                suites[slot->kind], i, slot->mode->in);
    }
    assert_int_equal(wrong, 0);
    assert_true(wholes > 0);
}

static void ops_have_the_names_of_the_list(void **state)
{
    (void)state;
    assert_string_equal(us_op_name(US_OP_conv2d), "conv2d");
    assert_string_equal(us_op_name(US_OP_affine_elu), "affine_elu");
    assert_string_equal(us_op_name(US_OP_COUNT), "unknown op");
}

static const struct CMUnitTest plain_tests[] = {
    cmocka_unit_test(ops_have_the_names_of_the_list),
    cmocka_unit_test(maps_that_make_no_sense_are_refused),
    cmocka_unit_test(conv2d_windows_that_do_not_fit_are_refused),
    cmocka_unit_test(conv2d_residuals_that_do_not_fit_are_refused),
    cmocka_unit_test(conv_t2d_descriptors_that_do_not_fit_are_refused),
    cmocka_unit_test(gate_descriptors_that_do_not_fit_are_refused),
    cmocka_unit_test(merge_descriptors_that_do_not_fit_are_refused),
    cmocka_unit_test(latent_descriptors_that_do_not_fit_are_refused),
    cmocka_unit_test(affine_elu_descriptors_that_do_not_fit_are_refused),
    cmocka_unit_test(copy_descriptors_that_do_not_fit_are_refused),
    cmocka_unit_test(overlapping_patches_draw_the_same_image_keyed_noise),
    cmocka_unit_test(noise_changes_with_every_part_of_its_key),
};

#define N_MODES US_COUNT(modes)
#define N_SLOTS (N_BACKENDS * US_OP_COUNT * N_MODES * 3)

static struct slot slots[N_SLOTS];
static struct CMUnitTest tests[US_COUNT(plain_tests) + N_SLOTS];

static void add_slot(size_t *n, int backend, int kind, const struct mode *mode, const char *what,
                     CMUnitTestFunction run)
{
    struct slot *s = &slots[*n - US_COUNT(plain_tests)];
    s->backend = backend;
    s->kind = (enum us_op_kind)kind;
    s->mode = mode;
    (void)snprintf(s->name, sizeof(s->name), "%s_on_%s_in_%s_%s", us_op_name(s->kind),
                   backend_list[backend].name, mode->name, what);
    tests[(*n)++] = (struct CMUnitTest){s->name, run, NULL, NULL, s};
}

int main(int argc, char **argv)
{
    size_t n = US_COUNT(plain_tests);
    memcpy(tests, plain_tests, sizeof(plain_tests));
    for (int b = 0; b < (int)N_BACKENDS; b++)
        for (int k = 0; k < US_OP_COUNT; k++)
            for (size_t m = 0; m < N_MODES; m++) {
                /* The referee is f32; copy names its dtypes in its cases. */
                if (m > 0 && (b == REF || k == US_OP_copy))
                    continue;
                /* Slow, and what they are for has nothing to do with mixed types. */
                if (modes[m].in != modes[m].out && b >= DETOURS)
                    continue;
                add_slot(&n, b, k, &modes[m], "agrees", every_case_agrees);
                if (modes[m].in != modes[m].out)
                    continue;
                add_slot(&n, b, k, &modes[m], "items_of_a_batch_have_the_bits_they_have_alone",
                         items_of_a_batch_have_the_bits_they_have_alone);
                add_slot(&n, b, k, &modes[m], "parts_have_the_bits_they_have_in_the_whole",
                         parts_have_the_bits_they_have_in_the_whole);
            }
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return _cmocka_run_group_tests("ops", tests, n, open_backends, free_backends);
}
