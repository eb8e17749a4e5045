/* Reading the watched folder; see us_watch_scan.h. */
#include "us_watch_scan.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#define MAX_DEPTH 64 /* mounts can loop where links are not followed */

struct walk {
    const struct us_watch_scan *s;
    char path[PATH_MAX]; /* below dir */
};

struct us_watch_id us_watch_id_of(const struct stat *st)
{
    return (struct us_watch_id){
        .size = st->st_size,
        .mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec,
    };
}

int us_watch_inotify(void)
{
    return inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
}

bool us_watch_inotify_drain(int fd)
{
    char buf[16 << 10];
    bool any = false;
    while (fd >= 0 && read(fd, buf, sizeof(buf)) > 0)
        any = true;
    return any;
}

static bool is_result(const char *name)
{
    size_t n = strlen(name), k = strlen(US_WATCH_SUFFIX);
    return n >= k && strcmp(name + n - k, US_WATCH_SUFFIX) == 0;
}

static bool is_wanted(const struct us_watch_scan *s, const char *name)
{
    if (name[0] == '.' || is_result(name))
        return false;
    for (int32_t i = 0; i < s->match->n; i++)
        if (fnmatch(s->match->v[i], name, FNM_CASEFOLD) == 0)
            return true;
    return false;
}

static enum us_status walk_folder(struct walk *w, int dir_fd, size_t n, int depth);

/* The folder w->path (n bytes), found in dir_fd as `name`. */
static enum us_status enter(struct walk *w, int dir_fd, const char *name, size_t n, int depth)
{
    if (depth >= MAX_DEPTH)
        return US_OK;
    int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return fd < 0 ? US_OK : walk_folder(w, fd, n, depth);
}

static enum us_status take_entry(struct walk *w, int dir_fd, const char *name, size_t n, int depth)
{
    const struct us_watch_scan *s = w->s;
    struct stat st;
    size_t k = strlen(name);
    if (name[0] == '.' || n + k + 2 > sizeof(w->path) ||
        fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return US_OK;
    memcpy(w->path + n, name, k + 1);
    if (S_ISDIR(st.st_mode)) {
        if (!s->recursive || (st.st_dev == s->out_dev && st.st_ino == s->out_ino))
            return US_OK;
        memcpy(w->path + n + k, "/", 2);
        return enter(w, dir_fd, name, n + k + 1, depth + 1);
    }
    if (!is_wanted(s, name))
        return US_OK;
    /* A link to a file is as good as the file. */
    if (S_ISLNK(st.st_mode) && fstatat(dir_fd, name, &st, 0) != 0)
        return US_OK;
    if (!S_ISREG(st.st_mode))
        return US_OK;
    struct us_watch_id id = us_watch_id_of(&st);
    return s->found(s->arg, w->path, &id);
}

/* Closes dir_fd. */
static enum us_status walk_folder(struct walk *w, int dir_fd, size_t n, int depth)
{
    DIR *dir = fdopendir(dir_fd);
    if (dir == NULL) {
        (void)close(dir_fd);
        return US_OK;
    }
    if (w->s->inotify_fd >= 0) {
        /* Through its descriptor, so that no name can be exchanged meanwhile. Again for one that is
         * watched is harmless; a limit that is reached leaves the periodic pass. */
        char self[64];
        (void)snprintf(self, sizeof(self), "/proc/self/fd/%d", dir_fd);
        (void)inotify_add_watch(w->s->inotify_fd, self, IN_CREATE | IN_CLOSE_WRITE | IN_MOVED_TO);
    }
    enum us_status st = US_OK;
    for (struct dirent *e; st == US_OK && (e = readdir(dir)) != NULL;)
        st = take_entry(w, dir_fd, e->d_name, n, depth);
    (void)closedir(dir);
    return st;
}

enum us_status us_watch_scan(const struct us_watch_scan *s, struct us_err *err)
{
    struct walk w = {.s = s};
    int fd = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return us_fail(err, US_E_IO, "%s: cannot be read: %s", s->dir, strerror(errno));
    return walk_folder(&w, fd, 0, 0);
}
