/*
 * NumPy's NPY files, versions 1.0 to 3.0 (the format is defined in numpy.lib.format).
 *
 * The header is a Python dictionary literal with exactly the keys descr, fortran_order, shape; we
 * read that and nothing else of Python. Shapes: [h, w]; [n, h, w] pages; [n, c, h, w];
 * [t, z, c, h, w]. The file must be as long as the header says, neither shorter nor longer.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_image_int.h"

enum { MAX_DIMS = 5, DESCR_BYTES = 24, PREFIX_BYTES = 12, ALIGN = 64 };

struct npy {
    uint64_t data_at;
    bool swap;
};

struct header {
    const char *at;
    char descr[DESCR_BYTES];
    int fortran; /* -1: not seen */
    int n_dims;  /* -1: not seen */
    int64_t shape[MAX_DIMS];
};

static void skip_space(struct header *h)
{
    h->at += strspn(h->at, " \t\r\n");
}

static bool take(struct header *h, const char *word)
{
    skip_space(h);
    size_t n = strlen(word);
    if (strncmp(h->at, word, n) != 0)
        return false;
    h->at += n;
    return true;
}

/* 'text' or "text" without escapes. */
static bool take_quoted(struct header *h, char *out, size_t cap)
{
    skip_space(h);
    char quote = *h->at;
    if (quote != '\'' && quote != '"')
        return false;
    const char *end = strchr(h->at + 1, quote);
    if (end == NULL || (size_t)(end - h->at - 1) >= cap)
        return false;
    size_t n = (size_t)(end - h->at - 1);
    memcpy(out, h->at + 1, n);
    out[n] = '\0';
    h->at = end + 1;
    return true;
}

static enum us_status take_shape(struct header *h, struct us_err *err)
{
    if (!take(h, "("))
        return us_fail(err, US_E_FORMAT, "NPY header: shape is no tuple");
    for (h->n_dims = 0; !take(h, ")"); h->n_dims++) {
        char digits[24];
        size_t n = strspn(h->at, "0123456789");
        if (n == 0 || n >= sizeof(digits))
            return us_fail(err, US_E_FORMAT, "NPY header: shape has an entry that is no count");
        if (h->n_dims == MAX_DIMS)
            return us_fail(err, US_E_UNSUPPORTED,
                           "NPY array of more than 5 dimensions; expected "
                           "at most [t, z, c, y, x]");
        memcpy(digits, h->at, n);
        digits[n] = '\0';
        h->at += n;
        h->shape[h->n_dims] = usi_parse_count(digits, INT64_MAX / 16);
        if (h->shape[h->n_dims] < 0)
            return us_fail(err, US_E_TOO_LARGE, "NPY header: shape has the entry %s", digits);
        if (!take(h, ",") && *h->at != ')')
            return us_fail(err, US_E_FORMAT, "NPY header: shape is no tuple");
    }
    return US_OK;
}

static enum us_status take_item(struct header *h, struct us_err *err)
{
    char key[24];
    if (!take_quoted(h, key, sizeof(key)) || !take(h, ":"))
        return us_fail(err, US_E_FORMAT, "NPY header is no dictionary");
    if (strcmp(key, "descr") == 0 && h->descr[0] == '\0') {
        if (take(h, "["))
            return us_fail(err, US_E_UNSUPPORTED, "NPY array of records; expected plain numbers");
        if (take_quoted(h, h->descr, sizeof(h->descr)))
            return US_OK;
    } else if (strcmp(key, "fortran_order") == 0 && h->fortran < 0) {
        h->fortran = take(h, "True") ? 1 : take(h, "False") ? 0 : -1;
        if (h->fortran >= 0)
            return US_OK;
    } else if (strcmp(key, "shape") == 0 && h->n_dims < 0) {
        return take_shape(h, err);
    }
    return us_fail(err, US_E_FORMAT, "NPY header: key \"%s\" is unknown, double or malformed", key);
}

static enum us_status parse_header(struct header *h, const char *text, struct us_err *err)
{
    *h = (struct header){.at = text, .fortran = -1, .n_dims = -1};
    if (!take(h, "{"))
        return us_fail(err, US_E_FORMAT, "NPY header is no dictionary");
    while (!take(h, "}")) {
        US_TRY(take_item(h, err));
        if (!take(h, ",") && *h->at != '}')
            return us_fail(err, US_E_FORMAT, "NPY header is no dictionary");
    }
    skip_space(h);
    if (*h->at != '\0')
        return us_fail(err, US_E_FORMAT, "NPY header has text after its dictionary");
    if (h->descr[0] == '\0' || h->fortran < 0 || h->n_dims < 0)
        return us_fail(err, US_E_FORMAT, "NPY header lacks descr, fortran_order or shape");
    return US_OK;
}

/* '<f4' and so on: byte order, kind, bytes per number. */
static enum us_status parse_descr(const char *d, enum us_pixel *ret, bool *ret_swap,
                                  struct us_err *err)
{
    static const char orders[] = "<>|=";
    bool known = strlen(d) == 3 && strchr(orders, d[0]) != NULL && d[2] >= '1' && d[2] <= '9' &&
                 usi_pixel_find(d[1], (unsigned)(d[2] - '0') * 8, ret);
    if (!known || (d[0] == '|' && d[2] != '1'))
        return us_fail(err, US_E_UNSUPPORTED,
                       "NPY numbers of type '%s'; expected u1, i1, u2, i2, u4, i4, f4 or f8", d);
    bool big = d[0] == '>';
    *ret_swap = (d[0] == '<' || d[0] == '>') && big != usi_host_is_big_endian();
    return US_OK;
}

static enum us_status set_axes(const struct header *h, struct us_image_info *info,
                               struct us_err *err)
{
    int n = h->n_dims;
    if (n < 2)
        return us_fail(err, US_E_UNSUPPORTED,
                       "NPY array of %d dimension%s; expected [y, x] or "
                       "more",
                       n, n == 1 ? "" : "s");
    info->w = h->shape[n - 1];
    info->h = h->shape[n - 2];
    info->c = n >= 4 ? h->shape[n - 3] : 1;
    info->z = n == 5 ? h->shape[1] : 1;
    info->t = n >= 3 ? h->shape[0] : 1;
    info->axes_stated = n >= 4;
    return usi_info_check(info, err);
}

/* The header's text with a NUL behind, and where the data begin. */
static enum us_status read_header(const struct usi_source *src, char **ret, uint64_t *ret_data_at,
                                  struct us_err *err)
{
    uint8_t b[PREFIX_BYTES];
    US_TRY(usi_source_read(src, 0, b, 10, err));
    if (b[6] < 1 || b[6] > 3 || b[7] != 0)
        return us_fail(err, US_E_UNSUPPORTED, "NPY version %u.%u; expected 1.0, 2.0 or 3.0", b[6],
                       b[7]);
    uint64_t prefix = b[6] == 1 ? 10 : 12;
    US_TRY(usi_source_read(src, 0, b, prefix, err));
    uint64_t n = (uint64_t)b[8] | (uint64_t)b[9] << 8;
    if (prefix == 12)
        n |= (uint64_t)b[10] << 16 | (uint64_t)b[11] << 24;
    if (n > US_MAX_NPY_HEADER_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "NPY header of %llu bytes; at most %lld",
                       (unsigned long long)n, US_MAX_NPY_HEADER_BYTES);
    char *text = malloc(n + 1);
    if (text == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for an NPY header");
    enum us_status s = usi_source_read(src, prefix, text, n, err);
    text[n] = '\0';
    if (s == US_OK && strlen(text) != n)
        s = us_fail(err, US_E_FORMAT, "NPY header contains a NUL byte");
    if (s != US_OK) {
        free(text);
        return s;
    }
    *ret = text;
    *ret_data_at = prefix + n;
    return US_OK;
}

static enum us_status npy_open(struct us_image_reader *r, struct us_err *err)
{
    struct header h;
    char *text = NULL;
    struct npy *npy = calloc(1, sizeof(*npy));
    if (npy == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for an NPY reader");
    r->state = npy;
    struct us_image_info *info = &r->info;
    info->container = US_CONTAINER_NPY;
    US_TRY(read_header(&r->src, &text, &npy->data_at, err));
    enum us_status s = parse_header(&h, text, err);
    free(text);
    US_TRY(s);
    US_TRY(parse_descr(h.descr, &info->pixel, &npy->swap, err));
    if (h.fortran == 1)
        return us_fail(err, US_E_UNSUPPORTED,
                       "NPY array in Fortran order; expected C order; save "
                       "numpy.ascontiguousarray(a)");
    US_TRY(set_axes(&h, info, err));
    /* Within the limits that set_axes checked this is below 2^53. */
    uint64_t want = (uint64_t)(info->t * info->z * info->c) * (uint64_t)(info->h * info->w) *
                    (uint64_t)usi_pixel_bytes(info->pixel);
    uint64_t have = r->src.n_bytes - npy->data_at;
    if (have != want)
        return us_fail(err, US_E_CORRUPT, "%sNPY shape needs %llu bytes of data; the file has %llu",
                       have < want ? "truncated: " : "", (unsigned long long)want,
                       (unsigned long long)have);
    return US_OK;
}

static enum us_status npy_read_plane(struct us_image_reader *r, int64_t t, int64_t z, int64_t c,
                                     float *out, struct us_err *err)
{
    enum { BLOCK_BYTES = 64 << 10 };
    uint8_t block[BLOCK_BYTES];
    const struct npy *npy = r->state;
    const struct us_image_info *i = &r->info;
    int64_t unit = usi_pixel_bytes(i->pixel), n = i->h * i->w, per_block = BLOCK_BYTES / unit;
    int64_t plane = (t * i->z + z) * i->c + c;
    uint64_t at = npy->data_at + (uint64_t)plane * (uint64_t)(n * unit);
    for (int64_t k = 0; k < n; k += per_block) {
        int64_t take_n = n - k < per_block ? n - k : per_block;
        US_TRY(usi_source_read(&r->src, at + (uint64_t)(k * unit), block, (uint64_t)(take_n * unit),
                               err));
        usi_pixels_to_f32(i->pixel, npy->swap, block, unit, take_n, out + k);
    }
    return US_OK;
}

static void npy_release(void *state)
{
    free(state);
}

const struct usi_format usi_format_npy = {
    .open = npy_open,
    .read_plane = npy_read_plane,
    .release = npy_release,
};

/* "3, 2, 640, 640" without the leading axes that a reader takes for granted. */
static void shape_text(const struct us_image_info *i, char *out, size_t cap)
{
    int64_t dims[] = {i->t, i->z, i->c, i->h, i->w};
    size_t used = 0;
    for (int k = 0; k < 5; k++) {
        bool dropped = (k == 1 && i->z == 1) || (k == 0 && i->t == 1 && i->z == 1);
        if (!dropped)
            used += (size_t)snprintf(out + used, cap - used, "%s%lld", used > 0 ? ", " : "",
                                     (long long)dims[k]);
    }
}

enum us_status usi_npy_begin(struct us_image_writer *w, struct us_err *err)
{
    uint8_t out[3 * ALIGN] = "\x93NUMPY\x01";
    char shape[120];
    const char *descr = w->info.pixel == US_PIXEL_F32   ? "<f4"
                        : w->info.pixel == US_PIXEL_U16 ? "<u2"
                                                        : "|u1";
    shape_text(&w->info, shape, sizeof(shape));
    int n = snprintf((char *)out + 10, sizeof(out) - 10,
                     "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }", descr, shape);
    US_ASSERT(n > 0 && (size_t)n + 11 <= sizeof(out));
    size_t total = ((size_t)n + 11 + ALIGN - 1) / ALIGN * ALIGN;
    memset(out + 10 + n, ' ', total - 11 - (size_t)n);
    out[total - 1] = '\n';
    out[8] = (uint8_t)((total - 10) & 0xff);
    out[9] = (uint8_t)((total - 10) >> 8);
    return usi_write_all(w, out, total, err);
}
