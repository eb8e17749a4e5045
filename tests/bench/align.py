#!/usr/bin/env python3
"""Does rounding the regions of the plan to multiples of N pay? One table per variant and precision.

Each figure is the median over ROUNDS of bench_predict, where the alignments take turns, so that a
noisy neighbour meets all of them; time is the processor's, which one disturbs less than the wall's.
Ratios are over exact regions.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

ALIGNS = (1, 2, 4, 8)
MODES = ("pruned", "pad16", "pad24")


def measure(args, variant, precision, align, mode):
    command = [os.path.join(args.build, "tests", "bench", "bench_predict"), "--variant", variant,
               "--precision", precision, "--threads", str(args.threads), "--align", str(align),
               "--mode", mode, "--seconds", str(args.seconds)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(run.stderr.strip() or f"exit status {run.returncode}")
    return json.loads(run.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", default="build", help="our build directory")
    parser.add_argument("--variant", action="append")
    parser.add_argument("--precision", choices=("f32", "bf16"), action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    args = parser.parse_args()
    for variant in args.variant or ("regular", "deep"):
        for precision in args.precision or ("f32", "bf16"):
            ms = {(m, a): [] for m in MODES for a in ALIGNS}
            gflop = {}
            for _ in range(args.rounds):
                for mode, align in ms:
                    row = measure(args, variant, precision, align, mode)
                    ms[mode, align].append(row["cpu_ms_per_patch"])
                    gflop[mode, align] = row["gflop"]
            print(f"{variant}, {precision}: time (operations) over those of exact regions")
            for mode in MODES:
                base, flop = statistics.median(ms[mode, 1]), gflop[mode, 1]
                ratios = "  ".join(f"{a}: {statistics.median(ms[mode, a]) / base:.2f} "
                                   f"({gflop[mode, a] / flop:.2f})" for a in ALIGNS)
                print(f"  {mode:<7}{base:8.2f} ms  {ratios}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
