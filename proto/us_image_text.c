/*
 * Small text work of the image formats: bounded copies, units, numbers, axis letters.
 * Everything here meets a stranger's bytes and lets only valid UTF-8 without control characters
 * through.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "us_image_int.h"

void usi_name_copy(char dst[USI_NAME_BYTES], const char *path)
{
    size_t n = strlen(path);
    bool fits = n < USI_NAME_BYTES;
    (void)snprintf(dst, USI_NAME_BYTES, "%s%s", fits ? "" : "...",
                   fits ? path : path + n - (USI_NAME_BYTES - 4));
}

/* RFC 3629: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
int usi_utf8_length(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    if (s[0] < 0x80)
        return 1;
    int n = s[0] >= 0xc2 && s[0] <= 0xdf   ? 2
            : s[0] >= 0xe0 && s[0] <= 0xef ? 3
            : s[0] >= 0xf0 && s[0] <= 0xf4 ? 4
                                           : 0;
    for (int i = 1; i < n; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    bool overlong = (s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xf0 && s[1] < 0x90);
    bool surrogate = s[0] == 0xed && s[1] > 0x9f;
    bool beyond = s[0] == 0xf4 && s[1] > 0x8f;
    return n == 0 || overlong || surrogate || beyond ? 0 : n;
}

void usi_text_copy(char *dst, size_t cap, const char *src)
{
    size_t used = 0;
    for (const char *s = src; *s != '\0';) {
        size_t n = (size_t)usi_utf8_length(s);
        bool plain = n > 1 || (n == 1 && *s >= ' ' && *s != 0x7f);
        size_t take = plain ? n : 1;
        if (used + take + 1 > cap)
            break;
        if (plain)
            memcpy(dst + used, s, n);
        else
            dst[used] = '?';
        used += take;
        s += n > 0 ? n : 1;
    }
    dst[used] = '\0';
}

#define MICRO_METRE "\xc2\xb5m"

/* The spellings of one length unit and its size. The first is the one that we keep. */
static const struct {
    const char *canonical;
    double um;
    const char *spellings[10];
} length_units[] = {
    {MICRO_METRE,
     1.0,
     {MICRO_METRE, "\xce\xbcm", "\xb5m", "\\u00B5m", "\\u00b5m", "um", "micron", "microns",
      "micrometer", "micrometre"}},
    {"nm", 1e-3, {"nm", "nanometer", "nanometre"}},
    {"pm", 1e-6, {"pm"}},
    {"\xc3\x85", 1e-4, {"\xc3\x85", "\xe2\x84\xab"}},
    {"mm", 1e3, {"mm", "millimeter", "millimetre"}},
    {"cm", 1e4, {"cm", "centimeter", "centimetre"}},
    {"m", 1e6, {"m", "meter", "metre"}},
    {"in", 25400.0, {"in", "inch"}},
    {"", 0.0, {"pixel", "pixels"}},
};

/* Index in length_units, or -1. */
static int find_unit(const char *s)
{
    for (size_t i = 0; i < US_COUNT(length_units); i++) {
        for (size_t k = 0; k < US_COUNT(length_units[i].spellings); k++) {
            const char *w = length_units[i].spellings[k];
            if (w != NULL && strcmp(w, s) == 0)
                return (int)i;
        }
    }
    return -1;
}

void usi_unit_copy(char *dst, size_t cap, const char *src)
{
    int i = find_unit(src);
    usi_text_copy(dst, cap, i >= 0 ? length_units[i].canonical : src);
}

double usi_unit_um(const char *unit)
{
    if (unit[0] == '\0')
        return 1.0;
    int i = find_unit(unit);
    return i >= 0 ? length_units[i].um : 0.0;
}

double usi_parse_positive(const char *s)
{
    char *end;
    double v = strtod(s, &end);
    while (*end == ' ' || *end == '\r' || *end == '\t')
        end++;
    return end != s && *end == '\0' && isfinite(v) && v > 0.0 ? v : 0.0;
}

int64_t usi_parse_count(const char *s, int64_t max)
{
    if (*s < '0' || *s > '9')
        return -1;
    int64_t v = 0;
    for (; *s >= '0' && *s <= '9'; s++) {
        if (v > (max - (*s - '0')) / 10)
            return -1;
        v = v * 10 + (*s - '0');
    }
    while (*s == ' ' || *s == '\r' || *s == '\t')
        s++;
    return *s == '\0' ? v : -1;
}

void usi_axes_set(struct usi_axes *a, const char *letters)
{
    int64_t stride = 1;
    for (size_t i = strlen(letters); i-- > 0;) {
        if (letters[i] == 'T') {
            a->stride_t = stride;
            stride *= a->t;
        } else if (letters[i] == 'Z') {
            a->stride_z = stride;
            stride *= a->z;
        } else if (letters[i] == 'C') {
            a->stride_c = stride;
            stride *= a->c;
        }
    }
}
