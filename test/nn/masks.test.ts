import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { additive } from "vitrine/nn/attend";
import { attentionMask, BLOCKED, causalMask, paddingMask } from "vitrine/nn/masks";
import { expectSame, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

/** A mask in rows of 0 (seen), p (padding) and x (hidden by its place). */
const drawn = (mask: tf.Tensor | undefined): string[] =>
  (mask!.squeeze([1]).arraySync() as number[][][]).map((picture) =>
    picture.map((row) => row.map((x) => (x < 1.5 * BLOCKED ? "x" : x < 0 ? "p" : String(Math.abs(x)))).join("")).join(" "),
  );

test("attentionMask() hides later keys, and keys too far back, where a cache stands before the queries too", () =>
  tf.tidy(() => {
    assert.deepEqual(drawn(attentionMask({ queries: 3, causal: true })), ["0xx 00x 000"]);
    assert.deepEqual(drawn(attentionMask({ queries: 2, keys: 5, causal: true })), ["0000x 00000"]);
    assert.deepEqual(drawn(attentionMask({ queries: 4, causal: true, window: 2 })), ["0xxx 00xx x00x xx00"]);
    assert.deepEqual(drawn(attentionMask({ queries: 2, keys: 5, causal: true, window: 3 })), ["x000x xx000"]);
    assert.deepEqual(drawn(attentionMask({ queries: 1, keys: 4, causal: true, window: 1 })), ["xxx0"]);
    assert.deepEqual(drawn(attentionMask({ queries: 1, keys: 4, causal: true })), ["0000"]);
  }));

test("attentionMask() hides padding, and places more: a query that sees nothing looks evenly at what its place leaves it", () =>
  tf.tidy(() => {
    const padding = tf.tensor2d([1, 1, 0, 0, 1, 1], [2, 3], "int32");
    assert.deepEqual(drawn(attentionMask({ queries: 3, causal: true, padding })), ["0xx 00x 00p", "pxx p0x p00"]);
    assert.deepEqual(drawn(attentionMask({ queries: 2, keys: 3, padding })), ["00p", "p00"]);
    assert.equal(attentionMask({ queries: 3, keys: 5 }), undefined, "nothing is hidden");
    expectSame(attentionMask({ queries: 2, keys: 3, padding })!.dataSync(), paddingMask(padding).dataSync());
    const mask = { causal: true, padding };
    expectSame(attentionMask({ queries: 3, ...mask })!.dataSync(), additive(mask, 3)!.dataSync(), "attention's own");
    expectSame(attentionMask({ queries: 2, keys: 5, causal: true })!.dataSync(), causalMask(2, 5).mul(2).dataSync());
  }));

test("attentionMask() keeps nothing but its result, and names everything that does not fit", async () => {
  const padding = tf.ones([2, 3], "int32") as tf.Tensor2D;
  await keepsTensorCount(() => tf.dispose([attentionMask({ queries: 3, causal: true, window: 2, padding })!, causalMask(3)]));
  await messageOf(
    () => attentionMask({ queries: 4, keys: 2, window: 0, padding }),
    "4 queries are the last of 2 keys",
    "window is 0 without causal",
    "window is 0, expected a whole number from 1",
    "padding is [2,3], expected [B, 2]",
  );
});
