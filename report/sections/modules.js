// The modules of a net: parameters, work, time by phase.

const modulesSection = {
  id: "modules",
  title: "The modules",
  has: (data) => data.profile?.modules?.length > 0,

  build(data) {
    const rows = withSums(data.profile.modules);
    const time = (phase) => (r) => r.sum[phase];
    const most = rows[0].sum.all || 1;
    const columns = [
      { title: "Module", text: (r) => `${r.module.split(".").at(-1) || "the net"}: ${r.type}`, depth: (r) => r.depth },
      { title: "Parameters", text: (r) => (r.sum.parameters > 0 ? format.count(r.sum.parameters) : "–") },
      { title: "MACs, forward", text: (r) => (r.sum.macs > 0 ? format.count(r.sum.macs) : "–") },
      { title: "Moved", text: (r) => (r.sum.bytes > 0 ? format.bytes(r.sum.bytes) : "–") },
      { title: "FLOPs/byte", text: (r) => (r.sum.bytes > 0 ? format.number(r.sum.flops / r.sum.bytes) : "–") },
      { title: "Time", text: (r) => milli(r.sum.all), share: (r) => r.sum.all / most },
      ...["forward", "backward", "recompute", "optimizer"].map((phase) => ({ title: phase, text: (r) => milli(time(phase)(r)) })),
      { title: "Of the roofline", text: (r) => (r.sum.roofline > 0 ? format.percent(r.sum.roofline / r.sum.all) : "–") },
      { title: "Saved", text: (r) => (r.sum.saved > 0 ? format.bytes(r.sum.saved) : "–") },
    ];
    const note =
      "A module's numbers include those of the modules in it. Times are medians, by module and phase, added up; the whole comes " +
      "out a little below the median of the step, and without the framework's own time.";
    const top = rows.filter((r) => r.depth <= 2);
    const nodes = [table({ caption: "Modules, two levels down", note, columns, rows: top })];
    if (rows.length > top.length)
      nodes.push(details(`All ${format.count(rows.length)} modules`, () => table({ caption: "All modules", note, columns, rows })));
    return nodes;
  },
};

/** Adds up from below; parents come before their children. */
function withSums(modules) {
  const rows = modules.map((r) => {
    const sum = { parameters: r.parameters, macs: r.forward?.macs ?? 0, bytes: 0, flops: 0, all: 0, roofline: 0, saved: 0 };
    for (const phase of ["forward", "backward", "recompute", "optimizer"]) {
      const work = r[phase];
      sum[phase] = work?.ms_median ?? 0;
      if (!work) continue;
      sum.bytes += moved(work);
      sum.flops += work.flops;
      sum.all += work.ms_median;
      sum.roofline += work.roofline_ms;
      sum.saved += work.saved_bytes;
    }
    return { ...r, sum };
  });
  for (let i = rows.length - 1; i > 0; --i)
    for (let up = i - 1; up >= 0; --up)
      if (rows[up].depth < rows[i].depth) {
        for (const key of Object.keys(rows[i].sum)) rows[up].sum[key] += rows[i].sum[key];
        break;
      }
  return rows;
}
