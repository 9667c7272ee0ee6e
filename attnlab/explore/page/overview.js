// The heads of all layers as thumbnails: one canvas per layer, or one for all heads when they are sorted by a measure.

import { gradient, paint, style } from "explore/color";
import { h, nats, number, rounded, select, sentence, sized, small } from "explore/dom";

const GAP = 4;
const CAPTION = 15;
const FONT = "11px ui-sans-serif, system-ui, sans-serif";

/** What heads can be sorted by: [text, measure of a head, whether the largest comes first]. */
const SORTS = {
  position: ["layer and head"],
  entropy: ["entropy, lowest first", (head) => head.entropy, false, "nats", "entropy, averaged over the queries"],
  distance: ["distance, longest first", (head) => head.distance, true, "", "mean distance in tokens"],
  sink: ["sink mass, largest first", (head) => head.sink, true, "", "share of the weights on the first key"],
  similarity: ["similarity to this head", null, true, "", "cosine similarity of the weights to those of the chosen head"],
};

/** Return the place of every thumbnail among the bytes: offsets[layer][head]. */
function offsets(layers) {
  let at = 0;
  return layers.map(({ heads, thumbnail: [rows, columns] }) =>
    heads.map(() => {
      const own = at;
      at += rows * columns;
      return own;
    }),
  );
}

const BADGES = {
  "true weights": ["●", "the mechanism computes these weights"],
  "implied weights": ["◐", "never computed; the matrix that the formula of the mechanism applies to the values"],
  "no weights": ["○", "the output is not a weighted sum of values"],
};

export const badge = ({ weights }) => h("span", { class: `badge ${weights.split(" ")[0]}`, title: sentence(BADGES[weights][1]), textContent: `${BADGES[weights][0]} ${weights}` });

/** Return a bar of the colours with numbers; `clipped`: larger weights have the last colour, too. */
export function colorBar(signed, peak, note = "", clipped = false) {
  const bar = h("span", { class: "bar" });
  bar.style.background = gradient(signed);
  const text = (typeof peak === "number" ? number(peak) : peak) + (clipped ? " or more" : "");
  const ticks = peak === 0 ? ["0"] : signed ? [`−${text}`, "0", `+${text}`] : ["0", typeof peak === "number" ? number(peak / 4) : "", text];
  return h("span", { class: "scale" }, bar, h("span", { class: "ticks" }, ticks.map((tick) => h("span", {}, tick))), note ? h("span", { class: "soft" }, note) : null);
}

export class Overview {
  constructor(root, app) {
    Object.assign(this, { root, app, view: null, thumbs: null, rows: [], images: new Map(), width: 0 });
    this.sort = select(Object.entries(SORTS).map(([key, [text]]) => [key, text]), "position", (sort) => app.set({ sort }));
    this.sort.id = "sort";
    this.list = h("div", { class: "heads", tabIndex: 0, role: "application", "aria-label": "Heads", "aria-roledescription": "overview of heads", onkeydown: (event) => this.#key(event) });
    root.append(
      h("h2", { id: "overview-title" }, "Layers and heads"),
      h("p", { class: "sort" }, h("label", { for: "sort" }, "Sort by "), this.sort),
      this.list,
      (this.notes = small()),
    );
    new ResizeObserver(([entry]) => {
      const width = Math.floor(entry.contentRect.width);
      if (width === this.width) return;
      this.width = width;
      this.#build();
    }).observe(this.list);
  }

  update() {
    const { app } = this;
    const { view, thumbs, state } = app.now();
    if (!view) return;
    const kind = state.sort === "similarity" ? `similarity ${app.head}` : state.sort;
    this.sort.value = state.sort in SORTS ? state.sort : "position";
    if (view !== this.view || thumbs !== this.thumbs || kind !== this.kind) {
      const images = thumbs !== this.thumbs || view !== this.view;
      Object.assign(this, { view, thumbs, kind });
      if (images) this.images.clear();
      this.#build();
    } else this.#mark();
  }

  retint() {
    this.images.clear();
    this.#build();
  }

  #build() {
    if (!this.view || !this.width) return;
    const { layers } = this.view;
    this.places = offsets(layers);
    const scroll = this.list.scrollTop;
    this.rows = [];
    const order = this.sort.value === "position" ? null : this.#order();
    const [, , , unit, meaning] = SORTS[this.sort.value];
    const kinds = [...new Set(layers.map(({ weights }) => weights))].map((kind) => `${BADGES[kind][0]} ${kind}: ${BADGES[kind][1]}.`);
    this.notes.textContent = `Rows are queries, columns are keys; each head has its own scale. Grey is ${this.app.data.live ? "an exact zero, such as a masked key" : "zero, or too small for this file"}. ${kinds.join(" ")}`;
    const groups = order ? [[null, order]] : layers.map((layer, i) => [layer, layer.heads.map((_, head) => ({ at: [i, head] }))]);
    const sections = groups.map(([layer, entries], i) => {
      const columns = Math.min(entries.length || 1, Math.max(1, Math.floor((this.width + GAP) / ((order ? 52 : this.#least(entries.length)) + GAP))));
      const side = Math.min(112, Math.floor((this.width + GAP) / columns) - GAP);
      const caption = side >= 36 || order ? (order ? 2 : 1) * CAPTION : 0;
      const canvas = h("canvas", { "aria-hidden": "true" });
      const row = { canvas, entries, columns, side, caption, unit, layer: i, lines: Math.ceil(entries.length / columns) };
      this.rows.push(row);
      canvas.addEventListener("click", (event) => {
        const entry = this.#hit(row, event);
        if (entry) this.app.choose(entry.at);
      });
      canvas.addEventListener("pointermove", (event) => {
        const entry = this.#hit(row, event);
        canvas.title = entry ? this.#title(entry) : "";
      });
      const heading = layer
        ? h("h3", {}, `Layer ${i} `, h("span", { class: "mechanism" }, layer.title), badge(layer))
        : small(`Below each head: layer.head and ${meaning}.`);
      const note = layer && !entries.length ? small(sentence(layer.note)) : null;
      const bar = layer ? entries.length && [layer.signed] : [...new Set(layers.filter(({ heads }) => heads.length).map(({ signed }) => signed))];
      return h("div", { class: "layer" }, heading, (bar || []).map((signed) => colorBar(signed, "peak")), entries.length ? canvas : null, note);
    });
    this.list.replaceChildren(...sections);
    this.list.scrollTop = scroll;
    this.shown = null;
    for (const row of this.rows) this.#draw(row);
    this.marked = String(this.app.head);
    this.#label();
  }

  #least = (heads) => (heads <= 4 ? 44 : heads <= 16 ? 40 : 26);

  #order() {
    const { layers } = this.view;
    const [, measure, descending] = SORTS[this.sort.value];
    const chosen = this.#codes(this.app.head);
    const entries = layers.flatMap((layer, i) => layer.heads.map((head, j) => ({ at: [i, j], value: measure ? measure(head) : cosine(chosen, this.#codes([i, j])) })));
    const last = (value) => value === null || Number.isNaN(value);
    return entries.sort((a, b) => last(a.value) - last(b.value) || (descending ? b.value - a.value : a.value - b.value));
  }

  // The weights of a thumbnail in units of its peak, 0 to 1 or −1 to 1.
  #codes([layer, head]) {
    const codes = this.#bytes([layer, head]);
    const signed = this.view.layers[layer]?.signed;
    return codes && Float32Array.from(codes, (code) => (signed ? Math.sign(code - 128) * ((code - 128) / 127) ** 2 : (code / 255) ** 2));
  }

  #bytes([layer, head]) {
    const at = this.places[layer]?.[head];
    if (at === undefined || !this.thumbs) return null;
    const [rows, columns] = this.view.layers[layer].thumbnail;
    return this.thumbs.subarray(at, at + rows * columns);
  }

  #image(at) {
    const name = at.join(".");
    if (!this.images.has(name)) {
      const { thumbnail, signed } = this.view.layers[at[0]];
      const canvas = document.createElement("canvas");
      paint(canvas, stretched(this.#bytes(at), thumbnail[0], signed), ...thumbnail, signed);
      this.images.set(name, canvas);
    }
    return this.images.get(name);
  }

  #draw(row) {
    if (!row.entries.length) return;
    const { canvas, entries, side, caption, lines } = row;
    const context = sized(canvas, this.width, lines * (side + caption + GAP));
    context.font = FONT;
    context.textAlign = "center";
    row.context = context;
    for (let i = 0; i < entries.length; i++) this.#entry(row, i);
  }

  #entry({ context, entries, columns, side, caption, unit }, i) {
    const entry = entries[i];
    const [x, y] = [(i % columns) * (side + GAP), Math.floor(i / columns) * (side + caption + GAP)];
    const colors = style();
    context.clearRect(x - 1, y - 1, side + 2, side + caption + 2);
    if (this.thumbs) {
      const image = this.#image(entry.at);
      context.imageSmoothingEnabled = image.width > side;
      context.drawImage(image, x + 2, y + 2, side - 4, side - 4);
    }
    const chosen = String(entry.at) === String(this.app.head);
    context.strokeStyle = chosen ? colors.mark : colors.line;
    context.lineWidth = chosen ? 3 : 1;
    context.strokeRect(x + 1.5, y + 1.5, side - 3, side - 3);
    if (this.app.setup.ablated.some((each) => String(each) === String(entry.at))) {
      context.strokeStyle = colors.mark;
      context.lineWidth = 2;
      context.beginPath();
      context.moveTo(x + 4, y + 4);
      context.lineTo(x + side - 4, y + side - 4);
      context.stroke();
    }
    if (!caption) return;
    context.fillStyle = chosen ? colors.ink : colors.soft;
    const lines = entry.value === undefined ? [side < 50 ? entry.at[1] : `head ${entry.at[1]}`] : [entry.at.join("."), entry.value === null ? "–" : `${rounded(entry.value)} ${unit}`];
    lines.forEach((line, at) => context.fillText(line, x + side / 2, y + side + 11 + at * 13, side));
  }

  // The choice moved from one head to another: only these two are drawn again.
  #mark() {
    const now = String(this.app.head);
    if (now === this.marked) return;
    for (const row of this.rows)
      row.entries.forEach(({ at }, i) => {
        if (row.context && (String(at) === now || String(at) === this.marked)) this.#entry(row, i);
      });
    this.marked = now;
    this.#label();
  }

  #label() {
    const [layer, head] = this.app.head;
    this.list.setAttribute("aria-label", `Heads: layer ${layer}, head ${head} of ${this.view.layers[layer]?.num_heads}. Arrow keys choose a head.`);
    if (this.shown === String(this.app.head)) return;
    this.shown = String(this.app.head);
    const row = this.rows.find(({ entries }) => entries.some(({ at }) => String(at) === this.shown));
    if (!row || row.canvas === document.activeElement) return;
    const index = row.entries.findIndex(({ at }) => String(at) === this.shown);
    const top = row.canvas.offsetTop + Math.floor(index / row.columns) * (row.side + row.caption + GAP);
    const { scrollTop, clientHeight } = this.list;
    if (top < scrollTop || top + row.side + row.caption > scrollTop + clientHeight) this.list.scrollTop = top - clientHeight / 2;
  }

  #hit({ entries, columns, side, caption }, event) {
    const [column, line] = [Math.floor(event.offsetX / (side + GAP)), Math.floor(event.offsetY / (side + caption + GAP))];
    return column < columns ? entries[line * columns + column] : undefined;
  }

  #title({ at: [layer, head] }) {
    const { entropy, distance } = this.view.layers[layer].heads[head];
    return `layer ${layer}, head ${head}: ${entropy === null ? "" : `entropy ${nats(entropy)}, `}mean distance ${rounded(distance)}`;
  }

  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -2, ArrowDown: 2 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (Math.abs(step) === 1 && this.rows.length === 1) {
      const { entries } = this.rows[0];
      const at = entries.findIndex((entry) => String(entry.at) === String(this.app.head));
      this.app.choose(entries[Math.min(entries.length - 1, Math.max(0, at + step))].at);
    } else if (Math.abs(step) === 1) this.app.step(step);
    else this.app.stepLayer(step / 2);
  }
}

// The codes of a large unsigned thumbnail, scaled so that a few large weights do not hide the others; see `scaleOf`.
function stretched(codes, rows, signed) {
  if (signed || rows <= 32) return codes;
  const sizes = codes.filter((code) => code).sort();
  const high = sizes[Math.floor(0.99 * sizes.length)] ?? 255;
  return high > 180 ? codes : codes.map((code) => Math.min(255, (code * 255) / high));
}

function cosine(a, b) {
  if (!a || !b || a.length !== b.length) return null;
  let [dot, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    dot += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return aa && bb ? dot / Math.sqrt(aa * bb) : null;
}
