#!/usr/bin/env python3
"""A PyTorch twin of the LVAE networks: what `./dev bench` compares us with, and a second opinion.

Written from model-spec 2-7; the state dictionary has the names of section 11, so our model files
load as they are. It is the straightforward eager network that a PyTorch user would run, with no
artificial slowness. Two habits can be timed:

  plain      every value once; when predicting, conv_in_p is skipped and z = mean + std * randn
  upstream   what the published implementation does per latent: p and q are
             torch.distributions.Normal with their argument checks. Predicting: conv_in_p is
             evaluated although nothing reads it, log q(z) is summed, the KL is left out. Training:
             log p(z) and log q(z) are summed for inspection, then the KL builds both distributions
             again from the raw log-variances and is summed three ways

Training steps are in twin_train.py.

  twin.py check [--variant V]             compare with the vectors of model-spec 20.2, status 1 if off
  twin.py time --variant V ...            one JSON line: ms per patch, patches per second, peak RSS
  twin.py apply --model M.safetensors --input X.npy --output Y.npy
                                          the head's output for patches [B, m, P, P], z = mean
"""
import argparse
import json
import math
import os
import resource
import sys
import time

try:
    import numpy as np
    import torch
    from torch import nn
except ImportError as e:
    print(f"skipped: {e} (Debian: python3-torch, python3-numpy)")
    sys.exit(77)

VARIANTS = ("vanilla", "lean", "regular", "deep")


def architecture(variant, stochastic=True):
    """The members of model-file.md "architecture" that shape the network (model-spec 1)."""
    return {
        "stochastic": stochastic,
        "z_dims": [128] * (8 if variant == "deep" else 4),
        "lc_scales": 1 if variant == "vanilla" else 5,
        "decoder_retain": variant in ("regular", "deep"),
        "n_filters": 64,
        "blocks_per_level": 1,
        "dropout": 0.1,
        "predict_logvar": "pixelwise",
        "var_clip_max": 20.0,
        "target_channels": 2,
    }


# ---- blocks (model-spec 3) ----------------------------------------------------------------------

class Gate(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, 2 * c, 1)

    def forward(self, x):
        a, g = self.conv(x).chunk(2, dim=1)
        return nn.functional.elu(a) * torch.sigmoid(g)


class ResidualBlock(nn.Module):
    """RB, with `gated` GRB: type string bacdbacd."""

    def __init__(self, c, dropout, gated):
        super().__init__()
        layers = []
        for _ in range(2):
            layers += [nn.BatchNorm2d(c), nn.ELU(), nn.Conv2d(c, c, 3, padding=1),
                       nn.Dropout2d(dropout)]
        if gated:
            layers.append(Gate(c))
        self.block = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.block(x)


class Stage(nn.Module):
    """A residual block, after a resampling convolution where there is one."""

    def __init__(self, c, dropout, gated=True, pre_conv=None):
        super().__init__()
        if pre_conv is not None:
            self.pre_conv = pre_conv
        self.res = ResidualBlock(c, dropout, gated)

    def forward(self, x):
        if hasattr(self, "pre_conv"):
            x = self.pre_conv(x)
        return self.res(x)


class Merge(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(2 * c, c, 1), ResidualBlock(c, dropout, True))

    def forward(self, first, second):
        return self.layer(torch.cat((first, second), dim=1))


def input_branch(c, kernel, dropout):
    return nn.Sequential(nn.Conv2d(1, c, kernel, padding=kernel // 2), nn.ELU(),
                         Stage(c, dropout, gated=False))


def pad_to(x, h, w):
    dh, dw = h - x.shape[2], w - x.shape[3]
    return nn.functional.pad(x, (dw // 2, dw - dw // 2, dh // 2, dh - dh // 2))


def crop_to(x, h, w):
    top, left = (x.shape[2] - h) // 2, (x.shape[3] - w) // 2
    return x[:, :, top:top + h, left:left + w]


def wide(x):
    """What sums of x are kept in: double stays double, all else is at least float."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- levels (model-spec 4, 5) -------------------------------------------------------------------

class BottomUp(nn.Module):
    def __init__(self, a):
        super().__init__()
        c, p = a["n_filters"], a["dropout"]
        self.net_downsized = nn.Sequential(Stage(c, p, pre_conv=nn.Conv2d(c, c, 3, 2, 1)))
        self.net = nn.Sequential(*(Stage(c, p) for _ in range(a["blocks_per_level"] - 1)))
        if a["lc_scales"] > 1:
            self.lowres_net = self.net
            self.lowres_merge = Merge(c, p)

    def forward(self, x, context):
        x = self.net(self.net_downsized(x))
        if context is None:
            return x
        context = self.lowres_net(context)
        return self.lowres_merge(pad_to(x, *context.shape[2:]), context)


class Stochastic(nn.Module):
    def __init__(self, a, level):
        super().__init__()
        c, z = a["n_filters"], a["z_dims"][level]
        self.stochastic, self.var_clip_max, self.z = a["stochastic"], a["var_clip_max"], z
        if level < len(a["z_dims"]) - 1:
            self.conv_in_p = nn.Conv2d(c, 2 * z, 3, padding=1)
        self.conv_in_q = nn.Conv2d(c, 2 * z, 3, padding=1)
        self.conv_out = nn.Conv2d(z, c, 3, padding=1)

    def var(self, lv):
        """Variance of a raw log-variance: ExpLin (5.2)."""
        if self.var_clip_max is not None:
            lv = lv.clamp(max=self.var_clip_max)
        return torch.where(lv <= 0, lv.clamp(max=0).exp(), 1 + lv) + 1e-6

    def normal(self, params):
        mean, lv = params.chunk(2, dim=1)
        return torch.distributions.Normal(mean, self.var(lv).sqrt())

    def sample_plain(self, p, mean, lv, eps):
        """z and, when training, the KL of 5.5 per sample, a mean per latent element."""
        var = self.var(lv)
        eps = torch.randn_like(mean) if eps is None else eps
        z = mean + var.sqrt() * eps
        if not self.training:
            return z, None
        p_mean, p_lv = p.chunk(2, dim=1)
        p_var = self.var(p_lv)
        twice = (z - p_mean).square() / p_var - eps.square() + p_var.log() - var.log()
        return z, twice.flatten(1).mean(1, dtype=wide(twice)) / 2

    def sample_upstream(self, p, q, eps):
        prior, posterior = self.normal(p), self.normal(q)
        z = posterior.rsample() if eps is None else posterior.loc + posterior.scale * eps
        posterior.log_prob(z).sum((1, 2, 3))
        if not self.training:
            return z, None
        prior.log_prob(z).sum((1, 2, 3))
        kl = self.normal(q).log_prob(z) - self.normal(p).log_prob(z)
        kl.sum((2, 3)), kl.sum(1)
        return z, kl.sum((1, 2, 3), dtype=wide(kl)) / kl[0].numel()

    def forward(self, p_in, q_in, eps, habits):
        """The level's output and its KL per sample; None where there is none."""
        q = self.conv_in_q(q_in)
        mean, lv = q.chunk(2, dim=1)
        sampled = self.stochastic and not (isinstance(eps, str) and eps == "mean")
        p = p_in
        if habits == "upstream" or (self.training and sampled):
            p = self.conv_in_p(p_in) if hasattr(self, "conv_in_p") else p_in
        z, kl = mean, None
        if sampled and habits == "upstream":
            z, kl = self.sample_upstream(p, q, eps)
        elif sampled:
            z, kl = self.sample_plain(p, mean, lv, eps)
        return self.conv_out(z), kl


class TopDown(nn.Module):
    def __init__(self, a, level, patch):
        super().__init__()
        c, p, n = a["n_filters"], a["dropout"], len(a["z_dims"])
        if level == n - 1:
            retain = a["decoder_retain"] and a["lc_scales"] > 1
            side = patch // 2 ** (n + 1 - a["lc_scales"]) if retain else patch // 2 ** n
            self.top_prior_params = nn.Parameter(torch.zeros(1, 2 * a["z_dims"][level], side, side))
        up = nn.ConvTranspose2d(c, c, 3, 2, 1, output_padding=1)
        self.deterministic_block = nn.Sequential(
            Stage(c, p, pre_conv=up), *(Stage(c, p) for _ in range(a["blocks_per_level"] - 1)))
        self.stochastic = Stochastic(a, level)
        if level < n - 1:
            self.merge = Merge(c, p)
            self.skip_connection_merger = Merge(c, p)
        # Latent scaling of deep networks (4.5).
        self.factor = (2.0 * (1 + level)) ** 0.5 if n > 4 else 1.0
        self.crop = patch // 2 if a["decoder_retain"] and a["lc_scales"] > 1 else None

    def forward(self, u, out, eps, habits):
        q_in = u if out is None else self.merge(u, out)
        if self.factor != 1.0:
            q_in = q_in * self.factor
        p_in = self.top_prior_params if out is None else out
        s, kl = self.stochastic(p_in, q_in, eps, habits)
        if out is not None:
            s = self.skip_connection_merger(s, out)
        if self.crop is not None and s.shape[3] > self.crop:
            s = crop_to(s, self.crop, self.crop)
        return self.deterministic_block(s), kl


class Likelihood(nn.Module):
    """The head; nll() is the reconstruction loss of model-spec 6."""

    def __init__(self, a):
        super().__init__()
        self.pixelwise, self.bound = a["predict_logvar"] == "pixelwise", -5.0
        n = a["target_channels"] * (1 if a["predict_logvar"] is None else 2)
        self.parameter_net = nn.Conv2d(a["n_filters"], n, 3, padding=1)

    def nll(self, head, target):
        """Mean negative log-likelihood per channel [T]."""
        if not self.pixelwise:
            raise SystemExit("training is written for predict_logvar pixelwise only")
        mean, lv = head.to(wide(head)).chunk(2, dim=1)
        lv = lv.clamp(min=self.bound)
        ll = (target - mean).square() * (-lv).exp() + lv + math.log(2 * math.pi)
        return ll.mean((0, 2, 3)) / 2


class Lvae(nn.Module):
    """HVAE and HAE. forward() gives the head's output before the log-variance clip."""

    def __init__(self, a, patch=64):
        super().__init__()
        c, p, n = a["n_filters"], a["dropout"], len(a["z_dims"])
        self.a, self.patch = a, patch
        self.first_bottom_up = input_branch(c, 3, p)
        self.lowres_first_bottom_ups = nn.ModuleList(
            input_branch(c, 5, p) for _ in range(a["lc_scales"] - 1))
        self.top_down_layers = nn.ModuleList(TopDown(a, i, patch) for i in range(n))
        self.bottom_up_layers = nn.ModuleList(BottomUp(a) for _ in range(n))
        self.final_top_down = nn.Sequential(*(Stage(c, p) for _ in range(a["blocks_per_level"])))
        self.likelihood = Likelihood(a)

    def forward(self, x, eps=None, habits="plain"):
        """x [B, m, P, P]; eps: None draws it, "mean" takes z = mean, else one tensor per level."""
        return self.head_and_kl(x, eps, habits)[0]

    def head_and_kl(self, x, eps=None, habits="plain"):
        """The same, and the KL [B] of each level, finest first; only training mode computes it."""
        lean = self.a["lc_scales"] > 1 and not self.a["decoder_retain"]
        y, ups = self.first_bottom_up(x[:, :1]), []
        for i, layer in enumerate(self.bottom_up_layers):
            context = None
            if i + 1 < self.a["lc_scales"]:
                context = self.lowres_first_bottom_ups[i](x[:, i + 1:i + 2])
            y = layer(y, context)
            side = self.patch // 2 ** (i + 1)
            ups.append(crop_to(y, side, side) if lean else y)
        out, kl = None, [None] * len(ups)
        for i in reversed(range(len(ups))):
            noise = eps if eps is None or eps == "mean" else eps[i]
            out, kl[i] = self.top_down_layers[i](ups[i], out, noise, habits)
        return self.likelihood.parameter_net(self.final_top_down(out)), kl


# ---- our model files ----------------------------------------------------------------------------

def read_model(path):
    """(meta, {name: array}) of a safetensors file; BF16 and F16 are widened (model-file.md)."""
    with open(path, "rb") as f:
        raw = f.read()
    n = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8:8 + n]), raw[8 + n:]
    meta = json.loads(header.pop("__metadata__")["usplit"])
    arrays = {}
    for name, t in header.items():
        data = body[t["data_offsets"][0]:t["data_offsets"][1]]
        if t["dtype"] == "BF16":
            array = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        else:
            array = np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "I64": "<i8"}[t["dtype"]])
        if t["dtype"] == "F16":
            array = array.astype("<f4")
        arrays[name] = array.reshape(t["shape"]).copy()
    return meta, arrays


def load_model(path):
    meta, arrays = read_model(path)
    net = Lvae(meta["architecture"], meta["patch_size"])
    state = {k: torch.from_numpy(v) for k, v in arrays.items()}
    missing, surplus = net.load_state_dict(state, strict=False)
    needed = [k for k in missing if not k.endswith(("num_batches_tracked", "top_prior_params"))
              and ".conv_in_p." not in k and ".lowres_merge." not in k]
    if needed or surplus:
        raise SystemExit(f"{path}: missing {needed[:3]}, surplus {surplus[:3]}")
    return net.eval()


# ---- the vectors of model-spec 20 ---------------------------------------------------------------

class Filling:
    """The generator of 20.1, all draws of one name at once."""

    def __init__(self):
        self.mul, self.add = np.array([1664525], "u4"), np.array([1013904223], "u4")

    def grow(self, n):
        """mul[k], add[k] take a state k+1 steps ahead: s -> mul * s + add."""
        while len(self.mul) < n:
            mul, add = self.mul * self.mul[-1], self.mul * self.add[-1] + self.add
            self.mul, self.add = np.concatenate((self.mul, mul)), np.concatenate((self.add, add))

    def uniform(self, name, shape):
        seed = 2166136261
        for ch in name.encode():
            seed = (seed ^ ch) * 16777619 % 2 ** 32
        n = int(np.prod(shape))
        self.grow(n)
        state = self.mul[:n] * np.uint32(seed) + self.add[:n]
        return ((state >> 8) / 2.0 ** 24).reshape(shape)

    def noise(self, name, shape):
        return torch.from_numpy(2 * 3 ** 0.5 * (self.uniform(name, shape) - 0.5))

    def parameter(self, name, shape):
        if name.endswith("num_batches_tracked"):
            return np.zeros(shape, "i8")
        u = self.uniform(name, shape)
        if name.endswith("running_var"):
            return 0.5 + u
        if name.endswith(("running_mean", "top_prior_params")):
            return 0.2 * (u - 0.5)
        if name.endswith(".weight") and len(shape) == 4:
            return 2 * (u - 0.5) * (3 / (shape[1] * shape[2] * shape[3])) ** 0.5
        if name.endswith(".weight"):
            return 0.8 + 0.4 * u
        return 0.2 * (u - 0.5)


# variant, with noise: sum, L2 norm, sample 0 pixel (31,17), sample 1 pixel (5,60)
VECTORS = {
    ("vanilla", False): (-1525.113, 76.04172, (-0.4782864, 0.1721788, -0.8025948, -0.5125861),
                         (-0.3311673, 0.2387771, -0.2239676, -0.2928431)),
    ("vanilla", True): (-1649.578, 113.3671, (-0.7938089, 0.2193657, -0.7783945, -0.5806573),
                        (0.2870507, 0.9761981, -0.8054208, -0.04008717)),
    ("lean", False): (-1357.552, 74.57085, (0.4120183, -0.3882096, 0.1225288, -0.06860344),
                      (-0.4712394, 0.1573933, -0.8728975, 0.1772784)),
    ("lean", True): (-1337.380, 112.0086, (-0.02152076, 0.5185472, 0.5220140, 0.2099580),
                     (0.08842521, 0.6866567, -1.545455, 0.2884396)),
    ("regular", False): (-1377.032, 77.99949, (0.3414552, -0.3300453, 0.1418484, -0.08764319),
                         (-0.4920668, 0.1951997, -0.7187102, -0.2211303)),
    ("regular", True): (-1441.943, 116.4634, (-0.1983256, -0.6303652, -0.2010263, 0.4120343),
                        (-0.7933746, 0.1903292, -0.8507257, 0.2684212)),
    ("deep", False): (-2043.037, 184.6460, (0.1058512, -0.001947255, -0.1095885, -0.1564903),
                      (1.892187, -0.8841755, -1.142020, 0.8273266)),
    ("deep", True): (-2585.101, 224.3167, (-0.2305817, -0.2677148, -1.348505, 0.9588223),
                     (1.310048, -1.049013, -2.204663, 0.9690041)),
}
ENTRIES = {"vanilla": 309, "lean": 445, "regular": 445, "deep": 829}


def filled(variant, stochastic=True):
    net, fill = Lvae(architecture(variant, stochastic)).double().eval(), Filling()
    state = {k: torch.from_numpy(np.asarray(fill.parameter(k, tuple(v.shape))))
             for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    return net, fill


def latent_side(variant, level):
    if variant == "regular":
        return 64
    if variant == "deep":
        return 64 if level < 4 else 64 >> (level - 3)
    return 32 >> level


def check(variants):
    """Largest relative deviation per case; the vectors are given with seven digits."""
    worst = 0.0
    for variant in variants:
        net, fill = filled(variant)
        if len(net.state_dict()) != ENTRIES[variant]:
            print(f"{variant}: {len(net.state_dict())} state entries, expected {ENTRIES[variant]}")
            return 1
        x = fill.noise("input", (2, net.a["lc_scales"], 64, 64))
        noise = [fill.noise(f"eps{i}", (2, 128, s, s))
                 for i, s in enumerate(latent_side(variant, i) for i in range(len(net.a["z_dims"])))]
        hae, _ = filled(variant, stochastic=False)
        cases = (("HAE", hae, None, False), ("HVAE, mean", net, "mean", False),
                 ("HVAE, noise", net, noise, True))
        for title, model, eps, noisy in cases:
            with torch.inference_mode():
                y = model(x, eps).numpy()
            total, norm, first, second = VECTORS[variant, noisy]
            got = [y.sum(), np.linalg.norm(y), *y[0, :, 31, 17], *y[1, :, 5, 60]]
            off = max(abs(g - w) / abs(w) for g, w in zip(got, [total, norm, *first, *second]))
            worst = max(worst, off)
            print(f"{variant:<8} {title:<12} largest relative deviation {off:.1e}")
    # Half a unit of the seventh digit, of values that may begin with 1.
    return 0 if worst < 6e-7 else 1


# ---- timing -------------------------------------------------------------------------------------

def peak_rss_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_predict(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if args.model:
        net = load_model(args.model)
    else:
        net = Lvae(architecture(args.variant)).eval()
    x = torch.randn(args.batch, net.a["lc_scales"], net.patch, net.patch)
    if args.layout == "nhwc":
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    base, seconds, start = peak_rss_mib(), [], time.perf_counter()
    with torch.inference_mode(), torch.cpu.amp.autocast(args.precision == "bf16", torch.bfloat16):
        net(x, None, args.habits)
        while len(seconds) < 3 or time.perf_counter() - start < args.seconds:
            t0 = time.perf_counter()
            net(x, None, args.habits)
            seconds.append(time.perf_counter() - t0)
    ms = float(np.median(seconds)) * 1e3 / args.batch
    print(json.dumps({
        "engine": "torch " + torch.__version__, "variant": args.variant,
        "precision": args.precision, "layout": args.layout, "habits": args.habits,
        "allocator": os.environ.get("USPLIT_BENCH_ALLOCATOR", "default"), "threads": args.threads,
        "batch": args.batch, "repeats": len(seconds), "ms_per_patch": round(ms, 4),
        "patches_per_s": round(1e3 / ms, 3), "peak_rss_mib": round(peak_rss_mib(), 1),
        "rss_before_mib": round(base, 1)}))
    return 0


def apply_model(args):
    net = load_model(args.model)
    with torch.inference_mode():
        np.save(args.output, net(torch.from_numpy(np.load(args.input)), "mean").numpy())
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words = parser.add_subparsers(dest="word", required=True)
    sub = words.add_parser("check")
    sub.add_argument("--variant", choices=VARIANTS, action="append")
    sub = words.add_parser("time")
    sub.add_argument("--variant", choices=VARIANTS, default="regular")
    sub.add_argument("--model", help="a model file of ours instead of fresh weights")
    sub.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    sub.add_argument("--layout", choices=("nchw", "nhwc"), default="nhwc")
    sub.add_argument("--habits", choices=("plain", "upstream"), default="plain")
    sub.add_argument("--threads", type=int, default=os.cpu_count())
    sub.add_argument("--batch", type=int, default=8)
    sub.add_argument("--seconds", type=float, default=5.0)
    sub = words.add_parser("apply")
    for name in ("model", "input", "output"):
        sub.add_argument("--" + name, required=True)
    args = parser.parse_args()
    if args.word == "check":
        return check(args.variant or VARIANTS)
    return time_predict(args) if args.word == "time" else apply_model(args)


if __name__ == "__main__":
    sys.exit(main())
