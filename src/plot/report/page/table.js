// Every row: sorted, filtered, and saved.

const ROWS_A_PAGE = 50;
const COMPARE = {
  "=": (a, b) => a === b, "!=": (a, b) => a !== b, "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
};

/** Reading the rows of a result: values as they are, and as they are shown. */
function tableOf(data) {
  const columns = data.columns.map((column) => {
    const isText = column.texts !== undefined;
    const raw = isText
      ? (row) => (column.at[row] === null ? null : column.texts[column.at[row]])
      : (row) => column.values[row];
    const shown = isText
      ? (row) => (column.at[row] === null ? "" : column.shown[column.at[row]] ?? column.texts[column.at[row]])
      : (row) => number(column.values[row]);
    const first = data.n > 0 ? raw(0) : null;
    let isSame = true;
    for (let row = 1; row < data.n && isSame; row++) isSame = raw(row) === first;
    return { name: column.name, isText, raw, shown, isSame: isSame && data.n > 1 };
  });
  const byName = new Map(columns.map((column) => [column.name, column]));
  return { columns, byName, n: data.n, all: data.all };
}

/** The lines of a tooltip that a row of the table adds. */
function rowDetails(table) {
  const float = (name, row) => table.byName.get(name)?.raw(row) ?? null;
  return (row) => {
    const [low, high] = [float("ci_low", row), float("ci_high", row)];
    const normalised = float("normalised", row);
    const n = float("n", row);
    return [
      `score ${number(float("score", row))}${low === null || high === null ? "" : `, 95% interval [${number(low)}, ${number(high)}]`}`,
      normalised === null ? null : `normalised ${number(normalised)}`,
      n === null ? null : `${n} ${n === 1 ? "pair" : "pairs"}`,
    ];
  };
}

/** What keeps a row: words that it must have, and `column=value` and the like. A message instead, if it cannot be read. */
function readFilter(text, table) {
  const tests = [];
  for (const word of text.match(/(?:[^\s"]|"[^"]*")+/g) ?? []) {
    const parts = /^([a-z_]+)(<=|>=|!=|=|<|>)(.*)$/s.exec(word);
    if (!parts) {
      const wanted = word.replaceAll('"', "").toLowerCase();
      tests.push((row) => table.columns.some((column) => column.shown(row).toLowerCase().includes(wanted)));
      continue;
    }
    const [, name, sign, quoted] = parts;
    const column = table.byName.get(name);
    if (!column) return `there is no column ${name}; there are ${[...table.byName.keys()].join(", ")}`;
    const value = quoted.replaceAll('"', "");
    if (column.isText) {
      if (sign !== "=" && sign !== "!=") return `${name} is text: = and != compare it`;
      tests.push((row) => COMPARE[sign](column.shown(row), value));
    } else {
      if (value === "" || Number.isNaN(Number(value))) return `${name} is a number, and ${value || "nothing"} is none`;
      tests.push((row) => column.raw(row) !== null && COMPARE[sign](column.raw(row), Number(value)));
    }
  }
  return (row) => tests.every((test) => test(row));
}

/** A field of CSV; what a spreadsheet would run as a formula gets a ' in front. */
function csvField(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const inert = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(inert) ? `"${inert.replaceAll('"', '""')}"` : inert;
}

function rowTable(result, table) {
  const state = { rows: [...Array(table.n).keys()], page: 0, sort: null, down: true, found: null };
  const score = table.byName.get("score");
  // Where no run is subtracted, the value is the score.
  const isScore = (column) => column.name === "value" && score !== undefined && state.rows.every((row) => column.raw(row) === score.raw(row));
  const shownColumns = table.columns.filter((column) => !column.isSame && !isScore(column));
  const same = table.columns.filter((column) => column.isSame && table.n > 0);
  const count = html("output", {});
  const wrong = html("p", { class: "notice", role: "alert", hidden: true });
  const body = html("tbody", {});
  const heads = shownColumns.map((column) =>
    html("th", { scope: "col" }, html("button", { onclick: () => sortBy(column), title: `sort by ${column.name}` }, column.name)),
  );
  const pages = () => Math.max(1, Math.ceil(state.rows.length / ROWS_A_PAGE));
  const back = html("button", { onclick: () => turn(-1) }, "← before");
  const on = html("button", { onclick: () => turn(1) }, "next →");
  const draw = () => {
    const start = state.page * ROWS_A_PAGE;
    body.replaceChildren(...state.rows.slice(start, start + ROWS_A_PAGE).map((row) =>
      html("tr", { class: row === state.found ? "found" : null }, shownColumns.map((column) => {
        const text = column.shown(row);
        if (!column.isText) return html("td", { class: "n" }, text);
        return html("td", { title: text.length > 30 ? text : null }, html("bdi", {}, text));
      })),
    ));
    const end = Math.min(start + ROWS_A_PAGE, state.rows.length);
    const of = state.rows.length === table.n ? `${table.n}` : `${state.rows.length} (of ${table.n})`;
    count.textContent = state.rows.length === 0 ? `no row of ${table.n}` : `rows ${start + 1} to ${end} of ${of}`;
    back.disabled = state.page === 0;
    on.disabled = state.page >= pages() - 1;
    heads.forEach((head, at) => {
      const isSorted = shownColumns[at] === state.sort;
      head.setAttribute("aria-sort", isSorted ? (state.down ? "descending" : "ascending") : "none");
      head.firstChild.textContent = shownColumns[at].name + (isSorted ? (state.down ? " ↓" : " ↑") : "");
    });
  };
  const turn = (by) => {
    state.page += by;
    draw();
  };
  const order = () => {
    const column = state.sort;
    if (!column) return state.rows.sort((a, b) => a - b);
    const sign = state.down ? -1 : 1;
    state.rows.sort((a, b) => {
      const [x, y] = [column.raw(a), column.raw(b)];
      // What is not there stands last, whichever way.
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return (x < y ? -1 : x > y ? 1 : 0) * sign || a - b;
    });
  };
  const sortBy = (column) => {
    state.down = state.sort === column ? !state.down : !column.isText;
    state.sort = column;
    state.page = 0;
    order();
    draw();
  };
  const filter = html("input", {
    type: "search", placeholder: "words, layer>2, component=attn.hook_z", size: 38, spellcheck: "false",
    oninput: () => {
      const keeps = readFilter(filter.value, table);
      wrong.hidden = typeof keeps === "function";
      if (typeof keeps !== "function") {
        wrong.textContent = keeps;
        return;
      }
      state.rows = [...Array(table.n).keys()].filter(keeps);
      state.page = 0;
      order();
      draw();
    },
  });
  const base = result.name.split(/[/\\]/).pop().replace(/\.parquet$/, "");
  const csv = () => {
    const lines = state.rows.map((row) => table.columns.map((column) => csvField(column.raw(row))).join(","));
    save(`${base}.csv`, "text/csv", [table.columns.map((column) => column.name).join(","), ...lines].join("\r\n") + "\r\n");
  };
  const json = () => {
    const objects = state.rows.map((row) => JSON.stringify(Object.fromEntries(table.columns.map((column) => [column.name, column.raw(row)]))));
    save(`${base}.jsonl`, "application/x-ndjson", objects.join("\n") + "\n");
  };
  const element = html("div", { class: "rows" },
    html("div", { class: "controls" },
      html("label", {}, "filter", filter), count, back, on,
      html("button", { onclick: csv }, "save as CSV"), html("button", { onclick: json }, "save as JSON lines"),
    ),
    wrong,
    same.length > 0 ? html("p", { class: "dim" }, `In all rows: ${same.map((column) => `${column.name} ${column.shown(0)}`).join(", ")}.`) : null,
    scroller("the rows of the table", html("table", {}, html("thead", {}, html("tr", {}, heads)), body), true),
  );
  /** Shows a row, taking back a filter that hides it. */
  const reveal = (row) => {
    hideTip();
    if (!state.rows.includes(row)) {
      filter.value = "";
      wrong.hidden = true;
      state.rows = [...Array(table.n).keys()];
      order();
    }
    state.found = row;
    state.page = Math.floor(state.rows.indexOf(row) / ROWS_A_PAGE);
    draw();
    element.querySelector("tr.found").scrollIntoView({ block: "center" });
    spoken.textContent = `row ${row + 1} of the table`;
  };
  draw();
  return { element, reveal };
}
