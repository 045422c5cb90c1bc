// The page asks the server every two seconds, while it is visible, and shows what it answers.

import { ApiError, act, getAttempts, getHistory, getStatus } from "./api.js";
import { showCalls } from "./calls.js";
import { showUse } from "./chart.js";
import { confirmed, confirmedForAll, openWhy, prepareWhy, showResults } from "./dialogs.js";
import { arrange, byId, el, setClass, setHidden, setText, stateClass, stateIcon, stateName } from "./dom.js";
import { clock, count, countdown, money, plural, sentence, shortCount } from "./format.js";
import { KeyTable } from "./keys.js";

const EVERY_MS = 2000;
const USE_EVERY_MS = 10000;
const PAGE = 50;
const SHOWN_MODELS = 4;
const STATES = ["available", "limited", "cooling_down", "rejected", "unresolved", "disabled"];

// What is shown; it is in the address too, so that a link and the history have it.
const NOTHING = { offset: 0, query: "", state: "", key: "", by: "", name: "", hours: 1 };
const filter = { ...NOTHING };
let lastStatus = null;
let useAt = 0; // when the use of the pool was asked for last, by this machine's clock
let timer = 0;
let round = 0; // of the newest request: what an older one brings is no longer wanted
let lastAnswer = null; // time of the server in its newest answer
let clockOffset = 0; // time of the server less that of this machine, in ms
let lastChangeText = "";

const serverNow = () => Date.now() + clockOffset;
const table = new KeyTable(onAction, onCalls);

async function poll() {
  clearTimeout(timer);
  const mine = ++round;
  try {
    const [status, attempts] = await Promise.all([
      getStatus({ offset: filter.offset, limit: PAGE, query: filter.query, state: filter.state }),
      getAttempts({ key: filter.key }),
    ]);
    if (mine !== round) return;
    show(status, attempts);
    if (Date.now() - useAt >= USE_EVERY_MS) await pollUse(mine);
  } catch (error) {
    if (mine !== round) return;
    if (!(error instanceof ApiError || error instanceof TypeError || error instanceof DOMException)) throw error;
    showProblem(error);
  } finally {
    if (mine === round && !document.hidden) timer = setTimeout(poll, EVERY_MS);
  }
}

async function pollUse(mine) {
  const { by, name, hours } = filter;
  const isShare = by === "workload" || by === "model";
  const [use, shares] = await Promise.all([
    getHistory({ by, name, hours }),
    isShare && !name ? null : getHistory({ by: isShare ? by : "workload", hours }),
  ]);
  if (mine !== round) return;
  useAt = Date.now();
  showUse(use, shares ?? use, (kind, chosen) => changeUse({ by: kind, name: chosen }));
  if (isShare) showOptions(byId("use-names"), (shares ?? use).shares.map((share) => share.name));
}

function show(status, attempts) {
  lastStatus = status;
  lastAnswer = status.at;
  clockOffset = Date.parse(status.at) - Date.now();
  document.body.classList.remove("stale");
  setHidden(byId("problem"), true);
  setText(byId("live-text"), `Live, ${clock(status.at)} UTC`);
  setText(byId("degraded"), degradedText(status));
  setHidden(byId("degraded"), !status.degraded);
  setHidden(byId("unused"), status.has_records !== false || status.summary.keys === 0);
  showSummary(status);
  if (status.offset > 0 && status.offset >= status.total) {
    changeFilter({ offset: Math.max(0, Math.floor((status.total - 1) / PAGE) * PAGE) });
    return;
  }
  announce(table.update(status.keys, status.actions));
  setHidden(byId("bulk"), !status.actions || status.keys.length === 0);
  showRange(status);
  showCalls(attempts.calls, filter.key);
  const ids = status.keys.map((key) => key.key_id);
  showOptions(byId("key-ids"), ids);
  if (filter.by === "key") showOptions(byId("use-names"), ids);
  if (filter.by === "project") showOptions(byId("use-names"), [...new Set(status.keys.map((key) => key.project).filter(Boolean))]);
  tick();
}

function degradedText(status) {
  return status.shared
    ? "The shared state cannot be reached. Services go on with in-process limits, and this page shows what this process knows."
    : "Degraded.";
}

function showSummary(status) {
  const { keys, available, states, last_hour: hour, today, headline } = status.summary;
  setText(byId("pool-name"), status.pool);
  setText(byId("place"), status.shared ? `shared in ${status.state_url}` : "this process (memory://)");
  setClass(byId("verdict"), `verdict ${available === 0 ? "none" : available < keys ? "some" : "all"}`);
  document.title = `${count(available)}/${count(keys)} available · keyrot ${status.pool}`;

  setText(byId("hour-failed"), shortCount(hour.failed_calls));
  setText(byId("hour-calls"), shortCount(hour.calls));
  setText(byId("hour-waits"), shortCount(hour.waits));
  byId("hour-failed").classList.toggle("bad", hour.failed_calls > 0);
  setText(byId("hour-note"), headline.requests);
  setText(byId("today-input"), shortCount(today.input_tokens));
  setText(byId("today-output"), shortCount(today.output_tokens));
  setText(byId("today-cost"), money(today.cost_usd));
  setText(byId("today-note"), status.cost_known ? "since midnight Pacific time" : "cost: pip install 'keyrot-middleware[cost]'");
  showStates(states, keys);
  showModels(status.summary.models);
}

// Can calls be served, and when again? Counts down, so it is written each second.
function showVerdict(now) {
  if (!lastStatus) return;
  const { keys, models } = lastStatus.summary.headline;
  setText(byId("verdict"), withCountdown(keys, now));
  arrange(byId("without-key"), models.map((one, index) => {
    const item = byId("without-key").children[index] ?? el("li");
    setText(item, withCountdown(one, now));
    return item;
  }));
  setHidden(byId("without-key"), models.length === 0);
}

function withCountdown({ sentence: said, key_id: key, available_at: at }, now) {
  return at === null ? said : `${said} ${key} ${countdown(at, now)}.`;
}

function showStates(states, keys) {
  const bar = byId("state-bar");
  const list = byId("state-counts");
  if (!bar.childElementCount) {
    bar.append(...STATES.map((state) => el("span", { class: `segment segment-${state}` })));
    list.append(...STATES.map((state) => el("li", {}, stateLink(state))));
  }
  STATES.forEach((state, index) => {
    const n = states[state] ?? 0;
    bar.children[index].style.flexGrow = String(keys ? n / keys : 0);
    setHidden(bar.children[index], n === 0);
    setHidden(list.children[index], n === 0);
    setText(list.children[index].querySelector("strong"), count(n));
  });
}

function stateLink(state) {
  const node = el("a", { class: `state-count text-${stateClass(state)}` }, stateIcon(state), el("strong"), ` ${stateName(state)}`);
  node.href = `?state=${state}`;
  node.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    changeFilter({ state, offset: 0 });
  });
  return node;
}

const modelItems = new Map();

function showModels(models) {
  const names = Object.keys(models);
  const items = names.map((name) => {
    const item = modelItems.get(name) ?? makeModelItem(name);
    modelItems.set(name, item);
    const { available, keys } = models[name];
    setText(item.counts, `${count(available)} of ${count(keys)}`);
    setClass(item.counts, available === 0 ? "bad" : "muted");
    return item.node;
  });
  if (!names.length) items.push(byId("no-model") ?? el("li", { class: "note", id: "no-model" }, "No model was used yet."));
  for (const name of modelItems.keys()) if (!Object.hasOwn(models, name)) modelItems.delete(name);
  arrange(byId("models"), items.slice(0, SHOWN_MODELS));
  arrange(byId("other-models"), items.slice(SHOWN_MODELS));
  setHidden(byId("more-models"), names.length <= SHOWN_MODELS);
  setText(byId("more-models-text"), `and ${count(names.length - SHOWN_MODELS)} more`);
  showOptions(byId("model-names"), names);
}

function showOptions(list, names) {
  const content = JSON.stringify(names);
  if (list.dataset.names === content) return;
  list.dataset.names = content;
  arrange(list, names.map((name) => el("option", { value: name })));
}

function makeModelItem(name) {
  const counts = el("span", { class: "muted" });
  const button = el("button", { type: "button", class: "small", "aria-label": `Why: which key would a call of ${name} get now?` }, "Why?");
  button.addEventListener("click", () => openWhy(name));
  const node = el("li", {}, el("span", { class: "code", title: name }, name), counts, button);
  return { node, counts };
}

function showRange(status) {
  const { total, offset, keys } = status;
  const filtered = filter.query || filter.state;
  setHidden(byId("no-keys"), keys.length > 0);
  setText(byId("no-keys"), filtered ? "No key matches this filter." : "This pool has no key.");
  setHidden(byId("key-table"), keys.length === 0);
  const of = filtered ? `${plural(total, "matching key")}` : plural(total, "key");
  setText(byId("range"), total > keys.length ? `${count(offset + 1)} to ${count(offset + keys.length)} of ${of}` : total ? of : "");
  setHidden(byId("pager-buttons"), total <= PAGE);
  byId("previous").disabled = offset === 0;
  byId("next").disabled = offset + keys.length >= total;
}

function showProblem(error) {
  const since = lastAnswer ? `No answer since ${clock(lastAnswer)} UTC; shown values are old.` : "No answer from the server yet.";
  let text = `${since} Trying again every 2 seconds.`;
  if (error instanceof ApiError && error.status < 500) text = error.message;
  else if (error instanceof ApiError) {
    const goOn = error.status === 503 && lastStatus?.shared ? " Services go on with in-process limits." : "";
    text = `${error.message}${goOn}${lastAnswer ? ` Shown values are of ${clock(lastAnswer)} UTC.` : ""}`;
  }
  setText(byId("problem"), text);
  setHidden(byId("problem"), false);
  setText(byId("live-text"), lastAnswer ? `Old, of ${clock(lastAnswer)} UTC` : "Not connected");
  if (!lastAnswer) setText(byId("verdict"), "Nothing to show yet.");
  document.body.classList.add("stale");
}

function announce(changes) {
  if (!changes.length) return;
  const more = changes.length > 3 ? ` and ${changes.length - 3} more` : "";
  const text = `${changes.slice(0, 3).join(", ")}${more}.`;
  // The same sentence twice must be two changes for a screen reader.
  lastChangeText = text === lastChangeText ? `${text} ` : text;
  byId("announcer").textContent = lastChangeText;
}

function tick() {
  table.tick(serverNow());
  showVerdict(serverNow());
}

function changeFilter(change) {
  Object.assign(filter, change);
  writeAddress();
  writeControls();
  poll();
}

function changeUse(change) {
  useAt = 0;
  changeFilter(change);
}

function writeAddress() {
  const changed = Object.entries(filter).filter(([name, value]) => value !== NOTHING[name]);
  const text = new URLSearchParams(changed).toString();
  if (location.search.slice(1) !== text) history.pushState(null, "", text ? `?${text}` : location.pathname);
}

function readAddress() {
  const given = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(NOTHING)) {
    const text = given.get(name);
    if (text === null) filter[name] = value;
    else filter[name] = typeof value === "number" ? Math.max(0, Math.floor(Number(text) || 0)) : text;
  }
  if (!STATES.includes(filter.state)) filter.state = "";
  if (!["workload", "model", "project", "key"].includes(filter.by)) filter.by = "";
  if (filter.hours !== 24) filter.hours = 1;
  useAt = 0;
  writeControls();
}

function writeControls() {
  const fields = { query: "query", "state-filter": "state", "attempts-key": "key", "use-by": "by", "use-name": "name" };
  for (const [id, name] of Object.entries(fields)) {
    if (byId(id).value !== filter[name] && document.activeElement !== byId(id)) byId(id).value = filter[name];
  }
  setHidden(byId("use-name-field"), filter.by === "");
  byId("use-name").placeholder = filter.by ? `Which ${filter.by}` : "";
  for (const hours of [1, 24]) byId(`use-${hours}`).setAttribute("aria-pressed", String(filter.hours === hours));
}

// The next part begins at its top.
function turnTo(offset) {
  changeFilter({ offset });
  byId("keys").scrollIntoView({ block: "start" });
  byId("keys").focus({ preventScroll: true });
}

// Waits until the operator has stopped typing.
function onTyping(input, handle) {
  let waiting = 0;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => handle(input.value.trim()), 250);
  });
}

function onCalls(keyId) {
  byId("attempts-key").value = keyId;
  changeFilter({ key: keyId });
  byId("attempts-title").scrollIntoView({ block: "start" });
  byId("attempts-title").focus({ preventScroll: true });
}

async function onAction(key, action, button) {
  if (!(await confirmed(key.key_id, action))) return;
  button.disabled = true;
  try {
    const done = await act(key.key_id, action);
    toast(sentence(done.sentence), "");
  } catch (error) {
    toast(error instanceof ApiError ? sentence(error.message) : "No answer from the server: it is not known whether this was done.", "toast-bad");
  } finally {
    button.disabled = false;
    const place = button.hidden ? button.parentElement.querySelector("button:not([hidden])") : button;
    place?.focus();
    poll();
  }
}

// One key after the other: the server may be busy with calls.
async function onActionForAll(action, button) {
  const keys = table.allowing(action);
  if (!keys.length) {
    toast(`No key shown here can be ${action === "check" ? "checked" : action}.`, "");
    return;
  }
  if (!(await confirmedForAll(keys, action))) return;
  button.disabled = true;
  const results = [];
  try {
    for (const { key_id: id } of keys) {
      toast(`${sentence(action)}: ${results.length} of ${keys.length} keys done…`, "");
      try {
        results.push([id, (await act(id, action)).sentence, false]);
      } catch (error) {
        results.push([id, error instanceof ApiError ? error.message : "No answer from the server: it is not known whether this was done.", true]);
        if (!(error instanceof ApiError)) break;
      }
    }
  } finally {
    button.disabled = false;
    setHidden(byId("toast"), true);
  }
  showResults(`${sentence(action)}: ${results.length} of ${plural(keys.length, "key")}`, results);
  poll();
}

let toastTimer = 0;

function toast(text, kind) {
  clearTimeout(toastTimer);
  setClass(byId("toast"), `toast ${kind}`);
  setHidden(byId("toast"), false);
  setText(byId("toast"), text);
  toastTimer = setTimeout(() => setHidden(byId("toast"), true), 12000);
}

onTyping(byId("query"), (query) => changeFilter({ query, offset: 0 }));
onTyping(byId("attempts-key"), (key) => changeFilter({ key }));
byId("state-filter").addEventListener("change", (event) => changeFilter({ state: event.target.value, offset: 0 }));
byId("previous").addEventListener("click", () => turnTo(Math.max(0, filter.offset - PAGE)));
byId("next").addEventListener("click", () => turnTo(filter.offset + PAGE));
byId("reset-all").addEventListener("click", (event) => onActionForAll("reset", event.currentTarget));
byId("check-all").addEventListener("click", (event) => onActionForAll("check", event.currentTarget));
byId("use-by").addEventListener("change", (event) => changeUse({ by: event.target.value, name: "" }));
onTyping(byId("use-name"), (name) => changeUse({ name }));
for (const hours of [1, 24]) byId(`use-${hours}`).addEventListener("click", () => changeUse({ hours }));
window.addEventListener("popstate", () => {
  readAddress();
  poll();
});
byId("why-other").addEventListener("click", () => openWhy(""));
byId("toast").addEventListener("click", () => setHidden(byId("toast"), true));
prepareWhy(serverNow);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(timer);
    round += 1; // what is under way is not waited for
    setText(byId("live-text"), "Paused");
  } else poll();
});
setInterval(tick, 1000);
readAddress();
poll();
