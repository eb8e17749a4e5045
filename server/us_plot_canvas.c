/*
 * The canvas under us_plot.c. A letter is five rows of three pixels, written as five octal digits
 * from top to bottom (4 left, 2 middle, 1 right), and drawn twice as large.
 */
#include "us_plot_canvas.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <png.h>

#include "us_outfile.h"

#define MAX_SIDE 16384

static const struct {
    char c;
    uint16_t rows;
} letters[] = {
    {'0', 075557}, {'1', 026227}, {'2', 071747}, {'3', 071717}, {'4', 055711}, {'5', 074717},
    {'6', 074757}, {'7', 071222}, {'8', 075757}, {'9', 075717}, {'A', 025755}, {'B', 065656},
    {'C', 034443}, {'D', 065556}, {'E', 074647}, {'F', 074644}, {'G', 034553}, {'H', 055755},
    {'I', 072227}, {'J', 011152}, {'K', 055655}, {'L', 044447}, {'M', 057755}, {'N', 065555},
    {'O', 025552}, {'P', 065644}, {'Q', 025563}, {'R', 065655}, {'S', 034216}, {'T', 072222},
    {'U', 055557}, {'V', 055552}, {'W', 055775}, {'X', 055255}, {'Y', 055222}, {'Z', 071247},
    {'.', 000002}, {',', 000024}, {':', 002020}, {'-', 000700}, {'+', 002720}, {'=', 007070},
    {'/', 011244}, {'%', 051245}, {'_', 000007}, {'(', 024442}, {')', 021112}, {' ', 000000},
};
#define UNKNOWN 071202

enum us_status us_canvas_init(struct us_canvas *c, int32_t w, int32_t h, struct us_err *err)
{
    *c = (struct us_canvas){0};
    if (w < 1 || h < 1 || w > MAX_SIDE || h > MAX_SIDE)
        return us_fail(err, US_E_ARG, "a picture of %d x %d; expected sides from 1 to %d", (int)w,
                       (int)h, MAX_SIDE);
    c->rgb = calloc((size_t)w * (size_t)h, 3);
    if (c->rgb == NULL)
        return us_fail(err, US_E_NOMEM, "no memory for a picture of %d x %d", (int)w, (int)h);
    memset(c->rgb, 0xff, (size_t)w * (size_t)h * 3);
    c->w = w;
    c->h = h;
    return US_OK;
}

void us_canvas_release(struct us_canvas *c)
{
    free(c->rgb);
    *c = (struct us_canvas){0};
}

void us_canvas_dot(struct us_canvas *c, int32_t x, int32_t y, uint32_t colour)
{
    if (x < 0 || y < 0 || x >= c->w || y >= c->h)
        return;
    uint8_t *p = c->rgb + ((size_t)y * (size_t)c->w + (size_t)x) * 3;
    p[0] = (uint8_t)(colour >> 16);
    p[1] = (uint8_t)(colour >> 8);
    p[2] = (uint8_t)colour;
}

/* A square of width pixels at every point of the longer axis. */
void us_canvas_line(struct us_canvas *c, int32_t x0, int32_t y0, int32_t x1, int32_t y1,
                    int32_t width, uint32_t colour)
{
    int32_t dx = abs(x1 - x0), dy = abs(y1 - y0), n = dx > dy ? dx : dy;
    for (int32_t i = 0; i <= n; i++) {
        int32_t x = n > 0 ? x0 + (int32_t)((int64_t)(x1 - x0) * i / n) : x0;
        int32_t y = n > 0 ? y0 + (int32_t)((int64_t)(y1 - y0) * i / n) : y0;
        for (int32_t k = 0; k < width * width; k++)
            us_canvas_dot(c, x + k % width, y + k / width, colour);
    }
}

static uint16_t rows_of(char letter)
{
    char upper = (char)toupper((unsigned char)letter);
    for (size_t i = 0; i < US_COUNT(letters); i++) {
        if (letters[i].c == upper)
            return letters[i].rows;
    }
    return UNKNOWN;
}

void us_canvas_text(struct us_canvas *c, int32_t x, int32_t y, const char *text, uint32_t colour)
{
    for (; *text != '\0'; text++, x += US_LETTER_W) {
        if (((unsigned char)*text & 0xc0U) == 0x80U) {
            x -= US_LETTER_W; /* a UTF-8 character takes one place */
            continue;
        }
        uint16_t rows = rows_of(*text);
        for (int32_t k = 0; k < US_LETTER_H * 6; k++) {
            int32_t px = k % 6, py = k / 6;
            if ((rows >> (3 * (4 - py / 2) + (2 - px / 2)) & 1) != 0)
                us_canvas_dot(c, x + px, y + py, colour);
        }
    }
}

int32_t us_canvas_text_width(const char *text)
{
    int32_t n = 0;
    for (; *text != '\0' && n < MAX_SIDE / US_LETTER_W; text++)
        n += ((unsigned char)*text & 0xc0U) != 0x80U;
    return n * US_LETTER_W;
}

/* libpng's simplified interface reports failures without jumps. */
static enum us_status write_png(const struct us_canvas *c, const char *path, const char *tmp,
                                struct us_err *err)
{
    png_image image = {.version = PNG_IMAGE_VERSION,
                       .width = (png_uint_32)c->w,
                       .height = (png_uint_32)c->h,
                       .format = PNG_FORMAT_RGB};
    FILE *out = fopen(tmp, "wbe");
    if (out == NULL)
        return us_fail(err, US_E_IO, "%s: %s", path, strerror(errno));
    errno = 0;
    bool ok = png_image_write_to_stdio(&image, out, 0, c->rgb, 0, NULL) != 0 && fflush(out) == 0 &&
              fsync(fileno(out)) == 0;
    int why = errno;
    if (fclose(out) != 0 && ok) {
        why = errno;
        ok = false;
    }
    if (ok)
        return US_OK;
    return us_fail(err, why == ENOSPC ? US_E_DISK_FULL : US_E_IO, "%s: %s", path,
                   why != 0 ? strerror(why) : image.message);
}

enum us_status us_canvas_save(const struct us_canvas *c, const char *path, struct us_err *err)
{
    struct us_outfile o = {0};
    US_TRY(us_outfile_begin(&o, path, NULL, err));
    enum us_status s = write_png(c, path, o.tmp, err);
    if (s == US_OK)
        return us_outfile_commit(&o, err);
    us_outfile_abandon(&o);
    return s;
}
