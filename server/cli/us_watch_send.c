/* One file to the daemon, its result to the disk; see us_watch_send.h. */
#include "us_watch_send.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "us_watch_scan.h"
#include "us_watch_upload.h"

#define PART_PREFIX ".usplit-watch-"
#define PART_SUFFIX ".part"
#define PART_BYTES  64
#define MAX_TOKEN   512

/* What runs while one file is with the server. */
struct sending {
    struct us_watch_job *job;
    struct us_watch_upload up;
    int out_fd, part_fd;
    char part[PART_BYTES];
    struct us_decoder *decoder;
    struct sha256_ctx sent_sha; /* of the reply's body as sent */
    struct sha256_ctx file_sha; /* of the result's file */
    int failed;                 /* errno of a write, or 0 */
};

/* The name below OUT under which the result of path arrives. Always the same, and short. */
static void part_name(const char *path, char ret[PART_BYTES])
{
    (void)snprintf(ret, PART_BYTES, PART_PREFIX "%016" PRIx64 PART_SUFFIX, us_watch_hash(path));
}

static enum us_status on_decoded(void *arg, const void *bytes, size_t n)
{
    struct sending *s = arg;
    sha256_update(&s->file_sha, n, bytes);
    for (const char *p = bytes; n > 0;) {
        ssize_t k = write(s->part_fd, p, n);
        if (k < 0 && errno == EINTR)
            continue;
        if (k <= 0) {
            s->failed = k < 0 ? errno : EIO;
            return US_E_IO;
        }
        p += k;
        n -= (size_t)k;
    }
    return US_OK;
}

static enum us_status on_body(void *arg, const void *bytes, size_t n)
{
    struct sending *s = arg;
    if (s->decoder == NULL) {
        enum us_coding c = US_CODING_IDENTITY;
        US_TRY(us_coding_parse(s->job->answer.coding, &c, &s->job->err));
        US_TRY(us_decoder_new(c, INT64_MAX, on_decoded, s, &s->decoder));
    }
    sha256_update(&s->sent_sha, n, bytes);
    return us_decoder_feed(s->decoder, bytes, n, &s->job->err);
}

static enum us_status on_read(void *arg, void *buf, size_t n, size_t *ret_n)
{
    return us_watch_upload_read(&((struct sending *)arg)->up, buf, n, ret_n);
}

static enum us_status on_rewind(void *arg)
{
    return us_watch_upload_rewind(&((struct sending *)arg)->up);
}

/* The token: one line of visible characters. */
static enum us_status read_token(const struct us_watch_place *p, char ret[MAX_TOKEN],
                                 struct us_err *err)
{
    FILE *in = fopen(p->token_file, "re");
    if (in == NULL)
        return us_fail(err, US_E_IO, "%s: cannot be read: %s", p->token_file, strerror(errno));
    if (fgets(ret, MAX_TOKEN, in) == NULL)
        ret[0] = '\0';
    (void)fclose(in);
    size_t n = strcspn(ret, " \t\r\n");
    ret[n] = '\0';
    if (n == 0 || n == MAX_TOKEN - 1)
        return us_fail(err, US_E_ARG, "%s: no token on its first line", p->token_file);
    return US_OK;
}

static const char *type_of(const char *path)
{
    size_t n = strlen(path);
    return n > 4 && strcasecmp(path + n - 4, ".npy") == 0 ? "application/x-npy" : "image/tiff";
}

static enum us_status post(struct sending *s)
{
    struct us_watch_job *job = s->job;
    const struct us_watch_place *p = job->place;
    char token[MAX_TOKEN];
    if (p->token_file != NULL)
        US_TRY(read_token(p, token, &job->err));
    const struct us_http_post request = {
        .url = p->url,
        .type = type_of(job->path),
        .coding = p->zstd ? "zstd" : NULL,
        .accept = "image/tiff",
        .accept_coding = p->zstd ? "zstd, gzip" : "identity",
        .token = p->token_file != NULL ? token : p->token,
        .body_bytes = p->zstd ? -1 : job->id.size,
        .read = on_read,
        .rewind = on_rewind,
        .sink = on_body,
        .arg = s,
    };
    return us_http_client_post(job->client, &request, &job->answer, &job->err);
}

enum us_watch_verdict us_watch_refuse(struct us_watch_job *job)
{
    struct us_err err = {0};
    /* The SHA-256 of an earlier version's result stays: that result is still ours to replace. */
    job->said.what = US_WATCH_IS_FAILED;
    job->said.id = job->id;
    enum us_status st =
        us_watch_journal_add(job->place->journal, job->path, &job->said, NULL, job->err.msg, &err);
    if (st == US_OK)
        return US_WATCH_REFUSED;
    job->err = err;
    return st == US_E_DISK_FULL ? US_WATCH_AGAIN_ALL : US_WATCH_BROKEN;
}

static enum us_watch_verdict again(struct us_watch_job *job, enum us_watch_verdict v,
                                   const char *what, int e)
{
    (void)us_fail(&job->err, US_E_IO, "%s: %s", what, strerror(e));
    return v;
}

/* An answer that is no result. The statuses: docs/api.md, Errors. */
static enum us_watch_verdict judge_answer(struct us_watch_job *job)
{
    static const int of_the_file[] = {400, 406, 411, 413, 414, 415, 422, 431};
    static const int of_the_server[] = {429, 502, 503, 504, 507};
    const struct us_http_answer *a = &job->answer;
    (void)us_fail(&job->err, US_E_IO, "HTTP %d%s%s", a->status, a->detail[0] != '\0' ? ": " : "",
                  a->detail);
    for (size_t i = 0; i < US_COUNT(of_the_file); i++)
        if (a->status == of_the_file[i])
            return us_watch_refuse(job);
    for (size_t i = 0; i < US_COUNT(of_the_server); i++)
        if (a->status == of_the_server[i])
            return US_WATCH_AGAIN_ALL;
    if (a->status == 200)
        (void)us_fail(&job->err, US_E_FORMAT,
                      "an answer of type '%s' without an image: is this a usplitd?", a->type);
    /* Token, model, address: nothing of this file, and somebody can mend it. */
    return a->status < 500 && a->status != 408 ? US_WATCH_AGAIN_ALL : US_WATCH_AGAIN;
}

static enum us_watch_verdict judge_failure(struct sending *s, enum us_status st)
{
    struct us_watch_job *job = s->job;
    if (st == US_E_CANCELLED)
        return US_WATCH_STOPPED;
    if (st == US_E_BUSY)
        return US_WATCH_CHANGED;
    if (s->failed != 0)
        return again(job, US_WATCH_AGAIN_ALL, "the result cannot be written", s->failed);
    if (s->up.failed != 0 && s->up.failed != EINTR)
        return again(job, US_WATCH_AGAIN, "cannot be read", s->up.failed);
    if (job->err.msg[0] == '\0')
        (void)us_fail(&job->err, st, "%s", us_status_text(st));
    return job->answer.reached ? US_WATCH_AGAIN : US_WATCH_AGAIN_ALL;
}

/* Whether the body is what the server sent: usplitd's ETag is its SHA-256. A proxy's may be
 * anything else, which says nothing. */
static bool is_intact(const struct sending *s)
{
    char sha[US_SHA256_TEXT];
    const char *etag = s->job->answer.etag;
    us_watch_sha256_text(&s->sent_sha, sha);
    if (strlen(etag) != US_SHA256_TEXT + 1 || etag[0] != '"' ||
        strspn(etag + 1, "0123456789abcdef") != US_SHA256_TEXT - 1)
        return true;
    return strncmp(etag + 1, sha, US_SHA256_TEXT - 1) == 0;
}

/* The folders of a name below OUT. */
static bool make_folders(int out_fd, const char *name)
{
    char part[4096];
    for (const char *slash = strchr(name, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        (void)snprintf(part, sizeof(part), "%.*s", (int)(slash - name), name);
        if (mkdirat(out_fd, part, 0777) != 0 && errno != EEXIST)
            return false;
    }
    return true;
}

/* So that the new name survives a power cut. Some shares cannot: the content is safe by then. */
static void sync_folder_of(int out_fd, const char *name)
{
    char folder[4096];
    const char *slash = strrchr(name, '/');
    (void)snprintf(folder, sizeof(folder), "%.*s", slash == NULL ? 1 : (int)(slash - name),
                   slash == NULL ? "." : name);
    int fd = openat(out_fd, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)fsync(fd);
    (void)close(fd);
}

static enum us_watch_verdict put_in_place(struct us_watch_job *job, int out_fd, const char *part)
{
    if (!make_folders(out_fd, job->result) || renameat(out_fd, part, out_fd, job->result) != 0)
        return again(job, US_WATCH_AGAIN_ALL, "the result cannot be put in its place", errno);
    sync_folder_of(out_fd, job->result);
    return US_WATCH_GOT;
}

static enum us_watch_verdict record(struct us_watch_job *job, enum us_watch_what what)
{
    job->said.what = what;
    enum us_status st = us_watch_journal_add(job->place->journal, job->path, &job->said,
                                             job->answer.model, NULL, &job->err);
    return st == US_OK ? US_WATCH_GOT : st == US_E_DISK_FULL ? US_WATCH_AGAIN_ALL : US_WATCH_BROKEN;
}

/* The steps that make it lasting. */
static enum us_watch_verdict commit(struct sending *s)
{
    struct us_watch_job *job = s->job;
    job->said = (struct us_watch_record){.id = job->id};
    us_watch_sha256_text(&s->file_sha, job->said.result_sha256);
    if (fsync(s->part_fd) != 0)
        return again(job, US_WATCH_AGAIN_ALL, "the result cannot be written", errno);
    enum us_watch_verdict v = record(job, US_WATCH_IS_ARRIVED);
    if (v == US_WATCH_GOT)
        v = put_in_place(job, s->out_fd, s->part);
    /* With the result in its place, a journal on a full disk is told at the next start. */
    return v == US_WATCH_GOT ? record(job, US_WATCH_IS_DONE) : v;
}

static enum us_watch_verdict exchange(struct sending *s)
{
    struct us_watch_job *job = s->job;
    struct stat st;
    enum us_status posted = post(s);
    if (posted == US_OK && s->decoder != NULL)
        posted = us_decoder_end(s->decoder, &job->err);
    if (posted != US_OK)
        return judge_failure(s, posted);
    us_watch_upload_sha256(&s->up, job->id.sha256);
    if (fstat(s->up.fd, &st) != 0)
        return again(job, US_WATCH_AGAIN, "cannot be read", errno);
    struct us_watch_id now = us_watch_id_of(&st);
    if (!us_watch_id_same(&now, &job->id))
        return US_WATCH_CHANGED;
    if (s->decoder == NULL)
        return judge_answer(job);
    if (job->id.sha256[0] == '\0' || !is_intact(s)) {
        (void)us_fail(&job->err, US_E_CORRUPT, "the answer is not the one that the server sent");
        return US_WATCH_AGAIN;
    }
    return commit(s);
}

/* With the input open. */
static enum us_watch_verdict send_open(struct us_watch_job *job, int fd, int out_fd)
{
    struct sending s = {.job = job, .out_fd = out_fd, .part_fd = -1};
    enum us_watch_verdict v = US_WATCH_AGAIN_ALL;
    sha256_init(&s.sent_sha);
    sha256_init(&s.file_sha);
    part_name(job->path, s.part);
    s.part_fd = openat(out_fd, s.part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (s.part_fd < 0) {
        v = again(job, v, "the result cannot be written", errno);
    } else if (us_watch_upload_init(&s.up, fd, job->id.size,
                                    job->place->zstd ? US_CODING_ZSTD : US_CODING_IDENTITY) !=
               US_OK) {
        v = again(job, v, "cannot be sent", ENOMEM);
    } else {
        v = exchange(&s);
    }
    us_watch_upload_release(&s.up);
    us_decoder_free(s.decoder);
    if (s.part_fd >= 0) {
        (void)close(s.part_fd);
        /* After "arrived" it stays for the next start, should this be the last that we do. */
        if (job->said.what != US_WATCH_IS_ARRIVED || v == US_WATCH_AGAIN_ALL)
            (void)unlinkat(out_fd, s.part, 0);
    }
    return v;
}

/* Whether the result's name is taken by something that no line of the journal explains. */
static bool is_strangers(const struct us_watch_job *job, int out_fd)
{
    struct stat st;
    return job->said.result_sha256[0] == '\0' &&
           fstatat(out_fd, job->result, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

/* A file that only got a new time: its content was done before. */
static bool is_known(struct us_watch_job *job)
{
    char sha[US_SHA256_TEXT];
    bool same = false;
    int dir_fd = -1;
    if (job->said.what != US_WATCH_IS_DONE || job->said.id.size != job->id.size ||
        us_watch_id_same(&job->said.id, &job->id)) /* sent again because it was asked for */
        return false;
    dir_fd = open(job->place->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd >= 0 && us_watch_sha256_file(dir_fd, job->path, sha))
        same = strcmp(sha, job->said.id.sha256) == 0;
    if (dir_fd >= 0)
        (void)close(dir_fd);
    return same;
}

/* Its result came in an earlier attempt that could not be recorded. */
static bool has_arrived(const struct us_watch_job *job, int out_fd)
{
    char sha[US_SHA256_TEXT];
    return job->said.what == US_WATCH_IS_ARRIVED && us_watch_id_same(&job->said.id, &job->id) &&
           us_watch_sha256_file(out_fd, job->result, sha) &&
           strcmp(sha, job->said.result_sha256) == 0;
}

static enum us_watch_verdict send_checked(struct us_watch_job *job, int fd, int out_fd)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return again(job, US_WATCH_AGAIN, "cannot be read", errno);
    struct us_watch_id now = us_watch_id_of(&st);
    if (!us_watch_id_same(&now, &job->id))
        return US_WATCH_CHANGED;
    if (has_arrived(job, out_fd))
        return record(job, US_WATCH_IS_DONE);
    if (is_known(job)) {
        (void)memcpy(job->id.sha256, job->said.id.sha256, US_SHA256_TEXT);
        job->said.id = job->id;
        return record(job, US_WATCH_IS_DONE);
    }
    if (job->id.size == 0) {
        (void)us_fail(&job->err, US_E_FORMAT, "is empty");
        return us_watch_refuse(job);
    }
    if (is_strangers(job, out_fd)) {
        (void)us_fail(&job->err, US_E_EXISTS, "%s stands there already, and not by this watcher",
                      job->result);
        return us_watch_refuse(job);
    }
    return send_open(job, fd, out_fd);
}

enum us_watch_verdict us_watch_send(struct us_watch_job *job)
{
    const struct us_watch_place *p = job->place;
    char *name = us_watch_result_name(job->path), *path = NULL;
    if (name == NULL || strlen(name) >= sizeof(job->result) ||
        asprintf(&path, "%s/%s", p->dir, job->path) < 0) {
        free(name);
        return again(job, US_WATCH_AGAIN_ALL, "cannot be sent", ENOMEM);
    }
    (void)snprintf(job->result, sizeof(job->result), "%s", name);
    free(name);
    enum us_watch_verdict v = US_WATCH_VANISHED;
    /* Not to wait for the other end, should a pipe have taken the file's place. */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    int e = errno;
    int out_fd = open(p->out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && e != ENOENT && e != ENOTDIR)
        v = again(job, US_WATCH_AGAIN, "cannot be read", e);
    else if (fd >= 0 && out_fd < 0)
        v = again(job, US_WATCH_AGAIN_ALL, p->out, errno);
    else if (fd >= 0)
        v = send_checked(job, fd, out_fd);
    if (fd >= 0)
        (void)close(fd);
    if (out_fd >= 0)
        (void)close(out_fd);
    free(path);
    return v;
}

enum us_status us_watch_finish(const struct us_watch_place *p, struct us_watch_file *f,
                               bool *ret_done, struct us_err *err)
{
    char sha[US_SHA256_TEXT] = "", part[PART_BYTES];
    struct us_watch_job job = {.place = p, .path = f->path, .id = f->said.id, .said = f->said};
    char *name = us_watch_result_name(f->path);
    int out_fd = open(p->out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    *ret_done = false;
    if (name == NULL || out_fd < 0) {
        free(name);
        return us_fail(err, US_E_IO, "%s: %s", p->out, strerror(errno));
    }
    (void)snprintf(job.result, sizeof(job.result), "%s", name);
    free(name);
    part_name(f->path, part);
    enum us_watch_verdict v = US_WATCH_AGAIN;
    if (us_watch_sha256_file(out_fd, job.result, sha) && strcmp(sha, job.said.result_sha256) == 0)
        v = US_WATCH_GOT;
    else if (us_watch_sha256_file(out_fd, part, sha) && strcmp(sha, job.said.result_sha256) == 0)
        v = put_in_place(&job, out_fd, part);
    (void)close(out_fd);
    if (v == US_WATCH_AGAIN)
        return US_OK;
    if (v == US_WATCH_GOT)
        v = record(&job, US_WATCH_IS_DONE);
    if (v != US_WATCH_GOT) {
        if (err != NULL)
            *err = job.err;
        return US_E_IO;
    }
    f->said = job.said;
    *ret_done = true;
    return US_OK;
}

void us_watch_sweep(const struct us_watch_place *p)
{
    DIR *dir = opendir(p->out);
    if (dir == NULL)
        return;
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        size_t n = strlen(e->d_name), k = strlen(PART_SUFFIX);
        if (n > k && strncmp(e->d_name, PART_PREFIX, strlen(PART_PREFIX)) == 0 &&
            strcmp(e->d_name + n - k, PART_SUFFIX) == 0)
            (void)unlinkat(dirfd(dir), e->d_name, 0);
    }
    (void)closedir(dir);
}
