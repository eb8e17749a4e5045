/*
 * What the real cuDNN says to our descriptions, without a GPU: the library plans for a device that
 * it is told of in its own words. So every descriptor passes its own checks, and the shapes of our
 * networks are known to have deterministic, compiled ways on the GPUs named here. Skipped where the
 * library is not installed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_cudnn.h"
#include "us_gpu_cuda.h"

/* As cudaGetDeviceProperties describes them; the numbers that plans depend on. */
static const struct device {
    const char *name;
    int version, processors, shared_bytes, memory_gb;
} devices[] = {
    {"NVIDIA H200", 900, 132, 232448, 140},
    {"NVIDIA A100", 800, 108, 166912, 80},
};

static const char *describe(const struct device *d, char *to, size_t bytes)
{
    (void)snprintf(
        to, bytes,
        "{\"deviceVer\":%d,\"driverVer\":13000,\"cudaDeviceId\":0,\"deviceName\":\"%s\","
        "\"pciDeviceId\":0,\"isTccDriver\":0,\"supportCoopLaunch\":1,\"totalGlobalMem\":%lld,"
        "\"smClockRateKHz\":1800000,\"memClockRateKHz\":2600000,\"l2CacheSize\":52428800,"
        "\"regsPerBlock\":65536,\"multiProcessorCount\":%d,\"warpSize\":32,"
        "\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":%d,"
        "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,"
        "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,"
        "\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64]}",
        d->version, d->name, (long long)d->memory_gb << 30, d->processors, d->shared_bytes);
    return to;
}

static struct us_gpu_cuda gpu;

/* NULL: cuDNN is not installed, or too old to plan without a GPU. */
static struct us_cudnn *open_for(const struct device *d)
{
    char json[1024];
    struct us_gpu *host = NULL;
    struct us_cudnn *cd = NULL;
    struct us_err err = {0};
    assert_int_equal(us_gpu_serial_open(&host, NULL), US_OK);
    gpu.base = *host;
    host->ops->free(host);
    if (usi_cudnn_open(&gpu.base, describe(d, json, sizeof(json)), &cd, &err) != US_OK) {
        print_message("skipped: %s\n", err.msg);
        return NULL;
    }
    return cd;
}

static struct us_conv_map map(int32_t side, int32_t c, int32_t margin)
{
    int64_t all = side + 2 * margin;
    return (struct us_conv_map){side, side, c, all * all * c, all * c, c};
}

/* The layers of our networks: side and channels of x, channels of y, kernel, stride, padding before
 * and after; and whether only the gradient by weights is asked of cuDNN (`direct` does the rest).
 */
static const struct layer {
    int32_t side, xc, yc, k, stride, before, after, margin;
    bool tiny;
} layers[] = {
    {64, 64, 64, 3, 1, 1, 1, 0, false},  {32, 64, 64, 3, 1, 1, 1, 2, false},
    {64, 64, 128, 1, 1, 0, 0, 0, false}, {64, 128, 64, 1, 1, 0, 0, 0, false},
    {64, 64, 64, 3, 2, 1, 1, 0, false},  {64, 64, 64, 3, 2, 1, 0, 0, false},
    {8, 64, 64, 3, 1, 1, 1, 0, false},   {2, 64, 64, 3, 1, 1, 1, 0, false},
    {64, 32, 32, 3, 1, 1, 1, 0, false},  {64, 1, 64, 5, 2, 2, 2, 0, true},
    {64, 64, 4, 3, 1, 1, 1, 0, true},
};

static struct us_conv_desc describe_layer(const struct layer *l, enum us_conv_kind kind,
                                          enum us_dtype dtype)
{
    int32_t y = (l->side + l->before + l->after - l->k) / l->stride + 1;
    return (struct us_conv_desc){.kind = kind,
                                 .dtype = dtype,
                                 .out_dtype = dtype,
                                 .n = 16,
                                 .x = map(l->side, l->xc, l->margin),
                                 .y = map(y, l->yc, 0),
                                 .k = l->k,
                                 .stride = l->stride,
                                 .top = l->before,
                                 .left = l->before,
                                 .bottom = l->after,
                                 .right = l->after};
}

static enum us_status plan(struct us_cudnn *cd, const struct us_conv_desc *d, struct us_err *err)
{
    struct us_conv c = {.d = *d, .cd = cd, .w_dtype = d->dtype};
    c.descs.api = c.plan_descs.api = &cd->api;
    c.graph = usi_conv_graph(&c.descs, cd, d, d->dtype);
    enum us_status s = usi_descs_result(&c.descs, err);
    if (s == US_OK)
        s = usi_conv_tune(&c, err);
    /* A remembered choice makes the same plan again. */
    if (s == US_OK) {
        struct us_cudnn_choice choice = c.choice;
        s = usi_conv_plan_choice(&c, &choice, err);
    }
    usi_conv_plan_drop(&c);
    usi_descs_release(&c.descs);
    return s;
}

static void every_layer_has_a_deterministic_plan(void **state)
{
    for (size_t i = 0; i < US_COUNT(devices); i++) {
        struct us_cudnn *cd = open_for(&devices[i]);
        if (cd == NULL)
            skip();
        for (size_t j = 0; j < US_COUNT(layers) * 6; j++) {
            const struct layer *l = &layers[j / 6];
            struct us_conv_desc d =
                describe_layer(l, (enum us_conv_kind)(j % 3), j / 3 % 2 == 0 ? US_F32 : US_BF16);
            struct us_err err = {0};
            if (l->tiny && d.kind != US_CONV_FILTER)
                continue;
            if (plan(cd, &d, &err) != US_OK)
                fail_msg("%s: layer %d, kind %d, %s: %s", devices[i].name, (int)(j / 6), d.kind,
                         d.dtype == US_F32 ? "f32" : "bf16", err.msg);
        }
        us_cudnn_close(cd);
    }
}

/* The reason why usi_conv_graph's descriptors are right where no compiled engine serves them. */
static void epilogues_are_well_formed(void **state)
{
    struct us_cudnn *cd = open_for(&devices[0]);
    if (cd == NULL)
        skip();
    for (int i = 0; i < 8; i++) {
        struct us_conv_desc d = describe_layer(&layers[0], (enum us_conv_kind)(i % 2), US_BF16);
        struct usi_descs b = {.api = &cd->api};
        struct us_err err = {0};
        d.bias = (i & 2) != 0;
        d.elu = (i & 4) != 0;
        d.residual = true;
        d.res = map(64, 64, 3);
        (void)usi_conv_graph(&b, cd, &d, d.dtype);
        if (usi_descs_result(&b, &err) != US_OK)
            fail_msg("%s", err.msg);
        usi_descs_release(&b);
    }
    us_cudnn_close(cd);
}

static void strict_f32_keeps_off_tensor_cores(void **state)
{
    struct us_cudnn_choice strict[32], loose[32];
    struct us_cudnn *cd = open_for(&devices[0]);
    int32_t n_strict = 0, n_loose = 0;
    if (cd == NULL)
        skip();
    struct us_conv c = {.d = describe_layer(&layers[0], US_CONV_FORWARD, US_F32), .cd = cd};
    c.descs.api = c.plan_descs.api = &cd->api;
    c.graph = usi_conv_graph(&c.descs, cd, &c.d, US_F32);
    assert_int_equal(usi_conv_candidates(&c, strict, 32, &n_strict, NULL), US_OK);
    c.d.tf32 = true;
    assert_int_equal(usi_conv_candidates(&c, loose, 32, &n_loose, NULL), US_OK);
    assert_true(n_loose > n_strict);
    usi_descs_release(&c.descs);
    us_cudnn_close(cd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layer_has_a_deterministic_plan),
        cmocka_unit_test(epilogues_are_well_formed),
        cmocka_unit_test(strict_f32_keeps_off_tensor_cores),
    };
    /* Nothing of this machine's is read or left. */
    if (setenv("USPLIT_CACHE", "/nonexistent", 1) != 0)
        return 1;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
