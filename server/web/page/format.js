// Numbers, sizes, times and vitals as people read them.

const MISSING = "–";
const GROUPED = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A whole number, grouped: 12,345. */
export const count = (value) => (known(value) ? GROUPED.format(value) : MISSING);

/** A number to four significant digits, without an exponent where it has a usual size. */
export function number(value) {
  if (!known(value)) return MISSING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e15 || size < 1e-4) return value.toExponential(2);
  if (Number.isInteger(value) || size >= 10_000) return GROUPED.format(value);
  return String(Number(value.toPrecision(4)));
}

/** A temperature: 51.2 °C. */
export const celsius = (value) => (known(value) ? `${value.toFixed(1)} °C` : MISSING);

/** Bytes in powers of 1000: 1.2 MB. */
export function bytes(value) {
  if (!known(value)) return MISSING;
  let scaled = value, unit = 0;
  for (; Math.abs(scaled) >= 999.5 && unit < 5; unit += 1) scaled /= 1000;
  return `${unit ? scaled.toPrecision(3) : Math.round(scaled)} ${["B", "kB", "MB", "GB", "TB", "PB"][unit]}`;
}

const LENGTHS = [
  ["min", 60, "s", 1, 3600], ["h", 3600, "min", 60, 86_400], ["d", 86_400, "h", 3600, Infinity],
];

/** Seconds as a length of time: 340 ms, 12 s, 5 min, 3 h 20 min, 4 d 2 h. */
export function duration(seconds) {
  if (!known(seconds)) return MISSING;
  if (seconds < 0) return `-${duration(-seconds)}`;
  if (seconds > 0 && seconds < 1) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  if (seconds < 60) return `${seconds < 10 ? Number(seconds.toFixed(1)) : Math.round(seconds)} s`;
  const [large, size, small, part] = LENGTHS.find(([, , , , below]) => seconds < below);
  const whole = Math.floor(seconds / size), rest = Math.floor((seconds % size) / part);
  return rest && whole < 10 ? `${whole} ${large} ${rest} ${small}` : `${whole} ${large}`;
}

/** How long ago `time` is (Unix seconds, by the server's clock, as is `now`). */
export function ago(time, now) {
  if (!known(time)) return "never";
  const seconds = now - time;
  return seconds < 1.5 ? "now" : `${duration(Math.round(seconds))} ago`;
}

/** A Unix time as the local date and time. */
export const moment = (time) => (known(time) ? new Date(time * 1000).toLocaleString() : MISSING);

/** A Unix time as the local time of day. */
export const clock = (time) => (known(time) ? new Date(time * 1000).toLocaleTimeString("en-GB") : MISSING);

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

const UNITS = [
  ["_seconds_total", duration], ["_bytes", bytes], ["_seconds", duration], ["_s", duration],
  ["_celsius", celsius], ["_percent", (value) => `${number(value)} %`], ["_hertz", (value) => `${number(value)} Hz`],
  ["_volts", (value) => `${number(value)} V`], ["_watts", (value) => `${number(value)} W`],
];

/** [label, value with its unit] of a vital, whose unit ends its name. */
export function vital(name, value) {
  const [suffix, show] = UNITS.find(([ending]) => name.endsWith(ending)) ?? ["", number];
  const label = name.slice(0, name.length - suffix.length).replaceAll("_", " ");
  return [label || name, show(value)];
}
