/** The page: its head, its six views, what may be dropped on it, and what it says. */

import "./compare.js";
import "./create.js";
import "./edit.js";
import "./explain.js";
import "./gallery.js";
import "./models.js";
import "./picture.js";
import { store } from "./store.js";
import { View, go, icon, tool } from "./ui.js";
import { html, keyed, nothing } from "./vendor/lit.js";

const VIEWS = { create: "Create", edit: "Edit", gallery: "Gallery", compare: "Compare", explain: "Explain", models: "Models" };
const THEMES = { system: "light or dark as the system", light: "light", dark: "dark" };
const THEME_ICONS = { system: "system", light: "sun", dark: "moon" };

const BODIES = {
  create: () => html`<mz-create class="view"></mz-create>`,
  edit: () => html`<mz-edit class="view"></mz-edit>`,
  gallery: () => html`<mz-gallery class="view"></mz-gallery>`,
  compare: () => html`<mz-compare class="view"></mz-compare>`,
  explain: () => html`<mz-explain class="view"></mz-explain>`,
  models: () => html`<mz-models class="view"></mz-models>`,
};

class App extends View {
  static properties = { view: { state: true }, isDropping: { state: true } };

  constructor() {
    super();
    this.isDropping = false;
    this.view = this.asked;
    addEventListener("hashchange", () => {
      this.view = this.asked;
      for (const dialog of this.querySelectorAll("dialog[open]:not(.ask)")) dialog.close(); // the way back leads out of it
      this.updateComplete.then(() => this.querySelector("main h1")?.focus({ preventScroll: true }));
      scrollTo(0, 0);
    });
    for (const name of ["dragenter", "dragover"]) {
      addEventListener(name, (event) => {
        if (!event.dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        this.isDropping = true;
      });
    }
    addEventListener("dragleave", (event) => event.relatedTarget || (this.isDropping = false));
    addEventListener("drop", (event) => this.drop(event));
    addEventListener("paste", (event) => this.drop(event));
    store.begin();
  }

  get asked() {
    const name = location.hash.slice(1);
    return name in VIEWS ? name : "create";
  }

  /** A picture from outside: in Edit it is opened, anywhere else it is asked how it was made. */
  drop(event) {
    this.isDropping = false;
    const file = [...((event.dataTransfer ?? event.clipboardData)?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    if (this.view === "edit") this.querySelector("mz-edit").open(file);
    else this.querySelector("mz-foreign").read(file);
  }

  updated() {
    document.documentElement.dataset.theme = store.theme;
    document.title = this.title_();
  }

  title_() {
    const job = Object.keys(VIEWS).map((place) => store.jobs[place]).find((one) => one?.state === "running");
    const done = job?.progress ? `${Math.round(100 * job.progress.fraction)} % · ` : "";
    return `${done}${VIEWS[this.view]} – mezzotint`;
  }

  render() {
    return html`
      <header>
        <a class="skip" href="#${this.view}" @click=${(event) => { event.preventDefault(); this.querySelector("main h1").focus(); }}>To the content</a>
        <span class="mark" aria-hidden="true"></span>
        <span class="name">mezzotint</span>
        <nav aria-label="Views">
          ${Object.entries(VIEWS).map(([view, name]) => html`<a href="#${view}" aria-current=${view === this.view ? "page" : nothing}>${icon(view)}<span>${name}</span></a>`)}
        </nav>
        ${this.state()}
        ${tool(THEME_ICONS[store.theme], `Colours: ${THEMES[store.theme]}`, () => store.set({ theme: Object.keys(THEMES)[(Object.keys(THEMES).indexOf(store.theme) + 1) % 3] }))}
      </header>
      <main>${keyed(this.view, BODIES[this.view]())}</main>
      <mz-picture></mz-picture>
      <mz-foreign></mz-foreign>
      ${this.isDropping ? html`<div class="drop"><p>${this.view === "edit" ? "Drop the picture to edit it" : "Drop the picture to read how it was made"}</p></div>` : nothing}
      <div class="messages" role="status" aria-live="polite">
        ${store.messages.map((one) => html`<p class=${one.kind === "error" ? "is-error" : ""}><span>${one.text}</span>${tool("clear", "Dismiss", () => store.hush(one))}</p>`)}
      </div>
      ${store.asksKey ? html`<mz-key></mz-key>` : nothing}
    `;
  }

  state() {
    const { server, isOnline } = store;
    const waiting = server?.queue.waiting ?? 0;
    const word = !isOnline ? "connection lost" : !server ? "connecting" : server.state === "ready" ? server.model?.name : server.state;
    const kind = !isOnline || server?.state === "failed" ? "is-bad" : server?.state === "ready" ? (server.queue.running ? "is-busy" : "is-on") : "is-busy";
    return html`<a class="state ${kind}" href="#models" title=${server?.detail ?? "the model that makes the pictures"} aria-label="Model: ${word}">
      <i></i><span>${word}</span>${waiting ? html`<small>${waiting} waiting</small>` : nothing}
    </a>`;
  }
}

customElements.define("mz-app", App);

/** Asks for the key of a server that is open to others. */
class Key extends View {
  static properties = { wrong: { state: true } };

  firstUpdated() {
    this.querySelector("dialog").showModal();
  }

  async send(event) {
    event.preventDefault();
    try {
      await store.signIn(this.querySelector("#key").value);
      go("create");
    } catch (error) {
      this.wrong = error.message;
    }
  }

  render() {
    return html`<dialog class="ask" aria-label="Key" @cancel=${(event) => event.preventDefault()} @close=${(event) => event.target.showModal()}>
      <form @submit=${this.send}>
        <h2>This server asks for its key</h2>
        <input type="text" autocomplete="username" value="mezzotint" hidden />
        <div class="field"><label for="key">Key</label><input id="key" type="password" autocomplete="current-password" required /></div>
        ${this.wrong ? html`<p class="note is-error" role="alert">${this.wrong}</p>` : nothing}
        <button type="submit" class="primary">Go on</button>
      </form>
    </dialog>`;
  }
}

customElements.define("mz-key", Key);
