// A table of the weights around a cell, in place of the matrix.

import { columnHead, h, number, rowHead, short, visible } from "explore/dom";

const MOST = 40; // rows and columns
const CHOSEN = { class: "chosen", "aria-current": "true" };
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
    return found ? number(found.value) : "";
  };
  const note = matrix.pooled ? " (sums over blocks where the matrix is pooled)" : "";
  root.replaceChildren(
    h("table", {},
      h("caption", {}, `Weights of queries ${queries[0]} to ${queries.at(-1)} (rows) and keys ${keys[0]} to ${keys.at(-1)} (columns)${note}`),
      h("thead", {}, h("tr", {}, columnHead("query \\ key"), keys.map((i) => columnHead(name(i))))),
      h("tbody", {},
        queries.map((row) =>
          h("tr", {}, rowHead(name(row)), keys.map((column) => h("td", { "data-cell": `${row}.${column}`, ...(row === query && column === key ? CHOSEN : {}) }, value(row, column)))),
        ),
      ),
    ),
  );
  if (root === document.activeElement) root.querySelector(".chosen")?.scrollIntoView({ block: "nearest", inline: "nearest" });
}
