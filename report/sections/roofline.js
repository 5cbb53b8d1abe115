// Each op under the two roofs of the machine: arithmetic, and memory.

const rooflineSection = {
  id: "roofline",
  title: "The ops under the roofline",
  has: (data) => opPoints(data).length > 1,

  build(data) {
    const m = data.profile.machine;
    return [
      element(
        "p",
        {},
        `An op can be no faster than its arithmetic (${flopsText(m.flops_per_second)}/s here) and no faster than its bytes ` +
          `(${format.bytes(m.bytes_per_second)}/s). Left of the ridge, at ${format.number(m.ridge_flops_per_byte)} FLOPs a byte, memory is ` +
          "the limit: fewer FLOPs would not help there, fewer bytes would. This is why depthwise convolutions save less time than FLOPs.",
      ),
      rooflineFigure(data),
      table({
        caption: "Ops by name, the slowest first",
        note:
          `All calls of a step, added up. ${TIME_NOTE}settle: applies a normalisation that a fused convolution left pending, adds ` +
          "the shortcut, and applies the activation, in one pass; settle_gradient is its way back. unary_gradient: the way back through any " +
          "function of one value, such as an activation.",
        rows: data.profile.op_totals.slice(0, 40),
        columns: [
          { title: "Op", text: (o) => o.op },
          { title: "Phase", text: (o) => o.phase, words: true },
          { title: "% time", text: (o) => hundredths(o.time_share), share: (o) => o.time_share },
          ...workColumns,
          { title: "Saved", text: (o) => (o.saved_bytes > 0 ? format.bytes(o.saved_bytes) : "–") },
          { title: "Workspace", text: (o) => (o.workspace_bytes > 0 ? format.bytes(o.workspace_bytes) : "–") },
        ],
      }),
    ];
  },
};

const MOST_POINTS = 1500,
  MOST_ROWS = 200;

/** The ops that can be drawn on two logarithmic axes, the slowest first. */
function opPoints(data) {
  return (data.profile?.ops ?? [])
    .filter((o) => o.flops > 0 && moved(o) > 0 && o.ms_median > 0)
    .map((o) => ({ x: o.flops / moved(o), y: o.flops / (o.ms_median / 1000), op: o }))
    .sort((a, b) => b.op.ms_median - a.op.ms_median);
}

function rooflineFigure(data) {
  const m = data.profile.machine,
    all = opPoints(data),
    points = all.slice(0, MOST_POINTS),
    slowest = points[0].op.ms_median;
  const least = Math.min(...points.map((p) => p.x)) / 2,
    most = Math.max(m.ridge_flops_per_byte, ...points.map((p) => p.x)) * 2;
  const roof = [least, m.ridge_flops_per_byte, most].map((x) => ({ x, y: Math.min(m.flops_per_second, x * m.bytes_per_second) }));
  const used = CLASSES.filter(({ key }) => points.some((p) => p.op.class === key));
  const powers = (axis) => {
    axis.ticks = [];
    for (let v = 10 ** Math.ceil(Math.log10(axis.min)); v <= axis.max; v *= 10) axis.ticks.push({ value: v });
  };

  const config = () => ({
    type: "scatter",
    data: {
      datasets: [
        ...used.map(({ key, colour: name }) => {
          const own = points.filter((p) => p.op.class === key);
          return {
            label: key,
            data: own,
            backgroundColor: colour(name),
            borderColor: colour("panel"),
            borderWidth: 0.5,
            pointRadius: own.map((p) => 2.5 + 9 * Math.sqrt(p.op.ms_median / slowest)),
            pointHoverRadius: own.map((p) => 4 + 9 * Math.sqrt(p.op.ms_median / slowest)),
            order: 1,
          };
        }),
        {
          type: "line",
          label: "roof",
          data: roof,
          borderColor: colour("ink"),
          borderWidth: 2,
          pointRadius: 0,
          pointHitRadius: 0,
          order: 2,
        },
      ],
    },
    options: {
      interaction: { mode: "nearest", intersect: false },
      scales: {
        x: {
          type: "logarithmic",
          min: least,
          max: most,
          title: { text: "FLOPs a byte, logarithmic" },
          afterBuildTicks: powers,
          ticks: { callback: (v) => format.number(v) },
        },
        y: {
          type: "logarithmic",
          max: m.flops_per_second * 2,
          title: { text: "FLOPs a second, logarithmic" },
          afterBuildTicks: powers,
          ticks: { callback: (v) => flopsText(v).replace("FLOP", "") },
        },
      },
      plugins: {
        tooltip: {
          filter: (item, index) => index === 0 && item.raw.op !== undefined,
          callbacks: {
            title: (items) => items.map(({ raw }) => [raw.op.op, raw.op.module].filter(Boolean).join(" in ")).slice(0, 1),
            label: ({ raw: { op } }) => [
              `${op.phase}, ${op.class}`,
              `${milli(op.ms_median)}, p95 ${milli(op.ms_p95)}`,
              `${flopsText(op.flops)}, ${format.bytes(moved(op))}`,
              `${format.number(op.intensity)} FLOPs a byte, ${format.percent(op.of_roofline)} of the roofline`,
            ],
          },
        },
      },
    },
  });

  return element(
    "div",
    { class: "figures single" },
    figure({
      title: "Every op of a step",
      text:
        "A point is one op; the larger, the more time it takes. Point at one to see which it is. Above the roof, left of the ridge: its " +
        "bytes came from a cache. Right of it: a 3x3 convolution by Winograd's transform, which multiplies 16 of the 36 times that are " +
        "counted, or a roof that was measured while another program ran. Ops without FLOPs (reshape, concat) have no place here." +
        (all.length > points.length ? ` The ${format.count(points.length)} slowest of ${format.count(all.length)}.` : ""),
      box: chart(
        `Scatter plot: ${format.count(points.length)} ops by FLOPs a byte and FLOPs a second, under a roof of ` +
          `${flopsText(m.flops_per_second)}/s and ${format.bytes(m.bytes_per_second)}/s.`,
        config,
      ),
      below: [
        legend([...used.map(({ key, colour: name }) => ({ name: key, colour: name })), { name: "the roof", colour: "ink" }]),
        details(`The ${format.count(Math.min(all.length, MOST_ROWS))} slowest ops with FLOPs`, () =>
          table({
            caption: "Ops with FLOPs, the slowest first",
            note: "Single calls, each in its module.",
            rows: all.slice(0, MOST_ROWS).map((p) => p.op),
            columns: [
              { title: "Op", text: (o) => o.op },
              { title: "Module", text: (o) => o.module || "–", words: true },
              { title: "Phase", text: (o) => o.phase, words: true },
              ...workColumns.slice(1),
            ],
          }),
        ),
      ],
    }),
  );
}
