/** A request as a command, as Python and as curl: what a person copies to make the same picture elsewhere. No DOM. */

const HOLDS_PICTURE = new Set(["image", "mask", "reference"]);

/** A word for a POSIX shell. */
export function shell(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${String(text).replaceAll("'", "'\\''")}'`;
}

/** A value as Python writes it. */
export function python(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `(${value.map(python).join(", ")}${value.length === 1 ? "," : ""})`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, one]) => `${JSON.stringify(key)}: ${python(one)}`).join(", ")}}`;
  }
  return typeof value === "string" ? JSON.stringify(value) : String(value);
}

/** File names that stand for the pictures of a request: the files themselves are in the gallery. */
function file(key) {
  return `${key}.png`;
}

/** `mezzotint generate …`, or `edit` or `vary` where the request has pictures. */
export function asCommand(request, model) {
  const { prompt = "", options, ...rest } = request;
  const words = ["mezzotint"];
  const taken = new Set();
  if (rest.image) {
    words.push("edit", file("image"), shell(prompt) || "''");
    taken.add("image");
  } else if (rest.reference) {
    words.push("vary", file("reference"));
    if (prompt) words.push(shell(prompt));
    taken.add("reference");
  } else words.push("generate", shell(prompt));
  if (model) words.push("-m", shell(model));
  for (const [key, value] of Object.entries(rest)) {
    if (taken.has(key) || value === null || value === undefined) continue;
    const flag = `--${key.replaceAll("_", "-")}`;
    if (HOLDS_PICTURE.has(key)) words.push(flag, file(key));
    else if (value === true) words.push(flag);
    else if (value === false) words.push(`--no-${key.replaceAll("_", "-")}`);
    else if (Array.isArray(value)) words.push(flag, ...value.map((part) => shell(String(part))));
    else words.push(flag, shell(String(value)));
  }
  for (const [key, value] of Object.entries(options ?? {})) words.push("--option", shell(`${key}=${value}`));
  return words.join(" ");
}

/** `mezzotint grid …` with both axes. */
export function asGridCommand(base, x, y, model) {
  const line = asCommand(base, model).replace(/^mezzotint (generate|edit image\.png|vary reference\.png)/, "mezzotint grid");
  const flags = [["--x", x], ["--y", y]].filter(([, one]) => one);
  const texts = (one) => one.texts.map((text) => (/[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)).join(",");
  return [line, ...flags.map(([flag, one]) => `${flag} ${shell(`${one.field}=${texts(one)}`)}`)].join(" ");
}

/** A Python program. */
export function asPython(request, model) {
  const fields = Object.entries(request).map(
    ([key, value]) => `    ${key}=${HOLDS_PICTURE.has(key) ? python(file(key)) : python(value)},`,
  );
  return [
    "import mezzotint",
    "",
    `system = mezzotint.load(${python(model || "icons")})`,
    "result = mezzotint.generate(",
    "    system,",
    ...fields,
    ")",
    'result.save("outputs")',
    "",
  ].join("\n");
}

/** A call of the native API; pictures are named by the ids that they have on this server. */
export function asCurl(request, origin, needsKey = false) {
  const body = JSON.stringify({ request });
  const key = needsKey ? ' -H "Authorization: Bearer $MEZZOTINT_KEY"' : "";
  return `curl ${shell(`${origin}/api/v1/jobs`)}${key} -H 'Content-Type: application/json' -d ${shell(body)}`;
}
