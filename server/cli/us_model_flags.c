/* The options of model files, see us_model_flags.h. */
#include "us_model_flags.h"

#include <math.h>
#include <string.h>

static enum us_status copy_reals(const struct us_cli_reals *list, const char *name, int32_t n,
                                 double *dst, struct us_err *err)
{
    if (list->n == 0)
        return US_OK;
    if (list->n != n)
        return us_fail(err, US_E_ARG, "--%s: %d values, expected one for each of %d channels", name,
                       (int)list->n, (int)n);
    memcpy(dst, list->v, (size_t)n * sizeof(*dst));
    return US_OK;
}

static enum us_status check_data(const struct us_model *m, struct us_err *err)
{
    const struct us_model_data *d = &m->data;
    if (!(d->input_std > 0))
        return us_fail(err, US_E_ARG, "--input-std: %g, expected above 0", d->input_std);
    for (int32_t c = 0; c < m->arch.target_channels; c++) {
        if (!(d->target_std[c] > 0) || !isfinite(d->target_std[c]))
            return us_fail(err, US_E_ARG, "--target-std: %g, expected above 0", d->target_std[c]);
        if (!isfinite(d->target_mean[c]))
            return us_fail(err, US_E_ARG, "--target-mean: %g, expected a number",
                           d->target_mean[c]);
    }
    return US_OK;
}

enum us_status us_model_flags_apply(const struct us_cli_args *a, const struct us_model_flags *f,
                                    struct us_model *m, struct us_err *err)
{
    struct us_model_data *d = &m->data;
    int32_t n = m->arch.target_channels;
    if (us_cli_given(a, "input-mean"))
        d->input_mean = f->input_mean;
    if (us_cli_given(a, "input-std"))
        d->input_std = f->input_std;
    if (us_cli_given(a, "pixel-size"))
        d->pixel_size_um = f->pixel_size;
    US_TRY(copy_reals(&f->target_mean, "target-mean", n, d->target_mean, err));
    US_TRY(copy_reals(&f->target_std, "target-std", n, d->target_std, err));
    US_TRY(copy_reals(&f->clip, "clip", n, d->clip, err));
    if (f->clip.n > 0)
        d->has_clip = true;
    if (us_cli_given(a, "padding"))
        m->inner_padding = (int32_t)f->padding;
    if (us_cli_given(a, "samples"))
        m->samples = (int32_t)f->samples;
    for (int32_t c = 0; c < f->channels.n && c < n; c++)
        (void)snprintf(d->channels[c], US_MAX_NAME, "%s", f->channels.v[c]);
    return check_data(m, err);
}
