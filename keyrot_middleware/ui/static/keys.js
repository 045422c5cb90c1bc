// The table of keys: a line per key, and its details below it where they are open. Rows are kept
// from one update to the next and only what is new is written, so that focus, open details and
// selections stay.

import { arrange, byId, el, setClass, setHidden, setText, stateClass, stateIcon, stateName, svg } from "./dom.js";
import { ago, count, countdown, money, plural, sentence, shortCount, tinyCount } from "./format.js";

const WINDOWS = { rpm: "RPM", tpm: "TPM", rpd: "RPD" };
const ACTIONS = { reset: "Reset", disable: "Disable", enable: "Enable", check: "Check" };

export class KeyTable {
  // `onAction(key, action, button)` and `onCalls(keyId)` are called for the buttons of a row.
  constructor(onAction, onCalls) {
    this.onAction = onAction;
    this.onCalls = onCalls;
    this.rows = new Map();
  }

  // Returns sentences about the keys whose state is another than at the last update.
  update(keys, actions) {
    const changes = [];
    const rows = new Map();
    const members = new Map();
    for (const { project } of keys) if (project !== null) members.set(project, (members.get(project) ?? 0) + 1);
    for (const key of keys) {
      const row = this.rows.get(key.key_id) ?? new KeyRow(this.onAction, this.onCalls);
      if (row.key && row.key.state !== key.state) {
        changes.push(`${key.key_id} is ${stateName(key.state)}`);
      }
      row.update(key, members.get(key.project) ?? 1, actions);
      rows.set(key.key_id, row);
    }
    const focused = document.activeElement;
    arrange(byId("key-rows"), [...rows.values()].flatMap((row) => [row.row, row.details]));
    if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
    this.rows = rows;
    return changes;
  }

  tick(now) {
    for (const row of this.rows.values()) row.tick(now);
  }

  // The keys that are shown and for which an action is allowed.
  allowing(action) {
    return [...this.rows.values()].map((row) => row.key).filter((key) => key.allowed_actions.includes(action));
  }
}

let rowNumber = 0;

class KeyRow {
  constructor(onAction, onCalls) {
    this.key = null;
    this.models = new Map();
    this.id = el("span", { class: "key-id" });
    this.labels = el("span", { class: "note" });
    this.badge = el("span", { class: "state" });
    this.until = el("span", { class: "countdown" });
    this.reason = el("span", { class: "reason" });
    this.most = new MostUsed();
    this.spark = new Sparkline();
    this.success = el("span", {});
    this.errors = el("span", {});
    this.today = el("span", { class: "today" });
    this.cost = el("span", { class: "cost" });
    const id = `details-${++rowNumber}`;
    this.toggle = el("button", { type: "button", class: "toggle", "aria-expanded": "false", "aria-controls": id });
    this.toggle.addEventListener("click", () => this.open(this.details.hidden));
    const cell = (content) => el("td", { role: "cell" }, content);
    const line = (...content) => cell(el("div", { class: "line" }, ...content));
    this.row = el("tr", { role: "row", class: "key" },
      el("th", { scope: "row", role: "rowheader" }, el("div", { class: "line" }, this.toggle, this.id, this.labels)),
      line(this.badge, this.until),
      line(this.reason),
      cell(this.most.node),
      cell(this.spark.node),
      line(this.success, this.errors),
      line(this.cost, this.today));
    this.makeDetails(id, onAction, onCalls);
  }

  makeDetails(id, onAction, onCalls) {
    this.sentence = el("p", { class: "sentence" });
    this.facts = el("p", { class: "note" });
    this.budget = new Bar();
    this.budgetText = el("p", { class: "note" });
    this.usage = el("div", { class: "usage" });
    this.noUsage = el("p", { class: "note" }, "Not used yet.");
    const calls = el("button", { type: "button" }, "Show calls");
    calls.addEventListener("click", () => onCalls(this.key.key_id));
    this.calls = calls;
    this.buttons = Object.entries(ACTIONS).map(([action, name]) => {
      const button = el("button", { type: "button" }, name);
      button.addEventListener("click", () => onAction(this.key, action, button));
      return [action, name, button];
    });
    this.details = el("tr", { role: "row", class: "details", id },
      el("td", { role: "cell", colspan: "7" },
        el("div", { class: "detail" },
          el("div", { class: "detail-text" }, this.sentence, this.facts, this.budgetText, this.budget.node),
          el("div", { class: "detail-usage" }, this.noUsage, this.usage),
          el("div", { class: "buttons" }, calls, ...this.buttons.map((b) => b[2])))));
    this.details.hidden = true;
  }

  open(open) {
    this.details.hidden = !open;
    this.toggle.setAttribute("aria-expanded", String(open));
  }

  update(key, members, actions) {
    const before = this.key;
    this.key = key;
    setText(this.id, key.key_id);
    this.id.title = key.key_id;
    const platform = key.platform === "gemini_api" ? "" : key.platform;
    const labels = [key.project ?? "", platform, key.tier, key.model, key.priority ? `priority ${key.priority}` : ""];
    setText(this.labels, labels.filter(Boolean).join(" · "));
    this.labels.title = this.labels.textContent;
    if (before?.state !== key.state) {
      this.badge.replaceChildren(stateIcon(key.state), stateName(key.state));
      setClass(this.badge, `state state-${stateClass(key.state)}`);
      setClass(this.row, `key key-${stateClass(key.state)}`);
      this.row.dataset.state = key.state;
    }
    const why = key.available ? blockedModels(key) : sentence(key.sentence);
    setText(this.reason, why);
    this.reason.title = why;
    setText(this.sentence, why || "Available now.");
    this.updateUsage(key.used ?? {});
    this.most.update(key.used ?? {});
    this.spark.update(key.history);
    setText(this.success, `${shortCount(key.success_count)} ok`);
    setText(this.errors, key.error_count ? `${shortCount(key.error_count)} failed` : "");
    setClass(this.errors, "bad");
    this.errors.title = key.last_error ? `last: ${key.last_error}` : "";
    const tokens = key.tokens_today ?? {};
    const used = (tokens.input ?? 0) + (tokens.output ?? 0);
    setText(this.cost, key.usd_today === null || !used ? "" : money(key.usd_today));
    setText(this.today, used ? `${tinyCount(used)} tokens` : "–");
    const tokensText = used ? `today ${count(tokens.input)} tokens in, ${count(tokens.output)} out` : "";
    this.today.title = tokensText;
    const share = members > 1 ? `shares its limits with ${plural(members - 1, "other key")} shown` : "";
    this.more = [tokensText, share, key.last_error ? `last error: ${key.last_error}` : ""].filter(Boolean);
    const budget = key.usd_per_day;
    setText(this.budgetText, budget === null ? "" : `Budget of the day${key.project === null ? "" : ` of project ${key.project}`}: ${money(key.usd_spent)} of ${money(budget)}`);
    this.budget.update(key.usd_spent ?? 0, budget);
    this.updateButtons(actions);
  }

  updateButtons(actions) {
    const { key_id: id, allowed_actions: allowed } = this.key;
    const label = (button, text) => {
      if (button.getAttribute("aria-label") !== text) button.setAttribute("aria-label", text);
    };
    label(this.toggle, `Details of ${id}`);
    label(this.calls, `Show calls of ${id}`);
    for (const [action, name, button] of this.buttons) {
      label(button, `${name} ${id}`);
      setHidden(button, !actions || !allowed.includes(action));
    }
  }

  updateUsage(used) {
    const models = new Map();
    for (const [model, windows] of Object.entries(used)) {
      const usage = this.models.get(model) ?? new ModelUsage(model);
      usage.update(windows);
      models.set(model, usage);
    }
    this.models = models;
    arrange(this.usage, [...models.values()].map((usage) => usage.node));
    setHidden(this.noUsage, models.size > 0);
  }

  tick(now) {
    const key = this.key;
    setText(this.until, key.available_at && !key.available ? countdown(key.available_at, now) : "");
    const facts = [key.last_used ? `used ${ago(key.last_used, now)}` : "never used", ...this.more];
    setText(this.facts, sentence(facts.join(" · ")));
    for (const usage of this.models.values()) usage.tick(now);
  }
}

// An available key may still be blocked for some of its models.
function blockedModels(key) {
  const blocked = Object.entries(key.used ?? {}).filter(([, used]) => !used.available);
  if (!blocked.length) return "";
  const names = blocked.slice(0, 3).map(([model, used]) => (used.reason ? `${model} (${used.reason})` : model));
  const more = blocked.length > 3 ? ` and ${count(blocked.length - 3)} more` : "";
  return `Not for ${names.join(", ")}${more}`;
}

// The window of which most is used, of all models; the details have all of them.
class MostUsed {
  constructor() {
    this.bar = new Bar();
    this.text = el("span", { class: "most-text" });
    this.model = el("span", { class: "most-model" });
    this.node = el("div", { class: "line most" }, this.bar.node, this.text, this.model);
  }

  update(used) {
    let found = null;
    for (const [model, windows] of Object.entries(used)) {
      for (const [name, label] of Object.entries(WINDOWS)) {
        const { used: amount = 0, limit = null } = windows[name] ?? {};
        const part = limit > 0 ? amount / limit : limit === 0 ? 1 : name === "rpd" ? 0 : -1;
        if (found === null || part > found.part) found = { model, label, amount, limit, part };
      }
    }
    this.bar.update(found?.amount ?? 0, found?.limit ?? null);
    let text = "";
    if (found) text = found.limit === null ? `${found.label} ${shortCount(found.amount)}` : `${found.label} ${shortCount(found.amount)} / ${shortCount(found.limit)}`;
    setText(this.text, text);
    const more = Object.keys(used).length - 1;
    setText(this.model, found ? `${found.model || "any model"}${more > 0 ? ` +${more}` : ""}` : "not used yet");
    this.model.title = Object.keys(used).join(", ");
  }
}

class ModelUsage {
  constructor(model) {
    this.until = el("span", { class: "countdown" });
    this.windows = Object.fromEntries(Object.keys(WINDOWS).map((name) => [name, new Window(WINDOWS[name])]));
    this.node = el("div", { class: "model" },
      el("p", { class: "model-name" }, el("span", {}, model || "any model"), this.until),
      el("div", { class: "windows" }, ...Object.values(this.windows).map((window) => window.node)));
  }

  update(used) {
    this.used = used;
    for (const name of Object.keys(WINDOWS)) this.windows[name].update(used[name]);
  }

  tick(now) {
    const { available, available_at: at } = this.used;
    setText(this.until, available ? "" : at ? `available ${countdown(at, now)}` : "not available");
  }
}

class Window {
  constructor(label) {
    this.text = el("span", { class: "window-text" });
    this.source = el("span", { class: "window-source" });
    this.bar = new Bar();
    this.node = el("div", { class: "window" },
      el("p", {}, el("abbr", { title: LONG[label] }, label), " ", this.text),
      this.bar.node, this.source);
  }

  update(window) {
    const used = window?.used ?? 0;
    const limit = window?.limit ?? null;
    setText(this.text, limit === null ? shortCount(used) : `${shortCount(used)} / ${shortCount(limit)}`);
    this.node.title = limit === null ? `${count(used)} used; no limit known` : `${count(used)} used of ${count(limit)}`;
    setText(this.source, limit === null ? "no limit known" : window.source ?? "");
    this.bar.update(used, limit);
  }
}

const LONG = { RPM: "Requests per minute", TPM: "Input tokens per minute", RPD: "Requests per day" };

// How full something is; the numbers stand beside it as text.
class Bar {
  constructor() {
    this.fill = el("span", { class: "fill" });
    this.node = el("span", { class: "bar", "aria-hidden": "true" }, this.fill);
  }

  update(used, limit) {
    setHidden(this.node, limit === null);
    if (limit === null) return;
    const part = limit > 0 ? Math.min(1, used / limit) : 1;
    this.fill.style.inlineSize = `${(part * 100).toFixed(1)}%`;
    setClass(this.fill, part >= 1 ? "fill full" : part >= 0.8 ? "fill high" : "fill");
  }
}

// Requests per minute as bars, failures in front of them, oldest first.
class Sparkline {
  constructor() {
    this.requests = svg("path", { class: "spark-requests" });
    this.failures = svg("path", { class: "spark-failures" });
    this.image = svg("svg", { viewBox: "0 0 120 28", class: "spark", role: "img", preserveAspectRatio: "none" },
      svg("path", { class: "spark-base", d: "M0 27.5h120" }), this.requests, this.failures);
    this.text = el("span", { class: "note" });
    this.node = el("div", { class: "line spark-box" }, this.image, this.text);
  }

  update(history) {
    const requests = history?.requests ?? [];
    const failures = history?.failures ?? [];
    const total = sum(requests);
    const failed = sum(failures);
    const text = total || failed ? `${plural(total, "request")}${failed ? `, ${count(failed)} failed` : ""}` : "no request";
    const most = Math.max(1, ...requests, ...failures);
    setAttribute(this.image, "aria-label", `Last 60 minutes: ${text}, at most ${count(most)} a minute`);
    this.node.title = text;
    setText(this.text, total || failed ? tinyCount(total) : "–");
    this.image.style.display = total || failed ? "" : "none";
    setAttribute(this.requests, "d", bars(requests, most));
    setAttribute(this.failures, "d", bars(failures, most));
  }
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

function bars(numbers, most) {
  const from = 60 - numbers.length;
  return numbers
    .map((number, index) => {
      const height = number > 0 ? Math.max(1.5, (number / most) * 26) : 0;
      return height ? `M${(from + index) * 2} 27.5v-${height.toFixed(1)}h1.4v${height.toFixed(1)}z` : "";
    })
    .join("");
}

function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}
