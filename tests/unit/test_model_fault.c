/*
 * Model files when the machine fails: every allocation and every system call fails once, and what
 * a hostile header may make us allocate is counted. The linker redirects our calls to the
 * functions below (--wrap).
 */
#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include <cmocka.h>

#include "us_model_bytes.h"

/* ---- the failing machine ------------------------------------------------------------------- */

static struct {
    long until_fail;  /* allocations until one fails; 0: none */
    size_t now, peak; /* bytes */
    const char *call; /* the system call that fails ... */
    long until_call;  /* ... at this turn, 1 = the next */
    int call_errno;   /* 0: it succeeds with call_result */
    ssize_t call_result;
} machine;

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void __real_free(void *p);
ssize_t __real_read(int fd, void *buf, size_t n);
ssize_t __real_write(int fd, const void *buf, size_t n);
int __real_fsync(int fd);
int __real_close(int fd);
int __real_renameat(int from_dir, const char *from, int to_dir, const char *to);

void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_reallocarray(void *p, size_t n, size_t size);
void __wrap_free(void *p);
char *__wrap_strdup(const char *s);
char *__wrap_strndup(const char *s, size_t n);
ssize_t __wrap_read(int fd, void *buf, size_t n);
ssize_t __wrap_write(int fd, const void *buf, size_t n);
int __wrap_fsync(int fd);
int __wrap_close(int fd);
int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to);

static bool allocation_fails(void)
{
    return machine.until_fail > 0 && --machine.until_fail == 0;
}

static void *counted(void *p)
{
    machine.now += p == NULL ? 0 : malloc_usable_size(p);
    machine.peak = machine.now > machine.peak ? machine.now : machine.peak;
    return p;
}

void *__wrap_malloc(size_t n)
{
    return allocation_fails() ? NULL : counted(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return allocation_fails() ? NULL : counted(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t n)
{
    if (allocation_fails())
        return NULL;
    machine.now -= p == NULL ? 0 : malloc_usable_size(p);
    return counted(__real_realloc(p, n));
}

/* libc's own would call libc's realloc, past the one above. */
void *__wrap_reallocarray(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return __wrap_realloc(p, bytes);
}

void __wrap_free(void *p)
{
    machine.now -= p == NULL ? 0 : malloc_usable_size(p);
    __real_free(p);
}

char *__wrap_strndup(const char *s, size_t n)
{
    size_t length = strnlen(s, n);
    char *p = __wrap_malloc(length + 1);
    if (p == NULL)
        return NULL;
    memcpy(p, s, length);
    p[length] = '\0';
    return p;
}

char *__wrap_strdup(const char *s)
{
    return __wrap_strndup(s, strlen(s));
}

static bool call_is_hit(const char *call)
{
    if (machine.call == NULL || strcmp(machine.call, call) != 0)
        return false;
    if (--machine.until_call != 0)
        return false;
    errno = machine.call_errno;
    return true;
}

ssize_t __wrap_read(int fd, void *buf, size_t n)
{
    if (call_is_hit("read"))
        return machine.call_errno != 0 ? -1 : machine.call_result;
    return __real_read(fd, buf, n);
}

ssize_t __wrap_write(int fd, const void *buf, size_t n)
{
    if (call_is_hit("write"))
        return machine.call_errno != 0 ? -1 : __real_write(fd, buf, n < 3 ? n : 3);
    return __real_write(fd, buf, n);
}

int __wrap_fsync(int fd)
{
    return call_is_hit("fsync") ? -1 : __real_fsync(fd);
}

int __wrap_close(int fd)
{
    int r = __real_close(fd);
    if (!call_is_hit("close"))
        return r;
    errno = machine.call_errno;
    return -1;
}

int __wrap_renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return call_is_hit("rename") ? -1 : __real_renameat(from_dir, from, to_dir, to);
}

/* ---- allocations --------------------------------------------------------------------------- */

static void every_failed_allocation_of_a_load_is_out_of_memory(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    us_model_free(m);
    size_t n, before = machine.now;
    char *bytes = us_model_bytes_join(&b, &n);
    us_model_bytes_free(&b);
    size_t idle = machine.now;
    enum us_status s = US_E_NOMEM;
    long at = 1;
    for (; s != US_OK; at++) {
        struct us_err err = {0};
        machine.until_fail = at;
        s = us_model_parse(bytes, n, &m, &err);
        if (s != US_OK && s != US_E_NOMEM)
            fail_msg("allocation %ld: %s: %s", at, us_status_name(s), err.msg);
        if (s != US_OK)
            assert_int_equal(machine.now, idle);
    }
    machine.until_fail = 0;
    assert_true(at > 20);
    us_model_free(m);
    free(bytes);
    assert_true(machine.now <= before);
}

static void every_failed_allocation_of_a_save_is_out_of_memory(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    m->extra_json = strdup("{\"lab\": {\"a\": [1, 2.5, \"x\"]}, \"provenance\": {\"seed\": 1}}");
    size_t idle = machine.now;
    enum us_status s = US_E_NOMEM;
    long at = 1;
    for (; s != US_OK; at++) {
        struct us_err err = {0};
        machine.until_fail = at;
        s = us_model_save(m, us_test_path("oom.safetensors"), &err);
        if (s != US_OK && s != US_E_NOMEM)
            fail_msg("allocation %ld: %s: %s", at, us_status_name(s), err.msg);
        assert_int_equal(machine.now, idle);
        assert_int_equal(access(us_test_path("oom.safetensors"), F_OK), s == US_OK ? 0 : -1);
    }
    machine.until_fail = 0;
    assert_true(at > 10);
    us_model_free(m);
}

/* ---- system calls -------------------------------------------------------------------------- */

static void a_failed_write_leaves_the_old_file_and_no_other(void **state)
{
    (void)state;
    static const struct {
        const char *call;
        long turn;
        int error;
        enum us_status status;
    } rows[] = {
        {"write", 1, ENOSPC, US_E_DISK_FULL},  {"write", 2, ENOSPC, US_E_DISK_FULL},
        {"write", 90, EDQUOT, US_E_DISK_FULL}, {"write", 3, EIO, US_E_IO},
        {"write", 4, EFBIG, US_E_DISK_FULL},   {"fsync", 1, EIO, US_E_IO},
        {"fsync", 1, ENOSPC, US_E_DISK_FULL},  {"close", 1, EIO, US_E_IO},
        {"rename", 1, EACCES, US_E_IO},
    };
    struct us_model *old = us_small_model(), *fresh = us_small_model(), *m;
    (void)snprintf(old->name, sizeof(old->name), "old");
    assert_int_equal(us_model_save(old, us_test_path("kept.safetensors"), NULL), US_OK);
    int files = us_test_folder_count();
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        struct us_err err = {0};
        machine.call = rows[i].call;
        machine.until_call = rows[i].turn;
        machine.call_errno = rows[i].error;
        enum us_status s = us_model_save(fresh, us_test_path("kept.safetensors"), &err);
        machine.call = NULL;
        if (s != rows[i].status)
            fail_msg("%s: %s: %s", rows[i].call, us_status_name(s), err.msg);
        assert_non_null(strstr(err.msg, "kept.safetensors"));
        assert_string_equal(fresh->sha256, "");
        assert_int_equal(us_test_folder_count(), files);
        assert_int_equal(us_model_load(us_test_path("kept.safetensors"), &m, NULL), US_OK);
        assert_string_equal(m->name, "old");
        assert_string_equal(m->sha256, old->sha256);
        us_model_free(m);
    }
    us_model_free(old);
    us_model_free(fresh);
}

static void short_and_interrupted_calls_are_continued(void **state)
{
    (void)state;
    struct us_model *m = us_small_model(), *again;
    static const int errors[] = {0, EINTR};
    for (size_t i = 0; i < US_COUNT(errors); i++) {
        machine.call = "write";
        machine.until_call = 5;
        machine.call_errno = errors[i];
        assert_int_equal(us_model_save(m, us_test_path("short.safetensors"), NULL), US_OK);
        assert_true(machine.until_call <= 0);
        machine.call = "read";
        machine.until_call = 3;
        machine.call_errno = EINTR;
        assert_int_equal(us_model_load(us_test_path("short.safetensors"), &again, NULL), US_OK);
        machine.call = NULL;
        assert_string_equal(m->sha256, again->sha256);
        us_model_free(again);
    }
    us_model_free(m);
}

static void a_file_that_shrinks_or_fails_while_it_is_read_is_an_io_error(void **state)
{
    (void)state;
    static const struct {
        long turn;
        int error;
        const char *msg;
    } rows[] = {
        {1, 0, "ends at byte 0"},
        {2, 0, "ends at byte 8"},
        {9, 0, "when it was opened"},
        {3, EIO, "reading at byte"},
    };
    struct us_model *m = us_small_model();
    assert_int_equal(us_model_save(m, us_test_path("shrinks.safetensors"), NULL), US_OK);
    us_model_free(m);
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        struct us_err err = {0};
        machine.call = "read";
        machine.until_call = rows[i].turn;
        machine.call_errno = rows[i].error;
        machine.call_result = 0;
        assert_int_equal(us_model_load(us_test_path("shrinks.safetensors"), &m, &err), US_E_IO);
        machine.call = NULL;
        if (strstr(err.msg, rows[i].msg) == NULL)
            fail_msg("%s", err.msg);
    }
}

/* ---- memory of hostile headers ------------------------------------------------------------- */

/* header = head, then n times item with %zu replaced by its number, then tail. */
static char *repeated(const char *head, const char *item, size_t n, const char *tail)
{
    size_t cap = strlen(head) + n * (strlen(item) + 20) + strlen(tail) + 1, at = 0;
    char *p = malloc(cap);
    assert_non_null(p);
    memcpy(p, head, strlen(head));
    at = strlen(head);
    for (size_t i = 0; i < n; i++) {
        const char *mark = strchr(item, '#');
        size_t before = mark == NULL ? strlen(item) : (size_t)(mark - item);
        memcpy(p + at, item, before);
        at += before;
        if (mark != NULL)
            at += (size_t)snprintf(p + at, cap - at, "%zu%s", i, mark + 1);
    }
    (void)snprintf(p + at, cap - at, "%s", tail);
    return p;
}

#define META   "{\"__metadata__\":{\"format\":\"usplit-model\",\"usplit\":\"{}\"}"
#define EMPTY  "{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}"
#define MEBI   (1 << 20)
#define SPARE  (256 << 10) /* what reading takes beside the header */
#define FACTOR 22          /* of the header's size, for the shortest values there are */
#define MOST   (14 << 20)  /* for all values that a header may hold, beside its text */

static void a_hostile_header_costs_a_small_multiple_of_its_size(void **state)
{
    (void)state;
    static const struct {
        const char *what, *head, *item;
        size_t n;
        const char *tail;
        enum us_status status;
    } rows[] = {
        {"a million tensors", META, ",\"t#\":" EMPTY, 1000000, "}", US_E_TOO_LARGE},
        {"more tensors than allowed", META, ",\"t#\":" EMPTY, 16385, "}", US_E_TOO_LARGE},
        {"as many tensors as allowed", META, ",\"t#\":" EMPTY, 16383, "}", US_E_FORMAT},
        {"many small members", META, ",\"t#\":0", 200000, "}", US_E_TOO_LARGE},
        {"empty objects", META ",\"a\":[", "{},", 5 * MEBI, "0]}", US_E_TOO_LARGE},
        {"few enough empty objects", META ",\"a\":[", "{},", 49000, "0]}", US_E_FORMAT},
        {"nested lists", META ",\"a\":", "[", 15 * MEBI, "}", US_E_TOO_LARGE},
        {"numbers", META ",\"a\":[", "1,", 7 * MEBI, "1]}", US_E_TOO_LARGE},
        {"few enough numbers", META ",\"a\":[", "1,", 200000, "1]}", US_E_FORMAT},
        {"one long string", META ",\"a\":\"", "x", 15 * MEBI, "\"}", US_E_FORMAT},
        {"one long number", META ",\"a\":", "1", 15 * MEBI, "}", US_E_FORMAT},
        {"one long name", META ",\"", "n", 15 * MEBI, "\":0}", US_E_FORMAT},
        {"escapes", META ",\"a\":\"", "\\u00e9", 2 * MEBI, "\"}", US_E_FORMAT},
        {"a string without end", META ",\"a\":\"", "\\\"", 7 * MEBI, "", US_E_FORMAT},
        {"spaces", META, " ", 16 * MEBI, "}", US_E_TOO_LARGE},
        {"deep metadata", "{\"__metadata__\":{\"format\":\"usplit-model\",\"usplit\":\"", "[", 100,
         "\"}}", US_E_TOO_LARGE},
        {"wide metadata", "{\"__metadata__\":{\"format\":\"usplit-model\",\"usplit\":\"[", "{},",
         20000, "0]\"}}", US_E_FORMAT},
        {"wider metadata", "{\"__metadata__\":{\"format\":\"usplit-model\",\"usplit\":\"[", "{},",
         70000, "0]\"}}", US_E_TOO_LARGE},
    };
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        struct us_model_bytes b = {.data = malloc(1)};
        b.header = repeated(rows[i].head, rows[i].item, rows[i].n, rows[i].tail);
        size_t n;
        char *bytes = us_model_bytes_join(&b, &n);
        us_model_bytes_free(&b);
        struct us_model *m;
        struct us_err err = {0};
        size_t idle = machine.now;
        machine.peak = idle;
        enum us_status s = us_model_parse(bytes, n, &m, &err);
        if (s != rows[i].status)
            fail_msg("%s: %s: %s", rows[i].what, us_status_name(s), err.msg);
        assert_int_equal(machine.now, idle);
        size_t used = machine.peak - idle;
        if (used > FACTOR * n + SPARE || used > n + MOST)
            fail_msg("%s: %zu bytes for a header of %zu", rows[i].what, used, n);
        if (getenv("US_TEST_VERBOSE") != NULL)
            print_message("%-28s %9zu bytes -> %9zu (%4.1f): %s\n", rows[i].what, n, used,
                          (double)used / (double)n, err.msg);
        free(bytes);
    }
}

/* Few bytes that describe the largest network: refused before its weights are allocated. */
static void a_small_file_cannot_claim_a_large_network(void **state)
{
    (void)state;
    struct us_model *m = us_small_model();
    struct us_model_bytes b = us_model_bytes_of(m);
    us_model_free(m);
    static const char *const rows[][2] = {
        {"\\\"n_filters\\\": 4", "\\\"n_filters\\\": 512"},
        {"\\\"z_dims\\\": [6, 6]", "\\\"z_dims\\\": [1024, 1024]"},
        {"\\\"patch_size\\\": 16", "\\\"patch_size\\\": 4096"},
    };
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        struct us_model_bytes bad = b;
        bad.header = us_text_replace(b.header, rows[i][0], rows[i][1]);
        struct us_err err = {0};
        size_t idle = machine.now;
        machine.peak = idle;
        assert_int_equal(us_model_bytes_parse(&bad, &m, &err), US_E_FORMAT);
        assert_true(machine.peak - idle < FACTOR * (strlen(b.header) + b.n_data) + 4 * SPARE);
        free(bad.header);
    }
    us_model_bytes_free(&b);
}

static int finish(void **state)
{
    (void)state;
    us_test_folder_remove();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_failed_allocation_of_a_load_is_out_of_memory),
        cmocka_unit_test(every_failed_allocation_of_a_save_is_out_of_memory),
        cmocka_unit_test(a_failed_write_leaves_the_old_file_and_no_other),
        cmocka_unit_test(short_and_interrupted_calls_are_continued),
        cmocka_unit_test(a_file_that_shrinks_or_fails_while_it_is_read_is_an_io_error),
        cmocka_unit_test(a_hostile_header_costs_a_small_multiple_of_its_size),
        cmocka_unit_test(a_small_file_cannot_claim_a_large_network),
    };
    return cmocka_run_group_tests(tests, NULL, finish);
}
