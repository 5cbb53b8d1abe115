#!/usr/bin/python3
"""Times a training step in PyTorch, from the weights and data that bench/step wrote with --start. Prints one line of JSON."""
import argparse
import ctypes
import json
import resource
import statistics
import time

import strongest

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True)
parser.add_argument("--depth", type=int, default=0)
parser.add_argument("--start", required=True, help="file written by bench/step --start")
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--shipped", action="store_true", help="as Debian ships it, not in its strongest set-up")
parser.add_argument("--float64", action="store_true", help="compute in double")
parser.add_argument("--meter", help="count heap bytes with this library")
a = parser.parse_args()

strongest.start_again(a.threads, {"LD_PRELOAD": a.meter} if a.meter else {}, a.shipped)

import torch  # noqa: E402
from nets import build, load  # noqa: E402
from torch.nn import functional as F  # noqa: E402

WARM_UP = 3


def read_start(path):
    with open(path, "rb") as file:
        header = json.loads(file.readline())
        data = bytearray(file.read())  # frombuffer wants one that could be written to
    tensors, at = {}, 0
    for t in header["tensors"]:
        dtype = {"float32": torch.float32, "int64": torch.int64}[t["dtype"]]
        count = 1
        for n in t["shape"]:
            count *= n
        tensors[t["name"]] = torch.frombuffer(data, dtype=dtype, count=count, offset=at).reshape(t["shape"]).clone()
        at += count * (8 if dtype == torch.int64 else 4)
    return tensors


torch.set_num_threads(a.threads)
model = build(a.model, a.depth)
x, y = load(model, read_start(a.start))
if a.float64:
    model, x = model.double(), x.double()
if not a.shipped and x.dim() == 4:
    model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
else:
    x = x.contiguous()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)


def step():
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


losses = [step() for _ in range(WARM_UP)]
meter = ctypes.CDLL(a.meter) if a.meter else None
if meter:
    for name in ("live", "peak"):
        getattr(meter, f"heap_meter_{name}").restype = ctypes.c_longlong
    meter.heap_meter_reset_peak()
    between = meter.heap_meter_live()
ms = []
for _ in range(a.steps):
    begin = time.perf_counter()
    losses.append(step())
    ms.append(1e3 * (time.perf_counter() - begin))
result = {
    "median_ms": statistics.median(ms),
    "min_ms": min(ms),
    "losses": losses,
    "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}
if meter:
    result["step_bytes"] = meter.heap_meter_peak() - between
print(json.dumps(result))
