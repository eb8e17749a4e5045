/*
 * Fuzzes the model file: the bytes as a file (header, metadata, tensors), and, without the frame
 * that a fuzzer would have to keep intact, as the metadata text alone. Whatever parses must be
 * described again and read back the same.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "us_model_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check_metadata(const struct us_model *m)
{
    char *text = NULL, *again = NULL;
    struct us_model copy = {0};
    US_ASSERT(us_model_metadata(m, &text, NULL) == US_OK);
    US_ASSERT(usi_meta_read(text, &copy, NULL) == US_OK);
    copy.extra_json = text;
    US_ASSERT(us_model_metadata(&copy, &again, NULL) == US_OK);
    US_ASSERT(strcmp(text, again) == 0);
    free(text);
    free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct us_err err = {0};
    struct us_model *m = NULL;
    enum us_status s = us_model_parse(data, n, &m, &err);
    US_ASSERT((s == US_OK) == (m != NULL));
    US_ASSERT(s == US_OK || err.msg[0] != '\0');
    if (m != NULL)
        check_metadata(m);
    us_model_free(m);

    struct us_model plain = {0};
    char *text = malloc(n + 1);
    US_ASSERT(text != NULL);
    memcpy(text, data, n);
    text[n] = '\0';
    if (usi_meta_read(text, &plain, &err) == US_OK) {
        plain.extra_json = text;
        check_metadata(&plain);
    }
    free(text);
    return 0;
}
