/*
 * Fuzzes the content decoders. The first byte chooses the coding and the size of the pieces that
 * the rest is fed in. The cap must hold, and the verdict must not depend on the pieces.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "us_coding.h"

#define CAP (256 << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct seen {
    uint64_t n;
    uint64_t hash; /* FNV-1a */
};

static enum us_status take(void *arg, const void *bytes, size_t n)
{
    struct seen *seen = arg;
    const unsigned char *p = bytes;
    for (size_t i = 0; i < n; i++)
        seen->hash = (seen->hash ^ p[i]) * 1099511628211u;
    seen->n += n;
    US_ASSERT(seen->n <= CAP);
    return US_OK;
}

static enum us_status decode(enum us_coding c, const uint8_t *data, size_t n, size_t piece,
                             struct seen *seen)
{
    struct us_decoder *d;
    struct us_err err = {0};
    *seen = (struct seen){.hash = 14695981039346656037u};
    US_ASSERT(us_decoder_new(c, CAP, take, seen, &d) == US_OK);
    enum us_status s = US_OK;
    for (size_t at = 0; at < n && s == US_OK; at += piece)
        s = us_decoder_feed(d, data + at, n - at < piece ? n - at : piece, &err);
    if (s == US_OK)
        s = us_decoder_end(d, &err);
    us_decoder_free(d);
    US_ASSERT(s == US_OK || err.msg[0] != '\0');
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 1)
        return 0;
    enum us_coding c = (enum us_coding)(data[0] & 3);
    size_t piece = (size_t)1 << (data[0] >> 2 & 15);
    struct seen whole, pieces;
    enum us_status a = decode(c, data + 1, n - 1, n, &whole);
    enum us_status b = decode(c, data + 1, n - 1, piece, &pieces);
    US_ASSERT((a == US_OK) == (b == US_OK));
    if (a == US_OK) {
        US_ASSERT(whole.n == pieces.n);
        US_ASSERT(whole.hash == pieces.hash);
    }
    return 0;
}
