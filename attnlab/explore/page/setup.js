// The state of the page and its link: flat dotted keys, only what differs from the defaults.

/** The fields of attnlab.explore.setup with their defaults, by kind. */
export const DEFAULTS = {
  source: {
    trained: { model: "multihead", options: {}, causal: null },
    untrained: { model: "multihead", embed_dim: 32, layers: 2, options: {}, causal: null, seed: 0 },
    lesson: {},
    run: { run: "", step: null, options: {}, causal: null },
    pretrained: { name: "minilm", hide_special: true },
  },
  input: {
    text: { text: "blacksmith blacksmith" },
    task: { task: "", index: 0, seed: 0 },
    digit: { index: 0, patch: "2x2" },
    upload: { key: "", row: 0 },
    three_tokens: {},
  },
  mask: { window: null, prefix: null, documents: [], blocked: [] },
  scores: { temperature: 1, scale: true, softcap: null, sink: null, top_k: null },
};
const KIND = { source: "trained", input: "text" };

/** What the page shows of a setup; null: chosen by the page. */
const PAGE = { head: null, cell: null, tokens: [], direction: "from", total: "sum", sort: "position", table: false, side: "a", bhead: null };

const clone = structuredClone;
export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

export const part = (group, kind) => ({ kind, ...clone(DEFAULTS[group][kind]) });

export const newSetup = () => ({
  source: part("source", KIND.source),
  input: part("input", KIND.input),
  mask: clone(DEFAULTS.mask),
  scores: clone(DEFAULTS.scores),
  ablated: [],
});

export const sameNetwork = (one, two) => ["kind", "model", "run", "name"].every((field) => one.source[field] === two.source[field]);

/** Return the options and the causality to which changes of a network are undone. */
export function originOf({ source }) {
  if (!("options" in source)) return {};
  return source.kind === "untrained" ? clone({ options: source.options, causal: source.causal }) : { options: {}, causal: null };
}

/** Return a setup without changes. */
export const unchanged = (setup, origin) => ({ ...setup, source: { ...setup.source, ...clone(origin) }, mask: clone(DEFAULTS.mask), scores: clone(DEFAULTS.scores), ablated: [] });

export const isChanged = (setup, origin) => !same(setup, unchanged(setup, origin));

/** Whether another network is trained for the options of a setup. */
export const isRetrained = ({ source }) => source.kind === "trained" && Object.keys(source.options).length > 0;

/** Return the setup that is shown as "before": the same parameters without changes. */
export const before = (setup, origin) => unchanged(setup, isRetrained(setup) ? { ...origin, options: setup.source.options } : origin);

export const newState = () => ({ a: newSetup(), b: null, ...clone(PAGE) });

function flat(setup, withInput) {
  const pairs = [];
  for (const group of withInput ? ["source", "input"] : ["source"]) {
    const { kind, ...fields } = setup[group];
    if (kind !== KIND[group]) pairs.push([`${group}.kind`, kind]);
    for (const [name, value] of Object.entries(fields)) {
      if (name === "options") for (const [option, each] of Object.entries(value)) pairs.push([`${group}.options.${option}`, each]);
      else if (!same(value, DEFAULTS[group][kind][name])) pairs.push([`${group}.${name}`, value]);
    }
  }
  for (const group of ["mask", "scores"])
    for (const [name, value] of Object.entries(setup[group]))
      if (!same(value, DEFAULTS[group][name])) pairs.push([`${group}.${name}`, value]);
  if (setup.ablated.length) pairs.push(["ablated", setup.ablated]);
  return pairs;
}

// A string that would be read as JSON is written as JSON, so that the option "1" stays a string.
const isJson = (text) => {
  try {
    return JSON.parse(text) !== undefined;
  } catch {
    return false;
  }
};
const write = (value, text) => (typeof value === "string" && (text || !isJson(value)) ? value : JSON.stringify(value));
const read = (text) => (isJson(text) ? JSON.parse(text) : text);

// encodeURIComponent, less what a fragment may contain and a reader wants to see.
const escape = (text) =>
  encodeURIComponent(text).replace(/%(5B|5D|2C|3A|2F|40|20)/g, (code) => (code === "%20" ? "+" : decodeURIComponent(code)));
const unescape = (text) => decodeURIComponent(text.replaceAll("+", " "));

const TEXTS = new Set(["kind", "model", "run", "name", "text", "task", "key", "patch"]);

/** Return the fragment of a state, without "#". */
export function encode(state) {
  const pairs = flat(state.a, true).map(([key, value]) => [key, write(value, TEXTS.has(key.split(".").pop()) && !key.includes("options"))]);
  for (const [name, value] of Object.entries(PAGE)) {
    if (same(state[name], value)) continue;
    const shown = state[name];
    pairs.push([name, ["head", "cell", "bhead"].includes(name) ? shown.join(".") : name === "table" ? "1" : write(shown)]);
  }
  if (state.b) {
    const other = flat(state.b, false);
    if (!other.length) pairs.push(["b", "1"]);
    for (const [key, value] of other) pairs.push([`b.${key}`, write(value, TEXTS.has(key.split(".").pop()) && !key.includes("options"))]);
  }
  return pairs.map(([key, value]) => `${key}=${escape(value)}`).join("&");
}

const pairOf = (name, text) => {
  const match = /^(\d{1,6})\.(\d{1,6})$/.exec(text);
  if (!match) throw new Error(`${name}=${text} in the link is not two numbers, such as ${name}=1.2`);
  return [Number(match[1]), Number(match[2])];
};

function assign(setup, key, text) {
  const [group, name, ...rest] = key.split(".");
  if (key === "ablated") {
    setup.ablated = read(text);
    if (!Array.isArray(setup.ablated)) throw new Error("ablated in the link is not a list");
    return;
  }
  const fields = setup[group];
  if (name === "options" && fields?.options && rest.length) {
    fields.options[rest.join(".")] = read(text);
    return;
  }
  if (!["source", "input", "mask", "scores"].includes(group) || rest.length || !Object.hasOwn(fields, name))
    throw new Error(`the link has an unknown setting, ${key}`);
  fields[name] = TEXTS.has(name) ? text : read(text);
  if (Array.isArray(DEFAULTS[group][name]) && !Array.isArray(fields[name])) throw new Error(`${key} in the link is not a list`);
}

/** Return the state of a fragment. Throws an Error with one line for a fragment that is none. */
export function decode(fragment) {
  const state = newState();
  const pairs = [];
  for (const piece of fragment.replace(/^#/, "").split("&").filter(Boolean)) {
    const at = piece.indexOf("=");
    if (at < 1) throw new Error(`“${piece.slice(0, 60)}” in the link has no value`);
    try {
      pairs.push([unescape(piece.slice(0, at)), unescape(piece.slice(at + 1))]);
    } catch {
      throw new Error(`“${piece.slice(0, 60)}” in the link cannot be decoded`);
    }
  }
  if (pairs.some(([key]) => key === "b" || key.startsWith("b."))) state.b = newSetup();
  for (const [key, text] of pairs) {
    // the kind decides which fields there are
    const match = /^(b\.)?(source|input)\.kind$/.exec(key);
    if (!match) continue;
    if (!Object.hasOwn(DEFAULTS[match[2]], text)) throw new Error(`${key}=${text.slice(0, 60)} in the link is unknown`);
    (match[1] ? state.b : state.a)[match[2]] = part(match[2], text);
  }
  for (const [key, text] of pairs) {
    if (key === "b" || key.endsWith(".kind")) continue;
    if (key.startsWith("b.")) assign(state.b, key.slice(2), text);
    else if (["head", "cell", "bhead"].includes(key)) state[key] = pairOf(key, text);
    else if (key === "table") state.table = text === "1";
    else if (key === "tokens") state.tokens = [read(text)].flat().filter(Number.isInteger);
    else if (Object.hasOwn(PAGE, key)) state[key] = text;
    else assign(state.a, key, text);
  }
  if (state.b) state.b.input = state.a.input;
  else state.side = "a";
  return state;
}
