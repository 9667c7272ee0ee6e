// Files of the matrix and of the page, and the link.

import { announce, h } from "explore/dom";

export class Save {
  constructor(root, app) {
    Object.assign(this, { root, app });
    const item = (text, help, action) => h("button", { title: help, onclick: () => this.#run(action) }, text);
    const files = app.data.live
      ? [
          ...["svg", "png", "csv", "npz"].map((format) => item(format.toUpperCase(), `Save the matrix of this head as ${format.toUpperCase()}`, () => this.#picture(format))),
          item("Page (HTML)", "Save all heads of this view as one file that needs no server", async () => download(await app.data.exported(app.setup, app.head, app.cell), "attention.html")),
        ]
      : [item("CSV", "Save the matrix of this head as CSV", () => this.#csv())];
    const copy = h("button", { id: "copy-link", title: "Copy the link to this view", onclick: () => this.#copy(copy) }, "Copy link");
    root.addEventListener("toggle", () => (copy.textContent = "Copy link"));
    root.append(h("div", { class: "items" }, files, copy));
    root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !root.open) return;
      root.open = false;
      root.querySelector("summary").focus();
      event.stopPropagation();
    });
  }

  update() {}

  async #run(action) {
    this.root.open = false;
    this.root.querySelector("summary").focus();
    try {
      await action();
    } catch (error) {
      this.app.problem(error);
    }
  }

  #name(extension) {
    return `attention-${this.app.head.join(".")}.${extension}`;
  }

  async #picture(format) {
    download(await this.app.data.picture(this.app.setup, this.app.head, format), this.#name(format));
    announce(`${format} saved`);
  }

  #csv() {
    const { matrix, view } = this.app.now();
    if (!matrix) return;
    const { rows, columns, values } = matrix.base;
    const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
    const lines = [["query \\ key", ...view.tokens].map(quoted).join(",")];
    for (let row = 0; row < rows; row++) lines.push([quoted(view.tokens[row]), ...values.subarray(row * columns, (row + 1) * columns)].join(","));
    download(new Blob([lines.join("\n")], { type: "text/csv" }), this.#name("csv"));
  }

  async #copy(button) {
    const link = `${location.href.split("#")[0]}#${this.app.fragment()}`;
    try {
      await navigator.clipboard.writeText(link);
      button.textContent = "Copied";
      announce("link copied");
    } catch {
      prompt("The link to this view", link);
    }
  }
}

function download(blob, name) {
  const address = URL.createObjectURL(blob);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
