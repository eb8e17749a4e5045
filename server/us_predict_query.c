/* Query parameters of the predict route; see us_predict_query.h. One table row per parameter. */
#include "us_predict_query.h"

#include <inttypes.h>
#include <string.h>

/* Each setter reads value into q; false: not allowed. */
typedef bool (*set_fn)(struct us_predict_query *q, const char *value);

/* A decimal number of at most max; no sign, no blanks. */
static bool read_number(const char *s, uint64_t max, uint64_t *ret)
{
    uint64_t v = 0;
    if (*s == '\0')
        return false;
    for (; *s != '\0'; s++) {
        unsigned digit = (unsigned)(unsigned char)*s - '0';
        if (digit > 9 || v > (max - digit) / 10)
            return false;
        v = v * 10 + digit;
    }
    *ret = v;
    return true;
}

static bool read_int32(const char *s, int32_t min, int32_t max, int32_t *ret)
{
    uint64_t v;
    if (!read_number(s, (uint64_t)max, &v) || (int64_t)v < min)
        return false;
    *ret = (int32_t)v;
    return true;
}

/* Index of value among two or three words, or -1. */
static int read_word(const char *value, const char *const *words, int n)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(value, words[i]) == 0)
            return i;
    }
    return -1;
}

static bool set_padding(struct us_predict_query *q, const char *v)
{
    return read_int32(v, 0, US_MAX_PATCH, &q->config.padding);
}

static bool set_tiling(struct us_predict_query *q, const char *v)
{
    int i = read_word(v, (const char *const[]){"inner", "outer"}, 2);
    q->config.tiling = i == 1 ? US_TILING_OUTER : US_TILING_INNER;
    return i >= 0;
}

static bool set_grid(struct us_predict_query *q, const char *v)
{
    int i = read_word(v, (const char *const[]){"fixed", "shifted"}, 2);
    q->config.grid = i == 1 ? US_GRID_SHIFTED : US_GRID_FIXED;
    return i >= 0;
}

static bool set_samples(struct us_predict_query *q, const char *v)
{
    return read_int32(v, 1, US_MAX_SAMPLES, &q->config.samples);
}

static bool set_latent(struct us_predict_query *q, const char *v)
{
    int i = read_word(v, (const char *const[]){"sample", "mean"}, 2);
    q->config.latent_mean = i == 1;
    return i >= 0;
}

static bool set_seed(struct us_predict_query *q, const char *v)
{
    return read_number(v, INT64_MAX, &q->config.seed);
}

static bool set_planes(struct us_predict_query *q, const char *v)
{
    int i = read_word(v, (const char *const[]){"mean", "std", "mean,std"}, 3);
    q->file.plane_mean = i != 1;
    q->file.plane_std = i != 0;
    q->config.want_std = i != 0;
    return i >= 0;
}

static bool set_dtype(struct us_predict_query *q, const char *v)
{
    int i = read_word(v, (const char *const[]){"float32", "uint16"}, 2);
    q->file.dtype = i == 1 ? US_PIXEL_U16 : US_PIXEL_F32;
    return i >= 0;
}

static bool set_noise(struct us_predict_query *q, const char *v)
{
    int i = read_word(v, (const char *const[]){"patch", "image"}, 2);
    q->config.noise = i == 1 ? US_NOISE_IMAGE : US_NOISE_PATCH;
    return i >= 0;
}

static bool set_channel(struct us_predict_query *q, const char *v)
{
    return read_int32(v, 0, INT32_MAX, &q->file.channel);
}

/* "0,1": channels to average. */
static bool set_mix(struct us_predict_query *q, const char *v)
{
    q->file.n_mix = 0;
    for (;;) {
        char item[12];
        size_t n = strcspn(v, ",");
        if (n >= sizeof(item) || q->file.n_mix == US_MAX_TARGETS)
            return false;
        memcpy(item, v, n);
        item[n] = '\0';
        if (!read_int32(item, 0, INT32_MAX, &q->file.mix[q->file.n_mix++]))
            return false;
        if (v[n] == '\0')
            return true;
        v += n + 1;
    }
}

static bool set_pages(struct us_predict_query *q, const char *v)
{
    int i = read_word(v, (const char *const[]){"t", "z", "c"}, 3);
    q->file.pages = i >= 0 ? v[0] : 't';
    return i >= 0;
}

static bool set_precision(struct us_predict_query *q, const char *v)
{
    int i = read_word(v, (const char *const[]){"auto", "f32", "bf16"}, 3);
    q->config.precision = i < 0 ? US_PREC_AUTO : (enum us_precision)i;
    return i >= 0;
}

#define PARAMS(X)                                                                                  \
    X(padding, "a number of pixels, 0 to 4096")                                                    \
    X(tiling, "inner, outer")                                                                      \
    X(grid, "fixed, shifted")                                                                      \
    X(samples, "1 to 65535")                                                                       \
    X(latent, "sample, mean")                                                                      \
    X(seed, "0 to 9223372036854775807")                                                            \
    X(planes, "mean; std; mean,std")                                                               \
    X(dtype, "float32, uint16")                                                                    \
    X(noise, "patch, image")                                                                       \
    X(channel, "the index of a channel, from 0")                                                   \
    X(mix, "up to 16 channel indices, such as 0,1")                                                \
    X(pages, "t, z, c")                                                                            \
    X(precision, "auto, f32, bf16")

enum {
#define X(name, allowed) P_##name,
    PARAMS(X)
#undef X
        N_PARAMS
};

static const struct {
    const char *name;
    set_fn set;
    const char *allowed;
} params[N_PARAMS] = {
#define X(name, allowed) {#name, set_##name, allowed},
    PARAMS(X)
#undef X
};

_Static_assert(US_MAX_PATCH == 4096 && US_MAX_SAMPLES == 65535 && US_MAX_TARGETS == 16,
               "the texts above state these caps");
_Static_assert(US_PREC_F32 == 1 && US_PREC_BF16 == 2, "set_precision maps by index");
_Static_assert(N_PARAMS <= 32, "given is a 32-bit set");

bool us_predict_query_param(int i, const char **name, const char **allowed)
{
    if (i < 0 || i >= N_PARAMS)
        return false;
    *name = params[i].name;
    *allowed = params[i].allowed;
    return true;
}

enum us_status us_predict_query_parse(const struct us_target *t, struct us_predict_query *ret,
                                      struct us_err *err)
{
    memset(ret, 0, sizeof(*ret));
    for (int i = 0; i < t->n_params; i++) {
        const char *name = t->param[i].name, *value = t->param[i].value;
        int k = 0;
        while (k < N_PARAMS && strcmp(name, params[k].name) != 0)
            k++;
        if (k == N_PARAMS)
            return us_fail(err, US_E_ARG,
                           "unknown query parameter '%.40s'; known: padding, tiling, grid, "
                           "samples, latent, seed, planes, dtype, noise, channel, mix, pages, "
                           "precision",
                           name);
        if (ret->given & (1u << k))
            return us_fail(err, US_E_ARG, "query parameter %s is given twice", name);
        if (!params[k].set(ret, value))
            return us_fail(err, US_E_UNSUPPORTED,
                           "query parameter %s: '%.80s' is not allowed; "
                           "allowed: %s",
                           name, value, params[k].allowed);
        ret->given |= 1u << k;
    }
    if ((ret->given & (1u << P_channel)) && (ret->given & (1u << P_mix)))
        return us_fail(err, US_E_ARG, "query parameters channel and mix exclude each other");
    return US_OK;
}

void us_predict_query_apply(const struct us_predict_query *q, struct us_predict_config *config,
                            struct us_predict_file_options *file)
{
#define TAKE(name, dst, src)                                                                       \
    if (q->given & (1u << P_##name))                                                               \
    (dst) = (src)
    TAKE(padding, config->padding, q->config.padding);
    TAKE(tiling, config->tiling, q->config.tiling);
    TAKE(grid, config->grid, q->config.grid);
    TAKE(samples, config->samples, q->config.samples);
    TAKE(latent, config->latent_mean, q->config.latent_mean);
    TAKE(seed, config->seed, q->config.seed);
    TAKE(planes, config->want_std, q->config.want_std);
    TAKE(planes, file->plane_mean, q->file.plane_mean);
    TAKE(planes, file->plane_std, q->file.plane_std);
    TAKE(dtype, file->dtype, q->file.dtype);
    TAKE(noise, config->noise, q->config.noise);
    TAKE(channel, file->channel, q->file.channel);
    TAKE(mix, file->n_mix, q->file.n_mix);
    TAKE(pages, file->pages, q->file.pages);
    TAKE(precision, config->precision, q->config.precision);
#undef TAKE
    if (q->given & (1u << P_mix))
        memcpy(file->mix, q->file.mix, sizeof(file->mix));
}
