// Who holds the peak.

const holdersSection = {
  id: "peak",
  title: "Who holds the peak",
  has: (data) => data.profile?.memory?.holders !== undefined,

  build(data) {
    const m = data.profile.memory,
      h = m.holders;
    const kept = h.saved.filter((s) => s.category === "activation" && s.bytes > 0).sort((a, b) => b.bytes - a.bytes);
    const where = `${h.op}${h.module ? ` in ${h.module}` : ""}`;
    const slots = Object.entries(m.optimizer_state_bytes).map(([slot, bytes]) => ({ name: slot, slot: bytes }));
    const rows = CATEGORIES.flatMap(({ key, name }) => [{ key, name }, ...(key === "optimizer_state" ? slots : [])]);
    const shown = kept.slice(0, 60);
    const exact = m.predicted_peak_bytes.total === m.measured_peak_bytes.total;
    return [
      element(
        "p",
        {},
        `The most is held when ${where} begins (${h.phase}). Of the ${format.bytes(h.live_bytes.activation)} of activations then, ` +
          `${format.bytes(h.saved_bytes)} in ${plural(kept.length, "tensor", "tensors")} wait for backward, and ` +
          `${format.bytes(h.running_bytes)} are being worked on` +
          (h.other_bytes > 0 ? `; ${format.bytes(h.other_bytes)} are gradients on their way, or wait to be run again.` : "."),
      ),
      element(
        "p",
        { class: `verdict ${exact ? "good" : "bad"}` },
        exact
          ? "✓ The peak was predicted before the step ran, correct to the byte."
          : "✗ The measured peak is not the predicted one. This is a defect of Rewind.",
      ),
      table({
        caption: "The peak by kind of memory",
        note: "Each kind has its own peak at a time of its own; at the peak: what the total was made of then.",
        rows: [...rows, { key: "total", name: "total" }],
        columns: [
          { title: "Kind", text: (r) => r.name, depth: (r) => (r.key ? 0 : 1) },
          { title: "Predicted", text: (r) => (r.key ? format.bytes(m.predicted_peak_bytes[r.key]) : "") },
          { title: "Measured", text: (r) => format.bytes(r.key ? m.measured_peak_bytes[r.key] : r.slot) },
          {
            title: "At the peak",
            text: (r) => (r.key ? format.bytes(m.at_peak_bytes[r.key]) : ""),
            share: (r) => (r.key ? m.at_peak_bytes[r.key] / m.at_peak_bytes.total : NaN),
          },
        ],
      }),
      table({
        caption: "Tensors that wait for backward, the largest first",
        note:
          "Why: what the op that will need the tensor says about it. Where several keep the same memory, its bytes count at the first, " +
          "and the others are left out." +
          (shown.length < kept.length ? ` The ${shown.length} largest of ${format.count(kept.length)}.` : ""),
        rows: shown,
        columns: [
          { title: "Saved for", text: (s) => s.op },
          { title: "In module", text: (s) => s.module || "–", words: true },
          { title: "Shape", text: (s) => `[${s.shape.join(", ")}]`, words: true },
          { title: "Bytes", text: (s) => format.bytes(s.bytes), share: (s) => s.bytes / kept[0].bytes },
          { title: "Why", text: (s) => s.why, words: true },
        ],
      }),
    ];
  },
};
