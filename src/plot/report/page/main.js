// The page: a head, a table of contents, and a section for each result.

function factList(result) {
  const facts = result.facts.filter(([name]) => name !== "warning");
  // What has one name stands under it once.
  const term = (at) => (at > 0 && facts[at - 1][0] === facts[at][0] ? [] : [html("dt", {}, facts[at][0])]);
  return html("dl", { class: "facts" }, facts.flatMap(([, text], at) => [...term(at), html("dd", {}, html("bdi", {}, text))]));
}

function promptList(result) {
  if (result.prompts.length === 0) return null;
  const rows = result.prompts.map(([example, clean, corrupted]) =>
    html("tr", {}, html("td", { class: "n" }, String(example)), html("td", {}, html("bdi", {}, clean)), html("td", {}, html("bdi", {}, corrupted))),
  );
  const head = html("tr", {}, ["pair", "clean", "corrupted"].map((name) => html("th", { scope: "col" }, name)));
  const n = result.prompts.length === result.n_prompts ? `${result.n_prompts}` : `${result.prompts.length} of ${result.n_prompts}`;
  return html("details", {}, html("summary", {}, `prompts (${n})`), scroller("the prompts", html("table", {}, html("thead", {}, head), html("tbody", {}, rows)), true));
}

/** A section; where it is the only one, its name is the page's. */
function resultSection(result, _, all) {
  const table = tableOf(result.table);
  const details = rowDetails(table);
  const rows = rowTable(result, table);
  const warnings = result.facts.filter(([name]) => name === "warning").map(([, text]) => text);
  const part = (title, content) => [html("h3", {}, title), content];
  const isDrawn = [result.graphs, result.grids, result.curves, result.attention, result.tokens, result.bars].some((list) => list.length > 0);
  return html("section", { class: "result", id: result.id, "aria-label": result.name },
    all.length > 1 ? html("h2", {}, html("bdi", {}, result.name)) : null,
    factList(result),
    result.command ? html("pre", { class: "command", tabindex: 0, "aria-label": "the command that makes it again" }, result.command) : null,
    result.folder ? html("p", { class: "dim" }, "made in ", html("bdi", {}, result.folder)) : null,
    warnings.map((text) => html("p", { class: "notice" }, `Warning: ${text}`)),
    result.notes.map((text) => html("p", { class: "notice" }, text)),
    promptList(result),
    // The viewer has every head; the grids would have a few of them.
    result.grids.length > 0 && result.attention.length === 0 ? part("Grids", heatmaps(result, details, rows.reveal)) : null,
    result.curves.length > 0 ? part("Faithfulness", curveChart(result, rows.reveal)) : null,
    result.attention.length > 0 ? part("Attention", attentionViewer(result)) : null,
    ...result.graphs.map((graph) => part(graph.title ? `Edges, ${graph.title}` : "Edges", edgeGraph(graph, result, rows.reveal))),
    result.tokens.length > 0 ? part("Tokens", tokenGrid(result, rows.reveal)) : null,
    // A curve has every circuit already.
    result.bars.length > 0 && result.attention.length === 0 && result.curves.length === 0 ? part(result.bars[0].sum === null ? "Strongest" : "What adds up", barCharts(result, details, rows.reveal)) : null,
    result.text ? html("details", { open: !isDrawn }, html("summary", {}, "as a terminal shows it"), html("pre", { tabindex: 0 }, result.text)) : null,
    part("Rows", rows.element),
  );
}

function main() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const contents = data.sections.length > 1
    ? html("nav", { "aria-label": "contents" }, html("ol", {}, data.sections.map((result) =>
        html("li", {}, html("a", { href: `#${result.id}` }, html("bdi", {}, result.name)), html("span", { class: "dim" }, ` ${result.method}, `, html("bdi", {}, result.task), ", ", html("bdi", {}, result.model))),
      )))
    : null;
  const top = html("main", {},
    html("h1", {}, html("bdi", {}, data.title)),
    data.notices.map((text) => html("p", { class: "notice" }, html("bdi", {}, text))),
    contents,
    data.sections.map(resultSection),
    html("p", { class: "dim" }, `Made by candlewick ${data.version}. Double-click a cell or a bar, or press Enter on it, to see its row.`),
  );
  document.body.append(top, tip, spoken);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  addEventListener("scroll", hideTip, { passive: true });
}

main();
