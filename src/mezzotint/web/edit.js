/** Edit: a picture, a mask that says what is made again, borders to paint beyond, and what came of it. */

import "./canvas.js";
import "./form.js";
import "./stage.js";
import * as api from "./api.js";
import { action } from "./form.js";
import { Mask, borders } from "./mask.js";
import { address } from "./picture.js";
import { toRequest } from "./request.js";
import { store } from "./store.js";
import { View, encoded, icon, opener, pixels, tool, typed, vars } from "./ui.js";
import { html, nothing } from "./vendor/lit.js";

const KEPT = "mezzotint.edited";
const SIDES = ["left", "top", "right", "bottom"];

export class Edit extends View {
  static properties = {
    picture: { state: true }, brush: { state: true }, mode: { state: true }, isMaskShown: { state: true },
    zoom: { state: true }, over: { state: true }, border: { state: true }, isWorking: { state: true },
    dismissed: { state: true },
  };

  constructor() {
    super();
    this.picture = null; // {id, bitmap, mask, width, height}
    [this.brush, this.mode, this.isMaskShown, this.zoom] = [24, "brush", true, 1];
    this.over = null; // the result that is looked at instead
    this.dismissed = null; // id of the job whose result belongs to another picture, or was put away
    this.border = { left: 0, top: 0, right: 0, bottom: 0 };
    this.before = []; // pictures that an extension or a result took the place of
    this.isWorking = false;
  }

  connectedCallback() {
    super.connectedCallback();
    if (this.picture || store.edited) return;
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEPT));
      if (kept) this.take(kept.id, null, kept);
    } catch {
      sessionStorage.removeItem(KEPT);
    }
  }

  willUpdate() {
    if (store.edited) {
      const { id, mask } = store.edited;
      store.edited = null;
      this.take(id, mask);
    }
    const job = store.jobs.edit;
    if (job?.id !== this.jobId) [this.jobId, this.shown, this.over] = [job?.id, null, null];
    this.look();
  }

  /** What is drawn over the picture: the preview while it is made, the finished picture afterwards. */
  async look() {
    const job = store.jobs.edit;
    const stage = this.querySelector("mz-stage");
    const finished = stage?.picture ?? (job?.state === "running" ? null : job?.images[0]);
    const frame = job?.previews[job.progress?.number ?? 0]?.at(-1);
    const source = finished?.url ?? (job?.state === "running" ? frame?.data : null) ?? null;
    if (source === this.shown || this.dismissed === job?.id) return;
    this.shown = source;
    if (!source) {
      this.over = null;
      return;
    }
    const image = new Image();
    image.src = source;
    await image.decode().catch(() => {});
    if (this.shown === source) this.over = image;
  }

  /** Take a picture of the gallery or an upload, with a mask if there was one, or as it was `kept` over a reload. */
  async take(id, maskId = null, { runs, dismissed } = {}) {
    try {
      const bitmap = await pixels(address(id));
      const { width, height } = bitmap;
      const mask = runs ? Mask.ofRuns(width, height, runs) : new Mask(width, height);
      if (maskId) mask.data.set(await maskBytes(address(maskId), width, height));
      this.put({ id, bitmap, mask, width, height }, dismissed);
    } catch (error) {
      sessionStorage.removeItem(KEPT);
      store.say(error.message, "error");
    }
  }

  /** Take a file of the person's own. */
  async open(file) {
    try {
      const { id } = await api.upload(file);
      await this.take(id);
    } catch (error) {
      store.say(error.message, "error");
    }
  }

  /** Show a picture; what the last job made was made of another one, unless `dismissed` says what was put away. */
  put(picture, dismissed = store.jobs.edit?.id ?? null) {
    [this.picture, this.dismissed] = [picture, dismissed];
    [this.over, this.shown] = [null, null];
    const side = Math.min(picture.width, picture.height);
    this.brush = Math.max(1, Math.min(this.brush, Math.round(side / 2)));
    if (side >= 256) this.brush = Math.max(this.brush, Math.round(side / 12));
    this.keep();
  }

  keep() {
    const { id, mask } = this.picture;
    try {
      sessionStorage.setItem(KEPT, JSON.stringify({ id, runs: mask.runs(), dismissed: this.dismissed }));
    } catch {
      // no room: a reload forgets the mask
    }
  }

  changed(act) {
    return () => {
      act(this.picture.mask);
      this.picture.mask.commit();
      this.repaint();
    };
  }

  repaint() {
    const painter = this.querySelector("mz-painter");
    painter.tint();
    painter.draw();
    this.keep();
    this.requestUpdate();
  }

  asked({ detail }) {
    const acts = {
      undo: this.changed((mask) => mask.undo()),
      redo: this.changed((mask) => mask.redo()),
      smaller: () => (this.brush = Math.max(1, Math.floor(this.brush / 1.2))),
      larger: () => (this.brush = Math.min(this.largest, Math.ceil(this.brush * 1.2))),
      erase: () => (this.mode = this.mode === "erase" ? "brush" : "erase"),
      brush: () => (this.mode = "brush"),
    };
    acts[detail]();
  }

  get largest() {
    return Math.max(this.picture.width, this.picture.height);
  }

  /** Add borders: the picture's edge drawn on, and masked, so that they are made new. */
  async extend() {
    const { picture } = this;
    const { bitmap, mask, width, height } = picture;
    const { left, top, right, bottom } = borders(width, height, this.border);
    if (!(left || top || right || bottom)) return;
    const size = [width + left + right, height + top + bottom];
    const columns = [[0, 1, 0, left], [0, width, left, width], [width - 1, 1, left + width, right]];
    const rows = [[0, 1, 0, top], [0, height, top, height], [height - 1, 1, top + height, bottom]];
    this.isWorking = true;
    try {
      const blob = await png(...size, (context) => {
        context.imageSmoothingEnabled = false;
        for (const [sx, sw, x, w] of columns) for (const [sy, sh, y, h] of rows) if (w && h) context.drawImage(bitmap, sx, sy, sw, sh, x, y, w, h);
      });
      const { id } = await api.upload(blob);
      const wider = await pixels(address(id));
      if (this.picture !== picture) return; // another one was opened meanwhile
      this.before.push(picture);
      this.border = { left: 0, top: 0, right: 0, bottom: 0 };
      this.put({ id, bitmap: wider, mask: mask.extended(left, top, ...size), width: size[0], height: size[1] });
    } catch (error) {
      store.say(error.message, "error");
    } finally {
      this.isWorking = false;
    }
  }

  /** The result becomes the picture; the mask starts anew. */
  async accept() {
    const stage = this.querySelector("mz-stage");
    const result = stage?.picture ?? store.jobs.edit.images[0];
    this.before.push(this.picture);
    await this.take(result.id);
  }

  back() {
    this.put(this.before.pop());
  }

  async make(event) {
    event?.preventDefault();
    if (!this.picture || store.isBusy("edit") || this.isWorking) return;
    this.isWorking = true;
    try {
      const { id, mask, width, height } = this.picture;
      const extra = { image: { upload: id } };
      if (!mask.isEmpty) {
        const blob = await png(width, height, (context) => context.putImageData(new ImageData(mask.pixels(), width, height), 0, 0));
        extra.mask = { upload: (await api.upload(blob)).id };
      }
      await store.run("edit", [toRequest(store.editForm, extra)]);
    } catch (error) {
      store.say(error.message, "error");
    } finally {
      this.isWorking = false;
    }
  }

  get feather() {
    return store.editForm.fields.feather ?? store.schema.properties?.feather?.default ?? 8;
  }

  render() {
    const ready = store.server?.state === "ready";
    return html`
      <h1 class="off-screen" tabindex="-1">Edit</h1>
      <form class="panel" @submit=${this.make} @keydown=${(event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && this.make(event)}>
        <div class="field">
          <span class="row">
            ${opener("Open a picture", (file) => this.open(file))}
            <a class="button" href="#gallery">${icon("gallery")} From the gallery</a>
          </span>
        </div>
        <mz-form name="editForm" use="edit"></mz-form>
        ${this.picture ? this.beyond() : nothing}
        ${action({ place: "edit", label: this.picture && !this.picture.mask.isEmpty ? "Make what is marked" : "Make it again", start: this.make, isDisabled: !this.picture || !ready || this.isWorking, note: this.picture ? "" : "Open a picture first." })}
      </form>
      <section class="result is-edit" aria-label="Picture and mask">
        ${this.picture ? [this.tools(), this.table(), this.outcome()] : this.invitation()}
      </section>
    `;
  }

  invitation() {
    return html`<div class="invitation">
      <mz-grain></mz-grain>
      <p><b>Open a picture, or drop one here.</b><span>Mark what should change; every other pixel stays as it is.</span></p>
    </div>`;
  }

  beyond() {
    return html`
      <details>
        <summary>Paint beyond the edge</summary>
        <div class="stack">
          <div class="four">
            ${SIDES.map((side) => html`<div class="field"><label for="border-${side}">${side}</label><input id="border-${side}" type="number" min="0" step="8" .value=${typed(String(this.border[side]))} @change=${(event) => (this.border = { ...this.border, [side]: Math.max(0, Math.round(event.target.valueAsNumber) || 0) })} /></div>`)}
          </div>
          <button type="button" ?disabled=${this.isWorking} @click=${this.extend}>Extend the picture</button>
        </div>
      </details>
    `;
  }

  tools() {
    const { mask } = this.picture;
    const painter = () => this.querySelector("mz-painter");
    const isLooking = Boolean(this.over);
    return html`
      <div class="tools" role="toolbar" aria-label="Mask">
        ${tool("create", "Brush", () => (this.mode = "brush"), { isPressed: this.mode === "brush", keys: "B", isDisabled: isLooking })}
        ${tool("eraser", "Eraser", () => (this.mode = "erase"), { isPressed: this.mode === "erase", keys: "E", isDisabled: isLooking })}
        ${tool("hand", "Move", () => (this.mode = "pan"), { isPressed: this.mode === "pan", keys: "middle button" })}
        <label class="size" title="Size of the brush ([ and ])">
          <span>Size</span>
          <input type="range" min="1" max=${this.largest} .value=${typed(String(this.brush))} @input=${(event) => (this.brush = event.target.valueAsNumber)} ${vars({ "--at": this.brush / this.largest })} />
          <output>${this.brush}</output>
        </label>
        <label class="size" title="Pixels over which the mask's edge falls off">
          <span>Feather</span>
          <input type="range" min="0" max="64" .value=${typed(String(this.feather))} @input=${(event) => store.fill("editForm", { fields: { ...store.editForm.fields, feather: event.target.valueAsNumber } })} ${vars({ "--at": this.feather / 64 })} />
          <output>${this.feather}</output>
        </label>
        <span class="gap"></span>
        ${tool("undo", "Take back", this.changed((one) => one.undo()), { isDisabled: !mask.done.length, keys: "Ctrl Z" })}
        ${tool("redo", "Do again", this.changed((one) => one.redo()), { isDisabled: !mask.undone.length, keys: "Ctrl Shift Z" })}
        ${tool("invert", "Invert the mask", this.changed((one) => one.invert()))}
        ${tool("clear", "Clear the mask", this.changed((one) => one.fill(0)), { isDisabled: mask.isEmpty })}
        ${tool("show", "Show the mask", () => (this.isMaskShown = !this.isMaskShown), { isPressed: this.isMaskShown })}
        <span class="gap"></span>
        ${tool("minus", "Zoom out", () => painter().zoomBy(-1), { keys: "-" })}
        <button type="button" class="number" title="Show at its own size" aria-label="Zoom ${Math.round(100 * this.zoom)} percent; show at its own size" @click=${() => painter().zoomTo(1)}>${Math.round(100 * this.zoom)} %</button>
        ${tool("plus", "Zoom in", () => painter().zoomBy(1), { keys: "+" })}
        ${tool("fit", "Show all of it", () => painter().fit(), { keys: "0" })}
      </div>
    `;
  }

  table() {
    return html`
      <div class="table">
        <mz-painter
          .source=${this.picture.bitmap}
          .over=${this.over}
          .mask=${this.picture.mask}
          .brush=${this.brush}
          .mode=${this.mode}
          .feather=${this.feather}
          .isMaskShown=${this.isMaskShown}
          @painted=${() => this.repaint()}
          @asked=${this.asked}
          @placed=${(event) => (this.zoom = event.detail)}
        ></mz-painter>
      </div>
      <p class="note number">
        ${this.picture.width} × ${this.picture.height} · ${this.picture.mask.isEmpty ? "nothing is marked: the whole picture is made again" : `${((100 * this.picture.mask.count) / this.picture.mask.data.length).toFixed(1)} % marked`}
        ${this.before.length ? html`<button type="button" class="quiet" @click=${this.back}>back to the picture before</button>` : nothing}
      </p>
    `;
  }

  outcome() {
    const job = store.jobs.edit;
    const isFinished = job?.images.length && this.dismissed !== job.id && !store.isBusy("edit");
    return html`
      ${isFinished
        ? html`<div class="row actions" role="group" aria-label="Result">
            <button type="button" aria-pressed=${String(!this.over)} @click=${() => (this.over ? (this.over = null) : ((this.shown = null), this.look()))}>${this.over ? "Show before" : "Show after"}</button>
            <button type="button" class="strong" @click=${this.accept}>${icon("check")} Go on with this</button>
            <button type="button" @click=${() => { [this.dismissed, this.over] = [job.id, null]; this.keep(); }}>${icon("clear")} Put away</button>
          </div>`
        : nothing}
      <mz-stage bare place="edit" width=${this.picture.width} height=${this.picture.height} @shown=${() => this.requestUpdate()}></mz-stage>
    `;
  }
}

customElements.define("mz-edit", Edit);

/** A PNG of what `paint` draws, opaque. */
async function png(width, height, paint) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  paint(canvas.getContext("2d"));
  return encoded(canvas);
}

/** The bytes of a mask that was uploaded, at the size of the picture. */
async function maskBytes(url, width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(await pixels(url), 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data.filter((_, i) => i % 4 === 0).map((value) => (value >= 128 ? 255 : 0));
}
