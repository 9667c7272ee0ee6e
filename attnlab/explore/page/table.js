// A table of the weights around a cell, in place of the matrix.

import { h, number, short, visible } from "explore/dom";

const MOST = 40; // rows and columns
const NARROW = 12; // on a narrow screen

/** Fill an element with a table of at most 40 × 40 weights around a cell. */
export function fillTable(root, matrix, tokens, [query, key]) {
  const half = (matchMedia("(max-width: 40rem)").matches ? NARROW : MOST) / 2;
  const range = (at) => {
    const start = Math.max(0, Math.min(at - half, tokens.length - 2 * half));
    return Array.from({ length: Math.min(2 * half, tokens.length) }, (_, i) => start + i);
  };
  const [queries, keys] = [range(query), range(key)];
  const name = (i) => `${i} ${short(visible(tokens[i]), 12)}`;
  const value = (row, column) => {
    const found = matrix.at(row, column);
    return found ? number(found.value, 3) : "";
  };
  const note = matrix.pooled ? " (sums over blocks where the matrix is pooled)" : "";
  root.replaceChildren(
    h(
      "table",
      {},
      h("caption", { textContent: `Weights of queries ${queries[0]} to ${queries.at(-1)} (rows) and keys ${keys[0]} to ${keys.at(-1)} (columns)${note}` }),
      h("thead", {}, h("tr", {}, h("th", { scope: "col", textContent: "query \\ key" }), keys.map((i) => h("th", { scope: "col", textContent: name(i) })))),
      h(
        "tbody",
        {},
        queries.map((row) =>
          h("tr", {}, h("th", { scope: "row", textContent: name(row) }), keys.map((column) => h("td", row === query && column === key ? { class: "chosen", "aria-current": "true", textContent: value(row, column) } : { textContent: value(row, column) }))),
        ),
      ),
    ),
  );
}
