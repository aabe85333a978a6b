/** The mask painter: a picture, a mask over it, a brush. What is painted is decided in mask.js, in picture pixels. */

import { View as Place, feathered } from "./mask.js";
import { View } from "./ui.js";
import { html } from "./vendor/lit.js";

export const ZOOMS = [0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32];
const COPPER = [226, 132, 78];

/** A number from 0 to 255 for every pixel, the same at every time and without a pattern. */
function scatter(i) {
  let h = Math.imul(i + 1, 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) & 255;
}

/** `source` is what is drawn under the mask, `over` what is drawn instead while a result is looked at. */
export class Painter extends View {
  static properties = {
    source: { attribute: false }, over: { attribute: false }, mask: { attribute: false }, brush: { type: Number },
    mode: {}, feather: { type: Number }, isMaskShown: { attribute: false },
  };

  constructor() {
    super();
    [this.source, this.over, this.mask] = [null, null, null];
    [this.brush, this.mode, this.feather, this.isMaskShown] = [16, "brush", 8, true];
    this.place = new Place();
    this.pointers = new Map();
    this.cursor = null; // the brush, in picture pixels
    this.overlay = document.createElement("canvas");
  }

  render() {
    return html`<canvas
      tabindex="0"
      role="application"
      aria-label="Mask painter. Arrow keys move the brush, with shift by ten; space paints, with mode eraser it erases; brackets change the size; control Z takes back; plus and minus zoom."
      @pointerdown=${this.down}
      @pointermove=${this.move}
      @pointerup=${this.up}
      @pointercancel=${this.up}
      @pointerleave=${() => this.leave()}
      @keydown=${this.key}
      @keyup=${(event) => event.key === " " && this.endKey()}
      @focus=${() => this.draw()}
      @blur=${() => this.leave()}
      @contextmenu=${(event) => event.preventDefault()}
    ></canvas>`;
  }

  get canvas() {
    return this.querySelector("canvas");
  }

  connectedCallback() {
    super.connectedCallback();
    this.resizes = new ResizeObserver(() => this.resized());
    this.resizes.observe(this);
    this.wheels = (event) => this.wheel(event);
    this.addEventListener("wheel", this.wheels, { passive: false });
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    this.resizes.disconnect();
    this.removeEventListener("wheel", this.wheels);
  }

  updated(changed) {
    if (changed.has("mask")) {
      this.overlay.width = this.mask?.width ?? 1;
      this.overlay.height = this.mask?.height ?? 1;
      this.fit();
    }
    if (changed.has("mask") || changed.has("feather")) this.tint();
    this.draw();
  }

  resized() {
    const { canvas } = this;
    if (!canvas || !this.clientWidth) return;
    canvas.width = Math.round(this.window.width * devicePixelRatio);
    canvas.height = Math.round(this.window.height * devicePixelRatio);
    if (!this.isPlaced) this.fit();
    this.draw();
  }

  /** The size of the element in CSS pixels; a fraction of one counts, so clientWidth would be off by half a pixel. */
  get window() {
    return this.getBoundingClientRect();
  }

  /** The whole picture in the middle. */
  fit() {
    if (!this.mask || !this.clientWidth) return;
    this.isPlaced = false;
    this.place = Place.fitting(this.mask.width, this.mask.height, this.window.width, this.window.height);
    this.told();
  }

  /** Zoom to a level about a point of the element, by default its middle. */
  zoomTo(zoom, x = this.window.width / 2, y = this.window.height / 2) {
    this.isPlaced = true;
    this.place = this.place.zoomed(zoom, x, y);
    this.told();
  }

  /** One level in (1) or out (-1). */
  zoomBy(direction, x, y) {
    const near = direction > 0 ? ZOOMS.find((one) => one > this.place.zoom * 1.001) : ZOOMS.findLast((one) => one < this.place.zoom * 0.999);
    if (near) this.zoomTo(near, x, y);
  }

  told() {
    this.draw();
    this.dispatchEvent(new CustomEvent("placed", { detail: this.place.zoom }));
  }

  /** A pointer's point of the picture. */
  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return this.place.toPicture(event.clientX - box.left, event.clientY - box.top);
  }

  down(event) {
    if (!this.mask) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (this.pointers.size === 2) {
      this.giveUp(); // the first finger of a pinch is no stroke
      return;
    }
    this.isPanning = this.mode === "pan" || event.button === 1 || event.button === 2 || this.isSpace;
    if (this.isPanning || this.over) return;
    this.at = this.point(event);
    this.paint(...this.at, ...this.at);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (before) this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (before && this.pointers.size === 2) {
      this.pinch(event, before);
    } else if (before && this.isPanning) {
      this.isPlaced = true;
      this.place = this.place.moved(event.clientX - before.x, event.clientY - before.y);
    } else if (before && this.at) {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) {
        const to = this.point(one);
        this.paint(...this.at, ...to);
        this.at = to;
      }
    }
    this.cursor = this.point(event);
    this.draw();
  }

  pinch(event, before) {
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
    const now = { x: event.clientX, y: event.clientY };
    const reach = (a, b) => Math.hypot(a.x - b.x, a.y - b.y) || 1;
    const box = this.canvas.getBoundingClientRect();
    const zoom = Math.min(32, Math.max(0.05, (this.place.zoom * reach(now, other)) / reach(before, other)));
    this.isPlaced = true;
    this.place = this.place
      .zoomed(zoom, (before.x + other.x) / 2 - box.left, (before.y + other.y) / 2 - box.top)
      .moved((now.x - before.x) / 2, (now.y - before.y) / 2);
    this.told();
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.at) this.finish();
    this.isPanning = false;
  }

  leave() {
    this.cursor = null;
    this.draw();
  }

  giveUp() {
    if (!this.at) return;
    this.at = null;
    this.mask.giveUp();
    this.tint();
  }

  finish() {
    this.at = null;
    this.mask.commit();
    this.tint();
    this.dispatchEvent(new CustomEvent("painted"));
  }

  paint(x0, y0, x1, y1) {
    const changed = this.mask.stroke(x0, y0, x1, y1, this.brush / 2, this.mode === "erase" ? 0 : 255);
    if (changed) this.tint(changed);
    this.draw();
  }

  wheel(event) {
    if (!this.mask) return;
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    this.zoomBy(event.deltaY < 0 ? 1 : -1, event.clientX - box.left, event.clientY - box.top);
  }

  key(event) {
    if (!this.mask) return;
    const far = event.shiftKey ? 10 : 1;
    const moves = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] };
    const tell = (name) => this.dispatchEvent(new CustomEvent("asked", { detail: name }));
    if (moves[event.key]) {
      const from = this.cursor ?? [this.mask.width / 2, this.mask.height / 2];
      const to = from.map((value, i) => Math.min([this.mask.width, this.mask.height][i], Math.max(0, value + moves[event.key][i])));
      this.cursor = to;
      if (this.isSpace) this.paint(...from, ...to);
      this.draw();
    } else if (event.key === " ") {
      this.isSpace = true;
      this.cursor ??= [this.mask.width / 2, this.mask.height / 2];
      if (!event.repeat && !this.pointers.size && !this.over) {
        this.at = this.cursor;
        this.paint(...this.cursor, ...this.cursor);
      }
    } else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") tell(event.shiftKey ? "redo" : "undo");
    else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "y") tell("redo");
    else if (event.key === "[" || event.key === "]") tell(event.key === "[" ? "smaller" : "larger");
    else if (event.key === "+" || event.key === "=") this.zoomBy(1);
    else if (event.key === "-") this.zoomBy(-1);
    else if (event.key === "0") this.fit();
    else if (event.key === "e") tell("erase");
    else if (event.key === "b") tell("brush");
    else return;
    event.preventDefault();
  }

  endKey() {
    this.isSpace = false;
    if (this.at && !this.pointers.size) this.finish();
  }

  /** Draw the overlay: the mask as a plate rocked rough again, and fainter what its feather reaches. */
  tint(changed) {
    const { mask, overlay } = this;
    if (!mask) return;
    const box = changed ?? { left: 0, top: 0, width: mask.width, height: mask.height };
    const soft = changed ? null : feathered(mask.data, mask.width, mask.height, this.feather);
    const dots = new ImageData(box.width, box.height);
    for (let y = 0; y < box.height; y++) {
      for (let x = 0; x < box.width; x++) {
        const i = (y + box.top) * mask.width + x + box.left;
        const alpha = mask.data[i] ? 205 : soft ? soft[i] * 0.3 : 0;
        if (!alpha) continue;
        const grain = scatter(i);
        const tone = 18 + grain / 3;
        const isBright = grain > 225 && mask.data[i];
        dots.data.set(isBright ? [...COPPER, alpha] : [tone, tone, tone, alpha], 4 * (y * box.width + x));
      }
    }
    overlay.getContext("2d").putImageData(dots, box.left, box.top);
  }

  /** Paint the window, once a frame. */
  draw() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.drawNow();
    });
  }

  drawNow() {
    const { canvas, place, source, mask } = this;
    if (!canvas) return;
    const context = canvas.getContext("2d");
    const { width, height } = this.window;
    const [across, down] = [canvas.width / width, canvas.height / height]; // dots of the canvas in a CSS pixel
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!source || !mask) return;
    context.setTransform(across * place.zoom, 0, 0, down * place.zoom, across * place.x, down * place.y);
    context.imageSmoothingEnabled = across * place.zoom < 2;
    context.drawImage(source, 0, 0, mask.width, mask.height);
    if (this.over) {
      context.imageSmoothingEnabled ||= this.over.naturalWidth < mask.width; // a preview
      context.drawImage(this.over, 0, 0, mask.width, mask.height);
    } else if (this.isMaskShown) {
      context.imageSmoothingEnabled = false;
      context.drawImage(this.overlay, 0, 0);
    }
    context.setTransform(across, 0, 0, down, 0, 0);
    if (this.cursor && this.mode !== "pan" && !this.over) {
      const [x, y] = place.toScreen(...this.cursor);
      for (const [width, colour] of [[3, "rgba(0, 0, 0, 0.6)"], [1.25, "#fff"]]) {
        context.beginPath();
        context.arc(x, y, Math.max(2, (this.brush / 2) * place.zoom), 0, 2 * Math.PI);
        context.lineWidth = width;
        context.strokeStyle = colour;
        context.stroke();
      }
    }
  }
}

customElements.define("mz-painter", Painter);
