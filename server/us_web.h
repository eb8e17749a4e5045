/*
 * The dashboard: files of server/web, compiled into the program by server/web/embed.py together
 * with the charting library of the system. Nothing is read from disk and nothing is fetched
 * elsewhere: the page works in a network without internet, and its Content-Security-Policy says so.
 */
#ifndef US_WEB_H
#define US_WEB_H

#include "us_http.h"

struct us_web_file {
    const char *name, *type; /* "app.js", its media type */
    const char *tag;         /* SHA-256 of bytes, hexadecimal */
    const unsigned char *bytes;
    size_t n_bytes;
    const unsigned char *gzip; /* the same compressed; NULL where that saves nothing */
    size_t n_gzip;
};
extern const struct us_web_file us_web_files[];
extern const int us_n_web_files;

/* Sets the reply with a file, or 304, or 404 where there is none of this name. */
void us_web_reply(struct us_http_request *r, const char *name);

#endif
