// Attention patterns: a small picture of every head, and for each token where it looks and who looks at it.

const THUMB = 72;

/** Value of a head's pattern: those of query 0, then those of query 1, and so on, in thousandths of the largest. */
function patternValue(head, query, key) {
  return key > query ? null : head.values[(query * (query + 1)) / 2 + key];
}

/** A small picture of a pattern. It takes the page's colours when it is drawn. */
function thumb(head, n) {
  const scale = Math.max(1, Math.floor((2 * THUMB) / n));
  const canvas = html("canvas", { width: n * scale, height: n * scale });
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = style.getPropertyValue("--mid");
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = style.getPropertyValue("--pos");
    for (let query = 0; query < n; query++) {
      for (let key = 0; key <= query; key++) {
        context.globalAlpha = patternValue(head, query, key) / 1000;
        context.fillRect(key * scale, query * scale, scale, scale);
      }
    }
    context.globalAlpha = 1;
  };
  return { canvas, draw };
}

/** The prompt's tokens as buttons; the one that is pointed at shows where it looks, or who looks at it. */
function tokenRow(grid, head) {
  const n = grid.tokens.length;
  const state = { at: n - 1, looks: true };
  const said = html("p", { class: "dim" });
  const buttons = grid.tokens.map((token, at) =>
    html("button", { class: "token", onpointerenter: () => choose(at), onfocus: () => choose(at), onclick: () => choose(at) }, html("bdi", {}, token)),
  );
  const value = (other) => (state.looks ? patternValue(head, state.at, other) : patternValue(head, other, state.at));
  const draw = () => {
    const values = buttons.map((_, other) => (state.looks ? other <= state.at : other >= state.at) ? value(other) : null);
    const most = Math.max(...values);
    buttons.forEach((button, other) => {
      const isStrong = paint(button, values[other] ?? 0, most);
      button.classList.toggle("strong", isStrong);
      button.classList.toggle("idle", values[other] === null);
      button.setAttribute("aria-pressed", other === state.at);
    });
    const order = values.flatMap((share, other) => (share === null ? [] : [[share, other]])).sort((a, b) => b[0] - a[0]);
    const listed = order.slice(0, 5).map(([share, other]) => `${grid.tokens[other]} (${other}) ${number((share * grid.scale) / 1000)}`);
    const token = `${grid.tokens[state.at]} (${state.at})`;
    said.textContent = state.looks ? `${token} looks at: ${listed.join(", ")}` : `${token} is looked at by: ${listed.join(", ")}`;
  };
  const choose = (at) => {
    state.at = at;
    draw();
  };
  const direction = choice("show", [["to", "where it looks"], ["from", "who looks at it"]], (text) => { state.looks = text === "to"; draw(); });
  draw();
  return html("div", {}, html("div", { class: "controls" }, direction), html("div", { class: "tokens" }, buttons), said);
}

/** One head, large. */
function attentionHead(grid, head) {
  const n = grid.tokens.length;
  const label = (token, at) => [String(at), token, null];
  const values = grid.tokens.map((_, query) => grid.tokens.map((_, key) => {
    const share = patternValue(head, query, key);
    return share === null ? null : (share * grid.scale) / 1000;
  }));
  const panel = {
    title: `${grid.measure} of ${head.name}`, axes: ["query", "key"], values,
    rows: grid.tokens.map(label), columns: grid.tokens.map(label),
    table_rows: values.map((line) => line.map(() => null)), reach: grid.scale,
  };
  return html("div", {}, tokenRow(grid, head), n <= 64 ? heatmap(panel, grid.measure, grid.scale, () => [], () => {}) : null);
}

/** All heads of a result as small pictures, with a choice of their order. */
function attentionViewer(result) {
  const measures = [...new Set(result.attention.map((grid) => grid.measure))];
  const state = { measure: measures[0], place: 0, order: "sharp", head: null };
  const picked = html("div", { class: "picked" });
  const heads = html("div", { class: "heads" });
  const grids = () => result.attention.filter((grid) => grid.measure === state.measure);
  let draws = [];
  const draw = () => {
    const grid = grids()[state.place] ?? grids()[0];
    const sorted = [...grid.heads];
    if (state.order === "sharp") sorted.sort((a, b) => b.sharp - a.sharp);
    const chosen = grid.heads.find((head) => head.name === state.head) ?? sorted[0];
    state.head = chosen.name;
    draws = [];
    heads.replaceChildren(...sorted.map((head) => {
      const { canvas, draw } = thumb(head, grid.tokens.length);
      draws.push(draw);
      draw();
      return html("button", {
        class: "head", "aria-pressed": head === chosen, title: `${head.name}: ${number(head.sharp)} beyond the first token`,
        onclick: (event) => {
          state.head = head.name;
          heads.querySelector("[aria-pressed=true]")?.setAttribute("aria-pressed", "false");
          event.currentTarget.setAttribute("aria-pressed", "true");
          picked.replaceChildren(attentionHead(grid, head));
        },
      }, canvas, head.name);
    }));
    picked.replaceChildren(attentionHead(grid, chosen));
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draws.forEach((draw) => draw()));
  const controls = html("div", { class: "controls" });
  if (measures.length > 1) controls.append(choice("measure", measures.map((name) => [name, name]), (name) => { state.measure = name; draw(); }));
  if (grids().length > 1) {
    controls.append(choice("prompts", grids().map((grid, at) => [at, grid.prompts]), (at) => { state.place = Number(at); draw(); }));
  }
  controls.append(choice("order", [["sharp", "those that look at one place first"], ["layer", "by layer"]], (order) => { state.order = order; draw(); }));
  draw();
  return html("div", { class: "attention" },
    controls,
    html("p", { class: "dim" }, "A row is a query, a column a key. The order is the mean over queries of the most that goes to one token other than the first."),
    scroller("the heads", heads, true), picked,
  );
}
