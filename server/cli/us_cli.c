/* Command lines from tables; see us_cli.h. */
#include "us_cli.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "us_interrupt.h"

#define HELP_COLUMN 24
#define HELP_WIDTH  80

/* Where one option's value goes and what to call it in an error. */
struct slot {
    const struct us_cli_opt *opt;
    void *dst;
    struct us_err *err;
};

const char *us_cli_word(const char *words, int32_t index, char *buf, size_t n)
{
    const char *p = words;
    for (; index > 0; index--) {
        p = strchr(p, '|');
        US_ASSERT(p != NULL);
        p++;
    }
    (void)snprintf(buf, n, "%.*s", (int)strcspn(p, "|"), p);
    return buf;
}

/* Index of the n characters at text among words, or -1. */
static int32_t find_word(const char *words, const char *text, size_t n)
{
    int32_t i = 0;
    for (const char *p = words;; p++, i++) {
        size_t len = strcspn(p, "|");
        if (len == n && strncmp(p, text, n) == 0)
            return i;
        p += len;
        if (*p == '\0')
            return -1;
    }
}

static enum us_status bad_word(const struct slot *s, const char *text, size_t n)
{
    return us_fail(s->err, US_E_ARG, "--%s: '%.*s', expected %s", s->opt->name, (int)n, text,
                   s->opt->words);
}

/* A number that fills the n characters at text; false otherwise. */
static bool scan_int(const char *text, size_t n, int64_t *ret)
{
    char buf[32], *end = NULL;
    if (n == 0 || n >= sizeof(buf) || strchr("+-0123456789", text[0]) == NULL)
        return false;
    memcpy(buf, text, n);
    buf[n] = '\0';
    errno = 0;
    long long v = strtoll(buf, &end, 10);
    *ret = v;
    return errno == 0 && *end == '\0';
}

static bool scan_real(const char *text, size_t n, double *ret)
{
    char buf[64], *end = NULL;
    if (n == 0 || n >= sizeof(buf) || strchr("+-.0123456789", text[0]) == NULL)
        return false;
    memcpy(buf, text, n);
    buf[n] = '\0';
    *ret = strtod(buf, &end);
    return *end == '\0' && isfinite(*ret);
}

static enum us_status set_int(const struct slot *s, const char *text, size_t n, int64_t *dst)
{
    int64_t v = 0;
    if (!scan_int(text, n, &v) || v < s->opt->min || v > s->opt->max)
        return us_fail(s->err, US_E_ARG,
                       "--%s: '%.*s', expected an integer from %" PRId64 " to %" PRId64,
                       s->opt->name, (int)n, text, s->opt->min, s->opt->max);
    *dst = v;
    return US_OK;
}

static enum us_status set_real(const struct slot *s, const char *text, size_t n, double *dst)
{
    if (s->opt->type == US_CLI_REALS && n == 4 && strncmp(text, "none", 4) == 0) {
        *dst = (double)INFINITY;
        return US_OK;
    }
    if (!scan_real(text, n, dst))
        return us_fail(s->err, US_E_ARG, "--%s: '%.*s', expected a number", s->opt->name, (int)n,
                       text);
    return US_OK;
}

static enum us_status set_text(const struct slot *s, const char *text, size_t n, char *dst)
{
    if (n == 0 || n >= US_MAX_NAME)
        return us_fail(s->err, US_E_ARG, "--%s: a name of %zu bytes, expected 1 to %d",
                       s->opt->name, n, US_MAX_NAME - 1);
    memcpy(dst, text, n);
    dst[n] = '\0';
    return US_OK;
}

/* One entry of a comma list, the k-th. */
static enum us_status set_entry(const struct slot *s, const char *text, size_t n, int32_t k)
{
    if (s->opt->type == US_CLI_WORDS) {
        int32_t i = find_word(s->opt->words, text, n);
        if (i < 0)
            return bad_word(s, text, n);
        *(uint32_t *)s->dst |= 1U << i;
        return US_OK;
    }
    if (k >= US_CLI_MAX_LIST)
        return us_fail(s->err, US_E_ARG, "--%s: more than %d values", s->opt->name,
                       US_CLI_MAX_LIST);
    if (s->opt->type == US_CLI_INTS) {
        struct us_cli_ints *list = s->dst;
        list->n = k + 1;
        return set_int(s, text, n, &list->v[k]);
    }
    if (s->opt->type == US_CLI_REALS) {
        struct us_cli_reals *list = s->dst;
        list->n = k + 1;
        return set_real(s, text, n, &list->v[k]);
    }
    struct us_cli_texts *list = s->dst;
    list->n = k + 1;
    return set_text(s, text, n, list->v[k]);
}

static enum us_status set_list(const struct slot *s, const char *text)
{
    if (s->opt->type == US_CLI_WORDS)
        *(uint32_t *)s->dst = 0;
    for (int32_t k = 0;; k++) {
        size_t n = strcspn(text, ",");
        US_TRY(set_entry(s, text, n, k));
        if (text[n] == '\0')
            return US_OK;
        text += n + 1;
    }
}

static enum us_status set_value(const struct slot *s, const char *text)
{
    size_t n = strlen(text);
    int32_t word = 0;
    switch (s->opt->type) {
    case US_CLI_FLAG:
        *(bool *)s->dst = true;
        return US_OK;
    case US_CLI_INT:
        return set_int(s, text, n, s->dst);
    case US_CLI_REAL:
        return set_real(s, text, n, s->dst);
    case US_CLI_TEXT:
        if (n == 0)
            return us_fail(s->err, US_E_ARG, "--%s: empty", s->opt->name);
        *(const char **)s->dst = text;
        return US_OK;
    case US_CLI_WORD:
        word = find_word(s->opt->words, text, n);
        if (word < 0)
            return bad_word(s, text, n);
        *(int32_t *)s->dst = word;
        return US_OK;
    case US_CLI_WORDS:
    case US_CLI_INTS:
    case US_CLI_REALS:
    case US_CLI_TEXTS:
        return set_list(s, text);
    }
    US_ASSERT(!"an option type without a parser");
    return US_E_ARG;
}

/* Levenshtein distance of two names, by one row of the table. */
static size_t distance(const char *a, const char *b)
{
    size_t row[64];
    size_t n = strlen(b);
    if (n >= US_COUNT(row))
        return SIZE_MAX;
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 0; a[i] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            size_t best = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            if (best > row[j] + 1)
                best = row[j] + 1;
            if (best > diagonal + 1)
                best = diagonal + 1;
            row[j + 1] = best;
        }
    }
    return row[n];
}

const char *us_cli_nearest(const char *given, const char *const *names, size_t n)
{
    size_t len = strlen(given), best = SIZE_MAX;
    const char *ret = NULL;
    for (size_t i = 0; i < n; i++) {
        /* A word cut short is a better guess than its distance says. */
        size_t d = len >= 3 && strncmp(names[i], given, len) == 0 ? 1 : distance(given, names[i]);
        if (d < best) {
            best = d;
            ret = names[i];
        }
    }
    return best <= 1 + len / 3 ? ret : NULL;
}

static enum us_status unknown_option(const struct us_cli_cmd *cmd, const char *given, size_t n,
                                     struct us_err *err)
{
    char name[64];
    (void)snprintf(name, sizeof(name), "%.*s", (int)n, given);
    const char *names[US_CLI_MAX_OPTS + 1] = {"help"};
    for (size_t i = 0; i < cmd->n_opts; i++)
        names[i + 1] = cmd->opts[i].name;
    const char *near = us_cli_nearest(name, names, cmd->n_opts + 1);
    if (near == NULL)
        return us_fail(err, US_E_ARG, "unknown option --%s (see usplit %s --help)", name,
                       cmd->name);
    return us_fail(err, US_E_ARG, "unknown option --%s, did you mean --%s?", name, near);
}

/* Takes the option at argv[*i], and its value from the next argument if need be. */
static enum us_status take_option(struct us_cli_args *a, void *opts, int argc, char *const *argv,
                                  int *i, struct us_err *err)
{
    const struct us_cli_cmd *cmd = a->cmd;
    const char *name = argv[*i] + 2;
    size_t n = strcspn(name, "="), k = 0;
    while (k < cmd->n_opts &&
           (strlen(cmd->opts[k].name) != n || strncmp(cmd->opts[k].name, name, n) != 0))
        k++;
    if (k == cmd->n_opts)
        return unknown_option(cmd, name, n, err);
    const struct us_cli_opt *opt = &cmd->opts[k];
    const char *value = name[n] == '=' ? name + n + 1 : NULL;
    if ((a->given >> k & 1) != 0)
        return us_fail(err, US_E_ARG, "--%s is given twice", opt->name);
    if (opt->type == US_CLI_FLAG && value != NULL)
        return us_fail(err, US_E_ARG, "--%s takes no value, found '%s'", opt->name, value);
    if (opt->type != US_CLI_FLAG && value == NULL) {
        if (*i + 1 >= argc || strncmp(argv[*i + 1], "--", 2) == 0)
            return us_fail(err, US_E_ARG, "--%s needs a value: %s", opt->name,
                           opt->arg != NULL ? opt->arg : opt->words);
        value = argv[++*i];
    }
    a->given |= 1ULL << k;
    struct slot s = {.opt = opt, .dst = (char *)opts + opt->offset, .err = err};
    return set_value(&s, value == NULL ? "" : value);
}

static void set_defaults(const struct us_cli_cmd *cmd, void *opts)
{
    US_ASSERT(cmd->n_opts <= US_CLI_MAX_OPTS);
    memset(opts, 0, cmd->opts_bytes);
    for (size_t k = 0; k < cmd->n_opts; k++) {
        struct slot s = {.opt = &cmd->opts[k], .dst = (char *)opts + cmd->opts[k].offset};
        if (s.opt->def != NULL)
            US_ASSERT(set_value(&s, s.opt->def) == US_OK);
    }
}

static enum us_status check_complete(const struct us_cli_args *a, struct us_err *err)
{
    const struct us_cli_cmd *cmd = a->cmd;
    for (size_t k = 0; k < cmd->n_opts; k++)
        if (cmd->opts[k].required && (a->given >> k & 1) == 0)
            return us_fail(err, US_E_ARG, "--%s %s is missing", cmd->opts[k].name,
                           cmd->opts[k].arg != NULL ? cmd->opts[k].arg : cmd->opts[k].words);
    if (a->n < cmd->min_args)
        return us_fail(err, US_E_ARG, "%d argument%s, expected %s", a->n, a->n == 1 ? "" : "s",
                       cmd->args);
    return US_OK;
}

enum us_status us_cli_parse(const struct us_cli_cmd *cmd, int argc, char *const *argv, void *opts,
                            struct us_cli_args *a, struct us_err *err)
{
    *a = (struct us_cli_args){.cmd = cmd, .opts = opts};
    set_defaults(cmd, opts);
    bool ended = false;
    for (int i = 0; i < argc; i++) {
        const char *s = argv[i];
        if (!ended && (strcmp(s, "--help") == 0 || strcmp(s, "-h") == 0)) {
            a->help = true;
            return US_OK;
        }
        if (!ended && strcmp(s, "--") == 0) {
            ended = true;
        } else if (!ended && s[0] == '-' && s[1] == '-') {
            US_TRY(take_option(a, opts, argc, argv, &i, err));
        } else if (!ended && s[0] == '-' && s[1] != '\0') {
            return us_fail(err, US_E_ARG, "unknown option %s: options begin with two dashes", s);
        } else if (a->n == cmd->max_args) {
            return us_fail(err, US_E_ARG, "surplus argument '%s', expected %s", s,
                           cmd->max_args == 0 ? "options only" : cmd->args);
        } else {
            a->arg[a->n++] = s;
        }
    }
    return check_complete(a, err);
}

bool us_cli_given(const struct us_cli_args *a, const char *name)
{
    for (size_t k = 0; k < a->cmd->n_opts; k++)
        if (strcmp(a->cmd->opts[k].name, name) == 0)
            return (a->given >> k & 1) != 0;
    US_ASSERT(!"an option that the command does not have");
    return false;
}

/* Prints text, broken at spaces, in the columns from HELP_COLUMN to HELP_WIDTH. */
static void print_wrapped(FILE *out, const char *text)
{
    const int room = HELP_WIDTH - HELP_COLUMN;
    while ((int)strlen(text) > room) {
        int n = room;
        while (n > 0 && text[n] != ' ')
            n--;
        if (n == 0)
            n = room;
        (void)fprintf(out, "%.*s\n%*s", n, text, HELP_COLUMN, "");
        text += text[n] == ' ' ? n + 1 : n;
    }
    (void)fprintf(out, "%s\n", text);
}

static void help_option(const struct us_cli_opt *opt, FILE *out)
{
    const char *arg = opt->type == US_CLI_FLAG ? "" : opt->arg != NULL ? opt->arg : opt->words;
    int n = fprintf(out, "  --%s%s%s", opt->name, arg[0] != '\0' ? " " : "", arg);
    if (n > HELP_COLUMN - 2) {
        (void)fputc('\n', out);
        n = 0;
    }
    (void)fprintf(out, "%*s", HELP_COLUMN - n, "");
    char text[512];
    if (opt->def != NULL)
        (void)snprintf(text, sizeof(text), "%s (default %s)", opt->help, opt->def);
    else
        (void)snprintf(text, sizeof(text), "%s%s", opt->help, opt->required ? " (required)" : "");
    print_wrapped(out, text);
}

void us_cli_help(const struct us_cli_cmd *cmd, FILE *out)
{
    (void)fprintf(out, "usage: usplit %s [options]%s%s\n\n%s\n\n", cmd->name,
                  cmd->args[0] != '\0' ? " " : "", cmd->args, cmd->summary);
    for (size_t k = 0; k < cmd->n_opts; k++)
        help_option(&cmd->opts[k], out);
    (void)fprintf(out, "  --help%*sthis text\n", HELP_COLUMN - 8, "");
    if (cmd->notes != NULL)
        (void)fprintf(out, "\n%s\n", cmd->notes);
}

void us_cli_print(FILE *out, const char *fmt, ...)
{
    char *text = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&text, fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    for (char *s = text; *s != '\0'; s++)
        if (((unsigned char)*s < 0x20 && !(*s == '\n' && s[1] == '\0')) || *s == 0x7f)
            *s = '?';
    (void)fputs(text, out);
    free(text);
}

int us_cli_fail(const struct us_cli_args *a, const struct us_err *err)
{
    int signal = us_interrupt_signal();
    if (err->status == US_E_CANCELLED && signal != 0) {
        us_cli_print(stderr, "usplit %s: interrupted\n", a->cmd->name);
        return 128 + signal;
    }
    us_cli_print(stderr, "usplit %s: %s\n", a->cmd->name,
                 err->msg[0] != '\0' ? err->msg : us_status_text(err->status));
    return 1;
}
