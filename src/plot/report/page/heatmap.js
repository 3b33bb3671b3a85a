// Grids of values under one scale, centred at 0.

const ROW_HEIGHT = 22;
const MOST_DRAWN = 12000;

function labelText([name, token, role]) {
  return [name, token, role].filter((part) => part).join(" ");
}

/** What a cell is, in lines. */
function cellLines(panel, row, column, details) {
  const value = panel.values[row][column];
  const place = panel.table_rows[row][column];
  const lines = [
    `${panel.axes[0]} ${labelText(panel.rows[row])}, ${panel.axes[1]} ${labelText(panel.columns[column])}`,
    value === null ? "not measured" : number(value),
  ];
  return place === null ? lines : lines.concat(details(place));
}

/** In words, for those who do not see it. */
function summary(panel, caption) {
  let best = null;
  panel.values.forEach((line, row) =>
    line.forEach((value, column) => {
      if (value !== null && (best === null || Math.abs(value) > Math.abs(best[0]))) best = [value, row, column];
    }),
  );
  const size = `heatmap of ${panel.title}, ${caption}: ${panel.rows.length} by ${panel.columns.length}`;
  if (best === null) return size;
  const [value, row, column] = best;
  const where = `${panel.axes[0]} ${labelText(panel.rows[row])}, ${panel.axes[1]} ${labelText(panel.columns[column])}`;
  return `${size}; the strongest is ${number(value)} at ${where}. Arrow keys move from cell to cell.`;
}

/** One grid. `reach` has the strongest colour; `details` gives more lines of a row of the table, `reveal` shows it there. */
function heatmap(panel, caption, reach, details, reveal) {
  const rows = Math.min(panel.rows.length, Math.max(1, Math.floor(MOST_DRAWN / panel.columns.length)));
  const columns = panel.columns.length;
  const labels = panel.rows.slice(0, rows).map((label) => cut(labelText(label), innerWidth < 600 ? 16 : 26));
  const heads = panel.columns.map((label) => cut(labelText(label), 14));
  const left = Math.max(widthOf(panel.axes[0]), ...labels.map((label) => widthOf(label))) + 12;
  const isTurned = heads.some((head) => widthOf(head) > 40);
  const hasNumbers = columns <= 16;
  const width = hasNumbers ? 42 : 22;
  const top = isTurned ? Math.max(...heads.map((head) => widthOf(head))) * 0.75 + 24 : 36;
  const size = [left + Math.max(width * columns, widthOf(panel.axes[1])) + (isTurned ? 60 : 8), top + ROW_HEIGHT * rows + 6];
  const cells = [];
  const cursor = drawn("rect", { class: "cursor", width: width, height: ROW_HEIGHT, visibility: "hidden" });
  const picture = drawn("svg", {
    width: size[0], height: size[1], viewBox: `0 0 ${size[0]} ${size[1]}`,
    tabindex: 0, role: "application", "aria-roledescription": "heatmap", "aria-label": summary(panel, caption),
  });
  picture.append(drawn("text", { x: 2, y: top - 8, class: "dim" }, panel.axes[0]));
  picture.append(drawn("text", { x: left, y: 12, class: "dim" }, panel.axes[1]));
  heads.forEach((head, column) => {
    const x = left + width * (column + 0.5);
    const turn = isTurned ? { transform: `rotate(-48 ${x} ${top - 6})` } : { "text-anchor": "middle" };
    picture.append(drawn("text", { x, y: top - 6, ...turn }, head));
  });
  for (let row = 0; row < rows; row++) {
    const y = top + ROW_HEIGHT * row;
    picture.append(drawn("text", { x: left - 7, y: y + 15, "text-anchor": "end" }, labels[row]));
    cells.push([]);
    for (let column = 0; column < columns; column++) {
      const value = panel.values[row][column];
      const x = left + width * column;
      const cell = drawn("rect", { x, y, width, height: ROW_HEIGHT, class: value === null ? "cell none" : "cell" });
      cells[row].push(cell);
      picture.append(cell);
      if (value === null) continue;
      const isStrong = paint(cell, value, reach);
      if (hasNumbers) {
        const text = drawn("text", { x: x + width / 2, y: y + 15, class: isStrong ? "number strong" : "number" });
        text.append(short(value, reach));
        picture.append(text);
      }
    }
  }
  picture.append(cursor);
  let at = null;
  const move = (row, column) => {
    at = [row, column];
    cursor.setAttribute("x", left + width * column);
    cursor.setAttribute("y", top + ROW_HEIGHT * row);
    cursor.setAttribute("visibility", "visible");
    return cellLines(panel, row, column, details);
  };
  const leave = () => {
    at = null;
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  };
  const found = (event) => {
    const box = picture.getBoundingClientRect();
    const row = Math.floor((event.clientY - box.top - top) / ROW_HEIGHT);
    const column = Math.floor((event.clientX - box.left - left) / width);
    return row >= 0 && row < rows && column >= 0 && column < columns ? [row, column] : null;
  };
  const open = () => {
    const place = at && panel.table_rows[at[0]][at[1]];
    if (place !== null) reveal(place);
  };
  picture.addEventListener("pointermove", (event) => {
    const cell = found(event);
    if (cell) showTip(move(...cell), event.clientX, event.clientY, false);
    else leave();
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("dblclick", open);
  picture.addEventListener("blur", leave);
  picture.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Escape") return leave();
    if (event.key === "Enter") return open();
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = at ? [at[0] + step[0], at[1] + step[1]] : [0, 0];
    if (row < 0 || column < 0 || row >= rows || column >= columns) return;
    showTipAt(move(row, column), cells[row][column]);
  });
  const left_out = panel.rows.length - rows;
  return html("figure", {},
    html("figcaption", {}, html("bdi", {}, panel.title)),
    scroller(`the heatmap ${panel.title}`, picture),
    left_out > 0 ? html("p", { class: "dim" }, `${left_out} more rows are not drawn; the table has them.`) : null,
  );
}

/** What colours stand for. */
function legend(reach, caption) {
  return html("div", { class: "legend dim" },
    html("span", {}, number(-reach)), html("span", { class: "ramp", role: "img", "aria-label": "from blue over grey to red or orange" }),
    html("span", {}, number(reach)), html("span", {}, caption),
  );
}

/** All grids of a result, with what chooses among them. */
function heatmaps(result, details, reveal) {
  const measures = [...new Set(result.grids.map((grid) => grid.measure))];
  const pairs = [...new Set(result.grids.map((grid) => grid.pair))];
  const state = { measure: measures[0], pair: pairs[0], own: false };
  const place = html("div", {});
  const draw = () => {
    const grid = result.grids.find((grid) => grid.measure === state.measure && grid.pair === state.pair);
    if (!grid) return place.replaceChildren(html("p", {}, "This measure has no grid for this pair."));
    const reach = (panel) => (state.own ? panel.reach : grid.reach);
    const key = state.own ? html("p", { class: "dim" }, `${grid.caption}; each grid up to its own largest value`) : legend(grid.reach, grid.caption);
    const figures = grid.panels.map((panel) => heatmap(panel, grid.caption, reach(panel), details, reveal));
    place.replaceChildren(key, html("div", { class: "figures" }, figures));
  };
  const controls = html("div", { class: "controls" });
  if (measures.length > 1) {
    controls.append(choice("measure", measures.map((measure) => [measure, measure]), (value) => { state.measure = value; draw(); }));
  }
  if (pairs.length > 1) {
    controls.append(pairChoice(result, pairs, (pair) => { state.pair = pair; draw(); }));
  }
  if (result.grids.some((grid) => grid.panels.length > 1)) {
    controls.append(choice("scale", [["one", "one for all grids"], ["own", "each its own"]], (value) => { state.own = value === "own"; draw(); }));
  }
  draw();
  return html("div", { class: "heatmaps" }, controls, place);
}

/** A choice of the mean or a pair. */
function pairChoice(result, pairs, change) {
  const prompts = new Map(result.prompts.map(([example, clean]) => [example, clean]));
  const name = (pair) => {
    if (pair === null) return "mean of all";
    const prompt = prompts.get(pair);
    return prompt === undefined ? String(pair) : `${pair}: ${cut(prompt, 60)}`;
  };
  return choice("pair", pairs.map((pair) => [pair === null ? "" : pair, name(pair)]), (value) => change(value === "" ? null : Number(value)));
}
