#!/usr/bin/env python3
"""The house rules as a test: what docs/STYLE.md says in words, checked in every file.

  tidy.py ROOT               status 1 and one line "file:line: rule: why" for each violation
  tidy.py --longest N ROOT   the N longest functions and files

Exceptions are in ALLOWED below, each with its reason; there is no comment that silences a rule.
"""
import os
import re
import shutil
import subprocess
import sys

import csource

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 800
FOLDERS = ("core", "proto", "server", "cuda", "tests", "deploy", "systemd", "docs", ".ci")
C_SUFFIXES = (".c", ".h", ".cu", ".cuh", ".cpp", ".def")
TEXT_SUFFIXES = C_SUFFIXES + (".py", ".sh", ".md", ".build", ".txt", ".service", ".conf", ".example",
                              ".supp", ".yml", ".yaml", ".json", ".html", ".css", ".js")
TEXT_NAMES = ("dev", "run", "LICENSE", "meson_options.txt")
SKIPPED_FOLDERS = ("corpus", "data", "__pycache__")

# Which folder of ours may include which (docs/ARCHITECTURE.md). None: all of that folder.
MAY_INCLUDE = {
    "core": {"core": None},
    "proto": {"proto": None, "core": {"us_status.h", "us_status.def", "us_limits.h"}},
    "cuda": {"cuda": None, "core": None},
    "server": {"server": None, "core": None, "proto": None, "cuda": {"us_cuda.h"}},
    "tests": {"tests": None, "core": None, "proto": None, "server": None, "cuda": None},
}

# Headers of other people's libraries: pattern -> where it may appear (patterns on the file's path).
VENDOR = (
    (r"dnnl[\w.]*\.h", (r"core/cpu/us_cpu_dnn\w*\.[ch]",)),
    (r"omp\.h", (r"core/cpu/",)),
    (r"cudnn\w*\.h", (r"cuda/us_cudnn\w*\.\w+", r"tests/cuda/")),
    (r"(cuda|curand|cublas|cooperative_groups|driver_types)\w*\.h", (r"cuda/",)),
    (r"microhttpd\.h", (r"server/",)),
    (r"gnutls/\w+\.h", (r"server/us_tls\.[ch]",)),
    (r"curl/curl\.h", (r"server/cli/us_http_client\.c",)),
    (r"sqlite3\.h", (r"server/", r"tests/")),
    (r"jansson\.h", (r"proto/", r"server/", r"tests/")),
    (r"nettle/\w+\.h", (r"core/us_model_file\w*\.[ch]", r"core/us_dataset_hash\.c",
                        r"core/us_checkpoint\.c", r"server/", r"tests/")),
    (r"(tiff|tiffio|tiffconf)\.h", (r"proto/", r"tests/")),
    (r"(zstd|zstd_errors|zlib|expat)\.h", (r"proto/", r"tests/")),
    (r"png\.h", (r"proto/", r"server/", r"tests/")),
    (r"cmocka\.h", (r"tests/",)),
)
LIBC = re.compile(r"(sys/|arpa/|netinet/|linux/|asm/)\w+\.h|"
                  r"(assert|ctype|dirent|dlfcn|errno|fcntl|fenv|float|fnmatch|ftw|getopt|grp|immintrin|"
                  r"inttypes|limits|locale|malloc|math|netdb|poll|pthread|pwd|regex|sched|semaphore|"
                  r"setjmp|signal|spawn|stdalign|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib|"
                  r"string|strings|syslog|termios|threads|time|unistd|cpuid)\.h")
MATH_MAY_INCLUDE = {"stdint.h", "math.h", "string.h"}  # string.h: memcpy casts bits

BANNED = {
    "sprintf": "no bound on what it writes; use snprintf",
    "vsprintf": "no bound on what it writes; use vsnprintf",
    "strcpy": "no bound on what it writes; use snprintf or memcpy with a known length",
    "strcat": "no bound on what it writes; use snprintf",
    "strncpy": "may leave the string without its NUL; use snprintf",
    "strtok": "keeps hidden state and eats its input; use strcspn",
    "atoi": "cannot report an error; use strtol and check the end",
    "atol": "cannot report an error; use strtol and check the end",
    "atoll": "cannot report an error; use strtoll and check the end",
    "atof": "cannot report an error; use strtod and check the end",
    "gets": "no bound on what it writes",
    "alloca": "no way to fail; use an arena",
    "system": "runs a shell; use posix_spawn with an argument list",
    "popen": "runs a shell; use posix_spawn with an argument list",
    "tmpnam": "races with other programs; use mkstemp",
    "mktemp": "races with other programs; use mkstemp",
    "rand": "hidden state, so results depend on thread order; use math/us_philox_math.h",
    "srand": "hidden state, so results depend on thread order; use math/us_philox_math.h",
    "localtime": "returns a shared buffer; use localtime_r",
    "gmtime": "returns a shared buffer; use gmtime_r",
    "ctime": "returns a shared buffer; use strftime",
    "setjmp": "jumps over clean-up; return a status",
    "longjmp": "jumps over clean-up; return a status",
}
# Library code returns and never logs or exits; the program that knows the context does.
LIBRARY = ("core/", "proto/", "cuda/")
LIBRARY_BANNED = {
    "exit": "library code returns a status",
    "_exit": "library code returns a status",
    "abort": "library code returns a status; US_ASSERT is for our own bugs",
    "printf": "library code does not print",
    "puts": "library code does not print",
    "putchar": "library code does not print",
    "perror": "library code does not print",
    "syslog": "library code does not log",
}
SERVER_BANNED = {"exit": "only a program's main file ends the process"}
PROGRAMS = re.compile(r"server/(cli/)?(usplitd?|main)\.c")

WORDS = re.compile(r"\b(TODO|FIXME|XXX|[Nn]ot implemented|[Ss]tub(?:s|bed)?)\b")
MACHINE = re.compile(r"/(?:work|root|tmp)/|/home/\w|"
                     r"\b(?:pypi\.org|docker\.io|ghcr\.io|quay\.io|nvcr\.io|deb\.debian\.org)\b")

# (rule, path pattern): why the rule does not hold there.
ALLOWED = {
    ("banned", r"core/us_status\.c"): "us_assert_failed says what broke and aborts: our own bug",
    ("word", r"server/us_problem\.c"): "the reason phrase of HTTP status 501",
    ("word", r"tests/tidy/"): "the rule's own definition and its test",
    ("machine-path", r"tests/tidy/"): "the rule's own definition and its test",
    ("banned", r"tests/tidy/"): "samples of the test",
}


class Source:
    """One file: path relative to the root, raw text, blanked code and lines of both."""

    def __init__(self, root, path):
        self.path = path
        with open(os.path.join(root, path), "rb") as f:
            raw = f.read()
        self.text = raw.decode("utf-8", errors="replace")
        self.lines = self.text.split("\n")
        self.is_c = path.endswith(C_SUFFIXES)
        self.code = csource.blank(self.text) if self.is_c else ""
        self.code_lines = self.code.split("\n")
        self.folder = path.split("/")[0] if "/" in path else ""
        self.name = os.path.basename(path)


class Tree:
    """What a rule must know beyond its file: who has which header, and words that say `static`."""

    def __init__(self, sources):
        self.headers, self.static_words = {}, {"static"}
        for src in sources:
            if src.path.endswith((".h", ".def", ".cuh", ".inc")):
                self.headers.setdefault(src.name, []).append(src.path)
            self.static_words |= set(re.findall(r"^#define (\w+) +static\b", src.code, re.M))


def is_text(path):
    name = os.path.basename(path)
    return path.endswith(TEXT_SUFFIXES) or name in TEXT_NAMES or name.startswith(".clang")


def load(root):
    """Every text file of ours under `root`, by walking: a release has no git."""
    paths = [n for n in os.listdir(root) if os.path.isfile(os.path.join(root, n)) and is_text(n)]
    for folder in FOLDERS:
        for base, dirs, names in os.walk(os.path.join(root, folder)):
            dirs[:] = sorted(d for d in dirs if d not in SKIPPED_FOLDERS)
            paths += [os.path.relpath(os.path.join(base, n), root) for n in names if is_text(n)]
    return [Source(root, p) for p in sorted(paths)]


def check_includes(src, tree):
    """Include direction, vendor headers in their places, core on libc alone."""
    if src.folder not in MAY_INCLUDE:
        return
    for number, line in enumerate(src.lines, 1):
        m = re.match(r'\s*#\s*include\s*([<"])([^>"]+)[>"]', line)
        if not m:
            continue
        target, name = m.group(2), os.path.basename(m.group(2))
        if "core/math/" in src.path and target not in MATH_MAY_INCLUDE \
                and not any(h.startswith("core/math/") for h in tree.headers.get(name, ())):
            yield number, "include", f"{target}: a shared formula includes only <stdint.h>, <math.h>, <string.h>"
        elif name in tree.headers:
            yield from check_own_include(src, number, name, tree.headers[name])
        else:
            yield from check_vendor_include(src, number, target)


def check_own_include(src, number, name, homes):
    allowed = MAY_INCLUDE[src.folder]
    folders = {h.split("/")[0] for h in homes}
    if src.folder in folders:
        return
    for folder in folders:
        if folder in allowed and (allowed[folder] is None or name in allowed[folder]):
            return
    yield number, "include", f"{src.folder}/ may not include {sorted(homes)[0]}"


def check_vendor_include(src, number, target):
    for pattern, places in VENDOR:
        if re.fullmatch(pattern, target):
            if not any(re.match(p, src.path) for p in places):
                yield number, "include", f"{target} belongs in {' or '.join(places)} only"
            return
    if not LIBC.fullmatch(target):
        yield number, "include", f"{target}: neither ours, nor libc, nor a library we use"


def check_functions(src, tree):
    """Length and name of each function."""
    if not src.is_c or src.path.endswith(".def"):
        return
    for f in csource.functions(src.code):
        if f.n_lines > MAX_FUNCTION_LINES:
            yield (f.line, "function-length",
                   f"{f.name} has {f.n_lines} lines of code, the limit is {MAX_FUNCTION_LINES}")
        if src.folder in ("core", "proto", "server") and not tree.static_words & set(f.signature.split()) \
                and not re.match(r"us_|usi_|main$|[A-Z0-9_]+$", f.name):
            yield f.line, "name", f"{f.name} is visible to the linker and lacks the prefix us_"


def check_length(src, _):
    n = len(src.lines) - 1
    if src.name != "LICENSE" and not src.path.endswith((".md", ".json")) and n > MAX_FILE_LINES:
        yield n, "file-length", f"{n} lines, the limit is {MAX_FILE_LINES}"


def check_banned(src, _):
    """Functions with a better replacement, and what library code must not do."""
    if not src.is_c:
        return
    banned = dict(BANNED)
    if src.path.startswith(LIBRARY):
        banned.update(LIBRARY_BANNED)
    elif src.folder == "server" and not PROGRAMS.match(src.path):
        banned.update(SERVER_BANNED)
    elif src.folder == "tests":
        banned.pop("system")
    pattern = re.compile(r"(?<![\w.>])(" + "|".join(banned) + r")\s*\(")
    for number, line in enumerate(src.code_lines, 1):
        for m in pattern.finditer(line):
            yield number, "banned", f"{m.group(1)}: {banned[m.group(1)]}"
        if src.path.startswith(LIBRARY) and re.search(r"\bfprintf\s*\(\s*(stderr|stdout)\b", line):
            yield number, "banned", "fprintf: library code does not print"


def check_products(src, _):
    """malloc(n * size) overflows in silence; calloc and reallocarray check the product."""
    if not src.is_c or src.folder == "tests":
        return
    for m in re.finditer(r"\b(malloc|realloc)\s*\(", src.code):
        depth, end = 1, m.end()
        while end < len(src.code) and depth:
            depth += {"(": 1, ")": -1}.get(src.code[end], 0)
            end += 1
        args = re.sub(r"sizeof\s*\(?\s*\*+", "sizeof ", src.code[m.end():end - 1])
        args = re.sub(r"\((?:const\s+)?(?:struct\s+)?\w+\s*\*+\)", "", args)
        if re.search(r"[\w)\]]\s*\*\s*[\w(]", args):
            yield (src.code.count("\n", 0, m.start()) + 1, "unchecked-product",
                   f"{m.group(1)} of a product; use calloc or reallocarray")


def check_habits(src, _):
    """One clean-up label; struct and enum by name; `_us` is our prefix, never microseconds."""
    if not src.is_c:
        return
    for number, line in enumerate(src.code_lines, 1):
        m = re.search(r"\bgoto\s+(\w+)", line)
        if m and m.group(1) != "out" and src.folder != "tests":
            yield number, "goto", f"goto {m.group(1)}: the one label is out:, for clean-up"
        if re.match(r"\s*typedef\s+(struct|enum|union)\b[^(]*$", line):
            yield number, "typedef", "structs and enums keep their tag; typedef is for callbacks"
        m = re.search(r"\b[a-z]\w*_us\b", line)
        if m:
            yield number, "unit", f"{m.group(0)}: say _ns, _ms or _s; us_ is our prefix"


def check_words(src, _):
    for number, line in enumerate(src.lines, 1):
        m = WORDS.search(line)
        if m:
            yield number, "word", f"'{m.group(1)}': finish it or write it into docs/KNOWN_RISKS.md"
        m = MACHINE.search(line)
        if m:
            yield number, "machine-path", f"'{m.group(0)}' exists on one machine only"


def check_space(src, _):
    for number, line in enumerate(src.lines, 1):
        if "\t" in line:
            yield number, "space", "a tab; we indent with blanks"
        if line != line.rstrip():
            yield number, "space", "blanks (or a carriage return) at the end of the line"
    if "\ufffd" in src.text:
        yield 1, "space", "not UTF-8"
    if src.text and not src.text.endswith("\n"):
        yield len(src.lines), "space", "no newline at the end of the file"


def check_guard(src, _):
    if not src.path.endswith((".h", ".cuh")):
        return
    guard = re.sub(r"\W", "_", src.name).upper()
    if not guard.startswith("US_"):
        guard = ("(US_)?" if src.folder == "tests" else "US_") + guard
    if not re.search(rf"^#ifndef ({guard})\n#define \1$", src.text, re.M):
        yield 1, "guard", f"expected #ifndef {guard} and #define {guard}"


def check_opening(src, _):
    """Each source says first what it is."""
    lines = [x for x in src.lines if x.strip()]
    if src.is_c:
        ok = bool(lines) and lines[0].startswith(("/*", "//")) \
            and len(" ".join(lines[:3]).strip("/* ")) >= 20
    elif src.path.endswith(".py"):
        ok = any(x.startswith('"""') for x in lines[:2])
    elif src.path.endswith(".sh") or src.path == "dev":
        ok = len(lines) > 1 and lines[1].startswith("# ")
    else:
        ok = True
    if not ok:
        yield 1, "opening", "the file does not open with a comment that says what it is"


def check_built(sources):
    """A C file that no meson.build names is dead, and a test nobody registered never runs."""
    builds = "\n".join(s.text for s in sources if s.name == "meson.build")
    for src in sources:
        if not src.path.endswith((".c", ".cu", ".cpp")):
            continue
        stem = re.sub(r"^test_", "", src.name.rsplit(".", 1)[0])
        names = {src.name, src.name.rsplit(".", 1)[0]}
        if src.path.startswith("tests/"):
            names |= {stem, re.sub(r"^(fuzz|cases)_", "", stem)}
        if not any(re.search(rf"'(?:\w+/)*{re.escape(n)}'", builds) for n in names):
            yield src.path, 1, "unbuilt", "no meson.build names this file"


def check_format(root, sources):
    tool = shutil.which("clang-format-14") or shutil.which("clang-format")
    version = ""
    if tool:
        version = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout
    m = re.search(r"version (\d+)", version)
    if not m or m.group(1) != "14":
        print("note: formatting not checked, that needs clang-format 14 "
              f"(found: {version.strip() or 'none'})")
        return
    paths = [s.path for s in sources if s.path.endswith((".c", ".h", ".cu", ".cuh", ".cpp"))]
    if not paths:
        return
    run = subprocess.run([tool, "--dry-run", "--Werror", "--ferror-limit=1", *paths], cwd=root,
                         capture_output=True, text=True)
    seen = set()
    for m in re.finditer(r"^(\S+?):(\d+):\d+: error: code should be clang-formatted", run.stderr,
                         re.M):
        if m.group(1) not in seen:
            seen.add(m.group(1))
            yield m.group(1), int(m.group(2)), "format", "run ./dev fmt"
    if run.returncode and not seen:
        yield "", 0, "format", run.stderr.strip()


PER_FILE = (check_includes, check_functions, check_length, check_banned, check_products,
            check_habits, check_words, check_space, check_guard, check_opening)


def is_allowed(rule, path):
    return any(rule == r and re.match(p, path) for r, p in ALLOWED)


def violations(root, formatting=True):
    sources = load(root)
    tree = Tree(sources)
    found = []
    for src in sources:
        for check in PER_FILE:
            found += [(src.path, *v) for v in check(src, tree)]
    found += check_built(sources)
    if formatting:
        found += check_format(root, sources)
    return [v for v in found if not is_allowed(v[2], v[0])], len(sources)


def longest(root, count):
    rows, files, share = [], [], []
    for src in load(root):
        if src.is_c:
            rows += [(f.n_lines, f.name, f"{src.path}:{f.line}") for f in csource.functions(src.code)]
            files.append((len(src.lines) - 1, src.path))
            if src.folder != "tests":
                share.append((csource.comment_share(src.text), len(src.lines)))
    rows.sort(reverse=True)
    for n, name, where in rows[:count]:
        print(f"{n:5d}  {name:<40} {where}")
    print()
    for n, path in sorted(files, reverse=True)[:count]:
        print(f"{n:5d}  {path}")
    if rows:
        lengths = sorted(r[0] for r in rows)
        comments = sum(s * n for s, n in share) / max(sum(n for _, n in share), 1)
        print(f"\n{len(rows)} functions, median {lengths[len(lengths) // 2]} lines, 90th percentile "
              f"{lengths[len(lengths) * 9 // 10]}; comments {100 * comments:.0f} % without the tests")


def main(argv):
    if len(argv) == 4 and argv[1] == "--longest" and argv[2].isdigit():
        longest(argv[3], int(argv[2]))
        return 0
    if len(argv) != 2:
        sys.exit(__doc__)
    found, n_files = violations(argv[1])
    for path, line, rule, why in found:
        print(f"{path}:{line}: {rule}: {why}")
    print(f"{n_files} files, {len(found)} violations")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
