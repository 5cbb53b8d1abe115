#!/usr/bin/python3
"""One addition in PyTorch's Python: what add.cpp measures in its C++, and framework.cpp in Rewind.

    add.py THREADS ELEMENTS:REPEAT...      prints {"version", "sizes": [{"no_gradient_ns", "forward_ns", "forward_backward_ns"}]}

Exits with 77 where PyTorch is not installed.
"""
import json
import sys
import time

try:
    import torch
except ImportError:
    sys.exit(77)


def ns(repeat, f):
    """Nanoseconds of one f(), when many are done: the least of five rounds, after one that warms."""
    rounds = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(repeat):
            f()
        rounds.append(1e9 * (time.perf_counter() - start) / repeat)
    return min(rounds[1:])


def measure(elements, repeat):
    a, b, g = torch.ones(elements), torch.ones(elements), torch.ones(elements)
    no_gradient = ns(repeat, lambda: torch.add(a, b))
    a.requires_grad_()
    b.requires_grad_()

    def both():
        torch.add(a, b).backward(g)
        a.grad = b.grad = None

    return {
        "no_gradient_ns": no_gradient,
        "forward_ns": ns(repeat, lambda: torch.add(a, b)),
        "forward_backward_ns": ns(repeat, both),
    }


torch.set_num_threads(int(sys.argv[1]))
sizes = [measure(*map(int, size.split(":"))) for size in sys.argv[2:]]
print(json.dumps({"version": torch.__version__, "sizes": sizes}))
