#!/usr/bin/python3
"""Writes data for a report, made up but consistent: schedules of a chain, simulated by the rules of autograd/schedule/action.h.

    tests/report/make_sample.py [--stages N] [--points N] > sample.json
"""
import argparse
import hashlib
import json
import math
import random

CATEGORIES = ("parameter", "gradient", "optimizer_state", "activation", "input", "workspace")
OPS = ("conv2d", "depthwise_conv2d", "normalize", "relu6", "add")


def make_chain(n, rng):
    """Stages like those of a convolutional net: large images first, many channels last."""
    chain = [{"w_a": 19_000_000, "w_tape": 0, "u_f": 0, "u_b": 0}]
    for l in range(1, n + 1):
        w_a = int(24e6 * 0.5 ** (3 * l / n) * rng.uniform(0.9, 1.1))
        u_f = rng.uniform(0.004, 0.008)
        chain.append({"w_a": w_a, "w_tape": 3 * w_a, "u_f": u_f, "u_b": 2.1 * u_f})
    return chain


def segments(begins, n):
    """Forward keeps the input of each segment; backward runs each segment again, recorded. The last needs no second run."""
    actions = [("Fck" if l in begins else "Fnone", l) for l in range(1, begins[-1])]
    for begin, end in reversed(list(zip(begins, begins[1:] + [n + 1]))):
        actions += [("Fall", l) for l in range(begin, end)] + [("B", l) for l in range(end - 1, begin - 1, -1)]
    return actions


def low_memory(n):
    actions = []
    for l in range(n, 0, -1):
        actions += [("Fck" if k == 1 else "Fnone", k) for k in range(1, l)] + [("Fall", l), ("B", l)]
    return actions


def simulate(chain, actions):
    kept, tapes, gradient, now, trace = {0}, set(), 0, 0.0, []
    held = lambda: sum(chain[l]["w_a"] for l in kept) + sum(chain[l]["w_tape"] for l in tapes) + gradient
    for kind, l in actions:
        stage, before, start = chain[l], held(), now
        assert l - 1 in kept or l - 1 in tapes, (kind, l)
        if kind == "B":
            during = before + stage["w_a"] + chain[l - 1]["w_a"]
            tapes.remove(l)
            kept.discard(l - 1)
            gradient = chain[l - 1]["w_a"] if l > 1 else 0
            now += stage["u_b"]
        else:
            during = before + stage["w_tape" if kind == "Fall" else "w_a"] + stage["w_a"] // 2
            if kind == "Fnone":
                kept.discard(l - 1)
            tapes.add(l) if kind == "Fall" else kept.add(l)
            now += stage["u_f"]
        trace.append({"kind": kind, "stage": l, "start": start, "end": now, "during": during, "after": held()})
    assert not tapes and not kept, (tapes, kept)
    return trace


def timeline(chain, trace, points, fixed, names):
    """Live bytes through the step: the trace's, cut finer, and what is there besides."""
    each, end, out, gradient = max(2, points // len(trace)), trace[-1]["end"], [], 0
    after = trace[0]["during"] - trace[0]["during"] // 3
    for step in trace:
        before, after = after, step["after"]
        for k in range(each):
            share = k / each
            top = max(0, step["during"] - max(before, step["after"]))
            activation = before + (step["after"] - before) * share + 0.7 * top * math.sin(math.pi * share)
            if step["kind"] == "B":
                gradient = fixed["parameter"] * (1 - (step["stage"] - share) / len(names))
            work = int(0.3 * top * math.sin(math.pi * share))
            inside = {"activation": max(0, int(activation) - chain[0]["w_a"]), "input": chain[0]["w_a"], "workspace": work}
            now = step["start"] + (step["end"] - step["start"]) * share
            out.append({"t": now / end, **fixed, "gradient": int(max(0, gradient)), **inside, "op": OPS[k % len(OPS)],
                        "module": names[step["stage"] - 1]})
    return out


def strategy(name, chain, actions, points, fixed, names, seconds_per_cost):
    trace = simulate(chain, actions)
    line = timeline(chain, trace, points, fixed, names)
    peaks = {c: max(p[c] for p in line) for c in CATEGORIES}
    peaks["total"] = max(sum(p[c] for c in CATEGORIES) for p in line)
    forward = sum(s["u_f"] for s in chain)
    again = sum(chain[l]["u_f"] for kind, l in actions if kind != "B") - forward
    return {"strategy": name, "predicted_peak_bytes": peaks["total"], "measured_peak_bytes": peaks["total"],
            "activation_peak_bytes": peaks["activation"], "peak_bytes_by_category": peaks,
            "step_ms_median": 1e3 * trace[-1]["end"] * seconds_per_cost, "recomputed_flops_ratio": again / (3 * forward),
            "loss": 2.302585, "gradient_hash": hashlib.sha256(b"sample").hexdigest()[:16],
            "schedule": " ".join(f"{k}{l}" for k, l in actions), "trace": trace, "timeline": line}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", type=int, default=16)
    parser.add_argument("--points", type=int, default=2000)
    args = parser.parse_args()
    n = args.stages
    rng = random.Random(7)
    chain = make_chain(n, rng)
    names = ["stem"] + [f"blocks.{l}" for l in range(1, n - 1)] + ["head"]
    fixed = {"parameter": 14_000_000, "optimizer_state": 28_000_000, "gradient": 0}

    even = lambda k: sorted({1 + round(i * n / k) for i in range(k)})
    vanilla = [("Fall", l) for l in range(1, n + 1)] + [("B", l) for l in range(n, 0, -1)]
    tried = [vanilla] + [segments(even(k), n) for k in range(2, n)]
    tried += [segments(sorted({1, *rng.sample(range(2, n + 1), rng.randint(1, n // 2))}), n) for _ in range(300 if n < 100 else 20)]
    found = sorted((max(s["during"] for s in t), t[-1]["end"], i) for i, t in enumerate(simulate(chain, a) for a in tried))
    frontier, best = [], []
    for size, cost, i in found:
        if not frontier or cost < frontier[-1]["seconds"] - 1e-12:
            frontier.append({"bytes": size, "seconds": cost})
            best.append(tried[i])
    budgets = [best[len(best) * k // 4] for k in (1, 2)]
    lists = [("vanilla", vanilla), ("low-memory", low_memory(n)), ("sqrt", segments(even(round(math.sqrt(n))), n)),
             ("segments:3", segments(even(3), n))]
    lists += [(f"budget:{round(max(s['during'] for s in simulate(chain, a)) / 2**20)}MiB", a) for a in budgets]
    print(json.dumps({
        "title": "Recompute: <MobileNetV2> & what it takes", "model": "mobilenet_v2", "batch": 32, "size": 224,
        "optimizer": "momentum", "threads": 2, "parameters": 3504872,
        "machine": "a machine of two cores </script><script>alert(1)</script>",
        "strategies": [strategy(name, chain, a, args.points, fixed, names, 1.02) for name, a in lists],
        "stages": names, "frontier": frontier, "frontier_unit": "s"}))


if __name__ == "__main__":
    main()
