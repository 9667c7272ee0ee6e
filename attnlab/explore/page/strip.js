// The tokens as text, tinted by the weights from or to the chosen ones; for images, the patches.

import { peakOf, style, tint } from "explore/color";
import { same } from "explore/setup";
import { announce, complain, h, number, select, sized, visible } from "explore/dom";

const WINDOW = 400; // tokens in the document at a time
const SIDE = 168; // of an image, in pixels

export class Strip {
  constructor(root, app) {
    Object.assign(this, { root, app, items: [], start: 0, view: null, anchor: null, preview: null });
    this.direction = select([["from", "what they attend to"], ["to", "what attends to them"]], "from", (direction) => app.set({ direction }));
    this.total = select([["sum", "sum"], ["mean", "mean"]], "sum", (total) => app.set({ total }));
    this.direction.setAttribute("aria-label", "Direction of attention");
    this.total.setAttribute("aria-label", "Sum or mean over the chosen tokens");
    this.search = h("input", { type: "search", id: "search", placeholder: "Find token  /", "aria-label": "Find a token", onkeydown: (event) => this.#find(event), oninput: () => complain(this.search) });
    this.clear = h("button", { onclick: () => app.set({ tokens: [] }) }, "Clear selection");
    this.list = h("div", {
      class: "tokens", role: "listbox", tabIndex: 0, "aria-multiselectable": "true", "aria-label": "Tokens",
      onclick: (event) => this.#click(event), onkeydown: (event) => this.#key(event),
      onpointerover: (event) => this.#preview(event.target.dataset?.index), onpointerleave: () => this.#preview(undefined),
    });
    this.earlier = h("button", { onclick: () => this.#page(-1) }, "← earlier tokens");
    this.later = h("button", { onclick: () => this.#page(1) }, "later tokens →");
    this.picture = h("canvas", { hidden: true, role: "img", onclick: (event) => this.#patch(event) });
    this.caption = h("p", { class: "soft small", id: "tokens-caption" });
    root.append(
      h("div", { class: "row" }, h("h2", { id: "tokens-title" }, "Tokens"), h("span", { class: "controls" }, this.direction, this.total, this.clear, h("span", { class: "field" }, this.search))),
      h("div", { class: "strip" }, this.picture, h("div", { class: "text" }, this.earlier, this.list, this.later)),
      this.caption,
    );
    this.output = h("p", { class: "output" });
    this.later.after(this.output);
  }

  update() {
    const { view, state } = this.app.now();
    if (!view) return;
    this.direction.value = state.direction;
    this.total.value = state.total;
    if (view.tokens !== this.view?.tokens) {
      const kept = same(view.tokens, this.view?.tokens);
      this.view = view;
      if (!kept) {
        this.start = 0;
        this.#build();
      }
    }
    const focus = this.app.selection()[0];
    if (focus !== undefined && this.app.state.tokens.length === 0 && (focus < this.start || focus >= this.start + WINDOW)) {
      this.start = Math.max(0, Math.min(this.view.tokens.length - WINDOW, focus - WINDOW / 2));
      this.#build();
    }
    this.view = view;
    this.clear.hidden = !state.tokens.length;
    this.output.textContent = this.#prediction(view);
    this.#tint(this.app.selection());
    this.#select();
  }

  #prediction({ prediction: [best], tokens }) {
    if (!best) return "";
    const { setup, catalog } = this.app;
    const causal = setup.source.causal ?? catalog.mechanisms.find(({ name }) => name === setup.source.model)?.causal !== "never";
    const where = setup.input.kind === "text" ? `${causal ? "After" : "At"} the last token, “${visible(tokens.at(-1))}”, the` : "The";
    return `${where} network predicts “${visible(best[0])}” (probability ${number(best[1])}).`;
  }

  #build() {
    const { tokens, special } = this.view;
    const stop = Math.min(tokens.length, this.start + WINDOW);
    this.items = [];
    for (let i = this.start; i < stop; i++) {
      const item = h("span", { class: special[i] ? "token special" : "token", role: "option", id: `token-${i}` }, visible(tokens[i]));
      item.dataset.index = i;
      this.items.push(item);
    }
    this.list.classList.toggle("characters", tokens.every((token) => [...token].length <= 1));
    this.list.replaceChildren(...this.items);
    this.earlier.hidden = this.start === 0;
    this.later.hidden = stop === tokens.length;
  }

  #page(step) {
    this.start = Math.max(0, Math.min(this.view.tokens.length - WINDOW, this.start + step * WINDOW));
    this.#build();
    this.#tint(this.app.selection());
    this.#select();
  }

  async #tint(selection) {
    const asked = (this.asked = Symbol("tint"));
    const values = await this.app.flow(selection, this.start, this.items.length).catch((error) => this.app.problem(error));
    if (asked !== this.asked) return; // a newer selection
    const { view, state } = this.app.now();
    const signed = this.app.now().matrix?.signed ?? false;
    this.values = values;
    const peak = values ? peakOf(values) : 0;
    this.items.forEach((item, i) => {
      const { background, color } = values ? tint(values[i], signed, peak) : { background: "", color: "" };
      item.style.backgroundColor = background;
      item.style.color = color;
    });
    this.#image(values, peak, selection);
    const names = selection.slice(0, 6).map((index) => `${index} “${visible(view.tokens[index])}”`);
    const more = selection.length > 6 ? ` and ${selection.length - 6} more` : "";
    const whose = names.length ? `${names.join(", ")}${more}` : "no token";
    const kind = state.total === "mean" ? "Mean weight" : "Weight";
    const where = state.direction === "from" ? `from ${whose} to each token` : `from each token to ${whose}`;
    const patches = view.patches ? " A token is named by the row and the column of its top left pixel." : "";
    this.caption.textContent = values
      ? `${kind} ${where}; the largest is ${number(peak)}. Click tokens to add or remove them, with Shift for a range.${patches}`
      : "This layer has no attention weights.";
  }

  #select() {
    const chosen = new Set(this.app.selection());
    this.items.forEach((item, i) => {
      const index = this.start + i;
      item.setAttribute("aria-selected", chosen.has(index) ? "true" : "false");
    });
    const stop = this.start + this.items.length;
    if (!(this.active >= this.start && this.active < stop)) this.active = this.start;
    this.list.setAttribute("aria-activedescendant", `token-${this.active}`);
  }

  #preview(text) {
    const index = text === undefined ? null : Number(text);
    if (index === this.preview) return;
    this.preview = index;
    if (this.app.large()) return; // a row of a large matrix is a request
    this.#tint(index === null ? this.app.selection() : [index]);
  }

  #click(event) {
    const index = Number(event.target.dataset.index);
    if (event.target.dataset.index === undefined) return;
    this.#toggle(index, event.shiftKey);
  }

  #toggle(index, range) {
    const chosen = new Set(this.app.state.tokens);
    if (range && this.anchor !== null) {
      for (let i = Math.min(index, this.anchor); i <= Math.max(index, this.anchor); i++) chosen.add(i);
    } else if (!chosen.delete(index)) chosen.add(index);
    this.anchor = this.active = index;
    this.app.set({ tokens: [...chosen].sort((a, b) => a - b) });
    const { tokens } = this.view;
    announce(`token ${index} ${visible(tokens[index])} ${chosen.has(index) ? "chosen" : "not chosen"}, ${chosen.size} chosen`);
  }

  #key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === " " || event.key === "Enter") this.#toggle(this.active, event.shiftKey);
    else if (move !== undefined && !event.altKey && !event.ctrlKey && !event.metaKey) {
      this.active = Math.min(this.view.tokens.length - 1, Math.max(0, this.active + move));
      if (this.active < this.start || this.active >= this.start + WINDOW) this.#page(Math.sign(move));
      for (const item of this.list.querySelectorAll(".active")) item.classList.remove("active");
      const item = this.items[this.active - this.start];
      item.classList.add("active");
      item.scrollIntoView({ block: "nearest" });
      this.list.setAttribute("aria-activedescendant", item.id);
      const value = this.values?.[this.active - this.start];
      announce(`token ${this.active} ${visible(this.view.tokens[this.active])}${value === undefined ? "" : `, weight ${number(value)}`}`);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #find(event) {
    if (event.key !== "Enter") return;
    event.preventDefault();
    const text = this.search.value;
    const { tokens } = this.view;
    if (!text) return;
    const matches = tokens.flatMap((token, i) => (token.toLowerCase().includes(text.toLowerCase()) || visible(token) === visible(text) ? [i] : []));
    if (!matches.length) {
      complain(this.search, `No token contains “${text}”.`);
      return;
    }
    const [query, key] = this.app.cell;
    const next = matches.find((index) => index > query) ?? matches[0];
    this.app.set({ cell: [next, key], tokens: [] });
    announce(`match ${matches.indexOf(next) + 1} of ${matches.length}: query ${next} ${visible(tokens[next])}`);
  }

  #image(values, peak, selection) {
    const { image, patches } = this.view;
    this.picture.hidden = !image;
    if (!image) return;
    const [rows, columns] = [image.length, image[0].length];
    const unit = SIDE / Math.max(rows, columns);
    const context = sized(this.picture, columns * unit, rows * unit);
    image.forEach((line, row) =>
      line.forEach((value, column) => {
        const level = Math.round(255 * (1 - value));
        context.fillStyle = `rgb(${level} ${level} ${level})`;
        context.fillRect(column * unit, row * unit, unit + 0.5, unit + 0.5);
      }),
    );
    const colors = style();
    const chosen = new Set(selection);
    patches?.forEach(([top, left, bottom, right], i) => {
      const box = [left * unit, top * unit, (right - left) * unit, (bottom - top) * unit];
      if (values && i >= this.start && values[i - this.start] !== undefined && peak) {
        const value = values[i - this.start];
        context.globalAlpha = 0.75 * Math.sqrt(Math.abs(value) / peak);
        context.fillStyle = value < 0 ? "#e8832a" : "#1f78d1";
        context.fillRect(...box);
        context.globalAlpha = 1;
      }
      context.lineWidth = chosen.has(i) ? 3 : 0.5;
      context.strokeStyle = chosen.has(i) ? colors.mark : "#888";
      context.strokeRect(box[0] + 0.5, box[1] + 0.5, box[2] - 1, box[3] - 1);
    });
    this.picture.setAttribute("aria-label", "The image; its patches are tinted by the weights, with the chosen patches outlined");
  }

  #patch(event) {
    const { image, patches } = this.view;
    const unit = SIDE / Math.max(image.length, image[0].length);
    const [x, y] = [event.offsetX / unit, event.offsetY / unit];
    const index = patches?.findIndex(([top, left, bottom, right]) => y >= top && y < bottom && x >= left && x < right);
    if (index >= 0) this.#toggle(index, event.shiftKey);
  }
}
