/** Texts of a PNG: read, and added to one that a canvas made. No DOM. Source: PNG specification, parts 5 and 11.3.3. */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

/** The checksum of a chunk. */
export function crc(bytes) {
  let c = 0xffffffff;
  for (const byte of bytes) c = TABLE[(c ^ byte) & 255] ^ (c >>> 8);
  return (c ^ 0xffffffff) >>> 0;
}

function chunk(type, body) {
  const bytes = new Uint8Array(body.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, body.length);
  bytes.set(new TextEncoder().encode(type), 4);
  bytes.set(body, 8);
  view.setUint32(body.length + 8, crc(bytes.subarray(4, body.length + 8)));
  return bytes;
}

/** The chunks of a PNG: `[{type, start, end}]`, whole chunks with length and checksum. Throws RangeError. */
export function chunks(png) {
  if (SIGNATURE.some((byte, i) => png[i] !== byte)) throw new RangeError("not a PNG picture");
  const view = new DataView(png.buffer, png.byteOffset, png.byteLength);
  const found = [];
  for (let at = 8; at + 12 <= png.length; ) {
    const end = at + 12 + view.getUint32(at);
    found.push({ type: new TextDecoder().decode(png.subarray(at + 4, at + 8)), start: at, end });
    at = end;
  }
  return found;
}

/** The PNG with international text chunks `{key: text}` before its pixels. */
export function withTexts(png, texts) {
  const first = chunks(png).find((one) => one.type === "IDAT").start;
  const added = Object.entries(texts).map(([key, text]) =>
    chunk("iTXt", new TextEncoder().encode(`${key}\0\0\0\0\0${text}`)),
  );
  const parts = [png.subarray(0, first), ...added, png.subarray(first)];
  const whole = new Uint8Array(parts.reduce((n, part) => n + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}
