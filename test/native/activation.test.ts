import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16 } from "vitrine/engine/bfloat16";
import { runNative } from "vitrine/engine/native";
import { expectClose, messageOf } from "../support/close";
import { FLOAT, gelu, geluTanh, HALF, noise, numbers, quickGelu, rounded, slopes } from "./support";

before(() => engine().then(() => {}));

type Formula = (x: tf.Tensor) => tf.Tensor;
/** The number of a kind, and its formula. */
const KINDS: [string, number, Formula][] = [
  ["gelu", 1, gelu],
  ["quick_gelu", 2, quickGelu],
  ["silu", 3, (x) => x.mul(x.sigmoid())],
  ["gelu_tanh", 4, geluTanh],
  ["relu", 5, (x) => x.relu()],
];
/** 1, primes, around the width of a vector, longer than a thread's share (16384), an empty batch. */
const SIZES = [
  [1, 1],
  [3, 7],
  [5, 16],
  [2, 17],
  [67, 31],
  [1, 16401],
  [3, 20011],
  [0, 4],
] as const;

for (const [name, kind, formula] of KINDS) {
  test(`activation ${name} matches the formula with and without a bias, from and to both dtypes`, () =>
    tf.tidy(() => {
      for (const [rows, width] of SIZES) {
        const [x, bias] = [noise(rows, width).mul(8), noise(width)];
        const what = `[${rows}, ${width}]`;
        const want = numbers(formula(x.add(bias)));
        const [y] = runNative("activation", [x, bias], [kind, FLOAT]);
        expectClose(numbers(y), want, 3e-6, what);
        expectClose(numbers(runNative("activation", [x.flatten()], [kind, FLOAT])[0]), numbers(formula(x)), 3e-6, `${what}, no bias`);
        const half = runNative("activation", [toBfloat16(x), bias], [kind, HALF])[0];
        assert.equal(half.dtype, "bfloat16");
        expectClose(numbers(half), numbers(rounded(formula(rounded(x).add(bias)))), 0.04, `${what}, bfloat16`); // one step of bfloat16 at 8
      }
    }));

  test(`activationGradient ${name} matches the formula's gradient, the bias's too, and finite differences`, () =>
    tf.tidy(() => {
      for (const [rows, width] of SIZES.filter(([rows]) => rows)) {
        const [x, bias, dy] = [noise(rows, width).mul(5), noise(width), noise(rows, width)];
        const [dx, dbias] = runNative("activationGradient", [dy, x, bias], [kind, FLOAT, 1]);
        const want = tf.grad(formula)(x.add(bias), dy);
        expectClose(numbers(dx), numbers(want), 6e-6, `dx [${rows}, ${width}]`);
        expectClose(numbers(dbias), numbers(want.sum(0)), 1e-5 * Math.sqrt(rows), "dbias");
      }
      const [x, dy] = [noise(19).mul(3), noise(19)];
      const loss = (x: tf.Tensor) => runNative("activation", [x], [kind, FLOAT])[0].mul(dy).sum().dataSync()[0];
      expectClose(
        numbers(runNative("activationGradient", [dy, x], [kind, FLOAT, 0])[0]),
        slopes(loss, x, 1e-2),
        1e-3,
        "finite differences",
      );
    }));

  test(`gated ${name} and its gradient match the formula`, () =>
    tf.tidy(() => {
      for (const [rows, width] of SIZES) {
        const [gate, up, dy] = [noise(rows, width).mul(4), noise(rows, width), noise(rows, width)];
        expectClose(numbers(runNative("gated", [gate, up], [kind, FLOAT])[0]), numbers(formula(gate).mul(up)), 3e-6);
        if (!rows) continue;
        const [dgate, dup] = runNative("gatedGradient", [dy, gate, up], [kind, FLOAT]);
        const want = tf.grads((g, u) => formula(g).mul(u))([gate, up], dy);
        expectClose(numbers(dgate), numbers(want[0]), 6e-6, "dgate");
        expectClose(numbers(dup), numbers(want[1]), 6e-6, "dup");
      }
    }));

  test(`activation ${name} keeps NaN, and far from 0 is x or 0 with slope 1 or 0`, () =>
    tf.tidy(() => {
      const x = tf.tensor1d([Number.NaN, 1e4, -1e4, 1e20, -1e20, 3e38, -3e38]);
      const y = numbers(runNative("activation", [x], [kind, FLOAT])[0]);
      assert.ok(Number.isNaN(y[0]));
      const want = [1e4, 0, Math.fround(1e20), 0, Math.fround(3e38), 0];
      assert.deepEqual(
        [...y.slice(1)].map((v) => v + 0),
        want,
      );
      const dx = numbers(runNative("activationGradient", [tf.ones([7]), x], [kind, FLOAT, 0])[0]);
      assert.ok(Number.isNaN(dx[0]));
      assert.deepEqual(
        [...dx.slice(1)].map((v) => v + 0),
        [1, 0, 1, 0, 1, 0],
      );
      const [dgate, dup] = runNative("gatedGradient", [tf.ones([7]), x, tf.ones([7])], [kind, FLOAT]).map(numbers);
      assert.deepEqual(
        [...dgate.slice(1)].map((v) => v + 0),
        [1, 0, 1, 0, 1, 0],
      );
      assert.deepEqual(
        [...dup.slice(1)].map((v) => v + 0),
        want,
      );
    }));
}

test("activations refuse what does not fit", async () => {
  await messageOf(() => runNative("activation", [tf.ones([2, 3]), tf.ones([2])], [1, FLOAT]), "input 1 is float32 [2]; expected shape [3]");
  await messageOf(() => runNative("activation", [tf.ones([2, 3])], [0, FLOAT]), /number 0 is 0/);
  await messageOf(() => runNative("activationGradient", [tf.ones([3]), tf.ones([3])], [1, FLOAT, 1]), "there is no bias (input 2)");
  await messageOf(() => runNative("gated", [tf.ones([3]), tf.ones([4])], [1, FLOAT]), "input 1 is float32 [4]; expected shape [3]");
});
