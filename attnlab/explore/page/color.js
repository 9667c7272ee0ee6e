// Colours of weights. Entry 0 of a table is an exact zero: a weight that is masked or too small for float32.

const SEQUENTIAL = {
  light: ["#fbfdff", "#d9e9f6", "#a3cbe8", "#5a9fd0", "#2468a8", "#0b2f63"],
  dark: ["#10161d", "#173552", "#1f5a8c", "#2f8cc4", "#7cc5ec", "#f2fbff"],
};
const DIVERGING = {
  // from −1 to +1: orange, neutral, blue, which readers with colour vision deficiency can tell apart
  light: ["#7a3303", "#c8681a", "#f1b67c", "#fbfbfa", "#8fc0e4", "#2d74b5", "#0b2f63"],
  dark: ["#ffe3c2", "#f0994a", "#8a4a12", "#14181d", "#185186", "#3f9bd8", "#dff3ff"],
};
const ZERO = { light: "#e9ebee", dark: "#2b3037" };

const query = matchMedia("(prefers-color-scheme: dark)");
export const theme = () => (query.matches ? "dark" : "light");
export const onTheme = (action) => query.addEventListener("change", action);

const channels = (hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
const mix = (stops, at) => {
  const place = at * (stops.length - 1);
  const left = Math.min(Math.floor(place), stops.length - 2);
  return stops[left].map((value, i) => Math.round(value + (stops[left + 1][i] - value) * (place - left)));
};
const pack = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // little endian RGBA

const tables = new Map();
/** Return a table of 256 packed colours of codes: unsigned 0 to 255, signed −127 to 127 around 128. */
export function table(signed) {
  const name = `${theme()} ${signed}`;
  if (!tables.has(name)) {
    const stops = (signed ? DIVERGING : SEQUENTIAL)[theme()].map(channels);
    const colors = Uint32Array.from({ length: 256 }, (_, code) => pack(mix(stops, signed ? Math.max(0, (code - 1) / 254) : code / 255)));
    colors[signed ? 128 : 0] = pack(channels(ZERO[theme()]));
    tables.set(name, colors);
  }
  return tables.get(name);
}

/** Return the code of a weight; only an exact zero has the code of zero. */
export function codeOf(weight, signed, peak) {
  if (weight === 0 || !(peak > 0)) return signed ? 128 : 0;
  const root = Math.min(1, Math.sqrt(Math.abs(weight) / peak));
  if (!signed) return Math.max(1, Math.round(255 * root));
  return 128 + Math.sign(weight) * Math.max(1, Math.round(127 * root));
}

const css = (packed) => `rgb(${packed & 255} ${(packed >> 8) & 255} ${(packed >> 16) & 255})`;

/** Return the colour of a weight and a text colour that is readable on it. */
export function tint(weight, signed, peak) {
  const packed = table(signed)[codeOf(weight, signed, peak)];
  return { background: css(packed), color: ink(packed) };
}

const linear = (value) => (value <= 0.03928 * 255 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
function ink(packed) {
  const luminance = 0.2126 * linear(packed & 255) + 0.7152 * linear((packed >> 8) & 255) + 0.0722 * linear((packed >> 16) & 255);
  return luminance > 0.179 ? "#000" : "#fff"; // where black and white have the same contrast
}

/** Return the CSS gradient of a colour bar. */
export function gradient(signed) {
  const stops = (signed ? DIVERGING : SEQUENTIAL)[theme()];
  return `linear-gradient(to right, ${stops.join(", ")})`;
}

/** Draw codes (rows × columns) into a canvas of that size. */
export function paint(canvas, codes, rows, columns, signed) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer);
  const colors = table(signed);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colors[codes[i]];
  context.putImageData(image, 0, 0);
}

/** Return the codes of weights. */
export function encode(values, signed, peak) {
  const codes = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) codes[i] = codeOf(values[i], signed, peak);
  return codes;
}

/** Return the largest absolute value. */
export function peakOf(values) {
  let peak = 0;
  for (const value of values) {
    const size = value < 0 ? -value : value;
    if (size > peak) peak = size;
  }
  return peak;
}

/** Return the weight of the darkest colour: the largest, or in large matrices a high percentile of those that are not zero. */
export function scaleOf(part) {
  part.scale ??= high(part);
  return part.scale;
}

function high({ values, rows }) {
  const peak = peakOf(values);
  if (rows <= 64) return peak;
  const step = Math.ceil(values.length / 2 ** 16);
  const sizes = values.filter((value, i) => i % step === 0 && value !== 0).map(Math.abs).sort();
  const most = sizes[Math.floor(0.99 * sizes.length)] ?? 0;
  return most > 0 && most < peak / 2 ? most : peak;
}

let properties = null;
/** Return the colours of the style sheet. */
export function style() {
  if (!properties) {
    const computed = getComputedStyle(document.documentElement);
    properties = Object.fromEntries(["ink", "soft", "line", "paper", "panel", "accent", "mark"].map((name) => [name, computed.getPropertyValue(`--${name}`).trim()]));
  }
  return properties;
}
query.addEventListener("change", () => (properties = null));
