// The strongest rows as bars, and the tokens of a lens.

const BAR_HEIGHT = 22;
const LONGEST_BAR = 380;

/** Bars of one pair or the mean; where they add up to the metric, the others and the sum are the last ones. */
function barChart(bars, result, details, reveal) {
  const rows = bars.bars.map(([label, score, low, high, place]) => ({ label, score, low, high, place, kind: "" }));
  if (bars.sum !== null) {
    const n = bars.all - rows.length;
    if (n > 0) rows.push({ label: `${n} others together`, score: bars.others, low: null, high: null, place: null, kind: "rest" });
    rows.push({ label: `sum = ${result.metric}`, score: bars.sum, low: null, high: null, place: null, kind: "total" });
  }
  // On a narrow screen labels and bars are short rather than out of sight.
  const labels = rows.map((row) => cut(row.label, innerWidth < 600 ? 26 : 46));
  const left = Math.max(...labels.map((label) => widthOf(label))) + 12;
  const length = Math.max(70, Math.min(LONGEST_BAR, innerWidth - left - 120));
  const ends = rows.flatMap((row) => [row.score, row.low ?? row.score, row.high ?? row.score]);
  const [least, most] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const span = most - least || 1;
  const at = (value) => left + ((value - least) / span) * length;
  const size = [left + length + 80, BAR_HEIGHT * rows.length + 10];
  const words = rows.slice(0, 5).map((row) => `${row.label} ${number(row.score)}`).join("; ");
  const picture = drawn("svg", {
    width: size[0], height: size[1], viewBox: `0 0 ${size[0]} ${size[1]}`,
    tabindex: 0, role: "application", "aria-roledescription": "bar chart",
    "aria-label": `bars: ${words}${bars.sum === null ? "" : `; the sum is ${number(bars.sum)}`}. Arrow keys move from bar to bar.`,
  });
  const lines = (row) => {
    const interval = row.low === null ? null : `95% interval [${number(row.low)}, ${number(row.high)}]`;
    return [row.label, number(row.score)].concat(row.place === null ? [interval] : details(row.place));
  };
  const hits = rows.map((row, index) => {
    const y = 4 + BAR_HEIGHT * index;
    const [from, to] = [at(Math.min(0, row.score)), at(Math.max(0, row.score))];
    const bar = drawn("rect", { x: from, y: y + 4, width: Math.max(1, to - from), height: BAR_HEIGHT - 8, class: `bar ${row.kind}` });
    if (row.kind !== "total") bar.classList.add(row.score < 0 ? "minus" : "plus");
    const hit = drawn("rect", { x: 0, y, width: size[0], height: BAR_HEIGHT, class: "row-hit" });
    const middle = y + BAR_HEIGHT / 2;
    picture.append(hit, drawn("text", { x: left - 7, y: y + 15, "text-anchor": "end", "pointer-events": "none" }, labels[index]), bar);
    if (row.low !== null && row.high !== null) {
      picture.append(drawn("line", { x1: at(row.low), x2: at(row.high), y1: middle, y2: middle, class: "whisker" }));
    }
    picture.append(drawn("text", { x: left + length + 8, y: y + 15, "pointer-events": "none" }, number(row.score)));
    return hit;
  });
  picture.append(drawn("line", { x1: at(0), x2: at(0), y1: 2, y2: size[1] - 4, class: "axis" }));
  let chosen = null;
  const choose = (index) => {
    if (chosen !== null) hits[chosen].classList.remove("chosen");
    chosen = index;
    if (index === null) return hideTip();
    hits[index].classList.add("chosen");
  };
  const open = () => chosen !== null && rows[chosen].place !== null && reveal(rows[chosen].place);
  picture.addEventListener("pointermove", (event) => {
    const y = event.clientY - picture.getBoundingClientRect().top - 4;
    const index = Math.floor(y / BAR_HEIGHT);
    if (index < 0 || index >= rows.length) return choose(null);
    choose(index);
    showTip(lines(rows[index]), event.clientX, event.clientY, false);
  });
  picture.addEventListener("pointerleave", () => choose(null));
  picture.addEventListener("blur", () => choose(null));
  picture.addEventListener("dblclick", open);
  picture.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return choose(null);
    if (event.key === "Enter") return open();
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = chosen === null ? 0 : chosen + step;
    if (next < 0 || next >= rows.length) return;
    choose(next);
    showTipAt(lines(rows[next]), hits[next]);
  });
  return scroller("the strongest rows", picture);
}

/** The bars of a result with a choice of pairs. */
function barCharts(result, details, reveal) {
  const place = html("div", {});
  const draw = (pair) => {
    const bars = result.bars.find((bars) => bars.pair === pair);
    const n = bars.bars.length;
    const which = n === bars.all ? `All ${n} rows` : `The ${n} strongest of ${bars.all} rows`;
    const hasIntervals = bars.bars.some(([, , low]) => low !== null);
    const about = bars.sum === null
      ? `${which}: ${result.quantity}${hasIntervals ? "; the line is the 95% interval" : ""}.`
      : `All ${bars.all} parts add up to ${number(bars.sum)}; ${result.metric} is ${number(bars.metric)}${result.unit ? ` ${result.unit}` : ""}.`;
    place.replaceChildren(html("p", { class: "dim" }, about), barChart(bars, result, details, reveal));
  };
  const pairs = result.bars.map((bars) => bars.pair);
  const controls = html("div", { class: "controls" });
  if (pairs.length > 1) controls.append(pairChoice(result, pairs, draw));
  draw(pairs[0]);
  return html("div", { class: "bars" }, controls, place);
}

/** The likeliest tokens after each layer, a line a layer. */
function tokenGrid(result, reveal) {
  const place = html("div", {});
  const draw = (pair) => {
    const { lines, measure } = result.tokens.find((grid) => grid.pair === pair);
    const body = lines.map(([layer, items]) =>
      html("tr", {}, html("th", { scope: "row" }, layer), items.map(([token, score, row]) => {
        const cell = html("td", { class: "tint", title: `${token} ${number(score)}` }, html("bdi", {}, token), " ", html("span", { class: "dim" }, number(score)));
        if (paint(cell, score, 1)) cell.classList.add("strong");
        if (row !== null) cell.addEventListener("dblclick", () => reveal(row));
        return cell;
      })),
    );
    const table = html("table", { class: "tokens" }, html("caption", { class: "dim" }, `the likeliest tokens (${measure})`), html("tbody", {}, body.reverse()));
    place.replaceChildren(scroller("the likeliest tokens after each layer", table));
  };
  const pairs = result.tokens.map((grid) => grid.pair);
  const controls = html("div", { class: "controls" });
  if (pairs.length > 1) controls.append(pairChoice(result, pairs, draw));
  draw(pairs[0]);
  return html("div", {}, controls, place);
}
