// Latency and throughput against the batch size.

const speedSection = {
  id: "speed",
  title: "Latency and throughput",
  has: (data) => data.profile?.throughput?.length > 0 || data.profile?.latency !== undefined || data.profile?.epoch !== undefined,

  build(data) {
    const { throughput = [], latency, epoch } = data.profile;
    const nodes = [
      element(
        "p",
        {},
        "One sample alone is answered soonest; many together are worked through fastest. Which of the two counts depends on who waits. " +
          "Latency, throughput and the step above are measured one after the other, each on its own, so that the same work may show " +
          "two times.",
      ),
    ];
    if (latency)
      nodes.push(
        element(
          "p",
          {},
          `Latency at batch 1: median ${milli(latency.ms_median)}, 95 % within ${milli(latency.ms_p95)}, 99 % within ` +
            `${milli(latency.ms_p99)} (${plural(latency.runs, "run", "runs")}).`,
        ),
      );
    if (epoch)
      nodes.push(
        element(
          "p",
          {},
          `An epoch with its data: ${format.number(epoch.seconds)} s for ${format.count(epoch.samples)} samples in ` +
            `${plural(epoch.batches, "batch", "batches")}, ${hundredths(epoch.waiting_seconds / epoch.seconds)} of it waiting for data.`,
        ),
      );
    if (throughput.length > 1)
      nodes.push(
        element(
          "div",
          { class: "figures" },
          batchFigure(throughput, {
            title: "Throughput",
            text: "Samples a second: the larger the batch, the better the machine is used, up to a point.",
            unit: "samples a second",
            value: (rate) => rate,
            show: (v) => `${format.number(v)} samples/s`,
          }),
          batchFigure(throughput, {
            title: "Time for a batch",
            text: "How long the whole batch takes.",
            unit: "milliseconds",
            value: (rate, batch) => (1000 * batch) / rate,
            show: (v) => milli(v),
          }),
        ),
      );
    if (throughput.length > 0)
      nodes.push(
        table({
          caption: "Throughput by batch size",
          rows: throughput,
          columns: [
            { title: "Batch", text: (t) => format.count(t.batch) },
            { title: "Inference, samples/s", text: (t) => format.number(t.inference_per_second) },
            { title: "Training, samples/s", text: (t) => format.number(t.training_per_second) },
            { title: "Inference, a batch", text: (t) => milli((1000 * t.batch) / t.inference_per_second) },
            { title: "Training, a step", text: (t) => milli((1000 * t.batch) / t.training_per_second) },
          ],
        }),
      );
    return nodes;
  },
};

function batchFigure(throughput, { title, text, unit, value, show }) {
  const lines = [
    { name: "inference", key: "inference_per_second", colour: "curve" },
    { name: "training", key: "training_per_second", colour: "point" },
  ].map((l) => ({
    ...l,
    points: throughput.filter((t) => t[l.key] > 0).map((t) => ({ x: t.batch, y: value(t[l.key], t.batch) })),
  }));
  const used = lines.filter((l) => l.points.length > 0);
  const config = () => ({
    type: "line",
    data: {
      datasets: used.map((l) => ({
        label: l.name,
        data: l.points,
        borderColor: colour(l.colour),
        backgroundColor: colour(l.colour),
        borderWidth: 2,
        pointRadius: 3.5,
        clip: false,
      })),
    },
    options: {
      interaction: { mode: "nearest", axis: "x", intersect: false },
      scales: {
        x: {
          type: "logarithmic",
          min: throughput[0].batch,
          max: throughput.at(-1).batch,
          title: { text: "batch size, logarithmic" },
          afterBuildTicks: (axis) => {
            axis.ticks = throughput.map((t) => ({ value: t.batch }));
          },
          ticks: { callback: (v) => format.count(v) },
        },
        y: { min: 0, grace: "8%", title: { text: unit }, ticks: { callback: (v) => format.number(v) } },
      },
      plugins: {
        tooltip: {
          callbacks: {
            title: (items) => `batch ${format.count(items[0].raw.x)}`,
            label: ({ dataset, raw }) => ` ${dataset.label}: ${show(raw.y)}`,
          },
        },
      },
    },
  });
  const last = used.map((l) => `${l.name} ${show(l.points.at(-1).y)}`).join(", ");
  return figure({
    title,
    text,
    box: chart(`Line chart: ${unit} against batch size. At batch ${format.count(throughput.at(-1).batch)}: ${last}.`, config),
    below: [legend(used)],
  });
}
