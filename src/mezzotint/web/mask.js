/**
 * A mask, exact to the pixel: one byte per pixel of the picture, 255 where it is made again. No DOM.
 *
 * Coordinates are those of the picture: pixel (x, y) covers [x, x + 1) x [y, y + 1). A pixel belongs to a stroke if its
 * centre is within the radius of the path of the brush, whatever the zoom; the path may leave the picture.
 */

export const UNDO_DEPTH = 50;

export class Mask {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.data = new Uint8Array(width * height);
    this.done = [];
    this.undone = [];
    this.open = null;
  }

  /** Paint (255) or erase (0) along the segment from (x0, y0) to (x1, y1). Returns the changed rectangle, or null. */
  stroke(x0, y0, x1, y1, radius, value = 255) {
    const left = Math.max(0, Math.floor(Math.min(x0, x1) - radius - 1));
    const top = Math.max(0, Math.floor(Math.min(y0, y1) - radius - 1));
    const right = Math.min(this.width, Math.ceil(Math.max(x0, x1) + radius + 1));
    const bottom = Math.min(this.height, Math.ceil(Math.max(y0, y1) + radius + 1));
    if (right <= left || bottom <= top) return null;
    this.#keep();
    const [dx, dy] = [x1 - x0, y1 - y0];
    const length2 = dx * dx + dy * dy;
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const [px, py] = [x + 0.5 - x0, y + 0.5 - y0];
        const along = length2 ? Math.min(1, Math.max(0, (px * dx + py * dy) / length2)) : 0;
        const [ex, ey] = [px - along * dx, py - along * dy];
        if (ex * ex + ey * ey <= radius * radius) this.data[y * this.width + x] = value;
      }
    }
    return { left, top, width: right - left, height: bottom - top };
  }

  /** Set everything. */
  fill(value) {
    this.#keep();
    this.data.fill(value);
  }

  /** Swap what is made again and what is kept. */
  invert() {
    this.#keep();
    for (let i = 0; i < this.data.length; i++) this.data[i] = 255 - this.data[i];
  }

  /** What was done since the last `commit` becomes one step of undo. */
  commit() {
    if (!this.open) return;
    const step = difference(this.open, this.data);
    this.open = null;
    if (!step) return;
    this.done.push(step);
    if (this.done.length > UNDO_DEPTH) this.done.shift();
    this.undone = [];
  }

  /** What was done since the last `commit` never was; every step before stays, also those that could be done again. */
  giveUp() {
    if (this.open) this.data.set(this.open);
    this.open = null;
  }

  /** Take the last step back. */
  undo() {
    this.commit();
    this.#swap(this.done, this.undone);
  }

  /** Do what was taken back again. */
  redo() {
    this.commit();
    this.#swap(this.undone, this.done);
  }

  get isEmpty() {
    return !this.data.includes(255);
  }

  /** How many pixels are made again. */
  get count() {
    return this.data.reduce((n, value) => n + (value ? 1 : 0), 0);
  }

  /** RGBA bytes of the mask as a grey picture: what is sent. */
  pixels() {
    const rgba = new Uint8ClampedArray(this.data.length * 4);
    this.data.forEach((value, i) => rgba.set([value, value, value, 255], 4 * i));
    return rgba;
  }

  /** A mask of another size with this one at (left, top); the rest is 255. */
  extended(left, top, width, height) {
    const wider = new Mask(width, height);
    wider.data.fill(255);
    for (let y = 0; y < this.height; y++) {
      wider.data.set(this.data.subarray(y * this.width, (y + 1) * this.width), (y + top) * width + left);
    }
    return wider;
  }

  /** The mask as lengths of runs, the first of 0: what a reload keeps. */
  runs() {
    const found = [];
    let [value, length] = [0, 0];
    for (const one of this.data) {
      if (one === value) length++;
      else [value, length] = [one, (found.push(length), 1)];
    }
    return [...found, length];
  }

  /** The mask that `runs` told of; runs of another size give an empty one. */
  static ofRuns(width, height, runs) {
    const mask = new Mask(width, height);
    if (runs.reduce((sum, length) => sum + length, 0) !== width * height) return mask;
    runs.reduce((at, length, i) => (mask.data.fill(i % 2 ? 255 : 0, at, at + length), at + length), 0);
    return mask;
  }

  #keep() {
    this.open ??= this.data.slice();
  }

  #swap(from, to) {
    const step = from.pop();
    if (!step) return;
    for (let i = 0; i < step.bits.length; i++) this.data[step.start + i] ^= step.bits[i];
    to.push(step);
  }
}

/** What must be flipped to get from one state to the other, `{start, bits}`; null if they are equal. */
function difference(before, now) {
  let [start, end] = [0, now.length];
  while (start < end && before[start] === now[start]) start++;
  while (end > start && before[end - 1] === now[end - 1]) end--;
  if (start === end) return null;
  const bits = now.slice(start, end);
  for (let i = 0; i < bits.length; i++) bits[i] ^= before[start + i];
  return { start, bits };
}

/**
 * The mask as the server blends with it: 255 inside, falling off over 2 * pixels outside. Bytes of the same size.
 * The same rule as `feathered` in mezzotint/images.py: the largest of a square, then the mean of a square.
 */
export function feathered(data, width, height, pixels) {
  if (!pixels) return data.slice();
  const grown = lines(lines(data, width, height, pixels, largest, true), width, height, pixels, largest, false);
  return lines(lines(grown, width, height, pixels, mean, true), width, height, pixels, mean, false);
}

function lines(data, width, height, radius, along, isRow) {
  const out = new Uint8Array(data.length);
  const [count, length, step] = isRow ? [height, width, 1] : [width, height, width];
  for (let line = 0; line < count; line++) along(data, out, isRow ? line * width : line, step, length, radius);
  return out;
}

function largest(data, out, start, step, length, radius) {
  let last = -Infinity; // place of the last pixel that is set, at or before i + radius
  let next = 0;
  for (let i = 0; i < length; i++) {
    while (next < length && next <= i + radius) {
      if (data[start + next * step]) last = next;
      next++;
    }
    out[start + i * step] = last >= i - radius ? 255 : 0;
  }
}

function mean(data, out, start, step, length, radius) {
  const at = (i) => data[start + Math.min(length - 1, Math.max(0, i)) * step];
  let sum = 0;
  for (let i = -radius; i <= radius; i++) sum += at(i);
  for (let i = 0; i < length; i++) {
    out[start + i * step] = Math.round(sum / (2 * radius + 1));
    sum += at(i + radius + 1) - at(i - radius);
  }
}

/** Where a picture lies on the screen: `zoom` CSS pixels per picture pixel, its corner at (x, y). */
export class View {
  constructor(zoom = 1, x = 0, y = 0) {
    Object.assign(this, { zoom, x, y });
  }

  /** The point of the picture under a point of the screen. */
  toPicture(screenX, screenY) {
    return [(screenX - this.x) / this.zoom, (screenY - this.y) / this.zoom];
  }

  /** The point of the screen over a point of the picture. */
  toScreen(x, y) {
    return [x * this.zoom + this.x, y * this.zoom + this.y];
  }

  /** Another zoom with the same point of the picture under (screenX, screenY). */
  zoomed(zoom, screenX, screenY) {
    const [x, y] = this.toPicture(screenX, screenY);
    return new View(zoom, screenX - x * zoom, screenY - y * zoom);
  }

  moved(dx, dy) {
    return new View(this.zoom, this.x + dx, this.y + dy);
  }

  /** The whole picture in the middle of a window with a margin, never above `most`. */
  static fitting(width, height, windowWidth, windowHeight, most = 8, margin = 24) {
    const zoom = Math.min(most, (windowWidth - 2 * margin) / width, (windowHeight - 2 * margin) / height);
    const kept = Math.max(zoom, 0.02);
    return new View(kept, (windowWidth - width * kept) / 2, (windowHeight - height * kept) / 2);
  }
}

/** Borders for outpainting, raised so that the whole picture is a multiple of 8: `{left, top, right, bottom}`. */
export function borders(width, height, { left = 0, top = 0, right = 0, bottom = 0 }) {
  const up = (side, before, after) => (before + after ? after + ((8 - ((side + before + after) % 8)) % 8) : after);
  return { left, top, right: up(width, left, right), bottom: up(height, top, bottom) };
}
