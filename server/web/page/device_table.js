// The devices as a table, a page at a time, for who can't use the map or wants figures.

import { get } from "./connection.js";
import { byId, deviceLink, element, fill, table } from "./dom.js";
import { ago, bytes, celsius, count, number } from "./format.js";

const ROWS = 50;
const COLUMNS = [
  ["Device", "text"], ["State", "text"], ["Last seen", "number"], ["Version", "number"], ["Staleness", "number"],
  ["Updates", "number"], ["Rejected", "number"], ["Bytes", "number"], ["Error", "number"], ["Baseline", "number"],
  ["Temperature", "number"], ["Software", "text"],
];

const state = (row) => (row.blocked ? "blocked" : row.online ? "online" : "offline");

function cells(row, now) {
  return [
    deviceLink(row.name), element("span", { class: `state ${state(row)}` }, state(row)), ago(row.last_seen, now),
    count(row.version), number(row.staleness), count(row.updates), count(row.rejected), bytes(row.bytes),
    number(row.error), number(row.baseline), celsius(row.temperature_celsius), row.software ?? "–",
  ];
}

export class DeviceTable {
  constructor() {
    Object.assign(this, { text: "", starts: [""], ask: () => null });
  }

  /** Asks for another part of the fleet: the devices with `text` in their names, from the first. */
  filter(text) {
    [this.text, this.starts] = [text, [""]];
  }

  /** Reads the page that is open, if the table is. */
  async refresh(now) {
    if (!byId("table-details").open) return;
    const { text, starts } = this, after = starts.at(-1);
    const page = await get("/api/devices", { after, limit: ROWS, q: text });
    if (text !== this.text || after !== this.starts.at(-1)) return;
    const turn = (label, change, possible) => {
      const button = element("button", { type: "button", "aria-disabled": possible ? null : "true" }, label);
      button.addEventListener("click", () => possible && (change(), this.ask()));
      return button;
    };
    const active = document.activeElement;
    const focused = active?.parentElement?.className === "pages" ? active.textContent : "";
    const pages = element(
      "div", { class: "pages" },
      turn("Back", () => this.starts.pop(), starts.length > 1),
      turn("Next", () => this.starts.push(page.next), page.next !== null),
    );
    const rows = page.devices.map((row) => cells(row, now));
    fill(byId("devices"), [
      rows.length ? table("Devices", COLUMNS, rows) : element("p", { class: "empty" }, "No device."),
      starts.length > 1 || page.next !== null ? pages : null,
    ]);
    if (focused) [...pages.children].find((button) => button.textContent === focused)?.focus();
  }
}
