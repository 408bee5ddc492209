// Blocking and unblocking a device. The token stays in this page's memory, no longer than the page does.

import { post } from "./connection.js";
import { byId } from "./dom.js";

let token = "";

const WHAT = {
  block: "It gets no more tasks, and its updates are refused until it is unblocked. Its connection stays.",
  unblock: "It gets tasks again, and its updates are merged.",
};
const WRONG = { 401: "That token is wrong.", 403: "The server has no token, so it is read-only." };

export class Blocking {
  /** `done` is called when the server has done it. */
  constructor(device, done) {
    Object.assign(this, { device, done, action: "block", busy: false });
    byId("block").addEventListener("click", () => this.#ask());
    byId("ask-cancel").addEventListener("click", () => byId("ask").close());
    byId("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#do();
    });
  }

  /** Offers what can be done now. */
  show(blocked, writable) {
    this.action = blocked ? "unblock" : "block";
    byId("block").hidden = !writable;
    byId("block").textContent = blocked ? "Unblock" : "Block";
  }

  #ask() {
    const verb = this.action === "block" ? "Block" : "Unblock";
    byId("ask-title").textContent = `${verb} ${this.device}?`;
    byId("ask-what").textContent = WHAT[this.action];
    byId("ask-do").textContent = verb;
    byId("ask-do").dataset.action = this.action;
    byId("ask-problem").hidden = true;
    byId("token").value = token;
    byId("ask").showModal();
  }

  async #do() {
    if (this.busy) return;
    this.busy = true;
    try {
      const shown = byId("token").value, action = byId("ask-do").dataset.action;
      await post(`/api/devices/${encodeURIComponent(this.device)}/${action}`, shown);
      token = shown;
      byId("token").value = "";
      byId("ask").close();
      this.done();
    } catch (error) {
      byId("ask-problem").textContent = WRONG[error.status] ?? `Nothing was changed: ${error.message}`;
      byId("ask-problem").hidden = false;
    } finally {
      this.busy = false;
    }
  }
}
