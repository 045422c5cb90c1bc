// Elements of the page. Whatever a server says becomes a text node or an attribute from the list
// below: nothing is parsed as HTML, and no attribute that runs or loads something is ever set.

const ATTRIBUTES = /^(class|type|role|scope|title|value|datetime|disabled|aria-[a-z]+|data-[a-z]+)$/;

export const byId = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (!ATTRIBUTES.test(name)) throw new Error(`attribute ${name}`);
    if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== ""));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const button = (text, attributes) => el("button", { type: "button", ...attributes }, text);

// A link to another site; only its text where the address is not one of the web.
export function link(url, text, title) {
  const node = el("a", { title }, text);
  if (!/^https?:\/\//.test(url ?? "") || !URL.canParse(url)) return el("span", { class: "muted", title }, text);
  node.href = url;
  node.target = "_blank";
  node.rel = "noopener noreferrer";
  return node;
}

// Make what is in an element like `children`. Nodes stay where they can, those with a data-id
// wherever they move: so focus and selections stay, and a screen reader repeats only what changes.
export function show(id, ...children) {
  fill(byId(id), children.filter((child) => child !== null && child !== ""));
}

function fill(parent, children) {
  const kept = new Map(Array.from(parent.children, (node) => [node.dataset.id, node]));
  let here = parent.firstChild;
  for (const one of children) {
    const child = typeof one === "string" ? new Text(one) : one;
    const id = child.dataset?.id;
    const node = id !== undefined ? kept.get(id) : here?.dataset?.id === undefined ? here : null;
    kept.delete(id); // of two with one id, the second is a node of its own
    if (node?.nodeName !== child.nodeName) {
      parent.insertBefore(child, here);
      continue;
    }
    if (node === here) here = here.nextSibling;
    else parent.insertBefore(node, here);
    change(node, child);
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}

function change(node, to) {
  if (node instanceof Text) {
    if (node.data !== to.data) node.data = to.data;
    return;
  }
  for (const { name } of [...node.attributes]) if (!to.hasAttribute(name)) node.removeAttribute(name);
  for (const { name, value } of to.attributes) if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  fill(node, [...to.childNodes]);
}

const ICONS = {
  available: "M3.5 8.5l3 3 6-7",
  limited: "M3 12.5h10M5 12.5V8M8 12.5v-9M11 12.5V6",
  cooling_down: "M8 4.5V8l2.5 2M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12z",
  rejected: "M4.5 4.5l7 7M11.5 4.5l-7 7",
  unresolved: "M5.8 6a2.2 2.2 0 1 1 3.3 1.9C8.3 8.4 8 8.8 8 9.6M8 12.4v.1",
  disabled: "M4 8h8",
};
export const STATES = Object.keys(ICONS);

// States come from the server, class names do not.
export const stateClass = (state) => (STATES.includes(state) ? state : "disabled");
export const stateName = (state) => String(state).replaceAll("_", " ");

// The shape says the same as the color and the word beside it.
export const stateIcon = (state) =>
  svg("svg", { viewBox: "0 0 16 16", class: "icon", "aria-hidden": "true" }, svg("path", { d: ICONS[stateClass(state)] }));

export const stateBadge = (state) =>
  el("span", { class: `state is-${stateClass(state)}` }, stateIcon(state), stateName(state));
