/*
 * What the CUDA backend does where its convolution library says no: the ways round it pass the same
 * cases as the straight way.
 */
#include "ops_test.h"
#include "us_conv.h"
#include "us_cuda_impl.h"

static const struct us_conv_ops *library; /* of the device that the tests run on */

static enum us_status strict_plan(struct us_gpu *g, const struct us_conv_desc *d,
                                  struct us_conv **ret, size_t *ret_workspace_bytes,
                                  struct us_err *err)
{
    if (d->top != d->bottom || d->left != d->right)
        return us_fail(err, US_E_UNSUPPORTED, "padding is not the same on both sides");
    if (d->bias || d->elu || d->residual)
        return us_fail(err, US_E_UNSUPPORTED, "an epilogue");
    return library->plan(g, d, ret, ret_workspace_bytes, err);
}

static enum us_status refusing_plan(struct us_gpu *g, const struct us_conv_desc *d,
                                    struct us_conv **ret, size_t *ret_workspace_bytes,
                                    struct us_err *err)
{
    return us_fail(err, US_E_UNSUPPORTED, "anything");
}

/* *conv becomes the library with another plan. */
static enum us_status open_with(
    struct us_conv_ops *conv,
    enum us_status (*plan)(struct us_gpu *g, const struct us_conv_desc *d, struct us_conv **ret,
                           size_t *ret_workspace_bytes, struct us_err *err),
    struct us_backend **ret, struct us_err *err)
{
    US_TRY(us_cuda_serial_open(ret, err));
    library = us_cuda_gpu(*ret)->conv;
    *conv = *library;
    conv->plan = plan;
    us_cuda_gpu(*ret)->conv = conv;
    (*ret)->stage_bytes = 1;
    return US_OK;
}

enum us_status ops_cuda_strict_open(struct us_backend **ret, struct us_err *err)
{
    static struct us_conv_ops conv;
    return open_with(&conv, strict_plan, ret, err);
}

enum us_status ops_cuda_direct_open(struct us_backend **ret, struct us_err *err)
{
    static struct us_conv_ops conv;
    return open_with(&conv, refusing_plan, ret, err);
}
