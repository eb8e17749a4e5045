/*
 * OME-XML in a TIFF's first ImageDescription (OME model 2016-06; older ones read the same).
 *
 * The first Image is read: axes, physical sizes, channel names, and which page is which plane
 * (TiffData). The parser is expat; document types and so all entities are refused, depth is
 * bounded, and a contradiction with the file is an error and never a guess. Files that keep
 * planes or metadata in other files are refused with that reason.
 */
#include <expat.h>
#include <stdlib.h>
#include <string.h>

#include "us_tiff_int.h"

enum { MAX_DEPTH = 64, UUID_BYTES = 80 };

/* Elements that we know, by depth below the document. */
enum element {
    EL_OTHER,
    EL_OME,
    EL_IMAGE,
    EL_PIXELS,
    EL_CHANNEL,
    EL_TIFFDATA,
    EL_UUID,
    EL_BINARY_ONLY
};

struct tiff_data {
    int64_t ifd, count, first_t, first_z, first_c; /* ifd, count: -1 not stated */
};

struct ome {
    XML_Parser parser;
    struct usi_tiff *tiff;
    struct us_image_info *info;
    struct us_err *err;
    enum us_status status; /* of the first failure inside a handler */
    enum element stack[MAX_DEPTH];
    int depth;
    bool is_ome, seen_image, in_first, seen_pixels;
    struct usi_axes axes;
    int64_t w, h, n_channels, n_tiff_data, n_filled;
    char order[4]; /* T, Z, C; slowest first */
    char own_uuid[UUID_BYTES], uuid[UUID_BYTES];
    size_t uuid_used;
};

#define ome_fail(o, s, ...) stop((o), us_fail((o)->err, (s), __VA_ARGS__))

static void stop(struct ome *o, enum us_status s)
{
    if (o->status == US_OK)
        o->status = s;
    (void)XML_StopParser(o->parser, XML_FALSE);
}

/* The name without a namespace prefix. */
static const char *local_name(const char *name)
{
    const char *colon = strrchr(name, ':');
    return colon != NULL ? colon + 1 : name;
}

/* The value of an attribute, NULL if absent. */
static const char *attribute(const char **atts, const char *name)
{
    for (; atts[0] != NULL; atts += 2) {
        if (strcmp(atts[0], name) == 0)
            return atts[1];
    }
    return NULL;
}

/* A count attribute >= min; `absent` if it is not there and absent >= -1 stands for that. */
static bool count_attribute(struct ome *o, const char **atts, const char *name, int64_t min,
                            int64_t absent, int64_t *ret)
{
    const char *text = attribute(atts, name);
    *ret = absent;
    if (text == NULL && absent >= -1)
        return true;
    int64_t v = text == NULL ? -1 : usi_parse_count(text, INT32_MAX);
    if (v < min) {
        ome_fail(o, US_E_FORMAT, "OME-XML: %s is \"%.40s\"; expected a number of at least %lld",
                 name, text == NULL ? "absent" : text, (long long)min);
        return false;
    }
    *ret = v;
    return true;
}

/* A physical size and its unit; what makes no sense counts as not stated. */
static void size_attribute(const char **atts, const char *name, const char *unit_name,
                           const char *default_unit, double *ret, char *ret_unit)
{
    const char *text = attribute(atts, name), *unit = attribute(atts, unit_name);
    *ret = text == NULL ? 0.0 : usi_parse_positive(text);
    if (*ret > 0.0)
        usi_unit_copy(ret_unit, US_MAX_NAME, unit == NULL ? default_unit : unit);
}

/* XYCZT and so on: X and Y first, then a permutation of C, Z, T. We keep T, Z, C slowest first. */
static bool parse_order(struct ome *o, const char *order)
{
    if (order == NULL || strlen(order) != 5 || strncmp(order, "XY", 2) != 0 ||
        strchr(order + 2, 'C') == NULL || strchr(order + 2, 'Z') == NULL ||
        strchr(order + 2, 'T') == NULL) {
        ome_fail(o, US_E_FORMAT,
                 "OME-XML: DimensionOrder is \"%.20s\"; expected XY and then C, Z, "
                 "T in any order",
                 order == NULL ? "absent" : order);
        return false;
    }
    for (int i = 0; i < 3; i++)
        o->order[i] = order[4 - i];
    return true;
}

static void on_pixels(struct ome *o, const char **atts)
{
    struct us_image_info *info = o->info;
    int64_t c, samples = o->tiff->first.samples;
    if (o->seen_pixels) {
        ome_fail(o, US_E_UNSUPPORTED, "OME-XML: an Image with more than one Pixels");
        return;
    }
    o->seen_pixels = true;
    if (!parse_order(o, attribute(atts, "DimensionOrder")) ||
        !count_attribute(o, atts, "SizeX", 1, -2, &o->w) ||
        !count_attribute(o, atts, "SizeY", 1, -2, &o->h) ||
        !count_attribute(o, atts, "SizeT", 1, -2, &o->axes.t) ||
        !count_attribute(o, atts, "SizeZ", 1, -2, &o->axes.z) ||
        !count_attribute(o, atts, "SizeC", 1, -2, &c))
        return;
    if (c % samples != 0) {
        ome_fail(o, US_E_FORMAT, "OME-XML: SizeC is %lld, but a page has %lld samples per pixel",
                 (long long)c, (long long)samples);
        return;
    }
    o->axes.c = c / samples;
    enum us_status s = usi_tiff_map_new(o->tiff, &o->axes, NULL, o->err);
    if (s != US_OK) {
        stop(o, s);
        return;
    }
    usi_axes_set(&o->axes, o->order);
    info->t = o->axes.t;
    info->z = o->axes.z;
    info->c = c;
    size_attribute(atts, "PhysicalSizeX", "PhysicalSizeXUnit", "um", &info->size_x, info->unit_x);
    size_attribute(atts, "PhysicalSizeY", "PhysicalSizeYUnit", "um", &info->size_y, info->unit_y);
    size_attribute(atts, "PhysicalSizeZ", "PhysicalSizeZUnit", "um", &info->size_z, info->unit_z);
    size_attribute(atts, "TimeIncrement", "TimeIncrementUnit", "s", &info->time_increment,
                   info->unit_t);
}

static void on_channel(struct ome *o, const char **atts)
{
    const char *name = attribute(atts, "Name");
    int64_t i = o->n_channels * o->tiff->first.samples;
    o->n_channels++;
    if (name != NULL && i < (int64_t)US_COUNT(o->info->channel_name))
        usi_text_copy(o->info->channel_name[i], US_MAX_NAME, name);
}

/* Position of plane (t, z, c) in DimensionOrder. */
static int64_t rank_of(const struct usi_axes *a, int64_t t, int64_t z, int64_t c)
{
    return t * a->stride_t + z * a->stride_z + c * a->stride_c;
}

/* The map's index of the plane of this rank. */
static int64_t plane_of_rank(const struct usi_axes *a, int64_t rank)
{
    int64_t t = rank / a->stride_t % a->t, z = rank / a->stride_z % a->z;
    return (t * a->z + z) * a->c + rank / a->stride_c % a->c;
}

/* Assigns `count` pages from `ifd` on to the planes from `rank` on. A plane is assigned once, so
 * all TiffData together do no more work than there are planes. */
static void fill(struct ome *o, int64_t ifd, int64_t rank, int64_t count)
{
    struct usi_tiff *t = o->tiff;
    if (count > t->n_map - rank || count > t->n_ifd - ifd) {
        ome_fail(o, US_E_FORMAT,
                 "OME-XML: TiffData asks for %lld pages from page %lld on for planes from %lld on; "
                 "the file has %lld pages and the image %lld planes",
                 (long long)count, (long long)ifd + 1, (long long)rank + 1, (long long)t->n_ifd,
                 (long long)t->n_map);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint32_t *m = &t->map[plane_of_rank(&o->axes, rank + i)];
        if (*m != USI_NO_PAGE) {
            ome_fail(o, US_E_FORMAT, "OME-XML: two TiffData elements for one plane");
            return;
        }
        *m = (uint32_t)(ifd + i);
    }
    o->n_filled += count;
}

static void on_tiff_data(struct ome *o, const char **atts)
{
    struct tiff_data d;
    const struct usi_axes *a = &o->axes;
    o->n_tiff_data++;
    if (!count_attribute(o, atts, "IFD", 0, -1, &d.ifd) ||
        !count_attribute(o, atts, "PlaneCount", 0, -1, &d.count) ||
        !count_attribute(o, atts, "FirstT", 0, 0, &d.first_t) ||
        !count_attribute(o, atts, "FirstZ", 0, 0, &d.first_z) ||
        !count_attribute(o, atts, "FirstC", 0, 0, &d.first_c))
        return;
    if (d.first_t >= a->t || d.first_z >= a->z || d.first_c >= a->c) {
        ome_fail(o, US_E_FORMAT,
                 "OME-XML: TiffData for T %lld, Z %lld, C %lld; the image has T "
                 "%lld, Z %lld, C %lld",
                 (long long)d.first_t, (long long)d.first_z, (long long)d.first_c, (long long)a->t,
                 (long long)a->z, (long long)a->c);
        return;
    }
    int64_t rank = rank_of(a, d.first_t, d.first_z, d.first_c);
    if (d.count < 0)
        d.count = d.ifd < 0 ? o->tiff->n_map - rank : 1;
    fill(o, d.ifd < 0 ? 0 : d.ifd, rank, d.count);
}

static enum element classify(const struct ome *o, const char *name)
{
    enum element parent = o->depth > 0 ? o->stack[o->depth - 1] : EL_OTHER;
    if (o->depth == 0)
        return strcmp(name, "OME") == 0 ? EL_OME : EL_OTHER;
    if (parent == EL_OME && strcmp(name, "Image") == 0)
        return EL_IMAGE;
    if (parent == EL_OME && strcmp(name, "BinaryOnly") == 0)
        return EL_BINARY_ONLY;
    if (parent == EL_IMAGE && strcmp(name, "Pixels") == 0)
        return EL_PIXELS;
    if (parent == EL_PIXELS && strcmp(name, "Channel") == 0)
        return EL_CHANNEL;
    if (parent == EL_PIXELS && strcmp(name, "TiffData") == 0)
        return EL_TIFFDATA;
    if (parent == EL_TIFFDATA && strcmp(name, "UUID") == 0)
        return EL_UUID;
    return EL_OTHER;
}

static void on_image(struct ome *o, const char **atts)
{
    const char *name = attribute(atts, "Name");
    o->in_first = !o->seen_image;
    o->seen_image = true;
    if (o->in_first && name != NULL)
        usi_text_copy(o->info->name, sizeof(o->info->name), name);
}

static void XMLCALL on_start(void *user, const char *full_name, const char **atts)
{
    struct ome *o = user;
    if (o->depth == MAX_DEPTH) {
        ome_fail(o, US_E_TOO_LARGE, "OME-XML nests deeper than %d elements", (int)MAX_DEPTH);
        return;
    }
    enum element e = classify(o, local_name(full_name));
    o->stack[o->depth++] = e;
    if (e == EL_OME) {
        const char *uuid = attribute(atts, "UUID");
        o->is_ome = true;
        usi_text_copy(o->own_uuid, sizeof(o->own_uuid), uuid == NULL ? "" : uuid);
    } else if (e == EL_BINARY_ONLY) {
        ome_fail(o, US_E_UNSUPPORTED,
                 "OME-TIFF whose metadata are in another file (BinaryOnly); "
                 "expected one complete file; export it as a single OME-TIFF");
    } else if (e == EL_IMAGE) {
        on_image(o, atts);
    } else if (o->in_first && e == EL_PIXELS) {
        on_pixels(o, atts);
    } else if (o->in_first && e == EL_CHANNEL) {
        on_channel(o, atts);
    } else if (o->in_first && e == EL_TIFFDATA) {
        on_tiff_data(o, atts);
    } else if (e == EL_UUID) {
        o->uuid_used = 0;
    }
}

/* A UUID in TiffData names the file that has the pages. A file may be renamed, so its own UUID
 * decides; without one, all TiffData must name the same. */
static void check_uuid(struct ome *o)
{
    o->uuid[o->uuid_used] = '\0';
    if (o->own_uuid[0] == '\0')
        memcpy(o->own_uuid, o->uuid, sizeof(o->own_uuid));
    if (strcmp(o->uuid, o->own_uuid) != 0)
        ome_fail(o, US_E_UNSUPPORTED,
                 "OME-TIFF with planes in several files (%s); expected one "
                 "complete file; export it as a single OME-TIFF",
                 o->uuid);
}

static void XMLCALL on_end(void *user, const char *name)
{
    struct ome *o = user;
    if (o->status != US_OK) /* expat closes an empty element even after a stop */
        return;
    enum element e = o->stack[--o->depth];
    if (e == EL_UUID && o->in_first && o->uuid_used > 0)
        check_uuid(o);
    if (e == EL_IMAGE)
        o->in_first = false;
}

static void XMLCALL on_text(void *user, const char *text, int n)
{
    struct ome *o = user;
    if (o->depth == 0 || o->stack[o->depth - 1] != EL_UUID)
        return;
    for (int i = 0; i < n && o->uuid_used < sizeof(o->uuid) - 1; i++) {
        if (text[i] > ' ')
            o->uuid[o->uuid_used++] = text[i];
    }
}

static void XMLCALL on_doctype(void *user, const char *name, const char *sysid, const char *pubid,
                               int has_subset)
{
    ome_fail((struct ome *)user, US_E_FORMAT, "OME-XML with a document type; expected none");
}

/* No TiffData at all: the pages are the planes in order. */
static void finish_map(struct ome *o)
{
    if (!o->seen_pixels)
        ome_fail(o, US_E_FORMAT, "OME-XML without an Image with Pixels");
    else if (o->n_tiff_data == 0)
        fill(o, 0, 0, o->tiff->n_map);
    else if (o->n_filled < o->tiff->n_map)
        ome_fail(o, US_E_FORMAT,
                 "OME-XML names pages for %lld of %lld planes; the acquisition may "
                 "have been interrupted",
                 (long long)o->n_filled, (long long)o->tiff->n_map);
}

static void parse(struct ome *o, const char *xml)
{
    XML_SetUserData(o->parser, o);
    XML_SetElementHandler(o->parser, on_start, on_end);
    XML_SetCharacterDataHandler(o->parser, on_text);
    XML_SetStartDoctypeDeclHandler(o->parser, on_doctype);
    /* The description's cap keeps the length within an int. */
    if (XML_Parse(o->parser, xml, (int)strlen(xml), XML_TRUE) != XML_STATUS_OK &&
        o->status == US_OK)
        ome_fail(o, US_E_FORMAT, "OME-XML malformed at line %lu, column %lu: %s",
                 (unsigned long)XML_GetCurrentLineNumber(o->parser),
                 (unsigned long)XML_GetCurrentColumnNumber(o->parser),
                 XML_ErrorString(XML_GetErrorCode(o->parser)));
    if (o->status == US_OK && o->is_ome)
        finish_map(o);
}

/* Whether this is worth parsing: XML that has an element OME, with or without a prefix. */
static bool looks_like_ome(const char *xml)
{
    return *xml == '<' && (strstr(xml, "<OME") != NULL || strstr(xml, ":OME") != NULL);
}

/* The image may begin at another page than the file. */
static enum us_status set_first_page(struct usi_tiff *t, struct us_err *err)
{
    struct usi_tiff_page p;
    enum us_status s = usi_tiff_page_parse(&t->file, t->ifd[t->map[0]], &p, err);
    if (s != US_OK)
        us_err_prefix(err, "page %lld of %lld", (long long)t->map[0] + 1, (long long)t->n_ifd);
    else if (p.samples != t->first.samples)
        s = us_fail(err, US_E_UNSUPPORTED, "OME-TIFF whose pages differ in samples per pixel");
    else
        t->first = p;
    return s;
}

enum us_status usi_ome_read(const char *xml, struct usi_tiff *t, struct us_image_info *info,
                            bool *ret_taken, struct us_err *err)
{
    *ret_taken = false;
    if (strncmp(xml, "\xef\xbb\xbf", 3) == 0)
        xml += 3;
    xml += strspn(xml, " \t\r\n");
    if (!looks_like_ome(xml))
        return US_OK;
    struct ome *o = calloc(1, sizeof(*o));
    XML_Parser parser = XML_ParserCreate(NULL);
    enum us_status s = US_OK;
    if (o == NULL || parser == NULL) {
        s = us_fail(err, US_E_NOMEM, "no memory for an XML parser");
        goto out;
    }
    o->parser = parser;
    o->tiff = t;
    o->info = info;
    o->err = err;
    parse(o, xml);
    s = o->status;
    if (s == US_OK && o->is_ome) {
        *ret_taken = true;
        info->container = US_CONTAINER_OME_TIFF;
        info->axes_stated = true;
        s = set_first_page(t, err);
    }
    if (s == US_OK && o->is_ome && (o->w != t->first.w || o->h != t->first.h))
        s = us_fail(err, US_E_FORMAT, "OME-XML says %lld x %lld pixels, the page has %lld x %lld",
                    (long long)o->w, (long long)o->h, (long long)t->first.w, (long long)t->first.h);
out:
    if (parser != NULL)
        XML_ParserFree(parser);
    free(o);
    return s;
}
