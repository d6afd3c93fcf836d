/**
 * Our side of the comparison, one workload a process, so that the peak memory is its own:
 * node --import tsx test/bench/ours.ts CHECKPOINTS WORKLOAD float32|bfloat16 REPETITIONS [--profile]
 * Prints one line of JSON, as peer.py does. The same sizes, inputs of the same kind, the same warm-ups.
 */
import { join } from "node:path";
import { embedImages } from "vitrine/embed";
import { engine, tf } from "vitrine/engine";
import { setProgressRenderer } from "vitrine/engine/progress";
import { loadImageProcessor } from "vitrine/image/processor";
import type { Clip } from "vitrine/models";
import { type ClipWeights, loadClipWeights } from "vitrine/models/clip-load";
import { withLora } from "vitrine/nn/lora";
import { train } from "vitrine/train/loop";
import { filePaths } from "./files";
import type { BenchDtype } from "./options";
import { type Profile, startProfile } from "./profile";
import { median, type Result } from "./report";
import { checkpointOf, FILES, PAIRS, PICTURES, TEXTS, TOKENS, type Workload } from "./work";
import { type Prepared, qFormer, vlmDecode, vlmLora, vlmPrefill } from "./vision-language";

type Batch = { pixels: tf.Tensor4D; ids: tf.Tensor2D; mask: tf.Tensor2D };

const pictures = (B: number) => tf.randomNormal([B, 224, 224, 3], 0, 1, "float32", 1) as tf.Tensor4D;
const tokens = (B: number, N: number) => tf.randomUniform([B, N], 0, 40_000, "int32", 2) as tf.Tensor2D;

/** Runs and reads the result, so that nothing is left to be computed later. */
const finish = (compute: () => tf.Tensor): void => {
  const y = compute();
  y.dataSync();
  y.dispose();
};

const prepare: Record<Workload, (folder: string, dtype: BenchDtype, steps: number) => Promise<Prepared>> = {
  async "clip-image"(folder, dtype) {
    const [model, pixels] = [await loadClipWeights(folder, dtype), pictures(PICTURES)];
    return { step: () => finish(() => model.encodeImage(pixels)), items: PICTURES, unit: "images/s" };
  },
  async "clip-text"(folder, dtype) {
    const [model, ids] = [await loadClipWeights(folder, dtype), tokens(TEXTS, TOKENS)];
    const mask = tf.onesLike(ids);
    return { step: () => finish(() => model.encodeText(ids, mask)), items: TEXTS, unit: "texts/s" };
  },
  async "clip-lora"(folder, dtype, steps) {
    const { model, adapter } = withLora(await loadClipWeights(folder, dtype), { targetModules: ["q_proj", "v_proj"], r: 8, loraAlpha: 16 });
    const loss = ({ pixels, ids, mask }: Batch) => model.loss(model.encodeImage(pixels), model.encodeText(ids, mask));
    const rows = train({ variables: adapter.variables, batches: samePairs(), loss, steps, learningRate: 1e-4, maxGradNorm: Infinity });
    return { step: async () => void (await rows.next()), items: 1, unit: "steps/s" };
  },
  async "embed-files"(folder, dtype) {
    const weights = await loadClipWeights(folder, dtype);
    const model = { ...weights, imageProcessor: loadImageProcessor(folder) } as Pick<Clip, "imageProcessor"> & ClipWeights as Clip;
    const paths = filePaths(join(folder, ".."));
    return { step: async () => void (await embedImages(model, paths, { batchSize: PICTURES })), items: FILES, unit: "images/s", warmup: 1 };
  },
  async load(folder, dtype) {
    const step = async () => {
      const model: ClipWeights = await loadClipWeights(folder, dtype);
      const ids = tf.ones([1, 8], "int32") as tf.Tensor2D;
      finish(() => model.encodeText(ids));
      ids.dispose();
      model.dispose();
    };
    return { step, items: 1, unit: "loads/s", warmup: 1 };
  },
  qformer: qFormer,
  "vlm-prefill": vlmPrefill,
  "vlm-decode": vlmDecode,
  "vlm-lora": vlmLora,
};

/** One batch again and again; the loop disposes what it is given. */
function* samePairs(): Generator<Batch> {
  const [pixels, ids] = [pictures(PAIRS), tokens(PAIRS, TOKENS)];
  const mask = tf.onesLike(ids);
  while (true) yield { pixels: pixels.clone(), ids: ids.clone(), mask: mask.clone() };
}

/** Measures one workload. */
async function measure(folder: string, workload: Workload, dtype: BenchDtype, asked: number, profiled: boolean): Promise<Result> {
  setProgressRenderer(() => {});
  await engine();
  const prepared = await prepare[workload](join(folder, checkpointOf(workload)), dtype, 2 + asked);
  const { step, items, unit, warmup = 2, repetitions = asked } = prepared;
  const profile = profiled ? startProfile() : undefined;
  for (let i = 0; i < warmup; i++) await step();
  profile?.reset();
  const seconds: number[] = [];
  for (let i = 0; i < repetitions; i++) {
    const started = performance.now();
    await step();
    seconds.push((performance.now() - started) / 1000);
  }
  const total = seconds.reduce((a, b) => a + b, 0);
  const lines = profile && ({ seconds: total, repetitions, lines: profile.lines() } satisfies Profile);
  return {
    workload,
    dtype,
    seconds,
    rate: items / median(seconds),
    unit,
    peak_rss_mb: Math.floor(process.resourceUsage().maxRSS / 1024),
    profile: lines,
  };
}

const [folder, workload, dtype, repetitions, flag] = process.argv.slice(2);
measure(folder, workload as Workload, dtype as BenchDtype, Number(repetitions), flag === "--profile").then(
  (result) => console.log(JSON.stringify(result)),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
