/*
 * Image file in, split image file out: the one path that both `usplit predict` and the daemon's
 * predict route take, so that both give the same bytes.
 *
 * Frames are (t, z) planes of the input, predicted one after the other with frame_index = t*Z + z,
 * so memory holds one frame and its result, whatever the stack's length.
 */
#ifndef US_PREDICT_FILE_H
#define US_PREDICT_FILE_H

#include <stdatomic.h>

#include "us_image.h"
#include "us_predict.h"
#include "us_seam.h"

struct us_predict_file_options {
    bool plane_mean, plane_std; /* which planes to write ("mean,std"); at least one */
    enum us_pixel dtype;        /* US_PIXEL_F32 or US_PIXEL_U16 (rounded and clamped) */
    bool npy;                   /* NPY instead of OME-TIFF */
    /* Which plane of a multi-channel input is the superposition: `channel` >= 0 picks one;
     * n_mix > 0 superposes the listed channels as the model's training did: average or sum, each
     * clipped first (the paper's way to make an input from a data set with known truth). Neither:
     * the input must have one channel, or US_E_ARG explains both. */
    int32_t channel; /* -1: not given */
    int32_t n_mix;
    int32_t mix[US_MAX_TARGETS];
    /* What the pages of a file without stated axes are: 't' (default), 'z' or 'c'. */
    char pages;
    int64_t max_pixels; /* of the whole stack, 0 = no further limit */
    const atomic_bool *cancel;
    const struct us_predict_turns *turns; /* between frames, too; NULL: ours alone */
    void (*progress)(void *arg, int64_t done, int64_t total); /* patches of the whole file */
    void *progress_arg;
};

struct us_predict_file_options us_predict_file_defaults(void);

struct us_predict_file_report {
    struct us_image_info in;
    int64_t n_frames, n_patches;
    int64_t n_clipped;   /* input pixels above the model's clip */
    int64_t n_saturated; /* uint16 output: values outside 0..65535, moved to the nearer end */
    /* How visible the borders of the tiles are in each channel's mean (us_seam.h), all frames
     * pooled; on shifted grids those of the first pass, which weighs no more than any other. NAN
     * where no border crosses a frame. seam_z: the z farthest from 0. Not part of encode_s. */
    struct us_seam seam[US_MAX_TARGETS];
    double seam_z, seam_s;
    double decode_s, compute_s, encode_s;
};

/* Writes out beside its final name, then renames; on failure nothing is left. The output has
 * T, Z of the input, channels = the model's channel names (std planes: "NAME std"), the input's
 * physical sizes and units (or the model's pixel_size_um if the input states none). */
enum us_status us_predict_file(struct us_predictor *p, const struct us_model *m,
                               const char *in_path, const char *out_path,
                               const struct us_predict_config *cfg,
                               const struct us_predict_file_options *opt,
                               struct us_predict_file_report *ret,
                               struct us_err *err) US_WARN_UNUSED;

#endif
