/*
 * Data sets on frames from a formula: the splits of model-spec 13.2, patches and their order, the
 * frame cache, the loader, statistics.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "us_fake_frames.h"

#define P 8

static struct us_fake_frames frames;

static struct us_dataset *open_with(const struct us_dataset_config *c)
{
    struct us_dataset *d = NULL;
    struct us_err err = {0};
    if (us_dataset_open(&frames.src, c, &d, &err) != US_OK)
        fail_msg("%s", err.msg);
    return d;
}

/* Values pass as they are: mean 0, deviation 1, no clip. */
static void plain_stats(struct us_dataset *d)
{
    struct us_stats s = {.input_std = 1.0};
    for (int c = 0; c < US_MAX_TARGETS; c++) {
        s.clip[c] = INFINITY;
        s.target_std[c] = 1.0;
    }
    us_dataset_set_stats(d, &s);
}

/* ---- splits -------------------------------------------------------------------------------- */

static void assert_split(struct us_dataset *d, enum us_split s, const int64_t *want, int64_t n)
{
    int64_t got_n;
    const int64_t *got = us_dataset_frames(d, s, &got_n);
    assert_int_equal(got_n, n);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(got[i], want[i]);
}

static void assert_range(struct us_dataset *d, enum us_split s, int64_t from, int64_t to)
{
    int64_t n;
    const int64_t *got = us_dataset_frames(d, s, &n);
    assert_int_equal(n, to - from);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(got[i], from + i);
}

static struct us_dataset *split_of(int64_t n, enum us_split_kind kind, double val, double test)
{
    us_fake_frames_init(&frames, n, P, P);
    struct us_dataset_config c = us_fake_config(P, 1);
    c.split = kind;
    c.val_fraction = val;
    c.test_fraction = test;
    return open_with(&c);
}

static void blocks_of_61_frames_are_those_of_the_paper(void **state)
{
    static const int64_t val[] = {0, 1, 2, 6, 7, 8}, test[] = {3, 4, 5, 9, 10, 11};
    struct us_dataset *d = split_of(61, US_SPLIT_BLOCKS, 0.1, 0.1);
    assert_split(d, US_SPLIT_VAL, val, 6);
    assert_split(d, US_SPLIT_TEST, test, 6);
    assert_range(d, US_SPLIT_TRAIN, 12, 61);
    us_dataset_free(d);
}

static void blocks_of_1000_frames_end_with_one_test_and_one_validation_frame(void **state)
{
    struct us_dataset *d = split_of(1000, US_SPLIT_BLOCKS, 0.1, 0.1);
    int64_t nv, nt;
    const int64_t *v = us_dataset_frames(d, US_SPLIT_VAL, &nv);
    const int64_t *t = us_dataset_frames(d, US_SPLIT_TEST, &nt);
    assert_true(nv == 100 && nt == 100);
    for (int64_t i = 0; i < 99; i++) {
        assert_int_equal(v[i], i / 3 * 6 + i % 3);
        assert_int_equal(t[i], i / 3 * 6 + 3 + i % 3);
    }
    assert_true(t[99] == 198 && v[99] == 199);
    assert_range(d, US_SPLIT_TRAIN, 200, 1000);
    us_dataset_free(d);
}

static void head_of_30_frames_is_test_then_validation(void **state)
{
    struct us_dataset *d = split_of(30, US_SPLIT_HEAD, 0.1, 0.1);
    assert_range(d, US_SPLIT_TEST, 0, 3);
    assert_range(d, US_SPLIT_VAL, 3, 6);
    assert_range(d, US_SPLIT_TRAIN, 6, 30);
    us_dataset_free(d);
}

static void unequal_fractions_move_frames_and_lose_none(void **state)
{
    static const struct {
        double val, test;
        int64_t n_val, n_test;
    } cases[] = {{0.05, 0.15, 5, 15}, {0.2, 0.1, 20, 10}, {0.0, 0.2, 0, 20}, {0.2, 0.0, 20, 0}};
    for (size_t i = 0; i < US_COUNT(cases); i++) {
        struct us_dataset *d = split_of(100, US_SPLIT_BLOCKS, cases[i].val, cases[i].test);
        int seen[100] = {0};
        int64_t n[US_SPLIT_COUNT], total = 0;
        for (int s = 0; s < US_SPLIT_COUNT; s++) {
            const int64_t *f = us_dataset_frames(d, s, &n[s]);
            for (int64_t k = 0; k < n[s]; k++)
                seen[f[k]]++;
            total += n[s];
        }
        assert_int_equal(total, 100);
        for (int k = 0; k < 100; k++)
            assert_int_equal(seen[k], 1);
        /* int() of a double may cut one frame off: 13.2 says so. */
        assert_true(llabs(n[US_SPLIT_VAL] - cases[i].n_val) <= 1);
        assert_true(llabs(n[US_SPLIT_TEST] - cases[i].n_test) <= 1);
        us_dataset_free(d);
    }
}

static void few_frames_all_go_to_training(void **state)
{
    struct us_dataset *d = split_of(4, US_SPLIT_BLOCKS, 0.1, 0.1);
    assert_range(d, US_SPLIT_TRAIN, 0, 4);
    assert_int_equal(us_dataset_n_patches(d, US_SPLIT_VAL), 0);
    us_dataset_free(d);
}

static void refused(const struct us_dataset_config *c, const char *why)
{
    struct us_dataset *d = NULL;
    struct us_err err = {0};
    assert_int_equal(us_dataset_open(&frames.src, c, &d, &err), US_E_ARG);
    assert_null(d);
    if (strstr(err.msg, why) == NULL)
        fail_msg("\"%s\" is not in: %s", why, err.msg);
}

static void bad_settings_and_frames_are_refused_with_the_reason(void **state)
{
    static const int64_t twice[] = {0, 2, 0}, one[] = {1}, outside[] = {5};
    us_fake_frames_init(&frames, 5, P, P);
    const struct us_dataset_config good = us_fake_config(P, 1);
    struct us_dataset_config c = good;
    c.split = US_SPLIT_LISTED;
    refused(&c, "every split is empty");
    c.listed[US_SPLIT_TRAIN] = twice;
    c.n_listed[US_SPLIT_TRAIN] = 3;
    refused(&c, "frame f0 stands in the splits twice");
    c.listed[US_SPLIT_TRAIN] = c.listed[US_SPLIT_TEST] = one;
    c.n_listed[US_SPLIT_TRAIN] = c.n_listed[US_SPLIT_TEST] = 1;
    refused(&c, "frame f1 stands in the splits twice");
    c.listed[US_SPLIT_TEST] = outside;
    refused(&c, "frame 5 of 5");
    c = good;
    c.val_fraction = 0.6;
    c.test_fraction = 0.4;
    refused(&c, "below 1");
    c = good;
    c.alpha_min[1] = 0.9;
    refused(&c, "channel 1");
    c = good;
    c.alpha_max[0] = INFINITY;
    refused(&c, "channel 0");
    c = good;
    c.patch = 0;
    refused(&c, "patch is 0");
    c = good;
    c.lc_scales = US_MAX_SCALES + 1;
    refused(&c, "lc_scales");
    frames.w[3] = P - 1;
    refused(&good, "frame f3 is 8 x 7");
    frames.src.n_frames = 0;
    refused(&good, "no frames");
}

/* ---- patches ------------------------------------------------------------------------------- */

/* Says where it comes from: frame, y and x can be read off channel 0. */
static float coordinates(int64_t frame, int32_t plane, int64_t y, int64_t x)
{
    int64_t at = frame * 4096 + y * 64 + x;
    return (float)(plane == 0 ? at : plane == 1 ? at + 1000000 : 3 * at);
}

static const int64_t all_frames[] = {0, 1, 2};

static struct us_dataset_config three_frames(int32_t scales)
{
    us_fake_frames_init(&frames, 3, 24, 24);
    frames.pixel = coordinates;
    frames.h[1] = 17;
    frames.w[1] = 40;
    frames.h[2] = frames.w[2] = P; /* one position only */
    struct us_dataset_config c = us_fake_config(P, scales);
    c.split = US_SPLIT_LISTED;
    c.listed[US_SPLIT_TRAIN] = all_frames;
    c.n_listed[US_SPLIT_TRAIN] = 3;
    return c;
}

struct patch {
    float input[3][P * P], target[P * P * 2];
};

static enum us_status get(struct us_dataset *d, enum us_split s, uint32_t epoch, int64_t i,
                          struct patch *p, struct us_err *err)
{
    float *const in[] = {p->input[0], p->input[1], p->input[2]};
    memset(p, 0, sizeof(*p));
    return us_dataset_patch(d, s, epoch, i, in, p->target, err);
}

static void every_frame_gives_its_patches_once_per_epoch_in_new_order(void **state)
{
    const struct us_dataset_config c = three_frames(1);
    struct us_dataset *d = open_with(&c);
    plain_stats(d);
    int64_t n = us_dataset_n_patches(d, US_SPLIT_TRAIN);
    assert_int_equal(n, 9 + 10 + 1);
    int order[3][20];
    for (uint32_t e = 0; e < 3; e++) {
        int count[3] = {0};
        for (int64_t i = 0; i < n; i++) {
            struct patch p;
            assert_int_equal(get(d, US_SPLIT_TRAIN, e, i, &p, NULL), US_OK);
            order[e][i] = (int)p.target[0] / 4096;
            count[order[e][i]]++;
        }
        assert_true(count[0] == 9 && count[1] == 10 && count[2] == 1);
    }
    assert_true(memcmp(order[0], order[1], sizeof(order[0])) != 0);
    assert_true(memcmp(order[1], order[2], sizeof(order[0])) != 0);
    us_dataset_free(d);
}

static void training_positions_cover_all_but_the_last(void **state)
{
    const struct us_dataset_config c = three_frames(1);
    struct us_dataset *d = open_with(&c);
    plain_stats(d);
    int64_t top[3] = {0}, left[3] = {0}, low_y = 99;
    for (uint32_t e = 0; e < 60; e++) {
        for (int64_t i = 0; i < 20; i++) {
            struct patch p;
            assert_int_equal(get(d, US_SPLIT_TRAIN, e, i, &p, NULL), US_OK);
            int64_t at = (int64_t)p.target[0], f = at / 4096, y = at / 64 % 64, x = at % 64;
            top[f] = y > top[f] ? y : top[f];
            left[f] = x > left[f] ? x : left[f];
            low_y = y < low_y ? y : low_y;
            assert_true((int64_t)p.target[2 * (P * P - 1)] == at + 7 * 65);
        }
    }
    assert_true(low_y == 0);
    assert_true(top[0] == 24 - P - 1 && left[0] == 24 - P - 1);
    assert_true(top[1] == 17 - P - 1 && left[1] == 40 - P - 1);
    assert_true(top[2] == 0 && left[2] == 0);
    us_dataset_free(d);
}

static void validation_patches_are_the_grid(void **state)
{
    struct us_dataset_config c = three_frames(1);
    c.listed[US_SPLIT_VAL] = all_frames;
    c.n_listed[US_SPLIT_VAL] = 3;
    c.n_listed[US_SPLIT_TRAIN] = 0;
    struct us_dataset *d = open_with(&c);
    plain_stats(d);
    for (int64_t i = 0; i < 20; i++) {
        struct patch p;
        assert_int_equal(get(d, US_SPLIT_VAL, 0, i, &p, NULL), US_OK);
        int64_t f = i < 9 ? 0 : i < 19 ? 1 : 2, k = i - (f == 1 ? 9 : f == 2 ? 19 : 0);
        int64_t cols = f == 0 ? 3 : 5;
        assert_int_equal((int64_t)p.target[0], f * 4096 + k / cols * P * 64 + k % cols * P);
    }
    struct us_err err = {0};
    struct patch p;
    assert_int_equal(get(d, US_SPLIT_VAL, 0, 20, &p, &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "0 to 19"));
    us_dataset_free(d);
}

static void input_is_the_average_and_padding_is_zero(void **state)
{
    struct us_dataset_config c = three_frames(3);
    struct us_dataset *d = open_with(&c);
    plain_stats(d);
    int outside = 0;
    for (int64_t i = 0; i < 20; i++) {
        struct patch p;
        assert_int_equal(get(d, US_SPLIT_TRAIN, 0, i, &p, NULL), US_OK);
        for (int k = 0; k < P * P; k++) {
            float want = 0.5f * p.target[2 * k] + 0.5f * p.target[2 * k + 1];
            assert_true(p.input[0][k] == want);
            outside += p.input[2][k] == 0.0f; /* 500000 and more inside the frame */
        }
    }
    assert_true(outside > 0);
    us_dataset_free(d);
}

static void mixing_range_is_kept_in_training_and_its_middle_taken_elsewhere(void **state)
{
    struct us_dataset_config c = three_frames(1);
    c.listed[US_SPLIT_VAL] = all_frames;
    c.n_listed[US_SPLIT_VAL] = 1;
    c.listed[US_SPLIT_TRAIN] = all_frames + 1;
    c.n_listed[US_SPLIT_TRAIN] = 1;
    c.alpha_min[0] = 0.2;
    c.alpha_max[0] = 0.8;
    c.alpha_min[1] = c.alpha_max[1] = 0.0;
    struct us_dataset *d = open_with(&c);
    plain_stats(d);
    double lo = 1.0, hi = 0.0;
    struct patch p;
    for (int64_t i = 0; i < 400; i++) {
        assert_int_equal(get(d, US_SPLIT_TRAIN, (uint32_t)(i / 10), i % 10, &p, NULL), US_OK);
        double alpha = (double)p.input[0][0] / (double)p.target[0];
        lo = fmin(lo, alpha);
        hi = fmax(hi, alpha);
    }
    assert_true(lo >= 0.1999 && lo < 0.22 && hi <= 0.8001 && hi > 0.78);
    assert_int_equal(get(d, US_SPLIT_VAL, 0, 5, &p, NULL), US_OK);
    assert_true(fabsf(p.input[0][0] / p.target[0] - 0.5f) < 1e-5f);
    us_dataset_free(d);
}

/* Which of the 8 turns a patch has, read off its gradients; -1 if none. */
static int turn_of(const float *target)
{
    int64_t dx = (int64_t)(target[2] - target[0]), dy = (int64_t)(target[2 * P] - target[0]);
    int x = dx == 64 || dx == -64, flip_x = dx < 0, flip_y = dy < 0;
    if ((x ? llabs(dy) : llabs(dx)) != 1)
        return -1;
    return 4 * x + 2 * flip_y + flip_x;
}

static void augmentation_turns_input_and_target_alike_in_all_eight_ways(void **state)
{
    struct us_dataset_config c = three_frames(2);
    c.augment = true;
    struct us_dataset *d = open_with(&c);
    plain_stats(d);
    int seen[8] = {0};
    for (int64_t i = 0; i < 200; i++) {
        struct patch p;
        assert_int_equal(get(d, US_SPLIT_TRAIN, (uint32_t)(i / 20), i % 20, &p, NULL), US_OK);
        int turn = turn_of(p.target);
        assert_true(turn >= 0);
        seen[turn]++;
        for (int k = 0; k < P * P; k++) {
            assert_true(p.target[2 * k + 1] == p.target[2 * k] + 1000000.0f);
            assert_true(p.input[0][k] == 0.5f * p.target[2 * k] + 0.5f * p.target[2 * k + 1]);
        }
        /* The context's gradient points the same way where its centre is inside the frame. */
        const float *in = p.input[1] + (P / 2) * P + P / 2;
        if (in[0] > 0.0f && in[-1] > 0.0f)
            assert_true((in[0] > in[-1]) == (p.target[2] > p.target[0]));
    }
    for (int k = 0; k < 8; k++)
        assert_true(seen[k] > 0);
    us_dataset_free(d);
}

struct reader {
    pthread_t thread;
    struct us_dataset *d;
    int64_t first;
    uint64_t sum[20];
    enum us_status status;
};

static uint64_t sum_of(const struct patch *p)
{
    uint64_t h = 14695981039346656037u;
    const unsigned char *b = (const unsigned char *)p;
    for (size_t i = 0; i < sizeof(*p); i++)
        h = (h ^ b[i]) * 1099511628211u;
    return h;
}

static void *read_all(void *arg)
{
    struct reader *r = arg;
    for (int64_t k = 0; k < 20 && r->status == US_OK; k++) {
        struct patch p;
        int64_t i = (k + r->first) % 20;
        r->status = get(r->d, US_SPLIT_TRAIN, 1, i, &p, NULL);
        r->sum[i] = sum_of(&p);
    }
    return NULL;
}

static void threads_and_a_cache_without_room_change_no_byte(void **state)
{
    struct us_dataset_config c = three_frames(3);
    uint64_t want[20];
    for (int tight = 0; tight < 2; tight++) {
        c.cache_bytes = tight ? 0 : INT64_MAX;
        struct us_dataset *d = open_with(&c);
        plain_stats(d);
        struct reader r[4] = {{0}};
        for (int t = 0; t < 4; t++) {
            r[t].d = d;
            r[t].first = 5 * t;
            assert_int_equal(pthread_create(&r[t].thread, NULL, read_all, &r[t]), 0);
        }
        for (int t = 0; t < 4; t++)
            assert_int_equal(pthread_join(r[t].thread, NULL), 0);
        if (!tight)
            memcpy(want, r[0].sum, sizeof(want));
        for (int t = 0; t < 4; t++) {
            assert_int_equal(r[t].status, US_OK);
            assert_memory_equal(r[t].sum, want, sizeof(want));
        }
        us_dataset_free(d);
    }
}

/* ---- cache --------------------------------------------------------------------------------- */

static int64_t all_reads(void)
{
    int64_t n = 0;
    for (int i = 0; i < 3; i++)
        n += atomic_load(&frames.reads[i]);
    return n;
}

static void cache_with_room_reads_each_frame_once_and_without_each_time(void **state)
{
    struct us_dataset_config c = three_frames(1);
    c.listed[US_SPLIT_VAL] = all_frames;
    c.n_listed[US_SPLIT_VAL] = 3;
    c.n_listed[US_SPLIT_TRAIN] = 0;
    /* Patches 0, 9 and 19 are the first of the three frames. */
    /* Patches 0, 9 and 19 are the first of the three frames. With room for the first two, frame 2
     * (19) drops frame 1, the longest unused, whose return (9) drops frame 2. */
    static const int64_t walk[] = {0, 1, 9, 0, 10, 0, 19, 0, 9, 10};
    static const struct {
        int64_t bytes, reads;
    } cases[] = {{INT64_MAX, 3}, {(24 * 24 + 17 * 40) * 8, 4}, {0, US_COUNT(walk)}};
    for (size_t k = 0; k < US_COUNT(cases); k++) {
        for (int i = 0; i < 3; i++)
            atomic_store(&frames.reads[i], 0);
        c.cache_bytes = cases[k].bytes;
        struct us_dataset *d = open_with(&c);
        plain_stats(d);
        for (size_t i = 0; i < US_COUNT(walk); i++) {
            struct patch p;
            assert_int_equal(get(d, US_SPLIT_VAL, 0, walk[i], &p, NULL), US_OK);
        }
        assert_int_equal(all_reads(), cases[k].reads);
        us_dataset_free(d);
    }
}

/* ---- loader -------------------------------------------------------------------------------- */

static void loader_gives_every_batch_in_order_and_a_smaller_last_one(void **state)
{
    const struct us_dataset_config c = three_frames(3);
    struct us_dataset *d = open_with(&c);
    plain_stats(d);
    for (int32_t threads = 1; threads <= 3; threads++) {
        for (int64_t first = 0; first <= 20; first += 6) {
            struct us_loader *l = NULL;
            struct us_loader_batch b;
            assert_int_equal(us_loader_new(d, US_SPLIT_TRAIN, 2, first, 6, threads, 2, &l, NULL),
                             US_OK);
            for (int64_t at = first; at < 20; at += 6) {
                assert_int_equal(us_loader_next(l, &b, NULL), US_OK);
                assert_int_equal(b.first, at);
                assert_int_equal(b.n, 20 - at < 6 ? 20 - at : 6);
                for (int32_t i = 0; i < b.n; i++) {
                    struct patch p;
                    assert_int_equal(get(d, US_SPLIT_TRAIN, 2, at + i, &p, NULL), US_OK);
                    assert_memory_equal(b.input + (int64_t)i * 3 * P * P, p.input, sizeof(p.input));
                    assert_memory_equal(b.target + (int64_t)i * 2 * P * P, p.target,
                                        sizeof(p.target));
                }
            }
            for (int again = 0; again < 2; again++) {
                assert_int_equal(us_loader_next(l, &b, NULL), US_OK);
                assert_int_equal(b.n, 0);
            }
            us_loader_free(l);
        }
    }
    us_dataset_free(d);
}

static void loader_can_be_freed_while_its_threads_wait_or_work(void **state)
{
    const struct us_dataset_config c = three_frames(3);
    struct us_dataset *d = open_with(&c);
    plain_stats(d);
    for (int i = 0; i < 60; i++) {
        struct us_loader *l = NULL;
        struct us_loader_batch b;
        assert_int_equal(us_loader_new(d, US_SPLIT_TRAIN, 0, 0, 2, 3, 2, &l, NULL), US_OK);
        for (int k = 0; k < i % 4; k++)
            assert_int_equal(us_loader_next(l, &b, NULL), US_OK);
        if (i % 2 == 0)
            (void)usleep(200);
        us_loader_free(l);
    }
    us_dataset_free(d);
}

static void failed_read_is_reported_in_its_own_batch(void **state)
{
    struct us_dataset_config c = three_frames(1);
    c.listed[US_SPLIT_VAL] = all_frames;
    c.n_listed[US_SPLIT_VAL] = 3;
    c.n_listed[US_SPLIT_TRAIN] = 0;
    struct us_dataset *d = open_with(&c);
    plain_stats(d);
    atomic_store(&frames.failing, 1); /* patches 9 to 18 */
    for (int32_t threads = 1; threads <= 3; threads++) {
        atomic_store(&frames.reads[1], 0);
        struct us_loader *l = NULL;
        struct us_loader_batch b;
        struct us_err err = {0};
        assert_int_equal(us_loader_new(d, US_SPLIT_VAL, 0, 0, 3, threads, 2, &l, NULL), US_OK);
        for (int k = 0; k < 3; k++) {
            assert_int_equal(us_loader_next(l, &b, &err), US_OK);
            assert_int_equal(b.first, 3 * k);
        }
        assert_int_equal(us_loader_next(l, &b, &err), US_E_IO);
        assert_string_equal(err.msg, "frame f1: scripted failure");
        us_loader_free(l);
        /* Once for the batch, and once for each that was prepared ahead. */
        assert_in_range(atomic_load(&frames.reads[1]), 1, 3);
    }
    atomic_store(&frames.failing, -1); /* what failed is tried again, not remembered */
    struct patch p;
    assert_int_equal(get(d, US_SPLIT_VAL, 0, 9, &p, NULL), US_OK);
    us_dataset_free(d);
}

/* ---- statistics ---------------------------------------------------------------------------- */

static float two_levels(int64_t frame, int32_t plane, int64_t y, int64_t x)
{
    static const float mean[] = {10.0f, 100.0f, 40.0f}, swing[] = {2.0f, 20.0f, 8.0f};
    return mean[plane] + (x % 2 == 0 ? swing[plane] : -swing[plane]);
}

static void measured_input_has_its_own_statistics_and_pixels(void **state)
{
    struct us_dataset_config c = three_frames(1);
    c.clip_quantile = 1.0;
    frames.pixel = two_levels;
    frames.src.has_input = true;
    struct us_dataset *d = open_with(&c);
    assert_int_equal(us_dataset_compute_stats(d, NULL, NULL), US_OK);
    const struct us_stats *s = us_dataset_stats(d);
    double e = 1e-6;
    assert_true(fabs(s->target_mean[0] - 10.0) < e && fabs(s->target_mean[1] - 100.0) < e);
    assert_true(fabs(s->target_std[0] - 2.0) < e && fabs(s->target_std[1] - 20.0) < e);
    assert_true(fabs(s->input_mean - 40.0) < e && fabs(s->input_std - 8.0) < e);
    assert_true(s->clip[0] == 120.0);
    struct patch p;
    assert_int_equal(get(d, US_SPLIT_TRAIN, 0, 0, &p, NULL), US_OK);
    for (int k = 0; k < P * P; k++) {
        assert_true(fabsf(fabsf(p.input[0][k]) - 1.0f) < 1e-5f);
        assert_true(fabsf(p.input[0][k] - p.target[2 * k]) < 1e-5f);
    }
    us_dataset_free(d);
}

static float one_nan(int64_t frame, int32_t plane, int64_t y, int64_t x)
{
    return frame == 2 && plane == 1 && y == 3 && x == 4 ? NAN : two_levels(frame, plane, y, x);
}

static float flat_input(int64_t frame, int32_t plane, int64_t y, int64_t x)
{
    return plane == 2 ? 7.0f : two_levels(frame, plane, y, x);
}

static void statistics_name_the_frame_and_channel_that_are_wrong(void **state)
{
    struct us_dataset_config c = three_frames(1);
    c.listed[US_SPLIT_TRAIN] = all_frames + 2; /* its place in the split is not its number */
    c.n_listed[US_SPLIT_TRAIN] = 1;
    frames.pixel = one_nan;
    struct us_dataset *d = open_with(&c);
    struct us_err err = {0};
    struct patch p;
    assert_int_equal(get(d, US_SPLIT_TRAIN, 0, 0, &p, &err), US_E_NOMEM); /* no statistics yet */
    assert_int_equal(us_dataset_compute_stats(d, NULL, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "frame f2 channel 1: pixel (3, 4)"));
    frames.pixel = flat_input;
    frames.src.has_input = true;
    assert_int_equal(us_dataset_compute_stats(d, NULL, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "measured input"));
    us_dataset_free(d);
    c.n_listed[US_SPLIT_TRAIN] = 0;
    c.listed[US_SPLIT_TEST] = all_frames;
    c.n_listed[US_SPLIT_TEST] = 1;
    d = open_with(&c);
    assert_int_equal(us_dataset_compute_stats(d, NULL, &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "no training frame"));
    us_dataset_free(d);
}

static void hash_follows_pixels_and_names_of_its_split_only(void **state)
{
    struct us_dataset_config c = three_frames(1);
    char a[65], b[65];
    c.n_listed[US_SPLIT_TRAIN] = 2;
    struct us_dataset *d = open_with(&c);
    assert_int_equal(us_dataset_hash(d, US_SPLIT_TRAIN, NULL, a, NULL), US_OK);
    (void)snprintf(frames.name[2], sizeof(frames.name[2]), "renamed");
    assert_int_equal(us_dataset_hash(d, US_SPLIT_TRAIN, NULL, b, NULL), US_OK);
    assert_string_equal(a, b);
    (void)snprintf(frames.name[1], sizeof(frames.name[1]), "renamed");
    assert_int_equal(us_dataset_hash(d, US_SPLIT_TRAIN, NULL, b, NULL), US_OK);
    assert_string_not_equal(a, b);
    us_dataset_free(d);
}

struct watched {
    int64_t told, last, total, stop_at;
    atomic_bool cancel;
};

static void watch_progress(void *arg, int64_t done, int64_t total)
{
    struct watched *w = arg;
    assert_int_equal(done, w->last + 1);
    w->last = done;
    w->total = total;
    w->told++;
    if (done == w->stop_at)
        atomic_store(&w->cancel, true);
}

static void passes_over_the_data_tell_how_far_they_are_and_can_be_stopped(void **state)
{
    struct us_dataset_config c = three_frames(1);
    char hex[65];
    struct us_dataset *d = open_with(&c);
    struct watched w = {0};
    const struct us_dataset_watch watch = {&w.cancel, watch_progress, &w};
    assert_int_equal(us_dataset_hash(d, US_SPLIT_TRAIN, &watch, hex, NULL), US_OK);
    assert_true(w.told == 6 && w.last == w.total); /* three frames of two channels */
    w = (struct watched){0};
    assert_int_equal(us_dataset_compute_stats(d, &watch, NULL), US_OK);
    assert_true(w.told == 18 && w.last == w.total); /* three times */
    w = (struct watched){.stop_at = 2};
    assert_int_equal(us_dataset_hash(d, US_SPLIT_TRAIN, &watch, hex, NULL), US_E_CANCELLED);
    assert_int_equal(w.told, 2);
    w = (struct watched){.stop_at = 2};
    assert_int_equal(us_dataset_compute_stats(d, &watch, NULL), US_E_CANCELLED);
    us_dataset_free(d);
}

static void pixel_that_is_no_number_is_named_when_its_split_is_hashed(void **state)
{
    struct us_dataset_config c = three_frames(1);
    char hex[65];
    struct us_err err = {0};
    c.n_listed[US_SPLIT_TRAIN] = 1;
    c.listed[US_SPLIT_VAL] = all_frames + 2;
    c.n_listed[US_SPLIT_VAL] = 1;
    frames.pixel = one_nan;
    struct us_dataset *d = open_with(&c);
    assert_int_equal(us_dataset_hash(d, US_SPLIT_TRAIN, NULL, hex, NULL), US_OK);
    assert_int_equal(us_dataset_hash(d, US_SPLIT_VAL, NULL, hex, &err), US_E_FORMAT);
    assert_non_null(strstr(err.msg, "frame f2 channel 1: pixel (3, 4)"));
    us_dataset_free(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_of_61_frames_are_those_of_the_paper),
        cmocka_unit_test(blocks_of_1000_frames_end_with_one_test_and_one_validation_frame),
        cmocka_unit_test(head_of_30_frames_is_test_then_validation),
        cmocka_unit_test(unequal_fractions_move_frames_and_lose_none),
        cmocka_unit_test(few_frames_all_go_to_training),
        cmocka_unit_test(bad_settings_and_frames_are_refused_with_the_reason),
        cmocka_unit_test(every_frame_gives_its_patches_once_per_epoch_in_new_order),
        cmocka_unit_test(training_positions_cover_all_but_the_last),
        cmocka_unit_test(validation_patches_are_the_grid),
        cmocka_unit_test(input_is_the_average_and_padding_is_zero),
        cmocka_unit_test(mixing_range_is_kept_in_training_and_its_middle_taken_elsewhere),
        cmocka_unit_test(augmentation_turns_input_and_target_alike_in_all_eight_ways),
        cmocka_unit_test(threads_and_a_cache_without_room_change_no_byte),
        cmocka_unit_test(cache_with_room_reads_each_frame_once_and_without_each_time),
        cmocka_unit_test(loader_gives_every_batch_in_order_and_a_smaller_last_one),
        cmocka_unit_test(loader_can_be_freed_while_its_threads_wait_or_work),
        cmocka_unit_test(failed_read_is_reported_in_its_own_batch),
        cmocka_unit_test(measured_input_has_its_own_statistics_and_pixels),
        cmocka_unit_test(statistics_name_the_frame_and_channel_that_are_wrong),
        cmocka_unit_test(hash_follows_pixels_and_names_of_its_split_only),
        cmocka_unit_test(passes_over_the_data_tell_how_far_they_are_and_can_be_stopped),
        cmocka_unit_test(pixel_that_is_no_number_is_named_when_its_split_is_hashed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
