// What each strategy takes, and that all of them compute the same.

// What is not there was not compared.
const differs = (value, reference) => (value ?? null) !== null && (reference ?? null) !== null && value !== reference;
const exact = (bytes) => (Number.isFinite(bytes) ? `${format.count(bytes)} bytes` : null);

const CATEGORIES = [
  { key: "parameter", name: "parameters" },
  { key: "optimizer_state", name: "optimizer state" },
  { key: "gradient", name: "gradients" },
  { key: "input", name: "input" },
  { key: "activation", name: "activations" },
  { key: "workspace", name: "workspace" },
];

const strategiesSection = {
  id: "strategies",
  title: "The strategies side by side",
  has: (data) => data.strategies?.length > 1 || (data.strategies ?? []).some((s) => Number.isFinite(peakOf(s))),

  build(data) {
    const list = data.strategies,
      base = list[0];
    const share = (value) => (s) => value(s) / maximum(list, value);
    const nodes = [
      element(
        "p",
        {},
        "Backward needs the values that forward made. A strategy decides which of them are kept, and which are thrown " +
          "away and computed again. Keeping less takes less memory and more time. It must not change the result.",
      ),
      ...verdicts(list),
      table({
        caption: `A training step under ${plural(list.length, "strategy", "strategies")}`,
        note:
          `Peak: the most memory held at one time. Shares and times are against ${base.strategy}. Computed again: FLOPs run a ` +
          "second time, as a share of those of a step that recomputes nothing.",
        rows: list,
        columns: [
          { title: "Strategy", text: (s) => s.strategy },
          {
            title: "Peak",
            text: (s) => format.bytes(peakOf(s)),
            share: share(peakOf),
            hint: (s) => exact(peakOf(s)),
          },
          { title: "Share", text: (s) => format.percent(peakOf(s) / peakOf(base)) },
          {
            title: "Activations",
            text: (s) => format.bytes(s.activation_peak_bytes),
            share: share((s) => s.activation_peak_bytes),
            hint: (s) => exact(s.activation_peak_bytes),
          },
          { title: "Time a step", text: (s) => format.milliseconds(s.step_ms_median), share: share((s) => s.step_ms_median) },
          { title: "Times", text: (s) => format.times(s.step_ms_median / base.step_ms_median) },
          { title: "Computed again", text: (s) => format.percent(s.recomputed_flops_ratio) },
          {
            title: "Predicted peak",
            text: (s) =>
              s.predicted_peak_bytes === s.measured_peak_bytes && Number.isFinite(peakOf(s))
                ? "the same"
                : format.bytes(s.predicted_peak_bytes),
            hint: (s) => exact(s.predicted_peak_bytes),
            bad: (s) => isWrong(s),
          },
          { title: "Loss", text: (s) => format.fixed(s.loss, 6), bad: (s) => differs(s.loss, base.loss) },
          { title: "Gradients (hash)", text: (s) => s.gradient_hash ?? "–", bad: (s) => differs(s.gradient_hash, base.gradient_hash) },
        ],
      }),
    ];
    if (list.some((s) => s.peak_bytes_by_category))
      nodes.push(
        table({
          caption: "The most that each kind of memory takes",
          note: "Each kind has its peak at a time of its own, so that a row adds up to more than its total.",
          rows: list.filter((s) => s.peak_bytes_by_category),
          columns: [
            { title: "Strategy", text: (s) => s.strategy },
            ...CATEGORIES.map(({ key, name }) => ({
              title: name,
              text: (s) => format.bytes(s.peak_bytes_by_category[key]),
              hint: (s) => `${format.count(s.peak_bytes_by_category[key])} bytes`,
            })),
            { title: "total", text: (s) => format.bytes(s.peak_bytes_by_category.total) },
          ],
        }),
      );
    return nodes;
  },
};

const isWrong = (s) =>
  Number.isFinite(s.predicted_peak_bytes) &&
  Number.isFinite(s.measured_peak_bytes) &&
  s.predicted_peak_bytes !== s.measured_peak_bytes;

function verdicts(list) {
  const base = list[0],
    nodes = [];
  const verdict = (good, text) =>
    nodes.push(element("p", { class: `verdict ${good ? "good" : "bad"}` }, `${good ? "✓" : "✗"} ${text}`));
  const names = (some) => some.map((s) => s.strategy).join(", ");

  const hashed = list.filter((s) => s.gradient_hash !== undefined && s.gradient_hash !== null);
  const other = hashed.filter((s) => s.gradient_hash !== hashed[0].gradient_hash || s.loss !== hashed[0].loss);
  if (other.length > 0)
    verdict(
      false,
      `The gradients or the loss differ from those of ${hashed[0].strategy}: ${names(other)}. This is a defect of Rewind.`,
    );
  else if (hashed.length > 1)
    verdict(
      true,
      `The gradients and the loss of ${hashed.length === list.length ? `all ${list.length}` : hashed.length} strategies are ` +
        `identical, to the last bit.${hashed.length < list.length ? " The others were not compared." : ""}`,
    );

  const wrong = list.filter(isWrong),
    checked = list.filter((s) => Number.isFinite(s.predicted_peak_bytes) && Number.isFinite(s.measured_peak_bytes));
  if (wrong.length > 0) verdict(false, `The measured peak is not the predicted one: ${names(wrong)}. This is a defect of Rewind.`);
  else if (checked.length > 0) verdict(true, "Each peak was predicted before the step ran, correct to the byte.");

  const least = list.reduce((a, b) => (peakOf(b) < peakOf(a) ? b : a));
  if (least !== base)
    nodes.push(
      element(
        "p",
        {},
        `${base.strategy} takes ${format.bytes(peakOf(base))}. The least memory is taken by ${least.strategy}: ` +
          `${format.bytes(peakOf(least))}, ${format.percent(peakOf(least) / peakOf(base))} of that` +
          (Number.isFinite(least.step_ms_median / base.step_ms_median)
            ? `, in ${format.times(least.step_ms_median / base.step_ms_median)} the time.`
            : "."),
      ),
    );
  return nodes;
}
