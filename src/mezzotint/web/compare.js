/** Compare: two settings varied, or every subset of a prompt's parts, as a table that fills in while it is made. */

import "./form.js";
import * as api from "./api.js";
import * as axes from "./axes.js";
import { asGridCommand } from "./commands.js";
import { Price, action } from "./form.js";
import { withTexts } from "./png.js";
import { duration, toRequest } from "./request.js";
import { drawSheet } from "./sheet.js";
import { store } from "./store.js";
import { View, copy, encoded, icon, pixels, reveal, save, typed, vars } from "./ui.js";
import { html, live, nothing } from "./vendor/lit.js";

const FIELDS = {
  steps: "steps", guidance: "guidance", sampler: "sampler", spacing: "spacing", seed: "seed", prompt: "words of the prompt",
  size: "size", clip_skip: "text layer", guidance_rescale: "guidance rescale",
};
const AT_ONCE = 8; // records fetched together for a sheet

export class Compare extends View {
  static properties = { cell: { state: true }, isSaving: { state: true } };
  price = new Price(this);

  constructor() {
    super();
    [this.cell, this.isSaving] = [innerWidth < 600 ? 88 : 160, false];
  }

  set(patch) {
    store.set({ compare: { ...store.compare, ...patch } });
  }

  /** Sampler options that an axis can be. */
  get options() {
    const { sampler } = store.form.fields;
    const name = sampler ?? store.server?.model?.defaults.sampler;
    return Object.keys(store.samplers.samplers.find((one) => one.name === name)?.options ?? {});
  }

  /** The grid that is asked for; null where it cannot be, with `wrong` (no state: it is found while drawing) saying why. */
  plan() {
    const base = toRequest(store.form);
    const { mode, x, y } = store.compare;
    try {
      this.wrong = null;
      if (mode === "matrix") return axes.matrix(base);
      const one = ({ field, text }) => (field ? axes.axis(field, text, !(field in FIELDS)) : null);
      return axes.grid(base, one(x), one(y));
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.wrong = error.message;
      return null;
    }
  }

  async make(event) {
    event?.preventDefault();
    const plan = this.plan();
    if (!plan || store.isBusy("compare")) return;
    try {
      const { requests, ...shape } = plan;
      const table = { ...shape, base: { ...toRequest(store.form), seed: requests[0].seed } };
      await store.run("compare", requests, {}, { table });
      reveal(this);
    } catch (error) {
      store.say(error.message, "error");
    }
  }

  updated() {
    const plan = this.plan();
    this.price.ask(plan?.requests, plan?.requests.map(({ seed, ...rest }) => rest));
  }

  render() {
    const plan = this.plan();
    const n = plan?.requests.length ?? 0;
    const { cost, refused } = this.price;
    const time = cost?.seconds ? `, about ${duration(cost.seconds)}` : "";
    const wrong = this.wrong ?? refused;
    const { mode, x, y } = store.compare;
    return html`
      <h1 class="off-screen" tabindex="-1">Compare</h1>
      <form class="panel" @submit=${this.make}>
        <fieldset class="field">
          <legend class="off-screen">Kind of comparison</legend>
          <div class="segments">
            ${[["grid", "Two settings"], ["matrix", "Prompt matrix"]].map(([word, name]) => html`<label><input type="radio" name="mode" .checked=${live(mode === word)} @change=${() => this.set({ mode: word })} /><span>${name}</span></label>`)}
          </div>
        </fieldset>
        ${mode === "grid"
          ? html`${this.axis("x", "Across", x)} ${this.axis("y", "Down", y)}`
          : html`<p class="note">Parts of the prompt after a <b>|</b> are left in and out, in every combination.</p>`}
        ${wrong ? html`<p class="note is-error" id="wrong" role="status">${wrong}</p>` : nothing}
        <mz-form name="form" use="compare"></mz-form>
        ${action({ place: "compare", label: n ? `Make ${n} pictures` : "Make the pictures", start: this.make, isDisabled: !n || store.server?.state !== "ready", note: n ? `${n} pictures${time}` : "" })}
      </form>
      <section class="result" aria-label="Comparison">${this.result()}</section>
    `;
  }

  axis(name, title, one) {
    const id = `axis-${name}`;
    return html`
      <div class="axis">
        <div class="field">
          <label for=${id}>${title}</label>
          <select id=${id} @change=${(event) => this.set({ [name]: { field: event.target.value, text: event.target.value ? axes.example(event.target.value) : "" } })}>
            <option value="" ?selected=${!one.field}>nothing</option>
            ${Object.entries(FIELDS).map(([field, text]) => html`<option value=${field} ?selected=${one.field === field}>${text}</option>`)}
            ${this.options.map((option) => html`<option value=${option} ?selected=${one.field === option}>option ${option}</option>`)}
          </select>
        </div>
        <div class="field">
          <label for="${id}-values">Values <small>${one.field === "prompt" ? "the first is replaced by each" : ""}</small></label>
          <input id="${id}-values" ?disabled=${!one.field} placeholder=${one.field ? axes.example(one.field) : ""} aria-invalid=${String(Boolean(this.wrong && one.field && this.wrong.startsWith(one.field)))} .value=${typed(one.text)} @input=${(event) => this.set({ [name]: { ...one, text: event.target.value } })} />
        </div>
      </div>
    `;
  }

  result() {
    const job = store.jobs.compare;
    if (!job?.table) {
      return html`<div class="invitation"><mz-grain></mz-grain><p><b>Side by side.</b><span>One seed, one prompt, and only what you vary differs.</span></p></div>`;
    }
    const { x, y, columns, rows, base } = job.table;
    const isDone = !store.isBusy("compare");
    const defaults = store.server?.model?.defaults ?? { width: 1, height: 1 };
    const made = job.images.length;
    return html`
      <div class="row bar-row">
        <span class="note number" role="status">${isDone ? `${made} of ${job.total} pictures` : `${made} of ${job.total}${job.secondsLeft ? `, ${duration(job.secondsLeft)} left` : ""}`}</span>
        <span class="grow"></span>
        <label class="size"><span>Size</span><input type="range" min="48" max="512" aria-label="Size of the cells" .value=${typed(String(this.cell))} @input=${(event) => (this.cell = event.target.valueAsNumber)} ${vars({ "--at": (this.cell - 48) / 464 })} /></label>
        <button type="button" ?disabled=${!isDone || made < job.total || this.isSaving} @click=${this.export}>${icon("download")} One PNG</button>
        ${(x ?? y).field === "matrix" ? nothing : html`<button type="button" @click=${() => copy(asGridCommand(base, x, y, store.server?.model?.name), "Command")}>${icon("copy")} Command</button>`}
      </div>
      ${job.error ? html`<p class="note is-error" role="alert">${job.error.detail}</p>` : nothing}
      ${job.warnings.map((line) => html`<p class="note is-warning">${line}</p>`)}
      <div class="cells" tabindex="0" role="region" aria-label="Grid of pictures" ${vars({ "--cell": `${this.cell}px` })}>
        <table>
          ${x
            ? html`<thead><tr>${y ? html`<td></td>` : nothing}${Array.from({ length: columns }, (_, i) => html`<th scope="col">${axes.label(x, i)}</th>`)}</tr></thead>`
            : nothing}
          <tbody>
            ${Array.from({ length: rows }, (_, row) => html`<tr>
              ${y ? html`<th scope="row">${axes.label(y, row)}</th>` : nothing}
              ${Array.from({ length: columns }, (_, column) => this.one(job, row * columns + column, defaults, [x && axes.label(x, column), y && axes.label(y, row)].filter(Boolean).join(", ")))}
            </tr>`)}
          </tbody>
        </table>
      </div>
    `;
  }

  one(job, i, defaults, name) {
    const picture = job.images.find((one) => one.request === i);
    const frame = job.previews[i]?.at(-1);
    const request = job.requests[i];
    const [width, height] = [picture?.width ?? request.width ?? defaults.width, picture?.height ?? request.height ?? defaults.height];
    const shape = vars({ "--w": width, "--h": height });
    if (picture) {
      const ids = job.images.map((one) => one.id);
      return html`<td><button type="button" ${shape} aria-label=${name} @click=${() => document.querySelector("mz-picture").open(picture.id, ids)}><img class=${Math.max(width, height) <= 256 ? "is-crisp" : ""} src=${picture.url} alt="" /></button></td>`;
    }
    return html`<td><div class="empty ${frame ? "is-live" : ""}" ${shape} role="img" aria-label="${name}: ${frame ? "being made" : "not made yet"}">${frame ? html`<img class="is-preview" src=${frame.data} alt="" />` : nothing}</div></td>`;
  }

  /** The whole table as one labelled PNG that tells how each cell was made. */
  async export() {
    const job = store.jobs.compare;
    const { x, y, columns, rows, base } = job.table;
    this.isSaving = true;
    try {
      const bitmaps = [];
      const told = [];
      for (let i = 0; i < job.images.length; i += AT_ONCE) {
        const some = job.images.slice(i, i + AT_ONCE);
        bitmaps.push(...(await Promise.all(some.map((one) => pixels(one.url)))));
        told.push(...(await Promise.all(some.map((one) => api.image(one.id)))));
      }
      const { canvas, boxes } = drawSheet(bitmaps, columns, rows, x && ((i) => axes.label(x, i)), y && ((i) => axes.label(y, i)), base.prompt);
      const blob = await encoded(canvas);
      const axis = (one) => one && { field: one.field, values: one.texts };
      const record = {
        schema: 1,
        grid: { x: axis(x), y: axis(y) },
        model: told[0].record?.model,
        execution: told[0].record?.execution,
        cells: told.map((one, i) => ({ row: Math.floor(i / columns), column: i % columns, box: boxes[i], ...(one.record?.resolved ?? { request: one.request }) })),
      };
      const texts = { parameters: told[0].infotext ?? "", mezzotint: JSON.stringify(record) };
      save(new Blob([withTexts(new Uint8Array(await blob.arrayBuffer()), texts)], { type: "image/png" }), "grid.png");
    } catch (error) {
      store.say(error.message, "error");
    } finally {
      this.isSaving = false;
    }
  }
}

customElements.define("mz-compare", Compare);
