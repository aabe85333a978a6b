/** Server-sent events and what they make of a job. No DOM. */

/** Takes a stream apart: `feed(text)` returns the events that are complete, `{id, event, data}` with data parsed. */
export class EventReader {
  #rest = "";
  #event = {};

  feed(text) {
    const found = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.#event.data !== undefined) {
          found.push({ id: this.#event.id ?? null, event: this.#event.event ?? "message", data: JSON.parse(this.#event.data) });
        }
        this.#event = {};
        continue;
      }
      if (line.startsWith(":")) continue;
      const colon = line.indexOf(":");
      const key = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (key === "data") this.#event.data = this.#event.data === undefined ? value : `${this.#event.data}\n${value}`;
      else if (key === "id" || key === "event") this.#event[key] = value;
    }
    return found;
  }
}

/** Pictures of a film strip that are kept. */
export const MAX_FRAMES = 48;

/** The frames of a strip, thinned evenly over the steps where there are too many; the latest always stays. */
function thinned(frames) {
  const last = frames.at(-1).step;
  const stride = 2 ** Math.max(0, Math.ceil(Math.log2(last / (MAX_FRAMES - 1))));
  const place = (one) => Math.floor((one.step - 1) / stride);
  return frames.filter((one, i) => i === frames.length - 1 || i === 0 || place(one) !== place(frames[i - 1]));
}

export const ENDED = new Set(["done", "failed", "cancelled"]);

/** What the page keeps of a job, from the server's answer to `POST /api/v1/jobs`. */
export function started(job) {
  return {
    id: job.id, state: job.state, requests: job.requests, total: job.total, position: job.position ?? 0,
    secondsLeft: job.seconds_left ?? null, images: job.images ?? [], progress: job.progress ?? null, previews: {},
    story: job.story ?? null, isTelling: false, warnings: job.warnings ?? [], error: job.error ?? null, lastEventId: null,
  };
}

/** The job after an event; the job before is left as it was. */
export function after(job, { id, event, data }) {
  const next = { ...job, lastEventId: id ?? job.lastEventId };
  if (event === "queued") Object.assign(next, { state: "queued", position: data.position, secondsLeft: data.seconds_left });
  else if (event === "started") Object.assign(next, { state: "running", total: data.total });
  else if (event === "progress") Object.assign(next, { state: "running", progress: data, secondsLeft: data.seconds_left });
  else if (event === "preview") {
    const strip = (job.previews[data.number] ?? []).filter((one) => one.step !== data.step);
    const frames = [...strip, { step: data.step, data: data.data, width: data.width, height: data.height }];
    frames.sort((a, b) => a.step - b.step);
    next.previews = { ...job.previews, [data.number]: thinned(frames) };
  } else if (event === "image") {
    next.images = [...job.images.filter((one) => one.number !== data.number), data].sort((a, b) => a.number - b.number);
  } else if (event === "telling") next.isTelling = true;
  else if (event === "story") next.story = data;
  else if (event === "warning") {
    if (!job.warnings.includes(data.detail)) next.warnings = [...job.warnings, data.detail];
  } else if (ENDED.has(event)) {
    Object.assign(next, { state: event, secondsLeft: null });
    if (event === "failed") next.error = { code: data.code, detail: data.detail, retryable: data.retryable };
  }
  return next;
}

/** How much of a job is done, 0 … 1. */
export function fraction(job) {
  if (job.state === "done") return 1;
  return job.progress ? Math.min(1, job.progress.fraction) : 0;
}
