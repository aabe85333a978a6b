/** The mask: exact, undoable, and where the screen says it is. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { Mask, UNDO_DEPTH, View, borders, feathered } from "../../src/mezzotint/web/mask.js";

/** The rule itself, without clipping or boxes. */
function within(mask, x0, y0, x1, y1, radius) {
  return mask.data.map((_, i) => {
    const [px, py] = [(i % mask.width) + 0.5, Math.floor(i / mask.width) + 0.5];
    const length = Math.hypot(x1 - x0, y1 - y0);
    const t = length ? Math.max(0, Math.min(1, ((px - x0) * (x1 - x0) + (py - y0) * (y1 - y0)) / length ** 2)) : 0;
    return (px - x0 - t * (x1 - x0)) ** 2 + (py - y0 - t * (y1 - y0)) ** 2 <= radius ** 2 ? 255 : 0;
  });
}

test("a stroke is every pixel whose centre the brush passes over, also from outside", () => {
  for (const stroke of [[10, 12, 10, 12, 4], [3.2, 5.7, 30.1, 22.9, 6.5], [-20, -3, 60, 44, 3], [39.5, 0, 39.5, 90, 0.5], [-50, -50, -40, -40, 5]]) {
    const mask = new Mask(40, 30);
    mask.stroke(...stroke);
    assert.deepEqual(mask.data, within(mask, ...stroke), String(stroke));
  }
});

test("the smallest brush in a pixel's middle is that pixel", () => {
  const mask = new Mask(9, 9);
  mask.stroke(4.5, 4.5, 4.5, 4.5, 0.5);
  assert.deepEqual([...mask.data.keys()].filter((i) => mask.data[i]), [40]);
});

test("undo and redo go through every state, and no further", () => {
  const mask = new Mask(32, 32);
  const states = [mask.data.slice()];
  for (let i = 0; i < UNDO_DEPTH + 3; i++) {
    if (i % 7 === 5) mask.invert();
    else mask.stroke(i % 32, (3 * i) % 32, (5 * i) % 32, i % 32, 3, i % 3 ? 255 : 0);
    const before = mask.done.length;
    mask.commit();
    if (mask.done.length !== before || before === UNDO_DEPTH) states.push(mask.data.slice());
  }
  const kept = states.slice(-UNDO_DEPTH - 1);
  for (const state of kept.slice(0, -1).reverse()) {
    mask.undo();
    assert.deepEqual(mask.data, state);
  }
  mask.undo();
  assert.deepEqual(mask.data, kept[0], "nothing is left to take back");
  for (const state of kept.slice(1)) {
    mask.redo();
    assert.deepEqual(mask.data, state);
  }
  mask.undo();
  mask.fill(255);
  mask.commit();
  assert.equal(mask.undone.length, 0, "a new stroke ends what could be done again");
});

test("a stroke that changes nothing is no step", () => {
  const mask = new Mask(8, 8);
  mask.stroke(4, 4, 4, 4, 2, 0);
  mask.commit();
  assert.equal(mask.done.length, 0);
});

test("what is given up leaves the mask and its steps as they were", () => {
  const states = (giveUp, x, y) => {
    const mask = new Mask(32, 32);
    for (const left of [8, 24]) {
      mask.stroke(left, 8, left, 24, 3);
      mask.commit();
    }
    mask.undo(); // one step to take back, one to do again
    mask.stroke(x, y, x, y, 2);
    giveUp(mask);
    return [mask.data.slice(), ...["redo", "undo", "undo"].map((act) => (mask[act](), mask.data.slice()))];
  };
  const takenBack = (mask) => {
    mask.undo();
    mask.undone.pop();
  };
  const untouched = states(() => {}, -40, -40);
  // the first finger of a pinch: on bare ground, on what is marked, beside the picture
  for (const [x, y] of [[16, 16], [8, 16], [-40, -40]]) {
    assert.deepEqual(states((mask) => mask.giveUp(), x, y), untouched);
    assert.notDeepEqual(states(takenBack, x, y), untouched, "taking back loses a stroke that was meant");
  }
});

test("runs keep a mask", () => {
  const mask = new Mask(20, 10);
  mask.stroke(3, 3, 15, 8, 2.5);
  assert.deepEqual(Mask.ofRuns(20, 10, mask.runs()).data, mask.data);
  mask.invert();
  assert.deepEqual(Mask.ofRuns(20, 10, mask.runs()).data, mask.data);
  assert.ok(Mask.ofRuns(9, 9, mask.runs()).isEmpty);
});

test("pixels are grey and opaque", () => {
  const mask = new Mask(2, 1);
  mask.data[1] = 255;
  assert.deepEqual([...mask.pixels()], [0, 0, 0, 255, 255, 255, 255, 255]);
});

test("a wider mask marks the border and keeps the rest", () => {
  const mask = new Mask(4, 3);
  mask.data[5] = 255;
  const wider = mask.extended(2, 1, 8, 5);
  assert.equal(wider.count, 8 * 5 - 4 * 3 + 1);
  assert.equal(wider.data[(1 + 1) * 8 + 1 + 2], 255);
});

test("borders make whole sizes of 8 and leave an untouched side alone", () => {
  assert.deepEqual(borders(64, 64, { left: 10 }), { left: 10, top: 0, right: 6, bottom: 0 });
  assert.deepEqual(borders(60, 61, { right: 4, top: 3 }), { left: 0, top: 3, right: 4, bottom: 0 });
});

test("zoom keeps the point under the pointer, there and back", () => {
  let view = new View(1, 13, 7);
  for (const zoom of [1.25, 2, 0.5, 7.3]) {
    const before = view.toPicture(101, 53);
    view = view.zoomed(zoom, 101, 53);
    const now = view.toPicture(101, 53);
    assert.ok(Math.hypot(now[0] - before[0], now[1] - before[1]) < 1e-9);
    const [x, y] = view.toScreen(...view.toPicture(12, 34));
    assert.ok(Math.hypot(x - 12, y - 34) < 1e-9);
  }
});

test("a picture fits the window with a margin", () => {
  const view = View.fitting(100, 50, 448, 448);
  assert.deepEqual([view.zoom, view.x, view.y], [4, 24, 124]);
});

test("feathering spreads over twice the radius and not a pixel more", () => {
  const mask = new Mask(41, 1);
  mask.data[20] = 255;
  const soft = feathered(mask.data, 41, 1, 4);
  assert.equal(soft[20], 255);
  assert.ok(soft[12] === 0 || soft[12] < 40);
  assert.ok(soft[13] > 0);
  assert.equal(soft[11], 0);
  assert.deepEqual(feathered(mask.data, 41, 1, 0), mask.data);
});
