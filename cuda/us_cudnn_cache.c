/*
 * The file of remembered choices (us_cudnn_cache.h). A line is
 *     KEY ENGINE KNOB=VALUE ... .
 * and its last word, the full stop, says that it is whole. The file is replaced, never edited:
 * whoever reads it sees one complete state.
 */
#include "us_cudnn_cache.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEAD        "usplit cudnn choices 1\n"
#define FILE_NAME   "cudnn-choices"
#define MAX_ENTRIES 65536
#define LINE_BYTES  4096

/* ---- where ---- */

/* dir/sub/FILE_NAME; "" where no directory is set or the path is too long. */
static bool place(const char *variable, const char *sub, char *to, size_t bytes)
{
    const char *dir = getenv(variable);
    if (dir == NULL || dir[0] != '/')
        return false;
    int n = snprintf(to, bytes, "%s%s/%s", dir, sub, FILE_NAME);
    if (n < 0 || (size_t)n >= bytes)
        to[0] = '\0';
    return true;
}

static void find_path(char *to, size_t bytes)
{
    to[0] = '\0';
    (void)(place("USPLIT_CACHE", "", to, bytes) || place("CACHE_DIRECTORY", "", to, bytes) ||
           place("XDG_CACHE_HOME", "/usplit", to, bytes) ||
           place("HOME", "/.cache/usplit", to, bytes));
}

/* The directories above the file; those that cannot be made show when the file is opened. */
static void make_directories(const char *path)
{
    char part[PATH_MAX];
    for (const char *p = strchr(path + 1, '/'); p != NULL; p = strchr(p + 1, '/')) {
        memcpy(part, path, (size_t)(p - path));
        part[p - path] = '\0';
        (void)mkdir(part, 0700);
    }
}

/* ---- entries ---- */

static struct us_cudnn_cache_entry *find(const struct us_cudnn_cache *c, const char *key)
{
    for (int32_t i = 0; i < c->n; i++)
        if (strcmp(c->entry[i].key, key) == 0)
            return &c->entry[i];
    return NULL;
}

static enum us_status set(struct us_cudnn_cache *c, const char *key,
                          const struct us_cudnn_choice *choice)
{
    struct us_cudnn_cache_entry *e = find(c, key);
    if (e == NULL) {
        if (c->n == MAX_ENTRIES || strlen(key) >= US_CUDNN_KEY_BYTES)
            return US_OK; /* not remembered */
        if (c->n == c->room) {
            int32_t room = c->room == 0 ? 64 : 2 * c->room;
            void *grown = reallocarray(c->entry, (size_t)room, sizeof(*c->entry));
            if (grown == NULL)
                return US_E_NOMEM;
            c->entry = grown;
            c->room = room;
        }
        e = &c->entry[c->n++];
        (void)snprintf(e->key, sizeof(e->key), "%s", key);
    }
    e->choice = *choice;
    return US_OK;
}

/* A number that ends where the word does; moves *at past it. */
static bool number(const char **at, char end, int64_t *ret)
{
    char *stop = NULL;
    errno = 0;
    long long v = strtoll(*at, &stop, 10);
    if (errno != 0 || stop == *at || *stop != end)
        return false;
    *at = stop + 1;
    *ret = v;
    return true;
}

static bool parse_choice(const char *at, struct us_cudnn_choice *ret)
{
    int64_t knob;
    memset(ret, 0, sizeof(*ret));
    if (!number(&at, ' ', &ret->engine) || ret->engine < 0)
        return false;
    while (strcmp(at, ".\n") != 0) {
        if (ret->n_knobs == US_CUDNN_MAX_KNOBS || !number(&at, '=', &knob) || knob < 0 ||
            knob > INT32_MAX || !number(&at, ' ', &ret->value[ret->n_knobs]))
            return false;
        ret->knob[ret->n_knobs++] = (int32_t)knob;
    }
    return true;
}

static enum us_status parse_line(struct us_cudnn_cache *c, const char *line)
{
    char key[US_CUDNN_KEY_BYTES];
    struct us_cudnn_choice choice;
    const char *space = strchr(line, ' ');
    if (space == NULL || space == line || (size_t)(space - line) >= sizeof(key) ||
        !parse_choice(space + 1, &choice))
        return US_OK;
    memcpy(key, line, (size_t)(space - line));
    key[space - line] = '\0';
    return set(c, key, &choice);
}

static enum us_status read_file(struct us_cudnn_cache *c)
{
    char line[LINE_BYTES];
    enum us_status s = US_OK;
    FILE *f = c->path[0] == '\0' ? NULL : fopen(c->path, "re");
    if (f == NULL)
        return US_OK;
    if (fgets(line, sizeof(line), f) != NULL && strcmp(line, HEAD) == 0)
        while (s == US_OK && fgets(line, sizeof(line), f) != NULL)
            s = parse_line(c, line);
    (void)fclose(f);
    return s;
}

static void write_entries(const struct us_cudnn_cache *c, FILE *f)
{
    (void)fputs(HEAD, f);
    for (int32_t i = 0; i < c->n; i++) {
        const struct us_cudnn_choice *v = &c->entry[i].choice;
        (void)fprintf(f, "%s %" PRId64 " ", c->entry[i].key, v->engine);
        for (int32_t k = 0; k < v->n_knobs; k++)
            (void)fprintf(f, "%" PRId32 "=%" PRId64 " ", v->knob[k], v->value[k]);
        (void)fputs(".\n", f);
    }
}

static void write_file(const struct us_cudnn_cache *c)
{
    char temporary[PATH_MAX + 8];
    if (c->path[0] == '\0')
        return;
    make_directories(c->path);
    (void)snprintf(temporary, sizeof(temporary), "%s.XXXXXX", c->path);
    int fd = mkstemp(temporary);
    if (fd < 0)
        return;
    FILE *f = fdopen(fd, "w");
    if (f == NULL) {
        (void)close(fd);
        (void)unlink(temporary);
        return;
    }
    write_entries(c, f);
    bool whole = ferror(f) == 0;
    whole = fclose(f) == 0 && whole;
    if (!whole || rename(temporary, c->path) != 0)
        (void)unlink(temporary);
}

/* ---- the four calls ---- */

enum us_status us_cudnn_cache_open(struct us_cudnn_cache *c)
{
    memset(c, 0, sizeof(*c));
    find_path(c->path, sizeof(c->path));
    return read_file(c);
}

void us_cudnn_cache_release(struct us_cudnn_cache *c)
{
    free(c->entry);
    memset(c, 0, sizeof(*c));
}

const struct us_cudnn_choice *us_cudnn_cache_get(const struct us_cudnn_cache *c, const char *key)
{
    const struct us_cudnn_cache_entry *e = find(c, key);
    return e == NULL ? NULL : &e->choice;
}

enum us_status us_cudnn_cache_put(struct us_cudnn_cache *c, const char *key,
                                  const struct us_cudnn_choice *choice)
{
    US_TRY(read_file(c)); /* what others have found out since */
    US_TRY(set(c, key, choice));
    write_file(c);
    return US_OK;
}
