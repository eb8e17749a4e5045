/* Tokens as text, and who an Authorization header stands for (server/us_tokens.h, us_auth.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "us_auth.h"
#include "us_store_sqlite.h"

struct env {
    char path[64];
    struct us_store *s;
};

static int setup(void **state)
{
    struct env *e = calloc(1, sizeof(*e));
    (void)snprintf(e->path, sizeof(e->path), "test-tokens-XXXXXX");
    int fd = mkstemp(e->path);
    assert_true(fd >= 0);
    (void)close(fd);
    const struct us_store_sqlite_options opt = {.path = e->path};
    assert_int_equal(us_store_sqlite_open(&opt, &e->s, NULL), US_OK);
    *state = e;
    return 0;
}

static int teardown(void **state)
{
    struct env *e = *state;
    e->s->ops->close(e->s); /* the last one takes the files beside it along */
    (void)unlink(e->path);
    free(e);
    return 0;
}

/* ---- text ---------------------------------------------------------------------------------- */

static void minted_token_has_the_shape_and_the_hash_that_is_found_again(void **state)
{
    struct us_store_token a = {.scopes = 1}, b = a;
    char text[US_TOKEN_TEXT_BYTES], other[US_TOKEN_TEXT_BYTES], id[US_TOKEN_ID_BYTES];
    uint8_t hash[US_STORE_HASH_BYTES];
    assert_int_equal(us_token_mint(&a, text, NULL), US_OK);
    assert_int_equal(us_token_mint(&b, other, NULL), US_OK);
    assert_int_equal(strlen(text), US_TOKEN_TEXT_BYTES - 1);
    assert_memory_equal(text, "usplit_", 7);
    assert_memory_equal(text + 7, a.id, 12);
    assert_true(us_token_hash(text, hash));
    assert_memory_equal(hash, a.hash, sizeof(hash));
    us_token_id(text, id);
    assert_string_equal(id, a.id);
    assert_string_not_equal(text, other);
    assert_memory_not_equal(a.hash, b.hash, sizeof(hash));
}

static void token_of_another_shape_has_no_hash_and_no_id(void **state)
{
    struct us_store_token t;
    char good[US_TOKEN_TEXT_BYTES], text[US_TOKEN_TEXT_BYTES + 2], id[US_TOKEN_ID_BYTES];
    uint8_t hash[US_STORE_HASH_BYTES];
    static const struct {
        int at;
        char c;
        const char *why;
    } bad[] = {{0, 'U', "another prefix"},
               {7, 'G', "an id that is not hex"},
               {19, '-', "no line before the secret"},
               {20, 'A', "capitals"},
               {83, ' ', "a blank at its end"},
               {83, '\0', "one digit short"}};
    assert_int_equal(us_token_mint(&t, good, NULL), US_OK);
    for (size_t i = 0; i < US_COUNT(bad); i++) {
        memcpy(text, good, sizeof(good));
        text[bad[i].at] = bad[i].c;
        us_token_id(text, id);
        if (us_token_hash(text, hash) || id[0] != '\0')
            fail_msg("accepted: %s", bad[i].why);
    }
    (void)snprintf(text, sizeof(text), "%s0", good);
    assert_false(us_token_hash(text, hash)); /* one digit more */
    assert_false(us_token_hash("", hash));
}

static void scopes_read_and_print_the_same(void **state)
{
    static const char *const good[] = {"infer",   "train",       "admin",
                                       "metrics", "infer,train", "infer,train,admin,metrics"};
    static const char *const bad[] = {"",      "infer,", ",infer",      "infer train",
                                      "INFER", "root",   "infer,,train"};
    char text[US_SCOPES_BYTES];
    uint32_t scopes = 77;
    for (size_t i = 0; i < US_COUNT(good); i++) {
        assert_int_equal(us_scopes_parse(good[i], &scopes, NULL), US_OK);
        us_scopes_text(scopes, text);
        assert_string_equal(text, good[i]);
    }
    scopes = 77;
    for (size_t i = 0; i < US_COUNT(bad); i++)
        assert_int_equal(us_scopes_parse(bad[i], &scopes, NULL), US_E_ARG);
    assert_int_equal(scopes, 77);
}

static void admin_grants_all_and_others_only_themselves(void **state)
{
    assert_true(us_scopes_grant(US_SCOPE_ADMIN, US_SCOPE_TRAIN));
    assert_true(us_scopes_grant(US_SCOPE_INFER, US_SCOPE_INFER));
    assert_true(us_scopes_grant(0, US_SCOPE_NONE));
    assert_false(us_scopes_grant(US_SCOPE_INFER | US_SCOPE_METRICS, US_SCOPE_TRAIN));
    assert_false(us_scopes_grant(US_SCOPES_ALL & ~(unsigned)US_SCOPE_ADMIN, US_SCOPE_ADMIN));
}

static void owner_names_are_safe_in_logs_and_headers(void **state)
{
    char name[US_MAX_OWNER + 2];
    memset(name, 'a', sizeof(name));
    name[US_MAX_OWNER] = '\0';
    assert_true(us_owner_ok(name));
    assert_true(us_owner_ok("ann.o-b@lab.example.org"));
    name[US_MAX_OWNER] = 'a';
    name[US_MAX_OWNER + 1] = '\0';
    static const char *const bad[] = {"", ".x", "a b", "a\n", "a/b", "\"", "\xc3\xa4"};
    assert_false(us_owner_ok(name));
    for (size_t i = 0; i < US_COUNT(bad); i++)
        assert_false(us_owner_ok(bad[i]));
}

/* ---- who asks ------------------------------------------------------------------------------ */

static void add(struct env *e, const char *owner, uint32_t scopes, int64_t expires_ms,
                char header[128])
{
    struct us_store_token t = {.scopes = scopes, .expires_ms = expires_ms, .max_jobs = 3};
    char text[US_TOKEN_TEXT_BYTES];
    (void)snprintf(t.owner, sizeof(t.owner), "%s", owner);
    assert_int_equal(us_token_mint(&t, text, NULL), US_OK);
    assert_int_equal(e->s->ops->token_put(e->s, &t, NULL), US_OK);
    (void)snprintf(header, 128, "Bearer %s", text);
}

static void header_of_a_token_gives_its_owner_and_what_it_may(void **state)
{
    struct env *e = *state;
    struct us_auth *a = NULL;
    struct us_user u;
    char ann[128], bob[128];
    add(e, "ann", US_SCOPE_TRAIN, 0, ann);
    add(e, "bob", US_SCOPE_ADMIN, 0, bob);
    assert_int_equal(us_auth_new(e->s, US_AUTH_ALWAYS, &a, NULL), US_OK);
    assert_int_equal(us_auth_check(a, ann, &u, NULL), US_OK);
    assert_string_equal(u.name, "ann");
    assert_int_equal(u.scopes, US_SCOPE_TRAIN);
    assert_int_equal(u.max_jobs, 3);
    assert_memory_equal(u.token, ann + 14, 12);
    assert_int_equal(us_auth_check(a, bob, &u, NULL), US_OK);
    assert_true(us_user_is_admin(&u));
    memcpy(ann, "bEARER", 6); /* RFC 9110: the scheme's case does not matter */
    assert_int_equal(us_auth_check(a, ann, &u, NULL), US_OK);
    us_auth_free(a);
}

static void headers_without_a_good_token_are_refused(void **state)
{
    struct env *e = *state;
    struct us_auth *a = NULL;
    struct us_user u;
    char good[128], expired[128], wrong[128];
    add(e, "ann", US_SCOPE_TRAIN, 0, good);
    add(e, "old", US_SCOPE_TRAIN, 1, expired);
    memcpy(wrong, good, sizeof(wrong));
    wrong[strlen(wrong) - 1] = wrong[strlen(wrong) - 1] == '0' ? '1' : '0';
    assert_int_equal(us_auth_new(e->s, US_AUTH_IF_TOKENS, &a, NULL), US_OK);
    assert_int_equal(us_auth_check(a, NULL, &u, NULL), US_E_ARG);
    assert_int_equal(us_auth_check(a, "", &u, NULL), US_E_ARG);
    assert_int_equal(us_auth_check(a, "Bearer", &u, NULL), US_E_ARG);
    assert_int_equal(us_auth_check(a, "Basic YTpi", &u, NULL), US_E_ARG);
    assert_int_equal(us_auth_check(a, good + 7, &u, NULL), US_E_ARG); /* the token alone */
    assert_int_equal(us_auth_check(a, wrong, &u, NULL), US_E_NOT_FOUND);
    assert_int_equal(us_auth_check(a, expired, &u, NULL), US_E_NOT_FOUND);
    assert_int_equal(us_auth_check(a, good, &u, NULL), US_OK);
    us_auth_free(a);
}

static void first_token_closes_an_open_daemon_and_no_revocation_opens_it(void **state)
{
    struct env *e = *state;
    struct us_auth *a = NULL;
    struct us_user u;
    char ann[128], id[US_TOKEN_ID_BYTES];
    assert_int_equal(us_auth_new(e->s, US_AUTH_IF_TOKENS, &a, NULL), US_OK);
    assert_int_equal(us_auth_check(a, NULL, &u, NULL), US_OK);
    assert_string_equal(u.name, "");
    assert_true(us_user_is_admin(&u));
    add(e, "ann", US_SCOPE_INFER, 0, ann);
    usleep(1100000); /* what "within a second" says */
    assert_true(us_auth_is_on(a));
    assert_int_equal(us_auth_check(a, NULL, &u, NULL), US_E_ARG);
    assert_int_equal(us_auth_check(a, ann, &u, NULL), US_OK);
    us_token_id(ann + 7, id);
    assert_int_equal(e->s->ops->token_delete(e->s, id, NULL), US_OK);
    usleep(1100000);
    assert_int_equal(us_auth_check(a, ann, &u, NULL), US_E_NOT_FOUND);
    assert_int_equal(us_auth_check(a, NULL, &u, NULL), US_E_ARG);
    us_auth_free(a);
}

static void new_token_counts_at_once_beside_others(void **state)
{
    struct env *e = *state;
    struct us_auth *a = NULL;
    struct us_user u;
    char ann[128], bob[128];
    add(e, "ann", US_SCOPE_INFER, 0, ann);
    assert_int_equal(us_auth_new(e->s, US_AUTH_IF_TOKENS, &a, NULL), US_OK);
    assert_int_equal(us_auth_check(a, ann, &u, NULL), US_OK);
    add(e, "bob", US_SCOPE_INFER, 0, bob);
    usleep(60000);
    assert_int_equal(us_auth_check(a, bob, &u, NULL), US_OK);
    us_auth_free(a);
}

static void daemon_that_others_reach_does_not_start_without_a_token(void **state)
{
    struct env *e = *state;
    struct us_auth *a = NULL;
    struct us_user u;
    assert_int_equal(us_auth_new(e->s, US_AUTH_ALWAYS, &a, NULL), US_E_ARG);
    assert_null(a);
    assert_int_equal(us_auth_new(e->s, US_AUTH_NEVER, &a, NULL), US_OK);
    assert_int_equal(us_auth_check(a, "Bearer x", &u, NULL), US_OK);
    us_auth_free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(minted_token_has_the_shape_and_the_hash_that_is_found_again),
        cmocka_unit_test(token_of_another_shape_has_no_hash_and_no_id),
        cmocka_unit_test(scopes_read_and_print_the_same),
        cmocka_unit_test(admin_grants_all_and_others_only_themselves),
        cmocka_unit_test(owner_names_are_safe_in_logs_and_headers),
        cmocka_unit_test_setup_teardown(header_of_a_token_gives_its_owner_and_what_it_may, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(headers_without_a_good_token_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(
            first_token_closes_an_open_daemon_and_no_revocation_opens_it, setup, teardown),
        cmocka_unit_test_setup_teardown(new_token_counts_at_once_beside_others, setup, teardown),
        cmocka_unit_test_setup_teardown(daemon_that_others_reach_does_not_start_without_a_token,
                                        setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
