/** A job while it runs and what it gave: the preview, the film strip, the pictures. */

import { fraction } from "./events.js";
import { duration } from "./request.js";
import { store } from "./store.js";
import { View, figure, vars } from "./ui.js";
import { html, nothing, repeat } from "./vendor/lit.js";

const SMALL = 256; // pixels; pictures up to here are enlarged without smoothing

/** What a screen reader is told of a job: seldom enough to listen to. */
function told(job) {
  if (!job) return "";
  if (job.state === "queued") return job.position ? `waiting, ${job.position} ahead` : "starting";
  if (job.state === "running") {
    const quarter = Math.floor(4 * fraction(job)) * 25;
    return quarter ? `${quarter} percent` : "being made";
  }
  const made = `${job.images.length} of ${job.total} ${job.total === 1 ? "picture" : "pictures"}`;
  return { done: `finished: ${made}`, cancelled: `stopped: ${made}`, failed: `failed: ${job.error?.detail ?? ""}` }[job.state];
}

/** `place` is where the job was started; `bare` leaves out the large picture; `width` and `height` are the shape of what is not made yet. */
export class Stage extends View {
  static properties = { place: {}, bare: { type: Boolean }, width: { type: Number }, height: { type: Number }, chosen: { state: true }, frame: { state: true } };

  constructor() {
    super();
    [this.place, this.width, this.height] = ["create", 512, 512];
    this.chosen = null; // number of the picture shown; null: the latest
    this.frame = null; // step of the film strip shown; null: the latest
  }

  get job() {
    return store.jobs[this.place];
  }

  willUpdate() {
    if (this.job?.id !== this.shownId) [this.shownId, this.chosen, this.frame] = [this.job?.id, null, null];
  }

  /** The number of the picture on the stage. */
  get number() {
    const job = this.job;
    if (!job) return 0;
    if (this.chosen !== null) return this.chosen;
    if (job.state === "running") return job.progress?.number ?? job.images.length;
    return job.images[0]?.number ?? 0;
  }

  /** The finished picture on the stage, or undefined. */
  get picture() {
    return this.job?.images.find((one) => one.number === this.number);
  }

  show(number) {
    [this.chosen, this.frame] = [number, null];
    this.dispatchEvent(new CustomEvent("shown", { bubbles: true }));
  }

  render() {
    const job = this.job;
    return html`
      ${this.bare ? nothing : html`<div class="plate-room">${this.plate()}</div>`}
      <div class="said" aria-live="polite">${told(job)}</div>
      ${job ? html`${this.bar()} ${this.strip()} ${this.pictures()} ${this.notes()}` : nothing}
    `;
  }

  plate() {
    const job = this.job;
    const { picture } = this;
    const frames = job?.previews[this.number] ?? [];
    const frame = this.frame === null ? frames.at(-1) : frames.find((one) => one.step === this.frame);
    const [width, height] = [picture?.width ?? this.width, picture?.height ?? this.height];
    const shape = vars({ "--w": width, "--h": height });
    if (picture && this.frame === null) {
      return html`<figure class="plate" ${shape}>
        <img class=${Math.max(width, height) <= SMALL ? "is-crisp" : ""} src=${picture.url} alt=${job.requests?.[picture.request]?.prompt || "picture"} width=${width} height=${height} />
      </figure>`;
    }
    if (frame) {
      return html`<figure class="plate ${job.state === "running" ? "is-live" : ""}" ${shape}>
        <img class="is-preview" src=${frame.data} alt="preview after step ${frame.step}" width=${width} height=${height} />
      </figure>`;
    }
    return html`<figure class="plate is-rough" ${shape}>
      <mz-grain></mz-grain>
      <figcaption>${job ? "" : html`<b>Every plate begins as noise.</b><span>Say what you would like to see.</span>`}</figcaption>
    </figure>`;
  }

  bar() {
    const job = this.job;
    if (job.state !== "running" && job.state !== "queued") return nothing;
    const { progress } = job;
    const done = fraction(job);
    return html`
      <div class="bar">
        <div class="track" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="100" aria-valuenow=${Math.round(100 * done)}>
          <i ${vars({ "--at": done })}></i>
        </div>
        <p class="number">
          ${job.state === "queued"
            ? html`<span>${job.position ? `${job.position} ahead of you` : "starting"}</span>`
            : job.isTelling
            ? html`<span>the picture is finished; its story is being told</span>`
            : progress
              ? html`<span>step ${progress.step} of ${progress.steps}</span>
                  ${progress.total > 1 ? html`<span>picture ${progress.number + 1} of ${progress.total}</span>` : nothing}
                  <span title="noise level">σ ${figure(progress.sigma)}</span>`
              : html`<span>reading the prompt</span>`}
          ${job.secondsLeft ? html`<span>${duration(job.secondsLeft)} left</span>` : nothing}
        </p>
      </div>
    `;
  }

  strip() {
    const frames = this.job.previews[this.number] ?? [];
    if (!frames.length) return nothing;
    const { picture } = this;
    const isLast = this.frame === null;
    return html`
      <div class="strip" role="group" aria-label="Film strip: the picture after each step" @keydown=${this.walk}>
        ${repeat(
          frames,
          (one) => one.step,
          (one) => html`<button type="button" aria-pressed=${String(this.frame === one.step)} aria-label="after step ${one.step}" @click=${() => (this.frame = this.frame === one.step ? null : one.step)}>
            <img src=${one.data} alt="" /><small>${one.step}</small>
          </button>`,
        )}
        ${picture
          ? html`<button type="button" aria-pressed=${String(isLast)} aria-label="the finished picture" @click=${() => (this.frame = null)}><img src=${picture.thumb} alt="" /><small>done</small></button>`
          : nothing}
      </div>
    `;
  }

  walk(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const buttons = [...event.currentTarget.querySelectorAll("button")];
    const next = buttons[buttons.indexOf(document.activeElement) + by];
    if (next) {
      event.preventDefault();
      next.focus();
      next.click();
    }
  }

  pictures() {
    const job = this.job;
    if (job.total < 2) return nothing;
    const slots = Array.from({ length: job.total }, (_, number) => number);
    return html`
      <div class="contact" role="group" aria-label="Pictures of this job">
        ${slots.map((number) => {
          const picture = job.images.find((one) => one.number === number);
          const frame = job.previews[number]?.at(-1);
          const source = picture?.thumb ?? frame?.data;
          return html`<button type="button" ?disabled=${!source} aria-pressed=${String(number === this.number)} aria-label="picture ${number + 1}${picture ? `, seed ${picture.seed}` : ""}" @click=${() => this.show(number)}>
            ${source ? html`<img class=${picture ? "" : "is-preview"} src=${source} alt="" />` : html`<span>${number + 1}</span>`}
          </button>`;
        })}
      </div>
    `;
  }

  notes() {
    const { warnings, error, state } = this.job;
    return html`
      ${warnings.map((line) => html`<p class="note is-warning">${line}</p>`)}
      ${error ? html`<p class="note is-error" role="alert">${error.detail}</p>` : nothing}
      ${state === "cancelled" ? html`<p class="note">Stopped. Finished pictures are in the gallery.</p>` : nothing}
    `;
  }

  updated() {
    const strip = this.querySelector(".strip");
    const latest = strip && this.frame === null && `${this.number} ${strip.childElementCount}`;
    if (latest && latest !== this.latest) strip.scrollLeft = strip.scrollWidth;
    this.latest = latest;
  }
}

customElements.define("mz-stage", Stage);

/** A rocked plate: grain that would print black, scraped smooth towards the light. */
export class Grain extends View {
  firstUpdated() {
    const canvas = this.querySelector("canvas");
    const [width, height] = [this.clientWidth, this.clientHeight].map((side) => Math.max(1, Math.round((side || 400) / 2)));
    [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    const dots = context.createImageData(width, height);
    const side = Math.min(width, height);
    let state = 20260;
    for (let i = 0; i < width * height; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const [x, y] = [((i % width) - width / 2) / side, (Math.floor(i / width) - 0.46 * height) / side];
      const light = Math.exp(-9 * (x * x + y * y)) + 0.25 * Math.exp(-30 * ((x + 0.14) ** 2 + (y + 0.12) ** 2));
      const grain = state / 2 ** 32;
      const tone = 22 + 40 * grain + (grain < 0.35 + 0.75 * light ? 150 * light : 0);
      dots.data.set([tone, tone * 0.965, tone * 0.92, 255], 4 * i);
    }
    context.putImageData(dots, 0, 0);
  }

  render() {
    return html`<canvas aria-hidden="true"></canvas>`;
  }
}

customElements.define("mz-grain", Grain);
