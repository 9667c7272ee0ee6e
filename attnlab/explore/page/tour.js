// Four steps through the page, in a box that can be dismissed.

import { announce, byId, h } from "explore/dom";

const SEEN = "attnlab-explore-tour";
const TAGS = { "previous token": "the token before", induction: "the token that followed last time" };

/** Return the steps for a view, [section, title, text]. */
function steps({ layers }, { source }) {
  const all = layers.flatMap(({ heads }, layer) => heads.map(({ tags }, head) => ({ tags, layer, head })));
  const named = Object.entries(TAGS).flatMap(([tag, what]) => {
    const score = (each) => each.tags[tag] ?? 0;
    const best = all.reduce((one, two) => (score(two) > score(one) ? two : one), { tags: {} });
    return score(best) > 0.4 ? [`Head ${best.head} of layer ${best.layer} attends mostly to ${what}.`] : [];
  });
  const reads = source.kind === "trained" ? "The network was trained on repeated words and predicts the letters." : "These are the tokens of the input.";
  return [
    ["tokens", "The input", `${reads} Each token is tinted by how much the chosen token attends to it. Move over a token to see where its own attention goes.`],
    ["overview", "Heads", all.length > 1 ? `The network has ${all.length} heads, and each attends in its own way. ${named.join(" ")} Click a square to see another head.` : "This network has one head. Networks with several heads show a square for each."],
    ["map", "One head", "Each row is a query, each column a key. A strong colour means that the query uses much of that key. Click a cell: the panel beside it shows how its weight is computed, number by number."],
    ["details", "Try a change", "Under “Changes”, move the temperature: the weights become sharper or more even, and the table shows what that does to the output. “Compare” puts a second setup beside this one."],
  ];
}

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
    this.first = app.data.live && !location.hash && !remembered();
  }

  /** Show the tour at the first visit, once there is a view. */
  update() {
    if (!this.first || !this.app.side.view) return;
    this.first = false;
    this.show(0, false);
  }

  show(at, focus = true) {
    if (!this.app.side.view) return;
    this.at = at;
    const all = steps(this.app.side.view, this.app.setup);
    const [target, title, text] = all[at];
    this.#mark(target);
    const last = at === all.length - 1;
    const next = h("button", { class: "primary", onclick: () => (last ? this.close() : this.show(at + 1)) }, last ? "Done" : "Next");
    this.root.replaceChildren(
      h("div", {}, h("h2", { id: "tour-title" }, `${at + 1} of ${all.length}: ${title}`), h("p", {}, text)),
      h("div", { class: "controls" }, at ? h("button", { onclick: () => this.show(at - 1) }, "Back") : "", next, last ? "" : h("button", { onclick: () => this.close() }, "Close the tour")),
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
