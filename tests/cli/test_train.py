"""`usplit train` and `usplit evaluate` as a user meets them: data in, a model out, interrupted and
resumed, and what is said of bad data.

usage: test_train.py USPLIT [unittest arguments]. Networks have 4 filters: the way through is tested
here, the arithmetic elsewhere.
"""
import array
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import unittest

USPLIT = ""
TINY = {"name": "tiny", "patch_size": 64,
        "architecture": {"variant": "lean", "n_filters": 4, "z_dims": [4, 4, 4, 4]},
        "data": {"padding": "zero"},
        "training": {"batch": 2, "max_epochs": 3, "precision": "f32", "threads": 2}}


class Train(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.tmp = tempfile.TemporaryDirectory(prefix="usplit-train-")
        cls.run_ok("dataset", "critters", "--size", "96", "--frames", "12", "--quiet", "c.tif")
        cls.config("t.json")

    @classmethod
    def tearDownClass(cls):
        cls.tmp.cleanup()

    @classmethod
    def call(cls, *args):
        done = subprocess.run([USPLIT, *map(str, args)], capture_output=True, timeout=120,
                              cwd=cls.tmp.name)
        return done.returncode, done.stdout.decode(), done.stderr.decode(errors="replace")

    @classmethod
    def run_ok(cls, *args):
        status, out, err = cls.call(*args)
        assert status == 0, (args, status, err)
        return out, err

    @classmethod
    def config(cls, name, **training):
        text = dict(TINY, training=dict(TINY["training"], **training))
        with open(os.path.join(cls.tmp.name, name), "w") as f:
            json.dump(text, f)

    def path(self, name):
        return os.path.join(self.tmp.name, name)

    def digest(self, name):
        with open(self.path(name), "rb") as f:
            return hashlib.sha256(f.read()).hexdigest()

    def refused(self, status, words, *args):
        got, out, err = self.call(*args)
        self.assertEqual((got, out), (status, ""), err)
        self.assertIn(words, err)
        self.assertEqual(err.count("\n"), 1, err)

    def write(self, name, text):
        with open(self.path(name), "w") as f:
            f.write(text)

    def train(self, out, *more):
        return self.run_ok("train", "--config", "t.json", "--data", "c.tif", "--out", out, *more)

    def history(self, name):
        with open(self.path(name)) as f:
            return [json.loads(line) for line in f]

    def test_run_leaves_model_history_checkpoints_and_pictures(self):
        out, err = self.train("a.safetensors", "--json")
        result = json.loads(out)
        self.assertEqual(len(result["provenance"]["data_sha256"]), 64)
        self.assertEqual(result["sha256"], self.digest("a.safetensors"))
        self.assertEqual([c["name"] for c in result["channels"]], ["critters 1", "critters 2"])
        self.assertGreater(result["input_std"], 0)
        epochs = [e for e in self.history("a.history.jsonl") if e["event"] == "epoch"]
        self.assertEqual([e["epoch"] for e in epochs], [0, 1, 2])
        self.assertEqual(len(epochs[0]["kl_level"]), 4)
        self.assertIn("epoch 2: step 15", err)
        self.assertNotIn("\033", err)
        for name in ("a.curves.png", "a.example.png"):
            with open(self.path(name), "rb") as f:
                self.assertEqual(f.read(8), b"\x89PNG\r\n\x1a\n")
        self.assertTrue(os.path.exists(self.path("a.ckpt/last.usplit-ckpt")))
        shown = self.run_ok("model", "show", "a.safetensors")[0]
        self.assertIn("critters 2", shown)

    def test_same_seed_gives_the_same_bytes_and_another_seed_others(self):
        self.train("s1.safetensors", "--quiet")
        self.train("s2.safetensors", "--quiet")
        self.train("s3.safetensors", "--quiet", "--seed", 5)
        self.assertEqual(self.digest("s1.safetensors"), self.digest("s2.safetensors"))
        self.assertNotEqual(self.digest("s1.safetensors"), self.digest("s3.safetensors"))

    def interrupted(self, out, signum):
        """Runs until the history has a line, then sends the signal; (exit status, stderr)."""
        p = subprocess.Popen([USPLIT, "train", "--config", "long.json", "--data", "c.tif", "--out",
                              out + ".safetensors"], cwd=self.tmp.name, stderr=subprocess.PIPE)
        end = time.monotonic() + 60
        history = self.path(out + ".history.jsonl")
        while not (os.path.exists(history) and os.path.getsize(history) > 0):
            self.assertLess(time.monotonic(), end)
            time.sleep(0.005)
        p.send_signal(signum)
        err = p.communicate(timeout=60)[1].decode()
        return p.returncode, err

    def test_interrupted_run_prints_the_line_that_continues_it_to_the_same_bytes(self):
        self.config("long.json", max_epochs=12)
        self.run_ok("train", "--config", "long.json", "--data", "c.tif", "--out", "w.safetensors")
        status, err = self.interrupted("i", signal.SIGINT)
        self.assertEqual(status, 130, err)
        line = shlex.split(err.strip().split("\n")[-1])
        self.assertEqual(line[:2], ["usplit", "train"])
        self.assertFalse(os.path.exists(self.path("i.safetensors")))
        self.run_ok(*line[1:])
        self.assertEqual(self.digest("w.safetensors"), self.digest("i.safetensors"))
        self.assertEqual(self.digest("w.history.jsonl"), self.digest("i.history.jsonl"))

    def test_killed_run_resumes_to_the_same_bytes(self):
        self.config("long.json", max_epochs=12)
        self.run_ok("train", "--config", "long.json", "--data", "c.tif", "--out", "w2.safetensors")
        self.interrupted("k", signal.SIGKILL)
        end = ["--out", "k.safetensors"]
        if os.path.exists(self.path("k.ckpt/last.usplit-ckpt")):
            end += ["--resume", "k.ckpt/last.usplit-ckpt"]
        self.run_ok("train", "--config", "long.json", "--data", "c.tif", *end)
        self.assertEqual(self.digest("w2.safetensors"), self.digest("k.safetensors"))

    def test_older_run_is_not_overwritten_unasked(self):
        self.train("o.safetensors", "--quiet", "--max-steps", 1)
        self.refused(1, "--overwrite", "train", "--config", "t.json", "--data", "c.tif", "--out",
                     "o.safetensors")
        self.train("o.safetensors", "--quiet", "--max-steps", 1, "--overwrite")

    def test_checkpoint_of_other_settings_or_damaged_is_refused(self):
        self.train("d.safetensors", "--quiet", "--max-steps", 6)
        last = "d.ckpt/last.usplit-ckpt"
        args = ["--data", "c.tif", "--out", "d2.safetensors", "--resume", last]
        self.refused(1, "seed", "train", "--config", "t.json", "--quiet", "--seed", 3, *args)
        with open(self.path(last), "r+b") as f:
            f.seek(5000)
            byte = f.read(1)[0]
            f.seek(5000)
            f.write(bytes([byte ^ 1]))
        self.refused(1, "checksum does not match its content; the one before it is d.ckpt/previous",
                     "train", "--config", "t.json", "--quiet", *args)

    def test_more_steps_continue_a_run_that_had_ended_to_the_same_bytes(self):
        self.train("m7.safetensors", "--quiet", "--max-steps", 7)
        self.train("m3.safetensors", "--quiet", "--max-steps", 3)
        self.train("m3.safetensors", "--quiet", "--max-steps", 7, "--resume",
                   "m3.ckpt/last.usplit-ckpt")
        for name in ("%s.safetensors", "%s.history.jsonl", "%s.ckpt/last.usplit-ckpt"):
            self.assertEqual(self.digest(name % "m7"), self.digest(name % "m3"), name)

    def test_resume_on_another_backend_is_refused_unless_asked_for(self):
        self.train("b.safetensors", "--quiet", "--max-steps", 1)
        args = ["--max-steps", 2, "--resume", "b.ckpt/last.usplit-ckpt", "--backend", "ref"]
        self.refused(1, "by backend cpu in f32; this run is by ref in f32", "train", "--config",
                     "t.json", "--data", "c.tif", "--out", "b.safetensors", "--quiet", *args)
        out, err = self.train("b.safetensors", "--resume-elsewhere", "--json", *args)
        self.assertIn("continued by ref", err)
        self.assertEqual(json.loads(out)["provenance"]["backend"], "ref")

    def test_killed_between_two_renames_is_not_begun_anew(self):
        self.train("n.safetensors", "--quiet", "--max-steps", 6)
        os.unlink(self.path("n.safetensors"))
        os.unlink(self.path("n.ckpt/last.usplit-ckpt"))
        self.refused(1, "holds a run already", "train", "--config", "t.json", "--data", "c.tif",
                     "--out", "n.safetensors")
        err = self.train("n.safetensors", "--max-steps", 6, "--resume",
                         "n.ckpt/last.usplit-ckpt")[1]
        self.assertIn("resuming from n.ckpt/previous.usplit-ckpt", err)

    def test_ref_trains_too(self):
        self.train("r.safetensors", "--quiet", "--max-steps", 2, "--backend", "ref")
        self.run_ok("model", "check", "r.safetensors")

    def test_evaluate_prints_figures_beside_what_is_to_be_beaten(self):
        self.train("e.safetensors", "--quiet", "--max-steps", 2)
        out = self.run_ok("evaluate", "--model", "e.safetensors", "--data", "c.tif", "--padding",
                          "16", "--split", "val", "--samples", "2", "--json", "--quiet")[0]
        result = json.loads(out)
        self.assertEqual([f["frame"] for f in result["frames"]], ["0"])
        mean = result["mean"]
        self.assertEqual([c["channel"] for c in mean["channels"]], ["critters 1", "critters 2"])
        self.assertAlmostEqual(mean["all"]["psnr_ri"],
                               sum(c["psnr_ri"] for c in mean["channels"]) / 2, places=6)
        self.assertGreater(mean["all"]["input_psnr_ri"], 10)
        table = self.run_ok("evaluate", "--model", "e.safetensors", "--data", "c.tif", "--split",
                            "all")[0].split("\n")
        self.assertEqual(len(table), 1 + 24 + 3 + 1)

    def frame(self, name, h=64, w=64, channels=2, pixel=lambda c, y, x: (7 * y + 3 * x * c) % 50):
        """An NPY frame [C, H, W] of float32."""
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d, %d), }" % (
            channels, h, w)
        header += " " * (117 - len(header)) + "\n"
        v = array.array("f", (pixel(c, y, x) for c in range(channels) for y in range(h)
                              for x in range(w)))
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "wb") as f:
            f.write(b"\x93NUMPY\x01\x00" + bytes([118, 0]) + header.encode() + v.tobytes())

    def test_bad_pixels_and_channels_are_refused_by_name(self):
        train = ["train", "--config", "t.json", "--quiet", "--out", "px.safetensors", "--data"]
        for i in range(10):
            self.frame("nan/%d.npy" % i)
            self.frame("flat/%d.npy" % i, pixel=lambda c, y, x: 5 if c else x)
        for split, frame in (("training", 9), ("validation", 0)):
            self.frame("nan/%d.npy" % frame,
                       pixel=lambda c, y, x: float("nan") if (c, y, x) == (1, 3, 9) else x + c)
            self.refused(1, "frame %d.npy channel 1: pixel (3, 9) is nan" % frame, *train, "nan")
            self.frame("nan/%d.npy" % frame)
        self.refused(1, "channel 1 (from 0): all pixels are 5", *train, "flat")
        self.frame("nan/7.npy", channels=3)
        self.refused(1, "7.npy: 3 channels; expected 2 as in 0.npy", *train, "nan")
        self.frame("nan/7.npy", h=32)
        self.refused(1, "frame 7.npy is 32 x 64; expected at least the patch size 64", *train,
                     "nan")

    def test_frames_of_several_sizes_train_and_a_single_one_is_said_to_lack_validation(self):
        self.frame("sizes/0.npy")
        self.frame("sizes/1.npy", h=70, w=96)
        err = self.run_ok("train", "--config", "t.json", "--out", "sz.safetensors", "--data",
                          "sizes", "--max-steps", 1)[1]
        self.assertIn("train 2 frames", err)
        self.assertIn("no validation frames", err)

    def test_bad_data_is_refused_in_one_line(self):
        train = ["train", "--config", "t.json", "--quiet", "--out", "bad.safetensors", "--data"]
        self.refused(1, "No such file", *train, "nowhere")
        os.makedirs(self.path("empty"), exist_ok=True)
        self.refused(1, "no images", *train, "empty")
        self.run_ok("dataset", "critters", "--size", "89", "--frames", "1", "--quiet", "one.tif")
        self.run_ok(*train, "one.tif", "--max-steps", "1")
        self.write("big.json", json.dumps(dict(TINY, patch_size=128)))
        self.refused(1, "at least the patch size 128", "train", "--config", "big.json", "--data",
                     "one.tif", "--out", "bad2.safetensors")
        self.write("c.tif.splits.json", '{"test": [0]}')
        try:
            self.refused(1, "no training frame", "train", "--config", "t.json", "--quiet", "--data",
                         "c.tif", "--out", "bad3.safetensors")
        finally:
            os.unlink(self.path("c.tif.splits.json"))

    def test_bad_settings_are_refused_naming_the_key(self):
        self.write("bad.json", '{"training": {"bach": 1}}')
        self.refused(1, "training.batch", "train", "--config", "bad.json", "--data", "c.tif")
        self.write("bad.json", '{"training": {"channel_weights": [1]}}')
        self.refused(1, "one for each of 2 channels", "train", "--config", "bad.json", "--data",
                     "c.tif")
        self.refused(1, "nofile.json", "train", "--config", "nofile.json", "--data", "c.tif")
        self.refused(2, "--data", "train", "--config", "t.json")

    def test_printed_config_is_complete_and_accepted(self):
        out = self.run_ok("train", "--print-config", "--config", "t.json")[0]
        settings = json.loads(out)
        self.assertEqual(settings["training"]["lr_patience"], 15)
        self.assertEqual(settings["architecture"]["lc_scales"], 5)
        self.write("full.json", out)
        self.assertEqual(self.run_ok("train", "--print-config", "--config", "full.json")[0], out)


if __name__ == "__main__":
    USPLIT = os.path.abspath(sys.argv.pop(1))
    unittest.main()
