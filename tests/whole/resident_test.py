#!/usr/bin/python3
"""The process's own peak is the tracker's, within 5 %, on models over 200 MB: what is counted is what is used.

    tests/whole/resident_test.py <compare_checkpointing> [--all] [--steps N]

Runs one strategy a process and compares the process's peak resident memory with the tracker's peak and the size of the loaded
program (what was resident when main began). Without --all: one case, in seconds.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

MOBILENET = ("--model", "mobilenet_v2", "--size", "224", "--batch")
RESNET = ("--model", "preresnet", "--depth", "164", "--batch")
# Long segments leave the most free memory between blocks in use, and smaller totals forgive less.
FAST = [((*MOBILENET, "12"), "segments:6")]
ALL = FAST + [
    ((*model, batch), strategy)
    for model, batch in ((MOBILENET, "16"), (RESNET, "32"))
    for strategy in ("vanilla", "sqrt", "segments:4", "segments:6", "segments:10", "budget:400000000")
]
LEAST, MOST = 200e6, 1.05


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--steps", type=int, default=0)
    arguments = parser.parse_args()
    faults = []
    for task, strategy in ALL if arguments.all else FAST:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run.json"
            steps = str(arguments.steps or (10 if arguments.all else 3))
            command = [arguments.program, *task, "--optimizer", "momentum", "--strategies", strategy, "--steps", steps,
                       "--threads", "2"]
            done = subprocess.run([*command, "--json", out], capture_output=True, text=True)
            if done.returncode != 0:
                faults.append(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
                continue
            (run,) = json.loads(out.read_text())
        counted, program, used = run["peak_bytes"], run["program_bytes"], run["process_peak_bytes"]
        ratio = used / (counted + program)
        small = counted < LEAST
        print(
            f"{' '.join(task[1::2]):22} {strategy:18} tracked {counted / 1e6:7.1f} MB, program {program / 1e6:4.1f} MB, "
            f"process {used / 1e6:7.1f} MB: {ratio:.4f}" + (" (below 200 MB: nothing is promised)" if small else ""),
            flush=True,
        )
        if small and not arguments.all:
            faults.append(f"{' '.join(command)}: the tracker's peak is below 200 MB; take a larger batch")
        if not small and ratio > MOST:
            faults.append(f"{' '.join(command)}: the process took {ratio:.4f} of what is accounted for")
        if ratio < 0.98:
            faults.append(f"{' '.join(command)}: more is counted than used ({ratio:.4f})")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
