/** Every op that is declared: its gradient is the finite difference of its formula, its kernels are its formula, at awkward sizes. */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { isBfloat16, toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { ops } from "vitrine/engine/op";
import { crossEntropy } from "vitrine/nn/cross-entropy";
import "vitrine/nn/layers"; // and with it every op
import { autocast, gelu, layerNormOp, linearProduct, quickGelu } from "vitrine/nn/ops";
import { expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";
import { decoderTrials } from "./decoder-trials";

before(() => engine().then(() => {}));

let draw = random(9);
const noise = (shape: number[], spread = 1) =>
  tf.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => spread * (2 * draw() - 1)),
    shape,
  );
const ids = (shape: number[], below: number) =>
  tf.tensor(
    Int32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => Math.floor(below * draw())),
    shape,
    "int32",
  );

type Attributes = { [name: string]: number | string | boolean };
type Case = { inputs: { [name: string]: tf.Tensor }; attributes?: Attributes };
export type Trial = {
  cases: () => Case[];
  /** Inputs with a gradient; default all float32 ones. */
  wrt?: string[];
  /** The declared gradient is zero on purpose. */
  constant?: boolean;
  /** Half the step of the finite difference, and the share of the largest gradient by which it may be off. */
  step?: number;
  tolerance?: number;
};

const causal = (N: number) =>
  tf
    .range(0, N)
    .reshape([1, 1, 1, N])
    .greater(tf.range(0, N).reshape([1, 1, N, 1]))
    .cast("float32")
    .mul(-1e30);
const attention = (B: number, N: number, heads: number, width: number, mask?: tf.Tensor, causal = false, groups = heads, keys = N) => ({
  inputs: {
    q: noise([B, N, heads * width]),
    k: noise([B, keys, groups * width]),
    v: noise([B, keys, groups * width]),
    ...(mask ? { mask } : {}),
  },
  attributes: { heads, groups, causal, scale: 1 / Math.sqrt(width) },
});
const SHAPES = [[1], [1, 1], [7], [3, 5], [2, 3, 13], [17, 1], [257]];

/** What each op is tried with. A new op needs a row here. */
const TRIALS: { [op: string]: Trial } = {
  ...decoderTrials((shape, spread) => noise(shape, spread)),
  Project: {
    cases: () =>
      [
        [[1], 1],
        [[1, 1], 3],
        [[2, 3], 5],
        [[7, 13], 1],
        [[2, 3, 11], 7],
      ].flatMap(([shape, out]) => {
        const inner = (shape as number[]).at(-1)!;
        const inputs = { x: noise(shape as number[]), weight: noise([out as number, inner]) };
        return [{ inputs }, { inputs: { ...inputs, bias: noise([out as number]) } }];
      }),
  },
  ProjectFrozen: {
    // Linear in x, so the step may be large; products are of rounded numbers.
    cases: () =>
      [
        [[1, 1], 1],
        [[2, 3, 11], 7],
        [[5, 13], 17],
      ].map(([shape, out]) => ({
        inputs: {
          x: noise(shape as number[]),
          weight: toBfloat16(noise([out as number, (shape as number[]).at(-1)!])),
          bias: noise([out as number]),
        },
      })),
    wrt: ["x", "bias"],
    step: 4,
    tolerance: 0.03,
  },
  AddSame: { cases: () => SHAPES.map((shape) => ({ inputs: { a: noise(shape), b: noise(shape) } })) },
  LayerNorm: {
    cases: () =>
      [
        [1, 1],
        [1, 2],
        [3, 5],
        [2, 3, 13],
        [1, 257],
      ].map((shape) => ({
        inputs: { x: noise(shape, 2), weight: noise([shape.at(-1)!]), bias: noise([shape.at(-1)!]) },
        attributes: { eps: 1e-2 }, // so that rows of one or two numbers are smooth enough to be differenced
      })),
  },
  Gelu: { cases: () => SHAPES.map((shape) => ({ inputs: { x: noise(shape, 3) } })) },
  QuickGelu: { cases: () => SHAPES.map((shape) => ({ inputs: { x: noise(shape, 3) } })) },
  RowNorms: {
    cases: () =>
      [
        [1, 1, 1],
        [5, 3, 2],
        [13, 7, 4],
      ].map(([out, inner, r]) => ({
        inputs: { weight: noise([out, inner]), A: noise([r, inner]), B: noise([out, r]) },
        attributes: { scale: 0.5 },
      })),
    wrt: ["A", "B"],
    constant: true, // DoRA, section 4.3: the norm counts as a constant
  },
  Embedding: {
    cases: () =>
      [
        [1, 1, [1]],
        [5, 3, [7]],
        [13, 7, [2, 5]],
      ].map(([rows, width, shape]) => ({
        inputs: { table: noise([rows as number, width as number]), ids: ids(shape as number[], rows as number) },
        attributes: { rows: rows as number },
      })),
  },
  ScaleChannels: { cases: () => SHAPES.map((shape) => ({ inputs: { x: noise(shape), scale: noise([shape.at(-1)!]) } })) },
  Attend: {
    cases: () => [
      attention(1, 1, 1, 1),
      attention(2, 3, 1, 5),
      attention(1, 5, 3, 2),
      attention(2, 5, 1, 16, undefined, true),
      attention(2, 2, 4, 16, undefined, true, 2, 5),
      attention(1, 3, 6, 3, undefined, false, 2, 4),
    ],
  },
  AttendMasked: {
    cases: () => [
      attention(1, 1, 1, 1, causal(1)),
      attention(2, 5, 2, 3, causal(5)),
      attention(2, 3, 2, 16, tf.tensor([0, 0, -1e30, 0, -1e30, -1e30], [2, 1, 1, 3]), true),
      attention(2, 3, 1, 2, causal(3).add(tf.tensor([0, 0, -1e30, 0, -1e30, -1e30], [2, 1, 1, 3]))),
    ],
  },
};

const call = (name: string, { inputs, attributes = {} }: Case): tf.Tensor =>
  tf.engine().runKernel(`Vitrine${name}`, inputs, attributes as unknown as tf.NamedAttrMap) as tf.Tensor;

test("every declared op is tried here, and no other", () => assert.deepEqual(Object.keys(TRIALS).sort(), [...ops.keys()].sort()));

for (const [name, trial] of Object.entries(TRIALS)) {
  test(`${name}: kernels of this backend equal the formula`, () => {
    draw = random(9);
    tf.tidy(() => {
      for (const one of trial.cases()) {
        const [got, want] = [call(name, one), ops.get(name)!.formula(one.inputs, one.attributes ?? {})];
        assert.deepEqual(got.shape, want.shape);
        expectClose(got.dataSync(), want.dataSync(), ops.get(name)!.kernels?.[tf.getBackend()] ? 1e-5 : 0);
      }
    });
  });

  test(`${name}: the gradient is the finite difference, and frees what it makes`, async () => {
    draw = random(9);
    const { step = 1e-2, tolerance = 3e-3, constant = false } = trial;
    await keepsTensorCount(() =>
      tf.tidy(() => {
        for (const one of trial.cases()) {
          const keys = trial.wrt ?? Object.keys(one.inputs).filter((key) => one.inputs[key].dtype === "float32");
          for (const key of keys) {
            if (!one.inputs[key]) continue;
            const weights = noise(call(name, one).shape);
            const value = (x: tf.Tensor) =>
              call(name, { ...one, inputs: { ...one.inputs, [key]: x } })
                .mul(weights)
                .sum() as tf.Scalar;
            const gradient = tf.grad(value)(one.inputs[key]);
            assert.deepEqual(gradient.shape, one.inputs[key].shape);
            const want = constant ? new Float32Array(gradient.size) : difference(value, one.inputs[key], step);
            const largest = Math.max(0.1, ...want.map(Math.abs));
            expectClose(gradient.dataSync(), want, tolerance * largest, `${name} d${key} ${JSON.stringify(one.inputs[key].shape)}`);
          }
        }
      }),
    );
  });
}

/** Central differences of a scalar function, at each of its input's numbers. */
function difference(value: (x: tf.Tensor) => tf.Scalar, x: tf.Tensor, step: number): Float32Array {
  const at = Float32Array.from(x.dataSync());
  const moved = (i: number, by: number) => {
    const changed = at.slice();
    changed[i] += by;
    return tf.tidy(() => value(tf.tensor(changed, x.shape)).dataSync()[0]);
  };
  return Float32Array.from(at, (_, i) => (moved(i, step) - moved(i, -step)) / (2 * step));
}

test("gelu() and quickGelu() equal their definitions far out and at 0", () => {
  const x = [-100, -8, -1, -1e-4, -0, 0, 1e-4, 1, 8, 100];
  // Φ(1) = 0.8413447460685429 and Φ(-1) = 1 - Φ(1) (Python's math.erf).
  expectClose(
    gelu(tf.tensor1d(x)).dataSync(),
    [0, 0, -0.15865525393145707, -4.99960106e-5, 0, 0, 5.00039894e-5, 0.8413447460685429, 8, 100],
    2e-6,
  );
  expectClose(
    quickGelu(tf.tensor1d(x)).dataSync(),
    x.map((v) => v / (1 + Math.exp(-1.702 * v))),
    1e-5,
  );
});

test("layerNormOp() of a row far from zero keeps its precision", () => {
  const x = tf.tensor2d([[1000, 1001, 1002]]);
  const y = layerNormOp(x, tf.ones([3]) as tf.Tensor1D, tf.zeros([3]) as tf.Tensor1D, 0).dataSync();
  expectClose(y, [-Math.sqrt(1.5), 0, Math.sqrt(1.5)], 1e-5);
});

test("linearProduct() with a frozen bfloat16 weight gives float32, near the float32 product", async () => {
  const [x, weight] = [noise([3, 5, 64]), noise([7, 64]) as tf.Tensor2D];
  const frozen = toBfloat16(weight);
  const y = linearProduct(x, frozen);
  assert.ok(!isBfloat16(y));
  assert.deepEqual(y.shape, [3, 5, 7]);
  expectClose(y.dataSync(), linearProduct(x, toFloat32(frozen) as tf.Tensor2D).dataSync(), 0.1);
  await messageOf(
    () => tf.grad((w) => linearProduct(x, w as tf.Tensor2D).sum())(frozen),
    'a bfloat16 weight is frozen; load with { dtype: "float32" } to train it',
  );
  await messageOf(() => linearProduct(noise([3, 5]), weight), "x [3,5] does not fit weight [7, 64]; the last axis of x must be 64");
  tf.dispose([x, weight, frozen, y]);
});

test("autocast() multiplies in bfloat16 inside alone, also when what it runs throws", () => {
  const [x, weight] = [noise([8, 32]), noise([8, 32]) as tf.Tensor2D];
  const exact = linearProduct(x, weight).dataSync();
  const mixed = autocast(() => linearProduct(x, weight)).dataSync();
  assert.notDeepEqual(mixed, exact);
  expectClose(mixed, exact, 0.1);
  assert.throws(
    () =>
      autocast(() => {
        throw new Error("inside");
      }),
    /inside/,
  );
  expectSame(linearProduct(x, weight).dataSync(), exact);
  autocast(() => {
    autocast(() => {});
    expectSame(linearProduct(x, weight).dataSync(), mixed, "still on after an inner one");
  });
});

test("crossEntropy() is the mean of -log of the right class's share", () => {
  const logits = [
    [1, 2, 3],
    [0, 0, 0],
  ];
  const want = [2, 0].map((label, i) => Math.log(logits[i].reduce((sum, l) => sum + Math.exp(l), 0)) - logits[i][label]);
  const got = crossEntropy(tf.tensor2d(logits), tf.tensor1d([2, 0], "int32"));
  expectClose(got.dataSync(), [(want[0] + want[1]) / 2], 1e-6);
  const far = crossEntropy(
    tf.tensor2d([
      [1000, 0],
      [0, 1000],
    ]),
    tf.tensor1d([1, 1], "int32"),
  );
  expectClose(far.dataSync(), [500], 1e-3, "no overflow");
});
