/** Forms and requests, and a request as text for other places. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { asCommand, asCurl, asGridCommand, asPython, shell } from "../../src/mezzotint/web/commands.js";
import { axis } from "../../src/mezzotint/web/axes.js";
import { crc, withTexts, chunks } from "../../src/mezzotint/web/png.js";
import { blank, control, duration, fromRequest, sizes, toRequest } from "../../src/mezzotint/web/request.js";

const REQUEST = {
  prompt: "a 'red' fox", negative: "rain", width: 96, height: 64, count: 2, seed: 5, steps: 4, sampler: "euler_ancestral",
  guidance: 2.5, paste: false, crop: [0, 8], options: { eta: 0.5 },
};

test("a form that is not touched asks for nothing but the prompt", () => {
  assert.deepEqual(toRequest({ ...blank(), prompt: "a fox" }), { prompt: "a fox" });
});

test("every parameter of a request comes back from the form", () => {
  assert.deepEqual(toRequest(fromRequest(REQUEST)), REQUEST);
});

test("a seed goes along only when it is kept", () => {
  const form = { ...fromRequest(REQUEST), isSeedKept: false };
  assert.equal(toRequest(form).seed, undefined);
});

test("pictures and server paths are not for the form", () => {
  const form = fromRequest({ ...REQUEST, image: { upload: "u_1" }, refiner: "/etc/passwd" });
  assert.deepEqual(toRequest(form), REQUEST);
});

test("sizes have the model's area in whole steps", () => {
  for (const side of [64, 512, 768, 1024]) {
    for (const { width, height } of sizes(side, side)) {
      assert.equal(width % 8 + height % 8, 0);
      assert.ok(Math.abs(Math.log((width * height) / side ** 2)) < 0.2, `${width} x ${height}`);
    }
  }
  assert.deepEqual(sizes(512, 512)[0], { name: "1:1", width: 512, height: 512 });
});

test("times are told as coarsely as they are known", () => {
  assert.deepEqual([0.4, 8.2, 89, 130, 7000].map(duration), ["under a second", "8 s", "89 s", "2 min", "1 h 57 min"]);
  assert.equal(duration(null), "");
});

test("a schema says which control a field has", () => {
  assert.equal(control({ anyOf: [{ type: "number", minimum: 0 }, { type: "null" }], default: null }).kind, "number");
  assert.equal(control({ type: "boolean", default: true }).kind, "switch");
  assert.deepEqual(control({ enum: ["a", "b"], type: "string" }).choices, ["a", "b"]);
  assert.equal(control({ anyOf: [{ type: "array", maxItems: 2 }, { type: "null" }] }).kind, "pair");
  assert.equal(control({ $ref: "#/$defs/ImageRef" }).kind, null);
});

test("a command is quoted for a shell and names pictures as files", () => {
  assert.equal(
    asCommand(REQUEST, "my model"),
    "mezzotint generate 'a '\\''red'\\'' fox' -m 'my model' --negative rain --width 96 --height 64 --count 2 --seed 5 --steps 4 --sampler euler_ancestral --guidance 2.5 --no-paste --crop 0 8 --option eta=0.5",
  );
  assert.equal(
    asCommand({ prompt: "a fox", image: { upload: "u_1" }, mask: { upload: "u_2" }, strength: 0.5 }, "icons"),
    "mezzotint edit image.png 'a fox' -m icons --mask mask.png --strength 0.5",
  );
  assert.equal(shell(""), "''");
});

test("a grid's command has both axes", () => {
  const line = asGridCommand({ prompt: "a red fox", seed: 1 }, axis("steps", "2-4"), axis("prompt", 'red, "dark, red"'), "icons");
  assert.equal(line, `mezzotint grid 'a red fox' -m icons --seed 1 --x steps=2,3,4 --y 'prompt=red,"dark, red"'`);
});

test("Python has Python's words", () => {
  const text = asPython({ prompt: 'say "x"', paste: false, crop: [0, 8], options: { lower_order_final: true } }, "icons");
  assert.match(text, /prompt="say \\"x\\"",\n {4}paste=False,\n {4}crop=\(0, 8\),\n {4}options=\{"lower_order_final": True\},/);
});

test("curl sends what the page would send", () => {
  const line = asCurl({ prompt: "it's" }, "http://127.0.0.1:7860", true);
  assert.ok(line.includes(`'{"request":{"prompt":"it'\\''s"}}'`));
  assert.ok(line.includes("Authorization: Bearer $MEZZOTINT_KEY"));
});

test("texts are put into a PNG as whole chunks", () => {
  const tiny = Uint8Array.from(atob("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="), (c) => c.charCodeAt(0));
  const told = withTexts(tiny, { parameters: "é, Steps: 1" });
  assert.deepEqual(chunks(told).map((one) => one.type), ["IHDR", "iTXt", "IDAT", "IEND"]);
  assert.equal(crc(new TextEncoder().encode("123456789")), 0xcbf43926);
  assert.throws(() => chunks(new Uint8Array(20)), /not a PNG/);
});
