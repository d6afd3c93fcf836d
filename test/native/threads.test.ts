import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { before, test } from "node:test";
import { Worker } from "node:worker_threads";
import { engine, tf } from "vitrine/engine";
import { hasNative, linearNative, packWeight } from "vitrine/engine/native";
import { expectSame } from "../support/close";

before(() => engine().then(() => {}));

/** A test that needs the packed product. */
const native = (name: string, body: () => unknown) =>
  test(name, async (t) => {
    if (!hasNative("linear")) return t.skip("the packed product needs a processor with bfloat16 instructions");
    await body();
  });

/** Odd lengths, and more rows than a block. */
const SIZES = [
  [1, 7, 65],
  [13, 33, 130],
  [389, 10, 33],
  [2, 4201, 66],
  [600, 64, 200],
] as const;

/** A program that prints a hash of products at every size; `threads` threads. */
const PROGRAM = `
const { tf, engine } = require("vitrine/engine");
const native = require("vitrine/engine/native");
engine().then(() => {
  const hash = require("node:crypto").createHash("sha256");
  let state = 1;
  const draw = () => (state = (state * 48271) % 2147483647) / 2147483647 - 0.5;
  const noise = (...shape) => tf.tensor(Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, draw), shape);
  for (const [M, K, N] of ${JSON.stringify(SIZES)}) tf.tidy(() => {
    const [x, weight] = [noise(M, K), native.packWeight(noise(N, K))];
    hash.update(native.linearNative(x, weight, { activation: "gelu" }).dataSync());
    hash.update(native.lowRankGradient(x, noise(M, 3)).dataSync());
  });
  console.log(native.nativeProcessor().threads, hash.digest("hex"));
});`;

const runProgram = (env: NodeJS.ProcessEnv) =>
  execFileSync(process.execPath, ["-e", PROGRAM], { cwd: join(__dirname, "..", ".."), env: { ...process.env, ...env }, encoding: "utf8" })
    .trim()
    .split(" ");

native("the same bits with 1, 2, 3 and 4 threads", () => {
  const results = ["1", "2", "3", "4"].map((VITRINE_THREADS) => runProgram({ VITRINE_THREADS }));
  assert.deepEqual(results.map(([threads]) => threads), ["1", "2", "3", "4"]); // biome-ignore format: short
  assert.equal(new Set(results.map(([, hash]) => hash)).size, 1);
});

const WORKER = `
const { parentPort } = require("node:worker_threads");
const { tf, engine } = require("vitrine/engine");
const native = require("vitrine/engine/native");
engine().then(async () => {
  const x = tf.range(0, 37 * 90).reshape([37, 90]).mul(0.01).sin(), weight = native.packWeight(tf.range(0, 200 * 90).reshape([200, 90]).mul(0.02).cos());
  const want = Buffer.from(native.nativeBytes(native.linearNative(x, weight)));
  let wrong = 0;
  for (let i = 0; i < 300; i++) tf.tidy(() => { if (!want.equals(native.nativeBytes(native.linearNative(x, weight)))) wrong++; });
  parentPort.postMessage({ wrong, bytes: want.toString("hex") });
});`;

native("two workers and this thread multiply at once and get the same bits", async () => {
  const answers = [0, 1].map(
    () =>
      new Promise<{ wrong: number; bytes: string }>((resolve, reject) => {
        const worker = new Worker(WORKER, { eval: true });
        worker.once("message", resolve).once("error", reject);
      }),
  );
  const [x, weight] = [tf.randomUniform([64, 128], -1, 1, "float32", 5), packWeight(tf.randomUniform([256, 128], -1, 1, "float32", 6))];
  const product = () => tf.tidy(() => linearNative(x, weight).dataSync());
  const want = product();
  let finished = false;
  const both = Promise.all(answers).finally(() => {
    finished = true;
  });
  while (!finished) {
    expectSame(product(), want);
    await new Promise((resolve) => setImmediate(resolve));
  }
  const [first, second] = await both;
  assert.deepEqual([first!.wrong, second!.wrong], [0, 0]);
  assert.equal(first!.bytes, second!.bytes);
  tf.dispose([x, weight.packed]);
});
