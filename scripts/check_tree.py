#!/usr/bin/python3
"""Refuses what should not stand in a finished tree: notes to self, and paths of the machine it was written on.

    scripts/check_tree.py              check the files that git knows or would add (all files, outside a git checkout)
    scripts/check_tree.py --self-test  check the checker
"""
import re
import subprocess
import sys
from pathlib import Path

# Spelled in pieces so that this file passes its own check.
RULES = [
    (re.compile(r"\b(" + "TO" + "DO|FIX" + r"ME|XX" + r"X)\b"), "a note to self: do it, or open an issue"),
    (re.compile(r"(?<![\w.~/$}])/" + r"(home|work|root|Users|mnt|scratch)/"), "a path of somebody's machine"),
]
BINARY = {".gz", ".png", ".jpg", ".npy", ".ico"}
LONGEST = 132


def check_text(path, text):
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, why in RULES:
            if pattern.search(line):
                yield f"{path}:{number}: {why}: {line.strip()}"
        if path.endswith((".h", ".cpp", ".py", ".sh", ".cmake", ".txt")) and len(line) > LONGEST:
            yield f"{path}:{number}: {len(line)} columns; {LONGEST} is the limit"
        if path.endswith((".h", ".cpp", ".py", ".sh", ".cmake")) and line != line.rstrip():
            yield f"{path}:{number}: white space at the end of the line"
    if text and not text.endswith("\n"):
        yield f"{path}: no newline at the end of the file"


def files_of(root):
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, capture_output=True, check=True
        ).stdout
        return [root / name for name in listed.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        return [p for p in root.rglob("*") if not {"build", ".git"} & set(p.relative_to(root).parts)]


def main():
    if sys.argv[1:] == ["--self-test"]:
        bad = ["// TO" + "DO: later\n", "# FIX" + "ME\n", "see /ho" + "me/me/notes\n", "cd /wo" + "rk/main\n"]
        bad += ["int a; \n", "int a;", "//" + 131 * "-" + "\n"]
        good = ["// what to do about it\n", "build/work/a\n", "${prefix}/work/x\n", "https://example.org/home/page\n"]
        faults = [f"not refused: {text!r}" for text in bad if not list(check_text("a.h", text))]
        faults += [f"refused: {why}" for text in good for why in check_text("a.h", text)]
        count, what = len(bad) + len(good), "examples"
    else:
        root = Path(__file__).resolve().parent.parent
        files = [f for f in files_of(root) if f.is_file() and not f.is_symlink() and f.suffix not in BINARY]
        faults = []
        for file in files:
            try:
                faults += check_text(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                faults.append(f"{file.relative_to(root).as_posix()}: not UTF-8; binary files are named in BINARY")
        count, what = len(files), "files"
    print("\n".join(faults + [f"tree: {count} {what}, {len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
