/* Content codings: header fields, round trips, and what a hostile body must not achieve. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>
#include <zstd.h>

#include "us_coding.h"

/* A byte string that grows; fail_after makes it refuse, as a full disk would. */
struct bytes {
    unsigned char *p;
    size_t n, cap;
    size_t fail_after;
};

static enum us_status take(void *arg, const void *p, size_t n)
{
    struct bytes *b = arg;
    if (b->fail_after != 0 && b->n + n > b->fail_after)
        return US_E_DISK_FULL;
    if (b->n + n > b->cap) {
        b->cap = 2 * (b->n + n);
        b->p = realloc(b->p, b->cap);
        assert_non_null(b->p);
    }
    memcpy(b->p + b->n, p, n);
    b->n += n;
    return US_OK;
}

static void put(struct bytes *b, const void *p, size_t n)
{
    assert_int_equal(take(b, p, n), US_OK);
}

static void drop(struct bytes *b)
{
    free(b->p);
    *b = (struct bytes){0};
}

/* Half repetitive, half noise: both paths of every compressor. */
static struct bytes sample(size_t n)
{
    struct bytes b = {.p = malloc(n + 1), .n = n, .cap = n + 1};
    assert_non_null(b.p);
    uint32_t s = 12345;
    for (size_t i = 0; i < n; i++) {
        s = 1664525u * s + 1013904223u;
        b.p[i] = (i >> 12) & 1 ? (unsigned char)(s >> 24) : (unsigned char)(i >> 5);
    }
    return b;
}

static struct bytes encoded(enum us_coding c, int level, const struct bytes *in, size_t piece)
{
    struct bytes out = {0};
    struct us_encoder *e;
    assert_int_equal(us_encoder_new(c, level, take, &out, &e), US_OK);
    for (size_t at = 0; at < in->n; at += piece) {
        size_t n = in->n - at < piece ? in->n - at : piece;
        assert_int_equal(us_encoder_feed(e, in->p + at, n), US_OK);
    }
    assert_int_equal(us_encoder_end(e), US_OK);
    us_encoder_free(e);
    return out;
}

struct outcome {
    enum us_status status;
    struct bytes out;
    char msg[US_ERR_MSG_BYTES];
};

static struct outcome decoded(enum us_coding c, const struct bytes *in, size_t piece,
                              uint64_t max_bytes)
{
    struct outcome o = {.status = US_OK};
    struct us_err err = {0};
    struct us_decoder *d;
    assert_int_equal(us_decoder_new(c, max_bytes, take, &o.out, &d), US_OK);
    for (size_t at = 0; at < in->n && o.status == US_OK; at += piece) {
        size_t n = in->n - at < piece ? in->n - at : piece;
        o.status = us_decoder_feed(d, in->p + at, n, &err);
    }
    if (o.status == US_OK)
        o.status = us_decoder_end(d, &err);
    if (o.status != US_OK) { /* a failure is final */
        assert_int_equal(us_decoder_feed(d, "x", 1, NULL), o.status);
        assert_int_equal(us_decoder_end(d, NULL), o.status);
    }
    us_decoder_free(d);
    memcpy(o.msg, err.msg, sizeof(o.msg));
    return o;
}

static void assert_decodes(enum us_coding c, const struct bytes *in, size_t piece,
                           const struct bytes *want)
{
    struct outcome o = decoded(c, in, piece, want->n);
    if (o.status != US_OK)
        fail_msg("%s: %s", us_coding_name(c), o.msg);
    assert_int_equal(o.out.n, want->n);
    if (want->n > 0)
        assert_memory_equal(o.out.p, want->p, want->n);
    drop(&o.out);
}

/* msg: a word that the reason must hold. */
static void assert_refuses(enum us_coding c, const struct bytes *in, enum us_status want,
                           const char *msg)
{
    static const size_t pieces[] = {1, 7, 1 << 20};
    for (size_t i = 0; i < US_COUNT(pieces); i++) {
        struct outcome o = decoded(c, in, pieces[i], 1 << 20);
        if (o.status != want || strstr(o.msg, msg) == NULL)
            fail_msg("%s by %zu: wanted %s \"%s\", got %s \"%s\"", us_coding_name(c), pieces[i],
                     us_status_name(want), msg, us_status_name(o.status), o.msg);
        drop(&o.out);
    }
}

static const enum us_coding all[] = {US_CODING_IDENTITY, US_CODING_GZIP, US_CODING_DEFLATE,
                                     US_CODING_ZSTD};

/* ---- header fields ---- */

static void content_encoding_values_are_parsed_or_refused(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        enum us_status status;
        enum us_coding coding;
    } rows[] = {
        {NULL, US_OK, US_CODING_IDENTITY},     {"", US_OK, US_CODING_IDENTITY},
        {"  ", US_OK, US_CODING_IDENTITY},     {"identity", US_OK, US_CODING_IDENTITY},
        {"zstd", US_OK, US_CODING_ZSTD},       {" ZStd\t", US_OK, US_CODING_ZSTD},
        {"gzip", US_OK, US_CODING_GZIP},       {"X-GZIP", US_OK, US_CODING_GZIP},
        {"deflate", US_OK, US_CODING_DEFLATE}, {"br", US_E_UNSUPPORTED, 0},
        {"zst", US_E_UNSUPPORTED, 0},          {"zstdd", US_E_UNSUPPORTED, 0},
        {"gzip, zstd", US_E_UNSUPPORTED, 0},   {"gzip,gzip", US_E_UNSUPPORTED, 0},
        {"gzip;q=1", US_E_UNSUPPORTED, 0},
    };
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        struct us_err err = {0};
        enum us_coding c = US_CODING_DEFLATE;
        enum us_status s = us_coding_parse(rows[i].value, &c, &err);
        assert_int_equal(s, rows[i].status);
        if (s == US_OK)
            assert_int_equal(c, rows[i].coding);
        else
            assert_true(strlen(err.msg) > 0);
    }
}

static void accept_encoding_picks_the_best_that_is_allowed(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        enum us_coding coding;
    } rows[] = {
        {NULL, US_CODING_IDENTITY},
        {"", US_CODING_IDENTITY},
        {"identity", US_CODING_IDENTITY},
        {"zstd", US_CODING_ZSTD},
        {"gzip, deflate, br, zstd", US_CODING_ZSTD},
        {"gzip, deflate", US_CODING_GZIP},
        {"deflate", US_CODING_IDENTITY},
        {"br", US_CODING_IDENTITY},
        {"GZIP ;Q=0.5 , ZSTD;q=0", US_CODING_GZIP},
        {"zstd;q=0.000, x-gzip", US_CODING_GZIP},
        {"zstd;q=0.001", US_CODING_ZSTD},
        {"*", US_CODING_ZSTD},
        {"*, zstd;q=0", US_CODING_GZIP},
        {"*;q=0, gzip", US_CODING_GZIP},
        {"*;q=0", US_CODING_IDENTITY},
        {"zstd;q=", US_CODING_IDENTITY},
        {"zstd;q=2", US_CODING_IDENTITY},
        {"zstd;q=1.001", US_CODING_IDENTITY},
        {"zstd;q=0.5x", US_CODING_IDENTITY},
        {"zstd;q=0.1234", US_CODING_IDENTITY},
        {"zstd;level=3;q=0", US_CODING_IDENTITY},
        {",, ,zstd,", US_CODING_ZSTD},
        {"zstdx, xzstd", US_CODING_IDENTITY},
        {";q=1", US_CODING_IDENTITY},
    };
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        if (us_coding_accept(rows[i].value) != rows[i].coding)
            fail_msg("\"%s\" gave %s", rows[i].value,
                     us_coding_name(us_coding_accept(rows[i].value)));
    }
}

/* ---- round trips ---- */

static void encoded_bytes_decode_to_the_same_bytes(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 1000, 300000};
    for (size_t c = 0; c < US_COUNT(all); c++) {
        for (size_t s = 0; s < US_COUNT(sizes); s++) {
            struct bytes in = sample(sizes[s]);
            struct bytes packed = encoded(all[c], 0, &in, 65536);
            assert_decodes(all[c], &packed, 1, &in);
            assert_decodes(all[c], &packed, 4096, &in);
            assert_decodes(all[c], &packed, 1 << 20, &in);
            drop(&packed);
            drop(&in);
        }
    }
}

static void every_level_is_accepted_and_decodes(void **state)
{
    (void)state;
    static const int levels[] = {-5, 0, 1, 9, 19, 22, 1000};
    struct bytes in = sample(20000);
    for (size_t c = 0; c < US_COUNT(all); c++) {
        for (size_t l = 0; l < US_COUNT(levels); l++) {
            struct bytes packed = encoded(all[c], levels[l], &in, 7777);
            assert_decodes(all[c], &packed, 1000, &in);
            drop(&packed);
        }
    }
    drop(&in);
}

static void encoded_size_shrinks_where_bytes_repeat(void **state)
{
    (void)state;
    struct bytes in = sample(100000);
    for (size_t c = 1; c < US_COUNT(all); c++) {
        struct bytes packed = encoded(all[c], 0, &in, in.n);
        assert_true(packed.n < in.n * 3 / 4);
        drop(&packed);
    }
    drop(&in);
}

static void zstd_frames_carry_a_content_checksum(void **state)
{
    (void)state;
    struct bytes in = sample(1000);
    struct bytes packed = encoded(US_CODING_ZSTD, 3, &in, in.n);
    assert_true(packed.n > 5 && (packed.p[4] & 4) != 0); /* RFC 8878 3.1.1.1.1.5 */
    drop(&packed);
    drop(&in);
}

static void members_and_frames_in_a_row_are_one_body(void **state)
{
    (void)state;
    static const enum us_coding chained[] = {US_CODING_GZIP, US_CODING_ZSTD};
    for (size_t c = 0; c < US_COUNT(chained); c++) {
        struct bytes a = sample(5000), b = sample(0), whole = {0};
        struct bytes pa = encoded(chained[c], 0, &a, a.n), pb = encoded(chained[c], 0, &b, 1);
        struct bytes packed = {0};
        put(&packed, pa.p, pa.n);
        put(&packed, pb.p, pb.n);
        put(&packed, pa.p, pa.n);
        put(&whole, a.p, a.n);
        put(&whole, a.p, a.n);
        assert_decodes(chained[c], &packed, 1, &whole);
        assert_decodes(chained[c], &packed, 1 << 20, &whole);
        packed.n -= 3; /* the last one is cut */
        assert_refuses(chained[c], &packed, US_E_FORMAT, "complete");
        drop(&a);
        drop(&b);
        drop(&pa);
        drop(&pb);
        drop(&packed);
        drop(&whole);
    }
}

static void zstd_skippable_frames_are_skipped(void **state)
{
    (void)state;
    static const unsigned char skip[] = {0x5d, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'};
    struct bytes a = sample(100), packed = {0};
    struct bytes frame = encoded(US_CODING_ZSTD, 0, &a, a.n);
    put(&packed, skip, sizeof(skip));
    put(&packed, frame.p, frame.n);
    put(&packed, skip, sizeof(skip));
    assert_decodes(US_CODING_ZSTD, &packed, 1, &a);
    assert_decodes(US_CODING_ZSTD, &packed, 1 << 20, &a);
    packed.n -= 1; /* "ab" of "abc" */
    assert_refuses(US_CODING_ZSTD, &packed, US_E_FORMAT, "complete");
    drop(&a);
    drop(&frame);
    drop(&packed);
}

/* ---- bad bodies ---- */

static void a_body_cut_anywhere_is_refused(void **state)
{
    (void)state;
    struct bytes in = sample(600);
    for (size_t c = 1; c < US_COUNT(all); c++) {
        struct bytes packed = encoded(all[c], 0, &in, in.n);
        size_t whole = packed.n;
        for (packed.n = 0; packed.n < whole; packed.n++) {
            struct outcome o = decoded(all[c], &packed, 64, 1 << 20);
            if (o.status != US_E_FORMAT)
                fail_msg("%s cut at %zu of %zu: %s", us_coding_name(all[c]), packed.n, whole,
                         us_status_name(o.status));
            drop(&o.out);
        }
        drop(&packed);
    }
    drop(&in);
}

static void bytes_after_the_end_are_refused(void **state)
{
    (void)state;
    static const char *const tails[] = {"x", "garbage", "\0\0\0\0", "\x28\xb5\x2f\xfe", "\x50"};
    static const size_t lengths[] = {1, 7, 4, 4, 1};
    struct bytes in = sample(600);
    for (size_t c = 1; c < US_COUNT(all); c++) {
        for (size_t t = 0; t < US_COUNT(tails); t++) {
            struct bytes packed = encoded(all[c], 0, &in, in.n);
            put(&packed, tails[t], lengths[t]);
            assert_refuses(all[c], &packed, US_E_FORMAT, "");
            drop(&packed);
        }
    }
    /* A zlib stream has no members: a second one is as foreign as any bytes. */
    struct bytes twice = encoded(US_CODING_DEFLATE, 0, &in, in.n);
    struct bytes second = encoded(US_CODING_DEFLATE, 0, &in, in.n);
    put(&twice, second.p, second.n);
    assert_refuses(US_CODING_DEFLATE, &twice, US_E_FORMAT, "after the end");
    drop(&twice);
    drop(&second);
    drop(&in);
}

static void a_flipped_bit_is_never_silently_accepted(void **state)
{
    (void)state;
    struct bytes in = sample(600);
    for (size_t c = 1; c < US_COUNT(all); c++) {
        struct bytes packed = encoded(all[c], 0, &in, in.n);
        for (size_t bit = 0; bit < 8 * packed.n; bit++) {
            packed.p[bit / 8] ^= (unsigned char)(1u << (bit % 8));
            struct outcome o = decoded(all[c], &packed, 1 << 20, 1 << 20);
            /* Some header bits carry no meaning (time, system); then the content is intact. */
            if (o.status == US_OK) {
                assert_int_equal(o.out.n, in.n);
                assert_memory_equal(o.out.p, in.p, in.n);
            }
            drop(&o.out);
            packed.p[bit / 8] ^= (unsigned char)(1u << (bit % 8));
        }
        drop(&packed);
    }
    drop(&in);
}

static void a_wrong_checksum_is_called_corrupt(void **state)
{
    (void)state;
    struct bytes in = sample(600);
    struct bytes gz = encoded(US_CODING_GZIP, 0, &in, in.n);
    gz.p[gz.n - 8] ^= 1; /* CRC-32 */
    assert_refuses(US_CODING_GZIP, &gz, US_E_CORRUPT, "incorrect data check");
    gz.p[gz.n - 8] ^= 1;
    gz.p[gz.n - 4] ^= 1; /* length */
    assert_refuses(US_CODING_GZIP, &gz, US_E_CORRUPT, "incorrect length check");
    struct bytes df = encoded(US_CODING_DEFLATE, 0, &in, in.n);
    df.p[df.n - 1] ^= 1; /* Adler-32 */
    assert_refuses(US_CODING_DEFLATE, &df, US_E_CORRUPT, "incorrect data check");
    struct bytes zs = encoded(US_CODING_ZSTD, 0, &in, in.n);
    zs.p[zs.n - 1] ^= 1; /* XXH64 */
    assert_refuses(US_CODING_ZSTD, &zs, US_E_CORRUPT, "checksum");
    drop(&gz);
    drop(&df);
    drop(&zs);
    drop(&in);
}

static void other_bytes_under_a_coding_are_refused(void **state)
{
    (void)state;
    struct bytes in = sample(5000);
    for (size_t c = 1; c < US_COUNT(all); c++)
        assert_refuses(all[c], &in, US_E_FORMAT, "");
    /* A raw deflate stream and a zstd format older than RFC 8878 (v0.7). */
    struct bytes raw = {0}, old = {0};
    put(&raw, "\x4b\x04\x00", 3);
    assert_refuses(US_CODING_DEFLATE, &raw, US_E_FORMAT, "");
    put(&old, "\x27\xb5\x2f\xfd\x00\x00\x00\x00\x00\x00", 10);
    assert_refuses(US_CODING_ZSTD, &old, US_E_FORMAT, "not a zstd frame");
    drop(&raw);
    drop(&old);
    drop(&in);
}

static void a_stream_that_needs_a_dictionary_is_unsupported(void **state)
{
    (void)state;
    static const char words[] = "actin tubulin nucleus actin tubulin nucleus";
    struct bytes df = {0}, zs = {0};
    unsigned char out[256];

    z_stream z = {0};
    assert_int_equal(deflateInit(&z, 6), Z_OK);
    assert_int_equal(deflateSetDictionary(&z, (const Bytef *)words, sizeof(words)), Z_OK);
    z.next_in = (Bytef *)(uintptr_t)words;
    z.avail_in = sizeof(words);
    z.next_out = out;
    z.avail_out = sizeof(out);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    put(&df, out, sizeof(out) - z.avail_out);
    assert_int_equal(deflateEnd(&z), Z_OK);
    assert_refuses(US_CODING_DEFLATE, &df, US_E_UNSUPPORTED, "dictionary");

    /* A frame header that names dictionary 7 (RFC 8878 3.1.1.1), one empty raw block. */
    put(&zs, "\x28\xb5\x2f\xfd\x21\x07\x00\x01\x00\x00", 10);
    assert_refuses(US_CODING_ZSTD, &zs, US_E_UNSUPPORTED, "dictionary");
    drop(&df);
    drop(&zs);
}

static void a_zstd_window_over_8_MiB_is_refused_before_it_is_allocated(void **state)
{
    (void)state;
    static const struct {
        unsigned char window; /* RFC 8878 3.1.1.1.2: exponent << 3 | mantissa, 2^(10+e) */
        enum us_status status;
    } rows[] = {
        {13 << 3, US_OK},          {13 << 3 | 1, US_E_TOO_LARGE},
        {14 << 3, US_E_TOO_LARGE}, {21 << 3, US_E_TOO_LARGE}, /* 2 GiB */
        {31 << 3, US_E_TOO_LARGE},                            /* 2 TiB */
    };
    for (size_t i = 0; i < US_COUNT(rows); i++) {
        struct bytes frame = {0}, nothing = {0};
        put(&frame, "\x28\xb5\x2f\xfd\x00", 5);
        put(&frame, &rows[i].window, 1);
        put(&frame, "\x01\x00\x00", 3); /* last block, raw, empty */
        if (rows[i].status == US_OK)
            assert_decodes(US_CODING_ZSTD, &frame, 1, &nothing);
        else
            assert_refuses(US_CODING_ZSTD, &frame, rows[i].status, "window");
        drop(&frame);
    }
    /* Content of one byte, said so in the header: the window needs no memory, but a body must not
     * be good or bad by the pieces it comes in. */
    struct bytes tiny = {0};
    put(&tiny, "\x28\xb5\x2f\xfd\x80\x70\x01\x00\x00\x00\x09\x00\x00x", 14);
    assert_refuses(US_CODING_ZSTD, &tiny, US_E_TOO_LARGE, "window");
    drop(&tiny);
}

static enum us_status count_only(void *arg, const void *p, size_t n)
{
    *(uint64_t *)arg += n;
    return US_OK;
}

/* 64 MiB of zeros in a few KiB; the cap stands at 1 MiB and nothing beyond it reaches the sink. */
static void a_bomb_ends_at_the_cap(void **state)
{
    (void)state;
    for (size_t c = 0; c < US_COUNT(all); c++) {
        struct bytes zeros = {.p = calloc(1, 64 << 20), .n = 64 << 20};
        assert_non_null(zeros.p);
        struct bytes bomb = encoded(all[c], 0, &zeros, 1 << 20);
        uint64_t taken = 0, cap = 1 << 20;
        struct us_err err = {0};
        struct us_decoder *d;
        assert_int_equal(us_decoder_new(all[c], cap, count_only, &taken, &d), US_OK);
        enum us_status s = US_OK;
        for (size_t at = 0; at < bomb.n && s == US_OK; at += 4096)
            s = us_decoder_feed(d, bomb.p + at, bomb.n - at < 4096 ? bomb.n - at : 4096, &err);
        assert_int_equal(s, US_E_TOO_LARGE);
        assert_non_null(strstr(err.msg, "1048576"));
        assert_true(taken <= cap);
        us_decoder_free(d);
        drop(&bomb);
        drop(&zeros);
    }
}

static void a_body_of_exactly_the_cap_passes_and_one_byte_more_does_not(void **state)
{
    (void)state;
    struct bytes in = sample(300000);
    for (size_t c = 0; c < US_COUNT(all); c++) {
        struct bytes packed = encoded(all[c], 0, &in, in.n);
        struct outcome exact = decoded(all[c], &packed, 1000, in.n);
        struct outcome over = decoded(all[c], &packed, 1000, in.n - 1);
        assert_int_equal(exact.status, US_OK);
        assert_int_equal(over.status, US_E_TOO_LARGE);
        drop(&exact.out);
        drop(&over.out);
        drop(&packed);
    }
    drop(&in);
}

static void a_sink_that_fails_ends_the_stream_with_its_status(void **state)
{
    (void)state;
    struct bytes in = sample(300000);
    for (size_t c = 0; c < US_COUNT(all); c++) {
        struct bytes packed = encoded(all[c], 0, &in, in.n);
        struct bytes full = {.fail_after = 1000};
        struct us_decoder *d;
        struct us_err err = {0};
        assert_int_equal(us_decoder_new(all[c], in.n, take, &full, &d), US_OK);
        assert_int_equal(us_decoder_feed(d, packed.p, packed.n, &err), US_E_DISK_FULL);
        assert_true(strlen(err.msg) > 0);
        assert_int_equal(us_decoder_end(d, NULL), US_E_DISK_FULL);
        us_decoder_free(d);
        drop(&full);

        struct us_encoder *e;
        full = (struct bytes){.fail_after = 1000};
        assert_int_equal(us_encoder_new(all[c], 0, take, &full, &e), US_OK);
        enum us_status s = us_encoder_feed(e, in.p, in.n);
        s = s == US_OK ? us_encoder_end(e) : s;
        assert_int_equal(s, US_E_DISK_FULL);
        assert_int_equal(us_encoder_end(e), US_E_DISK_FULL);
        us_encoder_free(e);
        drop(&full);
        drop(&packed);
    }
    drop(&in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(content_encoding_values_are_parsed_or_refused),
        cmocka_unit_test(accept_encoding_picks_the_best_that_is_allowed),
        cmocka_unit_test(encoded_bytes_decode_to_the_same_bytes),
        cmocka_unit_test(every_level_is_accepted_and_decodes),
        cmocka_unit_test(encoded_size_shrinks_where_bytes_repeat),
        cmocka_unit_test(zstd_frames_carry_a_content_checksum),
        cmocka_unit_test(members_and_frames_in_a_row_are_one_body),
        cmocka_unit_test(zstd_skippable_frames_are_skipped),
        cmocka_unit_test(a_body_cut_anywhere_is_refused),
        cmocka_unit_test(bytes_after_the_end_are_refused),
        cmocka_unit_test(a_flipped_bit_is_never_silently_accepted),
        cmocka_unit_test(a_wrong_checksum_is_called_corrupt),
        cmocka_unit_test(other_bytes_under_a_coding_are_refused),
        cmocka_unit_test(a_stream_that_needs_a_dictionary_is_unsupported),
        cmocka_unit_test(a_zstd_window_over_8_MiB_is_refused_before_it_is_allocated),
        cmocka_unit_test(a_bomb_ends_at_the_cap),
        cmocka_unit_test(a_body_of_exactly_the_cap_passes_and_one_byte_more_does_not),
        cmocka_unit_test(a_sink_that_fails_ends_the_stream_with_its_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
