// The stream of what happens: merges, rejections and the rest, newest first.

import { get } from "./connection.js";
import { byId, deviceLink, element, fill } from "./dom.js";
import { bytes, clock, count, number } from "./format.js";

const SHOWN = 100;
const KINDS = [
  ["", "everything"], ["merge", "merges"], ["rejection", "rejections"], ["publication", "publications"],
  ["evaluation,federated_evaluation", "evaluations"], ["birth,death,gateway", "who comes and goes"],
];
const NAMES = {
  federated_evaluation: "federated", evaluation: "evaluated", publication: "published", rejection: "refused",
  merge: "merged", block: "blocked", unblock: "unblocked",
};
const TOLD = {
  merge: (event) => [
    `v${count(event.version)}`, `staleness ${number(event.staleness)}`, `weight ${number(event.weight)}`,
    event.size_bytes ? bytes(event.size_bytes) : null,
  ],
  rejection: (event) => [event.kind, event.reason],
  publication: (event) => [`v${count(event.version)}`, bytes(event.size_bytes)],
  evaluation: (event) => [`v${count(event.version)}`, `loss ${number(event.loss)}`],
  birth: (event) => [event.software],
  death: (event) => [event.reason],
  gateway: (event) => [event.gateway, event.online ? "connected" : "gone"],
};

function listed(event, several) {
  const told = (TOLD[event.event] ?? (() => [event.version == null ? null : `v${count(event.version)}`]))(event);
  const about = [several ? event.model : null, ...told].filter((part) => ![null, undefined, ""].includes(part));
  return element(
    "li", { class: `event ${event.event in TOLD ? event.event : "other"}` },
    element("time", { datetime: new Date(event.time * 1000).toISOString() }, clock(event.time)),
    element("span", { class: "kind" }, (NAMES[event.event] ?? event.event).replaceAll("_", " ")),
    event.device ? deviceLink(event.device) : element("span", { class: "quiet" }, "–"),
    element("span", { class: "about" }, about.join(" · ")),
  );
}

export class Events {
  constructor() {
    Object.assign(this, { next: 0, events: [], kinds: [], several: false });
    const choice = byId("events-kind");
    fill(choice, KINDS.map(([value, label]) => element("option", { value }, label)));
    choice.addEventListener("change", () => {
      this.kinds = choice.value ? choice.value.split(",") : [];
      this.#draw();
    });
  }

  /** Another server, or the same one started again, counts from the beginning. */
  restart() {
    [this.next, this.events] = [0, []];
  }

  /** Reads what is new. */
  async refresh() {
    const after = this.next;
    const answer = await get("/api/events", { after, limit: 200 });
    if (answer.next < after) return this.restart();
    this.next = answer.next;
    if (!answer.events.length) return;
    this.events = [...answer.events.reverse(), ...this.events].slice(0, 10 * SHOWN);
    this.#draw();
  }

  #draw() {
    const chosen = this.events.filter((event) => !this.kinds.length || this.kinds.includes(event.event));
    byId("events-empty").hidden = chosen.length > 0;
    fill(byId("events"), chosen.slice(0, SHOWN).map((event) => listed(event, this.several)));
  }
}
