/* Model files as byte strings for tests; see us_model_bytes.h. */
#include "us_model_bytes.h"

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "us_vectors.h"

static char folder[512];

const char *us_test_folder(void)
{
    if (folder[0] == '\0') {
        const char *tmp = getenv("TMPDIR");
        (void)snprintf(folder, sizeof(folder), "%s/usplit-test-XXXXXX",
                       tmp == NULL ? P_tmpdir : tmp);
        assert_non_null(mkdtemp(folder));
    }
    return folder;
}

const char *us_test_path(const char *name)
{
    static char path[sizeof(folder) + 300];
    (void)snprintf(path, sizeof(path), "%s/%s", us_test_folder(), name);
    return path;
}

/* Calls f, if any, with the path of each file in the folder; returns how many there are. */
static int for_each_file(int (*f)(const char *path))
{
    DIR *d = folder[0] == '\0' ? NULL : opendir(folder);
    int n = 0;
    for (struct dirent *e = d == NULL ? NULL : readdir(d); e != NULL; e = readdir(d)) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        n++;
        if (f != NULL)
            (void)f(us_test_path(e->d_name));
    }
    if (d != NULL)
        (void)closedir(d);
    return n;
}

int us_test_folder_count(void)
{
    return for_each_file(NULL);
}

void us_test_folder_remove(void)
{
    (void)for_each_file(unlink);
    (void)rmdir(folder);
    folder[0] = '\0';
}

struct us_model *us_small_model(void)
{
    struct us_arch a = us_arch_default();
    a.n_levels = 2;
    memset(a.z_dims, 0, sizeof(a.z_dims));
    a.z_dims[0] = a.z_dims[1] = 6;
    a.lc_scales = 2;
    a.n_filters = 4;
    a.blocks_per_level = 2;
    struct us_model *m;
    struct us_err err = {0};
    if (us_model_new(&a, 16, 1, &m, &err) != US_OK)
        fail_msg("%s", err.msg);
    us_vectors_fill_model(m);
    return m;
}

struct us_model_bytes us_model_bytes_of(struct us_model *m)
{
    struct us_model_bytes b = {0};
    struct us_err err = {0};
    if (us_model_save(m, us_test_path("bytes.safetensors"), &err) != US_OK)
        fail_msg("%s", err.msg);
    FILE *f = fopen(us_test_path("bytes.safetensors"), "rb");
    assert_non_null(f);
    uint64_t n;
    assert_int_equal(fread(&n, sizeof(n), 1, f), 1);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    b.n_data = (size_t)ftell(f) - sizeof(n) - (size_t)n;
    assert_int_equal(fseek(f, (long)sizeof(n), SEEK_SET), 0);
    b.header = calloc(1, (size_t)n + 1);
    b.data = malloc(b.n_data + 1);
    assert_non_null(b.header);
    assert_non_null(b.data);
    assert_int_equal(fread(b.header, 1, (size_t)n, f), n);
    assert_int_equal(fread(b.data, 1, b.n_data, f), b.n_data);
    (void)fclose(f);
    return b;
}

void us_model_bytes_free(struct us_model_bytes *b)
{
    free(b->header);
    free(b->data);
    *b = (struct us_model_bytes){0};
}

char *us_model_bytes_join(const struct us_model_bytes *b, size_t *ret_n)
{
    uint64_t n = strlen(b->header);
    *ret_n = sizeof(n) + (size_t)n + b->n_data;
    char *bytes = malloc(*ret_n);
    assert_non_null(bytes);
    memcpy(bytes, &n, sizeof(n));
    memcpy(bytes + sizeof(n), b->header, (size_t)n);
    memcpy(bytes + sizeof(n) + n, b->data, b->n_data);
    return bytes;
}

enum us_status us_model_bytes_parse(const struct us_model_bytes *b, struct us_model **ret,
                                    struct us_err *err)
{
    size_t n;
    char *bytes = us_model_bytes_join(b, &n);
    enum us_status s = us_model_parse(bytes, n, ret, err);
    free(bytes);
    return s;
}

char *us_text_replace(const char *text, const char *find, const char *with)
{
    const char *hit = strstr(text, find);
    if (hit == NULL)
        fail_msg("\"%s\" is not in the text", find);
    size_t n = strlen(text) - strlen(find) + strlen(with) + 1;
    char *out = malloc(n);
    assert_non_null(out);
    (void)snprintf(out, n, "%.*s%s%s", (int)(hit - text), text, with, hit + strlen(find));
    return out;
}

char *us_model_bytes_tensor(const struct us_model_bytes *b, const char *name)
{
    char key[US_MAX_PARAM_NAME + 4];
    (void)snprintf(key, sizeof(key), "\"%s\"", name);
    const char *entry = strstr(b->header, key);
    assert_non_null(entry);
    const char *offsets = strstr(entry, "\"data_offsets\":[");
    assert_non_null(offsets);
    return b->data + strtoll(offsets + strlen("\"data_offsets\":["), NULL, 10);
}
