/*
 * Training data on disk as a us_frame_source: a folder of images, one frame each, or one stack.
 *
 * A folder: every .tif, .tiff or .npy file in it is one frame, in the order of their names; other
 * files, hidden files and subfolders are ignored. Pages of a file that states no axes are its
 * channels. A stack must state its axes (OME-XML, ImageJ, tifffile's "axes", NPY [N, C, H, W]):
 * which pages are frames and which channels is not a thing to guess.
 *
 * Splits may be listed: splits.json in the folder, or STACK.splits.json beside a stack:
 * {"train": [..], "val": [..], "test": [..]} of file names, or of frame numbers from 0. Other
 * members are ignored but "subsets", {"train": {"NAME": [..]}, ..}, from which one can be chosen.
 */
#ifndef US_FRAMES_H
#define US_FRAMES_H

#include "us_dataset.h"

/* A channel by number, counted from 0, or by the name that the files give it. */
struct us_channel_choice {
    int64_t index;          /* if name is "" */
    char name[US_MAX_NAME]; /* UTF-8 */
};

struct us_frames_config {
    int32_t n_channels; /* 0: all channels but the input */
    struct us_channel_choice channel[US_MAX_TARGETS];
    bool has_input; /* a channel that holds the measured superposition */
    struct us_channel_choice input;
    const char *subset; /* of splits.json; NULL or "": the whole lists */
};

struct us_frames;

/* Reads what the files say of themselves, not their pixels. E_NOT_FOUND, E_ARG, E_FORMAT, E_IO name
 * the file: no frames, channels that differ between files, a channel that is not there, a stack
 * without axes, a split that lists what is not there. */
enum us_status us_frames_open(const char *path, const struct us_frames_config *cfg,
                              struct us_frames **ret, struct us_err *err) US_WARN_UNUSED;
void us_frames_free(struct us_frames *f);

/* For us_dataset_open; lives as long as f. Its read is safe from several threads. */
const struct us_frame_source *us_frames_source(const struct us_frames *f);

/* Name of chosen channel c, "" if the files state none; borrowed. */
const char *us_frames_channel_name(const struct us_frames *f, int32_t c);
/* Pixel size of the first file in micrometres, 0 if not stated. */
double us_frames_pixel_size(const struct us_frames *f);

/* Whether splits are listed, and the frame numbers of one; borrowed. */
bool us_frames_has_splits(const struct us_frames *f);
const int64_t *us_frames_split(const struct us_frames *f, enum us_split s, int64_t *ret_n);

#endif
