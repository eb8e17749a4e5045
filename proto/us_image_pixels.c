/*
 * Pixel conversion: any sample type to float, and float to the three types that we write.
 *
 * Values keep their numbers; nothing is rescaled. 8- and 16-bit integers are exact in f32, wider
 * ones are rounded to nearest. Loads go through memcpy, so a sample may lie at any address.
 */
#include <math.h>
#include <string.h>

#include "us_image_int.h"

static const struct {
    const char *name;
    char kind;
    uint8_t bits;
} pixel_table[] = {
    [US_PIXEL_U8] = {"uint8", 'u', 8},     [US_PIXEL_I8] = {"int8", 'i', 8},
    [US_PIXEL_U16] = {"uint16", 'u', 16},  [US_PIXEL_I16] = {"int16", 'i', 16},
    [US_PIXEL_U32] = {"uint32", 'u', 32},  [US_PIXEL_I32] = {"int32", 'i', 32},
    [US_PIXEL_F32] = {"float32", 'f', 32}, [US_PIXEL_F64] = {"float64", 'f', 64},
};

const char *us_pixel_name(enum us_pixel p)
{
    return (unsigned)p < US_COUNT(pixel_table) ? pixel_table[p].name : "unknown";
}

int64_t usi_pixel_bytes(enum us_pixel p)
{
    US_ASSERT((unsigned)p < US_COUNT(pixel_table));
    return pixel_table[p].bits / 8;
}

bool usi_pixel_find(char kind, unsigned bits, enum us_pixel *ret)
{
    for (size_t i = 0; i < US_COUNT(pixel_table); i++) {
        if (pixel_table[i].kind == kind && pixel_table[i].bits == bits) {
            *ret = (enum us_pixel)i;
            return true;
        }
    }
    return false;
}

bool usi_host_is_big_endian(void)
{
    return __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__;
}

static uint16_t load16(const uint8_t *p, bool swap)
{
    uint16_t v;
    memcpy(&v, p, sizeof(v));
    return swap ? __builtin_bswap16(v) : v;
}

static uint32_t load32(const uint8_t *p, bool swap)
{
    uint32_t v;
    memcpy(&v, p, sizeof(v));
    return swap ? __builtin_bswap32(v) : v;
}

static uint64_t load64(const uint8_t *p, bool swap)
{
    uint64_t v;
    memcpy(&v, p, sizeof(v));
    return swap ? __builtin_bswap64(v) : v;
}

static float bits_to_f32(uint32_t v)
{
    float f;
    memcpy(&f, &v, sizeof(f));
    return f;
}

static double bits_to_f64(uint64_t v)
{
    double d;
    memcpy(&d, &v, sizeof(d));
    return d;
}

/* One loop per type, so that each is a plain vectorisable loop when stride is constant. */
#define CONVERT(load_expr)                                                                         \
    do {                                                                                           \
        for (int64_t i = 0; i < n; i++) {                                                          \
            const uint8_t *q = p + i * stride;                                                     \
            out[i] = (float)(load_expr);                                                           \
        }                                                                                          \
    } while (0)

void usi_pixels_to_f32(enum us_pixel pixel, bool swap, const void *src, int64_t stride, int64_t n,
                       float *out)
{
    const uint8_t *p = src;
    switch (pixel) {
    case US_PIXEL_U8:
        CONVERT(*q);
        break;
    case US_PIXEL_I8:
        CONVERT((int8_t)*q);
        break;
    case US_PIXEL_U16:
        CONVERT(load16(q, swap));
        break;
    case US_PIXEL_I16:
        CONVERT((int16_t)load16(q, swap));
        break;
    case US_PIXEL_U32:
        CONVERT(load32(q, swap));
        break;
    case US_PIXEL_I32:
        CONVERT((int32_t)load32(q, swap));
        break;
    case US_PIXEL_F32:
        CONVERT(bits_to_f32(load32(q, swap)));
        break;
    case US_PIXEL_F64:
        CONVERT(bits_to_f64(load64(q, swap)));
        break;
    }
}

/* Rounds a value in [0, max] half away from zero. v - whole is exact, unlike v + 0.5f, which
 * would carry 0.49999997f up to 1. */
static uint32_t round_clamped(float v, float max)
{
    if (!(v > 0.0f))
        return 0;
    if (v >= max)
        return (uint32_t)max;
    uint32_t whole = (uint32_t)v;
    return whole + (v - (float)whole >= 0.5f ? 1u : 0u);
}

static int64_t first_nan(const float *src, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (isnan(src[i]))
            return i;
    }
    return -1;
}

static void put_f32(const float *src, int64_t n, uint8_t *out)
{
    if (!usi_host_is_big_endian()) {
        memcpy(out, src, (size_t)n * sizeof(*src));
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t v = load32((const uint8_t *)&src[i], true);
        memcpy(out + 4 * i, &v, sizeof(v));
    }
}

int64_t usi_pixels_from_f32(enum us_pixel pixel, const float *src, int64_t n, void *ret)
{
    uint8_t *out = ret;
    if (pixel == US_PIXEL_F32) {
        put_f32(src, n, out);
        return -1;
    }
    int64_t bad = first_nan(src, n);
    if (bad >= 0)
        return bad;
    if (pixel == US_PIXEL_U8) {
        for (int64_t i = 0; i < n; i++)
            out[i] = (uint8_t)round_clamped(src[i], 255.0f);
    } else {
        for (int64_t i = 0; i < n; i++) {
            uint32_t v = round_clamped(src[i], 65535.0f);
            out[2 * i] = (uint8_t)(v & 0xff);
            out[2 * i + 1] = (uint8_t)(v >> 8);
        }
    }
    return -1;
}
