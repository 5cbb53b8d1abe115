#!/usr/bin/python3
"""Draws docs/plots/metrics.svg from what `examples/lecture/metrics --json FILE` wrote (docs/lecture/make.py does both): below the
diagonal a scatter plot of every pair of metrics, all axes logarithmic; above it Spearman's rank correlation of the same two.

    docs/plots/metrics.py FILE > docs/plots/metrics.svg
"""
import json
import math
import sys
from xml.sax.saxutils import escape

METRICS = [  # key, name, unit, and how much of the number that is
    ("parameters", "parameters", "M", 1e6),
    ("flops", "FLOPs", "M", 1e6),
    ("bytes_moved", "bytes moved", "MB", 1e6),
    ("peak_bytes", "peak memory", "MB", 1e6),
    ("latency_ms", "latency", "ms", 1),
    ("images_per_second", "throughput", "images/s", 1),
]
CELL, GAP, LEFT, TOP, INSET = 150, 8, 92, 12, 14
DOT, EDGE = 4, 16  # a dot's radius; a tick nearer to an end of its axis has no room for its label
FEW, MANY = "#b03a2e", "#2471a3"
PITCH = CELL + GAP


class Axis:
    """Where a metric's values lie along a cell, from 0 to CELL."""

    def __init__(self, values):
        self.low, self.high = math.log10(min(values)), math.log10(max(values))

    def __call__(self, value):
        span = self.high - self.low
        return INSET + (CELL - 2 * INSET) * ((math.log10(value) - self.low) / span if span > 0 else 0.5)

    def ticks(self):
        """Powers of ten; of a short range, also what is 2 and 5 times one."""
        steps = (1,) if self.high - self.low > 1.5 else (1, 2, 5)
        marks = [m * 10.0**power for power in range(math.floor(self.low), math.ceil(self.high) + 1) for m in steps]
        return [mark for mark in marks if EDGE <= self(mark) <= CELL - EDGE]


def text(x, y, what, **more):
    style = "".join(f' {key.replace("_", "-")}="{value}"' for key, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(what)}</text>'


def short(value):
    """10000 as 10k."""
    return f"{value / 1000:g}k" if value >= 10000 else f"{value:g}"


def places(dots):
    """Where the number of each dot stands: beside it, on no dot and on no number before it if there is such a place."""
    steps = [(far * dx, far * dy) for far in (9, 13, 18) for dx, dy in
             [(1, 0), (-1, 0), (0, -1), (0, 1), (0.8, -0.8), (0.8, 0.8), (-0.8, -0.8), (-0.8, 0.8)]]
    found = []
    for x, y in dots:
        free = [(x + dx, y + dy) for dx, dy in steps if
                all(math.hypot(x + dx - u, y + dy - v) >= DOT + 5 for u, v in dots if (u, v) != (x, y)) and
                all(abs(x + dx - u) >= 11 or abs(y + dy - v) >= 9 for u, v in found) and
                all(6 <= z <= CELL - 6 for z in (x + dx, y + dy))]
        found.append(free[0] if free else (x + steps[0][0], y))
    return found


def shade(r):
    """White at 0, the darker the further from it."""
    colour = (46, 134, 193) if r > 0 else (192, 57, 43)
    return "#" + "".join(f"{round(255 - 0.55 * abs(r)**2 * (255 - c)):02x}" for c in colour)


def scatter(models, axes, a, b, x0, y0):
    """Metric `a` to the right, `b` upwards. Models are numbered; their names come up under the mouse."""
    yield f'<rect x="{x0}" y="{y0}" width="{CELL}" height="{CELL}" fill="none" stroke="#bbb"/>'
    for tick in axes[a].ticks():
        yield f'<path d="M{x0 + axes[a](tick):.1f} {y0}v{CELL}" stroke="#eee"/>'
    for tick in axes[b].ticks():
        yield f'<path d="M{x0} {y0 + CELL - axes[b](tick):.1f}h{CELL}" stroke="#eee"/>'
    dots = [(axes[a](model[a]), CELL - axes[b](model[b])) for model in models]
    for number, (model, (x, y), (u, v)) in enumerate(zip(models, dots, places(dots)), 1):
        colour = FEW if 2 * number <= len(models) + 1 else MANY
        yield f'<g class="model"><title>{escape(model["model"])}</title>'
        yield f'<circle cx="{x0 + x:.1f}" cy="{y0 + y:.1f}" r="{DOT}" fill="{colour}" fill-opacity="0.8"/>'
        yield text(x0 + u, y0 + v + 3, str(number), fill=colour, font_size=9, text_anchor="middle") + "</g>"


def correlation(spearman, a, b, x0, y0):
    both, few = spearman["all"][a][b], spearman["fewest_flops"][a][b]
    yield f'<rect x="{x0}" y="{y0}" width="{CELL}" height="{CELL / 2}" fill="{shade(both)}" stroke="#bbb"/>'
    yield f'<rect x="{x0}" y="{y0 + CELL / 2}" width="{CELL}" height="{CELL / 2}" fill="{shade(few)}" stroke="#bbb"/>'
    for y, r, whose, colour in [(y0, both, "all", "black"), (y0 + CELL / 2, few, "fewest FLOPs", FEW)]:
        yield text(x0 + CELL / 2, y + 36, f"{r:.2f}", font_size=20, text_anchor="middle")
        yield text(x0 + CELL / 2, y + 55, whose, font_size=11, text_anchor="middle", fill=colour)


def tick_labels(axes):
    """To the left of the first column and below the last row."""
    end = TOP + len(METRICS) * PITCH
    for i, (key, _, unit, scale) in enumerate(METRICS):
        for tick in axes[key].ticks():
            label = f"{short(tick / scale)} {unit}"
            if i > 0:
                yield text(LEFT - 6, TOP + i * PITCH + CELL - axes[key](tick) + 4, label, text_anchor="end")
            if i + 1 < len(METRICS):
                yield text(LEFT + i * PITCH + axes[key](tick), end + 6, label, text_anchor="middle")


def legend(models, top):
    columns = 4
    rows = math.ceil(len(models) / columns)
    for i, model in enumerate(models):
        x, y = LEFT + i // rows * (PITCH * len(METRICS) / columns), top + 20 * (i % rows)
        yield f'<circle cx="{x + 7:.1f}" cy="{y}" r="7" fill="{FEW if 2 * (i + 1) <= len(models) + 1 else MANY}"/>'
        yield text(x + 7, y + 3, str(i + 1), fill="white", font_size=9, text_anchor="middle")
        yield text(x + 20, y + 4, model["model"], font_size=12)


def main():
    with open(sys.argv[1]) as file:
        results = json.load(file)
    models = sorted(results["models"], key=lambda m: m["flops"])
    axes = {key: Axis([m[key] for m in models]) for key, *_ in METRICS}
    width, end = LEFT + len(METRICS) * PITCH, TOP + len(METRICS) * PITCH
    height = end + 40 + 20 * math.ceil(len(models) / 4)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for row, (b, name, unit, _) in enumerate(METRICS):
        for column, (a, *_) in enumerate(METRICS):
            x0, y0 = LEFT + column * PITCH, TOP + row * PITCH
            if column < row:
                out += scatter(models, axes, a, b, x0, y0)
            elif column > row:
                out += correlation(results["spearman"], a, b, x0, y0)
            else:
                out.append(text(x0 + CELL / 2, y0 + CELL / 2, name, font_size=15, font_weight="bold", text_anchor="middle"))
                out.append(text(x0 + CELL / 2, y0 + CELL / 2 + 18, unit, font_size=12, text_anchor="middle"))
    print("\n".join([*out, *tick_labels(axes), *legend(models, end + 32), "</svg>"]))


if __name__ == "__main__":
    main()
