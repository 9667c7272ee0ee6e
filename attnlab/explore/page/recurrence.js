// The state of a recurrent head after each token: four line charts on one canvas.

import { style } from "explore/color";
import { newest } from "explore/data";
import { h, number, sentence, sized, small } from "explore/dom";

const CHARTS = [
  ["norm", "Norm of the state"],
  ["rank", "Rank of the state"],
  ["written", "Written by the token"],
  ["erased", "Erased by the token"],
];
const [HEIGHT, LEFT, BELOW, ABOVE] = [112, 52, 18, 20];

export class Recurrence {
  constructor(root, app) {
    Object.assign(this, { app, key: null, answer: null, width: 0 });
    this.load = newest();
    this.canvas = h("canvas", { role: "img" });
    this.note = small();
    this.box = h("div", {}, this.canvas);
    root.append(h("h2", {}, "State of the recurrence"), h("p", { class: "small" }, "After each token, from left to right. The vertical line is the query of the chosen cell."), this.box, this.note);
    new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      this.#draw();
    }).observe(this.box);
  }

  update() {
    const { app } = this;
    if (!app.layer()?.has_state) return;
    const key = JSON.stringify([app.setup, app.head]);
    if (key === this.key) {
      this.#draw();
      return;
    }
    this.key = key;
    this.load(
      (signal) => app.data.recurrence(app.setup, app.head, signal),
      (answer) => {
        this.answer = answer;
        this.note.textContent = sentence(answer.note);
        this.#draw();
      },
      (error) => {
        this.answer = null;
        this.note.textContent = error.message;
      },
    );
  }

  retint() {
    this.#draw();
  }

  #draw() {
    const { answer, width, canvas } = this;
    if (!answer || width < 60) return;
    const context = sized(canvas, width, CHARTS.length * HEIGHT);
    context.font = "12px ui-sans-serif, system-ui, sans-serif";
    const erases = Math.max(...answer.erased) > 1e-9 * Math.max(...answer.written);
    CHARTS.forEach(([name, title], i) => {
      if (name !== "erased" || erases) this.#chart(context, answer[name], title, i * HEIGHT);
      else this.#write(context, "This mechanism does not erase.", i * HEIGHT);
    });
    const last = (name) => (name === "rank" ? answer.rank.at(-1) : number(answer[name].at(-1)));
    canvas.setAttribute("aria-label", `State after the last token: norm ${last("norm")}, rank ${last("rank")}, written ${last("written")}, ${erases ? `erased ${last("erased")}` : "nothing erased"}`);
  }

  #write(context, text, top) {
    context.fillStyle = style().ink;
    context.textAlign = "left";
    context.fillText(text, LEFT, top + 13);
  }

  #chart(context, values, title, top) {
    const colors = style();
    const [y0, y1] = [top + HEIGHT - BELOW, top + ABOVE];
    const most = Math.max(...values, 1e-12);
    const x = (i) => LEFT + ((this.width - LEFT - 8) * i) / Math.max(1, values.length - 1);
    const y = (value) => y0 - ((y0 - y1) * value) / most;
    this.#write(context, title, top);
    context.strokeStyle = colors.line;
    context.lineWidth = 1;
    context.beginPath();
    for (const value of [0, most]) {
      context.moveTo(LEFT, y(value));
      context.lineTo(this.width - 8, y(value));
    }
    context.stroke();
    context.fillStyle = colors.soft;
    context.textAlign = "right";
    context.fillText("0", LEFT - 6, y0 + 4);
    context.fillText(Number.isInteger(most) ? String(most) : number(most), LEFT - 6, y1 + 4);
    context.textAlign = "center";
    context.fillText("0", x(0), y0 + 14);
    context.fillText(String(values.length - 1), x(values.length - 1) - 4, y0 + 14);
    context.fillText("query position", (LEFT + this.width) / 2, y0 + 14);
    const [query] = this.app.cell;
    context.strokeStyle = colors.mark;
    context.beginPath();
    context.moveTo(x(query), y1);
    context.lineTo(x(query), y0);
    context.stroke();
    context.strokeStyle = colors.accent;
    context.lineWidth = 2;
    context.beginPath();
    values.forEach((value, i) => context.lineTo(x(i), y(value)));
    context.stroke();
  }
}
