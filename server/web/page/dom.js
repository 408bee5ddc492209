// Making elements. Text from devices only ever becomes a text node or an attribute's value, never markup.

const SVG = "http://www.w3.org/2000/svg";
const SAFE = /^(class|id|role|title|href|scope|tabindex|type|value|hidden|colspan|datetime|aria-[a-z]+|data-[a-z]+)$/;

export const byId = (id) => document.getElementById(id);

/** An HTML element; `children` are elements or anything that is shown as text, null for nothing. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (!SAFE.test(key)) throw new Error(`attribute ${key} is not set here`);
    if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : String(value));
  }
  return fill(made, children);
}

/** An SVG element; its attributes are all this program's own. */
export function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return fill(made, children);
}

/** Replaces what is in `parent`. */
export function fill(parent, children) {
  const nodes = children.flat().filter((child) => child !== null && child !== undefined);
  parent.replaceChildren(...nodes.map((child) => (child instanceof Node ? child : String(child))));
  return parent;
}

/** A table. `columns`: [title, "number" or "text"]; `rows`: arrays of elements or texts. */
export function table(label, columns, rows) {
  const kind = (i) => (columns[i][1] === "number" ? "number" : null);
  const head = columns.map(([title], i) => element("th", { scope: "col", class: kind(i) }, title));
  const cell = (shown, i) => element(i ? "td" : "th", { scope: i ? null : "row", class: kind(i) }, shown);
  const body = rows.map((row) => element("tr", {}, ...row.map(cell)));
  return element(
    "table", { "aria-label": label },
    element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body),
  );
}

/** One number of the headline: what it is, the value, and a smaller line below it. */
export function tile(label, value, below = "", state = "") {
  return element(
    "div", { class: `tile ${state}` },
    element("dt", {}, label), element("dd", {}, value, below === "" ? null : element("small", {}, below)),
  );
}

export const deviceLink = (name) =>
  element("a", { href: `/devices/${encodeURIComponent(name)}`, class: "name" }, name);
