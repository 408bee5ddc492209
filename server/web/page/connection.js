// Asking the server: JSON with a deadline, again and again, slower while it does not answer, never while nobody looks.

import { byId } from "./dom.js";

const DEADLINE_MS = 10_000;
const SLOWEST_S = 15;

/** The server answered, but not with what was asked for. */
export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

/** No whole answer came. */
class Unreachable extends Error {}

/** The JSON at `path`. Throws Refused, or Unreachable when no answer came. */
export async function get(path, parameters = {}) {
  const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== null && value !== ""));
  return request(query.size ? `${path}?${query}` : path, {});
}

/** Does what `path` stands for, showing `token`. Throws as `get` does. */
export async function post(path, token) {
  return request(path, { method: "POST", headers: { Authorization: `Bearer ${token}` } });
}

async function request(path, options) {
  const fixed = { cache: "no-store", credentials: "same-origin", redirect: "error" };
  let response, told;
  try {
    response = await fetch(path, { ...options, ...fixed, signal: AbortSignal.timeout(DEADLINE_MS) });
    told = JSON.parse(await response.text() || "null");
  } catch (error) {
    if (!response || response.ok) throw new Unreachable(error.message);
  }
  if (response.ok) return told;
  throw new Refused(response.status, typeof told?.error === "string" ? told.error : `HTTP status ${response.status}`);
}

const failing = new Set(); // who asks and got no answer the last time
let retryAt = 0;

function heard(who) {
  if (failing.delete(who)) for (const wake of [...waiting]) wake();
  if (failing.size) return;
  byId("live").textContent = "live";
  byId("live").className = "chip live";
  byId("banner").hidden = true;
}

function lost() {
  byId("live").textContent = "no connection";
  byId("live").className = "chip lost";
  byId("banner").hidden = false;
  const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  const next = seconds ? `Retrying in ${seconds} s.` : "Retrying …";
  const text = `Connection to the server lost; what you see is old. ${next}`;
  if (byId("banner").textContent !== text) byId("banner").textContent = text;
}

const waiting = new Set();
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) for (const wake of [...waiting]) wake();
});

function sleep(seconds) {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      waiting.delete(wake);
      resolve();
    };
    const timer = setTimeout(() => (document.hidden ? null : wake()), seconds * 1000);
    waiting.add(wake);
  });
}

/** Runs `ask` now and every `seconds`; returns a function that asks at once. */
export function every(seconds, ask) {
  let again = () => null;
  let failures = 0;
  const turn = async () => {
    try {
      await ask();
      failures = 0;
      heard(ask);
    } catch (error) {
      if (error instanceof Unreachable || error.status >= 500) {
        failures += 1;
        const pause = Math.min(SLOWEST_S, failures);
        retryAt = Date.now() + pause * 1000;
        failing.add(ask);
        lost();
        return pause;
      }
      if (!(error instanceof Refused)) console.error(error);
    }
    return seconds;
  };
  const forever = async () => {
    for (;;) {
      const pause = await turn();
      await Promise.race([sleep(pause), new Promise((resolve) => (again = resolve))]);
    }
  };
  forever();
  return () => again();
}

setInterval(() => failing.size && !document.hidden && lost(), 500);
