// What is drawn of the server's answers. Buttons say in data-… what they do; app.js listens.

import { bar, sparkline } from "./chart.js";
import { STATES, button, el, link, stateBadge, stateClass, stateIcon, stateName, svg } from "./dom.js";
import { ago, clock, cost, count, countdown, money, plural, seconds, sentence, shortCount, sum } from "./format.js";

const WINDOWS = { rpm: "RPM", tpm: "TPM", rpd: "RPD" };
const LONG = { rpm: "Requests per minute", tpm: "Input tokens per minute", rpd: "Requests per day" };
const ACTIONS = { reset: "Reset", disable: "Disable", enable: "Enable" };
const OUTCOMES = { ok: "good", failed: "bad", exhausted: "bad" };

const cached = (part, whole) => (part ? `${Math.round((100 * part) / whole)} %` : "");
const note = (...content) => el("p", { class: "note" }, ...content);
const figure = (name, value, bad = false) => el("div", {}, el("dt", {}, name), el("dd", { class: bad && "bad" }, value));
const cell = (attributes, ...content) => el("td", { role: "cell", ...attributes }, ...content);
const keyLink = (id) => button(id, { class: "link key-id", title: id, "data-key": id, "aria-label": `Details of ${id}` });

const withoutPrice = (calls) => `${plural(calls, "call")} without a price`;
const budget = (whose, spent, limit, unpriced) => [
  note(`Budget of ${whose}: ${money(spent)} of ${money(limit)}${unpriced ? `; ${withoutPrice(unpriced)} of today not counted` : ""}`), bar(spent, limit)];

// Summary -----------------------------------------------------------------------------------------

// Green only if all calls are served, and every key that is switched on can serve.
export function verdictClass({ available, keys, states, calls }) {
  if (calls.some(({ answer }) => answer === "no" || answer === "failing") || available === 0) return "verdict none";
  return available < keys - states.disabled || calls.some((one) => one.is_trouble || one.answer !== "served") ? "verdict some" : "verdict all";
}

export function lastHour({ last_hour: hour, headline }, calls) {
  const took = calls.filter((call) => call.outcome === "ok").map((call) => call.seconds).sort((a, b) => a - b);
  const at = (part) => seconds(took[Math.min(took.length - 1, Math.floor(part * took.length))]);
  const latency = took.length ? ` p50 ${at(0.5)}, p95 ${at(0.95)} of the last ${plural(took.length, "good call")}.` : "";
  return [
    el("dl", { class: "figures" }, figure("Failed calls", shortCount(hour.failed_calls), hour.failed_calls > 0),
      figure("Calls", shortCount(hour.calls)), figure("Waits", shortCount(hour.waits))),
    note(headline.hour + latency),
  ];
}

export function stateCounts({ states, keys }) {
  let left = 0;
  const present = STATES.filter((state) => states[state] > 0);
  const parts = present.map((state) => {
    const width = (100 * states[state]) / keys;
    left += width;
    return svg("rect", { x: left - width, width: Math.max(0, width - 0.6), height: 10, class: `segment is-${state}` });
  });
  const items = present.map((state) =>
    el("li", {}, el("button", { type: "button", class: `link is-${state}`, "data-state": state }, stateIcon(state), el("strong", {}, count(states[state])), ` ${stateName(state)}`)));
  return [
    svg("svg", { viewBox: "0 0 100 10", class: "state-bar", preserveAspectRatio: "none", "aria-hidden": "true" }, ...parts),
    el("ul", { class: "state-counts" }, ...items),
  ];
}

export function models(found, now) {
  const items = found.map(({ model: name, workload, available, keys, is_trouble: bad, available_at: next, sentence: text, runs_out_at: at }) =>
    el("li", { "data-id": `${name} ${workload ?? ""}` }, el("span", { class: "code name", title: `${name}: ${text}` }, name),
      button("Why?", { class: "small", "data-why": name, "data-workload": workload ?? "", "aria-label": `Why: which key would a call of ${name}${workload ? ` in ${workload}` : ""} get now?` }),
      el("div", { class: "line" }, el("span", { class: bad ? "bad" : "muted" }, `${count(available)} of ${count(keys)}${bad && next ? `, next ${clock(next).slice(0, 5)}` : ""}`),
        at && !bad ? usedUp(at, now, "RPD ") : "", workload ? el("span", { class: "note", title: workload }, workload) : "")));
  return items.length ? items : [el("li", { class: "note" }, "No model was used yet.")];
}

export function today({ today: used, midnight, workloads }, costKnown) {
  return [
    el("dl", { class: "figures" }, figure("Tokens in", shortCount(used.input_tokens)), figure("Tokens out", shortCount(used.output_tokens)),
      figure("Cost", costKnown ? cost(used.cost_usd, used.unpriced_calls) : money(null))),
    note(costKnown ? `since ${clock(midnight).slice(0, 5)} UTC` : "cost: the extra 'cost' is not installed"),
    ...(costKnown && used.unpriced_calls ? [note(`${withoutPrice(used.unpriced_calls)}: ${used.unpriced_models.join(", ")}`)] : []),
    ...(used.estimated_tokens ? [note(`${count(used.estimated_tokens)} of these tokens are estimated, and their cost`)] : []),
    ...Object.entries(workloads).flatMap(([name, { usd, unpriced_calls_today: unpriced }]) =>
      Object.entries(usd).flatMap(([window, { spent, limit }]) => budget(`${name}, ${window === "10m" ? "ten minutes" : `the ${window}`}`, spent, limit, unpriced))),
  ];
}

// Who uses the pool; a row chooses what the chart draws.
export function shares(use, chosen, costKnown) {
  const number = (value, bad) => el("td", { class: `number${bad && value ? " bad" : ""}` }, shortCount(value));
  const row = (name, of) => el("tr", { "data-id": of.name ?? "" }, el("th", { scope: "row" }, name), number(of.calls), number(of.failed_calls, true),
    number(of.refused), number(of.input_tokens), el("td", { class: "number" }, cached(of.cached_tokens, of.input_tokens)), number(of.output_tokens), el("td", { class: "number", title: costKnown && of.unpriced_calls ? withoutPrice(of.unpriced_calls) : null },
      costKnown ? cost(of.nano_usd / 1e9, of.unpriced_calls) : money(null)));
  const rows = use.shares.map((share) => row(button(share.name, {
    class: "link name", title: share.name, "data-by": use.by, "data-name": share.name,
    "aria-pressed": String(chosen.by === use.by && chosen.name === share.name),
  }), share));
  const rest = {};
  for (const [counter, values] of Object.entries(use.series)) rest[counter] = sum(values) - sum(use.shares.map((share) => share[counter]));
  if (rows.length && rest.calls > 0) rows.push(row(el("span", { class: "name", title: `no ${use.by}` }, `no ${use.by}`), rest));
  return rows;
}

// Keys --------------------------------------------------------------------------------------------

// What happens when the countdown is over.
function until(key, now) {
  if (key.available || !key.available_at) return "";
  const what = key.state === "disabled" ? "enabled" : key.ends_by === "time" ? "available" : "tried again";
  return el("strong", { class: "countdown" }, `${what} ${countdown(key.available_at, now)} `);
}

// An available key may still be blocked for some of its models.
function reason(key) {
  if (!key.available) return sentence(key.sentence);
  const blocked = Object.entries(key.used).filter(([, used]) => !used.available);
  const names = blocked.slice(0, 3).map(([model, used]) => (used.reason ? `${model} (${used.reason})` : model));
  if (blocked.length > 3) names.push(`${count(blocked.length - 3)} more`);
  return names.length ? `Not for ${names.join(", ")}` : "";
}

// The window of which most is used, of all models; the details have all of them.
function mostUsed(used) {
  let most = null;
  for (const [model, windows] of Object.entries(used)) {
    for (const name of Object.keys(WINDOWS)) {
      const { used: amount, limit } = windows[name];
      const part = limit > 0 ? amount / limit : limit === 0 ? 1 : name === "rpd" ? 0 : -1;
      if (most === null || part > most.part) most = { model, name, amount, limit, part };
    }
  }
  if (most === null) return [el("span", { class: "note" }, "not used yet")];
  const others = Object.keys(used).length - 1;
  return [
    most.limit === null ? "" : bar(most.amount, most.limit),
    el("span", { class: "most" }, `${WINDOWS[most.name]} ${shortCount(most.amount)}${most.limit === null ? "" : ` / ${shortCount(most.limit)}`}`),
    el("span", { class: "note code", title: Object.keys(used).join(", ") }, `${most.model || "any model"}${others > 0 ? ` +${others}` : ""}`),
  ];
}

// Empty where prices are not known at all.
const spentToday = ({ usd_today: usd, unpriced_calls_today: unpriced }) => (unpriced || usd !== null ? cost(usd, unpriced) : "");

export function keyRow(key, now) {
  const why = reason(key);
  const { input, output, cached: again } = key.tokens_today;
  const line = (...content) => cell({}, el("div", { class: "line" }, ...content));
  const labels = [key.platform === "gemini_api" ? "" : key.platform, key.tier, key.model, key.priority ? `priority ${key.priority}` : ""].filter(Boolean).join(" · ");
  return el("tr", { role: "row", class: `key key-${stateClass(key.state)}`, "data-id": key.key_id },
    el("th", { scope: "row", role: "rowheader" }, el("div", { class: "line" }, keyLink(key.key_id), el("span", { class: "note", title: labels }, labels))),
    cell({}, key.project === null ? "" : el("div", { class: "line" }, button(key.project, { class: "link project", title: key.project, "data-by": "project", "data-name": key.project, "aria-label": `Use of project ${key.project}` }))),
    cell({}, stateBadge(key.state)),
    cell({}, el("div", { class: "reason", title: why }, until(key, now), why)),
    line(...mostUsed(key.used)),
    line(sum(key.history.requests) ? sparkline(key.history) : "", el("span", { class: "note" }, shortCount(sum(key.history.requests)))),
    line(`${shortCount(key.success_count)} ok`, key.error_count ? el("span", { class: "bad" }, `${shortCount(key.error_count)} failed`) : ""),
    line(input + output ? spentToday(key) : "", el("span", { class: "note", title: `${count(input)} tokens in, ${count(output)} out, ${count(again)} of the input cached` }, input + output ? `${shortCount(input + output)} tok` : "–")));
}

export function keyDetails(key, calls, now, actions) {
  const { input, output, cached: again } = key.tokens_today;
  const facts = [
    ["Project", key.project ?? "none: its own"], ["Tier", key.tier], ["Model", key.model], ["Priority", count(key.priority)],
    ["Use", key.use < 1 ? `${count(100 * key.use)} % of each limit` : ""],
    ["Expires", key.expires && `${key.expires.slice(0, 10)} ${clock(key.expires)} UTC`],
    ["Used", key.last_used ? ago(key.last_used, now) : "never"], ["Requests", `${count(key.success_count)} ok, ${count(key.error_count)} failed`],
    ["Today", `${count(input)} tokens in${again ? ` (${cached(again, input)} cached)` : ""}, ${count(output)} out${spentToday(key) && `, ${spentToday(key)}`}`],
    ["Last error", key.last_error],
  ];
  const found = [
    el("p", { class: "line" }, stateBadge(key.state), until(key, now)),
    el("p", { class: "sentence" }, reason(key) || "Available now."),
    el("dl", { class: "facts" }, ...facts.filter(([, value]) => value).map(([name, value]) => figure(name, value))),
  ];
  for (const [window, { spent, limit }] of Object.entries(key.usd)) {
    const of = window === "10m" ? "ten minutes, of its billing account" : `the ${window}${key.project === null ? "" : `, of project ${key.project}`}`;
    found.push(...budget(of, spent, limit, key.unpriced_calls_today));
  }
  found.push(...Object.entries(key.used).map(([model, used]) => modelUsage(model, used, now)));
  if (!Object.keys(key.used).length) found.push(note("Not used yet."));
  found.push(el("p", { class: "buttons", "data-id": "buttons" }, ...Object.entries(ACTIONS).filter(([action]) => actions && key.allowed_actions.includes(action)).map(([action, name]) =>
    button(name, { "data-id": action, "data-action": action, "data-of": key.key_id, "aria-label": `${name} ${key.key_id}` }))));
  return [found, calls.length ? calls.slice(0, 20).map((call) => callRow(call)) : [el("tr", {}, cell({ class: "note" }, `No recent call tried ${key.key_id}.`))]];
}

function usedUp(at, now, what = "") {
  const left = Date.parse(at) - now, soon = left < 3600e3;
  return el("span", { class: `forecast ${soon ? "bad" : "note"}`, title: "at the rate of the last hour" }, `${what}used up${left > 0 ? ` ${clock(at).slice(0, 5)}` : ""}`);
}

function modelUsage(model, used, now) {
  const at = used.available_at;
  const blocked = used.available ? "" : at ? `available ${countdown(at, now)}` : "not available";
  const { held_back: held, refused, fullest_minute: fullest } = used;
  const today = [
    held ? `${plural(held, "call")} held back` : "", refused ? `${count(refused)} refused with 429` : "",
    fullest ? `fullest minute ${shortCount(fullest.used)}${fullest.of === null ? "" : ` of ${shortCount(fullest.of)}`} ${WINDOWS[fullest.limit]}` : "",
  ].filter(Boolean).join(", ");
  const windows = Object.keys(WINDOWS).map((name) => {
    const { used: amount, limit, source } = used[name];
    const text = limit === null ? shortCount(amount) : `${shortCount(amount)} / ${shortCount(limit)}`;
    return el("div", { class: "window" }, el("abbr", { title: LONG[name] }, WINDOWS[name]), ` ${text} `,
      el("span", { class: "note" }, source ?? "no limit known"), limit === null ? "" : bar(amount, limit),
      name === "rpd" && used.runs_out_at ? usedUp(used.runs_out_at, now) : "");
  });
  return el("div", { class: "model", "data-id": model }, el("p", { class: "line" }, el("span", { class: "code" }, model || "any model"), el("span", { class: "countdown" }, blocked)),
    used.counts_with ? note(`Counts with ${used.counts_with}, which answers it.`) : "",
    el("div", { class: "windows" }, ...windows), today ? note(`Today: ${today}.`) : "");
}

// Calls -------------------------------------------------------------------------------------------

export function callRow(call) {
  return el("tr", { role: "row", "data-id": call.id },
    cell({}, button(clock(call.at), { class: "link", "data-call": call.id, "aria-label": `Call at ${clock(call.at)}` })),
    cell({ class: "code name", title: call.model }, call.model),
    cell({}, attempts(call)),
    cell({}, outcome(call)),
    cell({ class: "muted name", title: call.workload ?? "" }, call.workload ?? ""),
    cell({ class: "number" }, call.waited ? el("span", { class: "note" }, "waited, ") : "", seconds(call.seconds)));
}

const outcome = (call) => el("span", { class: OUTCOMES[call.outcome] ?? "muted" }, String(call.outcome));

function attempts(call) {
  if (!call.attempts.length) return el("span", { class: "muted" }, "no key was available");
  return el("ol", { class: "attempts" }, ...call.attempts.map(({ key_id: id, code, failure }) =>
    el("li", {}, el("span", { class: "key-id" }, id), " ",
      el("span", { class: failure ? "bad" : "good" }, failure ? `${code ?? ""} ${failure}`.trim() : call.outcome === "ok" ? "ok" : ""))));
}

export function callDetails(call, costKnown) {
  const facts = [
    ["Time", `${call.at.slice(0, 10)} ${clock(call.at)} UTC`], ["Model", call.model], ["Workload", call.workload],
    ["Took", `${seconds(call.seconds)}${call.waited ? ", with a wait for a key" : ""}`],
    ["Tokens", call.input_tokens === null ? null : `${count(call.input_tokens)} in, ${count(call.output_tokens)} out${call.estimated ? ", estimated" : ""}`],
    ["Cost", call.cost_usd !== null ? money(call.cost_usd) : costKnown && call.input_tokens + call.output_tokens ? "no price" : null],
    ["Trace", call.trace_id && link(call.trace_url, call.trace_id, "Trace")],
  ];
  return [
    el("p", {}, "Result: ", outcome(call)),
    el("dl", { class: "facts" }, ...facts.filter(([, value]) => value).map(([name, value]) => figure(name, value))),
    el("ol", { class: "why-keys" }, ...call.attempts.map((one) =>
      el("li", {}, el("p", {}, keyLink(one.key_id), " ", el("span", { class: one.failure ? "bad" : "good" }, one.failure ? `${one.code ?? ""} ${one.failure}` : call.outcome === "ok" ? "ok" : ""),
        el("span", { class: "note" }, ` after ${seconds(one.seconds)}`)), one.message ? el("p", { class: "sentence" }, one.message) : ""))),
    call.attempts.length ? "" : note("No key was available, so nothing was sent."),
  ];
}

// Which key would a call get? ---------------------------------------------------------------------

export function whyKeys(found) {
  const rows = found.keys.slice(0, 200).map((key) =>
    el("li", { class: key.may_get_it ? "chosen" : "", "data-id": key.key_id },
      el("p", {}, el("span", { class: "key-id" }, key.key_id), " ", el("span", { class: "note" }, key.project === null ? "" : `project ${key.project}`)),
      el("p", { class: "sentence" }, sentence(key.sentence ?? key.reason))));
  if (found.keys.length > 200) rows.push(el("li", { class: "note" }, `and ${count(found.keys.length - 200)} more keys`));
  return rows;
}
