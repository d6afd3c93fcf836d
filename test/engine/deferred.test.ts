import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toFloat32 } from "vitrine/engine/bfloat16";
import { deferTensor, isDeferred } from "vitrine/engine/deferred";
import type { Handle } from "vitrine/engine/native";
import { keepsTensorCount, messageOf } from "../support/close";

type Binding = { tensorFromBytes(dtype: number, shape: number[], bytes: Uint8Array): Handle };
const binding = () => (tf.backend() as unknown as { binding: Binding }).binding;

before(() => engine().then(() => {}));

/** A deferred [2, 2] of 1, 2, 3, 4 that notes what happens to it. */
function deferred() {
  const seen: string[] = [];
  const make = () => {
    seen.push("make");
    return binding().tensorFromBytes(1, [2, 2], new Uint8Array(Float32Array.of(1, 2, 3, 4).buffer));
  };
  return { seen, x: deferTensor([2, 2], "float32", { make, done: () => void seen.push("done") }) as tf.Tensor2D };
}

test("deferTensor() makes the memory once, when an op first uses the tensor", () => {
  const { x, seen } = deferred();
  assert.deepEqual([x.shape, x.dtype, isDeferred(x), seen.length], [[2, 2], "float32", true, 0]);
  const square = tf.tidy(() => x.matMul(x).dataSync());
  assert.deepEqual([...square], [7, 10, 15, 22]);
  assert.deepEqual([isDeferred(x), seen], [false, ["make", "done"]]);
  assert.deepEqual([...x.dataSync()], [1, 2, 3, 4]);
  assert.deepEqual(seen, ["make", "done"]);
  x.dispose();
});

test("a deferred tensor can be read before any op used it, and through a clone", async () => {
  const { x, seen } = deferred();
  const clone = x.clone();
  x.dispose();
  assert.deepEqual(seen, [], "the clone shares what is still to be made");
  assert.deepEqual([...(await clone.data())], [1, 2, 3, 4]);
  clone.dispose();
  assert.deepEqual(seen, ["make", "done"]);
});

test("a deferred tensor is counted, tidied and disposed like any other; its maker is told once", async () => {
  await keepsTensorCount(() => {
    const bytes = tf.memory().numBytes;
    const { x, seen } = deferred();
    assert.equal(tf.memory().numBytes - bytes, 16);
    x.dispose();
    assert.equal(tf.memory().numBytes, bytes);
    assert.deepEqual(seen, ["done"]);
    const tidied: string[][] = [];
    tf.tidy(() => void tidied.push(deferred().seen));
    assert.deepEqual(tidied, [["done"]]);
  });
});

test("a deferred tensor takes part in gradients", () => {
  const { x } = deferred();
  const slope = tf.tidy(() =>
    tf
      .grad((y) => y.mul(x).sum())(tf.ones([2, 2]))
      .dataSync(),
  );
  assert.deepEqual([...slope], [1, 2, 3, 4]);
  x.dispose();
});

test("when the memory cannot be made the op fails, and the next one asks again", async () => {
  let fail = true;
  const make = () => {
    if (fail) throw new Error("the file changed");
    return binding().tensorFromBytes(14, [1], Uint8Array.of(0x80, 0x3f));
  };
  const x = deferTensor([1], "bfloat16", { make });
  await messageOf(() => toFloat32(x), "the file changed");
  fail = false;
  assert.deepEqual([...tf.tidy(() => toFloat32(x).dataSync())], [1]);
  x.dispose();
});
