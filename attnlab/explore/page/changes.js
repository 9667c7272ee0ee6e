// What can be changed about the network and its attention, with the effect of the changes.

import { check, columnHead, complain, field, h, nats, number, percent, rowHead, select, sentence, small, visible } from "explore/dom";
import { DEFAULTS, before, isChanged, isRetrained, unchanged } from "explore/setup";

const POWER = 4; // the slider of the temperature goes from 2^−4 to 2^4
const UNSUPPORTED = "This mechanism does not support it.";
const ELSEWHERE = "This layer does not support it, others do.";
const SCORES = {
  temperature: "Scores are divided by it: below 1 the weights become sharper, above 1 more even.",
  scale: "Divide the scores by √d.",
  softcap: "Scores become cap · tanh(score / cap).",
  sink: "Adds a score for “no key” to every softmax, so that a row can sum to less than 1. 0 is a typical value.",
  top_k: "Keep the k largest weights of each query.",
};
const MASKS = { window: "windows", prefix: "prefixes", documents: "document masks", blocked: "drawn masks" };
const TRAINS = "A new network is trained with these options, so there is no “before”.";

/** Return why a network does not take a mask, in one sentence; empty if it does. */
export function maskProblem(layers, name) {
  const layer = layers.find(({ masks }) => !masks.includes(name));
  if (!layer) return "";
  return layer.masks.length ? `${layer.title} supports only ${layer.masks.map((each) => MASKS[each]).join(" and ")}.` : `${layer.title} supports no masks.`;
}

export class Changes {
  constructor(root, app) {
    Object.assign(this, { root, app, kind: null, synced: [] });
    this.effect = h("div", { class: "effect" });
    this.form = h("form", { onsubmit: (event) => event.preventDefault() });
    root.append(h("h2", { class: "quiet" }, "Changes"), this.effect, this.form);
  }

  update() {
    const { view } = this.app.now();
    if (!view) return;
    const { setup } = this.app;
    const layer = this.app.layer();
    const entry = this.#mechanism();
    const kind = JSON.stringify([setup.source.kind, entry?.name, layer.mechanism, view.layers.map(({ changes, masks }) => [changes, masks])]);
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
      this.form.replaceChildren(h("p", { class: "soft" }, "This page is an export. Run attnlab explore to change masks, scores and options."));
      return;
    }
    const { source } = setup;
    const groups = [this.#scores(layer), this.#mask(source, entry), this.#heads()];
    if (source.kind === "untrained") groups.push(this.#network());
    if ("options" in source) groups.push(this.#options(source, entry));
    const reset = h("button", { id: "reset-changes", onclick: () => this.app.change((copy) => Object.assign(copy, unchanged(copy, this.app.origin))) }, "Undo all changes");
    this.synced.push((wanted) => (reset.disabled = !isChanged(wanted, this.app.origin)));
    this.form.replaceChildren(...groups, reset);
  }

  // A control that shows the value that `get` takes from a setup, unless it is being edited, and reports new ones.
  #bind(control, get, put, { live = false } = {}) {
    const check = control.type === "checkbox";
    control.addEventListener(live ? "input" : "change", () => {
      const value = check ? control.checked : control.value;
      this.app.change((setup) => put(setup, value), { replace: live, control });
    });
    this.synced.push((setup) => {
      const value = get(setup);
      if (check) control.checked = value;
      else if ((control !== document.activeElement && control.ariaInvalid !== "true") || control.tagName === "SELECT") control.value = value ?? "";
    });
    return control;
  }

  #number(label, help, get, put, limits = {}, empty = null) {
    const control = h("input", { type: "number", placeholder: empty === null ? "none" : String(empty), ...limits });
    this.#guard(control, () => check(control, label));
    this.#bind(control, get, (setup, text) => put(setup, text === "" ? empty : Number(text)));
    return field(label, control, help);
  }

  // A wrong value stays in the control, with the reason below it, and changes nothing.
  #guard(control, valid) {
    control.addEventListener("change", (event) => valid() || event.stopImmediatePropagation());
  }

  #group(title, ...content) {
    return h("fieldset", {}, h("legend", {}, title), content);
  }

  #scores(layer) {
    const put = (name) => (setup, value) => (setup.scores[name] = value);
    const get = (name) => (setup) => setup.scores[name];
    const slider = h("input", { type: "range", id: "temperature", min: -POWER, max: POWER, step: 0.05 });
    const shown = h("output", { for: "temperature", "aria-live": "off" });
    slider.addEventListener("input", () => this.app.change((setup) => (setup.scores.temperature = Number((2 ** slider.value).toPrecision(3))), { replace: true }));
    this.synced.push(({ scores: { temperature } }) => {
      if (slider !== document.activeElement) slider.value = Math.log2(temperature);
      shown.textContent = number(temperature);
      slider.setAttribute("aria-valuetext", number(temperature));
    });
    const heat = field("Temperature", slider, SCORES.temperature);
    heat.querySelector("label").append(" ", shown);
    const fields = {
      temperature: heat,
      scale: field("Scale by 1/√d", this.#bind(h("input", { type: "checkbox" }), get("scale"), put("scale")), SCORES.scale),
      softcap: this.#number("Soft cap", SCORES.softcap, get("softcap"), put("softcap"), { min: 1e-9, max: 1000, step: "any" }),
      sink: this.#number("Sink", SCORES.sink, get("sink"), put("sink"), { min: -100, max: 100, step: "any" }),
      top_k: this.#number("Top k", SCORES.top_k, get("top_k"), put("top_k"), { min: 1, step: 1 }),
    };
    for (const [name, element] of Object.entries(fields)) {
      if (layer.changes.includes(name)) continue;
      const elsewhere = this.app.side.view.layers.some(({ changes }) => changes.includes(name));
      if (elsewhere) element.querySelector("small").textContent = ELSEWHERE;
      else this.#disable(element, UNSUPPORTED);
    }
    return this.#group("Scores", Object.values(fields));
  }

  #disable(element, reason) {
    element.querySelector("small").textContent = reason;
    element.classList.add("unsupported");
    for (const control of element.querySelectorAll("input")) control.disabled = true;
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
    const lengths = (text) => text.split(/[\s,]+/).filter(Boolean).map(Number);
    const documents = h("input", { type: "text", inputMode: "numeric", placeholder: "such as 11, 10" });
    this.#guard(documents, () => {
      const { length } = this.app.side.view.tokens;
      const sizes = lengths(documents.value);
      const fits = sizes.every((size) => Number.isInteger(size) && size > 0) && sizes.reduce((sum, size) => sum + size, 0) <= length;
      complain(documents, fits ? "" : `Enter lengths separated by commas that add up to ${length}, such as ${Math.ceil(length / 2)}, ${Math.floor(length / 2)}.`);
      return fits;
    });
    this.#bind(documents, (setup) => setup.mask.documents.join(", "), (setup, text) => (setup.mask.documents = lengths(text)));
    const masks = {
      window: this.#number("Window", "Each query sees only this many keys, counting itself.", get("window"), put("window"), { min: 1, step: 1 }),
      prefix: this.#number("Prefix", "The first tokens, which every query may see.", get("prefix"), put("prefix"), { min: 1, step: 1 }),
      documents: field("Documents", documents, "The lengths of documents that do not attend to each other."),
    };
    for (const [name, element] of Object.entries(masks)) {
      const problem = maskProblem(this.app.side.view.layers, name);
      if (problem) this.#disable(element, problem);
    }
    fields.push(...Object.values(masks));
    const drawn = h("span", { class: "soft" });
    const clear = h("button", { onclick: () => this.app.change((setup) => (setup.mask.blocked = [])) }, "Clear");
    this.synced.push(({ mask: { blocked } }) => {
      drawn.textContent = blocked.length ? `${blocked.length} cells blocked ` : maskProblem(this.app.side.view.layers, "blocked") || "Press “Draw mask” above the matrix and drag over cells. ";
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
    return this.#group("Network", item("seed", "Seed", "Of the random parameters.", 999999999), item("embed_dim", "Width", "Features per token (embed_dim); divisible by num_heads.", 1024), item("layers", "Layers", "", 48));
  }

  #options(source, entry) {
    if (!entry) return small("Options can be changed for a network of one mechanism.");
    const controls = entry.options.map((option) => {
      const own = { trained: entry.trained, run: this.app.catalog.runs.find(({ name }) => name === source.run)?.options }[source.kind];
      const base = own?.[option.name] ?? option.default;
      const get = (setup) => setup.source.options?.[option.name] ?? (option.name === "num_heads" ? this.app.layer()?.num_heads : undefined) ?? base;
      const put = (setup, value) => {
        if (value === "" && option.optional) value = null;
        if (value === base) delete setup.source.options[option.name];
        else setup.source.options[option.name] = value;
      };
      const help = sentence(option.help);
      if (option.kind === "boolean") return field(option.name, this.#bind(h("input", { type: "checkbox" }), (setup) => Boolean(get(setup)), put), help);
      if (option.kind === "text") {
        // a name can have settings, such as rotary(base=500000): the choices are suggestions
        const list = h("datalist", { id: `choices-${option.name}` }, option.choices.map((value) => h("option", { value })));
        const text = h("input", { type: "text", placeholder: option.optional ? "none" : "" });
        if (option.choices.length) text.setAttribute("list", list.id);
        return field(option.name, this.#bind(text, get, put), option.choices.some((value) => !option.help.includes(value)) ? `${help} Choices: ${option.choices.join(", ")}.` : help, list);
      }
      const step = option.kind === "integer" ? 1 : "any";
      return this.#number(option.name, help, get, (setup, value) => put(setup, value ?? base), { step });
    });
    const notes = { run: "Only options that do not change the shapes of the parameters can be changed.", trained: "Changing an option trains a new network. “Undo all changes” restores the original options." };
    return h("details", { class: "options", open: true }, h("summary", {}, `Options of ${entry.name}`), small(notes[source.kind] ?? ""), controls);
  }

  // Before and after, beside the controls.
  #effects(setup, layer) {
    const { view, baseline } = this.app.now();
    const { origin, data } = this.app;
    const [i, j] = this.app.head;
    const old = baseline?.layers[i]?.heads[j];
    const after = layer.heads[j];
    if (!after && view.output_change === null) {
      this.effect.replaceChildren();
      return;
    }
    const best = (all) => (all?.prediction.length ? `“${visible(all.prediction[0][0])}” ${number(all.prediction[0][1])}` : "–");
    const changed = data.live && isChanged(setup, before(setup, origin).source);
    const empty = this.#empty();
    const row = (name, one, two) => h("tr", {}, rowHead(name), changed ? h("td", {}, one ?? "–") : null, h("td", {}, two));
    this.effect.replaceChildren(
      h("table", {},
        h("caption", { class: "quiet" }, "Effect of the changes on this head and on the output"),
        h("thead", {}, h("tr", {}, h("td"), changed ? columnHead("before") : null, columnHead(changed ? "after" : "now"))),
        h("tbody", {},
          after ? row("Row sums", old && rowSums(old), rowSums(after)) : null,
          after ? row("Entropy", old && nats(old.entropy), nats(after.entropy)) : null,
          view.prediction.length ? row("Prediction", best(baseline), best(view)) : null,
          layer.output_change === null ? null : row("Change of the layer's output", "", percent(layer.output_change)),
          view.output_change === null ? null : row("Change of the network's output", "", percent(view.output_change)),
        ),
      ),
      data.live && isRetrained(setup) ? h("p", { class: "small" }, TRAINS) : "",
      empty ? h("p", { class: "small" }, empty) : "",
    );
  }

  // Names a query that has no key left.
  #empty() {
    const { matrix, view } = this.app.now();
    if (!matrix || matrix.pooled) return "";
    const { values, rows, columns } = matrix.base;
    for (let row = 0; row < rows; row++)
      if (values.subarray(row * columns, (row + 1) * columns).every((value) => value === 0)) return `Row ${row} “${visible(view.tokens[row])}” has no key left, so its output is 0.`;
    return "";
  }
}

/** Return the range of the row sums of a head. */
export function rowSums({ row_sums: [least, most] }) {
  const [one, two] = [number(least), number(most)];
  return one === two ? one : `${one} to ${two}`;
}
