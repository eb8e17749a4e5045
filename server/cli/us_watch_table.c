/* The files of a watcher in a hash table with open addressing; see us_watch_table.h. */
#include "us_watch_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* FNV-1a, 64 bits. */
uint64_t us_watch_hash(const char *text)
{
    uint64_t h = 0xcbf29ce484222325ULL;
    for (const char *s = text; *s != '\0'; s++)
        h = (h ^ (unsigned char)*s) * 0x100000001b3ULL;
    return h;
}

/* Where path is or belongs. The table is never full. */
static size_t *find(const struct us_watch_table *t, const char *path)
{
    size_t i = (size_t)us_watch_hash(path) & (t->n_slots - 1);
    while (t->slots[i] != 0 && strcmp(t->all[t->slots[i] - 1]->path, path) != 0)
        i = (i + 1) & (t->n_slots - 1);
    return &t->slots[i];
}

/* Room for one more, the slots at most half full. */
static enum us_status make_room(struct us_watch_table *t)
{
    if (t->n < t->n_room)
        return US_OK;
    size_t room = t->n_room == 0 ? 256 : t->n_room * 2;
    struct us_watch_file **all = reallocarray(t->all, room, sizeof(struct us_watch_file *));
    if (all == NULL)
        return US_E_NOMEM;
    t->all = all;
    size_t *slots = calloc(room * 2, sizeof(*slots));
    if (slots == NULL)
        return US_E_NOMEM;
    free(t->slots);
    t->slots = slots;
    t->n_slots = room * 2;
    t->n_room = room;
    for (size_t i = 0; i < t->n; i++)
        *find(t, t->all[i]->path) = i + 1;
    return US_OK;
}

enum us_status us_watch_table_at(struct us_watch_table *t, const char *path,
                                 struct us_watch_file **ret)
{
    US_TRY(make_room(t));
    size_t *slot = find(t, path);
    if (*slot != 0) {
        *ret = t->all[*slot - 1];
        return US_OK;
    }
    struct us_watch_file *f = calloc(1, sizeof(*f));
    char *name = strdup(path);
    if (f == NULL || name == NULL) {
        free(f);
        free(name);
        return US_E_NOMEM;
    }
    f->path = name;
    f->id.size = -1;
    t->all[t->n++] = f;
    *slot = t->n;
    *ret = f;
    return US_OK;
}

void us_watch_table_release(struct us_watch_table *t)
{
    for (size_t i = 0; i < t->n; i++) {
        free(t->all[i]->path);
        free(t->all[i]);
    }
    free(t->all);
    free(t->slots);
    *t = (struct us_watch_table){0};
}

/* Bytes of path before the extension that the result's name replaces. */
static size_t stem_length(const char *path)
{
    static const char *const endings[] = {".ome.tif", ".ome.tiff", ".tif", ".tiff", ".npy"};
    const char *slash = strrchr(path, '/');
    size_t n = strlen(path), base = slash == NULL ? 0 : (size_t)(slash - path) + 1;
    for (size_t i = 0; i < US_COUNT(endings); i++) {
        size_t k = strlen(endings[i]);
        if (n > base + k && strcasecmp(path + n - k, endings[i]) == 0)
            return n - k;
    }
    const char *dot = strrchr(path + base, '.');
    return dot == NULL || dot == path + base ? n : (size_t)(dot - path);
}

char *us_watch_result_name(const char *path)
{
    char *name = NULL;
    if (asprintf(&name, "%.*s" US_WATCH_SUFFIX, (int)stem_length(path), path) < 0)
        return NULL;
    return name;
}

const struct us_watch_file *us_watch_table_rival(const struct us_watch_table *t,
                                                 const struct us_watch_file *f)
{
    size_t n = stem_length(f->path);
    for (size_t i = 0; i < t->n; i++) {
        const struct us_watch_file *o = t->all[i];
        if (o == f || strncmp(o->path, f->path, n) != 0 || stem_length(o->path) != n)
            continue;
        if (o->state == US_WATCH_BUSY || o->said.what == US_WATCH_IS_DONE ||
            o->said.what == US_WATCH_IS_ARRIVED)
            return o;
    }
    return NULL;
}
