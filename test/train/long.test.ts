/** Long training: nothing of a step survives it, Ctrl-C ends a step in its middle, and blocks can be computed again instead of kept. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { before, test } from "node:test";
import { Worker } from "node:worker_threads";
import { random } from "vitrine/data/random";
import { engine, tf } from "vitrine/engine";
import { hasNative } from "vitrine/engine/native";
import { asBlock } from "vitrine/nn/block";
import { layerNorm, linear } from "vitrine/nn/layers";
import { withLora } from "vitrine/nn/lora";
import { type Row, train } from "vitrine/train/loop";
import { inputs, loadClip, MODEL } from "../support/clip";
import { expectSame, keepsTensorCount } from "../support/close";

const ROOT = join(__dirname, "..", "..");

before(() => engine().then(() => {}));

/** The oracle's small CLIP with an adapter, and its batch again and again. */
async function small() {
  const clip = await loadClip();
  const { model, adapter } = withLora(clip, { targetModules: ["q_proj", "v_proj"], r: 4, seed: 1 });
  const batch = inputs();
  const batches = function* () {
    while (true) yield { pixels: batch.pixels.clone(), ids: batch.ids.clone(), mask: batch.mask.clone() };
  };
  const loss = ({ pixels, ids, mask }: ReturnType<typeof inputs>) => model.loss(model.encodeImage(pixels), model.encodeText(ids, mask));
  return { adapter, batches, loss };
}

/** 500 steps of LoRA in a process of their own, with what there is after every 50, garbage collected. */
const PROGRAM = `
const { engine, tf } = require("vitrine/engine"), { load } = require("vitrine/models");
const { withLora } = require("vitrine/nn/lora"), { train } = require("vitrine/train/loop");
engine().then(async () => {
  const clip = await load(process.argv[1]);
  const { model, adapter } = withLora(clip, { targetModules: ["q_proj", "v_proj"], r: 4, seed: 1 });
  const S = clip.config.vision_config.image_size;
  const [pixels, ids] = [tf.randomNormal([3, S, S, 3]), tf.randomUniform([3, 16], 0, 100, "int32")];
  const batches = (function* () { while (true) yield { pixels: pixels.clone(), ids: ids.clone() }; })();
  const loss = (batch) => model.loss(model.encodeImage(batch.pixels), model.encodeText(batch.ids));
  for await (const { step } of train({ variables: adapter.variables, batches, loss, steps: 500, learningRate: 1e-4 })) {
    if (step % 50 || step < 100) continue;
    gc();
    const { numTensors, numBytes } = tf.memory();
    console.log(JSON.stringify({ tensors: numTensors, bytes: numBytes, resident: process.memoryUsage.rss() }));
  }
});`;

test("nothing of a step survives it: 500 steps leave as many tensors and as much memory as 200", (t) => {
  const { stdout, stderr } = spawnSync(process.execPath, ["--expose-gc", "-e", PROGRAM, MODEL], { cwd: ROOT, encoding: "utf8" });
  const marks = stdout
    .trim()
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line));
  assert.equal(marks.length, 9, stderr.slice(-2000));
  for (const { tensors, bytes } of marks) assert.deepEqual([tensors, bytes], [marks[0].tensors, marks[0].bytes]);
  // The least of three: what V8 has freed, it gives back some time later.
  const least = (from: number) => Math.min(...marks.slice(from, from + 3).map(({ resident }) => resident));
  const grown = (least(6) - least(0)) / 2 ** 20;
  t.diagnostic(`resident memory: ${grown.toFixed(1)} MiB more after 400 to 500 steps than after 100 to 200`);
  assert.ok(grown < 8, `${grown} MiB more: a fortieth of a megabyte a step would be a leak of something`);
});

test("train({ checkpointing: true }) takes the very same steps", async () => {
  const run = async (checkpointing: boolean) => {
    const { adapter, batches, loss } = await small();
    const losses: number[] = [];
    for await (const row of train({ variables: adapter.variables, batches: batches(), loss, steps: 3, learningRate: 1e-2, checkpointing }))
      losses.push(row.loss);
    adapter.dispose();
    return losses;
  };
  expectSame(await run(true), await run(false));
});

/** Sends this process SIGINT after a while, from a thread: the main one is busy. */
const interruptAfter = (ms: number) => new Worker(`setTimeout(() => process.kill(${process.pid}, "SIGINT"), ${ms})`, { eval: true });

/** One layer again and again, so that a step takes seconds. */
function endless(blocks: number) {
  const [D, draw] = [256, random(3)];
  const values = (...shape: number[]) =>
    tf.tensor(
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => (2 * draw() - 1) / 16),
      shape,
    );
  const A = tf.variable(values(4, D)) as unknown as tf.Tensor2D;
  const B = tf.variable(values(D, 4)) as unknown as tf.Tensor2D;
  const p = {
    norm: { weight: tf.ones([D]) as tf.Tensor1D, bias: tf.zeros([D]) as tf.Tensor1D },
    fc: { weight: values(D, D) as tf.Tensor2D, lora: { A, B, scale: 1, drop: (x: tf.Tensor) => x, dropping: () => false } },
  };
  const variables = [A, B] as unknown as tf.Variable[];
  const loss = ({ x }: { x: tf.Tensor3D }) => {
    let y = x;
    for (let i = 0; i < blocks; i++) y = asBlock(p, { x: y }, ({ x }) => linear(p.fc, layerNorm(p.norm, x), { onto: x }) as tf.Tensor3D);
    return y.mean() as tf.Scalar;
  };
  const batches = function* () {
    while (true) yield { x: values(64, 64, D) as tf.Tensor3D };
  };
  return { variables, loss, batches };
}

test("Ctrl-C ends train() in the middle of a step within a second, and leaves the variables as the last whole step did", async (t) => {
  if (!hasNative("attention")) return t.skip("without our binding a step runs to its end");
  const { variables, loss, batches } = endless(1500);
  const before = variables.map((v) => v.dataSync().slice());
  const controller = new AbortController();
  let heard = 0;
  const listener = () => {
    heard = performance.now();
    controller.abort();
  };
  process.on("SIGINT", listener);
  const rows: Row[] = [];
  await keepsTensorCount(async () => {
    const started = performance.now();
    const worker = interruptAfter(600);
    for await (const row of train({ variables, batches: batches(), loss, steps: 3, learningRate: 1, signal: controller.signal }))
      rows.push(row);
    const seconds = (performance.now() - started) / 1000;
    await worker.terminate();
    t.diagnostic(`stopped ${seconds.toFixed(2)} s after the start, signal sent after 0.6 s`);
    assert.ok(heard > 0, "the listener was told");
    assert.ok(seconds < 1.6 + 0.5, `${seconds} s`); // half a second for a thread to start
  });
  process.off("SIGINT", listener);
  assert.equal(rows.length, 0, "the step that was under way did not count");
  variables.forEach((v, i) => expectSame(v.dataSync(), before[i]));
});

test("Ctrl-C that nobody of ours listens to does a step again, and not half of it", async (t) => {
  if (!hasNative("attention")) return t.skip("without our binding a step runs to its end");
  const { variables, loss, batches } = endless(200);
  const listener = () => {};
  process.on("SIGINT", listener); // somebody else's
  const rows: Row[] = [];
  const worker = interruptAfter(50);
  const signal = new AbortController().signal;
  for await (const row of train({ variables, batches: batches(), loss, steps: 2, learningRate: 1e-3, signal })) rows.push(row);
  await worker.terminate();
  process.off("SIGINT", listener);
  assert.equal(rows.length, 2);
});
