#!/usr/bin/env python3
"""Speed and memory beside PyTorch's: same network, same machine, same run; prediction and training.

Ours are BUILD/tests/bench/bench_predict and bench_train, PyTorch is twin.py and twin_train.py. Each
measurement is a process of its own (peak memory is a property of a process), ours and theirs take
turns, and each is repeated, so that a noisy neighbour meets both. Tables show medians over rounds.

The contract with our programs: both take --variant V --precision f32|bf16 --threads N, and
  bench_predict --seconds S             prints JSON lines with at least ms_per_patch, peak_rss_mib
  bench_train --batch B --steps N [--profile]   with ms_per_step, cpu_ms_per_step, peak_rss_mib and
                                        after --profile conv_share
A line may carry "mode" (such as "whole" or "pruned"), and each mode gets its row. Exit status 77
means that this processor cannot (bf16); the row then says so.

PyTorch takes tens of seconds for one training step at batch 32. Training is therefore measured for
Regular-LC unless variants are named, on all processors only. On two idle processors expect forty
minutes, twelve of them for training (--part train); --quick takes a few minutes and is rough.
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


def our_program(args, name):
    return os.path.join(args.build, "tests", "bench", name)


def predict_contenders(args, variant, precision, threads):
    """(key, command, environment) of everything that is compared in one group."""
    common = ["--variant", variant, "--precision", precision, "--threads", str(threads),
              "--seconds", str(args.seconds)]
    yield "ours", [our_program(args, "bench_predict"), *common], None
    if args.no_twin:
        return
    twin = [sys.executable, os.path.join(HERE, "twin.py"), "time", *common,
            "--batch", str(args.batch)]
    for habits in ("plain", "upstream"):
        yield f"torch {habits}", [*twin, "--habits", habits], None
    if args.all:
        yield "torch plain, nchw", [*twin, "--layout", "nchw"], None
        yield "torch plain, memory kept", twin, {**KEEP, "USPLIT_BENCH_ALLOCATOR": "keep"}


def train_contenders(args, variant, precision, threads):
    """The same for training steps, each after one that is not timed."""
    common = ["--variant", variant, "--precision", precision, "--threads", str(threads),
              "--batch", str(args.train_batch)]
    yield "ours", [our_program(args, "bench_train"), *common, "--steps", "3"], None
    if args.no_twin:
        return
    twin = [sys.executable, os.path.join(HERE, "twin_train.py"), "time", *common,
            "--warmup", "0" if args.quick else "1"]
    for habits in ("plain",) if args.quick else ("plain", "upstream"):
        yield f"torch {habits}", [*twin, "--habits", habits], None
    if args.all:
        yield "torch plain, memory kept", twin, {**KEEP, "USPLIT_BENCH_ALLOCATOR": "keep"}


def group(contenders, rounds):
    """{contender: rows of all rounds}, {contender: why there are none}."""
    rows, failures = {}, {}
    for _ in range(rounds):
        for key, command, env in contenders:
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


def ratios(rows, key, members):
    """How many times more of each member `key` takes than each mode of ours."""
    ours = [k for k in rows if k.startswith("ours")]
    if key in ours:
        return ""
    return "; ".join(", ".join(f"{median(rows[key], m) / median(rows[o], m):.1f}x" for m in members)
                     + (f" ({o[6:]})" if len(ours) > 1 else "") for o in ours)


def print_failures(failures):
    for key, reason in failures.items():
        print(f"  {key:<26}{reason}")


def print_predict(title, rows, failures):
    """One line per contender; ratios say how many times ours is faster, or smaller."""
    print(f"\n{title}")
    print(f"  {'':<26}{'ms/patch':>10}{'patches/s':>11}{'peak MiB':>10}  ratio to ours: time, memory")
    for key, group_rows in rows.items():
        ms, mib = median(group_rows, "ms_per_patch"), median(group_rows, "peak_rss_mib")
        print(f"  {key:<26}{ms:>10.2f}{1e3 / ms:>11.1f}{mib:>10.0f}  "
              f"{ratios(rows, key, ('ms_per_patch', 'peak_rss_mib'))}")
    print_failures(failures)


def print_train(title, rows, failures):
    print(f"\n{title}")
    print(f"  {'':<26}{'steps/s':>10}{'cpu s/step':>12}{'peak MiB':>10}  "
          "ratio to ours: time, cpu time, memory")
    for key, group_rows in rows.items():
        ms, cpu = median(group_rows, "ms_per_step"), median(group_rows, "cpu_ms_per_step")
        print(f"  {key:<26}{1e3 / ms:>10.3f}{cpu / 1e3:>12.2f}"
              f"{median(group_rows, 'peak_rss_mib'):>10.0f}  "
              f"{ratios(rows, key, ('ms_per_step', 'cpu_ms_per_step', 'peak_rss_mib'))}")
    print_failures(failures)


def print_profile(args, variant, precision, threads):
    """Where our step's time goes; a run of its own, because clocks around every op take time too."""
    found, reason = measure([our_program(args, "bench_train"), "--variant", variant,
                             "--precision", precision, "--threads", str(threads),
                             "--batch", str(args.train_batch), "--steps", "1", "--profile"])
    if reason:
        return
    print(f"  ours: {100 * (1 - found[0]['conv_share']):.0f} % of the processor time is not in "
          "convolutions")


def report(args, words, rows, failures, show):
    """One group to the screen and to the JSON file; whether ours ran (or had a reason not to)."""
    part, variant, precision, threads = words
    n_cpu, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    title = f"{part}, {variant}, {precision}, {threads} thread{'s' * (threads > 1)}"
    if part == "training":
        title += f", batch {args.train_batch}"
    if load > n_cpu + 0.5:
        title += f" (load {load:.1f} on {n_cpu} processors: rough figures)"
    show(title, rows, failures)
    sys.stdout.flush()
    if args.json:
        with open(args.json, "a", encoding="utf-8") as f:
            for key, group_rows in rows.items():
                for row in group_rows:
                    f.write(json.dumps({"part": part, "contender": key, **row}) + "\n")
    return not failures.get("ours", "").startswith("failed")


def predict_part(args, variants, precisions):
    fine = True
    for variant in variants:
        for precision in precisions:
            for threads in args.threads or sorted({1, len(os.sched_getaffinity(0))}):
                words = ("prediction", variant, precision, threads)
                found = group(list(predict_contenders(args, *words[1:])), args.rounds)
                fine &= report(args, words, *found, print_predict)
    return fine


def train_part(args, variants, precisions):
    fine = True
    for variant in variants:
        for precision in precisions:
            for threads in args.threads or [len(os.sched_getaffinity(0))]:
                words = ("training", variant, precision, threads)
                found = group(list(train_contenders(args, *words[1:])), args.train_rounds)
                fine &= report(args, words, *found, print_train)
                print_profile(args, *words[1:])
    return fine


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


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--build", default="build", help="our build directory")
    parser.add_argument("--part", choices=("predict", "train"), help="default: both")
    parser.add_argument("--variant", choices=(*VARIANTS, "all"), action="append",
                        help="default: all for prediction, regular for training")
    parser.add_argument("--precision", choices=("f32", "bf16"), action="append")
    parser.add_argument("--threads", type=int, action="append",
                        help="default: one and all for prediction, all for training")
    parser.add_argument("--batch", type=int, default=8,
                        help="PyTorch's when predicting (ours: one per worker)")
    parser.add_argument("--train-batch", type=int, help="of both (default 32, --quick 8)")
    parser.add_argument("--rounds", type=int, help="of prediction (default 3, --quick 1)")
    parser.add_argument("--train-rounds", type=int, help="of training (default 2, --quick 1)")
    parser.add_argument("--seconds", type=float, help="per prediction (default 5, --quick 1)")
    parser.add_argument("--quick", action="store_true", help="regular only, one round, rough")
    parser.add_argument("--all", action="store_true", help="NCHW and allocator-tuned PyTorch too")
    parser.add_argument("--no-twin", action="store_true", help="measure ours only")
    parser.add_argument("--json", metavar="FILE", help="append every measurement as a JSON line")
    args = parser.parse_args()
    for member, usual, quick in (("rounds", 3, 1), ("train_rounds", 2, 1), ("seconds", 5.0, 1.0),
                                 ("train_batch", 32, 8)):
        if getattr(args, member) is None:
            setattr(args, member, quick if args.quick else usual)
    return args


def main():
    args = parse()
    print(f"{cpu_words()}; {len(os.sched_getaffinity(0))} processors; "
          f"load {os.getloadavg()[0]:.1f}")
    named = VARIANTS if "all" in (args.variant or ()) else args.variant
    precisions, fine = args.precision or ("f32", "bf16"), True
    if args.part != "train":
        fine &= predict_part(args, named or (("regular",) if args.quick else VARIANTS), precisions)
    if args.part != "predict":
        fine &= train_part(args, named or ("regular",), precisions)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
