// The table of recent calls: for each, the keys that were tried, in order.

import { arrange, byId, el, link, setHidden, setText } from "./dom.js";
import { clock, seconds } from "./format.js";

const OUTCOMES = new Map([["ok", "good"], ["failed", "bad"], ["exhausted", "bad"]]);

let shown = "";

export function showCalls(calls, keyId) {
  const content = JSON.stringify([calls, keyId]);
  if (content === shown) return;
  shown = content;
  arrange(byId("calls"), calls.map(callRow));
  setHidden(byId("no-calls"), calls.length > 0);
  setText(byId("no-calls"), keyId ? `No recent call tried ${keyId}.` : "No call yet.");
}

function callRow(call) {
  const cell = (attributes, ...content) => el("td", { role: "cell", ...attributes }, ...content);
  return el("tr", { role: "row" },
    cell({ class: "time" }, el("time", { datetime: call.at, title: call.at }, clock(call.at))),
    cell({ class: "code" }, String(call.model)),
    cell({}, attemptList(call)),
    cell({}, el("span", { class: OUTCOMES.get(call.outcome) ?? "muted" }, String(call.outcome))),
    cell({ class: "muted" }, call.workload ?? ""),
    cell({ class: "code trace" }, trace(call)),
    cell({ class: "number" }, call.waited ? el("span", { class: "note" }, "waited, ") : "", seconds(call.seconds)));
}

function trace({ trace_id: id, trace_url: url }) {
  if (!id) return "";
  const text = String(id).slice(0, 8);
  return (url && link(url, text, `Trace ${id}`)) || el("span", { class: "muted", title: String(id) }, text);
}

function attemptList(call) {
  const attempts = call.attempts ?? [];
  if (!attempts.length) return el("span", { class: "muted" }, "no key was available");
  return el("ol", { class: "attempts" }, ...attempts.map((attempt) => {
    const { code, failure } = attempt;
    const result = failure ? `${code ?? ""} ${failure}`.trim() : call.outcome === "ok" ? "ok" : "";
    return el("li", { title: seconds(attempt.seconds) },
      el("span", { class: "key-id" }, String(attempt.key_id)), " ",
      el("span", { class: failure ? "bad" : "good" }, result));
  }));
}
