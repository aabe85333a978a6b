/** Explain: how a picture comes about, from the words to the pixels, told by the model that makes it. */

import * as api from "./api.js";
import { Create } from "./create.js";
import { renderStory } from "./story.js";
import { store } from "./store.js";
import { icon, reveal, typed } from "./ui.js";
import { html, nothing } from "./vendor/lit.js";

/** A story under a style sheet of its own: the same drawing as in the page that `mezzotint explain` writes. */
class Story extends HTMLElement {
  #root = this.attachShadow({ mode: "open" });

  connectedCallback() {
    const sheet = Object.assign(document.createElement("link"), { rel: "stylesheet", href: "/web/story.css" });
    const place = Object.assign(document.createElement("div"), { className: "story" });
    this.#root.replaceChildren(sheet, place);
    renderStory(place, this.told);
    // its links lead within the story, and the address bar belongs to the views
    place.addEventListener("click", (event) => {
      const link = event.target.closest("a[href^='#']");
      if (!link) return;
      event.preventDefault();
      this.#root.getElementById(link.hash.slice(1)).scrollIntoView({ behavior: "smooth" });
    });
  }
}

customElements.define("mz-story", Story);

export class Explain extends Create {
  static properties = { models: { state: true }, model: { state: true }, story: { state: true } };

  constructor() {
    super();
    [this.models, this.model] = [[], null]; // model null: the one that is loaded
    this.story = null; // {of: id of its job, told, wrong}
  }

  connectedCallback() {
    super.connectedCallback();
    api.models().then(({ models }) => (this.models = models), (error) => store.say(error.message, "error"));
  }

  get place() {
    return "explain";
  }

  get how() {
    return { explain: true, ...(this.model ? { model: this.model } : {}) };
  }

  get needs() {
    return this.model ? [] : super.needs; // what another model needs, only the server knows
  }

  get request() {
    const { count, ...request } = super.request;
    return request;
  }

  updated() {
    super.updated();
    const job = store.jobs.explain;
    if (job?.story && this.story?.of !== job.id) this.read(job.id);
    if (store.isBusy("explain")) this.awaited = job.id;
    else if (this.awaited && this.awaited === job?.id && this.querySelector("mz-story")) {
      this.awaited = null;
      reveal(this);
    }
  }

  async read(id) {
    this.story = { of: id };
    let found;
    try {
      found = { told: await api.story(id) };
    } catch (error) {
      found = { wrong: error.status === 404 ? "The story is no longer here: stories are kept for an hour." : error.message };
    }
    if (this.story.of === id) this.story = { of: id, ...found };
  }

  render() {
    const { form, server } = store;
    const { width, height } = server?.model?.defaults ?? { width: 512, height: 512 };
    const job = store.jobs.explain;
    const isTold = job?.state === "done" && this.story?.of === job.id;
    return html`
      <h1 class="off-screen" tabindex="-1">Explain</h1>
      <form class="panel" @submit=${this.make} @keydown=${(event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && this.make(event)}>
        ${this.varied()} ${this.choice()}
        <mz-form name="form" use="explain"></mz-form>
        ${this.action("Make it and explain it")}
      </form>
      <section class="result" aria-label="Story">
        ${isTold ? this.told(job) : html`<mz-stage place="explain" width=${form.width ?? width} height=${form.height ?? height}></mz-stage>`}
      </section>
    `;
  }

  choice() {
    const others = this.models.filter((one) => one.id !== store.server?.model?.id);
    return html`<div class="field">
      <label for="explain-model">Model</label>
      <select id="explain-model" .value=${typed(this.model ?? "")} @change=${(event) => (this.model = event.target.value || null)}>
        <option value="">${store.server?.model?.name ?? "the loaded one"}</option>
        ${others.map((one) => html`<option value=${one.id} ?selected=${one.id === this.model}>${one.name}</option>`)}
      </select>
    </div>`;
  }

  told(job) {
    const { told, wrong } = this.story;
    if (wrong) return html`<p class="note is-error" role="alert">${wrong}</p>`;
    if (!told) return html`<p class="note">Reading the story…</p>`;
    return html`
      <div class="actions" role="group" aria-label="With this story">
        <a class="button" href="${job.story.url}?page=true" download>${icon("download")} Save as a page</a>
        ${job.warnings.map((line) => html`<p class="note is-warning">${line}</p>`)}
      </div>
      <mz-story .told=${told}></mz-story>
    `;
  }
}

customElements.define("mz-explain", Explain);
