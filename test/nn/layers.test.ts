import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { splitColumns } from "vitrine/nn/columns";
import {
  activationName,
  attention,
  embedding,
  fusedAttention,
  fusedGatedMlp,
  gatedMlp,
  layerNorm,
  linear,
  mlp,
  patchEmbed,
} from "vitrine/nn/layers";
import { causalMask, paddingMask } from "vitrine/nn/masks";
import { gelu } from "vitrine/nn/ops";
import { expectClose, expectSame, messageOf, take } from "../support/close";

before(() => engine().then(() => {}));

const draw = random(3);
const noise = (...shape: number[]) =>
  tf.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 2 * draw() - 1),
    shape,
  );
const layer = (inner: number, out: number) => ({ weight: noise(out, inner) as tf.Tensor2D, bias: noise(out) as tf.Tensor1D });

test("linear() is x·Wᵀ + b for any number of leading axes", async () => {
  const p = layer(5, 3);
  for (const shape of [[5], [1, 5], [2, 5], [2, 7, 5], [2, 3, 1, 5]]) {
    const x = noise(...shape);
    const y = linear(p, x);
    assert.deepEqual(y.shape, [...shape.slice(0, -1), 3]);
    const [W, b, rows] = [p.weight.arraySync(), p.bias.arraySync(), x.reshape([-1, 5]).arraySync() as number[][]];
    expectClose(
      y.dataSync(),
      rows.flatMap((row) => W.map((w, o) => w.reduce((sum, weight, i) => sum + weight * row[i], b[o]))),
      1e-6,
    );
  }
  await messageOf(() => linear(p, noise(2, 4)), "x [2,4] does not fit weight [3, 5]; the last axis of x must be 5");
});

test("layerNorm() gives rows of mean 0 and variance 1, scaled and shifted; eps stands inside the root", () => {
  const [x, one, zero] = [noise(4, 33).mul(10), tf.ones([33]) as tf.Tensor1D, tf.zeros([33]) as tf.Tensor1D];
  const { mean, variance } = tf.moments(layerNorm({ weight: one, bias: zero }, x, 0), 1);
  expectClose(mean.dataSync(), [0, 0, 0, 0], 1e-6);
  expectClose(variance.dataSync(), [1, 1, 1, 1], 1e-5);
  const pair = { weight: tf.tensor1d([1, 1]), bias: tf.tensor1d([0, 0]) };
  const flat = layerNorm(pair, tf.tensor2d([[1e-3, -1e-3]]), 1e-6);
  expectClose(flat.dataSync(), [1e-3 / Math.sqrt(2e-6), -1e-3 / Math.sqrt(2e-6)], 1e-6);
  const constant = layerNorm({ weight: one, bias: one }, tf.fill([2, 33], 7), 1e-5);
  expectSame(constant.dataSync(), new Float32Array(66).fill(1), "a row of one value has no direction");
});

test("attention() of one head equals its definition, and refuses heads that do not divide the width", async () => {
  const [B, N, D] = [2, 3, 4];
  const p = { q: layer(D, D), k: layer(D, D), v: layer(D, D), out: layer(D, D) };
  const x = noise(B, N, D) as tf.Tensor3D;
  const want = tf.tidy(() => {
    const [q, k, v] = [p.q, p.k, p.v].map((l) => linear(l, x));
    const scores = tf.matMul(q, k, false, true).div(Math.sqrt(D));
    return take(linear(p.out, tf.matMul(tf.softmax(scores), v)));
  });
  expectClose(take(attention(p, x, { heads: 1 })), want, 1e-6);
  assert.notDeepEqual(take(attention(p, x, { heads: 2 })), want);
  await messageOf(() => attention(p, x, { heads: 3 }), "width 4 does not divide into 3 heads (num_attention_heads)");
});

test("splitColumns() takes sections out of every part, and says what does not add up", async () => {
  const x = tf.range(0, 24, 1, "int32").reshape([2, 12]).cast("float32") as tf.Tensor2D;
  const [a, b] = splitColumns(x, [3, 1], 3);
  assert.deepEqual(a.arraySync(), [
    [0, 1, 2, 4, 5, 6, 8, 9, 10],
    [12, 13, 14, 16, 17, 18, 20, 21, 22],
  ]);
  assert.deepEqual(b.arraySync(), [
    [3, 7, 11],
    [15, 19, 23],
  ]);
  await messageOf(() => splitColumns(x, [3, 2], 2), "x is [2,12], but 2 parts of 3 + 2 columns are 10");
});

test("fusedAttention() and fusedGatedMlp() are those of separate weights, in either order of columns", async () => {
  const [B, N, D, heads, groups, dh] = [2, 5, 12, 6, 2, 4];
  const p = { q: layer(D, heads * dh), k: layer(D, groups * dh), v: layer(D, groups * dh), out: layer(heads * dh, D) };
  const x = noise(B, N, D) as tf.Tensor3D;
  const want = take(attention(p, x, { heads, groups }));
  const rowsOf = (name: "weight" | "bias", parts: number) =>
    tf.concat(
      Array.from({ length: parts }, (_, i) =>
        [p.q, p.k, p.v].map(({ [name]: y }) => {
          const count = y.shape[0] / parts;
          return y.slice(i * count, count);
        }),
      ).flat(),
    );
  for (const parts of [1, groups]) {
    const qkv = { weight: rowsOf("weight", parts) as tf.Tensor2D, bias: rowsOf("bias", parts) as tf.Tensor1D };
    expectClose(take(fusedAttention({ qkv, out: p.out }, x, { heads, groups, parts })), want, 1e-6, `${parts} parts`);
  }
  await messageOf(() => fusedAttention({ qkv: layer(D, 3 * D), out: p.out }, x, { heads: 5 }), "width 12 does not divide into 5 heads");
  const ff = { gate: layer(D, 7), up: layer(D, 7), down: layer(7, D) };
  const gateUp = {
    weight: tf.concat([ff.gate.weight, ff.up.weight]) as tf.Tensor2D,
    bias: tf.concat([ff.gate.bias, ff.up.bias]) as tf.Tensor1D,
  };
  expectClose(take(fusedGatedMlp({ gateUp, down: ff.down }, x)), take(gatedMlp(ff, x)), 1e-6);
});

test("causalMask() and paddingMask() block with finite numbers, also together", () => {
  const causal = causalMask(3).arraySync()[0][0] as number[][];
  causal.forEach((row, query) => row.forEach((value, key) => assert.equal(value < 0, key > query)));
  const padded = paddingMask(
    tf.tensor2d(
      [
        [1, 1, 0],
        [0, 0, 0],
      ],
      undefined,
      "int32",
    ),
  );
  assert.deepEqual(padded.shape, [2, 1, 1, 3]);
  const both = tf.softmax(causalMask(3).add(padded)).arraySync() as number[][][][];
  assert.deepEqual(both[0][0], [
    [1, 0, 0],
    [0.5, 0.5, 0],
    [0.5, 0.5, 0],
  ]);
  for (const row of both[1][0])
    assert.ok(
      row.every((share) => Number.isFinite(share)),
      "a row of nothing but padding is no NaN",
    );
});

test("patchEmbed() is a convolution whose stride is its kernel", () => {
  const [P, C, D] = [4, 3, 5];
  for (const [H, W] of [
    [8, 12],
    [10, 13],
    [4, 4],
  ]) {
    const pixels = noise(2, H, W, C) as tf.Tensor4D;
    const kernel = noise(D, C, P, P) as tf.Tensor4D; // as in the file
    const want = tf.conv2d(pixels, kernel.transpose([2, 3, 1, 0]) as tf.Tensor4D, P, "valid");
    const got = patchEmbed({ weight: kernel.reshape([D, C * P * P]) }, pixels, P);
    assert.deepEqual(got.shape, [2, Math.floor(H / P) * Math.floor(W / P), D]);
    expectClose(got.dataSync(), want.dataSync(), 1e-5);
  }
});

test("embedding() picks rows; mlp() is two layers with an activation between", () => {
  const table = noise(7, 3) as tf.Tensor2D;
  const rows = embedding(
    table,
    tf.tensor2d(
      [
        [6, 0],
        [2, 2],
      ],
      undefined,
      "int32",
    ),
  ).arraySync();
  const all = table.arraySync();
  assert.deepEqual(rows, [
    [all[6], all[0]],
    [all[2], all[2]],
  ]);
  const p = { fc1: layer(3, 8), fc2: layer(8, 3) };
  const x = noise(2, 2, 3) as tf.Tensor3D;
  expectSame(mlp(p, x, "gelu").dataSync(), linear(p.fc2, gelu(linear(p.fc1, x))).dataSync());
});

test("activationName() knows the names of configs and says them when it is asked for another", async () => {
  assert.equal(activationName("gelu"), "gelu");
  await messageOf(() => activationName("mish"), 'hidden_act "mish" is not known; known: gelu, quick_gelu');
  await messageOf(() => activationName("constructor"), 'hidden_act "constructor" is not known');
});
