/*
 * Checkpoints made to mislead (proto/us_torch.h): each pickle and archive is refused for its reason
 * and in bounded memory, and a failed allocation is reported wherever it happens.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "us_torch.h"
#include "us_torch_make.h"

/* ---- allocations of the program itself: the linker sends them here (--wrap) ---- */

static volatile int until_failure;    /* allocations until one fails; 0: none does */
static volatile size_t bytes_claimed; /* by all of them, whatever was freed since */

static bool fails(size_t n, size_t size)
{
    bytes_claimed += n * size;
    return until_failure > 0 && --until_failure == 0;
}

#define WRAP(name, params, args, n, size)                                                          \
    void *__real_##name params;                                                                    \
    void *__wrap_##name params;                                                                    \
    void *__wrap_##name params                                                                     \
    {                                                                                              \
        return fails(n, size) ? NULL : __real_##name args;                                         \
    }
WRAP(malloc, (size_t bytes), (bytes), bytes, 1)
WRAP(calloc, (size_t n, size_t bytes), (n, bytes), n, bytes)
WRAP(realloc, (void *p, size_t bytes), (p, bytes), bytes, 1)
WRAP(reallocarray, (void *p, size_t n, size_t bytes), (p, n, bytes), n, bytes)
WRAP(aligned_alloc, (size_t align, size_t bytes), (align, bytes), bytes, 1)

/* What a file of a few bytes may make us claim in all. */
#define CLAIM_MAX (96u << 20)

/* ---- hostile pickles ----------------------------------------------------------------------- */

struct hostile {
    const char *why;
    const char *pickle;
    size_t n;
    enum us_status status;
    const char *words; /* in the error */
};

#define PUT_SELF "\200\002]q\000h\000a."

static const struct hostile hostile_pickles[] = {
    {"os.system is called", US_BYTES("\200\002cos\nsystem\n(X\002\000\000\000idtR."),
     US_E_UNSUPPORTED, "os.system"},
    {"posix.system by STACK_GLOBAL",
     US_BYTES("\200\004\214\005posix\214\006system\223\214\002id\205R."), US_E_UNSUPPORTED,
     "posix.system"},
    {"eval beside a state dictionary",
     US_BYTES("\200\002}(X\001\000\000\000xcbuiltins\neval\nX\012\000\000\000state_dict}u."),
     US_E_UNSUPPORTED, "builtins.eval"},
    {"a name in os.path", US_BYTES("\200\002cos.path\nwalk\n."), US_E_UNSUPPORTED, "os.path.walk"},
    {"a name thrown away before the end", US_BYTES("\200\002csubprocess\nPopen\n0}."),
     US_E_UNSUPPORTED, "subprocess.Popen"},
    {"a foreign class in a bare state dictionary", US_BYTES(PICKLE_DICT("cfoo\nBar\n)R")),
     US_E_UNSUPPORTED, "foo.Bar; a state dictionary needs no such class"},
    {"a foreign class thrown away", US_BYTES("\200\002cfoo\nBar\n0}."), US_E_UNSUPPORTED,
     "a state dictionary needs no such class"},
    {"a foreign object as a tensor",
     US_BYTES("\200\002}X\012\000\000\000state_dict}X\001\000\000\000wcfoo\nBar\n)Rss."),
     US_E_UNSUPPORTED, "w is an object of foo.Bar"},
    {"a foreign class as storage type",
     US_BYTES(PICKLE_DICT(
         PICKLE_REBUILD PICKLE_STORAGE_OF("cfoo\nStorage\n", "0", "\004") "K\000))" PICKLE_HOOKS)),
     US_E_UNSUPPORTED, "foo.Storage"},
    {"a whole module instead of a state dictionary", US_BYTES("\200\002cnet\nNet\n)R."),
     US_E_FORMAT, "model.state_dict()"},
    {"a number as a tensor", US_BYTES(PICKLE_DICT("K\001")), US_E_UNSUPPORTED, "w is an integer"},
    {"a storage type that is called", US_BYTES(PICKLE_DICT("ctorch\nFloatStorage\n)R")),
     US_E_UNSUPPORTED, "torch.FloatStorage"},
    {"a text that is called", US_BYTES("\200\002X\001\000\000\000w)R."), US_E_FORMAT,
     "calls a text"},
    {"a list in itself", US_BYTES(PUT_SELF), US_E_FORMAT, "contains itself"},
    {"a dictionary in itself", US_BYTES("\200\002}q\000X\001\000\000\000wh\000s."), US_E_FORMAT,
     "contains itself"},
    {"a circle of two lists", US_BYTES("\200\002]q\000]q\001h\000aa."), US_E_FORMAT,
     "contains itself"},
    {"a circle through a tuple", US_BYTES("\200\002]q\000h\000\205a."), US_E_FORMAT,
     "contains itself"},
    {"BINPUT beyond the cap", US_BYTES("\200\002Nr\377\377\377\377."), US_E_TOO_LARGE,
     "memo index 4294967295"},
    {"a memo index just beyond the cap", US_BYTES("\200\002Nr\000\000\020\000."), US_E_TOO_LARGE,
     "memo index 1048576"},
    {"a memo entry that was never put", US_BYTES("\200\002h\007."), US_E_FORMAT, "never put"},
    {"a memo entry in a gap", US_BYTES("\200\002Nq\011h\003."), US_E_FORMAT, "never put"},
    {"no STOP", US_BYTES("\200\002}"), US_E_FORMAT, "ends within"},
    {"a cut integer", US_BYTES("\200\002J\001\002"), US_E_FORMAT, "ends within BININT"},
    {"a cut text", US_BYTES("\200\002X\011\000\000\000w."), US_E_FORMAT, "ends within BINUNICODE"},
    {"a text of 2^64 bytes", US_BYTES("\200\004\215\377\377\377\377\377\377\377\377w."),
     US_E_FORMAT, "BINUNICODE8"},
    {"a name without its end", US_BYTES("\200\002cos"), US_E_FORMAT, "ends within GLOBAL"},
    {"a frame beyond the end", US_BYTES("\200\004\225\377\000\000\000\000\000\000\000}."),
     US_E_FORMAT, "FRAME"},
    {"bytes after STOP", US_BYTES("\200\002}.x"), US_E_FORMAT, "after STOP"},
    {"a value below the last one", US_BYTES("\200\002K\001}."), US_E_FORMAT, "after STOP"},
    {"an empty stack", US_BYTES("\200\002."), US_E_FORMAT, "fewer than 1"},
    {"a mark as a value", US_BYTES("\200\002(."), US_E_FORMAT, "fewer than 1"},
    {"no mark", US_BYTES("\200\002}X\001\000\000\000wu."), US_E_FORMAT, "no mark"},
    {"an odd number of entries", US_BYTES("\200\002}(X\001\000\000\000wu."), US_E_FORMAT,
     "puts 1 values into a dict"},
    {"items put into a number", US_BYTES("\200\002K\001(Ne."), US_E_FORMAT, "into an integer"},
    {"protocol 0", US_BYTES("(dp0\n."), US_E_UNSUPPORTED, "begin with its protocol"},
    {"protocol 1 by its number", US_BYTES("\200\001}."), US_E_UNSUPPORTED, "protocol 1"},
    {"protocol 6", US_BYTES("\200\006}."), US_E_UNSUPPORTED, "protocol 6"},
    {"a second PROTO", US_BYTES("\200\002\200\002}."), US_E_UNSUPPORTED, "at byte 2"},
    {"INST", US_BYTES("\200\002(ios\nsystem\n."), US_E_UNSUPPORTED, "INST"},
    {"OBJ", US_BYTES("\200\002(No."), US_E_UNSUPPORTED, "OBJ"},
    {"an extension", US_BYTES("\200\002\202\001."), US_E_UNSUPPORTED, "EXT1"},
    {"a buffer from elsewhere", US_BYTES("\200\005\227."), US_E_UNSUPPORTED, "NEXT_BUFFER"},
    {"an unknown operation", US_BYTES("\200\002\377."), US_E_FORMAT, "0xff"},
    {"a storage that is not there",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_STORAGE_OF("ctorch\nFloatStorage\n", "7",
                                                           "\004") "K\000))" PICKLE_HOOKS)),
     US_E_FORMAT, "data/7"},
    {"a storage outside of its folder",
     US_BYTES(PICKLE_DICT(
         PICKLE_REBUILD
         "(X\007\000\000\000storagectorch\nFloatStorage\n"
         "X\013\000\000\000../data.pklX\003\000\000\000cpuK\004tQK\000))" PICKLE_HOOKS)),
     US_E_FORMAT, "is not there"},
    {"a storage larger than its member",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_STORAGE_OF("ctorch\nFloatStorage\n", "0",
                                                           "\005") "K\000))" PICKLE_HOOKS)),
     US_E_FORMAT, "has 16 bytes"},
    {"a storage of another type",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_STORAGE_OF("ctorch\nDoubleStorage\n", "0",
                                                           "\004") "K\000))" PICKLE_HOOKS)),
     US_E_FORMAT, "4 elements of 8"},
    {"a storage of negative size",
     US_BYTES(PICKLE_DICT(
         PICKLE_REBUILD
         "(X\007\000\000\000storagectorch\nFloatStorage\n"
         "X\001\000\000\0000X\003\000\000\000cpuJ\377\377\377\377tQK\000))" PICKLE_HOOKS)),
     US_E_FORMAT, "-1 elements"},
    {"a persistent id of another kind", US_BYTES(PICKLE_DICT("K\001\205Q")), US_E_FORMAT,
     "persistent id"},
    {"an offset beyond the storage",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS "K\004(K\001t(K\001t" PICKLE_HOOKS)),
     US_E_FORMAT, "element 4"},
    {"a negative offset",
     US_BYTES(
         PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS "J\377\377\377\377(K\001t(K\001t" PICKLE_HOOKS)),
     US_E_FORMAT, "offset"},
    {"a shape beyond the storage",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS "K\000(K\005t(K\001t" PICKLE_HOOKS)),
     US_E_FORMAT, "element 4"},
    {"strides beyond the storage",
     US_BYTES(
         PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS "K\000(K\002K\002t(K\003K\001t" PICKLE_HOOKS)),
     US_E_FORMAT, "element 4"},
    {"a negative stride",
     US_BYTES(
         PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS "K\003(K\004t(J\377\377\377\377t" PICKLE_HOOKS)),
     US_E_FORMAT, "strides has an entry -1"},
    {"a negative size",
     US_BYTES(
         PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS "K\000(J\377\377\377\377t(K\001t" PICKLE_HOOKS)),
     US_E_FORMAT, "shape has an entry -1"},
    {"sizes whose product overflows",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS
                          "K\000(\212\010\377\377\377\377\377\377\377\177K\003t"
                          "(K\000K\000t" PICKLE_HOOKS)),
     US_E_FORMAT, "reaches to"},
    {"a stride whose product overflows",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS
                          "K\000(K\003t(\212\010\377\377\377\377\377\377\377\177"
                          "t" PICKLE_HOOKS)),
     US_E_FORMAT, "reaches to"},
    {"a number repeated 2^40 times",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS
                          "K\000(\212\006\000\000\000\000\000\001t(K\000t" PICKLE_HOOKS)),
     US_E_TOO_LARGE, "1099511627776 elements"},
    {"an integer beyond 64 bits as a size",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS
                          "K\000(\212\011\000\000\000\000\000\000\000\000\001t"
                          "(K\000t" PICKLE_HOOKS)),
     US_E_FORMAT, "shape"},
    {"more strides than dimensions",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS "K\000(K\002t(K\001K\001t" PICKLE_HOOKS)),
     US_E_FORMAT, "1 dimensions and 2 strides"},
    {"nine dimensions",
     US_BYTES(PICKLE_DICT(PICKLE_REBUILD PICKLE_FLOATS
                          "K\000(K\001K\001K\001K\001K\001K\001K\001K\001K\001t"
                          "(K\001t" PICKLE_HOOKS)),
     US_E_FORMAT, "at most 8"},
    {"a tensor from a number", US_BYTES(PICKLE_DICT(PICKLE_REBUILD "K\001K\000))" PICKLE_HOOKS)),
     US_E_FORMAT, "not a storage"},
    {"a tensor from nothing", US_BYTES(PICKLE_DICT(PICKLE_REBUILD "tR")), US_E_FORMAT,
     "0 arguments"},
    {"a parameter from a number",
     US_BYTES(PICKLE_DICT("ctorch._utils\n_rebuild_parameter\n(K\001tR")), US_E_FORMAT,
     "not a tensor"},
    {"two tensors of one name",
     US_BYTES("\200\002}(X\001\000\000\000wq\000" PICKLE_TENSOR "h\000" PICKLE_TENSOR "u."),
     US_E_FORMAT, "w is there twice"},
    {"a number as a name", US_BYTES("\200\002}K\001" PICKLE_TENSOR "s."), US_E_FORMAT, "a key"},
    {"a NUL in a name", US_BYTES("\200\002}X\002\000\000\000w\000" PICKLE_TENSOR "s."), US_E_FORMAT,
     "a key"},
    {"an OrderedDict with arguments", US_BYTES("\200\002ccollections\nOrderedDict\n]\205R."),
     US_E_UNSUPPORTED, "OrderedDict"},
};

static void check_refused(const char *why, const unsigned char *bytes, size_t n,
                          enum us_status status, const char *words)
{
    struct us_err err = {0};
    struct us_torch *t = NULL;
    bytes_claimed = 0;
    enum us_status got = us_torch_parse(bytes, n, &t, &err);
    if (got != status || t != NULL)
        fail_msg("%s: status %s (%s); expected %s", why, us_status_name(got), err.msg,
                 us_status_name(status));
    if (strstr(err.msg, words) == NULL)
        fail_msg("%s: \"%s\" does not say \"%s\"", why, err.msg, words);
    if (bytes_claimed > CLAIM_MAX)
        fail_msg("%s: %zu bytes were claimed", why, bytes_claimed);
}

static void hostile_pickles_are_refused_for_their_reason(void **state)
{
    for (size_t i = 0; i < US_COUNT(hostile_pickles); i++) {
        const struct hostile *h = &hostile_pickles[i];
        size_t n;
        unsigned char *bytes = us_torch_checkpoint(h->pickle, h->n, &n);
        check_refused(h->why, bytes, n, h->status, h->words);
        free(bytes);
    }
}

/* `head`, then `body` n times, then `tail`. */
static void check_repeated(const char *why, const char *head, size_t n_head, const char *body,
                           size_t n_body, size_t times, const char *tail, enum us_status status,
                           const char *words)
{
    size_t n = n_head + n_body * times + strlen(tail), at = n_head, total;
    char *pickle = malloc(n + 1);
    assert_non_null(pickle);
    memcpy(pickle, head, n_head);
    for (size_t i = 0; i < times; i++, at += n_body)
        memcpy(pickle + at, body, n_body);
    memcpy(pickle + at, tail, strlen(tail));
    unsigned char *bytes = us_torch_checkpoint(pickle, n, &total);
    check_refused(why, bytes, total, status, words);
    free(bytes);
    free(pickle);
}

static void bombs_are_refused_in_bounded_memory(void **state)
{
    check_repeated("lists that double through the memo", US_BYTES("\200\002]q\000"),
                   US_BYTES("]q\001(h\000h\000eq\000"), 60, ".", US_E_FORMAT, "after STOP");
    check_repeated("nesting", US_BYTES("\200\002)"), US_BYTES("\205"), 100, ".", US_E_TOO_LARGE,
                   "64 deep");
    check_repeated("deep nesting", US_BYTES("\200\002)"), US_BYTES("\205"), 400000, ".",
                   US_E_TOO_LARGE, "64 deep");
    check_repeated("more values than the cap", US_BYTES("\200\002"), US_BYTES("N0"), 520000, ".",
                   US_E_FORMAT, "fewer than 1");
    check_repeated("marks", US_BYTES("\200\002"), US_BYTES("("), 100000, ".", US_E_TOO_LARGE,
                   "stack entries");
    check_repeated("memo entries", US_BYTES("\200\004N"), US_BYTES("\224"), 900000, ".",
                   US_E_FORMAT, "a state dictionary");
    check_repeated("one value in a list a million times", US_BYTES("\200\002]Nq\0000"),
                   US_BYTES("h\000a"), 340000, ".", US_E_FORMAT, "a list");
    check_repeated("storages", US_BYTES("\200\002]"), US_BYTES(PICKLE_FLOATS "a"), 16000, ".",
                   US_E_FORMAT, "a list");
}

/* Memory of shared values is claimed once: a dictionary of doubled lists opens. */
static void doubled_values_cost_nothing_beside_a_state_dictionary(void **state)
{
    char pickle[2048] = "\200\002}(X\001\000\000\000x]q\000";
    size_t n = 13;
    for (int i = 0; i < 30; i++) {
        memcpy(pickle + n, "0](h\000h\000eq\000", 10);
        n += 10;
    }
    static const char end[] = "X\012\000\000\000state_dict}u.";
    memcpy(pickle + n, end, sizeof(end) - 1);
    n += sizeof(end) - 1;
    size_t total;
    struct us_err err = {0};
    struct us_torch *t = NULL;
    struct us_torch_value v;
    unsigned char *bytes = us_torch_checkpoint(pickle, n, &total);
    bytes_claimed = 0;
    if (us_torch_parse(bytes, total, &t, &err) != US_OK)
        fail_msg("%s", err.msg);
    assert_false(us_torch_setting(t, NULL, "nowhere", &v));
    assert_true(bytes_claimed < 1 << 20);
    us_torch_free(t);
    free(bytes);
}

/* ---- hostile archives ---------------------------------------------------------------------- */

#define PKL                                                                                        \
    {                                                                                              \
        .name = "a/data.pkl", .data = PICKLE_DICT(PICKLE_TENSOR),                                  \
        .n = sizeof(PICKLE_DICT(PICKLE_TENSOR)) - 1                                                \
    }
#define DATA(...)                                                                                  \
    {                                                                                              \
        .name = "a/data/0", .data = us_torch_numbers, .n = sizeof(us_torch_numbers), __VA_ARGS__   \
    }
#define NAMED(x)                                                                                   \
    {                                                                                              \
        .name = (x), .data = "3\n", .n = 2                                                         \
    }

struct archive {
    const char *why;
    struct us_zip_make make; /* its parts aside */
    struct us_zip_part part[3];
    enum us_status status;
    const char *words;
};

static const struct archive archives[] = {
    {"an encrypted member", {.n = 2}, {PKL, DATA(.flags = 1)}, US_E_UNSUPPORTED, "encrypted"},
    {"strong encryption", {.n = 2}, {PKL, DATA(.flags = 1 << 6)}, US_E_UNSUPPORTED, "encrypted"},
    {"a masked directory", {.n = 2}, {PKL, DATA(.flags = 1 << 13)}, US_E_UNSUPPORTED, "encrypted"},
    {"a deflated member", {.n = 2}, {PKL, DATA(.method = 8)}, US_E_UNSUPPORTED, "method 8"},
    {"two members of one name", {.n = 3}, {PKL, DATA(), DATA()}, US_E_FORMAT, "is there twice"},
    {"two pickles", {.n = 3}, {PKL, DATA(), PKL}, US_E_FORMAT, "data.pkl is there twice"},
    {"a path out of the folder", {.n = 3}, {PKL, DATA(), NAMED("a/../b")}, US_E_FORMAT, "a/../b"},
    {"an absolute path", {.n = 3}, {PKL, DATA(), NAMED("/a/b")}, US_E_FORMAT, "/a/b"},
    {"a backslash", {.n = 3}, {PKL, DATA(), NAMED("a/..\\b")}, US_E_FORMAT, "plain relative path"},
    {"a drive", {.n = 3}, {PKL, DATA(), NAMED("c:/b")}, US_E_FORMAT, "plain relative path"},
    {"an empty part", {.n = 3}, {PKL, DATA(), NAMED("a//b")}, US_E_FORMAT, "plain relative path"},
    {"an empty name", {.n = 3}, {PKL, DATA(), NAMED("")}, US_E_FORMAT, "plain relative path"},
    {"a control character", {.n = 3}, {PKL, DATA(), NAMED("a/\nb")}, US_E_FORMAT, "a/?b"},
    {"two folders", {.n = 3}, {PKL, DATA(), NAMED("b/version")}, US_E_FORMAT, "in one folder"},
    {"a folder as a prefix", {.n = 3}, {PKL, DATA(), NAMED("ab/c")}, US_E_FORMAT, "in one folder"},
    {"a size beyond the file", {.n = 2}, {PKL, DATA(.size_lie = 1 << 30)}, US_E_FORMAT, "outside"},
    {"a size into the directory", {.n = 2}, {PKL, DATA(.size_lie = 20)}, US_E_FORMAT, "directory"},
    {"a size of half the data", {.n = 2}, {PKL, DATA(.size_lie = 8)}, US_E_FORMAT, "has 8 bytes"},
    {"another size in the header",
     {.n = 2},
     {PKL, DATA(.local_size_lie = 8)},
     US_E_FORMAT,
     "contradicts"},
    {"another name in the header",
     {.n = 2},
     {PKL, DATA(.local_name = "a/data/1")},
     US_E_FORMAT,
     "contradicts"},
    {"a place beyond the file",
     {.n = 2},
     {PKL, DATA(.offset_plus_1 = 1 << 30)},
     US_E_FORMAT,
     "outside"},
    {"another member's place",
     {.n = 2},
     {PKL, DATA(.offset_plus_1 = 1)},
     US_E_FORMAT,
     "contradicts"},
    {"a wrong checksum of the pickle",
     {.n = 2},
     {{.name = "a/data.pkl", .data = "\200\002}.", .n = 4, .crc_lie = 1}, DATA()},
     US_E_CORRUPT,
     "CRC-32"},
    {"one member too many", {.n = 2, .count_plus = 1}, {PKL, DATA()}, US_E_FORMAT, "fewer members"},
    {"a directory elsewhere",
     {.n = 2, .directory_at_plus = 1},
     {PKL, DATA()},
     US_E_FORMAT,
     "directory is not where"},
    {"no members", {.n = 0}, {{0}}, US_E_FORMAT, "begins with 50 4b 05 06"},
    {"bytes before", {.n = 2, .before = 4}, {PKL, DATA()}, US_E_FORMAT, "begins with"},
    {"bytes after", {.n = 2, .after = 1}, {PKL, DATA()}, US_E_FORMAT, "not at the end"},
    {"zip64 without its record",
     {.n = 2, .zip64 = true, .no_end64 = true},
     {PKL, DATA()},
     US_E_FORMAT,
     "has none"},
    {"zip64 record elsewhere",
     {.n = 2, .zip64 = true, .end64_at_plus = 8},
     {PKL, DATA()},
     US_E_FORMAT,
     "before its locator"},
    {"zip64 record beyond 2^63",
     {.n = 2, .zip64 = true, .end64_at_plus = UINT64_MAX - 4096},
     {PKL, DATA()},
     US_E_FORMAT,
     "before its locator"},
    {"a 64-bit size of 2^63",
     {.n = 2},
     {PKL, DATA(.zip64 = true, .zip64_size_lie = 1ull << 63)},
     US_E_FORMAT,
     "outside"},
    {"a 64-bit size that wraps",
     {.n = 2},
     {PKL, DATA(.zip64 = true, .zip64_size_lie = UINT64_MAX - 20)},
     US_E_FORMAT,
     "outside"},
    {"a short 64-bit field",
     {.n = 2},
     {PKL, DATA(.zip64 = true, .zip64_bytes = 16)},
     US_E_FORMAT,
     "of 16 bytes; expected 24"},
    {"a long 64-bit field",
     {.n = 2},
     {PKL, DATA(.zip64 = true, .zip64_bytes = 32)},
     US_E_FORMAT,
     "of 32 bytes; expected 24"},
    {"no pickle", {.n = 1}, {DATA()}, US_E_FORMAT, "without data.pkl"},
    {"TorchScript",
     {.n = 3},
     {PKL, DATA(), NAMED("a/constants.pkl")},
     US_E_UNSUPPORTED,
     "TorchScript"},
    {"big-endian us_torch_numbers",
     {.n = 3},
     {PKL, DATA(), {.name = "a/byteorder", .data = "bigbig", .n = 6}},
     US_E_UNSUPPORTED,
     "byte order"},
};

static void hostile_archives_are_refused_for_their_reason(void **state)
{
    for (size_t i = 0; i < US_COUNT(archives); i++) {
        struct us_zip_make make = archives[i].make;
        size_t n;
        make.part = archives[i].part;
        unsigned char *bytes = us_zip_make(&make, &n);
        check_refused(archives[i].why, bytes, n, archives[i].status, archives[i].words);
        free(bytes);
    }
}

/* The second member's header lies inside the first one's data, whole and true. */
static void overlapping_members_are_refused(void **state)
{
    size_t n;
    const struct us_zip_part inner = DATA();
    const struct us_zip_make alone = {.part = &inner, .n = 1};
    unsigned char *hidden = us_zip_make(&alone, &n);
    const struct us_zip_part part[] = {
        {.name = "a/x", .data = hidden, .n = 30 + 8 + sizeof(us_torch_numbers)},
        DATA(.offset_plus_1 = 30 + 3 + 1),
        PKL,
    };
    const struct us_zip_make make = {.part = part, .n = 3};
    unsigned char *bytes = us_zip_make(&make, &n);
    check_refused("overlap", bytes, n, US_E_FORMAT, "overlap");
    free(bytes);
    free(hidden);
}

/* ---- a machine without memory ---------------------------------------------------------------- */

static void a_failed_allocation_is_reported_wherever_it_happens(void **state)
{
    size_t n;
    unsigned char *bytes = us_torch_checkpoint(US_BYTES(PICKLE_DICT(PICKLE_TENSOR)), &n);
    enum us_status s = US_E_NOMEM;
    int fail = 1;
    for (; s == US_E_NOMEM; fail++) {
        struct us_torch *t = NULL;
        until_failure = fail;
        s = us_torch_parse(bytes, n, &t, NULL);
        until_failure = 0;
        assert_true((s == US_OK) == (t != NULL));
        us_torch_free(t);
    }
    assert_int_equal(s, US_OK);
    assert_true(fail > 10);
    free(bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hostile_pickles_are_refused_for_their_reason),
        cmocka_unit_test(bombs_are_refused_in_bounded_memory),
        cmocka_unit_test(doubled_values_cost_nothing_beside_a_state_dictionary),
        cmocka_unit_test(hostile_archives_are_refused_for_their_reason),
        cmocka_unit_test(overlapping_members_are_refused),
        cmocka_unit_test(a_failed_allocation_is_reported_wherever_it_happens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
