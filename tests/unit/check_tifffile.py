"""Our image module against tifffile, both ways. Usage: check_tifffile.py IMAGE_DUMP

tifffile reads what we write: axes, shape, names, sizes, every value. We read what tifffile writes:
ImageJ hyperstacks, OME-TIFF in every dimension order, BigTIFF, tiles, codecs, both byte orders.
Real images of the data folder, when present, give the same sums. Exit status 77: no tifffile.
"""
import glob
import itertools
import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import tifffile
except ImportError as e:
    print("skipped:", e)
    sys.exit(77)

DUMP = sys.argv[1]
CODECS = (None, "zlib")  # what tifffile encodes without imagecodecs; test_image.c has the others
failures = []
checks = 0


def check(what, got, want):
    global checks
    checks += 1
    if got != want:
        failures.append(what)
        print("not ok: %s: got %r, expected %r" % (what, got, want))


def read(path):
    """What image_dump says: a dict of lists of words, planes by (t, z, c), or the error text."""
    p = subprocess.run([DUMP, "read", path], capture_output=True, text=True)
    if p.returncode != 0:
        return {"error": p.stderr.strip()}
    out = {"planes": {}, "channels": []}
    for line in p.stdout.splitlines():
        key, _, rest = line.partition(" ")
        if key == "plane":
            t, z, c, total, weighted = rest.split(" ")
            out["planes"][int(t), int(z), int(c)] = (float(total), float(weighted))
        elif key == "channel":
            out["channels"].append(rest.partition(" ")[2])
        else:
            out[key] = rest
    return out


def sums(plane):
    """The two sums of image_dump, of the values as float32."""
    v = plane.astype(np.float32).astype(np.float64).ravel()
    return float(v.sum()), float((v * (np.arange(v.size) % 251 + 1)).sum())


def close(a, b):
    return all(abs(x - y) <= 1e-9 * max(1.0, abs(x), abs(y)) for x, y in zip(a, b))


def check_image(what, path, tzcyx, stated=True):
    """The file holds exactly this [t, z, c, y, x] array. Returns what image_dump says."""
    got = read(path)
    check(what, got.get("error"), None)
    check(what + ": shape", got.get("shape"), " ".join(map(str, tzcyx.shape)))
    if got.get("shape") != " ".join(map(str, tzcyx.shape)):
        return {"size": "0 0 0 0", "unit_x": "", "unit_z": "", "unit_t": "", "channels": [], **got}
    check(what + ": axes stated", got["axes_stated"], str(int(stated)))
    check(what + ": number of planes", len(got["planes"]), int(np.prod(tzcyx.shape[:3])))
    wrong = [k for k, v in got["planes"].items() if not close(v, sums(tzcyx[k]))]
    check(what + ": planes that differ", wrong, [])
    return got


def ramp(shape, dtype, seed=1):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (rng.standard_normal(shape) * 100).astype(dtype)
    i = np.iinfo(dtype)
    return rng.integers(i.min, i.max, shape, dtype=dtype, endpoint=True)


def expected_pixels(t, z, c, h, w, dtype):
    """The formula of image_dump's fill, rounded half away from zero and clamped."""
    p = np.arange(t * z * c, dtype=np.int64)[:, None]
    k = np.arange(h * w, dtype=np.int64)[None, :]
    v = (p * 7919 + k * 31) % 70000 - 1000.0 + 0.5 * (k % 2)
    if dtype != "float32":
        v = np.clip(np.floor(np.abs(v) + 0.5) * np.sign(v), 0, np.iinfo(dtype).max)
    return v.astype(dtype).reshape(t, z, c, h, w)


def check_written(folder):
    shapes = [(1, 1, 1, 1, 1), (1, 1, 2, 37, 41), (3, 1, 2, 20, 30), (2, 3, 2, 33, 17),
              (1, 4, 1, 9, 300), (1, 1, 1, 700, 999)]
    for kind, dtype, shape in itertools.product(("ome", "big"), ("float32", "uint16", "uint8"),
                                                shapes):
        what = "written %s %s %s" % (kind, dtype, shape)
        path = os.path.join(folder, "w.ome.tif")
        subprocess.run([DUMP, "write", path, kind, dtype] + [str(n) for n in shape], check=True)
        want = expected_pixels(*shape, dtype)
        with tifffile.TiffFile(path) as f:
            check(what + ": OME, BigTIFF", (f.is_ome, f.is_bigtiff), (True, kind == "big"))
            s = f.series[0]
            a = s.asarray().reshape(want.shape)
            check(what + ": type", a.dtype, want.dtype)
            check(what + ": values", bool((a == want).all()), True)
            kept = "".join(x for x, n in zip("TZCYX", shape) if n > 1 or x in "YX")
            check(what + ": axes", s.axes, kept)
            xml = tifffile.xml2dict(f.ome_metadata)["OME"]
            check_xml(what, xml, shape)
            x = f.pages[0].tags["XResolution"].value
            unit = int(f.pages[0].tags["ResolutionUnit"].value)
            check(what + ": XResolution", (round(x[0] / x[1], 6), unit), (round(1e4 / 0.065, 6), 3))
            check(what + ": Software", f.pages[0].software, "usplit test")
            check(what + ": strips", max(f.pages[0].databytecounts) <= 256 << 10, True)
            check(what + ": strip sizes", {sum(p.databytecounts) for p in f.pages},
                  {want[0, 0, 0].nbytes})
        got = check_image(what + ", read back", path, want)
        check(what + ": name", got["name"], "a <b> & \"c\" \u00b5")
        check(what + ": sizes", got["size"].split()[3], "2.5")
        check(what + ": units", (got["unit_x"], got["unit_t"]), ("\u00b5m", "s"))


def check_xml(what, xml, shape):
    pixels = xml["Image"]["Pixels"]
    sizes = [float(pixels[k]) for k in ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ",
                                        "TimeIncrement")]
    check(what + ": physical sizes", sizes, [0.065, 0.07, 0.3, 2.5])
    check(what + ": unit", pixels["PhysicalSizeXUnit"], "\u00b5m")
    check(what + ": image name", xml["Image"]["Name"], "a <b> & \"c\" \u00b5")
    channels = pixels["Channel"]
    channels = channels if isinstance(channels, (list, tuple)) else [channels]
    check(what + ": channels", [c["Name"] for c in channels],
          ["ch\u00e4n<%d>" % i for i in range(shape[2])])
    comment = xml["StructuredAnnotations"]["CommentAnnotation"]["Value"]
    comment = comment if isinstance(comment, dict) else json.loads(comment)
    check(what + ": annotation", comment, {"seed": 1, "q": "<&>"})


def check_npy(folder):
    path = os.path.join(folder, "a.npy")
    for dtype, shape in itertools.product(("float32", "uint16", "uint8"),
                                          ((1, 1, 2, 5, 7), (3, 1, 2, 5, 7), (2, 3, 1, 5, 7))):
        subprocess.run([DUMP, "write", path, "npy", dtype] + [str(n) for n in shape], check=True)
        kept = shape if shape[1] > 1 else (shape[:1] + shape[2:] if shape[0] > 1 else shape[2:])
        a = np.load(path)
        check("NPY %s %s: shape" % (dtype, shape), a.shape, kept)
        check("NPY %s %s: values" % (dtype, shape),
              bool((a.reshape(shape) == expected_pixels(*shape, dtype)).all()), True)
    for dtype in ("u1", "i1", "<u2", ">u2", "<i2", ">i2", "<u4", ">i4", "<f4", ">f4", "<f8", ">f8"):
        a = ramp((2, 3, 4, 5, 6), np.dtype(dtype).newbyteorder("=")).astype(dtype)
        np.save(path, a)
        check_image("NPY read " + dtype, path, a)
    for version in ((1, 0), (2, 0), (3, 0)):
        a = ramp((5, 6), "uint16")
        with open(path, "wb") as f:
            np.lib.format.write_array(f, a, version=version)
        check_image("NPY version %d" % version[0], path, a[None, None, None], stated=False)


def check_ome(folder):
    path = os.path.join(folder, "o.ome.tif")
    for order in itertools.permutations("TZC"):
        axes = "".join(order) + "YX"
        size = {"T": 2, "Z": 3, "C": 4, "Y": 11, "X": 13}
        a = ramp([size[x] for x in axes], "uint16")
        tifffile.imwrite(path, a, photometric="minisblack",
                         metadata={"axes": axes, "PhysicalSizeX": 0.1, "PhysicalSizeXUnit": "nm",
                                   "Channel": {"Name": ["a", "b", "c", "d"]}, "TimeIncrement": 0.5})
        got = check_image("OME " + axes, path, a.transpose([axes.index(x) for x in "TZCYX"]))
        check("OME %s: channels" % axes, got["channels"], ["a", "b", "c", "d"])
        check("OME %s: size" % axes, (got["size"].split()[0][:3], got["unit_x"]), ("0.1", "nm"))
    a = ramp((2, 5, 8, 9), "float32")  # several series: the first is the image
    with tifffile.TiffWriter(path, bigtiff=True) as w:
        w.write(a, photometric="minisblack", metadata={"axes": "ZCYX"})
        w.write(ramp((3, 20, 20), "uint8"), photometric="minisblack", metadata={"axes": "TYX"})
    check_image("OME, two series", path, a[None])
    a = ramp((4, 3, 64, 64), "uint16")  # sub-resolutions are not planes
    with tifffile.TiffWriter(path) as w:
        w.write(a, photometric="minisblack", subifds=1, tile=(16, 16), metadata={"axes": "TCYX"})
        w.write(a[..., ::2, ::2], photometric="minisblack", subfiletype=1, tile=(16, 16))
    check_image("OME pyramid", path, a[:, None])
    a = ramp((4, 3, 6, 7), "uint16")
    tifffile.imwrite(path, a, photometric="minisblack", planarconfig="separate",
                     metadata={"axes": "TCYX"})
    check_image("OME, samples as channels", path, a[:, None])


def check_imagej(folder):
    path = os.path.join(folder, "i.tif")
    for dtype in ("uint8", "uint16", "float32"):
        a = ramp((2, 3, 4, 11, 13), dtype)
        tifffile.imwrite(path, a, imagej=True, resolution=(1 / 0.2, 1 / 0.25),
                         metadata={"axes": "TZCYX", "unit": "um", "spacing": 0.5, "finterval": 3.0})
        got = check_image("ImageJ " + dtype, path, a)
        check("ImageJ sizes", [round(float(x), 6) for x in got["size"].split()],
              [0.2, 0.25, 0.5, 3.0])
        check("ImageJ units", (got["unit_x"], got["unit_z"], got["unit_t"]),
              ("\u00b5m", "\u00b5m", "s"))
    a = ramp((6, 11, 13), "uint16")
    tifffile.imwrite(path, a, imagej=True, metadata={"axes": "ZYX", "unit": "\\u00B5m"})
    check_image("ImageJ, Z only", path, a[None, :, None])
    with tifffile.TiffWriter(path, imagej=True) as w:  # one directory for all planes
        w.write(a, truncate=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as f:
        check("ImageJ truncated: directories", len(f.pages), 1)
    check_image("ImageJ truncated", path, a[None, :, None])
    a = ramp((5, 11, 13), "uint16")
    tifffile.imwrite(path, a, truncate=True, photometric="minisblack")
    check_image("tifffile truncated", path, a[:, None, None], stated=False)


def check_plain(folder):
    path = os.path.join(folder, "p.tif")
    types = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
    layouts = ({}, {"rowsperstrip": 3}, {"tile": (16, 32)})
    for dtype, order, codec, layout, big in itertools.product(types, "<>", CODECS, layouts,
                                                              (False, True)):
        a = ramp((2, 35, 47), dtype)
        tifffile.imwrite(path, a, byteorder=order, compression=codec, bigtiff=big,
                         photometric="minisblack", metadata=None, **layout)
        what = "plain %s %s %s %s big %s" % (dtype, order, codec, layout, big)
        check_image(what, path, a[:, None, None], stated=False)
    for planar, layout, codec in itertools.product(("contig", "separate"), layouts,
                                                   CODECS):
        a = ramp((2, 3, 35, 47), "uint16")
        tifffile.imwrite(path, a if planar == "separate" else a.transpose(0, 2, 3, 1),
                         photometric="minisblack", planarconfig=planar, compression=codec,
                         metadata=None, **layout)
        check_image("samples %s %s %s" % (planar, layout, codec), path, a[:, None])
    a = ramp((3, 8, 9), "uint16")
    tifffile.imwrite(path, a, photometric="minisblack", metadata={"axes": "ZYX"})
    check_image("tifffile's axes ZYX", path, a[None, :, None])
    tifffile.imwrite(path, a, photometric="minisblack")
    check_image("tifffile's shape without axes", path, a[:, None, None], stated=False)
    tifffile.imwrite(path, a, photometric="minisblack", resolution=(1e4 / 0.1, 1e4 / 0.1),
                     resolutionunit="CENTIMETER", metadata=None)
    got = read(path)
    check("resolution per centimetre",
          ["%.6g" % float(x) for x in got["size"].split()[:2]] + [got["unit_x"]],
          ["0.1", "0.1", "\u00b5m"])


def check_refused(folder):
    path = os.path.join(folder, "r.tif")
    cases = [
        ("RGB", ramp((8, 9, 3), "uint8"), {"photometric": "rgb"}, "RGB image"),
        ("inverted", ramp((8, 9), "uint8"), {"photometric": "miniswhite"}, "MINISWHITE"),
        ("half float", ramp((8, 9), "float16"), {}, "16-bit float"),
        ("64-bit", ramp((8, 9), "int64"), {}, "64-bit signed"),
        ("complex", ramp((8, 9), "float32").astype("complex64"), {}, "complex"),
        ("1-bit", np.ones((8, 9), bool), {"photometric": "minisblack"}, "1-bit"),
        ("alpha", ramp((8, 9, 2), "uint8"),
         {"photometric": "minisblack", "extrasamples": ["unassalpha"]}, "alpha"),
    ]
    for name, a, how, words in cases:
        tifffile.imwrite(path, a, metadata=None, **how)
        got = read(path)
        check("refused: " + name, words in got.get("error", "no error"), True)
    with tifffile.TiffWriter(path) as w:
        w.write(ramp((8, 9), "uint8"), photometric="minisblack", metadata=None)
        w.write(ramp((8, 10), "uint8"), photometric="minisblack", metadata=None)
    check("refused: sizes differ, page named", "page 2 of 2" in read(path).get("error", ""), True)


def check_real():
    files = sorted(glob.glob(os.path.join("..", "shared", "data", "*", "*.tif")))
    for path in files:
        a = tifffile.imread(path)
        if a.ndim != 3:
            continue
        got = check_image(path, path, a[None, None], stated=True)
        with tifffile.TiffFile(path) as f:
            names = (f.shaped_metadata or ({},))[0].get("channels", [])
        check(path + ": channels", got["channels"], list(names))
    print("%d real images%s" % (len(files), "" if files else " (no data folder here)"))


with tempfile.TemporaryDirectory() as tmp:
    for part in (check_written, check_npy, check_ome, check_imagej, check_plain, check_refused):
        part(tmp)
    check_real()
print("%d checks with tifffile %s, %d failures" % (checks, tifffile.__version__, len(failures)))
sys.exit(1 if failures else 0)
