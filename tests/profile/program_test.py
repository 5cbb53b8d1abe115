#!/usr/bin/python3
"""Runs examples/profile as a user does: its files can be read, and docs/profile.md names every key of its JSON.

    tests/profile/program_test.py <profile>
"""
import json
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "profile.md"
CATEGORIES = {"parameter", "gradient", "optimizer_state", "activation", "input", "workspace", "total"}


def keys_of(value):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


class Program(unittest.TestCase):
    program = None

    def run_program(self, *options, status=0):
        done = subprocess.run([self.program, *options], capture_output=True, text=True)
        self.assertEqual(done.returncode, status, done.stderr)
        return done

    def test_writes_what_it_was_asked_for(self):
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("profile.json", "trace.json", "page.html")]
            done = self.run_program("--model", "lenet5_rgb32", "--batch", "4", "--optimizer", "adam", "--recompute", "segments:2",
                                    "--epoch", "--steps", "3", "--json", files[0], "--trace", files[1], "--report", files[2])
            profile, trace = (json.loads(f.read_text()) for f in files[:2])
            page = files[2].read_text()
        for part in ("ridge point", "Who holds the peak", "tensor contraction", "An epoch with its data"):
            self.assertIn(part, done.stdout)
        self.assertEqual((profile["model"], profile["batch"], profile["threads"] > 0), ("lenet5_rgb32", 4, True))
        self.assertEqual(profile["memory"]["predicted_peak_bytes"], profile["memory"]["measured_peak_bytes"])
        self.assertEqual(profile["epoch"]["samples"], 64)
        self.assertEqual(len(trace["traceEvents"]) > len(profile["ops"]), True)
        self.assertIn("roofline", page)

        known = set(re.findall(r"`(\w+)`", DOCS.read_text())) | CATEGORIES | {"m", "v"}  # Adam's slots
        self.assertEqual(set(keys_of(profile)) - known, set())

    def test_mistakes_are_one_line(self):
        done = self.run_program("--model", "nothing", status=1)
        self.assertRegex(done.stderr, r"^error: .*there is no model 'nothing'.*\n$")
        done = self.run_program("--model", "lenet5", "--batch", "2", "--steps", "1", "--json", "/nowhere/a.json", status=1)
        self.assertRegex(done.stderr, r"^error: cannot write /nowhere/a.json.*\n$")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    Program.program = sys.argv.pop(1)
    unittest.main(verbosity=2)
