// The panels beside the matrix, as tabs.

import { Arithmetic } from "explore/arithmetic";
import { Changes } from "explore/changes";
import { h } from "explore/dom";
import { Recurrence } from "explore/recurrence";
import { Summary } from "explore/summary";

export class Panels {
  constructor(root, app) {
    this.app = app;
    this.tabs = [
      ["Arithmetic", Arithmetic],
      ["Changes", Changes],
      ["Summary", Summary],
      ["State", Recurrence],
    ].map(([name, Panel]) => {
      const id = name.toLowerCase();
      const tab = h("button", { role: "tab", id: `tab-${id}`, "aria-controls": `panel-${id}`, textContent: name, onclick: () => this.show(id) });
      const panel = h("div", { role: "tabpanel", id: `panel-${id}`, "aria-labelledby": `tab-${id}`, tabIndex: 0 });
      return { id, tab, panel, content: new Panel(panel, app) };
    });
    this.list = h("div", { class: "tabs", role: "tablist", "aria-label": "Details", onkeydown: (event) => this.#key(event) }, this.tabs.map(({ tab }) => tab));
    root.append(this.list, ...this.tabs.map(({ panel }) => panel));
    app.panels = this;
    this.show("arithmetic");
  }

  show(id) {
    this.chosen = id;
    for (const { id: name, tab, panel } of this.tabs) {
      const on = name === id;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      panel.hidden = !on;
    }
    this.update();
  }

  #key(event) {
    const shown = this.tabs.filter(({ tab }) => !tab.hidden);
    const at = shown.findIndex(({ id }) => id === this.chosen);
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: shown.length - 1 }[event.key];
    if (next === undefined) return;
    const { id, tab } = shown[(next + shown.length) % shown.length];
    this.show(id);
    tab.focus();
    event.preventDefault();
    event.stopPropagation();
  }

  update() {
    const layer = this.app.layer();
    const state = this.tabs.find(({ id }) => id === "state");
    state.tab.hidden = !layer?.has_state || !this.app.data.live;
    if (state.tab.hidden && this.chosen === "state") this.show("arithmetic");
    for (const { id, content } of this.tabs) if (id === this.chosen) content.update();
  }

  retint() {
    for (const { content } of this.tabs) content.retint?.();
    this.update();
  }
}
