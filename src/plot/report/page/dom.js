// Elements, numbers, the tooltip and files to save. Text goes into text nodes only.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.setAttribute("class", value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}

/** An element of HTML with attributes (`onclick` listens) and children, of which text becomes text. */
function html(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function drawn(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A number with about four digits. */
function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2);
  if (Number.isInteger(value)) return String(value);
  return value.toFixed(Math.max(0, 3 - Math.floor(Math.log10(size))));
}

/** As short as a cell of a heatmap takes it; a dot for what is as good as nothing. */
function short(value, reach) {
  if (reach < 1e-3) return value === 0 ? "·" : value.toExponential(0);
  const places = reach >= 100 ? 0 : reach >= 10 ? 1 : reach >= 0.1 ? 2 : 1 - Math.floor(Math.log10(reach));
  const text = value.toFixed(places);
  return Number(text) === 0 ? "·" : text.replace("0.", ".");
}

/** Gives a drawn element the colour of a value: by its sign, as strong as its share of the largest. */
function paint(element, value, reach) {
  const share = reach > 0 ? Math.min(1, Math.abs(value) / reach) : 0;
  element.classList.toggle("plus", value >= 0);
  element.classList.toggle("minus", value < 0);
  element.style.setProperty("--v", share.toFixed(3));
  return share > 0.55;
}

const tip = html("div", { id: "tip", role: "tooltip", hidden: true });
const spoken = html("div", { class: "spoken", "aria-live": "polite" });

/** Shows lines beside a place of the window, and says them where `aloud`. */
function showTip(lines, x, y, aloud) {
  tip.replaceChildren(...lines.filter((line) => line).map((line) => html("div", {}, html("bdi", {}, line))));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - box.width - 14 : x + 14;
  const top = y + 14 + box.height > innerHeight ? y - box.height - 14 : y + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
  if (aloud) spoken.textContent = lines.filter((line) => line).join(", ");
}

function hideTip() {
  tip.hidden = true;
}

/** The same beside an element, for the keyboard. */
function showTipAt(lines, element) {
  element.scrollIntoView({ block: "nearest", inline: "nearest" });
  const box = element.getBoundingClientRect();
  showTip(lines, box.right - 10, box.bottom - 10, true);
}

/** Saves text as a file. */
function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = html("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** A labelled choice; `options` are pairs of value and text. */
function choice(label, options, change) {
  const select = html("select", { onchange: () => change(select.value) });
  for (const [value, text] of options) select.append(html("option", { value }, text));
  return html("label", {}, label, select);
}

/** A part of the page that scrolls by itself, also with the keyboard. */
function scroller(label, content, tall) {
  const name = tall ? "scroll tall" : "scroll";
  return html("div", { class: name, tabindex: 0, role: "region", "aria-label": label }, content);
}

const ruler = document.createElement("canvas").getContext("2d");

/** The width of text in pixels, as pictures write it. */
function widthOf(text) {
  ruler.font = "12px system-ui, sans-serif";
  return ruler.measureText(text).width;
}

/** A text of at most so many characters: both its ends, since names that begin alike differ in theirs. */
function cut(text, most) {
  const characters = [...text];
  if (characters.length <= most) return text;
  const end = Math.floor((most - 1) / 2);
  return characters.slice(0, most - 1 - end).join("") + "…" + characters.slice(characters.length - end).join("");
}
