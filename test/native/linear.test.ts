import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import {
  hasNative,
  type LinearOptions,
  linearNative,
  linearBack,
  linearKeeping,
  lowRank,
  lowRankGradient,
  nativeBytes,
  packWeight,
  packWeightBytes,
  runNative,
  unpackWeight,
} from "vitrine/engine/native";
import { gelu, quickGelu } from "vitrine/nn/ops";
import { bindingPlan } from "../../src/setup/binding.mjs";
import { expectClose, expectSame, keepsTensorCount, messageOf } from "../support/close";
import { geluTanh } from "./support";
import { GENERAL, native as nativeSource, runCheck } from "./build";

before(() => engine().then(() => {}));

/** A test that needs the packed product. */
const native = (name: string, body: () => unknown) =>
  test(name, async (t) => {
    if (!hasNative("linear")) return t.skip("the packed product needs a processor with bfloat16 instructions");
    await body();
  });

const draw = random(11);
const noise = (...shape: number[]) =>
  tf.tensor(
    Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => 2 * draw() - 1),
    shape,
  );
const rounded = <T extends tf.Tensor>(x: T): T => toFloat32(toBfloat16(x));
const numbers = (x: tf.Tensor) => Float32Array.from(toFloat32(x).dataSync());

/** 1, primes, odd lengths, around the panel of 64 and the tile of 6, longer than a block of rows (192) and of a panel (4096). */
const SIZES = [
  [1, 1, 1],
  [1, 7, 65],
  [5, 1, 3],
  [6, 64, 64],
  [7, 63, 17],
  [13, 33, 130],
  [200, 50, 70],
  [389, 10, 33],
  [2, 4201, 66],
] as const;

const ACTIVATIONS: { [name: string]: (x: tf.Tensor) => tf.Tensor } = {
  none: (x) => x,
  gelu,
  quick_gelu: quickGelu,
  silu: (x) => x.mul(x.sigmoid()),
  gelu_tanh: geluTanh,
  relu: (x) => x.relu(),
};

/** The formula in float32 on inputs rounded to bfloat16: what the kernel may differ from by the order of its float32 sums only. */
function formula(x: tf.Tensor2D, weight: tf.Tensor2D, { bias, activation = "none", residual, pair }: LinearOptions = {}): tf.Tensor {
  let y: tf.Tensor = tf.matMul(rounded(x), rounded(weight), false, true);
  if (pair) {
    const up = rounded(pair.up.mul(pair.scale)) as tf.Tensor2D;
    y = y.add(tf.matMul(rounded(pair.low as tf.Tensor2D), up, false, !pair.transposed));
  }
  y = ACTIVATIONS[activation]!(bias ? y.add(bias) : y);
  return residual ? y.add(toFloat32(residual)) : y;
}

native("linearNative() matches the formula at every size, from float32 and bfloat16, to both", () =>
  tf.tidy(() => {
    for (const [M, K, N] of SIZES) {
      const [x, weight, bias, residual] = [noise(M, K) as tf.Tensor2D, noise(N, K) as tf.Tensor2D, noise(N) as tf.Tensor1D, noise(M, N)];
      const packed = packWeight(weight);
      const want = numbers(formula(x, weight, { bias, residual }));
      const close = 1e-6 * (K + 8);
      const what = `[${M}, ${K}] to ${N}`;
      expectClose(numbers(linearNative(x, packed, { bias, residual })), want, close, what);
      expectSame(
        numbers(linearNative(toBfloat16(x), packed, { bias, residual })),
        numbers(linearNative(x, packed, { bias, residual })),
        what,
      );
      const half = linearNative(x, packed, { bias, residual, dtype: "bfloat16" });
      assert.equal(half.dtype, "bfloat16");
      expectSame(numbers(half), numbers(rounded(linearNative(x, packed, { bias, residual }))), `${what}, rounded at the end`);
      const halfResidual = toBfloat16(residual);
      expectClose(
        numbers(linearNative(x, packed, { bias, residual: halfResidual })),
        numbers(formula(x, weight, { bias, residual: halfResidual })),
        close,
        `${what}, bfloat16 residual`,
      );
    }
  }),
);

native("linearNative() folds in every activation, and linearKeeping() gives what goes into it", () =>
  tf.tidy(() => {
    const [x, weight, bias] = [noise(19, 37).mul(2) as tf.Tensor2D, noise(70, 37) as tf.Tensor2D, noise(70) as tf.Tensor1D];
    const packed = packWeight(weight);
    const plain = numbers(linearNative(x, packed, { bias }));
    for (const activation of Object.keys(ACTIVATIONS) as (keyof typeof ACTIVATIONS & LinearOptions["activation"])[]) {
      const options = { bias, activation, residual: noise(19, 70) } as LinearOptions;
      const [y, before] = linearKeeping(x, packed, options);
      expectClose(numbers(y), numbers(formula(x, weight, options)), 2e-5, String(activation));
      expectSame(numbers(before), plain, `before ${activation}`);
    }
  }),
);

native("linearNative() adds a low-rank pair, either way round", () =>
  tf.tidy(() => {
    for (const rank of [1, 8, 17, 70]) {
      const [x, weight] = [noise(23, 31) as tf.Tensor2D, noise(66, 31) as tf.Tensor2D];
      const packed = packWeight(weight);
      const [low, up] = [noise(23, rank), noise(66, rank) as tf.Tensor2D];
      const options = { pair: { low, up, scale: 0.3 }, activation: "silu" } as const;
      const want = numbers(formula(x, weight, options));
      expectClose(numbers(linearNative(x, packed, options)), want, 1e-4, `rank ${rank}`);
      const turned = { ...options, pair: { low: toBfloat16(low), up: up.transpose() as tf.Tensor2D, scale: 0.3, transposed: true } };
      expectClose(numbers(linearNative(x, packed, turned)), want, 1e-4, `rank ${rank}, transposed`);
    }
  }),
);

native("lowRank() and lowRankGradient() match the formula", () =>
  tf.tidy(() => {
    for (const [M, K, r] of [
      [1, 1, 1],
      [5, 33, 8],
      [77, 130, 17],
      [390, 65, 4],
    ] as const) {
      // biome-ignore format: one line a size
      const [x, a, t] = [noise(M, K) as tf.Tensor2D, noise(r, K) as tf.Tensor2D, noise(M, r) as tf.Tensor2D];
      const want = numbers(tf.matMul(rounded(x), rounded(a.mul(0.5)) as tf.Tensor2D, false, true));
      const largest = Math.max(...want.map(Math.abs));
      for (const [from, by, transposed] of [
        [x, a, false],
        [toBfloat16(x), a.transpose(), true],
      ] as [tf.Tensor2D, tf.Tensor2D, boolean][]) {
        expectClose(numbers(runNative("lowRank", [from, by], [0.5, transposed ? 1 : 0, 1])[0]), want, 1e-6 * (K + 8));
        expectClose(numbers(lowRank(from, by, { scale: 0.5, transposed, dtype: "bfloat16" })), want, largest / 256 + 1e-6);
      }
      const exact = numbers(tf.matMul(x, a.mul(0.5) as tf.Tensor2D, false, true));
      expectClose(numbers(lowRank(x, a, { scale: 0.5 })), exact, 1e-6 * (K + 8), "a float32 result is of float32 products");
      expectClose(
        numbers(lowRankGradient(toBfloat16(t), toBfloat16(x))),
        numbers(tf.matMul(rounded(t), rounded(x), true, false)),
        1e-6 * (M + 8),
      );
      expectClose(numbers(lowRankGradient(t, x)), numbers(tf.matMul(t, x, true, false)), 1e-6 * (M + 8));
    }
  }),
);

native("linearBack() gives the gradient to the input, with a pair and a residual, from the packed weight as it is", () =>
  tf.tidy(() => {
    for (const [M, K, N] of SIZES) {
      const [weight, dy] = [noise(N, K) as tf.Tensor2D, noise(M, N) as tf.Tensor2D];
      const [packed, what] = [packWeight(weight), `[${M}, ${K}] to ${N}`];
      const plain = tf.matMul(rounded(dy), rounded(weight));
      expectClose(numbers(linearBack(dy, packed)), numbers(plain), 1e-6 * (N + 8), what);
      expectSame(numbers(linearBack(toBfloat16(dy), packed)), numbers(linearBack(dy, packed)), what);
      const [residual, low, up] = [noise(M, K), noise(M, 3), noise(3, K) as tf.Tensor2D];
      const pair = { low, up, scale: 0.5, transposed: true };
      const sum = plain.add(tf.matMul(rounded(low as tf.Tensor2D), rounded(up.mul(0.5)) as tf.Tensor2D)).add(residual);
      expectClose(numbers(linearBack(dy, packed, { residual, pair })), numbers(sum), 1e-6 * (N + 16), what);
      const half = numbers(linearBack(dy, packed, { residual: toBfloat16(residual), pair, dtype: "bfloat16" }));
      expectClose(half, numbers(sum), Math.max(...Array.from(numbers(sum), Math.abs)) / 128, `${what}, bfloat16`);
    }
  }),
);

native("a finite difference of linearNative() agrees with linearBack()", () =>
  tf.tidy(() => {
    const [x, weight, dy] = [noise(3, 21), noise(9, 21) as tf.Tensor2D, noise(3, 9)].map(rounded) as [tf.Tensor, tf.Tensor2D, tf.Tensor];
    const packed = packWeight(weight);
    const loss = (at: tf.Tensor) => linearNative(at, packed).mul(dy).sum().dataSync()[0]!;
    const gradient = numbers(linearBack(dy, packed));
    for (const i of [0, 20, 40]) {
      const step = tf
        .oneHot(tf.tensor1d([i], "int32"), 63)
        .reshape([3, 21])
        .mul(0.5); // bfloat16 holds x + 1/2 only where x does: rounded below
      const [up, down] = [rounded(x.add(step)), rounded(x.sub(step))];
      const width = up.sub(down).sum().dataSync()[0]!;
      assert.ok(Math.abs((loss(up) - loss(down)) / width - gradient[i]!) < 1e-4, `input ${i}`);
    }
  }),
);

native("packWeight() rounds as TensorFlow does, unpackWeight() gives the bits back, and bytes of a file need no float32", async () => {
  for (const [out, inner] of [
    [1, 1],
    [65, 31],
    [128, 66],
  ] as const) {
    // biome-ignore format: one line a size
    await keepsTensorCount(() => {
      const weight = noise(out, inner) as tf.Tensor2D;
      const half = toBfloat16(weight);
      const bytes = nativeBytes(half);
      const before = tf.memory().numBytes;
      const packed = packWeightBytes(bytes, [out, inner]);
      assert.equal(tf.memory().numBytes - before, 2 * packed.packed.size, "two bytes a number");
      assert.deepEqual(packed.packed.shape, [Math.ceil(out / 64), Math.ceil(inner / 2), 64, 2]);
      const [again, fromFloats] = [unpackWeight(packed), packWeight(weight)];
      assert.deepEqual(nativeBytes(again), bytes);
      assert.deepEqual(nativeBytes(fromFloats.packed), nativeBytes(packed.packed));
      tf.dispose([weight, half, packed.packed, again, fromFloats.packed]);
    });
  }
});

native("any rank, no rows and no columns", () =>
  tf.tidy(() => {
    const weight = noise(5, 6) as tf.Tensor2D;
    const packed = packWeight(weight);
    const x = noise(2, 3, 4, 6);
    const y = linearNative(x, packed);
    assert.deepEqual(y.shape, [2, 3, 4, 5]);
    expectClose(numbers(y), numbers(formula(x.reshape([24, 6]), weight)), 1e-5);
    assert.deepEqual(linearNative(tf.zeros([0, 6]), packed).shape, [0, 5]);
    const nothing = packWeight(tf.zeros([3, 0]));
    expectSame(numbers(linearNative(tf.zeros([2, 0]), nothing, { bias: tf.tensor1d([1, 2, 3]) })), [1, 2, 3, 1, 2, 3]);
    assert.deepEqual(numbers(lowRankGradient(tf.zeros([0, 2]), tf.zeros([0, 3]))), new Float32Array(6));
  }),
);

native("NaN and infinity reach exactly the rows they are in", () =>
  tf.tidy(() => {
    const x = noise(8, 5);
    const values = Float32Array.from(x.dataSync());
    values[5 * 2 + 4] = Number.POSITIVE_INFINITY; // the last number of an odd row stands beside the padding
    values[5 * 6] = Number.NaN;
    for (const activation of Object.keys(ACTIVATIONS) as LinearOptions["activation"][]) {
      const y = numbers(linearNative(tf.tensor2d(values, [8, 5]), packWeight(tf.ones([3, 5])), { activation }));
      for (let i = 0; i < 8; i++)
        for (const value of y.subarray(3 * i, 3 * i + 3)) {
          if (i === 2) assert.equal(value, Number.POSITIVE_INFINITY, `${activation}, row ${i}`);
          else assert.equal(Number.isNaN(value), i === 6, `${activation}, row ${i}`);
        }
    }
  }),
);

native("misfits are errors that name every one, and never crash", async () => {
  const scope = tf.engine().startScope();
  const packed = packWeight(noise(70, 10) as tf.Tensor2D);
  const x = noise(4, 10);
  await messageOf(
    () => linearNative(noise(4, 9), packed, { bias: noise(7) as tf.Tensor1D, residual: noise(5, 70) }),
    /weight \[70, 10\]: x is \[4,9\], expected \[4,10\]; bias is \[7\], expected \[70\]; residual is \[5,70\], expected \[4,70\]/,
  );
  await messageOf(() => linearNative(x, packed, { activation: "mish" as never }), 'activation is "mish"', "quick_gelu");
  await messageOf(() => linearNative(x, packed, { dtype: "float16" as never }), 'dtype is "float16"');
  await messageOf(
    () => linearNative(x, packed, { pair: { low: noise(4, 2), up: noise(70, 3) as tf.Tensor2D, scale: Number.NaN } }),
    "pair.up",
    "scale",
  );
  // Past the checks in TypeScript: the kernel's own.
  const call = (inputs: (tf.Tensor | undefined)[], params: number[]) => () => runNative("linear", inputs, params);
  const fine = [70, 0, 1, 0, 1, 0];
  await messageOf(call([], fine), "kernel linear: input 0 is missing");
  await messageOf(call([x], fine), "input 1 is missing");
  await messageOf(call([x, packed.packed], []), "number 0 is missing");
  await messageOf(call([x, packed.packed], [1000, 0, 1, 0, 1, 0]), "input 1 is bfloat16 [2, 5, 64, 2]; expected shape [16, 5, 64, 2]");
  await messageOf(call([x, packed.packed], [-1, 0, 1, 0, 1, 0]), "number 0 is -1; expected 0 to");
  await messageOf(call([x, packed.packed], [Number.NaN, 0, 1, 0, 1, 0]), "expected a whole number");
  await messageOf(call([x, packed.packed], [70, 9, 1, 0, 1, 0]), "number 1 is 9");
  await messageOf(call([x, packed.packed], [70, 0, 3, 0, 1, 0]), "output's dtype, is 3");
  await messageOf(call([x, packed.packed], [70, 0, 1, 0, Number.POSITIVE_INFINITY, 0]), "the scale, is inf");
  await messageOf(call([x.cast("int32"), packed.packed], fine), "input 0 is int32 [4, 10]; expected float32 or bfloat16");
  await messageOf(call([x, toFloat32(packed.packed)], fine), "input 1 is float32");
  await messageOf(call([tf.scalar(1), packed.packed], fine), "input 0 is float32 []");
  await messageOf(call([x, packed.packed, noise(69)], fine), "input 2 is float32 [69]; expected shape [70]");
  await messageOf(call([x, packed.packed, undefined, noise(4, 69)], fine), "input 3");
  await messageOf(call([x, packed.packed, undefined, undefined, noise(4, 2)], fine), "come together");
  await messageOf(call([x, packed.packed, undefined, undefined, noise(4, 2), noise(69, 2)], fine), "input 5");
  await messageOf(() => runNative("packWeight", [noise(3)]), "input 0 is float32 [3]; expected shape [any, any]");
  await messageOf(() => runNative("packWeight", [tf.tensor2d([["a"]])]), "which no kernel takes");
  await messageOf(() => runNative("unpackWeight", [packed.packed], [70, 12]), "input 0");
  await messageOf(() => runNative("lowRank", [x, noise(2, 9)], [1, 0, 1]), "input 1");
  await messageOf(() => runNative("lowRankGradient", [x, noise(3, 9)], [1]), "input 1");
  tf.engine().endScope(scope as never);
});

test("the packed product reads and writes within its tensors only (address and undefined-behaviour sanitizers)", async (t) => {
  if (!hasNative("linear")) return t.skip("the packed product needs a processor with bfloat16 instructions");
  const unit = bindingPlan("/", "/").units.find(({ object }) => object === "linear.cc.avx512bf16.o")!;
  const { skip, runs } = await runCheck({
    sources: [join(__dirname, "packed.cc"), nativeSource("linear.cc"), nativeSource("low_rank.cc"), ...GENERAL],
    sanitize: "address,undefined",
    flags: unit.flags.filter((flag: string) => flag.startsWith("-m")),
    environments: ["1", "3"].map((VITRINE_THREADS) => ({ VITRINE_THREADS })),
  });
  if (skip) return t.skip(skip);
  assert.deepEqual(runs, ["all close (0)", "all close (0)"]);
});
