// What state a device is in, for the map, its legend and the pages.

import { count, plural } from "./format.js";

/** A row of /api/map by name. */
export function mapRow([name, online, behind, blocked, rejected]) {
  return { name, online: Boolean(online), behind, blocked: Boolean(blocked), rejected: Boolean(rejected) };
}

/**
 * [fresh, lagging]: how many versions a device may be behind to count as such. A fleet of n devices that take turns
 * keeps each of them n versions behind, so the limits grow with it.
 */
export function limits(devices) {
  const online = devices.filter((device) => device.online).length;
  return [Math.max(10, 2 * online), Math.max(50, 10 * online)];
}

/** "blocked", "offline", "new" (no update yet), "fresh", "lagging" or "stale". */
export function stateOf(device, [fresh, lagging]) {
  if (device.blocked) return "blocked";
  if (!device.online) return "offline";
  if (device.behind === null) return "new";
  return device.behind <= fresh ? "fresh" : device.behind <= lagging ? "lagging" : "stale";
}

/** [state, what it means] in the order of the legend. */
export function meanings([fresh, lagging]) {
  return [
    ["fresh", `up to ${count(fresh)} versions behind`],
    ["lagging", `up to ${count(lagging)}`],
    ["stale", "more"],
    ["new", "no update yet"],
    ["offline", "offline"],
    ["blocked", "blocked"],
    ["rejected", "refused lately"],
  ];
}

/** One line about a device. */
export function described(device) {
  const parts = [device.online ? "online" : "offline"];
  parts.push(device.behind === null ? "no update yet" : `${plural(device.behind, "version")} behind`);
  if (device.blocked) parts.push("blocked");
  if (device.rejected) parts.push("an update was refused lately");
  return parts.join(", ");
}
