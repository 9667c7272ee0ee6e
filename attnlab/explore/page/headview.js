// The matrix of the chosen head with its controls: alone, or beside that of a second setup and their difference.

import { peakOf, scaleOf } from "explore/color";
import { maskProblem } from "explore/changes";
import { announce, byId, columnHead, count, h, number, rowHead, sentence, visible } from "explore/dom";
import { cacheOf } from "explore/summary";
import { HeadMap, reading } from "explore/map";
import { badge, colorBar } from "explore/overview";
import { fillTable } from "explore/table";

const NAMES = { a: "A", b: "B", difference: "Difference" };
const MOST_BLOCKED = 4096;
const COPY = "A and B are equal. B starts as a copy of A: change the network or a setting, and only B is affected.";

export class HeadView {
  constructor(root, app) {
    Object.assign(this, { root, app, drawing: false, shown: {} });
    this.title = h("h2", { id: "map-title" });
    this.heading = h("span", { class: "heading" });
    this.layers = h("select", { id: "layer", onchange: () => app.choose([Number(this.layers.value), 0]) });
    this.heads = h("select", { id: "head", onchange: () => app.choose([app.head[0], Number(this.heads.value)]) });
    this.sides = h("fieldset", { class: "sides", hidden: true }, h("legend", { class: "quiet" }, "Setup that the panels show and change"), h("span", { class: "soft", "aria-hidden": "true" }, "Edit"));
    for (const side of ["a", "b"]) {
      const input = h("input", { type: "radio", name: "side", id: `side-${side}`, value: side, onchange: () => app.set({ side }) });
      this.sides.append(input, h("label", { for: input.id }, NAMES[side]));
    }
    const button = (text, title, action) => h("button", { title, "aria-label": title, onclick: action }, text);
    this.mask = h("button", { id: "draw-mask", "aria-pressed": "false", title: "Drag over cells to block them", onclick: () => this.draw(!this.drawing) }, "Draw mask");
    this.tableButton = h("button", { id: "show-table", "aria-pressed": "false", title: "Keyboard: t", onclick: () => this.toggleTable() }, "Table");
    this.readout = h("output", { id: "readout", "aria-live": "off" });
    this.figures = h("div", { class: "figures" });
    this.table = h("div", { class: "table", hidden: true, tabIndex: 0, role: "region", "aria-label": "Attention weights around the chosen cell", onclick: (event) => event.target.dataset.cell && app.pick(event.target.dataset.cell.split(".").map(Number)) });
    this.none = h("p", { class: "none", hidden: true });
    this.costs = h("div", { class: "costs", hidden: true });
    root.prepend(
      h("div", { class: "row" }, this.title, this.heading),
      h("div", { class: "controls tools" },
        this.sides,
        h("span", {}, h("label", { for: "layer" }, "Layer "), this.layers),
        h("span", {}, h("label", { for: "head" }, "Head "), this.heads),
        h("span", { class: "group" }, button("−", "Zoom out", () => this.zoom(1 / 1.5)), button("+", "Zoom in", () => this.zoom(1.5)), button("⤢", "Show the whole matrix", () => this.each((map) => map.reset()))),
        this.mask,
        this.tableButton,
      ),
      this.readout,
      this.figures,
      this.none,
      this.table,
      this.costs,
    );
    this.maps = {};
    for (const name of ["a", "b", "difference"]) this.maps[name] = this.#panel(name);
    this.equal = h("p", { class: "none", id: "equal" }, COPY);
    this.figures.append(this.equal);
  }

  #panel(name) {
    const map = new HeadMap("Attention matrix", {
      hover: (cell) => this.#hover(cell, name),
      choose: (cell) => this.app.pick(cell),
      block: (cells, blocked) => this.#block(cells, blocked),
      detail: (queries, keys) => name !== "difference" && this.app.detail(name, queries, keys),
    });
    const caption = h("figcaption");
    const scale = h("div", { class: "legend" });
    const figure = h("figure", { hidden: true }, caption, map.stage, scale);
    this.figures.append(figure);
    return { map, figure, caption, scale };
  }

  each(action) {
    for (const { map, figure } of Object.values(this.maps)) if (!figure.hidden && map.matrix) action(map);
  }
  zoom(factor) {
    this.each((map) => map.zoom(factor));
  }

  toggleTable() {
    this.app.set({ table: !this.app.state.table });
    announce(this.app.state.table ? "table shown" : "matrix shown");
    this.focus();
  }

  /** Give the focus to the matrix, or to the table in its place. */
  focus() {
    (this.app.state.table ? this.table : this.maps[this.app.state.side].map.stage).focus();
  }

  draw(on) {
    if (on && this.mask.disabled) return;
    this.drawing = on;
    this.mask.setAttribute("aria-pressed", String(on));
    this.update(true);
    announce(on ? "drag over the matrix to block cells; Escape ends it" : "drawing of a mask ended");
  }

  #block(cells, blocked) {
    this.app.change((setup) => {
      const names = new Set(setup.mask.blocked.map(String));
      for (const cell of cells) {
        if (blocked) names.add(String(cell));
        else names.delete(String(cell));
      }
      const all = [...names].map((name) => name.split(",").map(Number)).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
      setup.mask.blocked = all.slice(0, MOST_BLOCKED);
      if (all.length > MOST_BLOCKED) announce(`only ${MOST_BLOCKED} cells can be blocked one by one`);
    });
  }

  blockCell() {
    const { cell, state } = this.app;
    this.#block([cell], !state[state.side].mask.blocked.some((each) => String(each) === String(cell)));
  }

  #hover(cell, from) {
    for (const [name, { map, figure }] of Object.entries(this.maps)) if (name !== from && !figure.hidden) map.hover(cell);
    this.#read(cell ?? this.app.cell);
  }

  // The line says what each matrix has at the cell.
  #read(cell) {
    const { app } = this;
    const { a, b } = app.sides;
    if (!a.view) return;
    let text = reading(a.matrix, a.view.tokens, cell);
    if (app.state.b && b.matrix) {
      const [one, two] = [a.matrix?.at(...cell)?.value, b.matrix.at(...cell)?.value];
      if (one !== undefined && two !== undefined) text = text.replace(/: [^:]*$/, `: A ${number(one)}, B ${number(two)}, B − A ${number(two - one)}`);
    }
    this.readout.textContent = text;
  }

  update(force = false) {
    const { app } = this;
    const { state, sides } = app;
    const { view } = app.now();
    if (!view) return;
    const [layer, head] = app.head;
    const info = view.layers[layer];
    this.title.textContent = `Layer ${layer}, head ${head}`;
    this.heading.replaceChildren(badge(info), h("span", { class: "soft" }, info.title));
    this.#options(view, layer, head);
    this.sides.hidden = !state.b;
    byId(`side-${state.side}`).checked = true;
    this.mask.hidden = !app.data.live;
    const problem = maskProblem(view.layers, "blocked");
    this.mask.disabled = Boolean(problem);
    this.mask.title = problem || "Drag over cells to block them";
    this.tableButton.setAttribute("aria-pressed", String(state.table));
    const { a, b } = sides;
    const equal = state.b && a.matrix && b.matrix && [a, b].map(({ setup, head }) => JSON.stringify([setup, head])).reduce((one, two) => one === two);
    this.equal.hidden = !equal;
    const delta = equal ? null : app.difference();
    const both = state.b && sides.a.matrix && sides.b.matrix;
    const comparable = both && sides.a.matrix.signed === sides.b.matrix.signed;
    const peaks = Object.fromEntries(["a", "b"].map((name) => [name, sides[name].matrix ? scaleOf(sides[name].matrix.base) : 0]));
    if (comparable) peaks.a = peaks.b = Math.max(peaks.a, peaks.b); // one scale, so that colours compare
    this.#show("a", sides.a, peaks.a, force, state.b ? sides.a : null);
    this.#show("b", state.b ? sides.b : null, peaks.b, force, sides.b);
    if (delta && (this.shown.delta?.[0] !== sides.a.matrix || this.shown.delta?.[1] !== sides.b.matrix)) {
      this.delta = { matrix: delta, view: sides.a.view, setup: sides.a.setup };
      this.shown.delta = [sides.a.matrix, sides.b.matrix];
    }
    this.#show("difference", delta ? this.delta : null, delta ? peakOf(delta.base.values) : 0, force, null);
    const missing = app.side.matrix ? "" : sentence(info.note);
    this.none.hidden = !missing && !(both && !delta && !equal);
    this.none.textContent = missing || "The two matrices have different shapes: there is no difference map.";
    this.#read(app.cell);
    this.table.hidden = !state.table || !app.side.matrix;
    this.figures.hidden = !this.table.hidden;
    if (!this.table.hidden) fillTable(this.table, app.side.matrix, view.tokens, app.cell);
    byId("map-keys").hidden = !this.table.hidden;
    byId("table-keys").hidden = this.table.hidden;
    this.#costs();
  }

  retint() {
    this.update(true);
  }

  #options(view, layer, head) {
    const names = `${view.layers.map(({ mechanism }) => mechanism)} ${view.layers[layer].heads.length}`;
    if (names !== this.names) {
      this.names = names;
      this.layers.replaceChildren(...view.layers.map(({ mechanism }, i) => h("option", { value: i }, `${i} ${mechanism}`)));
      this.heads.replaceChildren(...Array.from({ length: Math.max(1, view.layers[layer].heads.length) }, (_, i) => h("option", { value: i }, String(i))));
    }
    this.layers.value = layer;
    this.heads.value = head;
  }

  #show(name, source, peak, force, titled) {
    const { map, figure, caption, scale } = this.maps[name];
    const matrix = source?.matrix;
    figure.hidden = !matrix;
    if (!matrix) return;
    const { app } = this;
    const { cell } = app;
    const blocked = name === "difference" ? [] : source.setup.mask.blocked;
    const old = this.shown[name];
    const chosen = name === "difference" ? [] : app.state.tokens.filter((index) => index < matrix.length);
    const { direction } = app.state;
    const same = !force && old && old.matrix === matrix && old.peak === peak && old.blocked === blocked && old.detail === matrix.detail && String(old.chosen) === String(chosen) && old.direction === direction;
    if (same) {
      if (String(old.cell) !== String(cell)) map.move(cell);
    } else {
      map.show({ matrix, tokens: source.view.tokens, peak, cell, blocked, chosen, direction, drawing: this.drawing && name === app.state.side });
      if (old?.matrix.length === matrix.length && String(old.cell) !== String(cell)) map.move(cell);
      const { width, height } = matrix.detail ?? matrix.base;
      const note = width > 1 || height > 1 ? `sums over ${width} keys, means over ${height} queries; zoom in for single weights` : "square-root scale";
      scale.replaceChildren(colorBar(matrix.signed, map.unit, note, !matrix.detail && map.unit < peakOf(matrix.base.values)));
    }
    this.shown[name] = { matrix, peak, blocked, chosen, direction, cell, detail: matrix.detail };
    const layer = titled?.view.layers[titled.head[0]];
    const what = name === "difference" ? "Difference, B − A" : layer ? `${NAMES[name]}: ${layer.title}, layer ${titled.head[0]}, head ${titled.head[1]}` : "";
    caption.textContent = what;
    caption.hidden = !what;
    map.stage.setAttribute("aria-label", `${what || "Attention matrix"}, ${matrix.length} queries by ${matrix.length} keys; ${reading(matrix, source.view.tokens, cell)}`);
  }

  #costs() {
    const { state, sides } = this.app;
    this.costs.hidden = !state.b || !sides.a.view || !sides.b.view;
    if (this.costs.hidden) return;
    const total = (view, name) => view.layers.reduce((sum, layer) => (sum === null || layer[name] === null ? null : sum + layer[name]), 0);
    const row = (text, show) => h("tr", {}, rowHead(text), ["a", "b"].map((side) => h("td", {}, show(sides[side].view))));
    const flops = (view) => (total(view, "flops") === null ? "not counted" : count(total(view, "flops"), "FLOP"));
    this.costs.replaceChildren(
      h("table", {},
        h("caption", {}, "Cost of the attention layers on this input"),
        h("thead", {}, h("tr", {}, h("td"), columnHead("A"), columnHead("B"))),
        h("tbody", {}, row("Forward pass", flops), row("Decoding state per token", (view) => cacheOf(total(view, "state_bytes"))), (sides.a.view.prediction[0] ?? sides.b.view.prediction[0]) && row("Most probable output", (view) => (view.prediction.length ? `“${visible(view.prediction[0][0])}” ${number(view.prediction[0][1])}` : "none"))),
      ),
    );
  }
}

