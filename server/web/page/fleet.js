// The page of the fleet.

import { bars } from "./bars.js";
import { every, get } from "./connection.js";
import { DeviceTable } from "./device_table.js";
import { mapRow } from "./device_states.js";
import { byId, element, fill, table, tile } from "./dom.js";
import { Events } from "./events.js";
import { FleetMap } from "./fleet_map.js";
import { ago, bytes, count, duration, moment, number, plural } from "./format.js";
import { Models } from "./models.js";

const map = new FleetMap(), devices = new DeviceTable(), events = new Events(), models = new Models();
let fleet = null;

function headline({ devices: known, models: all, updates, bytes: moved, gateways }) {
  const rate = all.reduce((sum, model) => sum + (model.merges_per_s ?? 0), 0);
  const [version, below] = all.length === 1
    ? [count(all[0].version), `published ${count(all[0].published_version)}`]
    : [count(all.length), "models"];
  const share = updates.merged + updates.rejected ? (100 * updates.rejected) / (updates.merged + updates.rejected) : 0;
  const blocked = known.blocked ? `${count(known.blocked)} blocked` : plural(gateways.length, "gateway");
  fill(byId("headline"), [
    tile("Devices online", count(known.online), `of ${count(known.known)} known, ${blocked}`),
    tile(all.length === 1 ? "Version" : "Models", version, below),
    tile("Updates per second", number(Number(rate.toPrecision(3))), "in the last minute"),
    tile("Merged", count(updates.merged), "updates"),
    tile("Rejected", count(updates.rejected), `${number(Number(share.toPrecision(2)))} % of all updates`),
    tile("Received", bytes(moved.received), `sent ${bytes(moved.sent)}`),
  ]);
}

function gateways(rows, now) {
  if (!rows.length) {
    const text = "No gateway is connected: start pollen-gateway with this server's address.";
    return element("p", { class: "empty" }, text);
  }
  const columns = [["Name", "text"], ["Connected", "number"], ["Software", "text"], ["Address", "text"]];
  const address = (row) => row.peer?.replace(/^ipv[46]:/, "") || "–";
  const cells = rows.map((row) => [row.name, ago(row.since, now), row.software || "–", address(row)]);
  return table("Gateways", columns, cells);
}

async function readFleet() {
  const read = await get("/api/fleet");
  if (fleet && fleet.started_at !== read.started_at) events.restart();
  const first = fleet === null;
  fleet = read;
  document.title = `${read.devices.online}/${read.devices.known} online · ${read.fleet} · Pollen`;
  byId("fleet").textContent = read.fleet;
  headline(read);
  models.show(read.models);
  events.several = read.models.length > 1;
  fill(byId("rejections"), [bars("Rejections by reason", read.rejections, "No update was refused.")]);
  fill(byId("gateways"), [gateways(read.gateways, read.now)]);
  const up = duration(Math.round(read.now - read.started_at));
  byId("footer").textContent = `pollen-server ${read.software}, up for ${up}`;
  byId("footer").title = `since ${moment(read.started_at)}`;
  if (first) askModels();
}

every(2, readFleet);
every(4, async () => map.show((await get("/api/map")).devices.map(mapRow)));
every(1.5, () => events.refresh());
const askModels = every(10, () => models.refresh());
const askDevices = (devices.ask = every(4, () => devices.refresh(fleet?.now ?? Date.now() / 1000)));

byId("table-details").addEventListener("toggle", askDevices);
byId("filter").addEventListener("input", (event) => {
  const text = event.target.value.trim();
  map.filter(text);
  devices.filter(text);
  askDevices();
});
