// Edges as a graph: computed first stands below, the logits at the top.

const NODE = { width: 50, height: 20, across: 62, up: 46 };
const MOST_EDGES_DRAWN = 2000;
const LISTED = 12;

/** For each node the edges that begin there, and those that end there; both strongest first, as the edges are. */
function adjacency(graph) {
  const out = graph.nodes.map(() => []);
  const into = graph.nodes.map(() => []);
  graph.edges.forEach(([src, dst], edge) => {
    out[src].push(edge);
    into[dst].push(edge);
  });
  return { out, into };
}

/**
 * The path from `start` to the node `end` whose weakest edge is strongest, as edges; nothing if there is none. Nodes are in the
 * order of computing, so that one pass settles each before it is gone on from; `back` walks against the edges.
 */
function strongestPath(graph, next, start, end, back) {
  const best = graph.nodes.map(() => -1);
  const by = graph.nodes.map(() => null);
  best[start] = Infinity;
  const step = back ? -1 : 1;
  for (let node = start; node >= 0 && node < graph.nodes.length; node += step) {
    if (best[node] < 0) continue;
    for (const edge of next[node]) {
      const [src, dst, , score] = graph.edges[edge];
      const to = back ? src : dst;
      const weakest = Math.min(best[node], Math.abs(score));
      if (weakest > best[to]) {
        best[to] = weakest;
        by[to] = edge;
      }
    }
  }
  if (end < 0 || best[end] < 0) return [];
  const path = [];
  for (let node = end; node !== start; ) {
    path.push(by[node]);
    const [src, dst] = graph.edges[by[node]];
    node = back ? dst : src;
  }
  return back ? path : path.reverse();
}

/** The graph of a result, with a slider of how many edges are shown and a choice of a node. */
function edgeGraph(graph, result, reveal) {
  const { nodes, edges, columns } = graph;
  const { out, into } = adjacency(graph);
  const most = Math.min(MOST_EDGES_DRAWN, edges.length);
  const largest = Math.abs(edges[0][3]) || 1;
  const name = (edge) => {
    const [src, dst, letter] = edges[edge];
    return `${nodes[src][0]} → ${nodes[dst][0]}${letter ? `<${letter}>` : ""}`;
  };
  const find = (text) => nodes.findIndex((node) => node[0] === text);
  // A graph of the stream ends in the state that is explained.
  const [input, logits] = [find("input"), columns.length > 0 ? nodes.length - 1 : find("logits")];
  const end = nodes[logits]?.[0] ?? "logits";
  // Of edges that are equally strong, all are shown or none.
  let first = Math.min(40, most);
  while (first < most && Math.abs(edges[first][3]) === Math.abs(edges[first - 1][3])) first++;
  const isEven = Math.abs(edges[edges.length - 1][3]) === largest;
  const state = { shown: first, node: null };
  let places = [];
  let levels = [];

  const picture = drawn("svg", { tabindex: 0, role: "application", "aria-roledescription": "graph" });
  const shownText = html("output", {});
  const advice = nodes[logits] ? `Choose a node to see its edges, and its strongest path to ${end}.` : "Choose a node to see its edges.";
  const side = html("div", { class: "dim" }, advice);

  const paths = () => {
    if (state.node === null) return { up: [], down: [] };
    return {
      up: strongestPath(graph, out, state.node, logits, false),
      down: input === state.node ? [] : strongestPath(graph, into, state.node, input, true),
    };
  };

  const draw = () => {
    const { up, down } = paths();
    const onPath = new Set([...up, ...down]);
    const list = [...new Set([...edges.slice(0, state.shown).keys(), ...onPath])];
    const linked = new Set(list.flatMap((edge) => edges[edge].slice(0, 2)));
    if (state.node !== null) linked.add(state.node);
    levels = [...new Set([...linked].map((node) => nodes[node][1]))].sort((a, b) => a - b);
    const across = Math.max(1, columns.length, ...nodes.map((node) => (Number.isInteger(node[2]) ? node[2] + 1 : 0)));
    const apart = Math.max(NODE.across, Math.min(110, (innerWidth - 160) / across));
    const width = across * apart + 90;
    const height = levels.length * NODE.up + 10 + (columns.length > 0 ? NODE.up / 2 : 0);
    const middle = width / 2;
    places = nodes.map(([, level, place], node) => {
      if (!linked.has(node)) return null;
      const x = Number.isInteger(place) ? (place + 0.5) * apart + 20 : place === "middle" ? middle : width - 50;
      return [x, levels.length * NODE.up + 10 - (levels.indexOf(level) + 0.5) * NODE.up - 4];
    });
    const lines = list.map((edge) => {
      const [src, dst, , score] = edges[edge];
      const [[x1, y1], [x2, y2]] = [places[src], places[dst]];
      const [from, to] = [y1 - NODE.height / 2, y2 + NODE.height / 2];
      const levelsApart = (from - to) / NODE.up;
      const isOneColumn = Math.abs(x2 - x1) < 20;
      const bow = isOneColumn && levelsApart > 1 ? -Math.min(80, 16 + 5 * levelsApart) : edges[edge][2] === "mlp" ? NODE.width / 3 : 0;
      const reach = (from - to) * 0.45;
      const line = drawn("path", {
        d: `M${x1} ${from} C${x1 + bow} ${from - reach} ${x2 + bow} ${to + reach} ${x2} ${to}`,
        class: "edge", "data-edge": edge,
      });
      line.classList.add(score < 0 ? "minus" : "plus");
      line.style.setProperty("stroke-width", isEven ? 1 : (0.8 + (6 * Math.abs(score)) / largest).toFixed(2));
      if (state.node !== null) {
        line.classList.add(onPath.has(edge) ? "path" : src === state.node || dst === state.node ? "chosen" : "faint");
      }
      return line;
    });
    const boxes = places.flatMap((place, node) => {
      if (place === null) return [];
      const box = drawn("g", { class: node === state.node ? "node chosen" : "node", "data-node": node, transform: `translate(${place[0]} ${place[1]})` },
        drawn("rect", { x: -NODE.width / 2, y: -NODE.height / 2, width: NODE.width, height: NODE.height, rx: 5 }),
        drawn("text", { y: 4 }, nodes[node][3]),
      );
      return [box];
    });
    picture.setAttribute("width", width);
    picture.setAttribute("height", height);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const strongest = edges.slice(0, 5).map((edge, at) => `${name(at)} ${number(edge[3])}`).join("; ");
    picture.setAttribute("aria-label", `graph of ${linked.size} nodes and ${list.length} edges; the strongest: ${strongest}. Arrow keys choose a node.`);
    const labels = columns.map((token, at) =>
      drawn("text", { class: "column", x: (at + 0.5) * apart + 20, y: height - 8, "text-anchor": "middle" }, token));
    picture.replaceChildren(...lines, ...boxes, ...labels);
    const least = state.shown > 0 ? Math.abs(edges[state.shown - 1][3]) : largest;
    shownText.textContent = `${state.shown} of ${graph.all} edges, size ${number(least)} or more`;
  };

  const edgeList = (title, list) =>
    html("div", {}, html("strong", {}, `${title} (${list.length})`),
      html("ol", {}, list.slice(0, LISTED).map((edge) => {
        const row = edges[edge][4];
        const text = `${name(edge)}  ${number(edges[edge][3])}`;
        return html("li", {}, row === null ? text : html("button", { onclick: () => reveal(row), title: "show its row in the table" }, text));
      })),
      list.length > LISTED ? html("p", { class: "dim" }, `and ${list.length - LISTED} weaker ones`) : null,
    );

  const choose = (node) => {
    state.node = node;
    select.value = node === null ? "" : String(node);
    draw();
    if (node === null) return side.replaceChildren(advice);
    const { up, down } = paths();
    const whole = [...down, ...up];
    const steps = whole.length === 0 ? `no path leads through it to ${end}` : whole.map((edge) => `${name(edge)} ${number(edges[edge][3])}`).join(", ");
    const weakest = whole.length === 0 ? "" : ` (its weakest edge is ${number(Math.min(...whole.map((edge) => Math.abs(edges[edge][3]))))})`;
    side.className = "";
    side.replaceChildren(
      html("p", {}, html("strong", {}, nodes[node][0]), `: strongest path, dashed${weakest}: ${steps}`),
      html("div", { class: "lists" }, edgeList("edges in", into[node]), edgeList("edges out", out[node])),
    );
    spoken.textContent = `${nodes[node][0]}: ${into[node].length} edges in, ${out[node].length} out`;
  };

  const options = [["", "none"], ...nodes.map((node, at) => [at, node[0]])];
  const label = choice("node", options, (value) => choose(value === "" ? null : Number(value)));
  const select = label.querySelector("select");
  const steps = 400;
  const slider = html("input", {
    type: "range", min: 0, max: steps, step: 1,
    value: Math.round((steps * Math.log(Math.max(1, state.shown))) / Math.log(Math.max(2, most))),
    oninput: () => {
      state.shown = Math.max(1, Math.min(most, Math.round(most ** (slider.value / steps))));
      draw();
    },
  });
  const under = (event) => {
    const target = event.target.closest?.("[data-edge], [data-node]");
    return target ? { edge: target.dataset.edge, node: target.dataset.node } : {};
  };
  picture.addEventListener("pointermove", (event) => {
    const { edge, node } = under(event);
    if (edge !== undefined) showTip([name(edge), number(edges[edge][3]), edges[edge][5]].filter(Boolean), event.clientX, event.clientY, false);
    else if (node !== undefined) showTip([nodes[node][0], `${into[node].length} edges in, ${out[node].length} out`], event.clientX, event.clientY, false);
    else hideTip();
  });
  picture.addEventListener("pointerleave", hideTip);
  picture.addEventListener("click", (event) => {
    const { edge, node } = under(event);
    if (node !== undefined) choose(Number(node) === state.node ? null : Number(node));
    else if (edge === undefined && state.node !== null) choose(null);
  });
  picture.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return choose(null);
    const step = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const drawnNodes = [...places.keys()].filter((node) => places[node] !== null);
    if (state.node === null || places[state.node] === null) return choose(drawnNodes[0]);
    const [x] = places[state.node];
    const level = levels[levels.indexOf(nodes[state.node][1]) + step[1]];
    const near = drawnNodes.filter((node) => nodes[node][1] === level && (step[1] !== 0 || Math.sign(places[node][0] - x) === step[0]));
    near.sort((a, b) => Math.abs(places[a][0] - x) - Math.abs(places[b][0] - x));
    if (near.length > 0) choose(near[0]);
  });
  draw();
  const notAll = graph.all > edges.length ? html("p", { class: "dim" }, `The page has the ${edges.length} strongest of ${graph.all} edges.`) : null;
  return html("div", { class: "graph" },
    html("div", { class: "controls" }, html("label", {}, "edges shown", slider), shownText, label),
    notAll, legend(largest, `${result.quantity}; width is size`), scroller("the graph of edges", picture, true), side,
  );
}
