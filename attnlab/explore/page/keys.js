// The keyboard, and the dialog that lists it.

import { byId, h } from "explore/dom";

const KEYS = [
  ["← → ↑ ↓", "move the cell: key with ← →, query with ↑ ↓"],
  ["Page Up, Page Down", "previous or next head"],
  ["[ and ]", "previous or next layer"],
  ["+ − 0", "zoom in, zoom out, show the whole matrix"],
  ["/", "find a token"],
  ["c", "compare with a second setup, or end the comparison"],
  ["t", "table in place of the matrix"],
  ["m", "draw a mask, or end drawing; Space then blocks the chosen cell"],
  ["Escape", "close what is open"],
  ["?", "this list"],
];

export class Keys {
  constructor(app) {
    this.app = app;
    this.help = byId("help");
    this.help.append(
      h("h2", { id: "help-title", textContent: "Keyboard" }),
      h("table", {}, h("tbody", {}, KEYS.map(([keys, what]) => h("tr", {}, h("th", { scope: "row", textContent: keys }), h("td", { textContent: what }))))),
      h("p", { class: "soft small", textContent: "In the overview, the arrow keys choose a head; in the token list, ← → move and Space chooses." }),
      h("button", { type: "button", textContent: "Close", onclick: () => this.help.close() }),
    );
    byId("show-help").addEventListener("click", () => this.help.showModal());
    document.addEventListener("keydown", (event) => this.#press(event));
  }

  #press(event) {
    const { app } = this;
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || this.help.open) return;
    const headview = app.parts[3];
    if (key === "Escape") {
      if (headview.drawing) headview.draw(false);
      else if (!byId("tour").hidden) app.tour.close();
      else if (target.matches("input, textarea, select")) target.blur();
      else if (app.state.table) app.set({ table: false });
      return;
    }
    if (target.matches("textarea, select, input:not([type=checkbox], [type=radio])")) return;
    if (target.matches("input[type=radio], [role=tab]") && key.startsWith("Arrow")) return;
    const actions = {
      ArrowUp: () => app.moveCell([-1, 0]),
      ArrowDown: () => app.moveCell([1, 0]),
      ArrowLeft: () => app.moveCell([0, -1]),
      ArrowRight: () => app.moveCell([0, 1]),
      PageUp: () => app.step(-1),
      PageDown: () => app.step(1),
      "[": () => app.stepLayer(-1),
      "]": () => app.stepLayer(1),
      "+": () => headview.zoom(1.5),
      "=": () => headview.zoom(1.5),
      "-": () => headview.zoom(1 / 1.5),
      0: () => headview.each((map) => map.reset()),
      "/": () => byId("search").focus(),
      c: () => app.data.live && app.compare(),
      t: () => headview.toggleTable(),
      m: () => app.data.live && headview.draw(!headview.drawing),
      "?": () => this.help.showModal(),
    };
    if (key === " " && headview.drawing && !target.matches("button, summary, [role=listbox]")) actions[" "] = () => headview.blockCell();
    if (!Object.hasOwn(actions, key)) return;
    event.preventDefault();
    actions[key]();
  }
}
