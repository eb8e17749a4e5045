#!/usr/bin/env python3
"""Makes the C table of the dashboard's files (server/us_web.h).

  embed.py OUT.c FILE...     a file may be NAME=PATH to be served under another name

Each is held plain and, where that is shorter, gzipped; the gzip carries no time stamp, so that the
same sources give the same bytes. NAME= without a path embeds an empty file of that name: the page
may refer to a library that this build does not have.
"""
import gzip
import hashlib
import os
import sys

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


def array(name, data):
    rows = [",".join(map(str, data[i:i + 32])) for i in range(0, len(data), 32)]
    return "static const unsigned char %s[] = {\n%s\n};\n" % (name, ",\n".join(rows) or "0")


def entry(number, name, path):
    data = b""
    if path:
        with open(path, "rb") as f:
            data = f.read()
    packed = gzip.compress(data, 9, mtime=0)
    code, row = array("file_%d" % number, data), ["NULL", "0"]
    if len(packed) < len(data):
        code += array("gzip_%d" % number, packed)
        row = ["gzip_%d" % number, str(len(packed))]
    row = ['"%s"' % name, '"%s"' % TYPES[os.path.splitext(name)[1]],
           '"%s"' % hashlib.sha256(data).hexdigest(), "file_%d" % number, str(len(data)), *row]
    return code, "    {%s}," % ", ".join(row)


def main(out, files):
    named = [f.split("=", 1) if "=" in f else [os.path.basename(f), f] for f in files]
    parts = [entry(i, name, path) for i, (name, path) in enumerate(sorted(named))]
    with open(out, "w", encoding="ascii") as f:
        f.write('/* Made by server/web/embed.py. */\n#include <stddef.h>\n#include "us_web.h"\n\n')
        f.writelines(code for code, _ in parts)
        f.write("const struct us_web_file us_web_files[] = {\n%s\n};\n" %
                "\n".join(row for _, row in parts))
        f.write("const int us_n_web_files = %d;\n" % len(parts))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
