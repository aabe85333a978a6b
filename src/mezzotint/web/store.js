/** What every view knows: the server's state, the forms, the jobs that this tab started, and what to tell the person. */

import * as api from "./api.js";
import { ENDED, after, started } from "./events.js";
import { blank, fromRequest } from "./request.js";

const FORMS = ["form", "editForm"];
const PLACES = ["create", "edit", "compare", "explain"];
const SAVED = "mezzotint";
const NEW_JOB_TRIES = 5;

function read(storage, key) {
  try {
    return JSON.parse(storage.getItem(`${SAVED}.${key}`));
  } catch {
    return null;
  }
}

function write(storage, key, value) {
  try {
    storage.setItem(`${SAVED}.${key}`, JSON.stringify(value));
    return true;
  } catch {
    return false; // full or forbidden: the page works without
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

class Store extends EventTarget {
  server = null;
  isOnline = true;
  samplers = { samplers: [], spacings: [] };
  schema = { properties: {} };
  form = { ...blank(), ...read(localStorage, "form") };
  editForm = { ...blank(), ...read(localStorage, "editForm") };
  compare = { mode: "grid", x: { field: "steps", text: "4, 8, 16" }, y: { field: "", text: "" }, ...read(localStorage, "compare") };
  theme = read(localStorage, "theme") ?? "system";
  jobs = Object.fromEntries(PLACES.map((place) => [place, read(sessionStorage, `job.${place}`)]));
  edited = null; // what Edit is to open: {id, mask}
  reference = null; // the picture to vary, for models that need one: {id, url}
  messages = [];
  asksKey = false;
  #starting = new Set();
  #following = {};
  #saving = {};

  /** Change something and tell every view. */
  set(patch) {
    Object.assign(this, patch);
    for (const key of [...FORMS, "theme", "compare"]) if (key in patch) write(localStorage, key, patch[key]);
    this.dispatchEvent(new Event("change"));
  }

  /** Fill in some of a form. */
  fill(name, patch) {
    this.set({ [name]: { ...this[name], ...patch } });
  }

  /** A form with every parameter of a request, as it was. */
  reuse(request, name = "form") {
    this.set({ [name]: fromRequest(request) });
  }

  /** Show a line for a while; errors stay longer. */
  say(text, kind = "note") {
    const message = { text, kind, id: Symbol("message") };
    this.set({ messages: [...this.messages.slice(-3), message] });
    setTimeout(() => this.hush(message), kind === "error" ? 12000 : 4000);
  }

  hush(message) {
    this.set({ messages: this.messages.filter((one) => one !== message) });
  }

  /** Begin: read what does not change, follow what does, take up the jobs that a reload interrupted. */
  async begin() {
    api.needsKey.call = () => this.set({ asksKey: true });
    this.#listen();
    for (const place of PLACES) if (this.jobs[place] && !ENDED.has(this.jobs[place].state)) this.#follow(place);
    await this.#names();
  }

  async #names() {
    try {
      const [samplers, schema] = await Promise.all([api.samplers(), api.schema()]);
      this.set({ samplers, schema });
    } catch (error) {
      if (error.status !== 401) setTimeout(() => this.#names(), 3000);
    }
  }

  async #listen() {
    for (;;) {
      try {
        for await (const { data } of api.events("/events", null)) this.set({ server: data, isOnline: true });
      } catch (error) {
        if (error.status === 401) return; // taken up again by signIn
      }
      this.set({ isOnline: false });
      await pause(1500);
      try {
        this.set({ server: await api.server(), isOnline: true });
      } catch {
        // still away
      }
    }
  }

  /** Exchange the key for a cookie. Throws what the server says. */
  async signIn(key) {
    await api.signIn(key);
    this.set({ asksKey: false });
    this.#listen();
    await this.#names();
  }

  isBusy(place) {
    const job = this.jobs[place];
    return Boolean(job) && !ENDED.has(job.state);
  }

  /**
   * Start a job in a place; `how` are fields of the job besides its requests, `kept` is what the page keeps with it.
   * A full queue is waited for, as long as the server says; while the answer is awaited, another press starts nothing.
   * Throws what the server says.
   */
  async run(place, requests, how = {}, kept = {}) {
    if (this.#starting.has(place)) return;
    this.#starting.add(place);
    try {
      const job = started(await this.#start(requests, how));
      this.#put(place, { ...job, ...kept, requests }); // as asked: the form's own words
      this.#follow(place);
    } finally {
      this.#starting.delete(place);
    }
  }

  async #start(requests, how) {
    const key = crypto.randomUUID?.() ?? String(Math.random()).slice(2);
    for (let attempt = 1; ; attempt++) {
      try {
        return await api.start(requests, key, how);
      } catch (error) {
        const isFull = error.status === 429 || error.status === 503;
        if (!isFull || attempt === NEW_JOB_TRIES) throw error;
        this.say(`${error.message} Trying again in ${error.retryAfter ?? 2} s.`);
        await pause(1000 * (error.retryAfter ?? 2));
      }
    }
  }

  /** Stop the job of a place; what is finished stays. */
  async stop(place) {
    const job = this.jobs[place];
    if (!job) return;
    try {
      const now = await api.cancel(job.id);
      if (ENDED.has(now.state)) this.#put(place, { ...this.jobs[place], state: now.state });
    } catch (error) {
      this.say(error.message, "error");
    }
  }

  async #follow(place) {
    this.#following[place]?.abort();
    const following = (this.#following[place] = new AbortController());
    const { id } = this.jobs[place];
    const mine = () => !following.signal.aborted && this.jobs[place]?.id === id;
    for (let wait = 300; mine() && this.isBusy(place); wait = Math.min(5000, wait * 2)) {
      try {
        const path = `/jobs/${id}/events`;
        for await (const event of api.events(path, this.jobs[place].lastEventId, following.signal)) {
          if (!mine()) return;
          this.#put(place, after(this.jobs[place], event));
          wait = 300;
        }
        if (mine() && this.isBusy(place)) {
          const now = await api.job(id);
          if (ENDED.has(now.state)) {
            this.#put(place, { ...this.jobs[place], state: now.state, images: now.images, story: now.story, error: now.error });
          }
        }
      } catch (error) {
        if (!mine()) return;
        if (error.status === 404) {
          const gone = { code: "not_found", detail: "The server no longer knows this job; finished pictures are in the gallery.", retryable: true };
          this.#put(place, { ...this.jobs[place], state: "failed", error: gone });
          return;
        }
      }
      if (mine() && this.isBusy(place)) await pause(wait);
    }
  }

  #put(place, job) {
    this.set({ jobs: { ...this.jobs, [place]: job } });
    // now and then: a fast model sends hundreds of events a second, and leaving the page saves, too
    this.#saving[place] ??= setTimeout(() => {
      this.#saving[place] = null;
      this.save(place);
    }, 250);
  }

  /** Keep the job over a reload; without its film strip where there is no room for it. */
  save(place) {
    const job = this.jobs[place];
    if (job && !write(sessionStorage, `job.${place}`, job)) write(sessionStorage, `job.${place}`, { ...job, previews: {} });
  }
}

export const store = new Store();
addEventListener("pagehide", () => PLACES.forEach((place) => store.save(place)));

/** Renders its host again whenever the store changes. */
export class Watch {
  #host;
  #changed = () => this.#host.requestUpdate();

  constructor(host) {
    this.#host = host;
    host.addController(this);
  }

  hostConnected() {
    store.addEventListener("change", this.#changed);
  }

  hostDisconnected() {
    store.removeEventListener("change", this.#changed);
  }
}
