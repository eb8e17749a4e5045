/*
 * The host in the role of a GPU (us_gpu.h): memory is the heap's, copies are copies, work is done
 * when it is asked for. Tests run everything above the table on it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_conv.h"
#include "us_gpu.h"
#include "us_kernels.h"

#define SERIAL_ALIGN 256 /* a device's */

static void serial_free(struct us_gpu *g)
{
    free(g);
}

static enum us_status serial_info(struct us_gpu *g, struct us_gpu_info *ret)
{
    *ret = (struct us_gpu_info){.name = "host", .bf16 = true};
    return US_OK;
}

static enum us_status serial_use(struct us_gpu *g)
{
    return US_OK;
}

static enum us_status serial_alloc(struct us_gpu *g, size_t bytes, void **ret)
{
    if (bytes > PTRDIFF_MAX - SERIAL_ALIGN)
        return US_E_NOMEM;
    void *p = aligned_alloc(SERIAL_ALIGN, (bytes / SERIAL_ALIGN + 1) * SERIAL_ALIGN);
    if (p == NULL)
        return US_E_NOMEM;
    *ret = p;
    return US_OK;
}

static void serial_release(struct us_gpu *g, void *p)
{
    free(p);
}

static enum us_status serial_copy(struct us_gpu *g, void *dst, const void *src, size_t bytes)
{
    if (bytes > 0)
        memcpy(dst, src, bytes);
    return US_OK;
}

static enum us_status serial_zero(struct us_gpu *g, void *dst, size_t bytes)
{
    if (bytes > 0)
        memset(dst, 0, bytes);
    return US_OK;
}

static enum us_status serial_nothing(struct us_gpu *g)
{
    return US_OK;
}

static enum us_status serial_graph_end(struct us_gpu *g, struct us_gpu_graph **ret)
{
    *ret = NULL;
    return US_OK;
}

static enum us_status serial_graph_run(struct us_gpu *g, struct us_gpu_graph *graph)
{
    return US_E_ARG; /* nobody was ever given a graph */
}

static void serial_graph_free(struct us_gpu *g, struct us_gpu_graph *graph)
{
    US_ASSERT(graph == NULL);
}

static const struct us_gpu_ops serial_ops = {
    .name = "serial",
    .free = serial_free,
    .info = serial_info,
    .use = serial_use,
    .alloc = serial_alloc,
    .release = serial_release,
    .host_alloc = serial_alloc,
    .host_release = serial_release,
    .to_device = serial_copy,
    .to_host = serial_copy,
    .copy = serial_copy,
    .zero = serial_zero,
    .sync = serial_nothing,
    .graph_begin = serial_nothing,
    .graph_end = serial_graph_end,
    .graph_run = serial_graph_run,
    .graph_free = serial_graph_free,
};

enum us_status us_gpu_serial_open(struct us_gpu **ret, struct us_err *err)
{
    struct us_gpu *g = calloc(1, sizeof(*g));
    if (g == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a device");
    g->ops = &serial_ops;
    g->kernels = &us_kernels_serial;
    g->conv = &us_conv_serial_ops;
    *ret = g;
    return US_OK;
}
