/*
 * The training run on backends that take whole batches (us_train_ops.h: batched): the same run as
 * on the host, and resumed to the same bytes. 18 patches in batches of 4: each epoch ends with a
 * batch of 2.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "us_cuda.h"
#include "us_fake_run.h"
#include "us_recorder.h"

static void prepare(struct us_fake_run *r, const char *variant,
                    enum us_status (*open)(struct us_backend **, struct us_err *))
{
    us_fake_run_prepare(r, variant);
    r->open = open;
    r->data.augment = true;
}

static void figures_follow_those_of_the_host(void **state)
{
    enum us_status (*const open[])(struct us_backend **, struct us_err *) = {
        us_ref_open, us_recorder_open, us_cuda_serial_open};
    struct us_fake_heard host = {0};
    for (size_t b = 0; b < US_COUNT(open); b++) {
        struct us_fake_run r;
        prepare(&r, "lean", open[b]);
        us_fake_run_must(&r, NULL);
        if (b == 0)
            host = r.heard;
        assert_int_equal(r.heard.epochs, host.epochs);
        for (int i = 0; i < host.epochs; i++) {
            if (!(fabs(r.heard.psnr[i] - host.psnr[i]) < 0.02))
                fail_msg("backend %zu, epoch %d: %.6f dB, on the host %.6f dB", b, i,
                         r.heard.psnr[i], host.psnr[i]);
        }
        us_fake_run_drop(&r);
        us_fake_run_wipe();
    }
}

/* Cancelled before the last batch of an epoch, when its size is known and recorded. */
static void a_cancelled_run_resumes_to_the_same_bytes(void **state)
{
    enum us_status (*const open[])(struct us_backend **, struct us_err *) = {us_recorder_open,
                                                                             us_cuda_serial_open};
    for (size_t b = 0; b < US_COUNT(open); b++) {
        struct us_fake_run r;
        prepare(&r, "vanilla", open[b]);
        us_fake_run_must(&r, NULL);
        struct us_fake_outcome whole = us_fake_outcome(&r);
        us_fake_run_drop(&r);
        us_fake_run_wipe();
        prepare(&r, "vanilla", open[b]);
        r.heard.cancel_at = 9;
        assert_int_equal(us_fake_run_go(&r, NULL), US_E_CANCELLED);
        atomic_store(&r.heard.cancel, false);
        us_fake_run_must(&r, US_FAKE_LAST);
        struct us_fake_outcome resumed = us_fake_outcome(&r);
        us_fake_outcome_same(&whole, &resumed);
        us_fake_outcome_free(&whole);
        us_fake_run_drop(&r);
        us_fake_run_wipe();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(figures_follow_those_of_the_host, us_fake_run_begin,
                                        us_fake_run_end),
        cmocka_unit_test_setup_teardown(a_cancelled_run_resumes_to_the_same_bytes,
                                        us_fake_run_begin, us_fake_run_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
