#!/usr/bin/python3
"""Runs the lecture's programs and writes what they find into their pages.

    docs/lecture/make.py build/release                   every page
    docs/lecture/make.py build/release metrics recompute these
    docs/lecture/make.py build/release metrics -- --size 224

What follows -- goes to the programs. docs/lecture/NAME.md is the page of examples/lecture/NAME. In it

    <!-- output --> ... <!-- end -->      becomes what the program printed, and
    <!-- = EXPRESSION -->...<!-- -->      the value of a Python expression over its JSON. It sees the keys of the JSON as names,
                                          and row(list, key=value), the element of a list in which key is value; and machine,
                                          which names the CPU, how many of its cores the system has, and the date.

Where there is a docs/plots/NAME.py, it draws docs/plots/NAME.svg from the same JSON.
"""
import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = re.compile(r"(<!-- output -->\n).*?(<!-- end -->)", re.DOTALL)
VALUE = re.compile(r"(<!-- = (.+?) -->).*?(<!-- -->)", re.DOTALL)


def row(rows, **wanted):
    """The one element of a list of objects that has these values."""
    found = [r for r in rows if all(r[key] == value for key, value in wanted.items())]
    if len(found) != 1:
        raise KeyError(f"{len(found)} rows with {wanted}")
    return found[0]


def render(page, printed, results):
    """The text of a page with its blocks and values replaced. Raises an error that names the expression that has no value."""

    def value(match):
        try:
            text = str(eval(match[2], {"__builtins__": {"min": min, "max": max, "sum": sum}, "row": row, **results}))
        except Exception as error:
            raise ValueError(f"{match[2]}: {error!r}") from error
        return match[1] + text + match[3]

    block = "".join(f"    {line}\n" if line else "\n" for line in printed.rstrip("\n").split("\n"))
    page, blocks = OUTPUT.subn(lambda match: f"{match[1]}\n{block}\n{match[2]}", page)
    if blocks != 1:
        raise ValueError(f"{blocks} blocks for the output instead of one")
    return VALUE.sub(value, page)


def machine():
    """Where and when the numbers were made."""
    cpu = dict(re.findall(r"^(vendor_id|model name|cpu family|model)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    name = f"{cpu['model name']}, family {cpu['cpu family']} model {cpu['model']}" if cpu else platform.processor()
    return f"{name}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"


def run(build, name, options=()):
    """Runs a program; what it printed, and its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        program = Path(build) / "examples" / "lecture" / name
        done = subprocess.run([program, *options, "--json", out], stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout, json.loads(out.read_text())


def draw(name, results):
    """The picture of a page as SVG; None where it has none."""
    plot = HERE.parent / "plots" / f"{name}.py"
    if not plot.is_file():
        return None
    done = subprocess.run([plot, "/dev/stdin"], input=json.dumps(results), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def main():
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description="Writes the numbers of docs/lecture/", epilog="-- OPTIONS for the programs")
    parser.add_argument("build", help="build folder, such as build/release")
    parser.add_argument("names", nargs="*", help="pages; all when none is named")
    args = parser.parse_args(sys.argv[1:cut])
    pages = sorted(page for page in HERE.glob("*.md") if page.stem != "README")
    for page in [HERE / f"{name}.md" for name in args.names] or pages:
        printed, results = run(args.build, page.stem, sys.argv[cut + 1:])
        page.write_text(render(page.read_text(), printed, {**results, "machine": machine()}))
        picture = draw(page.stem, results)
        if picture:
            (HERE.parent / "plots" / f"{page.stem}.svg").write_text(picture)
        print(f"{os.path.relpath(page)}: written")


if __name__ == "__main__":
    main()
