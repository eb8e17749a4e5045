/*
 * Frames that stay in the backend's memory, on a device made of `ref` and a queue
 * (us_queue_backend.h): the same bytes as the pool of workers on `ref`, whatever the batch; memory
 * that is too small; failures, cancelling and progress while work is queued.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "us_plan.h"
#include "us_predict.h"
#include "us_queue_backend.h"
#include "us_tiny.h"

static struct us_backend *ref;

static int open_ref(void **state)
{
    return us_ref_open(&ref, NULL) == US_OK ? 0 : -1;
}

static int close_ref(void **state)
{
    us_backend_ops(ref)->free(ref);
    return 0;
}

static void close_queue(struct us_backend *be)
{
    us_backend_ops(be)->free(be);
}

struct result {
    int64_t h, w;
    float *mean, *std;
};

static void release(struct result *r)
{
    free(r->mean);
    free(r->std);
}

static struct us_predictor *predictor(const struct us_model *m, struct us_backend *be,
                                      const struct us_predict_config *cfg)
{
    struct us_err err = {0};
    struct us_predictor *p = NULL;
    if (us_predictor_new(m, be, cfg, &p, &err) != US_OK)
        fail_msg("%s", err.msg);
    return p;
}

static struct result run(struct us_predictor *p, int64_t h, int64_t w, bool std)
{
    struct us_err err = {0};
    struct result r = {.h = h, .w = w};
    size_t n = (size_t)(2 * h * w);
    r.mean = malloc(n * sizeof(float));
    r.std = malloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        r.mean[i] = r.std[i] = NAN;
    float *in = us_tiny_frame(h, w);
    struct us_predict_frame f = {
        .in = in, .h = h, .w = w, .frame_index = 3, .mean = r.mean, .std = std ? r.std : NULL};
    if (us_predict_run(p, &f, &err) != US_OK)
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < n; i++)
        assert_true(isfinite(r.mean[i]) && (!std || isfinite(r.std[i])));
    free(in);
    return r;
}

static void assert_same(const struct result *a, const struct result *b, bool std)
{
    size_t bytes = (size_t)(2 * a->h * a->w) * sizeof(float);
    assert_memory_equal(a->mean, b->mean, bytes);
    if (std)
        assert_memory_equal(a->std, b->std, bytes);
}

static struct result predict(const struct us_model *m, struct us_backend *be,
                             const struct us_predict_config *cfg, int64_t h, int64_t w, bool std)
{
    struct us_predictor *p = predictor(m, be, cfg);
    struct result r = run(p, h, w, std);
    us_predictor_free(p);
    return r;
}

struct route_case {
    const char *variant;
    enum us_pad_mode pad;
    int64_t h, w;
    struct us_predict_config cfg;
};

static const struct route_case route_cases[] = {
    {"lean", US_PAD_REFLECT, 51, 67, {.padding = 24, .samples = 1, .want_std = true}},
    {"regular", US_PAD_REFLECT, 70, 33, {.padding = 16, .samples = 3}},
    {"deep", US_PAD_ZERO, 65, 1, {.samples = 2, .want_std = true}},
    {"vanilla",
     US_PAD_REFLECT,
     90,
     101,
     {.padding = 8, .samples = 5, .grid = US_GRID_SHIFTED, .want_std = true}},
    {"lean",
     US_PAD_REFLECT,
     40,
     30,
     {.padding = 20, .samples = 3, .grid = US_GRID_SHIFTED, .noise = US_NOISE_IMAGE}},
    {"lean",
     US_PAD_ZERO,
     100,
     70,
     {.padding = 8, .tiling = US_TILING_OUTER, .samples = 2, .want_std = true}},
    {"vanilla",
     US_PAD_REFLECT,
     1,
     3,
     {.padding = 16, .samples = 4, .latent_mean = true, .want_std = true}},
};

static void the_bytes_are_those_of_the_pool_at_any_batch(void **state)
{
    static const int32_t batches[] = {1, 3, 32};
    for (size_t i = 0; i < US_COUNT(route_cases); i++) {
        const struct route_case *c = &route_cases[i];
        struct us_model *m = us_tiny_model(c->variant, 4, 1);
        m->data.context_padding = c->pad;
        struct us_predict_config cfg = c->cfg;
        cfg.seed = 7;
        cfg.threads = 2;
        struct result want = predict(m, ref, &cfg, c->h, c->w, cfg.want_std);
        for (size_t k = 0; k < (i == 0 ? US_COUNT(batches) : 2); k++) {
            struct us_backend *be = us_queue_open();
            cfg.batch = batches[k];
            struct result r = predict(m, be, &cfg, c->h, c->w, cfg.want_std);
            assert_same(&r, &want, cfg.want_std);
            release(&r);
            close_queue(be);
        }
        release(&want);
        us_model_free(m);
    }
}

static void work_is_recorded_once_and_queued_ahead(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_backend *be = us_queue_open();
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.samples = 2;
    cfg.batch = 1;
    struct us_predictor *p = predictor(m, be, &cfg);
    struct result a = run(p, 96, 96, true); /* 36 tiles of 16, 72 runs */
    const int64_t graphs = us_queue_graphs(be);
    assert_true(graphs > 0 && graphs <= 2 * US_EXEC_AHEAD);
    assert_true(us_queue_replays(be) >= 72 - 2 * US_EXEC_AHEAD);
    assert_int_equal(us_queue_longest(be), US_EXEC_AHEAD);
    struct result b = run(p, 96, 96, true); /* from the records alone */
    assert_int_equal(us_queue_graphs(be), graphs);
    assert_same(&a, &b, true);
    release(&a);
    release(&b);
    us_predictor_free(p);
    close_queue(be);
    us_model_free(m);
}

struct other {
    struct us_predictor *p;
    struct result want;
    int asked, passed_on;
};

static bool now_and_then(void *arg)
{
    return ((struct other *)arg)->asked++ % 3 == 1;
}

/* Somebody else's frame, larger than ours, on the same predictor. */
static void predict_another(void *arg)
{
    struct other *o = arg;
    o->passed_on++;
    struct result r = run(o->p, o->want.h, o->want.w, true);
    assert_same(&r, &o->want, true);
    release(&r);
}

static void frames_that_take_turns_have_the_bytes_of_frames_alone(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_backend *be = us_queue_open();
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.samples = 2;
    cfg.batch = 4;
    struct us_predictor *p = predictor(m, be, &cfg);
    struct other o = {.p = p, .want = run(p, 80, 90, true)};
    struct result alone = run(p, 70, 60, true);
    const size_t held = us_predictor_stats(p).worker_bytes;
    const struct us_predict_turns turns = {now_and_then, predict_another, &o};
    struct result r = {70, 60, calloc(2 * 70 * 60, sizeof(float)),
                       calloc(2 * 70 * 60, sizeof(float))};
    float *in = us_tiny_frame(70, 60);
    struct us_predict_frame f = {.in = in,
                                 .h = 70,
                                 .w = 60,
                                 .frame_index = 3,
                                 .mean = r.mean,
                                 .std = r.std,
                                 .turns = &turns};
    assert_int_equal(us_predict_run(p, &f, NULL), US_OK);
    assert_true(o.passed_on > 1);
    assert_same(&r, &alone, true);
    assert_int_equal(us_predictor_stats(p).worker_bytes, held); /* no frame is left behind */
    release(&r);
    release(&alone);
    release(&o.want);
    free(in);
    us_predictor_free(p);
    close_queue(be);
    us_model_free(m);
}

static void a_batch_that_does_not_fit_is_halved_until_it_does(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_backend *be = us_queue_open();
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.batch = 3;
    struct us_predictor *p = predictor(m, be, &cfg);
    const size_t three = us_queue_held(be);
    struct result want = run(p, 50, 40, false);
    const size_t frame = us_queue_held(be) - three;
    us_predictor_free(p);
    us_queue_set_limit(be, three + frame);
    cfg.batch = 25; /* 12, 6, 3 */
    p = predictor(m, be, &cfg);
    assert_int_equal(us_predictor_stats(p).batch, 3);
    struct result r = run(p, 50, 40, false);
    assert_same(&r, &want, false);
    us_predictor_free(p);
    us_queue_set_limit(be, 1000);
    struct us_err err = {0};
    assert_int_equal(us_predictor_new(m, be, &cfg, &p, &err), US_E_NOMEM);
    assert_non_null(strstr(err.msg, "on backend queue"));
    assert_int_equal(us_queue_held(be), 0);
    release(&want);
    release(&r);
    close_queue(be);
    us_model_free(m);
}

static void a_frame_that_does_not_fit_is_refused_with_numbers(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_backend *be = us_queue_open();
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.batch = 2;
    struct us_predictor *p = predictor(m, be, &cfg);
    const size_t without = us_queue_held(be), bytes = us_predict_frame_bytes(p, 48, 48);
    us_queue_set_limit(be, without + bytes);
    float *in = us_tiny_frame(49, 48), *mean = calloc((size_t)2 * 49 * 48, sizeof(*mean));
    struct us_predict_frame f = {.in = in, .h = 49, .w = 48, .mean = mean};
    struct us_err err = {0};
    assert_int_equal(us_predict_run(p, &f, &err), US_E_NOMEM);
    assert_non_null(strstr(err.msg, "frame of 49 x 48"));
    assert_non_null(strstr(err.msg, "bytes on backend queue"));
    assert_int_equal(us_queue_held(be), without);
    f.h = 48; /* and one that fits works */
    assert_int_equal(us_predict_run(p, &f, &err), US_OK);
    free(in);
    free(mean);
    us_predictor_free(p);
    close_queue(be);
    us_model_free(m);
}

static void the_stated_memory_is_what_is_held(void **state)
{
    static const bool stds[] = {false, true};
    struct us_model *m = us_tiny_model("regular", 4, 1);
    for (size_t i = 0; i < US_COUNT(stds); i++) {
        struct us_backend *be = us_queue_open();
        struct us_predict_config cfg = us_predict_defaults(m);
        cfg.want_std = stds[i];
        cfg.batch = 5;
        struct us_predictor *p = predictor(m, be, &cfg);
        struct us_predictor_stats s = us_predictor_stats(p);
        assert_int_equal(s.threads, 1);
        assert_int_equal(s.packed_bytes + s.worker_bytes, us_queue_held(be));
        struct result small = run(p, 20, 20, stds[i]), large = run(p, 33, 71, stds[i]);
        s = us_predictor_stats(p);
        assert_int_equal(s.packed_bytes + s.worker_bytes, us_queue_held(be));
        size_t frame = us_predict_frame_bytes(p, 33, 71);
        struct us_predictor *other = predictor(m, be, &cfg);
        struct us_predictor_stats fresh = us_predictor_stats(other);
        assert_int_equal(s.worker_bytes - fresh.worker_bytes, frame);
        release(&small);
        release(&large);
        us_predictor_free(other);
        us_predictor_free(p);
        close_queue(be);
    }
    us_model_free(m);
}

/* A device chooses its batch by the size of patches; and what a frame costs is known beforehand,
 * the same for any batch and for the pool. */
static void the_batch_and_the_cost_are_known_beforehand(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_backend *be = us_queue_open();
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.samples = 4;
    cfg.threads = 1;
    struct us_predictor *pool = predictor(m, ref, &cfg), *p = predictor(m, be, &cfg);
    assert_int_equal(us_predictor_stats(p).batch, 8);
    assert_true(us_predict_flops(p, 50, 70) == us_predict_flops(pool, 50, 70));
    assert_true(us_predictor_stats(p).flops_patch == us_predictor_stats(pool).flops_patch);
    assert_int_equal(us_predict_frame_bytes(pool, 50, 70), 0);
    us_predictor_free(p);
    us_predictor_free(pool);
    cfg.samples = 1;
    pool = predictor(m, ref, &cfg);
    assert_true(us_predict_flops(pool, 50, 70) ==
                us_predictor_stats(pool).flops_patch * (double)us_predict_n_patches(pool, 50, 70));
    us_predictor_free(pool);
    cfg.tiling = US_TILING_OUTER;
    cfg.padding = 32; /* patches of 128: four times the pixels */
    p = predictor(m, be, &cfg);
    assert_int_equal(us_predictor_stats(p).batch, 2);
    us_predictor_free(p);
    close_queue(be);
    us_model_free(m);
}

struct watch {
    int64_t calls, last, total;
    atomic_bool *cancel;
};

static void on_progress(void *arg, int64_t done, int64_t total)
{
    struct watch *w = arg;
    assert_true(done > w->last && done <= total);
    w->calls++;
    w->last = done;
    w->total = total;
    if (w->cancel != NULL)
        atomic_store(w->cancel, true);
}

static void progress_counts_to_the_total_and_cancelling_stops_it(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    struct us_backend *be = us_queue_open();
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.batch = 2;
    struct us_predictor *p = predictor(m, be, &cfg);
    float *in = us_tiny_frame(80, 80), *mean = calloc((size_t)2 * 80 * 80, sizeof(*mean));
    struct watch w = {0};
    struct us_predict_frame f = {
        .in = in, .h = 80, .w = 80, .mean = mean, .progress = on_progress, .progress_arg = &w};
    assert_int_equal(us_predict_run(p, &f, NULL), US_OK);
    assert_int_equal(w.last, 25);
    assert_int_equal(w.total, 25);
    assert_true(w.calls > 1);
    atomic_bool cancel = false;
    w = (struct watch){.cancel = &cancel};
    f.cancel = &cancel;
    struct us_err err = {0};
    assert_int_equal(us_predict_run(p, &f, &err), US_E_CANCELLED);
    assert_int_equal(w.calls, 1);
    assert_true(w.last < 25);
    atomic_store(&cancel, false);
    w = (struct watch){0};
    assert_int_equal(us_predict_run(p, &f, &err), US_OK);
    assert_int_equal(w.last, 25);
    free(in);
    free(mean);
    us_predictor_free(p);
    close_queue(be);
    us_model_free(m);
}

/* A fault shows at a wait after it, and nothing that is queued is left behind. */
static void a_fault_of_queued_work_ends_the_frame(void **state)
{
    struct us_model *m = us_tiny_model("vanilla", 4, 1);
    for (int64_t at = 0; at < 4000; at = at * 7 + 1) {
        struct us_backend *be = us_queue_open();
        struct us_predict_config cfg = us_predict_defaults(m);
        cfg.batch = 2;
        cfg.samples = 2;
        struct us_predictor *p = predictor(m, be, &cfg);
        float *in = us_tiny_frame(48, 48), *mean = calloc((size_t)2 * 48 * 48, sizeof(*mean));
        struct us_predict_frame f = {.in = in, .h = 48, .w = 48, .mean = mean};
        struct us_err err = {0};
        us_queue_fail_at(be, at, US_E_DEVICE_LOST);
        enum us_status s = us_predict_run(p, &f, &err);
        if (at < 300) {
            assert_int_equal(s, US_E_DEVICE_LOST);
            assert_non_null(strstr(err.msg, "device lost"));
        }
        free(in);
        free(mean);
        us_predictor_free(p);
        close_queue(be);
    }
    us_model_free(m);
}

struct sharer {
    struct us_predictor *p;
    struct result r;
};

static void *predict_some(void *arg)
{
    struct sharer *s = arg;
    s->r = run(s->p, 64, 50, true);
    return NULL;
}

/* Two requests of a daemon on one device. */
static void predictors_that_share_a_device_take_turns(void **state)
{
    struct us_model *m = us_tiny_model("lean", 4, 1);
    struct us_backend *be = us_queue_open();
    struct us_predict_config cfg = us_predict_defaults(m);
    cfg.batch = 1;
    struct sharer s[2];
    pthread_t thread[2];
    struct result alone = {0};
    for (int i = 0; i < 2; i++)
        s[i].p = predictor(m, be, &cfg);
    alone = run(s[0].p, 64, 50, true);
    const int64_t before = us_queue_turns(be);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, predict_some, &s[i]), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_join(thread[i], NULL), 0);
    assert_true(us_queue_turns(be) - before > 6); /* at each wait, not once per frame */
    for (int i = 0; i < 2; i++) {
        assert_same(&s[i].r, &alone, true);
        release(&s[i].r);
        us_predictor_free(s[i].p);
    }
    release(&alone);
    close_queue(be);
    us_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bytes_are_those_of_the_pool_at_any_batch),
        cmocka_unit_test(work_is_recorded_once_and_queued_ahead),
        cmocka_unit_test(frames_that_take_turns_have_the_bytes_of_frames_alone),
        cmocka_unit_test(a_batch_that_does_not_fit_is_halved_until_it_does),
        cmocka_unit_test(a_frame_that_does_not_fit_is_refused_with_numbers),
        cmocka_unit_test(the_stated_memory_is_what_is_held),
        cmocka_unit_test(the_batch_and_the_cost_are_known_beforehand),
        cmocka_unit_test(progress_counts_to_the_total_and_cancelling_stops_it),
        cmocka_unit_test(predictors_that_share_a_device_take_turns),
        cmocka_unit_test(a_fault_of_queued_work_ends_the_frame),
    };
    return cmocka_run_group_tests(tests, open_ref, close_ref);
}
