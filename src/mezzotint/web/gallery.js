/** Gallery: what was made here, found again by its words; and how a picture from elsewhere was made. */

import * as api from "./api.js";
import { edit } from "./picture.js";
import { store } from "./store.js";
import { View, figure, go, icon, opener, tool } from "./ui.js";
import { html, nothing, repeat } from "./vendor/lit.js";

export class Gallery extends View {
  static properties = { images: { state: true }, next: { state: true }, total: { state: true }, words: { state: true }, isLoading: { state: true } };

  constructor() {
    super();
    [this.images, this.next, this.total, this.words, this.isLoading] = [[], null, null, "", false];
    this.removed = ({ detail }) => {
      this.images = this.images.filter((one) => one.id !== detail);
      this.total -= 1;
    };
  }

  connectedCallback() {
    super.connectedCallback();
    store.addEventListener("removed", this.removed);
    this.load();
  }

  disconnectedCallback() {
    super.disconnectedCallback();
    store.removeEventListener("removed", this.removed);
    this.seen?.disconnect();
  }

  /** The first page, or with `more` the next one. */
  async load(more = false) {
    this.loading?.abort();
    const loading = (this.loading = new AbortController());
    this.isLoading = true;
    try {
      const found = await api.images({ q: this.words, before: more ? this.next : null, limit: 60 }, loading.signal);
      this.images = more ? [...this.images, ...found.images] : found.images;
      [this.next, this.total] = [found.next, found.total];
    } catch (error) {
      if (error.name !== "AbortError") store.say(error.message, "error");
    } finally {
      if (loading === this.loading) this.isLoading = false;
    }
  }

  search(event) {
    this.words = event.target.value;
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.load(), 200);
  }

  firstUpdated() {
    this.seen = new IntersectionObserver(([end]) => end.isIntersecting && this.next && !this.isLoading && this.load(true), { rootMargin: "400px" });
    this.seen.observe(this.querySelector(".end"));
  }

  render() {
    const ids = this.images.map((one) => one.id);
    return html`
      <h1 class="off-screen" tabindex="-1">Gallery</h1>
      <div class="wide">
        <div class="row search" role="search">
          <label class="find">${icon("search")}<span class="off-screen">Search in prompts</span><input type="search" placeholder="Search in prompts" .value=${this.words} @input=${this.search} /></label>
          <span class="note number" role="status">${this.total === null ? "" : `${figure(this.total)} ${this.total === 1 ? "picture" : "pictures"}`}</span>
          <span class="grow"></span>
          ${opener("Read a picture", (file) => document.querySelector("mz-foreign").read(file))}
        </div>
        ${this.total === 0
          ? html`<div class="invitation"><mz-grain></mz-grain>
              <p>${this.words ? html`<b>Nothing with these words.</b><span>Try fewer of them.</span>` : html`<b>Nothing has been printed yet.</b><span>What you make appears here. Drop a picture from AUTOMATIC1111, ComfyUI, InvokeAI or Fooocus anywhere to read how it was made.</span>`}</p></div>`
          : nothing}
        <ul class="wall" aria-label="Pictures">
          ${repeat(
            this.images,
            (one) => one.id,
            (one) => html`<li>
              <button type="button" aria-label="${one.prompt || "no prompt"}, seed ${one.seed}" @click=${() => document.querySelector("mz-picture").open(one.id, ids)}>
                <img class=${Math.max(one.width, one.height) <= 256 ? "is-crisp" : ""} loading="lazy" src=${one.thumb} alt="" width=${one.width} height=${one.height} />
                <span aria-hidden="true">${one.prompt}</span>
              </button>
            </li>`,
          )}
        </ul>
        <div class="end">${this.next ? html`<button type="button" ?disabled=${this.isLoading} @click=${() => this.load(true)}>More</button>` : nothing}</div>
      </div>
    `;
  }
}

customElements.define("mz-gallery", Gallery);

const PROGRAMS = {
  mezzotint: "mezzotint", a1111: "AUTOMATIC1111", comfyui: "ComfyUI", invokeai: "InvokeAI", fooocus: "Fooocus",
  swarmui: "SwarmUI", novelai: "NovelAI", easydiffusion: "Easy Diffusion",
};

/** The dialog that tells how a picture from elsewhere was made, and fills the form with it. */
export class Foreign extends View {
  static properties = { found: { state: true }, file: { state: true } };

  constructor() {
    super();
    [this.found, this.file] = [null, null];
  }

  /** Ask the server what a file tells, and show it. */
  async read(file) {
    try {
      this.found = await api.inspect(file);
    } catch (error) {
      store.say(error.message, "error");
      return;
    }
    this.file = file;
    await this.updateComplete;
    const canvas = this.querySelector("canvas");
    const bitmap = await createImageBitmap(file);
    [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    const dialog = this.querySelector("dialog");
    if (!dialog.open) dialog.showModal();
  }

  close() {
    this.querySelector("dialog").close();
  }

  use() {
    store.reuse(this.found.request);
    this.close();
    go("create");
    store.say("All parameters are in the form");
  }

  async edit() {
    try {
      const { id } = await api.upload(this.file);
      this.close();
      edit(id);
    } catch (error) {
      store.say(error.message, "error");
    }
  }

  render() {
    const { found } = this;
    if (!found) return html`<dialog></dialog>`;
    const { prompt, negative, options, ...rest } = found.request ?? {};
    const facts = Object.entries({ model: found.model, ...rest, ...options }).filter(([, value]) => value !== null && value !== undefined && typeof value !== "object");
    return html`
      <dialog class="picture" aria-label="How this picture was made" @click=${(event) => event.target.localName === "dialog" && this.close()}>
        <div class="sheet">
          <div class="print"><canvas role="img" aria-label="the picture"></canvas></div>
          <div class="facts">
            <div class="row"><span class="tag">${found.source ? `made by ${PROGRAMS[found.source] ?? found.source}` : "no parameters inside"}</span><span class="grow"></span>${tool("clear", "Close", () => this.close())}</div>
            ${found.request
              ? html`<p class="words">${prompt || html`<i>no prompt</i>`}</p>
                  ${negative ? html`<p class="without"><b>without</b> ${negative}</p>` : nothing}
                  <dl>${facts.map(([key, value]) => html`<div><dt>${key.replaceAll("_", " ")}</dt><dd>${String(value)}</dd></div>`)}</dl>`
              : html`<p class="note">This file does not say how it was made. Programs that send pictures on often take that out.</p>`}
            ${found.warnings?.map((line) => html`<p class="note is-warning">${line}</p>`)}
            ${found.ignored?.length ? html`<details><summary>${found.ignored.length} more that the form has no place for</summary><ul class="plain">${found.ignored.map((line) => html`<li>${line}</li>`)}</ul></details>` : nothing}
            <div class="actions">
              ${found.request ? html`<button type="button" class="strong" @click=${this.use}>${icon("reuse")} Use these parameters</button>` : nothing}
              <button type="button" @click=${this.edit}>${icon("edit")} Edit this picture</button>
            </div>
          </div>
        </div>
      </dialog>
    `;
  }
}

customElements.define("mz-foreign", Foreign);
