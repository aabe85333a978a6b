/** Models: what there is, what is loaded, what a file is and why, and switching. */

import * as api from "./api.js";
import { store } from "./store.js";
import { View, icon, size } from "./ui.js";
import { html, nothing } from "./vendor/lit.js";

const PLAIN = ["preset", "variant", "objective", "layout"];

/** A part of a model in a line: its size and what its numbers are. */
function told(part) {
  const kinds = Object.keys(part.dtypes ?? {}).join(", ");
  return [part.parameters ? `${part.parameters.toLocaleString("en")} parameters` : "", size(part.bytes), kinds].filter(Boolean).join(" · ");
}

/** Why something is known, from what `mezzotint inspect` says of it. */
function because(name, why) {
  if (!why?.rule) return nothing;
  const others = why.alternatives?.length ? `; could also be ${why.alternatives.join(", ")}` : "";
  return html`<li><b>${name}</b> ${why.rule} <small>(${why.confidence}${others})</small><br /><code>${why.evidence}</code></li>`;
}

export class Models extends View {
  static properties = { models: { state: true }, chosen: { state: true }, details: { state: true } };

  constructor() {
    super();
    [this.models, this.chosen, this.details] = [null, null, null];
  }

  connectedCallback() {
    super.connectedCallback();
    this.load();
  }

  willUpdate() {
    const current = store.server?.model?.id;
    if (current !== this.current) {
      this.current = current;
      this.load();
    }
  }

  async load() {
    try {
      this.models = (await api.models()).models;
      const first = this.models.find((one) => one.is_current) ?? this.models[0];
      if (!this.chosen && first) await this.choose(first.id);
    } catch (error) {
      store.say(error.message, "error");
    }
  }

  async choose(id) {
    this.chosen = id;
    this.details = null;
    try {
      const details = await api.model(id);
      if (this.chosen === id) this.details = details;
    } catch (error) {
      if (this.chosen === id) this.details = { id, wrong: error.message };
    }
  }

  async switch(id) {
    try {
      store.set({ server: await api.load(id) });
      store.say("The model is being read; what runs is finished first");
    } catch (error) {
      store.say(error.message, "error");
    }
  }

  render() {
    const isLoading = store.server?.state === "loading";
    return html`
      <h1 class="off-screen" tabindex="-1">Models</h1>
      <div class="wide shelf">
        <ul class="models" aria-label="Models">
          ${this.models?.map(
            (one) => html`<li>
              <button type="button" aria-pressed=${String(one.id === this.chosen)} @click=${() => this.choose(one.id)}>
                <span class="words">${one.name}</span>
                <small>${[one.is_current ? (isLoading ? "being read" : "loaded") : "", size(one.bytes)].filter(Boolean).join(" · ")}</small>
              </button>
            </li>`,
          ) ?? nothing}
        </ul>
        <section class="about" aria-label="About the model" aria-busy=${String(!this.details)}>${this.about(isLoading)}</section>
      </div>
    `;
  }

  about(isLoading) {
    const one = this.details;
    if (!one) return this.chosen ? html`<p class="note">Reading its header…</p>` : nothing;
    const entry = this.models?.find((model) => model.id === one.id);
    const { model } = store.server ?? {};
    const isCurrent = one.id === model?.id;
    const parts = Object.entries(one.parts ?? {});
    const missing = one.missing ?? [];
    return html`
      <h2>${entry?.name ?? one.name}</h2>
      ${one.wrong ? html`<p class="note is-error" role="alert">${one.wrong}</p>` : nothing}
      <div class="row">
        ${isCurrent
          ? html`<span class="tag is-on">${isLoading ? "being read" : "loaded"}</span>`
          : html`<button type="button" class="strong" ?disabled=${isLoading || Boolean(one.wrong)} @click=${() => this.switch(one.id)}>${icon("reuse")} Switch to this</button>`}
      </div>
      <dl>
        ${isCurrent && model ? html`<div><dt>family</dt><dd>${model.title}</dd></div><div><dt>runs in</dt><dd>${model.dtype} on ${model.device}</dd></div><div><dt>size</dt><dd>${model.defaults.width} × ${model.defaults.height}</dd></div>` : nothing}
        ${PLAIN.filter((key) => typeof one[key] === "string").map((key) => html`<div><dt>${key}</dt><dd>${one[key]}</dd></div>`)}
        ${one.bytes ? html`<div><dt>on disk</dt><dd>${size(one.bytes)}</dd></div>` : nothing}
      </dl>
      ${parts.length ? html`<h3>Parts</h3><ul class="plain">${parts.map(([name, part]) => html`<li><b>${name}</b> ${told(part)}</li>`)}</ul>` : nothing}
      ${one.decided_by ? html`<h3>How that is known</h3><ul class="plain">${because("family", one.decided_by)} ${because("objective", one.objective_decided_by)}</ul>` : nothing}
      ${one.advice ? html`<p class="note is-warning">${one.advice}</p>` : nothing}
      ${missing.length ? html`<h3>What is missing</h3><ul class="plain">${missing.map((line) => html`<li>${String(line)}</li>`)}</ul>` : nothing}
      <details><summary>Everything that was read</summary><pre tabindex="0">${JSON.stringify(one, null, 1)}</pre></details>
    `;
  }
}

customElements.define("mz-models", Models);
