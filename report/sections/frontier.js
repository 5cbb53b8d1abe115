// Memory against time: what is possible, where each strategy stands, and what was measured.

const frontierSection = {
  id: "frontier",
  title: "Memory against time",
  has: (data) => data.frontier?.length > 1 || measuredPoints(data).length > 1,

  build(data) {
    const nodes = [
      element(
        "p",
        {},
        "Further left is less memory, further down is less time. No point is best in both: less memory costs " + "more time.",
      ),
    ];
    const figures = element("div", { class: "figures" });
    if (data.frontier?.length > 1) figures.append(plannedFigure(data));
    if (measuredPoints(data).length > 1) figures.append(measuredFigure(data));
    return [...nodes, figures];
  },
};

const measuredPoints = (data) =>
  (data.strategies ?? [])
    .filter((s) => Number.isFinite(peakOf(s)) && Number.isFinite(s.step_ms_median))
    .map((s) => ({ x: peakOf(s), y: s.step_ms_median, name: s.strategy }));

const plannedPoints = (data) =>
  (data.strategies ?? [])
    .filter((s) => s.trace?.length > 0)
    .map((s) => ({
      x: maximum(s.trace, (step) => step.during) + (data.frontier_beside?.bytes ?? 0),
      y: s.trace.at(-1).end + (data.frontier_beside?.seconds ?? 0),
      name: s.strategy,
    }));

/** The strategies as points. What takes far more time than the rest (low-memory) stands at the top edge, with an arrow. */
const pointSet = (points, top) => ({
  type: "scatter",
  data: points.map((p) => ({ ...p, value: p.y, y: Math.min(p.y, top) })),
  names: points.map((p) => (p.y > top ? `${p.name} ↑` : p.name)),
  label: "strategies",
  backgroundColor: colour("point"),
  borderColor: colour("panel"),
  borderWidth: 1,
  pointRadius: 5,
  pointHoverRadius: 7,
  order: 0,
  clip: false,
});

const arrowNote = (points, top) => (points.some((p) => p.y > top) ? " An arrow: far above the picture." : "");

const TIMES = [1, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000];

function plannedFigure(data) {
  const curve = data.frontier
    .filter((p) => Number.isFinite(p.bytes) && Number.isFinite(p.seconds))
    .sort((a, b) => a.bytes - b.bytes);
  const fastest = curve.at(-1).seconds,
    unit = data.frontier_unit ?? "s";
  const points = plannedPoints(data).map((p) => ({ ...p, cost: p.y, y: p.y / fastest }));
  const line = curve.map((p) => ({ x: p.bytes, y: p.seconds / fastest, cost: p.seconds }));
  const top = Math.max(2, 1.5 * line[0].y);
  if (line.at(-1).x < maximum(points, (p) => p.x)) line.push({ ...line.at(-1), x: maximum(points, (p) => p.x) });

  const config = () => ({
    type: "line",
    data: {
      datasets: [
        {
          data: line,
          label: "frontier",
          stepped: "before",
          borderColor: colour("curve"),
          borderWidth: 2,
          pointRadius: 0,
          pointHitRadius: 4,
          order: 1,
        },
        pointSet(points, top),
      ],
    },
    plugins: [pointNames],
    options: {
      interaction: { mode: "nearest", intersect: false },
      layout: { padding: { right: 8, top: 8 } },
      scales: {
        x: axisFor(
          [...line, ...points].map((p) => p.x),
          data.frontier_beside ? "memory of a step" : "memory of a step's activations",
          format.bytesShort,
        ),
        y: {
          type: "logarithmic",
          min: 0.96,
          max:
            Math.min(
              top,
              maximum([...line, ...points], (p) => p.y),
            ) * 1.03,
          title: { text: "time (1 = without recompute)" },
          afterBuildTicks: (axis) => {
            axis.ticks = TIMES.filter((v) => v <= axis.max).map((value) => ({ value }));
          },
          ticks: { callback: (v) => `${v}×` },
        },
      },
      plugins: {
        tooltip: {
          callbacks: {
            title: (items) => items[0].raw.name ?? "the least time within this memory",
            label: ({ raw }) => [
              format.bytes(raw.x),
              `${format.times(raw.value ?? raw.y)} the time`,
              `${format.number(raw.cost, 4)} ${unit}`,
            ],
          },
        },
      },
    },
  });

  const rows = sample(curve, 40);
  return figure({
    title: "As planned",
    text:
      "The line is the frontier: the least time that any schedule of this kind (one that keeps a checkpoint until it is used) " +
      "needs within so much memory. A strategy above the line wastes time. Parameters, their gradients and optimizer state are " +
      (data.frontier_beside ? "counted as constant, and so is the time of the loss and the optimizer." : "not counted.") +
      arrowNote(points, top),
    box: chart(
      `Line chart: time against memory. From ${format.bytes(curve[0].bytes)} at ${format.times(curve[0].seconds / fastest)} ` +
        `the time to ${format.bytes(curve.at(-1).bytes)} at 1.00×.`,
      config,
    ),
    below: [
      details("The numbers", () =>
        element(
          "div",
          {},
          table({
            caption: "Strategies, as planned",
            rows: points,
            columns: [
              { title: "Strategy", text: (p) => p.name },
              { title: "Memory", text: (p) => format.bytes(p.x) },
              { title: "Times", text: (p) => format.times(p.y) },
              { title: `Time (${unit})`, text: (p) => format.number(p.cost, 4) },
            ],
          }),
          table({
            caption: "The frontier",
            rows,
            note: rows.length < curve.length ? `${rows.length} of its ${format.count(curve.length)} corners.` : null,
            columns: [
              { title: "Memory", text: (p) => format.bytes(p.bytes) },
              { title: "Times", text: (p) => format.times(p.seconds / fastest) },
              { title: `Time (${unit})`, text: (p) => format.number(p.seconds, 4) },
            ],
          }),
        ),
      ),
    ],
  });
}

/** At most `count` of a list, evenly, both ends among them. */
const sample = (list, count) =>
  list.length <= count ? list : Array.from({ length: count }, (_, i) => list[Math.round((i * (list.length - 1)) / (count - 1))]);

function measuredFigure(data) {
  const points = measuredPoints(data),
    base = points[0],
    top = 4 * Math.min(...points.map((p) => p.y));
  const config = () => ({
    type: "scatter",
    data: { datasets: [pointSet(points, top)] },
    plugins: [pointNames],
    options: {
      interaction: { mode: "nearest", intersect: false },
      layout: { padding: { right: 8, top: 8 } },
      scales: {
        x: axisFor(
          points.map((p) => p.x),
          "peak of all memory",
          format.bytesShort,
        ),
        y: axisFor(
          points.map((p) => Math.min(p.y, top)),
          "time of a step",
          (v) => format.milliseconds(v).replace(/\.0+ /, " "),
        ),
      },
      plugins: {
        tooltip: {
          callbacks: {
            title: (items) => items[0].raw.name,
            label: ({ raw }) => [
              format.bytes(raw.x),
              format.milliseconds(raw.value),
              `${format.times(raw.value / base.y)} the time of ${base.name}`,
            ],
          },
        },
      },
    },
  });
  return figure({
    title: "As measured",
    text:
      "The whole step on this machine: all memory, parameters and optimizer state included, and the median time." +
      arrowNote(points, top),
    box: chart(
      `Scatter chart of ${points.map((p) => `${p.name}: ${format.bytes(p.x)}, ${format.milliseconds(p.y)}`).join("; ")}.`,
      config,
    ),
    below: [
      details("The numbers", () =>
        table({
          caption: "Strategies, as measured",
          rows: points,
          columns: [
            { title: "Strategy", text: (p) => p.name },
            { title: "Peak", text: (p) => format.bytes(p.x) },
            { title: "Time", text: (p) => format.milliseconds(p.y) },
            { title: "Times", text: (p) => format.times(p.y / base.y) },
          ],
        }),
      ),
    ],
  });
}
