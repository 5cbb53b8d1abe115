#!/usr/bin/python3
"""A training step in PyTorch by class of operator: what where_time_goes.cpp measures in Rewind.

    classes.py THREADS BATCH MODEL:SIZE...      prints [{"net", "by", "version", "step_ms", "share": {class: of the step}}]

The classes are those of where_time_goes.cpp; what torch.profiler does not see in an operator's own time is the framework.
Exits with 77 where PyTorch is not installed.
"""
import json
import statistics
import sys
import time

try:
    import torch
    from torch.nn import functional as F
    from torch.profiler import ProfilerActivity, profile
except ImportError:
    sys.exit(77)

from nets import build

STEPS, WARM_UP = 5, 3
# By the operator's name without "aten::" and a trailing "_", and, unless that is listed, without "_backward". What is not listed
# only calls others. Each is where Rewind counts its own: a pool is a reduction, but its way back only moves values.
CLASSES = {
    "convolution": "mkldnn_convolution convolution thnn_conv2d _slow_conv2d slow_conv_dilated2d _conv_depthwise2d mm addmm bmm",
    "normalisation": "native_batch_norm",
    "element-wise": "add mul div sub clamp clamp_min hardtanh threshold relu fill zero "
                    "_log_softmax_backward_data nll_loss_backward",
    "data movement": "copy cat index_select gather max_pool2d_with_indices_backward avg_pool2d_backward",
    "other": "sum mean _log_softmax nll_loss_forward max_pool2d_with_indices avg_pool2d",
}
CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names.split()}


def class_of(event):
    name = event.name.removeprefix("aten::").rstrip("_")
    # A convolution's forward is another operator, "convolution" itself only chooses it.
    kind = None if name == "convolution" else CLASS_OF.get(name) or CLASS_OF.get(name.removesuffix("_backward"))
    parent = event
    while parent is not None:
        if parent.name.startswith("Optimizer."):
            return "other"
        if kind and "MeanBackward" in parent.name:  # a global pool's way back, by a division
            return "data movement"
        parent = parent.cpu_parent
    return kind


def measure(name, batch, size):
    model = build(name, 0).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    y = torch.zeros(batch, dtype=torch.int64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step():
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def seconds():
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin

    for _ in range(WARM_UP):
        step()
    plain = statistics.median(seconds() for _ in range(STEPS))
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        wall = sum(seconds() for _ in range(STEPS))
    share = dict.fromkeys(CLASSES, 0.0)
    for event in watched.events():
        if kind := class_of(event):
            share[kind] += 1e-6 * event.self_cpu_time_total / wall
    share["framework"] = 1 - sum(share.values())
    return {"net": name, "by": "PyTorch", "version": torch.__version__, "step_ms": 1e3 * plain, "share": share}


torch.manual_seed(1)
torch.set_num_threads(int(sys.argv[1]))
nets = [net.split(":") for net in sys.argv[3:]]
print(json.dumps([measure(name, int(sys.argv[2]), int(size)) for name, size in nets]))
