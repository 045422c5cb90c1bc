// The use of the pool over an hour or a day: three rows of bars over one time axis, each with its
// own scale, and beside them who uses it.

import { arrange, byId, el, setHidden, setText, svg } from "./dom.js";
import { clock, count, plural, shortCount } from "./format.js";

// Of each row: its title, the series that are drawn over one another, and its height.
const ROWS = [
  { title: "Requests, and 429s among them", series: [["requests", "requests"], ["refused", "refused"]], height: 84 },
  { title: "Failed calls", series: [["failed_calls", "failed"]], height: 34 },
  { title: "Waits for a key", series: [["waits", "waits"]], height: 34 },
];
// A key or a project has no calls of its own: a call may try several.
const ROWS_OF_REQUESTS = [ROWS[0], { title: "Failed requests", series: [["failures", "failed"]], height: 34 }];
const TITLE = 22;
const AXIS = 18;
const LEFT = 40; // for the numbers of the scales

let shown = null;

export function showUse(use, shares, onName) {
  shown = use;
  draw();
  showShares(shares, onName);
}

let drawnWidth = 0;

new ResizeObserver(() => {
  if (byId("chart").clientWidth !== drawnWidth) requestAnimationFrame(draw);
}).observe(byId("chart"));

function draw() {
  if (!shown) return;
  const width = byId("chart").clientWidth;
  if (width < LEFT + 20) return;
  drawnWidth = width;
  const rows = shown.series.calls === null ? ROWS_OF_REQUESTS : ROWS;
  const height = rows.reduce((total, row) => total + TITLE + row.height, AXIS);
  const slots = shown.series.requests.length;
  const step = (width - LEFT) / slots;
  const parts = [];
  let top = 0;
  for (const row of rows) {
    const values = row.series.map(([name]) => shown.series[name] ?? []);
    const most = Math.max(1, ...values.flat());
    const base = top + TITLE + row.height;
    parts.push(
      label(0, top + 15, row.title, "chart-title"),
      svg("path", { class: "chart-line", d: `M${LEFT} ${base - 0.5}H${width}M${LEFT} ${top + TITLE + 0.5}H${width}` }),
      label(LEFT - 6, top + TITLE + 9, shortCount(most), "chart-scale"), label(LEFT - 6, base, "0", "chart-scale"));
    row.series.forEach(([, name], index) =>
      parts.push(svg("path", { class: `chart-${name}`, d: bars(values[index], most, row.height, base, step) })));
    top = base;
  }
  for (const part of [0, 0.25, 0.5, 0.75]) {
    const at = new Date(Date.parse(shown.from) + part * slots * shown.step_s * 1000);
    parts.push(label(LEFT + part * (width - LEFT), top + 14, clock(at.toISOString()).slice(0, 5), "chart-time"));
  }
  parts.push(label(width, top + 14, "now", "chart-now"));
  const text = summary(shown);
  const image = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text }, ...parts);
  image.addEventListener("pointermove", (event) => {
    const slot = Math.floor((event.clientX - image.getBoundingClientRect().left - LEFT) / step);
    setText(byId("chart-text"), slot >= 0 && slot < slots ? slotText(slot) : text);
  });
  image.addEventListener("pointerleave", () => setText(byId("chart-text"), text));
  byId("chart").replaceChildren(image);
  setText(byId("chart-text"), text);
}

function bars(values, most, height, base, step) {
  const width = Math.max(1, step - (step > 4 ? 1 : 0)).toFixed(2);
  return values.map((value, index) => {
    const size = value > 0 ? Math.max(1.5, (value / most) * (height - 2)) : 0;
    return size ? `M${(LEFT + index * step).toFixed(2)} ${base}v-${size.toFixed(1)}h${width}v${size.toFixed(1)}z` : "";
  }).join("");
}

function label(x, y, text, name) {
  return svg("text", { x: x.toFixed(1), y, class: name }, text);
}

const sum = (numbers) => (numbers ?? []).reduce((total, number) => total + number, 0);

function counts({ requests, refused, failures, failed_calls: failed, waits }) {
  const parts = [plural(requests, "request"), `${plural(refused, "429")}`];
  if (failed === null) parts.push(`${count(failures)} failed`);
  else parts.push(plural(failed, "failed call"), plural(waits, "wait"));
  return parts.join(", ");
}

function summary(use) {
  if (!use.is_kept) return "In a pool of more than 500 keys, a key and a project are counted for one hour only.";
  const sums = Object.fromEntries(Object.entries(use.series).map(([name, values]) => [name, values && sum(values)]));
  const of = use.name ? `${use.by} ${use.name}, ` : "";
  return `${of}last ${use.hours === 1 ? "hour" : "24 hours"}: ${counts(sums)}`.replace(/^./, (first) => first.toUpperCase());
}

function slotText(slot) {
  const at = Date.parse(shown.from) + slot * shown.step_s * 1000;
  const values = Object.fromEntries(Object.entries(shown.series).map(([name, all]) => [name, all && all[slot]]));
  const span = shown.step_s > 60 ? `${shown.step_s / 60} minutes from ` : "";
  return `${span}${clock(new Date(at).toISOString()).slice(0, 5)} UTC: ${counts(values)}`;
}

function showShares(use, onName) {
  const title = use.by === "model" ? "model" : "workload";
  setText(byId("shares-title"), `Calls by ${title}, last ${use.hours === 1 ? "hour" : "24 hours"}`);
  setText(byId("shares-name"), title === "model" ? "Model" : "Workload");
  const rows = use.shares.map((share) => {
    const button = el("button", { type: "button", class: "link", title: share.name }, share.name);
    button.addEventListener("click", () => onName(title, share.name));
    return shareRow(button, share);
  });
  const rest = sum(use.series.calls) - sum(use.shares.map((share) => share.calls));
  if (rest > 0 && rows.length && title === "workload" && !use.name) rows.push(shareRow("no workload", { calls: rest }));
  const content = JSON.stringify([use.by, use.shares, rest]);
  if (byId("shares").dataset.content !== content) {
    byId("shares").dataset.content = content;
    arrange(byId("shares"), rows);
  }
  setHidden(byId("no-shares"), rows.length > 0);
  setText(byId("no-shares"), title === "model" ? "No call named a model." : "No call was made in a workload. A program names one with keyrot_middleware.workload(…).");
}

function shareRow(name, share) {
  const cell = (value, bad = false) => el("td", { class: bad && value ? "number bad" : "number" }, count(value ?? null));
  return el("tr", {}, el("th", { scope: "row" }, name), cell(share.calls), cell(share.failed_calls, true), cell(share.refused), cell(share.waits));
}
