/* The subcommand `usplitd token`; see us_token_cli.h. Standard output carries only what a script
 * wants: the new token, the list. */
#include "us_token_cli.h"

#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "us_config.h"
#include "us_store_sqlite.h"
#include "us_tokens.h"

#define DAY_MS 86400000LL

struct options {
    struct us_config config; /* for data-dir */
    struct us_store_token token;
    const char *verb, *name; /* name: the owner, or the id */
    bool json;
};

static const char usage[] =
    "usage: usplitd token add OWNER [--scopes infer,train,admin,metrics] [--expires DAYS]\n"
    "                     [--max-storage BYTES] [--max-jobs N] [--priority CLASS] WHERE\n"
    "       usplitd token list [--json] WHERE\n"
    "       usplitd token revoke ID WHERE\n"
    "WHERE is --data-dir DIR, or --config FILE with the daemon's data-dir in it.\n\n"
    "add prints the token, which is shown this once: only a hash of it is kept. Without --scopes "
    "it\n"
    "may infer (predict and read models). Several tokens may have one OWNER, who owns the jobs, "
    "data\n"
    "sets and models made with any of them. --max-jobs counts unfinished jobs, --max-storage data "
    "sets\n"
    "and models (K, M, G, T); CLASS, the best one that jobs may ask for, is interactive, batch or "
    "train.\n"
    "A running daemon follows within a second.\n";

/* ---- the command line ---------------------------------------------------------------------- */

static enum us_status take_number(const char *flag, const char *value, bool bytes, int64_t max,
                                  int64_t *ret, struct us_err *err)
{
    if (us_config_number(value, bytes, ret) && *ret >= 1 && *ret <= max)
        return US_OK;
    return us_fail(err, US_E_ARG, "%s: '%.80s' is not allowed; allowed: 1 to %" PRId64, flag, value,
                   max);
}

static enum us_status take_option(struct options *o, const char *flag, const char *value,
                                  struct us_err *err)
{
    if (strcmp(flag, "--data-dir") == 0)
        return us_config_set(&o->config, "data-dir", value, "command line", err);
    if (strcmp(flag, "--config") == 0)
        return us_config_read_file(&o->config, value, err);
    if (strcmp(o->verb, "add") != 0)
        return us_fail(err, US_E_ARG, "token %s does not take %.40s", o->verb, flag);
    if (strcmp(flag, "--scopes") == 0)
        return us_scopes_parse(value, &o->token.scopes, err);
    if (strcmp(flag, "--max-storage") == 0)
        return take_number(flag, value, true, 1LL << 60, &o->token.max_bytes, err);
    if (strcmp(flag, "--max-jobs") == 0)
        return take_number(flag, value, false, 1000000, &o->token.max_jobs, err);
    if (strcmp(flag, "--expires") == 0) {
        int64_t days = 0;
        US_TRY(take_number(flag, value, false, 36500, &days, err));
        o->token.expires_ms = (int64_t)time(NULL) * 1000 + days * DAY_MS;
        return US_OK;
    }
    if (strcmp(flag, "--priority") != 0)
        return us_fail(err, US_E_ARG, "'%.80s' is not an option of token %s", flag, o->verb);
    if (!us_job_class_parse(value, &o->token.ceiling))
        return us_fail(err, US_E_ARG, "--priority: '%.80s'; allowed: interactive, batch, train",
                       value);
    return US_OK;
}

static enum us_status parse(struct options *o, int argc, char *const *argv, struct us_err *err)
{
    o->config = us_config_defaults();
    o->token.scopes = US_SCOPE_INFER;
    if (argc < 2 || (strcmp(argv[1], "add") != 0 && strcmp(argv[1], "list") != 0 &&
                     strcmp(argv[1], "revoke") != 0))
        return us_fail(err, US_E_ARG, "token: expected add, list or revoke");
    o->verb = argv[1];
    for (int i = 2; i < argc; i++) {
        bool flag = strncmp(argv[i], "--", 2) == 0;
        if (!flag && o->name != NULL)
            return us_fail(err, US_E_ARG, "'%.80s': there is one name already", argv[i]);
        if (!flag)
            o->name = argv[i];
        else if (strcmp(argv[i], "--json") == 0 && strcmp(o->verb, "list") == 0)
            o->json = true;
        else if (i + 1 == argc)
            return us_fail(err, US_E_ARG, "%.40s needs a value", argv[i]);
        else
            US_TRY(take_option(o, argv[i], argv[i + 1], err));
        i += flag && strcmp(argv[i], "--json") != 0;
    }
    if (o->config.data_dir[0] == '\0')
        return us_fail(err, US_E_ARG, "which data folder? give --data-dir DIR or --config FILE");
    if ((o->name != NULL) == (strcmp(o->verb, "list") == 0))
        return us_fail(err, US_E_ARG, "token %s takes %s", o->verb,
                       o->name != NULL               ? "no name"
                       : strcmp(o->verb, "add") == 0 ? "the name of its owner"
                                                     : "the id of a token, as token list shows");
    if (strcmp(o->verb, "add") == 0 && !us_owner_ok(o->name))
        return us_fail(err, US_E_ARG,
                       "'%.80s' is no owner's name; allowed: 1 to %d characters of A-Z a-z 0-9 . _ "
                       "- @, not beginning with a dot",
                       o->name, US_MAX_OWNER);
    return US_OK;
}

/* ---- the store ----------------------------------------------------------------------------- */

/* Root's files in the folder would lock the daemon out. */
static enum us_status become_owner(const char *dir, struct us_err *err)
{
    struct stat st;
    if (stat(dir, &st) != 0)
        return us_fail(err, US_E_IO, "data-dir: %s: %s", dir, strerror(errno));
    if (geteuid() != 0 || st.st_uid == 0)
        return US_OK;
    if (setgroups(0, NULL) != 0 || setgid(st.st_gid) != 0 || setuid(st.st_uid) != 0)
        return us_fail(err, US_E_IO, "cannot become the owner of %s: %s", dir, strerror(errno));
    return US_OK;
}

static enum us_status open_store(const struct options *o, struct us_store **ret, struct us_err *err)
{
    char path[PATH_MAX];
    US_TRY(become_owner(o->config.data_dir, err));
    (void)umask(0027);
    int n = snprintf(path, sizeof(path), "%s/usplit.db", o->config.data_dir);
    if (n < 0 || n >= (int)sizeof(path))
        return us_fail(err, US_E_ARG, "data-dir: the path is too long");
    const struct us_store_sqlite_options opt = {.path = path};
    return us_store_sqlite_open(&opt, ret, err);
}

static enum us_status add(struct options *o, struct us_store *s, struct us_err *err)
{
    char text[US_TOKEN_TEXT_BYTES], scopes[US_SCOPES_BYTES];
    (void)snprintf(o->token.owner, sizeof(o->token.owner), "%s", o->name);
    US_TRY(us_token_mint(&o->token, text, err));
    US_TRY(s->ops->token_put(s, &o->token, err));
    us_scopes_text(o->token.scopes, scopes);
    (void)fprintf(stderr, "token %s of %s may %s; it is not shown again:\n", o->token.id,
                  o->token.owner, scopes);
    bool ok = printf("%s\n", text) > 0 && fflush(stdout) == 0;
    explicit_bzero(text, sizeof(text));
    if (!ok) { /* nobody has seen it, so nobody may own it */
        (void)!s->ops->token_delete(s, o->token.id, NULL);
        return us_fail(err, US_E_IO, "the token could not be printed and was taken back");
    }
    return US_OK;
}

static void date_text(int64_t ms, const char *never, char text[24])
{
    time_t s = (time_t)(ms / 1000);
    struct tm tm;
    (void)snprintf(text, 24, "%s", never);
    if (ms != 0 && gmtime_r(&s, &tm) != NULL)
        (void)strftime(text, 24, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

static void print_plain(const struct us_store_token *t)
{
    char scopes[US_SCOPES_BYTES], created[24], expires[24];
    us_scopes_text(t->scopes, scopes);
    date_text(t->created_ms, "-", created);
    date_text(t->expires_ms, "never", expires);
    bool over = t->expires_ms != 0 && t->expires_ms <= (int64_t)time(NULL) * 1000;
    (void)printf("%-12s  %-20s  %-24s  %-20s  %-20s%s", t->id, t->owner, scopes, created, expires,
                 over ? " (expired)" : "");
    if (t->max_jobs != 0)
        (void)printf("  max-jobs %" PRId64, t->max_jobs);
    if (t->max_bytes != 0)
        (void)printf("  max-storage %" PRId64, t->max_bytes);
    if (t->ceiling != US_JOB_INTERACTIVE)
        (void)printf("  priority %s", us_job_class_name(t->ceiling));
    (void)putchar('\n');
}

static json_t *token_json(const struct us_store_token *t)
{
    char scopes[US_SCOPES_BYTES], created[24], expires[24];
    us_scopes_text(t->scopes, scopes);
    date_text(t->created_ms, "", created);
    date_text(t->expires_ms, "", expires);
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:s}", "id", t->id, "owner", t->owner,
                     "scopes", scopes, "created", created, "expires", expires, "max_storage",
                     (json_int_t)t->max_bytes, "max_jobs", (json_int_t)t->max_jobs, "priority",
                     us_job_class_name(t->ceiling));
}

static enum us_status list(const struct options *o, struct us_store *s, struct us_err *err)
{
    struct us_store_token *tokens = NULL;
    int64_t n = 0;
    US_TRY(s->ops->token_list(s, &tokens, &n, err));
    json_t *array = json_array();
    if (!o->json && n > 0)
        (void)printf("%-12s  %-20s  %-24s  %-20s  %s\n", "ID", "OWNER", "SCOPES", "CREATED",
                     "EXPIRES");
    for (int64_t i = 0; i < n; i++) {
        if (o->json)
            (void)json_array_append_new(array, token_json(&tokens[i]));
        else
            print_plain(&tokens[i]);
    }
    bool ok = !o->json || json_dumpf(array, stdout, JSON_INDENT(1)) == 0;
    ok = (!o->json || putchar('\n') != EOF) && fflush(stdout) == 0 && ok;
    json_decref(array);
    free(tokens);
    return ok ? US_OK : us_fail(err, US_E_IO, "the list could not be printed");
}

static enum us_status take_back(const struct options *o, struct us_store *s, struct us_err *err)
{
    struct us_store_token *tokens = NULL;
    int64_t n = 0;
    US_TRY(s->ops->token_delete(s, o->name, err));
    (void)fprintf(stderr, "token %s is revoked\n", o->name);
    if (s->ops->token_list(s, &tokens, &n, NULL) == US_OK && n == 0)
        (void)fputs("that was the last one: after its next start a daemon on loopback needs no "
                    "token, and one on another address does not start\n",
                    stderr);
    free(tokens);
    return US_OK;
}

int us_token_main(int argc, char *const *argv)
{
    static struct options o; /* large, and one per process */
    struct us_store *s = NULL;
    struct us_err err = {0};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            (void)fputs(usage, stdout);
            return 0;
        }
    }
    if (parse(&o, argc, argv, &err) != US_OK) {
        (void)fprintf(stderr, "usplitd: %s\n\n%s", err.msg, usage);
        return 2;
    }
    enum us_status st = open_store(&o, &s, &err);
    if (st == US_OK)
        st = strcmp(o.verb, "add") == 0    ? add(&o, s, &err)
             : strcmp(o.verb, "list") == 0 ? list(&o, s, &err)
                                           : take_back(&o, s, &err);
    if (s != NULL)
        s->ops->close(s);
    if (st != US_OK)
        (void)fprintf(stderr, "usplitd: %s\n", err.msg);
    return st == US_OK ? 0 : 1;
}
