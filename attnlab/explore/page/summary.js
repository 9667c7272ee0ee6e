// Summaries of the chosen head, with their caveat beside them, and the ablation of the heads of its layer.

import { newest } from "explore/data";
import { rowSums } from "explore/changes";
import { count, h, nats, number, rounded, rowHead, sentence, small, visible } from "explore/dom";

const CAVEAT =
  "High entropy does not mean unimportant, and a large weight does not mean important: attention weights are not importances. Ablation is the causal check.";
const TAGS = {
  "previous token": "share of the weights on the token before",
  "same position": "share on the query's own position",
  "first token": "share on the first token",
  induction: "share on keys that follow an earlier occurrence of the query's token",
  "same token": "share on other occurrences of the query's token",
};

/** Return the bytes that decoding keeps per token. */
export const cacheOf = (bytes, causal = true) => (bytes === null ? `${causal ? "" : "not causal, so it "}cannot decode token by token` : count(bytes, "B"));

export class Summary {
  constructor(root, app) {
    Object.assign(this, { root, app, key: null });
    this.load = newest();
    this.body = h("div");
    this.button = h("button", { id: "run-ablation", onclick: () => this.#ablate() }, "Ablate each head of this layer");
    this.result = h("div", { "aria-live": "polite" });
    root.append(h("h2", {}, "Summary of the head"), this.body, h("h3", {}, "Ablation"), h("p", { class: "small" }, "How much the output of the network changes without each head."), this.button, this.result);
  }

  update() {
    const { view } = this.app.now();
    if (!view) return;
    const { source } = this.app.setup;
    const [i, j] = this.app.head;
    const layer = view.layers[i];
    const head = layer.heads[j];
    const entry = this.app.catalog.mechanisms.find(({ name }) => name === layer.mechanism);
    const row = (name, value, help) => h("tr", {}, rowHead(name, help), h("td", {}, value));
    const facts = head
      ? [
          row("Entropy", nats(head.entropy), "Mean over the queries"),
          row("Mean distance", `${rounded(head.distance)} tokens`, "|query position − key position|, weighted"),
          row("Sink mass", rounded(head.sink), "Share of the weight on the first key"),
          row("Row sums", rowSums(head)),
          row("Largest weight", number(head.peak)),
        ]
      : [];
    const tags = Object.entries(head?.tags ?? {}).sort((a, b) => b[1] - a[1]);
    this.body.replaceChildren(
      h("div", {},
        h("p", {}, h("strong", {}, layer.title), entry ? h("span", {}, `: ${entry.summary}. Its lesson is `, h("code", {}, entry.lesson), ".") : null),
        layer.signed && layer.weights === "true weights" ? h("p", { class: "note" }, "The weights of this mechanism may be negative.") : null,
        layer.note ? h("p", { class: "note" }, sentence(layer.note)) : null,
        head ? h("p", { class: "note caveat" }, CAVEAT) : null,
        h("table", {}, h("tbody", {}, facts, row("Forward pass of the layer", layer.flops === null ? "not counted" : count(layer.flops, "FLOP")), row("Decoding state per token", cacheOf(layer.state_bytes, (entry?.causal ?? "never") !== "never" && source.causal !== false && source.kind !== "pretrained")))),
        tags.length ? h("h3", {}, "Tags") : null,
        tags.map(([tag, score]) => this.#meter(tag, score, TAGS[tag] ?? "")),
        view.prediction.length ? h("h3", {}, "Most probable outputs") : null,
        view.prediction.map(([name, probability]) => this.#meter(`“${visible(name)}”`, probability, "")),
      ),
    );
    const key = JSON.stringify([this.app.setup, i]);
    if (key !== this.key) {
      this.key = key;
      this.result.replaceChildren();
    }
    this.button.disabled = !this.app.data.live;
  }

  #meter(name, value, help, most = 1) {
    const fill = h("span");
    fill.style.width = `${Math.min(100, (100 * value) / most)}%`;
    return h("div", { class: "meter", title: help }, h("span", { class: "name" }, name), h("span", { class: "track", "aria-hidden": "true" }, fill), h("span", { class: "value" }, rounded(value)));
  }

  #ablate() {
    const { app } = this;
    this.result.replaceChildren(h("p", { class: "soft" }, "Running the network once per head …"));
    this.load(
      (signal) => app.data.ablation(app.setup, app.head, signal),
      ({ output_change, note }) => {
        const most = Math.max(...output_change, 1e-12);
        this.result.replaceChildren(
          ...output_change.map((value, head) => this.#meter(`head ${head}`, value, "‖change of the output‖ / ‖output‖", most)),
          small(sentence(note)),
        );
      },
      (error) => this.result.replaceChildren(h("p", { class: "soft" }, error.message)),
    );
  }
}
