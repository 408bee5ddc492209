// The fleet map: one cell a device on a canvas, since ten thousand elements would be slow. The fuller a cell, the
// fresher its device: colour is never the only sign.

import { described, limits, meanings, stateOf } from "./device_states.js";
import { byId, element, fill } from "./dom.js";
import { count, plural } from "./format.js";

const LARGEST = 34, SMALLEST = 7, HEIGHT = 320;
const NOBODY =
  "No device has been seen yet: start a gateway and a device, or read in their logs why they don't reach the broker.";
const FILLED = { fresh: 1, new: 1, lagging: 0.6, stale: 0.3, offline: 0, blocked: 0 };

/** Draws one cell's sign into the square (x, y, size). */
function drawCell(context, colours, state, rejected, x, y, size) {
  const full = FILLED[state] * size;
  context.fillStyle = context.strokeStyle = colours[state];
  context.fillRect(x, y + size - full, size, full);
  if (full < size) context.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
  if (state === "blocked") {
    context.beginPath();
    context.moveTo(x, y), context.lineTo(x + size, y + size);
    context.moveTo(x + size, y), context.lineTo(x, y + size);
    context.stroke();
  }
  if (rejected) {
    context.beginPath();
    context.arc(x + size / 2, y + size / 2, Math.max(1.8, size / 4), 0, 7);
    context.fillStyle = colours.rejected;
    context.fill();
    context.strokeStyle = colours.ground;
    context.stroke();
  }
}

export class FleetMap {
  constructor() {
    this.canvas = byId("map");
    this.tooltip = byId("map-tooltip");
    Object.assign(this, { devices: [], shown: [], text: "", chosen: null, limits: [0, 0], legend: "" });
    this.canvas.addEventListener("pointermove", (event) => this.#hover(this.#at(event)));
    this.canvas.addEventListener("pointerleave", () => this.#hover(null));
    this.canvas.addEventListener("click", (event) => this.#open(this.#at(event)));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("focus", () => this.#choose(this.chosen ?? 0));
    this.canvas.addEventListener("blur", () => this.#choose(null));
    new ResizeObserver(() => this.#draw()).observe(this.canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#redraw());
  }

  /** All devices of the fleet, in the order of their names. */
  show(devices) {
    this.devices = devices;
    this.limits = limits(devices);
    this.#redraw();
  }

  /** Only devices with `text` in their names are drawn. */
  filter(text) {
    this.text = text.toLowerCase();
    this.#redraw();
  }

  #redraw() {
    this.shown = this.devices.filter((device) => device.name.toLowerCase().includes(this.text));
    if (this.chosen !== null && this.chosen >= this.shown.length) this.chosen = null;
    byId("map-empty").hidden = this.shown.length > 0;
    byId("map-empty").textContent = this.devices.length
      ? `No device has “${this.text}” in its name.`
      : NOBODY;
    this.canvas.hidden = !this.shown.length;
    this.#drawLegend();
    this.#draw();
    if (this.chosen === null) this.#tell();
  }

  #draw() {
    const width = this.canvas.parentElement.clientWidth, n = this.shown.length;
    if (!n || !width) return;
    const fits = Math.floor(Math.sqrt((width * HEIGHT) / n));
    this.pitch = Math.max(SMALLEST, Math.min(LARGEST, fits));
    this.columns = Math.max(1, Math.floor(width / this.pitch));
    const height = Math.ceil(n / this.columns) * this.pitch, scale = window.devicePixelRatio || 1;
    this.canvas.style.width = `${this.columns * this.pitch}px`;
    this.canvas.style.height = `${height}px`;
    this.canvas.width = this.columns * this.pitch * scale;
    this.canvas.height = height * scale;
    const context = this.canvas.getContext("2d");
    context.scale(scale, scale);
    const colours = coloursOf(this.canvas);
    const gap = this.pitch > 14 ? 4 : this.pitch > 9 ? 2 : 1;
    this.shown.forEach((device, i) => {
      const [x, y] = this.#place(i).map((at) => at + gap / 2);
      drawCell(context, colours, stateOf(device, this.limits), device.rejected, x, y, this.pitch - gap);
    });
    if (this.chosen === null) return;
    const [x, y] = this.#place(this.chosen);
    context.strokeStyle = colours.ink;
    context.lineWidth = 2;
    context.strokeRect(x + 1, y + 1, this.pitch - 2, this.pitch - 2);
  }

  #drawLegend() {
    const entries = meanings(this.limits);
    const key = entries.join() + matchMedia("(prefers-color-scheme: dark)").matches;
    if (key === this.legend) return;
    this.legend = key;
    const colours = coloursOf(this.canvas);
    fill(byId("legend"), entries.map(([state, meaning]) => {
      const cell = element("canvas", { "aria-hidden": "true" });
      [cell.width, cell.height] = [28, 28];
      const context = cell.getContext("2d");
      context.scale(2, 2);
      drawCell(context, colours, state === "rejected" ? "fresh" : state, state === "rejected", 1, 1, 12);
      return element("li", {}, cell, meaning);
    }));
  }

  #place(i) {
    return [(i % this.columns) * this.pitch, Math.floor(i / this.columns) * this.pitch];
  }

  #at(event) {
    const column = Math.floor(event.offsetX / this.pitch), row = Math.floor(event.offsetY / this.pitch);
    const i = row * this.columns + column;
    return column >= 0 && column < this.columns && i >= 0 && i < this.shown.length ? i : null;
  }

  #hover(i) {
    this.tooltip.hidden = i === null;
    this.canvas.style.cursor = i === null ? "default" : "pointer";
    if (i === null) return;
    const device = this.shown[i], [x, y] = this.#place(i);
    fill(this.tooltip, [element("strong", {}, device.name), element("br"), described(device)]);
    const room = this.canvas.parentElement.clientWidth - this.tooltip.offsetWidth;
    this.tooltip.style.left = `${Math.max(0, Math.min(room, x))}px`;
    this.tooltip.style.top = `${y + this.pitch + 4}px`;
  }

  #key(event) {
    const last = this.shown.length - 1, i = this.chosen ?? 0;
    const moves = {
      ArrowRight: i + 1, ArrowLeft: i - 1, ArrowDown: i + this.columns, ArrowUp: i - this.columns,
      PageDown: i + 10 * this.columns, PageUp: i - 10 * this.columns, Home: 0, End: last,
    };
    if (event.key === "Enter" || event.key === " ") this.#open(this.chosen);
    else if (event.key in moves) this.#choose(Math.max(0, Math.min(last, moves[event.key])));
    else return;
    event.preventDefault();
  }

  #choose(i) {
    this.chosen = this.shown.length ? i : null;
    this.#hover(this.chosen);
    this.#draw();
    this.#tell();
  }

  #open(i) {
    if (i !== null) location.href = `/devices/${encodeURIComponent(this.shown[i].name)}`;
  }

  #tell() {
    const device = this.chosen === null ? null : this.shown[this.chosen];
    const text = device ? `${device.name}: ${described(device)}` : this.#summary();
    if (byId("map-status").textContent !== text) byId("map-status").textContent = text;
    this.canvas.setAttribute("aria-label", `Fleet map: ${this.#summary()}`);
  }

  #summary() {
    const online = this.shown.filter((device) => device.online).length;
    const of = this.text ? ` of ${count(this.devices.length)}` : "";
    return this.devices.length ? `${plural(this.shown.length, "device")}${of}, ${count(online)} online` : "";
  }
}

function coloursOf(node) {
  const style = getComputedStyle(node);
  const names = ["fresh", "lagging", "stale", "new", "offline", "blocked", "rejected", "ground", "ink"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}
