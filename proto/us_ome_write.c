/*
 * OME-XML for the files that we write (OME model 2016-06).
 *
 * Everything that is not ASCII is written as a character reference: an ImageDescription is ASCII
 * by the TIFF standard, and every XML reader understands it. There is no UUID and no date, so the
 * same image gives the same bytes.
 */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_ome_write.h"

/* A growing text. After a failed allocation `text` is NULL and nothing more is added. */
struct buffer {
    char *text;
    size_t used, cap;
    bool failed;
};

static bool reserve(struct buffer *b, size_t n)
{
    if (b->failed)
        return false;
    if (b->used + n + 1 <= b->cap)
        return true;
    size_t cap = b->cap * 2 > b->used + n + 1 ? b->cap * 2 : b->used + n + 1024;
    char *p = realloc(b->text, cap);
    if (p == NULL) {
        b->failed = true;
        return false;
    }
    b->text = p;
    b->cap = cap;
    return true;
}

US_PRINTF(2, 3) static void add(struct buffer *b, const char *fmt, ...)
{
    char piece[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(piece, sizeof(piece), fmt, ap);
    va_end(ap);
    US_ASSERT(n >= 0 && (size_t)n < sizeof(piece));
    if (!reserve(b, (size_t)n))
        return;
    memcpy(b->text + b->used, piece, (size_t)n + 1);
    b->used += (size_t)n;
}

/* Decodes one character of valid UTF-8; malformed bytes give U+FFFD and a length of 1. */
static uint32_t next_character(const unsigned char **at)
{
    const unsigned char *s = *at;
    int n = usi_utf8_length((const char *)s);
    *at += n > 0 ? n : 1;
    if (n == 0)
        return 0xfffd;
    if (n == 1)
        return s[0];
    uint32_t v = s[0] & (0x7fu >> n);
    for (int i = 1; i < n; i++)
        v = v << 6 | (s[i] & 0x3fu);
    return v;
}

/* Text for an element or an attribute. XML has no place for most control characters. */
static void add_escaped(struct buffer *b, const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    while (*s != '\0') {
        uint32_t c = next_character(&s);
        bool is_space = c == '\t' || c == '\n' || c == '\r';
        if ((c < 0x20 && !is_space) || c == 0xfffe || c == 0xffff)
            c = 0xfffd;
        if (c == '<' || c == '>' || c == '&' || c == '"' || c == '\'' || is_space || c >= 0x7f)
            add(b, "&#%u;", (unsigned)c);
        else
            add(b, "%c", (char)c);
    }
}

static void add_attribute(struct buffer *b, const char *name, const char *value)
{
    add(b, " %s=\"", name);
    add_escaped(b, value);
    add(b, "\"");
}

/* The shortest of 15 to 17 digits that reads back as the same number. */
static void add_size(struct buffer *b, const char *name, double v, const char *unit,
                     const char *default_unit)
{
    char digits[40];
    if (!isfinite(v) || v <= 0.0)
        return;
    for (int precision = 15; precision <= 17; precision++) {
        (void)snprintf(digits, sizeof(digits), "%.*g", precision, v);
        if (strtod(digits, NULL) == v)
            break;
    }
    char unit_name[40];
    (void)snprintf(unit_name, sizeof(unit_name), "%sUnit", name);
    add_attribute(b, name, digits);
    add_attribute(b, unit_name, unit[0] != '\0' ? unit : default_unit);
}

static void add_pixels(struct buffer *b, const struct us_image_info *i)
{
    add(b,
        "<Pixels ID=\"Pixels:0\" DimensionOrder=\"XYCZT\" Type=\"%s\" SizeX=\"%lld\" "
        "SizeY=\"%lld\" SizeC=\"%lld\" SizeZ=\"%lld\" SizeT=\"%lld\" BigEndian=\"false\" "
        "Interleaved=\"false\"",
        i->pixel == US_PIXEL_F32 ? "float" : us_pixel_name(i->pixel), (long long)i->w,
        (long long)i->h, (long long)i->c, (long long)i->z, (long long)i->t);
    add_size(b, "PhysicalSizeX", i->size_x, i->unit_x, "\xc2\xb5m");
    add_size(b, "PhysicalSizeY", i->size_y, i->unit_y, "\xc2\xb5m");
    add_size(b, "PhysicalSizeZ", i->size_z, i->unit_z, "\xc2\xb5m");
    add_size(b, "TimeIncrement", i->time_increment, i->unit_t, "s");
    add(b, ">");
    for (int64_t c = 0; c < i->c; c++) {
        const char *name = c < (int64_t)US_COUNT(i->channel_name) ? i->channel_name[c] : "";
        add(b, "<Channel ID=\"Channel:0:%lld\"", (long long)c);
        if (name[0] != '\0')
            add_attribute(b, "Name", name);
        add(b, " SamplesPerPixel=\"1\"/>");
    }
    add(b, "<TiffData IFD=\"0\" PlaneCount=\"%lld\"/></Pixels>", (long long)i->t * i->z * i->c);
}

char *usi_ome_write(const struct us_image_info *info, const struct us_image_write_options *opt)
{
    struct buffer b = {0};
    add(&b, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>"
            "<OME xmlns=\"http://www.openmicroscopy.org/Schemas/OME/2016-06\" "
            "xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" "
            "xsi:schemaLocation=\"http://www.openmicroscopy.org/Schemas/OME/2016-06 "
            "http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd\"");
    add_attribute(&b, "Creator", opt->software != NULL ? opt->software : "usplit");
    add(&b, "><Image ID=\"Image:0\"");
    if (info->name[0] != '\0')
        add_attribute(&b, "Name", info->name);
    add(&b, ">");
    add_pixels(&b, info);
    if (opt->description_json != NULL)
        add(&b, "<AnnotationRef ID=\"Annotation:0\"/>");
    add(&b, "</Image>");
    if (opt->description_json != NULL) {
        add(&b, "<StructuredAnnotations><CommentAnnotation ID=\"Annotation:0\" "
                "Namespace=\"usplit.prediction\"><Value>");
        add_escaped(&b, opt->description_json);
        add(&b, "</Value></CommentAnnotation></StructuredAnnotations>");
    }
    add(&b, "</OME>");
    if (b.failed) {
        free(b.text);
        return NULL;
    }
    return b.text;
}
