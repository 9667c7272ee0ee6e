// Elements, and the text of numbers and tokens. Text enters the document through text nodes only.

/** Return an element. `props` are properties, `on...` handlers, or attributes if the name has a hyphen or is `role`. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else if (name === "class") element.className = value;
    else element[name] = value;
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

let serial = 0;
/** Return a control with its label, and a help text that is read with it. */
export function field(label, control, help = "", more = null) {
  control.id ||= `control-${++serial}`;
  const note = help ? h("small", { id: `${control.id}-help`, textContent: help }) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  const check = control.type === "checkbox";
  const name = h("label", { for: control.id, textContent: label });
  return h("div", { class: check ? "field check" : "field" }, check ? [control, name] : [name, control], note, more);
}

/** Return a `select` with these [value, text] pairs. */
export function select(options, value, onchange) {
  const element = h("select", { onchange: () => onchange(element.value) });
  for (const [key, text] of options) element.append(h("option", { value: key, textContent: text }));
  element.value = value;
  return element;
}

/** Return a number with four significant digits. */
export function number(value, digits = 4) {
  if (value === null || value === undefined) return "none";
  if (value === 0 || !Number.isFinite(value)) return String(value);
  value = Number(value.toPrecision(digits));
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e6) return value.toExponential(digits - 1).replace("-", "−").replace("e−", "e-");
  const text = size >= 1 ? value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size)))) : value.toFixed(digits);
  return text.replace("-", "−");
}

/** Return a number with seven significant digits, the precision of float32. */
export const exact = (value) => String(Number(value.toPrecision(7))).replace("-", "−");

const UNITS = ["", "k", "M", "G", "T", "P"];
/** Return a count with a unit and its decimal prefix, such as 1.20 MB. */
export function count(value, unit) {
  let power = 0;
  while (value >= 1000 && power < UNITS.length - 1) [value, power] = [value / 1000, power + 1];
  return `${power ? value.toPrecision(3) : Math.round(value)} ${UNITS[power]}${unit}`;
}

const SIGNS = { " ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍" };
/** Return a token with visible signs in place of white space and control characters. */
export function visible(token) {
  if (token === "") return "∅";
  const shown = (sign) => SIGNS[sign] ?? (/\s/.test(sign) ? "␣" : "�");
  return token.replace(/^\s+|\s+$|[^\S ]|\p{Cc}|\p{Cf}/gu, (run) => [...run].map(shown).join(""));
}

/** Return a clause as a sentence. */
export const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".") : "");

/** Return the start of a text. */
export const short = (text, length) => ([...text].length > length ? [...text].slice(0, length - 1).join("") + "…" : text);

/** Return a function that calls `action` once, `wait` ms after the last call. */
export function debounced(action, wait) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(action, wait, ...values);
  };
}

const write = debounced((text) => (byId("announce").textContent = text), 200);
/** Have screen readers say this, once the user pauses. */
export const announce = (text) => write(text);
