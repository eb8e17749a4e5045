/*
 * Zip archives and pickles byte by byte, honest ones and others, for tests of the checkpoint
 * reader.
 */
#ifndef US_TORCH_MAKE_H
#define US_TORCH_MAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of a text with NULs in it. */
#define US_BYTES(text) (text), sizeof(text) - 1

struct us_zip_part {
    const char *name;
    const void *data;
    size_t n;
    /* Lies; 0: the truth. */
    uint32_t flags, method;
    uint32_t size_lie, crc_lie; /* in the directory and in the header */
    uint32_t local_size_lie;    /* in the header only */
    const char *local_name;     /* in the header only, of the same length */
    uint32_t offset_plus_1;     /* where the directory says that the header is */
    bool zip64;                 /* sizes and place in a 64-bit field */
    uint64_t zip64_size_lie;
    uint32_t zip64_bytes; /* of that field; 0: as many as it needs */
};

struct us_zip_make {
    const struct us_zip_part *part;
    int n;
    bool zip64;                 /* the end record refers to a 64-bit one */
    bool no_end64;              /* which is not there */
    uint32_t count_plus;        /* members that the end record says too many */
    uint32_t directory_at_plus; /* bytes that it says too many */
    uint64_t end64_at_plus;
    size_t before, after; /* bytes around the archive */
};

/* The archive; caller frees. */
unsigned char *us_zip_make(const struct us_zip_make *m, size_t *ret_n);

/* The archive of one pickle, and of us_torch_numbers as storage 0; caller frees. */
extern const float us_torch_numbers[4];
unsigned char *us_torch_checkpoint(const void *pickle, size_t n, size_t *ret_n);

/* A tensor's parts; the storage of data/0. */
#define PICKLE_STORAGE_OF(type, key, count)                                                        \
    "(X\007\000\000\000storage" type "X\001\000\000\000" key "X\003\000\000\000cpuK" count "tQ"
#define PICKLE_FLOATS  PICKLE_STORAGE_OF("ctorch\nFloatStorage\n", "0", "\004")
#define PICKLE_REBUILD "ctorch._utils\n_rebuild_tensor_v2\n("
#define PICKLE_HOOKS                                                                               \
    "\211"                                                                                         \
    "ccollections\nOrderedDict\n)RtR"
#define PICKLE_TENSOR  PICKLE_REBUILD PICKLE_FLOATS "K\000(K\004t(K\001t" PICKLE_HOOKS
#define PICKLE_BEGIN   "\200\002}X\001\000\000\000w"
#define PICKLE_END     "s."
#define PICKLE_DICT(x) PICKLE_BEGIN x PICKLE_END

#endif
