/** Axes read as the command line reads them; every cell is a whole request. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { MAX_CELLS, axis, grid, items, label, matrix } from "../../src/mezzotint/web/axes.js";

const seed = () => 7;

test("a list has quotes around what has a comma", () => {
  assert.deepEqual(items('red, "round, red" ,,blue'), ["red", "round, red", "blue"]);
  assert.deepEqual(items('"say ""a"""'), ['say "a"']);
});

test("numbers may be ranges, words may not", () => {
  assert.deepEqual(axis("steps", "1, 5-10 (+2)").values, [1, 5, 7, 9]);
  assert.deepEqual(axis("steps", "1-10 [4]").values, [1, 4, 7, 10]);
  assert.deepEqual(axis("guidance", "0-1 [5]").values, [0, 0.25, 0.5, 0.75, 1]);
  assert.deepEqual(axis("guidance", "1-2 (+0.1)").texts.slice(0, 4), ["1", "1.1", "1.2", "1.3"]);
  assert.deepEqual(axis("prompt", "1-3").values, ["1-3"]);
  assert.deepEqual(axis("size", "64x96, 96x64").values, [[64, 96], [96, 64]]);
  assert.deepEqual(axis("eta", "0, 0.5", true).values, [0, 0.5]);
  assert.deepEqual(axis("solver_type", "heun, midpoint", true).values, ["heun", "midpoint"]);
});

test("what is wrong is said in a sentence", () => {
  assert.throws(() => axis("steps", "  "), /steps: give some values/);
  assert.throws(() => axis("steps", "many"), /many: must be a number/);
  assert.throws(() => axis("steps", "1-9 (-1)"), /never reaches its end/);
  assert.throws(() => axis("size", "64"), /64: must be two numbers/);
  assert.throws(() => grid({ prompt: "a" }, null, null), /needs an axis/);
  assert.throws(() => grid({ prompt: "a" }, axis("steps", "1"), axis("steps", "2")), /both axes vary steps/);
  assert.throws(() => grid({ prompt: "a fox" }, axis("prompt", "red, blue"), null), /“red” stands neither/);
  assert.throws(() => grid({ prompt: "a" }, axis("seed", `1-${MAX_CELLS}`), axis("steps", "1,2")), /at most/);
  assert.throws(() => matrix({ prompt: "a fox" }), /needs a \|/);
});

test("cells come row by row, with one seed, and leave the base as it was", () => {
  const base = { prompt: "a red fox", negative: "red grass", count: 4, options: { s_noise: 1 } };
  const kept = structuredClone(base);
  const found = grid(base, axis("prompt", "red, blue"), axis("eta", "0, 1", true), seed);
  assert.deepEqual(base, kept);
  assert.deepEqual(found.requests.map((one) => [one.prompt, one.negative, one.options.eta, one.options.s_noise, one.seed, one.count]), [
    ["a red fox", "red grass", 0, 1, 7, undefined], ["a blue fox", "blue grass", 0, 1, 7, undefined],
    ["a red fox", "red grass", 1, 1, 7, undefined], ["a blue fox", "blue grass", 1, 1, 7, undefined],
  ]);
  assert.equal(label(found.x, 1), "blue");
  assert.equal(label(axis("steps", "4"), 0), "steps 4");
});

test("a prompt matrix is every subset, once", () => {
  const found = matrix({ prompt: "a fox | in snow | at night | asleep" }, seed);
  assert.equal(found.requests.length, 8);
  assert.equal(new Set(found.requests.map((one) => one.prompt)).size, 8);
  assert.equal(found.requests[0].prompt, "a fox");
  assert.equal(found.requests.at(-1).prompt, "a fox, in snow, at night, asleep");
  assert.equal(found.columns * found.rows, 8);
});
