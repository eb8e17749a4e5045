/*
 * splits.json -> frame numbers; see us_frames.h. Memory is bounded: an entry must be a frame, and
 * no frame may be listed twice, so no list is longer than the data.
 */
#include "us_frames_splits.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#define MAX_BYTES (16LL << 20)

static const char *const split_name[US_SPLIT_COUNT] = {"train", "val", "test"};

/* One run through the file. */
struct reading {
    const char *path;
    const struct us_frame_source *src;
    bool numbers;
    int8_t *taken; /* [n_frames]: split + 1, 0 = not listed */
    struct us_frame_lists *ret;
};

/* Frame called name: folders are sorted by name. -1: none. */
static int64_t find_frame(const struct us_frame_source *src, const char *name)
{
    int64_t lo = 0, hi = src->n_frames - 1;
    while (lo <= hi) {
        int64_t mid = (lo + hi) / 2;
        int order = strcmp(src->name(src->arg, mid), name);
        if (order == 0)
            return mid;
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid - 1;
    }
    return -1;
}

static enum us_status read_entry(struct reading *r, int split, size_t i, const json_t *entry,
                                 struct us_err *err)
{
    const char *expected = r->numbers ? "a frame number" : "a file name";
    int64_t frame = -1;
    if (r->numbers ? !json_is_integer(entry) : !json_is_string(entry))
        return us_fail(err, US_E_FORMAT, "%s: %s[%zu] is not %s", r->path, split_name[split], i,
                       expected);
    if (r->numbers) {
        frame = json_integer_value(entry);
        if (frame < 0 || frame >= r->src->n_frames)
            return us_fail(err, US_E_ARG,
                           "%s: %s[%zu] is frame %" PRId64 "; expected 0 to %" PRId64, r->path,
                           split_name[split], i, frame, r->src->n_frames - 1);
    } else {
        frame = find_frame(r->src, json_string_value(entry));
        if (frame < 0)
            return us_fail(err, US_E_NOT_FOUND, "%s: %s[%zu] is '%.100s', which is not there",
                           r->path, split_name[split], i, json_string_value(entry));
    }
    if (r->taken[frame] != 0)
        return us_fail(err, US_E_ARG, "%s: %s[%zu] is %s, which stands in %s already", r->path,
                       split_name[split], i, r->src->name(r->src->arg, frame),
                       split_name[r->taken[frame] - 1]);
    r->taken[frame] = (int8_t)(split + 1);
    r->ret->frames[split][r->ret->n[split]++] = frame;
    return US_OK;
}

/* The list of one split: of the subset if one is chosen. *ret NULL: there is none. */
static enum us_status find_list(const struct reading *r, const json_t *root, int split,
                                const char *subset, const json_t **ret, struct us_err *err)
{
    const json_t *list = json_object_get(root, split_name[split]);
    if (subset != NULL && subset[0] != '\0') {
        const json_t *of = json_object_get(json_object_get(root, "subsets"), split_name[split]);
        list = json_object_get(of, subset);
        if (of != NULL && list == NULL)
            return us_fail(err, US_E_NOT_FOUND, "%s: subsets.%s has no '%.100s'", r->path,
                           split_name[split], subset);
    }
    if (list != NULL && !json_is_array(list))
        return us_fail(err, US_E_FORMAT, "%s: %s is not a list", r->path, split_name[split]);
    *ret = list;
    return US_OK;
}

static enum us_status read_lists(struct reading *r, const json_t *root, const char *subset,
                                 struct us_err *err)
{
    int64_t total = 0;
    for (int split = 0; split < US_SPLIT_COUNT; split++) {
        const json_t *list = NULL;
        US_TRY(find_list(r, root, split, subset, &list, err));
        r->ret->frames[split] = calloc((size_t)r->src->n_frames, sizeof(int64_t));
        if (r->ret->frames[split] == NULL)
            return us_fail(err, US_E_NOMEM, "%s: out of memory", r->path);
        for (size_t i = 0; i < json_array_size(list); i++)
            US_TRY(read_entry(r, split, i, json_array_get(list, i), err));
        total += r->ret->n[split];
    }
    if (total == 0)
        return us_fail(err, US_E_FORMAT,
                       "%s: lists no frame; expected {\"train\": [..], \"val\": [..], "
                       "\"test\": [..]}%s%s",
                       r->path, subset != NULL && subset[0] != '\0' ? " and subset " : "",
                       subset != NULL ? subset : "");
    return US_OK;
}

enum us_status us_frame_lists_read(const char *path, const struct us_frame_source *src,
                                   bool numbers, const char *subset, struct us_frame_lists *ret,
                                   struct us_err *err)
{
    struct stat st;
    bool wanted = subset != NULL && subset[0] != '\0';
    *ret = (struct us_frame_lists){0};
    if (stat(path, &st) != 0) {
        if (errno == ENOENT && !wanted)
            return US_OK;
        return us_fail(err, errno == ENOENT ? US_E_NOT_FOUND : US_E_IO, "%s: %s%s", path,
                       strerror(errno), wanted ? ", but a subset of it is asked for" : "");
    }
    if (st.st_size > MAX_BYTES)
        return us_fail(err, US_E_TOO_LARGE, "%s: %lld bytes; expected at most %lld", path,
                       (long long)st.st_size, MAX_BYTES);
    json_error_t at;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &at);
    if (root == NULL)
        return us_fail(err, US_E_FORMAT, "%s: line %d: %s", path, at.line, at.text);
    struct reading r = {path, src, numbers, calloc((size_t)src->n_frames, 1), ret};
    enum us_status s = US_OK;
    if (r.taken == NULL)
        s = us_fail(err, US_E_NOMEM, "%s: out of memory", path);
    else if (!json_is_object(root))
        s = us_fail(err, US_E_FORMAT, "%s: not an object", path);
    else
        s = read_lists(&r, root, subset, err);
    free(r.taken);
    json_decref(root);
    ret->found = s == US_OK;
    return s;
}

void us_frame_lists_release(struct us_frame_lists *l)
{
    for (int s = 0; s < US_SPLIT_COUNT; s++)
        free(l->frames[s]);
    *l = (struct us_frame_lists){0};
}
