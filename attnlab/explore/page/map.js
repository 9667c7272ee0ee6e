// One attention matrix on a canvas: labels, zoom, pan, crosshair, and a mode in which cells are blocked by dragging.

import { encode, paint, peakOf, style, tint } from "explore/color";
import { debounced, h, number, short, visible } from "explore/dom";

const FONT = '12px ui-sans-serif, system-ui, "Segoe UI", sans-serif';
const NEAREST = 4; // cells that remain visible at the highest zoom
const GAP = 18; // of an axis title

/** `on` has hover(cell | null), choose(cell), block(cells, blocked), detail(queries, keys). */
export class HeadMap {
  constructor(name, on) {
    Object.assign(this, { on, name, matrix: null, view: null, hovered: null, cell: null, blocked: new Set(), drawing: false, pointers: new Map(), drag: null });
    this.base = h("canvas", { "aria-hidden": "true" });
    this.over = h("canvas", { "aria-hidden": "true" });
    this.stage = h("div", { class: "stage", tabIndex: 0, role: "application", "aria-label": name, "aria-roledescription": "attention matrix", "aria-describedby": "map-keys" },
      this.base,
      this.over,
    );
    this.image = document.createElement("canvas");
    this.closer = document.createElement("canvas");
    this.size = 0;
    this.asked = debounced(() => this.#ask(), 120);
    const listen = (type, action, options) => this.stage.addEventListener(type, action, options);
    listen("pointerdown", (event) => this.#down(event));
    listen("pointermove", (event) => this.#move(event));
    listen("pointerup", (event) => this.#up(event));
    listen("pointercancel", (event) => this.#up(event));
    listen("pointerleave", () => this.hover(null, true));
    listen("dblclick", () => this.reset());
    listen("wheel", (event) => this.#wheel(event), { passive: false });
    new ResizeObserver(([entry]) => this.#resize(entry.contentRect.width)).observe(this.stage);
  }

  /** Show a matrix; the zoom stays if the length does. */
  show({ matrix, tokens, peak, cell, blocked = [], chosen = [], direction = "from", drawing = false }) {
    const other = !this.matrix || this.matrix.length !== matrix.length;
    Object.assign(this, { matrix, tokens, peak, cell, chosen, direction, drawing });
    this.blocked = new Set(blocked.map(([query, key]) => query * matrix.length + key));
    const { base } = matrix;
    paint(this.image, encode(base.values, matrix.signed, peak), base.rows, base.columns, matrix.signed);
    if (other) this.view = [0, 0, matrix.length];
    else if (matrix.pooled && !matrix.detail) this.asked();
    this.#margins();
    this.#detail();
    this.stage.classList.toggle("drawing", drawing);
    this.draw();
  }

  #detail() {
    const { detail, signed } = this.matrix;
    this.unit = this.peak;
    if (!detail) return;
    this.unit = peakOf(detail.values);
    paint(this.closer, encode(detail.values, signed, this.unit), detail.rows, detail.columns, signed);
  }

  move(cell) {
    this.cell = cell;
    this.#reveal(cell);
    this.#overlay();
  }

  hover(cell, mine = false) {
    const now = cell ? cell.join() : null;
    if (now === (this.hovered ? this.hovered.join() : null)) return;
    this.hovered = cell;
    if (cell) this.stage.dataset.hovered = now;
    else delete this.stage.dataset.hovered;
    this.#overlay();
    if (mine) this.on.hover(cell);
  }

  reset() {
    this.#setView(0, 0, this.matrix.length);
  }

  /** Zoom by a factor, about a point of the plot (0 to 1), or the chosen cell. */
  zoom(factor, at = null) {
    const [top, left, span] = this.view;
    const size = Math.min(this.matrix.length, Math.max(Math.min(NEAREST, this.matrix.length), span / factor));
    const [y, x] = at ?? (this.cell ? this.cell.map((index, axis) => Math.min(1, Math.max(0, (index + 0.5 - this.view[axis]) / span))) : [0.5, 0.5]);
    this.#setView(top + y * (span - size), left + x * (span - size), size);
  }

  #setView(top, left, span) {
    const most = this.matrix.length - span;
    this.view = [Math.min(most, Math.max(0, top)), Math.min(most, Math.max(0, left)), span];
    this.draw();
    if (this.matrix.pooled) this.asked();
  }

  #reveal(cell) {
    const [top, left, span] = this.view;
    if (!cell || span >= this.matrix.length) return;
    const place = (start, index) => (index < start ? index : index + 1 > start + span ? index + 1 - span : start);
    const [y, x] = [place(top, cell[0]), place(left, cell[1])];
    if (y !== top || x !== left) this.#setView(y, x, span);
  }

  #ask() {
    const [top, left, span] = this.view;
    const length = this.matrix.length;
    if (span >= length) {
      this.on.detail(null); // the whole matrix has one scale
      return;
    }
    const range = (start) => [Math.max(0, Math.floor(start - span / 4)), Math.min(length, Math.ceil(start + span * 1.25))];
    this.on.detail(range(top), range(left));
  }

  #resize(width) {
    if (Math.round(width) === this.size || width < 1) return;
    this.size = Math.round(width);
    this.scale = devicePixelRatio;
    for (const canvas of [this.base, this.over]) {
      canvas.width = canvas.height = Math.round(this.size * this.scale);
      canvas.getContext("2d").setTransform(this.scale, 0, 0, this.scale, 0, 0);
    }
    if (this.matrix) {
      this.#margins();
      this.draw();
    }
  }

  #margins() {
    const context = this.base.getContext("2d");
    context.font = FONT;
    let widest = 1;
    this.labels = [];
    for (let i = 0; i < Math.min(this.tokens.length, 2048); i++) {
      this.labels.push(short(visible(this.tokens[i]), 12));
      if (i < 256) widest = Math.max(widest, context.measureText(this.labels[i]).width);
    }
    this.widest = widest;
    this.margin = GAP + Math.min(this.size / 4, Math.max(widest, this.matrix.length > 99 ? 34 : 12)) + 8;
    this.plot = Math.max(40, this.size - this.margin - 2);
  }

  // Drawing

  draw() {
    if (!this.matrix || !this.size) return;
    const context = this.base.getContext("2d");
    const { margin, plot, size } = this;
    const unit = plot / this.view[2];
    const colors = style();
    context.clearRect(0, 0, size, size);
    context.save();
    context.beginPath();
    context.rect(margin, margin, plot, plot);
    context.clip();
    this.#tile(context, this.image, this.matrix.base, unit);
    if (this.matrix.detail) this.#tile(context, this.closer, this.matrix.detail, unit);
    if (unit >= 9) this.#cells(context, unit, colors);
    else if (this.blocked.size) this.#crosses(context, unit, colors);
    context.restore();
    context.strokeStyle = colors.line;
    context.strokeRect(margin - 0.5, margin - 0.5, plot + 1, plot + 1);
    this.#axes(context, unit, colors);
    this.#overlay();
  }

  #tile(context, image, part, unit) {
    const [top, left] = this.view;
    const [width, height] = [part.columns * part.width * unit, part.rows * part.height * unit];
    context.imageSmoothingEnabled = width < part.columns; // averaged if smaller, sharp if larger
    context.imageSmoothingQuality = "high";
    context.drawImage(image, this.margin + (part.keys[0] - left) * unit, this.margin + (part.queries[0] - top) * unit, width, height);
  }

  #span(start, count) {
    return [Math.max(0, Math.floor(start)), Math.min(this.matrix.length, Math.ceil(start + count))];
  }

  #cells(context, unit, colors) {
    const [top, left, span] = this.view;
    const [rows, columns] = [this.#span(top, span), this.#span(left, span)];
    context.strokeStyle = colors.paper;
    context.lineWidth = 1;
    context.beginPath();
    for (let i = rows[0]; i <= rows[1]; i++) {
      const y = Math.round(this.margin + (i - top) * unit) + 0.5;
      context.moveTo(this.margin, y);
      context.lineTo(this.margin + this.plot, y);
    }
    for (let i = columns[0]; i <= columns[1]; i++) {
      const x = Math.round(this.margin + (i - left) * unit) + 0.5;
      context.moveTo(x, this.margin);
      context.lineTo(x, this.margin + this.plot);
    }
    context.stroke();
    const { signed } = this.matrix;
    if (unit >= 30 || (signed && unit >= 14)) {
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.font = FONT;
      const peak = this.unit;
      for (let query = rows[0]; query < rows[1]; query++)
        for (let key = columns[0]; key < columns[1]; key++) {
          const { value } = this.matrix.at(query, key);
          if (unit < 30 && !(value < 0)) continue;
          context.fillStyle = tint(value, signed, peak).color;
          context.fillText(unit < 30 ? "−" : inCell(value), this.margin + (key + 0.5 - left) * unit, this.margin + (query + 0.5 - top) * unit, unit - 3);
        }
    }
    this.#crosses(context, unit, colors);
  }

  // A blocked cell has a cross.
  #crosses(context, unit, colors) {
    if (!this.blocked.size) return;
    const [top, left] = this.view;
    context.strokeStyle = colors.mark;
    context.lineWidth = unit > 12 ? 1.5 : 1;
    context.beginPath();
    for (const index of this.blocked) {
      const x = this.margin + ((index % this.matrix.length) - left) * unit;
      const y = this.margin + (Math.floor(index / this.matrix.length) - top) * unit;
      const inset = unit / 4;
      context.moveTo(x + inset, y + inset);
      context.lineTo(x + unit - inset, y + unit - inset);
      context.moveTo(x + unit - inset, y + inset);
      context.lineTo(x + inset, y + unit - inset);
    }
    context.stroke();
  }

  #axes(context, unit, colors) {
    const [top, left, span] = this.view;
    const { margin, plot } = this;
    context.fillStyle = colors.soft;
    context.font = FONT;
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText("key position →", margin + plot / 2, GAP / 2);
    context.save();
    context.translate(GAP / 2, margin + plot / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("← query position", 0, 0);
    context.restore();
    context.fillStyle = colors.ink;
    if (unit < 12) context.font = FONT.replace("12px", "10px");
    const all = unit >= 9 && this.labels.length === this.tokens.length;
    const step = all ? 1 : nice(span / Math.max(2, plot / 60));
    const label = (i) => (all ? this.labels[i] : String(i));
    const [rows, columns] = [this.#span(top, span), this.#span(left, span)];
    const inside = (at) => at > margin - 1 && at < margin + plot + 1;
    context.textAlign = "right";
    for (let i = Math.ceil(rows[0] / step) * step; i < rows[1]; i += step) {
      const y = margin + (i + 0.5 - top) * unit;
      if (inside(y)) context.fillText(label(i), margin - 5, y + 1, margin - GAP - 4);
    }
    for (let i = Math.ceil(columns[0] / step) * step; i < columns[1]; i += step) {
      const x = margin + (i + 0.5 - left) * unit;
      if (!inside(x)) continue;
      if (!all || this.widest <= Math.max(unit, 12)) {
        context.textAlign = "center";
        context.fillText(label(i), x, margin - 10, all ? unit : 60);
      } else {
        context.save();
        context.translate(x, margin - 5);
        context.rotate(-Math.PI / 2);
        context.textAlign = "left";
        context.fillText(label(i), 0, 0, margin - GAP - 4);
        context.restore();
      }
    }
  }

  #overlay() {
    if (!this.matrix || !this.size) return;
    const context = this.over.getContext("2d");
    const colors = style();
    context.clearRect(0, 0, this.size, this.size);
    context.save();
    context.beginPath();
    context.rect(this.margin - 2, this.margin - 2, this.plot + 4, this.plot + 4);
    context.clip();
    const [top, left, span] = this.view;
    const unit = this.plot / span;
    const box = (cell, width, cross) => {
      if (!cell) return;
      const [x, y] = [this.margin + (cell[1] - left) * unit, this.margin + (cell[0] - top) * unit];
      context.lineWidth = width;
      context.strokeStyle = colors.mark;
      if (cross) {
        context.lineWidth = 1;
        context.strokeRect(this.margin - 2, y, this.plot + 4, unit);
        context.strokeRect(x, this.margin - 2, unit, this.plot + 4);
      }
      const least = Math.max(unit, 5);
      const shift = (least - unit) / 2;
      context.strokeStyle = colors.paper; // a light and a dark line: one of them is visible on any colour
      context.lineWidth = width + 2;
      context.strokeRect(x - shift, y - shift, least, least);
      context.strokeStyle = colors.mark;
      context.lineWidth = width;
      context.strokeRect(x - shift, y - shift, least, least);
    };
    context.setLineDash([6, 3]);
    context.strokeStyle = colors.accent;
    context.lineWidth = 2;
    for (const index of this.chosen) {
      if (this.direction === "from") context.strokeRect(this.margin, this.margin + (index - top) * unit, this.plot, unit);
      else context.strokeRect(this.margin + (index - left) * unit, this.margin, unit, this.plot);
    }
    context.setLineDash([]);
    box(this.cell, 2, !this.hovered);
    box(this.hovered, 1, true);
    if (this.drag?.block) {
      const { from, to } = this.drag;
      const [y0, y1, x0, x1] = [Math.min(from[0], to[0]), Math.max(from[0], to[0]) + 1, Math.min(from[1], to[1]), Math.max(from[1], to[1]) + 1];
      context.strokeStyle = colors.mark;
      context.setLineDash([4, 3]);
      context.strokeRect(this.margin + (x0 - left) * unit, this.margin + (y0 - top) * unit, (x1 - x0) * unit, (y1 - y0) * unit);
      context.setLineDash([]);
    }
    context.restore();
  }

  // Pointers

  #cellAt(event) {
    const [top, left, span] = this.view;
    const [x, y] = [(event.offsetX - this.margin) / this.plot, (event.offsetY - this.margin) / this.plot];
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return null;
    return [Math.min(this.matrix.length - 1, Math.floor(top + y * span)), Math.min(this.matrix.length - 1, Math.floor(left + x * span))];
  }

  #down(event) {
    if (!this.matrix || event.button > 0) return;
    this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    const cell = this.#cellAt(event);
    if (this.pointers.size > 1) this.drag = { pinch: this.#distance(), view: [...this.view] };
    else if (cell) this.drag = { from: cell, to: cell, at: [event.offsetX, event.offsetY], view: [...this.view], block: this.drawing, moved: false };
    if (this.drag) this.stage.setPointerCapture(event.pointerId);
    if (this.drawing) event.preventDefault();
    this.#overlay();
  }

  #distance() {
    const [a, b] = [...this.pointers.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  }

  #move(event) {
    if (!this.matrix) return;
    if (this.pointers.has(event.pointerId)) this.pointers.set(event.pointerId, [event.offsetX, event.offsetY]);
    const cell = this.#cellAt(event);
    const drag = this.drag;
    if (drag?.pinch && this.pointers.size > 1) {
      const [a, b] = [...this.pointers.values()];
      const middle = [((a[1] + b[1]) / 2 - this.margin) / this.plot, ((a[0] + b[0]) / 2 - this.margin) / this.plot];
      const factor = this.#distance() / drag.pinch;
      this.view = [...drag.view];
      this.zoom(factor, middle);
    } else if (drag?.block) {
      if (cell && (cell[0] !== drag.to[0] || cell[1] !== drag.to[1])) {
        drag.to = cell;
        this.#overlay();
      }
    } else if (drag?.at) {
      const [dx, dy] = [event.offsetX - drag.at[0], event.offsetY - drag.at[1]];
      drag.moved ||= Math.hypot(dx, dy) > 4;
      const unit = this.plot / drag.view[2];
      if (drag.moved && drag.view[2] < this.matrix.length) this.#setView(drag.view[0] - dy / unit, drag.view[1] - dx / unit, drag.view[2]);
    }
    this.hover(cell, true);
  }

  #up(event) {
    const drag = this.drag;
    this.pointers.delete(event.pointerId);
    if (this.pointers.size) return;
    this.drag = null;
    if (event.type === "pointercancel" || !drag?.from) return;
    if (drag.block) this.on.block(rectangle(drag.from, drag.to), !this.blocked.has(drag.from[0] * this.matrix.length + drag.from[1]));
    else if (!drag.moved || drag.view[2] >= this.matrix.length) this.on.choose(drag.from);
    this.#overlay();
  }

  #wheel(event) {
    if (!this.matrix) return;
    const pinch = event.ctrlKey || event.metaKey; // so browsers report a pinch on a touchpad
    if (!pinch && document.activeElement !== this.stage) return; // the wheel scrolls the page until the matrix is clicked
    if (event.deltaY > 0 && this.view[2] >= this.matrix.length) return;
    event.preventDefault();
    const at = [(event.offsetY - this.margin) / this.plot, (event.offsetX - this.margin) / this.plot].map((part) => Math.min(1, Math.max(0, part)));
    this.zoom(Math.exp(-event.deltaY * (pinch ? 0.01 : 0.002)), at);
  }
}

function rectangle([q0, k0], [q1, k1]) {
  const cells = [];
  for (let query = Math.min(q0, q1); query <= Math.max(q0, q1); query++)
    for (let key = Math.min(k0, k1); key <= Math.max(k0, k1); key++) cells.push([query, key]);
  return cells;
}

function nice(step) {
  const power = 10 ** Math.floor(Math.log10(Math.max(step, 1)));
  return [1, 2, 5, 10].map((part) => part * power).find((each) => each >= step) ?? 1;
}

const inCell = (value) => (value === 0 ? "0" : Math.abs(value) < 0.005 ? (value < 0 ? ">−0.01" : "<0.01") : value.toFixed(2).replace("-", "−"));

/** Return the line that names a cell and its weight. */
export function reading(matrix, tokens, cell) {
  if (!matrix || !cell) return "";
  const found = matrix.at(...cell);
  if (!found) return "";
  const range = ([start, stop]) => (stop - start > 1 ? `${start} to ${stop - 1}` : `${start} “${short(visible(tokens[start] ?? ""), 16)}”`);
  const plural = ([start, stop], name, many) => (stop - start > 1 ? many : name);
  const value = found.keys[1] - found.keys[0] > 1 ? `sum ${number(found.value)}` : number(found.value);
  return `${plural(found.queries, "query", "queries")} ${range(found.queries)} → ${plural(found.keys, "key", "keys")} ${range(found.keys)}: ${value}`;
}
