/* Internal to us_plot.c: an RGB picture in memory, strokes and letters on it, and its PNG file. */
#ifndef US_PLOT_CANVAS_H
#define US_PLOT_CANVAS_H

#include <stdint.h>

#include "us_status.h"

#define US_LETTER_W 8 /* with the gap to the next */
#define US_LETTER_H 10

struct us_canvas {
    int32_t w, h;
    uint8_t *rgb; /* [h, w, 3] */
};

/* White. Release also after a failure. */
enum us_status us_canvas_init(struct us_canvas *c, int32_t w, int32_t h,
                              struct us_err *err) US_WARN_UNUSED;
void us_canvas_release(struct us_canvas *c);

/* Colours are 0xrrggbb; what lies outside the canvas is not drawn. */
void us_canvas_dot(struct us_canvas *c, int32_t x, int32_t y, uint32_t colour);
void us_canvas_line(struct us_canvas *c, int32_t x0, int32_t y0, int32_t x1, int32_t y1,
                    int32_t width, uint32_t colour);
void us_canvas_text(struct us_canvas *c, int32_t x, int32_t y, const char *text, uint32_t colour);
int32_t us_canvas_text_width(const char *text);

enum us_status us_canvas_save(const struct us_canvas *c, const char *path,
                              struct us_err *err) US_WARN_UNUSED;

#endif
