/**
 * X/Y grids and prompt matrices as lists of requests. No DOM.
 *
 * Values are written as on the command line (`mezzotint grid`): a comma-separated list with double quotes around a
 * value that has a comma; for numbers also `1-5`, `1-10 (+3)` and `0-1 [5]`.
 */

export const MAX_CELLS = 256;

const RANGE = /^(-?\d+(?:\.\d+)?)\s*-\s*(-?\d+(?:\.\d+)?)\s*(?:\(\s*([+-]?\d+(?:\.\d+)?)\s*\)|\[\s*(\d+)\s*\])?$/;
const WHOLE = new Set(["steps", "seed", "clip_skip", "feather", "reference_noise"]);
const NUMBERS = new Set([...WHOLE, "guidance", "guidance_rescale", "strength", "aesthetic", "negative_aesthetic"]);
const PAIRS = new Set(["size", "original_size", "crop", "guidance_interval"]);

/** The items of a comma-separated line. */
export function items(text) {
  const found = [];
  for (const [, quoted, bare] of text.matchAll(/\s*(?:"((?:[^"]|"")*)"\s*|([^,]*))(?:,|$)/g)) {
    const item = quoted === undefined ? bare.trim() : quoted.replaceAll('""', '"');
    if (item) found.push(item);
  }
  return found;
}

/** A number without the digits that arithmetic left over. */
export function number(value) {
  return String(Number(value.toFixed(6)));
}

function expanded(field, item) {
  const found = NUMBERS.has(field) ? RANGE.exec(item) : null;
  if (!found) return [item];
  const [low, high] = [Number(found[1]), Number(found[2])];
  if (found[4]) {
    const n = Number(found[4]);
    const values = Array.from({ length: n }, (_, i) => low + ((high - low) * i) / Math.max(1, n - 1));
    return values.map((value) => number(WHOLE.has(field) ? Math.round(value) : value));
  }
  const step = Number(found[3] ?? (high >= low ? 1 : -1));
  if (step === 0 || (high - low) * step < 0) throw new RangeError(`${item}: never reaches its end; turn the sign`);
  const n = Math.floor((high - low) / step + 1e-9) + 1;
  if (n > MAX_CELLS) throw new RangeError(`${item}: ${n} values; a grid has at most ${MAX_CELLS} cells`);
  return Array.from({ length: n }, (_, i) => number(low + i * step));
}

function value(field, text, isOption) {
  if (PAIRS.has(field)) {
    const pair = text.toLowerCase().replaceAll(" ", "").split("x").map(Number);
    if (pair.length !== 2 || pair.some(Number.isNaN)) throw new RangeError(`${text}: must be two numbers, as 512x768`);
    return pair;
  }
  if (NUMBERS.has(field) || isOption) {
    if (text !== "" && !Number.isNaN(Number(text))) return Number(text);
    if (!isOption) throw new RangeError(`${text}: must be a number`);
  }
  if (["true", "false"].includes(text.toLowerCase())) return text.toLowerCase() === "true";
  return text;
}

/** The axis of a field: `{field, isOption, texts, values}`. Throws RangeError with a sentence. */
export function axis(field, text, isOption = false) {
  const texts = items(text).flatMap((item) => expanded(field, item));
  if (!texts.length) throw new RangeError(`${field}: give some values, for example ${example(field)}`);
  return { field, isOption, texts, values: texts.map((one) => value(field, one, isOption)) };
}

/** Values that show how an axis of the field is written. */
export function example(field) {
  const known = {
    steps: "4, 8-20 (+4)", seed: "1-4", guidance: "1-9 (+2), 12", sampler: "euler, dpmpp_2m", prompt: "red, blue",
    spacing: "karras, uniform", size: "512x512, 512x768", clip_skip: "1, 2", strength: "0.2-1 [5]",
    guidance_rescale: "0, 0.7",
  };
  return known[field] ?? "0, 0.5, 1";
}

/** What stands above column or beside row i. */
export function label(one, i) {
  return one.field === "prompt" || one.field === "matrix" ? one.texts[i] : `${one.field} ${one.texts[i]}`;
}

function set(request, one, i) {
  const chosen = one.values[i];
  if (one.field === "prompt") {
    for (const key of ["prompt", "negative"]) {
      if (request[key]) request[key] = request[key].replaceAll(one.texts[0], one.texts[i]);
    }
  } else if (one.field === "size") [request.width, request.height] = chosen;
  else if (one.isOption) request.options = { ...request.options, [one.field]: chosen };
  else request[one.field] = chosen;
}

/**
 * Every request of a grid, row by row: `{x, y, columns, rows, requests}`. All share one seed unless it is an axis;
 * `draw` gives one when the request has none. Throws RangeError with a sentence.
 */
export function grid(base, x, y, draw = drawSeed) {
  const axes = [x, y].filter(Boolean);
  if (!axes.length) throw new RangeError("a grid needs an axis: choose what varies");
  if (x && y && x.field === y.field && x.field !== "prompt") {
    throw new RangeError(`both axes vary ${x.field}; give each its own field`);
  }
  const fields = axes.map((one) => one.field);
  if (fields.includes("size") && (fields.includes("width") || fields.includes("height"))) {
    throw new RangeError("size is width and height: one axis would undo the other; vary width and height, or size");
  }
  for (const one of axes) {
    if (one.field === "prompt" && !`${base.prompt}\n${base.negative ?? ""}`.includes(one.texts[0])) {
      throw new RangeError(`“${one.texts[0]}” stands neither in the prompt nor in the negative, so nothing can take its place`);
    }
  }
  const [columns, rows] = [x ? x.texts.length : 1, y ? y.texts.length : 1];
  if (columns * rows > MAX_CELLS) throw new RangeError(`${columns * rows} cells: a grid has at most ${MAX_CELLS}`);
  const seed = base.seed ?? draw();
  const requests = [];
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const request = { ...base, seed };
      delete request.count;
      if (x) set(request, x, column);
      if (y) set(request, y, row);
      requests.push(request);
    }
  }
  return { x, y, columns, rows, requests };
}

/**
 * A prompt matrix: `a | b | c` is `a` with every subset of the rest, `a`, `a, b`, `a, c`, `a, b, c`: 2^n requests,
 * the first half of the parts along x, the others along y.
 */
export function matrix(base, draw = drawSeed) {
  const [start, ...parts] = base.prompt.split("|").map((part) => part.trim());
  if (!parts.length) throw new RangeError("a prompt matrix needs a | in the prompt: a fox | in snow | at night");
  if (2 ** parts.length > MAX_CELLS) throw new RangeError(`${parts.length} parts are ${2 ** parts.length} cells; at most ${MAX_CELLS}`);
  const split = Math.ceil(parts.length / 2);
  const [x, y] = [subsets(parts.slice(0, split)), subsets(parts.slice(split))];
  const seed = base.seed ?? draw();
  const requests = y.flatMap((row) =>
    x.map((column) => {
      const request = { ...base, seed, prompt: [start, ...column, ...row].filter(Boolean).join(", ") };
      delete request.count;
      return request;
    }),
  );
  const told = (lists) => ({ field: "matrix", texts: lists.map((list) => list.join(" + ") || "–") });
  return { x: told(x), y: parts.length > 1 ? told(y) : null, columns: x.length, rows: y.length, requests };
}

function subsets(parts) {
  return Array.from({ length: 2 ** parts.length }, (_, bits) => parts.filter((_, i) => bits & (1 << i)));
}

/** A seed as the server would draw it: typeable, and within what other programs accept. */
export function drawSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
