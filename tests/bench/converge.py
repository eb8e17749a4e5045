#!/usr/bin/env python3
"""Does our training learn as PyTorch's does? The same small network, twice, on the same frames.

Ours is `usplit train`. The other is the twin with a data pipeline of its own, written from
model-spec 13: splits, clip, statistics, pyramids, crops, padding, mixing. The two share no code and
no random stream, only the file of frames (SinosoidalCritters of one kind of curve per channel, from
`usplit dataset critters`), so what they can have in common are distributions: of the initial
weights, of crops, of dropout and of the latents. Compared are

  - what must be equal: the clip value and the statistics in our model file;
  - our model file as the twin validates it, beside what our validation said of it;
  - means over epochs of 50 steps of the loss and its parts, and the PSNR after each, over several
    runs of each side: differences in units of their standard error. Were both sides the same, their
    runs would scatter alike, so one scatter is estimated from all runs, and as ours are the cheap
    ones, most are ours.

Exit status 1 if an equal figure is not, or a difference exceeds what chance explains.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import twin
import twin_train
from twin import np, torch

try:
    import tifffile
except ImportError as e:
    print(f"skipped: {e} (Debian: python3-tifffile)")
    sys.exit(77)

SIDE, PATCH, N_FRAMES, BATCH, RATE = 128, 64, 125, 8, 3e-3
# 100 frames are for training, 4 patches each: 50 steps of 8.
STEPS_PER_EPOCH = 50
ARCHITECTURE = {"stochastic": True, "z_dims": [16, 16, 16], "lc_scales": 4,
                "decoder_retain": False, "n_filters": 16, "blocks_per_level": 1, "dropout": 0.1,
                "predict_logvar": "pixelwise", "var_clip_max": 20.0, "target_channels": 2}


# ---- the twin's data (model-spec 13) -------------------------------------------------------------

def split(n, fraction):
    """Type B of 13.2 for equal fractions of validation and test: (val, test, train)."""
    first = int(2 * fraction * n)
    size = max(1, min(3, first // 2))
    val, test = [], []
    n_chunks = first // size
    for i in range(n_chunks):
        (test if i % 2 else val).extend(range(i * size, (i + 1) * size))
    rest = list(range(n_chunks * size, first))
    half = len(rest) // 2 if n_chunks % 2 == 0 else len(rest)
    return val + rest[half:], test + rest[:half], list(range(first, n))


def halve(x):
    """[..., H, W] of even sides to half of them (13.5)."""
    w = np.exp(-np.arange(-2, 3) ** 2 / (2 * 0.5 ** 2))
    w /= w.sum()
    for axis in (-2, -1):
        x = np.moveaxis(x, axis, -1).astype(np.float64)
        n = x.shape[-1]
        x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(2, 2)], mode="reflect")
        x = sum(w[k] * x[..., k:k + n] for k in range(5)).astype(np.float32)
        x = np.moveaxis(x, -1, axis)
    h, w = x.shape[-2] // 2, x.shape[-1] // 2
    return x.reshape(*x.shape[:-2], h, 2, w, 2).mean((-3, -1), dtype=np.float64).astype(np.float32)


def patch_at(frame, top, left, side):
    """The patch [C, side, side], zeros beyond the frame (13.6)."""
    out = np.zeros((frame.shape[0], side, side), np.float32)
    h, w = frame.shape[1:]
    y0, y1, x0, x1 = max(0, top), min(h, top + side), max(0, left), min(w, left + side)
    if y0 < y1 and x0 < x1:
        out[:, y0 - top:y1 - top, x0 - left:x1 - left] = frame[:, y0:y1, x0:x1]
    return out


class Data:
    def __init__(self, path, scales):
        frames = tifffile.imread(path).astype(np.float32)
        self.val, _, self.train = split(len(frames), 0.1)
        self.clip = float(np.quantile(frames[self.train].astype(np.float64), 0.995))
        frames = np.minimum(frames, np.float32(self.clip))
        kept = frames[self.train].astype(np.float64)
        self.mean, self.std = kept.mean(), kept.std()
        self.target_mean, self.target_std = kept.mean((0, 2, 3)), kept.std((0, 2, 3))
        self.pyramid = [frames]
        while len(self.pyramid) < scales:
            self.pyramid.append(halve(self.pyramid[-1]))

    def patch(self, frame, top, left):
        """(input [m, P, P], target [2, P, P]), normalised (13.4)."""
        y, x, rows = top + PATCH // 2, left + PATCH // 2, []
        for s, frames in enumerate(self.pyramid):
            if s > 0:
                y, x = y // 2, x // 2
            rows.append(patch_at(frames[frame], y - PATCH // 2, x - PATCH // 2, PATCH))
        mixed = np.stack([(r[0] + r[1]) / 2 for r in rows])
        shape = (2, 1, 1)
        target = (rows[0] - self.target_mean.reshape(shape)) / self.target_std.reshape(shape)
        return (mixed - self.mean) / self.std, target

    def batch(self, places):
        pairs = [self.patch(*p) for p in places]
        return [torch.from_numpy(np.stack(x).astype(np.float32)) for x in zip(*pairs)]

    def epoch(self, rng):
        """Batches of one epoch: every frame as often as patches fit, at random places (13.7)."""
        places = [(f, int(rng.integers(SIDE - PATCH)), int(rng.integers(SIDE - PATCH)))
                  for f in self.train for _ in range((SIDE // PATCH) ** 2)]
        rng.shuffle(places)
        for i in range(0, len(places), BATCH):
            yield self.batch(places[i:i + BATCH])

    def validation(self):
        grid = range(0, SIDE - PATCH + 1, PATCH)
        return self.batch([(f, y, x) for f in self.val for y in grid for x in grid])


# ---- the two sides ------------------------------------------------------------------------------

def validate(net, data):
    """(loss without KL, PSNR, a mean over channels) of model-spec 15.4."""
    x, target = data.validation()
    net.eval()
    with torch.no_grad():
        head = net(x)
    net.train()
    mse = (head[:, :2] - target).square().mean((0, 2, 3))
    size = target.amax((0, 2, 3)) - target.amin((0, 2, 3))
    return (float(net.likelihood.nll(head, target).mean()),
            float((20 * torch.log10(size / mse.sqrt())).mean()))


def train_twin(data, seed, n_epochs):
    """One dictionary per epoch, with the members of our history."""
    torch.manual_seed(seed)
    rng, net = np.random.default_rng(seed), twin.Lvae(ARCHITECTURE, PATCH).train()
    net = net.to(memory_format=torch.channels_last)
    optimiser, epochs = twin_train.adamax(net, RATE), []
    for _ in range(n_epochs):
        rows = []
        for x, target in data.epoch(rng):
            loss, rec, kl = twin_train.loss_of(net, x, target)
            twin_train.step(net, optimiser, loss)
            rows.append([float(loss), float(rec.mean()), float(torch.stack(kl).mean())])
        val_loss, val_psnr = validate(net, data)
        epochs.append(dict(zip(("loss", "rec", "kl"), np.mean(rows, 0).tolist()),
                           val_psnr=val_psnr, val_loss=val_loss))
        print(f"twin {seed}: " + ", ".join(f"{k} {v:.4f}" for k, v in epochs[-1].items()),
              flush=True)
    return epochs


def train_ours(args, stack, folder, seed):
    """(epochs, path of the model file)."""
    config = {"patch_size": PATCH, "data": {"padding": "zero"},
              "architecture": {"variant": "lean", "z_dims": ARCHITECTURE["z_dims"],
                               "lc_scales": ARCHITECTURE["lc_scales"],
                               "n_filters": ARCHITECTURE["n_filters"]},
              "training": {"batch": BATCH, "lr": RATE, "max_epochs": args.epochs,
                           "precision": args.precision, "threads": args.threads, "seed": seed}}
    path, out = os.path.join(folder, "train.json"), os.path.join(folder, f"ours{seed}.safetensors")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config, f)
    subprocess.run([args.usplit, "train", "--config", path, "--data", stack, "--out", out,
                    "--quiet", "--overwrite"], check=True)
    epochs = []
    with open(out.replace(".safetensors", ".history.jsonl"), encoding="utf-8") as f:
        for line in map(json.loads, f):
            if line["event"] == "epoch":
                line["rec"], line["kl"] = np.mean(line["rec"]), np.mean(line["kl_level"])
                epochs.append(line)
    return epochs, out


# ---- comparison ---------------------------------------------------------------------------------

def compare_statistics(data, path):
    """Whether clip and statistics of our model file are the twin's, to single precision."""
    ours = twin.read_model(path)[0]["data"]
    off = 0.0
    for name, want in (("clip", data.clip), ("input_mean", data.mean), ("input_std", data.std),
                       ("target_mean", data.target_mean), ("target_std", data.target_std)):
        got = np.ravel(ours[name])
        off = max(off, float(np.max(np.abs(got / np.ravel(want) - 1))))
    print(f"clip and statistics: largest relative deviation {off:.1e}")
    return off < 1e-6


def compare_validation(data, path, epochs):
    """Our file as the twin sees it; what remains is that each side samples z for itself."""
    best = max(epochs, key=lambda e: e["val_psnr"])
    net = twin.load_model(path)
    seen = np.array([validate(net, data) for _ in range(5)])
    mean, scatter = seen.mean(0), seen.std(0, ddof=1)
    away = np.abs(mean - (best["val_loss"], best["val_psnr"]))
    print(f"our best model: validation PSNR {best['val_psnr']:.3f} dB, loss {best['val_loss']:.4f}; "
          f"as the twin sees it {mean[1]:.3f} dB, {mean[0]:.4f}, samples scatter by "
          f"{scatter[1]:.3f} dB, {scatter[0]:.4f}")
    # Five samples tell their scatter roughly; hence the generous factor.
    return bool(np.all(away < 6 * scatter))


def difference(a, b):
    """(difference of the means of two samples, the same in units of its standard error)."""
    n, away = len(a) + len(b), np.mean(a) - np.mean(b)
    pooled = (np.var(a) * len(a) + np.var(b) * len(b)) / (n - 2)
    return away, away / np.sqrt(pooled * (1 / len(a) + 1 / len(b)))


def compare_curves(ours, twins):
    """The table; whether every difference is within what chance explains."""
    fine = True
    print(f"{'steps':<10}" + "".join(f"{k + ': ours':>16}{'twin':>9}{'diff/se':>9}"
                                     for k in ("loss", "rec", "kl", "val_psnr")))
    for i in range(min(map(len, (*ours, *twins)))):
        text = f"{i * STEPS_PER_EPOCH + 1}-{(i + 1) * STEPS_PER_EPOCH}".ljust(10)
        for key in ("loss", "rec", "kl", "val_psnr"):
            a, b = [run[i][key] for run in ours], [run[i][key] for run in twins]
            away, in_se = difference(a, b)
            text += f"{np.mean(a):>16.4f}{np.mean(b):>9.4f}{in_se:>9.1f}"
            # Few runs give wide tails (Student's t), and there are many figures: so a small
            # difference is forgiven whatever the runs' scatter says.
            fine &= abs(in_se) < 6 or abs(away) < 0.02 * abs(np.mean(b))
        print(text)
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--usplit", default="build/server/cli/usplit")
    parser.add_argument("--epochs", type=int, default=6, help="of 50 steps")
    parser.add_argument("--ours", type=int, default=5, help="runs of ours, two at least")
    parser.add_argument("--twins", type=int, default=2, help="runs of the twin")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="of ours")
    parser.add_argument("--json", metavar="FILE", help="write all curves")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        stack = os.path.join(folder, "critters.tif")
        subprocess.run([args.usplit, "dataset", "critters", "--size", str(SIDE), "--pairs", "1",
                        "--frames", str(N_FRAMES), "--seed", "5", "--quiet", stack], check=True)
        data, ours, twins, fine = Data(stack, ARCHITECTURE["lc_scales"]), [], [], True
        for seed in range(1, args.ours + 1):
            epochs, path = train_ours(args, stack, folder, seed)
            ours.append(epochs)
            fine &= compare_validation(data, path, epochs)
        fine &= compare_statistics(data, path)
        for seed in range(1, args.twins + 1):
            twins.append(train_twin(data, seed, args.epochs))
            alike = compare_curves(ours, twins)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"ours": ours, "twin": twins}, f)
    fine &= alike
    print("they agree" if fine else "they differ")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
