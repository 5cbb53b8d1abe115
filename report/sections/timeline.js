// What is in memory, from the beginning of a step to its end.

const timelineSection = {
  id: "timeline",
  title: "Memory during a step",
  has: (data) => (data.strategies ?? []).some((s) => s.timeline?.length > 1),

  build(data) {
    const list = data.strategies.filter((s) => s.timeline?.length > 1);
    const figures = element("div", { class: "figures" });
    const sameScale = element("input", { type: "checkbox" });
    sameScale.checked = true;
    let shown = [];
    const show = (chosen) => {
      shown = chosen;
      const top = Math.max(...list.map((s) => memoryOf(s).most.total));
      figures.replaceChildren(...chosen.map((s) => timelineFigure(s, sameScale.checked ? top : null)));
    };
    sameScale.addEventListener("change", () => {
      show(shown);
      paintNew();
    });
    return [
      element(
        "p",
        {},
        "Forward adds activations, backward uses them up. Recompute turns the one mountain into several hills. The dashed " +
          "line marks the peak: the moment that decides how much memory the step needs.",
      ),
      choice(list, show, [element("label", {}, sameScale, "the same height for all")]),
      legend(
        CATEGORIES.filter(({ key }) => list.some((s) => s.timeline.some((p) => p[key] > 0))).map((c) => ({ ...c, colour: c.key })),
      ),
      figures,
    ];
  },
};

/** {points: [{t, total, sums: below and with each category, ...}], most: the point of the peak} */
function memoryOf(s) {
  if (s.memory) return s.memory;
  const points = s.timeline.map((p, i) => {
    let sum = 0;
    const sums = CATEGORIES.map(({ key }) => (sum += p[key] ?? 0));
    return { ...p, t: p.t ?? i, sums, total: sum };
  });
  s.memory = { points, most: points.reduce((a, b) => (b.total > a.total ? b : a)) };
  return s.memory;
}

function timelineFigure(s, top) {
  const { points, most } = memoryOf(s),
    last = points.at(-1).t;
  const isShare = last <= 1;
  const when = (t) => (isShare ? `${(100 * t).toFixed(1)} % of the step` : `event ${format.count(t)} of ${format.count(last)}`);
  const where = (p) => [p.op, p.module].filter(Boolean).join(" in ");
  const used = CATEGORIES.map((c, k) => ({ ...c, k })).filter(({ key }) => points.some((p) => p[key] > 0));

  const config = () => ({
    type: "line",
    data: {
      datasets: used.map(({ key, name, k }, i) => ({
        label: name,
        data: points.map((p) => ({ x: p.t, y: p.sums[k] })),
        stepped: "before",
        fill: i === 0 ? "origin" : "-1",
        backgroundColor: colour(key),
        borderColor: colour(key),
        borderWidth: 1,
        pointRadius: 0,
        pointHoverRadius: 0,
      })),
    },
    plugins: [mark, hairline],
    options: {
      parsing: false,
      normalized: true,
      interaction: { mode: "index", axis: "x", intersect: false },
      scales: {
        x: {
          type: "linear",
          min: 0,
          max: last,
          title: { text: isShare ? "part of the step" : "changes of memory, in order" },
          ticks: { callback: (v) => (isShare ? `${Math.round(100 * v)} %` : format.count(v)) },
        },
        y: {
          min: 0,
          ...(top ? { max: niceTop(top) } : { grace: "6%" }),
          ticks: { callback: format.bytesShort },
          title: { text: "bytes held" },
        },
      },
      plugins: {
        mark: { x: most.t, y: most.total, text: `peak ${format.bytes(most.total)}` },
        tooltip: {
          itemSort: (a, b) => b.datasetIndex - a.datasetIndex,
          callbacks: {
            title: ([item]) => [when(points[item.dataIndex].t), where(points[item.dataIndex])].filter(Boolean),
            label: ({ dataset, dataIndex, datasetIndex }) =>
              ` ${dataset.label}: ${format.bytes(points[dataIndex][used[datasetIndex].key] ?? 0)}`,
            footer: ([item]) => `total: ${format.bytes(points[item.dataIndex].total)}`,
          },
        },
      },
    },
  });

  return figure({
    title: s.strategy,
    text: `Peak ${format.bytes(most.total)} at ${when(most.t)}${where(most) ? `, while ${where(most)} ran` : ""}.`,
    box: chart(`Area chart of memory by kind for ${s.strategy}; peak ${format.bytes(most.total)} at ${when(most.t)}.`, config),
    below: [
      details("The numbers", () =>
        table({
          caption: `${s.strategy}: what is held`,
          rows: used
            .slice()
            .reverse()
            .concat([{ name: "total", key: "total" }]),
          columns: [
            { title: "Kind", text: (c) => c.name },
            { title: "At the start", text: (c) => format.bytes(points[0][c.key] ?? 0) },
            { title: "At the peak", text: (c) => format.bytes(most[c.key] ?? 0), share: (c) => (most[c.key] ?? 0) / most.total },
            { title: "At the end", text: (c) => format.bytes(points.at(-1)[c.key] ?? 0) },
          ],
        }),
      ),
    ],
  });
}

/** The next of 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten, with a little air. */
function niceTop(value) {
  const air = value * 1.04,
    power = 10 ** Math.floor(Math.log10(air));
  return power * ([1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((m) => m * power >= air) ?? 10);
}
