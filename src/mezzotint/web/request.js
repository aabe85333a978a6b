/** The form and the request: what is filled in, what is sent, what comes back from a picture. No DOM. */

/** Fields with a control of their own; every other field of the schema gets one from its type. */
export const OWN = new Set([
  "prompt", "negative", "width", "height", "count", "seed", "steps", "sampler", "spacing", "guidance", "options",
  "image", "mask", "reference", "strength", "feather", "canvas",
]);

/** Fields that name files of the server: a page sends uploads, never paths. */
export const HIDDEN = new Set(["refiner"]);

/** Fields that hold pictures. */
export const PICTURES = ["image", "mask", "reference"];

/** A form with nothing filled in: empty means "as the model wants it". */
export function blank() {
  return { prompt: "", negative: "", width: null, height: null, count: 1, seed: null, isSeedKept: false, fields: {} };
}

/** Whether a value says nothing. */
export function isEmpty(value) {
  return value === null || value === undefined || value === "" || (typeof value === "number" && Number.isNaN(value));
}

/**
 * The request that a form stands for. Empty fields are left out, so that the server fills in its own;
 * a seed goes along only when it is kept.
 */
export function toRequest(form, extra = {}) {
  const request = {};
  const put = (key, value) => {
    if (!isEmpty(value)) request[key] = value;
  };
  request.prompt = form.prompt;
  put("negative", form.negative);
  put("width", form.width);
  put("height", form.height);
  if (form.count > 1) request.count = form.count;
  if (form.isSeedKept) put("seed", form.seed);
  for (const [key, value] of Object.entries(form.fields)) {
    if (key === "options") {
      const given = Object.fromEntries(Object.entries(value ?? {}).filter(([, option]) => !isEmpty(option)));
      if (Object.keys(given).length) request.options = given;
    } else put(key, value);
  }
  for (const [key, value] of Object.entries(extra)) put(key, value);
  return request;
}

/** The form that a request stands for; the pictures that it names are left to the caller. */
export function fromRequest(request) {
  const form = blank();
  for (const [key, value] of Object.entries(request ?? {})) {
    if (PICTURES.includes(key) || isEmpty(value)) continue;
    if (key === "seed") [form.seed, form.isSeedKept] = [value, true];
    else if (key in form && key !== "fields") form[key] = value;
    else if (!HIDDEN.has(key)) form.fields[key] = value;
  }
  return form;
}

const SHAPES = [["1:1", 1], ["3:2", 3 / 2], ["2:3", 2 / 3], ["16:9", 16 / 9], ["9:16", 9 / 16]];

/** Sizes of about the model's area, in whole steps: `[{name, width, height}]`. */
export function sizes(width, height) {
  const step = Math.min(width, height) >= 512 ? 64 : 8;
  const area = width * height;
  return SHAPES.map(([name, ratio]) => {
    const round = (side) => Math.max(step, Math.round(side / step) * step);
    return { name, width: round(Math.sqrt(area * ratio)), height: round(Math.sqrt(area / ratio)) };
  });
}

/** `"3 s"`, `"2 min"`, `"1 h 5 min"`: a time that is not known to the second is not told to the second. */
export function duration(seconds) {
  if (isEmpty(seconds)) return "";
  if (seconds < 1) return "under a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/**
 * The control that a schema property asks for: `{kind, low, high, choices, fallback, doc}`.
 * kind: "number", "integer", "switch", "choice", "text", "pair", or null for what no control can fill in.
 */
export function control(property) {
  const parts = property.anyOf ?? [property];
  const part = parts.find((one) => one.type !== "null") ?? {};
  const found = {
    doc: property.description ?? "",
    fallback: property.default ?? null,
    low: part.minimum ?? part.exclusiveMinimum ?? null,
    high: part.maximum ?? part.exclusiveMaximum ?? null,
    choices: part.enum ?? null,
  };
  if (part.enum) return { ...found, kind: "choice" };
  if (part.type === "array" && part.maxItems === 2) return { ...found, kind: "pair" };
  const kinds = { number: "number", integer: "integer", boolean: "switch", string: "text" };
  return { ...found, kind: kinds[part.type] ?? null };
}
