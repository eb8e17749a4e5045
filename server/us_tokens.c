/* Tokens as text; see us_tokens.h. Pure but for the random bytes. */
#include "us_tokens.h"

#include <errno.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#define PREFIX       "usplit_"
#define ID_DIGITS    (US_TOKEN_ID_BYTES - 1)
#define SECRET_BYTES 32

_Static_assert(US_STORE_HASH_BYTES == SHA256_DIGEST_SIZE, "what is stored is a SHA-256");

static const struct {
    enum us_scope bit;
    const char *name;
} scopes_known[] = {{US_SCOPE_INFER, "infer"},
                    {US_SCOPE_TRAIN, "train"},
                    {US_SCOPE_ADMIN, "admin"},
                    {US_SCOPE_METRICS, "metrics"}};

static const char *const class_names[US_JOB_CLASS_COUNT] = {"interactive", "batch", "train"};

static void put_hex(const uint8_t *bytes, size_t n, char *text)
{
    for (size_t i = 0; i < n; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

static enum us_status random_bytes(uint8_t *bytes, size_t n, struct us_err *err)
{
    for (size_t at = 0; at < n;) {
        ssize_t got = getrandom(bytes + at, n - at, 0);
        if (got < 0 && errno != EINTR)
            return us_fail(err, US_E_IO, "no random numbers from the system: %s", strerror(errno));
        at += got > 0 ? (size_t)got : 0;
    }
    return US_OK;
}

enum us_status us_token_mint(struct us_store_token *t, char text[US_TOKEN_TEXT_BYTES],
                             struct us_err *err)
{
    uint8_t bytes[ID_DIGITS / 2 + SECRET_BYTES];
    US_TRY(random_bytes(bytes, sizeof(bytes), err));
    memcpy(text, PREFIX, strlen(PREFIX));
    char *id = text + strlen(PREFIX);
    put_hex(bytes, ID_DIGITS / 2, id);
    memcpy(t->id, id, US_TOKEN_ID_BYTES);
    id[ID_DIGITS] = '_';
    put_hex(bytes + ID_DIGITS / 2, SECRET_BYTES, id + ID_DIGITS + 1);
    bool ok = us_token_hash(text, t->hash);
    US_ASSERT(ok);
    explicit_bzero(bytes, sizeof(bytes));
    return US_OK;
}

static bool all_hex(const char *s, size_t n)
{
    return strspn(s, "0123456789abcdef") >= n;
}

static bool has_shape(const char *text)
{
    size_t p = strlen(PREFIX);
    return strlen(text) == US_TOKEN_TEXT_BYTES - 1 && memcmp(text, PREFIX, p) == 0 &&
           all_hex(text + p, ID_DIGITS) && text[p + ID_DIGITS] == '_' &&
           all_hex(text + p + ID_DIGITS + 1, 2 * SECRET_BYTES);
}

bool us_token_hash(const char *text, uint8_t hash[US_STORE_HASH_BYTES])
{
    struct sha256_ctx ctx;
    if (!has_shape(text))
        return false;
    sha256_init(&ctx);
    sha256_update(&ctx, strlen(text), (const uint8_t *)text);
    sha256_digest(&ctx, US_STORE_HASH_BYTES, hash);
    return true;
}

void us_token_id(const char *text, char id[US_TOKEN_ID_BYTES])
{
    id[0] = '\0';
    if (has_shape(text))
        (void)snprintf(id, US_TOKEN_ID_BYTES, "%.*s", ID_DIGITS, text + strlen(PREFIX));
}

static uint32_t scope_bit(const char *word, size_t n)
{
    for (size_t i = 0; i < US_COUNT(scopes_known); i++) {
        if (strlen(scopes_known[i].name) == n && memcmp(word, scopes_known[i].name, n) == 0)
            return scopes_known[i].bit;
    }
    return 0;
}

enum us_status us_scopes_parse(const char *list, uint32_t *ret, struct us_err *err)
{
    uint32_t scopes = 0;
    for (const char *p = list;; p++) {
        size_t n = strcspn(p, ",");
        uint32_t bit = scope_bit(p, n);
        if (bit == 0)
            return us_fail(err, US_E_ARG,
                           "scopes: '%.*s' is none; allowed: infer, train, admin, metrics, with "
                           "commas between them",
                           n < 40 ? (int)n : 40, p);
        scopes |= bit;
        p += n;
        if (*p == '\0')
            break;
    }
    *ret = scopes;
    return US_OK;
}

void us_scopes_text(uint32_t scopes, char text[US_SCOPES_BYTES])
{
    size_t n = 0;
    text[0] = '\0';
    for (size_t i = 0; i < US_COUNT(scopes_known); i++) {
        if ((scopes & scopes_known[i].bit) != 0)
            n += (size_t)snprintf(text + n, US_SCOPES_BYTES - n, "%s%s", n > 0 ? "," : "",
                                  scopes_known[i].name);
    }
}

bool us_scopes_grant(uint32_t scopes, enum us_scope needed)
{
    return needed == US_SCOPE_NONE || (scopes & ((uint32_t)needed | US_SCOPE_ADMIN)) != 0;
}

const char *us_scope_name(enum us_scope one)
{
    for (size_t i = 0; i < US_COUNT(scopes_known); i++) {
        if (scopes_known[i].bit == one)
            return scopes_known[i].name;
    }
    return "none";
}

bool us_owner_ok(const char *name)
{
    size_t n = strlen(name);
    return n >= 1 && n <= US_MAX_OWNER && name[0] != '.' &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-@") == n;
}

const char *us_job_class_name(enum us_job_class c)
{
    return (unsigned)c < US_JOB_CLASS_COUNT ? class_names[c] : "unknown";
}

bool us_job_class_parse(const char *name, enum us_job_class *ret)
{
    for (int i = 0; i < US_JOB_CLASS_COUNT; i++) {
        if (strcmp(class_names[i], name) == 0) {
            *ret = (enum us_job_class)i;
            return true;
        }
    }
    return false;
}
