// A step in numbers, and by class of operator.

const CLASSES = [
  { key: "tensor contraction", colour: "contraction" },
  { key: "statistical normalisation", colour: "normalisation" },
  { key: "element-wise", colour: "elementwise" },
  { key: "reduction", colour: "reduction" },
  { key: "data movement", colour: "movement" },
  { key: "random", colour: "random" },
  { key: "optimizer", colour: "update" },
];
const OVERHEAD = { key: "framework overhead", colour: "overhead" };
const classColour = (name) => [...CLASSES, OVERHEAD].find((c) => c.key === name)?.colour ?? "overhead";

const flopsText = (n) => {
  if (!Number.isFinite(n)) return "–";
  let unit = 0;
  for (; n >= 1000 && unit < 4; ++unit) n /= 1000;
  return `${format.number(n)} ${["", "k", "M", "G", "T"][unit]}FLOP`;
};
const hundredths = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(2)} %` : "–");
const milli = (ms) => (Number.isFinite(ms) && ms > 0 ? (ms < 1 ? `${(1000 * ms).toFixed(1)} µs` : format.milliseconds(ms)) : "–");
/** By nearest rank: of fewer than 20 steps it is the slowest. */
const p95Of = (step) => `p95 ${milli(step.ms_p95)}${step.steps < 20 ? ", which is the slowest," : ""}`;
const moved = (work) => work.bytes_read + work.bytes_written;

const profileSection = {
  id: "profile",
  title: "A training step",
  has: (data) => data.profile?.classes?.length > 0,

  build(data) {
    const p = data.profile,
      step = p.step;
    const facts = [
      ["time of a step", milli(step.ms_median), `${p95Of(step)} over ${plural(step.steps, "step", "steps")}`],
      ["without the profiler watching", milli(step.ms_median_unwatched), ""],
      ["in ops", hundredths(1 - step.overhead_share), "the rest is the framework"],
      [
        "framework",
        `${format.number(step.overhead_ns_per_op)} ns an op`,
        "modules, the way back through the tape, references; without reading the clock",
      ],
      ["ops", format.count(step.all_ops.calls), ""],
      ["multiply-adds (MACs)", format.count(step.all_ops.macs), "1 MAC = 2 FLOPs"],
      ["FLOPs", format.count(step.all_ops.flops), `${flopsText(step.all_ops.flops / (step.ms_median / 1000))}/s`],
      ["bytes read and written", format.bytes(moved(step.all_ops)), "each op's inputs and outputs, once"],
      [
        "peak memory",
        format.bytes(p.memory.measured_peak_bytes.total),
        `predicted ${format.bytes(p.memory.predicted_peak_bytes.total)}`,
      ],
      [
        "fused",
        p.fused ? "yes" : "no",
        p.fused
          ? "convolutions take over normalisations and activations around them"
          : "normalisations and activations are ops of their own",
      ],
    ];
    return [
      element(
        "p",
        {},
        "Forward, loss, backward and the update of the weights. Every op is timed by itself; together they are " +
          `${hundredths(1 - step.overhead_share)} of the time that a step takes on the clock.`,
      ),
      table({
        caption: "The step in numbers",
        note:
          `The machine: ${plural(p.machine.threads, "thread", "threads")}, ${flopsText(p.machine.flops_per_second)}/s and ` +
          `${format.bytes(p.machine.bytes_per_second)}/s measured, ridge point ${format.number(p.machine.ridge_flops_per_byte)} FLOPs a byte.`,
        rows: facts,
        columns: [
          { title: "What", text: (f) => f[0] },
          { title: "How much", text: (f) => f[1] },
          { title: "Remark", text: (f) => f[2], words: true },
        ],
      }),
      classFigure(p),
      classTable(p),
    ];
  },
};

/** [{label, shares: {class: share}}]: ours, and beside it what is published. */
function classBars(p) {
  const shares = (value) => Object.fromEntries(p.classes.map((c) => [c.class, value(c)]));
  const bars = [
    { label: "FLOPs", shares: shares((c) => c.flops_share) },
    { label: "bytes moved", shares: shares((c) => c.bytes_share) },
    { label: "run time", shares: { ...shares((c) => c.time_share), [OVERHEAD.key]: p.step.overhead_share } },
  ];
  if (p.classes.some((c) => Number.isFinite(c.published_time_share)))
    bars.push(
      { label: "transformer: FLOPs", shares: shares((c) => c.published_flops_share) },
      { label: "transformer: time", shares: shares((c) => c.published_time_share) },
    );
  return bars;
}

function classFigure(p) {
  const bars = classBars(p);
  const used = [...CLASSES, OVERHEAD].filter(({ key }) => bars.some((b) => b.shares[key] > 0));
  const config = () =>
    stackedBars({
      labels: bars.map((b) => b.label),
      parts: used.map((c) => ({ ...c, values: bars.map((b) => b.shares[c.key] ?? 0) })),
      x: { max: 1, title: { text: "share of the whole" }, ticks: { callback: (v) => `${Math.round(100 * v)} %` } },
      show: hundredths,
      gap: 1,
    });
  const main = p.classes.reduce((a, b) => (b.time_share > a.time_share ? b : a));
  return element(
    "div",
    { class: "figures single" },
    figure({
      title: "Classes of operators",
      text:
        "FLOPs do not say where the time goes: what does little arithmetic on many bytes waits for memory. Below ours, what " +
        "Ivanov et al. (2021) found for a transformer in PyTorch, on a GPU.",
      box: chart(
        `Stacked bars: shares of FLOPs, bytes and run time by class of operator. Most of the time, ${hundredths(main.time_share)}, ` +
          `goes to ${main.class}, which does ${hundredths(main.flops_share)} of the FLOPs.`,
        config,
      ),
      below: [legend(used.map(({ key, colour: name }) => ({ name: key, colour: name })))],
    }),
  );
}

const TIME_NOTE =
  "% time: of the wall clock of the steps up to the median one, so that shares add up. Time: the median of all timed steps; by " +
  "the time of a step it gives a little less or more. ";

const workColumns = [
  { title: "Calls", text: (c) => format.count(c.calls) },
  { title: "Time", text: (c) => milli(c.ms_median), hint: (c) => `p95 ${milli(c.ms_p95)}` },
  { title: "FLOPs", text: (c) => (c.flops > 0 ? flopsText(c.flops) : "–"), hint: (c) => `${format.count(c.flops)} FLOPs` },
  { title: "Moved", text: (c) => (moved(c) > 0 ? format.bytes(moved(c)) : "–"), hint: (c) => `${format.count(moved(c))} bytes` },
  { title: "FLOPs/byte", text: (c) => (c.intensity > 0 ? format.number(c.intensity) : "–") },
  {
    title: "Of the roofline",
    text: (c) => (c.of_roofline > 0 ? format.percent(c.of_roofline) : "–"),
    share: (c) => c.of_roofline,
    hint: (c) => `at least ${milli(c.roofline_ms)} on this machine`,
  },
];

function classTable(p) {
  return table({
    caption: "Classes of operators in numbers",
    note:
      TIME_NOTE +
      "Of the roofline: the least time that this machine allows, divided by the time taken. It can exceed 100 %: what lies in a " +
      "cache is read faster than the roof, which is main memory's; and FLOPs are those of the direct convolution, of which Winograd's " +
      "transform (3x3, stride 1, channels in sixteens) multiplies 16 of 36. Last two columns: a transformer in PyTorch, Ivanov et al. (2021).",
    rows: p.classes,
    columns: [
      { title: "Class", text: (c) => c.class },
      { title: "% FLOPs", text: (c) => hundredths(c.flops_share), share: (c) => c.flops_share },
      { title: "% bytes", text: (c) => hundredths(c.bytes_share), share: (c) => c.bytes_share },
      { title: "% time", text: (c) => hundredths(c.time_share), share: (c) => c.time_share },
      ...workColumns,
      { title: "Theirs: % FLOPs", text: (c) => hundredths(c.published_flops_share) },
      { title: "Theirs: % time", text: (c) => hundredths(c.published_time_share) },
    ],
  });
}
