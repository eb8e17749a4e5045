/*
 * cuDNN's descriptors: objects with attributes, fixed by a "finalize" that checks them.
 */
#include <string.h>

#include "us_cudnn.h"

/* cuDNN numbers its statuses by the thousand. */
#define CATEGORY(s) ((int)(s) / 1000 * 1000)

enum us_status usi_cudnn_status(cudnnStatus_t s)
{
    if (s == CUDNN_STATUS_SUCCESS)
        return US_OK;
    if (s == CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED ||
        s == CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)
        return US_E_NOMEM;
    return CATEGORY(s) == CUDNN_STATUS_NOT_SUPPORTED ? US_E_UNSUPPORTED : US_E_BACKEND;
}

static void failed(struct usi_descs *b, cudnnStatus_t s, const char *what)
{
    if (b->status != CUDNN_STATUS_SUCCESS || s == CUDNN_STATUS_SUCCESS)
        return;
    b->status = s;
    b->what = what;
}

cudnnBackendDescriptor_t usi_desc_new(struct usi_descs *b, cudnnBackendDescriptorType_t type,
                                      const char *what)
{
    cudnnBackendDescriptor_t d = NULL;
    if (b->status != CUDNN_STATUS_SUCCESS)
        return NULL;
    US_ASSERT(b->n_made < US_CUDNN_MAX_DESCS);
    b->what = what;
    failed(b, b->api->desc_new(type, &d), what);
    if (b->status == CUDNN_STATUS_SUCCESS)
        b->made[b->n_made++] = d;
    return d;
}

void usi_desc_set(struct usi_descs *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    if (b->status == CUDNN_STATUS_SUCCESS)
        failed(b, b->api->desc_set(d, name, type, n, values), b->what);
}

void usi_desc_link(struct usi_descs *b, cudnnBackendDescriptor_t d,
                   cudnnBackendAttributeName_t name, cudnnBackendDescriptor_t other)
{
    usi_desc_set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &other);
}

void usi_desc_finish(struct usi_descs *b, cudnnBackendDescriptor_t d)
{
    if (b->status == CUDNN_STATUS_SUCCESS)
        failed(b, b->api->desc_finish(d), b->what);
}

void usi_descs_release(struct usi_descs *b)
{
    /* Last made, first freed: later ones point to earlier ones. */
    while (b->n_made > 0)
        (void)b->api->desc_free(b->made[--b->n_made]);
}

enum us_status usi_descs_result(const struct usi_descs *b, struct us_err *err)
{
    char words[256] = "";
    if (b->status == CUDNN_STATUS_SUCCESS)
        return US_OK;
    b->api->last_error(words, sizeof(words));
    return us_fail(err, usi_cudnn_status(b->status), "cuDNN, %s: %s %s", b->what,
                   b->api->error_string(b->status), words);
}
