#!/usr/bin/python3
"""Draws docs/plots/depth.svg, both axes logarithmic, from what `examples/depth_sweep --json FILE` wrote.

    docs/plots/depth.py FILE > docs/plots/depth.svg
"""
import json
import math
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 90, 110, 20, 50
COLOURS = ["#c0392b", "#2471a3", "#1e8449", "#b7950b", "#7d3c98"]


def main():
    with open(sys.argv[1]) as file:
        rows = json.load(file)
    depths = sorted({r["depth"] for r in rows})
    megabytes = [r["activation_peak_bytes"] / 1e6 for r in rows]
    low, high = 10 ** math.floor(math.log10(min(megabytes))), 10 ** math.ceil(math.log10(max(megabytes)))

    def x(depth):
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(depth / depths[0]) / math.log(depths[-1] / depths[0])

    def y(mb):
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - math.log(mb / low) / math.log(high / low))

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    mb = low
    while mb <= high:
        out.append(f'<path d="M{LEFT} {y(mb):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(mb) + 4:.1f}" text-anchor="end">{mb:g} MB</text>')
        mb *= 10
    for depth in depths:
        out.append(f'<path d="M{x(depth):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>')
        out.append(f'<text x="{x(depth):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{depth}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">layers</text>')
    last = {r["strategy"]: y(r["activation_peak_bytes"] / 1e6) for r in rows if r["depth"] == depths[-1]}
    label, at = {}, -math.inf
    for strategy, height in sorted(last.items(), key=lambda item: item[1]):
        at = label[strategy] = max(height, at + 15)  # none on top of another
    for colour, strategy in zip(COLOURS, dict.fromkeys(r["strategy"] for r in rows)):
        points = [(x(r["depth"]), y(r["activation_peak_bytes"] / 1e6)) for r in rows if r["strategy"] == strategy]
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3.5" fill="{colour}"/>' for px, py in points]
        out.append(f'<text x="{points[-1][0] + 10:.1f}" y="{label[strategy] + 4:.1f}" fill="{colour}">{strategy}</text>')
    print("\n".join([*out, "</svg>"]))


if __name__ == "__main__":
    main()
