/*
 * Large blocks on their own pages; see us_heap.h.
 *
 * glibc's own threshold grows with what is freed, up to 32 MiB; blocks below it then stay in some
 * thread's arena. Measured on the daemon: 20 MB more for every model loaded and unloaded. A
 * threshold that was set does not grow.
 */
#include "us_heap.h"

#include <malloc.h>

#define MMAP_THRESHOLD_BYTES (256 << 10)

void us_heap_init(void)
{
    (void)mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
}
