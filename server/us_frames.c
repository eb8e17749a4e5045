/*
 * Folders and stacks of training images; see us_frames.h. All that the files say is read and
 * compared at the beginning, so that a run of days does not end at its last frame. Open files are
 * kept in a small pool; two threads on one file get two readers, so nobody waits for a decoder.
 */
#include "us_frames.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "us_frames_splits.h"
#include "us_image.h"

#define POOL_READERS 8
#define NUMBER_BYTES 24

/* What one file holds; frames are numbered within it by (t, z). */
struct file {
    char *name; /* within the folder; of a stack: its path */
    int64_t n_frames, z, c, h, w;
    bool pages; /* no axes stated: its pages are channels */
};

struct pooled {
    struct us_image_reader *reader; /* NULL: an empty place */
    int64_t file;
    uint64_t used;
};

struct us_frames {
    char *path;
    bool stack;
    struct file *files;
    int64_t n_files;
    char (*number)[NUMBER_BYTES]; /* of a stack: the frames' names */
    int32_t pick[US_MAX_TARGETS + 1];
    char channel_name[US_MAX_TARGETS][US_MAX_NAME];
    char first_name[US_MAX_TARGETS * 4][US_MAX_NAME]; /* of the first file's channels */
    double pixel_size;
    struct us_frame_source source;
    struct us_frame_lists lists;
    pthread_mutex_t lock; /* of pool and clock */
    struct pooled pool[POOL_READERS];
    uint64_t clock;
};

/* ---- files --------------------------------------------------------------------------------- */

static bool is_image(const struct dirent *e)
{
    static const char *const ends[] = {".tif", ".tiff", ".npy"};
    size_t n = strlen(e->d_name);
    for (size_t i = 0; i < US_COUNT(ends) && e->d_name[0] != '.'; i++) {
        size_t k = strlen(ends[i]);
        if (n > k && strcasecmp(e->d_name + n - k, ends[i]) == 0)
            return true;
    }
    return false;
}

static int by_name(const void *a, const void *b)
{
    const struct file *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* The path of a file; caller frees. NULL: no memory. */
static char *file_path(const struct us_frames *f, int64_t i)
{
    char *p = NULL;
    if (f->stack)
        return strdup(f->path);
    return asprintf(&p, "%s/%s", f->path, f->files[i].name) < 0 ? NULL : p;
}

static enum us_status out_of_memory(const struct us_frames *f, struct us_err *err)
{
    return us_fail(err, US_E_NOMEM, "%s: out of memory", f->path);
}

static enum us_status add_file(struct us_frames *f, const char *name, struct us_err *err)
{
    if (f->n_files == US_MAX_PLANES)
        return us_fail(err, US_E_TOO_LARGE, "%s: more than %lld images", f->path, US_MAX_PLANES);
    if ((f->n_files & (f->n_files - 1)) == 0) {
        size_t cap = f->n_files == 0 ? 1 : 2 * (size_t)f->n_files;
        struct file *more = reallocarray(f->files, cap, sizeof(*more));
        if (more == NULL)
            return out_of_memory(f, err);
        f->files = more;
    }
    char *copy = strdup(name);
    if (copy == NULL)
        return out_of_memory(f, err);
    f->files[f->n_files++] = (struct file){.name = copy};
    return US_OK;
}

/* A folder's images, sorted. */
static enum us_status list_folder(struct us_frames *f, struct us_err *err)
{
    DIR *dir = opendir(f->path);
    if (dir == NULL)
        return us_fail(err, errno == ENOENT ? US_E_NOT_FOUND : US_E_IO, "%s: %s", f->path,
                       strerror(errno));
    enum us_status s = US_OK;
    errno = 0;
    for (struct dirent *e; s == US_OK && (e = readdir(dir)) != NULL; errno = 0) {
        if (!is_image(e))
            continue;
        struct stat st;
        if (fstatat(dirfd(dir), e->d_name, &st, 0) == 0 && !S_ISREG(st.st_mode))
            continue;
        s = add_file(f, e->d_name, err);
    }
    if (s == US_OK && errno != 0)
        s = us_fail(err, US_E_IO, "%s: %s", f->path, strerror(errno));
    (void)closedir(dir);
    if (s == US_OK && f->n_files == 0)
        s = us_fail(err, US_E_NOT_FOUND,
                    "%s: no images; expected .tif, .tiff or .npy files, one frame each", f->path);
    if (s == US_OK)
        qsort(f->files, (size_t)f->n_files, sizeof(*f->files), by_name);
    return s;
}

/* How the planes of a file are frames and channels. */
static enum us_status layout(const struct us_frames *f, const char *path,
                             const struct us_image_info *v, struct file *ret, struct us_err *err)
{
    int64_t n = v->t * v->z * v->c;
    *ret = (struct file){ret->name, v->t * v->z, v->z, v->c, v->h, v->w, false};
    if (!v->axes_stated && v->c == 1 && !f->stack) {
        ret->pages = true;
        ret->n_frames = ret->z = 1;
        ret->c = n;
        return US_OK;
    }
    if (!v->axes_stated && v->c == 1)
        return us_fail(err, US_E_ARG,
                       "%s: its %" PRId64 " pages state no axes; a stack must say which pages are "
                       "frames and which channels (OME-TIFF, ImageJ, or NPY [N, C, H, W]), or give "
                       "a folder with one file per frame",
                       path, n);
    if (!f->stack && ret->n_frames != 1)
        return us_fail(err, US_E_ARG,
                       "%s: T %" PRId64 ", Z %" PRId64 "; expected one frame per file of a folder "
                       "(a stack is given by its own path)",
                       path, v->t, v->z);
    return US_OK;
}

static double micrometres(const struct us_image_info *v)
{
    static const struct {
        const char *unit;
        double um;
    } units[] = {{"", 1.0},       {"um", 1.0},      {"\xc2\xb5m", 1.0}, {"\xce\xbcm", 1.0},
                 {"micron", 1.0}, {"microns", 1.0}, {"nm", 1e-3},       {"mm", 1e3}};
    for (size_t i = 0; i < US_COUNT(units); i++) {
        if (strcmp(v->unit_x, units[i].unit) == 0)
            return v->size_x * units[i].um;
    }
    return 0.0;
}

static enum us_status describe_file(struct us_frames *f, int64_t i, struct us_err *err)
{
    char *path = file_path(f, i);
    if (path == NULL)
        return out_of_memory(f, err);
    struct us_image_reader *r = NULL;
    enum us_status s = us_image_open(path, &r, err);
    if (s == US_OK) {
        const struct us_image_info *v = us_image_info(r);
        s = layout(f, path, v, &f->files[i], err);
        if (i == 0) {
            f->pixel_size = micrometres(v);
            memcpy(f->first_name, v->channel_name, sizeof(f->first_name));
        }
        us_image_close(r);
    }
    if (s == US_OK && f->files[i].c != f->files[0].c)
        s = us_fail(err, US_E_ARG, "%s: %" PRId64 " channels; expected %" PRId64 " as in %s", path,
                    f->files[i].c, f->files[0].c, f->files[0].name);
    free(path);
    return s;
}

/* ---- channels ------------------------------------------------------------------------------ */

static enum us_status find_channel(const struct us_frames *f, const struct us_channel_choice *k,
                                   int32_t *ret, struct us_err *err)
{
    int64_t n = f->files[0].c;
    if (k->name[0] == '\0') {
        if (k->index < 0 || k->index >= n)
            return us_fail(err, US_E_ARG,
                           "%s: channel %" PRId64 " is asked for; it has %" PRId64
                           ", counted from 0",
                           f->path, k->index, n);
        *ret = (int32_t)k->index;
        return US_OK;
    }
    char names[160] = "";
    size_t used = 0;
    for (int32_t c = 0; c < n && c < (int32_t)US_COUNT(f->first_name); c++) {
        if (strcmp(f->first_name[c], k->name) == 0) {
            *ret = c;
            return US_OK;
        }
        if (f->first_name[c][0] != '\0' && used < sizeof(names))
            used += (size_t)snprintf(names + used, sizeof(names) - used, "%s%s",
                                     used > 0 ? ", " : "", f->first_name[c]);
    }
    return us_fail(err, US_E_ARG, "%s: no channel is called '%.100s'; %s%s", f->path, k->name,
                   used > 0 ? "expected one of " : "its files name none, give numbers", names);
}

/* Without a choice: all but the input. */
static enum us_status choose_all(struct us_frames *f, bool has_input, int32_t input,
                                 struct us_err *err)
{
    int64_t n = f->files[0].c - (has_input ? 1 : 0);
    if (n > US_MAX_TARGETS)
        return us_fail(err, US_E_ARG, "%s: %" PRId64 " channels; choose at most %d", f->path, n,
                       US_MAX_TARGETS);
    int32_t k = 0;
    for (int32_t c = 0; c < f->files[0].c; c++) {
        if (!has_input || c != input)
            f->pick[k++] = c;
    }
    f->source.n_channels = k;
    return US_OK;
}

static enum us_status choose_channels(struct us_frames *f, const struct us_frames_config *cfg,
                                      struct us_err *err)
{
    int32_t input = -1;
    if (cfg->has_input)
        US_TRY(find_channel(f, &cfg->input, &input, err));
    if (cfg->n_channels == 0) {
        US_TRY(choose_all(f, cfg->has_input, input, err));
    } else {
        US_ASSERT(cfg->n_channels > 0 && cfg->n_channels <= US_MAX_TARGETS);
        f->source.n_channels = cfg->n_channels;
        for (int32_t k = 0; k < cfg->n_channels; k++) {
            US_TRY(find_channel(f, &cfg->channel[k], &f->pick[k], err));
            for (int32_t j = 0; j < k; j++) {
                if (f->pick[j] == f->pick[k])
                    return us_fail(err, US_E_ARG, "%s: channel %d is chosen twice", f->path,
                                   (int)f->pick[k]);
            }
            if (f->pick[k] == input)
                return us_fail(err, US_E_ARG, "%s: channel %d is both input and target", f->path,
                               (int)input);
        }
    }
    if (f->source.n_channels < (cfg->has_input ? 1 : 2))
        return us_fail(err, US_E_ARG,
                       "%s: %d channel%s to split into; expected at least two, or one beside an "
                       "input channel",
                       f->path, (int)f->source.n_channels, f->source.n_channels == 1 ? "" : "s");
    f->source.has_input = cfg->has_input;
    f->pick[f->source.n_channels] = input;
    for (int32_t k = 0; k < f->source.n_channels; k++) {
        if (f->pick[k] < (int32_t)US_COUNT(f->first_name))
            memcpy(f->channel_name[k], f->first_name[f->pick[k]], US_MAX_NAME);
    }
    return US_OK;
}

/* ---- the source ---------------------------------------------------------------------------- */

static int64_t file_of(const struct us_frames *f, int64_t frame)
{
    return f->stack ? 0 : frame;
}

static enum us_status source_shape(void *arg, int64_t frame, int64_t *h, int64_t *w)
{
    const struct us_frames *f = arg;
    const struct file *k = &f->files[file_of(f, frame)];
    *h = k->h;
    *w = k->w;
    return US_OK;
}

static const char *source_name(void *arg, int64_t frame)
{
    const struct us_frames *f = arg;
    return f->stack ? f->number[frame] : f->files[frame].name;
}

/* Takes a reader of the file out of the pool, or opens one. */
static enum us_status take_reader(struct us_frames *f, int64_t file, struct us_image_reader **ret,
                                  struct us_err *err)
{
    *ret = NULL;
    pthread_mutex_lock(&f->lock);
    for (int i = 0; i < POOL_READERS && *ret == NULL; i++) {
        if (f->pool[i].reader != NULL && f->pool[i].file == file) {
            *ret = f->pool[i].reader;
            f->pool[i].reader = NULL;
        }
    }
    pthread_mutex_unlock(&f->lock);
    if (*ret != NULL)
        return US_OK;
    char *path = file_path(f, file);
    if (path == NULL)
        return out_of_memory(f, err);
    struct us_image_reader *r = NULL;
    enum us_status s = us_image_open(path, &r, err);
    if (s == US_OK) {
        struct file now = {0};
        const struct file *then = &f->files[file];
        s = layout(f, path, us_image_info(r), &now, err);
        if (s == US_OK && (now.n_frames != then->n_frames || now.z != then->z || now.c != then->c ||
                           now.h != then->h || now.w != then->w))
            s = us_fail(err, US_E_IO, "%s: changed since training began", path);
        if (s != US_OK)
            us_image_close(r);
    }
    free(path);
    if (s == US_OK)
        *ret = r;
    return s;
}

/* Puts it back, where nothing is or instead of the one unused for longest. */
static void give_reader(struct us_frames *f, int64_t file, struct us_image_reader *r)
{
    pthread_mutex_lock(&f->lock);
    struct pooled *place = &f->pool[0];
    for (int i = 1; i < POOL_READERS && place->reader != NULL; i++) {
        if (f->pool[i].reader == NULL || f->pool[i].used < place->used)
            place = &f->pool[i];
    }
    struct us_image_reader *old = place->reader;
    *place = (struct pooled){r, file, ++f->clock};
    pthread_mutex_unlock(&f->lock);
    us_image_close(old);
}

static enum us_status source_read(void *arg, int64_t frame, int32_t plane, float *out,
                                  struct us_err *err)
{
    struct us_frames *f = arg;
    int64_t file = file_of(f, frame), i = f->stack ? frame : 0;
    const struct file *k = &f->files[file];
    int32_t c = f->pick[plane];
    struct us_image_reader *r = NULL;
    US_TRY(take_reader(f, file, &r, err));
    /* Pages taken as channels lie along t or z, whatever the reader called them. */
    const struct us_image_info *v = us_image_info(r);
    enum us_status s = k->pages ? us_image_read_plane(r, c / v->z, c % v->z, 0, out, err)
                                : us_image_read_plane(r, i / k->z, i % k->z, c, out, err);
    if (s != US_OK)
        us_err_prefix(err, "frame %s, channel %d", source_name(f, frame), (int)c);
    give_reader(f, file, r);
    return s;
}

/* ---- life ---------------------------------------------------------------------------------- */

static enum us_status number_frames(struct us_frames *f, struct us_err *err)
{
    int64_t n = f->files[0].n_frames;
    f->number = calloc((size_t)n, sizeof(*f->number));
    if (f->number == NULL)
        return out_of_memory(f, err);
    for (int64_t i = 0; i < n; i++)
        (void)snprintf(f->number[i], NUMBER_BYTES, "%" PRId64, i);
    f->source.n_frames = n;
    return US_OK;
}

static enum us_status read_lists(struct us_frames *f, const char *subset, struct us_err *err)
{
    char *path = NULL;
    if (asprintf(&path, f->stack ? "%s.splits.json" : "%s/splits.json", f->path) < 0)
        return out_of_memory(f, err);
    enum us_status s = us_frame_lists_read(path, &f->source, f->stack, subset, &f->lists, err);
    free(path);
    return s;
}

static enum us_status open_all(struct us_frames *f, const struct us_frames_config *cfg,
                               struct us_err *err)
{
    struct stat st;
    if (stat(f->path, &st) != 0)
        return us_fail(err, errno == ENOENT ? US_E_NOT_FOUND : US_E_IO, "%s: %s", f->path,
                       strerror(errno));
    f->stack = !S_ISDIR(st.st_mode);
    if (f->stack)
        US_TRY(add_file(f, f->path, err));
    else
        US_TRY(list_folder(f, err));
    for (int64_t i = 0; i < f->n_files; i++)
        US_TRY(describe_file(f, i, err));
    f->source = (struct us_frame_source){.n_frames = f->n_files,
                                         .shape = source_shape,
                                         .read = source_read,
                                         .name = source_name,
                                         .arg = f};
    if (f->stack)
        US_TRY(number_frames(f, err));
    US_TRY(choose_channels(f, cfg, err));
    return read_lists(f, cfg->subset, err);
}

enum us_status us_frames_open(const char *path, const struct us_frames_config *cfg,
                              struct us_frames **ret, struct us_err *err)
{
    struct us_frames *f = calloc(1, sizeof(*f));
    if (f == NULL)
        return us_fail(err, US_E_NOMEM, "%s: out of memory", path);
    (void)pthread_mutex_init(&f->lock, NULL);
    f->path = strdup(path);
    enum us_status s = f->path != NULL ? open_all(f, cfg, err)
                                       : us_fail(err, US_E_NOMEM, "%s: out of memory", path);
    if (s != US_OK) {
        us_frames_free(f);
        return s;
    }
    *ret = f;
    return US_OK;
}

void us_frames_free(struct us_frames *f)
{
    if (f == NULL)
        return;
    for (int i = 0; i < POOL_READERS; i++)
        us_image_close(f->pool[i].reader);
    for (int64_t i = 0; i < f->n_files; i++)
        free(f->files[i].name);
    us_frame_lists_release(&f->lists);
    (void)pthread_mutex_destroy(&f->lock);
    free(f->files);
    free(f->number);
    free(f->path);
    free(f);
}

const struct us_frame_source *us_frames_source(const struct us_frames *f)
{
    return &f->source;
}

const char *us_frames_channel_name(const struct us_frames *f, int32_t c)
{
    return f->channel_name[c];
}

double us_frames_pixel_size(const struct us_frames *f)
{
    return f->pixel_size;
}

bool us_frames_has_splits(const struct us_frames *f)
{
    return f->lists.found;
}

const int64_t *us_frames_split(const struct us_frames *f, enum us_split s, int64_t *ret_n)
{
    *ret_n = f->lists.n[s];
    return f->lists.frames[s];
}
