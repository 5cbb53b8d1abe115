#!/usr/bin/python3
"""Rewind beside PyTorch on this machine, same nets, same weights, same data: pairs of runs, one after the other.

    bench/peers/compare.py <folder of bench/step, bench/ops, libheap_meter.so> [--pairs N] [--threads N] [--busy] [--shipped]
                           [--only NAME ...] [--json F] [--markdown F]

Prints a Markdown table. JSON: {"machine", "threads", "pairs", "busy", "shipped", "openblas_kernels", "nets": [{"name", "ours_ms",
"theirs_ms", "ratio", "ratio_range", "ours_step_bytes", "theirs_step_bytes", "memory_ratio", "ours_rss_bytes", "theirs_rss_bytes",
"loss_difference", "loss_difference_float32"}], "ops": [{"name", "ours_ms", "theirs_ms", "ratio", "ratio_range"}]}.
"openblas_kernels" names those that PyTorch's products run on, null as shipped.
Times are medians over the pairs of each run's median; a ratio is the median of the pairs' ratios. Bytes are the peak of a
step above the level between steps: counted here, the heap's there. The losses compared are those of the first two steps, in
float64 and in float32.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import strongest

HERE = Path(__file__).parent
NETS = {
    "MobileNetV2 224, batch 16": ["--model", "mobilenet_v2", "--batch", "16", "--size", "224"],
    "MobileNetV2 224, batch 1": ["--model", "mobilenet_v2", "--batch", "1", "--size", "224"],
    "MobileNetV2 CIFAR, batch 64": ["--model", "mobilenet_v2_cifar", "--batch", "64"],
    "pre-activation ResNet-164, batch 32": ["--model", "preresnet", "--depth", "164", "--batch", "32"],
    "pre-activation ResNet-1001, batch 32": ["--model", "preresnet", "--depth", "1001", "--batch", "32"],
    "ResNet-18 CIFAR, batch 64": ["--model", "resnet18_cifar", "--batch", "64"],
    "MLP 784-512-256-10, batch 128": ["--model", "mlp", "--batch", "128"],
    "LeNet, batch 128": ["--model", "lenet5", "--batch", "128"],
}
STEPS = {"--model mlp": 200, "--model lenet5": 100, "--batch 1 ": 30, "--depth 1001": 3}
DEPTHWISE = [(32, 112, 1), (96, 112, 2), (144, 56, 1), (144, 56, 2), (192, 28, 1)]
DEPTHWISE += [(192, 28, 2), (384, 14, 1), (576, 14, 1), (576, 14, 2), (960, 7, 1)]
OPS = {
    "depthwise 3x3, all MobileNetV2 shapes": [f"depthwise/{c}/{h}/{s}" for c, h, s in DEPTHWISE],
    "batch norm + ReLU6": ["batch_norm_relu6/96/112", "batch_norm_relu6/144/56", "batch_norm_relu6/384/14"],
    "softmax cross-entropy 2048x65": ["cross_entropy/2048/65"],
    "softmax cross-entropy 512x32000": ["cross_entropy/512/32000"],
    "Adam, 10 M parameters in 100 tensors": ["adam"],
    "momentum, 10 M parameters in 100 tensors": ["momentum"],
    "scalar add, no gradient": ["scalar_add"],
    "scalar add, forward and backward": ["scalar_add_backward"],
}


def run(command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def steps_of(arguments):
    text = " ".join(arguments) + " "
    return next((n for key, n in STEPS.items() if key in text), 10)


def compare_net(name, arguments, folder, a, scratch):
    start, out = scratch / "start", scratch / "ours.json"
    model = [x for key in ("--model", "--depth") if key in arguments for x in (key, arguments[arguments.index(key) + 1])]
    steps = steps_of(arguments)

    def ours(*more, start=start, steps=steps):
        run([folder / "step", *arguments, "--threads", a.threads, "--steps", steps, "--start", start, "--json", out, *more])
        return json.loads(out.read_text())

    def theirs(*more):
        more = [*more, "--shipped"] if a.shipped else more
        command = ["/usr/bin/python3", HERE / "torch_step.py", *model, "--start", start, "--threads", a.threads, "--steps", steps]
        return json.loads(run([*command, *more]))

    # Two losses: one before and one after all that a step does. In double, so that rounding, which a deep net amplifies, does
    # not hide whether both sides do the same work; and as trained. Later losses show how training amplifies rounding.
    def losses_apart(p, q):
        return max(abs(p - q) for p, q in zip(p["losses"][:2], q["losses"][:2]))

    first = ours()
    metered = theirs("--meter", folder / "libheap_meter.so")
    pairs = [(ours(), theirs()) for _ in range(a.pairs)]
    ratios = [p["median_ms"] / q["median_ms"] for p, q in pairs]
    theirs_in_double = theirs("--float64", "--steps", 1)
    ours_in_double = ours("--float64", start=scratch / "start64", steps=1)
    return {
        "name": name,
        "ours_ms": statistics.median(p["median_ms"] for p, _ in pairs),
        "theirs_ms": statistics.median(q["median_ms"] for _, q in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "ours_step_bytes": first["step_bytes"],
        "theirs_step_bytes": metered["step_bytes"],
        "memory_ratio": first["step_bytes"] / metered["step_bytes"],
        "ours_rss_bytes": first["peak_rss_bytes"],
        "theirs_rss_bytes": pairs[0][1]["peak_rss_bytes"],
        "loss_difference": losses_apart(ours_in_double, theirs_in_double),
        "loss_difference_float32": losses_apart(first, metered),
    }


def compare_ops(name, ops, folder, a):
    def ours():
        pattern = "|".join(f"^{op}(/real_time)?$" for op in ops)
        options = ["--benchmark_format=json", f"--benchmark_filter={pattern}", "--benchmark_min_time=0.2"]
        report = json.loads(run([folder / "ops", *options], env={**os.environ, "REWIND_NUM_THREADS": str(a.threads)}))
        unit = {"ns": 1e-6, "us": 1e-3, "ms": 1}
        found = {b["name"].removesuffix("/real_time"): b["real_time"] * unit[b["time_unit"]] for b in report["benchmarks"]}
        # That one runs a chain of a thousand.
        return sum(found[op] / (1000 if op == "scalar_add_backward" else 1) for op in ops)

    def theirs():
        return sum(json.loads(run(["/usr/bin/python3", HERE / "torch_ops.py", "--threads", a.threads, *ops])).values())

    pairs = [(ours(), theirs()) for _ in range(a.pairs)]
    ratios = [p / q for p, q in pairs]
    return {
        "name": name,
        "ours_ms": statistics.median(p for p, _ in pairs),
        "theirs_ms": statistics.median(q for _, q in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def machine():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def text_ms(ms):
    return f"{1e6 * ms:.0f} ns" if ms < 1e-2 else f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms"


def text_mb(n):
    return f"{n / 1e6:.0f} MB" if n >= 1e7 else f"{n / 1e6:.1f} MB"


def row(r):
    low, high = r["ratio_range"]
    cells = [r["name"], text_ms(r["ours_ms"]), text_ms(r["theirs_ms"]), f"{r['ratio']:.2f} ({low:.2f} to {high:.2f})"]
    if "memory_ratio" in r:
        cells += [text_mb(r["ours_step_bytes"]), text_mb(r["theirs_step_bytes"]), f"{r['memory_ratio']:.2f}"]
        cells += [f"{text_mb(r['ours_rss_bytes'])}, {text_mb(r['theirs_rss_bytes'])}"]
        cells += [f"{r[key]:.1e}" for key in ("loss_difference", "loss_difference_float32")]
    else:
        cells += [""] * 6
    return "| " + " | ".join(cells) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", action="store_true", help="beside another process that computes")
    parser.add_argument("--shipped", action="store_true", help="PyTorch as Debian ships it, not in its strongest set-up")
    parser.add_argument("--only", nargs="+", help="rows whose names contain one of these")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    a = parser.parse_args()
    wanted = lambda name: not a.only or any(part in name for part in a.only)  # noqa: E731
    result = {"machine": machine(), "threads": a.threads, "pairs": a.pairs, "busy": a.busy, "shipped": a.shipped}
    blas = None if a.shipped else strongest.kernels()
    if blas:
        os.environ[strongest.CHOSEN] = blas
    result |= {"openblas_kernels": blas, "nets": [], "ops": []}
    set_up = f"in its strongest set-up, with OpenBLAS's kernels for {blas}" if blas else "as shipped"
    busy = "; one other busy process" if a.busy else ""
    lines = [
        f"{result['machine']}; {a.threads} threads; {a.pairs} pairs; PyTorch {set_up}{busy}",
        "",
        "| work | Rewind | PyTorch | time ratio | a step here | a step there | memory ratio | RSS here, there "
        "| losses differ by | in float32 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)

    def add(kind, measured):
        result[kind].append(measured)
        lines.append(row(measured))
        print(lines[-1], flush=True)

    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if a.busy else None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for name, arguments in NETS.items():
                if wanted(name):
                    add("nets", compare_net(name, arguments, a.folder, a, Path(scratch)))
        for name, ops in OPS.items():
            if wanted(name) and not a.shipped:
                add("ops", compare_ops(name, ops, a.folder, a))
    finally:
        if neighbour:
            neighbour.kill()
        if a.json:
            a.json.write_text(json.dumps(result, indent=1) + "\n")
        if a.markdown:
            a.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
