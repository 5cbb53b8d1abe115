// What the sections are made with: numbers as text, elements, tables, charts that follow the theme.

const format = {
  /** As memory::human: decimal units. */
  bytes(n) {
    if (!Number.isFinite(n)) return "–";
    let unit = 0;
    while (Math.abs(n) >= 1000 && unit < 4) {
      n /= 1000;
      ++unit;
    }
    return (unit === 0 ? String(n) : n.toFixed(1)) + " " + ["B", "kB", "MB", "GB", "TB"][unit];
  },
  /** For axes: no needless zeros. */
  bytesShort: (n) => format.bytes(n).replace(".0 ", " "),
  number: (n, digits = 3) => (Number.isFinite(n) ? n.toLocaleString("en", { maximumSignificantDigits: digits }) : "–"),
  count: (n) => (Number.isFinite(n) ? n.toLocaleString("en") : String(n)),
  fixed: (n, digits) => (Number.isFinite(n) ? n.toFixed(digits) : "–"),
  percent: (n) => (Number.isFinite(n) ? (100 * n).toFixed(n !== 0 && Math.abs(n) < 0.1 ? 1 : 0) + " %" : "–"),
  milliseconds: (n) => (!Number.isFinite(n) ? "–" : n < 1000 ? `${n.toFixed(1)} ms` : `${(n / 1000).toFixed(2)} s`),
  times: (n) => (Number.isFinite(n) ? n.toFixed(2) + "×" : "–"),
};

const maximum = (list, value) => list.reduce((most, item) => Math.max(most, value(item) ?? -Infinity), -Infinity);
const plural = (n, one, many) => `${n} ${n === 1 ? one : many}`;

/** element("p", {class: "note"}, "text", node, ...); null children are left out. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

let lastId = 0;
const newId = (prefix) => `${prefix}-${++lastId}`;

/**
 * A table in a box that scrolls sideways, by keyboard too. columns: [{title, text(row), share(row), bad(row), hint(row),
 * depth(row), words}]; the first column names the row, further to the right by its depth; a column without any text is left out;
 * one of words begins at the left.
 */
function table({ caption, note = null, columns, rows }) {
  const used = columns.filter((c, i) => i === 0 || rows.some((row) => !["–", ""].includes(c.text(row))));
  const id = newId("table");
  const cell = (column, row, first) => {
    const node = element(first ? "th" : "td", first ? { scope: "row" } : { title: column.hint?.(row) ?? null }, column.text(row));
    if (column.words) node.classList.add("words");
    if (column.depth) node.style.setProperty("--depth", column.depth(row));
    const share = column.share?.(row);
    if (Number.isFinite(share)) {
      node.classList.add("bar");
      node.style.setProperty("--share", `${(100 * Math.min(1, share)).toFixed(1)}%`);
    }
    if (column.bad?.(row)) node.classList.add("bad");
    return node;
  };
  return element(
    "div",
    { class: "table", role: "region", tabindex: "0", "aria-labelledby": id },
    element(
      "table",
      {},
      element("caption", {}, element("div", {}, element("span", { id }, caption), note && element("small", {}, note))),
      element(
        "thead",
        {},
        element(
          "tr",
          {},
          used.map((c) => element("th", { scope: "col", class: c.words ? "words" : null }, c.title)),
        ),
      ),
      element(
        "tbody",
        {},
        rows.map((row) =>
          element(
            "tr",
            {},
            used.map((c, i) => cell(c, row, i === 0)),
          ),
        ),
      ),
    ),
  );
}

/** What a reader can open below a figure; it is made when it is opened. */
function details(summary, make) {
  const node = element("details", {}, element("summary", {}, summary));
  node.addEventListener("toggle", () => {
    if (node.open && node.children.length === 1) node.append(make());
  });
  return node;
}

/** [{name, colour: "css-variable"}] as a list. */
const legend = (items) =>
  element(
    "ul",
    { class: "legend", "aria-label": "Legend" },
    items.map(({ name, colour }) => {
      const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = `var(--${colour})`;
      return element("li", {}, swatch, name);
    }),
  );

// ---- Drawings: all that is painted on a canvas, and must be painted again when the theme changes or the page is printed.

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const drawings = new Map();

/** Registers draw(), which paints on `canvas`; it may return a function that takes it back. Painted by paintNew. */
const drawing = (canvas, draw) => drawings.set(canvas, { draw, undo: null, done: false });

function paintNew() {
  for (const [canvas, d] of drawings) {
    if (!canvas.isConnected) {
      d.undo?.();
      drawings.delete(canvas);
    } else if (!d.done) {
      d.undo = d.draw() ?? null;
      d.done = true;
    }
  }
}

function paintAll() {
  for (const d of drawings.values()) {
    d.undo?.();
    d.done = false;
  }
  paintNew();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintAll);
const setPrinting = (printing) => {
  document.documentElement.classList.toggle("printing", printing);
  paintAll();
};
addEventListener("beforeprint", () => setPrinting(true));
addEventListener("afterprint", () => setPrinting(false));
const isPrinting = () => document.documentElement.classList.contains("printing");

/** A figure: heading, a sentence, what is drawn, what stands below. */
function figure({ title, text, box, below = [] }) {
  const id = newId("figure");
  return element("figure", { "aria-labelledby": id }, element("figcaption", {}, element("h3", { id }, title), text), box, below);
}

/** A chart by Chart.js; config() is asked anew for each theme. `label` says in words what is to be seen. */
function chart(label, config) {
  const canvas = element("canvas", { role: "img", "aria-label": label });
  drawing(canvas, () => {
    const made = new Chart(canvas, withHouseStyle(config()));
    return () => made.destroy();
  });
  return element("div", { class: "canvas chart" }, canvas);
}

function withHouseStyle(config) {
  const ink = colour("ink"),
    soft = colour("soft"),
    line = colour("faint");
  Object.assign(Chart.defaults, { color: soft, borderColor: line, animation: false, maintainAspectRatio: false });
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.font.size = 12;
  Chart.defaults.devicePixelRatio = isPrinting() ? 3 : undefined;
  Object.assign(Chart.defaults.plugins.legend, { display: false });
  Object.assign(Chart.defaults.plugins.tooltip, {
    backgroundColor: ink,
    titleColor: colour("ground"),
    bodyColor: colour("ground"),
    footerColor: colour("ground"),
    padding: 9,
  });
  for (const axis of Object.values(config.options.scales)) {
    axis.title = { display: true, color: soft, ...axis.title };
    axis.grid = { color: line, borderColor: colour("line"), ...axis.grid };
    axis.ticks = { maxRotation: 0, autoSkipPadding: 14, ...axis.ticks };
  }
  return config;
}

/** Chart.js plugin: writes options.ends[i] behind the lying bar i, however short that is. */
const barEnds = {
  id: "barEnds",
  afterDatasetsDraw(chartOf, _, { ends }) {
    const { ctx, scales, data } = chartOf;
    ctx.save();
    ctx.font = `600 12px ${Chart.defaults.font.family}`;
    ctx.fillStyle = colour("ink");
    ctx.textBaseline = "middle";
    ends.forEach((text, i) => {
      const sum = data.datasets.reduce((all, set) => all + set.data[i], 0);
      ctx.fillText(text, scales.x.getPixelForValue(sum) + 6, scales.y.getPixelForValue(i));
    });
    ctx.restore();
  },
};

/**
 * The config of bars that lie, stacked, for chart(). labels: a word or more for each bar; parts: [{key, colour, values}] of all bars;
 * x: more of that axis; show(value) is what the tooltip says; footer(bar) is its last line; ends: what stands behind each bar; gap:
 * between the parts, in pixels.
 */
function stackedBars({ labels, parts, x, show, footer = () => "", ends = [], gap = 0 }) {
  return {
    type: "bar",
    plugins: [barEnds],
    data: {
      labels,
      datasets: parts.map(({ key, colour: name, values }) => ({
        label: key,
        data: values,
        backgroundColor: colour(name),
        borderColor: colour("panel"),
        borderWidth: { left: 0, right: gap, top: 0, bottom: 0 },
      })),
    },
    options: {
      indexAxis: "y",
      layout: { padding: { right: ends.length > 0 ? 64 : 0 } },
      interaction: { mode: "index", axis: "y", intersect: false },
      scales: {
        x: { stacked: true, min: 0, ...x },
        y: {
          stacked: true,
          grid: { display: false },
          title: { display: false },
          ticks: { autoSkip: false, callback: (_, i) => labels[i] },
        },
      },
      plugins: {
        barEnds: { ends },
        tooltip: {
          filter: (item) => item.raw > 0,
          callbacks: {
            title: (items) => items.slice(0, 1).map(({ dataIndex }) => [labels[dataIndex]].flat().join(", ")),
            label: ({ dataset, raw }) => ` ${dataset.label}: ${show(raw)}`,
            footer: (items) => (items.length > 0 ? footer(items[0].dataIndex) : ""),
          },
        },
      },
    },
  };
}

/** An axis from 0; when the values are far apart, a logarithmic one that counts in 1, 2, 5. */
function axisFor(values, text, show) {
  const least = Math.min(...values),
    most = Math.max(...values);
  if (least <= 0 || most < 6 * least) return { type: "linear", min: 0, grace: "8%", title: { text }, ticks: { callback: show } };
  const round = [];
  for (let power = 10 ** Math.floor(Math.log10(least)); power <= most * 2; power *= 10)
    for (const m of most > 200 * least ? [1] : [1, 2, 5]) round.push({ value: m * power });
  return {
    type: "logarithmic",
    min: least * 0.8,
    max: most * 1.25,
    title: { text: `${text}, logarithmic` },
    ticks: { callback: show },
    afterBuildTicks: (axis) => {
      axis.ticks = round.filter(({ value }) => value >= axis.min && value <= axis.max);
    },
  };
}

/** Chart.js plugin: writes dataset.names[i] beside point i where there is room; a thin line leads to it when that is far. */
const pointNames = {
  id: "pointNames",
  afterDatasetsDraw(chartOf) {
    const { ctx, chartArea: area, data } = chartOf;
    const boxes = [],
      overlaps = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;
    const lines = data.datasets.flatMap((set, k) =>
      set.names
        ? []
        : chartOf
            .getDatasetMeta(k)
            .data.slice(1)
            .map((p, i) => {
              const before = chartOf.getDatasetMeta(k).data[i];
              return { x: before.x, y: before.y - 2, w: p.x - before.x, h: 4 };
            }),
    );
    ctx.save();
    ctx.font = `600 12px ${Chart.defaults.font.family}`;
    ctx.textBaseline = "middle";
    data.datasets.forEach((set, k) => {
      if (!set.names) return;
      const points = chartOf.getDatasetMeta(k).data;
      for (const p of points) boxes.push({ x: p.x - 6, y: p.y - 6, w: 12, h: 12 });
      const onLine = (box) => lines.some((b) => overlaps(b, box));
      points.forEach((p, i) => {
        const w = ctx.measureText(set.names[i]).width + 4,
          h = 16;
        let found = null;
        for (const [far, clear] of [
          [10, true],
          [24, true],
          [10, false],
          [24, false],
          [40, false],
          [58, false],
          [78, false],
        ]) {
          for (const [dx, dy] of [
            [1, 0],
            [-1, 0],
            [0, -1],
            [0, 1],
            [1, -1],
            [1, 1],
            [-1, -1],
            [-1, 1],
          ]) {
            const x = p.x + dx * far - (dx < 0 ? w : dx === 0 ? w / 2 : 0),
              y = p.y + dy * (far + 4) - h / 2;
            const box = { x, y, w, h };
            const inside = x >= area.left && x + w <= area.right && y >= area.top - 4 && y + h <= area.bottom;
            if (inside && !(clear && onLine(box)) && !boxes.some((b) => overlaps(b, box))) {
              found = { ...box, far, dx, dy };
              break;
            }
          }
          if (found) break;
        }
        if (!found) return; // the tooltip and the table still name it
        boxes.push(found);
        if (found.far > 10) {
          ctx.strokeStyle = colour("soft");
          ctx.lineWidth = 0.75;
          ctx.beginPath();
          ctx.moveTo(p.x, p.y);
          ctx.lineTo(found.dx < 0 ? found.x + found.w : found.dx > 0 ? found.x : p.x, found.y + h / 2);
          ctx.stroke();
        }
        ctx.lineWidth = 3;
        ctx.strokeStyle = colour("panel");
        ctx.strokeText(set.names[i], found.x + 2, found.y + h / 2);
        ctx.fillStyle = colour("ink");
        ctx.fillText(set.names[i], found.x + 2, found.y + h / 2);
      });
    });
    ctx.restore();
  },
};

/** Chart.js plugin: a line where the tooltip points. */
const hairline = {
  id: "hairline",
  afterDatasetsDraw({ ctx, chartArea: area, tooltip }) {
    if (!tooltip?.opacity) return;
    ctx.save();
    ctx.strokeStyle = colour("ink");
    ctx.beginPath();
    ctx.moveTo(tooltip.caretX, area.top);
    ctx.lineTo(tooltip.caretX, area.bottom);
    ctx.stroke();
    ctx.restore();
  },
};

/** Chart.js plugin: a dashed line at options.x with a word at its top. */
const mark = {
  id: "mark",
  afterDatasetsDraw(chartOf, _, { x, y, text }) {
    if (x === undefined) return;
    const { ctx, chartArea: area, scales } = chartOf;
    const px = scales.x.getPixelForValue(x),
      py = scales.y.getPixelForValue(y);
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("ink");
    ctx.setLineDash([4, 3]);
    ctx.beginPath();
    ctx.moveTo(px, area.bottom);
    ctx.lineTo(px, py);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.beginPath();
    ctx.arc(px, py, 4, 0, 2 * Math.PI);
    ctx.fill();
    ctx.font = `600 12px ${Chart.defaults.font.family}`;
    const w = ctx.measureText(text).width,
      left = px + w + 10 > area.right;
    ctx.textAlign = left ? "right" : "left";
    ctx.textBaseline = "middle";
    ctx.lineWidth = 3;
    ctx.strokeStyle = colour("panel");
    ctx.strokeText(text, px + (left ? -8 : 8), Math.max(py, area.top + 7));
    ctx.fillText(text, px + (left ? -8 : 8), Math.max(py, area.top + 7));
    ctx.restore();
  },
};

/** Check boxes that choose among the strategies, if there are several; show(chosen) is called at once and after each change. */
function choice(strategies, show, extra = []) {
  if (strategies.length === 1) {
    show(strategies);
    return null;
  }
  const chosen = new Set(firstChoice(strategies));
  const update = () => {
    show(strategies.filter((s) => chosen.has(s)));
    paintNew();
  };
  const box = (s) => {
    const input = element("input", { type: "checkbox" });
    input.checked = chosen.has(s);
    input.addEventListener("change", () => {
      if (input.checked) chosen.add(s);
      else chosen.delete(s);
      update();
    });
    return element("label", {}, input, s.strategy);
  };
  const node = element(
    "fieldset",
    { class: "choice" },
    element("legend", {}, "Show"),
    element("div", {}, strategies.map(box), extra),
  );
  show(strategies.filter((s) => chosen.has(s)));
  return node;
}

/** The first, the one of least memory, and the last; all if they are few. */
function firstChoice(strategies) {
  if (strategies.length <= 4) return strategies;
  const least = strategies.reduce((a, b) => (peakOf(b) < peakOf(a) ? b : a));
  return [strategies[0], least, strategies.at(-1)];
}

/** Bytes at the peak of a step: measured, or else predicted. */
const peakOf = (s) => s.measured_peak_bytes ?? s.predicted_peak_bytes ?? s.peak_bytes_by_category?.total ?? NaN;
