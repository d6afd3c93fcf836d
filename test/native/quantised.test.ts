import assert from "node:assert/strict";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16, toFloat32 } from "vitrine/engine/bfloat16";
import { hasNative, type LinearOptions, nativeProcessor, runNative } from "vitrine/engine/native";
import {
  dequantise,
  formatOf,
  multiplyQuantised,
  multiplyQuantisedKeeping,
  multiplyQuantisedTransposed,
  quantise,
  quantisedBytes,
  quantiseRows,
} from "vitrine/engine/quantised";
import { dequantiseFormula, FORMATS, type Format, layoutOf, quantiseValues } from "vitrine/engine/quantised-format";
import { bindingPlan } from "../../src/setup/binding.mjs";
import { expectClose, expectSame, messageOf } from "../support/close";
import { GENERAL, native as nativeSource, runCheck } from "./build";
import { gelu, geluTanh, noise, numbers, quickGelu, rounded, slopes } from "./support";

before(() => engine().then(() => {}));

/** A test that needs the kernels, which every processor can run where our binding is in use. */
const native = (name: string, body: () => unknown) =>
  test(name, async (t) => {
    if (!hasNative("quantisedLinear")) return t.skip("our binding is not in use");
    await body();
  });

/** Rows of x, in, out: 1, primes, odd lengths, around a group (64), few rows and many (8 and 9), longer than a strip of a panel (4096). */
const SIZES = [
  [1, 1, 1],
  [1, 64, 65],
  [2, 7, 65],
  [3, 192, 33],
  [8, 130, 70],
  [9, 128, 67],
  [13, 33, 130],
  [200, 63, 17],
  [525, 65, 66],
  [10, 4225, 5],
  [3, 5, 4161],
] as const;

const weightOf = (words: tf.Tensor2D, format: Format): tf.Tensor2D =>
  format === "int8" ? quantise(words, "int8") : quantise(words, "nf4", { double: format === "nf4-double" });

/** As the formula multiplies: many rows in bfloat16 where the processor does. */
const given = <T extends tf.Tensor>(x: T, rows: number): T => (rows > 8 && hasNative("linear") ? rounded(x) : x);

const ACTIVATIONS: { [name: string]: (x: tf.Tensor) => tf.Tensor } = {
  none: (x) => x,
  gelu,
  quick_gelu: quickGelu,
  silu: (x) => x.mul(x.sigmoid()),
  gelu_tanh: geluTanh,
  relu: (x) => x.relu(),
};

function formula(x: tf.Tensor2D, weight: tf.Tensor2D, { bias, activation = "none", residual, pair }: LinearOptions = {}): tf.Tensor {
  const M = x.shape[0];
  let y: tf.Tensor = tf.matMul(given(toFloat32(x), M), given(toFloat32(weight), M), false, true);
  if (pair) {
    const low = given(toFloat32(pair.low).mul(pair.scale) as tf.Tensor2D, M);
    y = y.add(tf.matMul(low, given(toFloat32(pair.up), M), false, !pair.transposed));
  }
  y = ACTIVATIONS[activation]!(bias ? y.add(bias) : y);
  return residual ? y.add(toFloat32(residual)) : y;
}

for (const format of FORMATS) {
  native(`${format}: kernel and formula give the same bytes, from float32 and bfloat16, in one piece and in slices`, () =>
    tf.tidy(() => {
      for (const [, inner, out] of SIZES)
        for (const weight of [noise(out, inner).mul(3), rounded(noise(out, inner))] as tf.Tensor2D[]) {
          const want = quantiseValues(numbers(weight), [out, inner], format);
          const made = weightOf(weight, format);
          assert.equal(formatOf(made), format);
          assert.deepEqual(quantisedBytes(made), want, `[${out}, ${inner}]`);
          const half = toBfloat16(weight);
          const read = (first: number, count: number) => toBfloat16(toFloat32(half).slice([first, 0], [count, inner]));
          const sliced = quantiseRows([out, inner], format === "int8" ? "int8" : "nf4", read, {
            rows: 64,
            double: format === "nf4-double",
          });
          assert.deepEqual(quantisedBytes(sliced), quantiseValues(numbers(half), [out, inner], format), `[${out}, ${inner}] bfloat16`);
        }
    }),
  );

  native(`${format}: dequantise() and its formula in tfjs agree to the bit, and are near the weight`, () =>
    tf.tidy(() => {
      for (const [, inner, out] of SIZES) {
        const weight = noise(out, inner) as tf.Tensor2D;
        const made = weightOf(weight, format);
        const words = tf.tensor1d(new Int32Array(quantisedBytes(made).buffer), "int32");
        const got = numbers(dequantise(made));
        expectSame(got, numbers(dequantiseFormula(words, layoutOf(format, [out, inner]))), `[${out}, ${inner}]`);
        expectSame(numbers(dequantise(made, "bfloat16")), numbers(rounded(dequantise(made))), "as bfloat16");
        // Half a step of int8 at 1; half the widest gap between NF4's levels, and a step of its scale.
        expectClose(got, numbers(weight), { int8: 0.0045, nf4: 0.16, "nf4-double": 0.25 }[format], `[${out}, ${inner}]`);
      }
    }),
  );

  native(`${format}: multiplyQuantised() matches the formula at every size, from float32 and bfloat16, to both`, () =>
    tf.tidy(() => {
      for (const [M, K, N] of SIZES) {
        const [x, weight] = [noise(M, K) as tf.Tensor2D, weightOf(noise(N, K) as tf.Tensor2D, format)];
        const options = { bias: noise(N) as tf.Tensor1D, residual: noise(M, N) };
        const [close, what] = [1e-6 * (K + 8), `[${M}, ${K}] to ${N}`];
        expectClose(numbers(multiplyQuantised(x, weight, options)), numbers(formula(x, weight, options)), close, what);
        const half = toBfloat16(x);
        const widened = numbers(multiplyQuantised(rounded(x), weight, options));
        expectSame(numbers(multiplyQuantised(half, weight, options)), widened, `${what}, x in bfloat16`);
        const narrow = multiplyQuantised(half, weight, { ...options, dtype: "bfloat16" });
        assert.equal(narrow.dtype, "bfloat16");
        expectSame(numbers(narrow), numbers(rounded(multiplyQuantised(half, weight, options))), `${what}, rounded at the end`);
        const residual = toBfloat16(options.residual);
        const want = numbers(formula(x, weight, { ...options, residual }));
        expectClose(numbers(multiplyQuantised(x, weight, { ...options, residual })), want, close, `${what}, bfloat16 residual`);
      }
    }),
  );

  native(`${format}: activations, a low-rank pair either way round, and what goes into the activation`, () =>
    tf.tidy(() => {
      for (const M of [3, 21])
        for (const rank of [1, 8, 70]) {
          const [x, weight] = [noise(M, 128) as tf.Tensor2D, weightOf(noise(66, 128) as tf.Tensor2D, format)];
          const [low, up] = [noise(M, rank), noise(66, rank) as tf.Tensor2D];
          for (const activation of Object.keys(ACTIVATIONS) as NonNullable<LinearOptions["activation"]>[]) {
            const options: LinearOptions = { activation, residual: noise(M, 66), pair: { low, up, scale: 0.25 } };
            const [y, entering] = multiplyQuantisedKeeping(x, weight, options);
            expectClose(numbers(y), numbers(formula(x, weight, options)), 1e-4, `${activation}, rank ${rank}`);
            const plain = formula(x, weight, { pair: options.pair });
            expectClose(numbers(entering), numbers(plain), 1e-4, `before ${activation}`);
            const turned = { ...options, pair: { low: toBfloat16(low), up: up.transpose() as tf.Tensor2D, scale: 0.25, transposed: true } };
            expectClose(
              numbers(multiplyQuantised(x, weight, turned)),
              numbers(formula(x, weight, turned)),
              1e-4,
              `rank ${rank}, transposed`,
            );
          }
        }
    }),
  );

  native(`${format}: multiplyQuantisedTransposed() is the gradient to the input`, () =>
    tf.tidy(() => {
      const round = hasNative("linear") ? rounded : <T extends tf.Tensor>(x: T) => x;
      for (const [M, K, N] of SIZES) {
        const [dy, weight] = [noise(M, N) as tf.Tensor2D, weightOf(noise(N, K) as tf.Tensor2D, format)];
        const [low, up] = [noise(M, 3) as tf.Tensor2D, noise(3, K) as tf.Tensor2D];
        const got = multiplyQuantisedTransposed(dy, weight, { pair: { low, up, scale: 2, transposed: true } });
        const want = tf.matMul(round(dy), round(toFloat32(weight))).add(tf.matMul(round(low.mul(2) as tf.Tensor2D), round(up)));
        expectClose(numbers(got), numbers(want), 1e-6 * (N + 8), `[${M}, ${N}] to ${K}`);
      }
      // Few rows go forward in float32: a finite difference sees the weight itself.
      const [x, dy, weight] = [noise(2, 65), rounded(noise(2, 9)), weightOf(noise(9, 65) as tf.Tensor2D, format)];
      const loss = (at: tf.Tensor) => multiplyQuantised(at, weight).mul(dy).sum().dataSync()[0]!;
      expectClose(numbers(multiplyQuantisedTransposed(dy, weight)), slopes(loss, x, 0.5), 0.02, "finite differences");
    }),
  );

  native(`${format}: any rank, no rows, no columns, and a weight of zeros`, () =>
    tf.tidy(() => {
      const weight = weightOf(noise(5, 70) as tf.Tensor2D, format);
      const x = noise(2, 3, 4, 70);
      assert.deepEqual(multiplyQuantised(x, weight).shape, [2, 3, 4, 5]);
      expectClose(numbers(multiplyQuantised(x, weight)), numbers(formula(x.reshape([24, 70]), weight)), 1e-4);
      assert.deepEqual(multiplyQuantised(tf.zeros([0, 70]), weight).shape, [0, 5]);
      const nothing = weightOf(tf.zeros([3, 0]), format);
      for (const M of [2, 12]) {
        const y = numbers(multiplyQuantised(tf.zeros([M, 0]), nothing, { bias: tf.tensor1d([1, 2, 3]) }));
        expectSame(y, Array(M).fill([1, 2, 3]).flat());
      }
      assert.ok(numbers(dequantise(weightOf(tf.zeros([3, 65]), format))).every((value) => value === 0));
    }),
  );
}

native("NaN, infinity and misfits are errors that say what came", async () => {
  const scope = tf.engine().startScope();
  for (const dtype of ["int8", "nf4"] as const)
    for (const wrong of [Number.NaN, Number.POSITIVE_INFINITY])
      await messageOf(() => quantise(tf.tensor2d([[1, wrong]]), dtype), "NaN or infinity");
  const weight = quantise(noise(70, 10) as tf.Tensor2D, "int8");
  const x = noise(4, 10);
  await messageOf(
    () => multiplyQuantised(noise(4, 9), weight, { bias: noise(7) as tf.Tensor1D, residual: noise(5, 70) }),
    /product with weight \[70, 10\]: x is \[4,9\], expected \[4,10\]; bias is \[7\], expected \[70\]; residual is \[5,70\]/,
  );
  await messageOf(
    () => multiplyQuantised(x, noise(70, 10) as tf.Tensor2D),
    "the weight is float32 [70,10], expected one made by quantise()",
  );
  await messageOf(() => multiplyQuantisedTransposed(x, weight), "weight [10, 70]: x is [4,10], expected [4,70]");
  const call = (inputs: (tf.Tensor | undefined)[], params: number[]) => () => runNative("quantisedLinear", inputs, params);
  const fine = [70, 0, 1, 0, 1, 0, 0, 0];
  await messageOf(call([x], fine), "input 1 is missing");
  await messageOf(call([x, weight], [71, ...fine.slice(1)]), /input 1 is int32 \[\d+\]; expected shape \[\d+\]/);
  await messageOf(call([x, weight], [...fine.slice(0, 6), 1, 0]), /input 1 is int32 \[\d+\]; expected shape/);
  await messageOf(call([x, weight], [...fine.slice(0, 6), 3, 0]), "number 6 is 3; expected 0 to 2");
  await messageOf(call([x, x], fine), "input 1 is float32");
  await messageOf(call([x, weight, noise(69)], fine), "input 2");
  await messageOf(call([x, weight, undefined, undefined, noise(4, 2)], fine), "come together");
  await messageOf(call([x, weight, undefined, undefined, noise(4, 2), noise(69, 2)], fine), "input 5");
  await messageOf(() => runNative("quantise", [noise(64, 3), undefined], [1, 70, 1]), "the first row, is 1");
  await messageOf(() => runNative("quantise", [noise(63, 3), undefined], [1, 70, 0]), "63 rows, which do not end a group");
  await messageOf(() => runNative("quantise", [noise(3, 3), undefined], [0, 2, 0]), "3 rows of 2");
  await messageOf(() => runNative("quantise", [noise(3, 3), x], [0, 3, 0]), "input 1 is float32");
  await messageOf(() => runNative("dequantise", [weight], [0, 70, 11, 3]), "dtype 3");
  tf.engine().endScope(scope as never);
});

/** The compiler's flags of a level that the binding is built for. */
function flagsOf(level: string): string[] {
  const unit = bindingPlan("/", "/").units.find(({ object }) => object === `quantised.cc.${level}.o`);
  return unit!.flags.filter((flag: string) => flag.startsWith("-m"));
}

for (const end of ["lowest", "highest"] as const)
  test(`quantised products read and write within their tensors only, at the ${end} level (address and undefined-behaviour sanitizers)`, async (t) => {
    await engine();
    const best = nativeProcessor()?.level;
    if (!best) return t.skip("our binding, which knows the processor's level, is not in use");
    const level = end === "lowest" ? "base" : best;
    const { skip, runs } = await runCheck({
      sources: [join(__dirname, "quantised.cc"), ...["quantised.cc", "quantised_product.cc", "linear.cc"].map(nativeSource), ...GENERAL],
      sanitize: "address,undefined",
      flags: [...flagsOf(level), "-g1"],
      environments: ["1", "3", "8"].map((VITRINE_THREADS) => ({ VITRINE_THREADS, VITRINE_LEVEL: level })),
    });
    if (skip) return t.skip(skip);
    assert.deepEqual(runs, ["all close (0)", "all close (0)", "all close (0)"]);
  });
