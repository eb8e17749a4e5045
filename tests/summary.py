#!/usr/bin/env python3
"""Turns machine-readable results into the lines a person reads at the end of a run.

  summary.py testlog.json     meson's test log -> "N passed, N failed[, N skipped]", status 1 if any
                              failed. Programs of cmocka and of unittest count with each case.
  summary.py --cover FILE     gcovr's JSON summary -> one line per folder
"""
import json
import re
import sys

CASES = {
    "passed": re.compile(r"^\[  PASSED  \] (\d+) test\(s\)", re.M),
    "failed": re.compile(r"^\[  FAILED  \] (\d+) test\(s\)", re.M),
    "skipped": re.compile(r"^\[  SKIPPED \] (\d+) test\(s\)", re.M),
}
GOOD = {"OK", "EXPECTEDFAIL"}
UNITTEST = re.compile(r"^Ran (\d+) tests? in .*\n\n(?:OK|FAILED)(?: \((.*)\))?$", re.M)


def count_unittest(text, counts):
    """Adds what Python's unittest reports: "Ran 5 tests ...", "FAILED (failures=1, skipped=1)"."""
    for ran, notes in UNITTEST.findall(text):
        kinds = {k.strip(): int(n) for k, n in re.findall(r"([\w ]+)=(\d+)", notes)}
        skipped = kinds.get("skipped", 0)
        failed = min(int(ran) - skipped, kinds.get("failures", 0) + kinds.get("errors", 0))
        counts["skipped"] += skipped
        counts["failed"] += failed
        counts["passed"] += int(ran) - skipped - failed


def count_cases(entry):
    """Cases of one test program: what its framework says, or the program itself as one case."""
    text = entry.get("stdout", "") + "\n" + entry.get("stderr", "")
    counts = {k: sum(int(n) for n in rx.findall(text)) for k, rx in CASES.items()}
    count_unittest(text, counts)
    result = entry["result"]
    if result == "SKIP":
        return {"passed": 0, "failed": 0, "skipped": 1}
    if result in GOOD:
        counts["failed"] = 0
        if counts["passed"] + counts["skipped"] == 0:
            counts["passed"] = 1
    else:
        # A crash leaves no summary: the program still failed once.
        counts["failed"] = max(counts["failed"], 1)
    return counts


def summarise(path):
    total = {"passed": 0, "failed": 0, "skipped": 0}
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            entries = [json.loads(line) for line in f if line.strip()]
    except OSError:
        entries = []
    if not entries:
        print("no test ran")
        print("0 passed, 1 failed")
        return 1
    for entry in entries:
        for key, n in count_cases(entry).items():
            total[key] += n
    line = f"{total['passed']} passed, {total['failed']} failed"
    if total["skipped"]:
        line += f", {total['skipped']} skipped"
    print(line)
    return 1 if total["failed"] else 0


def cover(path):
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    folders = {}
    for entry in data["files"]:
        name = entry["filename"].rsplit("/", 1)[0]
        sums = folders.setdefault(name, [0, 0, 0, 0])
        sums[0] += entry["line_covered"]
        sums[1] += entry["line_total"]
        sums[2] += entry["branch_covered"]
        sums[3] += entry["branch_total"]
    print(f"{'folder':<16}{'lines':>16}{'branches':>18}")
    for name, (lc, lt, bc, bt) in sorted(folders.items()):
        print(f"{name:<16}{lc:>7}/{lt:<6}{100 * lc / max(lt, 1):4.0f} %"
              f"{bc:>7}/{bt:<6}{100 * bc / max(bt, 1):4.0f} %")
    return 0


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--cover":
        sys.exit(cover(sys.argv[2]))
    if len(sys.argv) == 2:
        sys.exit(summarise(sys.argv[1]))
    sys.exit(__doc__)
