/* The journal of a watcher; see us_watch_journal.h. */
#include "us_watch_journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "us_watch_say.h"

#define MAX_LINE   (64 << 10)
#define SLACK      200 /* outdated lines that are not worth writing the journal anew */
#define DUMP_FLAGS (JSON_COMPACT | JSON_ENSURE_ASCII)

struct us_watch_journal {
    pthread_mutex_t mutex;
    int dir_fd, lock_fd, fd;
    int64_t bytes;
    bool broken;
    char *path; /* for messages */
};

static const char *const what_names[] = {"", "arrived", "done", "failed"};

static enum us_status fail_io(const struct us_watch_journal *j, int e, struct us_err *err)
{
    return us_fail(err, e == ENOSPC || e == EDQUOT ? US_E_DISK_FULL : US_E_IO, "%s: %s", j->path,
                   strerror(e));
}

static enum us_status take_lock(struct us_watch_journal *j, const char *out_dir, struct us_err *err)
{
    char owner[64] = "";
    j->lock_fd = openat(j->dir_fd, US_WATCH_LOCK, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (j->lock_fd < 0)
        return us_fail(err, US_E_IO, "%s: cannot be written: %s", out_dir, strerror(errno));
    if (flock(j->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        int e = errno;
        ssize_t n = pread(j->lock_fd, owner, sizeof(owner) - 1, 0);
        owner[n < 0 ? 0 : (size_t)n] = '\0';
        if (e != EWOULDBLOCK)
            return us_fail(err, US_E_IO, "%s: cannot be locked: %s", out_dir, strerror(e));
        return us_fail(err, US_E_BUSY, "%s: another watcher (%s) writes there", out_dir,
                       owner[0] == '\0' ? "of another machine" : owner);
    }
    int n = snprintf(owner, sizeof(owner), "process %ld", (long)getpid());
    if (ftruncate(j->lock_fd, 0) != 0 || pwrite(j->lock_fd, owner, (size_t)n, 0) != n)
        return us_fail(err, US_E_IO, "%s: cannot be written: %s", out_dir, strerror(errno));
    return US_OK;
}

/* Appends text whole and synced, or leaves the file as it was. */
static enum us_status append(struct us_watch_journal *j, const char *text, size_t n,
                             struct us_err *err)
{
    size_t done = 0;
    int e = 0;
    while (done < n && e == 0) {
        ssize_t k = pwrite(j->fd, text + done, n - done, j->bytes + (int64_t)done);
        if (k > 0)
            done += (size_t)k;
        else if (k == 0 || errno != EINTR)
            e = k == 0 ? EIO : errno;
    }
    if (e != 0) {
        j->broken = ftruncate(j->fd, j->bytes) != 0;
        return j->broken ? fail_io(j, EIO, err) : fail_io(j, e, err);
    }
    if (fsync(j->fd) != 0) {
        j->broken = true;
        return us_fail(err, US_E_IO, "%s: cannot be synced: %s", j->path, strerror(errno));
    }
    j->bytes += (int64_t)n;
    return US_OK;
}

/* Takes object over. */
static enum us_status append_json(struct us_watch_journal *j, json_t *object, struct us_err *err)
{
    char *text = object == NULL ? NULL : json_dumps(object, DUMP_FLAGS);
    json_decref(object);
    if (text == NULL)
        return us_fail(err, US_E_NOMEM, "%s: no memory for a line", j->path);
    size_t n = strlen(text);
    text[n] = '\n'; /* in the NUL's place: the length is known */
    enum us_status st = append(j, text, n + 1, err);
    free(text);
    return st;
}

enum us_status us_watch_journal_add(struct us_watch_journal *j, const char *path,
                                    struct us_watch_record *r, const char *model,
                                    const char *reason, struct us_err *err)
{
    char when[US_WATCH_TIME];
    json_t *o = json_pack("{s:s, s:s, s:I, s:I, s:s, s:s}", "state", what_names[r->what], "time",
                          us_watch_time(when), "size", (json_int_t)r->id.size, "mtime_ns",
                          (json_int_t)r->id.mtime_ns, "sha256", r->id.sha256, "result_sha256",
                          r->result_sha256);
    us_watch_json_text(o, "file", path);
    us_watch_json_text(o, "model", model);
    us_watch_json_text(o, "reason", reason);
    (void)pthread_mutex_lock(&j->mutex);
    int64_t at = j->bytes;
    enum us_status st = US_E_IO;
    if (j->broken) {
        json_decref(o);
        (void)us_fail(err, st, "%s: an earlier write failed", j->path);
    } else {
        st = append_json(j, o, err);
    }
    (void)pthread_mutex_unlock(&j->mutex);
    if (st == US_OK)
        r->line_at = at;
    return st;
}

/* The state that a record gives its file at the start. */
static void apply(struct us_watch_file *f, const struct us_watch_record *r)
{
    f->said = *r;
    f->id = r->id;
    f->state = r->what == US_WATCH_IS_DONE     ? US_WATCH_DONE
               : r->what == US_WATCH_IS_FAILED ? US_WATCH_FAILED
                                               : US_WATCH_GONE;
}

static bool copy_sha(const json_t *o, const char *key, char *ret)
{
    const char *s = json_string_value(json_object_get(o, key));
    if (s == NULL || (s[0] != '\0' && strlen(s) != US_SHA256_TEXT - 1))
        return false;
    (void)snprintf(ret, US_SHA256_TEXT, "%s", s);
    return true;
}

/* One line into the table; false: not a line of ours. */
static enum us_status take_line(const json_t *o, int64_t at, struct us_watch_table *t, bool *ok)
{
    struct us_watch_record r = {.line_at = at};
    const char *state = json_string_value(json_object_get(o, "state"));
    for (size_t i = 1; state != NULL && i < US_COUNT(what_names); i++)
        if (strcmp(state, what_names[i]) == 0)
            r.what = (enum us_watch_what)i;
    char *path = us_watch_json_text_of(o, "file");
    *ok = path != NULL && r.what != US_WATCH_UNSAID && copy_sha(o, "sha256", r.id.sha256) &&
          copy_sha(o, "result_sha256", r.result_sha256) &&
          json_is_integer(json_object_get(o, "size")) &&
          json_is_integer(json_object_get(o, "mtime_ns"));
    enum us_status st = US_OK;
    struct us_watch_file *f = NULL;
    r.id.size = json_integer_value(json_object_get(o, "size"));
    r.id.mtime_ns = json_integer_value(json_object_get(o, "mtime_ns"));
    if (*ok)
        st = us_watch_table_at(t, path, &f);
    if (f != NULL)
        apply(f, &r);
    free(path);
    return st;
}

/* The first line: whose results these are. */
static enum us_status check_head(const struct us_watch_journal *j, const json_t *o, const char *dir,
                                 const char *request, struct us_err *err)
{
    if (json_integer_value(json_object_get(o, "usplit_watch")) != 1)
        return us_fail(err, US_E_CORRUPT,
                       "%s, line 1: not the journal of this version of a watcher", j->path);
    char *old_dir = us_watch_json_text_of(o, "dir");
    char *old_request = us_watch_json_text_of(o, "request");
    enum us_status st = US_OK;
    if (old_dir == NULL || old_request == NULL)
        st = us_fail(err, US_E_CORRUPT, "%s, line 1: dir or request is missing", j->path);
    else if (strcmp(old_request, request) != 0)
        st = us_fail(err, US_E_ARG,
                     "%s: the results there are of '%s', not of '%s'; take another folder for OUT",
                     j->path, old_request, request);
    else if (strcmp(old_dir, dir) != 0)
        st =
            us_fail(err, US_E_ARG,
                    "%s: the results there are of the folder '%s'; take another folder for OUT, or "
                    "change that name in line 1 if the folder has moved",
                    j->path, old_dir);
    free(old_dir);
    free(old_request);
    return st;
}

struct reading {
    struct us_watch_journal *j;
    struct us_watch_table *t;
    const char *dir, *request;
    int64_t n_lines;
};

static enum us_status read_line(struct reading *r, const char *line, size_t n, struct us_err *err)
{
    bool ok = false;
    enum us_status st = US_OK;
    json_t *o = json_loadb(line, n, JSON_REJECT_DUPLICATES, NULL);
    r->n_lines++;
    if (o != NULL && r->n_lines == 1) {
        ok = true;
        st = check_head(r->j, o, r->dir, r->request, err);
    } else if (o != NULL) {
        st = take_line(o, r->j->bytes, r->t, &ok);
    }
    json_decref(o);
    if (st == US_OK && !ok)
        st = us_fail(
            err, US_E_CORRUPT,
            "%s, line %lld: damaged; move the journal away to begin anew, or remove the line",
            r->j->path, (long long)r->n_lines);
    r->j->bytes += (int64_t)n;
    return st;
}

/* Every complete line; j->bytes is then the length of what counts. */
static enum us_status read_all(struct reading *r, struct us_err *err)
{
    int fd = dup(r->j->fd);
    FILE *in = fd < 0 ? NULL : fdopen(fd, "r");
    if (in == NULL) {
        if (fd >= 0)
            (void)close(fd);
        return fail_io(r->j, errno, err);
    }
    char *line = NULL;
    size_t room = 0;
    enum us_status st = US_OK;
    while (st == US_OK) {
        ssize_t n = getline(&line, &room, in);
        /* Without its newline the last line was never confirmed. */
        if (n <= 0 || line[n - 1] != '\n')
            break;
        st = n > MAX_LINE ? us_fail(err, US_E_CORRUPT, "%s: a line of %zd bytes", r->j->path, n)
                          : read_line(r, line, (size_t)n, err);
    }
    if (st == US_OK && ferror(in) != 0)
        st = fail_io(r->j, EIO, err);
    free(line);
    (void)fclose(in);
    return st;
}

static enum us_status write_head(struct us_watch_journal *j, const char *dir, const char *request,
                                 struct us_err *err)
{
    json_t *o = json_pack("{s:i}", "usplit_watch", 1);
    us_watch_json_text(o, "dir", dir);
    us_watch_json_text(o, "request", request);
    return append_json(j, o, err);
}

/* Copies the line at `at` of the old journal. */
static enum us_status copy_line(struct us_watch_journal *to, int from_fd, char *buf,
                                struct us_watch_file *f, struct us_err *err)
{
    ssize_t n = pread(from_fd, buf, MAX_LINE, f->said.line_at);
    const char *end = n <= 0 ? NULL : memchr(buf, '\n', (size_t)n);
    if (end == NULL)
        return fail_io(to, n < 0 ? errno : EIO, err);
    size_t k = (size_t)(end - buf) + 1;
    if (pwrite(to->fd, buf, k, to->bytes) != (ssize_t)k)
        return fail_io(to, errno, err);
    f->said.line_at = to->bytes;
    to->bytes += (int64_t)k;
    return US_OK;
}

/* The journal anew with only the lines that count, under its name when it is whole. */
static enum us_status compact(struct reading *r, struct us_err *err)
{
    static const char new_name[] = US_WATCH_JOURNAL ".new";
    struct us_watch_journal *j = r->j;
    int old_fd = j->fd;
    int fd = openat(j->dir_fd, new_name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    char *buf = malloc(MAX_LINE);
    if (fd < 0 || buf == NULL) {
        if (fd >= 0)
            (void)close(fd);
        free(buf);
        return fail_io(j, fd < 0 ? errno : ENOMEM, err);
    }
    j->fd = fd;
    j->bytes = 0;
    enum us_status st = write_head(j, r->dir, r->request, err);
    for (size_t i = 0; st == US_OK && i < r->t->n; i++)
        st = copy_line(j, old_fd, buf, r->t->all[i], err);
    if (st == US_OK &&
        (fsync(fd) != 0 || renameat(j->dir_fd, new_name, j->dir_fd, US_WATCH_JOURNAL) != 0))
        st = fail_io(j, errno, err);
    free(buf);
    (void)close(old_fd);
    return st;
}

/* Reads, mends the end, begins where there is nothing. */
static enum us_status load(struct reading *r, struct us_err *err)
{
    struct us_watch_journal *j = r->j;
    US_TRY(read_all(r, err));
    if (ftruncate(j->fd, j->bytes) != 0)
        return fail_io(j, errno, err);
    if (r->n_lines == 0)
        US_TRY(write_head(j, r->dir, r->request, err));
    if (r->n_lines - 1 > 2 * (int64_t)r->t->n + SLACK)
        US_TRY(compact(r, err));
    (void)fsync(j->dir_fd); /* some shares cannot; the name is then as safe as they make it */
    return US_OK;
}

static enum us_status open_files(struct us_watch_journal *j, const char *out_dir,
                                 struct us_err *err)
{
    j->dir_fd = open(out_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (j->dir_fd < 0)
        return us_fail(err, US_E_NOT_FOUND, "%s: %s", out_dir, strerror(errno));
    if (asprintf(&j->path, "%s/" US_WATCH_JOURNAL, out_dir) < 0) {
        j->path = NULL;
        return us_fail(err, US_E_NOMEM, "no memory for a journal");
    }
    US_TRY(take_lock(j, out_dir, err));
    j->fd = openat(j->dir_fd, US_WATCH_JOURNAL, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    return j->fd < 0 ? fail_io(j, errno, err) : US_OK;
}

enum us_status us_watch_journal_open(const char *out_dir, const char *dir, const char *request,
                                     struct us_watch_table *t, struct us_watch_journal **ret,
                                     struct us_err *err)
{
    struct us_watch_journal *j = calloc(1, sizeof(*j));
    if (j == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a journal");
    (void)pthread_mutex_init(&j->mutex, NULL);
    j->dir_fd = j->lock_fd = j->fd = -1;
    enum us_status st = open_files(j, out_dir, err);
    struct reading r = {.j = j, .t = t, .dir = dir, .request = request};
    if (st == US_OK)
        st = load(&r, err);
    if (st != US_OK) {
        us_watch_journal_close(j);
        return st;
    }
    *ret = j;
    return US_OK;
}

void us_watch_journal_close(struct us_watch_journal *j)
{
    if (j == NULL)
        return;
    const int fds[] = {j->fd, j->lock_fd, j->dir_fd};
    for (size_t i = 0; i < US_COUNT(fds); i++)
        if (fds[i] >= 0)
            (void)close(fds[i]);
    (void)pthread_mutex_destroy(&j->mutex);
    free(j->path);
    free(j);
}
