// The page asks the server every two seconds, while it is visible, and shows what it answers.

import { ApiError, act, getAttempts, getStatus } from "./api.js";
import { showCalls } from "./calls.js";
import { confirmed, openWhy, prepareWhy } from "./dialogs.js";
import { arrange, byId, el, setClass, setHidden, setText, stateClass, stateIcon, stateName } from "./dom.js";
import { clock, count, money, plural, sentence, shortCount } from "./format.js";
import { KeyTable } from "./keys.js";

const EVERY_MS = 2000;
const PAGE = 50;
const SHOWN_MODELS = 8;
const STATES = ["available", "limited", "cooling_down", "rejected", "unresolved", "disabled"];

const filter = { offset: 0, query: "", state: "", key: "" };
let timer = 0;
let round = 0; // of the newest request: what an older one brings is no longer wanted
let lastAnswer = null; // time of the server in its newest answer
let clockOffset = 0; // time of the server less that of this machine, in ms
let lastChangeText = "";

const serverNow = () => Date.now() + clockOffset;
const table = new KeyTable(byId("key-table"), onAction, onCalls);

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
  } catch (error) {
    if (mine !== round) return;
    if (!(error instanceof ApiError || error instanceof TypeError || error instanceof DOMException)) throw error;
    showProblem(error);
  } finally {
    if (mine === round && !document.hidden) timer = setTimeout(poll, EVERY_MS);
  }
}

function show(status, attempts) {
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
  announce(table.update(status.keys, status.summary.projects ?? {}, status.actions));
  showRange(status);
  showCalls(attempts.calls, filter.key);
  showOptions(byId("key-ids"), status.keys.map((key) => key.key_id));
  tick();
}

function degradedText(status) {
  return status.shared
    ? "Degraded: the shared state cannot be reached, so each process falls back to in-process limits."
    : "Degraded.";
}

function showSummary(status) {
  const { keys, available, states, models, last_hour: hour, today } = status.summary;
  setText(byId("pool-name"), status.pool);
  setText(byId("place"), status.shared ? `shared in ${status.state_url}` : "this process (memory://)");
  const verdict = keys === 0 ? "This pool has no key." : available === 0
    ? "No key is available." : `${count(available)} of ${plural(keys, "key")} ${available === 1 ? "is" : "are"} available.`;
  setText(byId("verdict"), verdict);
  setClass(byId("verdict"), `verdict ${available === 0 ? "none" : available < keys ? "some" : "all"}`);
  document.title = `${count(available)}/${count(keys)} available · keyrot ${status.pool}`;

  setText(byId("hour-requests"), shortCount(hour.requests));
  setText(byId("hour-failures"), shortCount(hour.failures));
  setText(byId("hour-waits"), shortCount(hour.waits));
  byId("hour-failures").classList.toggle("bad", hour.failures > 0);
  const rate = hour.requests > 0 ? (100 * hour.failures) / hour.requests : 0;
  setText(byId("hour-note"), hour.requests > 0 ? `${rate.toFixed(1)} % of requests failed` : "no request");
  setText(byId("today-input"), shortCount(today.input_tokens));
  setText(byId("today-output"), shortCount(today.output_tokens));
  setText(byId("today-cost"), money(today.cost_usd));
  setText(byId("today-note"), status.cost_known ? "since midnight Pacific time" : "cost: pip install 'keyrot-middleware[cost]'");
  showStates(states, keys);
  showModels(models);
}

function showStates(states, keys) {
  const bar = byId("state-bar");
  const list = byId("state-counts");
  if (!bar.childElementCount) {
    bar.append(...STATES.map((state) => el("span", { class: `segment segment-${state}` })));
    list.append(...STATES.map((state) => el("li", { class: `state-count text-${stateClass(state)}` },
      stateIcon(state), el("strong"), ` ${stateName(state)}`)));
  }
  STATES.forEach((state, index) => {
    const n = states[state] ?? 0;
    bar.children[index].style.flexGrow = String(keys ? n / keys : 0);
    setHidden(bar.children[index], n === 0);
    setHidden(list.children[index], n === 0);
    setText(list.children[index].querySelector("strong"), count(n));
  });
}

const modelItems = new Map();

function showModels(models) {
  const names = Object.keys(models);
  const items = names.slice(0, SHOWN_MODELS).map((name) => {
    const item = modelItems.get(name) ?? makeModelItem(name);
    modelItems.set(name, item);
    const { available, keys } = models[name];
    setText(item.counts, `${count(available)} of ${count(keys)}`);
    setClass(item.counts, available === 0 ? "bad" : "muted");
    return item.node;
  });
  if (!names.length) items.push(byId("no-model") ?? el("li", { class: "note", id: "no-model" }, "No model was used yet."));
  if (names.length > SHOWN_MODELS) {
    const more = byId("more-models") ?? el("li", { class: "note", id: "more-models" });
    setText(more, `and ${count(names.length - SHOWN_MODELS)} more`);
    items.push(more);
  }
  for (const name of modelItems.keys()) if (!(name in models)) modelItems.delete(name);
  arrange(byId("models"), items);
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
    text = `${error.message}${lastAnswer ? ` Shown values are of ${clock(lastAnswer)} UTC.` : ""}`;
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
}

function changeFilter(change) {
  Object.assign(filter, change);
  poll();
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
byId("previous").addEventListener("click", () => changeFilter({ offset: Math.max(0, filter.offset - PAGE) }));
byId("next").addEventListener("click", () => changeFilter({ offset: filter.offset + PAGE }));
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
poll();
