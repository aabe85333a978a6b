/** A finished picture: what can be done with it, and everything that made it. */

import * as api from "./api.js";
import { asCommand, asCurl, asPython } from "./commands.js";
import { PICTURES } from "./request.js";
import { store } from "./store.js";
import { View, copy, figure, go, icon, tool } from "./ui.js";
import { html, nothing } from "./vendor/lit.js";

const SHOWN = ["model", "seed", "steps", "sampler", "spacing", "guidance", "strength"];

/** The request of a picture if it can be asked for again; null, and said, where what it was made from is gone. */
function again({ request }) {
  if (PICTURES.every((key) => !request[key] || request[key].upload)) return request;
  store.say("What this picture was made from is no longer here: pictures that were opened are kept for a day.", "error");
  return null;
}

async function details(id) {
  try {
    return await api.image(id);
  } catch (error) {
    store.say(error.message, "error");
    return null;
  }
}

/** Where the pixels of an upload or of a picture of the gallery are. */
export function address(id) {
  return id.startsWith("u_") ? `/api/v1/uploads/${id}` : `/api/v1/images/${id}/file`;
}

/** Close the dialog: what was pressed in it leads elsewhere. */
function leave() {
  document.querySelector("mz-picture").close();
}

/** Every parameter into the form; a picture that was edited goes to Edit with what it was made from. */
export async function reuse(id) {
  const found = await details(id);
  const request = found && again(found);
  if (!request) return;
  leave();
  if (request.image) {
    store.reuse(request, "editForm");
    store.set({ edited: { id: request.image.upload, mask: request.mask?.upload ?? null } });
    go("edit");
  } else {
    store.reuse(request);
    if (request.reference) store.set({ reference: { id: request.reference.upload, url: address(request.reference.upload) } });
    go("create");
  }
  store.say("All parameters are in the form");
}

/** Open a picture of the gallery, or an upload, in Edit. */
export function edit(id) {
  leave();
  store.set({ edited: { id, mask: null } });
  go("edit");
}

/** Have the story of a picture told: it is made again, by the model that made it, with somebody looking on. */
async function explain(id) {
  if (store.isBusy("explain")) return go("explain");
  const found = await details(id);
  const request = found && again(found);
  if (!request) return;
  leave();
  if (!request.image) store.reuse(request);
  go("explain");
  try {
    const named = (await api.models()).models.filter((one) => one.name === found.model);
    await store.run("explain", [request], { explain: true, ...(named.length === 1 ? { model: named[0].id } : {}) });
  } catch (error) {
    store.say(error.message, "error");
  }
}

async function copied(id, how, what) {
  const found = await details(id);
  if (found) await copy(how(found.request, found), what);
}

const HOWS = {
  command: ["Command", (request, { model }) => asCommand(request, model)],
  Python: ["Python", (request, { model }) => asPython(request, model)],
  curl: ["curl", (request) => asCurl(request, location.origin, store.server?.needs_key)],
};

/** The row of things to do with a finished picture. */
export function actions(id, { isWhole = false } = {}) {
  return html`
    <div class="actions" role="group" aria-label="With this picture">
      <button type="button" @click=${() => reuse(id)}>${icon("reuse")} Reuse all</button>
      <button type="button" @click=${() => explain(id)}>${icon("explain")} Explain</button>
      <button type="button" @click=${async () => {
        const found = await details(id);
        if (found) store.fill("form", { seed: found.seed, isSeedKept: true });
        if (found) store.say(`Seed ${found.seed} is kept`);
      }}>${icon("locked")} Reuse seed</button>
      <button type="button" @click=${() => edit(id)}>${icon("edit")} Edit</button>
      <a class="button" href="/api/v1/images/${id}/file?download=1" download>${icon("download")} Download</a>
      <span class="copies" role="group" aria-label="Copy as">
        <span aria-hidden="true">${icon("copy")}</span>
        ${Object.entries(HOWS).map(([name, [what, how]]) => html`<button type="button" aria-label="Copy as ${name}" @click=${() => copied(id, how, what)}>${name}</button>`)}
      </span>
      ${isWhole ? nothing : html`<button type="button" class="quiet" @click=${() => document.querySelector("mz-picture").open(id)}>Details</button>`}
    </div>
  `;
}

/** The dialog that shows one picture with its parameters; `beside` are the ids that arrow keys lead to. */
export class Picture extends View {
  static properties = { found: { state: true }, isSure: { state: true } };

  constructor() {
    super();
    this.found = null;
    this.beside = [];
    this.isSure = false;
  }

  /** Show a picture; `beside` is the list that it stands in. */
  async open(id, beside = this.beside) {
    this.beside = beside;
    this.isSure = false;
    const found = await details(id);
    if (!found) return;
    this.found = found;
    await this.updateComplete;
    const dialog = this.querySelector("dialog");
    if (!dialog.open) dialog.showModal();
  }

  close() {
    this.querySelector("dialog").close();
  }

  next(by) {
    const id = this.beside[this.beside.indexOf(this.found.id) + by];
    if (id) this.open(id);
  }

  keys(event) {
    if (event.target.matches("input, textarea")) return;
    if (event.key === "ArrowLeft") this.next(-1);
    if (event.key === "ArrowRight") this.next(1);
  }

  async remove() {
    if (!this.isSure) {
      this.isSure = true;
      return;
    }
    const { id } = this.found;
    try {
      await api.remove(id);
      this.close();
      store.dispatchEvent(new CustomEvent("removed", { detail: id }));
      store.say("Deleted");
    } catch (error) {
      store.say(error.message, "error");
    }
  }

  render() {
    const one = this.found;
    if (!one) return html`<dialog></dialog>`;
    const place = this.beside.indexOf(one.id);
    const asked = { ...one.request, model: one.model };
    return html`
      <dialog class="picture" aria-label="Picture" @keydown=${this.keys} @click=${(event) => event.target.localName === "dialog" && this.close()}>
        <div class="sheet">
          <div class="print"><img class=${Math.max(one.width, one.height) <= 256 ? "is-crisp" : ""} src=${one.url} alt=${one.prompt || "picture"} /></div>
          <div class="facts">
            <div class="row">
              ${place >= 0 ? html`${tool("left", "Newer picture", () => this.next(-1), { isDisabled: place <= 0 })} ${tool("right", "Older picture", () => this.next(1), { isDisabled: place >= this.beside.length - 1 })}` : nothing}
              <span class="grow"></span>
              ${tool("clear", "Close", () => this.close())}
            </div>
            <p class="words">${one.prompt || html`<i>no prompt</i>`}</p>
            ${one.negative ? html`<p class="without"><b>without</b> ${one.negative}</p>` : nothing}
            <dl>
              ${SHOWN.filter((key) => asked[key] !== undefined && asked[key] !== null).map((key) => html`<div><dt>${key}</dt><dd>${typeof asked[key] === "number" && key !== "seed" ? figure(asked[key]) : asked[key]}</dd></div>`)}
              <div><dt>size</dt><dd>${one.width} × ${one.height}</dd></div>
              <div><dt>made</dt><dd>${new Date(1000 * one.created).toLocaleString()}</dd></div>
            </dl>
            ${actions(one.id, { isWhole: true })}
            <details><summary>Everything that the file tells</summary><pre tabindex="0">${JSON.stringify(one.record ?? one.request, null, 1)}</pre></details>
            <button type="button" class="quiet is-danger" @click=${this.remove}>${icon("trash")} ${this.isSure ? "Delete for good" : "Delete"}</button>
          </div>
        </div>
      </dialog>
    `;
  }
}

customElements.define("mz-picture", Picture);
