// The two dialogs: the confirmation of an action, and "which key would a call get now?".

import { getExplanation } from "./api.js";
import { arrange, byId, el, setText } from "./dom.js";
import { clock, count, countdown, sentence } from "./format.js";

const MOST = 200;

const QUESTIONS = {
  reset: [
    "Cooldowns, rejections and learned limits are forgotten, also those of the project and the billing account. Usage stays counted.",
    "Reset",
  ],
  disable: ["No new call uses it until it is enabled again. Calls that are under way finish.", "Disable"],
  enable: ["Calls use it again.", "Enable"],
  check: ["One request is sent to Google with each key; it may count against its quota.", "Check"],
};

export const confirmedForAll = (keys, action) => confirmed(keys.length === 1 ? keys[0].key_id : `all ${keys.length} keys`, action);

// Shows what came of an action on several keys, as [key id, sentence, whether it failed].
export function showResults(title, results) {
  setText(byId("results-title"), title);
  arrange(byId("results-list"), results.map(([keyId, text, failed]) =>
    el("li", {}, el("p", {}, el("span", { class: "key-id" }, keyId)), el("p", { class: failed ? "sentence bad" : "sentence" }, sentence(text)))));
  byId("results").showModal();
}

// Resolves to whether the operator agrees; Escape is a no, and so is the button that has the focus.
export function confirmed(keyId, action) {
  const [text, verb] = QUESTIONS[action];
  const dialog = byId("confirm");
  setText(byId("confirm-title"), `${verb} ${keyId}?`);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-yes"), verb);
  return new Promise((resolve) => {
    const end = new AbortController();
    const on = (node, event, answer) =>
      node.addEventListener(event, () => { end.abort(); resolve(answer); dialog.close(); }, { signal: end.signal });
    on(byId("confirm-yes"), "click", true);
    on(byId("confirm-no"), "click", false);
    on(dialog, "close", false);
    dialog.showModal();
    byId("confirm-no").focus();
  });
}

export function openWhy(model) {
  byId("why-model").value = model;
  setText(byId("why-sentence"), "");
  arrange(byId("why-keys"), []);
  byId("why").showModal();
  if (model) explain();
  else byId("why-model").focus();
}

export function prepareWhy(getNow) {
  now = getNow;
  byId("why-form").addEventListener("submit", (event) => {
    event.preventDefault();
    explain();
  });
  byId("why-close").addEventListener("click", () => byId("why").close());
  byId("results-close").addEventListener("click", () => byId("results").close());
}

let now = Date.now;
let asked = 0;

async function explain() {
  const model = byId("why-model").value.trim();
  const tokens = Math.max(0, Math.floor(Number(byId("why-tokens").value) || 0));
  const turn = ++asked;
  setText(byId("why-sentence"), "…");
  try {
    const found = await getExplanation({ model, tokens });
    if (turn === asked) show(found);
  } catch (error) {
    if (turn !== asked) return;
    arrange(byId("why-keys"), []);
    setText(byId("why-sentence"), error.name === "TimeoutError" ? "No answer from the server." : error.message);
  }
}

function show(found) {
  setText(byId("why-sentence"), `${found.sentence} (at ${clock(found.at)} UTC)`);
  const rows = found.keys.slice(0, MOST).map((key) =>
    el("li", { class: key.key_id === found.key_id ? "chosen" : key.available ? "" : "blocked" },
      el("p", {}, el("span", { class: "key-id" }, String(key.key_id)), " ",
        el("span", { class: "note" }, key.project === null ? "" : `project ${key.project}`), " ",
        el("span", { class: "countdown" }, key.available_at && !key.available ? countdown(key.available_at, now()) : "")),
      el("p", { class: "sentence" }, sentence(key.sentence ?? key.reason))));
  if (found.keys.length > MOST) {
    rows.push(el("li", { class: "note" }, `and ${count(found.keys.length - MOST)} more keys`));
  }
  arrange(byId("why-keys"), rows);
}
