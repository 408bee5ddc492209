// A chart of values over time, in SVG: several series, told apart by colour, dashes and their names.

import { spanned, timeTicks, valueAxis } from "./chart_axes.js";
import { element, fill, shape } from "./dom.js";
import { clock, moment, number } from "./format.js";

const LEFT = 52, RIGHT = 12, TOP = 10, BOTTOM = 24, HEIGHT = 200;

/**
 * `title`: above it; `zero`: the axis begins at 0; `dots`: single events, not a curve; `show`: how a value is written;
 * `empty`: what is said while there is nothing.
 */
export class LineChart {
  constructor(title, { zero = false, dots = false, show = number, empty = "No data yet." } = {}) {
    Object.assign(this, { title, zero, dots, show, series: [], told: "" });
    this.svg = shape("svg", { class: "plot", role: "img", height: HEIGHT });
    this.legend = element("ul", { class: "legend" });
    this.readout = element("p", { class: "readout quiet small" });
    this.none = element("p", { class: "empty" }, empty);
    const head = element("div", { class: "card-head" }, element("h3", {}, title), this.legend);
    this.figure = element("figure", { class: "card chart" }, head, this.none, this.svg, this.readout);
    this.svg.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.#point(null));
    new ResizeObserver(() => this.#draw()).observe(this.figure);
  }

  /** `series`: [{name, time: [Unix seconds], values: [number or null]}], at most five, always in the same order. */
  set(series) {
    const kept = series.map(({ name, time, values }, kind) => {
      const points = time.map((at, i) => [at, values[i]]).filter((point) => point.every(Number.isFinite));
      return { name, kind, points };
    });
    const told = JSON.stringify(kept);
    if (told === this.told) return;
    this.told = told;
    this.series = kept.filter((one) => one.points.length);
    this.#draw();
  }

  #draw() {
    const any = this.series.length > 0;
    this.none.hidden = any;
    this.svg.toggleAttribute("hidden", !any);
    this.readout.hidden = this.legend.hidden = !any;
    const width = this.svg.clientWidth || this.figure.clientWidth - 32;
    if (!any || width < LEFT + RIGHT + 20) return;
    const points = this.series.flatMap((one) => one.points);
    let [start, end, low, high] = [Infinity, -Infinity, this.zero ? 0 : Infinity, -Infinity];
    for (const [time, value] of points) {
      start = Math.min(start, time), end = Math.max(end, time);
      low = Math.min(low, value), high = Math.max(high, value);
    }
    if (end - start < 1) start = end - 1;
    const [bottom, top, ticks] = valueAxis(low, high, 4);
    this.x = (time) => LEFT + ((time - start) / (end - start)) * (width - LEFT - RIGHT);
    this.y = (value) => TOP + ((top - value) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
    this.width = width;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("aria-label", this.#described(start, end));
    this.cursor = shape("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    fill(this.svg, [this.#grid(ticks, timeTicks(start, end, Math.max(2, width / 90))), this.#curves(), this.cursor]);
    fill(this.legend, this.series.map(({ name, kind }) => element("li", {}, sample(kind, this.dots), name)));
    this.#point(null);
  }

  #grid(values, times) {
    const lines = values.map(([at, label]) => [
      shape("line", { class: "grid", x1: LEFT, x2: this.width - RIGHT, y1: this.y(at), y2: this.y(at) }),
      shape("text", { class: "tick", x: LEFT - 6, y: this.y(at) + 4, "text-anchor": "end" }, label),
    ]);
    const below = times
      .filter(([at]) => this.x(at) > LEFT + 14 && this.x(at) < this.width - 20)
      .map(([at, label]) => {
        return shape("text", { class: "tick", x: this.x(at), y: HEIGHT - 6, "text-anchor": "middle" }, label);
      });
    return [lines, below].flat(2);
  }

  #curves() {
    return this.series.map(({ kind, points }) => {
      const placed = points.map(([time, value]) => `${this.x(time).toFixed(1)},${this.y(value).toFixed(1)}`);
      const line = { class: `series s${kind}`, points: placed.join(" ") };
      if (!this.dots && placed.length > 1) return shape("polyline", line);
      const dots = placed.map((at) => at.split(",")).map(([cx, cy]) => shape("circle", { cx, cy, r: 2.2 }));
      return shape("g", { class: `points s${kind}` }, ...dots);
    });
  }

  #point(offset) {
    this.cursor?.setAttribute("visibility", offset === null ? "hidden" : "visible");
    const found = this.series.map(({ name, points }) => {
      const far = ([time]) => (offset === null ? -time : Math.abs(this.x(time) - offset));
      return [name, points.reduce((best, point) => (far(point) < far(best) ? point : best))];
    });
    if (!found.length) return;
    const when = Math.max(...found.map(([, [time]]) => time));
    const written = found.map(([name, [, value]]) => `${name} ${this.show(value)}`).join(" · ");
    this.readout.textContent = `${offset === null ? "newest" : clock(when)}: ${written}`;
    this.readout.title = moment(when);
    if (offset === null) return;
    for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(when));
  }

  #described(start, end) {
    const each = this.series.map(({ name, points }) => {
      const values = points.map(([, value]) => value);
      const least = values.reduce((a, b) => Math.min(a, b)), most = values.reduce((a, b) => Math.max(a, b));
      return `${name} from ${this.show(least)} to ${this.show(most)}, newest ${this.show(values.at(-1))}`;
    });
    return `${this.title} over ${spanned(start, end)}: ${each.join("; ")}`;
  }
}

function sample(kind, dots) {
  const svg = shape("svg", { class: "sample", width: 22, height: 10, viewBox: "0 0 22 10", "aria-hidden": "true" });
  const drawn = dots
    ? shape("g", { class: `points s${kind}` }, shape("circle", { cx: 11, cy: 5, r: 3 }))
    : shape("polyline", { class: `series s${kind}`, points: "0,5 22,5" });
  return fill(svg, [drawn]);
}
