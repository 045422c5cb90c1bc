// The use of the pool or of a key over an hour or a day: rows of bars over one time axis, each with
// its own scale; and the bars of the table of keys.

import { svg } from "./dom.js";
import { clock, count, plural, shortCount, sum } from "./format.js";

// Of each row: its title, the series that are drawn over one another, and its height.
const ROWS = [
  ["Requests, and 429s among them", ["requests", "refused"], 74],
  ["Failed calls", ["failed_calls"], 26],
  ["Waits for a key", ["waits"], 26],
];
// A key or a project has no calls of its own: a call may try several.
const ROWS_OF_REQUESTS = [ROWS[0], ["Failed requests", ["failures"], 26]];
const TITLE = 20;
const AXIS = 18;
const LEFT = 40; // for the numbers of the scales

export function chart(use, width) {
  const rows = use.series.calls === null ? ROWS_OF_REQUESTS : ROWS;
  const slots = use.series.requests.length;
  const step = (width - LEFT) / slots;
  const parts = [];
  const label = (x, y, text, name) => parts.push(svg("text", { x: x.toFixed(1), y, class: name }, text));
  let top = 0;
  for (const [title, names, height] of rows) {
    const most = Math.max(1, ...names.flatMap((name) => use.series[name]));
    const base = top + TITLE + height;
    label(0, top + 14, title, "chart-title");
    label(LEFT - 6, top + TITLE + 9, shortCount(most), "chart-end");
    label(LEFT - 6, base, "0", "chart-end");
    parts.push(svg("path", { class: "chart-line", d: `M${LEFT} ${base - 0.5}H${width}M${LEFT} ${top + TITLE + 0.5}H${width}` }));
    for (const name of names)
      parts.push(svg("path", { class: `chart-${name}`, d: bars(use.series[name], most, height - 2, LEFT, base, step) }));
    top = base;
  }
  const at = (slot) => clock(new Date(Date.parse(use.from) + slot * use.step_s * 1000).toISOString()).slice(0, 5);
  for (const part of [0, 0.25, 0.5, 0.75]) label(LEFT + part * (width - LEFT), top + 14, at(Math.round(part * slots)), "");
  label(width, top + 14, "now", "chart-end");
  for (let slot = 0; slot < slots; slot += 1) {
    const text = `${at(slot)} UTC${use.step_s > 60 ? `, ${use.step_s / 60} minutes` : ""}: ${counts(use, (values) => values[slot])}`;
    parts.push(svg("rect", { x: (LEFT + slot * step).toFixed(1), width: step.toFixed(1), height: top, class: "chart-slot" }, svg("title", {}, text)));
  }
  const height = top + AXIS;
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary(use) }, ...parts);
}

export function summary(use) {
  if (use.unknown) return use.unknown;
  return `Last ${use.hours === 1 ? "hour" : "24 hours"}: ${counts(use, sum)}`;
}

function counts({ series }, of) {
  const parts = [plural(of(series.requests), "request"), plural(of(series.refused), "429")];
  if (series.calls === null) parts.push(`${count(of(series.failures))} failed`);
  else parts.push(plural(of(series.failed_calls), "failed call"), plural(of(series.waits), "wait"));
  return parts.join(", ");
}

function bars(values, most, height, left, base, step) {
  const width = Math.max(1, step - (step > 4 ? 1 : step / 4)).toFixed(2);
  return values.map((value, index) => {
    const size = Math.max(1.5, (value / most) * height).toFixed(1);
    return value > 0 ? `M${(left + index * step).toFixed(2)} ${base}v-${size}h${width}v${size}z` : "";
  }).join("");
}

// Requests per minute, failures in front of them, oldest first.
export function sparkline({ requests, failures }) {
  const failed = sum(failures);
  const most = Math.max(1, ...requests);
  const text = `Last 60 minutes: ${plural(sum(requests), "request")}${failed ? `, ${count(failed)} failed` : ""}`;
  const draw = (values, name) => svg("path", { class: name, d: bars(values, most, 26, 0, 27.5, 2) });
  return svg("svg", { viewBox: "0 0 120 28", class: "spark", role: "img", preserveAspectRatio: "none", "aria-label": text },
    svg("path", { class: "chart-line", d: "M0 27.5h120" }), draw(requests, "chart-requests"), draw(failures, "chart-failures"));
}

// How full something is; the numbers stand beside it as text.
export function bar(used, limit) {
  const part = limit > 0 ? Math.min(1, used / limit) : 1;
  const kind = part >= 1 ? "full" : part >= 0.8 ? "high" : "";
  return svg("svg", { viewBox: "0 0 100 6", class: "bar", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { width: (100 * part).toFixed(1), height: 6, class: `fill ${kind}` }));
}
