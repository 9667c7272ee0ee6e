// Elements, and the text of numbers and tokens. Text enters the document through text nodes only.

/** Return an element. `props` are properties, `on...` handlers, or attributes if the name has a hyphen or is `role`. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  if (tag === "button") element.type = "button";
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

export const small = (...content) => h("p", { class: "soft small" }, content);
export const rowHead = (text, title) => h("th", { scope: "row", title }, text);
export const columnHead = (text) => h("th", { scope: "col" }, text);

export const byId = (id) => document.getElementById(id);

let serial = 0;
/** Return a control with its label, and a help text that is read with it. */
export function field(label, control, help = "", more = null) {
  control.id ||= `control-${++serial}`;
  const note = help ? h("small", { id: `${control.id}-help`, textContent: help }) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  const check = control.type === "checkbox";
  const name = h("label", { for: control.id }, label);
  return h("div", { class: check ? "field check" : "field" }, check ? [control, name] : [name, control], note, more);
}

/** Return a `select` with these [value, text] pairs. */
export function select(options, value, onchange) {
  const element = h("select", { onchange: () => onchange(element.value) });
  for (const [key, text] of options) element.append(h("option", { value: key }, text));
  element.value = value;
  return element;
}

/** Show an error under a control, or take it away. */
export function complain(control, text = "") {
  const box = control.closest(".field") ?? control.parentElement;
  box.querySelector(".error")?.remove();
  const note = text && h("p", { class: "error", id: `${control.id}-error`, role: "alert", textContent: text });
  if (note) box.append(note);
  control.setAttribute("aria-invalid", text ? "true" : "false");
  control.setAttribute("aria-describedby", `${text ? note.id : ""} ${control.id}-help`.trim());
}

/** Whether the number in a control is allowed; if not, it says what is. */
export function check(control, label) {
  const { min, max, step, validity } = control;
  const range = max ? ` from ${min} to ${max}` : min ? `, at least ${min}` : "";
  const rule = step === "any" && min > 0 ? "greater than 0" : `a ${step === "any" ? "" : "whole "}number${range}`;
  complain(control, validity.valid ? "" : `${label} must be ${rule}.`);
  return validity.valid;
}

/** Give a canvas a size in CSS pixels; returns its context. */
export function sized(canvas, width, height) {
  const scale = devicePixelRatio;
  Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

/** Return a number with three significant digits; only an exact zero is "0". */
export function number(value) {
  if (value === null || value === undefined) return "none";
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  const text = size < 1e-4 || size >= 1e6 ? value.toExponential(2) : size >= 999.5 ? value.toFixed(0) : value.toPrecision(3);
  return text.replace(/^-/, "−").replace("e+", "e");
}

/** Return a quantity of which values below 1e-6 are rounding errors of float32. */
export const rounded = (value) => number(Math.abs(value) < 1e-6 ? 0 : value);
export const percent = (value) => (value === null ? "–" : `${rounded(Math.abs(value) < 1e-6 ? 0 : 100 * value)} %`);
export const nats = (entropy) => (entropy === null ? "not defined for signed weights" : `${rounded(entropy)} nats`);

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
