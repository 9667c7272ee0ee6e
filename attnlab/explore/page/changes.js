// What can be changed about the network and its attention, with the effect of the changes.

import { field, h, number, select, visible } from "explore/dom";
import { DEFAULTS, isChanged, unchanged } from "explore/setup";

const POWER = 4; // the slider of the temperature goes from 2^−4 to 2^4
const UNSUPPORTED = "This mechanism does not support it.";
const ELSEWHERE = "This layer does not support it, others do.";
const SCORES = {
  temperature: "Scores are divided by it: below 1 the weights become sharper, above 1 more even.",
  scale: "Divide the scores by √d.",
  softcap: "Scores become cap · tanh(score / cap).",
  sink: "A logit that takes weight from all keys.",
  top_k: "Keep the k largest weights of each query.",
};

export class Changes {
  constructor(root, app) {
    Object.assign(this, { root, app, kind: null, synced: [] });
    this.effect = h("div", { class: "effect" });
    this.form = h("form", { onsubmit: (event) => event.preventDefault() });
    root.append(h("h2", { textContent: "Changes" }), this.effect, this.form);
  }

  update() {
    const { view } = this.app.now();
    if (!view) return;
    const { setup } = this.app;
    const layer = this.app.layer();
    const entry = this.#mechanism();
    const kind = JSON.stringify([setup.source.kind, entry?.name, layer.mechanism, view.layers.map(({ changes }) => changes)]);
    if (kind !== this.kind) {
      this.kind = kind;
      this.#build(setup, layer, entry);
    }
    const wanted = this.app.state[this.app.state.side];
    for (const sync of this.synced) sync(wanted);
    this.#effects(setup, layer);
  }

  #mechanism() {
    const { source } = this.app.setup;
    const { catalog } = this.app;
    const name = source.kind === "run" ? catalog.runs.find((run) => run.name === source.run)?.model : source.model;
    return catalog.mechanisms.find((entry) => entry.name === name);
  }

  #build(setup, layer, entry) {
    this.synced = [];
    if (!this.app.data.live) {
      this.form.replaceChildren(h("p", { class: "soft", textContent: "This page is an export. Run attnlab explore to change masks, scores and options." }));
      return;
    }
    const { source } = setup;
    const groups = [this.#scores(layer), this.#mask(source, entry), this.#heads()];
    if (source.kind === "untrained") groups.push(this.#network());
    if ("options" in source) groups.push(this.#options(source, entry));
    const reset = h("button", { type: "button", id: "reset-changes", textContent: "Undo all changes", onclick: () => this.app.change((copy) => Object.assign(copy, unchanged(copy))) });
    this.synced.push((wanted) => (reset.disabled = !isChanged(wanted)));
    this.form.replaceChildren(...groups, reset);
  }

  // A control that shows the value that `get` takes from a setup, unless it is being edited, and reports new ones.
  #bind(control, get, put, { live = false } = {}) {
    const check = control.type === "checkbox";
    control.addEventListener(live ? "input" : "change", () => {
      const value = check ? control.checked : control.value;
      this.app.change((setup) => put(setup, value), { replace: live });
    });
    this.synced.push((setup) => {
      const value = get(setup);
      if (check) control.checked = value;
      else if (control !== document.activeElement || control.tagName === "SELECT") control.value = value ?? "";
    });
    return control;
  }

  #number(label, help, get, put, limits = {}, empty = null) {
    const control = h("input", { type: "number", placeholder: empty === null ? "none" : String(empty), ...limits });
    this.#bind(control, get, (setup, text) => put(setup, text === "" ? empty : Number(text)));
    return field(label, control, help);
  }

  #group(title, ...content) {
    return h("fieldset", {}, h("legend", { textContent: title }), content);
  }

  #scores(layer) {
    const put = (name) => (setup, value) => (setup.scores[name] = value);
    const get = (name) => (setup) => setup.scores[name];
    const slider = h("input", { type: "range", id: "temperature", min: -POWER, max: POWER, step: 0.05 });
    const shown = h("output", { for: "temperature" });
    slider.addEventListener("input", () => this.app.change((setup) => (setup.scores.temperature = Number((2 ** slider.value).toPrecision(3))), { replace: true }));
    this.synced.push(({ scores: { temperature } }) => {
      if (slider !== document.activeElement) slider.value = Math.log2(temperature);
      shown.textContent = number(temperature, 3);
      slider.setAttribute("aria-valuetext", number(temperature, 3));
    });
    const heat = field("Temperature", slider, SCORES.temperature);
    heat.querySelector("label").append(" ", shown);
    const fields = {
      temperature: heat,
      scale: field("Scale by 1/√d", this.#bind(h("input", { type: "checkbox" }), get("scale"), put("scale")), SCORES.scale),
      softcap: this.#number("Soft cap", SCORES.softcap, get("softcap"), put("softcap"), { min: 0.01, max: 1000, step: "any" }),
      sink: this.#number("Sink", SCORES.sink, get("sink"), put("sink"), { min: -100, max: 100, step: "any" }),
      top_k: this.#number("Top k", SCORES.top_k, get("top_k"), put("top_k"), { min: 1, step: 1 }),
    };
    for (const [name, element] of Object.entries(fields)) {
      if (layer.changes.includes(name)) continue;
      const elsewhere = this.app.side.view.layers.some(({ changes }) => changes.includes(name));
      element.querySelector("small").textContent = elsewhere ? ELSEWHERE : UNSUPPORTED;
      if (elsewhere) continue;
      element.classList.add("unsupported");
      for (const control of element.querySelectorAll("input")) control.disabled = true;
    }
    return this.#group("Scores", Object.values(fields));
  }

  #mask(source, entry) {
    const put = (name) => (setup, value) => (setup.mask[name] = value);
    const get = (name) => (setup) => setup.mask[name];
    const fields = [];
    if ("causal" in source) {
      const control = select([["", "as the mechanism is"], ["true", "yes"], ["false", "no"]], "", () => {});
      this.#bind(control, (setup) => (setup.source.causal === null ? "" : String(setup.source.causal)), (setup, value) => (setup.source.causal = value === "" ? null : value === "true"));
      const fixed = { always: "This mechanism is always causal.", never: "This mechanism is never causal." }[entry?.causal];
      control.disabled = Boolean(fixed);
      fields.push(field("Causal", control, fixed ?? "A query attends to itself and to earlier keys only."));
    }
    fields.push(
      this.#number("Window", "The nearest keys, the token itself included.", get("window"), put("window"), { min: 1, step: 1 }),
      this.#number("Prefix", "Keys that every query may attend to; the others are causal.", get("prefix"), put("prefix"), { min: 1, step: 1 }),
    );
    const documents = h("input", { type: "text", inputMode: "numeric", placeholder: "such as 11, 10", pattern: "\\s*(\\d+\\s*([,\\s]\\s*\\d+\\s*)*)?" });
    this.#bind(documents, (setup) => setup.mask.documents.join(", "), (setup, text) => {
      if (documents.reportValidity()) setup.mask.documents = text.split(/[\s,]+/).filter(Boolean).map(Number);
    });
    fields.push(field("Documents", documents, "The lengths of documents that do not attend to each other."));
    const drawn = h("span", { class: "soft" });
    const clear = h("button", { type: "button", textContent: "Clear", onclick: () => this.app.change((setup) => (setup.mask.blocked = [])) });
    this.synced.push(({ mask: { blocked } }) => {
      drawn.textContent = blocked.length ? `${blocked.length} cells blocked ` : "Press “Draw mask” above the matrix and drag over cells. ";
      clear.hidden = !blocked.length;
    });
    return this.#group("Mask", fields, h("p", { class: "small" }, drawn, clear));
  }

  #heads() {
    const box = h("input", { type: "checkbox", id: "ablate" });
    const control = this.#bind(
      box,
      (setup) => setup.ablated.some((each) => String(each) === String(this.app.head)),
      (setup, on) => {
        setup.ablated = setup.ablated.filter((each) => String(each) !== String(this.app.head));
        if (on) setup.ablated.push([...this.app.head]);
      },
    );
    return this.#group("Ablation", field("Ablate this head", control, "Its output is replaced by zeros."));
  }

  #network() {
    const item = (name, label, help, most) => this.#number(label, help, (setup) => setup.source[name], (setup, value) => (setup.source[name] = value), { min: name === "seed" ? 0 : 1, max: most, step: 1 }, DEFAULTS.source.untrained[name]);
    return this.#group("Network", item("seed", "Seed", "Of the random parameters.", 999999999), item("embed_dim", "Width", "embed_dim", 1024), item("layers", "Layers", "", 48));
  }

  #options(source, entry) {
    if (!entry) return h("p", { class: "soft small", textContent: "Options can be changed for a network of one mechanism." });
    const controls = entry.options.map((option) => {
      const get = (setup) => setup.source.options?.[option.name] ?? (option.name === "num_heads" ? this.app.layer()?.num_heads : undefined) ?? option.default;
      const put = (setup, value) => {
        if (value === option.default || (value === "" && option.optional)) delete setup.source.options[option.name];
        else setup.source.options[option.name] = value;
      };
      if (option.kind === "boolean") return field(option.name, this.#bind(h("input", { type: "checkbox" }), (setup) => Boolean(get(setup)), put), option.help);
      if (option.kind === "text") {
        // a name can have settings, such as rotary(base=500000): the choices are suggestions
        const list = h("datalist", { id: `choices-${option.name}` }, option.choices.map((value) => h("option", { value })));
        const text = h("input", { type: "text", placeholder: option.optional ? "none" : "" });
        if (option.choices.length) text.setAttribute("list", list.id);
        return field(option.name, this.#bind(text, get, put), option.choices.length ? `${option.help} Choices: ${option.choices.join(", ")}.` : option.help, list);
      }
      const step = option.kind === "integer" ? 1 : "any";
      return this.#number(option.name, option.help, get, (setup, value) => put(setup, value ?? option.default), { step });
    });
    const note = source.kind === "run" ? h("p", { class: "soft small", textContent: "Of a trained network, options can change that do not change the shapes of its parameters." }) : null;
    return h("details", { class: "options", open: true }, h("summary", { textContent: `Options of ${entry.name}` }), note, controls);
  }

  // Before and after, beside the controls.
  #effects(setup, layer) {
    const { view, baseline } = this.app.now();
    const [i, j] = this.app.head;
    const before = baseline?.layers[i]?.heads[j];
    const after = layer.heads[j];
    if (!after && view.output_change === null) {
      this.effect.replaceChildren();
      return;
    }
    const sums = (head) => (head ? `${number(head.row_sums[0], 3)} to ${number(head.row_sums[1], 3)}` : "–");
    const entropy = (head) => (head ? (head.entropy === null ? "not defined" : `${number(head.entropy, 3)} nats`) : "–");
    const best = (all) => (all?.prediction.length ? `“${visible(all.prediction[0][0])}” ${number(all.prediction[0][1], 3)}` : "–");
    const share = (value) => (value === null ? "–" : `${number(100 * value, 3)} %`);
    const changed = isChanged(setup);
    const row = (name, one, two) => h("tr", {}, h("th", { scope: "row", textContent: name }), changed ? h("td", { textContent: one }) : null, h("td", { textContent: two }));
    this.effect.replaceChildren(
      h(
        "table",
        {},
        h("caption", { class: "quiet", textContent: "Effect of the changes on this head and on the output" }),
        h("thead", {}, h("tr", {}, h("td"), changed ? h("th", { scope: "col", textContent: "before" }) : null, h("th", { scope: "col", textContent: changed ? "after" : "now" }))),
        h(
          "tbody",
          {},
          row("Row sums", sums(before), sums(after)),
          row("Entropy", entropy(before), entropy(after)),
          row("Prediction", best(baseline), best(view)),
          changed ? row("Change of the layer's output", "", share(layer.output_change)) : null,
          changed ? row("Change of the network's output", "", share(view.output_change)) : null,
        ),
      ),
    );
  }
}
