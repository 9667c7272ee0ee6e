// Which network, and on which input.

import { check, complain, debounced, field, h, select, small } from "explore/dom";
import { part } from "explore/setup";

const INPUTS = { text: "text", task: "example of a task", digit: "scanned digit", upload: "file (.npz, .safetensors)", three_tokens: "three tokens of the lessons" };
const ACCEPTED = { lesson: ["three_tokens"], untrained: ["text", "task", "digit", "upload"], trained: ["text"], pretrained: ["text"] };
const SENTENCE = "The animal did not cross the street because it was too tired";
const PATTERN = " pattern"; // the value of a choice; no mechanism has a space in its name

export class Pickers {
  constructor(root, app) {
    Object.assign(this, { root, app });
    root.addEventListener("submit", (event) => event.preventDefault());
    if (!app.data.live) {
      const { source, input } = app.data.setup;
      const name = [source.kind, source.model ?? source.run ?? source.name].filter(Boolean).join(" ");
      root.append(h("p", { class: "soft" }, `An export of attnlab explore: ${name} network, ${input.kind.replace("_", " ")} input.`));
      return;
    }
    this.text = debounced((value) => {
      if (value) app.change((setup) => (setup.input.text = value), { replace: true, control: this.textarea });
      else complain(this.textarea, "Enter a text.");
    }, 250);
    this.network = h("div", { class: "picker" });
    this.input = h("div", { class: "picker" });
    root.append(this.network, this.input);
  }

  update() {
    if (!this.app.data.live) return;
    const { state } = this.app;
    const { source } = state[state.side];
    const { input } = state.a;
    const names = [JSON.stringify([state.side, Boolean(state.b), source.kind, source.model, source.run, source.name]), JSON.stringify([input.kind, source.kind, input.key, Boolean(state.b)])];
    if (names[0] !== this.names?.[0]) this.network.replaceChildren(...this.#network(source, state));
    if (names[1] !== this.names?.[1] && !(this.names && document.activeElement === this.textarea && input.kind === "text")) this.input.replaceChildren(...this.#input(input, source));
    this.names = names;
    for (const [control, value] of this.#values(source, input)) if (control && control !== document.activeElement && control.ariaInvalid !== "true") control.value = value;
  }

  #values(source, input) {
    return [
      [this.step, source.step ?? ""],
      [this.textarea, input.text ?? ""],
      [this.index, input.index ?? 0],
      [this.seed, input.seed ?? 0],
      [this.row, input.row ?? 0],
      [this.layers, source.layers ?? ""],
    ];
  }

  #network(source, state) {
    const { catalog } = this.app;
    const choices = [
      ["trained", "repeats a word (trained)"],
      ["untrained", "random parameters"],
      ["lesson", "lesson (three tokens)"],
      ...catalog.runs.map((run) => [`run ${run.name}`, `${run.name} (${run.problem || `${run.model}, ${run.task}`})`]),
      ...catalog.pretrained.map((entry) => [`pretrained ${entry.name}`, `${entry.name === "minilm" ? "MiniLM" : entry.title}${entry.missing ? " (not installed)" : ""}`]),
    ];
    const value = source.kind === "run" ? `run ${source.run}` : source.kind === "pretrained" ? `pretrained ${source.name}` : source.kind;
    if (!choices.some(([key]) => key === value)) choices.push([value, value]);
    const kind = select(choices, value, (choice) => this.#source(choice));
    kind.id = "source";
    const fields = [field(state.b ? `Setup ${state.side.toUpperCase()}: network` : "Network", kind)];
    this.layers = null;
    if (source.kind === "trained" || source.kind === "untrained") fields.push(...this.#model(source));
    this.step = null;
    const run = source.kind === "run" && catalog.runs.find(({ name }) => name === source.run);
    if (run && run.steps.length > 1) fields.push(this.#steps(run, source));
    if (source.kind === "pretrained") {
      const box = h("input", { type: "checkbox", checked: source.hide_special, onchange: () => this.app.change((setup) => (setup.source.hide_special = box.checked)) });
      fields.push(field("Hide [CLS] and [SEP]", box, "Their weights are left out, and the others divided by their sum."));
      const missing = catalog.pretrained.find(({ name }) => name === source.name)?.missing;
      if (missing) fields.push(small("Install it with ", h("code", {}, missing)));
    }
    return fields;
  }

  #model(source) {
    const { mechanisms } = this.app.catalog;
    const single = mechanisms.some(({ name }) => name === source.model);
    const choices = mechanisms.map(({ name, title }) => [name, `${name}: ${title}`]);
    if (source.kind === "untrained" || !single) choices.push([PATTERN, "a pattern of mechanisms"]);
    const put = (model) =>
      this.app.change((setup) => {
        setup.source.model = model;
        const length = model.split(",").reduce((sum, each) => sum + (Number.parseInt(each) || 1), 0);
        if (setup.source.layers % length) setup.source.layers = length;
        setup.source.options = {}; // those of another mechanism
      });
    const list = select(choices, single ? source.model : PATTERN, (value) => {
      put(value === PATTERN ? `${source.model},linear` : value);
      if (value === PATTERN) document.getElementById("pattern")?.focus();
    });
    list.id = "mechanism";
    const fields = [field("Mechanism", list)];
    if (!single) {
      const text = h("input", { type: "text", id: "pattern", value: source.model, onchange: () => put(text.value) });
      fields.push(field("Pattern", text, "One mechanism per layer, such as 3*linear,multihead; it is repeated."));
      this.layers = h("input", { type: "number", required: true, min: 1, max: 48, value: source.layers, onchange: () => check(this.layers, "Layers") && this.app.change((setup) => (setup.source.layers = Number(this.layers.value)), { control: this.layers }) });
      fields.push(field("Layers", this.layers));
    }
    return fields;
  }

  #steps(run, source) {
    const last = run.steps.length; // after the snapshots: the best
    const at = source.step === null ? last : run.steps.indexOf(source.step);
    const slider = h("input", { type: "range", id: "step", min: 0, max: last, step: 1, value: at });
    const shown = h("output", { for: "step", "aria-live": "off" });
    const say = () => {
      shown.textContent = Number(slider.value) === last ? "best" : String(run.steps[slider.value]);
      slider.setAttribute("aria-valuetext", `step ${shown.textContent}`);
    };
    slider.addEventListener("input", () => {
      say();
      this.app.change((setup) => (setup.source.step = Number(slider.value) === last ? null : run.steps[slider.value]), { replace: true });
    });
    say();
    const element = field("Training step ", slider);
    element.querySelector("label").append(shown);
    return element;
  }

  #accepted(source) {
    return ACCEPTED[source.kind] ?? this.app.catalog.runs.find(({ name }) => name === source.run)?.accepts ?? ["task"];
  }

  #source(choice) {
    const [kind, ...rest] = choice.split(" ");
    const name = rest.join(" ");
    this.app.change((setup) => {
      setup.source = { ...part("source", kind), ...(kind === "run" ? { run: name } : kind === "pretrained" ? { name } : {}) };
      const accepted = this.#accepted(setup.source);
      if (!accepted.includes(setup.input.kind)) setup.input = part("input", accepted[0] ?? "task");
      if (setup.input.kind === "text" && [part("input", "text").text, SENTENCE].includes(setup.input.text)) setup.input.text = kind === "pretrained" ? SENTENCE : part("input", "text").text;
    });
  }

  #input(input, source) {
    const choices = this.#accepted(source).map((name) => [name, INPUTS[name]]);
    if (!choices.some(([name]) => name === input.kind)) choices.push([input.kind, INPUTS[input.kind]]);
    const kind = select(choices, input.kind, (value) => {
      if (value === "upload" && input.kind !== "upload") this.#choose();
      else this.app.change((setup) => (setup.input = { ...part("input", value), ...(value === "task" && source.kind !== "run" ? { task: this.app.catalog.tasks[0]?.[0] ?? "" } : {}) }));
      kind.value = this.app.state.a.input.kind;
    });
    kind.id = "input";
    Object.assign(this, { textarea: null, index: null, seed: null, row: null });
    const fields = [field("Input", kind)];
    const integer = (name, label, most) => {
      this[name] = h("input", { type: "number", required: true, min: 0, max: most, step: 1, value: input[name], onchange: () => check(this[name], label) && this.app.change((setup) => (setup.input[name] = Number(this[name].value)), { control: this[name] }) });
      return field(label, this[name]);
    };
    if (input.kind === "text") {
      this.textarea = h("textarea", { id: "text", rows: 1, maxLength: 32768, value: input.text, oninput: () => this.text(this.textarea.value) });
      fields.push(field(this.app.state.b ? "Text (A and B)" : "Text", this.textarea, source.kind === "trained" ? "a–z and spaces, up to 24 characters" : ""));
      fields.at(-1).classList.add("wide");
    } else if (input.kind === "task") {
      if (source.kind !== "run") {
        const tasks = this.app.catalog.tasks.map(([name, title]) => [name, title ? `${name}: ${title}` : name]);
        fields.push(field("Task", select(tasks, input.task, (task) => this.app.change((setup) => (setup.input.task = task)))));
      }
      fields.push(integer("index", "Example", 1e6), integer("seed", "Seed", 999999999));
    } else if (input.kind === "digit") {
      fields.push(integer("index", "Scan (0–1796)", 1796), field("Tokens", select([["2x2", "patches of 2 × 2"], ["1x1", "pixels"], ["row", "rows"]], input.patch, (patch) => this.app.change((setup) => (setup.input.patch = patch)))));
    } else if (input.kind === "upload") {
      fields.push(integer("row", "Row", 1e6), small(this.uploaded?.key === input.key ? `${this.uploaded.name}: ${this.uploaded.shape.join(" × ")}` : ""), h("button", { onclick: () => this.#choose() }, "Another file …"));
    }
    return fields;
  }

  #choose() {
    const file = h("input", { type: "file", accept: ".npz,.safetensors" });
    file.addEventListener("change", async () => {
      try {
        this.uploaded = await this.app.data.upload(file.files[0]);
        this.app.change((setup) => (setup.input = { kind: "upload", key: this.uploaded.key, row: 0 }));
      } catch (error) {
        this.app.problem(error);
      }
    });
    file.click();
  }
}
