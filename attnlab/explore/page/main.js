// The application: the state, what is loaded for it, and the parts of the page that show it.

import { onTheme } from "explore/color";
import { newest, open, Problem, steady } from "explore/data";
import { announce, byId, complain, debounced, h, sentence } from "explore/dom";
import { Keys } from "explore/keys";
import { HeadView } from "explore/headview";
import { reading } from "explore/map";
import { difference, Matrix } from "explore/matrix";
import { Overview } from "explore/overview";
import { Panels } from "explore/panels";
import { Pickers } from "explore/pickers";
import { Save } from "explore/save";
import { before, decode, encode, newState, originOf, same, sameNetwork } from "explore/setup";
import { Strip } from "explore/strip";
import { Tour } from "explore/tour";

const FEW = 16; // chosen tokens of a large matrix whose rows are fetched

/** One setup with what is loaded for it. */
class Side {
  constructor(prefetch) {
    Object.assign(this, { setup: null, wanted: null, view: null, thumbs: null, matrix: null, head: [0, 0], baseline: null, origin: null });
    this.views = steady();
    this.maps = newest();
    this.details = newest();
    this.baselines = newest();
    this.prefetch = debounced(prefetch, 120); // once the user pauses: the server has one request less to answer before
  }
}

class App {
  constructor() {
    this.data = open();
    const prefetch = (setup, view, head) => {
      for (const step of [1, -1]) this.#base(setup, view, this.#stepped(view, head, step))?.catch(() => {});
    };
    this.sides = { a: new Side(prefetch), b: new Side(prefetch) };
    this.state = newState();
    this.parts = [];
    this.writeLink = debounced(() => this.#link(false), 200);
  }

  async start() {
    this.limit = 1024;
    this.read();
    addEventListener("hashchange", () => {
      if (location.hash.slice(1) !== this.fragment()) this.read();
    });
    try {
      this.catalog = await this.data.catalog();
    } catch (error) {
      this.problem(error);
      this.catalog = { version: "", mechanisms: [], tasks: [], runs: [], pretrained: [] };
    }
    this.parts = [
      new Pickers(byId("pickers"), this),
      new Strip(byId("tokens"), this),
      new Overview(byId("overview"), this),
      new HeadView(byId("map"), this),
      new Panels(byId("details"), this),
      new Save(byId("save"), this),
    ];
    this.tour = new Tour(byId("tour"), this);
    this.keys = new Keys(this);
    byId("compare").addEventListener("click", () => this.compare());
    byId("compare").hidden = !this.data.live;
    onTheme(() => {
      for (const part of this.parts) (part.retint ?? part.update).call(part);
    });
    this.update();
  }

  // State

  get side() {
    return this.sides[this.state.side];
  }
  get setup() {
    return this.side.setup ?? this.state[this.state.side];
  }
  get origin() {
    return this.side.origin;
  }
  get head() {
    return this.side.head;
  }
  get cell() {
    const { a } = this.sides;
    if (this.state.cell || a.cellOf !== a.matrix || !a.cell) [a.cell, a.cellOf] = [this.#cell(a), this.state.cell ? null : a.matrix];
    return a.cell;
  }
  now() {
    const { view, thumbs, matrix, baseline } = this.side;
    return { state: this.state, view, thumbs, matrix, baseline };
  }
  layer() {
    return this.side.view?.layers[this.head[0]];
  }
  large() {
    return this.side.matrix?.pooled ?? true;
  }

  /** Return the chosen tokens, or the query (from) or key (to) of the chosen cell. */
  selection() {
    const { tokens, direction } = this.state;
    const length = this.side.view?.tokens.length ?? 0;
    const valid = tokens.filter((index) => index < length);
    return valid.length ? valid : [this.cell[direction === "from" ? 0 : 1]];
  }

  /** Change the state; a replaced link makes no entry in the history. */
  set(patch, { replace = false } = {}) {
    this.state = { ...this.state, ...patch };
    if (this.state.b) this.state.b = { ...this.state.b, input: this.state.a.input };
    else this.state.side = "a";
    this.stays = false;
    if (replace) this.writeLink();
    else this.#link(true);
    this.load();
    this.update();
  }

  /** Change the setup of the side that is edited: `edit` gets a copy. An error is shown under the `control`. */
  change(edit, { control = null, ...options } = {}) {
    const old = this.state[this.state.side];
    const setup = structuredClone(old);
    edit(setup);
    this.#settle();
    this.control = control;
    const patch = { [this.state.side]: setup };
    const { a } = this.sides;
    if (a.view && sameNetwork(old, setup) && same(old.input, setup.input)) {
      // what the page chose stays, so that the effect of the change is seen
      patch.head = this.state.head ?? a.head;
      patch.cell = this.state.cell ?? this.cell;
    }
    if (this.state.side === "b") patch.a = { ...this.state.a, input: setup.input };
    this.set(patch, options);
  }

  // Errors under controls are taken away; the controls get the values of the state again.
  #settle() {
    for (const control of document.querySelectorAll('[aria-invalid="true"]')) complain(control);
  }

  fragment() {
    return encode(this.data.live ? this.state : { ...this.state, a: newState().a });
  }

  #link(push) {
    const link = `#${this.fragment()}`;
    if (link === (location.hash || "#")) return;
    history[push ? "pushState" : "replaceState"](null, "", link);
  }

  read() {
    this.problem(null);
    this.#settle();
    this.linked = true;
    try {
      this.state = decode(location.hash);
    } catch (error) {
      this.state = newState();
      this.problem(new Problem(`${error.message}; this is the default view.`), { stays: true });
    }
    if (!this.data.live) Object.assign(this.state, location.hash ? {} : this.data.place, { a: this.data.setup, b: null, side: "a" });
    this.load();
    this.update();
    const { a } = this.sides;
    if (a.view && a.answered === a.wanted) this.#check(a.view);
  }

  /** Show an error; that of a link stays until the user changes something, others until a view is loaded. */
  problem(error, { stays = false } = {}) {
    if (error && !(error instanceof Problem)) console.error(error);
    this.stays = stays;
    const line = byId("problem");
    line.hidden = !error;
    line.textContent = error ? error.message : "";
  }

  // Loading

  load() {
    this.#loadSide("a");
    if (this.state.b) this.#loadSide("b");
  }

  #loadSide(name) {
    const side = this.sides[name];
    const setup = this.state[name];
    const key = JSON.stringify(setup);
    if (!side.known || !sameNetwork(side.known, setup)) Object.assign(side, { known: setup, origin: name === "b" && !side.known ? this.sides.a.origin : originOf(setup) });
    if (side.wanted !== key) {
      side.wanted = key;
      this.#busy(setup);
      side.views(
        () => this.#fetch(name, setup),
        (loaded) => this.#loaded(name, loaded),
        (error) => this.#failed(name, key, error),
      );
    } else if (side.view && String(this.#headOf(name, side.view)) !== String(side.head)) this.#loadMap(name);
    else side.maps.stop(); // the head that is shown is wanted again
  }

  #busy(setup) {
    byId("map").setAttribute("aria-busy", "true");
    clearInterval(this.waiting);
    const { source } = setup;
    const start = Date.now();
    const shown = this.sides.a.setup?.source;
    const what = source.kind === "trained" ? `Training ${source.model} attention` : "Computing";
    const seconds = h("span", { "aria-hidden": "true" });
    byId("busy").replaceChildren(`${what} … `, seconds, shown ? ` Still showing ${shown.model ?? shown.run ?? shown.name ?? shown.kind}.` : "");
    this.waiting = setInterval(() => {
      byId("busy").hidden = false;
      document.body.classList.add("stale");
      seconds.textContent = `${Math.floor((Date.now() - start) / 1000)} s.`;
    }, 500);
  }

  // The answer for a setup has arrived; another one may be on its way.
  #idle(name, key) {
    this.sides[name].answered = key;
    const shown = this.state.b ? ["a", "b"] : ["a"];
    if (shown.some((each) => this.sides[each].answered !== this.sides[each].wanted)) return;
    clearInterval(this.waiting);
    document.body.classList.remove("stale");
    byId("map").removeAttribute("aria-busy");
    byId("busy").hidden = true;
  }

  async #fetch(name, setup) {
    let view = await this.data.view(setup);
    if (setup.source.kind === "untrained") view = { ...view, prediction: [] }; // means nothing
    const head = this.#headOf(name, view);
    const [thumbs, base] = await Promise.all([this.data.thumbnails(setup), this.#base(setup, view, head)]);
    return { setup, view, head, thumbs, base };
  }

  #base(setup, view, head, signal) {
    return view.layers[head[0]]?.heads.length ? this.data.map(setup, head, { signal }) : null;
  }

  #loaded(name, { setup, view, head, thumbs, base }) {
    const side = this.sides[name];
    Object.assign(side, { setup, view, thumbs, baseline: null });
    if (!this.stays) this.problem(null);
    this.#show(name, head, base);
    if (String(this.#headOf(name, view)) !== String(head)) this.#loadMap(name);
    const plain = before(setup, side.origin);
    if (this.data.live && !same(plain, setup))
      side.baselines(
        (signal) => this.data.view(plain, signal),
        (baseline) => {
          side.baseline = baseline;
          this.update();
        },
        () => {}, // the setup itself works; without the comparison the panel shows no "before"
      );
    this.#idle(name, JSON.stringify(setup));
    byId("about").textContent = view.notes.map(sentence).join(" ");
    const { source, input } = setup;
    byId("printed").textContent = [source.kind, source.model, source.run, source.name, input.text && `“${input.text}”`].filter(Boolean).join(", ");
    if (name === "a" && this.linked) this.#check(view);
  }

  // Whether the head and the cell of a link exist.
  #check({ layers, tokens }) {
    this.linked = false;
    const { head, cell } = this.state;
    const wrong = head && !layers[head[0]]?.heads[head[1]] ? "head" : cell && Math.max(...cell) >= tokens.length ? "cell" : null;
    if (wrong && layers[head?.[0] ?? 0]?.heads.length !== 0) this.problem(new Problem(`The link names a ${wrong} that this ${wrong === "head" ? "network" : "input"} does not have; the nearest one is shown.`), { stays: true });
  }

  #failed(name, key, error) {
    this.#idle(name, key);
    const side = this.sides[name];
    if (side.view) {
      const { control } = this;
      if (sameNetwork(side.setup, this.state[name])) {
        // back to what worked, so that the next change does not fail for the same reason
        side.wanted = side.answered = JSON.stringify(side.setup);
        this.state = { ...this.state, [name]: side.setup, ...(name === "a" && this.state.b ? { b: { ...this.state.b, input: side.setup.input } } : {}) };
        this.writeLink();
      }
      if (control?.checkVisibility() && error instanceof Problem) complain(control, sentence(error.message));
      else this.problem(error);
      this.update();
      return;
    }
    this.state = name === "b" ? { ...this.state, b: null, side: "a" } : newState();
    this.load();
    if (!(error instanceof Problem)) console.error(error);
    this.problem(new Problem(`${error.message}; this is the default view.`), { stays: true });
  }

  #loadMap(name) {
    const side = this.sides[name];
    const { setup, view } = side;
    const head = this.#headOf(name, view);
    side.maps(
      (signal) => this.#base(setup, view, head, signal),
      (base) => this.#show(name, head, base),
      (error) => this.problem(error),
    );
  }

  #show(name, head, base) {
    const side = this.sides[name];
    side.head = head;
    side.matrix = base ? new Matrix(base, side.view.tokens.length, side.view.layers[head[0]].signed) : null;
    const { b } = this.sides;
    if (name === "a" && this.state.b && b.view && String(this.#headOf("b", b.view)) !== String(b.head)) this.#loadMap("b"); // it follows A
    this.update();
    if (this.data.live && side.view.tokens.length <= this.limit) side.prefetch(side.setup, side.view, head);
  }

  /** Load a part of a matrix in more detail; none without queries. */
  detail(name, queries, keys) {
    const side = this.sides[name];
    const { setup, head, matrix } = side;
    if (!queries) {
      side.details.stop();
      if (matrix.detail) matrix.detail = null;
      this.update();
      return;
    }
    side.details(
      (signal) => this.data.map(setup, head, { queries, keys, signal }),
      (answer) => {
        if (side.matrix !== matrix) return;
        matrix.zoomed(answer);
        this.update();
      },
      (error) => this.problem(error),
    );
  }

  /** Return the summed or mean weights between the chosen tokens and `count` tokens from `start`; null without weights. */
  async flow(selection, start, count) {
    const { matrix, setup, head } = this.side;
    const { direction, total } = this.state;
    if (!matrix) return null;
    const sum = new Float32Array(count);
    const used = matrix.pooled ? selection.slice(0, FEW) : selection;
    for (const index of used) {
      let line = matrix.line(index, direction)?.subarray(start, start + count);
      if (!line) {
        const [one, window] = [[index, index + 1], [start, start + count]];
        line = (await this.data.map(setup, head, direction === "from" ? { queries: one, keys: window } : { queries: window, keys: one })).values;
      }
      for (let i = 0; i < count; i++) sum[i] += line[i];
    }
    if (total === "mean") for (let i = 0; i < count; i++) sum[i] /= used.length;
    return sum;
  }

  // Heads and cells

  #headOf(name, view) {
    const wanted = (name === "b" && this.state.bhead) || this.state.head;
    if (wanted) {
      const layer = Math.min(wanted[0], view.layers.length - 1);
      return [layer, Math.max(0, Math.min(wanted[1], view.layers[layer].heads.length - 1))];
    }
    if (name === "b" && this.sides.a.view) {
      const [layer, head] = this.sides.a.head;
      const same = Math.min(layer, view.layers.length - 1);
      return [same, Math.max(0, Math.min(head, view.layers[same].heads.length - 1))];
    }
    let [best, found] = [0, null]; // the head that repeats what followed, if there is one
    view.layers.forEach(({ heads }, layer) =>
      heads.forEach(({ tags }, head) => {
        if ((tags.induction ?? 0) > best + 1e-6) [best, found] = [tags.induction, [layer, head]];
      }),
    );
    return found ?? [Math.max(0, view.layers.findIndex(({ heads }) => heads.length)), 0];
  }

  #cell({ view, matrix }) {
    const length = view?.tokens.length ?? 1;
    const { cell } = this.state;
    if (cell) return cell.map((index) => Math.min(index, length - 1));
    if (!matrix) return [length - 1, length - 1];
    let best = [length - 1, 0]; // the largest weight of the second half: queries that had much to choose from
    const { base } = matrix;
    for (let row = base.rows >> 1, most = -1; row < base.rows; row++)
      for (let column = 0; column < base.columns; column++) {
        const weight = Math.abs(base.values[row * base.columns + column]);
        if (weight > most) [most, best] = [weight, [row * base.height, column * base.width]];
      }
    return best;
  }

  choose(head, options) {
    this.set(this.state.side === "b" ? { bhead: head } : { head }, options);
    this.announceHead();
  }

  // The head that was chosen, which may still be loading.
  get #wanted() {
    return this.#headOf(this.state.side, this.side.view);
  }

  #stepped(view, [layer, head], step) {
    const next = head + step;
    if (next >= 0 && next < view.layers[layer].heads.length) return [layer, next];
    const other = layer + step;
    if (other < 0 || other >= view.layers.length) return [layer, head];
    return [other, step > 0 ? 0 : Math.max(0, view.layers[other].heads.length - 1)];
  }

  step(step) {
    if (this.side.view) this.choose(this.#stepped(this.side.view, this.#wanted, step), { replace: true });
  }

  stepLayer(step) {
    const { layers } = this.side.view;
    const [from, head] = this.#wanted;
    const layer = Math.min(layers.length - 1, Math.max(0, from + step));
    this.choose([layer, Math.max(0, Math.min(head, layers[layer].heads.length - 1))], { replace: true });
  }

  announceHead() {
    const { side } = this;
    if (!side.view) return;
    const [layer, head] = this.#headOf(this.state.side, side.view);
    const { title, heads, weights } = side.view.layers[layer];
    const tag = Object.entries(heads[head]?.tags ?? {}).sort((a, b) => b[1] - a[1])[0];
    announce(`layer ${layer}, ${title}, ${weights}, head ${head} of ${heads.length}${tag ? `, ${tag[0]} ${tag[1].toFixed(2)}` : ""}`);
  }

  moveCell([rows, columns]) {
    const length = this.side.view?.tokens.length;
    if (!length) return;
    const [query, key] = this.cell;
    const inside = (index) => Math.min(length - 1, Math.max(0, index));
    this.pick([inside(query + rows), inside(key + columns)], { replace: true });
  }

  pick(cell, options) {
    this.set({ cell, tokens: [] }, options);
    announce(reading(this.side.matrix, this.side.view.tokens, cell));
  }

  /** Start or end the comparison; it starts with a copy of the setup, which is then edited. */
  compare() {
    const { b } = this.state;
    this.sides.b.known = null;
    this.set(b ? { b: null, bhead: null, side: "a" } : { b: structuredClone(this.state.a), bhead: null, side: "b" });
    announce(b ? "comparison ended" : "comparison started; changes now act on B");
  }

  difference() {
    const [a, b] = [this.sides.a.matrix, this.sides.b.matrix];
    return this.state.b ? difference(a, b) : null;
  }

  update() {
    byId("compare").setAttribute("aria-pressed", this.state.b ? "true" : "false");
    document.body.classList.toggle("comparing", Boolean(this.state.b));
    for (const part of this.parts) part.update();
    this.tour?.update();
    if (this.parts.length && this.side.view) document.body.dataset.ready = "true";
  }
}

new App().start();
