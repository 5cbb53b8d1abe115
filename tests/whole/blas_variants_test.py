#!/usr/bin/python3
"""The same bits whatever OpenBLAS is loaded: runs one training program under every variant that Debian has installed, with
kernels for Haswell and for this machine, on one to four threads, and compares what it prints.

    tests/whole/blas_variants_test.py <print_bits> [--folder FOLDER]   # FOLDER has openblas-openmp/, openblas-pthread/, ...

Bits may differ between CPU types, which have kernels of their own; within one type they must not.
Needs libopenblas0-openmp and libopenblas0-pthread (scripts/bootstrap.sh test); libopenblas0-serial is tried if it is there.
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

VARIANTS = {"openmp": True, "pthread": True, "serial": False}  # whether it has to be there
CPU_FLAGS = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
CORES = ("Haswell", None) if {"avx2", "fma"} <= set(CPU_FLAGS) else (None,)
THREADS = (1, 2, 3, 4)


def run(program, folder, core, threads):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_", "GOTO_", "REWIND_"))}
    env.update(LD_LIBRARY_PATH=str(folder), REWIND_NUM_THREADS=str(threads))
    if core:
        env["OPENBLAS_CORETYPE"] = core
    return json.loads(subprocess.run([program], env=env, capture_output=True, check=True, text=True, timeout=300).stdout)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    root = arguments.folder or next(iter(Path("/usr/lib").glob("*/openblas-*"))).parent

    faults = []
    for core in CORES:
        seen = {}
        for variant, needed in VARIANTS.items():
            folder = root / f"openblas-{variant}"
            if not (folder / "libopenblas.so.0").exists():
                if needed:
                    faults.append(f"no OpenBLAS {variant} in {folder}: install libopenblas0-{variant} (scripts/bootstrap.sh test)")
                continue
            for threads in THREADS:
                told = run(arguments.program, folder, core, threads)
                print(f"meant {variant:8} {core or 'default':8} {threads} threads; loaded", json.dumps(told), flush=True)
                if told["threading"] != variant:
                    faults.append(f"{variant} was meant, {told['threading']} was loaded")
                if core and told["core"] != core:
                    faults.append(f"kernels for {core} were meant, those for {told['core']} were taken")
                if told["threads"] != threads:
                    faults.append(f"{threads} threads were meant, {told['threads']} were used")
                seen.setdefault((told["bits"], told["products"]), []).append(f"{variant} on {threads} threads")
        if len(seen) > 1:
            faults.append(f"with {core or 'default'} kernels the bits differ: {seen}")
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
