#!/usr/bin/python3
"""Writes data for the report of a profile, made up but consistent: a net of blocks, as rewind::to_json(Profile) describes one.

    tests/report/make_profile.py [--blocks N] > profile.json
"""
import argparse
import json
import random

from make_sample import CATEGORIES, make_chain, segments, simulate, timeline

FLOPS, BYTES = 300e9, 40e9
CLASS = {"conv2d": "tensor contraction", "conv2d_backward": "tensor contraction", "batch_norm": "statistical normalisation",
         "batch_norm_gradient": "statistical normalisation", "relu": "element-wise", "relu_gradient": "element-wise",
         "cross_entropy": "reduction", "reshape": "data movement", "momentum_update": "optimizer"}
ORDER = ["tensor contraction", "statistical normalisation", "element-wise", "reduction", "data movement", "optimizer"]
PUBLISHED = {"tensor contraction": (0.9980, 0.610), "statistical normalisation": (0.0017, 0.255), "element-wise": (0.0003, 0.135)}


def make_ops(blocks, rng):
    ops = []

    def add(op, phase, module, flops, size, saved=0, workspace=0):
        roofline = 1e3 * max(flops / FLOPS, size / BYTES)
        ms = max(roofline / rng.uniform(0.3, 1.3), 1e-4)
        ops.append({"op": op, "class": CLASS[op], "phase": phase, "module": module, "gradient_of": "", "in": [8, 16, 16, 32],
                    "out": [8, 16, 16, 32], "parameters": 0, "macs": flops // 2 if "conv" in op else 0, "flops": flops,
                    "bytes_read": size // 2, "bytes_written": size - size // 2, "intensity": flops / size if size else 0,
                    "saved_bytes": saved, "workspace_bytes": workspace, "ms_median": ms, "ms_p95": 1.1 * ms,
                    "roofline_ms": roofline, "of_roofline": roofline / ms})

    size = 8 * 16 * 16 * 32 * 4
    for b in range(blocks):
        add("conv2d", "forward", f"blocks.{b}.conv", 151_000_000, 2 * size, size, 40_000)
        add("batch_norm", "forward", f"blocks.{b}.norm", 7 * size // 4, 2 * size, size)
        add("relu", "forward", f"blocks.{b}.relu", size // 4, 2 * size)
    add("cross_entropy", "forward", "", 2000, 3000)
    for b in reversed(range(blocks)):
        add("relu_gradient", "backward", f"blocks.{b}.relu", size // 4, 3 * size)
        add("batch_norm_gradient", "backward", f"blocks.{b}.norm", 9 * size // 4, 3 * size)
        add("conv2d_backward", "backward", f"blocks.{b}.conv", 302_000_000, 4 * size, 0, 90_000)
        add("reshape", "backward", f"blocks.{b}.conv", 0, 0)
    for b in range(blocks):
        add("momentum_update", "optimizer", "", 4 * 9216, 5 * 36864)
    return ops


def add_up(ops, wall):
    work = {key: sum(o[key] for o in ops) for key in ("macs", "flops", "bytes_read", "bytes_written", "saved_bytes", "ms_median",
                                                      "ms_p95", "roofline_ms")}
    size, words = work["bytes_read"] + work["bytes_written"], (work["bytes_read"] + work["bytes_written"]) / 4
    work.update(calls=len(ops), workspace_bytes=max(o["workspace_bytes"] for o in ops), time_share=work["ms_median"] / wall,
                intensity=work["flops"] / size if size else 0, of_roofline=work["roofline_ms"] / work["ms_median"])
    work["energy"] = {"arithmetic_joules": 2.3e-12 * work["flops"], "dram_joules": 640e-12 * words, "sram_joules": 5e-12 * words,
                      "instruction_joules": 35e-12 * work["flops"]}
    return work


def make_modules(blocks, ops, wall):
    rows = [{"module": "", "type": "<Net>", "depth": 0, "parameters": 0}, {"module": "blocks", "type": "Sequential", "depth": 1}]
    for b in range(blocks):
        rows.append({"module": f"blocks.{b}", "type": "Sequential", "depth": 2})
        rows += [{"module": f"blocks.{b}.{name}", "type": kind, "depth": 3, "parameters": parameters}
                 for name, kind, parameters in (("conv", "Conv2d", 9216), ("norm", "BatchNorm2d", 64), ("relu", "ReLU", 0))]
    for row in rows:
        row.setdefault("parameters", 0)
        for phase in ("forward", "backward", "optimizer"):
            if own := [o for o in ops if o["module"] == row["module"] and o["phase"] == phase]:
                row[phase] = add_up(own, wall)
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=12)
    args = parser.parse_args()
    rng = random.Random(3)
    ops = make_ops(args.blocks, rng)
    wall = sum(o["ms_median"] for o in ops) / 0.985
    total = add_up(ops, wall)
    classes = []
    for name in ORDER:
        work = add_up([o for o in ops if o["class"] == name], wall)
        row = {"class": name, "flops_share": work["flops"] / total["flops"],
               "bytes_share": (work["bytes_read"] + work["bytes_written"]) / (total["bytes_read"] + total["bytes_written"]), **work}
        if name in PUBLISHED:
            row["published_flops_share"], row["published_time_share"] = PUBLISHED[name]
        classes.append(row)
    groups = sorted({(o["op"], o["phase"]) for o in ops})
    of_group = {group: [o for o in ops if (o["op"], o["phase"]) == group] for group in groups}
    totals = [{"op": op, "phase": phase, "class": CLASS[op], **add_up(own, wall)} for (op, phase), own in of_group.items()]
    totals.sort(key=lambda t: -t["ms_median"])

    names = [f"blocks.{b}" for b in range(args.blocks)]
    chain = make_chain(args.blocks, rng)
    actions = segments([1, 1 + args.blocks // 3, 1 + 2 * args.blocks // 3], args.blocks)
    trace = simulate(chain, actions)
    points = timeline(chain, trace, 600, {"parameter": 14_000_000, "optimizer_state": 14_000_000, "gradient": 0}, names)
    top = max(points, key=lambda p: sum(p[c] for c in CATEGORIES))
    peak = {c: max(p[c] for p in points) for c in CATEGORIES} | {"total": sum(top[c] for c in CATEGORIES)}
    live = {c: top[c] for c in CATEGORIES} | {"total": peak["total"]}
    saved = [{"op": "conv2d", "module": f"blocks.{b}.conv", "shape": [8, 16, 16, 32], "dtype": "float32", "category": "activation",
              "bytes": 262144 * (1 + b % 3), "why": "x, for the gradient of w (a parameter)"}
             for b in range(args.blocks)]
    saved.append({**saved[0], "bytes": 0, "why": "y, which shares its memory"})
    profile = {
        "machine": {"cores": 2, "threads": 2, "flops_per_second": FLOPS, "bytes_per_second": BYTES,
                    "ridge_flops_per_byte": FLOPS / BYTES, "flops_per_mac": 2},
        "input": [8, 16, 16, 32], "parameters": 111360, "fused": False,
        "step": {"ms_median": wall, "ms_p95": 1.1 * wall, "steps": 10, "ms_median_unwatched": 0.99 * wall, "coverage": 0.985,
                 "overhead_share": 0.015, "overhead_ns_per_op": 900.0, "all_ops": total},
        "classes": classes, "op_totals": totals, "ops": ops, "modules": make_modules(args.blocks, ops, wall),
        "memory": {"predicted_peak_bytes": peak, "measured_peak_bytes": peak, "at_peak_bytes": live,
                   "optimizer_state_bytes": {"momentum": 14_000_000}, "peak_op": "conv2d", "peak_module": "blocks.3.conv",
                   "holders": {"op": "conv2d_backward", "module": "blocks.3.conv", "phase": "backward", "live_bytes": live,
                               "saved_bytes": sum(s["bytes"] for s in saved), "running_bytes": 524288,
                               "other_bytes": 4096, "saved": saved}},
        "latency": {"batch": 1, "runs": 100, "ms_median": 2.1, "ms_p95": 2.6, "ms_p99": 3.4},
        "throughput": [{"batch": 1, "inference_per_second": 470.0}] +
                      [{"batch": n, "inference_per_second": 800 * n / (n + 0.7), "training_per_second": 260 * n / (n + 0.9)}
                       for n in (2, 4, 8)],
        "epoch": {"seconds": 3.2, "waiting_seconds": 0.01, "batches": 16, "samples": 128},
        "energy_assumptions": "From counts, by a table; a whole instruction about 70 pJ."}
    print(json.dumps({
        "title": "Profile: <a net> & its costs", "model": "blocks", "batch": 8, "size": 16, "optimizer": "momentum", "threads": 2,
        "parameters": 111360, "profile": profile, "stages": names, "frontier_unit": "s",
        "strategies": [{"strategy": "segments:3", "timeline": points, "trace": trace,
                        "schedule": " ".join(f"{k}{n}" for k, n in actions)}]}))


if __name__ == "__main__":
    main()
