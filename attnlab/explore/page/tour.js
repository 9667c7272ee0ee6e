// Four steps through the page, in a box that can be dismissed.

import { announce, byId, h } from "explore/dom";

const SEEN = "attnlab-explore-tour";
const STEPS = [
  ["tokens", "The input", "The network reads these tokens from left to right and predicts the next one. Each token is tinted by how much the chosen token attends to it. Move over a token to see where its own attention goes."],
  ["overview", "Heads", "The network has several heads in each layer, and every head attends in its own way. Click a square to look at another head: one attends to the previous token, another to what followed the last time."],
  ["map", "One head", "Each row is a query, each column a key. A dark cell means that the query takes much from that key. Click a cell: the panel beside it shows how its weight is computed, number by number."],
  ["details", "Try a change", "Open “Changes” and move the temperature: the weights become sharper or more even, and the table shows what that does to the output. “Compare” puts a second setup beside this one."],
];

function remembered() {
  try {
    return localStorage.getItem(SEEN);
  } catch {
    return "yes"; // no storage: do not show it on every visit
  }
}

export class Tour {
  constructor(root, app) {
    Object.assign(this, { root, app, at: 0 });
    byId("show-tour").addEventListener("click", () => this.show(0));
    if (app.data.live && !location.hash && !remembered()) this.show(0, false);
  }

  show(at, focus = true) {
    this.at = at;
    const [target, title, text] = STEPS[at];
    this.#mark(target);
    const last = at === STEPS.length - 1;
    const next = h("button", { type: "button", class: "primary", textContent: last ? "Done" : "Next", onclick: () => (last ? this.close() : this.show(at + 1)) });
    this.root.replaceChildren(
      h("div", {}, h("h2", { id: "tour-title", textContent: `${at + 1} of ${STEPS.length}: ${title}` }), h("p", { textContent: text })),
      h("div", { class: "controls" }, at ? h("button", { type: "button", textContent: "Back", onclick: () => this.show(at - 1) }) : "", next, last ? "" : h("button", { type: "button", textContent: "Close the tour", onclick: () => this.close() })),
    );
    this.root.hidden = false;
    if (focus) {
      next.focus();
      announce(`${title}. ${text}`);
    }
    if (target === "details") this.app.panels.show("changes");
  }

  #mark(target) {
    for (const element of document.querySelectorAll(".toured")) element.classList.remove("toured");
    if (target) byId(target).classList.add("toured");
  }

  close() {
    this.root.hidden = true;
    this.#mark(null);
    byId("show-tour").focus();
    try {
      localStorage.setItem(SEEN, "yes");
    } catch {
      // no storage
    }
  }
}
