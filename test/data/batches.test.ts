import assert from "node:assert/strict";
import { test } from "node:test";
import { shuffledBatches } from "vitrine/data/batches";

const items = Array.from({ length: 10 }, (_, i) => i);
const sorted = (batches: number[][]): number[] => batches.flat().sort((a, b) => a - b);

test("shuffledBatches() gives every item once an epoch, the last batch smaller", () => {
  const batches = [...shuffledBatches(items, 4, { seed: 1 })];
  assert.deepEqual(
    batches.map((batch) => batch.length),
    [4, 4, 2],
  );
  assert.deepEqual(sorted(batches), items);
  assert.notDeepEqual(batches.flat(), items);
});

test("shuffledBatches() repeats with its seed, and each epoch has an order of its own", () => {
  const run = (seed: number) => [...shuffledBatches(items, 5, { seed, epochs: 3 })];
  assert.deepEqual(run(1), run(1));
  assert.notDeepEqual(run(1), run(2));
  const epochs = [0, 1, 2].map((epoch) => run(1).slice(2 * epoch, 2 * epoch + 2));
  for (const epoch of epochs) assert.deepEqual(sorted(epoch), items);
  assert.equal(new Set(epochs.map((epoch) => epoch.flat().join())).size, 3);
});

test("shuffledBatches() with dropLast gives full batches only, and in time every item", () => {
  const batches = [...shuffledBatches(items, 4, { seed: 0, epochs: 20, dropLast: true })];
  assert.equal(batches.length, 40);
  assert.ok(batches.every((batch) => batch.length === 4));
  assert.equal(new Set(batches.flat()).size, 10);
});

test("shuffledBatches() goes on for ever with epochs: Infinity", () => {
  const batches = shuffledBatches(items, 10, { seed: 0, epochs: Infinity });
  for (let i = 0; i < 100; i++) assert.equal(batches.next().value?.length, 10);
});

test("shuffledBatches() names every misfit", () => {
  const first = (...args: Parameters<typeof shuffledBatches>) => shuffledBatches(...args).next();
  assert.throws(() => first([], 0, { seed: 0, epochs: 1.5 }), /batchSize is 0.*epochs is 1\.5.*items is empty/);
  assert.throws(() => first(items, 11, { seed: 0, dropLast: true }), /10 items do not fill one batch of 11/);
});
