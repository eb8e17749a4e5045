/*
 * Status codes and the error object.
 *
 * Every fallible function returns `enum us_status`. A function where a human must learn *why*
 * takes a nullable `struct us_err *` as its last argument and fills it on failure. Library code
 * returns and never logs; the program that knows the context says it once. US_ASSERT is for our
 * own bugs and stays on in release; input from outside gets a status, never an assert.
 */
#ifndef US_STATUS_H
#define US_STATUS_H

#include <stdarg.h>

#ifdef __cplusplus
extern "C" {
#endif

#define US_WARN_UNUSED  __attribute__((warn_unused_result))
#define US_PRINTF(f, a) __attribute__((format(printf, f, a)))

enum us_status {
    US_OK = 0,
#define US_STATUS(name, text) US_##name,
#include "us_status.def"
#undef US_STATUS
    US_STATUS_COUNT
};

#define US_ERR_MSG_BYTES 384

/* Owned by the caller; zero-initialised means "no error". `file` is our source file. */
struct us_err {
    enum us_status status;
    const char *file;
    int line;
    char msg[US_ERR_MSG_BYTES];
};

/* "malformed data" and so on; a static string. */
const char *us_status_text(enum us_status s);
/* "E_FORMAT" and so on; a static string. */
const char *us_status_name(enum us_status s);

/* Fills *err (if not NULL) and returns `s`, so that `return us_fail(...)` is one statement.
 * Control characters in the formatted text become '?': the text may quote a stranger's bytes. */
enum us_status us_err_set(struct us_err *err, enum us_status s, const char *file, int line,
                          const char *fmt, ...) US_PRINTF(5, 6);

/* Puts "prefix: " before the message that *err holds already. */
void us_err_prefix(struct us_err *err, const char *fmt, ...) US_PRINTF(2, 3);

/* The static analyser does not look into us_err_set: it is told that the value is `s`, not US_OK.
 */
#ifdef __clang_analyzer__
#define us_fail(err, s, ...) ((void)us_err_set((err), (s), __FILE__, __LINE__, __VA_ARGS__), (s))
#else
#define us_fail(err, s, ...) us_err_set((err), (s), __FILE__, __LINE__, __VA_ARGS__)
#endif

#define US_TRY(expr)                                                                               \
    do {                                                                                           \
        enum us_status us_try_s_ = (expr);                                                         \
        if (us_try_s_ != US_OK)                                                                    \
            return us_try_s_;                                                                      \
    } while (0)

__attribute__((noreturn)) void us_assert_failed(const char *expr, const char *file, int line);
#define US_ASSERT(expr) ((expr) ? (void)0 : us_assert_failed(#expr, __FILE__, __LINE__))

#define US_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#ifdef __cplusplus
}
#endif
#endif
