"use strict";
// Elements are made here and nowhere else; text goes in as text nodes, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#2f6fd0", "#d9722b", "#2e9e5b", "#9353c4", "#c93a4b", "#1d9aa8", "#8a6d1f", "#5d6673"];
const colour = i => COLOURS[i % COLOURS.length];

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(3).filter(child => child != null));
  return node;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function swatch(background) {
  const node = el("span", { class: "swatch" });
  node.style.background = background;
  return node;
}

// Characters that are not seen, or that change how others are seen, are named: control characters, marks of direction,
// separators, and halves of surrogate pairs.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function shown(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(UNSEEN)) {
    const code = match[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    parts.push(text.slice(end, match.index), el("span", { class: "control" }, `U+${code}`));
    end = match.index + 1;
  }
  parts.push(text.slice(end));
  return parts.filter(part => part !== "");
}

const plain = text => text.replace(UNSEEN, c => `[U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
const number = (value, digits = 4) => value == null ? "?" : String(Number(value.toPrecision(digits)));
const percent = value => value == null ? "?" : `${(100 * value).toFixed(1)}%`;

function section(id, title, ...children) {
  document.getElementById("nav").append(el("a", { href: `#${id}` }, title));
  const node = el("section", { id }, el("h2", {}, title), children);
  document.getElementById("main").append(node);
  return node;
}

function select(name, options, onchange) {
  return el("select", { name, onchange, "aria-label": name }, options.map(([value, text]) => el("option", { value }, text)));
}
