#!/usr/bin/python3
"""Writes packed.inc beside itself from scikit-learn's copy of the UCI digits.

    data/digits/pack.py <digits.csv.gz>
"""
import gzip
import sys
import zlib
from pathlib import Path

SAMPLES, PIXELS = 1797, 64
WORDS_A_LINE = 6


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with gzip.open(sys.argv[1], "rt") as file:
        rows = [bytes(int(float(field)) for field in line.split(",")) for line in file]
    assert len(rows) == SAMPLES and all(len(row) == PIXELS + 1 for row in rows)
    assert max(max(row[:PIXELS]) for row in rows) == 16 and {row[PIXELS] for row in rows} == set(range(10))

    deflate = zlib.compressobj(9, zlib.DEFLATED, 15, 9, zlib.Z_FILTERED)
    packed = deflate.compress(b"".join(rows)) + deflate.flush()
    packed += bytes(-len(packed) % 8)
    words = [f"0x{int.from_bytes(packed[i:i + 8], 'little'):016x}," for i in range(0, len(packed), 8)]

    lines = [" ".join(words[i:i + WORDS_A_LINE]) for i in range(0, len(words), WORDS_A_LINE)]
    head = "// Written by pack.py; see README.md for creators and licence (CC BY 4.0).\n"
    Path(__file__).with_name("packed.inc").write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
