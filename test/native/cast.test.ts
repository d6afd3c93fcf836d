import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { isBfloat16, toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { nativeBytes, runNative } from "vitrine/engine/native";
import { messageOf } from "../support/close";
import { FLOAT, HALF, noise } from "./support";

before(() => engine().then(() => {}));

test("cast() agrees with TensorFlow's Cast, bit for bit, at awkward sizes", () => {
  for (const shape of [[], [0], [1], [15], [17], [3, 5, 7], [70_001]])
    tf.tidy(() => {
      const x = noise(...shape);
      const half = runNative("cast", [x], [HALF])[0]!;
      assert.deepEqual([half.shape, isBfloat16(half)], [shape, true]);
      assert.deepEqual(nativeBytes(half), nativeBytes(toBfloat16(x)));
      assert.deepEqual(nativeBytes(runNative("cast", [half], [FLOAT])[0]!), nativeBytes(toFloat32(half)));
      assert.deepEqual(nativeBytes(runNative("cast", [x], [FLOAT])[0]!), nativeBytes(x));
    });
});

test("cast() keeps NaN and infinity, and rounds ties to even", () => {
  tf.tidy(() => {
    const x = tf.tensor1d([Number.NaN, Infinity, -Infinity, 3.4e38, 1 + 1 / 256, 1 + 3 / 256, -0]);
    const y = toFloat32(runNative("cast", [x], [HALF])[0]!).dataSync();
    assert.ok(Number.isNaN(y[0]));
    assert.deepEqual([...y.slice(1)], [Infinity, -Infinity, Infinity, 1, 1 + 1 / 64, -0]);
  });
});

test("cast() refuses other dtypes", async () => {
  const x = tf.tensor1d([1], "int32");
  await messageOf(() => runNative("cast", [x], [HALF]), "kernel cast: input 0 is int32 [1]");
  await messageOf(() => runNative("cast", [noise(1)], [3]), "is dtype 3; expected 1 (float32) or 14 (bfloat16)");
  x.dispose();
});
