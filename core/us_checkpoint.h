/*
 * Checkpoint files: named sections of bytes, complete or absent, verified on reading.
 *
 *   8 bytes magic "USPLCKPT", u32 version, u32 sections, u64 bytes of the whole file
 *   per section: 24 bytes name (NUL-padded), u64 offset, u64 bytes
 *   the sections, 64-byte aligned
 *   32 bytes SHA-256 of everything before
 *
 * Little endian. Written beside its final name, fsynced, the old file kept as the previous one,
 * renamed, the folder fsynced: a kill at any moment leaves the new file, the old one, or the old
 * one under the previous name.
 */
#ifndef US_CHECKPOINT_H
#define US_CHECKPOINT_H

#include <stdbool.h>
#include <stddef.h>

#include "us_status.h"

#define US_CHECKPOINT_NAME_BYTES   24
#define US_CHECKPOINT_MAX_SECTIONS 32

struct us_checkpoint_section {
    const char *name;
    void *data;   /* read: filled; write: borrowed */
    size_t bytes; /* exact */
};

/* previous: where an existing file at path goes; NULL: it is replaced. E_DISK_FULL, E_IO. */
enum us_status us_checkpoint_write(const char *path, const char *previous,
                                   const struct us_checkpoint_section *s, int n,
                                   struct us_err *err) US_WARN_UNUSED;

/* Fills the sections, which must be there with exactly these sizes; others in the file are passed
 * over. Nothing is filled unless the whole file verifies. E_NOT_FOUND: no such file; E_UNSUPPORTED:
 * no section of that name, or another version of the format; E_ARG: a section of another size;
 * E_FORMAT, E_CORRUPT. */
enum us_status us_checkpoint_read(const char *path, const struct us_checkpoint_section *s, int n,
                                  struct us_err *err) US_WARN_UNUSED;

#endif
