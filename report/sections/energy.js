// What a step would take in energy, by a published table.

const ENERGIES = [
  { key: "arithmetic_joules", name: "arithmetic" },
  { key: "dram_joules", name: "movement, all from DRAM" },
  { key: "sram_joules", name: "movement, all from SRAM" },
  { key: "instruction_joules", name: "as scalar instructions" },
];

const joules = (n) => {
  if (!Number.isFinite(n)) return "–";
  let unit = 0;
  for (; n > 0 && n < 1 && unit < 3; ++unit) n *= 1000;
  return `${format.number(n)} ${["J", "mJ", "µJ", "nJ"][unit]}`;
};

const energySection = {
  id: "energy",
  title: "Energy, estimated",
  has: (data) => data.profile?.step?.all_ops?.energy !== undefined,

  build(data) {
    const p = data.profile,
      all = p.step.all_ops.energy;
    const classes = p.classes.filter((c) => c.calls > 0);
    const of = (key) => classes.find((c) => c.class === key)?.energy;
    const used = CLASSES.filter(({ key }) => of(key));
    const config = () =>
      stackedBars({
        labels: ENERGIES.map((e) => e.name.split(", ")),
        parts: used.map((c) => ({ ...c, values: ENERGIES.map((e) => of(c.key)[e.key]) })),
        x: { title: { text: "joules a step" }, ticks: { callback: joules } },
        show: joules,
        ends: ENERGIES.map((e) => joules(all[e.key])),
        footer: (bar) => `together: ${joules(all[ENERGIES[bar].key])}`,
      });
    return [
      element("p", {}, p.energy_assumptions),
      element(
        "div",
        { class: "figures single" },
        figure({
          title: "Arithmetic and movement",
          text:
            "A word from DRAM costs as much as 140 multiply-adds. The bars stand beside each other and are not to be added: two " +
            "cases of movement, all from DRAM once and all from SRAM once, and what the same arithmetic takes when each operation is an " +
            "instruction of its own.",
          box: chart(`Bars: ${ENERGIES.map((e) => `${e.name} ${joules(all[e.key])}`).join("; ")}.`, config),
          below: [legend(used.map(({ key, colour: name }) => ({ name: key, colour: name })))],
        }),
      ),
      table({
        caption: "Energy of a step by class of operator",
        rows: [...classes, { class: "all", energy: all }],
        columns: [
          { title: "Class", text: (c) => c.class },
          ...ENERGIES.map((e) => ({ title: e.name, text: (c) => joules(c.energy[e.key]) })),
        ],
      }),
    ];
  },
};
