/** Create: a prompt, and the picture as it comes out of the noise. */

import "./form.js";
import "./stage.js";
import * as api from "./api.js";
import { Price, action } from "./form.js";
import { actions } from "./picture.js";
import { duration, toRequest } from "./request.js";
import { store } from "./store.js";
import { View, opener, reveal } from "./ui.js";
import { html, nothing } from "./vendor/lit.js";

export class Create extends View {
  price = new Price(this);

  /** What the model cannot do without, and what the request therefore holds besides the form. */
  get needs() {
    return store.server?.model?.needs ?? [];
  }

  /** Where its jobs are kept. */
  get place() {
    return "create";
  }

  /** Fields of the job besides the request. */
  get how() {
    return {};
  }

  get request() {
    const { reference } = store;
    return toRequest(store.form, this.needs.includes("reference") && reference ? { reference: { upload: reference.id } } : {});
  }

  async make(event) {
    event?.preventDefault();
    if (store.isBusy(this.place) || this.lack) return;
    try {
      await store.run(this.place, [this.request], this.how);
      reveal(this);
    } catch (error) {
      store.say(error.message, "error");
    }
  }

  /** Why this model cannot begin yet. */
  get lack() {
    if (this.needs.includes("mask")) return "This model only fills in what is marked: open a picture in Edit.";
    if (this.needs.includes("image")) return "This model changes pictures: open one in Edit.";
    if (this.needs.includes("reference") && !store.reference) return "This model varies a picture: open one first.";
    return null;
  }

  async open(file) {
    try {
      store.set({ reference: await api.upload(file) });
    } catch (error) {
      store.say(error.message, "error");
    }
  }

  /** The picture to vary, for unCLIP models. */
  varied() {
    if (!this.needs.includes("reference")) return nothing;
    const { reference } = store;
    return html`<div class="field">
      <span class="row">
        ${reference ? html`<img class="varied" src=${reference.url} alt="the picture to vary" />` : nothing}
        ${opener(reference ? "Another picture to vary" : "Open a picture to vary", (file) => this.open(file))}
      </span>
    </div>`;
  }

  updated() {
    const job = store.jobs[this.place];
    const seed = job?.images[0]?.seed;
    // the seed that was drawn is shown, so that one press keeps it
    if (seed !== undefined && this.seenSeedOf !== job.id) {
      this.seenSeedOf = job.id;
      if (!store.form.isSeedKept) store.fill("form", { seed });
    }
    const { request } = this; // what is refused is said when it is asked for
    if (!this.lack) this.price.ask([request], { ...request, seed: 0, prompt: "", negative: "" }, this.how);
  }

  render() {
    const { form, server } = store;
    const defaults = server?.model?.defaults ?? { width: 512, height: 512 };
    return html`
      <h1 class="off-screen" tabindex="-1">Create</h1>
      <form class="panel" @submit=${this.make} @keydown=${(event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && this.make(event)}>
        ${this.varied()}
        <mz-form name="form" use="create"></mz-form>
        ${this.action(form.count > 1 ? `Make ${form.count} pictures` : "Make the picture")}
      </form>
      <section class="result" aria-label="Result">
        <mz-stage place="create" width=${form.width ?? defaults.width} height=${form.height ?? defaults.height} @shown=${() => this.requestUpdate()}></mz-stage>
        ${this.finished()}
      </section>
    `;
  }

  /** The button that starts or stops, and what there is to know before. */
  action(label) {
    const { state, detail } = store.server ?? {};
    const waits = { loading: "The model is being read…", draining: "The server is shutting down.", failed: detail }[state];
    const note = waits ?? this.lack ?? (this.price.cost?.seconds ? `about ${duration(this.price.cost.seconds)}` : "");
    return action({ place: this.place, label, start: this.make, isDisabled: state !== "ready" || Boolean(this.lack), note });
  }

  finished() {
    const job = store.jobs.create;
    const stage = this.querySelector("mz-stage");
    const picture = job?.images.length && (stage?.picture ?? (job.state === "running" ? null : job.images[0]));
    return picture ? actions(picture.id) : nothing;
  }
}

customElements.define("mz-create", Create);
