#!/usr/bin/env python3
"""PyTorch's twin of a network (tests/bench/twin.py) on the GPU: one JSON line. As fast as a careful
user makes it: channels last, autocast to bf16 or TF32 off for f32, cuDNN's benchmark mode, and for
prediction a CUDA graph.
"""
import argparse
import json
import os
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "bench"))

try:
    import torch
    import twin
    import twin_train
except ImportError as e:
    print(f"no PyTorch here: {e}")
    sys.exit(77)


def autocast(precision):
    return torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16")


def predict(args, net):
    x = torch.randn(args.batch, net.a["lc_scales"], net.patch, net.patch, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    net.eval()
    with torch.inference_mode(), autocast(args.precision):
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                net(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            net(x)
        n, began = 0, time.perf_counter()
        while time.perf_counter() - began < args.seconds:
            for _ in range(5):
                graph.replay()
            torch.cuda.synchronize()
            n += 5
        return {"patches_per_s": n * args.batch / (time.perf_counter() - began)}


def train(args, net):
    net.train()
    x = torch.randn(args.batch, net.a["lc_scales"], net.patch, net.patch, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    target = torch.randn(args.batch, 2, net.patch, net.patch, device="cuda")
    optimiser = twin_train.adamax(net)
    began = None
    for i in range(5 + args.steps):
        if i == 5:
            torch.cuda.synchronize()
            began = time.perf_counter()
        with autocast(args.precision):
            loss = twin_train.loss_of(net, x, target)[0]
        twin_train.step(net, optimiser, loss)
    torch.cuda.synchronize()
    return {"ms_per_step": 1e3 * (time.perf_counter() - began) / args.steps}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("what", choices=("predict", "train"))
    p.add_argument("--variant", default="regular")
    p.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    p.add_argument("--batch", type=int)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--seconds", type=float, default=3.0)
    args = p.parse_args()
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU")
        return 77
    if args.batch is None:
        args.batch = 64 if args.what == "predict" else 32
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    net = twin.Lvae(twin.architecture(args.variant)).cuda().to(memory_format=torch.channels_last)
    row = predict(args, net) if args.what == "predict" else train(args, net)
    print(json.dumps({"engine": "torch " + torch.__version__, "variant": args.variant,
                      "precision": args.precision, "batch": args.batch, **row}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
