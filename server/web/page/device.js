// The page of one device.

import { Blocking } from "./blocking.js";
import { every, get } from "./connection.js";
import { byId, element, fill, table, tile } from "./dom.js";
import { ago, bytes, celsius, clock, count, duration, moment, number, vital } from "./format.js";
import { LineChart } from "./line_chart.js";

const device = decodeURIComponent(location.pathname.split("/")[2] ?? "");
const charts = {
  error: new LineChart("Error before learning", { zero: true, empty: "No vitals yet with an error." }),
  staleness: new LineChart("Staleness of its merges", { zero: true, dots: true, empty: "No update was merged yet." }),
  weight: new LineChart("Weight of its merges", { zero: true, dots: true, empty: "No update was merged yet." }),
  loss: new LineChart("Training loss", { zero: true, empty: "No update was merged yet that tells its loss." }),
  norm: new LineChart("Norm of its updates", { zero: true, dots: true, empty: "No update was merged yet." }),
  temperature: new LineChart("Temperature", { show: celsius, empty: "It tells no temperature." }),
};
const LABELS = { ram_bytes: "memory", cores: "processor cores", clock: "clock" };

let server = { now: Date.now() / 1000, writable: false };

function headline(row) {
  const state = row.blocked ? "blocked" : row.online ? "online" : "offline";
  const better = row.error > 0 && row.baseline > 0 ? `${(row.error / row.baseline).toFixed(2)} × baseline` : "";
  fill(byId("headline"), [
    tile("State", state, `seen ${ago(row.last_seen, server.now)}`, `state-tile ${state}`),
    tile("Version", count(row.version), row.behind == null ? "no update yet" : `${count(row.behind)} behind now`),
    tile("Staleness", number(row.staleness), "of its last merge"),
    tile("Updates", count(row.updates), "merged"),
    tile("Rejected", count(row.rejected), "updates"),
    tile("Received", bytes(row.bytes), "of updates"),
    tile("Error", number(row.error), better),
    tile("Temperature", celsius(row.temperature_celsius)),
  ]);
}

function draw({ history, trends }) {
  const one = (name, from, key) => ({ name, time: from.time, values: from[key] });
  charts.error.set([one("model", trends, "error"), one("baseline", trends, "baseline")]);
  charts.temperature.set([one("temperature", trends, "temperature_celsius")]);
  charts.staleness.set([one("staleness", history, "staleness")]);
  charts.weight.set([one("weight", history, "weight")]);
  charts.norm.set([one("norm", history, "delta_norm")]);
  charts.loss.set([one("before its steps", history, "loss_before"), one("after", history, "loss_after")]);
}

function facts(birth) {
  const rows = Object.entries(birth ?? {}).map(([name, value]) => {
    const many = Array.isArray(value) ? value.join(", ") : value;
    const shown = typeof value === "number" ? vital(name, value)[1] : String(many ?? "");
    return [LABELS[name] ?? name.replaceAll("_", " "), shown || "–"];
  });
  return rows.length ? table("What it is", [["", "text"], ["", "text"]], rows) : nothing("It has not been online yet.");
}

const nothing = (text) => element("p", { class: "empty" }, text);

function details(row) {
  const told = Object.entries(row.vitals ?? {}).sort(([a], [b]) => (a < b ? -1 : 1));
  const vitals = told.map(([name, value]) => vital(name, value));
  byId("vitals-at").textContent = row.vitals_at ? ago(row.vitals_at, server.now) : "";
  fill(byId("vitals"), [
    vitals.length ? table("Vitals", [["Name", "text"], ["Value", "number"]], vitals)
      : nothing("It has sent no vitals yet."),
  ]);
  fill(byId("birth"), [facts(row.birth)]);
  const refused = [...(row.rejections ?? [])].sort((a, b) => b.time - a.time).map(({ time, kind, reason }) => [
    element("time", { title: moment(time) }, clock(time)), kind, reason,
  ]);
  fill(byId("rejections"), [
    refused.length ? table("Rejections", [["Time", "text"], ["Kind", "text"], ["Reason", "text"]], refused)
      : nothing("None of its updates was refused."),
  ]);
}

async function read() {
  server = await get("/api/fleet");
  const up = duration(Math.round(server.now - server.started_at));
  byId("footer").textContent = `fleet ${server.fleet} · pollen-server ${server.software}, up for ${up}`;
  let row = null;
  try {
    row = await get(`/api/devices/${encodeURIComponent(device)}`);
  } catch (error) {
    if (error.status !== 404 && error.status !== 400) throw error;
  }
  byId("known").hidden = row === null;
  byId("unknown").hidden = row !== null;
  byId("unknown").textContent =
    `No device ${device} has been seen yet. A device's name is its certificate's CN, or its MQTT user name.`;
  blocking.show(row?.blocked ?? false, server.writable && row !== null);
  if (row === null) return;
  headline(row);
  draw(row);
  details(row);
}

byId("name").textContent = device;
document.title = `${device} · Pollen`;
fill(byId("charts"), Object.values(charts).map((chart) => chart.figure));
const blocking = new Blocking(device, () => ask());
const ask = every(3, read);
