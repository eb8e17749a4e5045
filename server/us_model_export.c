/*
 * Models as PyTorch checkpoints (us_model_import.h). Our names of parameters are upstream's, so the
 * table of the network is the state dictionary; shared weights are written once and referred to
 * twice, as torch.save does.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "us_model_import.h"
#include "us_outfile.h"
#include "us_torch.h"

static struct us_torch_out *list_params(const struct us_model *m)
{
    const struct us_net *net = m->net;
    struct us_torch_out *list = calloc((size_t)net->n_params + 1, sizeof(*list));
    for (int32_t i = 0; list != NULL && i < net->n_params; i++) {
        const struct us_param *p = &net->params[i];
        bool counter = p->kind == US_PARAM_BN_COUNT;
        list[i].name = p->name;
        list[i].dtype = counter ? US_TORCH_I64 : US_TORCH_F32;
        list[i].ndim = p->ndim;
        memcpy(list[i].dim, p->dim, (size_t)p->ndim * sizeof(*p->dim));
        list[i].data = counter ? (const void *)(m->counters + p->offset)
                               : (const void *)(m->weights + p->offset);
        list[i].same_as = p->alias_of;
    }
    return list;
}

static enum us_status write_torch(const struct us_model *m, const char *tmp, bool wrapped,
                                  struct us_err *err)
{
    struct us_torch_out *list = list_params(m);
    if (list == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %d tensors", (int)m->net->n_params);
    int fd = open(tmp, O_WRONLY | O_TRUNC | O_CLOEXEC);
    enum us_status s = US_OK;
    if (fd < 0)
        s = us_fail(err, US_E_IO, "%s: %s", tmp, strerror(errno));
    if (s == US_OK)
        s = us_torch_write(fd, list, m->net->n_params, wrapped, err);
    if (s == US_OK && fsync(fd) != 0)
        s = us_fail(err, US_E_IO, "fsync: %s", strerror(errno));
    if (fd >= 0 && close(fd) != 0 && s == US_OK)
        s = us_fail(err, US_E_IO, "closing: %s", strerror(errno));
    free(list);
    return s;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n > k && strcmp(s + n - k, end) == 0;
}

enum us_status us_model_export(struct us_model *m, const char *input, const char *path,
                               struct us_err *err)
{
    bool wrapped = ends_with(path, ".ckpt"), safetensors = ends_with(path, ".safetensors");
    if (!wrapped && !safetensors && !ends_with(path, ".pt") && !ends_with(path, ".pth"))
        return us_fail(err, US_E_ARG, "%s: expected a name in .pt, .pth, .ckpt or .safetensors",
                       path);
    if (!m->complete)
        return us_fail(err, US_E_UNSUPPORTED,
                       "%s: the tensors that only training needs are missing, and PyTorch would "
                       "refuse a state dictionary without them",
                       input);
    struct us_outfile out = {0};
    US_TRY(us_outfile_begin(&out, path, input, err));
    enum us_status s =
        safetensors ? us_model_save(m, out.tmp, err) : write_torch(m, out.tmp, wrapped, err);
    if (s != US_OK)
        us_err_prefix(err, "%s", path);
    else
        s = us_outfile_commit(&out, err);
    us_outfile_abandon(&out);
    return s;
}
