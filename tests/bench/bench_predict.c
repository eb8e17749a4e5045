/*
 * Patches per second and peak memory of tiled prediction: one JSON line per way of planning.
 *
 *   whole   nothing pruned: every map computed whole, the whole patch kept
 *   pruned  the whole patch kept, only what can influence it computed
 *   pad16   inner padding 16: the central 32x32 kept
 *   pad24   inner padding 24: the central 16x16 kept
 *
 * Each way runs in a process of its own, because peak memory is a property of a process; worker_mib
 * is what each worker's maps take of it, weights_mib what all workers share. The model
 * is freshly initialised (speed does not depend on the weights) and samples its latents. With
 * --profile one worker runs alone and the line carries the share of each op. --operations measures
 * nothing: it prints the table of docs/RESULTS.md, operations per patch of every variant.
 * Exit status 77: this processor does not have the precision.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "us_cuda.h"
#include "us_model.h"
#include "us_plan.h"
#include "us_predict.h"

#define EXIT_SKIP 77
#define PATCH     64

struct bench {
    const char *variant, *backend;
    enum us_precision precision;
    int threads, samples, align, batch;
    double seconds;
    bool profile, operations;
};

struct mode {
    const char *name;
    bool whole;
    int padding;
};

static const struct mode modes[] = {
    {"whole", true, 0}, {"pruned", false, 0}, {"pad16", false, 16}, {"pad24", false, 24}};
static const char *const variants[] = {"vanilla", "lean", "regular", "deep"};
static const int32_t paddings[] = {0, 8, 16, 24, 28};

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    (void)clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int failed(const struct us_err *err)
{
    fprintf(stderr, "bench_predict: %s\n", err->msg);
    return err->status == US_E_UNSUPPORTED ? EXIT_SKIP : 1;
}

/* cpu_ms: processor time, which a busy neighbour disturbs less than the wall's. */
static void print_line(const struct bench *b, const struct mode *m, double ms, double cpu_ms,
                       double gflop, const char *more)
{
    struct rusage r;
    (void)getrusage(RUSAGE_SELF, &r);
    printf("{\"variant\":\"%s\",\"precision\":\"%s\",\"threads\":%d,\"samples\":%d,"
           "\"mode\":\"%s\",\"align\":%d,\"ms_per_patch\":%.4f,\"cpu_ms_per_patch\":%.4f,"
           "\"patches_per_s\":%.3f,\"gflop\":%.3f,\"peak_rss_mib\":%.1f%s}\n",
           b->variant, b->precision == US_PREC_BF16 ? "bf16" : "f32", b->threads, b->samples,
           m->name, b->align, ms, cpu_ms, 1e3 / ms, gflop, (double)r.ru_maxrss / 1024.0, more);
    (void)fflush(stdout);
}

/* Frames of a row of patches until the time is up; the first one warms up. */
static int measure(const struct bench *b, const struct mode *m, const struct us_model *model,
                   struct us_backend *be)
{
    struct us_err err = {0};
    struct us_predict_config cfg = us_predict_defaults(model);
    cfg.precision = b->precision;
    cfg.threads = b->threads;
    cfg.samples = b->samples;
    cfg.padding = m->padding;
    cfg.whole_maps = m->whole;
    cfg.align = b->align;
    cfg.batch = b->batch;
    struct us_predictor *p = NULL;
    if (us_predictor_new(model, be, &cfg, &p, &err) != US_OK)
        return failed(&err);
    int64_t side = PATCH - 2 * m->padding;
    /* A GPU wants many patches at a time. */
    bool gpu = strcmp(b->backend, "cuda") == 0;
    int64_t h = side * (gpu ? 16 : 1), w = side * (gpu ? 64 : 4 * b->threads);
    float *in = calloc((size_t)(h * w), sizeof(float));
    float *out = calloc((size_t)(2 * h * w), sizeof(float));
    struct us_predict_frame f = {.in = in, .h = h, .w = w, .mean = out};
    double spent = 0.0, cpu = 0.0;
    int64_t patches = 0;
    int status = in == NULL || out == NULL;
    for (int i = 0; status == 0 && (i == 0 || spent < b->seconds); i++) {
        double before = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
        if (us_predict_run(p, &f, &err) != US_OK)
            status = failed(&err);
        else if (i > 0) {
            cpu += seconds_of(CLOCK_PROCESS_CPUTIME_ID) - before;
            spent += f.seconds;
            patches += us_predict_n_patches(p, h, w);
        }
    }
    if (status == 0) {
        struct us_predictor_stats s = us_predictor_stats(p);
        char more[96];
        (void)snprintf(more, sizeof(more), ",\"worker_mib\":%.2f,\"weights_mib\":%.2f",
                       (double)s.worker_bytes / 0x1p20, (double)s.packed_bytes / 0x1p20);
        print_line(b, m, 1e3 * spent / (double)patches, 1e3 * cpu / (double)patches,
                   s.flops_patch * 1e-9, more);
    }
    us_predictor_free(p);
    free(in);
    free(out);
    return status;
}

static int profile(const struct bench *b, const struct mode *m, const struct us_model *model,
                   struct us_backend *be)
{
    struct us_err err = {0};
    int32_t side = PATCH - 2 * m->padding;
    const struct us_plan_config cfg = {.dtype = b->precision == US_PREC_BF16 ? US_BF16 : US_F32,
                                       .batch = 1,
                                       .whole_maps = m->whole,
                                       .align = b->align,
                                       .keep = {m->padding, m->padding, side, side}};
    struct us_plan *plan = NULL;
    struct us_exec *e = NULL;
    if (us_plan_build(model->net, model->weights, be, &cfg, &plan, &err) != US_OK ||
        us_exec_new(plan, &e, &err) != US_OK)
        return failed(&err);
    double start = seconds_of(CLOCK_MONOTONIC), spent = 0.0, cpu = 0.0;
    int runs = -1; /* the first one warms up */
    us_exec_profile(e, true);
    double warm[US_OP_COUNT] = {0};
    for (; runs < 1 || spent < b->seconds; runs++) {
        if (us_exec_run(e) != US_OK)
            return 1;
        if (runs < 0) {
            memcpy(warm, us_exec_seconds(e), sizeof(warm));
            start = seconds_of(CLOCK_MONOTONIC);
            cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
        }
        spent = seconds_of(CLOCK_MONOTONIC) - start;
    }
    char more[512];
    int n = snprintf(more, sizeof(more), ",\"share\":{");
    for (int k = 0; k < US_OP_COUNT; k++)
        n += snprintf(more + n, sizeof(more) - (size_t)n, "%s\"%s\":%.3f", k ? "," : "",
                      us_op_name((enum us_op_kind)k), (us_exec_seconds(e)[k] - warm[k]) / spent);
    (void)snprintf(more + n, sizeof(more) - (size_t)n, "}");
    cpu = seconds_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    print_line(b, m, 1e3 * spent / runs, 1e3 * cpu / runs, us_plan_stats(plan).flops * 1e-9, more);
    us_exec_free(e);
    us_plan_free(plan);
    return 0;
}

static enum us_status open_backend(const char *name, struct us_backend **ret, struct us_err *err)
{
    if (strcmp(name, "cuda") == 0)
        return us_cuda_open(0, ret, err);
    return strcmp(name, "ref") == 0 ? us_ref_open(ret, err) : us_cpu_open(ret, err);
}

static int run_mode(const struct bench *b, const struct mode *m)
{
    struct us_err err = {0};
    struct us_arch arch = us_arch_default();
    struct us_model *model = NULL;
    struct us_backend *be = NULL;
    if (us_arch_set_variant(&arch, b->variant, &err) != US_OK ||
        us_model_new(&arch, PATCH, 1, &model, &err) != US_OK ||
        open_backend(b->backend, &be, &err) != US_OK)
        return failed(&err) == EXIT_SKIP ? EXIT_SKIP : 1;
    int status = b->profile ? profile(b, m, model, be) : measure(b, m, model, be);
    us_backend_ops(be)->free(be);
    us_model_free(model);
    return status;
}

static int in_own_process(const struct bench *b, const struct mode *m)
{
    (void)fflush(stdout);
    pid_t pid = fork();
    if (pid < 0)
        return 1;
    if (pid == 0)
        exit(run_mode(b, m));
    int status = 0;
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
        return 1;
    return WEXITSTATUS(status);
}

/* GFLOP of one patch and of one more sample of it. */
static int count(const struct us_model *model, struct us_backend *be, const struct bench *b,
                 bool whole, int32_t padding, double *ret_patch, double *ret_sample)
{
    struct us_err err = {0};
    int32_t side = PATCH - 2 * padding;
    const struct us_plan_config cfg = {.dtype = US_F32,
                                       .batch = 1,
                                       .whole_maps = whole,
                                       .align = b->align,
                                       .keep = {padding, padding, side, side}};
    struct us_plan *plan = NULL;
    if (us_plan_build(model->net, model->weights, be, &cfg, &plan, &err) != US_OK)
        return failed(&err);
    struct us_plan_stats s = us_plan_stats(plan);
    us_plan_free(plan);
    *ret_patch = s.flops * 1e-9;
    *ret_sample = s.flops_sample * 1e-9;
    return 0;
}

static int print_operations(const struct bench *b, const char *variant, struct us_backend *be)
{
    struct us_err err = {0};
    struct us_arch arch = us_arch_default();
    struct us_model *model = NULL;
    double full, sample, region;
    if (us_arch_set_variant(&arch, variant, &err) != US_OK ||
        us_model_new(&arch, PATCH, 1, &model, &err) != US_OK)
        return failed(&err);
    int status = count(model, be, b, true, 0, &full, &sample);
    for (size_t i = 0; i < US_COUNT(paddings) && status == 0; i++) {
        status = count(model, be, b, false, paddings[i], &region, &sample);
        printf("| %s | %d | %.2f | %.2f | %.2f | %.2f | %.1f |\n", variant, paddings[i], full,
               region, full / region, sample, 50.0 * full / (region + 49.0 * sample));
    }
    us_model_free(model);
    return status;
}

static int print_all_operations(const struct bench *b)
{
    struct us_err err = {0};
    struct us_backend *be = NULL;
    if (us_ref_open(&be, &err) != US_OK)
        return failed(&err);
    printf("| variant | padding | full | region | full / region | each further sample | "
           "50 full / 50 samples |\n|---|---:|---:|---:|---:|---:|---:|\n");
    int status = 0;
    for (size_t i = 0; i < US_COUNT(variants) && status == 0; i++)
        status = print_operations(b, variants[i], be);
    us_backend_ops(be)->free(be);
    return status;
}

static bool parse(struct bench *b, const char **only, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--profile") == 0 || strcmp(argv[i], "--operations") == 0) {
            *(argv[i][2] == 'p' ? &b->profile : &b->operations) = true;
            continue;
        }
        if (i + 1 >= argc)
            return false;
        const char *key = argv[i], *value = argv[++i];
        if (strcmp(key, "--variant") == 0)
            b->variant = value;
        else if (strcmp(key, "--backend") == 0)
            b->backend = value;
        else if (strcmp(key, "--precision") == 0)
            b->precision = strcmp(value, "bf16") == 0 ? US_PREC_BF16 : US_PREC_F32;
        else if (strcmp(key, "--threads") == 0)
            b->threads = (int)strtol(value, NULL, 10);
        else if (strcmp(key, "--samples") == 0)
            b->samples = (int)strtol(value, NULL, 10);
        else if (strcmp(key, "--batch") == 0)
            b->batch = (int)strtol(value, NULL, 10);
        else if (strcmp(key, "--align") == 0)
            b->align = (int)strtol(value, NULL, 10);
        else if (strcmp(key, "--seconds") == 0)
            b->seconds = strtod(value, NULL);
        else if (strcmp(key, "--mode") == 0)
            *only = value;
        else
            return false;
    }
    return b->threads > 0 && b->samples > 0;
}

int main(int argc, char **argv)
{
    struct bench b = {.variant = "regular",
                      .backend = "cpu",
                      .precision = US_PREC_F32,
                      .threads = 1,
                      .samples = 1,
                      .batch = 1,
                      .seconds = 5.0};
    const char *only = NULL;
    if (!parse(&b, &only, argc, argv)) {
        fprintf(stderr, "usage: bench_predict [--variant V] [--precision f32|bf16] [--threads N] "
                        "[--samples N] [--batch N] [--align N] [--seconds S] [--mode M] "
                        "[--backend cpu|ref|cuda] [--profile | --operations]\n");
        return 2;
    }
    if (b.operations)
        return print_all_operations(&b);
    for (size_t i = 0; i < US_COUNT(modes); i++) {
        int status =
            only == NULL || strcmp(only, modes[i].name) == 0 ? in_own_process(&b, &modes[i]) : 0;
        if (status != 0)
            return status;
    }
    return 0;
}
