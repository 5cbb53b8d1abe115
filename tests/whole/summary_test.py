#!/usr/bin/python3
"""The summary program prints its table and writes the JSON that it promises; wrong arguments are one line and status 1.

    tests/whole/summary_test.py <summary>
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

KEYS = {
    "parameters", "buffers", "macs", "flops", "activation_bytes_saved", "training_step_macs", "optimizer_state_bytes", "layers"
}


def main():
    program, faults = sys.argv[1], []

    def expect(what, got, wanted):
        if got != wanted:
            faults.append(f"{what}: {got!r} instead of {wanted!r}")

    def run(*arguments):
        return subprocess.run([program, *arguments], capture_output=True, text=True)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "summary.json"
        options = ["--width", "0.5", "--size", "224", "--classes", "1000", "--batch", "2"]
        done = run("--model", "mobilenet_v2", *options, "--json", out)
        expect("status", (done.returncode, done.stderr), (0, ""))
        expect("the table has the parameters", "1,968,680 trainable" in done.stdout, True)
        result = json.loads(out.read_text())
    expect("keys", set(result), KEYS)
    expect("parameters", result["parameters"], 1968680)
    expect("macs of two images", result["macs"], 2 * 97131840)
    expect("state", result["optimizer_state_bytes"], {"sgd": 0, "momentum": 4 * 1968680, "adam": 8 * 1968680})
    for key in ("parameters", "buffers", "macs", "flops", "activation_bytes_saved"):
        expect(f"{key} of the layers", sum(layer[key] for layer in result["layers"]), result[key])
    expect("the last layer", (result["layers"][-1]["path"], result["layers"][-1]["output"]), ("classifier.1", [2, 1000]))

    for wrong, why in [
        (["--model", "mobilenet_v9"], "error: models: there is no model 'mobilenet_v9'; known are mlp, lenet5"),
        (["--model", "resnet18", "--width", "0.5"], "error: models: resnet18 has no width"),
        (["--model", "alexnet", "--size", "32"], "error: max_pool2d: the kernel covers 3x3 pixels, but the padded image has 1x1"),
        (["--json", "/nowhere/summary.json"], "error: cannot write /nowhere/summary.json"),
    ]:
        done = run(*wrong)
        expect(f"{wrong} status", done.returncode, 1)
        expect(f"{wrong} says why in a line", (done.stderr.startswith(why), done.stderr.count("\n")), (True, 1))
    print("\n".join(faults + [f"summary: {len(faults)} faults"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
