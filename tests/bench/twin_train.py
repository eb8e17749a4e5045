#!/usr/bin/env python3
"""Training steps of the PyTorch twin (model-spec 5, 6, 15): what ours are compared with.

A step is what section 15.6 says: forward in training mode, loss, backward, clip of the global norm
at 0.5, Adamax. Under bf16 autocast the latent arithmetic stays in the type that autocast leaves it
in, which is the faster choice; sums, loss, weights and optimiser are f32.

  twin_train.py check [--variant V]       compare with the vectors of model-spec 20.3, status 1 if off
  twin_train.py time --variant V ...      one JSON line: ms per step, processor time, peak RSS
"""
import argparse
import json
import os
import sys
import time

import twin
from twin import np, torch

CLIP_NORM = 0.5


def loss_of(net, x, target, eps=None, habits="plain", kl_weight=1.0):
    """(loss, reconstruction loss per channel, KL per level): ELBO, or its first term for an HAE."""
    head, kl = net.head_and_kl(x, eps, habits)
    rec = net.likelihood.nll(head, target)
    loss, kl = rec.mean(), [k.mean() for k in kl if k is not None]
    if kl:
        loss = loss + kl_weight * torch.stack(kl).mean()
    return loss, rec, kl


def step(net, optimiser, loss):
    """Backward and update; the norm of the gradients before they are clipped."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP_NORM)
    optimiser.step()
    return norm


def adamax(net, lr=1e-3):
    return torch.optim.Adamax(net.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8)


# ---- the vectors of model-spec 20.3 ---------------------------------------------------------------

# variant, stochastic: rec per channel, KL per level, loss, global norm, parameters without gradient
LOSSES = {
    ("vanilla", True): ((2.110395, 2.201033), (1.214694, 1.227057, 1.211414, 0.7064854),
                        3.245626, 6.226168, 0),
    ("vanilla", False): ((1.896870, 1.990143), (), 1.943506, 4.571513, 7),
    ("lean", True): ((2.065899, 2.176508), (1.320763, 1.424308, 1.581031, 0.9993924),
                     3.452577, 5.677999, 0),
    ("lean", False): ((1.847546, 1.967038), (), 1.907292, 3.920763, 7),
    ("regular", True): ((2.106144, 2.248841), (1.168831, 1.257927, 1.638471, 0.5722083),
                        3.336852, 5.505148, 0),
    ("regular", False): ((1.905502, 1.989965), (), 1.947733, 4.303055, 7),
    ("deep", True): ((3.196891, 3.884915), (12.80241, 76.00272, 483.4379, 456.6789, 472.3930,
                                            289.2309, 120.5620, 8.093676), 243.4411, 6814.623, 48),
    ("deep", False): ((2.640244, 3.033230), (), 2.836737, 15.22323, 63),
}
# Gradient norms of TENSORS in that order.
NORMS = {
    ("vanilla", True): (0.2016619, 1.625632, 0.4699720, 1.729796, 0.6694847, 0.009454323),
    ("vanilla", False): (0.08670063, 0.8233311, 0.1406611, 1.395690, 0.5257465),
    ("lean", True): (0.08961581, 0.8014780, 0.6642028, 1.387909, 0.5940375, 0.01157748),
    ("lean", False): (0.05160205, 0.5221897, 0.1339915, 1.033833, 0.4498597),
    ("regular", True): (0.06341801, 0.6840563, 0.3061275, 1.573525, 0.6390597, 0.0005219776),
    ("regular", False): (0.05470962, 0.5776195, 0.1907645, 1.170742, 0.4883163),
    ("deep", True): (12.53886, 92.09872, 1428.142, 5.867495, 1.608820, 0.03444393),
    ("deep", False): (0.1387172, 1.545639, 1.405244, 3.774724, 1.128882),
}
TENSORS = ("first_bottom_up.0.weight", "bottom_up_layers.0.net_downsized.0.pre_conv.weight",
           "top_down_layers.{top}.stochastic.conv_in_q.weight",
           "top_down_layers.0.deterministic_block.0.pre_conv.weight",
           "likelihood.parameter_net.bias", "top_down_layers.{top}.top_prior_params")
# The head's bias after one step at lr 1e-3.
BIAS = {("vanilla", True): (0.01377378661, -0.01181113681, 0.00769883457, 0.04388636418),
        ("deep", True): (0.01377424627, -0.01181177091, 0.00769868552, 0.04388625747)}


def without_dropout(net):
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.eval()
    return net


def check_case(variant, stochastic, habits):
    """The largest relative deviation from the vectors, infinite where a count is wrong."""
    net, fill = twin.filled(variant, stochastic)
    without_dropout(net)
    top = len(net.a["z_dims"]) - 1
    x = fill.noise("input", (2, net.a["lc_scales"], 64, 64))
    target = fill.noise("target", (2, 2, 64, 64))
    eps = [fill.noise(f"eps{i}", (2, 128, s, s))
           for i, s in enumerate(twin.latent_side(variant, i) for i in range(top + 1))]
    loss, rec, kl = loss_of(net, x, target, eps, habits)
    norm = step(net, adamax(net), loss)
    want_rec, want_kl, want_loss, want_norm, n_without = LOSSES[variant, stochastic]
    # clip_grad_norm_ has scaled the gradients.
    scale = min(1.0, CLIP_NORM / (float(norm) + 1e-6))
    parameters = dict(net.named_parameters())
    names = [t.format(top=top) for t in TENSORS]
    bn = net.first_bottom_up[2].res.block[0]
    pairs = [*zip(rec, want_rec), *zip(kl, want_kl), (loss, want_loss), (norm, want_norm)]
    pairs += [(parameters[n].grad.norm() / scale, w)
              for n, w in zip(names, NORMS[variant, stochastic])]
    pairs += [(bn.running_mean[0], -0.04084970 if variant == "vanilla" else -0.04267915),
              (bn.running_var[0], 1.245013 if variant == "vanilla" else 1.242641)]
    pairs += zip(parameters["likelihood.parameter_net.bias"], BIAS.get((variant, stochastic), ()))
    idle = sum(p.grad is None or not p.grad.any() for p in parameters.values())
    if idle != n_without or len(kl) != len(want_kl):
        print(f"{variant}: {idle} parameters without gradient, {len(kl)} KL terms")
        return float("inf")
    return max(abs(float(got) - want) / abs(want) for got, want in pairs)


def check(variants, habits):
    worst = 0.0
    for variant in variants:
        for stochastic in (True, False):
            off = check_case(variant, stochastic, habits)
            worst = max(worst, off)
            print(f"{variant:<8} {'HVAE' if stochastic else 'HAE':<5} "
                  f"largest relative deviation {off:.1e}", flush=True)
    # Half a unit of the seventh digit, of values that may begin with 1.
    return 0 if worst < 6e-7 else 1


# ---- timing -------------------------------------------------------------------------------------

def time_steps(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    net = twin.Lvae(twin.architecture(args.variant)).train()
    x = torch.randn(args.batch, net.a["lc_scales"], net.patch, net.patch)
    target = torch.randn(args.batch, 2, net.patch, net.patch)
    if args.layout == "nhwc":
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    optimiser, base, wall, cpu = adamax(net), twin.peak_rss_mib(), [], []
    for _ in range(args.warmup + args.steps):
        wall_0, cpu_0 = time.perf_counter(), time.process_time()
        with torch.cpu.amp.autocast(args.precision == "bf16", torch.bfloat16):
            loss = loss_of(net, x, target, None, args.habits)[0]
        step(net, optimiser, loss)
        wall.append(time.perf_counter() - wall_0)
        cpu.append(time.process_time() - cpu_0)
    ms = float(np.median(wall[args.warmup:])) * 1e3
    print(json.dumps({
        "engine": "torch " + torch.__version__, "variant": args.variant,
        "precision": args.precision, "layout": args.layout, "habits": args.habits,
        "allocator": os.environ.get("USPLIT_BENCH_ALLOCATOR", "default"), "threads": args.threads,
        "batch": args.batch, "repeats": args.steps, "ms_per_step": round(ms, 1),
        "cpu_ms_per_step": round(float(np.median(cpu[args.warmup:])) * 1e3, 1),
        "patches_per_s": round(1e3 * args.batch / ms, 3), "loss": round(float(loss), 4),
        "peak_rss_mib": round(twin.peak_rss_mib(), 1), "rss_before_mib": round(base, 1)}))
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    words = parser.add_subparsers(dest="word", required=True)
    sub = words.add_parser("check")
    sub.add_argument("--variant", choices=twin.VARIANTS, action="append")
    sub.add_argument("--habits", choices=("plain", "upstream"), default="plain")
    sub = words.add_parser("time")
    sub.add_argument("--variant", choices=twin.VARIANTS, default="regular")
    sub.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    sub.add_argument("--layout", choices=("nchw", "nhwc"), default="nhwc")
    sub.add_argument("--habits", choices=("plain", "upstream"), default="plain")
    sub.add_argument("--threads", type=int, default=os.cpu_count())
    sub.add_argument("--batch", type=int, default=32)
    sub.add_argument("--steps", type=int, default=1)
    sub.add_argument("--warmup", type=int, default=1, help="steps before those that are timed")
    args = parser.parse_args()
    if args.word == "check":
        return check(args.variant or twin.VARIANTS, args.habits)
    return time_steps(args)


if __name__ == "__main__":
    sys.exit(main())
