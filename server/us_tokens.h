/*
 * Bearer tokens as text, and what they permit. A token is "usplit_ID_SECRET": ID is 12 hex digits
 * that may be shown and logged, SECRET 64 hex digits from the system's random numbers. Only the
 * SHA-256 of the whole text is stored; with 256 random bits there is nothing that a slow hash
 * would protect (research: servers.md section 8).
 */
#ifndef US_TOKENS_H
#define US_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "us_store.h"

/* What a route asks for and a token grants, as bits. ADMIN grants everything. */
enum us_scope {
    US_SCOPE_NONE = 0,
    US_SCOPE_INFER = 1 << 0,
    US_SCOPE_TRAIN = 1 << 1,
    US_SCOPE_ADMIN = 1 << 2,
    US_SCOPE_METRICS = 1 << 3
};
#define US_SCOPES_ALL (US_SCOPE_INFER | US_SCOPE_TRAIN | US_SCOPE_ADMIN | US_SCOPE_METRICS)

#define US_TOKEN_ID_BYTES   13 /* with NUL */
#define US_TOKEN_TEXT_BYTES (7 + 12 + 1 + 64 + 1)
#define US_SCOPES_BYTES     32 /* the text of all of them */
#define US_MAX_OWNER        64

/* Fills id and hash of *t; text is what its owner keeps. E_IO: the system gives no random bytes. */
enum us_status us_token_mint(struct us_store_token *t, char text[US_TOKEN_TEXT_BYTES],
                             struct us_err *err) US_WARN_UNUSED;

/* The hash of a presented token. False: the text has not the shape of one; *hash is untouched. */
bool us_token_hash(const char *text, uint8_t hash[US_STORE_HASH_BYTES]);
/* The ID of a presented token, for the log; "" if it has not the shape of one. */
void us_token_id(const char *text, char id[US_TOKEN_ID_BYTES]);

/* "infer,train" to bits and back. E_ARG names the word and what is allowed. */
enum us_status us_scopes_parse(const char *list, uint32_t *ret, struct us_err *err) US_WARN_UNUSED;
void us_scopes_text(uint32_t scopes, char text[US_SCOPES_BYTES]);
bool us_scopes_grant(uint32_t scopes, enum us_scope needed);
const char *us_scope_name(enum us_scope one);

/* 1 to 64 of A-Z a-z 0-9 . _ - @, not beginning with a dot. */
bool us_owner_ok(const char *name);

/* "interactive", "batch", "train". */
const char *us_job_class_name(enum us_job_class c);
bool us_job_class_parse(const char *name, enum us_job_class *ret);

#endif
