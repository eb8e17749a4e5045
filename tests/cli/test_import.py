"""Checkpoints there and back. Usage: test_import.py USPLIT

With PyTorch: the twin network (tests/bench/twin.py) is saved as .pt and as a Lightning checkpoint,
imported, predicts what PyTorch predicts, and what is exported loads back strictly with equal bytes.
Without it those tests skip; a checkpoint that PyTorch wrote is among the test data.
"""
import collections
import json
import os
import struct
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "bench"))
DATA = os.path.join(HERE, "..", "fuzz", "corpus", "torch")
STATS = ["--input-mean", "100", "--input-std", "10", "--target-mean", "1,2", "--target-std", "3,4"]
SIDE = 64

try:
    import numpy as np
    import torch
    import twin
    WHY_NOT = ""
except ImportError as e:
    torch, WHY_NOT = None, f"{e} (Debian: python3-torch, python3-numpy)"

needs_torch = unittest.skipIf(torch is None, WHY_NOT)


def usplit(*args):
    done = subprocess.run([USPLIT, *args], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


class Files(unittest.TestCase):
    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.addCleanup(self.tmp.cleanup)

    def path(self, name):
        return os.path.join(self.tmp.name, name)

    def ok(self, *args):
        status, out, err = usplit(*args)
        self.assertEqual(status, 0, (args, err))
        return out, err

    def refused(self, words, *args, status=1):
        got, _, err = usplit(*args)
        self.assertEqual(got, status, (args, err))
        self.assertIn(words, err)
        self.assertEqual(err.count("\n"), 1, err)

    def meta(self, path):
        with open(path, "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            return json.loads(json.loads(f.read(n))["__metadata__"]["usplit"])


class WithoutTorch(Files):
    CKPT = os.path.join(DATA, "lightning.ckpt")

    def test_a_lightning_checkpoint_brings_its_settings(self):
        out = self.path("m.safetensors")
        _, err = self.ok("model", "import", self.CKPT, out)
        self.assertIn("HAE, 2 levels, 3 input scales in the encoder only", err)
        self.assertIn("pytorch_lightning.utilities.parsing.AttributeDict", err)
        meta = self.meta(out)
        self.assertEqual(meta["architecture"]["z_dims"], [3, 2])
        self.assertEqual(meta["data"]["target_mean"], [1.5, 2.5, 3.5])
        self.assertEqual(meta["data"]["context"]["padding"], "zero")
        self.ok("model", "check", out)

    def test_flags_win_over_the_file(self):
        out = self.path("m.safetensors")
        _, err = self.ok("model", "import", "--target-mean", "7,8,9", "--channels", "a,b,c",
                         "--context-padding", "reflect", "--mixing", "sum", "--name", "n", "--quiet",
                         self.CKPT, out)
        self.assertEqual(err, "")
        meta = self.meta(out)
        self.assertEqual(meta["data"]["target_mean"], [7, 8, 9])
        self.assertEqual(meta["data"]["channels"], ["a", "b", "c"])
        self.assertEqual(meta["data"]["context"]["padding"], "reflect")
        self.assertEqual(meta["data"]["mixing"], "sum")
        self.assertEqual(meta["name"], "n")

    def test_statistics_are_needed_and_come_from_training_images(self):
        model, out = self.path("x.safetensors"), self.path("m.safetensors")
        self.ok("model", "init", "--variant", "lean", "--filters", "2", "--quiet", model)
        self.refused("--stats-from", "model", "import", model, out)
        stack = self.path("c.tif")
        self.ok("dataset", "critters", "--size", "128", "--join", "0", "--frames", "10",
                "--seed", "1", stack)
        self.ok("model", "import", "--quiet", "--stats-from", stack, model, out)
        data = self.meta(out)["data"]
        self.assertGreater(data["input_std"], 1)
        self.assertEqual(len(set(data["clip"])), 1)
        self.assertLess(data["target_mean"][0], data["clip"][0])
        self.refused("expected one for each", "model", "import", "--target-std", "1", *STATS[:6],
                     model, out)
        self.refused("needs --stats-from", "model", "import", "--stats-split", "head", model, out,
                     status=2)

    def test_hostile_and_old_files_are_refused_and_leave_nothing(self):
        out = self.path("m.safetensors")
        self.refused("posix.system", "model", "import", os.path.join(DATA, "evil.ckpt"), out)
        self.refused("before 1.6", "model", "import", os.path.join(DATA, "old.pt"), out)
        self.refused("not a PyTorch checkpoint", "model", "import", __file__, out)
        self.refused("No such file", "model", "import", self.path("no.pt"), out)
        self.assertEqual(os.listdir(self.tmp.name), [])

    def test_export_and_import_give_the_same_model(self):
        first, pt = self.path("m.safetensors"), self.path("m.pt")
        self.ok("model", "import", "--quiet", self.CKPT, first)
        for name in ("m.pt", "m.ckpt", "n.safetensors"):
            self.ok("model", "export", first, self.path(name))
            again = self.path("again.safetensors")
            self.ok("model", "import", "--quiet", "--hae", "--input-mean", "1", "--input-std", "1",
                    "--target-mean", "1,1,1", "--target-std", "1,1,1", self.path(name), again)
            self.assertEqual(self.tensors(first), self.tensors(again))
        self.refused(".pt", "model", "export", first, self.path("m.onnx"))
        self.refused("is the input itself", "model", "export", first, first)

    def test_the_context_of_careamics_must_be_said(self):
        """Its naming, made by renaming the head in a safetensors file."""
        model, theirs, out = (self.path(n) for n in ("m.safetensors", "c.safetensors", "o"))
        self.ok("model", "import", "--quiet", self.CKPT, model)
        with open(model, "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            header, body = json.loads(f.read(n)), f.read()
        del header["__metadata__"]
        header = {"model." + k.replace("likelihood.parameter_net", "output_layer"): v
                  for k, v in header.items()}
        text = json.dumps(header).encode()
        with open(theirs, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text + body)
        flags = ["--hae", "--input-mean", "0", "--input-std", "1", "--target-mean", "0,0,0",
                 "--target-std", "1,1,1"]
        self.refused("--context", "model", "import", *flags, theirs, out)
        self.refused("one resize", "model", "import", "--context", "single", *flags, theirs, out)
        _, err = self.ok("model", "import", "--context", "halving", *flags, theirs, out)
        self.assertIn("CAREamics", err)
        self.assertEqual(self.tensors(model), self.tensors(out))

    def tensors(self, path):
        with open(path, "rb") as f:
            n = struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(n))
            body = f.read()
        header.pop("__metadata__")
        return {k: (t["dtype"], t["shape"], body[slice(*t["data_offsets"])])
                for k, t in header.items()}


@needs_torch
class WithTorch(Files):
    def network(self, variant, **changes):
        a = dict(twin.architecture(variant), n_filters=8, **changes)
        a["z_dims"] = [4] * len(a["z_dims"])
        torch.manual_seed(1)
        net = twin.Lvae(a).train()
        with torch.no_grad():
            for _ in range(3):  # statistics of batch norm that are not the initial ones
                net(torch.randn(2, a["lc_scales"], SIDE, SIDE))
        return net.eval()

    def save(self, net, name):
        state, path = net.state_dict(), self.path(name)
        if name.endswith(".ckpt"):
            named = collections.OrderedDict(("module." + k, v) for k, v in state.items())
            optimizer = torch.optim.Adamax(net.parameters())
            torch.save({"epoch": 1, "state_dict": named, "callbacks": {"x": torch.device("cpu")},
                        "optimizer_states": [optimizer.state_dict()]}, path)
        else:
            torch.save(state, path)
        return path

    def test_import_export_and_strict_load_give_equal_bytes(self):
        for variant in twin.VARIANTS:
            net = self.network(variant)
            for name in ("a.pt", "a.ckpt"):
                with self.subTest(variant=variant, name=name):
                    model, back = self.path("m.safetensors"), self.path("back.pt")
                    self.ok("model", "import", *STATS, self.save(net, name), model)
                    self.ok("model", "export", model, back)
                    state = torch.load(back)
                    twin.Lvae(net.a).load_state_dict(state, strict=True)
                    want = net.state_dict()
                    self.assertEqual(list(state), list(want))
                    for k, v in want.items():
                        self.assertEqual((state[k].dtype, state[k].shape), (v.dtype, v.shape), k)
                        self.assertEqual(state[k].numpy().tobytes(), v.numpy().tobytes(), k)
        self.ok("model", "export", model, self.path("back.ckpt"))
        self.assertEqual(list(torch.load(self.path("back.ckpt"))), ["state_dict"])

    def test_views_and_other_types_are_imported(self):
        net = self.network("vanilla", target_channels=3)
        state = collections.OrderedDict(net.state_dict())
        key = "first_bottom_up.2.res.block.2.weight"
        state[key] = state[key].permute(1, 0, 3, 2).contiguous().permute(1, 0, 3, 2)
        self.assertFalse(state[key].is_contiguous())
        state["first_bottom_up.0.bias"] = state["first_bottom_up.0.bias"].double()
        half = "likelihood.parameter_net.bias"
        state[half] = state[half].bfloat16()
        torch.save(state, self.path("a.pt"))
        model = self.path("m.safetensors")
        stats = STATS[:4] + ["--target-mean", "1,2,3", "--target-std", "1,2,3"]
        self.ok("model", "import", *stats, self.path("a.pt"), model)
        got = twin.read_model(model)[1]
        for k, v in net.state_dict().items():
            want = v.bfloat16().float() if k == half else v
            self.assertEqual(got[k].tobytes(), want.numpy().tobytes(), k)

    def test_settings_that_our_networks_do_not_have_are_refused_by_name(self):
        state, out = self.network("vanilla").state_dict(), self.path("m.safetensors")
        cases = (({"nonlinearity": "ReLU"}, "activation ReLU"),
                 ({"model": {"merge_type": "linear"}}, "merge_type linear"),
                 ({"res_block_type": "cabdcabd"}, "res_block_type cabdcabd"),
                 ({"data": {"padding_mode": "wrap"}}, "padding_mode wrap"),
                 ({"predict_logvar": "sometimes"}, "predict_logvar sometimes"),
                 ({"image_size": 128}, "top-level prior is 4x4"))
        for settings, words in cases:
            with self.subTest(settings=settings):
                path = self.path("a.ckpt")
                torch.save({"state_dict": state, "hyper_parameters": settings}, path)
                self.refused(words, "model", "import", *STATS, path, out)
        torch.save({"state_dict": state, "hyper_parameters": {"nonlin": "elu", "dropout": 0.3}},
                   path)
        self.ok("model", "import", *STATS, path, out)
        self.assertAlmostEqual(self.meta(out)["architecture"]["dropout"], 0.3, 6)

    def test_predictions_are_those_of_pytorch(self):
        """One frame of the patch's size, no border: the patch is the frame, z is the mean."""
        for variant in ("vanilla", "lean", "regular"):
            with self.subTest(variant=variant):
                net = self.network(variant, stochastic=False)
                model = self.path("m.safetensors")
                self.ok("model", "import", "--hae", *STATS, self.save(net, "a.pt"), model)
                rng = np.random.default_rng(2)
                frame = rng.uniform(80, 130, (SIDE, SIDE)).astype("<f4")
                np.save(self.path("x.npy"), frame)
                self.ok("predict", "--model", model, "--padding", "0", "--latent", "mean",
                        "--precision", "f32", self.path("x.npy"), self.path("y.npy"))
                got = np.load(self.path("y.npy")).reshape(2, SIDE, SIDE)
                scales = net.a["lc_scales"]
                with torch.inference_mode():
                    x = torch.from_numpy(context(frame, scales))[None]
                    y = net(x)[0, :2].numpy()
                want = y * np.array([3, 4], "f4")[:, None, None] \
                    + np.array([1, 2], "f4")[:, None, None]
                worst = abs(got - want).max() / abs(want).max()
                self.assertLess(worst, 1e-5)


def context(frame, scales):
    """The normalised input [m, P, P]; halves of the frame with reflected borders (spec 13.5, 13.6)."""
    out, small = [], frame.astype("f8")
    for s in range(scales):
        if s > 0:
            small = halve(small)
        pad = (SIDE - small.shape[0]) // 2
        out.append((reflect(small, pad) - 100) / 10)
    return np.stack(out).astype("f4")


def reflect(a, pad):
    return np.pad(a, pad, mode="reflect") if pad else a


def halve(a):
    """skimage.transform.resize to half: a Gaussian of sigma 1/2, then linear interpolation."""
    radius = 2
    k = np.exp(-2.0 * np.arange(-radius, radius + 1) ** 2)
    k /= k.sum()
    for axis in (0, 1):
        wide = np.pad(a, [(radius, radius) if i == axis else (0, 0) for i in (0, 1)],
                      mode="reflect")
        n = a.shape[axis]
        a = sum(w * np.take(wide, range(i, i + n), axis) for i, w in enumerate(k))
    return (a[::2, ::2] + a[1::2, ::2] + a[::2, 1::2] + a[1::2, 1::2]) / 4


if __name__ == "__main__":
    USPLIT = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
