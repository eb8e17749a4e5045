/*
 * Fuzzes the checkpoint reader: the bytes as a file, and, without the frame that a fuzzer would
 * have to keep intact, as the pickle of an archive made around it. Whatever opens must be readable
 * and findable within its claims.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "us_torch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define READ_MAX (1 << 20) /* elements of a tensor that are read */

static void check(const void *bytes, size_t n)
{
    struct us_err err = {0};
    struct us_torch *t = NULL;
    struct us_torch_value v;
    enum us_status s = us_torch_parse(bytes, n, &t, &err);
    US_ASSERT((s == US_OK) == (t != NULL));
    US_ASSERT(s == US_OK || err.msg[0] != '\0');
    if (t == NULL)
        return;
    int32_t count = 0;
    const struct us_torch_tensor *x = us_torch_tensors(t, &count);
    for (int32_t i = 0; i < count; i++) {
        int64_t elements = 1;
        for (int32_t d = 0; d < x[i].ndim; d++)
            elements *= x[i].dim[d];
        US_ASSERT(elements == x[i].count);
        US_ASSERT(memchr(x[i].name, '\0', US_MAX_TORCH_NAME) != NULL);
        if (elements > READ_MAX)
            continue;
        void *out = malloc((size_t)(elements * us_torch_dtype_bytes(x[i].dtype)) + 1);
        US_ASSERT(out != NULL);
        (void)!us_torch_read(t, i, out, &err);
        free(out);
    }
    (void)us_torch_setting(t, NULL, "z_dims", &v);
    (void)us_torch_setting(t, "decoder", "dropout", &v);
    us_torch_free(t);
}

static size_t put(uint8_t *p, uint64_t x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(x >> (8 * i));
    return n;
}

/* One stored member as header (local) or directory entry. */
static size_t put_member(uint8_t *p, bool local, const char *name, const void *data, size_t n,
                         size_t at)
{
    size_t k = 4;
    memcpy(p, local ? "PK\003\004" : "PK\001\002", 4);
    k += put(p + k, 20, 2);
    if (!local)
        k += put(p + k, 20, 2);
    k += put(p + k, 0, 8);
    k += put(p + k, crc32(crc32(0, NULL, 0), data, (uInt)n), 4);
    k += put(p + k, n, 4);
    k += put(p + k, n, 4);
    k += put(p + k, strlen(name), 2);
    k += put(p + k, 0, 2);
    if (!local) {
        k += put(p + k, 0, 8);
        k += put(p + k, 0, 2);
        k += put(p + k, at, 4);
    }
    memcpy(p + k, name, strlen(name));
    k += strlen(name);
    if (local && n > 0)
        memcpy(p + k, data, n);
    return local ? k + n : k;
}

static void check_pickle(const uint8_t *data, size_t n)
{
    static const uint8_t storage[64];
    uint8_t *p = calloc(1, n + 1024);
    US_ASSERT(p != NULL);
    size_t k = put_member(p, true, "a/data.pkl", data, n, 0);
    size_t second = k;
    k += put_member(p + k, true, "a/data/0", storage, sizeof(storage), 0);
    size_t directory = k;
    k += put_member(p + k, false, "a/data.pkl", data, n, 0);
    k += put_member(p + k, false, "a/data/0", storage, sizeof(storage), second);
    size_t bytes = k - directory;
    memcpy(p + k, "PK\005\006", 4);
    k += 4;
    k += put(p + k, 0, 4);
    k += put(p + k, 2, 2);
    k += put(p + k, 2, 2);
    k += put(p + k, bytes, 4);
    k += put(p + k, directory, 4);
    k += put(p + k, 0, 2);
    check(p, k);
    free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    check(data, n);
    check_pickle(data, n);
    return 0;
}
