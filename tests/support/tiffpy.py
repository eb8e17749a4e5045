"""A small TIFF and NPY reader and writer for the tests, standard library only.

It is written against the TIFF 6.0 and BigTIFF layouts and not against our own C code, so that a
test which reads our output with it is a second opinion. It reads what we write (little or big
endian, classic or Big, strips or tiles, uncompressed or deflate, predictor 1 or 2 for integers)
and writes plain uncompressed strips, plus whatever broken variant a test asks for.

A plane is an array.array of height * width values in row-major order.
"""
import array
import ast
import struct
import sys
import xml.etree.ElementTree as ElementTree
import zlib

# typecode of array.array -> (TIFF SampleFormat, bits)
FORMATS = {"B": (1, 8), "b": (2, 8), "H": (1, 16), "h": (2, 16), "I": (1, 32), "i": (2, 32),
           "f": (3, 32), "d": (3, 64)}
TYPECODES = {v: k for k, v in FORMATS.items()}
NPY_DESCR = {"B": "|u1", "b": "|i1", "H": "<u2", "h": "<i2", "I": "<u4", "i": "<i4", "f": "<f4",
             "d": "<f8"}
FIELD_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
               16: 8, 17: 8, 18: 8}
FIELD_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I",
               16: "Q", 17: "q", 18: "Q"}


def plane(width, height, typecode, value):
    """A plane whose pixel (y, x) is value(y, x)."""
    return array.array(typecode, [value(y, x) for y in range(height) for x in range(width)])


def _entry(tag, ftype, values, big):
    """(tag, type, count, packed payload) of one IFD entry, little endian."""
    if ftype == 2:
        payload = values.encode("utf-8") + b"\0"
        return tag, ftype, len(payload), payload
    return tag, ftype, len(values), struct.pack("<%d%s" % (len(values), FIELD_CODES[ftype]),
                                                *values)


def _page_entries(width, height, typecode, offset, n_bytes, opts, first):
    fmt, bits = FORMATS[typecode]
    samples = opts.get("samples", 1)
    big = opts.get("big", False)
    entries = [
        (256, 4, [opts.get("claim_width", width)]),
        (257, 4, [opts.get("claim_height", height)]),
        (258, 3, [bits] * samples),
        (259, 3, [1]),
        (262, 3, [opts.get("photometric", 1)]),
        (273, 16 if big else 4, [offset]),
        (277, 3, [samples]),
        (278, 4, [opts.get("claim_height", height)]),
        (279, 16 if big else 4, [n_bytes]),
        (339, 3, [fmt] * samples),
    ]
    if opts.get("photometric") == 3:
        entries.append((320, 3, [0] * (3 << bits)))
    if opts.get("resolution"):
        num, den = opts["resolution"]
        entries += [(282, 5, (num, den)), (283, 5, (num, den)),
                    (296, 3, [opts.get("resolution_unit", 1)])]
    if first and opts.get("description") is not None:
        entries.append((270, 2, opts["description"]))
    out = []
    for tag, ftype, values in sorted(entries, key=lambda e: e[0]):
        if ftype == 5:
            out.append((tag, 5, 1, struct.pack("<II", *values)))
        else:
            out.append(_entry(tag, ftype, values, big))
    return out


def make_tiff(planes, width, height, **opts):
    """Bytes of a little-endian TIFF, one page and one strip per plane.

    opts: description (str, first page), big (BigTIFF), photometric, samples (interleaved samples
    per pixel; a plane then holds width * height * samples values), resolution (num, den),
    resolution_unit, claim_width and claim_height (what the header says instead of the truth).
    """
    big = opts.get("big", False)
    out = bytearray(b"II" + (struct.pack("<HHHQ", 43, 8, 0, 0) if big else
                             struct.pack("<HI", 42, 0)))
    link = 8 if big else 4
    for index, pixels in enumerate(planes):
        data = array.array(pixels.typecode, pixels)
        if sys.byteorder == "big":
            data.byteswap()
        out += b"\0" * (-len(out) % 8)
        offset = len(out)
        out += data.tobytes()
        entries = _page_entries(width, height, pixels.typecode, offset,
                                len(data) * data.itemsize, opts, index == 0)
        inline = 8 if big else 4
        placed = []
        for tag, ftype, count, payload in entries:
            if len(payload) <= inline:
                placed.append((tag, ftype, count, payload.ljust(inline, b"\0")))
                continue
            out += b"\0" * (-len(out) % 8)
            placed.append((tag, ftype, count, struct.pack("<Q" if big else "<I", len(out))))
            out += payload
        out += b"\0" * (-len(out) % 8)
        struct.pack_into("<Q" if big else "<I", out, link, len(out))
        out += struct.pack("<Q" if big else "<H", len(placed))
        for tag, ftype, count, payload in placed:
            out += struct.pack("<HHQ" if big else "<HHI", tag, ftype, count) + payload
        link = len(out)
        out += b"\0" * inline
    return bytes(out)


def ome_description(width, height, typecode, t=1, z=1, c=1, channels=(), size_um=None, **more):
    """A minimal OME-XML header, dimension order XYCZT."""
    names = {"B": "uint8", "b": "int8", "H": "uint16", "h": "int16", "I": "uint32", "i": "int32",
             "f": "float", "d": "double"}
    size = "" if size_um is None else (
        ' PhysicalSizeX="%r" PhysicalSizeXUnit="\u00b5m" PhysicalSizeY="%r"'
        ' PhysicalSizeYUnit="\u00b5m"' % (size_um, size_um))
    size += "".join(' %s="%s"' % item for item in more.items())
    chans = "".join('<Channel ID="Channel:0:%d" Name="%s" SamplesPerPixel="1"/>' % item
                    for item in enumerate(channels or [str(i) for i in range(c)]))
    return ('<?xml version="1.0" encoding="UTF-8"?>'
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
            '<Image ID="Image:0" Name="test"><Pixels ID="Pixels:0" DimensionOrder="XYCZT"'
            ' Type="%s" SizeX="%d" SizeY="%d" SizeC="%d" SizeZ="%d" SizeT="%d"%s>%s<TiffData/>'
            '</Pixels></Image></OME>' % (names[typecode], width, height, c, z, t, size, chans))


class Page:
    """One page: width, height, data (array.array), tags {tag: tuple of values or str}."""

    def __init__(self, width, height, data, tags):
        self.width, self.height, self.data, self.tags = width, height, data, tags

    def at(self, y, x):
        return self.data[y * self.width + x]

    def row(self, y):
        return self.data[y * self.width:(y + 1) * self.width]

    def column(self, x):
        return self.data[x::self.width]


def _read_tags(raw, at, end, big):
    (count,) = struct.unpack_from(end + ("Q" if big else "H"), raw, at)
    at += 8 if big else 2
    size, inline = (20, 8) if big else (12, 4)
    tags = {}
    for i in range(count):
        tag, ftype, n = struct.unpack_from(end + ("HHQ" if big else "HHI"), raw, at + i * size)
        where = at + i * size + size - inline
        if n * FIELD_BYTES[ftype] > inline:
            (where,) = struct.unpack_from(end + ("Q" if big else "I"), raw, where)
        if ftype == 2:
            tags[tag] = raw[where:where + n].rstrip(b"\0").decode("utf-8")
        elif ftype in FIELD_CODES:
            tags[tag] = struct.unpack_from("%s%d%s" % (end, n, FIELD_CODES[ftype]), raw, where)
        elif ftype == 5:
            tags[tag] = struct.unpack_from("%s%dI" % (end, 2 * n), raw, where)
    (following,) = struct.unpack_from(end + ("Q" if big else "I"), raw, at + count * size)
    return tags, following


def _undo_predictor(data, width):
    limit = (1 << (8 * data.itemsize)) - 1
    for start in range(0, len(data), width):
        for x in range(start + 1, min(start + width, len(data))):
            data[x] = (data[x] + data[x - 1]) & limit


def _decode(raw, tags, end, offset, n_bytes, typecode, width):
    chunk = raw[offset:offset + n_bytes]
    if len(chunk) != n_bytes:
        raise ValueError("strip or tile outside the file")
    compression = tags.get(259, (1,))[0]
    if compression in (8, 32946):
        chunk = zlib.decompress(chunk)
    elif compression != 1:
        raise ValueError("compression %d" % compression)
    data = array.array(typecode)
    data.frombytes(chunk[:len(chunk) // data.itemsize * data.itemsize])
    if (end == "<") != (sys.byteorder == "little"):
        data.byteswap()
    if tags.get(317, (1,))[0] == 2:
        _undo_predictor(data, width)
    return data


def _read_page(raw, tags, end):
    width, height = tags[256][0], tags[257][0]
    typecode = TYPECODES[(tags.get(339, (1,))[0], tags[258][0])]
    if 322 not in tags:
        data = array.array(typecode)
        for offset, n_bytes in zip(tags[273], tags[279]):
            data.extend(_decode(raw, tags, end, offset, n_bytes, typecode, width))
        if len(data) != width * height:
            raise ValueError("%d pixels, expected %d" % (len(data), width * height))
        return Page(width, height, data, tags)
    tile_w, tile_h = tags[322][0], tags[323][0]
    data = array.array(typecode, bytes(width * height * array.array(typecode).itemsize))
    across = (width + tile_w - 1) // tile_w
    for i, (offset, n_bytes) in enumerate(zip(tags[324], tags[325])):
        tile = _decode(raw, tags, end, offset, n_bytes, typecode, tile_w)
        y0, x0 = i // across * tile_h, i % across * tile_w
        n = min(tile_w, width - x0)
        for y in range(min(tile_h, height - y0)):
            at = (y0 + y) * width + x0
            data[at:at + n] = tile[y * tile_w:y * tile_w + n]
    return Page(width, height, data, tags)


def read_tiff(raw):
    """List of Page of a whole TIFF file given as bytes."""
    end = {b"II": "<", b"MM": ">"}[raw[:2]]
    (magic,) = struct.unpack_from(end + "H", raw, 2)
    if magic not in (42, 43):
        raise ValueError("not a TIFF")
    big = magic == 43
    (at,) = struct.unpack_from(end + ("Q" if big else "I"), raw, 8 if big else 4)
    pages = []
    while at != 0:
        tags, at = _read_tags(raw, at, end, big)
        pages.append(_read_page(raw, tags, end))
    return pages


def read_ome(raw):
    """(pages, attributes of <Pixels>, channel names, OME element) of an OME-TIFF."""
    pages = read_tiff(raw)
    root = ElementTree.fromstring(pages[0].tags[270])
    ns = root.tag[:root.tag.index("}") + 1]
    pixels = root.find("%sImage/%sPixels" % (ns, ns))
    names = [c.get("Name") for c in pixels.findall(ns + "Channel")]
    return pages, pixels.attrib, names, root


def make_npy(values, shape, descr=None):
    """Bytes of an NPY v1.0 file; values is an array.array in C order."""
    text = repr({"descr": descr or NPY_DESCR[values.typecode], "fortran_order": False,
                 "shape": tuple(shape)})
    text += " " * (-(10 + len(text) + 1) % 64) + "\n"
    data = array.array(values.typecode, values)
    if sys.byteorder == "big":
        data.byteswap()
    return (b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode("latin-1") +
            data.tobytes())


def read_npy(raw):
    """(values, shape) of an NPY file."""
    if raw[:6] != b"\x93NUMPY":
        raise ValueError("not an NPY file")
    size = struct.unpack_from("<H" if raw[6] == 1 else "<I", raw, 8)[0]
    start = 10 if raw[6] == 1 else 12
    head = ast.literal_eval(raw[start:start + size].decode("latin-1"))
    typecode = {v: k for k, v in NPY_DESCR.items()}[head["descr"]]
    values = array.array(typecode)
    values.frombytes(raw[start + size:])
    if sys.byteorder == "big":
        values.byteswap()
    return values, tuple(head["shape"])
