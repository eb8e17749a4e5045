/*
 * Checkpoint files: what was written is read back; whatever is damaged is refused and fills
 * nothing; a full disk or a kill leaves a file that loads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "us_checkpoint.h"

#define N_FLOATS 333

static char folder[64], last[96], previous[96], odd[96];

struct content {
    int64_t generation;
    float x[N_FLOATS];
    char empty;
};

static void fill(struct content *c, int64_t generation)
{
    c->generation = generation;
    for (int i = 0; i < N_FLOATS; i++)
        c->x[i] = (float)(generation * 1000 + i);
}

static void sections(struct content *c, struct us_checkpoint_section s[3])
{
    s[0] = (struct us_checkpoint_section){"generation", &c->generation, sizeof(c->generation)};
    s[1] = (struct us_checkpoint_section){"floats", c->x, sizeof(c->x)};
    s[2] = (struct us_checkpoint_section){"nothing", &c->empty, 0};
}

static enum us_status put(int64_t generation, struct us_err *err)
{
    struct content c;
    struct us_checkpoint_section s[3];
    fill(&c, generation);
    sections(&c, s);
    return us_checkpoint_write(last, previous, s, 3, err);
}

static enum us_status get(const char *path, struct content *c, struct us_err *err)
{
    struct us_checkpoint_section s[3];
    sections(c, s);
    return us_checkpoint_read(path, s, 3, err);
}

static bool loads(const char *path, int64_t *ret_generation)
{
    struct content got, want;
    memset(&got, 0, sizeof(got));
    if (get(path, &got, NULL) != US_OK)
        return false;
    fill(&want, got.generation);
    assert_memory_equal(got.x, want.x, sizeof(got.x));
    *ret_generation = got.generation;
    return true;
}

static int begin(void **state)
{
    (void)snprintf(folder, sizeof(folder), "%s/usplit-ckpt-XXXXXX", P_tmpdir);
    assert_non_null(mkdtemp(folder));
    (void)snprintf(last, sizeof(last), "%s/last", folder);
    (void)snprintf(previous, sizeof(previous), "%s/previous", folder);
    (void)snprintf(odd, sizeof(odd), "%s/odd", folder);
    return 0;
}

static int end(void **state)
{
    char tmp[128];
    (void)snprintf(tmp, sizeof(tmp), "%s.writing", last);
    (void)unlink(tmp);
    (void)unlink(last);
    (void)unlink(previous);
    (void)unlink(odd);
    return rmdir(folder);
}

static uint8_t *slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    uint8_t *p = malloc(1 << 16);
    assert_non_null(p);
    *n = fread(p, 1, 1 << 16, f);
    assert_int_equal(fclose(f), 0);
    return p;
}

static void spit(const char *path, const uint8_t *p, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void checkpoint_written_is_read_back(void **state)
{
    int64_t g;
    assert_int_equal(put(7, NULL), US_OK);
    assert_true(loads(last, &g));
    assert_int_equal(g, 7);
    assert_int_equal(access(previous, F_OK), -1);
}

static void second_checkpoint_keeps_the_first_as_previous(void **state)
{
    int64_t g;
    for (int64_t i = 1; i <= 3; i++)
        assert_int_equal(put(i, NULL), US_OK);
    assert_true(loads(last, &g));
    assert_int_equal(g, 3);
    assert_true(loads(previous, &g));
    assert_int_equal(g, 2);
}

static void same_content_gives_same_bytes(void **state)
{
    size_t n1, n2;
    assert_int_equal(put(4, NULL), US_OK);
    assert_int_equal(put(4, NULL), US_OK);
    uint8_t *a = slurp(last, &n1), *b = slurp(previous, &n2);
    assert_int_equal(n1, n2);
    assert_memory_equal(a, b, n1);
    free(a);
    free(b);
}

/* Refused, with a reason, and what the caller had is untouched. */
static void assert_refused(const uint8_t *p, size_t n, const char *what, size_t at)
{
    struct content c, before;
    struct us_err err = {0};
    memset(&c, 0x5a, sizeof(c));
    before = c;
    spit(odd, p, n);
    if (get(odd, &c, &err) == US_OK || err.msg[0] == '\0')
        fail_msg("%s at byte %zu of the file was accepted, or refused without a word", what, at);
    assert_memory_equal(&c, &before, sizeof(c));
}

static void truncated_checkpoint_is_refused_at_every_length(void **state)
{
    size_t n;
    assert_int_equal(put(1, NULL), US_OK);
    uint8_t *p = slurp(last, &n);
    for (size_t k = 0; k < n; k += 64)
        assert_refused(p, k, "the end", k);
    assert_refused(p, n - 1, "the end", n - 1);
    p[n] = 0;
    assert_refused(p, n + 1, "one byte more", n);
    free(p);
}

static void flipped_byte_is_refused_wherever_it_is(void **state)
{
    size_t n;
    assert_int_equal(put(1, NULL), US_OK);
    uint8_t *p = slurp(last, &n);
    for (size_t k = 0; k < n; k++) {
        p[k] ^= 0x40;
        assert_refused(p, n, "a flipped bit", k);
        p[k] ^= 0x40;
    }
    free(p);
}

static void other_sections_are_refused_by_name_and_size(void **state)
{
    struct content c = {0};
    struct us_checkpoint_section s[4];
    struct us_err err = {0};
    assert_int_equal(put(1, NULL), US_OK);
    sections(&c, s);
    s[1].name = "doubles";
    assert_int_equal(us_checkpoint_read(last, s, 3, &err), US_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "doubles"));
    sections(&c, s);
    s[1].bytes--;
    assert_int_equal(us_checkpoint_read(last, s, 3, &err), US_E_ARG);
    assert_non_null(strstr(err.msg, "1331"));
    assert_int_equal(c.generation, 0);
    assert_int_equal(us_checkpoint_read(odd, s, 3, &err), US_E_NOT_FOUND);
    assert_int_equal(us_checkpoint_read(folder, s, 3, &err), US_E_FORMAT);
}

static void sections_can_be_read_alone_and_in_any_order(void **state)
{
    struct content c = {0}, want;
    struct us_checkpoint_section s[3];
    assert_int_equal(put(5, NULL), US_OK);
    fill(&want, 5);
    sections(&c, s);
    assert_int_equal(us_checkpoint_read(last, &s[1], 1, NULL), US_OK);
    assert_memory_equal(c.x, want.x, sizeof(c.x));
    assert_int_equal(c.generation, 0);
    const struct us_checkpoint_section reversed[2] = {s[1], s[0]};
    assert_int_equal(us_checkpoint_read(last, reversed, 2, NULL), US_OK);
    assert_int_equal(c.generation, 5);
}

/* In a child, whose limit on file sizes stands for a disk without room. */
static void write_that_fails_keeps_the_old_checkpoint(void **state)
{
    int64_t g;
    int status;
    assert_int_equal(put(1, NULL), US_OK);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const struct rlimit limit = {700, 700};
        struct us_err err = {0};
        (void)signal(SIGXFSZ, SIG_IGN);
        (void)setrlimit(RLIMIT_FSIZE, &limit);
        enum us_status s = put(2, &err);
        _exit(s == US_E_IO && strstr(err.msg, "writing") != NULL ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_true(loads(last, &g));
    assert_int_equal(g, 1);
    char tmp[128];
    (void)snprintf(tmp, sizeof(tmp), "%s.writing", last);
    assert_int_equal(access(tmp, F_OK), -1);
}

static void link_at_the_temporary_name_is_not_followed(void **state)
{
    struct us_err err = {0};
    char tmp[128];
    assert_int_equal(put(1, NULL), US_OK);
    /* Its own temporary name leads elsewhere: it is not followed. */
    (void)snprintf(tmp, sizeof(tmp), "%s.writing", last);
    assert_int_equal(symlink("/dev/full", tmp), 0);
    assert_int_equal(put(2, &err), US_E_IO);
    assert_non_null(strstr(err.msg, "creating"));
    int64_t g;
    assert_true(loads(last, &g));
    assert_int_equal(g, 1);
}

/* Whenever the kill comes, last or previous loads, and the newest that does is never older than
 * the last one that the child reported as written. */
static void kill_at_any_moment_leaves_a_checkpoint_that_loads(void **state)
{
    unsigned seed = 12345;
    int64_t from = 1;
    assert_int_equal(put(from, NULL), US_OK);
    for (int round = 0; round < 25; round++) {
        int reported[2];
        assert_int_equal(pipe(reported), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            for (int64_t i = from + 1;; i++) {
                if (put(i, NULL) != US_OK || write(reported[1], &i, sizeof(i)) != sizeof(i))
                    _exit(1);
            }
        }
        (void)close(reported[1]);
        seed = seed * 1103515245u + 12345u;
        (void)usleep(2000 + (seed >> 16) % 15000);
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, NULL, 0), child);
        int64_t done = from, i, g;
        while (read(reported[0], &i, sizeof(i)) == (ssize_t)sizeof(i))
            done = i;
        (void)close(reported[0]);
        if (!loads(last, &g) && !loads(previous, &g))
            fail_msg("round %d: neither checkpoint loads", round);
        assert_true(g >= done);
        from = g;
    }
    assert_true(from > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(checkpoint_written_is_read_back, begin, end),
        cmocka_unit_test_setup_teardown(second_checkpoint_keeps_the_first_as_previous, begin, end),
        cmocka_unit_test_setup_teardown(same_content_gives_same_bytes, begin, end),
        cmocka_unit_test_setup_teardown(truncated_checkpoint_is_refused_at_every_length, begin,
                                        end),
        cmocka_unit_test_setup_teardown(flipped_byte_is_refused_wherever_it_is, begin, end),
        cmocka_unit_test_setup_teardown(other_sections_are_refused_by_name_and_size, begin, end),
        cmocka_unit_test_setup_teardown(sections_can_be_read_alone_and_in_any_order, begin, end),
        cmocka_unit_test_setup_teardown(write_that_fails_keeps_the_old_checkpoint, begin, end),
        cmocka_unit_test_setup_teardown(link_at_the_temporary_name_is_not_followed, begin, end),
        cmocka_unit_test_setup_teardown(kill_at_any_moment_leaves_a_checkpoint_that_loads, begin,
                                        end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
