import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16 } from "vitrine/engine/bfloat16";
import { runNative } from "vitrine/engine/native";
import { expectClose, messageOf } from "../support/close";
import { FLOAT, HALF, layerNorm, noise, numbers, rounded, slopes } from "./support";

before(() => engine().then(() => {}));

/** 1, primes, around the width of a vector (16) and of a block of rows (64), an empty batch. */
const SIZES = [
  [1, 1],
  [3, 7],
  [5, 16],
  [2, 17],
  [130, 31],
  [7, 768],
  [0, 5],
] as const;
const EPS = 1e-5;

const rms = (x: tf.Tensor, weight: tf.Tensor) => x.mul(x.square().mean(-1, true).add(EPS).rsqrt()).mul(weight);

test("layerNorm matches the formula at every size, from and to both dtypes", () =>
  tf.tidy(() => {
    for (const [rows, width] of SIZES) {
      const [x, weight, bias] = [noise(rows, width).mul(3), noise(width) as tf.Tensor1D, noise(width) as tf.Tensor1D];
      const want = rows ? layerNorm(x, weight, bias, EPS) : x;
      const [y, statistics] = runNative("layerNorm", [x, weight, bias, undefined], [EPS, FLOAT]);
      expectClose(numbers(y), numbers(want), 1e-5, `[${rows}, ${width}]`);
      assert.deepEqual(statistics.shape, [rows, 2]);
      const half = runNative("layerNorm", [x, weight, bias, undefined], [EPS, HALF])[0];
      expectClose(numbers(half), numbers(rounded(y)), 0, "the bfloat16 result is the float32 one, rounded");
      const fromHalf = runNative("layerNorm", [toBfloat16(x), toBfloat16(weight), toBfloat16(bias), undefined], [EPS, FLOAT])[0];
      const wantRounded = rows ? layerNorm(rounded(x), rounded(weight), rounded(bias), EPS) : x;
      expectClose(numbers(fromHalf), numbers(wantRounded), 1e-5, "from bfloat16");
    }
  }));

test("layerNorm adds a residual first, and gives the sum in the residual's dtype", () =>
  tf.tidy(() => {
    const [x, along, weight, bias] = [noise(6, 19), noise(6, 19), noise(19) as tf.Tensor1D, noise(19) as tf.Tensor1D];
    const [y, , total] = runNative("layerNorm", [toBfloat16(x), weight, bias, along], [EPS, FLOAT]);
    assert.equal(total.dtype, "float32");
    expectClose(numbers(total), numbers(rounded(x).add(along)), 0);
    expectClose(numbers(y), numbers(layerNorm(total, weight, bias, EPS)), 1e-5);
  }));

test("rmsNorm matches the formula", () =>
  tf.tidy(() => {
    for (const [rows, width] of SIZES) {
      const [x, weight] = [noise(rows, width), noise(width)];
      const [y] = runNative("rmsNorm", [x, weight], [EPS, FLOAT]);
      expectClose(numbers(y), rows ? numbers(rms(x, weight)) : [], 1e-5, `[${rows}, ${width}]`);
    }
  }));

test("layerNormGradient matches the formula's gradient, with a gradient along the residual", () =>
  tf.tidy(() => {
    for (const [rows, width] of SIZES.filter(([rows]) => rows)) {
      const [x, dy, more] = [noise(rows, width).mul(2), noise(rows, width), noise(rows, width)];
      const [weight, bias] = [noise(width) as tf.Tensor1D, noise(width) as tf.Tensor1D];
      const [, statistics] = runNative("layerNorm", [x, weight, bias], [EPS, FLOAT]);
      const got = runNative("layerNormGradient", [dy, x, weight, statistics, more], [FLOAT, 1]);
      const grads = tf.grads((x, weight, bias) => layerNorm(x, weight as tf.Tensor1D, bias as tf.Tensor1D, EPS));
      const want = grads([x, weight, bias], dy);
      // One number a row: its variance is 0 and the exact gradient too, times 1 / sqrt(eps).
      const tolerance = width === 1 ? 1e-4 : 1e-5;
      expectClose(numbers(got[0]), numbers(want[0].add(more)), 4 * tolerance, `dx [${rows}, ${width}]`);
      expectClose(numbers(got[1]), numbers(want[1]), 4 * tolerance * Math.sqrt(rows), "dweight");
      expectClose(numbers(got[2]), numbers(want[2]), tolerance * Math.sqrt(rows), "dbias");
      assert.equal(runNative("layerNormGradient", [dy, x, weight, statistics], [HALF, 0]).length, 1);
    }
  }));

test("layerNormGradient and rmsNormGradient match finite differences", () =>
  tf.tidy(() => {
    const [x, dy, weight] = [noise(2, 13), noise(2, 13), noise(13)];
    for (const name of ["layerNorm", "rmsNorm"]) {
      const loss = (x: tf.Tensor) => runNative(name, [x, weight], [EPS, FLOAT])[0].mul(dy).sum().dataSync()[0];
      const [, statistics] = runNative(name, [x, weight], [EPS, FLOAT]);
      const [dx, dweight] = runNative(`${name}Gradient`, [dy, x, weight, statistics], [FLOAT, 1]);
      expectClose(numbers(dx), slopes(loss, x, 1e-2), 3e-3, name);
      const toWeight = (w: tf.Tensor) => runNative(name, [x, w], [EPS, FLOAT])[0].mul(dy).sum().dataSync()[0];
      expectClose(numbers(dweight), slopes(toWeight, weight, 1e-1), 3e-4, `${name} weight`);
    }
  }));

test("norms with a weight that divides the last axis normalise part by part, with gradients, as the reshaped tensor does", () =>
  tf.tidy(() => {
    const [x, dy, weight] = [noise(5, 24), noise(5, 24), noise(8)];
    const parts = (y: tf.Tensor) => y.reshape([15, 8]);
    for (const name of ["layerNorm", "rmsNorm"]) {
      const [y, statistics] = runNative(name, [x, weight], [EPS, FLOAT]);
      const [want, wantStatistics] = runNative(name, [parts(x), weight], [EPS, FLOAT]);
      assert.deepEqual(
        [y.shape, statistics.shape],
        [
          [5, 24],
          [15, 2],
        ],
        name,
      );
      assert.deepEqual([...numbers(y), ...numbers(statistics)], [...numbers(want), ...numbers(wantStatistics)], name);
      const got = runNative(`${name}Gradient`, [dy, x, weight, statistics], [FLOAT, 1]);
      const gradients = runNative(`${name}Gradient`, [parts(dy), parts(x), weight, statistics], [FLOAT, 1]);
      got.forEach((gradient, i) => assert.deepEqual(numbers(gradient), numbers(gradients[i]), `${name} gradient ${i}`));
    }
  }));

test("norms keep NaN to its row and large numbers finite", () =>
  tf.tidy(() => {
    const x = tf.tensor2d([
      [1, Number.NaN, 3],
      [1e18, -1e18, 5e17],
      [1e-20, 2e-20, 0],
    ]);
    for (const name of ["layerNorm", "rmsNorm"]) {
      const y = numbers(runNative(name, [x, tf.ones([3])], [EPS, FLOAT])[0]);
      assert.ok(y.slice(0, 3).every(Number.isNaN), name);
      assert.ok(y.slice(3).every(Number.isFinite), `${name}: ${y}`);
    }
  }));

test("norms refuse what does not fit, before they read it", async () => {
  const [x, three, four] = [tf.ones([2, 3]), tf.ones([3]), tf.ones([4])];
  const fails = (name: string, inputs: tf.Tensor[], numbers: number[], part: string) =>
    messageOf(() => runNative(name, inputs, numbers), part);
  await fails("layerNorm", [x, four], [EPS, FLOAT], "kernel layerNorm: input 1 is float32 [4]; expected shape [3]");
  await fails("layerNorm", [x.cast("int32"), three], [EPS, FLOAT], "input 0 is int32");
  await fails("rmsNorm", [x, three, three], [EPS, FLOAT], "an RMS norm has no bias");
  await fails("layerNorm", [x, three], [EPS, 3], "number 1 is dtype 3");
});
