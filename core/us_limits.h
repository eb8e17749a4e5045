/*
 * Every cap on what a file or a client can make us do, in one place.
 * A cap is a plain number here; whoever checks it names it and the found value in the error.
 */
#ifndef US_LIMITS_H
#define US_LIMITS_H

/* Networks (model-spec 0, 1). Philox counters reserve 5 bits for the level and 16 bits for the
 * sample (math/us_philox_math.h); channels of one latent reach 10 bits of groups of four. */
#define US_MAX_LEVELS     16
#define US_MAX_SCALES     12
#define US_MAX_FILTERS    512
#define US_MAX_ZDIM       1024
#define US_MAX_BLOCKS     8
#define US_MAX_TARGETS    16
#define US_MAX_PATCH      4096
#define US_MAX_SAMPLES    65535
#define US_MAX_PARAM_NAME 128
#define US_MAX_NAME       128 /* model, channel and unit names, bytes including NUL */

/* Model files (model-file.md). */
#define US_MAX_MODEL_HEADER_BYTES (16LL << 20)
#define US_MAX_MODEL_TENSORS      16384
#define US_MAX_MODEL_BYTES        (8LL << 30)
#define US_MAX_MODEL_ABSENT_BYTES (1LL << 30) /* tensors a file may leave out: zero pages */
#define US_MAX_MODEL_JSON_VALUES  65536       /* in the "usplit" text */
#define US_MAX_JSON_DEPTH         64

/* PyTorch checkpoints (proto/us_torch.h). The file may be large (optimiser states); what is held of
 * it is not: directory, pickle, and the values that the pickle makes. */
#define US_MAX_TORCH_BYTES           (256LL << 30)
#define US_MAX_TORCH_MEMBERS         65536
#define US_MAX_TORCH_DIRECTORY_BYTES (16LL << 20)
#define US_MAX_TORCH_PICKLE_BYTES    (32LL << 20)
#define US_MAX_TORCH_VALUES          (1 << 20) /* values, and places of values in containers */
#define US_MAX_TORCH_TENSORS         65536
#define US_MAX_TORCH_STACK           65536
#define US_MAX_TORCH_MEMO            (1 << 20)
#define US_MAX_TORCH_DEPTH           64 /* containers within containers */
#define US_MAX_TORCH_DIMS            8
#define US_MAX_TORCH_NAME            256 /* of a tensor, a member, a class; bytes including NUL */
#define US_MAX_TENSOR_NAME           US_MAX_TORCH_NAME

/* Images: one plane is held in memory as float32; a stack is streamed plane by plane. */
#define US_MAX_PLANE_PIXELS     (1LL << 30)
#define US_MAX_PLANES           (1LL << 20)
#define US_MAX_IMAGE_SIDE       (1LL << 24)
#define US_MAX_TIFF_TAG_BYTES   (16LL << 20) /* ImageDescription / OME-XML */
#define US_MAX_TIFF_TAGS        512          /* in one directory */
#define US_MAX_TIFF_SAMPLES     1024         /* per pixel, read as channels */
#define US_MAX_TIFF_TILE_BYTES  (256LL << 20)
#define US_MAX_NPY_HEADER_BYTES (64LL << 10)

/* Content codings: RFC 9659 forbids a larger zstd window in HTTP. */
#define US_MAX_ZSTD_WINDOW_LOG 23

/* Prediction. */
#define US_MAX_THREADS 256
#define US_MAX_BATCH   4096

#endif
