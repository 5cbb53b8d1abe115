// A schedule as a picture, as in the papers: stages down, time across; below it the memory that it takes.

const KINDS = {
  Fnone: { name: "Fnone", colour: "fnone", says: "forward, unrecorded; its input is dropped" },
  Fck: { name: "Fck", colour: "fck", says: "forward, unrecorded; its input is kept as a checkpoint" },
  Fall: { name: "Fall", colour: "fall", says: "forward, recorded on the tape, ready for backward" },
  B: { name: "B", colour: "b", says: "backward; uses up the tape" },
};

const scheduleSection = {
  id: "schedules",
  title: "The schedules as pictures",
  has: (data) => (data.strategies ?? []).some((s) => stepsOf(s).length > 0),

  build(data) {
    const list = data.strategies.filter((s) => stepsOf(s).length > 0);
    const figures = element("div", { class: "figures single" });
    return [
      element(
        "p",
        {},
        "Each row is a stage of the net, the first one on top; time runs to the right. Forward goes down, backward comes " +
          "up. A stage that is drawn forward twice is computed twice. Point at a picture, or walk through it with the arrow keys.",
      ),
      choice(list, (chosen) => figures.replaceChildren(...chosen.map((s) => scheduleFigure(s, data, list[0])))),
      scheduleLegend(),
      plannersNote(data, list),
      figures,
    ];
  },
};

/** What the numbers in the pictures are, which are not those of the step as a whole. */
function plannersNote(data, list) {
  if (!list.some((s) => s.trace?.length > 0)) return null;
  const counted = data.frontier_unit?.includes("counted");
  return element(
    "p",
    {},
    "Memory in a picture is what the planner adds up, stage by stage: activations, tapes and workspaces. Parameters, their gradients " +
      "and optimizer state come on top of it, so the peak of the whole step is higher." +
      (counted
        ? " Times are counted, for a machine of 100 GFLOP/s and 20 GB/s: compare them with each other, not with the clock."
        : ""),
  );
}

/** The steps of a schedule; without a trace, from its text, with 1 as the time of a forward and 2 of a backward. */
function stepsOf(s) {
  if (s.drawnSteps) return s.drawnSteps;
  s.drawnSteps = s.trace ?? [];
  if (s.drawnSteps.length === 0 && s.schedule) {
    let now = 0;
    s.drawnSteps = [...s.schedule.matchAll(/(Fnone|Fck|Fall|B)(\d+)/g)].map(([, kind, stage]) => {
      const start = now;
      now += kind === "B" ? 2 : 1;
      return { kind, stage: Number(stage), start, end: now };
    });
  }
  return s.drawnSteps;
}

/**
 * From when to when each tape is there and each activation is kept: the rules of autograd/schedule/action.h. Left out are
 * activations that only pass from one action to the next.
 */
function lifetimes(steps) {
  const kept = new Map([[0, -1]]),
    tapes = new Map(),
    spans = []; // stage: index of the step that made it
  const close = (map, what, l, i, end) => {
    const made = map.get(l);
    if (made !== undefined && i > made + 1) spans.push({ what, l, start: made < 0 ? steps[0].start : steps[made].end, end });
    map.delete(l);
  };
  steps.forEach(({ kind, stage: l, start, end }, i) => {
    if (kind === "Fall") tapes.set(l, i);
    else if (kind === "B") {
      close(tapes, "tape", l, i, start);
      close(kept, "kept", l - 1, i, end);
    } else {
      if (kind === "Fnone") close(kept, "kept", l - 1, i, end);
      if (!kept.has(l)) kept.set(l, i);
    }
  });
  return spans;
}

/** The patterns that tell the kinds apart without colour. Made per painting: they depend on the theme. */
function kindFills(ctx) {
  const tile = (base, paint) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 8;
    const c = canvas.getContext("2d");
    c.fillStyle = base;
    c.fillRect(0, 0, 8, 8);
    c.strokeStyle = c.fillStyle = colour("panel");
    paint(c);
    return ctx.createPattern(canvas, "repeat");
  };
  const strokes =
    (...lines) =>
    (c) => {
      c.lineWidth = 1.5;
      c.beginPath();
      for (const [x1, y1, x2, y2] of lines) {
        c.moveTo(x1, y1);
        c.lineTo(x2, y2);
      }
      c.stroke();
    };
  return {
    Fnone: tile(colour("fnone"), (c) => {
      for (const [x, y] of [
        [1, 1],
        [5, 5],
      ])
        c.fillRect(x, y, 2, 2);
    }),
    Fck: tile(colour("fck"), strokes([-2, 10, 10, -2], [-2, 2, 2, -2], [6, 10, 10, 6])),
    Fall: colour("fall"),
    B: tile(colour("b"), strokes([2, 0, 2, 8], [6, 0, 6, 8])),
  };
}

const pictureScale = () => (isPrinting() ? 3 : Math.min(3, devicePixelRatio || 1));

function scheduleLegend() {
  const swatch = (paint) => {
    const canvas = element("canvas", { "aria-hidden": "true" });
    drawing(canvas, () => {
      const scale = pictureScale(),
        ctx = canvas.getContext("2d");
      canvas.width = 26 * scale;
      canvas.height = 16 * scale;
      ctx.scale(scale, scale);
      paint(ctx);
    });
    return canvas;
  };
  const kinds = Object.entries(KINDS).map(([kind, { name, says }]) =>
    element(
      "li",
      {},
      swatch((ctx) => {
        ctx.fillStyle = kindFills(ctx)[kind];
        ctx.fillRect(0, 0, 26, 16);
      }),
      element("span", {}, element("b", {}, name), ` ${says}`),
    ),
  );
  return element(
    "ul",
    { class: "legend", "aria-label": "Legend" },
    kinds,
    element(
      "li",
      {},
      swatch((ctx) => {
        ctx.fillStyle = colour("tape");
        ctx.fillRect(0, 3, 26, 10);
      }),
      "a tape waits",
    ),
    element(
      "li",
      {},
      swatch((ctx) => {
        ctx.fillStyle = colour("kept");
        ctx.fillRect(0, 7, 26, 2.5);
      }),
      "an activation waits (drawn below its stage)",
    ),
  );
}

function scheduleFigure(s, data, base) {
  const steps = stepsOf(s),
    spans = lifetimes(steps);
  const stages = Math.max(
    data.stages?.length ?? 0,
    maximum(steps, (step) => step.stage),
  );
  const total = steps.at(-1).end,
    hasBytes = Number.isFinite(steps[0].during);
  const most = hasBytes ? steps.reduce((a, b) => (b.during > a.during ? b : a)) : null;
  const forwards = steps.filter((step) => step.kind !== "B").length;
  const unit = s.trace?.length > 0 ? (data.frontier_unit ?? "") : "units";
  const nameOf = (l) => data.stages?.[l - 1] ?? "";

  const canvas = element("canvas", {
    role: "img",
    tabindex: "0",
    "aria-label":
      `Schedule of ${s.strategy}: ${stages} stages, ` +
      `${format.count(steps.length)} actions. Walk through them with the arrow keys.`,
  });
  const cursor = element("div", { class: "cursor", hidden: "" }),
    tip = element("div", { class: "tip", hidden: "" });
  const box = element("div", { class: "canvas schedule" }, canvas, cursor, tip);
  const readout = element("p", { class: "readout", role: "status" });
  let place = null; // what the last painting put where

  drawing(canvas, () => {
    const paint = () => {
      place = paintSchedule(canvas, box.clientWidth, { steps, spans, stages, total, most, nameOf, unit });
    };
    paint();
    let width = box.clientWidth;
    const observer = new ResizeObserver(() => {
      if (box.clientWidth === width) return;
      width = box.clientWidth;
      paint();
    });
    observer.observe(box);
    return () => observer.disconnect();
  });

  const tell = (i) => {
    const { kind, stage, start, end, during, after } = steps[i];
    const number = (v) => format.number(v, 4);
    return [
      `${kind} ${stage}${nameOf(stage) ? `, ${nameOf(stage)}` : ""}: ${KINDS[kind].says}`,
      `time ${number(start)} to ${number(end)} ${unit} (action ${format.count(i + 1)} of ${format.count(steps.length)})`,
      Number.isFinite(during) ? `${format.bytes(during)} while it runs, ${format.bytes(after)} after` : null,
    ].filter(Boolean);
  };
  const point = (i, spoken) => {
    const { left, perTime, top, rowHeight, bottom } = place;
    const x = left + steps[i].start * perTime,
      w = Math.max(2, (steps[i].end - steps[i].start) * perTime);
    Object.assign(cursor.style, { left: `${x}px`, width: `${w}px`, top: `${top}px`, height: `${bottom - top}px` });
    const lines = tell(i);
    tip.replaceChildren(...lines.map((line, k) => element("div", {}, k === 0 ? element("b", {}, line) : line)));
    cursor.hidden = tip.hidden = false;
    const y = top + steps[i].stage * rowHeight + 8;
    tip.style.left = `${Math.max(0, Math.min(x + w + 8, box.clientWidth - tip.offsetWidth))}px`;
    tip.style.top = `${Math.max(0, Math.min(y, box.clientHeight - tip.offsetHeight))}px`;
    if (spoken) readout.textContent = lines.join("; ");
  };
  const leave = () => {
    cursor.hidden = tip.hidden = true;
  };

  let at = -1;
  const hover = (event) => {
    const time = (event.clientX - canvas.getBoundingClientRect().left - place.left) / place.perTime;
    if (time < 0 || time > total) return leave();
    at = stepAt(steps, time);
    point(at, false);
  };
  canvas.addEventListener("pointermove", hover);
  canvas.addEventListener("pointerdown", hover);
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("keydown", (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: steps.length - 1 }[
      event.key
    ];
    if (event.key === "Escape") leave();
    if (to === undefined) return;
    event.preventDefault();
    at = Math.max(0, Math.min(steps.length - 1, to));
    point(at, true);
  });

  const baseSteps = stepsOf(base);
  const text =
    `${plural(stages, "stage", "stages")}; ${format.count(forwards)} forwards, ` +
    `${format.count(Math.max(0, forwards - new Set(steps.map((step) => step.stage)).size))} of them a second time` +
    (s !== base && baseSteps.length > 0 ? `; ${format.times(total / baseSteps.at(-1).end)} the time of ${base.strategy}` : "") +
    (most ? `; peak ${format.bytes(most.during)} at ${most.kind} ${most.stage}` : "") +
    ".";
  return figure({
    title: s.strategy,
    text,
    box,
    below: [
      readout,
      details("The schedule as text", () =>
        element("pre", { tabindex: "0" }, s.schedule ?? steps.map((step) => step.kind + step.stage).join(" ")),
      ),
    ],
  });
}

/** The step that runs at `time`: steps follow one another. */
function stepAt(steps, time) {
  let low = 0,
    high = steps.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle].end < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

function paintSchedule(canvas, width, { steps, spans, stages, total, most, nameOf, unit }) {
  const narrow = width < 560,
    ctx = canvas.getContext("2d"),
    scale = pictureScale(),
    font = getComputedStyle(document.body).fontFamily;
  ctx.font = `11px ${font}`;
  const label = (l) => (narrow || !nameOf(l) ? String(l) : `${nameOf(l)}  ${l}`);
  let labels = 0;
  for (let l = 1; l <= stages; ++l) labels = Math.max(labels, ctx.measureText(shorten(label(l))).width);

  const left = Math.ceil(Math.max(labels, most ? 52 : 0)) + 10,
    right = 10,
    top = 6;
  const rowHeight = Math.max(1, Math.min(22, (narrow ? 300 : 420) / stages));
  const rowsEnd = top + rowHeight * stages,
    strip = most ? 70 : 0,
    stripTop = rowsEnd + 20,
    bottom = most ? stripTop + strip : rowsEnd;
  const height = bottom + 40,
    perTime = (width - left - right) / total;

  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  ctx.setTransform(scale, 0, 0, scale, 0, 0);
  ctx.clearRect(0, 0, width, height);
  const x = (time) => left + time * perTime,
    y = (stage) => top + (stage - 1) * rowHeight;

  // Rows and their names.
  ctx.font = `11px ${font}`;
  ctx.textAlign = "right";
  ctx.textBaseline = "middle";
  ctx.lineWidth = 1;
  const every = rowHeight >= 13 ? 1 : niceStep(13 / rowHeight);
  ctx.strokeStyle = colour("faint");
  ctx.beginPath();
  for (let l = 1; l <= stages; ++l) {
    if (rowHeight >= 4) {
      ctx.moveTo(left, y(l + 1));
      ctx.lineTo(width - right, y(l + 1));
    }
    if (l !== 1 && (l % every !== 0 || (l - 1) * rowHeight < 13)) continue;
    ctx.fillStyle = colour("soft");
    ctx.fillText(shorten(label(l)), left - 6, y(l) + Math.max(rowHeight / 2, l === 1 ? 4 : 0));
  }
  ctx.stroke();

  // What waits, then what runs on top of it; one path each, or thousands of actions would take their time.
  const path = (fill, rects) => {
    ctx.fillStyle = fill;
    ctx.beginPath();
    for (const r of rects) ctx.rect(...r);
    ctx.fill();
  };
  const wide = (span) => Math.max(0.4, (span.end - span.start) * perTime);
  const inset = rowHeight >= 6 ? 1 : 0;
  path(
    colour("tape"),
    spans
      .filter((p) => p.what === "tape")
      .map((p) => [x(p.start), y(p.l) + rowHeight * 0.2, wide(p), Math.max(0.6, rowHeight * 0.6)]),
  );
  // Patterns need room; a line of one or two pixels is told by its place and colour.
  const fills =
    rowHeight >= 5 ? kindFills(ctx) : Object.fromEntries(Object.entries(KINDS).map(([kind, k]) => [kind, colour(k.colour)]));
  for (const kind of Object.keys(KINDS))
    path(
      fills[kind],
      steps
        .filter((step) => step.kind === kind)
        .map((step) => [x(step.start), y(step.stage) + inset, wide(step), Math.max(1, rowHeight - 2 * inset)]),
    );
  const thick = Math.max(0.8, Math.min(3, rowHeight * 0.16));
  path(
    colour("kept"),
    spans.filter((p) => p.what === "kept").map((p) => [x(p.start), y(p.l + 1) - thick / 2, wide(p), thick]),
  );

  // Names in the boxes that have room for them.
  ctx.textAlign = "center";
  ctx.font = `600 10px ${font}`;
  if (rowHeight >= 13)
    for (const { kind, stage, start, end } of steps) {
      const w = ctx.measureText(kind).width;
      if ((end - start) * perTime < w + 6) continue;
      const middle = x((start + end) / 2),
        line = y(stage) + rowHeight / 2;
      ctx.fillStyle = colour("panel");
      ctx.fillRect(middle - w / 2 - 2, line - 5.5, w + 4, 11);
      ctx.fillStyle = colour("ink");
      ctx.fillText(kind, middle, line + 0.5);
    }

  // Memory below, on the same time.
  ctx.font = `11px ${font}`;
  if (most) {
    const level = (bytes) => bottom - (bytes / most.during) * (strip - 14);
    ctx.fillStyle = colour("bar");
    ctx.strokeStyle = colour("accent");
    ctx.beginPath();
    ctx.moveTo(left, bottom);
    for (const step of steps) {
      ctx.lineTo(x(step.start), level(step.during));
      ctx.lineTo(x(step.end), level(step.during));
    }
    ctx.lineTo(x(total), bottom);
    ctx.fill();
    ctx.stroke();
    const px = x((most.start + most.end) / 2),
      text = `peak ${format.bytes(most.during)}`;
    ctx.fillStyle = colour("ink");
    ctx.beginPath();
    ctx.arc(px, level(most.during), 3.5, 0, 2 * Math.PI);
    ctx.fill();
    ctx.font = `600 11px ${font}`;
    ctx.textAlign = px + ctx.measureText(text).width + 10 > width - right ? "right" : "left";
    ctx.fillText(text, px + (ctx.textAlign === "right" ? -8 : 8), level(most.during) - 7);
    ctx.font = `11px ${font}`;
    ctx.textAlign = "right";
    ctx.fillStyle = colour("soft");
    ctx.fillText("memory", left - 6, bottom - strip / 2);
  }

  // The axis of time.
  ctx.strokeStyle = colour("line");
  ctx.beginPath();
  ctx.moveTo(left, bottom + 0.5);
  ctx.lineTo(width - right, bottom + 0.5);
  const step = niceStep(total / (narrow ? 4 : 8));
  ctx.fillStyle = colour("soft");
  ctx.textAlign = "center";
  for (let t = 0; t <= total * 1.0001; t += step) {
    ctx.moveTo(x(t), bottom);
    ctx.lineTo(x(t), bottom + 4);
    ctx.fillText(format.number(t, 3), x(t), bottom + 13);
  }
  ctx.stroke();
  ctx.fillText(unit ? `time (${unit})` : "time", left + (width - left - right) / 2, bottom + 30);
  return { left, top, perTime, rowHeight, bottom };
}

const shorten = (text) => (text.length > 26 ? `…${text.slice(-25)}` : text);

function niceStep(raw) {
  const power = 10 ** Math.floor(Math.log10(raw));
  return power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
}
