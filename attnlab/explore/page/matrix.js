// The weights of one head, or a part of them pooled into blocks.

/** A matrix of N queries × M keys of which `base` holds everything, pooled if it is large, and `detail` a part. */
export class Matrix {
  constructor(base, length, signed) {
    Object.assign(this, { base: blocks(base, [0, length], [0, length]), detail: null, length, signed });
  }

  get pooled() {
    return this.base.height > 1 || this.base.width > 1;
  }

  zoomed(answer) {
    this.detail = blocks(answer, answer.queries, answer.keys);
  }

  /** Return the finest known {value, queries, keys} that covers a cell; the ranges are half-open. */
  at(query, key) {
    for (const part of [this.detail, this.base]) {
      if (!part) continue;
      const [row, column] = [Math.floor((query - part.queries[0]) / part.height), Math.floor((key - part.keys[0]) / part.width)];
      if (row < 0 || column < 0 || row >= part.rows || column >= part.columns) continue;
      if (query >= part.queries[1] || key >= part.keys[1]) continue;
      const [q, k] = [part.queries[0] + row * part.height, part.keys[0] + column * part.width];
      return {
        value: part.values[row * part.columns + column],
        queries: [q, Math.min(q + part.height, part.queries[1])],
        keys: [k, Math.min(k + part.width, part.keys[1])],
      };
    }
    return null;
  }

  /** Return the weights of one query for all keys, or of all queries for one key; null if they are not known exactly. */
  line(index, direction) {
    if (this.pooled) return null;
    const { values, columns, rows } = this.base;
    if (direction === "from") return values.subarray(index * columns, (index + 1) * columns);
    return Float32Array.from({ length: rows }, (_, row) => values[row * columns + index]);
  }
}

// The server pools blocks of equal size, of which the last one may be smaller.
function blocks(answer, queries, keys) {
  const size = ([start, stop], count) => Math.ceil((stop - start) / count);
  return { ...answer, queries, keys, height: size(queries, answer.rows), width: size(keys, answer.columns) };
}

/** Return b − a, or null if the shapes differ. */
export function difference(a, b) {
  if (!a || !b || a.length !== b.length || a.base.rows !== b.base.rows || a.base.columns !== b.base.columns) return null;
  const values = new Float32Array(a.base.values.length);
  for (let i = 0; i < values.length; i++) values[i] = b.base.values[i] - a.base.values[i];
  return new Matrix({ rows: a.base.rows, columns: a.base.columns, values }, a.length, true);
}
