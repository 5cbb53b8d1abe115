#!/usr/bin/python3
"""A program of the lecture keeps its promises: the keys of its JSON, and what does not depend on the machine. Its page has a value
for every expression in it.

    tests/whole/lecture_test.py <program>
"""
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent.parent
faults = []


def expect(what, got, wanted):
    if got != wanted:
        faults.append(f"{what}: {got!r} instead of {wanted!r}")


def holds(what, condition):
    expect(what, bool(condition), True)


def has_keys(what, got, keys):
    expect(f"keys of {what}", set(got), set(keys.split()))


def optimizer_state(r):
    has_keys("results", r, "nets adam")
    for net in r["nets"]:
        has_keys("a net", net, "net parameters batch optimizers")
        for optimizer, slots in [("sgd", 0), ("momentum", 1), ("adam", 2)]:
            state = net["optimizers"][optimizer]
            expect(f"{net['net']}, state of {optimizer}", state["state_bytes"], 4 * slots * net["parameters"])
            # The peak of both nets is within a step, beside all of the state.
            expect(f"{net['net']}, {optimizer} adds its state to the peak", state["peak_bytes"] - state["state_bytes"],
                   net["optimizers"]["sgd"]["peak_bytes"])
    expect("parameters of mobilenet_v2 as in torchvision", r["nets"][0]["parameters"], 3504872)
    has_keys("adam", r["adam"], "steps largest_difference state_bytes bytes_moved_by_line bytes_moved_fused")
    expect("state of Adam on 100 doubles", r["adam"]["state_bytes"], 2 * 8 * 100)
    expect("one pass over w, g, m and v that writes three of them", r["adam"]["bytes_moved_fused"], 7 * 8 * 100)
    holds("Algorithm 1 is the library's Adam", r["adam"]["largest_difference"] < 1e-13)
    holds("one pass moves less", r["adam"]["bytes_moved_fused"] < r["adam"]["bytes_moved_by_line"])


def convolutions(r):
    has_keys("results", r, "c k d batch convolutions bottleneck")
    c, k2, d2 = r["c"], r["k"]**2, r["d"]**2
    for conv, name, parameters in zip(r["convolutions"], ("full", "depthwise", "depthwise-separable"),
                                      (c * c * k2, c * k2, c * k2 + c * c)):
        has_keys("a convolution", conv, "name parameters flops formula bytes_moved forward_ms forward_backward_ms "
                 "gflops_per_second")
        expect("name", conv["name"], name)
        expect(f"{name}, parameters and FLOPs", (conv["parameters"], conv["flops"]), (parameters, 2 * parameters * d2))
        expect(f"{name}, formula", conv["formula"], {"parameters": conv["parameters"], "flops": conv["flops"]})
    expect("full reads x and w and writes y", r["convolutions"][0]["bytes_moved"], 4 * (2 * r["batch"] * d2 * c + c * c * k2))
    parts = {part["part"]: part for part in r["bottleneck"]}
    for part in r["bottleneck"]:
        has_keys("a part", part, "part parameters flops bytes_moved forward_ms backward_ms")
    for name, weights in [("conv.0.0 Conv2d", 6 * c * c), ("conv.1.0 DepthwiseConv2d", 6 * c * 9), ("conv.2 Conv2d", 6 * c * c)]:
        expect(name, (parts[name]["parameters"], parts[name]["flops"]), (weights, 2 * weights * d2))
    holds("the shortcut is a part", "add the shortcut" in parts)


def metrics(r):
    has_keys("results", r, "size batch threads models spearman")
    keys = "parameters flops bytes_moved peak_bytes latency_ms images_per_second"
    for model in r["models"]:
        has_keys("a model", model, "model " + keys)
        holds("all are positive", all(model[key] > 0 for key in keys.split()))
    has_keys("spearman", r["spearman"], "all fewest_flops")
    for table in r["spearman"].values():
        has_keys("a table", table, keys)
        for a in table:
            has_keys("a row of it", table[a], keys)
            holds("a metric agrees with itself", abs(table[a][a] - 1) < 1e-12)
            holds("symmetric, in [-1, 1]", all(table[a][b] == table[b][a] and abs(table[a][b]) < 1 + 1e-12 for b in table))
    # Four nets: 1 - 6 sum d^2 / (n (n^2 - 1)), without ties.
    order = lambda key: [sorted(m[key] for m in r["models"]).index(m[key]) for m in r["models"]]
    squares = sum((a - b)**2 for a, b in zip(order("parameters"), order("flops")))
    picture = page_maker().draw("metrics", r)
    marks = [g for g in ElementTree.fromstring(picture).iter() if g.get("class") == "model"]
    expect("15 scatter plots of all models", len(marks), 15 * len(r["models"]))
    expect("they say which", {mark[0].text for mark in marks}, {model["model"] for model in r["models"]})
    holds("Spearman's own formula", abs(r["spearman"]["all"]["parameters"]["flops"] - (1 - 6 * squares / (4 * 15))) < 1e-12)


def recompute(r):
    has_keys("results", r, "stages channels size batch strategies")
    expect("strategies", [s["strategy"] for s in r["strategies"]], ["vanilla", "low-memory", "sqrt"])
    n = r["stages"]
    for s in r["strategies"]:
        has_keys("a strategy", s, "strategy schedule predicted_peak_bytes measured_peak_bytes activation_bytes recomputed_forwards "
                 "step_ms gradient_hash")
        expect(f"{s['strategy']}, predicted and measured", s["predicted_peak_bytes"], s["measured_peak_bytes"])
        expect(f"{s['strategy']}, gradients", s["gradient_hash"], r["strategies"][0]["gradient_hash"])
        actions = s["schedule"].split()
        again = sum(not a.startswith("B") for a in actions) - n
        holds(f"{s['strategy']}, the schedule tells the work", abs(s["recomputed_forwards"] - again / n) < 0.01)
    vanilla, low, checkpoints = r["strategies"]
    expect("vanilla runs nothing again", vanilla["recomputed_forwards"], 0)
    holds("low memory, (n - 1) / 2 forwards more", abs(low["recomputed_forwards"] - (n - 1) / 2) < 0.01)
    holds("memory falls in this order", low["activation_bytes"] < checkpoints["activation_bytes"] < vanilla["activation_bytes"])


def reverse_forward(r):
    has_keys("results", r, "hidden cases steps")
    for case in r["cases"]:
        has_keys("a case", case, "n m modes")
        has_keys("modes", case["modes"], "reverse forward differences")
        for mode in case["modes"].values():
            has_keys("a mode", mode, "flops flops_in_f ms largest_error")
        holds("forward and reverse agree", case["modes"]["forward"]["largest_error"] < 1e-13)
        holds("finite differences agree to half of the digits", 0 < case["modes"]["differences"]["largest_error"] < 1e-5)
    loss, square, line = (case["modes"] for case in r["cases"])
    holds("a loss is cheapest in reverse", loss["reverse"]["flops"] < loss["differences"]["flops"] < loss["forward"]["flops"])
    holds("one input is cheaper forward", line["forward"]["flops"] < line["reverse"]["flops"])
    holds("reverse pays for outputs", square["reverse"]["flops_in_f"] > 10 * loss["reverse"]["flops_in_f"])
    for step in r["steps"]:
        has_keys("a step", step, "h largest_error")
    errors = [step["largest_error"] for step in r["steps"]]
    holds("the best step is in the middle", errors[0] > min(errors) < errors[-1])


def framework(r):
    has_keys("results", r, "threads versions sizes")
    for size in r["sizes"]:
        peers = list(r["versions"])  # where they are installed
        has_keys("a size", size, " ".join(["elements rewind loop_ns", *peers]))
        for who in ["rewind", *peers]:
            has_keys(who, size[who], "no_gradient_ns forward_ns forward_backward_ns")
            holds(f"all of {who} are positive", all(ns > 0 for ns in size[who].values()))
        holds("a loop takes time", size["loop_ns"] > 0)


def loading(r):
    has_keys("results", r, "batches read_ms step_ms epochs")
    for name, epoch in r["epochs"].items():
        has_keys(name, epoch, "seconds waited_seconds reads steps")
        expect(f"{name}, reads and steps", (len(epoch["reads"]), len(epoch["steps"])), (r["batches"], r["batches"]))
        holds(f"{name}, a read takes its time", all(end - begin >= 1e-3 * r["read_ms"] for begin, end in epoch["reads"]))
        holds(f"{name}, a batch is read before it is used", all(a[1] <= b[0] for a, b in zip(epoch["reads"], epoch["steps"])))
    overlaps = lambda epoch: sum(a[0] < b[1] and b[0] < a[1] for a in epoch["reads"] for b in epoch["steps"])
    expect("in the loop, nothing overlaps", overlaps(r["epochs"]["in the loop"]), 0)
    holds("with the loader, reads and steps overlap", overlaps(r["epochs"]["loader"]) > 0)


def where_time_goes(r):
    has_keys("results", r, "batch size nets")
    nets = ("shufflenet_v1", "mobilenet_v2", "resnet18_cifar")
    wanted = [("a transformer's layer", "PyTorch, published"), *((net, by) for net in nets for by in ("unfused", "fused"))]
    found = [(n["net"], n["by"]) for n in r["nets"]]
    expect("nets", found[:7], wanted)
    holds("PyTorch too, where it is installed", found[7:] in ([], [(net, "PyTorch") for net in nets]))
    has_keys("the published table", r["nets"][0], "net by share flops_share")
    expect("its times", r["nets"][0]["share"], {"convolution": 0.61, "normalisation": 0.255, "element-wise": 0.135})
    parts = {"convolution", "normalisation", "element-wise", "data movement", "other", "loading", "framework"}
    for net in r["nets"][1:]:
        ours = net["by"] != "PyTorch"
        has_keys("a net", net, "net by step_ms share " + ("flops_share bytes_share" if ours else "version"))
        holds(f"{net['net']}, {net['by']}: time adds up", abs(sum(net["share"].values()) - 1) < 1e-9)
        holds("and convolutions take some of it", 0 < net["share"]["convolution"] < 1)
        expect("parts that have no name", set(net["share"]) - parts, set())
        if ours:
            holds("FLOPs add up", abs(sum(net["flops_share"].values()) - 1) < 1e-9)
            holds("bytes add up", abs(sum(net["bytes_share"].values()) - 1) < 1e-9)
            holds("convolutions have most FLOPs", net["flops_share"]["convolution"] > 0.8)
    unfused, fused = ({n["net"]: n for n in r["nets"] if n["by"] == by} for by in ("unfused", "fused"))
    holds("ShuffleNet moves data", all(n["shufflenet_v1"]["share"]["data movement"] > 0 for n in (unfused, fused)))
    holds("fused, little is normalised by itself",
          fused["mobilenet_v2"]["flops_share"]["normalisation"] < 0.2 * unfused["mobilenet_v2"]["flops_share"]["normalisation"])


TESTS = {
    where_time_goes: ["--size", "64", "--steps", "2"],
    optimizer_state: ["--nets", "mobilenet_v2,resnet18", "--batch", "8", "--steps", "50"],
    convolutions: ["--channels", "16", "--size", "7", "--batch", "2", "--rounds", "1"],
    metrics: ["--models", "resnet18,squeezenet1_1,mobilenet_v2,mobilenet_v3_large", "--rounds", "1", "--size", "32",
              "--batch", "2"],
    recompute: ["--stages", "9", "--channels", "8", "--size", "8", "--batch", "2", "--rounds", "1"],
    reverse_forward: ["--hidden", "20", "--many", "30", "--rounds", "1"],
    framework: ["--sizes", "1,100", "--repeat", "10"],
    loading: ["--read-ms", "2"],
}


def page_maker():
    spec = importlib.util.spec_from_file_location("make", ROOT / "docs" / "lecture" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    program = Path(sys.argv[1])
    check, options = next((c, o) for c, o in TESTS.items() if c.__name__ == program.name)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        done = subprocess.run([program, *options, "--json", out], capture_output=True, text=True)
        expect("status", (done.returncode, done.stderr), (0, ""))
        results = json.loads(out.read_text())
    check(results)

    # The page was written by a program with these keys; with small settings it may lack a row, but no key.
    make, page = page_maker(), (ROOT / "docs" / "lecture" / f"{program.name}.md").read_text()
    try:
        make.render(page, done.stdout, {**results, "machine": make.machine()})
    except ValueError as error:
        if "0 rows with" not in str(error):
            faults.append(f"the page: {error}")
    holds("the page has been written", "<!-- output -->\n\n    " in page and "--><!-- -->" not in page)

    print("\n".join(faults + [f"{program.name}: {len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
