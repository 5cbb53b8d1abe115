// The page: the facts, then each section that has data. A section is {id, title, has(data), build(data) -> nodes}.

const SECTIONS = [
  strategiesSection,
  frontierSection,
  profileSection,
  rooflineSection,
  modulesSection,
  timelineSection,
  holdersSection,
  scheduleSection,
  speedSection,
  energySection,
];

function buildPage(data) {
  const facts = [
    ["model", data.model],
    ["made with", data.options],
    ["batch", data.batch],
    ["image size", data.size],
    ["parameters", data.parameters && format.count(data.parameters)],
    ["optimizer", data.optimizer],
    ["recompute", data.recompute],
    ["threads", data.threads],
    ["machine", data.machine],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== 0);
  document
    .getElementById("facts")
    .append(...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));

  const sections = SECTIONS.filter((section) => section.has(data));
  const contents = document.getElementById("contents");
  contents.hidden = sections.length < 2;
  contents.append(...sections.map(({ id, title }) => element("a", { href: `#${id}` }, title)));
  for (const section of sections)
    document
      .getElementById("content")
      .append(
        element(
          "section",
          { id: section.id, "aria-labelledby": `${section.id}-title` },
          element("h2", { id: `${section.id}-title` }, section.title),
          section.build(data),
        ),
      );
  paintNew();
}

try {
  buildPage(JSON.parse(document.getElementById("data").textContent));
  document.documentElement.dataset.ready = "yes";
} catch (error) {
  document
    .getElementById("content")
    .prepend(element("p", { class: "verdict bad", role: "alert" }, `This page could not be drawn: ${error.message}`));
  throw error;
}
