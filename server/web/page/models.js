// The models: their state, and how well they do over time.

import { get } from "./connection.js";
import { byId, element, fill } from "./dom.js";
import { count, number } from "./format.js";
import { LineChart } from "./line_chart.js";

const MOST_CURVES = 4;

class Model {
  constructor(name) {
    this.name = name;
    this.facts = element("p", { class: "quiet facts" });
    this.loss = new LineChart("Loss", {
      empty: "No score yet: set [evaluation] on the server, or wait for the first update that tells its loss.",
    });
    this.metrics = new LineChart("Metrics", { empty: "No metric yet: a central or federated evaluation brings them." });
    this.section = element(
      "section", { class: "model", "aria-label": `Model ${name}` },
      element("h2", {}, "Model ", element("span", { class: "name" }, name)), this.facts,
      element("div", { class: "charts" }, this.loss.figure, this.metrics.figure),
    );
  }

  describe(model) {
    const unpublished = model.version - (model.published_version ?? 0);
    this.facts.textContent = [
      `rule ${model.rule}`, `version ${count(model.version)}`,
      unpublished > 0 ? `${count(unpublished)} not yet published` : "published",
      `${count(model.merges)} merges`, `${number(model.merges_per_s)} /s`, `${count(model.parameters)} parameters`,
      model.error == null ? "" : `devices' error ${number(model.error)} against ${number(model.baseline)}`,
    ].filter((part) => part).join(" · ");
  }

  async refresh() {
    const scores = await get(`/api/models/${encodeURIComponent(this.name)}/evaluations`);
    const curve = (name, rows) => ({ name, time: rows.map((row) => row.time), values: rows.map((row) => row.loss) });
    this.loss.set([
      curve("central", scores.central), curve("federated", scores.federated), curve("mean of updates", scores.updates),
    ]);
    const named = (rows, where) => {
      const names = new Set(rows.flatMap((row) => Object.keys(row.metrics ?? {})));
      const time = rows.map((row) => row.time);
      return [...names].sort().map((name) => {
        return { name: `${name} (${where})`, time, values: rows.map((row) => row.metrics?.[name] ?? null) };
      });
    };
    const curves = [...named(scores.central, "central"), ...named(scores.federated, "federated")];
    const numeric = curves.filter((one) => one.values.some((value) => typeof value === "number"));
    this.metrics.set(numeric.slice(0, MOST_CURVES));
  }
}

export class Models {
  constructor() {
    this.models = new Map();
  }

  /** `models` as /api/fleet tells them. */
  show(models) {
    const names = models.map((model) => model.name);
    if (names.join("\n") !== [...this.models.keys()].join("\n")) {
      this.models = new Map(names.map((name) => [name, this.models.get(name) ?? new Model(name)]));
      fill(byId("models"), [...this.models.values()].map((model) => model.section));
    }
    for (const model of models) this.models.get(model.name).describe(model);
  }

  /** Reads the curves. */
  async refresh() {
    for (const model of this.models.values()) await model.refresh();
  }
}
