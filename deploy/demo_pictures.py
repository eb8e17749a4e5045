#!/usr/bin/env python3
"""Two helpers of demo.sh, on Python's standard library alone.

guess TRUTH.tif OUT.npy         the guess that knows nothing: the input image as every channel
picture TRUTH.tif SPLIT.tif OUT.png   input, then truth and split of each channel, side by side
"""
import array
import os
import struct
import sys
import zlib

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "support"))
import tiffpy  # noqa: E402


def read(path):
    """The pages of the first frame as lists of numbers, and their size."""
    with open(path, "rb") as f:
        pages = tiffpy.read_tiff(f.read())[:2]
    planes = [page.data for page in pages]
    return planes, pages[0].width, pages[0].height


def mean_of(planes):
    return array.array("f", [sum(v) / len(planes) for v in zip(*planes)])


def grey(plane):
    """0..255 between the 0.5 and the 99.5 percentile."""
    order = sorted(plane)
    low, high = order[len(order) // 200], order[-1 - len(order) // 200]
    scale = 255 / (high - low) if high > low else 0
    return bytes(min(255, max(0, round((v - low) * scale))) for v in plane)


def write_png(path, pictures, width, height, gap=4):
    white = b"\xff" * gap
    rows = b"".join(b"\0" + white.join(p[y * width:(y + 1) * width] for p in pictures)
                    for y in range(height))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data))
    total = len(pictures) * (width + gap) - gap
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", total, height, 8, 0, 0,
                                                                0, 0)) +
                chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def main():
    if sys.argv[1] == "guess":
        truth, width, height = read(sys.argv[2])
        half = mean_of(truth)
        with open(sys.argv[3], "wb") as f:
            f.write(tiffpy.make_npy(half * len(truth), (1, len(truth), height, width)))
        return
    truth, width, height = read(sys.argv[2])
    split, _, _ = read(sys.argv[3])
    pictures = [mean_of(truth)] + [p for pair in zip(truth, split) for p in pair]
    write_png(sys.argv[4], [grey(p) for p in pictures], width, height)


main()
