/*
 * What only the SQLite store has (server/us_store_sqlite.h): a disk that fails at the n-th call or
 * is full, seen through a VFS of our own under SQLite, and files that are not ours to open.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "us_store.h"
#include "us_store_sqlite.h"

#define VFS_NAME "faulty"

/* Calls that write are counted down; at 0 one fails, or all from there on. */
static struct {
    int64_t left; /* < 0: nothing fails */
    bool stays, syncs_only;
    int code;
} fault = {.left = -1};

static sqlite3_vfs *real_vfs;

struct file {
    sqlite3_file base;
    sqlite3_file *real; /* behind us, in the same allocation */
};

static int fails(bool is_sync)
{
    if (fault.left < 0 || (fault.syncs_only && !is_sync))
        return SQLITE_OK;
    if (fault.left > 0 && --fault.left > 0)
        return SQLITE_OK;
    if (!fault.stays)
        fault.left = -1;
    return fault.code;
}

#define REAL(f) (((struct file *)(f))->real)

static int f_close(sqlite3_file *f)
{
    return REAL(f)->pMethods != NULL ? REAL(f)->pMethods->xClose(REAL(f)) : SQLITE_OK;
}

static int f_read(sqlite3_file *f, void *to, int n, sqlite3_int64 at)
{
    return REAL(f)->pMethods->xRead(REAL(f), to, n, at);
}

static int f_write(sqlite3_file *f, const void *from, int n, sqlite3_int64 at)
{
    int rc = fails(false);
    return rc != SQLITE_OK ? rc : REAL(f)->pMethods->xWrite(REAL(f), from, n, at);
}

static int f_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    int rc = fails(false);
    return rc != SQLITE_OK ? rc : REAL(f)->pMethods->xTruncate(REAL(f), size);
}

static int f_sync(sqlite3_file *f, int flags)
{
    int rc = fails(true);
    return rc != SQLITE_OK ? rc : REAL(f)->pMethods->xSync(REAL(f), flags);
}

static int f_size(sqlite3_file *f, sqlite3_int64 *size)
{
    return REAL(f)->pMethods->xFileSize(REAL(f), size);
}

static int f_lock(sqlite3_file *f, int level)
{
    return REAL(f)->pMethods->xLock(REAL(f), level);
}

static int f_unlock(sqlite3_file *f, int level)
{
    return REAL(f)->pMethods->xUnlock(REAL(f), level);
}

static int f_reserved(sqlite3_file *f, int *ret)
{
    return REAL(f)->pMethods->xCheckReservedLock(REAL(f), ret);
}

static int f_control(sqlite3_file *f, int op, void *arg)
{
    return REAL(f)->pMethods->xFileControl(REAL(f), op, arg);
}

static int f_sector(sqlite3_file *f)
{
    return REAL(f)->pMethods->xSectorSize(REAL(f));
}

static int f_traits(sqlite3_file *f)
{
    return REAL(f)->pMethods->xDeviceCharacteristics(REAL(f));
}

static int f_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **ret)
{
    return REAL(f)->pMethods->xShmMap(REAL(f), page, size, extend, ret);
}

static int f_shm_lock(sqlite3_file *f, int offset, int n, int flags)
{
    return REAL(f)->pMethods->xShmLock(REAL(f), offset, n, flags);
}

static void f_shm_barrier(sqlite3_file *f)
{
    REAL(f)->pMethods->xShmBarrier(REAL(f));
}

static int f_shm_unmap(sqlite3_file *f, int remove)
{
    return REAL(f)->pMethods->xShmUnmap(REAL(f), remove);
}

static const sqlite3_io_methods methods = {.iVersion = 2,
                                           .xClose = f_close,
                                           .xRead = f_read,
                                           .xWrite = f_write,
                                           .xTruncate = f_truncate,
                                           .xSync = f_sync,
                                           .xFileSize = f_size,
                                           .xLock = f_lock,
                                           .xUnlock = f_unlock,
                                           .xCheckReservedLock = f_reserved,
                                           .xFileControl = f_control,
                                           .xSectorSize = f_sector,
                                           .xDeviceCharacteristics = f_traits,
                                           .xShmMap = f_shm_map,
                                           .xShmLock = f_shm_lock,
                                           .xShmBarrier = f_shm_barrier,
                                           .xShmUnmap = f_shm_unmap};

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *ret_flags)
{
    struct file *file = (struct file *)f;
    file->real = (sqlite3_file *)(file + 1);
    int rc = real_vfs->xOpen(real_vfs, name, file->real, flags, ret_flags);
    file->base.pMethods = file->real->pMethods != NULL ? &methods : NULL;
    return rc;
}

static void register_vfs(void)
{
    static sqlite3_vfs vfs;
    if (real_vfs != NULL)
        return;
    real_vfs = sqlite3_vfs_find(NULL);
    vfs = *real_vfs; /* everything but opening is the system's */
    vfs.zName = VFS_NAME;
    vfs.szOsFile = (int)sizeof(struct file) + real_vfs->szOsFile;
    vfs.xOpen = vfs_open;
    vfs.pNext = NULL;
    assert_int_equal(sqlite3_vfs_register(&vfs, 0), SQLITE_OK);
}

/* ---- words for the tests ------------------------------------------------------------------- */

static char path[64];

static void remove_files(void)
{
    static const char *const parts[] = {"", "-wal", "-shm"};
    char name[80];
    for (size_t i = 0; i < US_COUNT(parts); i++) {
        (void)snprintf(name, sizeof(name), "%s%s", path, parts[i]);
        (void)unlink(name);
    }
}

static int setup(void **state)
{
    register_vfs();
    (void)snprintf(path, sizeof(path), "test-store-sqlite-XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    (void)close(fd);
    fault.left = -1;
    fault.stays = fault.syncs_only = false;
    return 0;
}

static int teardown(void **state)
{
    fault.left = -1;
    remove_files();
    return 0;
}

static enum us_status open_store(struct us_store **ret, struct us_err *err)
{
    return us_store_sqlite_open(&(struct us_store_sqlite_options){.path = path, .vfs = VFS_NAME},
                                ret, err);
}

static enum us_status put(struct us_store *s, const char *id, struct us_err *err)
{
    const struct us_store_new n = {.id = id,
                                   .type = "train",
                                   .owner = "",
                                   .class = US_JOB_TRAIN,
                                   .dataset = "d",
                                   .model = "m",
                                   .spec = "{}"};
    char got[US_STORE_ID_BYTES];
    bool repeated;
    return s->ops->put(s, &n, got, &repeated, err);
}

static int64_t count(struct us_store *s)
{
    const struct us_store_filter all = {0};
    int64_t n = -1;
    assert_int_equal(s->ops->count(s, &all, &n, NULL), US_OK);
    return n;
}

/* Everything that a store does to a job, in calls that each may fail; the first status that is not
 * US_OK. Whatever has been acknowledged is counted in *done. */
static enum us_status live(struct us_store *s, int *done, struct us_err *err)
{
    struct us_store_claim c;
    struct us_store_job job;
    enum us_job_wish wish;
    const struct us_store_beat beat = {.lease_ms = 1000, .kind = "step", .data = "{}"};
    US_TRY(put(s, "a", err));
    *done = 1;
    US_TRY(s->ops->claim(s, "w", 1U << US_JOB_TRAIN, 1000, &c, &job, err));
    us_store_job_release(&job);
    *done = 2;
    US_TRY(s->ops->heartbeat(s, &c, &beat, &wish, err));
    *done = 3;
    US_TRY(s->ops->complete(s, &c, "{}", "{\"r\":1}", err));
    *done = 4;
    return US_OK;
}

/* What must be true of a store in which `done` calls of live were acknowledged; one more may have
 * been, if it cannot be told whether its bytes reached the disk. */
static void assert_kept(struct us_store *s, int done, bool unknown)
{
    struct us_store_job j;
    if (s->ops->get(s, "a", &j, NULL) != US_OK) {
        assert_int_equal(done, 0);
        return;
    }
    assert_true(done > 0 || unknown);
    int said = j.state == US_JOB_SUCCEEDED ? 4 : j.state == US_JOB_RUNNING ? 2 : 1;
    us_store_job_release(&j);
    assert_true(said >= (done == 3 ? 2 : done));
    assert_true(said <= done + (unknown ? 2 : 0) || (said == 4 && done == 3 && unknown));
}

/* ---- failures ------------------------------------------------------------------------------ */

static void each_failing_write_in_turn_is_told_and_loses_nothing(void **state)
{
    static const struct {
        int code;
        enum us_status expected;
    } kinds[] = {{SQLITE_IOERR_WRITE, US_E_IO}, {SQLITE_FULL, US_E_DISK_FULL}};
    int64_t n = 0;
    for (size_t k = 0; k < US_COUNT(kinds); k++) {
        bool failed = true;
        for (n = 1; failed; n++) {
            struct us_store *s;
            struct us_err err = {0};
            int done = 0;
            remove_files();
            fault.code = kinds[k].code;
            assert_int_equal(open_store(&s, &err), US_OK);
            fault.left = n;
            enum us_status st = live(s, &done, &err);
            failed = fault.left < 0; /* it struck; SQLite may have coped */
            fault.left = -1;
            if (st != US_OK)
                assert_int_equal(st, kinds[k].expected);
            else
                assert_int_equal(done, 4);
            assert_kept(s, done, false);
            assert_int_equal(put(s, "b", &err), US_OK); /* the disk is well again */
            s->ops->close(s);
            assert_int_equal(open_store(&s, &err), US_OK);
            assert_kept(s, done, false);
            assert_int_equal(count(s), 1 + (done > 0));
            s->ops->close(s);
            assert_true(n < 1000);
        }
        assert_true(n > 10); /* it did strike */
    }
}

static void failed_fsync_ends_writing_until_the_store_is_opened_anew(void **state)
{
    bool struck = true;
    int n = 1;
    for (; struck; n++) {
        struct us_store *s;
        struct us_err err = {0};
        int done = 0;
        remove_files();
        assert_int_equal(open_store(&s, &err), US_OK);
        fault.code = SQLITE_IOERR_FSYNC;
        fault.syncs_only = true;
        fault.left = n;
        enum us_status st = live(s, &done, &err);
        struck = fault.left < 0;
        fault.left = -1;
        assert_int_equal(st, struck ? US_E_IO : US_OK);
        assert_int_equal(s->ops->broken(s), struck);
        assert_int_equal(put(s, "b", &err), struck ? US_E_IO : US_OK);
        assert_true(count(s) >= 0); /* reading goes on */
        s->ops->close(s);
        assert_int_equal(open_store(&s, &err), US_OK);
        assert_false(s->ops->broken(s));
        assert_kept(s, done, struck);
        assert_int_equal(put(s, "c", &err), US_OK);
        s->ops->close(s);
    }
    assert_int_equal(n, 6); /* four calls, one fsync each; the fifth round is spared */
}

static void full_disk_refuses_writes_serves_reads_and_recovers(void **state)
{
    struct us_store *s;
    struct us_err err = {0};
    assert_int_equal(open_store(&s, &err), US_OK);
    assert_int_equal(put(s, "a", &err), US_OK);
    fault.code = SQLITE_FULL;
    fault.stays = true;
    fault.left = 1;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(put(s, "b", &err), US_E_DISK_FULL);
        assert_int_equal(count(s), 1);
    }
    assert_false(s->ops->broken(s));
    fault.left = -1;
    assert_int_equal(put(s, "b", &err), US_OK);
    assert_int_equal(count(s), 2);
    s->ops->close(s);
}

static void failing_at_each_write_of_the_first_opening_leaves_a_file_that_opens(void **state)
{
    bool struck = true;
    int64_t n = 1;
    for (; struck; n++) {
        struct us_store *s = NULL;
        struct us_err err = {0};
        remove_files();
        fault.code = SQLITE_FULL;
        fault.left = n;
        enum us_status st = open_store(&s, &err);
        struck = fault.left < 0;
        fault.left = -1;
        if (st == US_OK)
            s->ops->close(s);
        else
            assert_int_equal(st, US_E_DISK_FULL);
        assert_int_equal(open_store(&s, &err), US_OK);
        assert_int_equal(put(s, "a", &err), US_OK);
        s->ops->close(s);
        assert_true(n < 1000);
    }
    assert_true(n > 5);
}

/* ---- files --------------------------------------------------------------------------------- */

static void run_sql(const char *sql)
{
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void newer_schema_is_refused_and_says_what_to_do(void **state)
{
    struct us_store *s = NULL;
    struct us_err err = {0};
    assert_int_equal(open_store(&s, &err), US_OK);
    assert_int_equal(put(s, "a", &err), US_OK);
    s->ops->close(s);
    run_sql("PRAGMA user_version = 99");
    s = NULL;
    assert_int_equal(open_store(&s, &err), US_E_UNSUPPORTED);
    assert_null(s);
    assert_non_null(strstr(err.msg, "schema 99"));
    assert_non_null(strstr(err.msg, "newer usplitd"));
    run_sql("PRAGMA user_version = 1");
    assert_int_equal(open_store(&s, &err), US_OK);
    assert_int_equal(count(s), 1);
    s->ops->close(s);
}

static void file_of_another_program_is_refused_untouched(void **state)
{
    struct us_store *s = NULL;
    struct us_err err = {0};
    run_sql("CREATE TABLE recipes(a); PRAGMA application_id = 7");
    assert_int_equal(open_store(&s, &err), US_E_UNSUPPORTED);
    assert_non_null(strstr(err.msg, "not a store"));
    run_sql("INSERT INTO recipes VALUES(1)"); /* and still has its journal mode */
    sqlite3 *db;
    sqlite3_stmt *q;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, "PRAGMA journal_mode", -1, &q, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(q), SQLITE_ROW);
    assert_string_equal(sqlite3_column_text(q, 0), "delete");
    assert_int_equal(sqlite3_finalize(q), SQLITE_OK);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void damaged_file_is_refused(void **state)
{
    struct us_store *s = NULL;
    struct us_err err = {0};
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < 1000; i++)
        (void)fprintf(f, "this is no database ");
    assert_int_equal(fclose(f), 0);
    assert_int_equal(open_store(&s, &err), US_E_CORRUPT);
}

static void nobody_else_may_read_the_file(void **state)
{
    struct us_store *s = NULL;
    struct us_err err = {0};
    struct stat st;
    remove_files();
    assert_int_equal(open_store(&s, &err), US_OK);
    assert_int_equal(put(s, "a", &err), US_OK);
    char wal[80];
    (void)snprintf(wal, sizeof(wal), "%s-wal", path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    assert_int_equal(stat(wal, &st), 0);
    assert_int_equal(st.st_mode & 077, 0);
    s->ops->close(s);
}

#define T(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(each_failing_write_in_turn_is_told_and_loses_nothing),
        T(failed_fsync_ends_writing_until_the_store_is_opened_anew),
        T(full_disk_refuses_writes_serves_reads_and_recovers),
        T(failing_at_each_write_of_the_first_opening_leaves_a_file_that_opens),
        T(newer_schema_is_refused_and_says_what_to_do),
        T(file_of_another_program_is_refused_untouched),
        T(damaged_file_is_refused),
        T(nobody_else_may_read_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
