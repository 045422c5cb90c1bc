// The table of keys: a row per key, in a group per project. Rows are kept from one update to the
// next and only what is new is written, so that focus, open details and selections stay.

import { arrange, el, setClass, setHidden, setText, stateClass, stateIcon, stateName, svg } from "./dom.js";
import { ago, count, countdown, money, plural, sentence, shortCount } from "./format.js";

const SHOWN_MODELS = 3;
const WINDOWS = { rpm: "RPM", tpm: "TPM", rpd: "RPD" };
const ACTIONS = { reset: "Reset", disable: "Disable", enable: "Enable", check: "Check" };

export class KeyTable {
  // `onAction(key, action, button)` and `onCalls(keyId)` are called for the buttons of a row.
  constructor(table, onAction, onCalls) {
    this.table = table;
    this.onAction = onAction;
    this.onCalls = onCalls;
    this.rows = new Map();
    this.groups = new Map();
  }

  // Returns sentences about the keys whose state is another than at the last update.
  update(keys, projects, actions) {
    const changes = [];
    const rows = new Map();
    const groups = new Map();
    const members = new Map();
    this.table.classList.toggle("with-actions", actions);
    for (const key of keys) {
      const row = this.rows.get(key.key_id) ?? new KeyRow(this.onAction, this.onCalls);
      if (row.key && row.key.state !== key.state) {
        changes.push(`${key.key_id} is ${stateName(key.state)}`);
      }
      row.update(key, actions);
      rows.set(key.key_id, row);
      if (!members.has(key.project)) members.set(key.project, []);
      members.get(key.project).push(row);
    }
    for (const [project, inside] of members) {
      const group = this.groups.get(project) ?? new ProjectGroup(project);
      group.update(inside, Object.hasOwn(projects, project) ? projects[project] : {});
      groups.set(project, group);
    }
    arrange(this.table, [...groups.values()].map((group) => group.body), this.table.tHead);
    this.rows = rows;
    this.groups = groups;
    return changes;
  }

  tick(now) {
    for (const row of this.rows.values()) row.tick(now);
  }
}

class ProjectGroup {
  constructor(project) {
    this.name = el("span", { class: "project-name" }, String(project));
    this.note = el("span", { class: "note" });
    this.budget = new Bar();
    this.head = el("tr", { role: "row", class: "project" },
      el("th", { scope: "rowgroup", role: "rowheader", colspan: "7" }, this.name, " ", this.note, this.budget.node));
    this.body = el("tbody", { role: "rowgroup" });
  }

  update(rows, { usd_today: spent = null, usd_per_day: budget = null }) {
    const available = rows.filter((row) => row.key.available).length;
    const shared = rows.length > 1 ? ", which share its limits" : "";
    const cost = budget === null ? "" : ` · ${money(spent)} of ${money(budget)} today`;
    setText(this.note, `project · ${plural(rows.length, "key")}${shared} · ${available} available${cost}`);
    this.budget.update(spent ?? 0, budget);
    arrange(this.body, [this.head, ...rows.map((row) => row.row)]);
  }
}

class KeyRow {
  constructor(onAction, onCalls) {
    this.key = null;
    this.models = new Map();
    this.id = el("span", { class: "key-id" });
    this.labels = el("span", { class: "note" });
    this.badge = el("span", { class: "state" });
    this.until = el("span", { class: "countdown" });
    this.sentence = el("p", { class: "sentence" });
    this.usage = el("div", { class: "usage" });
    this.more = el("summary");
    this.moreUsage = el("div", { class: "usage" });
    this.details = el("details", {}, this.more, this.moreUsage);
    this.noUsage = el("p", { class: "note" }, "Not used yet.");
    this.spark = new Sparkline();
    this.success = el("span", {});
    this.errors = el("span", {});
    this.lastError = el("p", { class: "note" });
    this.lastUsed = el("p", { class: "note" });
    this.callsButton = el("button", { type: "button", class: "link" }, "Show calls");
    this.callsButton.addEventListener("click", () => onCalls(this.key.key_id));
    this.tokens = el("p", {});
    this.tokensOut = el("p", {});
    this.cost = el("p", {});
    this.buttons = Object.entries(ACTIONS).map(([action, name]) => {
      const button = el("button", { type: "button" }, name);
      button.addEventListener("click", () => onAction(this.key, action, button));
      return [action, name, button];
    });
    const cell = (label, ...content) => {
      const made = el("td", { role: "cell" }, ...content);
      made.dataset.label = label;
      return made;
    };
    this.actionsCell = cell("Actions", el("div", { class: "buttons" }, ...this.buttons.map((b) => b[2])));
    this.actionsCell.className = "actions-column";
    this.row = el("tr", { role: "row", class: "key" },
      el("th", { scope: "row", role: "rowheader" }, this.id, this.labels),
      cell("State", el("p", { class: "state-line" }, this.badge, this.until), this.sentence),
      cell("Used of each limit", this.noUsage, this.usage, this.details),
      cell("Last 60 minutes", this.spark.node),
      cell("Calls", el("p", { class: "counts" }, this.success, this.errors), this.lastError, this.lastUsed, this.callsButton),
      cell("Today", this.tokens, this.tokensOut, this.cost),
      this.actionsCell);
  }

  update(key, actions) {
    const before = this.key;
    this.key = key;
    setText(this.id, key.key_id);
    const platform = key.platform === "gemini_api" ? "" : key.platform;
    const labels = [platform, key.tier, key.model, key.priority ? `priority ${key.priority}` : ""];
    setText(this.labels, labels.filter(Boolean).join(" · "));
    if (before?.state !== key.state) {
      this.badge.replaceChildren(stateIcon(key.state), stateName(key.state));
      setClass(this.badge, `state state-${stateClass(key.state)}`);
      setClass(this.row, `key key-${stateClass(key.state)}`);
      this.row.dataset.state = key.state;
    }
    setText(this.sentence, key.available ? blockedModels(key) : sentence(key.sentence));
    this.updateUsage(key.used ?? {});
    this.spark.update(key.history);
    setText(this.success, `${shortCount(key.success_count)} ok`);
    setText(this.errors, plural(key.error_count, "error"));
    setClass(this.errors, key.error_count ? "bad" : "muted");
    setText(this.lastError, key.last_error ? `last: ${key.last_error}` : "");
    this.callsButton.setAttribute("aria-label", `Show calls of ${key.key_id}`);
    const tokens = key.tokens_today ?? {};
    setText(this.tokens, tokens.input || tokens.output ? `${shortCount(tokens.input)} in` : "–");
    setText(this.tokensOut, tokens.input || tokens.output ? `${shortCount(tokens.output)} out` : "");
    setText(this.cost, key.usd_today === null ? "" : money(key.usd_today));
    setHidden(this.actionsCell, !actions);
    for (const [action, name, button] of this.buttons) {
      const label = `${name} ${key.key_id}`;
      if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
      const off = key.state === "disabled";
      setHidden(button, (action === "disable" && off) || (action === "enable" && !off));
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
    const nodes = [...models.values()].map((usage) => usage.node);
    arrange(this.usage, nodes.slice(0, SHOWN_MODELS));
    arrange(this.moreUsage, nodes.slice(SHOWN_MODELS));
    setHidden(this.details, nodes.length <= SHOWN_MODELS);
    setText(this.more, plural(nodes.length - SHOWN_MODELS, "more model"));
    setHidden(this.noUsage, nodes.length > 0);
  }

  tick(now) {
    const key = this.key;
    setText(this.until, key.available_at && !key.available ? countdown(key.available_at, now) : "");
    setText(this.lastUsed, key.last_used ? `used ${ago(key.last_used, now)}` : "");
    if (key.last_used) this.lastUsed.title = key.last_used;
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
    this.text = el("p", { class: "note" });
    this.node = el("div", { class: "spark-box" }, this.image, this.text);
  }

  update(history) {
    const requests = history?.requests ?? [];
    const failures = history?.failures ?? [];
    const total = sum(requests);
    const failed = sum(failures);
    const text = total || failed ? `${plural(total, "request")}${failed ? `, ${count(failed)} failed` : ""}` : "no request";
    const most = Math.max(1, ...requests, ...failures);
    setAttribute(this.image, "aria-label", `Last 60 minutes: ${text}, at most ${count(most)} a minute`);
    setText(this.text, text);
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

