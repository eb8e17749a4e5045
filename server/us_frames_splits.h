/* Internal to us_frames.c: the lists of splits.json as frame numbers. */
#ifndef US_FRAMES_SPLITS_H
#define US_FRAMES_SPLITS_H

#include "us_dataset.h"

struct us_frame_lists {
    bool found; /* false: there is no such file */
    int64_t *frames[US_SPLIT_COUNT];
    int64_t n[US_SPLIT_COUNT];
};

/* Reads path if it exists. numbers: the entries are frame numbers, else names of src's frames.
 * Errors name the file, the list and the entry. Release also after a failure. */
enum us_status us_frame_lists_read(const char *path, const struct us_frame_source *src,
                                   bool numbers, const char *subset, struct us_frame_lists *ret,
                                   struct us_err *err) US_WARN_UNUSED;
void us_frame_lists_release(struct us_frame_lists *l);

#endif
