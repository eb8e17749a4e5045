#!/usr/bin/env python3
"""Speed and memory of our prediction beside PyTorch's: same network, same machine, same run.

Ours is BUILD/tests/bench/bench_predict, PyTorch is twin.py. Each measurement is a process of its own
(peak memory is a property of a process), ours and theirs take turns, and each is repeated ROUNDS
times, so that a noisy neighbour meets both. The table shows the median over the rounds.

The contract with bench_predict:
  bench_predict --variant V --precision f32|bf16 --threads N --seconds S
prints JSON lines with at least variant, precision, threads, ms_per_patch, patches_per_s,
peak_rss_mib; a line may carry "mode" (such as "whole" or "pruned"), and each mode gets its row.
Exit status 77 means that this processor cannot (bf16); the row then says so.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
VARIANTS = ("vanilla", "lean", "regular", "deep")
# glibc's words for "keep freed memory in the process": the allocator-tuned PyTorch.
KEEP = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(64 << 20)}


def measure(command, env=None):
    """The JSON lines that `command` prints; a reason instead where it gives none."""
    if not os.access(command[0], os.X_OK):
        return [], f"failed: {command[0]} was not built"
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})})
    rows = [json.loads(x) for x in run.stdout.splitlines() if x.startswith("{")]
    if run.returncode == 0 and rows:
        return rows, None
    text = (run.stderr.strip() or run.stdout.strip()).splitlines()
    reason = text[-1] if text else f"exit status {run.returncode}"
    return [], ("not on this processor: " if run.returncode == 77 else "failed: ") + reason


def our_command(args, variant, precision, threads):
    return [os.path.join(args.build, "tests", "bench", "bench_predict"), "--variant", variant,
            "--precision", precision, "--threads", str(threads), "--seconds", str(args.seconds)]


def twin_command(args, variant, precision, threads, habits, layout):
    return [sys.executable, os.path.join(HERE, "twin.py"), "time", "--variant", variant,
            "--precision", precision, "--threads", str(threads), "--batch", str(args.batch),
            "--seconds", str(args.seconds), "--habits", habits, "--layout", layout]


def contenders(args, variant, precision, threads):
    """(key, command, environment) of everything that is compared in one group."""
    yield "ours", our_command(args, variant, precision, threads), None
    if args.no_twin:
        return
    for habits in ("plain", "upstream"):
        command = twin_command(args, variant, precision, threads, habits, "nhwc")
        yield f"torch {habits}", command, None
    if args.all:
        yield "torch plain, nchw", twin_command(args, variant, precision, threads, "plain",
                                                "nchw"), None
        yield "torch plain, memory kept", twin_command(
            args, variant, precision, threads, "plain", "nhwc"), {
                **KEEP, "USPLIT_BENCH_ALLOCATOR": "keep"}


def group(args, variant, precision, threads):
    """{contender: rows of all rounds}, {contender: why there are none}."""
    rows, failures = {}, {}
    for _ in range(args.rounds):
        for key, command, env in contenders(args, variant, precision, threads):
            if key in failures:
                continue
            found, reason = measure(command, env)
            if reason:
                failures[key] = reason
            for row in found:
                name = key + (f", {row['mode']}" if row.get("mode") else "")
                rows.setdefault(name, []).append(row)
    return rows, failures


def median(rows, member):
    return statistics.median(r[member] for r in rows)


def print_group(title, rows, failures):
    """One line per contender; ratios say how many times ours is faster, or smaller."""
    print(f"\n{title}")
    print(f"  {'':<26}{'ms/patch':>10}{'patches/s':>11}{'peak MiB':>10}  ratio to ours: time, memory")
    ours = [k for k in rows if k.startswith("ours")]
    for key, group_rows in rows.items():
        ms, mib = median(group_rows, "ms_per_patch"), median(group_rows, "peak_rss_mib")
        text = ""
        if not key.startswith("ours"):
            text = "; ".join(f"{ms / median(rows[o], 'ms_per_patch'):.1f}x, "
                             f"{mib / median(rows[o], 'peak_rss_mib'):.1f}x"
                             + (f" ({o[6:]})" if len(ours) > 1 else "") for o in ours)
        print(f"  {key:<26}{ms:>10.2f}{1e3 / ms:>11.1f}{mib:>10.0f}  {text}")
    for key, reason in failures.items():
        print(f"  {key:<26}{reason}")


def cpu_words():
    """The processor's name and which of the instruction sets that matter it has."""
    name, flags = "unknown", set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            for line in f:
                if line.startswith("model name"):
                    name = line.split(":", 1)[1].strip()
                elif line.startswith("flags"):
                    flags = set(line.split(":", 1)[1].split())
                    break
    except OSError:
        pass
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return f"{name}; " + " ".join(w if w in flags else f"no-{w}" for w in wanted)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", default="build", help="our build directory")
    parser.add_argument("--variant", choices=VARIANTS, action="append")
    parser.add_argument("--precision", choices=("f32", "bf16"), action="append")
    parser.add_argument("--threads", type=int, action="append", help="default: one, and all")
    parser.add_argument("--batch", type=int, default=8, help="PyTorch's batch (ours: one per worker)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--all", action="store_true", help="NCHW and allocator-tuned PyTorch too")
    parser.add_argument("--no-twin", action="store_true", help="measure ours only")
    parser.add_argument("--json", metavar="FILE", help="append every measurement as a JSON line")
    args = parser.parse_args()
    n_cpu = len(os.sched_getaffinity(0))
    print(f"{cpu_words()}; {n_cpu} processors; load {os.getloadavg()[0]:.1f}")
    ours_failed = False
    for variant in args.variant or VARIANTS:
        for precision in args.precision or ("f32", "bf16"):
            for threads in args.threads or sorted({1, n_cpu}):
                rows, failures = group(args, variant, precision, threads)
                title = f"{variant}, {precision}, {threads} thread{'s' * (threads > 1)}"
                load = os.getloadavg()[0]
                if load > n_cpu + 0.5:
                    title += f" (load {load:.1f} on {n_cpu} processors: rough figures)"
                print_group(title, rows, failures)
                sys.stdout.flush()
                ours_failed |= failures.get("ours", "").startswith("failed")
                if args.json:
                    with open(args.json, "a", encoding="utf-8") as f:
                        for key, group_rows in rows.items():
                            for row in group_rows:
                                f.write(json.dumps({"contender": key, **row}) + "\n")
    return 1 if ours_failed else 0


if __name__ == "__main__":
    sys.exit(main())
