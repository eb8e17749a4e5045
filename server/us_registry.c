/* The model registry; see us_registry.h. */
#include "us_registry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUFFIX ".safetensors"

struct us_model_ref {
    atomic_int n;
    struct us_model *model;
};

/* Tells two files under one name apart without reading them. */
struct file_id {
    dev_t dev;
    ino_t ino;
    off_t bytes;
    struct timespec changed;
};

struct entry {
    struct us_model_info info; /* name and file_bytes always, the rest once read */
    struct file_id id;
    struct us_model_ref *loaded; /* our own reference, or NULL */
    uint64_t last_used;
    uint64_t loading; /* ticket of the thread reading it, 0 = nobody */
    bool seen;        /* in the running scan */
    struct entry *next;
};

struct us_registry {
    char dir[PATH_MAX / 2];
    int64_t max_loaded;
    pthread_mutex_t publish_lock; /* outside of lock: one change of the folder at a time */
    pthread_mutex_t lock;
    pthread_cond_t loaded;
    struct entry *first; /* sorted by name */
    uint64_t clock;      /* for last_used and tickets */
};

const char *us_model_state_name(enum us_model_state s)
{
    static const char *const names[] = {"unchecked", "on-disk", "loaded", "broken"};
    return (unsigned)s < US_COUNT(names) ? names[s] : "unknown";
}

void us_model_info_release(struct us_model_info *info)
{
    free(info->metadata);
    info->metadata = NULL;
}

const struct us_model *us_model_ref_get(const struct us_model_ref *ref)
{
    return ref->model;
}

struct us_model_ref *us_model_ref_share(struct us_model_ref *ref)
{
    atomic_fetch_add(&ref->n, 1);
    return ref;
}

void us_model_ref_release(struct us_model_ref *ref)
{
    if (ref == NULL || atomic_fetch_sub(&ref->n, 1) > 1)
        return;
    us_model_free(ref->model);
    free(ref);
}

static void model_path(const struct us_registry *reg, const char *name, char *path, size_t size)
{
    int n = snprintf(path, size, "%s/%s%s", reg->dir, name, SUFFIX);
    US_ASSERT(n > 0 && (size_t)n < size);
}

static struct file_id id_of(const struct stat *st)
{
    return (struct file_id){st->st_dev, st->st_ino, st->st_size, st->st_mtim};
}

static bool same_file(const struct file_id *a, const struct file_id *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->bytes == b->bytes &&
           a->changed.tv_sec == b->changed.tv_sec && a->changed.tv_nsec == b->changed.tv_nsec;
}

/* Forgets all that was read from the file. The caller releases the returned reference once it
 * does not hold the lock any more: freeing a model takes time. */
static struct us_model_ref *entry_reset(struct entry *e, const struct file_id *id)
{
    struct us_model_ref *old = e->loaded;
    us_model_info_release(&e->info);
    e->loaded = NULL;
    e->id = *id;
    e->info.state = US_MODEL_UNCHECKED;
    e->info.sha256[0] = '\0';
    e->info.error[0] = '\0';
    e->info.file_bytes = id->bytes;
    e->info.n_parameters = 0;
    return old;
}

/* The place of name in the sorted list: *at is its entry or the one behind. */
static struct entry **place(struct us_registry *reg, const char *name)
{
    struct entry **at = &reg->first;
    while (*at != NULL && strcmp((*at)->info.name, name) < 0)
        at = &(*at)->next;
    return at;
}

static struct entry *lookup(struct us_registry *reg, const char *name)
{
    struct entry *e = *place(reg, name);
    return e != NULL && strcmp(e->info.name, name) == 0 ? e : NULL;
}

static struct us_model_ref *entry_remove(struct us_registry *reg, struct entry *e)
{
    struct entry **at = place(reg, e->info.name);
    struct us_model_ref *old = e->loaded;
    *at = e->next;
    us_model_info_release(&e->info);
    free(e);
    return old;
}

static struct entry *entry_insert(struct us_registry *reg, const char *name,
                                  const struct file_id *id)
{
    struct entry *e = calloc(1, sizeof(*e));
    if (e == NULL)
        return NULL;
    (void)snprintf(e->info.name, sizeof(e->info.name), "%s", name);
    (void)entry_reset(e, id);
    struct entry **at = place(reg, name);
    e->next = *at;
    *at = e;
    return e;
}

/* Makes the entry of name agree with the folder. *ret is NULL if there is no such file or no
 * memory. *old: to be released without the lock. */
static struct entry *sync_entry(struct us_registry *reg, const char *name,
                                struct us_model_ref **old)
{
    char path[PATH_MAX];
    struct stat st;
    struct entry *e = lookup(reg, name);
    *old = NULL;
    model_path(reg, name, path, sizeof(path));
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode)) {
        if (e != NULL)
            *old = entry_remove(reg, e);
        return NULL;
    }
    struct file_id id = id_of(&st);
    if (e == NULL)
        return entry_insert(reg, name, &id);
    if (!same_file(&e->id, &id))
        *old = entry_reset(e, &id);
    return e;
}

enum us_status us_registry_new(const char *dir, int64_t max_loaded, struct us_registry **ret,
                               struct us_err *err)
{
    struct us_registry *reg = calloc(1, sizeof(*reg));
    if (reg == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the model list");
    (void)pthread_mutex_init(&reg->publish_lock, NULL);
    (void)pthread_mutex_init(&reg->lock, NULL);
    (void)pthread_cond_init(&reg->loaded, NULL);
    reg->max_loaded = max_loaded;
    enum us_status st = US_OK;
    if (snprintf(reg->dir, sizeof(reg->dir), "%s", dir) >= (int)sizeof(reg->dir))
        st = us_fail(err, US_E_TOO_LARGE, "the data folder's path is too long");
    else if (mkdir(dir, 0755) != 0 && errno != EEXIST)
        st = us_fail(err, us_status_of_errno(errno), "%s: %s", dir, strerror(errno));
    else
        st = us_registry_scan(reg, NULL, err);
    if (st != US_OK) {
        us_registry_free(reg);
        return st;
    }
    *ret = reg;
    return US_OK;
}

void us_registry_free(struct us_registry *reg)
{
    if (reg == NULL)
        return;
    while (reg->first != NULL)
        us_model_ref_release(entry_remove(reg, reg->first));
    (void)pthread_cond_destroy(&reg->loaded);
    (void)pthread_mutex_destroy(&reg->lock);
    (void)pthread_mutex_destroy(&reg->publish_lock);
    free(reg);
}

/* "NAME.safetensors" -> NAME; false for any other file. */
static bool name_of_file(const char *file, char *name, size_t size)
{
    size_t n = strlen(file), suffix = strlen(SUFFIX);
    if (n <= suffix || n - suffix >= size || strcmp(file + n - suffix, SUFFIX) != 0)
        return false;
    memcpy(name, file, n - suffix);
    name[n - suffix] = '\0';
    return us_model_name_ok(name);
}

/* Removes what the scan did not see. The references are released at once: rare, and small. */
static int64_t sweep(struct us_registry *reg)
{
    int64_t n_unchecked = 0;
    for (struct entry *e = reg->first, *next; e != NULL; e = next) {
        next = e->next;
        n_unchecked += e->seen && e->info.state == US_MODEL_UNCHECKED;
        if (!e->seen)
            us_model_ref_release(entry_remove(reg, e));
        else
            e->seen = false;
    }
    return n_unchecked;
}

enum us_status us_registry_scan(struct us_registry *reg, int64_t *n_unchecked, struct us_err *err)
{
    char name[US_MAX_MODEL_NAME + 1];
    DIR *d = opendir(reg->dir);
    if (d == NULL)
        return us_fail(err, US_E_IO, "%s: %s", reg->dir, strerror(errno));
    (void)pthread_mutex_lock(&reg->lock);
    for (struct dirent *f = readdir(d); f != NULL; f = readdir(d)) {
        struct us_model_ref *old = NULL;
        if (!name_of_file(f->d_name, name, sizeof(name)))
            continue;
        struct entry *e = sync_entry(reg, name, &old);
        if (e != NULL)
            e->seen = true;
        us_model_ref_release(old);
    }
    int64_t n = sweep(reg);
    (void)pthread_mutex_unlock(&reg->lock);
    (void)closedir(d);
    if (n_unchecked != NULL)
        *n_unchecked = n;
    return US_OK;
}

/* The idlest model that only we hold, if there are too many. */
static struct us_model_ref *evict_one(struct us_registry *reg, const struct entry *keep)
{
    struct entry *idlest = NULL;
    int64_t n = 0;
    for (struct entry *e = reg->first; e != NULL; e = e->next) {
        if (e->loaded == NULL)
            continue;
        n++;
        if (e != keep && atomic_load(&e->loaded->n) == 1 &&
            (idlest == NULL || e->last_used < idlest->last_used))
            idlest = e;
    }
    if (n <= reg->max_loaded || idlest == NULL)
        return NULL;
    struct us_model_ref *old = idlest->loaded;
    idlest->loaded = NULL;
    idlest->info.state = US_MODEL_ON_DISK;
    return old;
}

/* What was learnt from reading e's file. metadata passes over. */
static void entry_learn(struct entry *e, const struct us_model *m, char *metadata)
{
    us_model_info_release(&e->info);
    e->info.metadata = metadata;
    e->info.state = US_MODEL_ON_DISK;
    e->info.error[0] = '\0';
    e->info.complete = m->complete;
    e->info.n_parameters = us_net_n_trainable(m->net);
    (void)snprintf(e->info.sha256, sizeof(e->info.sha256), "%s", m->sha256);
}

static void entry_fail(struct entry *e, const struct us_err *err)
{
    e->info.state = US_MODEL_BROKEN;
    (void)snprintf(e->info.error, sizeof(e->info.error), "%s", err->msg);
}

/* Reads path without the lock. *ref has one reference, for the caller. */
static enum us_status read_model(const char *path, struct us_model_ref **ref, char **metadata,
                                 struct us_err *err)
{
    struct us_model_ref *r = calloc(1, sizeof(*r));
    enum us_status st = US_E_NOMEM;
    *metadata = NULL;
    if (r == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for the model");
    atomic_init(&r->n, 1);
    st = us_model_load(path, &r->model, err);
    if (st == US_OK)
        st = us_model_metadata(r->model, metadata, err);
    if (st != US_OK) {
        us_model_ref_release(r);
        return st;
    }
    *ref = r;
    return US_OK;
}

/* Reads e's file with the lock given up meanwhile. keep: leave it in the list's memory too.
 * Returns with the lock held; e may be gone by then. */
static enum us_status load_entry(struct us_registry *reg, struct entry *e, bool keep,
                                 struct us_model_ref **ret, struct us_err *err)
{
    char path[PATH_MAX], name[US_MAX_MODEL_NAME + 1];
    char *metadata = NULL;
    struct us_err why = {0};
    struct file_id id = e->id;
    uint64_t ticket = ++reg->clock;
    memcpy(name, e->info.name, sizeof(name));
    model_path(reg, name, path, sizeof(path));
    e->loading = ticket;
    (void)pthread_mutex_unlock(&reg->lock);
    enum us_status st = read_model(path, ret, &metadata, &why);
    (void)pthread_mutex_lock(&reg->lock);

    struct us_model_ref *old = NULL;
    e = lookup(reg, name);
    bool current = e != NULL && same_file(&e->id, &id);
    if (e != NULL && e->loading == ticket)
        e->loading = 0;
    if (current && st == US_OK) {
        entry_learn(e, (*ret)->model, metadata);
        metadata = NULL;
        if (keep && e->loaded == NULL)
            e->loaded = us_model_ref_share(*ret);
        e->info.state = e->loaded != NULL ? US_MODEL_LOADED : US_MODEL_ON_DISK;
        e->last_used = ++reg->clock;
        old = evict_one(reg, e);
    } else if (st != US_OK) { /* a client knows the model by its name, not by our path */
        us_spool_hide_path(&why, path, "the file");
        if (current && st != US_E_NOMEM)
            entry_fail(e, &why);
        us_err_prefix(&why, "model '%s'", name);
    }
    (void)pthread_cond_broadcast(&reg->loaded);
    free(metadata);
    us_model_ref_release(old);
    if (st != US_OK && err != NULL)
        *err = why;
    return st;
}

enum us_status us_registry_acquire(struct us_registry *reg, const char *name,
                                   struct us_model_ref **ret, struct us_err *err)
{
    enum us_status st = US_OK;
    struct us_model_ref *old = NULL;
    (void)pthread_mutex_lock(&reg->lock);
    struct entry *e = sync_entry(reg, name, &old);
    while (e != NULL && e->loaded == NULL && e->loading != 0) {
        (void)pthread_cond_wait(&reg->loaded, &reg->lock);
        e = lookup(reg, name);
    }
    if (e == NULL) {
        st = us_fail(err, US_E_NOT_FOUND, "there is no model '%s'", name);
    } else if (e->loaded != NULL) {
        *ret = us_model_ref_share(e->loaded);
        e->last_used = ++reg->clock;
    } else if (e->info.state == US_MODEL_BROKEN) { /* known, and the file has not changed */
        st = us_fail(err, US_E_CORRUPT, "model '%s': %.250s", name, e->info.error);
    } else {
        st = load_entry(reg, e, true, ret, err);
    }
    (void)pthread_mutex_unlock(&reg->lock);
    us_model_ref_release(old);
    return st;
}

void us_registry_check(struct us_registry *reg, const atomic_bool *cancel)
{
    (void)pthread_mutex_lock(&reg->lock);
    for (struct entry *e = reg->first; e != NULL;) {
        if (atomic_load(cancel))
            break;
        if (e->info.state != US_MODEL_UNCHECKED || e->loading != 0) {
            e = e->next;
            continue;
        }
        struct us_model_ref *ref = NULL;
        if (load_entry(reg, e, false, &ref, NULL) == US_E_NOMEM)
            break; /* stays unchecked: not the file's fault */
        us_model_ref_release(ref);
        e = reg->first; /* the list may have changed while the lock was given up */
    }
    (void)pthread_mutex_unlock(&reg->lock);
}

static enum us_status copy_info(const struct entry *e, struct us_model_info *ret,
                                struct us_err *err)
{
    *ret = e->info;
    ret->metadata = NULL;
    if (e->info.metadata != NULL && (ret->metadata = strdup(e->info.metadata)) == NULL)
        return us_fail(err, US_E_NOMEM, "no memory to list the models");
    return US_OK;
}

enum us_status us_registry_find(struct us_registry *reg, const char *name,
                                struct us_model_info *ret, struct us_err *err)
{
    struct us_model_ref *old = NULL;
    (void)pthread_mutex_lock(&reg->lock);
    struct entry *e = sync_entry(reg, name, &old);
    enum us_status st = e == NULL ? us_fail(err, US_E_NOT_FOUND, "there is no model '%s'", name)
                                  : copy_info(e, ret, err);
    (void)pthread_mutex_unlock(&reg->lock);
    us_model_ref_release(old);
    return st;
}

enum us_status us_registry_list(struct us_registry *reg, struct us_model_info **ret, int64_t *n,
                                struct us_err *err)
{
    enum us_status st = US_OK;
    int64_t count = 0, i = 0;
    (void)pthread_mutex_lock(&reg->lock);
    for (struct entry *e = reg->first; e != NULL; e = e->next)
        count++;
    struct us_model_info *list = calloc((size_t)count + 1, sizeof(*list));
    if (list == NULL)
        st = us_fail(err, US_E_NOMEM, "no memory to list the models");
    for (struct entry *e = reg->first; e != NULL && st == US_OK; e = e->next)
        st = copy_info(e, &list[i++], err);
    (void)pthread_mutex_unlock(&reg->lock);
    if (st != US_OK) {
        for (int64_t k = 0; k < i; k++)
            us_model_info_release(&list[k]);
        free(list);
        return st;
    }
    *ret = list;
    *n = count;
    return US_OK;
}

enum us_status us_registry_unload(struct us_registry *reg, const char *name, struct us_err *err)
{
    struct us_model_ref *old = NULL, *loaded = NULL;
    (void)pthread_mutex_lock(&reg->lock);
    struct entry *e = sync_entry(reg, name, &old);
    if (e != NULL && e->loaded != NULL) {
        loaded = e->loaded;
        e->loaded = NULL;
        e->info.state = US_MODEL_ON_DISK;
    }
    (void)pthread_mutex_unlock(&reg->lock);
    us_model_ref_release(old);
    us_model_ref_release(loaded);
    return e != NULL ? US_OK : us_fail(err, US_E_NOT_FOUND, "there is no model '%s'", name);
}

/* If-Match and If-None-Match (RFC 9110 13.1) against the file that stands there now. */
static enum us_status check_conditions(struct us_registry *reg, struct us_registry_put *put,
                                       struct us_err *err)
{
    struct us_model_ref *old = NULL;
    (void)pthread_mutex_lock(&reg->lock);
    struct entry *e = sync_entry(reg, put->name, &old);
    put->created = e == NULL;
    if (e != NULL)
        memcpy(put->old_sha256, e->info.sha256, sizeof(put->old_sha256));
    (void)pthread_mutex_unlock(&reg->lock);
    us_model_ref_release(old);
    if (put->if_none_match != NULL && !put->created &&
        us_etag_listed(put->if_none_match, put->old_sha256))
        return us_fail(err, US_E_EXISTS, "If-None-Match: the model '%s' exists", put->name);
    if (put->if_match != NULL && (put->created || !us_etag_listed(put->if_match, put->old_sha256)))
        return us_fail(err, US_E_EXISTS,
                       "If-Match: the model '%s' is another version or does not exist", put->name);
    return US_OK;
}

/* With publish_lock held, so that list and folder agree when the next change begins. */
static enum us_status publish(struct us_registry *reg, struct us_registry_put *put,
                              struct us_spool_file *file, const struct us_model *m, char **metadata,
                              struct us_err *err)
{
    char path[PATH_MAX];
    struct us_model_ref *old = NULL;
    enum us_status st;
    model_path(reg, put->name, path, sizeof(path));
    US_TRY(check_conditions(reg, put, err));
    US_TRY(us_spool_publish(file, path, err));
    (void)pthread_mutex_lock(&reg->lock);
    struct entry *e = sync_entry(reg, put->name, &old);
    if (e != NULL && e->info.state == US_MODEL_UNCHECKED) {
        entry_learn(e, m, *metadata);
        *metadata = NULL;
    }
    st = e != NULL ? copy_info(e, &put->info, err)
                   : us_fail(err, US_E_IO, "model '%s' was stored and removed again", put->name);
    (void)pthread_mutex_unlock(&reg->lock);
    us_model_ref_release(old);
    return st;
}

enum us_status us_registry_put(struct us_registry *reg, struct us_registry_put *put,
                               struct us_spool_file *file, struct us_err *err)
{
    struct us_model_ref *ref = NULL;
    char *metadata = NULL;
    enum us_status st = read_model(file->path, &ref, &metadata, err);
    us_spool_hide_path(err, file->path, "the model file");
    if (st != US_OK)
        return st;
    (void)pthread_mutex_lock(&reg->publish_lock);
    st = publish(reg, put, file, ref->model, &metadata, err);
    (void)pthread_mutex_unlock(&reg->publish_lock);
    free(metadata);
    us_model_ref_release(ref);
    return st;
}

enum us_status us_registry_delete(struct us_registry *reg, const char *name, struct us_err *err)
{
    char path[PATH_MAX];
    struct us_model_ref *old = NULL;
    enum us_status st = US_OK;
    model_path(reg, name, path, sizeof(path));
    (void)pthread_mutex_lock(&reg->publish_lock);
    if (unlink(path) != 0)
        st = errno == ENOENT ? us_fail(err, US_E_NOT_FOUND, "there is no model '%s'", name)
                             : us_fail(err, US_E_IO, "model '%s': %s", name, strerror(errno));
    else
        st = us_fsync_dir(reg->dir, err);
    (void)pthread_mutex_lock(&reg->lock);
    (void)sync_entry(reg, name, &old);
    (void)pthread_mutex_unlock(&reg->lock);
    (void)pthread_mutex_unlock(&reg->publish_lock);
    us_model_ref_release(old);
    return st;
}

enum us_status us_registry_open_file(struct us_registry *reg, const char *name, int *ret_fd,
                                     int64_t *ret_bytes, char *sha256, struct us_err *err)
{
    char path[PATH_MAX];
    struct stat st;
    model_path(reg, name, path, sizeof(path));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0) {
        int e = errno;
        if (fd >= 0)
            (void)close(fd);
        return us_fail(err, us_status_of_errno(e),
                       e == ENOENT ? "there is no model '%s'" : "model '%s' cannot be read", name);
    }
    struct file_id id = id_of(&st);
    sha256[0] = '\0';
    (void)pthread_mutex_lock(&reg->lock);
    struct entry *e = lookup(reg, name);
    if (e != NULL && same_file(&e->id, &id))
        memcpy(sha256, e->info.sha256, sizeof(e->info.sha256));
    (void)pthread_mutex_unlock(&reg->lock);
    *ret_fd = fd;
    *ret_bytes = st.st_size;
    return US_OK;
}
