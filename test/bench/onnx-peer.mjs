/**
 * The second peer, onnxruntime-node (the engine of transformers.js), one workload a process:
 * node test/bench/onnx-peer.mjs PACKAGE FOLDER clip-image|clip-text REPETITIONS THREADS
 * PACKAGE: where onnxruntime-node is; FOLDER: what export_onnx.py wrote. Prints one line of JSON, as peer.py does; the same sizes and warm-ups.
 */
import { createRequire } from "node:module";
import { join } from "node:path";

const [place, folder, workload, repetitions, threads] = process.argv.slice(2);
const ort = createRequire(import.meta.url)(place);

const WARMUP = 2;
const inputs = {
  "clip-image": () => new ort.Tensor("float32", Float32Array.from({ length: 32 * 3 * 224 * 224 }, Math.random), [32, 3, 224, 224]),
  "clip-text": () =>
    new ort.Tensor(
      "int64",
      BigInt64Array.from({ length: 64 * 77 }, () => BigInt(Math.floor(40_000 * Math.random()))),
      [64, 77],
    ),
};

const session = await ort.InferenceSession.create(join(folder, `${workload}.onnx`), { intraOpNumThreads: Number(threads) });
const x = inputs[workload]();
const seconds = [];
for (let i = -WARMUP; i < Number(repetitions); i++) {
  const started = performance.now();
  const { y } = await session.run({ x });
  if (i >= 0) seconds.push((performance.now() - started) / 1000);
  y.dispose();
}
const sorted = [...seconds].sort((a, b) => a - b);
const median = (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.floor(sorted.length / 2)]) / 2;
const unit = workload === "clip-image" ? "images/s" : "texts/s";
const rss = Math.floor(process.resourceUsage().maxRSS / 1024);
console.log(JSON.stringify({ workload, dtype: "float32", seconds, rate: x.dims[0] / median, unit, peak_rss_mb: rss }));
