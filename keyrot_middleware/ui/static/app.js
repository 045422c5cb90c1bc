// The page asks the server every two seconds, while it is visible, and draws what it answers.

import { chart, summary } from "./chart.js";
import { byId, el, show, stateName } from "./dom.js";
import { clock, count, plural, sentence } from "./format.js";
import * as parts from "./parts.js";

const EVERY_MS = 2000;
const USE_EVERY_MS = 10000;
const PAGE = 50;
const QUESTIONS = {
  reset: "Cooldowns, rejections and learned limits are forgotten, also those of the project and the billing account. Usage stays counted.",
  disable: "No new call uses it until it is enabled again. Calls that are under way finish.",
  enable: "Calls use it again.",
};

// What is shown; it is in the address too, so that a link and the history have it.
const NOTHING = { offset: 0, query: "", state: "", sort: "", by: "", name: "", shares: "workload", hours: 1, key: "", call: "" };
const CHOICES = { by: ["", "workload", "model", "project"], shares: ["workload", "model"], hours: [1, 24] };
const chosen = { ...NOTHING };
const known = { status: null, attempts: null, use: null, shares: null, found: null, tried: null, keyUse: null, why: null };
let useAt = 0; // when the use of the pool was asked for last, by this machine's clock
let timer = 0;
let round = 0; // of the newest request: what an older one brings is no longer wanted
let clockOffset = 0; // time of the server less that of this machine, in ms

class ApiError extends Error {}

// Addresses are relative, so that the page works at any path.
async function send(method, path, parameters = {}, patience = 8000) {
  const query = new URLSearchParams(parameters).toString();
  const response = await fetch(`api/${path}${query && `?${query}`}`, {
    method,
    cache: "no-store",
    redirect: "error",
    signal: AbortSignal.timeout(patience),
  });
  if (response.status === 401) location.reload(); // the server's page says what to do
  const content = await response.json().catch(() => null);
  if (response.ok && content !== null) return content;
  throw Object.assign(new ApiError(content?.error ?? "The server's answer is not JSON."), { status: response.status });
}

async function load() {
  const { offset, query, state, sort, by, name, shares, hours, key } = chosen;
  const wanted = { status: send("GET", "status", { offset, limit: PAGE, query, state, sort }), attempts: send("GET", "attempts") };
  if (Date.now() - useAt >= USE_EVERY_MS) {
    wanted.use = send("GET", "history", { by, name, hours });
    wanted.shares = send("GET", "history", { by: shares, hours });
  }
  if (key) {
    wanted.found = send("GET", "status", { query: key, limit: 500 });
    wanted.tried = send("GET", "attempts", { key });
    wanted.keyUse = send("GET", "history", { by: "key", name: key, hours });
  }
  const answers = await Promise.all(Object.values(wanted));
  return Object.fromEntries(Object.keys(wanted).map((one, index) => [one, answers[index]]));
}

async function poll() {
  clearTimeout(timer);
  const mine = ++round;
  try {
    const found = await load();
    if (mine !== round) return;
    if (found.use) useAt = Date.now();
    take(found);
  } catch (error) {
    if (mine !== round) return;
    if (!(error instanceof ApiError || error instanceof TypeError || error instanceof DOMException)) throw error;
    showProblem(error);
  } finally {
    if (mine === round && !document.hidden) timer = setTimeout(poll, EVERY_MS);
  }
}

function take(found) {
  const { status } = found;
  const before = new Map((known.status?.keys ?? []).map((key) => [key.key_id, key.state]));
  Object.assign(known, found);
  clockOffset = Date.parse(status.at) - Date.now();
  document.body.classList.remove("stale");
  byId("problem").hidden = true;
  show("live-text", `Live, ${clock(status.at)} UTC`);
  if (status.offset > 0 && status.offset >= status.total) {
    change({ offset: Math.max(0, Math.floor((status.total - 1) / PAGE) * PAGE) });
    return;
  }
  announce(status.keys.filter((key) => (before.get(key.key_id) ?? key.state) !== key.state));
  draw();
}

function announce(keys) {
  if (!keys.length) return;
  const texts = keys.slice(0, 3).map((key) => `${key.key_id} is ${stateName(key.state)}`);
  const text = `${texts.join(", ")}${keys.length > 3 ? ` and ${keys.length - 3} more` : ""}.`;
  // The same sentence twice must be two changes for a screen reader.
  show("announcer", byId("announcer").textContent === text ? `${text} ` : text);
}

function showProblem(error) {
  const at = known.status && clock(known.status.at);
  let text = `${at ? `No answer since ${at} UTC; shown values are old.` : "No answer from the server yet."} Trying again every 2 seconds.`;
  if (error.status) {
    const goOn = error.status === 503 && known.status?.shared ? " Services go on with in-process limits." : "";
    text = `${error.message}${goOn}${at && error.status >= 500 ? ` Shown values are of ${at} UTC.` : ""}`;
  }
  show("problem", text);
  byId("problem").hidden = false;
  show("live-text", at ? `Old, of ${at} UTC` : "Not connected");
  if (!at) show("verdict", error.status === 503 ? "Not known: the state cannot be read." : "Nothing to show yet.");
  document.body.classList.add("stale");
}

// Everything is drawn from what is known; it counts down, so also each second.
function draw() {
  const { status, attempts, use, shares } = known;
  if (!status) return;
  const focused = document.activeElement;
  const now = Date.now() + clockOffset;
  const { summary: of, keys } = status;
  const models = [...new Set(of.calls.map(({ model }) => model))];
  document.title = `${count(of.available)}/${count(of.keys)} available · keyrot ${status.pool}`;
  show("pool-name", status.pool);
  show("place", status.shared ? `shared in ${status.state_url}` : "this process (memory://)");
  show("degraded", status.shared ? "The shared state cannot be reached. Services go on with in-process limits, and this page shows what this process knows." : "Degraded.");
  byId("degraded").hidden = !status.degraded;
  byId("unused").hidden = status.has_records !== false || of.keys === 0;
  byId("verdict").className = parts.verdictClass(of);
  const [first, ...others] = of.headline.sentences;
  show("verdict", `${first} ${of.headline.keys.sentence}`);
  show("without-key", ...[...others, ...of.headline.unknown].map((one) => el("li", {}, one)));
  show("hour", ...parts.lastHour(of, attempts.calls));
  show("states", ...parts.stateCounts(of));
  show("models", ...parts.models(of.calls, now));
  show("today", ...parts.today(of, status.cost_known));
  show("model-names", ...models.map((value) => el("option", { value })));
  drawUse(use, shares);

  show("key-rows", ...keys.map((key) => parts.keyRow(key, now)));
  byId("key-table").hidden = keys.length === 0;
  byId("no-keys").hidden = keys.length > 0;
  const filtered = chosen.query || chosen.state;
  const total = `${plural(status.total, filtered ? "matching key" : "key")}`;
  show("no-keys", filtered ? "No key matches this filter." : "This pool has no key.");
  show("range", keys.length && keys.length < status.total ? `${count(status.offset + 1)} to ${count(status.offset + keys.length)} of ${total}` : total);
  byId("bulk").hidden = !status.actions || keys.length === 0;
  byId("pager").hidden = status.total <= PAGE;
  byId("previous").disabled = status.offset === 0;
  byId("next").disabled = status.offset + keys.length >= status.total;

  show("calls", ...attempts.calls.map(parts.callRow));
  byId("no-calls").hidden = attempts.calls.length > 0;
  show("no-calls", status.degraded ? of.headline.hour : "No call in the last hour.");
  drawDetails(now);
  if (known.why) show("why-keys", ...parts.whyKeys(known.why));
  if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
}

function drawUse(use, shares) {
  if (!use) return;
  show("use-title", use.name ? `Use of ${use.by} ${use.name}` : "Use of the pool");
  byId("use-all").hidden = !use.name;
  show("chart", chart(use, byId("chart").clientWidth));
  show("chart-text", summary(use));
  show("shares-name", sentence(shares.by));
  show("shares", ...parts.shares(shares, chosen, known.status.cost_known));
  byId("share-table").hidden = shares.shares.length === 0;
  byId("no-shares").hidden = shares.shares.length > 0;
  show("no-shares", shares.unknown ?? (shares.by === "model" ? "No call named a model." : "No call was made in a workload. A program names one with keyrot_middleware.workload(…)."));
  if (shares.by === "workload") show("workload-names", ...shares.shares.map(({ name }) => el("option", { value: name })));
}

// A key, or a call, that the address names.
function drawDetails(now) {
  const dialog = byId("details");
  if (!chosen.key && !chosen.call) {
    dialog.close();
    return;
  }
  const call = chosen.call && [...known.attempts.calls, ...(known.tried?.calls ?? [])].find((one) => one.id === chosen.call);
  const key = !chosen.call && known.found?.keys.find((one) => one.key_id === chosen.key);
  if (!key && !chosen.call && known.found === null) return; // on its way
  show("details-title", chosen.call ? "Call" : chosen.key);
  let body = [el("p", {}, chosen.call ? "This call is not among the last 100 any more." : "This pool has no such key.")];
  let rows = [];
  if (call) body = parts.callDetails(call, known.status.cost_known);
  if (key) [body, rows] = parts.keyDetails(key, known.tried.calls, now, known.status.actions);
  show("details-body", ...body);
  if (!dialog.open) dialog.showModal();
  byId("key-use").hidden = !key;
  if (!key) return;
  show("key-chart", chart(known.keyUse, byId("key-chart").clientWidth));
  show("key-chart-text", summary(known.keyUse));
  show("key-calls", ...rows);
}

// The address -------------------------------------------------------------------------------------

function change(changes) {
  Object.assign(chosen, changes);
  if ("key" in changes) known.found = null;
  const text = new URLSearchParams(Object.entries(chosen).filter(([name, value]) => value !== NOTHING[name])).toString();
  if (location.search.slice(1) !== text) history.pushState(null, "", text ? `?${text}` : location.pathname);
  follow();
}

function readAddress() {
  const given = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(NOTHING)) {
    const text = given.get(name) ?? value;
    chosen[name] = typeof value === "number" ? Math.max(0, Math.floor(Number(text) || 0)) : text;
  }
  for (const [name, allowed] of Object.entries(CHOICES)) if (!allowed.includes(chosen[name])) chosen[name] = allowed[0];
  known.found = null;
  follow();
}

function follow() {
  for (const id of ["query", "state"]) if (document.activeElement !== byId(id)) byId(id).value = chosen[id];
  const press = (node, is) => node.setAttribute("aria-pressed", String(is));
  for (const node of document.querySelectorAll("[data-hours]")) press(node, chosen.hours === Number(node.dataset.hours));
  for (const node of document.querySelectorAll("[data-shares]")) press(node, chosen.shares === node.dataset.shares);
  for (const node of document.querySelectorAll("[data-sort]")) {
    const order = { [node.dataset.sort]: "ascending", [`-${node.dataset.sort}`]: "descending" }[chosen.sort] ?? "none";
    node.closest("th").setAttribute("aria-sort", order);
  }
  useAt = 0;
  draw();
  poll();
}

// What the operator does --------------------------------------------------------------------------

const HANDLERS = {
  key: ({ key }) => change({ key, call: "" }),
  call: ({ call }) => change({ call }),
  state: ({ state }) => change({ state, offset: 0 }),
  sort: ({ sort }) => change({ sort: chosen.sort === sort ? `-${sort}` : chosen.sort === `-${sort}` ? "" : sort, offset: 0 }),
  name: ({ by, name }) => change(chosen.by === by && chosen.name === name ? { by: "", name: "" } : { by, name }),
  shares: ({ shares }) => change({ shares, by: "", name: "" }),
  hours: ({ hours }) => change({ hours: Number(hours) }),
  turn: ({ turn }) => {
    change({ offset: Math.max(0, chosen.offset + Number(turn) * PAGE) });
    byId("keys").scrollIntoView();
    byId("keys").focus({ preventScroll: true });
  },
  why: ({ why, workload }) => openWhy(why, workload),
  action: ({ action, of }, node) => onAction(action, [of], node),
  all: ({ all }, node) => onAction(all, known.status.keys.filter((key) => key.allowed_actions.includes(all)).map((key) => key.key_id), node),
  close: (_, node) => node.closest("dialog").close(),
};

document.addEventListener("click", (event) => {
  const node = event.target.closest("button");
  for (const [name, handle] of Object.entries(HANDLERS)) {
    if (node && name in node.dataset) {
      handle(node.dataset, node);
      return;
    }
  }
});

let answer = () => {};

// Escape is a no, and so are the button that has the focus and another question: the event of a
// dialog that was closed comes with the next frame, and may find it open again.
function confirmed(title, action) {
  answer(false);
  const dialog = byId("confirm");
  show("confirm-title", title);
  show("confirm-text", QUESTIONS[action]);
  show("confirm-yes", sentence(action));
  byId("confirm-for").hidden = action !== "disable";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => { answer = resolve; });
}

// One key after the other: the server may be busy with calls.
async function onAction(action, ids, node) {
  if (!ids.length) return toast(`No key shown here can be ${action}.`, "");
  if (!(await confirmed(`${sentence(action)} ${ids.length === 1 ? ids[0] : `all ${ids.length} keys`}?`, action))) return null;
  node.disabled = true;
  const results = [];
  for (const id of ids) {
    if (ids.length > 1) toast(`${sentence(action)}: ${results.length} of ${ids.length} keys done…`, "");
    try {
      results.push([id, (await send("POST", `keys/${encodeURIComponent(id)}/${action}`, action === "disable" ? { seconds: byId("confirm-seconds").value } : {}, 60000)).sentence, ""]);
    } catch (error) {
      results.push([id, error instanceof ApiError ? error.message : "No answer from the server: it is not known whether this was done.", "bad"]);
      if (!(error instanceof ApiError)) break;
    }
  }
  node.disabled = false;
  node.focus();
  if (ids.length === 1) toast(sentence(results[0][1]), results[0][2] && "is-rejected");
  else {
    byId("toast").hidden = true;
    show("results-title", `${sentence(action)}: ${results.length} of ${plural(ids.length, "key")}`);
    show("results-list", ...results.map(([id, text, kind]) => el("li", {}, el("p", { class: "key-id" }, id), el("p", { class: `sentence ${kind}` }, sentence(text)))));
    byId("results").showModal();
  }
  return poll();
}

let toastTimer = 0;

function toast(text, kind) {
  clearTimeout(toastTimer);
  const node = byId("toast");
  (document.querySelector("dialog[open]") ?? document.body).append(node); // above what is modal
  node.className = `toast ${kind}`;
  node.hidden = false;
  show("toast", text);
  toastTimer = setTimeout(() => { node.hidden = true; }, 12000);
}

function openWhy(model, workload = "") {
  byId("why-model").value = model;
  byId("why-workload").value = workload;
  known.why = null;
  show("why-sentence", "");
  show("why-keys");
  byId("why").showModal();
  if (model) explain();
  else byId("why-model").focus();
}

let asked = 0;

async function explain() {
  const turn = ++asked;
  const tokens = Math.max(0, Math.floor(Number(byId("why-tokens").value) || 0));
  show("why-sentence", "…");
  try {
    const found = await send("GET", "explain", { model: byId("why-model").value.trim(), workload: byId("why-workload").value.trim(), tokens });
    if (turn !== asked) return;
    known.why = found;
    show("why-sentence", `${found.sentence} (at ${clock(found.at)} UTC)`);
    draw();
  } catch (error) {
    if (turn !== asked) return;
    known.why = null;
    show("why-keys");
    show("why-sentence", error.name === "TimeoutError" ? "No answer from the server." : error.message);
  }
}

byId("why-form").addEventListener("submit", (event) => {
  event.preventDefault();
  explain();
});
byId("confirm").addEventListener("close", ({ target }) => target.open || answer(target.returnValue === "yes"));
byId("details").addEventListener("close", () => (chosen.call && chosen.key ? change({ call: "" }) : (chosen.key || chosen.call) && change({ key: "", call: "" })));
byId("state").addEventListener("change", (event) => change({ state: event.target.value, offset: 0 }));
let typing = 0;
byId("query").addEventListener("input", (event) => {
  clearTimeout(typing); // until the operator has stopped typing
  typing = setTimeout(() => change({ query: event.target.value.trim(), offset: 0 }), 250);
});
byId("toast").addEventListener("click", () => { byId("toast").hidden = true; });
window.addEventListener("popstate", readAddress);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
    round += 1; // what is under way is not waited for
    show("live-text", "Paused");
  } else poll();
});
new ResizeObserver(() => requestAnimationFrame(draw)).observe(byId("chart"));
setInterval(() => document.hidden || draw(), 1000);
readAddress();
