/*
 * Settings table, command line and configuration file; see us_config.h. A setting is a record
 * with its offset in struct us_config, so that adding one is one line in us_config.def.
 */
#include "us_config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum kind { KIND_TEXT, KIND_INT, KIND_BYTES, KIND_CHOICE, KIND_FLAG };

struct setting {
    const char *member; /* with underscores; flags and keys have dashes */
    enum kind kind;
    size_t offset;
    int64_t def, min, max;
    const char *def_text;
    const char *form; /* TEXT: placeholder, INT: unit, CHOICE: the choices */
    const char *text;
};

static const struct setting settings[] = {
#define US_CONF_TEXT(m, d, form, text)                                                             \
    {#m, KIND_TEXT, offsetof(struct us_config, m), 0, 0, 0, d, form, text},
#define US_CONF_INT(m, d, min, max, unit, text)                                                    \
    {#m, KIND_INT, offsetof(struct us_config, m), d, min, max, NULL, unit, text},
#define US_CONF_BYTES(m, d, min, max, text)                                                        \
    {#m, KIND_BYTES, offsetof(struct us_config, m), d, min, max, NULL, "bytes", text},
#define US_CONF_CHOICE(m, d, choices, text)                                                        \
    {#m, KIND_CHOICE, offsetof(struct us_config, m), 0, 0, 0, d, choices, text},
#define US_CONF_FLAG(m, text)                                                                      \
    {#m, KIND_FLAG, offsetof(struct us_config, m), 0, 0, 1, "no", "", text},
#include "us_config.def"
#undef US_CONF_TEXT
#undef US_CONF_INT
#undef US_CONF_BYTES
#undef US_CONF_CHOICE
#undef US_CONF_FLAG
};

/* "max-queue" names the member max_queue; the underscore form is not a second spelling. */
static bool key_is(const char *key, const char *member)
{
    for (; *member != '\0'; key++, member++) {
        if (*key != (*member == '_' ? '-' : *member))
            return false;
    }
    return *key == '\0';
}

static const struct setting *find_setting(const char *key)
{
    for (size_t i = 0; i < US_COUNT(settings); i++) {
        if (key_is(key, settings[i].member))
            return &settings[i];
    }
    return NULL;
}

static void print_key(FILE *out, const char *member)
{
    for (; *member != '\0'; member++)
        (void)fputc(*member == '_' ? '-' : *member, out);
}

/* Index of value among choices ("a|b|c"), or -1. */
static int64_t choice_index(const char *choices, const char *value)
{
    size_t n = strlen(value);
    int64_t index = 0;
    for (const char *p = choices;; p += strcspn(p, "|") + 1, index++) {
        size_t len = strcspn(p, "|");
        if (len == n && memcmp(p, value, n) == 0)
            return index;
        if (p[len] == '\0')
            return -1;
    }
}

bool us_config_number(const char *s, bool suffix, int64_t *ret)
{
    if (*s < '0' || *s > '9')
        return false;
    errno = 0;
    char *end;
    long long v = strtoll(s, &end, 10);
    if (errno != 0)
        return false;
    if (suffix && *end != '\0') {
        const char *p = strchr("KMGT", *end);
        if (p == NULL || end[1] != '\0')
            return false;
        int shift = 10 * (int)(p - "KMGT" + 1);
        if (v > (INT64_MAX >> shift))
            return false;
        v <<= shift;
        end++;
    }
    *ret = v;
    return *end == '\0';
}

static enum us_status set_text(const struct setting *s, char *dst, const char *key,
                               const char *value, const char *where, struct us_err *err)
{
    size_t n = strlen(value);
    if (n >= US_CONF_TEXT_BYTES)
        return us_fail(err, US_E_ARG, "%s: %s: the value has %zu bytes; allowed: up to %d (%s)",
                       where, key, n, US_CONF_TEXT_BYTES - 1, s->form);
    memcpy(dst, value, n + 1);
    return US_OK;
}

static enum us_status set_number(const struct setting *s, int64_t *dst, const char *key,
                                 const char *value, const char *where, struct us_err *err)
{
    int64_t v;
    if (us_config_number(value, s->kind == KIND_BYTES, &v) && v >= s->min && v <= s->max) {
        *dst = v;
        return US_OK;
    }
    return us_fail(err, US_E_ARG,
                   "%s: %s: '%.80s' is not allowed; allowed: %" PRId64 " to %" PRId64 " %s%s",
                   where, key, value, s->min, s->max, s->form,
                   s->kind == KIND_BYTES ? ", with K, M, G or T if you like" : "");
}

static enum us_status set_flag(bool *dst, const char *key, const char *value, const char *where,
                               struct us_err *err)
{
    if (strcmp(value, "yes") == 0 || strcmp(value, "true") == 0)
        *dst = true;
    else if (strcmp(value, "no") == 0 || strcmp(value, "false") == 0)
        *dst = false;
    else
        return us_fail(err, US_E_ARG, "%s: %s: '%.80s' is not allowed; allowed: yes, no", where,
                       key, value);
    return US_OK;
}

enum us_status us_config_set(struct us_config *c, const char *key, const char *value,
                             const char *where, struct us_err *err)
{
    const struct setting *s = find_setting(key);
    if (s == NULL)
        return us_fail(err, US_E_ARG, "%s: '%.80s' is not a setting; usplitd --help lists them",
                       where, key);
    char *at = (char *)c + s->offset;
    switch (s->kind) {
    case KIND_TEXT:
        return set_text(s, at, key, value, where, err);
    case KIND_INT:
    case KIND_BYTES:
        return set_number(s, (int64_t *)(void *)at, key, value, where, err);
    case KIND_FLAG:
        return set_flag((bool *)(void *)at, key, value, where, err);
    case KIND_CHOICE:
        break;
    }
    int64_t index = choice_index(s->form, value);
    if (index < 0)
        return us_fail(err, US_E_ARG, "%s: %s: '%.80s' is not allowed; allowed: %s", where, key,
                       value, s->form);
    *(int64_t *)(void *)at = index;
    return US_OK;
}

struct us_config us_config_defaults(void)
{
    struct us_config c;
    memset(&c, 0, sizeof(c));
    for (size_t i = 0; i < US_COUNT(settings); i++) {
        const struct setting *s = &settings[i];
        char *at = (char *)&c + s->offset;
        if (s->kind == KIND_TEXT)
            memcpy(at, s->def_text, strlen(s->def_text) + 1);
        else if (s->kind == KIND_INT || s->kind == KIND_BYTES)
            *(int64_t *)(void *)at = s->def;
        else if (s->kind == KIND_CHOICE)
            *(int64_t *)(void *)at = choice_index(s->form, s->def_text);
    }
    return c;
}

/* Cuts blanks off both ends, in place. */
static char *trim(char *s)
{
    s += strspn(s, " \t\r");
    size_t n = strlen(s);
    while (n > 0 && strchr(" \t\r", s[n - 1]) != NULL)
        s[--n] = '\0';
    return s;
}

static enum us_status parse_line(struct us_config *c, char *line, const char *where, bool *seen,
                                 struct us_err *err)
{
    char *key = trim(line);
    if (*key == '\0' || *key == '#')
        return US_OK;
    char *eq = strchr(key, '=');
    if (eq == NULL)
        return us_fail(err, US_E_ARG, "%s: '%.80s' is not of the form key = value", where, key);
    *eq = '\0';
    key = trim(key);
    char *value = trim(eq + 1);
    const struct setting *s = find_setting(key);
    if (s != NULL && seen[s - settings])
        return us_fail(err, US_E_ARG, "%s: %s is set twice in this file", where, key);
    US_TRY(us_config_set(c, key, value, where, err));
    if (s != NULL)
        seen[s - settings] = true;
    return US_OK;
}

enum us_status us_config_parse(struct us_config *c, const char *text, size_t n, const char *name,
                               struct us_err *err)
{
    bool seen[US_COUNT(settings)] = {false};
    char line[US_CONF_TEXT_BYTES + 128];
    char where[256];
    int64_t number = 1;
    for (size_t at = 0; at < n; number++) {
        const char *nl = memchr(text + at, '\n', n - at);
        size_t len = nl != NULL ? (size_t)(nl - (text + at)) : n - at;
        (void)snprintf(where, sizeof(where), "%.200s:%" PRId64, name, number);
        if (len >= sizeof(line))
            return us_fail(err, US_E_ARG, "%s: the line has %zu bytes; allowed: up to %zu", where,
                           len, sizeof(line) - 1);
        if (memchr(text + at, '\0', len) != NULL)
            return us_fail(err, US_E_ARG, "%s: the line holds a NUL byte", where);
        memcpy(line, text + at, len);
        line[len] = '\0';
        US_TRY(parse_line(c, line, where, seen, err));
        at += len + 1;
    }
    return US_OK;
}

enum us_status us_config_read_file(struct us_config *c, const char *path, struct us_err *err)
{
    char *text = NULL;
    enum us_status st;
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return us_fail(err, errno == ENOENT ? US_E_NOT_FOUND : US_E_IO, "%s: %s", path,
                       strerror(errno));
    text = malloc((size_t)US_CONF_FILE_BYTES);
    if (text == NULL) {
        st = us_fail(err, US_E_NOMEM, "%s: no memory to read it", path);
        goto out;
    }
    size_t n = fread(text, 1, (size_t)US_CONF_FILE_BYTES, f);
    if (ferror(f))
        st = us_fail(err, US_E_IO, "%s: %s", path, strerror(errno));
    else if (n == (size_t)US_CONF_FILE_BYTES)
        st = us_fail(err, US_E_TOO_LARGE, "%s: over %ld bytes", path, US_CONF_FILE_BYTES);
    else
        st = us_config_parse(c, text, n, path, err);
out:
    free(text);
    (void)fclose(f);
    return st;
}

/* One argument: "--key=value", "--key value" or "--flag". *used counts the arguments taken. */
static enum us_status parse_arg(struct us_config *c, int argc, char *const *argv, int i, int *used,
                                struct us_err *err)
{
    char key[64];
    const char *arg = argv[i] + 2;
    size_t len = strcspn(arg, "=");
    *used = 1;
    if (len >= sizeof(key))
        return us_fail(err, US_E_ARG, "command line: '%.80s' is not a setting", argv[i]);
    memcpy(key, arg, len);
    key[len] = '\0';
    if (strcmp(key, "config") == 0) { /* read before the flags; skipped here */
        *used = arg[len] == '=' ? 1 : 2;
        return US_OK;
    }
    const struct setting *s = find_setting(key);
    if (s != NULL && s->kind == KIND_FLAG && arg[len] == '\0')
        return us_config_set(c, key, "yes", "command line", err);
    if (arg[len] == '=')
        return us_config_set(c, key, arg + len + 1, "command line", err);
    if (s != NULL && i + 1 >= argc)
        return us_fail(err, US_E_ARG, "command line: --%s needs a value", key);
    *used = 2;
    return us_config_set(c, key, i + 1 < argc ? argv[i + 1] : "", "command line", err);
}

/* The file of --config applies before every flag, wherever it stands. */
static enum us_status read_named_file(struct us_config *c, int argc, char *const *argv,
                                      struct us_err *err)
{
    for (int i = 1; i < argc; i++) {
        const char *path = NULL;
        if (strncmp(argv[i], "--config=", 9) == 0)
            path = argv[i] + 9;
        else if (strcmp(argv[i], "--config") == 0 && i + 1 < argc)
            path = argv[i + 1];
        else if (strcmp(argv[i], "--config") == 0)
            return us_fail(err, US_E_ARG, "command line: --config needs a file");
        if (path != NULL)
            return us_config_read_file(c, path, err);
    }
    return US_OK;
}

enum us_status us_config_args(struct us_config *c, int argc, char *const *argv,
                              enum us_config_action *ret, struct us_err *err)
{
    static const struct {
        const char *flag;
        enum us_config_action action;
    } actions[] = {{"--help", US_CONFIG_HELP},
                   {"-h", US_CONFIG_HELP},
                   {"--version", US_CONFIG_VERSION},
                   {"--check-config", US_CONFIG_CHECK}};
    enum us_config_action action = US_CONFIG_RUN;
    for (int i = 1; i < argc; i++) {
        for (size_t k = 0; k < US_COUNT(actions); k++) {
            if (strcmp(argv[i], actions[k].flag) == 0)
                action = actions[k].action;
        }
    }
    *ret = action;
    if (action == US_CONFIG_HELP || action == US_CONFIG_VERSION)
        return US_OK;
    US_TRY(read_named_file(c, argc, argv, err));
    for (int i = 1, used; i < argc; i += used) {
        used = 1;
        if (strcmp(argv[i], "--check-config") == 0)
            continue;
        if (strncmp(argv[i], "--", 2) != 0 || argv[i][2] == '\0')
            return us_fail(err, US_E_ARG,
                           "command line: '%.80s' is not a flag; usplitd takes no "
                           "other arguments",
                           argv[i]);
        US_TRY(parse_arg(c, argc, argv, i, &used, err));
    }
    return US_OK;
}

/* 127.0.0.0/8 and ::1: what nobody else on the network can reach. */
static enum us_status classify_host(struct us_listen *l, struct us_err *err)
{
    struct in_addr v4;
    struct in6_addr v6;
    if (l->ipv6 && inet_pton(AF_INET6, l->host, &v6) == 1) {
        l->loopback = memcmp(&v6, &in6addr_loopback, sizeof(v6)) == 0;
        return US_OK;
    }
    if (!l->ipv6 && inet_pton(AF_INET, l->host, &v4) == 1) {
        l->loopback = (ntohl(v4.s_addr) >> 24) == 127;
        return US_OK;
    }
    return us_fail(err, US_E_ARG,
                   "listen: '%s' is not an address; allowed: a number such as "
                   "127.0.0.1, 0.0.0.0 or [::1]",
                   l->host);
}

enum us_status us_listen_parse(const char *text, struct us_listen *ret, struct us_err *err)
{
    struct us_listen l = {.ipv6 = text[0] == '['};
    const char *colon = strrchr(text, ':');
    const char *host = l.ipv6 ? text + 1 : text;
    const char *end = l.ipv6 ? strchr(text, ']') : colon;
    int64_t port = 0;
    if (colon == NULL || end == NULL || (l.ipv6 && end + 1 != colon) ||
        !us_config_number(colon + 1, false, &port) || port > 65535)
        return us_fail(err, US_E_ARG,
                       "listen: '%.80s' is not of the form ADDRESS:PORT with a port "
                       "of 0 to 65535; IPv6 is written [::1]:8080",
                       text);
    size_t n = (size_t)(end - host);
    if (n >= sizeof(l.host))
        return us_fail(err, US_E_ARG, "listen: '%.80s' has too long an address", text);
    if (n == strlen("localhost") && memcmp(host, "localhost", n) == 0) {
        host = "127.0.0.1";
        n = strlen(host);
    }
    memcpy(l.host, host, n);
    l.port = (uint16_t)port;
    US_TRY(classify_host(&l, err));
    *ret = l;
    return US_OK;
}

enum us_status us_config_check(const struct us_config *c, struct us_err *err)
{
    struct us_listen l;
    US_TRY(us_listen_parse(c->listen, &l, err));
    if (c->data_dir[0] == '\0')
        return us_fail(err, US_E_ARG,
                       "data-dir: not given; give the folder for models and spool "
                       "files, for example --data-dir /var/lib/usplit");
    if ((c->tls_cert[0] == '\0') != (c->tls_key[0] == '\0'))
        return us_fail(err, US_E_ARG, "tls-%s: not given; HTTPS needs tls-cert and tls-key",
                       c->tls_cert[0] == '\0' ? "cert" : "key");
    return US_OK;
}

void us_config_help(FILE *out)
{
    (void)fputs("usage: usplitd --data-dir DIR [--config FILE] [--SETTING VALUE]...\n"
                "       usplitd --check-config ...    says what is wrong and starts nothing\n"
                "       usplitd token add|list|revoke ...    who may use it; usplitd token --help\n"
                "       usplitd --help | --version\n\n"
                "Settings, as flags or as `setting = value` lines of the file; flags win.\n\n",
                out);
    for (size_t i = 0; i < US_COUNT(settings); i++) {
        const struct setting *s = &settings[i];
        (void)fputs("  --", out);
        print_key(out, s->member);
        if (s->kind != KIND_FLAG)
            (void)fprintf(out, " %s", s->form);
        (void)fprintf(out, "\n        %s\n        ", s->text);
        if (s->kind == KIND_INT || s->kind == KIND_BYTES)
            (void)fprintf(out, "default %" PRId64 ", %" PRId64 " to %" PRId64 "\n", s->def, s->min,
                          s->max);
        else
            (void)fprintf(out, "default %s\n", s->def_text[0] != '\0' ? s->def_text : "none");
    }
}
