/* `usplit watch`: a folder that a microscope writes into, split by a daemon (us_watch.h). */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "us_commands.h"
#include "us_watch.h"

struct watch_opts {
    const char *server, *model, *out, *ca_file, *token_file;
    struct us_cli_texts match;
    double settle, rescan, backoff;
    int64_t parallel, attempts, silence;
    int32_t compress;
    bool recursive, once, json, retry_failed, redo_missing;
    /* Of the request. */
    int64_t padding, samples, seed, channel;
    int32_t tiling, grid, latent, noise, dtype, precision, pages;
    uint32_t planes;
};

#define OPT(member) .offset = offsetof(struct watch_opts, member)
/* From "padding" on: query parameters of the daemon, passed on as they are given. */
static const struct us_cli_opt watch_table[] = {
    {"server", US_CLI_TEXT, OPT(server), .arg = "URL", .required = true,
     .help = "of usplitd, such as http://127.0.0.1:8080"},
    {"model", US_CLI_TEXT, OPT(model), .arg = "NAME", .required = true,
     .help = "name of the model on the server"},
    {"out", US_CLI_TEXT, OPT(out), .arg = "DIR", .required = true,
     .help = "where the results go: NAME-split.ome.tif, and a journal; may be the watched one"},
    {"match", US_CLI_TEXTS, OPT(match), .arg = "GLOB,GLOB", .def = "*.tif,*.tiff,*.npy",
     .help = "names that are taken, whatever the case"},
    {"recursive", US_CLI_FLAG, OPT(recursive), .help = "subfolders too; linked ones are not"},
    {"once", US_CLI_FLAG, OPT(once),
     .help = "what is there now, then end; status 1 if a file has no result"},
    {"settle", US_CLI_REAL, OPT(settle), .arg = "SECONDS", .def = "5",
     .help = "a file is complete when size and time have not changed for so long"},
    {"rescan", US_CLI_REAL, OPT(rescan), .arg = "SECONDS", .def = "10",
     .help = "how often the folder is read, besides when the system tells of news"},
    {"parallel", US_CLI_INT, OPT(parallel), 1, 16, .arg = "N", .def = "1",
     .help = "files with the server at a time"},
    {"compress", US_CLI_WORD, OPT(compress), .words = "zstd|none", .def = "zstd",
     .help = "on the wire, both ways"},
    {"ca-file", US_CLI_TEXT, OPT(ca_file), .arg = "FILE",
     .help = "PEM of the authority that signed the server's certificate (default: the system's)"},
    {"token-file", US_CLI_TEXT, OPT(token_file), .arg = "FILE",
     .help = "holds the access token, read for each request (default: $USPLIT_TOKEN, if set)"},
    {"backoff", US_CLI_REAL, OPT(backoff), .arg = "SECONDS", .def = "1",
     .help = "pause after a first failure; doubles up to 60; Retry-After counts if longer"},
    {"attempts", US_CLI_INT, OPT(attempts), 1, 1000, .arg = "N", .def = "5",
     .help = "with --once, before a file is left; else there is no end"},
    {"silence", US_CLI_INT, OPT(silence), 1, 604800, .arg = "SECONDS", .def = "3600",
     .help = "without a byte from the server, until a request is sent anew"},
    {"retry-failed", US_CLI_FLAG, OPT(retry_failed),
     .help = "at the start: send again what was refused before"},
    {"redo-missing", US_CLI_FLAG, OPT(redo_missing),
     .help = "split again what has no result in --out any more"},
    {"json", US_CLI_FLAG, OPT(json), .help = "log on standard output, a JSON object per line"},
    {"padding", US_CLI_INT, OPT(padding), 0, US_MAX_PATCH, .arg = "PIXELS",
     .help = "as for usplit predict, like all below (default: the model's)"},
    {"tiling", US_CLI_WORD, OPT(tiling), .words = "inner|outer", .help = "how patches meet"},
    {"grid", US_CLI_WORD, OPT(grid), .words = "fixed|shifted", .help = "of several samples"},
    {"latent", US_CLI_WORD, OPT(latent), .words = "sample|mean", .help = "of the posterior"},
    {"samples", US_CLI_INT, OPT(samples), 1, US_MAX_SAMPLES, .arg = "N",
     .help = "predictions to average (default: the model's)"},
    {"seed", US_CLI_INT, OPT(seed), 0, INT64_MAX, .arg = "S", .help = "of the noise"},
    {"noise", US_CLI_WORD, OPT(noise), .words = "patch|image", .help = "what keys the noise"},
    {"planes", US_CLI_WORDS, OPT(planes), .words = "mean|std", .arg = "mean,std",
     .help = "what to write"},
    {"dtype", US_CLI_WORD, OPT(dtype), .words = "float32|uint16", .help = "of the results"},
    {"precision", US_CLI_WORD, OPT(precision), .words = US_PRECISION_WORDS,
     .help = "inside the network"},
    {"channel", US_CLI_INT, OPT(channel), 0, INT32_MAX, .arg = "N",
     .help = "the channel of the input to split"},
    {"pages", US_CLI_WORD, OPT(pages), .words = "t|z|c",
     .help = "what pages are where a file does not say"},
};
#undef OPT

/* "mean,std" of the bits. */
static void words_text(const struct us_cli_opt *opt, uint32_t bits, char *buf, size_t n)
{
    char word[32];
    size_t k = 0;
    buf[0] = '\0';
    for (int32_t i = 0; bits >> i != 0; i++)
        if ((bits >> i & 1) != 0 && k < n)
            k += (size_t)snprintf(buf + k, n - k, "%s%s", k > 0 ? "," : "",
                                  us_cli_word(opt->words, i, word, sizeof(word)));
}

/* "?padding=24&samples=2" of what was given; an empty text if nothing was. */
static void make_query(const struct us_cli_args *a, char *query, size_t n)
{
    bool passed_on = false;
    size_t k = 0;
    query[0] = '\0';
    for (size_t i = 0; i < US_COUNT(watch_table); i++) {
        const struct us_cli_opt *opt = &watch_table[i];
        const void *value = (const char *)a->opts + opt->offset;
        char text[64];
        passed_on = passed_on || strcmp(opt->name, "padding") == 0;
        if (!passed_on || !us_cli_given(a, opt->name))
            continue;
        if (opt->type == US_CLI_INT)
            (void)snprintf(text, sizeof(text), "%" PRId64, *(const int64_t *)value);
        else if (opt->type == US_CLI_WORD)
            (void)us_cli_word(opt->words, *(const int32_t *)value, text, sizeof(text));
        else
            words_text(opt, *(const uint32_t *)value, text, sizeof(text));
        k += (size_t)snprintf(query + k, n - k, "%c%s=%s", k == 0 ? '?' : '&', opt->name, text);
        US_ASSERT(k < n);
    }
}

static enum us_status check_folder(const char *what, const char *path, struct us_err *err)
{
    struct stat st;
    if (stat(path, &st) != 0)
        return us_fail(err, US_E_ARG, "%s: %s: %s", what, path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return us_fail(err, US_E_ARG, "%s: %s: is no folder", what, path);
    return US_OK;
}

static enum us_status check(const struct us_cli_args *a, struct us_err *err)
{
    const struct watch_opts *o = a->opts;
    size_t n =
        strspn(o->model, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-");
    if (o->model[n] != '\0' || n > 100 || o->model[0] == '.')
        return us_fail(err, US_E_ARG,
                       "--model: '%s', expected 1 to 100 of A-Z a-z 0-9 . _ -, no dot first",
                       o->model);
    if (o->settle < 0 || o->settle > 86400)
        return us_fail(err, US_E_ARG, "--settle: %g, expected 0 to 86400", o->settle);
    if (o->rescan < 0.05 || o->rescan > 86400)
        return us_fail(err, US_E_ARG, "--rescan: %g, expected 0.05 to 86400", o->rescan);
    if (o->backoff < 0.01 || o->backoff > 3600)
        return us_fail(err, US_E_ARG, "--backoff: %g, expected 0.01 to 3600", o->backoff);
    US_TRY(us_http_url_check(o->server, err));
    if (o->ca_file != NULL && access(o->ca_file, R_OK) != 0)
        return us_fail(err, US_E_ARG, "--ca-file: %s: %s", o->ca_file, strerror(errno));
    US_TRY(check_folder("DIR", a->arg[0], err));
    return check_folder("--out", o->out, err);
}

/* The settings as us_watch_run wants them. url, request: buffers that outlive it. */
static struct us_watch_config make_config(const struct us_cli_args *a, const char *url,
                                          const char *request)
{
    const struct watch_opts *o = a->opts;
    const char *token = getenv("USPLIT_TOKEN");
    return (struct us_watch_config){
        .place = {.dir = a->arg[0],
                  .out = o->out,
                  .url = url,
                  .token_file = o->token_file,
                  .token = token != NULL && token[0] != '\0' ? token : NULL,
                  .zstd = o->compress == 0},
        .request = request,
        .ca_file = o->ca_file,
        .match = &o->match,
        .settle_s = o->settle,
        .rescan_s = o->rescan,
        .backoff_s = o->backoff,
        .silence_s = o->silence,
        .parallel = o->parallel,
        .attempts = o->attempts,
        .recursive = o->recursive,
        .once = o->once,
        .json = o->json,
        .retry_failed = o->retry_failed,
        .redo_missing = o->redo_missing,
    };
}

static int report(const struct us_cli_args *a, const struct us_watch_totals *t, enum us_status st,
                  const struct us_err *err)
{
    const struct watch_opts *o = a->opts;
    /* To be stopped is how a watcher ends. */
    if (st != US_OK && (st != US_E_CANCELLED || o->once))
        return us_cli_fail(a, err);
    if (!o->json)
        us_cli_print(stderr,
                     "usplit watch: %" PRId64 " done, %" PRId64 " failed, %" PRId64 " left\n",
                     t->n_done, t->n_failed, t->n_left);
    return o->once && t->n_failed + t->n_left > 0 ? 1 : 0;
}

static int run_watch(const struct us_cli_args *a)
{
    const struct watch_opts *o = a->opts;
    struct us_err err = {0};
    struct us_watch_totals totals = {0};
    char query[1024], request[1200], *url = NULL;
    if (check(a, &err) != US_OK) {
        us_cli_print(stderr, "usplit watch: %s\n", err.msg);
        return 2;
    }
    make_query(a, query, sizeof(query));
    (void)snprintf(request, sizeof(request), "%s%s", o->model, query);
    size_t n = strlen(o->server);
    while (n > 0 && o->server[n - 1] == '/')
        n--;
    if (asprintf(&url, "%.*s/v1/models/%s/predict%s", (int)n, o->server, o->model, query) < 0) {
        us_cli_print(stderr, "usplit watch: out of memory\n");
        return 1;
    }
    struct us_watch_config c = make_config(a, url, request);
    enum us_status st = us_watch_run(&c, &totals, &err);
    free(url);
    return report(a, &totals, st, &err);
}

const struct us_cli_cmd us_cmd_watch = {
    .name = "watch",
    .summary = "Have a server split every image that appears in a folder.",
    .args = "DIR",
    .min_args = 1,
    .max_args = 1,
    .opts = watch_table,
    .n_opts = US_COUNT(watch_table),
    .opts_bytes = sizeof(struct watch_opts),
    .notes = "Each file is sent until the server has acknowledged it, and never again, also\n"
             "after a kill or a power cut: OUT/.usplit-watch.jsonl remembers. A file that\n"
             "the server refuses is tried again when it changes. SIGTERM ends it, status 0.",
    .run = run_watch,
};
