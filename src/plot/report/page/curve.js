// Faithfulness by the share of all edges, with its interval.

const CURVE = { height: 280, left: 54, right: 16, top: 14, bottom: 44 };

/** The curves of a result. Shares are drawn on a logarithmic axis; series differ by dash as well as by colour. */
function curveChart(result, reveal) {
  const series = result.curves;
  const width = Math.max(260, Math.min(620, innerWidth - 60));
  const points = series.flatMap((one, index) => one.points.map(([x, y, low, high, row]) => ({ x, y, low, high, row, index, name: one.name })));
  points.sort((a, b) => a.x - b.x || a.index - b.index);
  const xs = points.map((point) => Math.log10(point.x));
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const ys = points.flatMap((point) => [point.y, point.low ?? point.y, point.high ?? point.y]).concat([0, 1]);
  const [least, most] = [Math.min(...ys), Math.max(...ys)];
  const at = (point) => [
    CURVE.left + ((Math.log10(point.x) - first) / (last - first || 1)) * (width - CURVE.left - CURVE.right),
    height(point.y),
  ];
  const height = (y) => CURVE.top + ((most - y) / (most - least || 1)) * (CURVE.height - CURVE.top - CURVE.bottom);
  const said = series.map((one) => `${one.name}: ${one.points.map(([x, y]) => `${number(y)} at ${number(x)}`).join(", ")}`).join("; ");
  const picture = drawn("svg", {
    width, height: CURVE.height, viewBox: `0 0 ${width} ${CURVE.height}`,
    tabindex: 0, role: "application", "aria-roledescription": "curve", "aria-label": `faithfulness by share of edges. ${said}. Arrow keys move from point to point.`,
  });
  for (const y of [0, 0.5, 1]) {
    picture.append(
      drawn("line", { x1: CURVE.left, x2: width - CURVE.right, y1: height(y), y2: height(y), class: "guide" }),
      drawn("text", { x: CURVE.left - 8, y: height(y) + 4, "text-anchor": "end" }, String(y)),
    );
  }
  for (const x of [...new Set(points.map((point) => point.x))]) {
    // Between powers of ten there is room for a mark alone.
    const place = at({ x, y: 0 })[0];
    const isPower = Math.abs(Math.log10(x) - Math.round(Math.log10(x))) < 1e-9;
    picture.append(drawn("line", { x1: place, x2: place, y1: CURVE.height - CURVE.bottom, y2: CURVE.height - CURVE.bottom + 5, class: "axis" }));
    if (isPower) picture.append(drawn("text", { x: place, y: CURVE.height - CURVE.bottom + 20, "text-anchor": "middle" }, String(x)));
  }
  picture.append(drawn("text", { x: width / 2, y: CURVE.height - 4, "text-anchor": "middle", class: "dim" }, "share of all edges"));
  series.forEach((one, index) => {
    const hue = index % 2 === 0 ? "plus" : "minus";
    const of = one.points.map(([x, y, low, high]) => ({ x, y, low, high }));
    const path = (list) => list.map(([x, y], at) => `${at === 0 ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    if (of.every((point) => point.low !== null && point.high !== null)) {
      const upper = of.map((point) => at({ x: point.x, y: point.high }));
      const lower = of.map((point) => at({ x: point.x, y: point.low })).reverse();
      picture.append(drawn("path", { d: `${path([...upper, ...lower])}Z`, class: `band ${hue}` }));
    }
    picture.append(drawn("path", { d: path(of.map(at)), class: `curve ${hue}`, "stroke-dasharray": index === 0 ? null : `${8 - 2 * (index % 3)} 4` }));
  });
  const dots = points.map((point) => {
    const [cx, cy] = at(point);
    const dot = drawn("circle", { cx, cy, r: 4, class: `dot ${point.index % 2 === 0 ? "plus" : "minus"}` });
    picture.append(dot);
    return dot;
  });
  let chosen = null;
  const choose = (index) => {
    if (chosen !== null) dots[chosen].setAttribute("r", 4);
    chosen = index;
    if (index === null) return hideTip();
    dots[index].setAttribute("r", 7);
  };
  const lines = (point) => [
    `${point.name}, ${number(point.x)} of all edges`, `faithfulness ${number(point.y)}`,
    point.low === null ? null : `95% interval [${number(point.low)}, ${number(point.high)}]`,
  ];
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const away = (point) => Math.hypot(at(point)[0] - event.clientX + box.left, at(point)[1] - event.clientY + box.top);
    const nearest = points.reduce((best, point, index) => (away(point) < away(points[best]) ? index : best), 0);
    if (away(points[nearest]) > 40) return choose(null);
    choose(nearest);
    showTip(lines(points[nearest]), event.clientX, event.clientY, false);
  });
  const open = () => chosen !== null && points[chosen].row !== null && reveal(points[chosen].row);
  picture.addEventListener("pointerleave", () => choose(null));
  picture.addEventListener("blur", () => choose(null));
  picture.addEventListener("dblclick", open);
  picture.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return choose(null);
    if (event.key === "Enter") return open();
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = chosen === null ? 0 : chosen + step;
    if (next < 0 || next >= points.length) return;
    choose(next);
    showTipAt(lines(points[next]), dots[next]);
  });
  const names = series.map((one, index) => `${one.name} (${index % 2 === 0 ? "red or orange" : "blue"}${index === 0 ? "" : ", dashed"})`).join(", ");
  return html("div", { class: "curves" },
    html("p", { class: "dim" }, `The faithfulness of circuits by size, with 95% intervals: ${names}.`),
    scroller("the curve of faithfulness", picture),
  );
}
