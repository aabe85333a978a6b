/** The form of a request: one element for Create, Edit, Compare and Explain, which show more or less of it. */

import * as api from "./api.js";
import { HIDDEN, OWN, control, isEmpty, sizes } from "./request.js";
import { store } from "./store.js";
import { View, icon, tool, typed, vars } from "./ui.js";
import { html, live, nothing, repeat } from "./vendor/lit.js";

const COUNTING_PAUSE_MS = 250;
const PRICING_PAUSE_MS = 400;

/** `name` is the form in the store; `use` is what it is used for: "create", "edit", "compare" or "explain". */
export class Form extends View {
  static properties = { name: {}, use: {}, counted: { state: true }, isCustom: { state: true } };

  constructor() {
    super();
    this.name = "form";
    this.use = "create";
    this.counted = null;
    this.isCustom = false;
  }

  get form() {
    return store[this.name];
  }

  get defaults() {
    return store.server?.model?.defaults ?? { width: 512, height: 512, steps: 20, guidance: 7.5, sampler: null };
  }

  updated() {
    const { prompt } = this.form;
    const model = store.server?.model?.id;
    if (prompt === this.asked && model === this.askedOf) return;
    [this.asked, this.askedOf] = [prompt, model];
    clearTimeout(this.counting);
    this.counting = setTimeout(() => this.count(prompt), COUNTING_PAUSE_MS);
  }

  async count(prompt) {
    this.isCounting?.abort();
    this.isCounting = new AbortController();
    try {
      this.counted = prompt.trim() ? await api.tokens(prompt, this.isCounting.signal) : null;
    } catch {
      // a newer text is being counted, or no model is there yet
    }
  }

  fill(patch) {
    store.fill(this.name, patch);
  }

  field(key, value) {
    this.fill({ fields: { ...this.form.fields, [key]: value } });
  }

  render() {
    return html`
      ${this.prompts()}
      ${this.use === "edit" ? nothing : this.shape()}
      <div class="pair">
        ${this.use === "compare" || this.use === "explain" ? nothing : this.count_()} ${this.seed()}
      </div>
      ${this.use === "edit" ? this.range("strength", "Strength", { low: 0.05, high: 1, step: 0.05, fallback: 1, says: "how much is made new" }) : nothing}
      <details class="more">
        <summary>More</summary>
        <div class="stack">
          ${this.range("steps", "Steps", { low: 1, high: 100, step: 1, fallback: this.defaults.steps })}
          ${this.range("guidance", "Guidance", { low: 1, high: 20, step: 0.5, fallback: this.defaults.guidance, says: "how closely the prompt is followed" })}
          ${this.sampling()} ${this.others()}
        </div>
      </details>
    `;
  }

  prompts() {
    const { prompt, negative } = this.form;
    const dropped = this.counted?.dropped ?? [];
    const id = (part) => `${this.use}-${part}`;
    return html`
      <div class="field">
        <label for=${id("prompt")}>${this.use === "edit" ? "What it shows instead" : "Prompt"}</label>
        <textarea
          id=${id("prompt")}
          class="prompt"
          rows="3"
          maxlength=${store.server?.limits?.prompt ?? 20000}
          placeholder=${this.use === "compare" ? "a red fox | in snow | at night" : "a red fox in the snow"}
          aria-describedby=${id("counter")}
          .value=${typed(prompt)}
          @input=${(event) => this.fill({ prompt: event.target.value })}
        ></textarea>
        <p class="counter ${dropped.length ? "is-over" : ""}" id=${id("counter")}>
          ${dropped.length ? html`<span>not read: <s>${dropped.join(" ")}</s></span>` : nothing}
          ${this.counted ? html`<span class="number">${this.counted.count} of ${this.counted.room} tokens</span>` : html`<span class="number">&nbsp;</span>`}
        </p>
      </div>
      <div class="field">
        <label for=${id("negative")}>Without</label>
        <textarea
          id=${id("negative")}
          rows="1"
          placeholder="what it should not show"
          .value=${typed(negative)}
          @input=${(event) => this.fill({ negative: event.target.value })}
        ></textarea>
      </div>
    `;
  }

  shape() {
    const { width, height } = this.form;
    const { width: ownWidth, height: ownHeight } = this.defaults;
    const chips = sizes(ownWidth, ownHeight);
    const [w, h] = [width ?? ownWidth, height ?? ownHeight];
    const known = chips.find((one) => one.width === w && one.height === h);
    const isCustom = this.isCustom || !known;
    const choose = (one) => {
      this.isCustom = false;
      const isOwn = one.width === ownWidth && one.height === ownHeight;
      this.fill(isOwn ? { width: null, height: null } : { width: one.width, height: one.height });
    };
    return html`
      <fieldset class="field">
        <legend>Size</legend>
        <div class="chips">
          ${chips.map(
            (one) => html`
              <label class="chip">
                <input type="radio" name="${this.use}-size" .checked=${live(!isCustom && one === known)} @change=${() => choose(one)} />
                <span class="ratio" ${vars({ "--w": one.width / Math.max(one.width, one.height), "--h": one.height / Math.max(one.width, one.height) })}></span>
                <span>${one.name}</span>
                <small>${one.width} × ${one.height}</small>
              </label>
            `,
          )}
          <label class="chip">
            <input type="radio" name="${this.use}-size" .checked=${live(isCustom)} @change=${() => (this.isCustom = true)} />
            <span class="ratio is-free"></span>
            <span>Own</span>
            <small>${isCustom ? `${w} × ${h}` : "any"}</small>
          </label>
        </div>
        ${isCustom
          ? html`<div class="pair">
              ${["width", "height"].map((side) => this.number(side, side === "width" ? "Width" : "Height", { low: 8, high: 8192, step: 8, fallback: this.defaults[side], value: this.form[side], put: (value) => this.fill({ [side]: value }) }))}
            </div>`
          : nothing}
      </fieldset>
    `;
  }

  count_() {
    const { count } = this.form;
    const most = store.server?.limits?.count ?? 64;
    const put = (value) => this.fill({ count: Math.min(most, Math.max(1, value || 1)) });
    return html`
      <div class="field">
        <label for="${this.use}-count">Pictures</label>
        <div class="stepper">
          ${tool("minus", "One picture less", () => put(count - 1), { isDisabled: count <= 1 })}
          <input id="${this.use}-count" type="number" min="1" max=${most} .value=${typed(String(count))} @change=${(event) => put(event.target.valueAsNumber)} />
          ${tool("plus", "One picture more", () => put(count + 1), { isDisabled: count >= most })}
        </div>
      </div>
    `;
  }

  seed() {
    const { seed, isSeedKept } = this.form;
    return html`
      <div class="field">
        <label for="${this.use}-seed">Seed</label>
        <div class="stepper">
          <input
            id="${this.use}-seed"
            type="number"
            min="0"
            step="1"
            placeholder="random"
            class=${isSeedKept ? "" : "is-faint"}
            .value=${typed(seed === null ? "" : String(seed))}
            @change=${(event) => {
              const value = event.target.valueAsNumber;
              this.fill(Number.isNaN(value) ? { seed: null, isSeedKept: false } : { seed: value, isSeedKept: true });
            }}
          />
          ${tool("dice", "Draw a seed", () => this.fill({ seed: crypto.getRandomValues(new Uint32Array(1))[0], isSeedKept: true }))}
          ${tool(isSeedKept ? "locked" : "unlocked", "Keep the seed", () => this.fill({ isSeedKept: !isSeedKept }), { isPressed: isSeedKept, isDisabled: seed === null })}
        </div>
      </div>
    `;
  }

  /** A slider and a number for one field; empty is the fallback. */
  range(key, name, { low, high, step, fallback, says }) {
    const value = this.form.fields[key];
    const shown = isEmpty(value) ? fallback : value;
    const id = `${this.use}-${key}`;
    const put = (given) => this.field(key, Number.isNaN(given) ? null : given);
    return html`
      <div class="field">
        <label for=${id}>${name} ${says ? html`<small>${says}</small>` : nothing}</label>
        <div class="slider">
          <input type="range" aria-label="${name}, slider" min=${low} max=${high} step=${step} .value=${typed(String(Math.min(high, shown)))} @input=${(event) => put(event.target.valueAsNumber)} ${vars({ "--at": (Math.min(high, shown) - low) / (high - low) })} />
          <input id=${id} type="number" min=${low} step=${step === 1 ? 1 : "any"} placeholder=${fallback ?? ""} .value=${typed(isEmpty(value) ? "" : String(value))} @change=${(event) => put(event.target.valueAsNumber)} />
        </div>
      </div>
    `;
  }

  number(key, name, { low, high, step, fallback, value, put }) {
    return html`
      <div class="field">
        <label for="${this.use}-${key}">${name}</label>
        <input id="${this.use}-${key}" type="number" min=${low ?? nothing} max=${high ?? nothing} step=${step ?? "any"} placeholder=${fallback ?? ""} .value=${typed(isEmpty(value) ? "" : String(value))} @change=${(event) => put(Number.isNaN(event.target.valueAsNumber) ? null : event.target.valueAsNumber)} />
      </div>
    `;
  }

  choice(key, name, { choices, own, value, put }) {
    return html`
      <div class="field">
        <label for="${this.use}-${key}">${name}</label>
        <select id="${this.use}-${key}" .value=${typed(value ?? "")} @change=${(event) => put(event.target.value || null)}>
          ${own === null ? nothing : html`<option value="" ?selected=${isEmpty(value)}>${own}</option>`}
          ${repeat(choices, ([word]) => word, ([word, text]) => html`<option value=${word} ?selected=${word === value}>${text}</option>`)}
        </select>
      </div>
    `;
  }

  sampling() {
    const { samplers, spacings } = store.samplers;
    const { sampler, spacing, options = {} } = this.form.fields;
    const own = samplers.find((one) => one.name === this.defaults.sampler);
    const chosen = samplers.find((one) => one.name === sampler || one.title === sampler) ?? own;
    const put = (key, value) => this.field("options", { ...options, [key]: value });
    return html`
      <div class="pair">
        ${this.choice("sampler", "Sampler", {
          choices: samplers.map((one) => [one.name, one.title]),
          own: `the model’s own${own ? ` (${own.title})` : ""}`,
          value: sampler,
          put: (value) => this.fill({ fields: { ...this.form.fields, sampler: value, options: {} } }),
        })}
        ${this.choice("spacing", "Spacing", {
          choices: spacings.map((one) => [one.name, one.name]),
          own: "the sampler’s own",
          value: spacing,
          put: (value) => this.field("spacing", value),
        })}
      </div>
      ${sampler && chosen && Object.keys(chosen.options).length
        ? html`<fieldset class="field">
            <legend>Options of ${chosen.title}</legend>
            <div class="many">
              ${Object.entries(chosen.options).map(([key, option]) => this.option(key, option, options[key], (value) => put(key, value)))}
            </div>
          </fieldset>`
        : nothing}
    `;
  }

  option(key, option, value, put) {
    if (Array.isArray(option.default)) return nothing; // lists are for programs
    if (typeof option.default === "boolean") return this.toggle(`option-${key}`, key, { value: value ?? option.default, doc: option.doc, put });
    if (option.choices?.length) return this.choice(`option-${key}`, key, { choices: option.choices.map((one) => [one, one]), own: option.default, value, put });
    return this.number(`option-${key}`, key, { low: option.low, high: option.high, fallback: option.default ?? "none", value, put });
  }

  toggle(key, name, { value, doc, put }) {
    return html`
      <label class="toggle" title=${doc}>
        <input type="checkbox" role="switch" .checked=${live(Boolean(value))} @change=${(event) => put(event.target.checked)} />
        <span>${name}</span>
      </label>
    `;
  }

  /** Every field that has no control of its own, from the server's schema. */
  others() {
    const rest = Object.entries(store.schema.properties ?? {})
      .filter(([key]) => !OWN.has(key) && !HIDDEN.has(key))
      .map(([key, property]) => [key, control(property)])
      .filter(([, one]) => one.kind);
    if (!rest.length) return nothing;
    return html`
      <details>
        <summary>Every other field</summary>
        <div class="many">${rest.map(([key, one]) => this.other(key, one))}</div>
      </details>
    `;
  }

  other(key, one) {
    const value = this.form.fields[key];
    const name = html`<span title=${one.doc}>${key.replaceAll("_", " ")}</span>`;
    const put = (given) => this.field(key, given === one.fallback ? null : given);
    if (one.kind === "switch") return this.toggle(key, name, { value: value ?? one.fallback, doc: one.doc, put });
    if (one.kind === "choice") return this.choice(key, name, { choices: one.choices.map((word) => [word, word.replaceAll("_", " ")]), own: one.fallback === null ? "the model’s own" : null, value: value ?? one.fallback, put });
    if (one.kind === "pair" || one.kind === "text") {
      return html`
        <div class="field">
          <label for="${this.use}-${key}">${name}</label>
          <input
            id="${this.use}-${key}"
            placeholder=${one.kind === "pair" ? (one.fallback?.join(" ") ?? "two numbers") : (one.fallback ?? "")}
            .value=${typed(isEmpty(value) ? "" : [value].flat().join(" "))}
            @change=${(event) => {
              const text = event.target.value.trim();
              put(!text ? null : one.kind === "text" ? text : text.split(/[\s,x×]+/).map(Number));
            }}
          />
        </div>
      `;
    }
    return this.number(key, name, { low: one.low, high: one.high, step: one.kind === "integer" ? 1 : "any", fallback: one.fallback, value, put });
  }
}

customElements.define("mz-form", Form);

/** What requests would cost, for a view: asked once what it depends on has been left alone for a moment. */
export class Price {
  cost = null;
  refused = null; // in the server's words
  #host;
  #asked;
  #waiting;

  constructor(host) {
    this.#host = host;
  }

  /** Ask, unless `of` (what the cost of the requests depends on), `how` and the model are those of the last time. */
  ask(requests, of, how = {}) {
    const { model } = store.server ?? {};
    const asked = JSON.stringify([of, how, model?.id]);
    if (!model || asked === this.#asked) return;
    this.#asked = asked;
    clearTimeout(this.#waiting);
    if (!requests) return this.#tell(null);
    this.#waiting = setTimeout(async () => {
      try {
        const cost = await api.estimate(requests, how);
        if (asked === this.#asked) this.#tell(cost);
      } catch (error) {
        if (asked === this.#asked) this.#tell(null, error.message);
      }
    }, PRICING_PAUSE_MS);
  }

  #tell(cost, refused = null) {
    Object.assign(this, { cost, refused });
    this.#host.requestUpdate();
  }
}

/** The row under a form: the button that starts, or the one that stops. */
export function action({ place, label, start, isDisabled = false, note = "" }) {
  const isBusy = store.isBusy(place);
  return html`
    <div class="action">
      ${isBusy
        ? html`<button type="button" class="primary is-stop" @click=${() => store.stop(place)}>${icon("stop")} Stop</button>`
        : html`<button type="submit" class="primary" ?disabled=${isDisabled} @click=${start}>${label}</button>`}
      <p class="note">${note}</p>
    </div>
  `;
}
