/** Ovis2.5's thoughts; whole answers within a budget are in the oracle (test/parity/ovis25.ts). */
import assert from "node:assert/strict";
import { test } from "node:test";
import { forcedTokens, splitThoughts } from "vitrine/text/ovis-chat";
import { messageOf } from "../support/close";

const rule = { budget: 3, thinkEnd: 7, endTokens: [9], earlyStop: [1, 7] };

test("forcedTokens() cuts thoughts off when their budget is spent, once, and neither before nor after they ended", () => {
  assert.deepEqual(forcedTokens([5, 5], rule), []);
  assert.deepEqual(forcedTokens([5, 5, 5], rule), [1, 7]);
  assert.deepEqual(forcedTokens([5, 5, 5, 1, 7], rule), []);
  assert.deepEqual(forcedTokens([5, 7, 5], rule), []);
  assert.deepEqual(forcedTokens([5, 5, 9], rule), []);
});

test("forcedTokens() refuses a budget that is no count", async () => {
  await messageOf(() => forcedTokens([], { ...rule, budget: 0 }), "thinking budget is 0; expected a whole number from 1");
});

test("splitThoughts() takes all for the answer where the thoughts have no end", () => {
  assert.deepEqual(splitThoughts([5, 7, 3], 7), { thoughts: [5, 7], answer: [3] });
  assert.deepEqual(splitThoughts([5, 3], 7), { thoughts: [], answer: [5, 3] });
});
