// Elements of the page. Whatever a server says becomes a text node or an attribute from the list
// below: nothing is parsed as HTML, and no attribute that runs or loads something is ever set.

const ATTRIBUTES = /^(class|id|type|role|scope|colspan|title|value|datetime|hidden|aria-[a-z]+)$/;
const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (!ATTRIBUTES.test(name)) throw new Error(`attribute ${name}`);
    node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A link to another site; null where the address is not one of the web.
export function link(url, text, title) {
  const { protocol } = parsed(url);
  if (protocol !== "https:" && protocol !== "http:") return null;
  const node = el("a", { title }, text);
  node.href = url;
  node.target = "_blank";
  node.rel = "noopener noreferrer";
  return node;
}

function parsed(url) {
  try {
    return new URL(url);
  } catch {
    return { protocol: "" };
  }
}

// The setters below leave alone what is already right: a screen reader repeats what changes.

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

export function setHidden(node, hidden) {
  if (node.hidden !== hidden) node.hidden = hidden;
}

// Put `nodes` into `parent`, in order, moving only those that are elsewhere: focus stays.
export function arrange(parent, nodes, after = null) {
  let here = after ? after.nextSibling : parent.firstChild;
  for (const node of nodes) {
    if (node === here) here = here.nextSibling;
    else parent.insertBefore(node, here);
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}

const ICONS = {
  available: "M3.5 8.5l3 3 6-7",
  limited: "M3 12.5h10M5 12.5V8M8 12.5v-9M11 12.5V6",
  cooling_down: "M8 4.5V8l2.5 2M8 14A6 6 0 1 0 8 2a6 6 0 0 0 0 12z",
  rejected: "M4.5 4.5l7 7M11.5 4.5l-7 7",
  unresolved: "M5.8 6a2.2 2.2 0 1 1 3.3 1.9C8.3 8.4 8 8.8 8 9.6M8 12.4v.1",
  disabled: "M4 8h8",
};

// The shape says the same as the color and the word beside it.
export function stateIcon(state) {
  const path = svg("path", { d: ICONS[stateClass(state)] });
  return svg("svg", { viewBox: "0 0 16 16", class: "icon", "aria-hidden": "true" }, path);
}

export function stateName(state) {
  return String(state).replaceAll("_", " ");
}

// States come from the server, class names do not.
export function stateClass(state) {
  return Object.hasOwn(ICONS, state) ? state : "disabled";
}
