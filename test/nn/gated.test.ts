/** Activations and norms of language models by their definitions far out, where the trials of ops.test.ts do not reach. */
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { geglu, gegluTanh, geluTanh, relu, silu, swiglu } from "vitrine/nn/gated";
import { rmsNormOp } from "vitrine/nn/rms-norm";
import { expectClose, expectSame, messageOf } from "../support/close";

before(() => engine().then(() => {}));

const X = [-100, -8, -1, -1e-4, 0, 1e-4, 1, 8, 100];
const SILU = X.map((x) => x / (1 + Math.exp(-x)));
const GELU_TANH = X.map((x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))));

test("silu(), geluTanh() and relu() equal their definitions far out and at 0", () =>
  tf.tidy(() => {
    const x = tf.tensor1d(X);
    expectClose(silu(x).dataSync(), SILU, 2e-6);
    expectClose(geluTanh(x).dataSync(), GELU_TANH, 2e-6);
    expectSame(
      relu(x).dataSync(),
      Float32Array.from(X, (v) => Math.max(0, v)),
    );
    expectSame(
      tf
        .grad((x) => relu(x).sum())(tf.tensor1d([-1, 0, 2]))
        .dataSync(),
      [0, 0, 1],
      "the slope at 0 is 0, as PyTorch's",
    );
  }));

test("gated forms are the activation of the gate times the other half, of one shape", async () => {
  const [x, up] = [tf.tensor1d(X), tf.tensor1d(X.map((_, i) => i - 3))];
  const times = (values: number[]) => values.map((v, i) => v * (i - 3));
  expectClose(swiglu(x, up).dataSync(), times(SILU), 1e-5);
  expectClose(gegluTanh(x, up).dataSync(), times(GELU_TANH), 1e-5);
  // Φ(1) = 0.8413447460685429 (Python's math.erf)
  expectClose(geglu(tf.tensor1d([1, -1]), tf.tensor1d([2, 2])).dataSync(), [1.6826894921370859, -0.31731050786291415], 1e-6);
  await messageOf(() => swiglu(tf.ones([2, 3]), tf.ones([3])), "Swiglu: gate [2,3] and up [3] differ");
});

test("rmsNormOp() has rows of mean square 1 before the weight; a row of zeros stays", () =>
  tf.tidy(() => {
    const weight = tf.tensor1d([1, 2, 1, 1]);
    const y = rmsNormOp(
      tf.tensor2d([
        [3, 3, -3, 3],
        [0, 0, 0, 0],
      ]),
      weight,
      1e-6,
    ).dataSync();
    expectClose(y, [1, 2, -1, 1, 0, 0, 0, 0], 1e-6);
  }));

test("rmsNormOp() with a weight that divides the width normalises part by part, with the gradients of the reshaped tensor", async () => {
  tf.tidy(() => {
    const [x, weight] = [tf.randomNormal([3, 12], 0, 2, "float32", 1), tf.randomNormal([4], 1, 0.1, "float32", 2) as tf.Tensor1D];
    const apart = (x: tf.Tensor, w: tf.Tensor) => rmsNormOp(x.reshape([9, 4]), w as tf.Tensor1D, 1e-6).reshape([3, 12]);
    const whole = (x: tf.Tensor, w: tf.Tensor) => rmsNormOp(x, w as tf.Tensor1D, 1e-6);
    expectSame(whole(x, weight).dataSync(), apart(x, weight).dataSync());
    const [dy, got, want] = [tf.randomNormal([3, 12], 0, 1, "float32", 3), tf.grads(whole), tf.grads(apart)];
    got([x, weight], dy).forEach((g, i) => expectSame(g.dataSync(), want([x, weight], dy)[i].dataSync()));
  });
  await messageOf(() => rmsNormOp(tf.ones([2, 6]), tf.ones([4]) as tf.Tensor1D, 1e-6), "does not divide into parts of the weight's 4");
});
