// How the weight of the chosen cell is computed, line by line.

import { newest } from "explore/data";
import { announce, exact, h, number, sentence, small, visible } from "explore/dom";

const FEW = 8; // values of a list that are shown unfolded
const MANY = 40; // lines that are shown unfolded
const LONG = 160; // characters of a statement that are shown unfolded

export class Arithmetic {
  constructor(root, app) {
    Object.assign(this, { root, app, key: null });
    this.load = newest();
    this.title = h("p", { class: "pair" });
    this.body = h("div");
    root.append(h("h2", {}, "Arithmetic of one weight"), this.title, this.body);
  }

  update() {
    const { app } = this;
    const { view, matrix } = app.now();
    if (!view) return;
    const { head, cell, setup } = app;
    const [query, key] = cell;
    const token = (i) => `${i} “${visible(view.tokens[i] ?? "")}”`;
    const text = `How much query ${token(query)} attends to key ${token(key)}, in layer ${head[0]}, head ${head[1]}.`;
    if (this.title.textContent !== text) this.title.textContent = text;
    const name = JSON.stringify([setup, head, cell]);
    if (name === this.key && matrix === this.matrix) return;
    Object.assign(this, { key: name, matrix });
    if (!app.data.live) {
      this.#plain("This page is an export: run attnlab explore to see the arithmetic.");
      return;
    }
    if (!matrix) {
      this.#plain(sentence(app.layer()?.note ?? ""));
      return;
    }
    this.body.setAttribute("aria-busy", "true");
    this.load(
      (signal) => app.data.cell(setup, head, cell, signal),
      (answer) => this.#show(answer),
      (error) => this.#plain(error.message),
    );
  }

  #plain(text) {
    this.body.removeAttribute("aria-busy");
    this.body.replaceChildren(h("p", { class: "soft" }, text));
  }

  #show({ weight, lines, python, contribution, note }) {
    this.body.removeAttribute("aria-busy");
    const rows = lines.map((line) => this.#line(line));
    const shown = rows.length > MANY ? [...rows.slice(0, MANY / 2), this.#folded(rows.slice(MANY / 2, -MANY / 2)), ...rows.slice(-MANY / 2)] : rows;
    const copy = h("button", { id: "copy-python", onclick: () => this.#copy(python, copy) }, "Copy as Python");
    const code = h("details", {}, h("summary", {}, "Python"), h("pre", { tabIndex: 0 }, h("code", {}, python)));
    this.body.replaceChildren(h("div", {},
      h("p", { class: "result" }, "weight ", h("strong", { id: "weight" }, exact(weight))),
      h("ol", { class: "lines" }, shown),
      contribution ? this.#contribution(contribution) : null,
      note ? small(sentence(note)) : null,
      h("p", {}, copy),
      code,
    ));
  }

  #line({ name, code, value, meaning }) {
    const literal = /^[[\]\d\s.,eE+-]+$/.test(code); // a number or a list of them: the value says the same
    const long = !literal && code.length > LONG;
    const statement = h("code", {}, h("b", {}, name), literal ? "" : ` = ${long ? `${code.slice(0, LONG)} …` : code}`);
    return h("li", {}, h("span", { class: "meaning" }, meaning), statement, long ? h("details", {}, h("summary", {}, "whole statement"), h("code", {}, code)) : null, this.#value(value));
  }

  #value(value) {
    if (Array.isArray(value) && Array.isArray(value[0])) value = value.flat();
    if (!Array.isArray(value)) return h("span", { class: "value" }, `= ${exact(value)}`);
    const text = (values) => values.map((each) => number(each)).join(", ");
    if (value.length <= FEW) return h("span", { class: "value" }, `= [${text(value)}]`);
    return h("details", { class: "value" }, h("summary", {}, `= [${text(value.slice(0, 4))}, … ${value.length} values]`), h("span", {}, text(value)));
  }

  #folded(rows) {
    return h("li", {}, h("details", {}, h("summary", {}, `${rows.length} more lines`), h("ol", { class: "lines" }, rows)));
  }

  // The part of the output of the head that comes from this key, as bars around zero.
  #contribution(values) {
    const largest = Math.max(...values.map(Math.abs), 1e-12);
    const bars = values.slice(0, 64).map((value) => {
      const bar = h("span", { class: value < 0 ? "negative" : "positive", title: number(value) });
      bar.style.height = `${(50 * Math.abs(value)) / largest}%`;
      return h("span", { class: "slot" }, bar);
    });
    const norm = Math.hypot(...values);
    return h("div", {},
      h("h3", {}, "Contribution to the output"),
      small(`weight × value, ${values.length} numbers with norm ${number(norm)}: what this key adds to the output of the head at this query.`),
      h("div", { class: "bars", role: "img", "aria-label": `bars from ${number(Math.min(...values))} to ${number(Math.max(...values))}` }, bars),
      h("details", {}, h("summary", {}, "Numbers"), h("p", { class: "numbers" }, values.map((each) => number(each)).join(", "))),
    );
  }

  async #copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      announce("copied");
    } catch {
      // without permission: the text is selected instead
      const details = this.body.querySelector("details:has(pre)");
      details.open = true;
      getSelection().selectAllChildren(details.querySelector("code"));
      button.textContent = "Selected: press Ctrl C";
    }
  }
}
