"""`usplit` as a user meets it: files in, files out, exit status, one line of error.

usage: test_cli.py USPLIT [unittest arguments]. Standard library only. Networks here are small (8
filters, 4 latent channels): their arithmetic is tested elsewhere, here it is the way through.
"""
import array
import json
import math
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
import tiffpy  # noqa: E402

USPLIT = ""
DATA = os.path.join(HERE, "..", "..", "..", "shared", "data")
DEBIAN_PYTHON = "/usr/bin/python3"

Z_DIMS = {"vanilla": "4,4,4,4", "lean": "4,4,4,4", "regular": "4,4,4,4", "deep": "4,4,4,4,4,4,4,4"}
STATISTICS = ["--input-mean", "400", "--input-std", "200", "--target-mean", "500,250",
              "--target-std", "240,100"]


def usplit(*args, **more):
    """Runs usplit; (exit status, stdout, stderr) as text."""
    done = subprocess.run([USPLIT, *map(str, args)], capture_output=True, timeout=120, **more)
    return done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")


def texture(y, x):
    """Something like an image: blobs on a ramp, 16-bit, the same for every size."""
    return int(300 + 2 * x + y + 200 * math.sin(0.3 * x) * math.cos(0.2 * y) + (y * 7 + x * 13) % 11)


class Folder(unittest.TestCase):
    """A temporary folder for the class, models made once."""

    @classmethod
    def setUpClass(cls):
        cls.tmp = tempfile.TemporaryDirectory(prefix="usplit-cli-")
        cls.models = {}

    @classmethod
    def tearDownClass(cls):
        cls.tmp.cleanup()

    def path(self, name):
        return os.path.join(self.tmp.name, name)

    def write(self, name, raw):
        with open(self.path(name), "wb") as out:
            out.write(raw)
        return self.path(name)

    def read(self, name):
        with open(self.path(name), "rb") as src:
            return src.read()

    def ok(self, *args):
        status, out, err = usplit(*args)
        self.assertEqual(status, 0, err)
        return out

    def refused(self, status, words, *args):
        """The command fails with this status and one line that holds these words."""
        got, out, err = usplit(*args)
        self.assertEqual((got, out), (status, ""), err)
        self.assertEqual(err.count("\n"), 1, err)
        self.assertTrue(err.startswith("usplit"), err)
        for word in [words] if isinstance(words, str) else words:
            self.assertIn(word, err)
        return err

    def model(self, variant="vanilla", hae=False, extra=()):
        key = (variant, hae, tuple(extra))
        if key not in self.models:
            path = self.path("model%d.safetensors" % len(self.models))
            self.ok("model", "init", "--variant", variant, "--filters", 8, "--z-dims",
                    Z_DIMS[variant], *(["--hae"] if hae else []),
                    *([] if "--target-mean" in extra else STATISTICS), "--channels",
                    "actin,tubulin", "--name", "test-" + variant, *extra, path)
            self.models[key] = path
        return self.models[key]

    def image(self, name, width, height, typecode="H", frames=1, value=texture, **opts):
        planes = [tiffpy.plane(width, height, typecode, lambda y, x, t=t: value(y + 5 * t, x))
                  for t in range(frames)]
        return self.write(name, tiffpy.make_tiff(planes, width, height, **opts))

    def predict(self, source, name, *args, model=None):
        """Runs predict and returns (pages, pixels, names, root) of the OME-TIFF."""
        self.ok("predict", "--model", model or self.model(), "--quiet", *args, source,
                self.path(name))
        return tiffpy.read_ome(self.read(name))

    def pixels(self, source, name, *args, model=None):
        return [p.data for p in self.predict(source, name, *args, model=model)[0]]


class Predict(Folder):
    def assert_predicted_everywhere(self, page):
        """No row and no column is constant, no pixel is missing: nothing was left out."""
        self.assertTrue(all(map(math.isfinite, page.data)))
        for y in range(page.height):
            self.assertGreater(len(set(page.row(y))), 1, "row %d" % y)
        for x in range(page.width):
            self.assertGreater(len(set(page.column(x))), 1, "column %d" % x)

    def test_every_variant_splits_an_image(self):
        source = self.image("v.tif", 70, 65)
        for variant in Z_DIMS:
            for hae in (False, True):
                with self.subTest(variant=variant, hae=hae):
                    model = self.model(variant, hae)
                    pages, pixels, names, _ = self.predict(source, "v.ome.tif", "--padding", 16,
                                                           model=model)
                    self.assertEqual(names, ["actin", "tubulin"])
                    self.assertEqual((pixels["SizeX"], pixels["SizeY"], pixels["SizeC"]),
                                     ("70", "65", "2"))
                    self.assertNotEqual(pages[0].data, pages[1].data)
                    for page in pages:
                        self.assert_predicted_everywhere(page)
                    other = self.pixels(source, "v2.ome.tif", "--padding", 16, "--seed", 1,
                                        model=model)
                    self.assertEqual(other == [p.data for p in pages], hae,
                                     "the seed matters to an HVAE and not to an HAE")

    def test_bytes_depend_on_neither_batch_nor_threads(self):
        source = self.image("b.tif", 150, 90)
        for precision, all_threads in (("f32", (1, 2)), ("auto", (2,))):
            seen = {}
            for batch in (1, 7, 32):
                for threads in all_threads:
                    self.predict(source, "b.ome.tif", "--batch", batch, "--threads", threads,
                                 "--samples", 2, "--planes", "mean,std", "--precision", precision,
                                 "--padding", 20, model=self.model("lean"))
                    seen.setdefault(self.read("b.ome.tif"), []).append((batch, threads))
            self.assertEqual(len(seen), 1, list(seen.values()))

    def test_image_of_1001_by_777_is_predicted_to_its_last_pixel(self):
        source = self.image("odd.tif", 1001, 777)
        pages, _, _, _ = self.predict(source, "odd.ome.tif", "--latent", "mean", "--padding", 16)
        for page in pages:
            self.assertEqual((page.width, page.height), (1001, 777))
            self.assert_predicted_everywhere(page)

    def test_image_smaller_than_a_patch_is_predicted(self):
        for width, height in ((41, 37), (1, 1), (1, 70), (64, 64), (2, 3)):
            with self.subTest(width=width, height=height):
                source = self.image("small.tif", width, height)
                pages, _, _, _ = self.predict(source, "small.ome.tif", model=self.model("regular"))
                self.assertEqual((pages[0].width, pages[0].height), (width, height))
                self.assertTrue(all(map(math.isfinite, pages[0].data)))
                if min(width, height) > 3:
                    self.assert_predicted_everywhere(pages[1])

    def test_stack_gives_each_frame_what_it_gives_alone(self):
        stack = self.image("s.tif", 50, 45, frames=3)
        pages, pixels, _, _ = self.predict(stack, "s.ome.tif", "--latent", "mean")
        self.assertEqual((pixels["SizeT"], pixels["SizeC"], len(pages)), ("3", "2", 6))
        for t in range(3):
            alone = self.image("s1.tif", 50, 45, value=lambda y, x, t=t: texture(y + 5 * t, x))
            single = self.pixels(alone, "s1.ome.tif", "--latent", "mean")
            self.assertEqual(single, [p.data for p in pages[2 * t:2 * t + 2]], "frame %d" % t)
        _, pixels, _, _ = self.predict(stack, "s.ome.tif", "--pages", "z")
        self.assertEqual((pixels["SizeT"], pixels["SizeZ"]), ("1", "3"))

    def test_pixel_types_of_equal_values_give_equal_results(self):
        def small(y, x):
            return texture(y, x) % 256
        expected = self.pixels(self.image("t.tif", 40, 40, "B", value=small), "t.ome.tif")
        for typecode in "HhIifd":
            source = self.image("t.tif", 40, 40, typecode, value=small)
            self.assertEqual(self.pixels(source, "t.ome.tif"), expected, typecode)
        source = self.image("t.tif", 40, 40, "H", value=small, big=True)
        self.assertEqual(self.pixels(source, "t.ome.tif"), expected, "BigTIFF")

    def test_npy_goes_in_and_comes_out(self):
        source = self.image("n.tif", 30, 20)
        expected = self.pixels(source, "n.ome.tif")
        values = tiffpy.plane(30, 20, "H", texture)
        npy = self.write("n.npy", tiffpy.make_npy(values, (20, 30)))
        self.ok("predict", "--model", self.model(), npy, self.path("out.npy"))
        values, shape = tiffpy.read_npy(self.read("out.npy"))
        self.assertEqual(shape, (2, 20, 30))
        self.assertEqual(values, expected[0] + expected[1])

    def test_deviation_planes_are_the_spread_of_the_samples(self):
        source = self.image("d.tif", 40, 40)
        pages, _, names, _ = self.predict(source, "d.ome.tif", "--samples", 4, "--planes",
                                          "mean,std")
        self.assertEqual(names, ["actin", "tubulin", "actin std", "tubulin std"])
        self.assertGreaterEqual(min(pages[2].data), 0)
        self.assertGreater(max(pages[2].data), 0)
        pages, _, names, _ = self.predict(source, "d.ome.tif", "--planes", "std")
        self.assertEqual(names, ["actin std", "tubulin std"])
        self.assertEqual(set(pages[0].data), {0.0})

    def test_uint16_output_is_the_float_output_rounded_and_clamped(self):
        model = self.model(extra=("--input-mean", "400", "--input-std", "200",
                                  "--target-mean", "0,65535", "--target-std", "9000,9000"))
        source = self.image("u.tif", 60, 50)
        exact = self.pixels(source, "u.ome.tif", model=model)
        whole = self.predict(source, "u.ome.tif", "--dtype", "uint16", model=model)
        self.assertEqual(whole[1]["Type"], "uint16")
        outside = 0
        for floats, page in zip(exact, whole[0]):
            expected = [min(max(math.floor(abs(v) + 0.5) * (1 if v >= 0 else -1), 0), 65535)
                        for v in floats]
            outside += sum(v <= -0.5 or v >= 65535.5 for v in floats)
            self.assertEqual(list(page.data), expected)
        self.assertGreater(outside, 0, "the test must reach the clamp")
        report = json.loads(self.ok("predict", "--model", model, "--dtype", "uint16", "--json",
                                    source, self.path("u.ome.tif")))
        self.assertEqual(report["saturated_values"], outside)

    def test_clipped_pixels_are_counted(self):
        model = self.model(extra=("--clip", "600,600"))
        source = self.image("c.tif", 60, 50)
        above = sum(v > 600 for v in tiffpy.plane(60, 50, "H", texture))
        report = json.loads(self.ok("predict", "--model", model, "--json", source,
                                    self.path("c.ome.tif")))
        self.assertGreater(above, 0)
        self.assertEqual(report["clipped_pixels"], above)
        clipped = self.image("c.tif", 60, 50, value=lambda y, x: min(texture(y, x), 600))
        self.assertEqual(self.pixels(source, "c1.ome.tif", model=model),
                         self.pixels(clipped, "c2.ome.tif", model=model))

    def test_report_tells_what_was_done(self):
        source = self.image("j.tif", 64, 48, frames=2)
        report = json.loads(self.ok("predict", "--model", self.model(), "--json", "--threads", 1,
                                    "--padding", 16, source, self.path("j.ome.tif")))
        self.assertEqual([report[k] for k in ("frames", "width", "height", "patches", "padding",
                                              "threads", "output")],
                         [2, 64, 48, 2 * 2 * 2, 16, 1, self.path("j.ome.tif")])
        self.assertGreater(report["seconds"]["compute"], 0)
        self.assertEqual([c["name"] for c in report["seams"]["channels"]], ["actin", "tubulin"])
        for channel in report["seams"]["channels"]:
            self.assertGreater(channel["excess"], -1)
        self.assertEqual(report["seams"]["z"],
                         max((c["z"] for c in report["seams"]["channels"]), key=abs))
        self.assertGreaterEqual(report["seconds"]["seams"], 0)
        whole = json.loads(self.ok("predict", "--model", self.model(), "--json", "--padding", 0,
                                   source, self.path("j.ome.tif")))
        self.assertEqual([whole["seams"]["z"], whole["seams"]["channels"][0]["excess"]],
                         [None, None], "no border of a tile crosses these frames")

    def test_summary_names_the_seams_of_each_channel(self):
        source = self.image("q.tif", 64, 48)
        status, _, err = usplit("predict", "--model", self.model(), source, self.path("q.ome.tif"))
        self.assertEqual(status, 0, err)
        self.assertRegex(err, r"seams: actin [+-]\d+\.\d % \(z -?\d+\.\d\), tubulin [+-]")

    def test_shifted_grids_predict_every_pixel_once_per_sample(self):
        source = self.image("g.tif", 61, 47)
        shifted = ["--grid", "shifted", "--planes", "mean,std"]
        one = self.pixels(source, "g.ome.tif", *shifted)
        self.assertEqual(one, self.pixels(source, "g1.ome.tif", "--planes", "mean,std"),
                         "one sample is one grid")
        report = json.loads(self.ok("predict", "--model", self.model(), "--json", *shifted,
                                    "--samples", 4, source, self.path("g.ome.tif")))
        # Lines of four grids of 16 at rows 0, 4, 8, 12 and columns 0, 12, 8, 4.
        self.assertEqual(report["patches"], 3 * 4 + 4 * 5 + 4 * 5 + 4 * 5)
        self.assertEqual(report["grid"], "shifted")
        pages, _, _, root = tiffpy.read_ome(self.read("g.ome.tif"))
        note = json.loads(next(e.text for e in root.iter() if e.tag.endswith("}Value")))
        self.assertEqual((note["grid"], note["samples"]), ("shifted", 4))
        for page in pages:
            self.assert_predicted_everywhere(page)
        seen = {self.read("g.ome.tif")}
        for batch, threads in ((1, 1), (5, 2), (32, 1)):
            self.predict(source, "g.ome.tif", *shifted, "--samples", 4, "--batch", batch,
                         "--threads", threads)
            seen.add(self.read("g.ome.tif"))
        self.assertEqual(len(seen), 1, "bytes depend on neither batch nor threads")
        self.refused(2, ["--grid", "fixed", "shifted", "'tilted'"], "predict", "--model",
                     self.model(), "--grid", "tilted", source, self.path("g.ome.tif"))

    def test_channel_or_mixture_of_a_multichannel_image_is_split(self):
        planes = [tiffpy.plane(33, 31, "H", lambda y, x, c=c: texture(y + 9 * c, x))
                  for c in range(2)]
        ome = tiffpy.ome_description(33, 31, "H", c=2, channels=["DAPI", "GFP"], size_um=0.108)
        source = self.write("m.ome.tif", tiffpy.make_tiff(planes, 33, 31, description=ome))
        self.refused(1, ["m.ome.tif", "2 channels", "channel=", "mix="], "predict", "--model",
                     self.model(), source, self.path("o.ome.tif"))
        alone = self.write("m1.tif", tiffpy.make_tiff(planes[1:], 33, 31))
        self.assertEqual(self.pixels(source, "o.ome.tif", "--channel", 1),
                         self.pixels(alone, "o1.ome.tif"))
        average = array.array("f", [(a + b) / 2 for a, b in zip(*planes)])
        mixed = self.write("m2.tif", tiffpy.make_tiff([average], 33, 31))
        self.assertEqual(self.pixels(source, "o.ome.tif", "--mix", "0,1"),
                         self.pixels(mixed, "o1.ome.tif"))

    def test_pixel_size_and_origin_stand_in_the_output(self):
        ome = tiffpy.ome_description(33, 31, "H", size_um=0.108)
        source = self.write("p.ome.tif", tiffpy.make_tiff(
            [tiffpy.plane(33, 31, "H", texture)], 33, 31, description=ome))
        _, pixels, _, root = self.predict(source, "po.ome.tif", "--seed", 77, "--samples", 2)
        self.assertAlmostEqual(float(pixels["PhysicalSizeX"]), 0.108)
        self.assertEqual(pixels.get("PhysicalSizeXUnit", "\u00b5m"), "\u00b5m")
        report = json.loads(self.ok("model", "show", "--json", self.model()))
        note = json.loads(next(e.text for e in root.iter() if e.tag.endswith("}Value")))
        self.assertEqual(note["model"], "test-vanilla@" + report["sha256"])
        self.assertEqual([note[k] for k in ("seed", "samples", "tiling", "latent", "noise",
                                            "dtype", "padding", "planes", "input")],
                         [77, 2, "inner", "sample", "patch", "float32", 24, ["mean"],
                          {"channel": 0}])
        self.assertEqual(note["applied"], {"clip": None, "input_mean": 400, "input_std": 200,
                                           "target_mean": [500, 250], "target_std": [240, 100]})
        self.assertTrue(note["software"].startswith("usplit "))

    def test_tifffile_reads_the_same_axes_names_and_pixels(self):
        script = ("import sys, json, tifffile, hashlib\n"
                  "t = tifffile.TiffFile(sys.argv[1]); s = t.series[0]\n"
                  "print(json.dumps([t.is_ome, s.axes, s.shape, str(s.dtype),"
                  " hashlib.sha256(s.asarray().tobytes()).hexdigest()]))\n")
        source = self.image("f.tif", 44, 33, frames=3)
        pages, _, _, _ = self.predict(source, "f.ome.tif")
        done = subprocess.run([DEBIAN_PYTHON, "-c", script, self.path("f.ome.tif")],
                              capture_output=True, check=False)
        if b"ModuleNotFoundError" in done.stderr or not os.path.exists(DEBIAN_PYTHON):
            self.skipTest("python3-tifffile is not installed")
        import hashlib
        raw = b"".join(p.data.tobytes() for p in pages)
        self.assertEqual(json.loads(done.stdout), [True, "TCYX", [3, 2, 33, 44], "float32",
                                                   hashlib.sha256(raw).hexdigest()])

    def test_reference_and_cpu_backend_agree(self):
        source = self.image("r.tif", 40, 30)
        args = ("--precision", "f32", "--padding", 16)
        ref = self.pixels(source, "r1.ome.tif", "--backend", "ref", *args,
                          model=self.model("lean"))
        cpu = self.pixels(source, "r2.ome.tif", "--backend", "cpu", *args,
                          model=self.model("lean"))
        for a, b in zip(ref, cpu):
            scale = max(map(abs, a))
            self.assertLess(max(abs(u - v) for u, v in zip(a, b)) / scale, 1e-4)

    def test_outer_tiling_covers_the_image(self):
        source = self.image("outer.tif", 130, 70)
        pages, _, _, _ = self.predict(source, "outer.ome.tif", "--tiling", "outer", "--padding",
                                      16, "--latent", "mean")
        for page in pages:
            self.assert_predicted_everywhere(page)

    def test_real_images_are_split(self):
        crops = [("bbbc013_u2os_fkhr_dna/A01.tif", "0,1"),
                 ("nf1_schwann_dna_er_actin/plate2_B7_f3.tif", "0,2")]
        if not os.path.isdir(DATA):
            self.skipTest("no ../shared/data")
        for name, mix in crops:
            with self.subTest(name=name), open(os.path.join(DATA, name), "rb") as src:
                pages = tiffpy.read_tiff(src.read())
                cut = [array.array(p.data.typecode,
                                   [v for y in range(96) for v in p.row(200 + y)[300:400]])
                       for p in pages]
                source = self.write("real.tif", tiffpy.make_tiff(cut, 100, 96))
                for variant in Z_DIMS:
                    out, _, _, _ = self.predict(source, "real.ome.tif", "--pages", "c", "--mix",
                                                mix, "--padding", 16, model=self.model(variant))
                    self.assertEqual(len(out), 2)
                    self.assert_predicted_everywhere(out[0])


class BadInput(Folder):
    """Each is refused with status 1 and one line naming the file; no output appears."""

    def refused_image(self, words, name, raw):
        source = self.write(name, raw)
        before = sorted(os.listdir(self.tmp.name))
        self.refused(1, [name] + ([words] if isinstance(words, str) else words), "predict",
                     "--model", self.model(), source, self.path("bad.ome.tif"))
        self.assertEqual(sorted(os.listdir(self.tmp.name)), before)

    def setUp(self):
        self.model()  # before the folder is listed

    def test_pixel_that_is_not_finite_is_refused_with_its_position(self):
        for bad in (math.nan, math.inf, -math.inf):
            planes = [tiffpy.plane(30, 20, "f", texture) for _ in range(2)]
            planes[1][7 * 30 + 11] = bad
            self.refused_image(["t=1", "7", "11"], "nan.tif", tiffpy.make_tiff(planes, 30, 20))

    def test_file_that_is_no_image_is_refused(self):
        self.refused_image("TIFF", "text.tif", b"hello, this is not an image\n" * 10)
        self.refused_image("", "empty.tif", b"")

    def test_truncated_file_is_refused(self):
        raw = tiffpy.make_tiff([tiffpy.plane(30, 20, "H", texture)], 30, 20)
        for size in (6, 100, len(raw) - 40, len(raw) - 1):
            self.refused_image("", "cut.tif", raw[:size])

    def test_colour_images_are_refused_by_name(self):
        rgb = array.array("B", bytes(30 * 20 * 3))
        self.refused_image("RGB", "rgb.tif",
                           tiffpy.make_tiff([rgb], 30, 20, samples=3, photometric=2))
        self.refused_image("palette", "pal.tif", tiffpy.make_tiff(
            [tiffpy.plane(30, 20, "B", lambda y, x: x)], 30, 20, photometric=3))

    def test_size_that_the_file_cannot_hold_is_refused(self):
        plane = tiffpy.plane(30, 20, "H", texture)
        for width, height in ((0, 20), (30, 0), (1 << 16, 1 << 15), (0xffffffff, 0xffffffff)):
            self.refused_image("", "claim.tif", tiffpy.make_tiff(
                [plane], 30, 20, claim_width=width, claim_height=height))

    def test_missing_files_are_named(self):
        good = self.image("good.tif", 20, 20)
        self.refused(1, "none.tif", "predict", "--model", self.model(), self.path("none.tif"),
                     self.path("x.tif"))
        self.refused(1, "none.safetensors", "predict", "--model", self.path("none.safetensors"),
                     good, self.path("x.tif"))
        self.refused(1, "nowhere/x.tif", "predict", "--model", self.model(), good,
                     self.path("nowhere/x.tif"))
        self.refused(1, "is the input itself", "predict", "--model", self.model(), good, good)

    def test_setting_that_does_not_fit_the_model_is_refused(self):
        good = self.image("good.tif", 20, 20)
        self.refused(1, "padding", "predict", "--model", self.model(), "--padding", 32, good,
                     self.path("x.tif"))
        # Whatever is missing here (the build, the driver, seven more GPUs), it is named.
        self.refused(1, "--backend cuda: ", "predict", "--model", self.model(), "--backend", "cuda:7", good,
                     self.path("x.tif"))

    def test_control_characters_of_a_name_do_not_reach_the_terminal(self):
        err = self.refused(1, "?[31m", "predict", "--model", self.model(),
                           self.path("evil\x1b[31m.tif"), self.path("x.tif"))
        self.assertNotIn("\x1b", err)


class Usage(Folder):
    COMMANDS = ["predict", "model show", "model check", "model init", "model import",
                "model export", "metrics", "dataset critters"]

    def test_wrong_usage_is_explained_with_status_2(self):
        cases = [
            ([], "usage:"),
            (["predct"], "did you mean 'predict'"),
            (["model", "shwo"], "did you mean 'model show'"),
            (["modle", "chek", "x"], "did you mean 'model check'"),
            (["frobnicate"], "unknown command"),
            (["frobnicate", "a", "b"], "unknown command 'frobnicate'"),
            (["predict", "a.tif", "b.tif"], "--model FILE is missing"),
            (["predict", "--model", "m", "a.tif"], "1 argument, expected IN.tif OUT.ome.tif"),
            (["predict", "--model", "m", "a.tif", "b.tif", "c.tif"], "surplus argument 'c.tif'"),
            (["predict", "--model", "m", "--paddin", "3", "a", "b.tif"], "did you mean --padding"),
            (["predict", "--model", "m", "--zzzz", "3", "a", "b.tif"], "unknown option --zzzz"),
            (["predict", "-m", "m", "a", "b.tif"], "options begin with two dashes"),
            (["predict", "--model"], "--model needs a value"),
            (["predict", "--model", "--json", "a", "b.tif"], "--model needs a value"),
            (["predict", "--model=", "a", "b.tif"], "--model: empty"),
            (["predict", "--model", "m", "--json=1", "a", "b.tif"], "takes no value"),
            (["predict", "--model", "m", "--padding", "x", "a", "b.tif"], "'x', expected an int"),
            (["predict", "--model", "m", "--padding=-1", "a", "b.tif"], "from 0 to"),
            (["predict", "--model", "m", "--padding", "1e3", "a", "b.tif"], "expected an integer"),
            (["predict", "--model", "m", "--padding", "99999999999999999999", "a", "b.tif"],
             "expected an integer"),
            (["predict", "--model", "m", "--samples", "0", "a", "b.tif"], "from 1 to 65535"),
            (["predict", "--model", "m", "--tiling", "both", "a", "b.tif"], "inner|outer"),
            (["predict", "--model", "m", "--planes", "mean,var", "a", "b.tif"], "'var', expected"),
            (["predict", "--model", "m", "--planes", "", "a", "b.tif"], "expected mean|std"),
            (["predict", "--model", "m", "--mix", "0,,1", "a", "b.tif"], "expected an integer"),
            (["predict", "--model", "m", "--seed", "1", "--seed", "2", "a", "b.tif"], "twice"),
            (["predict", "--model", "m", "--channel", "1", "--mix", "0,1", "a", "b.tif"],
             "exclude each other"),
            (["predict", "--model", "m", "a.tif", "b.png"], "expected a name in"),
            (["model", "init", "x"], "--variant vanilla|lean|regular|deep is missing"),
            (["model", "init", "--variant", "lean", "--input-std", "nan", "x"], "expected a number"),
            (["model", "init", "--variant", "lean", "--stats-channels", "0,1", "x"],
             "needs --stats-from"),
            (["model", "check"], "0 arguments, expected FILE"),
            (["metrics", "a.tif"], "expected TRUTH.tif IMAGE.tif"),
            (["dataset", "critters", "o.tif"], "--frames N is missing"),
            (["dataset", "critters", "--frames", "0", "o.tif"], "from 1 to"),
            (["dataset", "critters", "--frames", "1", "--size", "88", "o.tif"], "from 89 to"),
            (["dataset", "critters", "--frames", "1", "--mixed", "o.tif", "o.tif"], "other output"),
        ]
        for args, words in cases:
            with self.subTest(args=args):
                status, out, err = usplit(*args, cwd=self.tmp.name)
                self.assertEqual((status, out), (2, ""), err)
                self.assertIn(words, err)
                if args:
                    self.assertEqual(err.count("\n"), 1, err)
        self.assertEqual(os.listdir(self.tmp.name), [])

    def test_help_lists_every_command(self):
        status, out, _ = usplit("--help")
        self.assertEqual(status, 0)
        for command in self.COMMANDS:
            self.assertIn("  " + command, out)

    def test_group_without_a_word_lists_its_commands(self):
        for args, status in ((["model"], 2), (["model", "--help"], 0)):
            got, out, err = usplit(*args)
            self.assertEqual(got, status)
            self.assertIn("  model check", out + err)
            self.assertNotIn("  predict", out + err)

    def test_help_lists_every_option(self):
        options = {"predict": "model padding tiling grid latent samples seed noise planes dtype backend"
                              " precision threads batch channel mix pages json quiet help",
                   "model show": "json plan params", "metrics": "json",
                   "model init": "variant hae patch seed z-dims lc-scales filters blocks channels"
                                 " name input-mean input-std target-mean target-std clip"
                                 " stats-from",
                   "dataset critters": "size join frames seed mixed"}
        for command in self.COMMANDS:
            status, out, err = usplit(*command.split(), "--help")
            self.assertEqual((status, err), (0, ""))
            self.assertTrue(out.startswith("usage: usplit " + command))
            for option in options.get(command, "help").split():
                self.assertIn("  --" + option, out)
            self.assertLessEqual(max(map(len, out.splitlines())), 80)

    def test_version_is_printed(self):
        status, out, _ = usplit("--version")
        self.assertEqual(status, 0)
        self.assertRegex(out, r"^usplit \d+\.\d+\.\d+\n$")

    def test_output_that_cannot_be_written_is_a_failure(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([USPLIT, "--help"], stdout=full, stderr=subprocess.PIPE,
                                  check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"standard output", done.stderr)


class Model(Folder):
    def test_init_gives_what_show_reports(self):
        path = self.model("deep", extra=("--clip", "900,none", "--seed", "3"))
        shown = json.loads(self.ok("model", "show", "--json", "--params", "--plan", path))
        meta = shown["usplit"]
        self.assertEqual(shown["variant"], "Deep-LC")
        self.assertTrue(shown["complete"])
        self.assertEqual(meta["name"], "test-deep")
        self.assertEqual(meta["architecture"]["z_dims"], [4] * 8)
        self.assertEqual(meta["architecture"]["n_filters"], 8)
        self.assertEqual(meta["data"]["channels"], ["actin", "tubulin"])
        self.assertEqual(meta["data"]["clip"], [900.0, None])
        self.assertEqual(meta["data"]["target_std"], [240.0, 100.0])
        self.assertEqual(len(shown["params"]), shown["tensors"])
        self.assertGreater(len(shown["plan"]), 20)
        text = self.ok("model", "show", "--params", "--plan", path)
        self.assertIn("HVAE Deep-LC", text)
        self.assertIn(shown["sha256"], text)

    def test_seed_decides_the_parameters(self):
        same = [self.read(os.path.basename(self.model(extra=("--seed", s)))) for s in "12"]
        self.assertNotEqual(*same)
        again = self.path("again.safetensors")
        self.ok("model", "init", "--variant", "vanilla", "--filters", 8, "--z-dims", "4,4,4,4",
                *STATISTICS, "--channels", "actin,tubulin", "--name", "test-vanilla", "--seed", 1,
                again)
        self.assertEqual(self.read("again.safetensors"), same[0])

    def test_init_refuses_what_no_network_can_be(self):
        out = self.path("no.safetensors")
        lean = ["model", "init", "--variant", "lean"]
        self.refused(1, "", *lean, "--lc-scales", 9, out)
        self.refused(1, "--target-std: 1 values, expected one for each of 2", *lean,
                     "--target-std", "1", out)
        self.refused(1, "--input-std: 0", *lean, "--input-std", "0", out)
        self.refused(1, "--target-std: inf", *lean, "--target-std", "none,1", out)
        self.assertFalse(os.path.exists(out))

    def test_statistics_come_from_the_training_image(self):
        planes = [tiffpy.plane(40, 30, "H", lambda y, x, k=k: (texture(y, x) * (k + 2)) % 997)
                  for k in range(6)]
        source = self.write("train.tif", tiffpy.make_tiff(planes, 40, 30))
        path = self.path("stats.safetensors")
        self.ok("model", "init", "--variant", "vanilla", "--filters", 8, "--stats-from", source,
                path)
        data = json.loads(self.ok("model", "show", "--json", path))["usplit"]["data"]
        everything = sorted(v for p in planes for v in p)
        at = 0.995 * (len(everything) - 1)
        low = everything[int(at)]
        clip = low + (everything[int(at) + 1] - low) * (at - int(at))

        def moments(values):
            values = [min(v, clip) for v in values]
            mean = math.fsum(values) / len(values)
            return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
        self.assertAlmostEqual(data["clip"][0], clip, places=9)
        self.assertAlmostEqual(data["clip"][1], clip, places=9)
        mean, std = moments(everything)
        self.assertAlmostEqual(data["input_mean"], mean, places=6)
        self.assertAlmostEqual(data["input_std"], std, places=6)
        for c in range(2):  # pages are [frame][channel]
            mean, std = moments(v for p in planes[c::2] for v in p)
            self.assertAlmostEqual(data["target_mean"][c], mean, places=6)
            self.assertAlmostEqual(data["target_std"][c], std, places=6)

    def test_check_accepts_a_sound_file_and_names_what_is_wrong(self):
        raw = self.read(os.path.basename(self.model()))
        self.assertIn("complete", self.ok("model", "check", self.model()))
        (n,) = struct.unpack("<Q", raw[:8])
        header, body = raw[8:8 + n], raw[8 + n:]

        def rebuilt(text):
            return struct.pack("<Q", len(text)) + text + body
        cases = [
            ("empty", b""),
            ("no header", raw[:7]),
            ("header longer than the file", struct.pack("<Q", len(raw)) + raw[8:]),
            ("header of 2^63 bytes", struct.pack("<Q", 1 << 63) + raw[8:]),
            ("truncated weights", raw[:-4]),
            ("surplus bytes", raw + b"\0" * 64),
            ("not JSON", rebuilt(b"x" + header[1:])),
            ("an unknown type", rebuilt(header.replace(b'"F32"', b'"F99"', 1))),
            ("a name that no network has", rebuilt(header.replace(b"conv", b"vonc", 1))),
            ("a text", b"PK\x03\x04 this is a torch checkpoint, or not\n" * 9),
        ]
        for reason, bad in cases:
            with self.subTest(reason=reason):
                path = self.write("corrupt.safetensors", bad)
                self.refused(1, "corrupt.safetensors", "model", "check", path)
                self.refused(1, "corrupt.safetensors", "model", "show", path)

    def test_check_finds_a_weight_that_is_not_a_number(self):
        raw = bytearray(self.read(os.path.basename(self.model())))
        (n,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8:8 + n])
        name = next(k for k in header if k.endswith("conv.weight") or k.endswith(".weight"))
        start = 8 + n + header[name]["data_offsets"][0]
        struct.pack_into("<f", raw, start + 4, math.nan)
        path = self.write("nan.safetensors", bytes(raw))
        self.refused(1, ["nan.safetensors", name], "model", "check", path)


class Metrics(Folder):
    def test_numbers_equal_their_definition(self):
        truth = tiffpy.plane(20, 16, "f", texture)
        image = tiffpy.plane(20, 16, "f", lambda y, x: 0.5 * texture(y, x) + (y * x) % 7 - 3)
        a = self.write("a.tif", tiffpy.make_tiff([truth], 20, 16))
        b = self.write("b.tif", tiffpy.make_tiff([image], 20, 16))
        got = json.loads(self.ok("metrics", "--json", a, b))["mean"]["all"]
        n = len(truth)
        error = math.fsum((g - x) ** 2 for g, x in zip(truth, image)) / n
        span = max(truth) - min(truth)
        self.assertAlmostEqual(got["rmse"], math.sqrt(error), places=6)
        self.assertAlmostEqual(got["psnr"], 10 * math.log10(span ** 2 / error), places=6)
        mean_g, mean_x = math.fsum(truth) / n, math.fsum(image) / n
        s_g = math.sqrt(math.fsum((g - mean_g) ** 2 for g in truth) / (n - 1))
        g1 = [(g - mean_g) / s_g for g in truth]
        x1 = [x - mean_x for x in image]
        scale = math.fsum(g * x for g, x in zip(g1, x1)) / math.fsum(x * x for x in x1)
        error = math.fsum((g - scale * x) ** 2 for g, x in zip(g1, x1)) / n
        self.assertAlmostEqual(got["psnr_ri"], 20 * math.log10(span / s_g / math.sqrt(error)),
                               places=6)

    def test_frames_and_channels_are_reported_and_averaged(self):
        planes = [tiffpy.plane(12, 12, "H", lambda y, x, k=k: texture(y + k, x)) for k in range(4)]
        moved = [array.array("H", [v + 1 + k for v in p]) for k, p in enumerate(planes)]
        ome = tiffpy.ome_description(12, 12, "H", t=2, c=2, channels=["DAPI", "GFP"])
        a = self.write("a.ome.tif", tiffpy.make_tiff(planes, 12, 12, description=ome))
        b = self.write("b.tif", tiffpy.make_tiff(moved, 12, 12))
        got = json.loads(self.ok("metrics", "--json", a, b))
        self.assertEqual([c["channel"] for c in got["mean"]["channels"]], ["DAPI", "GFP"])
        rmse = [[c["rmse"] for c in f["channels"]] for f in got["frames"]]
        self.assertEqual(rmse, [[1, 2], [3, 4]])
        self.assertEqual([c["rmse"] for c in got["mean"]["channels"]], [2, 3])
        self.assertEqual(got["mean"]["all"]["rmse"], 2.5)
        self.assertIn("GFP", self.ok("metrics", a, b))

    def test_image_against_itself_has_no_error(self):
        a = self.image("a.tif", 12, 12)
        got = json.loads(self.ok("metrics", "--json", a, a))["mean"]["all"]
        self.assertEqual((got["rmse"], got["psnr"]), (0, None))
        self.assertAlmostEqual(got["ssim"], 1)

    def test_images_that_do_not_match_are_refused(self):
        a, b = self.image("a.tif", 12, 12), self.image("b.tif", 12, 13)
        self.refused(1, ["b.tif", "12 x 13", "12 x 12"], "metrics", a, b)
        c = self.image("c.tif", 12, 12, frames=2)
        self.refused(1, ["c.tif", "T 2"], "metrics", a, c)


class Dataset(Folder):
    def critters(self, name, *args):
        self.ok("dataset", "critters", "--size", 128, "--frames", 2, *args, self.path(name))
        return tiffpy.read_ome(self.read(name))

    def test_critters_are_two_channels_of_curves_and_their_average(self):
        pages, pixels, _, _ = self.critters("c.tif", "--mixed", self.path("mixed.tif"))
        self.assertEqual([pixels[k] for k in ("SizeT", "SizeC", "SizeX", "SizeY", "Type")],
                         ["2", "2", "128", "128", "float"])
        for page in pages:
            self.assertEqual(min(page.data), 0)
            self.assertGreater(sum(v > 0 for v in page.data), 2000)
        mixed, pixels, _, _ = tiffpy.read_ome(self.read("mixed.tif"))
        self.assertEqual((pixels["SizeT"], pixels["SizeC"]), ("2", "1"))
        for t in range(2):
            for a, b, m in zip(pages[2 * t].data, pages[2 * t + 1].data, mixed[t].data):
                self.assertAlmostEqual(m, (a + b) / 2, delta=1e-5)

    def test_seed_and_join_decide_the_frames(self):
        self.critters("a.tif", "--seed", 5)
        self.critters("b.tif", "--seed", 5)
        self.assertEqual(self.read("a.tif"), self.read("b.tif"))
        first = self.critters("a.tif", "--seed", 5)[0][0].data
        self.assertNotEqual(first, self.critters("c.tif", "--seed", 6)[0][0].data)
        self.assertNotEqual(first, self.critters("d.tif", "--seed", 5, "--join", 25)[0][0].data)


class Terminal(Folder):
    def start(self, *args, **more):
        return subprocess.Popen([USPLIT, *map(str, args)], **more)

    def test_interrupt_stops_and_leaves_nothing(self):
        source = self.image("big.tif", 1200, 1200, value=lambda y, x: (y * x) % 999)
        model = self.model("regular")
        before = sorted(os.listdir(self.tmp.name))
        run = self.start("predict", "--model", model, "--samples", 50, source,
                         self.path("never.ome.tif"), stderr=subprocess.PIPE)
        deadline = time.monotonic() + 30
        while sorted(os.listdir(self.tmp.name)) == before and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertNotEqual(sorted(os.listdir(self.tmp.name)), before, "it never began")
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
        self.assertEqual((run.returncode, err), (130, b"usplit predict: interrupted\n"))
        self.assertEqual(sorted(os.listdir(self.tmp.name)), before)

    def stderr_on_a_terminal(self, *args):
        terminal, child = pty.openpty()
        run = self.start(*args, stderr=child, stdout=subprocess.DEVNULL)
        os.close(child)
        seen = b""
        while True:
            ready, _, _ = select.select([terminal], [], [], 60)
            try:
                chunk = os.read(terminal, 4096) if ready else b""
            except OSError:
                chunk = b""
            if not chunk:
                break
            seen += chunk
        os.close(terminal)
        self.assertEqual(run.wait(60), 0, seen)
        return seen

    def test_bar_is_drawn_on_a_terminal_only_and_cleared(self):
        source = self.image("bar.tif", 400, 400, value=lambda y, x: (y * x) % 999)
        small = self.image("small.tif", 64, 64)
        args = ("predict", "--model", self.model("lean"), "--threads", 1, source,
                self.path("bar.ome.tif"))
        seen = self.stderr_on_a_terminal(*args)
        args = args[:5] + (small, args[6])
        self.assertIn(b"patches", seen)
        self.assertRegex(seen, rb"#+\.* +\d+% \d+/\d+ patches [\d.]+/s [\d:-]+ left")
        self.assertEqual(seen.rsplit(b"\x1b[K", 1)[1].count(b" left"), 0, "the bar is cleared")
        self.assertNotIn(b"\x1b", self.stderr_on_a_terminal(*args, "--quiet"))
        status, _, err = usplit(*args)
        self.assertEqual(status, 0)
        self.assertNotIn("\r", err)
        self.assertEqual(err.count("\n"), 1)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: test_cli.py USPLIT [unittest arguments]")
    USPLIT = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
