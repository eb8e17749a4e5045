/*
 * TIFF files as images: which page is which plane, and are all pages alike and complete.
 *
 * Opening walks every directory that is used and checks its strips against the file, so a
 * truncated stack is refused before hours of work, not after them. What stays in memory is one
 * offset per directory and one page number per plane; reading a plane reads its directory again
 * and checks again, because a file may change under us and `out` has the size of the first page.
 */
#include <stdlib.h>
#include <string.h>

#include "us_tiff_int.h"

enum us_status usi_tiff_map_new(struct usi_tiff *t, struct usi_axes *a, const char *order,
                                struct us_err *err)
{
    const struct usi_tiff_page *p = &t->first;
    struct us_image_info info = {.h = p->h, .w = p->w, .t = a->t, .z = a->z};
    info.c = a->c > US_MAX_PLANES ? a->c : a->c * p->samples;
    US_TRY(usi_info_check(&info, err));
    t->n_map = a->t * a->z * a->c;
    t->map = calloc((size_t)t->n_map, sizeof(*t->map));
    if (t->map == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for %lld planes", (long long)t->n_map);
    if (order == NULL) {
        memset(t->map, 0xff, (size_t)t->n_map * sizeof(*t->map));
        return US_OK;
    }
    usi_axes_set(a, order);
    uint32_t *m = t->map;
    for (int64_t it = 0; it < a->t; it++)
        for (int64_t iz = 0; iz < a->z; iz++)
            for (int64_t ic = 0; ic < a->c; ic++)
                *m++ = (uint32_t)(it * a->stride_t + iz * a->stride_z + ic * a->stride_c);
    return US_OK;
}

bool usi_tiff_has_pages(struct usi_tiff *t, int64_t n)
{
    if (t->n_ifd == n)
        return true;
    const struct usi_tiff_page *p = &t->first;
    if (t->n_ifd != 1 || n < 1 || p->codec->compression != USI_TIFF_NONE)
        return false;
    struct usi_tiff_chunks c;
    bool ok = usi_tiff_chunks_load(&t->file, p, &c, NULL) == US_OK && !p->tiled;
    uint64_t page_bytes = (uint64_t)usi_tiff_page_bytes(p), n_bytes = t->file.src->n_bytes;
    for (int64_t i = 1; i < c.n && ok; i++)
        ok = c.offset[i] == c.offset[i - 1] + (uint64_t)(p->chunk_h * c.row_bytes);
    if (ok)
        ok = (uint64_t)n <= (n_bytes - c.offset[0]) / page_bytes;
    usi_tiff_chunks_release(&c);
    t->contiguous = ok;
    return ok;
}

/* All used pages must look like the first, because a plane's size is the reader's size. */
static enum us_status check_alike(const struct usi_tiff_page *p, const struct usi_tiff_page *first,
                                  struct us_err *err)
{
    if (p->reduced)
        return us_fail(err, US_E_UNSUPPORTED, "a reduced copy or a mask; expected a plane");
    if (p->w != first->w || p->h != first->h)
        return us_fail(err, US_E_UNSUPPORTED,
                       "%lld x %lld pixels; expected %lld x %lld like the first page",
                       (long long)p->w, (long long)p->h, (long long)first->w, (long long)first->h);
    if (p->pixel != first->pixel || p->samples != first->samples)
        return us_fail(err, US_E_UNSUPPORTED,
                       "%lld samples of %s; expected %lld of %s like the first page",
                       (long long)p->samples, us_pixel_name(p->pixel), (long long)first->samples,
                       us_pixel_name(first->pixel));
    return US_OK;
}

/* A header may not claim more than its file can hold, all planes together. */
static enum us_status check_claim(const struct usi_tiff *t, struct us_err *err)
{
    uint64_t n_bytes = t->file.src->n_bytes, page_bytes = (uint64_t)usi_tiff_page_bytes(&t->first);
    uint64_t ratio = (uint64_t)t->first.codec->ratio;
    if (page_bytes / ratio > n_bytes / (uint64_t)t->n_map)
        return us_fail(err, US_E_CORRUPT,
                       "header claims %lld planes of %lld x %lld pixels (%llu bytes each, %s "
                       "compression); the file has %llu bytes",
                       (long long)t->n_map, (long long)t->first.w, (long long)t->first.h,
                       (unsigned long long)page_bytes, t->first.codec->name,
                       (unsigned long long)n_bytes);
    return US_OK;
}

static enum us_status check_pages(const struct usi_tiff *t, struct us_err *err)
{
    for (int64_t i = 0; i < t->n_map; i++) {
        struct usi_tiff_page p;
        struct usi_tiff_chunks c = {0};
        int64_t page = t->contiguous ? 0 : t->map[i];
        enum us_status s = usi_tiff_page_parse(&t->file, t->ifd[page], &p, err);
        if (s == US_OK)
            s = check_alike(&p, &t->first, err);
        if (s == US_OK)
            s = usi_tiff_chunks_load(&t->file, &p, &c, err);
        usi_tiff_chunks_release(&c);
        if (s != US_OK) {
            us_err_prefix(err, "page %lld of %lld", (long long)page + 1, (long long)t->n_ifd);
            return s;
        }
        if (t->contiguous)
            break;
    }
    return US_OK;
}

/* Drops reduced copies and masks from the list of directories. */
static enum us_status drop_reduced(struct usi_tiff *t, struct us_err *err)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < t->n_ifd; i++) {
        struct usi_tiff_page p;
        enum us_status s = usi_tiff_page_parse(&t->file, t->ifd[i], &p, err);
        if (s != US_OK) {
            us_err_prefix(err, "page %lld of %lld", (long long)i + 1, (long long)t->n_ifd);
            return s;
        }
        if (!p.reduced)
            t->ifd[kept++] = t->ifd[i];
    }
    if (kept == 0)
        return us_fail(err, US_E_UNSUPPORTED, "TIFF with reduced copies or masks only");
    t->n_ifd = kept;
    return usi_tiff_page_parse(&t->file, t->ifd[0], &t->first, err);
}

/* A plain TIFF says nothing about its axes: its pages are frames, its samples channels. Its
 * resolution counts in centimetres only: inches are printing defaults (72 dpi) far too often. */
static enum us_status read_plain(struct usi_tiff *t, struct us_image_info *info, struct us_err *err)
{
    const struct usi_tiff_page *p = &t->first;
    struct usi_axes a = {.t = t->n_ifd, .z = 1, .c = 1};
    if (p->stk.count > 1)
        return us_fail(err, US_E_UNSUPPORTED,
                       "MetaMorph STK stack of %llu planes; expected TIFF "
                       "pages; save it as OME-TIFF",
                       (unsigned long long)p->stk.count);
    US_TRY(usi_tiff_map_new(t, &a, "T", err));
    info->container = US_CONTAINER_TIFF;
    info->t = t->n_ifd;
    info->z = 1;
    info->c = p->samples;
    info->axes_stated = p->samples > 1;
    if (p->resolution_unit == 3 && p->x_res > 0.0 && p->y_res > 0.0) {
        info->size_x = 1e4 / p->x_res;
        info->size_y = 1e4 / p->y_res;
        usi_unit_copy(info->unit_x, sizeof(info->unit_x), "um");
        usi_unit_copy(info->unit_y, sizeof(info->unit_y), "um");
    }
    return US_OK;
}

static enum us_status read_meaning(struct usi_tiff *t, struct us_image_info *info,
                                   struct us_err *err)
{
    char *text = NULL;
    bool taken = false;
    enum us_status s = usi_tiff_text(&t->file, &t->first.description, &text, err);
    if (s != US_OK)
        return s;
    s = usi_ome_read(text, t, info, &taken, err);
    if (s == US_OK && !taken)
        s = drop_reduced(t, err);
    if (s == US_OK && !taken)
        s = usi_imagej_read(text, t, info, &taken, err);
    if (s == US_OK && !taken)
        s = usi_shaped_read(text, t, info, &taken, err);
    if (s == US_OK && !taken)
        s = read_plain(t, info, err);
    free(text);
    return s;
}

static enum us_status tiff_open(struct us_image_reader *r, struct us_err *err)
{
    struct usi_tiff *t = calloc(1, sizeof(*t));
    struct us_image_info *info = &r->info;
    if (t == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a TIFF reader");
    r->state = t;
    US_TRY(usi_tiff_open_file(&t->file, &r->src, err));
    US_TRY(usi_tiff_chain(&t->file, &t->ifd, &t->n_ifd, err));
    enum us_status s = usi_tiff_page_parse(&t->file, t->ifd[0], &t->first, err);
    if (s != US_OK) {
        us_err_prefix(err, "page 1 of %lld", (long long)t->n_ifd);
        return s;
    }
    if (t->first.reduced)
        US_TRY(drop_reduced(t, err));
    US_TRY(read_meaning(t, info, err));
    info->w = t->first.w;
    info->h = t->first.h;
    info->pixel = t->first.pixel;
    US_TRY(usi_info_check(info, err));
    US_TRY(check_claim(t, err));
    return check_pages(t, err);
}

static enum us_status tiff_read_plane(struct us_image_reader *r, int64_t t, int64_t z, int64_t c,
                                      float *out, struct us_err *err)
{
    const struct usi_tiff *f = r->state;
    int64_t n_c = r->info.c / f->first.samples;
    int64_t index = f->map[(t * r->info.z + z) * n_c + c / f->first.samples];
    int64_t page = f->contiguous ? 0 : index;
    uint64_t skip = f->contiguous ? (uint64_t)(index * usi_tiff_page_bytes(&f->first)) : 0;
    struct usi_tiff_page p;

    enum us_status s = usi_tiff_page_parse(&f->file, f->ifd[page], &p, err);
    if (s == US_OK)
        s = check_alike(&p, &f->first, err);
    if (s == US_OK)
        s = usi_tiff_decode(&f->file, &p, c % f->first.samples, skip, out, err);
    if (s != US_OK)
        us_err_prefix(err, "page %lld of %lld", (long long)index + 1,
                      (long long)(f->contiguous ? f->n_map : f->n_ifd));
    return s;
}

static void tiff_release(void *state)
{
    struct usi_tiff *t = state;
    if (t == NULL)
        return;
    free(t->ifd);
    free(t->map);
    free(t);
}

const struct usi_format usi_format_tiff = {
    .open = tiff_open,
    .read_plane = tiff_read_plane,
    .release = tiff_release,
};
