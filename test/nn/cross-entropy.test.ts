/** Cross-entropies by their definition and by each other; the numbers named PyTorch's are of torch 2.11's cross_entropy. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { frozenWeight } from "vitrine/engine/frozen";
import { hasNative } from "vitrine/engine/native";
import { ops } from "vitrine/engine/op";
import { type CrossEntropyOptions, crossEntropy, headCrossEntropy } from "vitrine/nn/cross-entropy";
import { expectClose, keepsTensorCount, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const draw = random(11);
const noise = (...shape: number[]) =>
  tf.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 2 * draw() - 1),
    shape,
  );
const ints = (values: number[], shape = [values.length]) => tf.tensor(values, shape, "int32");

/** The definition, in double. */
function loss(rows: number[][], labels: number[], { ignored = -100, smoothing = 0 }: CrossEntropyOptions = {}): number {
  const losses = rows.flatMap((row, i) => {
    if (labels[i] === ignored) return [];
    const logarithm = Math.log(row.reduce((sum, x) => sum + Math.exp(x), 0));
    const mean = row.reduce((sum, x) => sum + x, 0) / row.length;
    return [logarithm - (1 - smoothing) * row[labels[i]] - (smoothing && smoothing * mean)];
  });
  return losses.reduce((a, b) => a + b, 0) / losses.length;
}

test("crossEntropy() is the mean over the rows that count, with and without smoothing", () =>
  tf.tidy(() => {
    for (const [N, V] of [
      [1, 1],
      [3, 7],
      [5, 16],
      [4, 4099],
    ]) {
      const logits = noise(N, V).mul(8) as tf.Tensor2D;
      const labels = Array.from({ length: N }, (_, i) => (i % 3 === 1 ? -100 : (i * 37 + V - 1) % V));
      for (const smoothing of [0, 0.1, 1])
        expectClose(
          crossEntropy(logits, ints(labels), { smoothing }).dataSync(),
          [loss(logits.arraySync(), labels, { smoothing })],
          2e-5,
          `[${N}, ${V}], smoothing ${smoothing}`,
        );
      const half = toBfloat16(logits);
      expectClose(crossEntropy(half, ints(labels)).dataSync(), [loss(toFloat32(half).arraySync(), labels)], 2e-5, "bfloat16");
    }
    const grid = noise(2, 3, 5);
    const labels = [4, 0, 2, 2, 0, 1];
    const flat = grid.reshape([6, 5]).arraySync() as number[][];
    expectClose(crossEntropy(grid, ints(labels, [2, 3]), { ignored: 2 }).dataSync(), [loss(flat, labels, { ignored: 2 })], 1e-6);
  }));

test("where no row counts the loss is NaN and its gradient 0, as PyTorch's", () =>
  tf.tidy(() => {
    const [x, W, none] = [noise(2, 5), noise(7, 5) as tf.Tensor2D, ints([-100, -100])];
    for (const of of [(x: tf.Tensor) => crossEntropy(x, none), (x: tf.Tensor) => headCrossEntropy(x, W, none)]) {
      const { value, grad } = tf.valueAndGrad((x) => of(x))(x);
      assert.ok(Number.isNaN(value.dataSync()[0]));
      assert.deepEqual([...grad.dataSync()], new Array(10).fill(0));
    }
    assert.ok(Number.isNaN(crossEntropy(noise(0, 5), ints([])).dataSync()[0]));
    assert.ok(Number.isNaN(headCrossEntropy(noise(0, 5), W, ints([])).dataSync()[0]));
  }));

test("logits of minus infinity, infinity and NaN, and large ones, give what they give in PyTorch", () =>
  tf.tidy(() => {
    const rows = [
      [0, Number.NEGATIVE_INFINITY, 0],
      [1000, 0, -1000],
      [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY],
      [Number.POSITIVE_INFINITY, 0, 0],
      [Number.NaN, 0, 0],
    ];
    const each = rows.map((row) => crossEntropy(tf.tensor2d([row]), ints([0])).dataSync()[0]);
    expectClose(each.slice(0, 2), [Math.LN2, 0], 1e-6);
    assert.deepEqual(each.slice(2), [Number.NaN, Number.NaN, Number.NaN]);
    assert.equal(crossEntropy(tf.tensor2d([rows[0]]), ints([1])).dataSync()[0], Number.POSITIVE_INFINITY);
    expectClose(crossEntropy(tf.tensor2d([rows[4], rows[1]]), ints([-100, 0])).dataSync(), [0], 0, "NaN in a row that does not count");
  }));

test("headCrossEntropy() is crossEntropy() of hidden · Wᵀ, its gradients too", () =>
  tf.tidy(() => {
    const [N, D, V] = [13, 33, 1100];
    const labels = Array.from({ length: N }, (_, i) => (i % 3 === 1 ? -100 : (i * 89) % V));
    const [hidden, W] = [noise(N, D) as tf.Tensor2D, noise(V, D) as tf.Tensor2D];
    for (const smoothing of [0, 0.2]) {
      const whole = tf.valueAndGrads((x, w) =>
        crossEntropy(tf.matMul(x as tf.Tensor2D, w as tf.Tensor2D, false, true), ints(labels), { smoothing }),
      );
      const fused = tf.valueAndGrads((x, w) => headCrossEntropy(x, w as tf.Tensor2D, ints(labels), { smoothing }));
      const [want, got] = [whole([hidden, W]), fused([hidden, W])];
      expectClose(got.value.dataSync(), want.value.dataSync(), 1e-5);
      got.grads.forEach((gradient, i) => expectClose(gradient.dataSync(), want.grads[i].dataSync(), 1e-6, `gradient ${i}`));
    }
  }));

test("headCrossEntropy() with a frozen bfloat16 weight is near its formula, packed or not", async () => {
  const [N, D, V] = [40, 50, 1100];
  const labels = ints(Array.from({ length: N }, (_, i) => (i % 4 === 1 ? -100 : (i * 89) % V)));
  const [hidden, exact] = [noise(N, D), noise(V, D) as tf.Tensor2D];
  for (const weight of [toBfloat16(exact), frozenWeight(exact)]) {
    await keepsTensorCount(() =>
      tf.tidy(() => {
        const rows = ops.get("CrossEntropyHead")!.formula({ hidden, weight, labels }, { ignored: -100 });
        const formula = tf.tidy(() => {
          const [logarithm, picked] = tf.unstack(rows);
          return logarithm.sub(picked).sum().div(30);
        });
        const { value, grad } = tf.valueAndGrad((x) => headCrossEntropy(x, weight, labels))(hidden);
        expectClose(value.dataSync(), formula.dataSync(), 1e-5);
        // The same gradient from float32 numbers: what is rounded to bfloat16 is off by at most 2^-9 of itself.
        const rounded = toFloat32(toBfloat16(hidden));
        const want = tf
          .grad((x) => headCrossEntropy(x, toFloat32(weight) as tf.Tensor2D, labels))(rounded)
          .dataSync();
        const largest = Math.max(...want.map(Math.abs));
        expectClose(grad.dataSync(), want, 4e-3 * largest);
        const half = headCrossEntropy(toBfloat16(hidden), weight, labels);
        expectClose(half.dataSync(), value.dataSync(), 1e-6, "hidden in bfloat16");
      }),
    );
    weight.dispose();
  }
  const frozen = toBfloat16(exact);
  await messageOf(
    () => tf.tidy(() => tf.grad((w) => headCrossEntropy(hidden, w as tf.Tensor2D, labels))(frozen)),
    'headCrossEntropy: a bfloat16 weight is frozen; load with { dtype: "float32" } to train it',
  );
});

test("labels out of range are an error that names the first, from kernel and formula", async () => {
  const [logits, W, labels] = [noise(3, 4), noise(4, 4) as tf.Tensor2D, ints([3, 4, -1])];
  const message = "label 1 is 4; expected 0 to 3, or -100, which is ignored";
  await messageOf(() => crossEntropy(logits, labels), message);
  await messageOf(() => headCrossEntropy(logits, W, labels), message);
  await messageOf(() => ops.get("CrossEntropyRows")!.formula({ logits, labels }, { ignored: -100 }), message);
  await messageOf(() => ops.get("CrossEntropyHead")!.formula({ hidden: logits, weight: W, labels }, { ignored: -100 }), message);
  await messageOf(() => crossEntropy(logits, ints([3, -7, 0])), "label 1 is -7");
});

test("what does not fit is named all at once", async () => {
  await messageOf(
    () => headCrossEntropy(noise(3, 4), noise(5, 6) as tf.Tensor2D, tf.tensor1d([1, 2]), { smoothing: 2 }),
    "headCrossEntropy: weight is [5,6], expected [V, 4]; labels are [2], expected [3], one for each row of [3,4]",
    "labels are float32, expected int32; smoothing is 2, expected 0 to 1",
  );
});

test("no tensor of N x V is made: memory grows by less than half of the logits", (t) => {
  if (!hasNative("crossEntropyHead")) return t.skip("no native kernels here");
  const [N, D, V] = [256, 16, 40000];
  tf.tidy(() => {
    const [hidden, W, labels] = [noise(N, D), noise(V, D) as tf.Tensor2D, ints(Array.from({ length: N }, (_, i) => i * 150))];
    const before = process.memoryUsage().rss;
    tf.grad((x) => headCrossEntropy(x, W, labels))(hidden).dataSync();
    const grown = process.memoryUsage().rss - before;
    assert.ok(grown < (N * V * 4) / 2, `${grown} bytes more, the logits alone have ${N * V * 4}`);
  });
});
