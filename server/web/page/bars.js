// Counts by name as horizontal bars, the largest first.

import { element } from "./dom.js";
import { count } from "./format.js";

/** A list of bars for `{name: count}`; their widths are relative to the largest. */
export function bars(label, counts, empty) {
  const sorted = Object.entries(counts).filter(([, n]) => n > 0).sort(([, a], [, b]) => b - a);
  if (!sorted.length) return element("p", { class: "empty" }, empty);
  return element("ul", { class: "bars", "aria-label": label }, ...sorted.map(([name, n]) => {
    const bar = element("span", { class: "bar", "aria-hidden": "true" });
    bar.style.width = `${Math.max(1, (100 * n) / sorted[0][1])}%`;
    const reason = element("span", { class: "label" }, name), figure = element("span", { class: "number" }, count(n));
    return element("li", {}, reason, element("span", { class: "track" }, bar), figure);
  }));
}
