/*
 * Convolutions by cuDNN (us_conv.h): opening the library, plans remembered by shape, running them.
 * us_cudnn_graph.c says what is computed, us_cudnn_plan.c which ways are allowed, us_cudnn_tune.c
 * which is taken, us_cudnn_run.c how it is started.
 *
 * A plan is made under the lock of its library; so are runs, because a handle serves one thread at
 * a time.
 */
#include "us_cudnn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_gpu_cuda.h"

/* ---- plans ---- */

static void map_words(char *to, size_t bytes, const struct us_conv_map *m)
{
    (void)snprintf(to, bytes, "%dx%dx%d:%lld:%lld:%lld", m->h, m->w, m->c,
                   (long long)m->image_stride, (long long)m->row_stride,
                   (long long)m->pixel_stride);
}

/* Everything that a choice depends on, as words without white space. */
static void key_of(const struct us_cudnn *cd, const struct us_conv_desc *d, enum us_dtype w_dtype,
                   char *to, size_t bytes)
{
    char x[96], y[96], res[96] = "-";
    map_words(x, sizeof(x), &d->x);
    map_words(y, sizeof(y), &d->y);
    if (d->residual)
        map_words(res, sizeof(res), &d->res);
    (void)snprintf(to, bytes, "%s/%c%c%c%s/n%d/x%s/y%s/k%ds%d/p%d,%d,%d,%d/%s%s/r%s/w%c",
                   cd->machine, "FDW"[d->kind], d -> dtype == US_F32 ? 'f' : 'h',
                   d->out_dtype == US_F32 ? 'f' : 'h', d->tf32 ? "t" : "", d->n, x, y, d->k,
                   d->stride, d->top, d->left, d->bottom, d->right, d->bias ? "b" : "",
                   d->elu ? "e" : "", res, w_dtype == US_F32 ? 'f' : 'h');
}

static void conv_free(struct us_gpu *g, struct us_conv *c)
{
    if (c == NULL)
        return;
    usi_conv_plan_drop(c);
    usi_descs_release(&c->descs);
    free(c);
}

/* A plan of cuDNN's, remembered or new. */
static enum us_status make_plan(struct us_conv *c, enum us_dtype w_dtype, struct us_err *err)
{
    struct us_cudnn *cd = c->cd;
    char key[US_CUDNN_KEY_BYTES];
    usi_descs_release(&c->descs);
    c->descs = (struct usi_descs){.api = &cd->api};
    c->w_dtype = w_dtype;
    c->graph = usi_conv_graph(&c->descs, cd, &c->d, w_dtype);
    US_TRY(usi_descs_result(&c->descs, err));
    key_of(cd, &c->d, w_dtype, key, sizeof(key));
    const struct us_cudnn_choice *known = us_cudnn_cache_get(&cd->cache, key);
    if (known != NULL && usi_conv_plan_choice(c, known, NULL) == US_OK)
        return US_OK;
    US_TRY(usi_conv_tune(c, err));
    return us_cudnn_cache_put(&cd->cache, key, &c->choice);
}

/* cuDNN has no compiled kernel that reads bf16 and writes f32. So the gradient by weights is added
 * in f32, rounded to bf16 once, and widened; and where cuDNN has nothing at all, summed by us. */
static enum us_status make_filter(struct us_conv *c, struct us_err *err)
{
    enum us_status s = US_E_UNSUPPORTED;
    if (c->d.dtype == US_F32 || c->cd->compile)
        s = make_plan(c, US_F32, NULL);
    if (s == US_E_UNSUPPORTED && c->d.dtype == US_BF16)
        s = make_plan(c, US_BF16, NULL);
    if (s == US_E_UNSUPPORTED) {
        c->own = true;
        return US_OK;
    }
    return s == US_OK ? US_OK : us_fail(err, s, "cuDNN cannot plan a gradient by weights");
}

/* Under the lock. */
static enum us_status make(struct us_conv *c, struct us_err *err)
{
    const struct us_conv_desc *d = &c->d;
    if (d->kind == US_CONV_FILTER)
        return make_filter(c, err);
    /* Known without asking, which takes a second a time: only compiled engines have epilogues. */
    if ((d->bias || d->elu || d->residual) && !c->cd->compile)
        return us_fail(err, US_E_UNSUPPORTED,
                       "cuDNN adds nothing to a convolution without compiling for it");
    return make_plan(c, d->dtype, err);
}

static enum us_status conv_plan(struct us_gpu *g, const struct us_conv_desc *d,
                                struct us_conv **ret, size_t *ret_workspace_bytes,
                                struct us_err *err)
{
    struct us_cudnn *cd = usi_gpu_cuda_cudnn(g);
    US_TRY(us_conv_check(d, err));
    struct us_conv *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a convolution");
    c->d = *d;
    c->cd = cd;
    c->descs.api = c->plan_descs.api = &cd->api;
    (void)pthread_mutex_lock(&cd->lock);
    enum us_status s = make(c, err);
    (void)pthread_mutex_unlock(&cd->lock);
    if (s != US_OK) {
        conv_free(g, c);
        return s;
    }
    *ret = c;
    *ret_workspace_bytes = usi_conv_workspace(c);
    return US_OK;
}

static enum us_status conv_run(struct us_gpu *g, const struct us_conv *c,
                               const struct us_conv_bufs *b)
{
    if (g->poisoned)
        return US_E_DEVICE_LOST;
    (void)pthread_mutex_lock(&c->cd->lock);
    enum us_status s = usi_conv_start(c, b);
    (void)pthread_mutex_unlock(&c->cd->lock);
    return s;
}

static const struct us_conv_ops cudnn_ops = {
    .plan = conv_plan,
    .free = conv_free,
    .run = conv_run,
};

/* ---- opening ---- */

static enum us_status open_handle(struct us_cudnn *cd, struct us_err *err)
{
    const struct us_cudnn_api *api = &cd->api;
    cudnnStatus_t s = api->create(&cd->handle);
    if (s == CUDNN_STATUS_SUCCESS)
        s = api->set_stream(cd->handle, (cudaStream_t)cd->gpu->stream);
    if (s == CUDNN_STATUS_SUCCESS)
        return US_OK;
    char words[256] = "";
    api->last_error(words, sizeof(words));
    return us_fail(err, US_E_UNSUPPORTED, "cuDNN %zu does not start on this GPU: %s %s",
                   api->version(), api->error_string(s), words);
}

static enum us_status open_device(struct us_cudnn *cd, const char *json, struct us_err *err)
{
    struct usi_descs b = {.api = &cd->api};
    cudnnBackendDescriptor_t d =
        usi_desc_new(&b, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, "device properties");
    usi_desc_set(&b, d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                 (int64_t)strlen(json), json);
    usi_desc_finish(&b, d);
    enum us_status s = usi_descs_result(&b, err);
    if (s == US_OK)
        cd->device = d;
    else
        usi_descs_release(&b);
    return s;
}

/* Names with white space would break the cache's lines. */
static enum us_status name_machine(struct us_cudnn *cd, struct us_err *err)
{
    struct us_gpu_info info;
    enum us_status s = cd->gpu->ops->info(cd->gpu, &info);
    if (s != US_OK)
        return us_fail(err, s, "the GPU does not say what it is");
    (void)snprintf(cd->machine, sizeof(cd->machine), "%s,%d.%d,%zu", info.name, info.major,
                   info.minor, cd->api.version());
    for (char *p = cd->machine; *p != '\0'; p++)
        if (*p <= ' ')
            *p = '_';
    return US_OK;
}

enum us_status usi_cudnn_open(struct us_gpu *g, const char *json, struct us_cudnn **ret,
                              struct us_err *err)
{
    struct us_cudnn *cd = calloc(1, sizeof(*cd));
    if (cd == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for cuDNN");
    const char *tune = getenv("USPLIT_CUDNN_TUNE");
    cd->gpu = g;
    const char *compile = getenv("USPLIT_CUDNN_COMPILE");
    cd->tune = tune == NULL || strcmp(tune, "0") != 0;
    cd->compile = compile != NULL && strcmp(compile, "1") == 0;
    (void)pthread_mutex_init(&cd->lock, NULL);
    enum us_status s = usi_cudnn_load(&cd->api, err);
    if (s == US_OK)
        s = json == NULL ? open_handle(cd, err) : open_device(cd, json, err);
    if (s == US_OK)
        s = name_machine(cd, err);
    if (s == US_OK)
        s = us_cudnn_cache_open(&cd->cache);
    if (s != US_OK) {
        us_cudnn_close(cd);
        return s;
    }
    *ret = cd;
    return US_OK;
}

enum us_status us_cudnn_open(struct us_gpu *g, const struct us_conv_ops **ret, void **ret_handle,
                             struct us_err *err)
{
    struct us_cudnn *cd = NULL;
    US_TRY(usi_cudnn_open(g, NULL, &cd, err));
    *ret = &cudnn_ops;
    *ret_handle = cd;
    return US_OK;
}

int32_t us_cudnn_version(const void *handle)
{
    const struct us_cudnn *cd = handle;
    return cd == NULL ? 0 : (int32_t)cd->api.version();
}

void us_cudnn_close(void *handle)
{
    struct us_cudnn *cd = handle;
    if (cd == NULL)
        return;
    us_cudnn_cache_release(&cd->cache);
    if (cd->device != NULL)
        (void)cd->api.desc_free(cd->device);
    if (cd->handle != NULL)
        (void)cd->api.destroy(cd->handle);
    usi_cudnn_unload(&cd->api);
    (void)pthread_mutex_destroy(&cd->lock);
    free(cd);
}
