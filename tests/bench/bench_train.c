/*
 * Time and memory of training steps: one JSON line for one variant, precision, thread count and
 * batch. The model is freshly initialised and sees noise: neither changes what a step costs.
 *
 * ms_per_step is wall time, cpu_ms_per_step processor time of all threads, which a busy neighbour
 * disturbs less; gflops is the convolutions' arithmetic (2 x multiply-adds of what a step runs,
 * recomputation included) over the wall time. Peak memory is the process's, so one process measures
 * one thing. With --profile every call of the training seam is timed: the line then carries the
 * share of each op in the processor time and the convolutions' own rate on one core.
 * Exit status 77: this processor does not have the precision.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "us_cuda.h"
#include "us_train_plan.h"

#define EXIT_SKIP 77
#define PATCH     64

struct bench {
    const char *variant;
    enum us_dtype dtype;
    int threads, batch, steps;
    bool profile, cuda;
};

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    (void)clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int failed(const struct us_err *err)
{
    fprintf(stderr, "bench_train: %s\n", err->msg);
    return err->status == US_E_UNSUPPORTED ? EXIT_SKIP : 1;
}

/* ---- profile: the backend's training table, each entry behind a clock ---------------------- */

/* X(name, parameters, arguments) */
#define TIMED(X)                                                                                   \
    X(conv_pack,                                                                                   \
      (struct us_backend * be, struct us_tconv_ctx * c, const float *w, const float *b,            \
       void *packed),                                                                              \
      (be, c, w, b, packed))                                                                       \
    X(conv_fwd,                                                                                    \
      (struct us_backend * be, struct us_tconv_ctx * c, const void *packed, const void *x,         \
       void *y),                                                                                   \
      (be, c, packed, x, y))                                                                       \
    X(conv_bwd_data,                                                                               \
      (struct us_backend * be, struct us_tconv_ctx * c, const void *packed, const void *dy,        \
       void *dx),                                                                                  \
      (be, c, packed, dy, dx))                                                                     \
    X(conv_bwd_weights,                                                                            \
      (struct us_backend * be, struct us_tconv_ctx * c, const void *x, const void *dy, float *dw,  \
       float *db),                                                                                 \
      (be, c, x, dy, dw, db))                                                                      \
    X(bn_stats, (struct us_backend * be, const struct us_ew *e, const void *x, double *part),      \
      (be, e, x, part))                                                                            \
    X(bn_elu_fwd,                                                                                  \
      (struct us_backend * be, const struct us_ew *e, const void *x,                               \
       const struct us_bn_affine *aff, void *h),                                                   \
      (be, e, x, aff, h))                                                                          \
    X(bn_elu_bwd_stats,                                                                            \
      (struct us_backend * be, const struct us_ew *e, const void *x, const void *dh,               \
       const struct us_bn_affine *aff, double *part),                                              \
      (be, e, x, dh, aff, part))                                                                   \
    X(bn_elu_bwd,                                                                                  \
      (struct us_backend * be, const struct us_ew *e, const void *x, const void *dh,               \
       const struct us_bn_affine *aff, const struct us_bn_grad *g, void *dx, bool add),            \
      (be, e, x, dh, aff, g, dx, add))                                                             \
    X(elu_fwd, (struct us_backend * be, const struct us_ew *e, const void *x, void *y),            \
      (be, e, x, y))                                                                               \
    X(elu_bwd,                                                                                     \
      (struct us_backend * be, const struct us_ew *e, const void *y, const void *dy, void *dx),    \
      (be, e, y, dy, dx))                                                                          \
    X(dropout2d,                                                                                   \
      (struct us_backend * be, const struct us_ew *e, void *x, float p,                            \
       const struct us_draw *draw, int32_t items, uint32_t node),                                  \
      (be, e, x, p, draw, items, node))                                                            \
    X(glu_fwd,                                                                                     \
      (struct us_backend * be, const struct us_ew *e, const void *g, const void *res, void *out),  \
      (be, e, g, res, out))                                                                        \
    X(glu_bwd,                                                                                     \
      (struct us_backend * be, const struct us_ew *e, const void *g, const void *dout, void *dg),  \
      (be, e, g, dout, dg))                                                                        \
    X(accumulate,                                                                                  \
      (struct us_backend * be, const struct us_ew *e, const void *src, void *dst, bool add),       \
      (be, e, src, dst, add))                                                                      \
    X(window,                                                                                      \
      (struct us_backend * be, enum us_dtype t, int32_t n, int32_t rh, int32_t rw, int32_t c,      \
       const void *src, const struct us_window *from, void *dst, const struct us_window *to,       \
       bool add),                                                                                  \
      (be, t, n, rh, rw, c, src, from, dst, to, add))                                              \
    X(fill_zero, (struct us_backend * be, void *dst, size_t bytes), (be, dst, bytes))              \
    X(convert,                                                                                     \
      (struct us_backend * be, const struct us_ew *e, const void *src, enum us_dtype from,         \
       void *dst),                                                                                 \
      (be, e, src, from, dst))                                                                     \
    X(prior_load,                                                                                  \
      (struct us_backend * be, const struct us_ew *e, int32_t n, const float *prior, void *p),     \
      (be, e, n, prior, p))                                                                        \
    X(prior_grad,                                                                                  \
      (struct us_backend * be, const struct us_ew *e, int32_t n, const void *dp, float *g),        \
      (be, e, n, dp, g))                                                                           \
    X(posterior_fwd,                                                                               \
      (struct us_backend * be, const struct us_posterior *d, int32_t n, const void *q,             \
       const void *p, const struct us_draw *draw, void *z, double *kl),                            \
      (be, d, n, q, p, draw, z, kl))                                                               \
    X(posterior_bwd,                                                                               \
      (struct us_backend * be, const struct us_posterior *d, int32_t n, const void *q,             \
       const void *p, const struct us_draw *draw, const void *dz, const float *coef, void *dq,     \
       void *dp),                                                                                  \
      (be, d, n, q, p, draw, dz, coef, dq, dp))                                                    \
    X(likelihood,                                                                                  \
      (struct us_backend * be, const struct us_likelihood *d, int32_t n, const float *head,        \
       const float *target, float weight, double *rec, double *se, float *dhead),                  \
      (be, d, n, head, target, weight, rec, se, dhead))                                            \
    X(reduce_lanes,                                                                                \
      (struct us_backend * be, const float *lanes, int64_t stride, int32_t n_lanes, int64_t n,     \
       float *dst, double *sq),                                                                    \
      (be, lanes, stride, n_lanes, n, dst, sq))                                                    \
    X(adamax,                                                                                      \
      (struct us_backend * be, const struct us_adamax *a, int64_t n, const float *g, float *m,     \
       float *u, float *p),                                                                        \
      (be, a, n, g, m, u, p))

enum timed {
#define NAME(name, parameters, arguments) TIMED_##name,
    TIMED(NAME)
#undef NAME
        N_TIMED
};

static const char *const timed_name[] = {
#define NAME(name, parameters, arguments) #name,
    TIMED(NAME)
#undef NAME
};

static const struct us_train_ops *inner;
static _Atomic int64_t spent_ns[N_TIMED];

#define WRAPPER(name, parameters, arguments)                                                       \
    static enum us_status timed_##name parameters                                                  \
    {                                                                                              \
        double start_s = seconds_of(CLOCK_THREAD_CPUTIME_ID);                                      \
        enum us_status status = inner->name arguments;                                             \
        double took_s = seconds_of(CLOCK_THREAD_CPUTIME_ID) - start_s;                             \
        atomic_fetch_add(&spent_ns[TIMED_##name], (int64_t)(1e9 * took_s));                        \
        return status;                                                                             \
    }
TIMED(WRAPPER)

/* From here on `be` answers with a table whose training half is timed. */
static void wrap(struct us_backend *be)
{
    static struct us_train_ops train;
    static struct us_backend_ops ops;
    ops = *us_backend_ops(be);
    inner = ops.train;
    train = *inner;
#define REPLACE(name, parameters, arguments) train.name = timed_##name;
    TIMED(REPLACE)
#undef REPLACE
    ops.train = &train;
    ((struct us_backend_base *)(void *)be)->ops = &ops;
}

static void print_profile(const struct bench *b, double cpu_s, double flops)
{
    double convs = 0.0;
    printf(",\"share\":{");
    for (int i = 0; i < N_TIMED; i++) {
        double s = 1e-9 * (double)atomic_load(&spent_ns[i]);
        printf("%s\"%s\":%.4f", i ? "," : "", timed_name[i], s / cpu_s);
        if (i == TIMED_conv_fwd || i == TIMED_conv_bwd_data || i == TIMED_conv_bwd_weights)
            convs += s;
    }
    printf("},\"conv_share\":%.4f,\"conv_gflops_per_core\":%.1f", convs / cpu_s,
           1e-9 * flops * b->steps / convs);
}

/* ---- steps --------------------------------------------------------------------------------- */

static void fill(const struct us_model *m, struct us_train *t, int32_t batch)
{
    uint32_t u = 1;
    for (int32_t i = 0; i < batch; i++) {
        for (int32_t s = 0; s < m->arch.lc_scales; s++)
            for (int k = 0; k < PATCH * PATCH; k++) {
                u = u * 1664525u + 1013904223u;
                us_train_input(t, i, s)[k] = (float)(u >> 8) / 8388608.0f - 1.0f;
            }
        for (int k = 0; k < PATCH * PATCH * m->arch.target_channels; k++) {
            u = u * 1664525u + 1013904223u;
            us_train_target(t, i)[k] = (float)(u >> 8) / 8388608.0f - 1.0f;
        }
    }
}

static void print_line(const struct bench *b, const struct us_train *t, double wall, double cpu)
{
    struct us_train_stats s = us_train_stats(t);
    struct rusage r;
    double flops = s.flops * b->batch;
    (void)getrusage(RUSAGE_SELF, &r);
    printf("{\"variant\":\"%s\",\"precision\":\"%s\",\"threads\":%d,\"batch\":%d,"
           "\"ms_per_step\":%.1f,\"cpu_ms_per_step\":%.1f,\"patches_per_s\":%.3f,"
           "\"gflop_per_patch\":%.2f,\"gflops\":%.1f,\"plan_mib\":%.1f,\"peak_rss_mib\":%.1f",
           b->variant, b->dtype == US_BF16 ? "bf16" : "f32", s.threads, b->batch,
           1e3 * wall / b->steps, 1e3 * cpu / b->steps, b->batch * b->steps / wall, s.flops * 1e-9,
           1e-9 * flops * b->steps / wall, (double)s.total_bytes / 1048576.0,
           (double)r.ru_maxrss / 1024.0);
    if (b->profile)
        print_profile(b, cpu, flops);
    printf("}\n");
}

static int measure(const struct bench *b, struct us_train *t)
{
    struct us_err err = {0};
    struct us_train_result result;
    double wall = 0.0, cpu = 0.0;
    for (int i = 0; i <= b->steps; i++) { /* the first one warms up */
        const struct us_train_step step = {
            .n = b->batch, .step = (uint32_t)i, .t = i + 1, .lr = 1e-3f, .kl_weight = 1.0f};
        if (i == 1) {
            wall = seconds_of(CLOCK_MONOTONIC);
            cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
            for (int k = 0; k < N_TIMED; k++)
                atomic_store(&spent_ns[k], 0);
        }
        if (us_train_run(t, &step, &result, &err) != US_OK)
            return failed(&err);
    }
    wall = seconds_of(CLOCK_MONOTONIC) - wall;
    cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    print_line(b, t, wall, cpu);
    return 0;
}

static int run(const struct bench *b)
{
    struct us_err err = {0};
    struct us_arch arch = us_arch_default();
    struct us_model *model = NULL;
    struct us_backend *be = NULL;
    struct us_train *t = NULL;
    const struct us_train_config cfg = {
        .dtype = b->dtype, .batch = b->batch, .threads = b->threads, .clip_norm = 0.5f};
    int status = 1;
    if (us_arch_set_variant(&arch, b->variant, &err) != US_OK ||
        us_model_new(&arch, PATCH, 1, &model, &err) != US_OK ||
        (b->cuda ? us_cuda_open(0, &be, &err) : us_cpu_open(&be, &err)) != US_OK) {
        status = failed(&err);
        goto out;
    }
    if (b->profile)
        wrap(be);
    if (us_train_new(model, be, &cfg, &t, &err) != US_OK) {
        status = failed(&err);
        goto out;
    }
    fill(model, t, b->batch);
    status = measure(b, t);
out:
    us_train_free(t);
    us_model_free(model);
    if (be != NULL)
        us_backend_ops(be)->free(be);
    return status;
}

static bool parse(struct bench *b, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--profile") == 0) {
            b->profile = true;
            continue;
        }
        if (i + 1 >= argc)
            return false;
        const char *key = argv[i], *value = argv[++i];
        if (strcmp(key, "--backend") == 0)
            b->cuda = strcmp(value, "cuda") == 0;
        else if (strcmp(key, "--variant") == 0)
            b->variant = value;
        else if (strcmp(key, "--precision") == 0)
            b->dtype = strcmp(value, "f32") == 0 ? US_F32 : US_BF16;
        else if (strcmp(key, "--threads") == 0)
            b->threads = (int)strtol(value, NULL, 10);
        else if (strcmp(key, "--batch") == 0)
            b->batch = (int)strtol(value, NULL, 10);
        else if (strcmp(key, "--steps") == 0)
            b->steps = (int)strtol(value, NULL, 10);
        else
            return false;
    }
    return b->steps > 0;
}

int main(int argc, char **argv)
{
    struct bench b = {.variant = "regular", .dtype = US_F32, .threads = 2, .batch = 8, .steps = 3};
    if (!parse(&b, argc, argv)) {
        fprintf(stderr,
                "usage: bench_train [--variant vanilla|lean|regular|deep] "
                "[--backend cpu|cuda] [--precision f32|bf16] [--threads N] [--batch N] [--steps N] "
                "[--profile]\n");
        return 2;
    }
    return run(&b);
}
