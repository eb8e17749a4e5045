/* The OME-XML that we write; see us_ome_write.c. */
#ifndef US_OME_WRITE_H
#define US_OME_WRITE_H

#include "us_image_int.h"

/* The document for these axes, sizes and names: pure ASCII, NUL-terminated, malloc'ed. NULL: no
 * memory. */
char *usi_ome_write(const struct us_image_info *info, const struct us_image_write_options *opt);

#endif
