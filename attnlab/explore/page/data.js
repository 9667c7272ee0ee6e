// All data of the page: from the server, or from the data embedded in an export. Both have the same methods.

const LIMIT = 96 * 2 ** 20; // bytes of answers that are kept

/** An error of the user, to be shown as it is. */
export class Problem extends Error {}

class Cache {
  constructor() {
    this.entries = new Map();
    this.bytes = 0;
  }
  get(key) {
    const entry = this.entries.get(key);
    if (entry) {
      this.entries.delete(key); // the order of a Map is that of insertion: the oldest entry is the first
      this.entries.set(key, entry);
    }
    return entry?.value;
  }
  put(key, value, size) {
    if (this.entries.has(key)) return;
    this.entries.set(key, { value, size });
    this.bytes += size;
    for (const [old, entry] of this.entries) {
      if (this.bytes <= LIMIT || this.entries.size === 1) break;
      this.entries.delete(old);
      this.bytes -= entry.size;
    }
  }
}

class Server {
  live = true;
  constructor() {
    this.cache = new Cache();
    this.running = new Map();
  }

  async #fetch(path, body, signal) {
    let answer;
    try {
      answer = await fetch(path, body === undefined ? { signal } : { method: "POST", headers: { "Content-Type": "application/json" }, body, signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer. Is attnlab explore still running?");
    }
    if (answer.ok) return answer;
    const text = await answer.text();
    let line = `The server answered with status ${answer.status}.`;
    try {
      line = JSON.parse(text).error ?? line;
    } catch {
      // not JSON: the status has to do
    }
    throw new Problem(line);
  }

  // Equal requests share one answer, now and later.
  async #ask(path, request, decode, signal) {
    const body = JSON.stringify(request);
    const key = `${path} ${body}`;
    const cached = this.cache.get(key);
    if (cached !== undefined) return cached;
    const shared = this.running.get(key);
    if (shared) {
      const value = await shared.catch(() => undefined);
      if (value !== undefined) return value;
    }
    const promise = this.#fetch(path, body, signal)
      .then(decode)
      .then((value) => {
        this.cache.put(key, value, value.bytes ?? value.byteLength ?? 2 * body.length + 4096);
        return value;
      })
      .finally(() => this.running.get(key) === promise && this.running.delete(key));
    this.running.set(key, promise);
    return promise;
  }

  async catalog() {
    return (await this.#fetch("/api/catalog")).json();
  }
  view(setup, signal) {
    return this.#ask("/api/view", setup, (answer) => answer.json(), signal);
  }
  thumbnails(setup, signal) {
    return this.#ask("/api/thumbnails", setup, async (answer) => new Uint8Array(await answer.arrayBuffer()), signal);
  }
  map(setup, [layer, head], { queries = null, keys = null, signal } = {}) {
    const request = { setup, layer, head, queries, keys };
    return this.#ask(
      "/api/map",
      request,
      async (answer) => {
        const values = new Float32Array(await answer.arrayBuffer());
        const [rows, columns] = ["X-Rows", "X-Columns"].map((name) => Number(answer.headers.get(name)));
        return { rows, columns, values, queries, keys, bytes: values.byteLength };
      },
      signal,
    );
  }
  cell(setup, [layer, head], [query, key], signal) {
    return this.#ask("/api/cell", { setup, layer, head, query, key }, (answer) => answer.json(), signal);
  }
  recurrence(setup, [layer, head], signal) {
    return this.#ask("/api/state", { setup, layer, head }, (answer) => answer.json(), signal);
  }
  ablation(setup, [layer, head], signal) {
    return this.#ask("/api/ablation", { setup, layer, head }, (answer) => answer.json(), signal);
  }
  async picture(setup, [layer, head], format) {
    return (await this.#fetch("/api/picture", JSON.stringify({ setup, layer, head, format }))).blob();
  }
  async exported(setup, head, cell) {
    const text = await (await this.#fetch("/api/export", JSON.stringify(setup))).text();
    const place = `"place": ${JSON.stringify({ head, cell })}, `;
    return new Blob([text.replace('id="export">{', (start) => start + place)], { type: "text/html" });
  }
  async upload(file) {
    return (await this.#fetch(`/api/upload?name=${encodeURIComponent(file.name)}`, file)).json();
  }
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Return the weight of an 8-bit code; see attnlab/explore/codes.py. */
export function weightOf(code, signed, peak, levels = 255) {
  if (!signed) return peak * (code / levels) ** 2;
  const part = (code - 128) / Math.floor(levels / 2);
  return Math.sign(part) * peak * part * part;
}

const ONLY_LIVE = "An export contains the attention matrices only; run attnlab explore for more.";
const refuse = async () => {
  throw new Problem(ONLY_LIVE);
};

class Export {
  live = false;
  constructor(content) {
    Object.assign(this, { content, maps: new Map() });
    this.setup = content.setup;
    this.place = content.place; // of an export that the page saved
  }
  catalog = async () => ({ version: "", mechanisms: [], tasks: [], runs: [], pretrained: [], max_detail: Infinity });
  view = async () => this.content.view;
  thumbnails = async () => inflate(this.content.thumbnails);
  async map(setup, [layer, head]) {
    const name = `${layer}.${head}`;
    const entry = this.content.maps[name];
    if (!entry) throw new Problem(`The export does not contain head ${name}.`);
    if (!this.maps.has(name)) this.maps.set(name, await this.#decoded(entry));
    return this.maps.get(name);
  }
  async #decoded({ codes, causal, signed, peak, levels }) {
    const bytes = await inflate(codes);
    const rows = this.content.view.tokens.length;
    const columns = causal ? rows : bytes.length / rows;
    const values = new Float32Array(rows * columns);
    for (let row = 0, at = 0; row < rows; row++)
      for (let column = 0; column < (causal ? row + 1 : columns); column++) values[row * columns + column] = weightOf(bytes[at++], signed, peak, levels);
    return { rows, columns, values, queries: null, keys: null };
  }
  cell = this.recurrence = this.ablation = this.picture = this.exported = this.upload = refuse;
}

/** Return the source of the data of this page. */
export function open() {
  const embedded = document.getElementById("export");
  return embedded ? new Export(JSON.parse(embedded.textContent)) : new Server();
}

/** Return a function that runs a task and aborts the one before, so that a late answer never replaces a newer one. */
export function newest() {
  let controller = null;
  const run = async (task, done, failed) => {
    controller?.abort();
    const own = (controller = new AbortController());
    try {
      const value = await task(own.signal);
      if (!own.signal.aborted) done(value);
    } catch (error) {
      if (error.name !== "AbortError" && !own.signal.aborted) failed(error);
    }
  };
  run.stop = () => controller?.abort();
  return run;
}

/** Like `newest`, but a task in progress ends, and of those that wait only the last one runs: a slider moves smoothly. */
export function steady() {
  let [busy, waiting] = [false, null];
  return async function run(task, done, failed) {
    if (busy) {
      waiting = [task, done, failed];
      return;
    }
    busy = true;
    try {
      const value = await task();
      done(value);
    } catch (error) {
      if (!waiting) failed(error);
    }
    busy = false;
    const next = waiting;
    waiting = null;
    if (next) run(...next);
  };
}
