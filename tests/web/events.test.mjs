/** Streams taken apart wherever they are cut, and jobs that follow from events alone. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { EventReader, MAX_FRAMES, after, fraction, started } from "../../src/mezzotint/web/events.js";

const STREAM = ': hello\n\nid: 1\nevent: queued\ndata: {"position": 2}\n\nid: 2\r\nevent: started\r\ndata: {"total":\r\ndata: 3}\r\n\r\n: keep-alive\n\nevent: server\ndata: {"é": "\\n"}\n\n';

test("events are the same however the stream is cut", () => {
  const whole = new EventReader().feed(STREAM);
  assert.deepEqual(whole, [
    { id: "1", event: "queued", data: { position: 2 } },
    { id: "2", event: "started", data: { total: 3 } },
    { id: null, event: "server", data: { é: "\n" } },
  ]);
  for (let cut = 0; cut <= STREAM.length; cut++) {
    const reader = new EventReader();
    assert.deepEqual([...reader.feed(STREAM.slice(0, cut)), ...reader.feed(STREAM.slice(cut))], whole, `cut at ${cut}`);
  }
  const slow = new EventReader();
  assert.deepEqual([...STREAM].flatMap((letter) => slow.feed(letter)), whole);
});

const JOB = started({ id: "j_1", state: "queued", requests: [{ prompt: "a" }], total: 2, images: [], position: 1 });
const preview = (number, step) => ({ id: String(10 * number + step), event: "preview", data: { number, step, data: `data:${number}-${step}`, width: 8, height: 8 } });

test("a story comes after the picture", () => {
  const story = { url: "/api/v1/jobs/j_1/story", bytes: 12 };
  const told = after(JOB, { id: "8", event: "telling", data: {} });
  assert.deepEqual([JOB.isTelling, told.isTelling, told.story], [false, true, null]);
  assert.deepEqual(after(told, { id: "9", event: "story", data: story }).story, story);
});

test("a job runs from queued to done", () => {
  const events = [
    { id: "1", event: "queued", data: { position: 0, seconds_left: 4 } },
    { id: "2", event: "started", data: { total: 2 } },
    { id: "3", event: "progress", data: { number: 0, step: 1, steps: 2, fraction: 0.25, seconds_left: 3 } },
    preview(0, 1),
    { id: "5", event: "image", data: { number: 1, id: "p_2" } },
    { id: "6", event: "image", data: { number: 0, id: "p_1" } },
    { id: "7", event: "warning", data: { detail: "w" } },
    { id: "8", event: "warning", data: { detail: "w" } },
    { id: "9", event: "done", data: {} },
  ];
  const job = events.reduce(after, JOB);
  assert.equal(job.state, "done");
  assert.deepEqual(job.images.map((one) => one.id), ["p_1", "p_2"], "in the order of the job");
  assert.deepEqual(job.warnings, ["w"]);
  assert.equal(job.lastEventId, "9");
  assert.equal(fraction(job), 1);
  assert.equal(JOB.state, "queued", "the job before is left as it was");
});

test("events that come twice change nothing", () => {
  const once = [preview(0, 1), preview(0, 2), preview(1, 1)].reduce(after, JOB);
  const twice = [preview(0, 2), preview(0, 1)].reduce(after, once);
  assert.deepEqual(twice.previews, once.previews);
  assert.deepEqual(once.previews[0].map((one) => one.step), [1, 2]);
});

test("a film strip stays short, spreads over all steps and keeps the latest", () => {
  let job = JOB;
  for (let step = 1; step <= 1000; step++) {
    job = after(job, preview(0, step));
    assert.ok(job.previews[0].length <= MAX_FRAMES);
    assert.equal(job.previews[0].at(-1).step, step);
  }
  assert.equal(job.previews[0][0].step, 1);
  const gaps = job.previews[0].slice(1, -1).map((one, i) => one.step - job.previews[0][i].step);
  assert.ok(Math.max(...gaps) <= 64, String(gaps));
});

test("a failure keeps what the server said", () => {
  const job = after(JOB, { id: "4", event: "failed", data: { code: "failed", detail: "no room", retryable: true } });
  assert.deepEqual([job.state, job.error.detail], ["failed", "no room"]);
});
