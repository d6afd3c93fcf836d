/** The kernels of layers that stand in no op of their own: the float32 product, layer scale, the cache. Their numbers: layers.cc, by sanitizer.test.ts. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16 } from "vitrine/engine/bfloat16";
import { hasNative, linearKeeping, linearNative, runNative } from "vitrine/engine/native";
import { expectClose, expectSame, messageOf } from "../support/close";
import { gelu, noise, numbers } from "./support";

before(() => engine().then(() => {}));

const native = (name: string, body: () => unknown) =>
  test(name, async (t) => {
    if (!hasNative("linearFloat")) return t.skip("native kernels are not in use here");
    await body();
  });

native("linearFloat is what tfjs multiplies, with all that follows, for few rows and many, either way round", () =>
  tf.tidy(() => {
    for (const [M, K, N] of [
      [1, 33, 70],
      [4, 64, 5],
      [5, 64, 130],
      [60, 1030, 70],
      [389, 10, 33],
    ]) {
      const [x, W, bias, residual] = [noise(M, K), noise(N, K), noise(N), noise(M, N)] as [
        tf.Tensor2D,
        tf.Tensor2D,
        tf.Tensor1D,
        tf.Tensor,
      ];
      const before = tf.matMul(x, W, false, true).add(bias);
      const options = { bias, residual, activation: "gelu" } as const;
      const [y, kept] = linearKeeping(x, { plain: W }, options);
      expectClose(numbers(y), numbers(gelu(before).add(residual)), 1e-6 * (K + 8), `[${M}, ${K}] to ${N}`);
      expectClose(numbers(kept), numbers(before), 1e-6 * (K + 8), "what went into the activation");
      const turned = linearNative(x, { plain: W.transpose() as tf.Tensor2D, turned: true }, options);
      expectClose(numbers(turned), numbers(y), 1e-6 * (K + 8), "the weight as [in, out]");
      const half = linearNative(x, { plain: toBfloat16(W) }, options);
      expectClose(numbers(half), numbers(y), 2 ** -8 * Math.sqrt(K) * 2, "a bfloat16 weight");
    }
  }),
);

native("linearFloat and the cache name what does not fit", async () => {
  const [x, W] = [noise(2, 5), noise(3, 4) as tf.Tensor2D];
  await messageOf(() => linearNative(x, { plain: W }), "product with weight [3, 4]: x is [2,5], expected [2,4]");
  await messageOf(() => runNative("linearFloat", [x, W], [0, 0, 1, 0, 1, 0]), "input 1 is float32 [3, 4]; expected shape [any, 5]");
  await messageOf(() => runNative("linearFloat", [x, W, undefined, undefined, x], [1, 0, 1, 0, 1, 0]), "expected shape [5, any]");
  await messageOf(
    () => runNative("writeRows", [noise(1, 4, 2), noise(1, 2, 2)], [3]),
    "2 rows from place 3 on do not fit a cache with room for 4",
  );
  await messageOf(() => runNative("writeRows", [noise(1, 4, 2), noise(2, 1, 2)], [0]), "expected shape [1, any, 2]");
  await messageOf(() => runNative("scaleAdd", [noise(1, 4), noise(3)], [1]), "input 1 is float32 [3]; expected shape [4]");
});

native("splitColumns and joinColumns name what does not fit", async () => {
  await messageOf(() => runNative("splitColumns", [noise(2, 7)], [2, 2, 1]), "x is float32 [2, 7]; 2 parts of 3 columns are 6");
  await messageOf(
    () => runNative("joinColumns", [noise(2, 2), noise(2, 3)], [1, 1, 2, 2]),
    "input 1 is float32 [2, 3]; expected shape [2, 2]",
  );
  await messageOf(() => runNative("joinColumns", [undefined, undefined], [1, 1, 2, 2]), "every input is absent");
  await messageOf(() => runNative("joinColumns", [noise(2, 2)], [1, 1, 2, 2]), "1 inputs for 2 sections");
});

native("writeRows changes its rows alone, and takes float32 into bfloat16", () => {
  const cache = noise(2, 5, 3);
  const [before, rows] = [numbers(cache), noise(2, 2, 3)];
  assert.deepEqual(runNative("writeRows", [cache, rows], [1]), []);
  const want = tf.concat(
    [tf.tensor(before, [2, 5, 3]).slice([0, 0, 0], [2, 1, 3]), rows, tf.tensor(before, [2, 5, 3]).slice([0, 3, 0], [2, 2, 3])],
    1,
  );
  expectSame(numbers(cache), numbers(want));
  const half = toBfloat16(tf.zeros([2, 5, 3]));
  runNative("writeRows", [half, rows], [0]);
  expectSame(numbers(half).subarray(0, 6), numbers(toBfloat16(rows)).subarray(0, 6));
});
