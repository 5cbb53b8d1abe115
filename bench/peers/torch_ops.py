#!/usr/bin/python3
"""Times single operations in PyTorch: the ones of bench/ops, under the same names. Prints {name: milliseconds} as JSON."""
import argparse
import json
import time

import strongest

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--seconds", type=float, default=0.2, help="for each")
parser.add_argument("names", nargs="+", help="as bench/ops prints them: depthwise/32/112/1")
a = parser.parse_args()

strongest.start_again(a.threads)

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402

torch.set_num_threads(a.threads)
BATCH = 16


def images(channels, size):
    return torch.randn(BATCH, channels, size, size).contiguous(memory_format=torch.channels_last)


def depthwise(channels, size, stride):
    x = images(channels, size).requires_grad_()
    w = torch.randn(channels, 1, 3, 3, requires_grad=True)
    g = images(channels, (size - 1) // stride + 1)
    return lambda: torch.autograd.grad(F.conv2d(x, w, None, stride, 1, 1, channels), (x, w), g)


def batch_norm_relu6(channels, size):
    x, g = images(channels, size).requires_grad_(), images(channels, size)
    gamma, beta = torch.ones(channels, requires_grad=True), torch.zeros(channels, requires_grad=True)
    return lambda: torch.autograd.grad(F.relu6(F.batch_norm(x, None, None, gamma, beta, True), inplace=True), (x, gamma, beta), g)


def cross_entropy(rows, classes):
    x, labels = torch.randn(rows, classes, requires_grad=True), torch.zeros(rows, dtype=torch.int64)
    return lambda: torch.autograd.grad(F.cross_entropy(x, labels), x)


def optimizer(kind, foreach):
    parameters = [torch.nn.Parameter(torch.randn(100_000)) for _ in range(100)]
    for p in parameters:
        p.grad = torch.randn(100_000)
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=1e-4, foreach=foreach).step
    return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, foreach=foreach).step


def scalar_add():
    x = torch.ones(1)

    def run():
        with torch.no_grad():
            z = x
            for _ in range(1000):
                z = z + x

    return run


def scalar_add_backward():
    x, leaf = torch.ones(1), torch.ones(1, requires_grad=True)

    def run():
        z = leaf
        for _ in range(1000):
            z = z + x
        z.backward()

    return run


def milliseconds(step):
    """The median of as many runs as fit."""
    step()
    times, end = [], time.perf_counter() + a.seconds
    while len(times) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return 1e3 * sorted(times)[len(times) // 2]


result = {}
for name in a.names:
    kind, *numbers = name.split("/")
    if kind in ("adam", "momentum"):  # whichever of its two forms is faster
        result[name] = min(milliseconds(optimizer(kind, foreach)) for foreach in (False, True))
    elif kind.startswith("scalar"):
        result[name] = milliseconds(globals()[kind]()) / 1000
    else:
        result[name] = milliseconds(globals()[kind](*map(int, numbers)))
print(json.dumps(result))
