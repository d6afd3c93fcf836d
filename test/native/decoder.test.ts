/**
 * Kernels of decoders as they are called: dtypes, refusals, the same bits with any number of threads. Their numbers are compared with plain loops
 * in decoder.cc, and with the formulas in test/nn.
 */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { before, test } from "node:test";
import { engine, tf } from "vitrine/engine";
import { toBfloat16 } from "vitrine/engine/bfloat16";
import { runNative } from "vitrine/engine/native";
import { expectSame, messageOf } from "../support/close";
import { FLOAT, HALF, noise, numbers, rounded } from "./support";

before(() => engine().then(() => {}));

const ints = (...values: number[]) => tf.tensor1d(values, "int32");
const fails = (name: string, inputs: (tf.Tensor | undefined)[], numbers: number[], part: string) =>
  messageOf(() => runNative(name, inputs, numbers), part);

test("rope gives either dtype from either, the bfloat16 result being the float32 one, rounded", () =>
  tf.tidy(() => {
    const [x, positions, frequencies] = [noise(2, 3, 40), tf.tensor2d([0, 5, 70000], [1, 3], "int32"), noise(7).abs()];
    for (const from of [x, toBfloat16(x)]) {
      const [wide, half] = [FLOAT, HALF].map((dtype) => runNative("rope", [from, positions, frequencies], [2, 1, 1, dtype])[0]);
      assert.deepEqual([wide.dtype, half.dtype], ["float32", "bfloat16"]);
      expectSame(numbers(half), numbers(rounded(wide)));
    }
    const wide = runNative("rope", [rounded(x), positions, frequencies], [2, 1, 1, FLOAT])[0];
    expectSame(numbers(runNative("rope", [toBfloat16(x), positions, frequencies], [2, 1, 1, FLOAT])[0]), numbers(wide));
  }));

test("rope refuses what does not fit, before it reads it", async () => {
  const [x, positions, frequencies] = [noise(2, 3, 8), tf.zeros([1, 3], "int32"), tf.ones([2])];
  await fails("rope", [x, positions, tf.ones([3])], [2, 1, 1, FLOAT], "does not hold 2 heads of at least 6 numbers");
  await fails("rope", [x, positions, frequencies], [3, 1, 1, FLOAT], "does not hold 3 heads");
  await fails("rope", [x, tf.zeros([1, 4], "int32"), frequencies], [2, 1, 1, FLOAT], "input 1 is int32 [1, 4]; expected shape [any, 3]");
  await fails("rope", [x, tf.zeros([3, 3], "int32"), frequencies], [2, 1, 1, FLOAT], "a row for each of the batch, or one for all");
  await fails("rope", [x, tf.zeros([1, 3]), frequencies], [2, 1, 1, FLOAT], "input 1 is float32");
  await fails("rope", [x, positions, frequencies], [2, 1, 0, FLOAT], "the direction, is 0");
});

test("cross-entropies refuse what does not fit, before they read it", async () => {
  const [logits, hidden, weight, labels] = [noise(3, 5), noise(3, 4), noise(5, 4), ints(0, 1, 4)];
  await fails("crossEntropy", [logits, ints(0, 1)], [-100], "input 1 is int32 [2]; expected shape [3]");
  await fails("crossEntropy", [logits, ints(0, 5, 9)], [-100], "label 1 is 5; expected 0 to 4, or -100, which is ignored");
  await fails("crossEntropy", [tf.scalar(1), labels], [-100], "the logits are a scalar");
  await fails(
    "crossEntropyGradient",
    [noise(3, 2), logits, labels, noise(3, 3)],
    [-100],
    "input 0 is float32 [3, 2]; expected shape [3, 3]",
  );
  await fails("crossEntropyHead", [hidden, weight, labels], [6, -100], "input 1 is float32 [5, 4]; expected shape [6, 4]");
  await fails("crossEntropyHead", [noise(3, 3), weight, labels], [5, -100], "input 1 is float32 [5, 4]; expected shape [5, 3]");
  await fails("crossEntropyHead", [hidden, toBfloat16(noise(1, 3, 64, 2)), labels], [5, -100], /* packed */ "1 is bfloat16 [1, 3, 64, 2]");
  await fails("crossEntropyHead", [hidden, weight, ints(0, -1, 2)], [5, -100], "label 1 is -1");
  await fails("crossEntropyHeadGradient", [noise(3, 3), hidden, weight, labels, noise(3, 2)], [5, -100, FLOAT], "input 4");
});

test("patches and pixel shuffle refuse what does not fit, before they read it", async () => {
  const x = noise(1, 16, 3);
  await fails("patchify", [toBfloat16(noise(1, 4, 4, 3))], [2, FLOAT], "input 0 is bfloat16");
  await fails("patchify", [noise(1, 4, 4, 3)], [0, FLOAT], "number 0 is 0");
  await fails("unpatchify", [noise(1, 4, 12)], [2, 4, 6, 3], "input 0 is float32 [1, 4, 12]; expected shape [1, 6, 12]");
  await fails("pixelShuffle", [x], [0, 4, 4, 3, 0], "a grid of 4 x 4 tokens does not divide into groups of 3 x 3");
  await fails("pixelShuffle", [x], [1, 4, 4, 2, 0], "input 0 is float32 [1, 16, 3]; expected shape [any, 17, any]");
  await fails("pixelUnshuffle", [noise(1, 4, 10)], [0, 4, 4, 2, 0], "expected shape [1, 4, 8]");
});

/** A program that prints a hash of what the kernels give. */
const PROGRAM = `
const { tf, engine } = require("vitrine/engine");
const { hasNative, nativeProcessor, packWeight, runNative } = require("vitrine/engine/native");
engine().then(() => {
  const hash = require("node:crypto").createHash("sha256");
  let state = 1;
  const draw = () => (state = (state * 48271) % 2147483647) / 2147483647 - 0.5;
  const noise = (...shape) => tf.tensor(Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, draw), shape);
  const run = (name, inputs, numbers) => {
    const [y] = runNative(name, inputs, numbers);
    hash.update(y.dataSync());
    return y;
  };
  const [N, D, V] = [201, 50, 3000];
  const labels = tf.tensor1d(Array.from({ length: N }, (_, i) => (i % 5 ? (i * 37) % V : -100)), "int32");
  const [dy, hidden, plain, logits] = [noise(3, N), noise(N, D), noise(V, D), noise(N, V)];
  for (const weight of hasNative("packWeight") ? [plain, packWeight(plain).packed] : [plain]) {
    const rows = run("crossEntropyHead", [hidden, weight, labels], [V, -100]);
    run("crossEntropyHeadGradient", [dy, hidden, weight, labels, rows], [V, -100, 1]);
  }
  run("crossEntropyGradient", [dy, logits, labels, run("crossEntropy", [logits, labels], [-100])], [-100]);
  run("rope", [noise(2, 300, 128), tf.range(0, 300, 1, "int32").expandDims(0), noise(32)], [2, 1, 1, 1]);
  run("patchify", [noise(3, 64, 64, 3)], [16, 1]);
  console.log(nativeProcessor().threads, hash.digest("hex"));
});`;

test("the same bits with 1, 2 and 5 threads", () => {
  const results = ["1", "2", "5"].map((VITRINE_THREADS) =>
    execFileSync(process.execPath, ["-e", PROGRAM], {
      cwd: join(__dirname, "..", ".."),
      env: { ...process.env, VITRINE_THREADS },
      encoding: "utf8",
    })
      .trim()
      .split(" "),
  );
  assert.deepEqual(
    results.map(([threads]) => threads),
    ["1", "2", "5"],
  );
  assert.equal(new Set(results.map(([, hash]) => hash)).size, 1);
});
