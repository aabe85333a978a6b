/** Create: a prompt, and the picture as it comes out of the noise. */

import "./form.js";
import "./stage.js";
import * as api from "./api.js";
import { action } from "./form.js";
import { actions } from "./picture.js";
import { duration, toRequest } from "./request.js";
import { store } from "./store.js";
import { View } from "./ui.js";
import { html, nothing } from "./vendor/lit.js";

export class Create extends View {
  static properties = { cost: { state: true } };

  constructor() {
    super();
    this.cost = null;
  }

  async make(event) {
    event?.preventDefault();
    if (store.isBusy("create")) return;
    try {
      await store.run("create", [toRequest(store.form)]);
      if (matchMedia("(max-width: 60rem)").matches) this.querySelector("mz-stage").scrollIntoView({ behavior: "smooth" });
    } catch (error) {
      store.say(error.message, "error");
    }
  }

  updated() {
    const job = store.jobs.create;
    const seed = job?.images[0]?.seed;
    // the seed that was drawn is shown, so that one press keeps it
    if (seed !== undefined && this.seenSeedOf !== job.id) {
      this.seenSeedOf = job.id;
      if (!store.form.isSeedKept) store.fill("form", { seed });
    }
    this.price();
  }

  /** What the request would cost, asked once it has been left alone for a moment. */
  price() {
    const request = toRequest(store.form);
    const asked = JSON.stringify([request.width, request.height, request.count, request.steps, request.sampler, store.server?.model?.id]);
    if (asked === this.priced || !store.server?.model) return;
    this.priced = asked;
    clearTimeout(this.pricing);
    this.pricing = setTimeout(async () => {
      try {
        this.cost = await api.estimate([request]);
      } catch {
        this.cost = null; // what is wrong is said when it is asked for
      }
    }, 400);
  }

  render() {
    const { form, server } = store;
    const defaults = server?.model?.defaults ?? { width: 512, height: 512 };
    const state = server?.state;
    const waits = { loading: "The model is being read…", draining: "The server is shutting down.", failed: server?.detail }[state];
    const note = waits ?? (this.cost?.seconds ? `about ${duration(this.cost.seconds)}` : "");
    return html`
      <h1 class="off-screen" tabindex="-1">Create</h1>
      <form class="panel" @submit=${this.make} @keydown=${(event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && this.make(event)}>
        <mz-form name="form" use="create"></mz-form>
        ${action({ place: "create", label: form.count > 1 ? `Make ${form.count} pictures` : "Make the picture", start: this.make, isDisabled: state !== "ready", note })}
      </form>
      <section class="result" aria-label="Result">
        <mz-stage place="create" width=${form.width ?? defaults.width} height=${form.height ?? defaults.height} @shown=${() => this.requestUpdate()}></mz-stage>
        ${this.finished()}
      </section>
    `;
  }

  finished() {
    const job = store.jobs.create;
    const stage = this.querySelector("mz-stage");
    const picture = job?.images.length && (stage?.picture ?? (job.state === "running" ? null : job.images[0]));
    return picture ? actions(picture.id) : nothing;
  }
}

customElements.define("mz-create", Create);
