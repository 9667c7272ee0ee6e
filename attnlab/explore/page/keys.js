// The keyboard; the dialog that lists the keys is part of the document.

import { byId } from "explore/dom";

export class Keys {
  constructor(app) {
    this.app = app;
    this.help = byId("help");
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
      else if (app.state.table && !target.matches("input, textarea, select")) headview.toggleTable();
      else if (target.matches("input, textarea, select")) headview.focus();
      return;
    }
    if (target.matches("textarea, select, input")) return;
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
    if (key === " " && headview.drawing) actions[" "] = () => headview.blockCell();
    if (target.closest(".stage")) Object.assign(actions, { Home: () => app.moveCell([0, -Infinity]), End: () => app.moveCell([0, Infinity]) });
    const here = target.matches("body, #map") || target.closest(".stage, .heads, .tokens, .table");
    if (!Object.hasOwn(actions, key) || !(here || key === "?" || key === "/")) return;
    event.preventDefault();
    actions[key]();
  }
}
