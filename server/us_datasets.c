/* Data sets on disk; see us_datasets.h. */
#include "us_datasets.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

/* Names of clients never begin with a dot: such a folder is one being deleted. */
#define DELETED_PREFIX ".deleted-"

struct user {
    char name[US_MAX_DATASET_NAME + 1];
    int64_t n;
    struct user *next;
};

struct us_datasets {
    char dir[PATH_MAX / 2];
    pthread_mutex_t lock; /* the folders change under it, so that a hold is a promise */
    struct user *users;
    us_datasets_users_fn users_fn;
    void *users_arg;
    uint64_t serial;
};

static void path_of(const struct us_datasets *ds, const char *name, const char *file, char *path)
{
    int n = snprintf(path, PATH_MAX, "%s/%s%s%s", ds->dir, name, file != NULL ? "/" : "",
                     file != NULL ? file : "");
    US_ASSERT(n > 0 && n < PATH_MAX);
}

static bool is_dir(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Removes a folder of plain files. */
static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    if (d == NULL)
        return;
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            (void)unlinkat(dirfd(d), e->d_name, 0);
    }
    (void)closedir(d);
    (void)rmdir(path);
}

static enum us_status sweep(struct us_datasets *ds, struct us_err *err)
{
    char path[PATH_MAX];
    DIR *d = opendir(ds->dir);
    if (d == NULL)
        return us_fail(err, US_E_IO, "%s: %s", ds->dir, strerror(errno));
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        if (strncmp(e->d_name, DELETED_PREFIX, strlen(DELETED_PREFIX)) != 0)
            continue;
        path_of(ds, e->d_name, NULL, path);
        remove_tree(path);
    }
    (void)closedir(d);
    return US_OK;
}

enum us_status us_datasets_new(const char *dir, struct us_datasets **ret, struct us_err *err)
{
    enum us_status st;
    struct us_datasets *ds = calloc(1, sizeof(*ds));
    if (ds == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the data sets");
    (void)pthread_mutex_init(&ds->lock, NULL);
    if (snprintf(ds->dir, sizeof(ds->dir), "%s", dir) >= (int)sizeof(ds->dir))
        st = us_fail(err, US_E_TOO_LARGE, "the data folder's path is too long");
    else if (mkdir(dir, 0755) != 0 && errno != EEXIST)
        st = us_fail(err, us_status_of_errno(errno), "%s: %s", dir, strerror(errno));
    else
        st = sweep(ds, err);
    if (st != US_OK) {
        us_datasets_free(ds);
        return st;
    }
    *ret = ds;
    return US_OK;
}

void us_datasets_free(struct us_datasets *ds)
{
    if (ds == NULL)
        return;
    for (struct user *u = ds->users, *next; u != NULL; u = next) {
        next = u->next;
        free(u);
    }
    (void)pthread_mutex_destroy(&ds->lock);
    free(ds);
}

/* ---- who uses what ------------------------------------------------------------------------- */

static struct user *find_user(struct us_datasets *ds, const char *name)
{
    struct user *u = ds->users;
    while (u != NULL && strcmp(u->name, name) != 0)
        u = u->next;
    return u;
}

void us_datasets_set_users(struct us_datasets *ds, us_datasets_users_fn fn, void *arg)
{
    (void)pthread_mutex_lock(&ds->lock);
    ds->users_fn = fn;
    ds->users_arg = arg;
    (void)pthread_mutex_unlock(&ds->lock);
}

static enum us_status check_free(struct us_datasets *ds, const char *name, struct us_err *err)
{
    int64_t n = find_user(ds, name) != NULL;
    if (n == 0 && ds->users_fn != NULL)
        US_TRY(ds->users_fn(ds->users_arg, name, &n, err));
    if (n == 0)
        return US_OK;
    return us_fail(err, US_E_EXISTS, "the data set '%s' is in use by a job", name);
}

static enum us_status check_there(const char *path, const char *name, struct us_err *err)
{
    return is_dir(path) ? US_OK : us_fail(err, US_E_NOT_FOUND, "there is no data set '%s'", name);
}

enum us_status us_datasets_hold(struct us_datasets *ds, const char *name, char *path,
                                struct us_err *err)
{
    char folder[PATH_MAX];
    path_of(ds, name, NULL, folder);
    (void)pthread_mutex_lock(&ds->lock);
    enum us_status st = check_there(folder, name, err);
    struct user *u = find_user(ds, name);
    if (st == US_OK && u == NULL) {
        u = calloc(1, sizeof(*u));
        if (u == NULL) {
            st = us_fail(err, US_E_NOMEM, "no memory for the data set");
        } else {
            (void)snprintf(u->name, sizeof(u->name), "%s", name);
            u->next = ds->users;
            ds->users = u;
        }
    }
    if (st == US_OK)
        u->n++;
    (void)pthread_mutex_unlock(&ds->lock);
    if (path != NULL)
        memcpy(path, folder, sizeof(folder));
    return st;
}

void us_datasets_release(struct us_datasets *ds, const char *name)
{
    (void)pthread_mutex_lock(&ds->lock);
    struct user **at = &ds->users;
    while (*at != NULL && strcmp((*at)->name, name) != 0)
        at = &(*at)->next;
    struct user *u = *at;
    US_ASSERT(u != NULL);
    if (--u->n == 0) {
        *at = u->next;
        free(u);
    }
    (void)pthread_mutex_unlock(&ds->lock);
}

bool us_datasets_in_use(struct us_datasets *ds, const char *name)
{
    (void)pthread_mutex_lock(&ds->lock);
    bool used = check_free(ds, name, NULL) != US_OK;
    (void)pthread_mutex_unlock(&ds->lock);
    return used;
}

/* ---- listing ------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct us_dataset_name *)a)->name,
                  ((const struct us_dataset_name *)b)->name);
}

/* The entries of a folder with legal names and the wanted type, sorted. */
static enum us_status entries(const char *path, bool folders, struct us_dataset_name **ret,
                              int64_t *ret_n, struct us_err *err)
{
    struct us_dataset_name *list = NULL;
    int64_t n = 0, room = 0;
    enum us_status st = US_OK;
    DIR *d = opendir(path);
    if (d == NULL)
        return us_fail(err, us_status_of_errno(errno), "the data folder: %s", strerror(errno));
    for (struct dirent *e = readdir(d); e != NULL && st == US_OK; e = readdir(d)) {
        struct stat s;
        if (!us_model_name_ok(e->d_name) || fstatat(dirfd(d), e->d_name, &s, 0) != 0 ||
            !(folders ? S_ISDIR(s.st_mode) : S_ISREG(s.st_mode)))
            continue;
        if (n == room) {
            room = 2 * room + 64;
            struct us_dataset_name *more = room <= US_MAX_DATASET_FILES
                                               ? reallocarray(list, (size_t)room, sizeof(*more))
                                               : NULL;
            if (more == NULL) {
                st = us_fail(err, US_E_NOMEM, "no memory to list so many files");
                break;
            }
            list = more;
        }
        memcpy(list[n++].name, e->d_name, strlen(e->d_name) + 1); /* us_model_name_ok: it fits */
    }
    (void)closedir(d);
    if (st != US_OK) {
        free(list);
        return st;
    }
    if (n > 0)
        qsort(list, (size_t)n, sizeof(*list), by_name);
    *ret = list;
    *ret_n = n;
    return US_OK;
}

enum us_status us_datasets_list(struct us_datasets *ds, struct us_dataset_name **ret, int64_t *n,
                                struct us_err *err)
{
    return entries(ds->dir, true, ret, n, err);
}

static bool ends_with(const char *name, const char *ending)
{
    size_t n = strlen(name), k = strlen(ending);
    return n > k && strcasecmp(name + n - k, ending) == 0;
}

/* splits.json, or STACK.splits.json beside a stack. */
static bool is_splits_name(const char *file)
{
    return strcmp(file, US_SPLITS_NAME) == 0 || ends_with(file, "." US_SPLITS_NAME);
}

static void describe(const char *path, struct us_dataset_file *f)
{
    struct us_image_reader *r = NULL;
    struct us_err err = {0};
    struct stat st;
    f->bytes = stat(path, &st) == 0 ? st.st_size : 0;
    f->is_splits = is_splits_name(f->name);
    if (f->is_splits)
        return;
    if (us_image_open(path, &r, &err) != US_OK) {
        us_spool_hide_path(&err, path, f->name);
        memcpy(f->error, err.msg, sizeof(f->error));
        return;
    }
    f->info = *us_image_info(r);
    us_image_close(r);
}

enum us_status us_datasets_files(struct us_datasets *ds, const char *name,
                                 struct us_dataset_file **ret, int64_t *n, struct us_err *err)
{
    char path[PATH_MAX];
    struct us_dataset_name *names = NULL;
    path_of(ds, name, NULL, path);
    US_TRY(check_there(path, name, err));
    US_TRY(entries(path, false, &names, n, err));
    struct us_dataset_file *list = calloc((size_t)*n + 1, sizeof(*list));
    for (int64_t i = 0; i < *n && list != NULL; i++) {
        memcpy(list[i].name, names[i].name, sizeof(list[i].name));
        path_of(ds, name, names[i].name, path);
        describe(path, &list[i]);
    }
    free(names);
    if (list == NULL)
        return us_fail(err, US_E_NOMEM, "no memory to list the data set");
    *ret = list;
    return US_OK;
}

enum us_status us_datasets_bytes(struct us_datasets *ds, const char *name, int64_t *ret,
                                 struct us_err *err)
{
    char path[PATH_MAX];
    struct stat st;
    int64_t sum = 0;
    path_of(ds, name, NULL, path);
    US_TRY(check_there(path, name, err));
    DIR *d = opendir(path);
    if (d == NULL)
        return us_fail(err, us_status_of_errno(errno), "data set '%s': %s", name, strerror(errno));
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
            sum += st.st_size;
    }
    (void)closedir(d);
    *ret = sum;
    return US_OK;
}

/* ---- changing ------------------------------------------------------------------------------ */

/* That it is JSON at all is checked here, before it is stored; that it fits the images is checked
 * when a job begins (us_frames_splits.h), since they may come after it. */
static enum us_status verify_splits(const struct us_spool_file *f, struct us_err *err)
{
    json_error_t at;
    if (f->bytes > US_MAX_SPLITS_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "%s has %" PRId64 " bytes; allowed: up to %lld",
                       US_SPLITS_NAME, f->bytes, US_MAX_SPLITS_BYTES);
    json_t *j = json_load_file(f->path, JSON_REJECT_DUPLICATES, &at);
    bool is_object = json_is_object(j);
    json_decref(j);
    if (j == NULL)
        return us_fail(err, US_E_FORMAT, "%s: line %d: %s", US_SPLITS_NAME, at.line, at.text);
    return is_object ? US_OK
                     : us_fail(err, US_E_FORMAT,
                               "%s: found no object; expected {\"train\":[..],..}", US_SPLITS_NAME);
}

static enum us_status verify(const char *file, const struct us_spool_file *f, struct us_err *err)
{
    struct us_image_reader *r = NULL;
    if (is_splits_name(file))
        return verify_splits(f, err);
    if (!ends_with(file, ".tif") && !ends_with(file, ".tiff") && !ends_with(file, ".npy"))
        return us_fail(err, US_E_ARG,
                       "file name '%s'; expected one ending in .tif, .tiff or .npy, or %s", file,
                       US_SPLITS_NAME);
    enum us_status st = us_image_open(f->path, &r, err);
    us_spool_hide_path(err, f->path, file);
    us_image_close(r);
    return st;
}

static enum us_status publish(struct us_datasets *ds, const char *name, const char *path,
                              struct us_spool_file *spool, struct us_err *err)
{
    char folder[PATH_MAX];
    path_of(ds, name, NULL, folder);
    bool first = mkdir(folder, 0755) == 0;
    if (!first && errno != EEXIST)
        return us_fail(err, us_status_of_errno(errno), "data set '%s': %s", name, strerror(errno));
    if (first)
        US_TRY(us_fsync_dir(ds->dir, err));
    return us_spool_publish(spool, path, err);
}

enum us_status us_datasets_put(struct us_datasets *ds, const char *name, const char *file,
                               struct us_spool_file *spool, bool *created, struct us_err *err)
{
    char path[PATH_MAX];
    path_of(ds, name, file, path);
    US_TRY(verify(file, spool, err));
    (void)pthread_mutex_lock(&ds->lock);
    enum us_status st = check_free(ds, name, err);
    if (st == US_OK) {
        *created = access(path, F_OK) != 0;
        st = publish(ds, name, path, spool, err);
    }
    (void)pthread_mutex_unlock(&ds->lock);
    us_spool_hide_path(err, path, file);
    return st;
}

/* The folder leaves its name at once and whole; its files go afterwards, without the lock. */
static enum us_status take_away(struct us_datasets *ds, const char *path, char *away,
                                struct us_err *err)
{
    char name[64];
    (void)snprintf(name, sizeof(name), DELETED_PREFIX "%" PRIu64, ds->serial++);
    path_of(ds, name, NULL, away);
    if (rename(path, away) != 0)
        return us_fail(err, us_status_of_errno(errno), "the data set cannot be removed: %s",
                       strerror(errno));
    return us_fsync_dir(ds->dir, err);
}

static enum us_status delete_file(struct us_datasets *ds, const char *name, const char *file,
                                  struct us_err *err)
{
    char path[PATH_MAX];
    path_of(ds, name, file, path);
    if (unlink(path) != 0)
        return errno == ENOENT
                   ? us_fail(err, US_E_NOT_FOUND, "the data set '%s' has no file '%s'", name, file)
                   : us_fail(err, US_E_IO, "%s: %s", file, strerror(errno));
    path_of(ds, name, NULL, path);
    return us_fsync_dir(path, err);
}

enum us_status us_datasets_delete(struct us_datasets *ds, const char *name, const char *file,
                                  struct us_err *err)
{
    char path[PATH_MAX], away[PATH_MAX] = "";
    path_of(ds, name, NULL, path);
    (void)pthread_mutex_lock(&ds->lock);
    enum us_status st = check_there(path, name, err);
    if (st == US_OK)
        st = check_free(ds, name, err);
    if (st == US_OK)
        st = file != NULL ? delete_file(ds, name, file, err) : take_away(ds, path, away, err);
    (void)pthread_mutex_unlock(&ds->lock);
    if (away[0] != '\0')
        remove_tree(away);
    return st;
}
