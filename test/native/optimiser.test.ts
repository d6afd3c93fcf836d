import assert from "node:assert/strict";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16 } from "vitrine/engine/bfloat16";
import { runNative } from "vitrine/engine/native";
import { expectClose, messageOf } from "../support/close";
import { noise, numbers, rounded } from "./support";

before(() => engine().then(() => {}));

/** 1, a prime, more than one thread's piece (16384), nothing. */
const SHAPES = [[1], [7, 13], [8, 768], [20011], [0, 3]];
const [RATE, BETA1, BETA2, EPS] = [0.01, 0.9, 0.999, 1e-8];

/** One step of torch.optim.AdamW in float64, in place. */
function reference(p: Float64Array, g: ArrayLike<number>, m: Float64Array, v: Float64Array, step: number, decay: number): void {
  for (let i = 0; i < p.length; i++) {
    p[i] *= 1 - RATE * decay;
    m[i] = BETA1 * m[i] + (1 - BETA1) * g[i];
    v[i] = BETA2 * v[i] + (1 - BETA2) * g[i] ** 2;
    p[i] -= ((RATE / (1 - BETA1 ** step)) * m[i]) / (Math.sqrt(v[i]) / Math.sqrt(1 - BETA2 ** step) + EPS);
  }
}

test("adamW takes five steps as PyTorch's AdamW does, all tensors at once, in their memory", () =>
  tf.tidy(() => {
    const start = SHAPES.map((shape) => noise(...shape));
    const own = start.flatMap((x) => [tf.tensor(x.dataSync().slice(), x.shape), tf.zerosLike(x), tf.zerosLike(x)]);
    const want = start.map((x) => [Float64Array.from(x.dataSync()), new Float64Array(x.size), new Float64Array(x.size)] as const);
    const decays = SHAPES.map((shape) => (shape.length < 2 ? 0 : 0.1));
    for (let step = 1; step <= 5; step++) {
      const gradients = SHAPES.map((shape) => noise(...shape).mul(10 ** (1 - step)));
      const inputs = gradients.flatMap((g, i) => [own[3 * i], g, own[3 * i + 1], own[3 * i + 2]]);
      assert.equal(runNative("adamW", inputs, [RATE, BETA1, BETA2, EPS, step, 1, ...decays]).length, 0);
      want.forEach(([p, m, v], i) => {
        reference(p, gradients[i].dataSync(), m, v, step, decays[i]);
        expectClose(numbers(own[3 * i]), p, 2e-6, `tensor ${i}, step ${step}`);
      });
    }
  }));

test("adamW scales gradients by the share that clipping leaves, and takes bfloat16 ones", () =>
  tf.tidy(() => {
    const [start, g] = [noise(101), noise(101)];
    const step = (gradient: tf.Tensor, share: number) => {
      const p = tf.tensor(start.dataSync().slice());
      runNative("adamW", [p, gradient, tf.zeros([101]), tf.zeros([101])], [RATE, BETA1, BETA2, 1e-3, 1, share, 0]);
      return numbers(p);
    };
    expectClose(step(g, 0.25), step(g.mul(0.25), 1), 1e-7);
    expectClose(step(toBfloat16(g), 1), step(rounded(g), 1), 0);
  }));

test("globalNorm is the length of all gradients, large and NaN ones too", () =>
  tf.tidy(() => {
    const gradients = SHAPES.map((shape) => noise(...shape));
    const want = Math.hypot(...gradients.map((g) => Math.hypot(...numbers(g))));
    expectClose(numbers(runNative("globalNorm", gradients)[0]), [want], 1e-5 * want);
    assert.deepEqual(runNative("globalNorm", gradients)[0].shape, []);
    assert.deepEqual([...numbers(runNative("globalNorm", [])[0])], [0]);
    assert.ok(Number.isNaN(numbers(runNative("globalNorm", [tf.tensor1d([1, Number.NaN])])[0])[0]));
  }));

test("adamW refuses what does not fit, and changes nothing then", async () => {
  const four = (): tf.Tensor[] => [tf.ones([3]), tf.ones([3]), tf.zeros([3]), tf.zeros([3])];
  const rates = [RATE, BETA1, BETA2, EPS, 1, 1];
  await messageOf(() => runNative("adamW", four().slice(1), [...rates, 0]), "3 inputs; expected parameter, gradient");
  await messageOf(() => runNative("adamW", four(), rates), "6 numbers; expected 6 and the weight decay of each of 1 tensors");
  await messageOf(() => runNative("adamW", four(), [RATE, 1, BETA2, EPS, 1, 1, 0]), "betas are 1 and 0.999");
  await messageOf(() => runNative("adamW", four(), [RATE, BETA1, BETA2, EPS, 0, 1, 0]), /number 4 is 0/);
  const eight = [...four(), ...four().map((x, i) => (i === 1 ? tf.ones([4]) : x))];
  await messageOf(() => runNative("adamW", eight, [...rates, 0, 0]), "input 5 is float32 [4]; expected shape [3]");
  assert.deepEqual([...eight[0].dataSync()], [1, 1, 1]);
});
