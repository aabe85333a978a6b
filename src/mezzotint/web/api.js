/** The native API, one function for one thing that the page asks. See docs/reference/http.md. */

import { EventReader } from "./events.js";

const ROOT = "/api/v1";

/** What the server refused, in its own words. */
export class ApiError extends Error {
  constructor(status, problem, retryAfter) {
    super(problem.detail ?? `the server answered ${status}`);
    this.status = status;
    this.code = problem.code ?? "failed";
    this.retryAfter = retryAfter;
  }
}

/** Called when the server asks for a key. */
export const needsKey = { call: () => {} };

async function send(method, path, { body, type, headers = {}, signal } = {}) {
  const answer = await fetch(ROOT + path, {
    method,
    signal,
    headers: { ...(body === undefined ? {} : { "Content-Type": type ?? "application/json" }), ...headers },
    body: body === undefined || type ? body : JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  if (answer.status === 401) needsKey.call();
  throw new ApiError(answer.status, problem, Number(answer.headers.get("Retry-After")) || null);
}

const json = async (...given) => (await send(...given)).json();
const query = (fields) => {
  const given = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
};

export const server = () => json("GET", "/server");
export const schema = () => json("GET", "/schema");
export const samplers = () => json("GET", "/samplers");
export const signIn = (key) => send("POST", "/session", { body: { key } });
export const tokens = (text, signal) => json("POST", "/tokens", { body: { text }, signal });
export const estimate = (requests, how) => json("POST", "/estimate", { body: { requests, ...how } });
export const job = (id) => json("GET", `/jobs/${id}`);
export const story = (id) => json("GET", `/jobs/${id}/story`);
export const cancel = (id) => json("DELETE", `/jobs/${id}`);
export const images = (fields, signal) => json("GET", `/images${query(fields)}`, { signal });
export const image = (id) => json("GET", `/images/${id}`);
export const remove = (id) => send("DELETE", `/images/${id}`);
export const upload = (blob) => json("POST", "/uploads", { body: blob, type: blob.type || "image/png" });
export const inspect = (blob) => json("POST", "/inspect", { body: blob, type: blob.type || "image/png" });
export const models = () => json("GET", "/models");
export const model = (id) => json("GET", `/models/${id}`);
export const load = (id) => json("POST", `/models/${id}/load`);

/** Queue requests as one job. The same key twice is the same job, so a repeated call after a lost answer is safe. */
export const start = (requests, key, how) =>
  json("POST", "/jobs", { body: { requests, preview: true, ...how }, headers: { "Idempotency-Key": key } });

/**
 * The events of a stream, from the one after `last` on. Ends with the stream; a 204 (nothing more) ends it at once.
 * Not EventSource: that one cannot say after a reload where it had been.
 */
export async function* events(path, last, signal) {
  const headers = { Accept: "text/event-stream", ...(last === null ? {} : { "Last-Event-ID": String(last) }) };
  const answer = await send("GET", path, { headers, signal });
  if (!answer.body || answer.status === 204) return;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) yield* parser.feed(part.value);
  } finally {
    reader.cancel().catch(() => {});
  }
}
