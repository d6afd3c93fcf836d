/**
 * What the machine can do at most: its best large product and its memory reads, the better of both sides. Run as a process it measures ours
 * (node --import tsx test/bench/limits.ts); limits.py measures the peer's.
 */
import { engine, tf } from "vitrine/engine";
import { matMulBfloat16, toBfloat16 } from "vitrine/engine/bfloat16";

/** Floating-point operations a second of a product, and bytes a second of memory reads. */
export type Limits = { float32: number; bfloat16: number; read: number };

/** Side of the square product: large enough for the best rate, 50 ms long. */
const SIDE = 2048;
/** Numbers that are summed: 256 MiB, more than a cache holds. */
const COUNT = 2 ** 26;
const TRIES = 6;

/** The better of two machines' sides in each respect. */
export const better = (a: Limits, b: Limits): Limits => ({
  float32: Math.max(a.float32, b.float32),
  bfloat16: Math.max(a.bfloat16, b.bfloat16),
  read: Math.max(a.read, b.read),
});

/** finish: waits for the result, where the device computes on its own. */
function fastest(work: () => tf.Tensor, finish: (x: tf.Tensor) => void): number {
  const seconds = Array.from({ length: TRIES }, () => {
    const started = performance.now();
    const x = work();
    finish(x);
    x.dispose();
    return (performance.now() - started) / 1000;
  });
  return Math.min(...seconds);
}

async function main(): Promise<void> {
  const { bfloat16, device } = await engine();
  const finish = (x: tf.Tensor) => (device === "gpu" ? void tf.tidy(() => x.flatten().slice(0, 1).cast("float32").dataSync()) : undefined);
  const fastestHere = (work: () => tf.Tensor) => fastest(work, finish);
  const a = tf.ones([SIDE, SIDE]) as tf.Tensor2D;
  const flops = 2 * SIDE ** 3;
  const float32 = flops / fastestHere(() => tf.matMul(a, a));
  const half = bfloat16 ? toBfloat16(a) : undefined;
  const product = half ? flops / fastestHere(() => matMulBfloat16(half, half)) : 0;
  const line = tf.ones([COUNT]);
  console.log(JSON.stringify({ float32, bfloat16: product, read: (4 * COUNT) / fastestHere(() => line.sum()) } satisfies Limits));
}

if (require.main === module)
  main().catch((error) => {
    console.error(error);
    process.exitCode = 1;
  });
