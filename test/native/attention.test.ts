import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16 } from "vitrine/engine/bfloat16";
import { runNative } from "vitrine/engine/native";
import { expectClose, messageOf } from "../support/close";
import { noise, numbers, rounded, slopes } from "./support";

before(() => engine().then(() => {}));

type Masks = { causal?: boolean; padding?: tf.Tensor; mask?: tf.Tensor };
type Shape = { B: number; H: number; G: number; Nq: number; Nk: number; d: number };

const HIDDEN = -1e30; // as in nn/layers

/** The pattern with the whole matrix: softmax(scale q·kᵀ + masks). q: [B, Nq, H·d], k: [B, Nk, G·d] -> [B, H, Nq, Nk] */
function pattern({ B, H, G, Nq, Nk, d }: Shape, q: tf.Tensor, k: tf.Tensor, { causal, padding, mask }: Masks): tf.Tensor {
  let scores = tf.matMul(heads(q, B, Nq, H, d), spread(heads(k, B, Nk, G, d), H / G), false, true).mul(1 / Math.sqrt(d)) as tf.Tensor;
  if (mask) scores = scores.add(mask);
  if (padding) scores = scores.add(tf.scalar(1).sub(padding.cast("float32")).mul(HIDDEN).reshape([B, 1, 1, Nk]));
  const later = tf
    .range(0, Nk)
    .reshape([1, Nk])
    .greater(
      tf
        .range(0, Nq)
        .add(Nk - Nq)
        .reshape([Nq, 1]),
    );
  if (causal) scores = scores.add(later.cast("float32").mul(HIDDEN));
  return tf.softmax(scores);
}

const heads = (x: tf.Tensor, B: number, N: number, H: number, d: number) => x.reshape([B, N, H, d]).transpose([0, 2, 1, 3]);
/** Each key head once for every query head that shares it. */
const spread = (x: tf.Tensor, times: number) => {
  const [B, G, N, d] = x.shape;
  return tf.stack(Array(times).fill(x), 2).reshape([B, G * times, N, d]);
};

function formula(s: Shape, q: tf.Tensor, k: tf.Tensor, v: tf.Tensor, masks: Masks): tf.Tensor {
  const z = tf.matMul(pattern(s, q, k, masks), spread(heads(v, s.B, s.Nk, s.G, s.d), s.H / s.G));
  return z.transpose([0, 2, 1, 3]).reshape([s.B, s.Nq, s.H * s.d]);
}

const call = ({ H, G, d }: Shape, { causal }: Masks, keys = 0) => [H, G, causal ? 1 : 0, 1 / Math.sqrt(d), keys];
const shape = (B: number, H: number, G: number, Nq: number, Nk: number, d: number): Shape => ({ B, H, G, Nq, Nk, d });

/** Every mask and sharing of heads, at 1, primes, around a tile (64) and a row of registers (16), longer than a thread's share (96). */
const CASES: [Shape, ("causal" | "padding" | "mask")[]][] = [
  [shape(1, 1, 1, 1, 1, 16), []],
  [shape(2, 3, 3, 7, 7, 32), ["causal"]],
  [shape(2, 2, 2, 50, 50, 64), []],
  [shape(2, 2, 2, 77, 77, 64), ["causal", "padding"]],
  [shape(2, 4, 2, 13, 29, 48), ["causal", "mask"]],
  [shape(1, 6, 1, 1, 131, 128), ["padding"]],
  [shape(2, 2, 1, 65, 64, 80), ["mask", "padding"]],
  [shape(1, 2, 2, 197, 197, 112), ["causal", "padding", "mask"]],
  [shape(3, 1, 1, 17, 5, 96), []],
];

function inputs(s: Shape, names: string[], maskShape = [s.B, 1, s.Nq, s.Nk]) {
  const [q, k, v] = [noise(s.B, s.Nq, s.H * s.d).mul(2), noise(s.B, s.Nk, s.G * s.d).mul(2), noise(s.B, s.Nk, s.G * s.d)];
  const masks: Masks = { causal: names.includes("causal") };
  if (names.includes("padding"))
    masks.padding = tf
      .range(0, s.B * s.Nk, 1, "int32")
      .reshape([s.B, s.Nk])
      .mod(tf.scalar(5, "int32"))
      .notEqual(3)
      .cast("int32");
  if (names.includes("mask")) masks.mask = noise(...maskShape).mul(2);
  return { q, k, v, masks };
}

for (const [s, names] of CASES)
  test(`attention ${JSON.stringify(s)} ${names.join(", ") || "without masks"} matches the formula, its pattern and its gradient`, () =>
    tf.tidy(() => {
      const { q, k, v, masks } = inputs(s, names);
      const given = [q, k, v, masks.padding, masks.mask];
      const [o, logarithms] = runNative("attention", given, call(s, masks));
      expectClose(numbers(o), numbers(formula(s, q, k, v, masks)), 4e-6, "output");
      assert.deepEqual(logarithms.shape, [s.B, s.H, s.Nq]);
      const [probabilities] = runNative("attentionPattern", given, call(s, masks));
      expectClose(numbers(probabilities), numbers(pattern(s, q, k, masks)), 2e-6, "pattern");
      const dout = noise(...o.shape);
      const got = runNative("attentionGradient", [...given, o, logarithms, dout], call(s, masks));
      const want = tf.grads((q, k, v) => formula(s, q, k, v, masks))([q, k, v], dout);
      ["dq", "dk", "dv"].forEach((name, i) => expectClose(numbers(got[i]), numbers(want[i]), 3e-5, name));
    }));

test("attention in bfloat16 stays within its rounding of the formula on the same numbers, forward and backward", () =>
  tf.tidy(() => {
    for (const [s, names] of CASES) {
      const { q, k, v, masks } = inputs(s, names);
      const halves = [q, k, v].map((x) => toBfloat16(x));
      const given = [...halves, masks.padding, masks.mask];
      const [o, logarithms] = runNative("attention", given, call(s, masks));
      assert.equal(o.dtype, "bfloat16");
      const [a, b, c] = [q, k, v].map(rounded);
      expectClose(numbers(o), numbers(formula(s, a, b, c, masks)), 0.01, `output of ${JSON.stringify(s)}`);
      const dout = noise(...o.shape);
      const got = runNative("attentionGradient", [...given, o, logarithms, toBfloat16(dout)], call(s, masks));
      const want = tf.grads((q, k, v) => formula(s, q, k, v, masks))([a, b, c], rounded(dout));
      got.forEach((x, i) => {
        const [scale, name] = [want[i].abs().max().dataSync()[0], `${["dq", "dk", "dv"][i]} of ${JSON.stringify(s)}`];
        assert.equal(x.dtype, "bfloat16");
        expectClose(numbers(x), numbers(want[i]), 0.02 * Math.max(scale, 0.5), name);
      });
    }
  }));

test("attentionGradient matches finite differences of attention", () =>
  tf.tidy(() => {
    const s = shape(1, 2, 1, 3, 5, 16);
    const { q, k, v, masks } = inputs(s, ["causal", "mask"]);
    const given = (x: tf.Tensor, i: number) => [...[q, k, v].map((y, j) => (j === i ? x : y)), undefined, masks.mask];
    const dout = noise(1, 3, 32);
    const [o, logarithms] = runNative("attention", given(q, 0), call(s, masks));
    const got = runNative("attentionGradient", [...given(q, 0), o, logarithms, dout], call(s, masks));
    [q, k, v].forEach((x, i) => {
      const loss = (moved: tf.Tensor) => runNative("attention", given(moved, i), call(s, masks))[0].mul(dout).sum().dataSync()[0];
      expectClose(numbers(got[i]), slopes(loss, x, 1e-2), 1e-3, ["dq", "dk", "dv"][i]);
    });
  }));

test("attention takes q, k and v side by side in one tensor, bit for bit as apart", () =>
  tf.tidy(() => {
    const s = shape(2, 4, 2, 21, 21, 32);
    const { q, k, v, masks } = inputs(s, ["causal"]);
    const [apart, logarithms] = runNative("attention", [q, k, v], call(s, masks));
    const joined = tf.concat([q, k, v], 2);
    const [o] = runNative("attention", [joined], call(s, masks));
    expectClose(numbers(o), numbers(apart), 0);
    const [none, dout] = [undefined, noise(...o.shape)];
    const parts = runNative("attentionGradient", [q, k, v, none, none, o, logarithms, dout], call(s, masks));
    const whole = runNative("attentionGradient", [joined, none, none, none, none, o, logarithms, dout], call(s, masks));
    assert.equal(whole.length, 1);
    expectClose(numbers(whole[0]), numbers(tf.concat(parts, 2)), 0);
  }));

test("attention reads the first rows of a cache that has room for more", () =>
  tf.tidy(() => {
    const s = shape(2, 4, 2, 3, 9, 32);
    const { q, k, v, masks } = inputs(s, ["causal"]);
    const room = (x: tf.Tensor) => tf.concat([x, tf.fill([2, 7, 64], Number.NaN)], 1);
    const want = numbers(runNative("attention", [q, k, v], call(s, masks))[0]);
    expectClose(numbers(runNative("attention", [q, room(k), room(v)], call(s, masks, 9))[0]), want, 0);
  }));

test("attention shares a mask among pictures, heads and queries", () =>
  tf.tidy(() => {
    const s = shape(2, 3, 3, 5, 7, 16);
    for (const maskShape of [
      [1, 1, 5, 7],
      [1, 3, 1, 7],
      [2, 1, 1, 7],
      [2, 3, 5, 7],
    ]) {
      const { q, k, v, masks } = inputs(s, ["mask"], maskShape);
      const [o] = runNative("attention", [q, k, v, undefined, masks.mask], call(s, masks));
      expectClose(numbers(o), numbers(formula(s, q, k, v, masks)), 4e-6, String(maskShape));
      const [half] = runNative("attention", [q, k, v, undefined, toBfloat16(masks.mask!)], call(s, masks));
      expectClose(numbers(half), numbers(formula(s, q, k, v, { mask: rounded(masks.mask!) })), 4e-6, "bfloat16 mask");
    }
  }));

test("attention of a row that may look nowhere is finite and even, and so is its gradient; -Infinity hides as well", () =>
  tf.tidy(() => {
    const s = shape(2, 2, 2, 4, 6, 16);
    const { q, k, v } = inputs(s, []);
    const padding = tf.tensor2d(
      [
        [0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 1],
      ],
      [2, 6],
      "int32",
    );
    const infinite = padding.cast("float32").sub(1).mul(Number.POSITIVE_INFINITY).reshape([2, 1, 1, 6]);
    const hidden = tf.where(
      padding.cast("bool").reshape([2, 1, 1, 6]),
      tf.zerosLike(infinite),
      tf.fill([2, 1, 1, 6], Number.NEGATIVE_INFINITY),
    );
    const want = numbers(formula(s, q, k, v, { padding }));
    for (const masks of [{ padding }, { mask: hidden }] as Masks[]) {
      const given = [q, k, v, masks.padding, masks.mask];
      const [o, logarithms] = runNative("attention", given, call(s, masks));
      expectClose(numbers(o), want, 4e-6);
      const dout = noise(2, 4, 32);
      const got = runNative("attentionGradient", [...given, o, logarithms, dout], call(s, masks));
      const grads = tf.grads((q, k, v) => formula(s, q, k, v, { padding }))([q, k, v], dout);
      got.forEach((x, i) => expectClose(numbers(x), numbers(grads[i]), 1e-5, ["dq", "dk", "dv"][i]));
    }
  }));

test("attention keeps NaN to its rows and does not overflow on large scores", () =>
  tf.tidy(() => {
    const s = shape(1, 2, 2, 5, 5, 16);
    const { q, k, v, masks } = inputs(s, []);
    const large = numbers(runNative("attention", [q.mul(1e9), k.mul(1e9), v], call(s, masks))[0]);
    assert.ok(
      large.every((x) => Math.abs(x) <= 1),
      "a mean of values stays among them",
    );
    const broken = q.dataSync().slice();
    broken[32 + 3] = Number.NaN; // query 1, head 0
    const o = numbers(runNative("attention", [tf.tensor(broken, q.shape), k, v], call(s, masks))[0]);
    o.forEach((x, i) => assert.equal(Number.isNaN(x), i >= 32 && i < 48, `number ${i}`));
  }));

test("attention of nothing is nothing", () =>
  tf.tidy(() => {
    const empty = tf.zeros([0, 4, 32]);
    const [o, logarithms] = runNative("attention", [empty, empty, empty], [2, 2, 1, 0.25, 0]);
    assert.deepEqual(
      [o.shape, logarithms.shape],
      [
        [0, 4, 32],
        [0, 2, 4],
      ],
    );
    const got = runNative("attentionGradient", [empty, empty, empty, undefined, undefined, o, logarithms, o], [2, 2, 1, 0.25, 0]);
    assert.deepEqual(
      got.map((x) => x.shape),
      [
        [0, 4, 32],
        [0, 4, 32],
        [0, 4, 32],
      ],
    );
  }));

test("attention refuses what does not fit, before it reads it", async () => {
  const [q, k] = [tf.ones([2, 4, 32]), tf.ones([2, 6, 32])];
  const fails = (inputs: (tf.Tensor | undefined)[], numbers: number[], part: string | RegExp) =>
    messageOf(() => runNative("attention", inputs, numbers), part);
  await fails([q, k, k], [3, 3, 0, 1, 0], "3 heads of width 10 and a rest; the width of a head must be 16, 32, ... 128");
  await fails([q, k, k], [4, 4, 0, 1, 0], "4 heads of width 8; the width of a head must be");
  await fails([q, k, k], [2, 3, 0, 1, 0], "2 heads do not divide among 3 key heads");
  await fails([q, k, tf.ones([2, 5, 32])], [2, 2, 0, 1, 0], "input 2 is float32 [2, 5, 32]; expected shape [2, 6, 32]");
  await fails([q, toBfloat16(k), k], [2, 2, 0, 1, 0], "input 1 is bfloat16 [2, 6, 32]; expected float32");
  await fails([k, q, q], [2, 2, 1, 1, 0], "causal, but 6 queries and only 4 keys");
  await fails([q, k, k], [2, 2, 0, 0, 0], "scale is 0; expected a positive number");
  await fails([q, k, k, tf.ones([2, 4], "int32")], [2, 2, 0, 1, 0], "input 3 is int32 [2, 4]; expected shape [2, 6]");
  await fails([q, k, k, undefined, tf.ones([2, 3, 4, 6])], [2, 2, 0, 1, 0], "expected [2 or 1, 2 or 1, 4 or 1, 6]");
  await fails([q, k, k], [2, 2, 0, 1, 7], /number 4 is 7/);
});
