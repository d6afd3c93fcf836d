import assert from "node:assert/strict";
import { test } from "node:test";
import { schedule, type ScheduleName } from "vitrine/train/schedule";
import { oracle } from "../support/clip";
import { expectClose, messageOf } from "../support/close";

const rates = (name: ScheduleName, steps: number, warmup?: number) =>
  Array.from({ length: steps }, (_, i) => schedule(name, steps, warmup)(i));

test("schedule() cosine gives the learning rates of every run of the oracle", () => {
  for (const { learning_rates, optimizer } of oracle().cases.lora) {
    assert.equal(optimizer.schedule, "linear warmup 2 steps then cosine to 0 over 10 steps");
    expectClose(
      rates("cosine", 10, 2).map((rate) => rate * optimizer.lr),
      learning_rates,
      1e-15,
    );
  }
});

test("schedule() linear falls in a straight line after the warm-up, constant stays", () => {
  assert.deepEqual(rates("linear", 4), [1, 0.75, 0.5, 0.25]);
  assert.deepEqual(rates("linear", 6, 2), [0, 0.5, 1, 0.75, 0.5, 0.25]);
  assert.deepEqual(rates("constant", 5, 2), [0, 0.5, 1, 1, 1]);
  assert.deepEqual(rates("cosine", 1), [1]);
});

test("schedule() never leaves 0 to 1, also past its end", () => {
  for (const name of ["linear", "cosine", "constant"] as const)
    for (const warmup of [0, 1, 3, 0.5, 0.05]) {
      const rate = schedule(name, 10, warmup);
      for (let step = 0; step < 30; step++) assert.ok(rate(step) >= 0 && rate(step) <= 1, `${name} ${warmup} ${step}: ${rate(step)}`);
    }
  assert.equal(schedule("linear", 10)(99), 0);
});

test("schedule() takes a share of the steps, rounded up as transformers does", () => {
  assert.deepEqual(rates("linear", 10, 0.25), rates("linear", 10, 3));
  assert.deepEqual(rates("cosine", 7, 0.1), rates("cosine", 7, 1));
});

test("schedule() refuses an unknown name and a warm-up that leaves nothing", async () => {
  await messageOf(() => schedule("cosin" as never, 10), 'schedule "cosin" is not known; known: linear, cosine, constant (nearest: cosine)');
  await messageOf(() => schedule("toString" as never, 10), 'schedule "toString" is not known');
  for (const warmup of [10, 11, -1, Number.NaN])
    await messageOf(() => schedule("linear", 10, warmup), `warmupSteps ${warmup} of 10 steps; expected 0 <= warmupSteps < steps`);
});
