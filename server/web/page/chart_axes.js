// Where the ticks of a chart stand.

import { duration, number } from "./format.js";

const TIME_STEPS_S = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800,
  1_209_600, 2_592_000, 7_776_000, 31_536_000,
];

/** [low, high, ticks] with round steps that hold `low` to `high`; about `most` of them. */
export function valueAxis(low, high, most) {
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) * 0.1, high + Math.abs(high) * 0.1];
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  const ticks = Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  return [first * step, last * step, ticks.map((value) => [value, number(value)])];
}

/** [[time, label]] between two Unix times, at most `most`, at round local times. */
export function timeTicks(start, end, most) {
  const step = TIME_STEPS_S.find((size) => (end - start) / size <= most) ?? TIME_STEPS_S.at(-1);
  const zone = new Date(start * 1000).getTimezoneOffset() * 60;
  const ticks = [];
  const first = Math.ceil((start - zone) / step) * step + zone;
  for (let at = first; at <= end; at += step) ticks.push([at, timeLabel(at, step)]);
  return ticks;
}

function timeLabel(time, step) {
  const date = new Date(time * 1000);
  if (step >= 86_400) return date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  const parts = { hour: "2-digit", minute: "2-digit", ...(step < 60 ? { second: "2-digit" } : {}) };
  return date.toLocaleTimeString("en-GB", parts);
}

/** What an axis spans, for the chart's description. */
export const spanned = (start, end) => duration(Math.round(end - start));
